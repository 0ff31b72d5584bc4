// services/store/store.hpp -- what the rest of Warren sees of the database. No pqxx, no CAF.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/ids.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/save.hpp"
#include "actors/messages.hpp"
#include "services/store/lineage.hpp"

namespace warren {

struct store_config {
  std::string conninfo;               ///< libpq connection string or URI
  instance_id instance = 0;           ///< from lease_store::start
  int lanes = limits::store_lanes;
  int readers = 2;                    ///< connections that only read
  millis lease{3'000};                ///< of the instance: what is not known for longer is another owner's to find out
  millis give_up{2'000};              ///< a write or read that waited so long for a database is `unavailable`
  millis whole_read{20'000};          ///< how long reading a whole partition may take
  millis purge_every{60'000};
  counters* count = nullptr;          ///< may be null; outlives the store
  std::shared_ptr<lineage> history;   ///< shared with the lease store; null: one of its own

  /// Every transaction of ours, in order of revisions within a partition, before whoever saved is answered.
  /// Runs on: a lane's thread; must not block (send a message).
  std::function<void(const busv1::Revision&)> on_commit;
  /// A rival touched this partition; -1: perhaps any (notifications may have been missed).
  std::function<void(partition_id)> on_rival;
  /// Whether the database can be worked with; called at each change, first when that is first known.
  std::function<void(bool up, const std::string& reason)> on_state;
};

/// One recorded change. Times are milliseconds since 1970.
struct audit_event {
  std::int64_t id = 0, at_ms = 0;
  std::string project, method, resource, principal, remote, request_id, before_json, after_json;
};

/// Writes in group commits and reads. Thread-safe. Callbacks run on the store's threads, each exactly once,
/// and must not block.
class store {
public:
  /// Does not connect yet.
  explicit store(store_config config);
  ~store();
  store(const store&) = delete;
  store& operator=(const store&) = delete;

  void start();
  /// Answers what is waiting with `unavailable` and joins the threads. Never from a callback.
  void stop();

  void save(save_request request, std::function<void(save_result)> then);
  void load(load_entity what, std::function<void(loaded)> then);
  void load(load_partition what, std::function<void(loaded)> then);
  void find(find_answer what, std::function<void(save_result)> then);
  void load(load_naming what, std::function<void(loaded)> then);
  void adopt(adopt_rivals what, std::function<void(loaded)> then);
  void fetch(fetch_changes what, std::function<void(changes)> then);

  /// Newest first: events with an id below `before_id` (0: from the newest), of `project` (empty: of all). No more after
  /// the one with which what was before and after comes to more than page_bytes_max.
  /// An error text instead when the database is away.
  void list_audit(std::string project, std::int64_t before_id, int limit,
                  std::function<void(std::string error, std::vector<audit_event>)> then);
  /// A number for a gateway's stream: of two, the higher is the newer. Nothing when the database is away.
  void next_gateway_stream(std::function<void(std::optional<std::int64_t>)> then);
  /// Forgets what is too old: tombstones of the partitions that this instance owns, request ids, audit events.
  /// Happens by itself every `purge_every`; here for tests and operators.
  void purge(std::function<void(std::string error)> then = {});

  bool up() const;
  /// Of the database, as last seen; 0 before the first connection.
  std::int64_t incarnation() const;
  int partitions() const;

private:
  class impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren
