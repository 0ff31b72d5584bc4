// test/e2e/story_test.cpp -- a tunnel's life as its visitors see it, through a real Envoy.
#include <future>
#include <sstream>

#include "test/e2e/expect.hpp"

using namespace warren::e2e;
using warren::stack::open_visit;

TEST_CASE("a tunnel comes to life, is switched off and on, loses and finds its agent, and goes") {
  WARREN_NEEDS_SERVERS();
  warren::stack::stack s;
  auto& home = s.add_agent("home");
  home.await_session();

  CHECK(s.visit("web.example.org").status == 404);
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));

  // Ready is never true before traffic flows: the very next visitor gets through.
  auto a = s.visit("web.example.org");
  INFO(describe(a));
  REQUIRE(is_the_targets(a));
  CHECK(is_the_targets(s.visit("WEB.Example.Org")));
  CHECK(is_the_targets(s.visit("web.example.org:8080")));
  CHECK(is_the_targets(s.visit("web.example.org.")));
  CHECK(s.visit("other.example.org").status == 404);

  // Switched off.
  s.must_ctl({"tunnel", "update", "web", "--disabled"});
  a = visit_until(s, {.host = "web.example.org"}, is_ours);
  INFO(describe(a));
  REQUIRE(is_ours(a));
  CHECK(reason(a) == "disabled");
  CHECK(a.headers.count("retry-after") == 1);
  CHECK(is_ours(s.visit({.host = "web.example.org", .method = "POST", .body = "x"})));
  CHECK(open_visit(open_visit::kind::connect, s.visitor_port(), "web.example.org:443").head().status == 503);
  s.must_ctl({"tunnel", "update", "web", "--enabled"});
  REQUIRE(s.await_ready("web", patience));
  CHECK(is_the_targets(s.visit("web.example.org")));

  // The agent says bye; whoever is being answered gets his answer.
  const auto asked = s.demo_origin().count("GET");
  auto under_way = std::async(std::launch::async, [&] { return s.visit(warren::stack::request{.host = "web.example.org", .target = "/slow?ms=300"}); });
  REQUIRE(warren::stack::poll_until([&] { return s.demo_origin().count("GET") > asked; }, patience));
  home.stop();
  const auto served = under_way.get();
  INFO(describe(served));
  CHECK(is_the_targets(served));
  a = visit_until(s, {.host = "web.example.org"}, [](const answer& x) { return reason(x) == "connector-offline"; });
  INFO(describe(a));
  REQUIRE(is_ours(a));
  CHECK(reason(a) == "connector-offline");
  CHECK(is_ours(s.visit({.host = "web.example.org:443", .method = "CONNECT", .target = "web.example.org:443"})));
  CHECK(warren::stack::stack::condition(s.tunnel("web"), "Ready") == "False");
  CHECK(s.ctl({"tunnel", "why", "web"}).out.find("home") != std::string::npos);
  home.start();
  REQUIRE(s.await_ready("web", patience));
  CHECK(is_the_targets(s.visit("web.example.org")));

  // Gone without a trace.
  s.must_ctl({"tunnel", "delete", "web"});
  s.must_ctl({"tunnel", "wait", "web", "--for", "deleted", "--timeout", "30s"});
  CHECK(s.visit("web.example.org").status == 404);
  CHECK(s.sql("SELECT (SELECT count(*) FROM tunnel), (SELECT count(*) FROM hostname_claim), "
              "(SELECT count(*) FROM attachment)").find("0|0|0") == 0);
}

TEST_CASE("a tunnel whose connector does not exist yet goes live by itself") {
  WARREN_NEEDS_SERVERS();
  warren::stack::stack s;
  s.create_tunnel("early", "early.example.org", "later");
  const auto a = visit_until(s, {.host = "early.example.org"}, is_ours);
  INFO(describe(a));
  REQUIRE(is_ours(a));
  CHECK(reason(a) == "connector-unknown");
  s.add_agent("later");
  REQUIRE(s.await_ready("early", patience));
  CHECK(is_the_targets(s.visit("early.example.org")));
}

TEST_CASE("what goes through a tunnel: bodies once, slow answers, WebSockets, CONNECT") {
  WARREN_NEEDS_SERVERS();
  warren::stack::stack s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  auto& target = s.demo_origin();

  SECTION("a POST is sent once, also when its connection breaks") {
    const auto before = target.count("POST");
    const auto a = s.visit({.host = "web.example.org", .method = "POST", .target = "/echo", .body = "once"});
    CHECK(a.status == 200);
    CHECK(a.body == "once");
    CHECK(target.count("POST") == before + 1);
    const auto broken = s.visit({.host = "web.example.org", .method = "POST", .target = "/close", .body = "once"});
    INFO(describe(broken));
    CHECK(is_ours(broken));
    CHECK(reason(broken) == "connector-unreachable");
    CHECK(target.count("POST") == before + 2);
  }
  SECTION("a slow answer arrives") {
    const auto ms = full() ? 30'000 : 1'500;
    const auto slow = s.visit({.host = "web.example.org", .target = "/slow?ms=" + std::to_string(ms), .timeout = 60s});
    INFO(describe(slow));
    CHECK(is_the_targets(slow));
    CHECK(slow.took >= milliseconds{ms});
    const auto drip = s.visit({.host = "web.example.org", .target = "/drip?ms=" + std::to_string(ms), .timeout = 60s});
    INFO(describe(drip));
    CHECK(is_the_targets(drip));
    CHECK(drip.error.empty());
  }
  SECTION("a WebSocket lives, also idle") {
    open_visit socket{open_visit::kind::websocket, s.visitor_port(), "web.example.org"};
    INFO(describe(socket.head()));
    REQUIRE(socket.open());
    REQUIRE(socket.send("hello"));
    CHECK(socket.receive() == "hello");
    CHECK_FALSE(socket.await_end(full() ? 120s : 1s));
    REQUIRE(socket.send("still there?"));
    CHECK(socket.receive() == "still there?");
  }
  SECTION("CONNECT reaches the target, and only the target") {
    open_visit through{open_visit::kind::connect, s.visitor_port(), "web.example.org:443"};
    INFO(describe(through.head()));
    REQUIRE(through.open());
    REQUIRE(through.send("GET / HTTP/1.1\r\nHost: inside\r\n\r\n"));
    std::string got;
    while (got.find("x-origin") == std::string::npos) {
      const auto more = through.receive();
      if (!more) break;
      got += *more;
    }
    CHECK(got.find("HTTP/1.1 200") == 0);
    CHECK(got.find("x-origin") != std::string::npos);
  }
}

TEST_CASE("a target that is down behind a living agent is shown in the agent's words, and comes back by itself") {
  WARREN_NEEDS_SERVERS();
  warren::stack::stack s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));

  s.demo_origin().down();
  warren::stack::continuous_visitor visitor{s.visitor_port(), {.host = "web.example.org"}, 20ms};
  const auto down = s.await("tunnel", "web", [](const nlohmann::json& t) {
    return warren::stack::stack::condition(t, "TargetReachable") == "False";
  }, patience);
  REQUIRE_FALSE(down.is_null());
  CHECK(warren::stack::stack::condition(down, "Ready") == "False");
  CHECK_THAT(warren::stack::stack::condition_message(down, "TargetReachable"), Catch::Contains("refused"));
  CHECK(warren::stack::stack::condition(s.connector("home"), "Ready") == "True");
  CHECK(visitor.await(is_ours, patience));

  s.demo_origin().up();
  REQUIRE(s.await_ready("web", patience));
  CHECK(is_the_targets(s.visit("web.example.org")));
  visitor.stop();
  CHECK(foreign_answer(visitor.answers()) == "");
}

TEST_CASE("the tunnel that ./run tells newcomers to create is reached by visitors") {
  WARREN_NEEDS_SERVERS();
  const warren::stack::scratch place;
  warren::stack::process told{{.name = "warren-story", .path = warren::stack::bin_dir() / "warren-story", .arguments = {}, .log = place.path() / "log"}};
  REQUIRE(told.await_log("Ctrl-C ends it all", patience));
  std::istringstream lines{told.log()};
  std::string settings, create, visit;
  for (std::string line; std::getline(lines, line);) {
    if (line.find("  export WARREN_SERVER=") == 0) settings = line;
    if (line.find("  warrenctl tunnel create ") == 0) create = line;
    if (line.find("  curl ") == 0) visit = line;
  }
  INFO(told.log());
  REQUIRE_FALSE(create.empty());
  const auto done = warren::stack::run({.name = "bash",
                                        .path = "/bin/bash",
                                        .arguments = {"-c", "set -e\n" + settings + "\n" + create + "\nwarrenctl tunnel wait mine --timeout 30s\n"}});
  INFO(done.out << done.err);
  CHECK(done.code == 0);
  const std::string at = "http://127.0.0.1:";
  const auto port = static_cast<std::uint16_t>(std::stoi(visit.substr(visit.find(at) + at.size())));
  CHECK(is_the_targets(warren::stack::visit(port, {.host = "mine.warren.test"})));
  CHECK(told.stop(patience).code == 0);
}
