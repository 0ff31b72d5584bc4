// actors/core/error.hpp -- the errors that some caller acts on differently. No CAF, no I/O.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace warren {

/// Who can react, and how, stands beside each code; the table to gRPC status is in services/admin/status.hpp.
enum class errc : std::uint8_t {
  none,               ///< done
  invalid,            ///< the caller corrects the named field
  not_found,          ///< the caller gives up or creates it
  already_exists,     ///< the caller picks another name
  aborted,            ///< another etag: the caller reads again and decides anew
  failed_precondition,///< the caller changes something else first
  permission_denied,  ///< the caller is not who it says
  not_owner,          ///< whoever forwards tries the next owner, within the caller's deadline
  unavailable,        ///< the caller tries again later: a dependency is away
  overloaded,         ///< the caller waits for retry_after
  out_of_range,       ///< the watcher starts anew: its token is too old
  superseded,         ///< the agent stops: a newer one holds its key
  internal,           ///< nobody: a bug, logged with the request id
};
inline constexpr std::array<std::string_view, 13> errc_names{
    "", "invalid", "not_found", "already_exists", "aborted", "failed_precondition", "permission_denied",
    "not_owner", "unavailable", "overloaded", "out_of_range", "superseded", "internal"};

constexpr std::string_view to_string(errc code) { return errc_names.at(static_cast<std::size_t>(code)); }
constexpr std::optional<errc> errc_from(std::string_view name) {
  for (std::size_t i = 0; i < errc_names.size(); ++i)
    if (errc_names[i] == name) return static_cast<errc>(i);
  return std::nullopt;
}

/// What is wrong with which field, in words for the person who sent it.
struct violation {
  std::string field;
  std::string message;
};

}  // namespace warren
