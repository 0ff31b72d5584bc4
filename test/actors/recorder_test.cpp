// test/actors/recorder_test.cpp -- what real shells do is recorded, saved without secrets, and comes out the same when
// it is replayed.
#include <catch2/catch.hpp>

#include <atomic>
#include <thread>

#include <fmt/format.h>
#include <openssl/evp.h>

#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"
#include "actors/partition/actor.hpp"
#include "actors/replay/redact.hpp"
#include "actors/replay/replay.hpp"
#include "services/telemetry/recorder.hpp"
#include "test/support/actor_fixture.hpp"

using namespace warren;

namespace {

/// An agent's key.
struct key_pair {
  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key{nullptr, &EVP_PKEY_free};
  std::string private_raw, public_hex;
  explicit key_pair(char byte) : private_raw(32, byte) {
    key.reset(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr,
                                           reinterpret_cast<const unsigned char*>(private_raw.data()), 32));
    std::string raw(32, '\0');
    std::size_t size = raw.size();
    EVP_PKEY_get_raw_public_key(key.get(), reinterpret_cast<unsigned char*>(raw.data()), &size);
    public_hex = protocol::hex(raw);
  }
  std::string sign(std::string_view text) const {
    std::string out(64, '\0');
    std::size_t size = out.size();
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
    EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key.get());
    EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(out.data()), &size,
                   reinterpret_cast<const unsigned char*>(text.data()), text.size());
    return out;
  }
};

/// A project's partition and the reserved one, with everything that happens in them recorded.
struct recorded_world : test::actor_fixture {
  static constexpr std::size_t megabyte = 1024 * 1024;
  static constexpr const char* connector_name = "home";
  key_pair key{7};
  std::unique_ptr<telemetry::flight_recorder> record;
  partition_actor partition, reserved;
  std::string token;
  std::int64_t session = 0, sequence = 0, held = 0;
  std::vector<std::string> addresses{"192.0.2.7:7000"};
  std::vector<std::string> secrets;  ///< everything that was one at some time
  int requests = 0;

  void start(std::size_t bytes = 48 * megabyte) {
    record = std::make_unique<telemetry::flight_recorder>(bytes, &count);
    bus.answer = [this](const bus_request& q) { return agent(q); };
    dials.answer = [](const dial_request&) { return dial_result{dial_result::outcome::answered}; };
    partition = spawn_partition(0);
    reserved = spawn_partition(1);
  }
  partition_actor spawn_partition(partition_id id) {
    partition::partition_context c;
    c.entity = context({}, id, 1);
    c.entity.record = record.get();
    c.entity.incarnation = 1;
    c.entity.secret = [this](std::size_t n) {
      secrets.push_back(fmt::format("{:a<{}}", fmt::format("secret{}", secrets.size()), n));
      secrets.push_back(protocol::hex(secrets.back()));  // as a token
      return secrets[secrets.size() - 2];
    };
    c.partitions = 1;
    c.started_steady_ms = steady_ms();
    c.find_class = [](const std::string& name) {
      return partition::partition_context::class_answer{true, name == "default", {"192.0.2.0/24"}};
    };
    c.seen_revision = [this](partition_id p) { return db.revisions[p]; };
    return spawn(partition::actor, std::move(c));
  }

  v1::Reply ask(v1::Command c, bool in_reserved = false) {
    if (!in_reserved) c.set_project("acme");
    c.mutable_caller()->set_request_id(fmt::format("r{}", ++requests));
    c.mutable_caller()->set_digest(c.caller().request_id());
    const auto inbox = fmt::format("inbox.{}", requests);
    self->send(in_reserved ? reserved : partition,
               bus_message{bus::api_subject(in_reserved ? 1 : 0), c.SerializeAsString(), inbox});
    advance(3s);
    v1::Reply r;
    for (const auto& p : bus.published)
      if (p.subject == inbox) r.ParseFromString(p.payload);
    return r;
  }
  void gateway_acknowledges() {
    busv1::GatewayAck ack;
    ack.set_version(1);
    ack.set_incarnation(1);
    ack.set_instance(1);
    ack.set_gateway("gw-a");
    ack.set_class_("default");
    ack.set_stream(1);
    ack.set_state("caught_up");
    ack.set_acknowledged(db.revisions[0]);
    self->send(partition, ack);
    advance(100ms);
  }
  void says(const std::string& subject, const std::string& payload, const std::string& reply_to = "") {
    self->send(partition, bus_message{subject, payload, reply_to});
    advance(100ms);
  }
  /// Its answer may wait for a save that is tried again.
  busv1::HelloReply hello_asks(const busv1::HelloRequest& q) {
    const auto inbox = fmt::format("hello.{}", ++requests);
    says(bus::hello_subject(0, "acme", "connector", connector_name), q.SerializeAsString(), inbox);
    for (int i = 0; i < 30; ++i) {
      for (const auto& p : bus.published) {
        busv1::HelloReply r;
        if (p.subject == inbox && r.ParseFromString(p.payload)) return r;
      }
      advance(100ms);
    }
    FAIL("nobody answers a hello");
    return {};
  }
  /// Both halves of a hello, signed by `with`.
  busv1::HelloReply hello(const key_pair& with) {
    busv1::HelloRequest first;
    first.set_version(1);
    first.set_nonce(fmt::format("nonce{:011}", ++sequence));
    auto q = first;
    q.set_challenge(hello_asks(first).challenge());
    q.set_agent_version("test");
    q.set_connector_uid(db.rows.at("connector/acme/home").connector().uid());
    for (const auto& a : addresses) q.mutable_addressing()->add_addresses(a);
    q.set_signature(with.sign(protocol::hello_to_sign("acme", "connector", connector_name, q)));
    auto r = hello_asks(q);
    if (r.error().empty()) {
      session = r.session();
      token = r.token();
      held = r.attachments().generation();
      secrets.push_back(token);
      secrets.push_back(protocol::sha256_hex(token));
    }
    return r;
  }
  void heartbeat() {
    busv1::Heartbeat b;
    b.set_version(1);
    b.set_session(session);
    b.set_token(token);
    b.set_sequence(++sequence);
    b.set_sent_at_ms(1'700'000'000'000 + steady_ms());
    b.set_attached_generation(held);
    busv1::Addressing a;
    for (const auto& each : addresses) a.add_addresses(each);
    b.set_digest(protocol::report_digest(a, std::vector<busv1::TargetState>{}));
    says(bus::heartbeat_subject(0, "acme", "connector", connector_name), b.SerializeAsString());
  }
  bus_reply agent(const bus_request& q) {
    busv1::AgentCommand c;
    REQUIRE(c.ParseFromString(q.payload));
    if (c.has_attach() && c.attach().from_generation() == held) held = c.attach().generation();
    if (c.has_detach() && c.detach().from_generation() == held) held = c.detach().generation();
    if (c.has_set()) held = c.set().generation();
    busv1::CommandReply r;
    r.set_version(1);
    r.set_session(c.session());
    r.set_token(token);
    r.set_command_id(c.command_id());
    r.set_attached_generation(held);
    return {"", r.SerializeAsString()};
  }

  void enrol() {
    v1::Command c;
    c.mutable_caller()->set_method("EnrolConnector");
    c.mutable_enrol_connector()->set_name(connector_name);
    c.mutable_enrol_connector()->set_public_key(key.public_hex);
    c.mutable_enrol_connector()->mutable_spec()->set_class_("default");
    c.mutable_enrol_connector()->mutable_spec()->set_lease_duration_ms(30'000);
    REQUIRE(ask(std::move(c)).code().empty());
  }
  void create_tunnel(const std::string& name) {
    v1::Command c;
    c.mutable_caller()->set_method("CreateTunnel");
    c.mutable_create_tunnel()->set_name(name);
    auto& spec = *c.mutable_create_tunnel()->mutable_spec();
    spec.add_hostnames(name + ".example.com");
    spec.set_enabled(true);
    spec.set_gateway_class("default");
    auto& r = *spec.add_rules();
    r.set_path_prefix("/");
    r.set_connector(connector_name);
    r.set_target("http://localhost:8080");
    REQUIRE(ask(std::move(c)).code().empty());
  }
  void delete_tunnel(const std::string& name) {
    v1::Command c;
    c.mutable_caller()->set_method("DeleteTunnel");
    c.mutable_delete_tunnel()->set_name(name);
    CHECK(ask(std::move(c)).code().empty());
  }
  void create_gateway() {
    v1::Command c;
    c.mutable_caller()->set_method("CreateGateway");
    c.mutable_create_gateway()->set_name("gw-a");
    c.mutable_create_gateway()->mutable_spec()->set_class_("default");
    CHECK(ask(std::move(c), true).code().empty());
  }
  /// A life with everything in it: an agent that comes, is superseded and goes, conflicts, an outage, deletions.
  void live() {
    create_gateway();
    enrol();
    CHECK(hello(key_pair{9}).error() == "permission_denied");  // somebody else's key
    REQUIRE(hello(key).error().empty());
    for (const auto* name : {"web", "api", "ssh"}) create_tunnel(name);
    gateway_acknowledges();
    for (int i = 0; i < 20; ++i) heartbeat();
    db.conflicts_to_come = 3;
    addresses = {"192.0.2.8:7000"};
    REQUIRE(hello(key).error().empty());
    heartbeat();
    db.away = true;
    v1::Command c;
    c.mutable_caller()->set_method("DeleteTunnel");
    c.mutable_delete_tunnel()->set_name("ssh");
    CHECK(ask(std::move(c)).code() == "unavailable");
    db.away = false;
    advance(2s);
    delete_tunnel("api");
    gateway_acknowledges();
    for (int i = 0; i < 30; ++i) {
      gateway_acknowledges();
      heartbeat();
    }
    advance(40s);  // silence
    REQUIRE(hello(key).error().empty());
  }

  std::vector<v1::Recording> saved_recordings(bool redacted = true) {
    replay::redaction secretless{"a key that is forgotten"};
    std::vector<v1::Recording> out;
    for (const auto& which : record->stretches()) {
      auto r = record->unpack(which);
      REQUIRE(r);
      r->set_format(replay::format_known);
      if (redacted) secretless.apply(*r);
      out.push_back(std::move(*r));
    }
    return out;
  }
};

void replay_all(replay::replayer& again, const std::vector<v1::Recording>& all) {
  for (const auto& r : all) REQUIRE(again.add(r) == "");
  if (again.diverged()) {
    const auto& d = *again.diverged();
    FAIL(d.entity << " step " << d.step << ": " << d.what << "\nbefore:\n" << d.before << "\nevent:\n" << d.event
                  << "\nafter:\n" << d.after << "\n" << d.expected);
  }
}

v1::Step* step_where(std::vector<v1::Recording>& all, const std::function<bool(const v1::Run&, const v1::Step&)>& fits) {
  for (auto& r : all)
    for (auto& run : *r.mutable_runs())
      for (auto& step : *run.mutable_steps())
        if (fits(run, step)) return &step;
  return nullptr;
}

}  // namespace

TEST_CASE_METHOD(recorded_world, "what the shells did comes out the same when it is replayed, with its secrets and without") {
  start();
  live();
  for (const bool redacted : {false, true}) {
    replay::replayer again;
    std::map<std::string, int> kinds, events;
    again.on_step = [&](const replay::shown_step& s) {
      ++kinds[s.run.kind()];
      const auto& step = s.run.steps(s.index);
      ++events[step.outcome()];
      if (step.connector().has_hello()) ++events["hello"];
      if (step.noted()) ++events["noted"];
    };
    replay_all(again, saved_recordings(redacted));
    CHECK(kinds["tunnel"] > 20);
    CHECK(kinds["connector"] > 80);
    CHECK(kinds["gateway"] > 1);
    CHECK(events["saved"] > 15);
    CHECK(events["conflict"] >= 3);
    CHECK(events["unavailable"] >= 1);
    CHECK(events["hello"] == 8);
    CHECK(events["noted"] >= 3);
    CHECK(again.counted().unfinished == 0);
    CHECK(again.counted().digests > 40);
  }
  CHECK(count.values["warren_recorder_left_out_total"] == 0);
}

TEST_CASE_METHOD(recorded_world, "nothing secret is in what is saved") {
  start();
  live();
  secrets.push_back(key.public_hex);
  secrets.push_back(key.private_raw);
  REQUIRE(secrets.size() > 10);
  std::string raw, redacted;
  for (const auto& r : saved_recordings(false)) raw += r.SerializeAsString();
  for (const auto& r : saved_recordings(true)) redacted += r.SerializeAsString();
  int held_before = 0;
  for (const auto& s : secrets) {
    if (raw.find(s) != std::string::npos) ++held_before;
    CHECK(redacted.find(s) == std::string::npos);
  }
  CHECK(held_before > 8);  // they were there to be taken out
  CHECK(redacted.find("web.example.com") != std::string::npos);
}

TEST_CASE_METHOD(recorded_world, "a ring that is full drops its oldest, and everything that is left can be replayed") {
  start(768 * 1024);
  enrol();
  REQUIRE(hello(key).error().empty());
  for (const auto* name : {"web", "api"}) create_tunnel(name);
  for (int i = 0; i < 4000; ++i) {
    heartbeat();
    if (i % 50 == 0) gateway_acknowledges();
  }
  CHECK(record->bytes_used() <= 768 * 1024);
  const auto all = saved_recordings();
  replay::replayer again;
  replay_all(again, all);
  CHECK(again.counted().continued > 1);  // from one segment into the next, by state
  CHECK(again.counted().steps > 1000);
  std::map<std::uint64_t, std::uint64_t> first_kept;  // of each life
  for (const auto& r : all)
    for (const auto& run : r.runs()) first_kept.try_emplace(run.life(), run.first_step());
  CHECK(std::any_of(first_kept.begin(), first_kept.end(), [](const auto& each) { return each.second > 1000; }));
}

TEST_CASE_METHOD(recorded_world, "a heartbeat takes few bytes, and memory is not taken before it is needed") {
  start();
  enrol();
  REQUIRE(hello(key).error().empty());
  for (int i = 0; i < 10; ++i) heartbeat();
  const auto before = record->bytes_used();
  constexpr int heartbeats = 200;
  for (int i = 0; i < heartbeats; ++i) heartbeat();
  CHECK((record->bytes_used() - before) / heartbeats <= 64);
}

TEST_CASE_METHOD(recorded_world, "whoever changed a recording is found out, at the step that it concerns") {
  start();
  live();
  auto all = saved_recordings();
  const auto replayed = [&] {
    replay::replayer again;
    for (const auto& r : all) REQUIRE(again.add(r) == "");
    REQUIRE(again.diverged());
    return *again.diverged();
  };
  SECTION("another outcome") {
    auto* step = step_where(all, [](const auto& run, const auto& s) { return run.kind() == "tunnel" && s.outcome() == "saved"; });
    REQUIRE(step != nullptr);
    step->set_outcome("done");
    const auto d = replayed();
    CHECK(d.entity.starts_with("tunnel acme/"));
    CHECK(d.what == "replaying saves tunnel_spec; recorded was no save");
    CHECK(d.sequence == step->sequence());
    CHECK_FALSE(d.event.empty());
  }
  SECTION("another event") {
    auto* step = step_where(all, [](const auto&, const auto& s) { return s.connector().has_heartbeat() && s.has_digest(); });
    REQUIRE(step != nullptr);
    step->mutable_connector()->mutable_heartbeat()->mutable_heartbeat()->set_digest("another");
    const auto d = replayed();
    CHECK(d.entity == "connector acme/home");
    CHECK(d.sequence == step->sequence());
    CHECK(d.what.find("digest") != std::string::npos);
    CHECK(d.after.find("asked_digest: \"another\"") != std::string::npos);
  }
  SECTION("another time") {
    auto* step = step_where(all, [](const auto&, const auto& s) { return s.connector().has_heartbeat() && s.has_digest(); });
    REQUIRE(step != nullptr);
    step->set_steady_ms(step->steady_ms() + 1);
    CHECK(replayed().sequence == step->sequence());
  }
}

TEST_CASE_METHOD(recorded_world, "a recording of another format or out of shape is refused in a sentence") {
  start();
  live();
  auto all = saved_recordings();
  REQUIRE(all.size() > 1);
  auto one = all[1];
  REQUIRE(one.runs_size() > 0);
  replay::replayer again;
  SECTION("format") {
    one.set_format(2);
    one.set_version("9.9.9");
    CHECK(again.add(one) == "the recording has format 2, made by version 9.9.9; this program knows format 1");
  }
  SECTION("no beginning") {
    one.mutable_runs(0)->clear_before();
    CHECK(again.add(one).find("there is no state to begin with") != std::string::npos);
  }
  SECTION("an event of another kind") {
    one.mutable_runs(0)->mutable_steps(0)->clear_event();
    CHECK(again.add(one).find("the event is none of its kind") != std::string::npos);
  }
  SECTION("an unknown outcome") {
    one.mutable_runs(0)->mutable_steps(0)->set_outcome("perhaps");
    CHECK(again.add(one).find("there is no outcome perhaps") != std::string::npos);
  }
  SECTION("a step that is not over before others") {
    auto* run = one.mutable_runs(0);
    for (auto& r : *one.mutable_runs())
      if (r.steps_size() > 1) run = &r;
    REQUIRE(run->steps_size() > 1);
    run->mutable_steps(0)->clear_outcome();
    CHECK(again.add(one).find("it is not over, but others follow") != std::string::npos);
  }
  CHECK(again.counted().steps == 0);
}

TEST_CASE_METHOD(recorded_world, "a state that is too large is left out, counted, and harms nobody else") {
  start(96 * 1024);  // segments of 4 KiB: nothing above 1 KiB fits
  enrol();
  REQUIRE(hello(key).error().empty());
  for (int i = 0; i < 10; ++i) create_tunnel(fmt::format("t{}", i));
  gateway_acknowledges();
  heartbeat();
  CHECK(count.values["warren_recorder_left_out_total"] > 0);
  replay::replayer again;
  replay_all(again, saved_recordings());
  CHECK(again.counted().steps > 0);
}

TEST_CASE("many write at once while somebody reads: what is read is whole, and each life in order") {
  telemetry::flight_recorder record{1024 * 1024};
  constexpr int writers = 4, lives_each = 8, steps_each = 3000;
  std::atomic<int> busy{writers};
  std::vector<std::thread> threads;
  for (int t = 0; t < writers; ++t)
    threads.emplace_back([&record, &busy, t] {
      std::vector<record_track> tracks(lives_each);
      v1::TunnelState state;
      state.set_name(std::string(200, 'x'));
      for (int i = 0; i < steps_each; ++i) {
        auto& track = tracks[static_cast<std::size_t>(i % lives_each)];
        v1::TunnelEvent e;
        e.mutable_attachment()->set_tunnel_uid(std::string(60, 'u'));
        e.mutable_attachment()->set_revision(i);
        const auto name = std::to_string(t);
        record.begin(track, {"tunnel", "acme", name, 0, 1}, state, e, false, 1, {i, 1000 + i});
        record.conclude(track, step_outcome::done, 0, nullptr, std::nullopt);
      }
      --busy;
    });
  std::size_t read = 0;
  const auto look = [&] {
    for (const auto& which : record.stretches()) {
      const auto r = record.unpack(which);
      if (!r) continue;  // dropped meanwhile
      for (const auto& run : r->runs()) {
        std::int64_t last = -1;
        for (const auto& step : run.steps()) {
          ++read;
          REQUIRE(step.tunnel().attachment().tunnel_uid().size() == 60);
          REQUIRE(step.tunnel().attachment().revision() == step.steady_ms());
          REQUIRE((last == -1 || step.steady_ms() == last + lives_each));
          last = step.steady_ms();
        }
      }
    }
  };
  while (busy > 0) look();
  for (auto& t : threads) t.join();
  look();
  CHECK(read > 1000);
}

TEST_CASE("a recorder of no size remembers nothing") {
  telemetry::flight_recorder none{0};
  record_track track;
  none.begin(track, {"tunnel", "acme", "web", 0, 1}, v1::TunnelState{}, v1::TunnelEvent{}, false, 1, {});
  none.conclude(track, step_outcome::done, 0, nullptr, std::nullopt);
  CHECK(none.stretches().empty());
  CHECK(none.bytes_used() == 0);
}
