// actors/connector/spec.hpp -- what a connector's spec and its agent's addressing may say, and their one
// spelling. Pure: no CAF, no I/O, no clock.
// The API refuses by these rules; the machine judges by them what agents report and rows written around the API.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "actors/core/error.hpp"
#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/commands.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren::connector {

namespace v1 = warren::core::v1;
namespace busv1 = warren::bus::v1;

/// Fills in the defaults (class "default", a lease of 30 s) of the named fields ("class",
/// "lease_duration_ms"; none named: all) and returns all that is wrong with them.
std::vector<violation> canonicalise(v1::ConnectorSpec& spec, const std::vector<std::string>& fields = {});

/// The first thing that is wrong with a spec as it is stored.
std::optional<violation> check_spec(const v1::ConnectorSpec& spec);

/// Nothing, or why this is no public key: 64 lower-case hex digits, a point of the curve or not.
std::optional<violation> check_public_key(std::string_view key);

/// Nothing, or why this is no lease.
std::optional<violation> check_lease(std::int64_t lease_duration_ms);

/// What of a stored row makes it unusable whatever its agent reports: its key, its lease.
std::optional<violation> check_own_fields(const v1::ConnectorRow& row);
/// Whether a row's addressing_error names one of these fields, which an operator has to correct in the row.
bool is_of_row(std::string_view addressing_error);

/// What of a stored row no gateway can be told, whoever wrote it: its key, or how it is reached. Nothing of such a row
/// is routed to (tunnel/routing), and its condition names the field.
std::optional<violation> check_row(const v1::ConnectorRow& row);

/// A CIDR network, "10.0.0.0/8" or "fd00::/8"; nullopt when `text` is none. Host bits must be zero.
struct network {
  bool v6 = false;
  std::string bytes;   ///< 4 or 16
  int prefix = 0;
};
std::optional<network> parse_network(std::string_view text);
/// The same in the one spelling that is stored.
std::optional<std::string> canonical_network(std::string_view text);

/// Addressing in the spelling that is stored: addresses canonical, sorted, each once; or what is wrong.
struct judged_addressing {
  std::string home_relay;
  std::vector<std::string> addresses;
  std::optional<violation> error;
};

/// Judges what an agent reports. Addresses must lie in `allowed_networks`; loopback, link-local, multicast
/// and unspecified ones only where a network names them, that is, lies itself within the special range.
judged_addressing judge_addressing(const busv1::Addressing& reported,
                                   const google::protobuf::RepeatedPtrField<std::string>& allowed_networks);

}  // namespace warren::connector
