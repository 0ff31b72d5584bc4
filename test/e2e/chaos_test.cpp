// test/e2e/chaos_test.cpp -- instances that die, stop, or lose PostgreSQL or NATS under load: the others carry on,
// and nobody notices.
#include <algorithm>

#include "test/e2e/load.hpp"

using namespace warren::e2e;
using warren::stack::poll_until;
using whole = warren::stack::stack;

namespace {

/// Three instances in use; the victim owns the first project, and the gateway is at another, or at it.
struct three {
  whole s{several(3)};
  load l;
  warren::stack::instance& victim;
  explicit three(bool gateway_at_victim = false) : l{spread(s)}, victim{l.owner("p0")} {
    std::vector<std::string> ways;
    if (gateway_at_victim) ways.push_back(std::to_string(victim.xds_port()));
    for (const auto* each : others(s, victim)) ways.push_back(std::to_string(each->xds_port()));
    s.to_xds().lead_to(ways, true);
    l.write_by(*others(s, victim).front());
    REQUIRE(l.await_writes());
  }
  static whole& spread(whole& s) {
    REQUIRE(s.await_spread(everybody(s), patience));
    return s;
  }
  std::string told_by_victim(const std::string& column) const {
    return s.sql("SELECT " + column + " FROM instance WHERE name = '" + victim.name() + "'");
  }
};

/// The victim, who owns p0, sleeps while others change what it owned; then it wakes.
void sleeps_and_wakes(three& t, milliseconds nap) {
  auto& s = t.s;
  const auto asleep = warren::stack::clock::now();
  t.victim.freeze();
  // What it has been sent already it will read when it wakes; whoever sent it has long found somebody else.
  s.must_ctl({"tunnel", "create", "late", "--hostname", "late.example.org", "--connector", "home-0", "--target",
              s.demo_origin().url(), "--gateway-class", "demo", "--timeout", "30s", "-p", "p0"});
  REQUIRE(s.await_spread(others(s, t.victim), patience));
  s.must_ctl({"tunnel", "wait", "late", "--for", "ready", "--timeout", "30s", "-p", "p0"});
  REQUIRE(t.l.await_writes());
  t.l.stop_writing();
  (void)poll_until([&] { return warren::stack::clock::now() - asleep >= nap; }, nap + patience);
  const auto rows = "SELECT name, uid, generation, hostnames, enabled FROM tunnel WHERE project = 'p0' ORDER BY name";
  const auto attachments = "SELECT tunnel, tunnel_uid, attachment_generation FROM attachment WHERE project = 'p0' ORDER BY 1, 2";
  // The last write is through with its agents, too: what changes from here on would be the sleeper's doing.
  REQUIRE(poll_until(
      [&] {
        return s.sql("SELECT bool_and(previous_generation = 0 AND retiring = '{}' AND programmed_generation = generation) "
                     "FROM tunnel WHERE project = 'p0'") == "t\n" &&
               s.sql("SELECT bool_and(attached_generation = attachment_generation) FROM connector WHERE project = 'p0'") == "t\n" &&
               s.sql("SELECT count(*) FROM attachment WHERE project = 'p0'") ==
                   s.sql("SELECT count(*) FROM tunnel WHERE project = 'p0' AND enabled");
      },
      patience));
  const auto before = s.sql(rows) + s.sql(attachments);

  t.victim.thaw();
  REQUIRE(s.await_spread(everybody(s), patience));  // it is one of them again
  CHECK(s.sql(rows) + s.sql(attachments) == before);
  CHECK(s.sql("SELECT count(*) FROM audit_event WHERE resource LIKE '%p0/tunnels/late'") == "1\n");
  CHECK(is_the_targets(s.visit("late.example.org")));
  CHECK(t.l.noticed_by_anybody() == "");
}

}  // namespace

TEST_CASE("an instance is killed under load, and nobody notices") {
  WARREN_NEEDS_SERVERS();
  three t{true};
  t.victim.kill();
  REQUIRE(t.s.await_spread(others(t.s, t.victim), patience));
  REQUIRE(t.l.await_writes());
  t.victim.start();
  REQUIRE(t.s.await_spread(everybody(t.s), patience));
  REQUIRE(t.l.await_writes());
  CHECK(t.l.noticed_by_anybody() == "");
}

TEST_CASE("an instance that is paused and wakes changes nothing, and no agent obeys it") {
  WARREN_NEEDS_SERVERS();
  three t;
  sleeps_and_wakes(t, 1s);
}

TEST_CASE("an instance that is paused for 10 s and wakes changes nothing", "[long]") {
  WARREN_NEEDS_SERVERS();
  three t;
  sleeps_and_wakes(t, 10s);
}

TEST_CASE("a gateway at an instance that is paused is soon at another one") {
  WARREN_NEEDS_SERVERS();
  three t{true};
  t.l.stop_writing();
  const auto rest = others(t.s, t.victim);
  REQUIRE(poll_until([&] { return t.victim.metric("warren_gateway_streams") == 1; }, patience));
  t.victim.freeze();
  // Whatever connects anew finds the others; what is open stays so, and nobody says a word on it.
  t.s.to_xds().lead_to({std::to_string(rest[0]->xds_port()), std::to_string(rest[1]->xds_port())}, false);
  const auto there = [&](const auto* each) { return each->metric("warren_gateway_streams") == 1; };
  CHECK(poll_until([&] { return std::any_of(rest.begin(), rest.end(), there); }, 15s));  // its keepalive's 6 s, and not a half minute
  REQUIRE(t.s.ctl_at(*rest[0], {"tunnel", "update", "web", "--disabled", "--timeout", "30s", "-p", "p0"}).ok());
  CHECK(reason(visit_until(t.s, {.host = "web.p0.example.org"}, is_ours)) == "disabled");
  t.victim.thaw();
  CHECK(t.s.await_spread(everybody(t.s), patience));
}

TEST_CASE("a deaf instance gives its partitions to those who hear") {
  WARREN_NEEDS_SERVERS();
  three t;
  t.victim.to_nats().cut();
  REQUIRE(t.s.await_spread(others(t.s, t.victim), patience));
  CHECK(t.told_by_victim("bus_ok, expires_at > now()") == "f|t\n");
  REQUIRE(t.l.await_writes());
  t.victim.to_nats().mend();
  REQUIRE(t.s.await_spread(everybody(t.s), patience));
  CHECK(t.told_by_victim("bus_ok") == "t\n");
  REQUIRE(t.l.await_writes());
  CHECK(t.l.noticed_by_anybody() == "");
}

TEST_CASE("a deaf instance sends its gateway to those who hear, and takes one again when it hears") {
  WARREN_NEEDS_SERVERS();
  three t{true};
  auto& s = t.s;
  const auto rest = others(s, t.victim);
  const auto streams = [](const warren::stack::instance& i) { return i.metric("warren_gateway_streams"); };
  REQUIRE(poll_until([&] { return streams(t.victim) == 1; }, patience));
  s.to_xds().lead_to({std::to_string(rest[0]->xds_port())}, false);  // whoever asks /readyz sends nobody there any more
  t.victim.to_nats().cut();
  REQUIRE(poll_until([&] { return streams(*rest[0]) == 1; }, patience));
  CHECK(poll_until([&] { return streams(t.victim) == 0; }, patience));
  CHECK_THAT(t.victim.readyz().dump(), Catch::Contains("sent to other instances"));
  // What is changed elsewhere reaches visitors, and what is new becomes Ready.
  REQUIRE(s.ctl_at(*rest[1], {"tunnel", "create", "fresh", "--hostname", "fresh.example.org", "--connector", "home-0", "--target",
                              s.demo_origin().url(), "--gateway-class", "demo", "--timeout", "30s", "-p", "p0"}).ok());
  CHECK(s.ctl_at(*rest[1], {"tunnel", "wait", "fresh", "--for", "ready", "--timeout", "30s", "-p", "p0"}).ok());
  CHECK(is_the_targets(s.visit("fresh.example.org")));
  REQUIRE(t.l.await_writes());
  // Whoever comes to it nevertheless is refused, and asks again until somebody else takes it.
  s.to_xds().lead_to({std::to_string(t.victim.xds_port())}, true);
  CHECK(poll_until([&] { return t.victim.metric("warren_gateway_refused_streams_total") >= 2; }, patience));
  CHECK(streams(t.victim) == 0);
  t.victim.to_nats().mend();
  CHECK(poll_until([&] { return streams(t.victim) == 1; }, patience));
  CHECK(poll_until([&] { return t.victim.readyz().dump().find("sent to other instances") == std::string::npos; }, patience));
  CHECK(t.l.noticed_by_anybody() == "");
}

TEST_CASE("an instance whose NATS falls silent says so, and is succeeded") {
  WARREN_NEEDS_SERVERS();
  three t;
  t.victim.to_nats().swallow();
  // Two seconds are promised; with the time that a busy machine takes, and less than NATS's own patience would be.
  CHECK(poll_until([&] { return t.victim.metric("warren_bus_connected") == 0; }, 3500ms, 20ms));
  CHECK_THAT(t.victim.readyz().dump(), Catch::Contains("not connected to NATS"));
  REQUIRE(t.s.await_spread(others(t.s, t.victim), patience));
  REQUIRE(t.l.await_writes());
  t.victim.to_nats().mend();
  REQUIRE(t.s.await_spread(everybody(t.s), patience));
  CHECK(poll_until([&] { return t.victim.metric("warren_bus_connected") == 1; }, patience));
  REQUIRE(t.l.await_writes());
  CHECK(t.l.noticed_by_anybody() == "");
}

TEST_CASE("when all are deaf nobody gives anything away, and nothing goes offline") {
  WARREN_NEEDS_SERVERS();
  three t;
  t.l.stop_writing();
  const auto before = t.s.owners();
  for (std::size_t n = 0; n < 3; ++n) t.s.at(n).to_nats().cut();
  REQUIRE(poll_until([&] { return t.s.sql("SELECT count(*) FROM instance WHERE bus_ok") == "0\n"; }, patience));
  const auto since = warren::stack::clock::now();
  const auto a_while = 3 * milliseconds{t.s.options().instance_lease_ms};
  while (warren::stack::clock::now() - since < a_while) REQUIRE(t.s.owners() == before);
  for (std::size_t n = 0; n < 3; ++n) t.s.at(n).to_nats().mend();
  REQUIRE(poll_until([&] { return t.s.sql("SELECT count(*) FROM instance WHERE bus_ok") == "3\n"; }, patience));
  t.l.write_by(t.s.at(0));
  REQUIRE(t.l.await_writes());
  CHECK(t.s.owners() == before);
  CHECK(t.l.noticed_by_anybody() == "");
}

TEST_CASE("a blind instance loses its partitions to those who see") {
  WARREN_NEEDS_SERVERS();
  three t;
  t.victim.to_postgres().cut();
  REQUIRE(t.s.await_spread(others(t.s, t.victim), patience));
  REQUIRE(t.l.await_writes());
  CHECK(t.victim.readyz().dump().find("database") != std::string::npos);
  // It cannot look who lives; the others tell it on the bus.
  CHECK(poll_until(
      [&] {
        const auto listed = t.s.ctl_at(t.victim, {"instance", "list", "-o", "json"}).json();
        if (!listed.is_object()) return false;
        for (const auto& each : listed.at("instances"))
          if (each.value("alive", false) == (each.at("display_name") == t.victim.name())) return false;
        return true;
      },
      patience, 50ms));
  t.victim.to_postgres().mend();
  REQUIRE(t.s.await_spread(everybody(t.s), patience));
  REQUIRE(t.l.await_writes());
  CHECK(t.l.noticed_by_anybody() == "");
}

TEST_CASE("an instance whose machine vanishes is succeeded when its lease is over") {
  WARREN_NEEDS_SERVERS();
  three t;
  t.victim.to_postgres().swallow();
  t.victim.to_nats().swallow();
  REQUIRE(t.s.await_spread(others(t.s, t.victim), patience));
  REQUIRE(t.l.await_writes());
  t.victim.to_postgres().mend();
  t.victim.to_nats().mend();
  REQUIRE(t.s.await_spread(everybody(t.s), patience));
  REQUIRE(t.l.await_writes());
  CHECK(t.l.noticed_by_anybody() == "");
}
