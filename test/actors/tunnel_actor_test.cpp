// test/actors/tunnel_actor_test.cpp -- the tunnel's shell on virtual time: what is stored, said and answered.
#include <catch2/catch.hpp>

#include "actors/core/conditions.hpp"
#include "actors/tunnel/actor.hpp"
#include "test/support/actor_fixture.hpp"

using namespace warren;

namespace {

/// The partition as the tunnel sees it: it carries messages to connectors and tells of gateways.
struct recorded_partition {
  std::vector<route_to_connector> routed;
  std::vector<gateways_wanted> wanted;
  std::vector<idle_notice> idle;
};
partition_actor::behavior_type recorded_partition_actor(partition_actor::pointer, recorded_partition* p) {
  return {
      [](const bus_message&) {},
      [p](const route_to_connector& r) { p->routed.push_back(r); },
      [](const route_to_tunnel&) {},
      [](const connector_appeared&) {},
      [](const class_wanted&) {},
      [p](const gateways_wanted& w) { p->wanted.push_back(w); },
      [p](const idle_notice& n) { p->idle.push_back(n); },
      [](const busv1::GatewayAck&) {},
      [](const adopt_rivals&) {},
      [](const agent_disconnected&) {},
      [](const mass_silence&) {},
      [](const bus_state&) {},
      [](const wake_up&) {},
  };
}

struct tunnel_world : test::actor_fixture {
  recorded_partition partition;
  partition_actor partition_handle;
  tunnel_actor tunnel;
  tunnel::first_look look = tunnel::first_look::read;
  std::vector<v1::Reply> replies;
  std::vector<caf::error> errors;

  void start() {
    if (!partition_handle) partition_handle = spawn(recorded_partition_actor, &partition);
    tunnel = spawn(tunnel::actor, context(partition_handle), std::string{"acme"}, std::string{"web"}, look);
  }
  void stop() {
    caf::anon_send_exit(tunnel, caf::exit_reason::kill);
    run();
  }
  void ask(v1::Command c) {
    // A small asker: the answer may take virtual time.
    auto* out = &replies;
    auto* failed = &errors;
    spawn([=, to = tunnel](caf::event_based_actor* asker) {
      asker->request(to, caf::infinite, c)
          .then([=](const v1::Reply& r) { out->push_back(r); },
                [=](const caf::error& e) { failed->push_back(e); });
    });
  }
  static v1::Command create() {
    v1::Command c;
    c.set_project("acme");
    c.mutable_caller()->set_method("CreateTunnel");
    c.mutable_caller()->set_request_id("r1");
    c.mutable_caller()->set_digest("d1");
    auto& spec = *c.mutable_create_tunnel()->mutable_spec();
    c.mutable_create_tunnel()->set_name("web");
    spec.add_hostnames("web.example.com");
    spec.set_enabled(true);
    spec.set_gateway_class("default");
    auto* r = spec.add_rules();
    r->set_path_prefix("/");
    r->set_connector("home");
    r->set_target("http://localhost:8080");
    return c;
  }
  v1::TunnelRow row() const { return db.rows.at("tunnel/acme/web").tunnel(); }
  void gateways_acknowledge(revision_t revision) {
    v1::Gateways g;
    g.set_settled(true);
    auto* one = g.add_gateways();
    one->set_gateway("gw-a");
    one->set_class_("default");
    one->set_connected(true);
    one->set_counts(true);
    one->set_acknowledged(revision);
    self->send(tunnel, g);
    run();
  }
  void attached() {
    v1::AttachmentState a;
    a.set_connector("home");
    a.set_tunnel_uid(row().uid());
    a.set_tunnel_generation(row().generation());
    a.set_stored(true);
    a.set_attached(true);
    a.set_online(true);
    self->send(tunnel, a);
    run();
  }
  template <class T> int said() const {
    return static_cast<int>(std::count_if(partition.routed.begin(), partition.routed.end(), [](const auto& r) {
      return std::holds_alternative<T>(r.what);
    }));
  }
};

}  // namespace

TEST_CASE_METHOD(tunnel_world, "a creation is one transaction with audit and request id, then announced") {
  start();
  ask(create());
  REQUIRE(replies.size() == 1);
  CHECK(replies[0].code().empty());
  CHECK(replies[0].row().tunnel().uid() == row().uid());
  CHECK(replies[0].revision() == 1);
  CHECK(db.writes == std::vector<std::string>{"tunnel_spec"});
  CHECK(db.audit.size() == 1);
  CHECK(db.rows.contains("hostname_claim/web.example.com"));
  CHECK(said<v1::AttachTunnel>() == 1);
  REQUIRE(partition.wanted.size() == 1);
  CHECK(partition.wanted[0].wanted);

  SECTION("Programmed sends the connectors a push, with no time passing") {
    attached();
    gateways_acknowledge(1);
    CHECK(row().programmed_generation() == 1);
    CHECK(said<v1::PushAddressing>() == 1);
    CHECK_FALSE(partition.wanted.back().wanted);
    CHECK(db.writes.size() == 2);  // per creation: spec and status, and no more
  }
  SECTION("the same request again gets the first answer") {
    ask(create());
    REQUIRE(replies.size() == 2);
    // The row is there already, so it is the machine that answers; the store knows the id after a restart.
    stop();
    db.rows.erase("tunnel/acme/web");
    start();
    ask(create());
    REQUIRE(replies.size() == 3);
    CHECK(replies[2].code().empty());
    CHECK(replies[2].row().tunnel().uid() == replies[0].row().tunnel().uid());
    CHECK(db.writes.size() == 1);
  }
  SECTION("after a restart it goes on from its row") {
    stop();
    partition.routed.clear();
    start();
    CHECK(said<v1::AttachTunnel>() == 1);
    gateways_acknowledge(1);
    CHECK(row().programmed_generation() == 1);
  }
  SECTION("when nothing is owed and nobody asks it is let go") {
    attached();
    gateways_acknowledge(1);
    attached();
    partition.idle.clear();
    advance(limits::tunnel_passivate_after - 1s, 500ms);
    CHECK(partition.idle.empty());
    advance(2s, 500ms);
    CHECK(partition.idle.size() == 1);
  }
}

TEST_CASE_METHOD(tunnel_world, "twenty conflicts in a row end Programmed in under 5 s, with the rows of an undisturbed run") {
  start();
  ask(create());
  attached();
  db.conflicts_to_come = 20;
  const auto before = steady_ms();
  gateways_acknowledge(1);
  while (row().programmed_generation() != 1 && steady_ms() - before < 60'000) advance(10ms, 10ms);
  CHECK(steady_ms() - before < 5'000);
  CHECK(db.conflicts == 20);
  CHECK(row().generation() == 1);
  CHECK(row().previous_generation() == 0);
  CHECK(is_true(row().conditions(), "Programmed"));
  CHECK(count.values["warren_reconcile_errors_total"] == 0);
}

TEST_CASE_METHOD(tunnel_world, "while the database is away callers are told, and what is owed is done when it is back") {
  start();
  ask(create());
  attached();
  db.away = true;
  gateways_acknowledge(1);
  advance(10s, 100ms);
  CHECK(row().programmed_generation() == 0);
  db.away = false;
  advance(2s, 100ms);
  CHECK(row().programmed_generation() == 1);
}

TEST_CASE_METHOD(tunnel_world, "an actor that starts while the database is away reads its row when it is back") {
  db.away = true;
  start();
  ask(create());
  advance(100ms);
  REQUIRE(replies.size() == 1);
  CHECK(replies[0].code() == "unavailable");
  db.away = false;
  advance(2s);
  ask(create());
  REQUIRE(replies.size() == 2);
  CHECK(replies[1].code().empty());
}

TEST_CASE_METHOD(tunnel_world, "who says a request again while it waits is answered with it") {
  start();
  ask(create());
  replies.clear();
  db.writes.clear();
  db.conflicts_to_come = 3;
  v1::Command c;
  c.set_project("acme");
  c.mutable_caller()->set_method("UpdateTunnel");
  c.mutable_caller()->set_request_id("r2");
  c.mutable_caller()->set_digest("d2");
  c.mutable_update_tunnel()->set_name("web");
  c.mutable_update_tunnel()->add_update_mask("enabled");
  SECTION("it is carried out once") {
    for (int i = 0; i < 3; ++i) ask(c);
    CHECK(replies.empty());
    advance(2s, 10ms);
    REQUIRE(replies.size() == 3);
    for (const auto& r : replies) {
      CHECK(r.code().empty());
      CHECK(r.row().tunnel().generation() == 2);
    }
    CHECK(std::count(db.writes.begin(), db.writes.end(), "tunnel_spec") == 1);
  }
  SECTION("it has been carried out by another owner: all get its answer") {
    for (int i = 0; i < 2; ++i) ask(c);
    v1::Reply first;
    first.set_revision(77);
    db.requests["acme/UpdateTunnel/r2"] = first;
    db.digests["acme/UpdateTunnel/r2"] = "d2";
    advance(2s, 10ms);
    REQUIRE(replies.size() == 2);
    for (const auto& r : replies) CHECK(r.revision() == 77);
    CHECK(row().generation() == 1);
  }
  SECTION("after its caller's deadline it is not carried out, and counted") {
    c.set_patience_ms(1);
    ask(c);
    CHECK(replies.empty());
    advance(2s, 10ms);
    REQUIRE(replies.size() == 1);
    CHECK(replies[0].code() == "unavailable");
    CHECK(row().generation() == 1);
    CHECK(count.values["warren_bus_dropped_total{expired}"] == 1);
  }
}

TEST_CASE_METHOD(tunnel_world, "an owner that was superseded answers not_owner and ends") {
  start();
  db.epochs[0] = 2;
  ask(create());
  REQUIRE(replies.size() == 1);
  CHECK(replies[0].code() == "not_owner");
  CHECK(db.writes.empty());
}

TEST_CASE_METHOD(tunnel_world, "a host name that another tunnel holds is refused, naming it, and nothing is stored") {
  auto& c = *db.rows["hostname_claim/web.example.com"].mutable_hostname_claim();
  c.set_hostname("web.example.com");
  c.set_tunnel_uid("somebody");
  start();
  ask(create());
  REQUIRE(replies.size() == 1);
  CHECK(replies[0].code() == "already_exists");
  CHECK(replies[0].field() == "hostnames");
  CHECK_FALSE(db.rows.contains("tunnel/acme/web"));
  CHECK(db.audit.empty());
}

TEST_CASE_METHOD(tunnel_world, "a creation presumes that there is no row, and an insert is what tells") {
  look = tunnel::first_look::absent;
  SECTION("there is none: nothing is read") {
    start();
    ask(create());
    REQUIRE(replies.size() == 1);
    CHECK(replies[0].code().empty());
    CHECK(db.loads == 0);
    attached();
    gateways_acknowledge(1);
    CHECK(row().programmed_generation() == 1);
    CHECK(db.loads == 0);
  }
  SECTION("there is one: it is read, and stays as it is") {
    look = tunnel::first_look::read;
    start();
    ask(create());
    stop();
    const auto before = row();
    look = tunnel::first_look::absent;
    start();
    auto another = create();
    another.mutable_caller()->set_request_id("r2");
    another.mutable_create_tunnel()->mutable_spec()->set_hostnames(0, "else.example.com");
    ask(another);
    advance(1s, 10ms);
    REQUIRE(replies.size() == 2);
    CHECK(replies[1].code() == "already_exists");
    CHECK(row().SerializeAsString() == before.SerializeAsString());
  }
  SECTION("the insert was refused for something else: what is there is read before the next command") {
    auto& c = *db.rows["hostname_claim/web.example.com"].mutable_hostname_claim();
    c.set_hostname("web.example.com");
    c.set_tunnel_uid("somebody");
    start();
    ask(create());
    REQUIRE(replies.size() == 1);
    CHECK(replies[0].code() == "already_exists");
    CHECK(replies[0].field() == "hostnames");
    CHECK(db.loads == 1);
  }
  SECTION("the database is away, and its row is read when it is back") {
    look = tunnel::first_look::read;
    start();
    ask(create());
    stop();
    db.away = true;
    look = tunnel::first_look::absent;
    start();
    auto again = create();
    again.mutable_caller()->set_request_id("r2");
    ask(again);
    REQUIRE(replies.size() == 2);
    CHECK(replies[1].code() == "unavailable");
    db.away = false;
    advance(5s, 100ms);
    ask(again);
    advance(1s, 100ms);
    REQUIRE(replies.size() == 3);
    CHECK(replies[2].code() == "already_exists");
    CHECK(db.loads > 0);
  }
}
