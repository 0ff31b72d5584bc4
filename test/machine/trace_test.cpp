// test/machine/trace_test.cpp -- what trace makes of a URL, of a gateway's address, and of what everybody has said.
#include <catch2/catch.hpp>

#include "services/warrenctl/trace.hpp"

using namespace warren::ctl;

namespace {

/// A tunnel with one rule to an online connector, and what was answered.
struct traced {
  trace_question q;
  trace_result r;

  traced() {
    q.url = {"web.example.org", "web.example.org", "/"};
    q.tunnel.emplace().set_name("projects/p/tunnels/web");
    q.tunnel->set_enabled(true);
    auto& rule = *q.tunnel->add_rules();
    rule.set_path_prefix("/");
    rule.set_connector("home");
    rule.set_target("http://localhost:8080");
    q.rule = 0;
    q.connector.emplace().set_name("projects/p/connectors/home");
    q.connector->set_online(true);
  }
  traced& step(std::string who, int status, bool ok, std::string reason = {}) {
    r.steps.push_back({.who = who, .name = who == "gateway" ? "gw-1" : "home", .where = "there", .status = status, .reason = reason, .ok = ok, .says = "says so"});
    return *this;
  }
  std::string no() {
    judge(q, r);
    CHECK(r.ok == r.who_says_no.empty());
    return r.who_says_no;
  }
};

constexpr const char* unreachable = "connector-unreachable";

}  // namespace

TEST_CASE("who says no follows from what everybody says") {
  CHECK(traced{}.step("gateway", 200, true).no().empty());
  CHECK(traced{}.step("gateway", 500, true).step("agent", 200, true).step("target", 500, true).no().empty());  // it gets through
  CHECK(traced{}.step("gateway", 200, true).step("agent", 0, false).no().empty());  // not reachable from here, and need not be
  CHECK(traced{}.no() == "gateway");
  CHECK(traced{}.step("gateway", 0, false).step("agent", 200, true).step("target", 200, true).no() == "gateway");
  CHECK(traced{}.step("gateway", 200, true).step("gateway", 0, false).no() == "gateway");
  CHECK(traced{}.step("gateway", 503, false, unreachable).step("agent", 200, true).step("target", 0, false).no() == "target");
  CHECK(traced{}.step("gateway", 503, false, unreachable).step("agent", 200, true).step("target", 200, true).no() == "gateway");
  CHECK(traced{}.step("gateway", 503, false, unreachable).step("agent", 503, false).no() == "target");
  CHECK(traced{}.step("gateway", 503, false, unreachable).step("agent", 403, false).no() == "agent");
  CHECK(traced{}.step("gateway", 503, false, unreachable).step("agent", 0, false).no() == "agent");
  CHECK(traced{}.step("gateway", 503, false, unreachable).no() == "agent");
  CHECK(traced{}.step("gateway", 503, false, "connector-offline").no() == "gateway");  // it is online: the gateway is behind
  // A 404 that the target does not say is the gateway's.
  CHECK(traced{}.step("gateway", 404, true).step("agent", 200, true).step("target", 200, true).no() == "gateway");
  CHECK(traced{}.step("gateway", 404, true).step("agent", 200, true).step("target", 404, true).no().empty());

  // Gateways that dial no agent have no path to it that could be looked at.
  for (const bool through : {false, true}) {
    auto silent = traced{}.step("gateway", 503, false, unreachable).step("agent", 200, true).step("target", 200, true);
    silent.q.through_tunnel_gateway = through;
    CHECK(silent.no() == "gateway");
    CHECK((silent.r.summary.find("tunnel gateway") != std::string::npos) == through);
    CHECK((silent.r.summary.find("the network between") != std::string::npos) != through);
  }

  auto t = traced{}.step("gateway", 503, false, "connector-offline");
  t.q.connector->set_online(false);
  CHECK(t.no() == "connector");
  t.q.connector.reset();
  CHECK(t.no() == "connector");
  t.q.rule = -1;
  CHECK(t.no() == "tunnel");
  t.q.tunnel->set_enabled(false);
  CHECK(t.no() == "tunnel");
  t.q.tunnel.reset();
  CHECK(t.no() == "gateway");
}

TEST_CASE("a URL is asked for as a visitor would") {
  std::string why;
  const auto url = parse_trace_url("http://Web.Example.org.:8080/a/b?c=d#e", why);
  REQUIRE(url);
  CHECK(url->host == "web.example.org");
  CHECK(url->authority == "Web.Example.org.:8080");
  CHECK(url->target == "/a/b?c=d");
  CHECK(parse_trace_url("web.example.org", why)->target == "/");
  CHECK(parse_trace_url("web.example.org?x", why)->target == "/?x");
  for (const std::string bad : {"", "http://", "https://a.b", "ftp://a.b", "http://user@a.b", "a b", "a.b/\r\nX: y", "http:///path", "m\xc3\xbcnchen.de"}) {
    INFO(bad);
    why.clear();
    CHECK_FALSE(parse_trace_url(bad, why));
    CHECK_FALSE(why.empty());
  }
}

TEST_CASE("a path meets the rule that gateways would choose") {
  warren::admin::v1::Tunnel t;
  for (const auto* prefix : {"/", "/api", "/api/v2/"}) t.add_rules()->set_path_prefix(prefix);
  CHECK(rule_for(t, "/") == 0);
  CHECK(rule_for(t, "/apis") == 0);
  CHECK(rule_for(t, "/api") == 1);
  CHECK(rule_for(t, "/api?x=/api/v2/") == 1);
  CHECK(rule_for(t, "/api/v2") == 1);
  CHECK(rule_for(t, "/api/v2/x") == 2);
  t.mutable_rules()->DeleteSubrange(0, 1);
  CHECK(rule_for(t, "/else") == -1);
}

TEST_CASE("a gateway is found where it is given, where its class listens, or where its stream comes from") {
  warren::admin::v1::Gateway g;
  g.set_name("gateways/gw-1");
  g.set_peer("[2001:db8::7]:40112");
  warren::admin::v1::GatewayClass c;
  CHECK(locate(g, nullptr, "").host.empty());
  CHECK(locate(g, &c, "").host.empty());
  c.add_listen("192.0.2.1:80");
  CHECK(locate(g, &c, "").host == "192.0.2.1");
  CHECK(locate(g, &c, "").port == "80");
  for (const auto* all : {"0.0.0.0:80", "[::]:80"}) {
    c.set_listen(0, all);
    CHECK(locate(g, &c, "").host == "[2001:db8::7]");
    CHECK(locate(g, &c, "").port == "80");
    CHECK(locate(g, &c, "edge.example.org:8080").host == "edge.example.org");
  }
  g.clear_peer();
  CHECK(locate(g, &c, "").host.empty());
}
