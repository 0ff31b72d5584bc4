// services/store/actor.hpp -- the store's two actors: they hand messages to the store's threads. No pqxx.
#pragma once

#include <memory>

#include "actors/messages.hpp"
#include "services/store/lease_store.hpp"
#include "services/store/store.hpp"

namespace warren {

/// Never blocks; answers come straight from the store's threads. The store must outlive the actor system or
/// be stopped first.
store_actor spawn_store(caf::actor_system& system, std::shared_ptr<store> s);
lease_store_actor spawn_lease_store(caf::actor_system& system, std::shared_ptr<lease_store> s);

}  // namespace warren
