// test/simulation/lease_link.hpp -- one instance's lease, its advisory lock and its partitions' owners, over the simulated
// database: what services/store/lease_store does there, one statement after the other.
#pragma once

#include <deque>
#include <functional>
#include <memory>

#include "test/simulation/database.hpp"
#include "test/simulation/store_link.hpp"
#include "test/simulation/timeline.hpp"

namespace warren::simulation {

class lease_link : public std::enable_shared_from_this<lease_link> {
public:
  struct wiring {
    timeline& time;
    database& db;
    const store_weather& weather;
    const store_link& way;  ///< cut together with it
    instance_id me = 0;
    std::int64_t ttl_ms = 3'000;
    std::function<void(std::function<void()>)> deliver;
    std::function<void(const std::string&)> step_down;
  };
  lease_link(wiring w, std::uint64_t lock_session) : to_{std::move(w)}, lock_session_{lock_session} {}

  /// Takes the lock and writes the row. Nothing: the name is held by somebody alive.
  static std::optional<instance_id> enter(database& db, const std::string& name, std::int64_t ttl_ms, std::uint64_t session);
  /// Removes the row, as a process that stops does.
  void leave();

  void renew(const renew_lease& q, std::function<void(placement_view)> then);
  void take(const take_partitions& q, std::function<void(placement_view)> then);
  void release(const release_partition& q, std::function<void(placement_view)> then);
  void judge(const judge_instance& q, std::function<void(placement_view)> then);

  /// The process has died: whoever waits is answered, so that its actors can end.
  void abandon();
  /// The connection that held the lock has ended.
  void lose_lock_connection() { lock_session_ = 0; }
  std::uint64_t lock_session() const { return lock_session_; }

private:
  struct statement {
    /// One moment at the database. Nothing: ask again at the next moment.
    std::function<std::optional<placement_view>(lease_link&)> run;
    std::function<void(placement_view)> then;
    std::int64_t since_ms = 0;
  };
  bool has(bug b) const { return to_.db.planted != nullptr && to_.db.planted->count(b) > 0; }
  void push(statement s);
  void next();
  void run();
  void answer(placement_view v);
  void later(std::int64_t ms, std::function<void(lease_link&)> what);
  /// False: another session holds it, and the instance has to step down.
  bool hold_lock();

  wiring to_;
  std::deque<statement> queue_;
  bool busy_ = false;
  std::uint64_t lock_session_ = 0;  // 0: lost
  bool lock_taken_again_ = false;   // since the last renewal
  placement_view last_;             // of the last renewal (a planted bug)
};

/// Numbers of database sessions.
std::uint64_t fresh_session(timeline& t);

}  // namespace warren::simulation
