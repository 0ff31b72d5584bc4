// actors/connector/silence_actor.hpp -- per instance: the shell of the watch on silence. It decides nothing.
#pragma once

#include <functional>

#include "actors/connector/mass_silence.hpp"
#include "actors/core/counters.hpp"
#include "actors/messages.hpp"

namespace warren::connector {

struct silence_state {
  silence_state() = default;  // never an aggregate: CAF would initialise its first member with self
  silence_watch watch;
  std::function<void(bool)> tell;
  counters* count = nullptr;
  std::int64_t armed_ms = 0;
};

silence_actor::behavior_type silence(silence_actor::stateful_pointer<silence_state> self,
                                     std::function<void(bool on)> tell, counters* count);

/// `tell` is called at each change of the verdict, from the actor's thread; `count` outlives the system.
silence_actor spawn_silence(caf::actor_system& system, std::function<void(bool on)> tell, counters& count);

}  // namespace warren::connector
