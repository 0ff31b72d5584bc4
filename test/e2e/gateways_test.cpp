// test/e2e/gateways_test.cpp -- what visitors meet at real Envoys: several gateways, changes under visitors, every
// kind of answer, and what a start of the control plane must not do to any of it.
#include <thread>

#include "test/e2e/envoys.hpp"
#include "test/e2e/expect.hpp"
#include "test/e2e/http2.hpp"

using namespace warren::e2e;
using warren::stack::continuous_visitor;
using warren::stack::open_visit;
using warren::stack::origin;
using warren::stack::poll_until;
using warren::stack::request;
using whole = warren::stack::stack;

namespace {

/// The answers in words, each run of equal ones once: "200 one, 503 disabled, 200 one".
std::string story_of(const std::vector<warren::stack::seen_answer>& answers) {
  std::string out, last;
  for (const auto& each : answers) {
    const auto& a = each.what;
    auto one = std::to_string(a.status) + " " + (a.status == 0 ? a.error : is_ours(a) ? reason(a) : from(a));
    if (one == last) continue;
    out += (out.empty() ? "" : ", ") + one;
    last = one;
  }
  return out;
}

/// Until `satisfies` holds for what a new visitor gets, with so little patience that a gateway that is stopped is left.
answer visit_some_gateway(const whole& s, const std::string& host) {
  return visit_until(s, {.host = host, .timeout = 300ms}, is_the_targets);
}

}  // namespace

TEST_CASE("visitors may speak HTTP/2: every answer, and many hosts on one connection") {
  WARREN_NEEDS_SERVERS();
  whole s;
  origin two{"two"};
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  s.create_tunnel("other", "other.example.org", "home", two.url());
  s.create_tunnel("lost", "lost.example.org", "nowhere");
  for (const auto* name : {"web", "other"}) REQUIRE(s.await_ready(name, patience));

  http2_visitor v{s.visitor_port()};
  CHECK(from(v.visit({.host = "web.example.org"})) == "demo");
  CHECK(from(v.visit({.host = "OTHER.example.org:8443"})) == "two");
  const auto lost = v.visit({.host = "lost.example.org"});
  INFO(describe(lost));
  CHECK(is_ours(lost));
  CHECK(reason(lost) == "connector-unknown");
  CHECK(v.visit({.host = "nobody.example.org"}).status == 404);
  const std::string body(300'000, 'b');
  const auto echoed = v.visit({.host = "web.example.org", .method = "POST", .target = "/echo", .body = body});
  CHECK(echoed.error == "");
  CHECK(echoed.status == 200);
  const bool same = echoed.body == body;  // too long to be shown
  CHECK(same);
  CHECK(v.visit({.host = "web.example.org", .method = "HEAD"}).status == 200);

  http2_connection c{s.visitor_port()};
  for (int round = 0; round < 3; ++round) {
    CHECK(c.get("web.example.org") == "200 Hello from demo.\n");
    CHECK(c.get("other.example.org") == "200 Hello from two.\n");
    CHECK(c.get("lost.example.org") == "Tunnel not online");
    CHECK(c.get("nobody.example.org") == "404 ");
  }
  CHECK_FALSE(c.connect("lost.example.org:443"));
  CHECK_FALSE(c.connect("nobody.example.org:443"));
  REQUIRE(c.connect("web.example.org:443"));
  c.send("GET / HTTP/1.1\r\nHost: inside\r\n\r\n");
  const auto got = c.receive();
  REQUIRE(got);
  CHECK(got->find("HTTP/1.1 200") == 0);
}

TEST_CASE("of two gateways one is stopped, or gone, and neither holds anything up") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  s.create_tunnel("leaving", "leaving.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  REQUIRE(s.await_ready("leaving", patience));
  another_envoy second{s, "gw-2", "demo"};
  REQUIRE(second.await(has_caught_up));
  s.create_tunnel("both", "both.example.org", "home");
  REQUIRE(s.await_ready("both", patience));
  CHECK_THAT(whole::condition_message(s.tunnel("both"), "Programmed"), Catch::Contains("2/2 gateways"));

  // Stopped: what is sent to it stays unanswered until it is found out; then nobody waits for it.
  second.running().freeze();
  s.create_tunnel("during", "during.example.org", "home");
  REQUIRE(s.await_ready("during", patience));
  CHECK(second.await([](const auto& g) { return state(g) == "stalled" && !counts(g); }));
  CHECK(poll_until([&] { return s.metric("warren_gateway_stalled") == 1; }, patience, 50ms));
  s.create_tunnel("after", "after.example.org", "home");
  REQUIRE(s.await_ready("after", patience));
  const auto after = s.tunnel("after");
  CHECK_THAT(whole::condition_message(after, "Programmed"), Catch::Contains("1/1 gateways"));
  CHECK(s.ctl({"tunnel", "why", "after"}).out.find("gw-2") != std::string::npos);
  CHECK(is_the_targets(visit_some_gateway(s, "during.example.org")));
  CHECK(is_the_targets(visit_some_gateway(s, "after.example.org")));
  s.must_ctl({"tunnel", "delete", "leaving"});
  s.must_ctl({"tunnel", "wait", "leaving", "--for", "deleted", "--timeout", "30s"});
  s.must_ctl({"tunnel", "update", "both", "--disabled"});

  // It goes on, and has what it missed. Alone it takes all visitors.
  second.running().thaw();
  REQUIRE(second.await(has_caught_up));
  CHECK(poll_until([&] { return s.metric("warren_gateway_stalled") == 0; }, patience, 50ms));
  s.stop_envoy();
  REQUIRE(poll_until([&] { return state(s.ctl({"gateway", "get", "gw-1", "-o", "json"}).json()) == "gone"; }, patience, 50ms));
  for (const auto* host : {"web.example.org", "during.example.org", "after.example.org"}) {
    const auto a = s.visit(host);
    INFO(host << ": " << describe(a));
    CHECK(is_the_targets(a));
  }
  CHECK(reason(s.visit("both.example.org")) == "disabled");
  CHECK(s.visit("leaving.example.org").status == 404);
  s.create_tunnel("alone", "alone.example.org", "home");
  REQUIRE(s.await_ready("alone", patience));
  CHECK(is_the_targets(s.visit("alone.example.org")));

  // And the other way round.
  s.start_envoy();
  second.running().kill();
  REQUIRE(second.await([](const auto& g) { return state(g) == "gone"; }));
  CHECK(is_the_targets(s.visit("alone.example.org")));
  s.create_tunnel("last", "last.example.org", "home");
  REQUIRE(s.await_ready("last", patience));
  CHECK(is_the_targets(s.visit("last.example.org")));
}

TEST_CASE("with no gateway left, what is latched stays, and nothing new is called programmed") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  s.kill_envoy();
  REQUIRE(poll_until([&] { return state(s.ctl({"gateway", "get", "gw-1", "-o", "json"}).json()) == "gone"; }, patience, 50ms));
  CHECK(whole::condition(s.tunnel("web"), "Programmed") == "True");
  s.create_tunnel("new", "new.example.org", "home");
  REQUIRE_FALSE(s.await("tunnel", "new", [](const auto& t) { return whole::condition(t, "Accepted") == "True"; }, patience).is_null());
  CHECK(whole::condition(s.tunnel("new"), "Programmed") == "False");
  CHECK(s.ctl({"tunnel", "why", "new"}).out.find("gateway") != std::string::npos);
  s.start_envoy();
  REQUIRE(s.await_ready("new", patience));
  CHECK(is_the_targets(s.visit("new.example.org")));
  CHECK(is_the_targets(s.visit("web.example.org")));
}

TEST_CASE("a gateway's bootstrap may name the control plane by a host name") {
  WARREN_NEEDS_SERVERS();
  const auto xds = std::to_string(warren::stack::free_port());
  whole s{{.configuration = {{"xds.listen", "127.0.0.1:" + xds}, {"xds.advertise", "localhost:" + xds}}}};
  const auto bootstrap = s.must_ctl({"gateway", "bootstrap", "gw-1"}).out;
  CHECK_THAT(bootstrap, Catch::Contains("localhost") && Catch::Contains("STRICT_DNS"));
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  CHECK(is_the_targets(s.visit("web.example.org")));
  // Also after the control plane was away.
  s.kill_warrend();
  s.start_warrend();
  s.must_ctl({"tunnel", "update", "web", "--disabled"});
  CHECK(reason(visit_until(s, {.host = "web.example.org"}, is_ours)) == "disabled");
}

TEST_CASE("a warrend that has not read everything yet tells gateways nothing") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  continuous_visitor visitor{s.visitor_port(), {.host = "web.example.org"}, 5ms};
  REQUIRE(visitor.await_status(200, patience));

  // Somebody's session keeps one table to itself: the instance lives, and its copy stays incomplete.
  s.kill_warrend();
  std::thread holder{[&] {
    try {
      (void)s.sql("BEGIN; LOCK TABLE hostname_claim IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(120)");
    } catch (const std::exception&) {  // it is ended below
    }
  }};
  const auto held = [&] {
    return s.sql("SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
                 "WHERE c.relname = 'hostname_claim' AND l.mode = 'AccessExclusiveLock' AND l.granted") == "1\n";
  };
  const bool is_held = poll_until(held, patience, 20ms);
  s.launch_warrend();
  // A gateway that is registered but unknown yet, one stream, no response.
  const bool connected = poll_until([&] { return warren::stack::visit(s.http_port(), request{.host = "x", .target = "/readyz"}).status == 503; }, patience, 20ms);
  const auto since = warren::stack::clock::now();
  const bool still_served = visitor.await([&](const answer& a) { return is_the_targets(a) && warren::stack::clock::now() - since > 2s; }, patience, since).has_value();
  const auto pushed = s.metric("warren_gateway_pushes_total");
  const auto readiness = s.readyz().dump();
  (void)s.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(120)' AND pid <> pg_backend_pid()");
  holder.join();
  CHECK(is_held);
  CHECK(connected);
  CHECK(still_served);
  CHECK(pushed == 0);
  CHECK_THAT(readiness, Catch::Contains("cache"));
  REQUIRE(s.await_warrend());

  // And then it goes on where it was.
  s.create_tunnel("new", "new.example.org", "home");
  REQUIRE(s.await_ready("new", patience));
  CHECK(is_the_targets(s.visit("new.example.org")));
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");
}

TEST_CASE("a live tunnel is changed under its visitors, and none of them meets a gap or a wrong target") {
  WARREN_NEEDS_SERVERS();
  whole s;
  origin one{"one"}, two{"two"}, three{"three"};
  s.add_agent("home").await_session();
  s.add_agent("annex").await_session();
  s.create_tunnel("web", "web.example.org", "home", one.url());
  REQUIRE(s.await_ready("web", patience));
  const auto visits = [&](const std::string& host, const std::string& target = "/") {
    return std::make_unique<continuous_visitor>(s.visitor_port(), request{.host = host, .target = target}, 2ms);
  };
  const auto settle = [&](continuous_visitor& v, int status) {
    const auto since = warren::stack::clock::now();
    REQUIRE(v.await_status(status, patience, since));
  };

  SECTION("another target, another connector, and back") {
    const auto v = visits("web.example.org");
    settle(*v, 200);
    std::string wanted = "200 one";
    for (const auto& [connector, target, name] : {std::tuple{"home", two.url(), "two"}, std::tuple{"annex", two.url(), "two"},
                                                  std::tuple{"annex", three.url(), "three"}, std::tuple{"home", one.url(), "one"}}) {
      s.must_ctl({"tunnel", "update", "web", "--connector", connector, "--target", target});
      REQUIRE(s.await_ready("web", patience));
      // Ready is never true before traffic flows, to where it shall.
      CHECK(from(s.visit("web.example.org")) == name);
      settle(*v, 200);
      if (!wanted.ends_with(name)) wanted += std::string{", 200 "} + name;
    }
    v->stop();
    CHECK(story_of(v->answers()) == wanted);
  }
  SECTION("a rule comes and goes") {
    const auto root = visits("web.example.org"), below = visits("web.example.org", "/api/x"), beside = visits("web.example.org", "/apis");
    settle(*below, 200);
    s.must_ctl({"tunnel", "update", "web", "--rule", "/=home," + one.url(), "--rule", "/api=annex," + two.url()});
    REQUIRE(s.await_ready("web", patience));
    CHECK(from(s.visit(request{.host = "web.example.org", .target = "/api"})) == "two");
    settle(*below, 200);
    s.must_ctl({"tunnel", "update", "web", "--rule", "/=home," + one.url()});
    REQUIRE(s.await_ready("web", patience));
    CHECK(from(s.visit(request{.host = "web.example.org", .target = "/api/x"})) == "one");
    for (const auto* v : {&root, &below, &beside}) {
      settle(**v, 200);
      (*v)->stop();
    }
    CHECK(story_of(root->answers()) == "200 one");
    CHECK(story_of(beside->answers()) == "200 one");
    CHECK(story_of(below->answers()) == "200 one, 200 two, 200 one");
  }
  SECTION("a host name comes and goes") {
    const auto old = visits("web.example.org"), fresh = visits("fresh.example.org");
    settle(*old, 200);
    settle(*fresh, 404);
    s.must_ctl({"tunnel", "update", "web", "--hostname", "web.example.org", "--hostname", "fresh.example.org"});
    REQUIRE(s.await_ready("web", patience));
    CHECK(from(s.visit("fresh.example.org")) == "one");
    settle(*fresh, 200);
    s.must_ctl({"tunnel", "update", "web", "--hostname", "web.example.org"});
    REQUIRE(s.await_ready("web", patience));
    CHECK(s.visit("fresh.example.org").status == 404);
    settle(*old, 200);
    settle(*fresh, 404);
    old->stop();
    fresh->stop();
    CHECK(story_of(old->answers()) == "200 one");
    CHECK(story_of(fresh->answers()) == "404 , 200 one, 404 ");
  }
  SECTION("off and on") {
    const auto v = visits("web.example.org");
    settle(*v, 200);
    for (int round = 0; round < 3; ++round) {
      s.must_ctl({"tunnel", "update", "web", "--disabled"});
      REQUIRE(v->await([](const answer& a) { return reason(a) == "disabled"; }, patience));
      s.must_ctl({"tunnel", "update", "web", "--enabled"});
      REQUIRE(s.await_ready("web", patience));
      CHECK(from(s.visit("web.example.org")) == "one");
      settle(*v, 200);
    }
    v->stop();
    // Once it is on it stays on; why it is off is not asked here.
    auto answers = v->answers();
    for (auto& each : answers) each.what.headers.erase("x-warren-reason");
    CHECK(story_of(answers) == "200 one, 503 , 200 one, 503 , 200 one, 503 , 200 one");
  }
  SECTION("to the gateways of another class") {
    const auto port = warren::stack::free_port();
    s.must_ctl({"gateway-class", "create", "edge", "--listen", "127.0.0.1:" + std::to_string(port)});
    another_envoy second{s, "gw-2", "edge"};
    REQUIRE(second.await(has_caught_up));
    REQUIRE(poll_until([&] { return warren::stack::listens(port); }, patience));
    const auto v = visits("web.example.org");
    continuous_visitor there{port, {.host = "web.example.org"}, 2ms};
    settle(*v, 200);
    settle(there, 404);
    s.must_ctl({"tunnel", "update", "web", "--gateway-class", "edge"});
    REQUIRE(s.await_ready("web", patience));
    CHECK(from(warren::stack::visit(port, request{.host = "web.example.org"})) == "one");
    settle(*v, 404);
    settle(there, 200);
    v->stop();
    there.stop();
    CHECK(story_of(v->answers()) == "200 one, 404 ");
    CHECK(story_of(there.answers()) == "404 , 200 one");
  }
  SECTION("its connector moves") {
    const auto v = visits("web.example.org");
    settle(*v, 200);
    // A second agent of its key, elsewhere, takes over; the first stops.
    auto& home = s.find_agent("home");
    const auto port = warren::stack::free_port();
    const warren::stack::scratch place{"warren-second"};
    warren::stack::process successor{{.name = "the second agent",
                                      .path = warren::stack::bin_dir() / "warren-agent",
                                      .arguments = {"run", "--enrolment", home.enrolment().string(), "--key", home.key().string(), "--state",
                                                    place.folder("state").string(), "--listen", "127.0.0.1:" + std::to_string(port)},
                                      .log = place.path() / "log"}};
    REQUIRE(home.running_process().wait(patience));
    const auto since = warren::stack::clock::now();
    REQUIRE(v->await(is_the_targets, patience, since));
    v->stop();
    CHECK(foreign_answer(v->answers()) == "");
  }
}

TEST_CASE("rules follow their own connectors, and CONNECT the shortest prefix") {
  WARREN_NEEDS_SERVERS();
  whole s;
  origin root{"root"}, api{"api"};
  auto& home = s.add_agent("home");
  auto& away = s.add_agent("away");
  home.await_session();
  away.await_session();
  s.must_ctl({"tunnel", "create", "web", "--hostname", "web.example.org", "--gateway-class", "demo", "--rule",
              "/api=away," + api.url(), "--rule", "/=home," + root.url()});
  REQUIRE(s.await_ready("web", patience));
  const auto at = [&](const std::string& path) { return s.visit(request{.host = "web.example.org", .target = path}); };
  const auto connected_to = [&]() -> std::string {
    open_visit through{open_visit::kind::connect, s.visitor_port(), "web.example.org:443"};
    if (!through.open()) return std::to_string(through.head().status) + " " + reason(through.head());
    if (!through.send("GET / HTTP/1.1\r\nHost: inside\r\n\r\n")) return "ended";
    std::string got;
    while (got.find("\r\n\r\n") == std::string::npos) {
      const auto more = through.receive();
      if (!more) break;
      got += *more;
    }
    const auto name = got.find("x-origin: ");
    return name == std::string::npos ? got : got.substr(name + 10, got.find('\r', name) - name - 10);
  };
  CHECK(from(at("/")) == "root");
  CHECK(from(at("/api")) == "api");
  CHECK(from(at("/api/deep?q=1")) == "api");
  CHECK(from(at("/apis")) == "root");
  CHECK(connected_to() == "root");

  // The one connector goes: its rule answers 503, the other's visitors notice nothing.
  continuous_visitor visitor{s.visitor_port(), {.host = "web.example.org"}, 5ms};
  REQUIRE(visitor.await_status(200, patience));
  away.stop();
  auto a = visit_until(s, {.host = "web.example.org", .target = "/api"}, is_ours);
  CHECK(is_ours(a));
  CHECK(reason(visit_until(s, {.host = "web.example.org", .target = "/api/x"}, [](const answer& x) { return reason(x) == "connector-offline"; })) == "connector-offline");
  CHECK(from(at("/")) == "root");
  CHECK(from(at("/apis")) == "root");
  CHECK(connected_to() == "root");
  const auto half = s.tunnel("web");
  CHECK(whole::condition(half, "Ready") == "False");
  CHECK_THAT(whole::condition_message(half, "Ready"), Catch::Contains("away"));

  // An update while one of the two is away does not wait for it.
  s.must_ctl({"tunnel", "update", "web", "--rule", "/api=away," + api.url(), "--rule", "/=home," + root.url(), "--rule", "/more=home," + api.url()});
  CHECK(from(visit_until(s, {.host = "web.example.org", .target = "/more"}, [](const answer& x) { return from(x) == "api"; })) == "api");
  away.start();
  REQUIRE(s.await_ready("web", patience));
  CHECK(from(at("/api")) == "api");
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");

  // And the other one: CONNECT goes nowhere else.
  home.stop();
  CHECK(reason(visit_until(s, {.host = "web.example.org"}, [](const answer& x) { return reason(x) == "connector-offline"; })) == "connector-offline");
  CHECK(connected_to() == "503 connector-offline");
  CHECK(from(at("/api")) == "api");
}

TEST_CASE("what is not there is told to everybody in the same words") {
  WARREN_NEEDS_SERVERS();
  whole s;
  auto& home = s.add_agent("home");
  home.await_session();
  s.create_tunnel("off", "off.example.org", "home");
  s.create_tunnel("lost", "lost.example.org", "nowhere");
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  s.must_ctl({"tunnel", "update", "off", "--disabled"});
  home.stop();
  struct wanted {
    const char *host, *reason;
  };
  for (const auto& w : {wanted{"off.example.org", "disabled"}, wanted{"lost.example.org", "connector-unknown"}, wanted{"web.example.org", "connector-offline"}}) {
    INFO(w.host);
    REQUIRE(reason(visit_until(s, {.host = w.host}, [&](const answer& x) { return reason(x) == w.reason; })) == w.reason);
    for (const auto* method : {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND"})
      for (const auto* path : {"/", "/deep/er?x=1", "//", "/%2e%2e/"}) {
        const auto a = s.visit(request{.host = w.host, .method = method, .target = path, .body = method[1] == 'U' ? "body" : ""});
        INFO(method << " " << path << ": " << describe(a));
        CHECK(a.status == 503);
        CHECK(a.body == (std::string_view{method} == "HEAD" ? "" : "Tunnel not online"));
        CHECK(a.headers.at("content-length") == "17");
        CHECK(a.headers.at("content-type") == "text/plain");
        CHECK(a.headers.at("retry-after") == "5");
        CHECK(reason(a) == w.reason);
      }
    const open_visit socket{open_visit::kind::websocket, s.visitor_port(), w.host};
    CHECK(socket.head().status == 503);
    CHECK(reason(socket.head()) == w.reason);
    const auto tunnelled = s.visit(request{.host = std::string{w.host} + ":443", .method = "CONNECT", .target = std::string{w.host} + ":443"});
    CHECK(is_ours(tunnelled));
    CHECK(reason(tunnelled) == w.reason);
  }
  // Of a host that nobody has claimed nothing is said.
  for (const auto* host : {"nobody.example.org", "example.org", "deep.web.example.org", "web.example.org.evil.test", "127.0.0.1", "web-example-org"})
    for (const auto* method : {"GET", "POST", "HEAD", "CONNECT"}) {
      const bool connect = std::string_view{method} == "CONNECT";
      const auto a = s.visit(request{.host = connect ? std::string{host} + ":443" : host, .method = method, .target = connect ? std::string{host} + ":443" : "/"});
      INFO(method << " " << host << ": " << describe(a));
      CHECK(a.status == 404);
      CHECK(a.headers.count("x-warren-reason") == 0);
      CHECK(a.body == "");
    }
}

TEST_CASE("large heads, large bodies, and visitors that leave in the middle") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));

  const auto large = s.visit(request{.host = "web.example.org", .headers = {{"x-large", std::string(50'000, 'h')}}});
  INFO(describe(large).substr(0, 300));
  CHECK(is_the_targets(large));
  // More than any gateway takes is the visitor's fault, not the tunnel's.
  std::map<std::string, std::string> many;  // Beast's own fields end at 64 kB
  for (int n = 0; n < 4; ++n) many["x-large-" + std::to_string(n)] = std::string(50'000, 'h');
  const auto refused = s.visit(request{.host = "web.example.org", .headers = many});
  CHECK(refused.status == 431);
  CHECK(is_the_targets(s.visit("web.example.org")));

  std::string body(12 * 1024 * 1024, '\0');
  for (std::size_t n = 0; n < body.size(); ++n) body[n] = static_cast<char>(n * 2'654'435'761u >> 13);
  const auto echoed = s.visit(request{.host = "web.example.org", .method = "POST", .target = "/echo", .body = body, .timeout = patience});
  CHECK(echoed.error == "");
  CHECK(echoed.status == 200);
  const bool same = echoed.body == body;  // to the byte, both ways
  CHECK(same);

  // Whoever leaves takes their connection to the target along.
  auto& target = s.demo_origin();
  {
    std::vector<open_visit> all;
    for (int n = 0; n < 5; ++n) {
      all.emplace_back(open_visit::kind::websocket, s.visitor_port(), "web.example.org");
      REQUIRE(all.back().send("hello"));
      REQUIRE(all.back().receive() == "hello");
      all.emplace_back(open_visit::kind::connect, s.visitor_port(), "web.example.org:443");
      REQUIRE(all.back().open());
    }
    CHECK(poll_until([&] { return target.open_connections() >= 10; }, patience));
  }
  for (int n = 0; n < 5; ++n)
    CHECK(s.visit(request{.host = "web.example.org", .target = "/drip?ms=1000", .timeout = 200ms}).error == "timeout");
  const auto left = s.visit(request{.host = "web.example.org", .method = "POST", .target = "/slow?ms=1000", .body = "x", .timeout = 200ms});
  CHECK(left.status == 0);
  // One may stay in the gateway's pool.
  CHECK(poll_until([&] { return target.open_connections() <= 1; }, patience, 50ms));
  CHECK(is_the_targets(s.visit("web.example.org")));
}
