// services/admin/status.hpp -- the one table from our errors to gRPC's, and their details. No I/O.
#pragma once

#include <string>
#include <vector>

#include <grpcpp/support/status.h>

#include "actors/core/error.hpp"
#include "actors/core/time.hpp"
#include "services/admin/validate.hpp"
#include "warren/core/v1/commands.pb.h"

namespace warren::admin {

namespace corev1 = warren::core::v1;

/// Every errc has a row.
grpc::StatusCode grpc_code(errc code);

/// What goes into the details beside code and message.
struct error_details {
  std::vector<violation> violations;
  std::string etag;         ///< the current one
  millis retry_after{0};
  std::string request_id;   ///< with which the call may be repeated
};

grpc::Status error_status(errc code, const std::string& message, const error_details& details = {});
/// INVALID_ARGUMENT naming all fields; the message names the first.
grpc::Status invalid_status(std::vector<violation> violations);
/// Of an owner's answer that is not "done"; names the request's field.
grpc::Status reply_status(const corev1::Reply& reply, const request_names& names, const std::string& request_id);

/// The details of a status that came over the wire; empty where it has none.
error_details details_of(const grpc::Status& status);

}  // namespace warren::admin
