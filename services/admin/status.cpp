// services/admin/status.cpp -- the one table from our errors to gRPC's, and their details. No I/O.
#include "services/admin/status.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace warren::admin {

namespace {

struct row {
  errc code;
  grpc::StatusCode grpc;
};
constexpr std::array<row, errc_names.size()> table{{
    {errc::none, grpc::StatusCode::OK},
    {errc::invalid, grpc::StatusCode::INVALID_ARGUMENT},
    {errc::not_found, grpc::StatusCode::NOT_FOUND},
    {errc::already_exists, grpc::StatusCode::ALREADY_EXISTS},
    {errc::aborted, grpc::StatusCode::ABORTED},
    {errc::failed_precondition, grpc::StatusCode::FAILED_PRECONDITION},
    {errc::permission_denied, grpc::StatusCode::PERMISSION_DENIED},
    {errc::not_owner, grpc::StatusCode::UNAVAILABLE},
    {errc::unavailable, grpc::StatusCode::UNAVAILABLE},
    {errc::overloaded, grpc::StatusCode::RESOURCE_EXHAUSTED},
    {errc::out_of_range, grpc::StatusCode::OUT_OF_RANGE},
    {errc::superseded, grpc::StatusCode::FAILED_PRECONDITION},
    {errc::internal, grpc::StatusCode::INTERNAL},
}};
static_assert([] {
  for (std::size_t i = 0; i < table.size(); ++i)
    if (table[i].code != static_cast<errc>(i)) return false;
  return true;
}(), "every errc has its row, in the order of the enum");

constexpr std::string_view domain = "warren";
// Trailing metadata has to stay below the 8 KiB that most clients take, and travels in base 64.
constexpr std::size_t violations_bytes_max = 4 * 1024;

std::string upper(std::string_view text) {
  std::string out{text};
  for (char& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return out;
}

void add_violations(google::rpc::Status& status, const std::vector<violation>& violations) {
  if (violations.empty()) return;
  google::rpc::BadRequest bad;
  std::size_t bytes = 0;
  for (const auto& each : violations) {
    bytes += each.field.size() + each.message.size() + 8;
    if (bytes > violations_bytes_max) break;  // the message says how many there are
    auto& v = *bad.add_field_violations();
    v.set_field(each.field);
    v.set_description(each.message);
  }
  status.add_details()->PackFrom(bad);
}

void add_retry(google::rpc::Status& status, millis after) {
  if (after.count() <= 0) return;
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(after.count() / 1000);
  retry.mutable_retry_delay()->set_nanos(static_cast<std::int32_t>(after.count() % 1000) * 1'000'000);
  status.add_details()->PackFrom(retry);
}

}  // namespace

grpc::StatusCode grpc_code(errc code) { return table.at(static_cast<std::size_t>(code)).grpc; }

grpc::Status error_status(errc code, const std::string& message, const error_details& details) {
  google::rpc::Status status;
  status.set_code(static_cast<int>(grpc_code(code)));
  status.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(upper(to_string(code)));
  info.set_domain(std::string{domain});
  if (!details.etag.empty()) (*info.mutable_metadata())["etag"] = details.etag;
  status.add_details()->PackFrom(info);
  add_violations(status, details.violations);
  add_retry(status, details.retry_after);
  if (!details.request_id.empty()) {
    google::rpc::RequestInfo request;
    request.set_request_id(details.request_id);
    status.add_details()->PackFrom(request);
  }
  return {grpc_code(code), message, status.SerializeAsString()};
}

grpc::Status invalid_status(std::vector<violation> violations) {
  std::string message = "the request is invalid";
  if (!violations.empty()) message = fmt::format("{}: {}", violations.front().field, violations.front().message);
  if (violations.size() > 1) message += fmt::format(" (and {} more)", violations.size() - 1);
  error_details details;
  details.violations = std::move(violations);
  return error_status(errc::invalid, message, details);
}

grpc::Status reply_status(const corev1::Reply& reply, const request_names& names, const std::string& request_id) {
  const auto code = errc_from(reply.code()).value_or(errc::internal);
  if (code == errc::none) return grpc::Status::OK;
  error_details details;
  details.etag = reply.etag();
  details.retry_after = millis{reply.retry_after_ms()};
  details.request_id = request_id;
  std::string message = reply.message().empty() ? reply.code() : reply.message();
  if (!reply.field().empty()) {
    const auto field = request_field(names, reply.field());
    details.violations.push_back({field, message});
    if (code == errc::invalid) message = fmt::format("{}: {}", field, message);
  }
  return error_status(code, message, details);
}

error_details details_of(const grpc::Status& status) {
  error_details out;
  google::rpc::Status parsed;
  if (!parsed.ParseFromString(status.error_details())) return out;
  for (const auto& any : parsed.details()) {
    google::rpc::BadRequest bad;
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    google::rpc::RequestInfo request;
    if (any.UnpackTo(&bad)) {
      for (const auto& v : bad.field_violations()) out.violations.push_back({v.field(), v.description()});
    } else if (any.UnpackTo(&info)) {
      if (const auto at = info.metadata().find("etag"); at != info.metadata().end()) out.etag = at->second;
    } else if (any.UnpackTo(&retry)) {
      out.retry_after = millis{retry.retry_delay().seconds() * 1000 + retry.retry_delay().nanos() / 1'000'000};
    } else if (any.UnpackTo(&request)) {
      out.request_id = request.request_id();
    }
  }
  return out;
}

}  // namespace warren::admin
