// actors/partition/actor.hpp -- everything of one partition that is awake on this instance: activates,
// supervises and passivates entities, and routes between them, the bus and the gateways' reports.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "actors/connector/actor.hpp"
#include "actors/partition/acks.hpp"
#include "actors/partition/sleepers.hpp"
#include "actors/registry/actor.hpp"
#include "actors/shell.hpp"
#include "actors/tunnel/actor.hpp"

namespace warren::partition {

/// What a partition needs beyond what it hands to its entities.
struct partition_context {
  entity_context entity;   ///< `partition` is filled in by the partition itself
  int partitions = 0;      ///< `partitions` itself is the reserved one
  std::int64_t started_steady_ms = 0;  ///< of the instance, for gateway settling
  /// The connector class as the replica has it. known = false: the replica is not warm yet.
  struct class_answer { bool known = false, found = false; std::vector<std::string> allowed_networks; };
  std::function<class_answer(const std::string& name)> find_class;
  /// The revision of this partition that our replica has: said to all instances every second.
  std::function<revision_t(partition_id)> seen_revision;
  /// Names of the gateways that are registered in a class; empty, or no function: not known.
  std::function<std::optional<std::set<std::string>>(const std::string& gateway_class)> registered_gateways;
  /// At most `limit` of this partition's connectors that are offline and have had a session, by project and name,
  /// from behind `after` on; empty, or no function: the replica is not warm yet.
  using names = std::vector<std::pair<std::string, std::string>>;
  std::function<std::optional<names>(partition_id, const std::pair<std::string, std::string>& after, std::size_t limit)>
      offline_connectors;
  /// Whether this partition has such a connector; empty, or no function: the replica is not warm yet, or has not seen
  /// `at_least`, what the partition's former owner may have written.
  std::function<std::optional<bool>(partition_id, revision_t at_least, const std::pair<std::string, std::string>& connector)>
      knows_connector;
  revision_t started_revision = 0;  ///< of the partition, when it was taken
  /// Told each second when it last looked at its clock: it answers. Shared with placement; null: nobody wants to know.
  std::shared_ptr<std::atomic<std::int64_t>> looked_at_ms;
  bool bus_connected = true;
};

/// A connector that is awake.
struct awake_connector {
  connector_actor handle;
  std::shared_ptr<const void> line;  ///< held by each of its agent's messages that it has not handled yet; null: none came
};

struct actor_state {
  actor_state() = default;

  partition_context ctx;
  using key = std::pair<std::string, std::string>;  ///< project, name
  std::map<key, tunnel_actor> tunnels;
  std::map<key, awake_connector> connectors;
  sleepers<agent_message> asleep;                     ///< connectors whose agents have spoken and whose rows are being read
  std::map<key, registry::registry_actor> registry;  ///< kind, name
  gateway_acks acks;
  std::map<key, std::string> waiting;                 ///< tunnels that want to hear of gateways, with their class
  std::map<std::string, std::set<key>> class_interest;  ///< connector class → connectors
  std::map<std::string, std::string> class_told;        ///< what was last said of it
  std::set<std::string> owed;                         ///< where answers to commands are waited for
  bool loaded = false;                                ///< the bulk activation is done
  bool silence = false;                               ///< mass silence is on
  bool bus_connected = true;
  std::int64_t listening_ms = 0;                      ///< agents have been heard without a gap since
  std::map<key, std::int64_t> heard;                  ///< connectors that sleep: when their agents were last heard
  std::optional<key> roll_from;                       ///< the last offline connector that was called; none: all were
  std::int64_t incarnation = 0;
  int load_tries = 0;
  std::int64_t strangers_told_since_ms = 0;           ///< when the present second of telling strangers began
  std::size_t strangers_told = 0;                     ///< in it
  std::int64_t drop_said_ms = 0;                      ///< when a dropped message was last logged
  std::uint64_t drops_unsaid = 0;                     ///< since then
};

/// Spawned by placement when the partition is ours, at the epoch in `ctx.entity.epoch`; ends when told to.
partition_actor::behavior_type actor(partition_actor::stateful_pointer<actor_state> self,
                                     partition_context ctx);

}  // namespace warren::partition
