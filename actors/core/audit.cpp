// actors/core/audit.cpp -- what a caller's change leaves behind beside the rows.
#include "actors/core/audit.hpp"

#include <utility>

#include <google/protobuf/util/json_util.h>

namespace warren {

std::string json_of(const google::protobuf::Message& message) {
  std::string out;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  (void)google::protobuf::util::MessageToJsonString(message, &out, options);
  return out;
}

void attach_caller(save_request& save, const v1::Command& command, std::string resource, std::string before, std::string after) {
  const auto& caller = command.caller();
  save.audit = audit_entry{command.project(), caller.method(),     std::move(resource), caller.principal(),
                           caller.remote(),   caller.request_id(), std::move(before),   std::move(after)};
  if (!caller.request_id().empty())
    save.request = answered_request{command.project(), caller.method(), caller.request_id(), caller.digest()};
}

}  // namespace warren
