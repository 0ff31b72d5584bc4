// services/store/group.hpp -- one group commit: fence, judge, write. Knows no threads and does not reconnect.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/ids.hpp"
#include "actors/core/save.hpp"
#include "services/store/session.hpp"
#include "warren/bus/v1/bus.pb.h"

namespace warren::sql {

namespace busv1 = warren::bus::v1;

/// What a transition touches: rows, host names, keys, its request id. Two transitions that share one of these
/// are never in one group.
std::vector<std::string> touched_keys(const save_request& r);

/// A partition whose revision a transaction has raised.
struct fenced {
  partition_id partition = 0;
  epoch_t epoch = 0;
  revision_t revision = 0;
};

struct group_result {
  std::vector<save_result> answers;          ///< one for each transition
  std::vector<busv1::Revision> revisions;    ///< empty when nothing was written
  std::map<std::string, int> rows_written;   ///< by table
};

/// Runs one group in one transaction. `before_commit` is told which partitions the transaction has raised and
/// what it would answer, so that an undecided commit can be looked up.
/// Errors: throws what pqxx throws; the transaction is then rolled back, or undecided.
void run_group(session& s, instance_id me, const std::vector<const save_request*>& group,
               const std::function<void(std::vector<fenced>, group_result)>& before_commit);

/// Rows that a rival marked, made ours at a new revision. With `named`, only those rows.
/// Returns nothing when the partition is not ours.
struct adoption {
  fenced at;
  busv1::Revision revision;  ///< rows adopted, tombstones included; none: nothing was written
  int skipped = 0;           ///< rows that another session holds: to be tried again
  std::vector<v1::Row> bereft;  ///< tunnels of which a claim or an attachment was deleted; they need not be written
};
std::optional<adoption> run_adoption(session& s, instance_id me, partition_id partition, epoch_t epoch,
                                     const std::vector<v1::Row>* named,
                                     const std::function<void(const adoption&)>& before_commit);

/// Whether an undecided transaction was committed: nothing, while another session still holds the rows.
enum class fate : std::uint8_t { committed, rolled_back, lost };
std::map<partition_id, fate> look_up(session& s, instance_id me, const std::vector<fenced>& raised);

}  // namespace warren::sql
