// actors/connector/silence_actor.hpp -- per instance: the shell of the watch on silence. It decides nothing.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "actors/connector/mass_silence.hpp"
#include "actors/core/counters.hpp"
#include "actors/messages.hpp"

namespace warren::connector {

/// The interval that this instance's agents shall have. Written by the watch, read by connectors' shells.
struct heartbeat_pace {
  explicit heartbeat_pace(std::int64_t asked, std::int64_t most = limits::heartbeats_per_second_max)
      : asked_ms{asked}, per_second{most}, interval_ms{asked} {}
  const std::int64_t asked_ms;             ///< by the settings
  const std::int64_t per_second;           ///< heartbeats that all of them may send
  std::atomic<std::int64_t> interval_ms;   ///< under the load of the moment
};

struct silence_state {
  silence_state() = default;  // never an aggregate: CAF would initialise its first member with self
  silence_watch watch;
  std::function<void(bool)> tell;
  counters* count = nullptr;
  std::int64_t armed_ms = 0;
  std::shared_ptr<heartbeat_pace> pace;
};

silence_actor::behavior_type silence(silence_actor::stateful_pointer<silence_state> self,
                                     std::function<void(bool on)> tell, counters* count,
                                     std::shared_ptr<heartbeat_pace> pace);

/// Keeps `pace`, where there is one, as the online connectors ask for. `tell` is called at each change of the verdict, from the actor's thread; `count` outlives the system.
silence_actor spawn_silence(caf::actor_system& system, std::function<void(bool on)> tell, counters& count,
                            std::shared_ptr<heartbeat_pace> pace = nullptr);

}  // namespace warren::connector
