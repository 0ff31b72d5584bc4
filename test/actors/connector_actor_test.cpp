// test/actors/connector_actor_test.cpp -- the connector's shell on virtual time: what is stored, said and answered.
#include <catch2/catch.hpp>

#include "actors/connector/actor.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"
#include "test/support/actor_fixture.hpp"

using namespace warren;

namespace {

struct recorded_partition {
  std::vector<route_to_tunnel> routed;
  std::vector<class_wanted> classes;
  std::vector<idle_notice> idle;
  int appeared = 0;
};
partition_actor::behavior_type recorded_partition_actor(partition_actor::pointer, recorded_partition* p) {
  return {
      [](const bus_message&) {},
      [](const route_to_connector&) {},
      [p](const route_to_tunnel& r) { p->routed.push_back(r); },
      [p](const connector_appeared&) { ++p->appeared; },
      [p](const class_wanted& w) { p->classes.push_back(w); },
      [](const gateways_wanted&) {},
      [p](const idle_notice& n) { p->idle.push_back(n); },
      [](const busv1::GatewayAck&) {},
      [](const adopt_rivals&) {},
      [](const agent_disconnected&) {},
      [](const mass_silence&) {},
      [](const bus_state&) {},
      [](const wake_up&) {},
  };
}

struct connector_world : test::actor_fixture {
  recorded_partition partition;
  partition_actor partition_handle;
  connector_actor connector;
  const std::string token = std::string(64, 'a');
  std::int64_t held = 0, sequence = 0;
  std::vector<std::string> addresses{"10.0.0.1:7000"};
  bool alive = true;

  /// An online connector with a session, as a former owner left it.
  void stored(std::int64_t lease_ms) {
    auto& r = *db.rows["connector/acme/home"].mutable_connector();
    r.set_project("acme");
    r.set_name("home");
    r.set_uid("u");
    r.set_version(1);
    r.set_generation(1);
    r.set_class_("default");
    r.set_lease_duration_ms(lease_ms);
    r.set_public_key(std::string(64, 'b'));
    r.add_addresses("10.0.0.1:7000");
    r.set_addressing_generation(1);
    r.set_session(1);
    r.set_session_token_hash(protocol::sha256_hex(token));
    r.set_online(true);
    auto* c = r.add_conditions();
    c->set_type("Accepted");
    c->set_status("True");
    db.revisions[0] = 1;
  }
  void start() {
    bus.answer = [this](const bus_request& q) { return agent(q); };
    if (!partition_handle) partition_handle = spawn(recorded_partition_actor, &partition);
    connector = spawn(connector::actor, context(partition_handle), std::string{"acme"}, std::string{"home"}, false);
    v1::ClassState c;
    c.set_name("default");
    c.set_found(true);
    c.add_allowed_networks("10.0.0.0/8");
    tell(c);
  }
  template <class T> void tell(T message) {
    self->send(connector, message);
    run();
  }
  /// What a good agent answers.
  bus_reply agent(const bus_request& q) {
    if (!alive) return {"timeout", ""};
    busv1::AgentCommand c;
    REQUIRE(c.ParseFromString(q.payload));
    if (c.has_attach() && c.attach().from_generation() == held) held = c.attach().generation();
    if (c.has_set()) held = c.set().generation();
    busv1::CommandReply r;
    r.set_version(1);
    r.set_session(c.session());
    r.set_token(token);
    r.set_command_id(c.command_id());
    r.set_attached_generation(held);
    if (c.has_report()) {
      r.mutable_report()->set_full(true);
      r.mutable_report()->set_attached_generation(held);
      for (const auto& a : addresses) r.mutable_report()->mutable_addressing()->add_addresses(a);
    }
    return {"", r.SerializeAsString()};
  }
  void heartbeat() {
    busv1::Heartbeat b;
    b.set_version(1);
    b.set_session(1);
    b.set_token(token);
    b.set_sequence(++sequence);
    b.set_attached_generation(held);
    busv1::Addressing a;
    for (const auto& each : addresses) a.add_addresses(each);
    b.set_digest(protocol::report_digest(a, std::vector<busv1::TargetState>{}));
    tell(agent_message{agent_message::what::heartbeat, "acme", "home", b.SerializeAsString(), ""});
  }
  v1::AttachTunnel attach() {
    v1::AttachTunnel a;
    a.set_connector("home");
    a.set_tunnel("web");
    a.set_tunnel_uid("t1");
    a.set_tunnel_generation(1);
    a.add_rules()->set_target("http://localhost:80");
    return a;
  }
  v1::ConnectorRow row() const { return db.rows.at("connector/acme/home").connector(); }
};

}  // namespace

TEST_CASE_METHOD(connector_world, "an agent silent for 9 of 20 minutes gets a new tunnel's attachment at once, with no heartbeat") {
  stored(1'200'000);
  start();
  heartbeat();
  advance(540s, 500ms);
  REQUIRE(row().online());
  addresses = {"10.0.0.7:7000"};  // it has moved meanwhile
  bus.requested.clear();
  partition.routed.clear();
  tell(attach());
  REQUIRE_FALSE(bus.requested.empty());
  CHECK(bus.requested[0].subject == bus::command_subject("acme", "connector", "home"));
  CHECK(held == row().attachment_generation());
  CHECK(row().attached_generation() == row().attachment_generation());
  REQUIRE_FALSE(partition.routed.empty());
  CHECK(partition.routed.back().name == "web");
  CHECK(partition.routed.back().what.attached());
  advance(4s);  // what it has just said is some time ago again
  v1::PushAddressing p;
  p.set_connector("home");
  p.set_tunnel("web");
  p.set_tunnel_uid("t1");
  p.set_tunnel_generation(1);
  tell(p);
  CHECK(row().addresses(0) == "10.0.0.7:7000");
  CHECK(row().route_version() == row().version());
}

TEST_CASE_METHOD(connector_world, "heartbeats write nothing; the lease's end does, once") {
  stored(30'000);
  start();
  for (int i = 0; i < 30; ++i) {
    heartbeat();
    advance(2s, 500ms);
  }
  heartbeat();
  const auto before = db.writes.size();
  alive = false;
  advance(29'950ms);
  CHECK(row().online());
  CHECK(db.writes.size() == before);
  advance(100ms);
  CHECK_FALSE(row().online());
  CHECK(db.writes.size() == before + 1);
  REQUIRE_FALSE(silence.reports.empty());
  CHECK_FALSE(silence.reports.back().online);
  advance(65s, 1s);
  CHECK(partition.idle.size() == 1);  // nothing owed, nobody asking
}

TEST_CASE_METHOD(connector_world, "garbage is counted and dropped") {
  stored(30'000);
  start();
  const auto before = db.writes.size();
  for (auto kind : {agent_message::what::hello, agent_message::what::heartbeat, agent_message::what::event,
                    agent_message::what::command_reply})
    tell(agent_message{kind, "acme", "home", "\xff\xff garbage", "r"});
  CHECK(count.values["warren_bus_dropped_total{garbage}"] == 4);
  CHECK(db.writes.size() == before);
}

TEST_CASE_METHOD(connector_world, "twenty conflicts in a row lose no attachment and take less than 5 s") {
  stored(30'000);
  start();
  heartbeat();
  db.conflicts_to_come = 20;
  tell(attach());
  const auto begin = steady_ms();
  while (row().attached_generation() == 0 && steady_ms() - begin < 20'000) advance(10ms, 10ms);
  CHECK(steady_ms() - begin < 5'000);
  CHECK(db.conflicts == 20);
  CHECK(held == row().attachment_generation());
}

TEST_CASE_METHOD(connector_world, "a row that cannot be read yet is read when the database is back") {
  stored(30'000);
  db.away = true;
  start();
  advance(3s);
  CHECK(row().attachment_generation() == 0);
  db.away = false;
  advance(2s);
  tell(attach());
  CHECK(row().attachment_generation() != 0);
}

TEST_CASE_METHOD(connector_world, "a thousand tunnels that ask at once are a few steps of the set") {
  stored(30'000);
  start();
  heartbeat();
  const auto before = db.writes.size();
  for (int i = 0; i < 1000; ++i) {
    auto a = attach();
    a.set_tunnel("web-" + std::to_string(i));
    a.set_tunnel_uid("t" + std::to_string(i));
    self->send(connector, a);
  }
  run();
  advance(2s);
  CHECK(db.writes.size() - before <= 10);
  CHECK(held == row().attachment_generation());
  CHECK(row().attached_generation() == row().attachment_generation());
  std::size_t stored_ones = 0;
  for (const auto& [key, r] : db.rows) stored_ones += r.has_attachment();
  CHECK(stored_ones == 1000);
}
