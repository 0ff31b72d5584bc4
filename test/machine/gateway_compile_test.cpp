// test/machine/gateway_compile_test.cpp -- which resources follow from which rows, and that bad ones never do.
#include <catch2/catch.hpp>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "services/gateway/compile.hpp"

namespace {

using namespace warren;
namespace v1 = warren::core::v1;
namespace route = envoy::config::route::v3;

v1::ConnectorRow connector() {
  v1::ConnectorRow c;
  c.set_project("p");
  c.set_name("c");
  c.set_public_key(std::string(64, 'a'));
  c.add_addresses("192.0.2.7:7400");
  c.add_addresses("[2001:db8::7]:7400");
  c.set_online(true);
  return c;
}

v1::TunnelRow tunnel_row() {
  v1::TunnelRow t;
  t.set_project("p");
  t.set_name("t");
  t.set_uid("u1");
  t.set_generation(3);
  return t;
}

tunnel::rule_plan rule(int index, const std::string& prefix, tunnel::outcome what = tunnel::outcome::live,
                       const std::string& target = "http://localhost:8080") {
  tunnel::rule_plan r;
  r.index = index;
  r.what = what;
  r.rule.set_path_prefix(prefix);
  r.rule.set_connector("c");
  r.rule.set_target(target);
  return r;
}

route::VirtualHost host_of(std::vector<tunnel::rule_plan> rules, bool has_cluster = true) {
  const auto got = gateway::compile_route(tunnel_row(), {.generation = 3, .rules = std::move(rules)},
                                          [&](const std::string&) { return has_cluster; }, {});
  REQUIRE(got);
  route::RouteConfiguration config;
  REQUIRE(config.ParseFromString(got->bytes()));
  CHECK(config.name() == "tunnel/p/t");
  return config.virtual_hosts(0);
}

std::string reason(const route::Route& r) {
  for (const auto& h : r.response_headers_to_add())
    if (h.header().key() == "x-warren-reason") return h.header().value();
  return "";
}

}  // namespace

TEST_CASE("the longest prefix is matched first, by segments, and CONNECT follows the shortest") {
  const auto host = host_of({rule(0, "/"), rule(1, "/api/v2"), rule(2, "/api", tunnel::outcome::offline)});
  CHECK(host.routes(0).match().has_connect_matcher());
  CHECK(host.routes(0).name() == "p/t/0");
  CHECK(host.routes(1).match().path_separated_prefix() == "/api/v2");
  CHECK(host.routes(1).match().headers(0).name() == "upgrade");
  CHECK(host.routes(2).match().path_separated_prefix() == "/api/v2");
  CHECK(host.routes(3).match().path_separated_prefix() == "/api");
  CHECK(host.routes(3).direct_response().status() == 503);
  CHECK(reason(host.routes(3)) == "connector-offline");
  CHECK(host.routes(5).match().prefix() == "/");
}

TEST_CASE("a rule that cannot be passed on answers 503 by itself, and no byte of it reaches a resource") {
  const auto target = GENERATE(as<std::string>{}, "http://a%b:80", "http://a\r\nx:80", "http://a b:80", "ftp://a:80",
                               "http://a", "http://a:0", "http://a:65536", "http://:80", "http://a:80/x", "", "http://u@a:80");
  const auto host = host_of({rule(0, "/bad", tunnel::outcome::live, target), rule(1, "/")});
  for (const auto& r : host.routes())
    if (r.name() == "p/t/0") {
      CHECK(r.direct_response().status() == 503);
      CHECK(reason(r) == "invalid-addressing");
    }
  CHECK(host.routes(0).route().cluster() == "connector/p/c");
}

TEST_CASE("a live rule without a cluster is offline, never routed to nothing") {
  const auto host = host_of({rule(0, "/")}, false);
  REQUIRE(host.routes_size() == 2);
  for (const auto& r : host.routes()) CHECK(reason(r) == "invalid-addressing");
}

TEST_CASE("prefixes that Envoy would refuse make no route") {
  const auto prefix = GENERATE(as<std::string>{}, "", "api", "/a?b", "/a#b", "/a b", "/a\x01", "/\xc3\xa9");
  CHECK(host_of({rule(0, prefix)}).routes_size() == 0);
}

TEST_CASE("a connector has a cluster as long as it has a key and addresses that can be used, online or not") {
  CHECK(gateway::compile_cluster(connector()));
  auto c = connector();
  c.set_online(false);
  REQUIRE(gateway::compile_cluster(c));
  CHECK(gateway::compile_cluster(c)->version == gateway::compile_cluster(connector())->version);
  SECTION("no key") { c.clear_public_key(); }
  SECTION("key with a control character") { c.set_public_key(std::string(63, 'a') + '\n'); }
  SECTION("no address") { c.clear_addresses(); }
  SECTION("not an address") { c.add_addresses("example.com:80"); }
  SECTION("port 0") { c.add_addresses("192.0.2.7:0"); }
  SECTION("trailing bytes") { c.add_addresses("192.0.2.7:80\n"); }
  SECTION("refused report") { c.set_addressing_error("addresses[0]: not allowed"); }
  SECTION("being deleted") { c.mutable_delete_time()->set_seconds(1); }
  CHECK_FALSE(gateway::compile_cluster(c));
}

TEST_CASE("equal rows make equal bytes, whatever else changes in them") {
  auto a = connector(), b = connector();
  std::swap(*b.mutable_addresses(0), *b.mutable_addresses(1));
  b.set_version(99);
  b.set_session(7);
  CHECK(gateway::compile_cluster(a)->version == gateway::compile_cluster(b)->version);
  b.set_addressing_generation(2);
  CHECK(gateway::compile_cluster(a)->version != gateway::compile_cluster(b)->version);
}

TEST_CASE("listeners are made of the addresses that parse") {
  v1::GatewayClassRow row;
  row.add_listen("127.0.0.1:80");
  row.add_listen("[::1]:80");
  row.add_listen("somewhere:80");
  row.add_listen("127.0.0.1:80");
  row.set_stream_idle_timeout_ms(std::numeric_limits<std::int64_t>::max());
  const auto all = gateway::compile_listeners(gateway::settings_of(row));
  REQUIRE(all.size() == 3);
  CHECK(all[0]->name == "connector-direct");
  CHECK(all[1]->name == "visitors/127.0.0.1:80");
  CHECK(all[2]->name == "visitors/[::1]:80");
}
