// test/simulation/store_link.cpp -- one instance's way to the simulated database.
#include "test/simulation/store_link.hpp"

#include <set>

#include "actors/core/limits.hpp"

namespace warren::simulation {

namespace {

constexpr std::int64_t give_up_ms = 2'000;           // as services/store: without a connection for that long
constexpr std::int64_t settle_for_ms = 5'000;         // the same, with a lease of 3 s
constexpr std::int64_t idle_in_transaction_ms = 1'500;
constexpr std::int64_t again_ms = 50;

std::vector<std::string> touched(const save_request& q) {
  std::vector<std::string> out;
  for (const auto& w : q.rows) out.push_back(database::key_of(w.row));
  if (q.claims)
    for (const auto* part : {&q.claims->claim, &q.claims->drop})
      for (const auto& h : *part) out.push_back("hostname " + h);
  if (q.request && !q.request->request_id.empty()) out.push_back("request " + q.request->project + q.request->request_id);
  return out;
}

}  // namespace

std::int64_t store_link::way() { return to_.weather.way(to_.time.store); }

void store_link::later(std::int64_t ms, std::function<void(store_link&)> what) {
  to_.time.after(ms, [me = weak_from_this(), what = std::move(what)] {
    if (auto alive = me.lock()) what(*alive);
  });
}

// ---- writes ----

void store_link::save(save_request q, std::function<void(save_result)> then) {
  const auto p = q.partition;
  lanes_[p].queue.push_back({to_.next_ticket(), std::move(q), std::move(then), to_.time.now_ms()});
  pump(p);
}

void store_link::answer(waiting& w, save_result r) {
  to_.on_answer(w.ticket, r);
  w.then(std::move(r));
}

void store_link::give_up(partition_id p) {
  auto& l = lanes_[p];
  std::vector<waiting> late;
  while (!l.queue.empty() && to_.time.now_ms() - l.queue.front().since_ms >= give_up_ms) {
    late.push_back(std::move(l.queue.front()));
    l.queue.pop_front();
  }
  for (auto& w : late) answer(w, save_unavailable{"the database is away"});
}

void store_link::pump(partition_id p) {
  auto& l = lanes_[p];
  if (l.busy || l.queue.empty()) return;
  l.busy = true;
  const auto turn = ++l.turn;
  later(way(), [p, turn](store_link& s) {
    if (s.lanes_[p].turn == turn) s.begin(p);
  });
}

void store_link::again(partition_id p, std::int64_t ms) {
  auto& l = lanes_[p];
  for (auto w = l.group.rbegin(); w != l.group.rend(); ++w) l.queue.push_front(std::move(*w));
  l.group.clear();
  const auto turn = ++l.turn;
  later(ms, [p, turn](store_link& s) {
    auto& its = s.lanes_[p];
    if (its.turn != turn) return;
    s.to_.deliver([me = s.weak_from_this(), p] {
      auto alive = me.lock();
      if (!alive) return;
      if (!alive->reachable()) alive->give_up(p);
      alive->lanes_[p].busy = false;
      alive->pump(p);
    });
  });
}

/// At the database: the fence.
void store_link::begin(partition_id p) {
  auto& l = lanes_[p];
  if (!reachable()) return again(p, again_ms);
  std::set<std::string> taken;
  std::deque<waiting> left;
  l.epoch = l.queue.front().request.epoch;
  for (auto& w : l.queue) {
    const auto keys = touched(w.request);
    bool free = w.request.epoch == l.epoch && l.group.size() < limits::group_transitions_max;
    for (const auto& k : keys) free = taken.insert(k).second && free;
    (free ? static_cast<void>(l.group.push_back(std::move(w))) : static_cast<void>(left.push_back(std::move(w))));
  }
  l.queue = std::move(left);
  l.connection = connection_;
  l.results.clear();
  l.hint.Clear();
  const auto how = to_.db.begin(to_.me, p, l.epoch);
  l.revision = to_.db.now.partitions.at(p).revision + 1;
  if (how == database::begun::open) {
    if (has(bug::announce_before_save)) {
      busv1::Revision early;
      early.set_version(1);
      early.set_incarnation(to_.db.now.incarnation);
      early.set_partition(p);
      early.set_epoch(l.epoch);
      early.set_revision(l.revision);
      for (const auto& w : l.group)
        for (const auto& r : w.request.rows)
          if (r.what != row_write::op::erase) *early.add_rows() = r.row;
      to_.on_commit(early);
    }
    // A session that waits inside a transaction for longer is ended by the server.
    later(idle_in_transaction_ms, [p, turn = l.turn](store_link& s) {
      if (s.lanes_[p].turn == turn && s.lanes_[p].results.empty()) s.to_.db.roll_back(s.to_.me, p);
    });
  }
  if (how == database::begun::open && to_.on_open) to_.on_open();
  later(way(), [p, how, turn = l.turn](store_link& s) {
    if (s.lanes_[p].turn != turn) return;
    s.to_.deliver([me = s.weak_from_this(), p, how, turn] {
      if (auto alive = me.lock(); alive && alive->lanes_[p].turn == turn) alive->begun(p, how);
    });
  });
}

/// At the instance: the fence has answered.
void store_link::begun(partition_id p, database::begun how) {
  auto& l = lanes_[p];
  if (!reachable() || l.connection != connection_) return again(p, again_ms);
  if (how == database::begun::locked) return again(p, again_ms);
  if (how == database::begun::lost) {
    std::vector<save_result> all(l.group.size(), save_lost{});
    return finish(p, std::move(all));
  }
  if (has(bug::answer_before_save)) {
    std::vector<save_result> early;
    for (const auto& w : l.group) {
      saved done{l.revision, {}};
      for (const auto& r : w.request.rows) done.rows.push_back(r.row);
      early.emplace_back(std::move(done));
    }
    for (std::size_t i = 0; i < l.group.size(); ++i)
      if (l.group[i].then) std::exchange(l.group[i].then, [](save_result) {})(std::move(early[i]));
  }
  later(way(), [p, turn = l.turn](store_link& s) {
    if (s.lanes_[p].turn == turn) s.commit(p);
  });
}

/// At the database: COMMIT arrives, or does not.
void store_link::commit(partition_id p) {
  auto& l = lanes_[p];
  const bool open = to_.db.is_open(to_.me, p);
  if (!reachable() || l.connection != connection_ || !open) {
    to_.db.roll_back(to_.me, p);
    return again(p, again_ms);
  }
  if (to_.time.store.chance(to_.weather.contended_percent)) {
    to_.db.roll_back(to_.me, p);
    for (std::size_t i = 0; i < l.group.size(); ++i) l.results.emplace_back(save_conflict{"locked by another session"});
  } else {
    const bool undecided = to_.time.store.chance(to_.weather.undecided_percent);
    const bool carried_out = !undecided || to_.time.store.chance(50);
    if (carried_out) {
      std::vector<database::wanted> group;
      for (const auto& w : l.group) group.push_back({w.ticket, &w.request});
      l.results = to_.db.commit(to_.me, p, l.epoch, group, l.hint);
      if (l.hint.revision() != 0) l.revision = l.hint.revision();
    } else {
      to_.db.roll_back(to_.me, p);
    }
    if (undecided) {
      l.doubt_since_ms = to_.time.now_ms();
      return later(20, [p, turn = l.turn](store_link& s) {
        if (s.lanes_[p].turn == turn) s.settle(p);
      });
    }
  }
  later(way(), [p, turn = l.turn](store_link& s) {
    auto& its = s.lanes_[p];
    if (its.turn != turn) return;
    if (!s.reachable() || its.connection != s.connection_) {  // the answer got lost on its way
      its.doubt_since_ms = s.to_.time.now_ms();
      return s.settle(p);
    }
    s.committed(p);
  });
}

void store_link::committed(partition_id p) {
  const auto turn = lanes_[p].turn;
  to_.deliver([me = weak_from_this(), p, turn] {
    auto alive = me.lock();
    if (!alive || alive->lanes_[p].turn != turn) return;
    auto& l = alive->lanes_[p];
    if (l.hint.revision() != 0 && !alive->has(bug::announce_before_save)) alive->to_.on_commit(l.hint);
    alive->finish(p, std::move(l.results));
  });
}

/// An undecided commit is looked up, never repeated blindly.
void store_link::settle(partition_id p) {
  auto& l = lanes_[p];
  if (has(bug::blind_repetition)) return again(p, again_ms);
  const auto once_more = [&] {
    later(again_ms, [p, turn = l.turn](store_link& s) {
      if (s.lanes_[p].turn == turn) s.settle(p);
    });
  };
  auto fate = database::fate::lost;
  if (to_.time.now_ms() - l.doubt_since_ms < settle_for_ms) {
    if (!reachable()) return once_more();
    fate = to_.db.look_up(to_.me, p, l.epoch, l.revision);
    if (fate == database::fate::locked) return once_more();
  }
  // A transaction that wrote nothing left no trace, and needs none.
  if (fate == database::fate::rolled_back) return again(p, 0);
  if (fate == database::fate::committed) return committed(p);
  to_.deliver([me = weak_from_this(), p, turn = l.turn] {
    auto alive = me.lock();
    if (!alive || alive->lanes_[p].turn != turn) return;
    std::vector<save_result> all(alive->lanes_[p].group.size(), save_lost{});
    alive->finish(p, std::move(all));
  });
}

void store_link::finish(partition_id p, std::vector<save_result> results) {
  auto& l = lanes_[p];
  auto group = std::move(l.group);
  l.group.clear();
  l.results.clear();
  l.busy = false;
  ++l.turn;
  pump(p);
  for (std::size_t i = 0; i < group.size(); ++i) answer(group[i], std::move(results[i]));
}

void store_link::abandon() {
  for (auto& [p, l] : lanes_) {
    for (auto& w : l.group) w.then(save_lost{});
    for (auto& w : l.queue) w.then(save_lost{});
  }
  lanes_.clear();
  for (auto& [id, r] : std::exchange(reads_, {})) r.fail("");
}

// ---- reads ----

template <class Answer>
void store_link::read(std::function<std::optional<Answer>()> query, std::function<Answer(std::string)> failure,
                      std::function<void(Answer)> then, bool once) {
  const auto id = next_read_++;
  auto result = std::make_shared<std::optional<Answer>>();
  reads_[id] = {.since_ms = to_.time.now_ms(),
                .run = [query = std::move(query), result] {
                  *result = query();
                  return result->has_value();
                },
                .answer = [then, result] { then(std::move(**result)); },
                .fail = [then, failure = std::move(failure)](const std::string& why) { then(failure(why)); },
                .once = once};
  later(way(), [id](store_link& s) { s.try_read(id); });
}

void store_link::try_read(std::uint64_t id) {
  auto it = reads_.find(id);
  if (it == reads_.end()) return;
  auto& r = it->second;
  const auto done = [id](store_link& s, bool failed) {
    s.to_.deliver([me = s.weak_from_this(), id, failed] {
      auto alive = me.lock();
      if (!alive) return;
      auto found = alive->reads_.find(id);
      if (found == alive->reads_.end()) return;
      auto ended = std::move(found->second);
      alive->reads_.erase(found);
      if (failed) ended.fail("the database is away");
      else ended.answer();
    });
  };
  if (!reachable()) {
    if (to_.time.now_ms() - r.since_ms >= give_up_ms) return done(*this, true);
    return later(again_ms, [id](store_link& s) { s.try_read(id); });
  }
  if (!(r.once && r.ran)) {
    if (!r.run()) return later(5, [id](store_link& s) { s.try_read(id); });
    r.ran = true;
  }
  later(way(), [id, done](store_link& s) {
    if (s.reachable()) done(s, false);
    else s.try_read(id);
  });
}

namespace {
loaded no_rows(std::string why) {
  loaded l;
  l.lost = why.empty();
  l.error = std::move(why);
  return l;
}
loaded lost_rows() {
  loaded l;
  l.lost = true;
  return l;
}
}  // namespace

std::optional<loaded> store_link::adopt_now(partition_id p, epoch_t epoch) {
  if (to_.db.is_locked(p) || lanes_[p].busy) return std::nullopt;  // on the lane's own thread, between two groups
  busv1::Revision hint;
  auto rows = to_.db.adopt(to_.me, p, epoch, hint);
  if (!rows) return lost_rows();
  if (hint.revision() != 0) to_.deliver([on_commit = to_.on_commit, hint] { on_commit(hint); });
  return rows;
}

void store_link::load(const load_entity& q, std::function<void(loaded)> then) {
  read<loaded>(
      [this, q]() -> std::optional<loaded> {
        if (!to_.db.is_marked(q)) return to_.db.load(q);
        auto adopted = adopt_now(q.partition, q.epoch);
        if (!adopted || adopted->lost) return adopted;
        return to_.db.load(q);
      },
      no_rows, std::move(then));
}

void store_link::load(const load_partition& q, std::function<void(loaded)> then) {
  read<loaded>(
      [this, q]() -> std::optional<loaded> {
        auto adopted = adopt_now(q.partition, q.epoch);
        if (!adopted || adopted->lost) return adopted;
        auto rows = to_.db.load(q, to_.me);
        // What the one before has not heard for so long is silent since then: a lease that is nearly over.
        if (has(bug::old_silence_trusted))
          for (auto& r : rows.rows)
            if (r.has_connector() && r.connector().online())
              r.mutable_connector()->set_lease_duration_ms(
                  std::max<std::int64_t>(1, r.connector().lease_duration_ms() - to_.db.unowned_ms(q.partition)));
        // The one before may have died between its last commit and saying so: who lacks it fetches it.
        busv1::Revision current;
        current.set_version(1);
        current.set_incarnation(to_.db.now.incarnation);
        current.set_partition(q.partition);
        current.set_epoch(q.epoch);
        current.set_revision(to_.db.now.partitions.at(q.partition).revision);
        current.set_truncated(true);
        to_.deliver([on_commit = to_.on_commit, current] { on_commit(current); });
        return rows;
      },
      no_rows, std::move(then));
}

void store_link::load(const load_naming& q, std::function<void(loaded)> then) {
  read<loaded>([this, q] { return to_.db.load(q); }, no_rows, std::move(then));
}

void store_link::find(const find_answer& q, std::function<void(save_result)> then) {
  read<save_result>([this, q] { return to_.db.find(q); },
                    [](std::string why) -> save_result { return save_unavailable{std::move(why)}; }, std::move(then));
}

void store_link::fetch(const fetch_changes& q, std::function<void(changes)> then) {
  const auto failure = [](std::string why) {
    changes none;
    none.error = std::move(why);
    return none;
  };
  const auto query = [this, q] { return to_.db.fetch(q); };
  if (!has(bug::rows_before_revision)) return read<changes>(query, failure, std::move(then));
  read<changes>(query, failure, [this, q, failure, then](changes rows) {
    read<changes>(
        [this, q, rows] {
          auto late = rows;
          late.revision = to_.db.now.partitions.at(q.partition).revision;
          return late;
        },
        failure, then);
  });
}

void store_link::adopt(const adopt_rivals& q, std::function<void(loaded)> then) {
  read<loaded>([this, q] { return adopt_now(q.partition, q.epoch); }, no_rows, std::move(then), true);
}

void store_link::next_stream(std::function<void(std::optional<std::int64_t>)> then) {
  using number = std::optional<std::int64_t>;
  read<number>([this]() -> std::optional<number> { return number{to_.db.now.next_stream++}; },
               [](std::string) -> number { return std::nullopt; }, std::move(then));
}

}  // namespace warren::simulation
