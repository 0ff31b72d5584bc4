// test/simulation/lease_link.cpp -- one instance's lease, lock and partitions over the simulated database.
#include "test/simulation/lease_link.hpp"

namespace warren::simulation {

namespace {
constexpr std::int64_t statement_timeout_ms = 1'500;
}

std::uint64_t fresh_session(timeline& t) { return t.store.roll() | 1; }

std::optional<instance_id> lease_link::enter(database& db, const std::string& name, std::int64_t ttl_ms,
                                             std::uint64_t session) {
  std::vector<instance_id> former;
  for (const auto& [id, i] : db.now.instances)
    if (i.name == name) {
      if (db.locks.count(id) > 0) return std::nullopt;
      former.push_back(id);
    }
  for (auto id : former) {
    db.now.instances.erase(id);
    db.end_sessions(id);
  }
  const auto me = db.now.next_instance++;
  if (db.locks.count(me) > 0) return std::nullopt;  // after a database that went back: the number's former owner lives
  db.locks[me] = session;
  db.now.instances[me] = {.name = name, .started_at_ms = db.clock_ms, .expires_at_ms = db.clock_ms + ttl_ms};
  return me;
}

void lease_link::leave() {
  if (!to_.way.reachable()) return;
  to_.db.now.instances.erase(to_.me);
}

void lease_link::abandon() {
  placement_view v;
  v.error = "the process has ended";
  for (auto& s : std::exchange(queue_, {})) s.then(v);
}

void lease_link::later(std::int64_t ms, std::function<void(lease_link&)> what) {
  to_.time.after(ms, [me = weak_from_this(), what = std::move(what)] {
    if (auto alive = me.lock()) what(*alive);
  });
}

void lease_link::push(statement s) {
  s.since_ms = to_.time.now_ms();
  queue_.push_back(std::move(s));
  if (!busy_) next();
}

void lease_link::next() {
  if (queue_.empty()) return;
  busy_ = true;
  queue_.front().since_ms = to_.time.now_ms();
  later(to_.weather.way(to_.time.store), [](lease_link& l) { l.run(); });
}

bool lease_link::hold_lock() {
  if (lock_session_ != 0) return true;
  if (to_.db.locks.count(to_.me) > 0) return false;
  lock_session_ = fresh_session(to_.time);
  to_.db.locks[to_.me] = lock_session_;
  lock_taken_again_ = true;
  return true;
}

void lease_link::run() {
  auto& s = queue_.front();
  if (!to_.way.reachable()) {
    if (to_.time.now_ms() - s.since_ms < statement_timeout_ms) return later(50, [](lease_link& l) { l.run(); });
    placement_view v;
    v.error = "the database is away";
    if (has(bug::lease_outlived) && last_.renewed) v = last_;
    return answer(std::move(v));
  }
  auto result = s.run(*this);
  if (!result) return later(1, [](lease_link& l) { l.run(); });
  later(to_.weather.way(to_.time.store), [v = std::move(*result)](lease_link& l) {
    if (l.to_.way.reachable()) return l.answer(v);
    l.run();  // what a lost one may have done is judged anew
  });
}

void lease_link::answer(placement_view v) {
  to_.deliver([me = weak_from_this(), v = std::move(v)] {
    auto alive = me.lock();
    if (!alive || alive->queue_.empty()) return;
    auto then = std::move(alive->queue_.front().then);
    alive->queue_.pop_front();
    alive->busy_ = false;
    alive->next();
    then(v);
  });
}

void lease_link::renew(const renew_lease& q, std::function<void(placement_view)> then) {
  push({.run = [q](lease_link& l) -> std::optional<placement_view> {
          placement_view v;
          if (!l.hold_lock()) {
            v.error = "another session holds this instance's lock";
            l.to_.deliver([step_down = l.to_.step_down, why = v.error] { step_down(why); });
            return v;
          }
          v = l.to_.db.renew(l.to_.me, q, l.to_.ttl_ms);
          if (!v.renewed) {
            v.error = "this instance's row is gone from the database";
            l.to_.deliver([step_down = l.to_.step_down, why = v.error] { step_down(why); });
          }
          v.reconnected = std::exchange(l.lock_taken_again_, false);
          l.last_ = v;
          return v;
        },
        .then = std::move(then)});
}

void lease_link::take(const take_partitions& q, std::function<void(placement_view)> then) {
  auto judged = std::make_shared<std::vector<partition_row>>();
  push({.run = [q, judged](lease_link& l) -> std::optional<placement_view> {
          auto& db = l.to_.db;
          if (judged->empty()) {
            for (auto id : q.partitions)
              if (db.judge_owner(l.to_.me, id)) judged->push_back(db.now.partitions.at(id));
            // A superseded holder that is paused keeps its row locks for as long as its sessions live.
            for (const auto& p : *judged)
              if (p.owner != 0 && p.owner != l.to_.me) db.end_sessions(p.owner);
            if (judged->empty()) return db.view();
            return std::nullopt;
          }
          std::vector<partition_id> taken;
          for (const auto& p : std::exchange(*judged, {}))  // asked again, they are judged anew
            if (db.take(l.to_.me, p.id, p)) taken.push_back(p.id);
          for (auto id : taken) l.to_.time.record("take", fmt::format("{} by {}", id, l.to_.me));
          return db.view(false, std::move(taken));
        },
        .then = std::move(then)});
}

void lease_link::release(const release_partition& q, std::function<void(placement_view)> then) {
  push({.run = [q](lease_link& l) -> std::optional<placement_view> {
          if (l.to_.db.is_locked(q.partition)) return std::nullopt;
          l.to_.time.record("release", fmt::format("{} by {}", q.partition, l.to_.me));
          l.to_.db.release(l.to_.me, q);
          return l.to_.db.view();
        },
        .then = std::move(then)});
}

void lease_link::judge(const judge_instance& q, std::function<void(placement_view)> then) {
  push({.run = [q](lease_link& l) -> std::optional<placement_view> {
          if (q.instance != 0 && q.instance != l.to_.me && l.to_.db.end_lease_of_dead(q.instance)) {
            l.to_.time.record("dead", fmt::format("{} says {}", q.instance, l.to_.me));
            l.to_.db.end_sessions(q.instance);
          }
          return l.to_.db.view();
        },
        .then = std::move(then)});
}

}  // namespace warren::simulation
