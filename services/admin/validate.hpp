// services/admin/validate.hpp -- from requests to commands that an owner can trust, or to what is wrong with
// each field. Pure: no gRPC, no I/O, no clock.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "actors/core/error.hpp"
#include "warren/admin/v1/admin.pb.h"
#include "warren/core/v1/commands.pb.h"

namespace warren::admin {

namespace corev1 = warren::core::v1;
namespace api = warren::admin::v1;

/// How a request calls what its command and the owner's answer call otherwise.
struct request_names {
  std::string prefix;  ///< of the resource's fields: "tunnel."
  std::string id;      ///< of the name: "tunnel_id", "tunnel.name" or "name"
  std::string etag;    ///< "tunnel.etag" or "etag"; empty: it has none
};
/// `field` as the spec or the owner names it ("class", "rules[0].target", "name") in the request's words.
std::string request_field(const request_names& names, std::string_view field);

/// A command whose every field is within its limits and in its stored spelling; project, method and request
/// id are filled in. With violations, the command is not to be used.
struct checked_command {
  corev1::Command command;
  std::vector<violation> violations;
  request_names names;
};

checked_command check(const api::CreateTunnelRequest& r);
checked_command check(const api::UpdateTunnelRequest& r);
checked_command check(const api::DeleteTunnelRequest& r);
checked_command check(const api::CreateConnectorRequest& r);
checked_command check(const api::UpdateConnectorRequest& r);
checked_command check(const api::DeleteConnectorRequest& r);
checked_command check(const api::EnrolConnectorRequest& r);
checked_command check(const api::RotateConnectorKeyRequest& r);
checked_command check(const api::CreateGatewayRequest& r);
checked_command check(const api::UpdateGatewayRequest& r);
checked_command check(const api::DeleteGatewayRequest& r);
checked_command check(const api::CreateConnectorClassRequest& r);
checked_command check(const api::UpdateConnectorClassRequest& r);
checked_command check(const api::DeleteConnectorClassRequest& r);
checked_command check(const api::CreateGatewayClassRequest& r);
checked_command check(const api::UpdateGatewayClassRequest& r);
checked_command check(const api::DeleteGatewayClassRequest& r);

/// SHA-256 of what the command asks for, hex: equal for equal requests, whoever sends them from where.
std::string digest_of(const corev1::Command& command);

/// The parts of a resource name. `project` is empty for what belongs to none.
struct resource_name {
  std::string project, name;
};
/// `collection`: "tunnels", "connectors" (in a project), "gateways", … (in none). Errors: a violation of `field`.
std::optional<resource_name> parse_name(std::string_view name, std::string_view collection, std::string_view field,
                                        std::vector<violation>& out);
/// The project of "projects/{project}"; empty for "projects/-" where `all_allowed`.
std::optional<std::string> parse_parent(std::string_view parent, bool all_allowed, std::vector<violation>& out);

std::string tunnel_name(std::string_view project, std::string_view name);
std::string connector_name(std::string_view project, std::string_view name);

/// 0 is the default; beyond the maximum is cut to it, as AIP-158 has it; negative is a violation.
int page_size(std::int32_t asked, std::vector<violation>& out);
/// At most `bytes_max` of printable UTF-8.
void check_text(std::string_view text, std::size_t bytes_max, std::string_view field, std::vector<violation>& out);

inline constexpr std::size_t filter_bytes_max = 2048;
inline constexpr std::size_t token_bytes_max = 16 * 1024;  // a watch token names each partition
inline constexpr std::size_t etag_bytes_max = 128;
inline constexpr int update_mask_paths_max = 32;           // more than any resource has fields

}  // namespace warren::admin
