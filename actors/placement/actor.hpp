// actors/placement/actor.hpp -- keeps this instance's lease, takes and releases partitions, and starts and
// stops their actors. One per instance.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "actors/core/line_limits.hpp"
#include "actors/messages.hpp"
#include "actors/partition/actor.hpp"
#include "actors/placement/peers.hpp"
#include "actors/placement/plan.hpp"

namespace warren {

/// Something for every partition that runs here.
struct to_partition {
  partition_id partition = -1;  ///< -1: all
  std::variant<busv1::GatewayAck, adopt_rivals, agent_disconnected, mass_silence, bus_state> what;
};
/// Release everything, one by one, and answer when it is done. Nothing is taken from then on.
struct drain {};
struct drained { int released = 0; };
/// Which partitions run here, for readiness and for the API.
struct owned_query {};
/// `behind`: those of them that have not looked at their clock for limits::partition_behind_after.
struct owned_partitions {
  std::map<partition_id, epoch_t> epochs;
  bool lease = false;
  instance_id me = 0;
  std::set<partition_id> behind;
};

}  // namespace warren

WARREN_LOCAL_MESSAGE(warren::to_partition)
WARREN_LOCAL_MESSAGE(warren::drain)
WARREN_LOCAL_MESSAGE(warren::drained)
WARREN_LOCAL_MESSAGE(warren::owned_query)
WARREN_LOCAL_MESSAGE(warren::owned_partitions)

namespace warren {

using placement_actor = caf::typed_actor<
    caf::reacts_to<to_partition>,
    caf::replies_to<drain>::with<drained>,
    caf::replies_to<owned_query>::with<owned_partitions>,
    caf::reacts_to<bus_state>,
    caf::reacts_to<mass_silence>,
    /// What others say on the lease subject.
    caf::reacts_to<bus_message>,
    caf::reacts_to<peer_disconnected>,
    caf::reacts_to<wake_up>>;

namespace placement {

struct placement_context {
  lease_store_actor leases;
  partition::partition_context partition;  ///< a template: id, epoch and incarnation are filled in
  instance_id me = 0;
  millis lease{3000};        ///< of the instance; renewed every second, or three times in a shorter one
  /// Somebody asks on the bus that this instance drain; not set: it does so itself, at once. Called on the
  /// placement actor's thread; whoever sets it sends `drain` when it has done what comes before.
  std::function<void()> on_drain_asked;
  /// Called on the placement actor's thread whenever ownership or the lease changes.
  std::function<void(const owned_partitions&)> on_change;
  /// Called on the placement actor's thread when it begins, and when it ends, that gateways are better off at other
  /// instances (peers::sends_gateways_away).
  std::function<void(bool)> on_gateways_away;
  /// Called with all that the database says about instances and partitions, after each of our statements.
  std::function<void(const placement_view&)> on_view;
};

struct actor_state {
  actor_state() = default;
  placement_context ctx;
  std::map<partition_id, partition_actor> running;
  std::map<partition_id, epoch_t> epochs;
  /// The last epoch of each that has ended here. What it had under way may still be stored under that epoch, without
  /// anybody who hears of it: to go on, a partition is taken anew.
  std::map<partition_id, epoch_t> ended;
  std::map<partition_id, std::shared_ptr<std::atomic<std::int64_t>>> looked_at_ms;  ///< when each last looked at its clock
  std::set<partition_id> behind;    ///< those that have not for too long
  std::int64_t lease_until_ms = 0;  ///< our steady clock, counted from before the renewal was sent
  bool held = false;
  bool bus_ok = true;
  bool silence = false;
  bool draining = false;
  bool gateways_away = false;       ///< what was last told of them
  std::optional<audit_entry> drain_asked;  ///< by a caller, and not in the audit trail yet
  bool renewing = false;            ///< one is under way
  bool renew_once_more = false;     ///< what it says has changed since it was sent
  bool renew_again_armed = false;
  outage renewals;                  ///< what was said of those that failed
  bool renewal_failed = false;      ///< the last one: we may be the one who is cut off
  bool taking = false;              ///< the first limits::takes_max of to_take are under way
  std::vector<partition_id> to_take;
  std::map<partition_id, std::string> offered;  ///< released for us: where its former owner waits for "taken"
  std::vector<partition_id> to_release;
  bool release_under_way = false;
  bool looking = false;             ///< at the table, as somebody speaks whom it did not have
  peers others;
  placement_view view;              ///< the last one
  std::set<partition_id> releasing;  ///< stopped here; a view from before the release is no reason to start again
  std::vector<caf::typed_response_promise<drained>> drain_promises;
  int released = 0;
  std::int64_t incarnation = 0;
};

placement_actor::behavior_type actor(placement_actor::stateful_pointer<actor_state> self, placement_context ctx);

}  // namespace placement
}  // namespace warren
