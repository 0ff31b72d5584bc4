// test/e2e/restart_test.cpp -- warrend dies, everywhere and at any step, and what it left undone is done.
#include <atomic>
#include <thread>

#include "test/e2e/expect.hpp"

using namespace warren::e2e;
using warren::stack::continuous_visitor;
using warren::stack::poll_until;
using whole = warren::stack::stack;

namespace {

constexpr int passes_max = 12;  // a creation or a deletion takes fewer transactions

std::vector<std::string> failpoints() {
  if (full()) return {"before_fence", "after_fence", "before_commit", "after_commit"};
  return {"before_commit", "after_commit"};  // the two between which anything changes
}

/// Repeats a command with one request id until it is answered; false: never.
bool insist(const whole& s, std::vector<std::string> arguments, const std::string& request_id) {
  arguments.insert(arguments.end(), {"--request-id", request_id});
  return poll_until([&] { return s.ctl(arguments).ok(); }, patience, 100ms);
}

std::vector<std::string> creation(whole& s, const std::string& name) {
  return {"tunnel", "create", name, "--hostname", name + ".example.org", "--connector", "home", "--target",
          s.demo_origin().url(), "--gateway-class", "demo"};
}

}  // namespace

TEST_CASE("warrend is killed and started again, and no visitor notices") {
  WARREN_NEEDS_SERVERS();
  whole s;
  const int count = full() ? 50 : 8;
  for (int n = 0; n < count; ++n) {
    const auto name = "home-" + std::to_string(n);
    s.add_agent(name).await_session(patience);
    s.create_tunnel("web-" + std::to_string(n), name + ".example.org", name);
  }
  for (int n = 0; n < count; ++n) REQUIRE(s.await_ready("web-" + std::to_string(n), patience));
  continuous_visitor one{s.visitor_port(), {.host = "home-0.example.org"}, 3ms};
  continuous_visitor two{s.visitor_port(), {.host = "home-5.example.org"}, 3ms};
  REQUIRE(one.await_status(200, patience));
  REQUIRE(two.await_status(200, patience));
  const auto before = s.sql("SELECT name, uid, session, online, attached_generation, addressing_generation FROM connector ORDER BY name");

  s.kill_warrend();
  const auto since = warren::stack::clock::now();
  REQUIRE(one.await_status(200, patience, since));
  s.start_warrend();
  for (int n = 0; n < count; ++n) CHECK(s.await_ready("web-" + std::to_string(n), patience));
  CHECK(s.sql("SELECT name, uid, session, online, attached_generation, addressing_generation FROM connector ORDER BY name") == before);

  // It works, not only shows.
  s.create_tunnel("another", "another.example.org", "home-0");
  CHECK(s.await_ready("another", patience));
  CHECK(is_the_targets(s.visit("another.example.org")));
  one.stop();
  two.stop();
  CHECK(noticed(one.answers()) == "");
  CHECK(noticed(two.answers()) == "");
}

TEST_CASE("killed between any two steps of a creation, it converges by itself") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("first", "first.example.org", "home");
  REQUIRE(s.await_ready("first", patience));
  int deaths = 0;
  for (const auto& point : failpoints()) {
    bool died = true;
    for (int pass = 1; died && pass <= passes_max; ++pass) {
      const auto name = "t" + std::to_string(pass) + "-" + (point.starts_with("before") ? "b" : "a") +
                        (point.ends_with("fence") ? "f" : "c");
      INFO(point << ", pass " << pass);
      s.stop_warrend();
      s.launch_warrend({{"WARREN_FAILPOINT", point + ":" + std::to_string(pass)}});
      s.await_warrend();
      (void)s.ctl({"tunnel", "create", name, "--hostname", name + ".example.org", "--connector", "home", "--target",
                   s.demo_origin().url(), "--gateway-class", "demo", "--request-id", name, "--timeout", "3s"});
      died = poll_until([&] { return !s.warrend().running() || s.ctl({"tunnel", "wait", name, "--timeout", "1s"}).ok(); },
                        patience, 10ms) && !s.warrend().running();
      if (died) {
        ++deaths;
        s.kill_warrend();
        s.start_warrend();
      }
      REQUIRE(insist(s, creation(s, name), name));
      REQUIRE(s.await_ready(name, patience));
      REQUIRE(is_the_targets(s.visit(name + ".example.org")));
      REQUIRE(s.sql("SELECT count(*), max(generation), max(previous_generation) FROM tunnel WHERE name = '" + name + "'") == "1|1|0\n");
      REQUIRE(s.sql("SELECT count(*) FROM attachment WHERE tunnel = '" + name + "'") == "1\n");
      REQUIRE(s.sql("SELECT count(*) FROM hostname_claim WHERE tunnel = '" + name + "'") == "1\n");
    }
    CHECK_FALSE(died);  // the last pass was past the last step
  }
  CHECK(deaths >= 4);
}

TEST_CASE("killed between any two steps of a deletion, it leaves nothing behind") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  int deaths = 0;
  bool died_before = true;
  for (const auto& point : failpoints()) {
    bool died = true;
    for (int pass = 1; died && pass <= passes_max; ++pass) {
      INFO(point << ", pass " << pass);
      if (!died_before) {  // it still runs with a failpoint
        s.stop_warrend();
        s.start_warrend();
      }
      s.create_tunnel("web", "web.example.org", "home");
      REQUIRE(s.await_ready("web", patience));
      s.stop_warrend();
      s.launch_warrend({{"WARREN_FAILPOINT", point + ":" + std::to_string(pass)}});
      s.await_warrend();
      (void)s.ctl({"tunnel", "delete", "web", "--timeout", "3s"});
      died = poll_until([&] { return !s.warrend().running() || s.ctl({"tunnel", "wait", "web", "--for", "deleted", "--timeout", "1s"}).ok(); },
                        patience, 10ms) && !s.warrend().running();
      if (died) {
        ++deaths;
        s.kill_warrend();
        s.start_warrend();
        (void)s.ctl({"tunnel", "delete", "web"});  // it may never have been asked
      }
      died_before = died;
      REQUIRE(s.ctl({"tunnel", "wait", "web", "--for", "deleted", "--timeout", "30s"}).ok());
      REQUIRE(s.sql("SELECT (SELECT count(*) FROM tunnel), (SELECT count(*) FROM hostname_claim), (SELECT count(*) FROM attachment)") == "0|0|0\n");
      REQUIRE(s.visit("web.example.org").status == 404);
    }
    CHECK_FALSE(died);
  }
  CHECK(deaths >= 4);
}

TEST_CASE("a commit whose answer is lost is neither lost nor repeated") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  for (int pass = 1; pass <= 4; ++pass) {
    const auto name = "t" + std::to_string(pass);
    INFO("pass " << pass);
    s.stop_warrend();
    s.start_warrend({{"WARREN_FAILPOINT", "after_commit:" + std::to_string(pass) + "=undecided"}});
    const auto told = s.ctl(creation(s, name));
    INFO(told.err);
    REQUIRE(told.ok());
    REQUIRE(s.await_ready(name, patience));
    CHECK(is_the_targets(s.visit(name + ".example.org")));
    CHECK(s.sql("SELECT generation, previous_generation FROM tunnel WHERE name = '" + name + "'") == "1|0\n");
    CHECK(s.sql("SELECT count(*) FROM audit_event WHERE resource LIKE '%/" + name + "'") == "1\n");
    CHECK(s.sql("SELECT count(*) FROM attachment WHERE tunnel = '" + name + "'") == "1\n");
  }
  CHECK(s.metric("warren_reconcile_errors_total") == 0);
}

TEST_CASE("PostgreSQL is restarted at once, and each instance keeps what it has") {
  whole s{{.with_envoy = false, .own_postgres = true, .instances = 3, .instance_lease_ms = 3'000}};
  REQUIRE(s.await_spread({&s.at(0), &s.at(1), &s.at(2)}, patience));
  const auto table = "SELECT string_agg(id || ' ' || owner || ' ' || epoch, ', ' ORDER BY id) FROM partition";
  const auto before = s.sql(table);
  for (int round = 0; round < (full() ? 5 : 2); ++round) {
    s.postgres().stop();
    s.postgres().start();
    // All hold their locks again, and all leases were renewed since then.
    REQUIRE(poll_until(
        [&] {
          return s.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' AND database = "
                       "(SELECT oid FROM pg_database WHERE datname = current_database())") == "3\n" &&
                 s.sql("SELECT count(*) FROM instance WHERE expires_at > pg_postmaster_start_time() + interval '4 s'") == "3\n";
        },
        patience, 50ms));
    CHECK(s.sql(table) == before);
  }
}

TEST_CASE("PostgreSQL and NATS come and go in the middle of creations, and nothing is lost") {
  WARREN_NEEDS_SERVERS();
  whole s{{.own_postgres = true}};
  s.add_agent("home").await_session();
  s.create_tunnel("first", "first.example.org", "home");
  REQUIRE(s.await_ready("first", patience));
  continuous_visitor visitor{s.visitor_port(), {.host = "first.example.org"}, 5ms};
  REQUIRE(visitor.await_status(200, patience));

  constexpr int count = 8;
  const auto target = s.demo_origin().url();
  std::atomic<int> created{0};
  std::thread creator{[&] {
    for (int n = 0; n < count; ++n) {
      const auto name = "t" + std::to_string(n);
      if (insist(s, {"tunnel", "create", name, "--hostname", name + ".example.org", "--connector", "home", "--target", target,
                     "--gateway-class", "demo", "--timeout", "2s"}, name))
        ++created;
    }
  }};
  const auto away = full() ? 10s : 1500ms;
  REQUIRE(poll_until([&] { return created >= 1; }, patience));
  s.postgres().stop();
  CHECK(poll_until([&] { return s.metric("warren_store_up") == 0; }, patience, 20ms));
  CHECK(s.readyz().dump().find("database") != std::string::npos);
  CHECK(s.must_ctl({"tunnel", "list", "-o", "name"}).out.find("first") != std::string::npos);  // reads go on
  CHECK(s.connector("home").value("online", false));
  const auto refused = s.ctl({"tunnel", "update", "first", "--disabled", "--timeout", "2s"});
  CHECK_FALSE(refused.ok());
  const auto since = warren::stack::clock::now();
  (void)visitor.await([&](const answer&) { return warren::stack::clock::now() - since > away; }, away + 5s, since);
  s.postgres().start();
  CHECK(poll_until([&] { return s.metric("warren_store_up") == 1; }, patience, 20ms));
  s.must_ctl({"tunnel", "update", "first", "--enabled"});

  s.stop_nats();
  CHECK(poll_until([&] { return s.metric("warren_bus_connected") == 0; }, patience, 20ms));
  CHECK(s.must_ctl({"tunnel", "list", "-o", "name"}).out.find("first") != std::string::npos);
  s.start_nats();
  creator.join();
  CHECK(created == count);
  for (int n = 0; n < count; ++n) {
    const auto name = "t" + std::to_string(n);
    INFO(name << ": " << s.ctl({"tunnel", "why", name}).out);
    CHECK(s.await_ready(name, patience));
    CHECK(is_the_targets(s.visit(name + ".example.org")));
  }
  CHECK(s.sql("SELECT count(*), count(DISTINCT uid), max(generation) FROM tunnel WHERE name LIKE 't%'") == std::to_string(count) + "|" + std::to_string(count) + "|1\n");
  CHECK(s.sql("SELECT count(*) FROM audit_event WHERE resource LIKE '%/tunnels/t%'") == std::to_string(count) + "\n");
  CHECK(s.connector("home").value("online", false));
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");
}
