// services/store/lineage.hpp -- which life of the database this is: what it says of itself against what this
// process remembers. The judgement is pure; the memory is thread-safe. No SQL, no pqxx, no CAF.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>

#include "actors/core/ids.hpp"

namespace warren {

/// A database as a new connection finds it.
struct database_life {
  std::optional<std::int64_t> recorded_identifier;  ///< in `installation`; none: not looked at yet
  std::optional<std::int64_t> identifier;           ///< of the cluster; none: it may not be read
  std::optional<int> recorded_timeline;
  int timeline = 0;                                 ///< of the WAL that is being written
  std::int64_t incarnation = 0;
  std::map<partition_id, revision_t> revisions;
  int partitions = 0;                               ///< as fixed when it was initialised, whatever rows there are
};

/// What a process has seen since it started.
struct remembered_life {
  std::int64_t incarnation = 0;  ///< 0: nothing
  std::optional<std::int64_t> identifier;
  int timeline = 0;
  std::map<partition_id, revision_t> revisions;  ///< the highest that is known to be committed
};

struct life_verdict {
  enum class what : std::uint8_t {
    same,     ///< go on
    first,    ///< nobody has looked yet, or not at all of it: record what there is
    another,  ///< it went back in time, or is another cluster: raise everything to `incarnation`
    former,   ///< a primary of an earlier timeline than was seen already: nothing of it may be read or written
  };
  what is = what::same;
  std::int64_t incarnation = 0;
};

/// Recognised: another timeline (a promoted standby, a recovery to a point in time), another cluster, and, by a
/// process that remembers more, an older copy of the same cluster on the same timeline. The last is not
/// recognised by a process that has just started: whoever puts such a copy back calls warren_restored().
life_verdict judge_life(const database_life& now, const remembered_life& memory);

/// One for each process, shared by all that connect: connections on an earlier life are ended by it.
class lineage {
public:
  remembered_life look() const;
  /// A connection has found, or has made, this life.
  void settled(std::int64_t incarnation, std::optional<std::int64_t> identifier, int timeline);
  /// Somebody was told so by the database.
  void incarnation_seen(std::int64_t incarnation);
  /// Committed, or read as committed, in that incarnation.
  void revision_seen(std::int64_t incarnation, partition_id partition, revision_t revision);
  /// The newest that was seen; 0: none.
  std::int64_t incarnation() const { return incarnation_; }
  /// Whether a transaction that raises the partition to this revision would repeat one that was seen.
  bool repeats(std::int64_t incarnation, partition_id partition, revision_t revision) const;

private:
  mutable std::mutex mutex_;
  remembered_life memory_;
  std::atomic<std::int64_t> incarnation_{0};
};

}  // namespace warren
