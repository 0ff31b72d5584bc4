// services/admin/call.cpp -- what the services of this room share.
#include "services/admin/call.hpp"

#include "actors/core/listen.hpp"
#include "services/telemetry/logging.hpp"

namespace warren::admin {

const char* call::code_name(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK: return "OK";
    case grpc::StatusCode::CANCELLED: return "CANCELLED";
    case grpc::StatusCode::INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case grpc::StatusCode::DEADLINE_EXCEEDED: return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::NOT_FOUND: return "NOT_FOUND";
    case grpc::StatusCode::ALREADY_EXISTS: return "ALREADY_EXISTS";
    case grpc::StatusCode::PERMISSION_DENIED: return "PERMISSION_DENIED";
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::FAILED_PRECONDITION: return "FAILED_PRECONDITION";
    case grpc::StatusCode::ABORTED: return "ABORTED";
    case grpc::StatusCode::OUT_OF_RANGE: return "OUT_OF_RANGE";
    case grpc::StatusCode::UNAVAILABLE: return "UNAVAILABLE";
    default: return "INTERNAL";
  }
}

namespace {

constexpr std::size_t reason_bytes_max = 256;

/// The trace that the caller is in (W3C Trace Context), if it says so.
std::string trace_of(const grpc::CallbackServerContext& of) {
  const auto at = of.client_metadata().find("traceparent");
  if (at == of.client_metadata().end() || at->second.size() < 35) return {};
  const std::string trace{at->second.data() + 3, 32};
  return protocol::unhex(trace) ? trace : std::string{};
}

}  // namespace

void call::log(const grpc::Status& status) const {
  using enum grpc::StatusCode;
  const auto code = status.error_code();
  const bool ours = code == UNAVAILABLE || code == INTERNAL || code == RESOURCE_EXHAUSTED;
  if (!ours && !spdlog::default_logger_raw()->should_log(spdlog::level::debug)) return;
  const auto ms = std::chrono::duration_cast<millis>(std::chrono::steady_clock::now() - started_).count();
  static telemetry::once_a_second failures;
  if (ours)
    failures.log(spdlog::level::warn, "a change was not made, or it is not known whether it was",
                 {{"method", method_}, {"project", project_}, {"request_id", request_id_}, {"trace_id", trace_of(of_)},
                  {"code", code_name(code)}, {"error", status.error_message()}, {"ms", ms}});
  else
    telemetry::log(spdlog::level::debug, "a change was answered",
                   {{"method", method_}, {"project", project_}, {"request_id", request_id_}, {"trace_id", trace_of(of_)},
                    {"code", code_name(code)}, {"ms", ms}});
}

void tell_age(context& shared, grpc::CallbackServerContext& of, std::int64_t age_ms) {
  if (age_ms < 0) return;
  of.AddTrailingMetadata("warren-data-age-ms", std::to_string(age_ms));
  if (age_ms < limits::data_age_shown / 1ms || !shared.config.away) return;
  auto reason = shared.config.away();
  if (reason.empty()) reason = "its owner is not heard";
  reason.resize(std::min(reason.size(), reason_bytes_max));
  for (auto& c : reason)
    if (c < ' ' || c > '~') c = '?';  // nothing else fits into metadata
  of.AddTrailingMetadata("warren-data-age-reason", reason);
}

bool is_local_peer(std::string_view peer) {
  return peer.starts_with("ipv4:127.") || peer.starts_with("ipv6:[::1]") || peer.starts_with("ipv6:%5B::1%5D") ||
         peer.starts_with("ipv6:[::ffff:127.") || peer.starts_with("ipv6:%5B::ffff:127.") || peer.starts_with("unix:");
}

bool is_local_address(std::string_view listen) {
  const auto at = parse_listen(listen);
  return at && is_local(*at);
}

std::string principal_of(const grpc::CallbackServerContext& of) {
  if (!is_local_peer(of.peer())) return "unknown";
  const auto& metadata = of.client_metadata();
  const auto at = metadata.find("warren-principal");
  if (at == metadata.end()) return "local";
  const std::string_view said{at->second.data(), at->second.size()};
  return !said.empty() && said.size() <= 128 && protocol::is_printable_utf8(said) ? std::string{said} : "local";
}

grpc::Status warm_enough(const replica::tables& tables, partition_id partition) {
  const auto at = tables.partitions.find(partition);
  const bool warm = partition < 0 ? tables.warm : at != tables.partitions.end() && at->second.warm;
  if (warm) return grpc::Status::OK;
  error_details details;
  details.retry_after = 200ms;
  return error_status(errc::unavailable, "this instance is still reading the database", details);
}

}  // namespace warren::admin
