// test/actors/replica_actor_test.cpp -- the replica reads everything, follows hints and mends gaps by itself.
#include <utility>

#include <catch2/catch.hpp>

#include "services/replica/actor.hpp"
#include "test/support/actor_fixture.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::replica;

namespace {

// A store of which a test says what each partition holds.
struct scripted_store {
  std::vector<fetch_changes> asked;
  std::function<changes(const fetch_changes&)> answer;
  bool hold = false;
  std::vector<std::pair<fetch_changes, caf::typed_response_promise<changes>>> held;
};

store_actor::behavior_type scripted(store_actor::pointer self, scripted_store* s) {
  return {
      [](const save_request&) { return save_result{save_lost{}}; },
      [](const load_entity&) { return loaded{}; },
      [](const load_partition&) { return loaded{}; },
      // Stands for "answer what you hold": promises are kept by the actor that made them.
      [](const find_answer&) -> save_result { return saved{}; },
      [s](const load_naming&) {
        s->hold = false;
        for (auto& [f, promise] : std::exchange(s->held, {})) promise.deliver(s->answer(f));
        return loaded{};
      },
      [](const adopt_rivals&) { return loaded{}; },
      [self, s](const fetch_changes& f) -> caf::result<changes> {
        s->asked.push_back(f);
        auto promise = self->make_response_promise<changes>();
        if (s->hold) s->held.emplace_back(f, promise);
        else promise.deliver(s->answer(f));
        return promise;
      },
  };
}

struct world : test::actor_fixture {
  scripted_store store;
  view copy;
  std::map<partition_id, revision_t> at;
  std::vector<v1::Row> all;
  replica_actor replica;
  store_actor store_handle;

  world() {
    store.answer = [this](const fetch_changes& f) {
      changes c;
      c.complete = f.after == 0;
      c.revision = std::max<revision_t>(at[f.partition], 1);
      if (f.partition == 0) c.rows = all;
      return c;
    };
  }
  ~world() {
    store.held.clear();
    caf::anon_send_exit(replica, caf::exit_reason::kill);
    run();
  }
  void start(int partitions = 3) {
    replica_config c{.partitions = partitions, .instance = 1, .wall_ms = [this] { return steady_ms(); },
                     .random = [] { return std::uint64_t{7}; }};
    store_handle = spawn(scripted, &store);
    replica = spawn_replica(sys, copy, store_handle, spawn(test::recorded_bus_actor, &bus), c, count);
    run();
  }
  void let_go() {
    caf::anon_send(store_handle, load_naming{});
    run();
  }
  void say(const busv1::Revision& r) {
    caf::anon_send(replica, bus_message{"warren.v1.rev." + std::to_string(r.partition()), r.SerializeAsString(), ""});
    run();
  }
  void say(const busv1::GatewayAck& a) {
    caf::anon_send(replica, bus_message{"warren.v1.ack." + std::to_string(a.partition()), a.SerializeAsString(), ""});
    run();
  }
  std::int64_t acknowledged() {
    return copy.read([](const tables& t) { return t.acks.at(0).at("gw-a").report.acknowledged(); });
  }
  v1::Row a_tunnel(revision_t r) { return rows::row(rows::tunnel("p", "web", "edge", r)); }
};

}  // namespace

TEST_CASE("a start listens, then reads every partition, four at a time") {
  world w;
  w.store.hold = true;
  w.start(9);
  CHECK(w.bus.subscribed == std::vector<std::string>{"warren.v1.rev.*", "warren.v1.ack.*"});
  CHECK(w.store.asked.size() == 4);
  CHECK_FALSE(w.copy.read([](const tables& t) { return t.warm; }));
  w.let_go();
  CHECK(w.store.asked.size() == 10);
  CHECK(w.copy.read([](const tables& t) { return t.warm; }));
  CHECK(w.count.values["warren_replica_gaps_total"] == 0);
}

TEST_CASE("a hint that was lost is fetched; the last one is missed by the revision that owners repeat") {
  world w;
  w.start();
  w.store.asked.clear();
  w.say(rows::hint(2, {w.a_tunnel(2)}));
  CHECK(w.store.asked.empty());
  CHECK(w.copy.revision(0) == 2);
  w.at[0] = 4;
  w.all = {w.a_tunnel(4)};
  w.say(rows::hint(4, {w.a_tunnel(4)}));
  REQUIRE(w.store.asked.size() == 1);
  CHECK(w.store.asked[0].after == 2);
  CHECK(w.copy.revision(0) == 4);
  CHECK(w.count.values["warren_replica_gaps_total"] == 1);
  w.at[0] = 5;
  w.say(rows::hint(5, {}));
  CHECK(w.copy.revision(0) == 5);
  CHECK(w.count.values["warren_replica_gaps_total"] == 2);
}

TEST_CASE("our own commit is applied directly, and its echo is known") {
  world w;
  w.start();
  w.store.asked.clear();
  caf::anon_send(w.replica, committed{rows::hint(2, {w.a_tunnel(2)})});
  w.run();
  CHECK(w.copy.revision(0) == 2);
  w.say(rows::hint(2, {w.a_tunnel(2)}));
  CHECK(w.store.asked.empty());
}

TEST_CASE("hints during a fetch ask for one more, and no more than one is under way") {
  world w;
  w.start();
  w.store.asked.clear();
  w.store.hold = true;
  w.at[0] = 3;
  w.say(rows::hint(3, {}));
  w.say(rows::hint(6, {}));
  CHECK(w.store.asked.size() == 1);
  w.let_go();
  CHECK(w.copy.revision(0) == 3);
  w.at[0] = 6;
  w.advance(millis{300});
  CHECK(w.copy.revision(0) == 6);
}

TEST_CASE("with the store away reads go on with their age, and it is tried again with back-off") {
  world w;
  w.start();
  bool away = true;
  auto real = w.store.answer;
  w.store.answer = [&](const fetch_changes& f) {
    if (!away) return real(f);
    changes c;
    c.error = "connection refused";
    return c;
  };
  w.store.asked.clear();
  w.at[0] = 9;
  w.say(rows::hint(9, {}));
  w.advance(millis{4000});
  CHECK(w.copy.revision(0) == 1);
  CHECK(w.copy.read([&](const tables& t) { return t.age_ms(0, w.steady_ms()); }) >= 4000);
  const auto tries = w.store.asked.size();
  CHECK(tries > 3);
  CHECK(tries < 60);
  away = false;
  w.advance(millis{1200});
  CHECK(w.copy.revision(0) == 9);
}

TEST_CASE("a partition of which nobody speaks is asked after in the store") {
  world w;
  w.start();
  w.at[0] = 7;
  w.all = {w.a_tunnel(7)};
  w.advance(millis{5500});
  CHECK(w.copy.revision(0) == 7);
  CHECK(w.copy.read([&](const tables& t) { return t.age_ms(w.steady_ms()); }) < 1000);
}

TEST_CASE("while nothing can be heard the store is asked all the time") {
  world w;
  w.start();
  caf::anon_send(w.replica, bus_state{false});
  w.at[0] = 7;
  w.all = {w.a_tunnel(7)};
  w.advance(millis{500});
  CHECK(w.copy.revision(0) == 7);
  w.at[0] = 8;
  w.advance(millis{500});
  CHECK(w.copy.revision(0) == 8);
  caf::anon_send(w.replica, bus_state{true});
  w.at[0] = 9;
  w.advance(millis{1000});
  CHECK(w.copy.revision(0) == 8);  // from here on somebody says so
}

TEST_CASE("garbage on the bus changes nothing") {
  world w;
  w.start();
  w.store.asked.clear();
  for (const auto* subject : {"warren.v1.rev.0", "warren.v1.ack.0", "warren.v1.rev.x", "else"}) {
    caf::anon_send(w.replica, bus_message{subject, "\xff\xff garbage", ""});
    caf::anon_send(w.replica, bus_message{subject, std::string(limits::bus_message_bytes_max + 1, 'x'), ""});
  }
  auto wrong_version = rows::hint(2, {w.a_tunnel(2)});
  wrong_version.set_version(2);
  w.say(wrong_version);
  auto elsewhere = rows::hint(2, {w.a_tunnel(2)}, 1);
  caf::anon_send(w.replica, bus_message{"warren.v1.rev.0", elsewhere.SerializeAsString(), ""});
  w.run();
  CHECK(w.copy.revision(0) == 1);
  CHECK(w.store.asked.empty());
}

TEST_CASE("the echo of our own acknowledgement does not set it back") {
  world w;
  w.start();
  w.say(rows::ack("gw-a", 3));
  CHECK(w.acknowledged() == 3);  // nobody spoke directly: the bus is what there is
  caf::anon_send(w.replica, rows::ack("gw-a", 5));
  w.run();
  w.say(rows::ack("gw-a", 4));
  CHECK(w.acknowledged() == 5);
}
