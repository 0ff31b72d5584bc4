// test/actors/placement_actor_test.cpp -- which partitions run here, on virtual time, against a table in memory.
#include <catch2/catch.hpp>

#include "actors/placement/actor.hpp"
#include "test/support/actor_fixture.hpp"

using namespace warren;

struct answer_now {};
WARREN_LOCAL_MESSAGE(answer_now)

namespace {

/// The tables of instances and partitions; answers are held back while `hangs`.
struct lease_table {
  placement_view table;
  instance_id me = 1;
  bool hangs = false, away = false;
  int renewals = 0;
  std::vector<partition_id> released;
  std::vector<std::pair<caf::typed_response_promise<placement_view>, placement_view>> held_back;

  placement_view say(bool renewed, bool taken = false) const {
    placement_view v = table;
    if (away) {
      v = {};
      v.error = "the database is away";
      return v;
    }
    v.renewed = renewed;
    v.taken = taken;
    return v;
  }
};



/// A lease_store_actor that can also be told to answer what it has held back.
caf::behavior lease_table_actor(caf::event_based_actor* self, lease_table* t) {
  const auto answer = [self, t](placement_view view) -> caf::result<placement_view> {
    auto promise = self->make_response_promise<caf::typed_response_promise<placement_view>>();
    if (t->hangs) t->held_back.emplace_back(promise, std::move(view));
    else promise.deliver(std::move(view));
    return promise;
  };
  return {
      [=](const renew_lease&) {
        ++t->renewals;
        return answer(t->say(true));
      },
      [=](const take_partition& q) {
        auto& row = t->table.partitions.at(static_cast<std::size_t>(q.partition));
        const bool free = row.owner == 0 && !t->away;
        if (free) {
          row.owner = t->me;
          ++row.epoch;
        }
        return answer(t->say(false, free));
      },
      [=](const release_partition& q) {
        auto& row = t->table.partitions.at(static_cast<std::size_t>(q.partition));
        if (!t->away && row.owner == t->me && row.epoch == q.epoch) {
          row.owner = 0;
          t->released.push_back(q.partition);
        }
        return answer(t->say(false));
      },
      [=](const answer_now&) {
        for (auto& [promise, view] : std::exchange(t->held_back, {})) promise.deliver(view);
      },
  };
}

struct placement_world : test::actor_fixture {
  lease_table leases;
  caf::actor table;
  placement_actor placement;
  std::vector<owned_partitions> changes;
  int views = 0;

  placement_world() {
    leases.table.incarnation = 1;
    leases.table.instances = {{.id = 1, .name = "a", .bus_ok = true, .alive = true}};
    for (partition_id id = 0; id <= 4; ++id) leases.table.partitions.push_back({id, 0, 0, 0});
  }
  ~placement_world() {
    leases.hangs = false;
    leases.held_back.clear();
    caf::anon_send_exit(placement, caf::exit_reason::user_shutdown);
    run();
  }
  void start() {
    placement::placement_context c;
    table = spawn(lease_table_actor, &leases);
    c.leases = caf::actor_cast<lease_store_actor>(table);
    c.partition.entity = context({});
    c.partition.partitions = 4;
    c.partition.find_class = [](const std::string&) { return partition::partition_context::class_answer{}; };
    c.partition.seen_revision = [](partition_id) { return revision_t{0}; };
    c.me = 1;
    c.on_change = [this](const owned_partitions& o) { changes.push_back(o); };
    c.on_view = [this](const placement_view&) { ++views; };
    placement = spawn(placement::actor, std::move(c));
  }
  owned_partitions owned() {
    owned_partitions out;
    auto* into = &out;
    spawn([into, to = placement](caf::event_based_actor* asker) {
      asker->request(to, caf::infinite, owned_query{}).then([into](const owned_partitions& o) { *into = o; });
    });
    return out;
  }
  std::set<partition_id> running() {
    std::set<partition_id> out;
    for (const auto& [id, epoch] : owned().epochs) out.insert(id);
    return out;
  }
  void answer_held_back() {
    leases.hangs = false;
    self->send(table, answer_now{});
    run();
  }
  /// How often that partition has announced itself on the bus.
  long announced(partition_id id) const {
    return std::count_if(bus.published.begin(), bus.published.end(),
                         [&](const bus_publish& p) { return p.subject == "warren.v1.rev." + std::to_string(id); });
  }
};

const std::set<partition_id> all{0, 1, 2, 3, 4};

}  // namespace

TEST_CASE_METHOD(placement_world, "what is free is taken, and only what somebody else holds is left alone") {
  leases.table.partitions[2] = {2, 9, 5, 0};
  leases.table.instances.push_back({.id = 9, .name = "b", .bus_ok = true, .alive = true});
  start();
  CHECK(running() == std::set<partition_id>{0, 1, 3});  // an even share: three of five
  CHECK(owned().lease);
  CHECK(owned().epochs.at(0) == 1);
  CHECK(count.values["warren_partitions_owned"] == 3);
  CHECK(views > 0);
  REQUIRE_FALSE(changes.empty());
  CHECK(changes.back().epochs.size() == 3);
  for (auto id : {0, 1, 3}) CHECK(announced(id) > 0);
  CHECK(announced(2) == 0);
}

TEST_CASE_METHOD(placement_world, "when renewals hang, everything stops when our own clock says the lease could be over") {
  start();
  REQUIRE(running() == all);
  leases.hangs = true;
  const auto begin = steady_ms();  // the last renewal was sent now
  advance(2900ms, 10ms);
  CHECK(running() == all);
  while (!running().empty() && steady_ms() - begin < 10'000) advance(10ms, 10ms);
  CHECK(steady_ms() - begin <= 3000);
  CHECK_FALSE(owned().lease);
  CHECK(count.values["warren_partitions_owned"] == 0);
  advance(5s);
  CHECK(leases.renewals == 2);  // one is under way, not a queue of them

  SECTION("an answer from the past starts nothing; the next renewal does") {
    self->send(table, answer_now{});  // the next renewal follows at once, and hangs
    run();
    CHECK(running().empty());
    answer_held_back();
    CHECK(running() == all);
    CHECK(owned().lease);
  }
  SECTION("what has moved meanwhile stays with its new owner") {
    leases.table.partitions[3] = {3, 9, 2, 0};
    leases.table.instances.push_back({.id = 9, .name = "b", .bus_ok = true, .alive = true});
    answer_held_back();
    advance(1s);
    CHECK(running() == std::set<partition_id>{0, 1, 2});  // and an even share is kept
  }
}

TEST_CASE_METHOD(placement_world, "a database that is away stops everything at the end of the lease, and no sooner") {
  start();
  leases.away = true;
  advance(2900ms, 50ms);
  CHECK(running() == all);
  advance(200ms, 50ms);
  CHECK(running().empty());
  leases.away = false;
  advance(1100ms, 50ms);
  CHECK(running() == all);
}

TEST_CASE_METHOD(placement_world, "a partition that the table says has moved is stopped at once") {
  start();
  leases.table.partitions[2] = {2, 9, 7, 0};
  leases.table.instances.push_back({.id = 9, .name = "b", .bus_ok = true, .alive = true});
  advance(1s);
  CHECK_FALSE(running().contains(2));
  const auto said = announced(2);
  advance(5s);
  CHECK(announced(2) == said);

  SECTION("also when only its epoch has") {
    leases.table.partitions[0].epoch += 3;
    advance(1s);
    CHECK(owned().epochs.at(0) == leases.table.partitions[0].epoch);
  }
}

TEST_CASE_METHOD(placement_world, "a drain releases everything, and nothing is taken again") {
  start();
  int answered = -1;
  auto* into = &answered;
  spawn([into, to = placement](caf::event_based_actor* asker) {
    asker->request(to, caf::infinite, drain{}).then([into](const drained& d) { *into = d.released; });
  });
  run();
  CHECK(answered == 5);
  CHECK(std::set<partition_id>(leases.released.begin(), leases.released.end()) == all);
  CHECK(running().empty());
  advance(5s);
  CHECK(running().empty());
  for (const auto& p : leases.table.partitions) CHECK(p.owner == 0);
}

TEST_CASE_METHOD(placement_world, "another incarnation of the database stops all and begins anew") {
  start();
  leases.table.incarnation = 2;
  changes.clear();
  advance(1s);
  REQUIRE_FALSE(changes.empty());
  CHECK(changes.front().epochs.empty());  // stopped before anything starts
  CHECK(running() == all);
  const auto last = std::find_if(bus.published.rbegin(), bus.published.rend(),
                                 [](const bus_publish& p) { return p.subject == "warren.v1.rev.0"; });
  REQUIRE(last != bus.published.rend());
  busv1::Revision hint;
  REQUIRE(hint.ParseFromString(last->payload));
  CHECK(hint.incarnation() == 2);
}

TEST_CASE_METHOD(placement_world, "a newcomer gets its share, a few at a time, and released ones are not started again") {
  start();
  leases.table.instances.push_back({.id = 9, .name = "b", .bus_ok = true, .alive = true});
  advance(1s);
  CHECK(running() == std::set<partition_id>{0, 1, 2});
  CHECK(leases.released.size() == 2);
  advance(5s);
  CHECK(running() == std::set<partition_id>{0, 1, 2});
}
