// test/e2e/refusals_test.cpp -- one tenant's resource is refused by a real Envoy, in every form that Envoy has, or one
// tenant's rows are poisoned: it is told so, and the fifty beside it notice nothing.
#include <vector>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "test/e2e/envoys.hpp"
#include "test/support/ads_relay.hpp"

using namespace warren::e2e;
using warren::stack::continuous_visitor;
using warren::stack::poll_until;
using warren::test::ads_relay;
using whole = warren::stack::stack;

namespace {

constexpr int healthy = 50;

template <class Message> ads_relay::spoil changing(const std::function<void(Message&)>& how) {
  return [how](const std::string& bytes) {
    Message m;
    REQUIRE(m.ParseFromString(bytes));
    how(m);
    return m.SerializeAsString();
  };
}

using route_configuration = envoy::config::route::v3::RouteConfiguration;
using scope = envoy::config::route::v3::ScopedRouteConfiguration;
using cluster = envoy::config::cluster::v3::Cluster;

/// A stack whose gateway is reached through the relay, with healthy tunnels of one connector.
struct town {
  warren::stack::stack_options options() const {
    return {.start = false, .configuration = {{"xds.advertise", "127.0.0.1:" + std::to_string(port)}}};
  }
  int port = warren::stack::free_port();
  whole s{options()};
  ads_relay relay{port, s.at(0).xds_port()};

  town() {
    s.start_warrend();
    s.start_envoy();
    s.add_agent("home").await_session();
    for (int n = 0; n < healthy; ++n) s.create_tunnel(name(n), name(n) + ".example.org", "home");
    for (int n = 0; n < healthy; ++n) REQUIRE(s.await_ready(name(n), patience));
  }
  static std::string name(int n) { return "good-" + std::to_string(n); }
  void check_healthy() {
    for (int n = 0; n < healthy; ++n) {
      const auto a = s.visit(name(n) + ".example.org");
      INFO(name(n) << ": " << describe(a));
      CHECK(is_the_targets(a));
      CHECK(whole::condition(s.tunnel(name(n)), "Ready") == "True");
    }
  }
};

std::string reason_of(const nlohmann::json& resource, const std::string& type) {
  if (!resource.is_object()) return {};
  for (const auto& c : resource.value("conditions", nlohmann::json::array()))
    if (c.value("type", "") == type) return c.value("reason", "");
  return {};
}

}  // namespace

TEST_CASE("whatever of one tenant's a gateway refuses, that tenant is told, and nobody else notices") {
  WARREN_NEEDS_SERVERS();
  town t;
  auto& s = t.s;
  struct form {
    std::string what, resource;  ///< empty: its connector's cluster
    ads_relay::spoil how;
  };
  const std::vector<form> forms{
      {"a route configuration that contradicts itself", "tunnel/demo/bad", changing<route_configuration>([](auto& r) { *r.add_virtual_hosts() = r.virtual_hosts(0); })},
      {"a route configuration that breaks a field's rule", "tunnel/demo/bad", changing<route_configuration>([](auto& r) { r.mutable_virtual_hosts(0)->clear_name(); })},
      {"a cluster that contradicts itself", "", changing<cluster>([](auto& c) { c.set_lb_policy(cluster::CLUSTER_PROVIDED); })},
      {"a cluster that breaks a field's rule", "", changing<cluster>([](auto& c) { c.mutable_connect_timeout()->set_seconds(-1); })},
      {"a scope with somebody else's key", "bad.example.org", changing<scope>([](auto& c) { c.mutable_key()->mutable_fragments(0)->set_string_key("good-7.example.org"); })},
      {"a scope that breaks a field's rule", "bad.example.org", changing<scope>([](auto& c) { c.clear_name(); })},
      {"a resource that is none", "tunnel/demo/bad", [](const std::string&) { return std::string{"\xff\xff\xff"}; }},
  };
  continuous_visitor visitor{s.visitor_port(), {.host = "good-3.example.org"}, 5ms};
  for (std::size_t n = 0; n < forms.size(); ++n) {
    const auto& f = forms[n];
    INFO(f.what);
    const auto host = "guest-" + std::to_string(n);
    t.relay.spoil_each(f.resource.empty() ? "connector/demo/" + host : f.resource, f.how);
    const auto before = t.relay.refusals();
    auto& guest = s.add_agent(host);
    guest.await_session();
    s.create_tunnel("bad", "bad.example.org", host);
    s.create_tunnel("beside", "beside.example.org", "home");
    const auto told = s.await("tunnel", "bad", [](const auto& b) { return reason_of(b, "Programmed") == "Rejected"; }, patience);
    REQUIRE_FALSE(told.is_null());
    CHECK(whole::condition(told, "Programmed") == "False");
    CHECK_THAT(whole::condition_message(told, "Programmed"), Catch::Contains("gw-1: "));
    CHECK(whole::condition(told, "Ready") != "True");
    // The gateway's own words, and nothing is tried over and over.
    CHECK(whole::condition_message(told, "Programmed").size() > std::string{"gw-1: "}.size() + 5);
    REQUIRE(s.await_ready("beside", patience));
    CHECK(is_the_targets(s.visit("beside.example.org")));
    CHECK_FALSE(is_the_targets(s.visit("bad.example.org")));
    const auto refused = t.relay.refusals() - before;
    CHECK(refused >= 1);
    CHECK(refused <= 8);  // a batch of a few is halved
    const auto shown = s.ctl({"gateway", "get", "gw-1"}).out;
    INFO(shown);
    CHECK(s.ctl({"tunnel", "why", "bad"}).out.find("gw-1") != std::string::npos);

    // Sound again, and made anew: nothing of the refusal is left.
    t.relay.spoil_nothing();
    for (const auto* name : {"bad", "beside"}) {
      s.must_ctl({"tunnel", "delete", name});
      s.must_ctl({"tunnel", "wait", name, "--for", "deleted", "--timeout", "30s"});
    }
    guest.stop();
    s.must_ctl({"connector", "delete", host});
    REQUIRE(poll_until([&] { return s.connector(host).is_null(); }, patience, 50ms));
  }
  s.create_tunnel("bad", "bad.example.org", "home");
  REQUIRE(s.await_ready("bad", patience));
  CHECK(is_the_targets(s.visit("bad.example.org")));
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");
  t.check_healthy();
}

TEST_CASE("what keeps its last good routes is told that the new ones are refused, until they are mended") {
  WARREN_NEEDS_SERVERS();
  town t;
  auto& s = t.s;
  warren::stack::origin other{"other"};
  continuous_visitor visitor{s.visitor_port(), {.host = "good-3.example.org"}, 5ms};
  REQUIRE(visitor.await_status(200, patience));
  t.relay.spoil_each("tunnel/demo/good-3", changing<route_configuration>([](auto& r) { *r.add_virtual_hosts() = r.virtual_hosts(0); }));
  s.must_ctl({"tunnel", "update", "good-3", "--target", other.url(), "--connector", "home"});
  const auto told = s.await("tunnel", "good-3", [](const auto& b) { return reason_of(b, "Programmed") == "Rejected"; }, patience);
  REQUIRE_FALSE(told.is_null());
  CHECK_THAT(whole::condition_message(told, "Programmed"), Catch::Contains("gw-1: "));
  const auto passed = t.relay.passed("tunnel/demo/good-3");
  t.relay.spoil_nothing();
  s.must_ctl({"tunnel", "update", "good-3", "--target", "http://127.0.0.1:9", "--connector", "home"});
  s.must_ctl({"tunnel", "update", "good-3", "--target", other.url(), "--connector", "home"});
  REQUIRE(s.await_ready("good-3", patience));
  CHECK(t.relay.passed("tunnel/demo/good-3") > passed);
  CHECK(from(s.visit("good-3.example.org")) == "other");
  visitor.stop();
  CHECK(foreign_answer(visitor.answers()) == "");
}

TEST_CASE("an address that a class cannot have keeps the old one open, and who has none lets no tunnel be Ready") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.start_warrend();
  s.start_envoy();
  s.add_agent("home").await_session();
  s.create_tunnel("t", "t.example.org", "home");
  REQUIRE(s.await_ready("t", patience));
  const warren::stack::origin squatter{"squatter"};
  const auto taken = "127.0.0.1:" + std::to_string(squatter.port());
  const auto refusals = [&] {
    const auto g = nlohmann::json::parse(s.must_ctl({"gateway", "get", "gw-1", "-o", "json"}).out);
    return g.value("refusals", 0);
  };

  s.must_ctl({"gateway-class", "update", "demo", "--listen", taken});
  REQUIRE(poll_until([&] { return refusals() == 1; }, patience));
  s.create_tunnel("later", "later.example.org", "home");
  REQUIRE(s.await_ready("later", patience));
  CHECK(is_the_targets(s.visit("later.example.org")));
  CHECK(is_the_targets(s.visit("t.example.org")));

  // A new Envoy has no old one.
  s.stop_envoy();
  warren::stack::process fresh{s.envoy().what()};
  const auto told = s.await("tunnel", "t", [](const auto& b) { return reason_of(b, "Ready") == "Rejected"; }, patience);
  REQUIRE_FALSE(told.is_null());
  CHECK_THAT(whole::condition_message(told, "Ready"), Catch::Contains("gw-1") && Catch::Contains(taken));
  CHECK_THAT(s.ctl({"tunnel", "why", "t"}).out, Catch::Contains(taken));
  CHECK(refusals() == 1);

  s.must_ctl({"gateway-class", "update", "demo", "--listen", "127.0.0.1:" + std::to_string(s.visitor_port())});
  REQUIRE(s.await_ready("t", patience));
  CHECK(is_the_targets(s.visit("t.example.org")));
  CHECK(refusals() == 0);
}

TEST_CASE("rows that a rival has poisoned take their own tunnel down, and harm no other") {
  WARREN_NEEDS_SERVERS();
  town t;
  auto& s = t.s;
  auto& guest = s.add_agent("guest");
  guest.await_session();
  s.create_tunnel("bad", "bad.example.org", "guest");
  REQUIRE(s.await_ready("bad", patience));
  continuous_visitor visitor{s.visitor_port(), {.host = "good-3.example.org"}, 5ms};
  struct poison {
    const char *what, *sql, *field;  ///< the one that the condition names
    const char *mended = "";         ///< what puts it right again; empty: only its owner can
  };
  const auto p = GENERATE(values<poison>({
      {"a target that no gateway can be told", R"(UPDATE tunnel SET rules = jsonb_set(rules, '{0,target}', '"http://a%b:80"') WHERE name = 'bad')", "rules[0].target: "},
      {"a key with a control character", R"(UPDATE connector SET public_key = E'\n' || substr(public_key, 2) WHERE name = 'guest')", "public_key: ",
       R"(UPDATE connector SET public_key = '%' WHERE name = 'guest')"},
      {"no key at all", R"(UPDATE connector SET public_key = '' WHERE name = 'guest')", "public_key: ",
       R"(UPDATE connector SET public_key = '%' WHERE name = 'guest')"},
  }));
  INFO(p.what);
  std::string mended = p.mended;
  if (const auto at = mended.find('%'); at != std::string::npos) mended.replace(at, 1, guest.public_key());
  s.sql(p.sql);
  const auto a = visit_until(s, {.host = "bad.example.org"}, is_ours);
  INFO(describe(a));
  CHECK(is_ours(a));
  const auto told = s.await("tunnel", "bad", [&](const auto& b) {
    return whole::condition(b, "Ready") == "False" && whole::condition_message(b, "Ready").find(p.field) != std::string::npos;
  }, patience);
  INFO(s.tunnel("bad").dump());
  REQUIRE_FALSE(told.is_null());
  CHECK_THAT(s.ctl({"tunnel", "why", "bad"}).out, Catch::Contains(p.field));
  CHECK(t.relay.refusals() == 0);
  t.check_healthy();
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");
  if (mended.empty()) return;
  const auto connector = s.connector("guest");
  CHECK(whole::condition(connector, "Ready") == "False");
  CHECK_THAT(whole::condition_message(connector, "Ready"), Catch::Contains(p.field));
  s.sql(mended);
  REQUIRE(s.await_ready("bad", patience));
  CHECK(is_the_targets(s.visit("bad.example.org")));
}
