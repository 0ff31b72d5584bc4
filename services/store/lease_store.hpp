// services/store/lease_store.hpp -- the instance's lease and the partitions' owners. No pqxx, no CAF.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "actors/core/limits.hpp"
#include "actors/messages.hpp"
#include "services/store/lineage.hpp"

namespace warren {

struct lease_store_config {
  std::string conninfo;
  std::string name;                       ///< configured, the same at each start of this instance
  millis ttl = limits::instance_lease;
  std::shared_ptr<lineage> history;       ///< shared with the store; null: one of its own
  /// The instance's lock was lost and could not be taken again: step down. Runs on the lease store's thread.
  std::function<void(const std::string& reason)> on_lost;
};

/// Works on two connections of its own, in one thread: nothing else delays a renewal. Thread-safe.
class lease_store {
public:
  explicit lease_store(lease_store_config config);
  ~lease_store();
  lease_store(const lease_store&) = delete;
  lease_store& operator=(const lease_store&) = delete;

  /// Takes the instance's lock, then writes its row. Blocks for seconds at most.
  /// Returns an error text: the database is away, a connection pooler is in between, the name is held by
  /// somebody alive. Empty: running.
  std::string start();
  /// Removes the instance's row, so that nobody waits for its lease, and ends the connections.
  void stop();
  instance_id id() const;

  /// Each answers once, on the lease store's thread.
  void renew(renew_lease what, std::function<void(placement_view)> then);
  void take(take_partitions what, std::function<void(placement_view)> then);
  void release(release_partition what, std::function<void(placement_view)> then);
  void judge(judge_instance what, std::function<void(placement_view)> then);

private:
  class impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren
