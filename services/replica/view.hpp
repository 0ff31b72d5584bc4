// services/replica/view.hpp -- this instance's read copy of all rows, by revision: what lists, watches and
// routes are made of. Written by the replica actor alone, read from any thread. No CAF, no I/O.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "services/replica/derivation.hpp"
#include "services/replica/listeners.hpp"
#include "services/replica/rows.hpp"
#include "services/replica/tables.hpp"

namespace warren::replica {

/// Thread-safe. Subscribers are called on the writer's thread, in order of revisions, without the lock
/// held; they must not block (send a message).
class view {
public:
  using subscriber = subscribers::call;

  template <class F> auto read(F&& f) const {
    std::shared_lock lock{mutex_};
    return f(tables_);
  }

  /// Returns a token for unsubscribe.
  int subscribe(subscriber s) { return subscribers_.add(std::move(s)); }
  /// The subscriber is not called any more once this returns (on its own thread: after the present call).
  void unsubscribe(int token) { subscribers_.remove(token); }

  /// Calls `then` once the copy has `revision` of `partition` (at once when it has), from the writer's
  /// thread or this one; with false after the deadline (checked when the writer ticks).
  void when_seen(partition_id partition, revision_t revision, std::int64_t deadline_steady_ms,
                 std::function<void(bool seen)> then);

  // ---- writing: the replica actor only ----

  /// The result of applying a hint: applied, already known, or a gap that must be fetched.
  enum class applied : std::uint8_t { yes, known, gap };
  applied apply(const busv1::Revision& hint, std::int64_t steady_ms, std::int64_t wall_ms);
  /// Rows read from the store; `complete`: what is not in it does not exist.
  void apply_fetched(partition_id partition, bool complete, revision_t revision, epoch_t epoch,
                     const std::vector<v1::Row>& rows, std::int64_t steady_ms, std::int64_t wall_ms,
                     revision_t tombstones_from = -1, std::int64_t incarnation = 0);
  /// How far the copy of a partition is; -1: it has not been read yet.
  revision_t revision(partition_id partition) const;
  /// What to ask the store for after a gap: changes after this revision; 0: everything.
  revision_t fetch_after(partition_id partition) const;
  void apply_ack(const busv1::GatewayAck& ack, std::int64_t steady_ms, std::int64_t wall_ms);
  /// Expires reports and waits; called about ten times a second.
  void tick(std::int64_t steady_ms, std::int64_t wall_ms);
  void set_partitions(int partitions, std::int64_t started_steady_ms);

private:
  /// What a hint says before its rows are looked at.
  struct opened {
    applied result = applied::known;
    bool rows = false;  ///< they are to be applied
    bool owner = false;
  };
  opened open_hint(const busv1::Revision& hint, std::int64_t steady_ms);
  void finish(application& a);
  void prune_deletions(std::int64_t wall_ms);

  mutable std::shared_mutex mutex_;
  tables tables_;
  // Guarded by mutex_, the writer's own:
  row_keeper rows_{tables_};
  derivation derivation_{tables_};
  std::map<partition_id, revision_t> lineage_seen_;  ///< a newer one than ours: read everything
  std::int64_t pruned_at_ms_ = 0;

  subscribers subscribers_;
  revision_waits waits_;
};

}  // namespace warren::replica
