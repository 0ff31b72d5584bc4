// services/admin/call.cpp -- what the services of this room share.
#include "services/admin/call.hpp"

#include "actors/core/listen.hpp"

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
