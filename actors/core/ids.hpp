// actors/core/ids.hpp -- names of things that must not be mixed up. No CAF, no I/O.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace warren {

using partition_id = std::int32_t;   ///< 0 … partitions-1; `partitions` itself is the reserved one
using revision_t = std::int64_t;     ///< per partition; incarnation in the upper 32 bits
using epoch_t = std::int64_t;        ///< of a partition's owner; grows with each takeover
using instance_id = std::int64_t;    ///< of one start of one warrend

inline constexpr std::int64_t rival_version = -1;  ///< a rival touched the row; its owner adopts it
/// attachment_generation of what a rival wrote: no agent holds it, whatever set it has (migrations/0002).
inline constexpr std::int64_t never_attached = 9223372036854775807;

/// 64-bit FNV-1a. Source: http://www.isthe.com/chongo/tech/comp/fnv/ (public domain).
constexpr std::uint64_t fnv1a_64(std::string_view text) {
  std::uint64_t hash = 14695981039346656037ull;
  for (char c : text) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 1099511628211ull;
  }
  return hash;
}

/// The partition of everything that belongs to `project`; the reserved one for an empty project.
constexpr partition_id partition_of(std::string_view project, int partitions) {
  if (project.empty()) return partitions;
  return static_cast<partition_id>(fnv1a_64(project) % static_cast<std::uint64_t>(partitions));
}

}  // namespace warren
