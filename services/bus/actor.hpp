// services/bus/actor.hpp -- the connection as an actor. Nothing here decides what messages mean.
#pragma once

#include <memory>

#include "actors/core/counters.hpp"
#include "actors/messages.hpp"
#include "services/bus/connection.hpp"

namespace warren::bus {

/// Subscriptions end with their receivers. The actor lives until the system's end or an exit message; close
/// the connection after it. `counts` must outlive the actor.
bus_actor spawn_bus(caf::actor_system& system, std::shared_ptr<connection> to, counters& counts);

}  // namespace warren::bus
