// actors/core/save.hpp -- what a transition asks the store to write, and what the store answers. No CAF, no I/O.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "actors/core/error.hpp"
#include "actors/core/ids.hpp"
#include "warren/core/v1/commands.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren {

namespace v1 = warren::core::v1;

/// One row of a transition. The store sets `version` (and `route_version`, when `routes`) to the revision
/// of its transaction; the images in `saved` carry them.
struct row_write {
  enum class op : std::uint8_t {
    insert,  ///< the row must not exist; `expected` is ignored
    update,  ///< the row must be at `expected`
    erase,   ///< the row must be at `expected`. A tombstone stays; `row`, of which only the key matters, is in `saved` as it is
  };
  op what = op::update;
  v1::Row row;
  std::int64_t expected = 0;
  bool routes = false;  ///< gateways have to know this change
};

/// The caller's change, written in the same transaction: who, what, before and after.
struct audit_entry {
  std::string project, method, resource, principal, remote, request_id;
  std::string before_json, after_json;  ///< empty: did not exist / is gone
};

/// Makes a caller's request repeatable: the reply (with `row` filled from the first write) is kept under
/// (project, method, request_id) for 24 h.
struct answered_request {
  std::string project, method, request_id, digest;
};

/// Host names that a tunnel takes and gives back, all or none. Claim rows are written by the store, which
/// draws their numbers from the sequence.
struct claim_change {
  std::string project, tunnel, tunnel_uid;
  std::vector<std::string> claim, drop;
};

/// One transition: succeeds or fails as a whole.
struct save_request {
  std::string write;  ///< for warren_conflicts_total{write="…"}: "tunnel_spec", "tunnel_status", …
  partition_id partition = 0;
  epoch_t epoch = 0;
  std::vector<row_write> rows;
  std::optional<claim_change> claims;
  std::optional<audit_entry> audit;
  std::optional<answered_request> request;
};

struct saved {
  revision_t revision = 0;
  std::vector<v1::Row> rows;    ///< as written, in the order of the request
};
struct save_conflict {          ///< nothing was written: read again
  std::string what;             ///< which row or host name lock
};
struct save_lost {};            ///< the partition is no longer ours
struct save_refused {           ///< will not succeed by trying again
  errc code = errc::invalid;
  std::string field, message;
};
struct save_replayed {          ///< this request id was answered before
  v1::Reply reply;
};
struct save_unavailable {       ///< the database is away; nothing was written
  std::string message;
};

using save_result =
    std::variant<saved, save_conflict, save_lost, save_refused, save_replayed, save_unavailable>;

}  // namespace warren
