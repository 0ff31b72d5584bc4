// test/machine/hook_transform_test.cpp -- what the extension hook makes of a translation, case by case.
#include <catch2/catch.hpp>

#include "test/support/hook.hpp"

using namespace warren;
using namespace warren::test;

namespace {

constexpr auto http = "envoy-gateway-system/eg/http";

hook::transformed run(const eg::PostTranslateModifyRequest& r, const truths& all, hook::transform_settings s = {}) {
  auto out = hook::transform(r.SerializeAsString(), find_in(all), s);
  REQUIRE(out.error.empty());
  return out;
}
eg::PostTranslateModifyResponse decoded(const hook::transformed& t) {
  eg::PostTranslateModifyResponse out;
  REQUIRE(out.ParseFromString(t.response));
  return out;
}

/// One tunnel p/t with rule 0 behind listener http.
struct one_tunnel {
  eg::PostTranslateModifyRequest request;
  routes::RouteConfiguration* config;
  routes::VirtualHost* host;
  one_tunnel() {
    add_cluster(request, "httproute/p/t/rule/0");
    add_listener(request, http, http);
    config = request.add_routes();
    config->set_name(http);
    host = add_host(config, std::string{http} + "/t_example_test", "t.example.test");
    add_route(host, "httproute/p/t/rule/0/match/0/t_example_test", "httproute/p/t/rule/0");
  }
};

void expect_503(const routes::Route& r) {
  CHECK_FALSE(r.has_route());
  CHECK(r.direct_response().status() == 503);
  CHECK(r.direct_response().body().inline_string() == "Tunnel not online");
}

}  // namespace

TEST_CASE("a cluster's name means a rule only in its two forms") {
  const auto key = [](const std::string& name) {
    const auto k = hook::parse_cluster_name(name);
    return k ? std::string{k->route_namespace} + " " + std::string{k->tunnel} + " " + std::to_string(k->rule) : "";
  };
  CHECK(key("httproute/p/t/rule/0") == "p t 0");
  CHECK(key("httproute/p/t/rule/12") == "p t 12");
  CHECK(key("httproute/p/t/rule/3/backend/1") == "p t 3");
  for (const auto* name :
       {"", "/", "httproute", "httproute/p/t/rule", "httproute/p/t/rule/", "httproute/p/t/rule/0-mirror-0",
        "httproute/p/t/rule/-1", "httproute/p/t/rule/+1", "httproute/p/t/rule/0x1", "httproute/p/t/rule/ 1",
        "httproute/p/t/rule/0/", "httproute/p/t/rule/0/backend", "httproute/p/t/rule/0/backend/", "httproute/p/t/rule/0/backend/x",
        "httproute/p/t/rule/0/backend/0/", "httproute/p/t/rule/0/backends/0", "httproute/p/t/rules/0", "httproute//t/rule/0",
        "httproute/p//rule/0", "grpcroute/p/t/rule/0", "HTTPRoute/p/t/rule/0", "invalid-backend-cluster",
        "httproute/p/t/rule/9999999999", "httproute/p/t/rule/0/filter/0"})
    CHECK(key(name).empty());
}

TEST_CASE("online: the cluster leads to the connector, and CONNECT to the cluster") {
  one_tunnel t;
  const auto done = run(t.request, {{"p/t", truth({online_rule()})}});
  const auto out = decoded(done);

  REQUIRE(out.clusters_size() == 1);
  const auto& c = out.clusters(0);
  CHECK(c.name() == "httproute/p/t/rule/0");
  CHECK(c.type() == envoy::config::cluster::v3::Cluster::STATIC);
  CHECK(c.has_type());
  CHECK(c.connect_timeout().seconds() == 5);
  CHECK(c.load_assignment().cluster_name() == c.name());
  REQUIRE(c.load_assignment().endpoints_size() == 1);
  REQUIRE(c.load_assignment().endpoints(0).lb_endpoints_size() == 1);
  const auto& e = c.load_assignment().endpoints(0).lb_endpoints(0);
  CHECK(e.endpoint().address().envoy_internal_address().server_listener_name() == "connector-tunnel");
  REQUIRE(e.metadata().filter_metadata_size() == 1);
  const auto& fields = e.metadata().filter_metadata().at("tunnel").fields();
  CHECK(fields.at("address").string_value() == "localhost:8080");
  CHECK(fields.at("endpoint_id").string_value() == std::string(64, 'a'));
  CHECK(c.transport_socket().name() == "envoy.transport_sockets.internal_upstream");
  CHECK(c.transport_socket().typed_config().type_url() ==
        "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport");
  CHECK(c.transport_socket().typed_config().value().find("envoy.transport_sockets.raw_buffer") != std::string::npos);

  const auto& host = out.routes(0).virtual_hosts(0);
  const std::string id = "envoy-gateway-system-eg-http-t_example_test";
  REQUIRE(host.domains_size() == 2);
  CHECK(host.domains(0) == "t.example.test");
  CHECK(host.domains(1) == id + ".connector.internal");
  REQUIRE(host.routes_size() == 2);
  const auto& connect = host.routes(0);
  CHECK(connect.name() == "connector-connect-" + id);
  CHECK(connect.match().has_connect_matcher());
  CHECK(connect.route().cluster() == "httproute/p/t/rule/0");
  REQUIRE(connect.route().upgrade_configs_size() == 1);
  CHECK(connect.route().upgrade_configs(0).upgrade_type() == "CONNECT");
  CHECK(connect.route().upgrade_configs(0).has_connect_config());
  CHECK(host.routes(1).SerializeAsString() == t.host->routes(0).SerializeAsString());
  CHECK(connect_upgrades(out.listeners(0)) == 1);

  CHECK(done.counts.clusters == 1);
  CHECK(done.counts.listeners == 1);
  CHECK(done.counts.route_configs == 1);
  CHECK(done.counts.clusters_replaced == 1);
  CHECK(done.counts.clusters_offline == 0);
  CHECK(done.counts.vhosts_connector_applied == 1);
  CHECK(done.counts.connector_offline_routes == 0);
}

TEST_CASE("offline: only the action changes, and CONNECT is answered too") {
  one_tunnel t;
  (*t.host->mutable_routes(0)->mutable_typed_per_filter_config())["envoy.filters.http.cors"].set_value("x");
  t.host->mutable_routes(0)->mutable_route()->mutable_timeout()->set_seconds(7);
  const auto done = run(t.request, {{"p/t", truth({offline_rule()})}});
  const auto out = decoded(done);

  CHECK(out.clusters(0).SerializeAsString() == t.request.clusters(0).SerializeAsString());
  const auto& host = out.routes(0).virtual_hosts(0);
  REQUIRE(host.domains_size() == 1);
  REQUIRE(host.routes_size() == 2);
  CHECK(host.routes(0).name() == "connector-offline-envoy-gateway-system-eg-http-t_example_test");
  CHECK(host.routes(0).match().has_connect_matcher());
  expect_503(host.routes(0));
  expect_503(host.routes(1));
  auto as_it_was = host.routes(1);
  *as_it_was.mutable_route() = t.host->routes(0).route();
  CHECK(as_it_was.SerializeAsString() == t.host->routes(0).SerializeAsString());
  CHECK(host.routes(1).response_headers_to_add_size() == 0);
  CHECK(connect_upgrades(out.listeners(0)) == 1);
  CHECK(done.counts.clusters_offline == 1);
  CHECK(done.counts.clusters_replaced == 0);
  CHECK(done.counts.vhosts_connector_applied == 1);
  CHECK(done.counts.connector_offline_routes == 1);
}

TEST_CASE("an option says why and when to come again") {
  one_tunnel t;
  const auto out = decoded(run(t.request, {{"p/t", truth({offline_rule()})}}, {.reason_headers = true}));
  for (const auto& r : out.routes(0).virtual_hosts(0).routes()) {
    REQUIRE(r.response_headers_to_add_size() == 2);
    CHECK(r.response_headers_to_add(0).header().key() == "retry-after");
    CHECK(r.response_headers_to_add(1).header().value() == "connector-offline");
  }
}

TEST_CASE("what is no connector's stays as it is, listener and all") {
  one_tunnel t;
  const auto expect_same = [&](const truths& all) {
    const auto done = run(t.request, all);
    CHECK(as_request(done.response) == t.request.SerializeAsString());
    CHECK(done.counts.vhosts_connector_applied == 0);
  };
  SECTION("a tunnel that does not exist") { expect_same({}); }
  SECTION("a rule that the tunnel does not have") { expect_same({{"p/t", truth({online_rule(1)})}}); }
  SECTION("a redirect") {
    t.host->mutable_routes(0)->clear_route();
    t.request.clear_clusters();
    expect_same({{"p/t", truth({online_rule()})}});
  }
  SECTION("other kinds of names") {
    t.host->mutable_routes(0)->mutable_route()->set_cluster("grpcroute/p/t/rule/0");
    t.request.mutable_clusters(0)->set_name("httproute/p/t/rule/0-mirror-0");
    expect_same({{"p/t", truth({online_rule()})}});
  }
}

TEST_CASE("each route follows its own connector; CONNECT goes to the first that is online") {
  one_tunnel t;
  add_route(t.host, "b", "httproute/p/t/rule/1", "/b");
  add_route(t.host, "c", "httproute/p/u/rule/0", "/c");
  add_route(t.host, "d", "elsewhere", "/d");
  add_cluster(t.request, "httproute/p/t/rule/1");
  add_cluster(t.request, "httproute/p/u/rule/0");
  const auto routed = [&](const truths& all) { return decoded(run(t.request, all)).routes(0).virtual_hosts(0); };
  SECTION("the second and third are online") {
    const auto host = routed({{"p/t", truth({offline_rule(0), online_rule(1)})}, {"p/u", truth({online_rule()})}});
    REQUIRE(host.routes_size() == 5);
    CHECK(host.routes(0).route().cluster() == "httproute/p/t/rule/1");
    expect_503(host.routes(1));
    CHECK(host.routes(2).route().cluster() == "httproute/p/t/rule/1");
    CHECK(host.routes(3).route().cluster() == "httproute/p/u/rule/0");
    CHECK(host.routes(4).route().cluster() == "elsewhere");
    CHECK(host.domains_size() == 2);
  }
  SECTION("none is online") {
    const auto host = routed({{"p/t", truth({offline_rule(0), offline_rule(1)})}, {"p/u", truth({offline_rule()})}});
    REQUIRE(host.routes_size() == 5);
    for (int i = 0; i < 4; ++i) expect_503(host.routes(i));
    CHECK(host.routes(4).route().cluster() == "elsewhere");
    CHECK(host.domains_size() == 1);
  }
}

TEST_CASE("weighted clusters: the offline ones leave the list; without any left, the route answers 503") {
  eg::PostTranslateModifyRequest request;
  auto* config = request.add_routes();
  config->set_name(http);
  auto* host = add_host(config, "h", "t.example.test");
  auto* r = add_route(host, "r", "");
  r->mutable_route()->mutable_timeout()->set_seconds(7);
  add_member(r, "httproute/p/t/rule/0/backend/0", 3);
  add_member(r, "httproute/p/u/rule/0/backend/0", 2);
  const truths one_off{{"p/t", truth({offline_rule()})}, {"p/u", truth({online_rule()})}};
  const truths both_off{{"p/t", truth({offline_rule()})}, {"p/u", truth({offline_rule()})}};

  SECTION("partly") {
    r->mutable_route()->mutable_weighted_clusters()->mutable_total_weight()->set_value(5);
    const auto done = run(request, one_off);
    const auto h = decoded(done).routes(0).virtual_hosts(0);
    const auto& action = h.routes(1).route();
    REQUIRE(action.weighted_clusters().clusters_size() == 1);
    CHECK(action.weighted_clusters().clusters(0).name() == "httproute/p/u/rule/0/backend/0");
    CHECK(action.weighted_clusters().total_weight().value() == 2);
    CHECK(action.timeout().seconds() == 7);
    CHECK(h.routes(0).route().cluster() == "httproute/p/u/rule/0/backend/0");
    CHECK(done.counts.connector_offline_routes == 0);
  }
  SECTION("all") {
    const auto done = run(request, both_off);
    const auto h = decoded(done).routes(0).virtual_hosts(0);
    expect_503(h.routes(0));
    expect_503(h.routes(1));
    CHECK(done.counts.connector_offline_routes == 1);
  }
  SECTION("what is left has no weight: Envoy would refuse it") {
    r->mutable_route()->mutable_weighted_clusters()->mutable_clusters(1)->mutable_weight()->set_value(0);
    const auto h = decoded(run(request, one_off)).routes(0).virtual_hosts(0);
    expect_503(h.routes(0));
    expect_503(h.routes(1));
  }
  SECTION("a member of somebody else stays") {
    add_member(r, "invalid-backend-cluster", 1);
    const auto h = decoded(run(request, both_off)).routes(0).virtual_hosts(0);
    expect_503(h.routes(0));
    REQUIRE(h.routes(1).route().weighted_clusters().clusters_size() == 1);
    CHECK(h.routes(1).route().weighted_clusters().clusters(0).name() == "invalid-backend-cluster");
  }
  SECTION("all online") {
    const auto h = decoded(run(request, {{"p/t", truth({online_rule()})}, {"p/u", truth({online_rule()})}}))
                       .routes(0).virtual_hosts(0);
    CHECK(h.routes(0).route().cluster() == "httproute/p/t/rule/0/backend/0");
    CHECK(h.routes(1).SerializeAsString() == r->SerializeAsString());
  }
}

TEST_CASE("a tunnel on two listeners is treated alike on both") {
  one_tunnel t;
  auto* https = t.request.add_routes();
  *https = *t.config;
  https->set_name("envoy-gateway-system/eg/https");
  https->mutable_virtual_hosts(0)->set_name("envoy-gateway-system/eg/https/t_example_test");
  add_listener(t.request, "https", "envoy-gateway-system/eg/https", false);
  add_listener(t.request, "other", "somebody-elses");
  for (const bool online : {true, false}) {
    const auto done = run(t.request, {{"p/t", truth({online ? online_rule() : offline_rule()})}});
    const auto out = decoded(done);
    CHECK(done.counts.vhosts_connector_applied == 2);
    for (const auto& config : out.routes()) {
      CHECK(config.virtual_hosts(0).routes_size() == 2);
      CHECK(config.virtual_hosts(0).routes(0).match().has_connect_matcher());
    }
    CHECK(connect_upgrades(out.listeners(0)) == 1);
    CHECK(connect_upgrades(out.listeners(1)) == 1);
    CHECK(connect_upgrades(out.listeners(2)) == 0);
  }
}

TEST_CASE("a connection manager that has the upgrade keeps it as it is") {
  one_tunnel t;
  auto m = manager_of(t.request.listeners(0));
  m.add_upgrade_configs()->set_upgrade_type("websocket");
  m.add_upgrade_configs()->set_upgrade_type("connect");  // Envoy compares without case
  t.request.mutable_listeners(0)->mutable_default_filter_chain()->mutable_filters(0)->mutable_typed_config()->PackFrom(m);
  const auto out = decoded(run(t.request, {{"p/t", truth({offline_rule()})}}));
  CHECK(out.listeners(0).SerializeAsString() == t.request.listeners(0).SerializeAsString());
}

TEST_CASE("connection managers get the upgrade to WebSocket, once, where it opens nobody else's routes") {
  one_tunnel t;
  using hook::websocket_upgrade;
  auto asked = websocket_upgrade::harmless;
  bool wanted = true;
  const auto plain = [&] { return add_route(add_host(t.config, "plain", "plain.example.test"), "plain", "plain"); };
  SECTION("there is nobody else") {}
  SECTION("others say for themselves that they take WebSockets") {
    plain()->mutable_route()->add_upgrade_configs()->set_upgrade_type("WebSocket");
  }
  SECTION("others say for themselves that they do not") {
    auto* upgrade = plain()->mutable_route()->add_upgrade_configs();
    upgrade->set_upgrade_type("websocket");
    upgrade->mutable_enabled()->set_value(false);
  }
  SECTION("others say nothing") {
    plain()->mutable_route()->add_upgrade_configs()->set_upgrade_type("spdy/3.1");
    wanted = false;
  }
  SECTION("others say nothing, and it is wanted all the same") {
    plain();
    asked = websocket_upgrade::always;
  }
  SECTION("others forward nowhere") {
    auto* r = plain();
    r->clear_route();
    r->mutable_direct_response()->set_status(404);
  }
  SECTION("another listener's routes say nothing") {
    auto* other = t.request.add_routes();
    other->set_name("other");
    add_route(add_host(other, "plain", "plain.example.test"), "plain", "plain");
  }
  SECTION("it is not wanted") {
    asked = websocket_upgrade::never;
    wanted = false;
  }
  const hook::transform_settings settings{.websockets = asked};
  for (const bool online : {false, true}) {  // not a listener that changes with every flip
    const truths all{{"p/t", truth({online ? online_rule() : offline_rule()})}};
    const auto once = run(t.request, all, settings);
    const auto m = manager_of(decoded(once).listeners(0));
    REQUIRE(m.upgrade_configs_size() == (wanted ? 2 : 1));
    CHECK(m.upgrade_configs(0).upgrade_type() == "CONNECT");
    if (wanted) CHECK(m.upgrade_configs(1).upgrade_type() == "websocket");
    CHECK(hook::transform(as_request(once.response), find_in(all), settings).response == once.response);
  }
}

TEST_CASE("domains stay unique in a route configuration, in Envoy's sense") {
  one_tunnel t;
  const std::string internal = "envoy-gateway-system-eg-http-t_example_test.connector.internal";
  const truths online{{"p/t", truth({online_rule()})}};
  SECTION("somebody has the name that would be added") {
    add_host(t.config, "other", "Envoy-Gateway-System-EG-http-t_example_test.connector.internal");
    const auto out = decoded(run(t.request, online));
    CHECK(out.routes(0).virtual_hosts(0).domains_size() == 1);
    CHECK(out.routes(0).virtual_hosts(0).routes_size() == 2);
  }
  SECTION("two virtual hosts with one id") {
    auto* twin = add_host(t.config, "envoy-gateway-system:eg http/t_example_test", "twin.example.test");
    add_route(twin, "r", "httproute/p/t/rule/0");
    const auto out = decoded(run(t.request, online));
    CHECK(out.routes(0).virtual_hosts(0).domains_size() == 2);
    CHECK(out.routes(0).virtual_hosts(1).domains_size() == 1);
  }
  SECTION("they came in twice") {
    auto* other = add_host(t.config, "other", "T.example.TEST");
    other->add_domains("own.example.test");
    add_host(t.config, "nothing left", "t.example.test");
    const auto out = decoded(run(t.request, online));
    REQUIRE(out.routes(0).virtual_hosts_size() == 2);
    CHECK(out.routes(0).virtual_hosts(0).domains(0) == "t.example.test");
    REQUIRE(out.routes(0).virtual_hosts(1).domains_size() == 1);
    CHECK(out.routes(0).virtual_hosts(1).domains(0) == "own.example.test");
  }
  SECTION("another route configuration is another matter") {
    auto* second = t.request.add_routes();
    *second = *t.config;
    second->set_name("second");
    const auto out = decoded(run(t.request, online));
    CHECK(out.routes(0).virtual_hosts(0).domains(1) == internal);
    CHECK(out.routes(1).virtual_hosts(0).domains(1) == internal);
  }
}

TEST_CASE("of one tenant's rules only his own are asked for, once each") {
  one_tunnel t;
  add_route(t.host, "again", "httproute/p/t/rule/0", "/again");
  int asked = 0;
  const auto done = hook::transform(t.request.SerializeAsString(),
                                    [&](std::string_view, std::string_view) { ++asked; return truth({offline_rule()}); }, {});
  CHECK(asked == 1);
  REQUIRE(done.answered.size() == 1);
  CHECK(done.answered.begin()->first == std::pair<std::string, std::string>{"p", "t"});
}

TEST_CASE("what is no message is refused; what is merely strange is not") {
  one_tunnel t;
  const auto good = t.request.SerializeAsString();
  const auto error_of = [](const std::string& bytes) {
    return hook::transform(bytes, all_of_them(true), {}).error;
  };
  CHECK(error_of("").empty());
  CHECK(error_of(good.substr(0, good.size() - 1)) != "");
  CHECK(error_of("\xff\xff\xff") != "");
  CHECK(error_of(std::string("\x12\x05" "ab", 4)) != "");
  CHECK(error_of(std::string("\x13\x14", 2)).empty());       // an empty group, which nobody knows
  CHECK(error_of(std::string("\x13\x1c", 2)) != "");         // one that ends as another
  CHECK(error_of(std::string(300, '\x13')) != "");           // deeper than any
  CHECK(error_of(std::string("\x00\x00", 2)) != "");         // field 0
  CHECK(error_of(std::string("\x10\x01", 2)).empty());       // field 2 as a number: unknown
  SECTION("a connection manager whose bytes are none is data") {
    t.request.mutable_listeners(0)->mutable_default_filter_chain()->mutable_filters(0)->mutable_typed_config()->set_value("\xff");
    const auto done = run(t.request, {{"p/t", truth({offline_rule()})}});
    CHECK(decoded(done).listeners(0).SerializeAsString() == t.request.listeners(0).SerializeAsString());
  }
}

TEST_CASE("of an action in several pieces the last kind counts, as in protobuf") {
  const auto piece = [](auto&& fill) {
    routes::Route r;
    fill(r);
    return r.SerializeAsString();
  };
  const auto forward = [&](const std::string& cluster) {
    return piece([&](auto& r) { r.mutable_route()->set_cluster(cluster); });
  };
  const auto refuse = piece([](auto& r) { r.mutable_direct_response()->set_status(404); });
  const auto verdict = [&](const std::string& route) {
    std::string host, config, request;
    hook::wire::put_bytes(host, 1, "h");
    hook::wire::put_bytes(host, 2, "a.example.test");
    hook::wire::put_bytes(host, 3, route);
    hook::wire::put_bytes(config, 2, host);
    hook::wire::put_bytes(request, 5, config);
    const auto done = hook::transform(request, all_of_them(false), {});
    REQUIRE(done.error.empty());
    const auto h = decoded(done).routes(0).virtual_hosts(0);
    return h.routes(h.routes_size() - 1);
  };
  CHECK(verdict(forward("httproute/p/t/rule/0") + refuse).direct_response().status() == 404);
  CHECK(verdict(refuse + forward("httproute/p/t/rule/0")).direct_response().status() == 503);
  CHECK(verdict(forward("elsewhere") + forward("httproute/p/t/rule/0")).direct_response().status() == 503);
  CHECK(verdict(forward("httproute/p/t/rule/0") + forward("elsewhere")).route().cluster() == "elsewhere");
}
