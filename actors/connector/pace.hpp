// actors/connector/pace.hpp -- how often agents report when there are many of them. Pure: no clock, no I/O.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "actors/core/limits.hpp"

namespace warren::connector {

/// The interval that the agents of an instance with `online` connectors shall have, so that their heartbeats stay below
/// `heartbeats_per_second_max`: the one of the settings, doubled as often as it takes, up to `heartbeat_interval_loaded_max`.
/// `current_ms`: what came out the last time. `per_second`: another limit. It becomes shorter only with a quarter to spare: each change is a word to
/// every agent.
inline std::int64_t paced_interval(std::int64_t asked_ms, std::int64_t current_ms, std::size_t online,
                                   std::int64_t per_second = limits::heartbeats_per_second_max) {
  const auto longest = std::max<std::int64_t>(asked_ms, limits::heartbeat_interval_loaded_max / 1ms);
  const auto enough = [&](std::int64_t interval_ms) {
    const auto quarters = interval_ms < current_ms ? 3 : 4;
    return static_cast<std::int64_t>(online) * 4000 <= per_second * quarters * interval_ms;
  };
  auto interval = std::max<std::int64_t>(asked_ms, 1);
  while (!enough(interval) && interval < longest) interval = std::min(interval * 2, longest);
  return interval;
}

}  // namespace warren::connector
