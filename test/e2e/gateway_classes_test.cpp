// test/e2e/gateway_classes_test.cpp -- gateways that reach connectors in different ways, side by side: each serves the
// tunnels of its class and no other. A tunnel gateway is played.
#include <algorithm>

#include "test/e2e/envoys.hpp"
#include "test/support/tunnel_gateway.hpp"

using namespace warren::e2e;
using warren::stack::continuous_visitor;
using warren::stack::open_visit;
using warren::stack::origin;
using warren::stack::poll_until;
using warren::stack::request;
using warren::test::tunnel_gateway;
using whole = warren::stack::stack;

namespace {

/// Where its tunnel gateway is, as an operator would write it.
std::string with_tunnel_gateway(std::string bootstrap, const tunnel_gateway& at) {
  const std::string placeholder = "port_value: 7450";
  const auto found = bootstrap.find(placeholder);
  REQUIRE(found != std::string::npos);
  return bootstrap.replace(found, placeholder.size(), "port_value: " + std::to_string(at.port()));
}

std::string through_connect(std::uint16_t port, const std::string& host) {
  open_visit v{open_visit::kind::connect, port, host + ":443"};
  if (!v.open()) return std::to_string(v.head().status) + " " + reason(v.head());
  if (!v.send("GET / HTTP/1.1\r\nHost: inside\r\n\r\n")) return "ended";
  std::string got;
  while (got.find("\r\n\r\n") == std::string::npos) {
    const auto more = v.receive();
    if (!more) return "ended";
    got += *more;
  }
  const auto at = got.find("x-origin: ");
  return at == std::string::npos ? got : got.substr(at + 10, got.find('\r', at) - at - 10);
}

}  // namespace

TEST_CASE("a class that has a tunnel gateway of its own works beside two that dial agents") {
  WARREN_NEEDS_SERVERS();
  whole s;
  tunnel_gateway passage;
  origin one{"one"}, two{"two"};
  s.add_agent("home").await_session();
  const auto far_port = warren::stack::free_port(), edge_port = warren::stack::free_port();
  s.must_ctl({"gateway-class", "create", "far", "--dial-mode", "tunnel-listener", "--listen", "127.0.0.1:" + std::to_string(far_port)});
  s.must_ctl({"gateway-class", "create", "edge", "--listen", "127.0.0.1:" + std::to_string(edge_port)});
  another_envoy far{s, "gw-far", "far", [&](std::string text) { return with_tunnel_gateway(std::move(text), passage); }};
  another_envoy edge{s, "gw-edge", "edge"};
  REQUIRE(far.await(has_caught_up));
  REQUIRE(edge.await(has_caught_up));
  // One that was started for agents would acknowledge everything, and lead nowhere.
  another_envoy mistaken{s, "gw-mistaken", "far", [](std::string text) {
                           const std::string right = "warren_dial_mode: tunnel-listener";
                           return text.replace(text.find(right), right.size(), "warren_dial_mode: direct");
                         }};
  REQUIRE(poll_until([&] { return s.warrend().log().find("its bootstrap was made for direct") != std::string::npos; }, patience));
  for (const auto port : {far_port, edge_port}) REQUIRE(poll_until([&] { return warren::stack::listens(port); }, patience));
  const auto at_far = [&](const std::string& path) { return warren::stack::visit(far_port, {.host = "far.example.org", .target = path}); };

  s.create_tunnel("near", "near.example.org", "home", one.url());
  s.must_ctl({"tunnel", "create", "edge", "--hostname", "edge.example.org", "--gateway-class", "edge", "--rule", "/=home," + two.url()});
  s.must_ctl({"tunnel", "create", "far", "--hostname", "far.example.org", "--gateway-class", "far", "--rule", "/=home," + one.url(), "--rule",
              "/two=home," + two.url()});
  for (const auto* name : {"near", "edge", "far"}) REQUIRE(s.await_ready(name, patience));

  // Each where it belongs, and nowhere else.
  struct where {
    std::uint16_t port;
    const char* host;
    const char* target;
  };
  for (const auto& w : {where{s.visitor_port(), "near.example.org", "one"}, where{edge_port, "edge.example.org", "two"}, where{far_port, "far.example.org", "one"}})
    for (const auto port : {s.visitor_port(), edge_port, far_port}) {
      const auto a = warren::stack::visit(port, {.host = w.host});
      INFO(w.host << " at " << port << ": " << describe(a));
      if (port == w.port) CHECK(from(a) == w.target);
      else CHECK(a.status == 404);
    }

  // Every rule has its own way through the tunnel gateway, which learns target and key.
  CHECK(from(at_far("/two")) == "two");
  CHECK(through_connect(far_port, "far.example.org") == "one");
  {
    open_visit socket{open_visit::kind::websocket, far_port, "far.example.org"};
    REQUIRE(socket.open());
    REQUIRE(socket.send("ping"));
    CHECK(socket.receive() == "ping");
  }
  const auto& key = s.find_agent("home").public_key();
  const auto dialled = passage.connects();
  REQUIRE_FALSE(dialled.empty());
  for (const auto& d : dialled) {
    CHECK(d.endpoint_id == key);
    CHECK((d.target == one.url().substr(7) || d.target == two.url().substr(7)));
  }
  CHECK(std::any_of(dialled.begin(), dialled.end(), [&](const auto& d) { return d.target == two.url().substr(7); }));

  // Offline and online again under a visitor; nobody is dialled meanwhile.
  continuous_visitor visitor{far_port, {.host = "far.example.org"}, 3ms};
  REQUIRE(visitor.await_status(200, patience));
  s.find_agent("home").stop();
  REQUIRE(visitor.await([](const answer& a) { return reason(a) == "connector-offline"; }, patience));
  const auto before = passage.connects().size();
  for (const auto* path : {"/", "/two"}) CHECK(reason(at_far(path)) == "connector-offline");
  CHECK(through_connect(far_port, "far.example.org") == "503 connector-offline");
  CHECK(passage.connects().size() == before);
  s.find_agent("home").start();
  REQUIRE(s.await_ready("far", patience));
  REQUIRE(visitor.await_status(200, patience));

  // Another target is another place for the tunnel gateway to lead to; no visitor meets anything but the two.
  s.must_ctl({"tunnel", "update", "far", "--rule", "/=home," + two.url()});
  REQUIRE(s.await_ready("far", patience));
  CHECK(from(at_far("/")) == "two");
  CHECK(from(at_far("/two")) == "two");
  visitor.stop();
  CHECK(foreign_answer(visitor.answers()) == "");

  // From class to class and back.
  s.must_ctl({"tunnel", "update", "far", "--gateway-class", "edge"});
  REQUIRE(s.await_ready("far", patience));
  CHECK(from(warren::stack::visit(edge_port, {.host = "far.example.org"})) == "two");
  CHECK(poll_until([&] { return at_far("/").status == 404; }, patience));
  s.must_ctl({"tunnel", "update", "far", "--gateway-class", "far"});
  REQUIRE(s.await_ready("far", patience));
  CHECK(from(at_far("/")) == "two");
  s.must_ctl({"tunnel", "delete", "far"});
  s.must_ctl({"tunnel", "wait", "far", "--for", "deleted", "--timeout", "30s"});
  CHECK(at_far("/").status == 404);
  CHECK(far.await(has_caught_up));
}

TEST_CASE("of three gateways one is stopped: creations go on, it costs nothing that grows, and it catches up") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  another_envoy second{s, "gw-2", "demo"}, third{s, "gw-3", "demo"};
  REQUIRE(second.await(has_caught_up));
  REQUIRE(third.await(has_caught_up));
  s.create_tunnel("all", "all.example.org", "home");
  REQUIRE(s.await_ready("all", patience));
  CHECK_THAT(whole::condition_message(s.tunnel("all"), "Programmed"), Catch::Contains("3/3 gateways"));

  second.running().freeze();
  constexpr int created = 20, changes = 60;
  for (int n = 0; n < created; ++n) s.create_tunnel("new-" + std::to_string(n), "new-" + std::to_string(n) + ".example.org", "home");
  for (int n = 0; n < created; ++n) REQUIRE(s.await_ready("new-" + std::to_string(n), patience));
  CHECK(second.await([](const auto& g) { return state(g) == "stalled" && !counts(g); }));
  CHECK_THAT(whole::condition_message(s.tunnel("new-0"), "Programmed"), Catch::Contains("2/2 gateways") || Catch::Contains("2/3 gateways"));
  CHECK(counts(third.shown()));

  // What one tunnel goes through meanwhile is, for the one that sleeps, one change: the newest.
  for (int n = 0; n < changes; ++n) s.must_ctl({"tunnel", "update", "web", n % 2 == 0 ? "--disabled" : "--enabled"});
  REQUIRE(s.await_ready("web", patience));
  s.must_ctl({"tunnel", "update", "all", "--disabled"});
  const auto pushed = s.metric("warren_gateway_pushes_total");
  second.running().thaw();
  REQUIRE(second.await(has_caught_up));
  CHECK(poll_until([&] { return s.metric("warren_gateway_stalled") == 0; }, patience, 50ms));
  // Scopes in one response, each new route once or twice, and the two that were changed.
  CHECK(s.metric("warren_gateway_pushes_total") - pushed <= 2 * created + 10);

  // Alone it takes all visitors.
  s.stop_envoy();
  third.running().kill();
  REQUIRE(third.await([](const auto& g) { return state(g) == "gone"; }));
  for (int n = 0; n < created; ++n) {
    const auto a = s.visit("new-" + std::to_string(n) + ".example.org");
    INFO(n << ": " << describe(a));
    CHECK(is_the_targets(a));
  }
  CHECK(is_the_targets(s.visit("web.example.org")));
  CHECK(reason(s.visit("all.example.org")) == "disabled");
}
