// test/e2e/cost_test.cpp -- what a creation, a heartbeat and a rival may cost. Numbers, not times.
#include <thread>

#include "test/e2e/expect.hpp"

using namespace warren::e2e;
using warren::stack::poll_until;
using whole = warren::stack::stack;

namespace {

struct costs {
  double transactions, rows, pushes, push_bytes, sent, commands;
};
costs spent(const whole& s) {
  return {s.metric("warren_store_transactions_total"), s.metric("warren_store_rows_written_total"),
          s.metric("warren_gateway_pushes_total"), s.metric("warren_gateway_push_bytes_total"),
          s.metric("warren_bus_messages_total", "out"), s.metric("warren_agent_commands_total")};
}

}  // namespace

TEST_CASE("a creation costs a bounded number of transactions, bytes and messages") {
  WARREN_NEEDS_SERVERS();
  // One partition, and agents that are silent: what is counted is the creations.
  whole s{{.partitions = 1, .heartbeat_interval_ms = 60'000}};
  s.add_agent("home").await_session();
  s.create_tunnel("first", "first.example.org", "home");
  REQUIRE(s.await_ready("first", patience));

  constexpr int count = 20;
  const auto before = spent(s);
  const auto begun = warren::stack::clock::now();
  for (int n = 0; n < count; ++n) {
    const auto name = "t" + std::to_string(n);
    s.create_tunnel(name, name + ".example.org", "home");
    REQUIRE(s.await_ready(name, patience));
  }
  const auto after = spent(s);
  const auto seconds = std::chrono::duration<double>(warren::stack::clock::now() - begun).count();
  // Each partition's revision, and each gateway's acknowledgement of it, is said again every second.
  const auto idle = (seconds + 1) * 2 * 3;
  WARN("each: transactions " << (after.transactions - before.transactions) / count << ", rows " << (after.rows - before.rows) / count
       << ", pushes " << (after.pushes - before.pushes) / count << ", bytes to the gateway "
       << (after.push_bytes - before.push_bytes) / count << ", NATS messages sent " << (after.sent - before.sent - idle) / count);
  CHECK(after.transactions - before.transactions <= 6 * count);
  CHECK(after.rows - before.rows <= 16 * count);
  CHECK(after.pushes - before.pushes <= 6 * count);
  CHECK(after.push_bytes - before.push_bytes <= 2'500 * count);
  CHECK(after.commands - before.commands <= 3 * count);
  CHECK(after.sent - before.sent <= 20 * count + idle);
  CHECK(after.push_bytes > before.push_bytes);
  CHECK(after.sent > before.sent);
}

TEST_CASE("heartbeats write nothing and push nothing") {
  WARREN_NEEDS_SERVERS();
  whole s{{.partitions = 1, .heartbeat_interval_ms = 50}};
  constexpr int agents = 4;
  for (int n = 0; n < agents; ++n) s.add_agent("home-" + std::to_string(n)).await_session();
  s.create_tunnel("web", "web.example.org", "home-0");
  REQUIRE(s.await_ready("web", patience));
  for (int n = 0; n < agents; ++n)
    REQUIRE_FALSE(s.await("connector", "home-" + std::to_string(n), [](const auto& c) {
      return c.value("online", false) && c.value("dialable", false);
    }, patience).is_null());
  const auto count = full() ? 2'000.0 : 400.0;
  const auto heard = s.metric("warren_heartbeats_total");
  const auto before = spent(s);
  REQUIRE(poll_until([&] { return s.metric("warren_heartbeats_total") >= heard + count; }, 60s, 100ms));
  const auto after = spent(s);
  CHECK(after.transactions == before.transactions);
  CHECK(after.rows == before.rows);
  CHECK(after.pushes == before.pushes);
}

TEST_CASE("a rival who bumps every row does not keep a tunnel from becoming Ready") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("calm", "calm.example.org", "home");
  REQUIRE(s.await_ready("calm", patience));

  // 20 rounds that have seen the tunnel, as fast as the server runs them, each in a transaction of its own.
  const auto rounds = full() ? 500 : 20;
  const auto script = "DO $$ DECLARE seen bigint; rounds int := 0; BEGIN LOOP "
                      "UPDATE tunnel SET enabled = enabled WHERE name = 'contested'; GET DIAGNOSTICS seen = ROW_COUNT; COMMIT; "
                      "UPDATE attachment SET target_message = target_message; COMMIT; "
                      "UPDATE connector SET dialable = dialable; COMMIT; "
                      "UPDATE hostname_claim SET project = project; COMMIT; "
                      "IF seen > 0 THEN rounds := rounds + 1; END IF; EXIT WHEN rounds >= " + std::to_string(rounds) +
                      "; END LOOP; END $$";
  std::string rivals_words;
  std::thread rival{[&] {
    try {
      s.sql(script);
    } catch (const std::exception& e) {
      rivals_words = e.what();
    }
  }};
  const auto told = s.ctl({"tunnel", "create", "contested", "--hostname", "contested.example.org", "--connector", "home",
                           "--target", s.demo_origin().url(), "--gateway-class", "demo", "--timeout", "20s"});
  rival.join();
  INFO(told.err);
  REQUIRE(told.ok());
  CHECK(rivals_words == "");
  REQUIRE(s.await_ready("contested", patience));
  CHECK(is_the_targets(s.visit("contested.example.org")));
  CHECK(s.metric("warren_reconcile_errors_total") == 0);

  // Rows as in an undisturbed run, and none is left marked.
  const auto columns = [&](const std::string& name) {
    return s.sql("SELECT t.generation, t.observed_generation, t.programmed_generation, t.previous_generation, t.previous_rules, "
                 "(SELECT string_agg(c ->> 'type' || (c ->> 'status') || (c ->> 'reason'), ',' ORDER BY c ->> 'type') FROM jsonb_array_elements(t.conditions) c), "
                 "(SELECT count(*) FROM hostname_claim h WHERE h.tunnel_uid = t.uid), "
                 "(SELECT string_agg(a.tunnel_generation || a.target_state, ',') FROM attachment a WHERE a.tunnel_uid = t.uid) "
                 "FROM tunnel t WHERE t.name = '" + name + "'");
  };
  CHECK(columns("contested") == columns("calm"));
  CHECK(poll_until([&] {
    return s.sql("SELECT (SELECT count(*) FROM tunnel WHERE version < 0) + (SELECT count(*) FROM connector WHERE version < 0) + "
                 "(SELECT count(*) FROM attachment WHERE version < 0) + (SELECT count(*) FROM hostname_claim WHERE version < 0)") == "0\n";
  }, patience, 100ms));
}

TEST_CASE("an agent that sends no heartbeat gets a new tunnel, also where it has moved to") {
  WARREN_NEEDS_SERVERS();
  whole s;
  auto& quiet = s.add_agent("quiet", {.lease_duration = "20m", .arguments = {"--mute-heartbeats"}});
  quiet.await_session();
  REQUIRE_FALSE(s.await("connector", "quiet", [](const auto& c) { return c.value("online", false); }, patience).is_null());
  const auto heard = s.metric("warren_heartbeats_total");
  s.create_tunnel("web", "web.example.org", "quiet");
  REQUIRE(s.await_ready("web", patience));
  CHECK(is_the_targets(s.visit("web.example.org")));
  CHECK(s.metric("warren_heartbeats_total") == heard);

  quiet.kill();
  quiet.move();
  quiet.start();
  quiet.await_session();
  s.create_tunnel("moved", "moved.example.org", "quiet");
  REQUIRE(s.await_ready("moved", patience));
  CHECK(is_the_targets(s.visit("moved.example.org")));
  const auto a = visit_until(s, {.host = "web.example.org"}, is_the_targets);
  INFO(describe(a));
  CHECK(is_the_targets(a));
}
