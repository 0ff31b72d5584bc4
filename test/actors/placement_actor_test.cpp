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
  std::vector<audit_entry> trail;
  bool free_of_dead = false;  ///< what a dead one holds can be taken from it
  std::vector<partition_id> released;
  std::vector<instance_id> judged;
  std::set<instance_id> dead;  ///< their locks can be had
  std::vector<std::pair<caf::typed_response_promise<placement_view>, placement_view>> held_back;

  placement_view say(bool renewed, std::vector<partition_id> taken = {}) const {
    placement_view v = table;
    if (away) {
      v = {};
      v.error = "the database is away";
      return v;
    }
    v.renewed = renewed;
    v.taken = std::move(taken);
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
      [=](const renew_lease& r) {
        ++t->renewals;
        if (r.drain_asked) t->trail.push_back(*r.drain_asked);
        for (auto& i : t->table.instances)
          if (i.id == t->me && !t->away) i.bus_ok = r.bus_ok, i.draining = r.draining;
        return answer(t->say(true));
      },
      [=](const take_partitions& q) {
        std::vector<partition_id> taken;
        for (auto id : q.partitions) {
          auto& row = t->table.partitions.at(static_cast<std::size_t>(id));
          if ((row.owner != 0 && row.owner != t->me && !(t->free_of_dead && t->dead.contains(row.owner))) || t->away) continue;
          row.owner = t->me;
          ++row.epoch;
          taken.push_back(id);
        }
        return answer(t->say(false, std::move(taken)));
      },
      [=](const release_partition& q) {
        auto& row = t->table.partitions.at(static_cast<std::size_t>(q.partition));
        if (!t->away && row.owner == t->me && row.epoch == q.epoch) {
          row.owner = 0;
          t->released.push_back(q.partition);
        }
        return answer(t->say(false));
      },
      [=](const judge_instance& q) {
        t->judged.push_back(q.instance);
        for (auto& i : t->table.instances)
          if (i.id == q.instance && t->dead.contains(i.id) && !t->away) i.alive = false;
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
  std::vector<bool> gateways_away;
  int views = 0;
  millis lease{3000};

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
    c.lease = lease;
    c.on_change = [this](const owned_partitions& o) { changes.push_back(o); };
    c.on_gateways_away = [this](bool away) { gateways_away.push_back(away); };
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
  void join(instance_id id) {
    leases.table.instances.push_back({.id = id, .name = "b", .bus_ok = true, .alive = true});
  }
  void hear(const busv1::LeaseNotice& n, const std::string& reply_to = {}) {
    self->send(placement, bus_message{"warren.v1.lease", n.SerializeAsString(), reply_to});
    run();
  }
  static busv1::LeaseNotice notice(instance_id from, const std::string& what, partition_id p = 0, instance_id to = 0) {
    busv1::LeaseNotice n;
    n.set_version(1);
    n.set_instance(from);
    n.set_what(what);
    n.set_partition(p);
    n.set_successor(to);
    return n;
  }
  /// What we said to everybody, or to `subject`.
  std::vector<busv1::LeaseNotice> said(const std::string& what, const std::string& subject = "warren.v1.lease") const {
    std::vector<busv1::LeaseNotice> out;
    const auto look = [&](const auto& messages) {
      for (const auto& m : messages) {
        busv1::LeaseNotice n;
        if (m.subject == subject && n.ParseFromString(m.payload) && n.what() == what) out.push_back(n);
      }
    };
    look(bus.published);
    look(bus.requested);
    return out;
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
  const auto before = owned().epochs;
  advance(200ms, 50ms);
  CHECK(running().empty());
  leases.away = false;
  advance(1100ms, 50ms);
  CHECK(running() == all);
  // What was under way may still have been stored under the epoch that has ended: nobody starts under it again.
  for (const auto& [id, epoch] : before) CHECK(owned().epochs.at(id) == epoch + 1);
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

TEST_CASE_METHOD(placement_world, "a drain says how many it has released, and not how many were given before") {
  start();
  leases.table.instances.push_back({.id = 9, .name = "b", .bus_ok = true, .alive = true});
  advance(1s);
  REQUIRE(leases.released.size() == 2);
  int answered = -1;
  spawn([into = &answered, to = placement](caf::event_based_actor* asker) {
    asker->request(to, caf::infinite, drain{}).then([into](const drained& d) { *into = d.released; });
  });
  run();
  CHECK(answered == 3);
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

TEST_CASE_METHOD(placement_world, "a dead peer's partitions are taken as soon as its connection has ended") {
  leases.table.partitions[2] = {2, 9, 5, 0};
  leases.table.partitions[4] = {4, 9, 5, 0};
  join(9);
  start();
  REQUIRE(running() == std::set<partition_id>{0, 1, 3});
  const auto renewals = leases.renewals;
  self->send(placement, peer_disconnected{9});
  run();
  CHECK(leases.judged == std::vector<instance_id>{9});
  CHECK(running() == std::set<partition_id>{0, 1, 3});  // it lives: its lock cannot be had

  leases.dead.insert(9);
  for (auto id : {2, 4}) leases.table.partitions[static_cast<std::size_t>(id)].owner = 0;  // as the fake takes only these
  advance(25ms, 5ms);
  CHECK(leases.judged == std::vector<instance_id>{9, 9});
  CHECK(running() == all);
  CHECK(leases.renewals == renewals);
}

TEST_CASE_METHOD(placement_world, "a silent peer is judged, one that is heard is not") {
  join(9);
  start();
  for (int i = 0; i < 20; ++i) {
    hear(notice(9, "alive"));
    advance(100ms);
  }
  CHECK(leases.judged.empty());
  CHECK(said("alive").size() >= 19);
  leases.dead.insert(9);
  advance(500ms);
  CHECK_FALSE(leases.judged.empty());
  CHECK(running() == all);
  const auto judged = leases.judged.size();
  advance(10s);
  CHECK(leases.judged.size() == judged);  // once it is known, nobody asks again
}

TEST_CASE_METHOD(placement_world, "whoever cannot renew neither says that it lives nor judges others") {
  join(9);
  start();
  leases.away = true;
  advance(1100ms);
  const auto alive = said("alive").size();
  const auto judged = leases.judged.size();
  self->send(placement, peer_disconnected{9});
  advance(1s);
  CHECK(said("alive").size() == alive);
  CHECK(leases.judged.size() == judged);

  // The others' leases have ended for the same reason: they get the time to renew them.
  leases.table.instances[1].alive = false;
  leases.table.partitions[4] = {4, 9, 1, 0};
  leases.away = false;
  advance(2900ms);
  CHECK(leases.table.partitions[4].owner == 9);
  CHECK_FALSE(said("alive").size() == alive);
}

TEST_CASE_METHOD(placement_world, "a released partition is taken at once by its successor, who says so") {
  for (auto id : {2, 4}) leases.table.partitions[static_cast<std::size_t>(id)] = {id, 9, 5, 0};
  join(9);
  start();
  REQUIRE(running() == std::set<partition_id>{0, 1, 3});
  leases.table.partitions[4].owner = 0;
  hear(notice(9, "released", 4, 8), "inbox.1");
  CHECK(running() == std::set<partition_id>{0, 1, 3});
  CHECK(said("taken", "inbox.1").empty());
  hear(notice(9, "released", 4, 1), "inbox.2");
  CHECK(running() == std::set<partition_id>{0, 1, 3, 4});
  REQUIRE(said("taken", "inbox.2").size() == 1);
  CHECK(said("taken", "inbox.2")[0].partition() == 4);

  hear(notice(9, "released", 99, 1), "inbox.3");  // there is no such partition
  hear(notice(1, "released", 2, 1), "inbox.4");   // our own words come back
  CHECK(said("taken", "inbox.3").empty());
  CHECK(said("taken", "inbox.4").empty());
  self->send(placement, bus_message{"warren.v1.lease", "nonsense", "inbox.5"});
  run();
  CHECK(count.values["warren_bus_dropped_total{garbage}"] == 1);
}

TEST_CASE_METHOD(placement_world, "a drain that is asked for on the bus names successors and stays") {
  start();
  join(9);
  hear(notice(7, "drain"), "inbox.1");
  CHECK(running() == all);
  hear(notice(1, "drain"), "inbox.2");
  CHECK(said("leaving", "inbox.2").size() == 1);
  advance(1s);
  CHECK(running().empty());
  CHECK(leases.released.size() == 5);
  CHECK(leases.table.instances[0].draining);
  const auto offers = said("released");
  REQUIRE(offers.size() == 5);
  int to_the_newcomer = 0;
  for (const auto& o : offers) to_the_newcomer += o.successor() == 9;
  CHECK(to_the_newcomer >= 4);  // the first may go before the newcomer is known
  CHECK(said("leaving").size() == 1);
  CHECK(owned().lease);
  advance(5s);
  CHECK(running().empty());
}

TEST_CASE_METHOD(placement_world, "who has lost the database believes another one that it has taken a partition, and nobody else does long") {
  start();
  REQUIRE(running() == all);
  const auto epoch = owned().epochs.at(2);
  leases.away = true;
  auto n = notice(9, "taken", 2);
  hear(n);  // to whom it was offered; no word about us
  n.set_epoch(epoch);
  hear(n);  // from before it was ours
  CHECK(running() == all);
  n.set_epoch(epoch + 1);
  hear(n);
  CHECK(running() == std::set<partition_id>{0, 1, 3, 4});
  leases.away = false;
  advance(2s);
  CHECK(running() == all);  // the table decides
}

TEST_CASE_METHOD(placement_world, "what was somebody else's is said to be taken, at its epoch") {
  join(9);
  for (auto id : {3, 4}) leases.table.partitions[static_cast<std::size_t>(id)] = {id, 9, 5, 0};
  start();
  CHECK(said("taken").empty());  // nobody had the others
  leases.dead.insert(9);
  leases.free_of_dead = true;
  self->send(placement, peer_disconnected{9});
  run();
  REQUIRE(running() == all);
  const auto told = said("taken");
  REQUIRE(told.size() == 2);
  for (const auto& each : told) {
    CHECK(each.partition() >= 3);
    CHECK(each.epoch() == owned().epochs.at(each.partition()));
  }
}

TEST_CASE_METHOD(placement_world, "while somebody is deaf the table is looked at ten times a second") {
  join(9);
  start();
  const auto looks = [&] { return std::count(leases.judged.begin(), leases.judged.end(), 0); };
  for (int i = 0; i < 10; ++i) hear(notice(9, "alive")), advance(100ms);
  CHECK(looks() == 0);
  leases.table.instances[1].bus_ok = false;
  advance(1s);  // the next renewal says so
  const auto before = looks();
  advance(1s);
  CHECK(looks() >= before + 9);
  CHECK(looks() <= before + 11);
  self->send(placement, bus_state{false});  // nor do we: nobody has anything to take
  run();
  const auto deaf = looks();
  advance(1s);
  CHECK(looks() == deaf);
}

TEST_CASE_METHOD(placement_world, "who asks an instance to drain is named in the audit trail, with the renewal that says it") {
  join(9);
  start();
  auto n = notice(1, "drain");
  n.set_principal("alice");
  n.set_remote("ipv4:127.0.0.1:1");
  leases.away = true;
  hear(n, "inbox");
  advance(2s);
  leases.away = false;
  leases.trail.clear();
  advance(3s);
  REQUIRE(leases.trail.size() == 1);
  CHECK(leases.trail[0].method == "DrainInstance");
  CHECK(leases.trail[0].resource == "instances/1");
  CHECK(leases.trail[0].principal == "alice");
  CHECK(leases.trail[0].remote == "ipv4:127.0.0.1:1");
  CHECK(leases.trail[0].after_json == R"({"draining": true})");
}

TEST_CASE_METHOD(placement_world, "a deaf instance gives its partitions to one that hears, after a while") {
  join(9);
  for (auto id : {3, 4}) leases.table.partitions[static_cast<std::size_t>(id)] = {id, 9, 5, 0};
  start();
  const auto ours = std::set<partition_id>{0, 1, 2};
  REQUIRE(running() == ours);
  self->send(placement, bus_state{false});
  run();
  CHECK_FALSE(leases.table.instances[0].bus_ok);
  advance(1900ms);
  CHECK(running() == ours);

  CHECK(gateways_away.empty());

  SECTION("when that one is still there and still hears") {
    advance(2s);
    CHECK(running().empty());
    CHECK(gateways_away == std::vector{true});  // they go with them
    self->send(placement, bus_state{true});
    advance(1s);
    CHECK(running() == ours);  // they are free, and its share
    CHECK(gateways_away == std::vector{true, false});
  }
  SECTION("and takes gateways again when it loses the database as well") {
    advance(2s);
    REQUIRE(gateways_away == std::vector{true});
    leases.away = true;
    advance(3s);
    CHECK(gateways_away == std::vector{true, false});
  }
  SECTION("not when it hears again itself") {
    self->send(placement, bus_state{true});
    advance(10s);
    CHECK(running() == ours);
  }
  SECTION("nor when the table's last word is from before it heard again") {
    leases.hangs = true;
    advance(1s);  // a renewal is under way, and says that it is deaf
    REQUIRE_FALSE(leases.held_back.empty());
    self->send(placement, bus_state{true});
    run();
    self->send(table, answer_now{});
    run();
    CHECK(leases.released.empty());
    CHECK(running() == ours);
  }
  SECTION("not when nobody hears") {
    leases.table.instances[1].bus_ok = false;
    advance(60s);
    CHECK(running() == ours);
    CHECK(gateways_away.empty());
  }
}

TEST_CASE_METHOD(placement_world, "somebody whom the table did not have is looked up when it is heard, and made room for") {
  start();
  const auto renewals = leases.renewals;
  join(9);
  hear(notice(9, "alive"));
  CHECK(leases.renewals == renewals);
  CHECK(running() == std::set<partition_id>{0, 1, 2});
  const auto looks = leases.judged.size();
  hear(notice(77, "alive"));
  hear(notice(9, "alive"));
  CHECK(leases.judged.size() == looks + 1);  // the unknown one is looked for; the known one is not
}

TEST_CASE_METHOD(placement_world, "a partition that does not look at its clock is told of, until it does again") {
  lease = 30s;
  start();
  advance(3s);
  REQUIRE(running() == all);
  CHECK(count.values["warren_partitions_behind"] == 0);
  changes.clear();
  // Four seconds at once, of which the partitions notice nothing before placement looks at them.
  self->send(placement, wake_up{0});
  sched.advance_time(4s);
  run();
  advance(2s);
  const auto told = std::find_if(changes.begin(), changes.end(), [](const auto& o) { return !o.behind.empty(); });
  REQUIRE(told != changes.end());
  CHECK(told->behind == all);
  CHECK(changes.back().behind.empty());
  CHECK(count.values["warren_partitions_behind"] == 0);
  changes.clear();
  advance(5s);
  CHECK(std::none_of(changes.begin(), changes.end(), [](const auto& o) { return !o.behind.empty(); }));
}
