// test/simulation/database.hpp -- the promises of services/store and of PostgreSQL under it, kept in memory: fence,
// locks, versions, claims, request ids, tombstones, instances and their locks, the incarnation. Each call happens
// in one moment; who asks, how long it takes and what gets lost is store_link's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/messages.hpp"
#include "test/simulation/bugs.hpp"

namespace warren::simulation {

using row_ref = std::shared_ptr<const v1::Row>;

struct stored_instance {
  std::string name;
  std::int64_t started_at_ms = 0, expires_at_ms = 0;
  bool bus_ok = true, draining = false;
};
struct stored_answer {
  std::string digest;
  v1::Reply reply;
  std::int64_t at_ms = 0;
};

/// Everything that a transaction can change. Copied whole, it is a backup.
struct tables {
  std::map<partition_id, partition_row> partitions;
  std::map<partition_id, revision_t> tombstones_from;
  std::map<instance_id, stored_instance> instances;
  std::map<std::string, row_ref> rows;  ///< by "table/key"
  std::map<partition_id, std::vector<v1::TombstoneRow>> tombstones;
  std::map<std::string, stored_answer> answers;  ///< by "project/method/request id"
  std::map<std::string, int> audits;             ///< entries by request id
  std::int64_t incarnation = 1, next_claim = 1, next_instance = 1, next_stream = 1;
};

/// A committed transaction, for whoever checks.
struct committed_transaction {
  instance_id by = 0;
  partition_id partition = 0;
  epoch_t epoch = 0;          ///< what the writer believed
  partition_row before;       ///< the partition as it was
  revision_t revision = 0;
  std::vector<std::pair<row_ref, row_ref>> rows;  ///< before and after; null: there was, or is, none
  std::vector<std::pair<std::uint64_t, const save_request*>> transitions;  ///< ticket and what was stored
};

class database {
public:
  explicit database(int partitions);

  tables now;
  std::int64_t clock_ms = 0;   ///< the database's wall clock; set by whoever lets time pass
  std::map<instance_id, std::uint64_t> locks;  ///< the instances' advisory locks, and which session holds each
  std::set<instance_id> ended_early;           ///< leases that were ended for want of a lock, not by time
  const bugs* planted = nullptr;
  std::function<void(const committed_transaction&)> on_commit;
  std::function<void(partition_id)> on_rival;  ///< NOTIFY
  std::function<void(partition_id, const partition_row& before, instance_id by)> on_take;

  // ---- transactions ----
  enum class begun : std::uint8_t { open, lost, locked };
  struct wanted {
    std::uint64_t ticket = 0;
    const save_request* request = nullptr;
  };
  /// The fence: locks the partition's row until the end. One open transaction per partition and instance.
  begun begin(instance_id me, partition_id partition, epoch_t epoch);
  /// False: the session was ended, the transaction is gone.
  bool is_open(instance_id me, partition_id partition) const;
  /// Judges and writes; ends the transaction. `hint`: what to announce; without rows and revision: nothing written.
  std::vector<save_result> commit(instance_id me, partition_id partition, epoch_t epoch, const std::vector<wanted>& group,
                                  busv1::Revision& hint);
  bool is_locked(partition_id partition) const { return open_.count(partition) > 0; }
  void roll_back(instance_id me, partition_id partition);
  /// Of an undecided transaction that would have made `revision`.
  enum class fate : std::uint8_t { committed, rolled_back, lost, locked };
  fate look_up(instance_id me, partition_id partition, epoch_t epoch, revision_t revision) const;
  /// All transactions of this instance are rolled back.
  void end_sessions(instance_id of);

  // ---- reads ----
  loaded load(const load_entity& q) const;
  loaded load(const load_partition& q, instance_id me) const;
  loaded load(const load_naming& q) const;
  save_result find(const find_answer& q) const;
  changes fetch(const fetch_changes& q) const;
  /// Rows that a rival marked become ours at a new revision. Nothing: the partition is not ours.
  std::optional<loaded> adopt(instance_id me, partition_id partition, epoch_t epoch, busv1::Revision& hint);
  bool is_marked(const load_entity& q) const;
  /// How long nobody had renewed a lease for it when it was last taken.
  std::int64_t unowned_ms(partition_id p) const {
    auto it = unowned_ms_.find(p);
    return it == unowned_ms_.end() ? 0 : it->second;
  }

  // ---- instances and partitions ----
  placement_view view(bool renewed = false, std::vector<partition_id> taken = {}) const;
  placement_view renew(instance_id me, const renew_lease& q, std::int64_t ttl_ms);
  /// Whether it may be taken from whoever has it.
  bool judge_owner(instance_id me, partition_id partition) const;
  /// False: somebody has been quicker, or holds the row.
  bool take(instance_id me, partition_id partition, const partition_row& judged);
  void release(instance_id me, const release_partition& q);
  /// False: somebody holds its lock, or its lease is over anyway.
  bool end_lease_of_dead(instance_id suspect);

  // ---- what happens to databases ----
  void touch_by_rival(const std::string& key);
  /// A failover to a replica that stopped at `backup`: another incarnation.
  void fail_over(const tables& backup);
  void purge();

  static std::string key_of(const v1::Row& r);
  static std::int64_t version_of(const v1::Row& r);
  const v1::Row* row(const std::string& key) const;

private:
  struct open_transaction {
    instance_id me = 0;
    epoch_t epoch = 0;
  };
  bool has(bug b) const { return planted != nullptr && planted->count(b) > 0; }
  std::optional<save_result> judge(const save_request& q) const;
  void write(const save_request& q, revision_t revision, saved& done, busv1::Revision& hint, committed_transaction& log);
  void erase(const std::string& key, revision_t revision, partition_id partition, busv1::Revision& hint,
             committed_transaction& log);
  std::map<partition_id, std::int64_t> owned_at_ms_, unowned_ms_;
  std::multimap<partition_id, open_transaction> open_;  // more than one only with a planted bug
};

}  // namespace warren::simulation
