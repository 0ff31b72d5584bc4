// services/replica/actor.hpp -- keeps this instance's view up to date: hints from the bus and from our own
// store, and from the store what a hint could not bring. Publishes nothing.
#pragma once

#include <functional>

#include "actors/core/counters.hpp"
#include "actors/core/limits.hpp"
#include "actors/messages.hpp"
#include "services/replica/view.hpp"

namespace warren::replica {

struct replica_config {
  int partitions = limits::partitions_default;  ///< besides the reserved one
  instance_id instance = 0;                     ///< ours: what we said ourselves is not news from the bus
  std::function<std::int64_t()> wall_ms;        ///< milliseconds since 1970
  std::function<std::uint64_t()> random;        ///< jitter
};

/// The writer of the view; one per instance.
using replica_actor = caf::typed_actor<
    /// Our own commit, straight from the store.
    caf::reacts_to<committed>,
    /// What our own gateways have acknowledged.
    caf::reacts_to<busv1::GatewayAck>,
    /// warren.v1.rev.* and warren.v1.ack.*
    caf::reacts_to<bus_message>,
    caf::reacts_to<bus_state>,
    caf::reacts_to<wake_up>>;

/// Reads everything first (a few partitions at a time), then follows. `copy` and `count` must outlive the
/// actor system.
replica_actor spawn_replica(caf::actor_system& system, view& copy, store_actor store, bus_actor bus,
                            replica_config config, counters& count);

}  // namespace warren::replica
