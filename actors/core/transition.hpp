// actors/core/transition.hpp -- everything that one step of a machine owes the world. No CAF, no I/O.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "actors/core/save.hpp"
#include "actors/core/time.hpp"

namespace warren {

/// An answer to whoever asked under `ticket`. With a save in the same transition the shell fills in row,
/// partition and revision from what was written.
struct answer {
  std::uint64_t ticket = 0;
  v1::Reply reply;
};

/// What one event leads to. The shell carries it out from top to bottom and looks at the next event only
/// when it is done; nothing below `save` happens unless the save committed.
template <class State, class Announcement> struct transition {
  State next;                           ///< the state after it
  State kept;                           ///< the state to go on from when the save did not happen; unused without one
  /// Moves back into `kept` what it has lent to `next` because it is too large to copy; none: nothing.
  std::function<void(State& next, State& kept)> give_back;
  std::optional<save_request> save;     ///< rows to write, in one transaction
  std::vector<Announcement> announce;   ///< messages to other actors, commands to agents
  std::int64_t wake_at_ms = 0;          ///< steady clock: call again at the latest; 0: nothing is due
  std::vector<answer> replies;          ///< answers to whoever asked
  int expired = 0;                      ///< commands that were dropped: their callers' deadlines came before their turn
  bool gone = false;                    ///< the entity no longer exists and owes nothing: the actor ends

  /// The save did not happen: `kept`, whole.
  State fall_back() {
    if (give_back) give_back(next, kept);
    return std::move(kept);
  }
};

/// The delay before try number `tries` (1 …): doubling from `first` to at most `max`, full jitter.
inline std::int64_t backoff_ms(millis first, millis max, int tries, std::uint64_t random) {
  std::int64_t top = first.count();
  for (int i = 1; i < tries && top < max.count(); ++i) top *= 2;
  if (top > max.count()) top = max.count();
  return 1 + static_cast<std::int64_t>(random % static_cast<std::uint64_t>(top));
}

}  // namespace warren
