// test/e2e/isolation_test.cpp -- tunnels, projects and keys that share something, and do not touch each other.
#include <atomic>
#include <filesystem>
#include <thread>

#include "test/e2e/expect.hpp"

using namespace warren::e2e;
using warren::stack::open_visit;
using warren::stack::poll_until;
using whole = warren::stack::stack;

TEST_CASE("of two tunnels with one target, deleting one ends its connections and none of the other's") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  for (const auto* name : {"one", "two"}) {
    s.create_tunnel(name, std::string{name} + ".example.org", "home");
    REQUIRE(s.await_ready(name, patience));
  }
  open_visit socket_one{open_visit::kind::websocket, s.visitor_port(), "one.example.org"};
  open_visit socket_two{open_visit::kind::websocket, s.visitor_port(), "two.example.org"};
  open_visit through_one{open_visit::kind::connect, s.visitor_port(), "one.example.org:443"};
  open_visit through_two{open_visit::kind::connect, s.visitor_port(), "two.example.org:443"};
  for (auto* each : {&socket_one, &socket_two, &through_one, &through_two}) {
    INFO(describe(each->head()));
    REQUIRE(each->open());
  }
  REQUIRE(socket_one.send("before"));
  REQUIRE(socket_one.receive() == "before");

  s.must_ctl({"tunnel", "delete", "one"});
  CHECK(socket_one.await_end(patience));
  CHECK(through_one.await_end(patience));
  s.must_ctl({"tunnel", "wait", "one", "--for", "deleted", "--timeout", "30s"});
  CHECK(s.visit("one.example.org").status == 404);

  REQUIRE(socket_two.send("after"));
  CHECK(socket_two.receive() == "after");
  REQUIRE(through_two.send("GET / HTTP/1.1\r\nHost: two\r\n\r\n"));
  CHECK(through_two.receive());
  CHECK(is_the_targets(s.visit("two.example.org")));
}

TEST_CASE("a tunnel that is switched off ends its connections and none of another's, and comes back") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  for (const auto* name : {"one", "two"}) {
    s.create_tunnel(name, std::string{name} + ".example.org", "home");
    REQUIRE(s.await_ready(name, patience));
  }
  open_visit socket{open_visit::kind::websocket, s.visitor_port(), "one.example.org"};
  open_visit through{open_visit::kind::connect, s.visitor_port(), "one.example.org:443"};
  open_visit other{open_visit::kind::websocket, s.visitor_port(), "two.example.org"};
  for (auto* each : {&socket, &through, &other}) REQUIRE(each->open());

  s.must_ctl({"tunnel", "update", "one", "--disabled"});
  CHECK(socket.await_end(patience));
  CHECK(through.await_end(patience));
  CHECK(reason(s.visit("one.example.org")) == "disabled");
  CHECK(poll_until([&] { return s.sql("SELECT count(*) FROM attachment WHERE tunnel = 'one'") == "0\n"; }, patience, 20ms));
  const auto shown = s.tunnel("one");
  CHECK(whole::condition(shown, "Programmed") == "True");
  CHECK(whole::condition(shown, "ConnectorMetadataProgrammed") == "False");
  CHECK(whole::condition(shown, "Ready") == "False");
  REQUIRE(other.send("still there"));
  CHECK(other.receive() == "still there");

  s.must_ctl({"tunnel", "update", "one", "--enabled"});
  REQUIRE(s.await_ready("one", patience));
  CHECK(is_the_targets(s.visit("one.example.org")));
}

TEST_CASE("two projects with equal names never see each other") {
  WARREN_NEEDS_SERVERS();
  whole s;
  for (const std::string project : {"red", "blue"}) {
    s.add_agent("home", {.project = project}).await_session();
    s.must_ctl({"-p", project, "tunnel", "create", "web", "--hostname", project + ".example.org", "--connector", "home",
                "--target", s.demo_origin().url(), "--gateway-class", "demo"});
    REQUIRE(s.ctl({"-p", project, "tunnel", "wait", "web", "--timeout", "30s"}).ok());
  }
  const auto listed = s.must_ctl({"-p", "red", "tunnel", "list", "-o", "json"}).json();
  REQUIRE(listed.at("tunnels").size() == 1);
  CHECK(listed.at("tunnels")[0].at("name") == "projects/red/tunnels/web");
  CHECK(s.must_ctl({"-p", "red", "audit", "list", "-o", "json"}).out.find("blue") == std::string::npos);

  // A host name is taken, and nobody learns by whom.
  const auto refused = s.ctl({"-p", "red", "tunnel", "create", "thief", "--hostname", "new.example.org", "--hostname",
                              "blue.example.org", "--connector", "home", "--target", "http://localhost:1"});
  CHECK(refused.code == 1);
  CHECK_THAT(refused.err, Catch::Contains("ALREADY_EXISTS") && Catch::Contains("blue.example.org"));
  CHECK_THAT(refused.err, !Catch::Contains("projects/blue"));
  CHECK(s.sql("SELECT count(*) FROM hostname_claim WHERE hostname = 'new.example.org'") == "0\n");

  // Deleting red's ends nothing of blue's.
  s.must_ctl({"-p", "red", "tunnel", "delete", "web"});
  s.must_ctl({"-p", "red", "tunnel", "wait", "web", "--for", "deleted", "--timeout", "30s"});
  CHECK(s.visit("red.example.org").status == 404);
  CHECK(is_the_targets(s.visit("blue.example.org")));
}

TEST_CASE("a host name that eight projects want at once is one's") {
  whole s{{.with_envoy = false}};
  constexpr int rivals = 8;
  for (int round = 0; round < 3; ++round) {
    const auto host = "wanted-" + std::to_string(round) + ".example.org";
    const auto name = "race-" + std::to_string(round);
    std::atomic<int> won{0}, taken{0};
    std::vector<std::thread> all;
    for (int n = 0; n < rivals; ++n)
      all.emplace_back([&, n] {
        const auto told = s.ctl({"-p", "project-" + std::to_string(n), "tunnel", "create", name, "--hostname", host,
                                 "--connector", "home", "--target", "http://localhost:1", "--timeout", "30s"});
        if (told.ok()) ++won;
        if (told.err.find("ALREADY_EXISTS") != std::string::npos) ++taken;
      });
    for (auto& each : all) each.join();
    CHECK(won == 1);
    CHECK(taken == rivals - 1);
    CHECK(s.sql("SELECT count(*) FROM tunnel WHERE name = '" + name + "'") == "1\n");
    CHECK(s.sql("SELECT count(*) FROM hostname_claim WHERE hostname = '" + host + "'") == "1\n");
  }
}

TEST_CASE("the same request twice gives the first answer, another one with its id is refused") {
  whole s{{.with_envoy = false}};
  const std::vector<std::string> create{"tunnel", "create", "web", "--hostname", "web.example.org", "--connector", "home",
                                        "--target", "http://localhost:1", "--request-id", "r-1", "-o", "json"};
  const auto first = s.must_ctl(create).json();
  const auto again = s.must_ctl(create).json();
  CHECK(first.at("uid") == again.at("uid"));
  auto other = create;
  other[4] = "other.example.org";
  const auto refused = s.ctl(other);
  CHECK(refused.code == 1);
  CHECK_THAT(refused.err, Catch::Contains("INVALID_ARGUMENT"));
  CHECK(s.sql("SELECT count(*) FROM audit_event WHERE method LIKE '%CreateTunnel'") == "1\n");
}

TEST_CASE("of two agents with one key the newer wins, and the older stops and says why") {
  WARREN_NEEDS_SERVERS();
  whole s;
  auto& home = s.add_agent("home");
  home.await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));

  const auto port = warren::stack::free_port();
  const warren::stack::scratch place{"warren-second"};
  const auto folder = place.folder("state");
  warren::stack::process second{{.name = "the second agent",
                                 .path = warren::stack::bin_dir() / "warren-agent",
                                 .arguments = {"run", "--enrolment", home.enrolment().string(), "--key", home.key().string(),
                                               "--state", folder.string(), "--listen", "127.0.0.1:" + std::to_string(port)},
                                 .log = place.path() / "log"}};
  const auto ended = home.running_process().wait(patience);
  REQUIRE(ended);
  CHECK(ended->code == 3);
  CHECK_THAT(home.running_process().log(), Catch::Contains("superseded"));
  REQUIRE_FALSE(s.await("connector", "home", [&](const nlohmann::json& c) {
    return c.value("online", false) && c.value("addresses", nlohmann::json::array()).dump().find(std::to_string(port)) != std::string::npos;
  }, patience).is_null());
  CHECK(second.running());
  const auto a = visit_until(s, {.host = "web.example.org"}, is_the_targets);
  INFO(describe(a));
  CHECK(is_the_targets(a));
}

TEST_CASE("what a rival wrote into three tunnels takes down no other of their connector, also for an agent that begins with nothing") {
  WARREN_NEEDS_SERVERS();
  whole s;
  auto& home = s.add_agent("home");
  home.await_session();
  constexpr int healthy = 50;
  std::vector<std::string> live;
  for (int n = 0; n < healthy; ++n) live.push_back("good-" + std::to_string(n));
  live.emplace_back("spoilt");
  auto all = live;
  all.insert(all.end(), {"bad-target", "bad-path"});
  for (const auto& name : all) s.create_tunnel(name, name + ".example.org", "home");
  for (const auto& name : all) REQUIRE(s.await_ready(name, patience));
  warren::stack::continuous_visitor visitor{s.visitor_port(), {.host = "good-3.example.org"}, 5ms};

  s.sql(R"(UPDATE tunnel SET rules = jsonb_set(rules, '{0,target}', '"http://bad\u0001host:80"') WHERE name = 'bad-target';
           UPDATE tunnel SET rules = jsonb_set(rules, '{0,path_prefix}', '"no-slash\n"') WHERE name = 'bad-path';
           SET session_replication_role = replica;  -- no trigger sees it: as if it had been stored long ago
           UPDATE attachment SET rules = jsonb_set(rules, '{0,target}', '"http://bad\u0001host:80"') WHERE tunnel = 'spoilt';)");
  const auto refused = [&] {
    for (const auto& [name, field] : {std::pair{"bad-target", "rules[0].target: "}, std::pair{"bad-path", "rules[0].path_prefix: "}}) {
      const auto host = std::string{name} + ".example.org";
      const auto a = visit_until(s, {.host = host}, [](const auto& each) { return reason(each) == "invalid-addressing"; });
      INFO(name << ": " << describe(a));
      CHECK(is_ours(a));
      CHECK(reason(a) == "invalid-addressing");
      CHECK(reason(s.visit({.host = host, .target = "/no-slash"})) == "invalid-addressing");
      const auto told = s.await("tunnel", name, [field = field](const auto& t) {
        return whole::condition(t, "Ready") == "False" && whole::condition_message(t, "Ready").find(field) != std::string::npos;
      }, patience);
      INFO(s.tunnel(name).dump());
      CHECK_FALSE(told.is_null());
      CHECK_THAT(whole::condition_message(s.tunnel(name), "Accepted"), Catch::StartsWith(field));
      CHECK(s.sql(std::string{"SELECT count(*) FROM attachment WHERE rules::text LIKE '%bad%' AND tunnel = '"} + name + "'") == "0\n");
    }
  };
  refused();
  for (int n = 0; n < healthy; ++n) CHECK(is_the_targets(s.visit(live[static_cast<std::size_t>(n)] + ".example.org")));
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");

  home.stop();
  s.stop_warrend();
  for (const auto& each : std::filesystem::directory_iterator{home.state()}) std::filesystem::remove_all(each);
  s.start_warrend();
  home.start();
  home.await_session();
  for (const auto& name : live) {
    INFO(s.tunnel(name).dump());
    REQUIRE(s.await_ready(name, patience));
    const auto a = visit_until(s, {.host = name + ".example.org"}, is_the_targets);
    INFO(describe(a));
    CHECK(is_the_targets(a));
  }
  refused();
  CHECK(poll_until([&] { return s.sql("SELECT count(*) FROM connector WHERE attached_generation <> attachment_generation") == "0\n"; }, patience, 20ms));
  CHECK_THAT(home.running_process().log(), !Catch::Contains("malformed"));

  // Put right, it is attached and live again.
  s.must_ctl({"tunnel", "update", "bad-target", "--target", s.demo_origin().url(), "--connector", "home"});
  REQUIRE(s.await_ready("bad-target", patience));
  CHECK(is_the_targets(visit_until(s, {.host = "bad-target.example.org"}, is_the_targets)));
}
