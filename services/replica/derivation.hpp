// services/replica/derivation.hpp -- what follows from rows and from what gateways acknowledge, kept for each tunnel:
// when its routes last changed, and its conditions. Costs what is affected, not what there is. No CAF, no I/O.
#pragma once

#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "services/replica/rows.hpp"
#include "services/replica/tables.hpp"

namespace warren::replica {

/// Tunnels that wait for gateways, by the revision of their routes: an acknowledgement is news to those between what
/// its gateway had acknowledged before and what it acknowledges, and to no other.
class waiting_tunnels {
public:
  /// `key` waits for `routed`, and for no earlier one any more.
  void add(const entity_key& key, revision_t routed);
  void remove(const entity_key& key);
  /// Those whose routes are of a revision after `from`, `to` included.
  std::vector<entity_key> between(revision_t from, revision_t to) const;
  std::size_t size() const { return routed_.size(); }

private:
  void forget(revision_t routed, const entity_key& key);

  std::unordered_map<entity_key, revision_t, entity_hash> routed_;
  std::map<revision_t, std::set<entity_key>> by_revision_;
};

class derivation {
public:
  /// `t` outlives it.
  explicit derivation(tables& t) : tables_{t} {}
  void begin(std::int64_t started_steady_ms) { started_ms_ = started_steady_ms; }

  /// Rows have changed: the routes and conditions of `a.affected`.
  void rows_changed(application& a);
  /// A gateway of this class runs more than it did, and nothing else is different.
  void acknowledged(application& a, const std::string& gateway_class, revision_t before, revision_t now);
  /// Which gateways of this class count, or what they refuse, has changed: all tunnels that it carries.
  void class_changed(application& a, const std::string& gateway_class);
  /// What `a`, already applied, says of gateway classes: to the tunnels that they carry, in every partition. Each
  /// partition's changes come as one application.
  std::vector<application> classes_changed(const application& a);
  /// Finds the classes whose gateways have been heard, or waited for, since the last call; once all have, conditions
  /// are known. Each partition's changes come as one application.
  std::vector<application> settle(std::int64_t steady_ms, std::int64_t wall_ms);

private:
  /// The gateways of the classes that one application meets, gathered once.
  using gateways_met = std::map<std::pair<partition_id, std::string>, std::vector<v1::GatewayState>>;

  void derive(application& a, const entity_key& key, const v1::TunnelRow& row, gateways_met& met);
  /// Returns whether what was known of it was of another tunnel, or there was nothing.
  bool look_at_routes(application& a, const entity_key& key, const v1::TunnelRow& row, const tunnel::route_plan& plan,
                      const questions& q, derived_tunnel& d, bool fresh);
  void judge(application& a, const entity_key& key, const v1::TunnelRow& row, const tunnel::route_plan& plan, const questions& q,
             derived_tunnel& d, bool fresh, gateways_met& met);
  bool is_settled(partition_id partition, const std::string& gateway_class) const;

  tables& tables_;
  std::map<partition_id, waiting_tunnels> waiting_;
  std::set<std::pair<partition_id, std::string>> settled_;  ///< gateway classes that have been heard, until all have
  std::int64_t started_ms_ = 0;
};

}  // namespace warren::replica
