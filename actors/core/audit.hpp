// actors/core/audit.hpp -- what a caller's change leaves behind beside the rows: an entry of the audit trail, and the answer
// to its repetition.
#pragma once

#include <string>

#include "actors/core/save.hpp"

namespace warren {

/// As JSON, with the schema's names.
std::string json_of(const google::protobuf::Message& message);

/// A row for the audit trail. What is written gets its revision from the store, so none is shown.
template <class Row> std::string audit_json(Row row) {
  row.clear_version();
  row.clear_route_version();
  return json_of(row);
}

/// `before` and `after` are audit_json, empty: did not exist / is gone.
void attach_caller(save_request& save, const v1::Command& command, std::string resource, std::string before, std::string after);

}  // namespace warren
