// actors/tunnel/spec.hpp -- what a tunnel's spec may say, and its one spelling. Pure: no CAF, no I/O, no clock.
// The API refuses by these rules, the machine judges rows by them that were written around the API.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "actors/core/error.hpp"
#include "warren/core/v1/commands.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren::tunnel {

namespace v1 = warren::core::v1;

/// The spelling that is stored, or why there is none.
struct canonical {
  std::string value;
  std::string error;  ///< in words, without the sender's bytes; empty: `value` is good
  explicit operator bool() const { return error.empty(); }
};

/// A public host name: lower-case A-labels without the final dot, at least two, at most 253 characters; no
/// wildcard, no address. Letters outside ASCII become A-labels ("xn--…": IDNA2008 after the mapping of UTS 46); an
/// A-label that stands for none is refused.
canonical canonical_hostname(std::string_view text);
/// "http://host:port" or "https://host:port", always with its port; no path, query, fragment, user info.
/// Any host that the agent can resolve is welcome, and any address.
canonical canonical_target(std::string_view text);
/// The bytes with which a visitor's path begins: '/' first, printable ASCII, no '?' and no '#'. Empty is "/".
canonical canonical_path_prefix(std::string_view text);

/// Brings the named fields of the spec ("hostnames", "rules", "gateway_class"; none named: all) into the
/// spelling that is stored, and fills in their defaults.
/// Returns all that is wrong with them, each by its path ("rules[2].target"); sizes are looked at first.
std::vector<violation> canonicalise(v1::TunnelSpec& spec, const std::vector<std::string>& fields = {});

/// The first thing that is wrong with a spec as it is stored, another spelling than the canonical included.
std::optional<violation> check_spec(const v1::TunnelSpec& spec);

/// What of a stored row no agent and no gateway can be told, whoever wrote it: its uid, its rules. Nothing of such a row
/// is attached, its visitors are refused (tunnel/routing), and its condition names the field.
std::optional<violation> check_row(const v1::TunnelRow& row);

}  // namespace warren::tunnel
