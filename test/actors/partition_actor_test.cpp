// test/actors/partition_actor_test.cpp -- a partition on virtual time: what reaches which entity, what is dropped,
// who is let go and who comes back.
#include <catch2/catch.hpp>

#include <set>
#include <sstream>
#include <stdexcept>

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "actors/core/conditions.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"
#include "actors/partition/actor.hpp"
#include "test/support/actor_fixture.hpp"
#include "test/support/rows.hpp"

using namespace warren;

namespace {

/// The store in memory, and what the partition asks of it that an entity does not.
struct partition_store {
  test::memory_store* db = nullptr;
  std::vector<v1::Row> rivals;   ///< what adopt_rivals answers once
  int loads = 0, adoptions = 0, entity_loads = 0;
  bool hangs = false;            ///< entities are read when `answer_held_back` says so
  bool saves_hang = false;       ///< the same of saves
  std::vector<std::function<void()>> held_back;

  void answer_held_back() {
    for (auto& answer : std::exchange(held_back, {})) answer();
  }
  /// Answers later, from outside of the actor.
  template <class Answer, class Question> caf::result<Answer> hold(store_actor::pointer self, const Question& q, auto answer) {
    auto typed = self->make_response_promise<caf::typed_response_promise<Answer>>();
    const caf::response_promise& promise = typed;
    held_back.push_back([=, source = promise.source(), id = promise.id(), me = caf::strong_actor_ptr{self->ctrl()}] {
      source->enqueue(me, id.response_id(), caf::make_message(Answer{answer(q)}), nullptr);
    });
    return typed;
  }
};
store_actor::behavior_type partition_store_actor(store_actor::pointer self, partition_store* s) {
  return {
      [self, s](const save_request& q) -> caf::result<save_result> {
        if (!s->saves_hang) return s->db->save(q);
        return s->hold<save_result>(self, q, [s](const auto& held) { return s->db->save(held); });
      },
      [self, s](const load_entity& q) -> caf::result<loaded> {
        ++s->entity_loads;
        if (!s->hangs) return s->db->load(q);
        return s->hold<loaded>(self, q, [s](const auto& held) { return s->db->load(held); });
      },
      [s](const load_partition& q) {
        ++s->loads;
        return s->db->load_all(q.partition);
      },
      [s](const find_answer& q) { return s->db->find(q); },
      [s](const load_naming& q) {
        if (s->db->away) return loaded{.error = "the database is away"};
        return s->db->load(q);
      },
      [s](const adopt_rivals&) {
        ++s->adoptions;
        if (s->db->away) return loaded{.error = "the database is away"};
        return loaded{.rows = std::exchange(s->rivals, {})};
      },
      [](const fetch_changes&) { return changes{}; },
  };
}

struct partition_world : test::actor_fixture {
  partition_store store{&db};
  partition_actor partition;
  partition_id id = partition_of("acme", 4);
  bool poison = false;  ///< every transition of an entity throws
  partition::partition_context::class_answer default_class{true, true, {}};
  revision_t seen = 0;
  bool warm = true;     ///< the replica
  bool trails = false;  ///< … has not seen what the partition's former owner wrote
  std::ostringstream log;
  std::shared_ptr<spdlog::logger> logger_before = spdlog::default_logger();

  partition_world() {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_st>(log);
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  }
  ~partition_world() { spdlog::set_default_logger(logger_before); }

  void start(partition_id which) {
    partition::partition_context c;
    c.entity = context({}, which, 1);
    c.entity.store = spawn(partition_store_actor, &store);
    c.entity.fresh_uid = [this] {
      if (poison) throw std::runtime_error{"poisoned"};
      return "uid" + std::to_string(++uids);
    };
    c.partitions = 4;
    c.started_steady_ms = steady_ms();
    c.find_class = [this](const std::string&) { return default_class; };
    c.seen_revision = [this](partition_id) { return seen; };
    c.offline_connectors = [this](partition_id, const std::pair<std::string, std::string>& after, std::size_t limit) {
      using names = partition::partition_context::names;
      if (!warm) return std::optional<names>{};
      names out;
      for (const auto& [k, r] : db.rows) {
        if (!r.has_connector() || r.connector().online() || r.connector().session() == 0) continue;
        const std::pair<std::string, std::string> name{r.connector().project(), r.connector().name()};
        if (name > after && out.size() < limit) out.push_back(name);
      }
      return std::optional{out};
    };
    c.knows_connector = [this](partition_id, revision_t, const std::pair<std::string, std::string>& k) -> std::optional<bool> {
      if (!warm || trails) return std::nullopt;
      return db.rows.contains("connector/" + k.first + "/" + k.second);
    };
    partition = spawn(partition::actor, std::move(c));
  }
  void start() { start(id); }

  void on_bus(std::string subject, std::string payload, std::string reply_to = "") {
    self->send(partition, bus_message{std::move(subject), std::move(payload), std::move(reply_to)});
    run();
  }
  void ask(const v1::Command& c, std::string reply_to = "inbox") {
    on_bus(bus::api_subject(id), c.SerializeAsString(), std::move(reply_to));
  }
  std::vector<v1::Reply> replies(const std::string& to = "inbox") const {
    std::vector<v1::Reply> out;
    for (const auto& p : bus.published)
      if (p.subject == to) {
        out.emplace_back();
        REQUIRE(out.back().ParseFromString(p.payload));
      }
    return out;
  }
  long published(const std::string& subject) const {
    return std::count_if(bus.published.begin(), bus.published.end(), [&](const auto& p) { return p.subject == subject; });
  }
  static v1::Command create_tunnel(const std::string& name = "web", const std::string& project = "acme") {
    v1::Command c;
    c.set_project(project);
    c.mutable_caller()->set_method("CreateTunnel");
    auto& t = *c.mutable_create_tunnel();
    t.set_name(name);
    t.mutable_spec()->add_hostnames(name + ".example.com");
    t.mutable_spec()->set_enabled(true);
    t.mutable_spec()->set_gateway_class("default");
    auto* r = t.mutable_spec()->add_rules();
    r->set_path_prefix("/");
    r->set_connector("home");
    r->set_target("http://localhost:8080");
    return c;
  }
  static v1::Command create_connector(const std::string& name = "home") {
    v1::Command c;
    c.set_project("acme");
    c.mutable_caller()->set_method("CreateConnector");
    c.mutable_create_connector()->set_name(name);
    c.mutable_create_connector()->mutable_spec()->set_class_("default");
    c.mutable_create_connector()->mutable_spec()->set_lease_duration_ms(30'000);
    return c;
  }
  v1::TunnelRow tunnel(const std::string& name = "web") const { return db.rows.at("tunnel/acme/" + name).tunnel(); }
  double dropped(const std::string& why) { return count.values["warren_bus_dropped_total{" + why + "}"]; }
  int logged(const std::string& what) const {
    int n = 0;
    const auto text = log.str();
    for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
  }
  /// An offline connector that nobody has woken: made after the start, which wakes all that there are here.
  void sleeping(const std::string& name) {
    auto row = rows::connector("acme", name, 1, id);
    row.set_online(false);
    row.set_session(1);
    row.set_session_token_hash(std::string(64, 'f'));
    row.set_public_key(std::string(64, 'a'));
    db.rows["connector/acme/" + name] = rows::row(row);
  }
  void hello(const std::string& name, const std::string& reply_to = "agent") {
    on_bus(bus::hello_subject(id, "acme", bus::kind_connector, name), challenge(), reply_to);
  }
  void beat(const std::string& name, const std::string& reply_to = "") {
    busv1::Heartbeat b;
    b.set_version(1);
    b.set_session(7);
    b.set_token(std::string(64, 'e'));
    b.set_digest(protocol::report_digest({}, std::vector<busv1::TargetState>{}));
    on_bus(bus::heartbeat_subject(id, "acme", bus::kind_connector, name), b.SerializeAsString(), reply_to);
  }
  std::vector<busv1::HelloReply> greeted(const std::string& to = "agent") const {
    std::vector<busv1::HelloReply> out;
    for (const auto& p : bus.published)
      if (p.subject == to) {
        out.emplace_back();
        REQUIRE(out.back().ParseFromString(p.payload));
      }
    return out;
  }
  std::string challenge() const {
    busv1::HelloRequest hello;
    hello.set_version(1);
    hello.set_nonce(std::string(16, 'n'));
    return hello.SerializeAsString();
  }
};

}  // namespace

TEST_CASE_METHOD(partition_world, "commands over the bus are answered where the asker waits") {
  start();
  for (const auto& subject : {bus::api_subject(id), bus::ack_subject(id), bus::hello_wildcard(id), bus::heartbeat_wildcard(id),
                              bus::event_wildcard(id)})
    CHECK(std::count(bus.subscribed.begin(), bus.subscribed.end(), subject) == 1);
  ask(create_tunnel());
  REQUIRE(replies().size() == 1);
  CHECK(replies()[0].code().empty());
  CHECK(replies()[0].row().tunnel().uid() == tunnel().uid());
  CHECK(replies()[0].partition() == id);
  ask(create_tunnel());
  CHECK(replies().back().code() == "already_exists");
  ask(create_connector());
  CHECK(replies().back().row().connector().name() == "home");
  ask(create_tunnel("quiet"), "");  // nobody waits: done all the same
  CHECK(db.rows.contains("tunnel/acme/quiet"));
  CHECK(replies("").empty());
}

TEST_CASE_METHOD(partition_world, "what belongs elsewhere is never activated here") {
  std::string foreign = "other";
  for (int i = 0; partition_of(foreign, 4) == id; ++i) foreign = "other" + std::to_string(i);
  start();
  ask(create_tunnel("web", foreign));
  CHECK(replies().back().code() == "not_owner");
  v1::Command gateway;
  gateway.mutable_create_gateway()->set_name("gw-a");
  ask(gateway);
  CHECK(replies().back().code() == "invalid");
  ask(create_tunnel("we/b"));
  CHECK(replies().back().code() == "invalid");
  CHECK(replies().back().field() == "name");
  on_bus(bus::hello_subject(id, foreign, bus::kind_connector, "home"), challenge(), "agent");
  on_bus(bus::hello_subject(id, "acme", bus::kind_peer, "home"), challenge(), "agent");
  CHECK(replies("agent").empty());
  CHECK(dropped("foreign") == 2);
  CHECK(db.rows.empty());
  CHECK(store.entity_loads == 0);
}

TEST_CASE_METHOD(partition_world, "the reserved partition holds gateways and classes, and nothing else") {
  id = 4;
  start(4);
  CHECK(store.loads == 1);  // adopts what rivals wrote while nobody owned it
  CHECK(bus.subscribed.size() == 2);
  v1::Command gateway;
  gateway.mutable_create_gateway()->set_name("gw-a");
  gateway.mutable_create_gateway()->mutable_spec()->set_class_("default");
  ask(gateway);
  REQUIRE(replies().size() == 1);
  CHECK(replies()[0].row().gateway().class_() == "default");
  CHECK(db.rows.contains("gateway/gw-a"));
  gateway.mutable_create_gateway()->set_name("no label");
  ask(gateway);
  CHECK(replies().back().code() == "invalid");
  gateway.mutable_create_gateway()->set_name("");
  ask(gateway);
  CHECK(replies().back().code() == "invalid");
  ask(create_tunnel());
  CHECK(replies().back().code() == "not_owner");
  on_bus(bus::hello_subject(4, "acme", bus::kind_connector, "home"), challenge(), "agent");
  CHECK(dropped("foreign") == 1);
}

TEST_CASE_METHOD(partition_world, "garbage is counted, answered where somebody waits, and logged once a second") {
  start();
  log.str("");
  ask(create_tunnel());  // good messages in between change nothing
  for (int i = 0; i < 1000; ++i) on_bus(bus::api_subject(id), "\xff\xff\xff");
  on_bus(bus::api_subject(id), "\xff\xff\xff", "garbled");
  REQUIRE(replies("garbled").size() == 1);
  CHECK(replies("garbled")[0].code() == "invalid");
  CHECK(dropped("garbage") == 1001);
  CHECK(logged("dropped a message") == 1);
  advance(1100ms);
  on_bus(bus::ack_subject(id), "nonsense");
  CHECK(logged("dropped a message") == 2);
  CHECK(logged("1000 more") == 1);
  CHECK(dropped("garbage") == 1002);
  auto ack = rows::ack("gw-a", 1, "caught_up", 1, id + 1);
  on_bus(bus::ack_subject(id), ack.SerializeAsString());
  CHECK(dropped("field") == 1);
  on_bus("warren.v1.api." + std::to_string(id + 1), "x");
  on_bus("some\x1b[2J.where", "x");
  CHECK(dropped("subject") == 2);
  on_bus(bus::heartbeat_subject(id, "acme", bus::kind_connector, "home"), std::string(limits::agent_message_bytes_max + 1, 'x'));
  CHECK(dropped("oversized") == 1);
  CHECK(logged("\x1b") == 0);
}

TEST_CASE_METHOD(partition_world, "how long a caller waits counts from when its command arrives, on the owner's own clock") {
  start();
  auto c = create_tunnel();
  c.set_patience_ms(1);
  ask(c);
  CHECK(replies().size() == 1);
  CHECK(dropped("expired") == 0);
  CHECK_FALSE(db.rows.empty());
  c.set_patience_ms(-1);
  ask(c);
  REQUIRE(replies().size() == 2);
  CHECK(replies().back().field() == "patience_ms");
}

TEST_CASE_METHOD(partition_world, "what an agent says reaches its connector") {
  start();
  auto c = create_connector();
  c.mutable_caller()->set_method("EnrolConnector");
  v1::Command enrol;
  enrol.set_project("acme");
  enrol.mutable_enrol_connector()->set_name("home");
  enrol.mutable_enrol_connector()->set_public_key(std::string(64, 'a'));
  *enrol.mutable_enrol_connector()->mutable_spec() = c.create_connector().spec();
  ask(enrol);
  REQUIRE(replies().back().code().empty());
  on_bus(bus::hello_subject(id, "acme", bus::kind_connector, "home"), challenge(), "agent");
  REQUIRE(published("agent") == 1);
  busv1::HelloReply reply;
  REQUIRE(reply.ParseFromString(bus.published.back().subject == "agent" ? bus.published.back().payload : ""));
  CHECK(reply.challenge().size() == 32);
}

TEST_CASE_METHOD(partition_world, "a name that nobody has wakes nobody, however often it is said") {
  start();
  const auto actors = sys.registry().running();
  for (int n = 0; n < 1000; ++n) hello("m" + std::to_string(n));
  CHECK(store.entity_loads == 0);
  CHECK(sys.registry().running() == actors);
  CHECK(dropped("unknown") == 1000);
  const auto answers = greeted();
  REQUIRE(answers.size() == 1000);
  CHECK(answers.back().error() == "not_found");
  CHECK(answers.back().retry_after_ms() == 10'000);
  on_bus(bus::hello_subject(id, "acme", bus::kind_connector, "m"), "\xff\xff", "garbled");
  CHECK(published("garbled") == 0);
  hello("m0", "");  // nobody waits
  CHECK(greeted().size() == 1000);

  // The agent of a connector that was deleted learns so from its next hello; not more than a few in a second.
  for (int n = 0; n < 1000; ++n) beat("m" + std::to_string(n));
  CHECK(published(bus::command_subject("acme", bus::kind_connector, "m0")) == 1);
  long told = 0;
  for (const auto& p : bus.published) told += p.subject.starts_with("warren.v1.cmd.");
  CHECK(told == static_cast<long>(limits::strangers_told_max));
  busv1::AgentCommand again;
  REQUIRE(again.ParseFromString(bus.published.back().payload));
  CHECK(again.has_hello_again());
  CHECK(again.session() == 7);
  advance(1s);
  beat("m5", "reply");
  CHECK(published("reply") == 1);
  CHECK(store.entity_loads == 0);

  ask(create_connector("m1"));
  REQUIRE(replies().back().code().empty());
  hello("m1", "first");
  REQUIRE(greeted("first").size() == 1);
  CHECK(greeted("first")[0].error() == "failed_precondition");
}

TEST_CASE_METHOD(partition_world, "a sleeping connector is read once, a few at a time, and hears what was said meanwhile") {
  constexpr auto many = limits::agent_wakes_at_a_time + 6;
  start();
  for (std::size_t n = 0; n < many; ++n) sleeping("home-" + std::to_string(n));
  store.entity_loads = 0;
  store.hangs = true;
  const auto actors = sys.registry().running();
  for (std::size_t n = 0; n < many; ++n) {
    hello("home-" + std::to_string(n), "agent-" + std::to_string(n));
    beat("home-" + std::to_string(n), "beat-" + std::to_string(n));
  }
  CHECK(store.entity_loads == static_cast<int>(limits::agent_wakes_at_a_time));
  CHECK(sys.registry().running() == actors);  // nobody is woken before it is read
  while (!store.held_back.empty()) {
    store.answer_held_back();
    run();
  }
  CHECK(store.entity_loads == static_cast<int>(many));
  for (std::size_t n = 0; n < many; ++n) {
    const auto answers = greeted("agent-" + std::to_string(n));
    REQUIRE(answers.size() == 1);
    CHECK(answers[0].challenge().size() == 32);
    CHECK(published("beat-" + std::to_string(n)) == 1);  // its session is unknown: hello again
  }
  CHECK(dropped("behind") == 0);
}

TEST_CASE_METHOD(partition_world, "who finds too many waiting is told when to try again") {
  start();
  for (std::size_t n = 0; n < limits::agent_wakes_max + 3; ++n) sleeping("home-" + std::to_string(n));
  store.entity_loads = 0;
  store.hangs = true;
  for (std::size_t n = 0; n < limits::agent_wakes_max; ++n) hello("home-" + std::to_string(n), "early");
  hello("home-" + std::to_string(limits::agent_wakes_max), "late");
  REQUIRE(greeted("late").size() == 1);
  CHECK(greeted("late")[0].error() == "unavailable");
  CHECK(greeted("late")[0].retry_after_ms() == 1'000);
  beat("home-" + std::to_string(limits::agent_wakes_max + 1));
  for (std::size_t n = 0; n <= limits::agent_wake_messages_max; ++n) beat("home-0");
  CHECK(dropped("behind") == 4);  // the hello is one of the four that wait
  CHECK(store.entity_loads == static_cast<int>(limits::agent_wakes_at_a_time));
  store.hangs = false;
  store.answer_held_back();
  run();
  CHECK(greeted("early").size() == limits::agent_wakes_max);
  hello("home-" + std::to_string(limits::agent_wakes_max), "again");
  REQUIRE(greeted("again").size() == 1);
  CHECK(greeted("again")[0].error().empty());
}

TEST_CASE_METHOD(partition_world, "while the replica does not know, the database says who exists") {
  trails = true;
  start();
  sleeping("home");
  const auto actors = sys.registry().running();
  hello("home");
  hello("nobody", "stranger");
  REQUIRE(greeted().size() == 1);
  CHECK(greeted()[0].challenge().size() == 32);
  REQUIRE(greeted("stranger").size() == 1);
  CHECK(greeted("stranger")[0].error() == "not_found");
  CHECK(sys.registry().running() == actors + 1);
  sleeping("cabin");
  db.away = true;
  hello("cabin", "later");
  REQUIRE(greeted("later").size() == 1);
  CHECK(greeted("later")[0].error() == "unavailable");
  db.away = false;
  hello("cabin", "later");
  CHECK(greeted("later")[1].challenge().size() == 32);
}

TEST_CASE_METHOD(partition_world, "a flood of one agent waits for its own connector only, and its places are given back") {
  start();
  sleeping("loud");
  sleeping("calm");
  hello("loud");
  hello("calm");
  store.saves_hang = true;
  v1::Command change;
  change.set_project("acme");
  change.mutable_rotate_connector_key()->set_name("loud");
  change.mutable_rotate_connector_key()->set_public_key(std::string(64, 'b'));
  ask(change);
  REQUIRE(store.held_back.size() == 1);  // until it is answered, the connector hears nothing

  const auto place = std::make_shared<const int>(0);
  constexpr long more = 10;
  for (long n = 0; n < static_cast<long>(limits::connector_waiting_messages_max) + more; ++n)
    self->send(partition, bus_message{bus::hello_subject(id, "acme", bus::kind_connector, "loud"), challenge(), "loud", place});
  run();
  CHECK(dropped("behind") == more);
  REQUIRE(greeted("loud").size() == more);
  CHECK(greeted("loud")[0].error() == "unavailable");
  hello("calm", "calm");
  REQUIRE(greeted("calm").size() == 1);
  CHECK(greeted("calm")[0].challenge().size() == 32);
  bus.published.clear();  // answers hold their place until they are said
  CHECK(place.use_count() == 1 + static_cast<long>(limits::connector_waiting_messages_max));

  store.saves_hang = false;
  store.answer_held_back();
  run();
  CHECK(greeted("loud").size() == limits::connector_waiting_messages_max);
  bus.published.clear();
  CHECK(place.use_count() == 1);
  hello("loud", "loud");
  CHECK(greeted("loud").size() == 1);
}

TEST_CASE_METHOD(partition_world, "gateways' reports reach the tunnels that wait for them") {
  start();
  ask(create_connector());
  ask(create_tunnel());
  CHECK(tunnel().programmed_generation() == 0);
  on_bus(bus::ack_subject(id), rows::ack("gw-a", 1'000'000, "caught_up", 1, id).SerializeAsString());
  advance(10s, 100ms);
  const auto row = tunnel();
  const auto* programmed = find_condition(row.conditions(), "Programmed");
  REQUIRE(programmed != nullptr);
  INFO(programmed->ShortDebugString());
  CHECK(count.values["warren_reconcile_errors_total"] == 0);
}

TEST_CASE_METHOD(partition_world, "a tunnel that waits for gateways is not let go, however long they take") {
  start();
  ask(create_tunnel());  // a gateway refuses it, say, or is away
  ask(create_connector("web"));
  const auto loads = store.entity_loads;
  advance(2 * limits::passivate_after + 5s, 500ms);  // also when a connector of its name is
  ask(create_tunnel());
  CHECK(replies().back().code() == "already_exists");
  CHECK(store.entity_loads == loads);
  on_bus(bus::ack_subject(id), rows::ack("gw-a", 1'000'000, "caught_up", 1, id).SerializeAsString());
  CHECK(store.entity_loads == loads);
}

TEST_CASE_METHOD(partition_world, "an entity that is idle is let go and comes back from its row") {
  start();
  ask(create_connector());
  const auto loads = store.entity_loads;
  ask(create_connector());
  CHECK(store.entity_loads == loads);  // awake
  advance(limits::passivate_after + 5s, 500ms);
  ask(create_connector());
  CHECK(store.entity_loads == loads + 1);
  CHECK(replies().back().code() == "already_exists");
  CHECK(count.values["warren_reconcile_errors_total"] == 0);
}

TEST_CASE_METHOD(partition_world, "what was last heard of an agent outlasts its connector's sleep, and sleep is no takeover") {
  start();
  const auto taken_over = 1'700'000'000'000 + steady_ms();
  advance(10s, 500ms);
  auto row = rows::connector("acme", "home", 1, id);
  row.set_online(false);
  row.set_session(7);
  row.set_session_token_hash(protocol::sha256_hex(std::string(64, 'e')));
  row.set_lease_duration_ms(30'000);
  db.rows["connector/acme/home"] = rows::row(row);
  beat("home");
  const auto heard = 1'700'000'000'000 + steady_ms();
  v1::Command look;
  look.set_project("acme");
  look.mutable_caller()->set_method("GetConnector");
  look.mutable_observe_connector()->set_name("home");
  for (int n = 0; n < 3; ++n) {
    advance(30s + limits::passivate_after + 5s, 500ms);
    const auto loads = store.entity_loads;
    ask(look);
    CHECK(store.entity_loads == loads + 1);  // it has slept
    CHECK(replies().back().observed().heard_ms() == heard);
    CHECK(replies().back().observed().listening_ms() == taken_over);
  }
  SECTION("a cut from NATS ends what is known without a gap") {
    self->send(partition, bus_state{false});
    advance(1s);
    self->send(partition, bus_state{true});
    run();
    const auto again = 1'700'000'000'000 + steady_ms();
    advance(limits::passivate_after + 5s, 500ms);
    ask(look);
    CHECK(replies().back().observed().listening_ms() == again);
    CHECK(replies().back().observed().heard_ms() == heard);
  }
  SECTION("one of the same name that was made since is another") {
    v1::Command remove;
    remove.set_project("acme");
    remove.mutable_caller()->set_method("DeleteConnector");
    remove.mutable_delete_connector()->set_name("home");
    ask(remove);
    CHECK(replies().back().code().empty());
    advance(shell::absent_kept + 2s, 100ms);
    ask(create_connector());
    ask(look);
    CHECK(replies().back().observed().heard_ms() == 0);
    CHECK(replies().back().observed().listening_ms() == taken_over);
  }
}

TEST_CASE_METHOD(partition_world, "what an agent says wrongly is counted, and said at most once a second, with its field") {
  start();
  ask(create_connector());
  advance(100s, 500ms);  // longer than any line of another test is ago
  ask(create_connector());
  log.str({});
  for (int n = 0; n < 4; ++n) on_bus(bus::heartbeat_subject(id, "acme", bus::kind_connector, "home"), "\xff\xff");
  on_bus(bus::event_subject(id, "acme", bus::kind_connector, "home"), "\xff\xff");
  CHECK(dropped("garbage") == 5);
  CHECK(logged("an agent's message was dropped") == 1);
  CHECK(logged("\"connector\":\"home\"") == 1);
  CHECK(logged("\"reason\":\"garbage\"") == 1);
  advance(1s);
  busv1::Heartbeat beat;
  beat.set_version(1);
  beat.set_session(7);
  beat.set_token(std::string(64, 'e'));
  beat.set_sequence(-1);
  on_bus(bus::heartbeat_subject(id, "acme", bus::kind_connector, "home"), beat.SerializeAsString());
  CHECK(dropped("field") == 1);
  CHECK(logged("an agent's message was dropped") == 2);
  CHECK(logged("\"field\":\"sequence\"") == 1);
  CHECK(logged("\"suppressed\":4") == 1);
}

TEST_CASE_METHOD(partition_world, "a hello that cannot be understood is answered with what is wrong with it") {
  start();
  ask(create_connector());
  busv1::HelloRequest hello;
  hello.set_version(1);
  SECTION("a field") {
    hello.set_nonce("short");
    on_bus(bus::hello_subject(id, "acme", bus::kind_connector, "home"), hello.SerializeAsString(), "agent");
    REQUIRE(greeted().size() == 1);
    CHECK(greeted()[0].error() == "invalid");
    CHECK(greeted()[0].message().find("nonce: ") == 0);
    CHECK(dropped("field") == 1);
  }
  SECTION("the version") {
    hello.set_version(2);
    hello.set_nonce(std::string(16, 'n'));
    on_bus(bus::hello_subject(id, "acme", bus::kind_connector, "home"), hello.SerializeAsString(), "agent");
    REQUIRE(greeted().size() == 1);
    CHECK(greeted()[0].error() == "invalid");
    CHECK(greeted()[0].message().find("version 2") != std::string::npos);
  }
  SECTION("all of it") {
    on_bus(bus::hello_subject(id, "acme", bus::kind_connector, "home"), "\xff\xff", "agent");
    REQUIRE(greeted().size() == 1);
    CHECK(greeted()[0].error() == "invalid");
  }
  CHECK(greeted()[0].retry_after_ms() > 0);
}

TEST_CASE_METHOD(partition_world, "an entity that has gone to sleep leaves nothing behind") {
  start();
  ask(create_connector());
  ask(create_tunnel());
  const auto asleep = [&] {
    advance(2 * limits::passivate_after + 5s, 500ms);
    return caf::actor_cast<caf::actor_control_block*>(partition)->weak_refs.load();
  };
  const auto before = asleep();
  for (int n = 0; n < 3; ++n) {
    ask(create_connector());
    ask(create_tunnel());
    CHECK(asleep() == before);
  }
}

TEST_CASE_METHOD(partition_world, "who finds no row stays for the creation behind it, and is let go when none comes") {
  start();
  ask(create_connector());
  const auto before = store.entity_loads;
  ask(create_tunnel());
  advance(shell::absent_kept + 1s, 100ms);
  CHECK(store.entity_loads == before);  // a creation presumes that there is none
  CHECK(replies().back().code().empty());
  v1::Command remove;
  remove.set_project("acme");
  remove.mutable_caller()->set_method("DeleteConnector");
  remove.mutable_delete_connector()->set_name("nobody");
  ask(remove);
  CHECK(replies().back().code() == "not_found");
  const auto loads = store.entity_loads;
  ask(remove);
  CHECK(store.entity_loads == loads);
  advance(shell::absent_kept + 1s, 100ms);
  ask(remove);
  CHECK(store.entity_loads == loads + 1);
  CHECK(count.values["warren_reconcile_errors_total"] == 0);
}

TEST_CASE_METHOD(partition_world, "an entity that fails is counted, its asker told, and a fresh one goes on") {
  start();
  ask(create_tunnel());
  const auto loads = store.entity_loads;
  poison = true;
  ask(create_tunnel());
  CHECK(replies().back().code() == "internal");
  CHECK(logged("poisoned") == 1);
  CHECK(count.values["warren_reconcile_errors_total"] >= 1);
  CHECK(logged("an entity has failed") >= 1);
  poison = false;
  advance(2s);
  CHECK(store.entity_loads > loads);  // nobody had to ask
  ask(create_tunnel());
  CHECK(replies().back().code() == "already_exists");
}

TEST_CASE_METHOD(partition_world, "what a rival changed is looked at by its entity, also when the database was away") {
  start();
  ask(create_tunnel());
  ask(create_connector());
  const auto loads = store.entity_loads;
  store.rivals = {db.rows.at("tunnel/acme/web"), db.rows.at("connector/acme/home")};
  db.away = true;
  self->send(partition, adopt_rivals{});
  run();
  CHECK(store.entity_loads == loads);
  db.away = false;
  advance(1100ms);
  CHECK(store.adoptions == 2);
  CHECK(store.entity_loads == loads + 2);
  advance(10s);
  CHECK(store.adoptions == 2);
}

TEST_CASE_METHOD(partition_world, "a deleted row that a rival left wakes the entity it belongs to") {
  start();
  store.rivals = {rows::tombstone("tunnel", "acme/web", 3), rows::tombstone("attachment", "acme/home/uid/1", 3),
                  rows::tombstone("hostname_claim", "web.example.com", 3)};
  self->send(partition, adopt_rivals{});
  run();
  CHECK(store.entity_loads >= 2);
}

TEST_CASE_METHOD(partition_world, "a gateway or a class that a rival deletes or changes is looked at by whoever is awake for it") {
  start(4);
  id = 4;  // where commands are sent
  v1::Command create;
  create.mutable_caller()->set_method("CreateGateway");
  create.mutable_create_gateway()->set_name("gw-1");
  create.mutable_create_gateway()->mutable_spec()->set_class_("default");
  ask(create);
  v1::Command put;
  put.mutable_caller()->set_method("CreateConnectorClass");
  put.mutable_put_connector_class()->set_name("lan");
  put.mutable_put_connector_class()->set_create(true);
  put.mutable_put_connector_class()->mutable_spec()->add_allowed_networks("10.0.0.0/8");
  ask(put);
  REQUIRE(replies().size() == 2);
  REQUIRE(replies()[0].code().empty());
  REQUIRE(replies()[1].code().empty());
  const auto loads = store.entity_loads;
  db.rows.erase("gateway/gw-1");
  db.rows.at("connector_class/lan").mutable_connector_class()->set_allowed_networks(0, "192.168.0.0/16");
  store.rivals = {rows::tombstone("gateway", "gw-1", 3), db.rows.at("connector_class/lan"), rows::tombstone("gateway_class", "asleep", 3)};
  self->send(partition, adopt_rivals{});
  run();
  CHECK(store.entity_loads == loads + 2);  // who sleeps is not woken
  ask(create);
  CHECK(replies().back().code().empty());
  CHECK(db.rows.contains("gateway/gw-1"));
  put.mutable_caller()->set_method("UpdateConnectorClass");
  put.mutable_put_connector_class()->set_create(false);
  put.mutable_put_connector_class()->add_update_mask("allowed_networks");
  put.mutable_put_connector_class()->mutable_spec()->set_allowed_networks(0, "192.168.0.0/16");
  const auto writes = db.writes.size();
  ask(put);  // so it is already
  CHECK(replies().back().row().connector_class().allowed_networks(0) == "192.168.0.0/16");
  CHECK(db.writes.size() == writes);
}

TEST_CASE_METHOD(partition_world, "the partition is loaded when the database is back, and entities go on from their rows") {
  auto row = rows::tunnel("acme", "web", "home", 1, id);
  row.set_programmed_generation(0);
  db.rows["tunnel/acme/web"] = rows::row(row);
  db.away = true;
  start();
  advance(5s);
  CHECK(store.loads >= 5);
  CHECK(store.loads <= 200);
  db.away = false;
  advance(2s);
  const auto loads = store.loads;
  CHECK(store.entity_loads >= 1);  // the tunnel has woken its connector
  advance(10s);
  CHECK(store.loads == loads);
}

TEST_CASE_METHOD(partition_world, "a takeover and the end of a cut call offline agents, too, a few at a time") {
  constexpr std::size_t sleeping = 25;
  static_assert(2 * limits::roll_call_offline < sleeping && sleeping < 3 * limits::roll_call_offline);
  for (std::size_t n = 0; n < sleeping; ++n) {
    auto row = rows::connector("acme", "home-" + std::to_string(n), 1, id);
    row.set_online(false);
    row.set_session(1);
    row.set_session_token_hash(std::string(64, 'f'));
    db.rows["connector/acme/" + row.name()] = rows::row(row);
  }
  const auto called = [this] {
    std::set<std::string> subjects;
    for (const auto& q : bus.requested) {
      busv1::AgentCommand c;
      if (c.ParseFromString(q.payload) && c.has_report()) CHECK(subjects.insert(q.subject).second);
    }
    return subjects.size();
  };
  warm = false;
  start();
  advance(2s, 100ms);
  CHECK(called() == 0);
  warm = true;
  advance(1s, 100ms);
  CHECK(called() == limits::roll_call_offline);
  advance(2s, 100ms);
  CHECK(called() == sleeping);
  advance(20s, 100ms);
  CHECK(called() == sleeping);

  bus.requested.clear();
  self->send(partition, bus_state{false});
  advance(5s, 100ms);
  CHECK(called() == 0);
  self->send(partition, bus_state{true});
  advance(5s, 100ms);
  CHECK(called() == sleeping);
  CHECK(store.loads == 1);
}

TEST_CASE_METHOD(partition_world, "tunnels hear of a connector that appears, also when the database was away") {
  start();
  ask(create_tunnel());
  db.away = true;
  self->send(partition, connector_appeared{"acme", "home"});
  run();
  advance(3s);
  db.away = false;
  advance(3s);
  ask(create_connector());
  CHECK(replies().back().code().empty());
  CHECK(count.values["warren_reconcile_errors_total"] == 0);
}

TEST_CASE_METHOD(partition_world, "every second the partition says which revision is seen") {
  seen = 42;
  start();
  advance(5s, 100ms);
  CHECK(published(bus::revision_subject(id)) >= 5);
  busv1::Revision hint;
  for (const auto& p : bus.published)
    if (p.subject == bus::revision_subject(id)) REQUIRE(hint.ParseFromString(p.payload));
  CHECK(hint.revision() == 42);
  CHECK(hint.epoch() == 1);
  CHECK(hint.partition() == id);
  CHECK(hint.rows_size() == 0);
}

TEST_CASE_METHOD(partition_world, "a class that appears reaches connectors that were let go") {
  default_class = {true, false, {}};
  start();
  ask(create_connector());
  const auto accepted = [this] {
    return is_true(db.rows.at("connector/acme/home").connector().conditions(), "Accepted");
  };
  advance(limits::passivate_after + 5s, 500ms);
  REQUIRE_FALSE(accepted());
  default_class = {true, true, {}};
  advance(2s, 500ms);
  CHECK(accepted());
}

TEST_CASE_METHOD(partition_world, "whoever waits for an answer when the partition goes is told to ask the next owner") {
  start();
  db.away = true;
  v1::Command remove;
  remove.set_project("acme");
  remove.mutable_caller()->set_method("DeleteTunnel");
  remove.mutable_delete_tunnel()->set_name("web");
  ask(remove, "inbox.1");
  REQUIRE(replies("inbox.1").empty());
  db.away = false;
  ask(create_tunnel("other"), "inbox.2");
  REQUIRE(replies("inbox.2").size() == 1);
  caf::anon_send_exit(partition, caf::exit_reason::user_shutdown);
  run();
  REQUIRE(replies("inbox.1").size() == 1);
  CHECK(replies("inbox.1")[0].code() == "not_owner");
  CHECK(replies("inbox.2").size() == 1);
}
