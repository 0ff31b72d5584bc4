// test/e2e/liveness_test.cpp -- agents that die, freeze or lose their signalling, under visitors who never stop.
#include "test/e2e/expect.hpp"
#include "test/e2e/relay.hpp"

using namespace warren::e2e;
using warren::stack::continuous_visitor;
using warren::stack::poll_until;
using whole = warren::stack::stack;

namespace {

bool is_online(const nlohmann::json& c) { return c.is_object() && c.value("online", false); }
bool is_offline(const nlohmann::json& c) { return c.is_object() && !c.value("online", true); }

/// A tunnel that is Ready behind an agent whom an instance has dialled: suspicion may decide.
warren::stack::agent& ready_and_dialable(whole& s, const warren::stack::agent_options& options = {}) {
  auto& home = s.add_agent("home", options);
  home.await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  REQUIRE_FALSE(s.await("connector", "home", [](const auto& c) { return c.value("dialable", false); }, patience).is_null());
  return home;
}

/// The agent, which has not been started, reaches NATS through the relay.
void signals_through(const relay& wire, const warren::stack::agent& home) {
  auto enrolment = nlohmann::json::parse(warren::stack::read_file(home.enrolment()));
  enrolment["nats"]["urls"] = {"nats://127.0.0.1:" + std::to_string(wire.port())};
  warren::stack::write_file(home.enrolment(), enrolment.dump());
}

}  // namespace

TEST_CASE("an agent is killed, and no visitor sees a third answer") {
  WARREN_NEEDS_SERVERS();
  whole s;
  auto& home = ready_and_dialable(s);
  continuous_visitor visitor{s.visitor_port(), {.host = "web.example.org"}};
  REQUIRE(visitor.await_status(200, patience));

  home.kill();
  const auto gone = s.await("connector", "home", is_offline, patience);
  REQUIRE_FALSE(gone.is_null());
  CHECK(whole::condition_message(gone, "Ready") == "Connector disconnected.");
  CHECK(visitor.await([](const answer& a) { return is_ours(a) && reason(a) == "connector-offline"; }, patience));
  CHECK(whole::condition(s.tunnel("web"), "Ready") == "False");

  home.start();
  REQUIRE(s.await_ready("web", patience));
  CHECK(visitor.await(is_the_targets, patience));
  visitor.stop();
  CHECK(foreign_answer(visitor.answers()) == "");
}

TEST_CASE("a frozen agent is found out") {
  WARREN_NEEDS_SERVERS();
  whole s;
  auto& home = ready_and_dialable(s);
  home.freeze();
  REQUIRE_FALSE(s.await("connector", "home", is_offline, patience).is_null());
  const auto a = visit_until(s, {.host = "web.example.org"}, is_ours);
  INFO(describe(a));
  CHECK(is_ours(a));
  home.thaw();
  REQUIRE(s.await_ready("web", patience));
  CHECK(is_the_targets(s.visit("web.example.org")));
}

TEST_CASE("an agent that loses only its signalling loses nothing else") {
  WARREN_NEEDS_SERVERS();
  whole s;
  relay wire{s.nats_port()};
  auto& home = s.add_agent("home", {.start = false});
  signals_through(wire, home);
  home.start();
  home.await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  REQUIRE_FALSE(s.await("connector", "home", [](const auto& c) { return c.value("dialable", false); }, patience).is_null());

  continuous_visitor visitor{s.visitor_port(), {.host = "web.example.org"}};
  REQUIRE(visitor.await_status(200, patience));
  const auto dials = s.metric("warren_dials_total");
  wire.cut();
  // It is suspected, dialled, and answers: again and again.
  REQUIRE(poll_until([&] { return s.metric("warren_dials_total") >= dials + 4; }, patience, 50ms));
  CHECK(is_online(s.connector("home")));
  CHECK(whole::condition(s.tunnel("web"), "Ready") == "True");
  wire.mend();

  // Signalling is back when a new tunnel becomes Ready.
  s.create_tunnel("other", "other.example.org", "home");
  CHECK(s.await_ready("other", patience));
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");
}

TEST_CASE("an agent that gateways reach and no instance does has its lease when its signalling is cut") {
  WARREN_NEEDS_SERVERS();
  whole s;
  relay wire{s.nats_port()};
  auto& home = s.add_agent("home", {.lease_duration = "3s", .start = false});
  relay door{home.port(), "OPTIONS "};  // what an instance dials with; a gateway says CONNECT
  signals_through(wire, home);
  home.start({"--advertise", "127.0.0.1:" + std::to_string(door.port())});
  home.await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));
  const auto dials = [&] { return s.metric("warren_dials_total"); };
  REQUIRE(poll_until([&] { return dials() >= 1; }, patience, 50ms));
  CHECK_FALSE(s.connector("home").value("dialable", false));
  continuous_visitor visitor{s.visitor_port(), {.host = "web.example.org"}};
  REQUIRE(visitor.await_status(200, patience));

  wire.cut();
  const auto gone = s.await("connector", "home", is_offline, patience);
  REQUIRE_FALSE(gone.is_null());
  // Whoever knocked in vain drew no conclusion from it: until its lease ended, visitors came through.
  CHECK(whole::condition_message(gone, "Ready") == "Connector lease has expired. Agent may be offline.");
  CHECK(visitor.await([](const answer& a) { return is_ours(a) && reason(a) == "connector-offline"; }, patience));

  wire.mend();
  REQUIRE(s.await_ready("web", patience));
  CHECK(visitor.await(is_the_targets, patience));
  visitor.stop();
  CHECK(foreign_answer(visitor.answers()) == "");
}

TEST_CASE("NATS stops for everybody, and nobody is offline because of it") {
  WARREN_NEEDS_SERVERS();
  whole s;
  ready_and_dialable(s, {.lease_duration = "3s"});
  continuous_visitor visitor{s.visitor_port(), {.host = "web.example.org"}};
  REQUIRE(visitor.await_status(200, patience));

  s.stop_nats();
  REQUIRE(poll_until([&] { return s.metric("warren_bus_connected") == 0; }, patience, 50ms));
  CHECK(s.readyz().dump().find("NATS") != std::string::npos);
  // Longer than the lease, which does not run while the owner hears nobody.
  const auto since = warren::stack::clock::now();
  const milliseconds outage = full() ? 10s : 4s;
  CHECK(visitor.await([&](const answer&) { return warren::stack::clock::now() - since > outage; }, outage + patience, since));
  CHECK(is_online(s.connector("home")));
  CHECK(s.sql("SELECT count(*) FROM connector WHERE online") == "1\n");

  s.start_nats();
  REQUIRE(poll_until([&] { return s.metric("warren_bus_connected") == 1; }, patience, 50ms));
  s.create_tunnel("other", "other.example.org", "home");
  CHECK(s.await_ready("other", patience));
  CHECK(is_online(s.connector("home")));
  visitor.stop();
  CHECK(noticed(visitor.answers()) == "");
}
