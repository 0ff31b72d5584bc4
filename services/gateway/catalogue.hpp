// services/gateway/catalogue.hpp -- everything that gateways are told, compiled once for all of them, and what a
// change of rows changes in it. Reads the replica's tables, no I/O. One thread.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "actors/core/ids.hpp"
#include "services/gateway/compile.hpp"
#include "services/replica/view.hpp"

namespace warren::gateway {

/// A resource and whose it is.
struct entry {
  resource_ptr what;
  partition_id partition = 0;
  replica::shared_bytes tunnel_uid;  ///< of a route, a scope, or a rule's cluster
};
/// By the resource's name, which the key points to.
using entries_by_name = std::unordered_map<std::string_view, entry>;
/// "project/name" of a connector's own cluster; empty: it is another one.
std::string_view connector_of(std::string_view cluster);

/// What every gateway of one class shall run.
struct class_catalogue {
  class_settings settings;
  bool served = false;                         ///< it exists, and its dial mode is one that is known
  entries_by_name listeners, routes, scopes;
  entries_by_name clusters;                    ///< of its tunnels' rules; dial mode `tunnel-listener` only
};

/// A resource that changed, appeared or went, for the gateways of one class (empty: all that dial directly).
struct change {
  std::string gateway_class;
  kind type = kind::cluster;
  std::string name;
  partition_id partition = 0;
  revision_t revision = 0;
};

/// The same in parts of at most so many routes, for a catalogue to apply in this order: routes come last, as they go
/// without a cluster that is not compiled yet.
std::vector<replica::change_set> parts_of(replica::change_set c, std::size_t routes_max);

/// Applies the replica's changes in order; each call tells what is different for gateways.
class catalogue {
public:
  /// Compiles everything; before the first call nothing is known.
  std::vector<change> rebuild(const replica::tables& t);
  /// Compiles what the change names. Of one that comes in parts the revision counts as processed with the last.
  std::vector<change> apply(const replica::tables& t, const replica::change_set& c, bool last = true);

  const entry* find(const std::string& gateway_class, kind k, const std::string& name) const;
  const class_catalogue* find_class(const std::string& name) const;
  const entries_by_name& entries(const std::string& gateway_class, kind k) const;
  /// The revision up to which a partition's changes have been applied.
  revision_t processed(partition_id p) const;
  const std::map<partition_id, revision_t>& processed() const { return processed_; }

private:
  struct work;
  std::vector<change> compile(const replica::tables& t, work& w);
  /// Its route configuration; its rules' clusters are brought up to date on the way.
  resource_ptr compile_tunnel(std::vector<change>& out, const replica::tables& t, const v1::TunnelRow& row, revision_t revision);
  void drop_clusters(std::vector<change>& out, const std::string& gateway_class, const replica::entity_key& tunnel,
                     const std::set<std::string>& but, revision_t revision);
  void put(std::vector<change>& out, entries_by_name& into, const std::string& gateway_class, kind k,
           const std::string& name, entry e, revision_t revision);

  /// The class that has this resource, most likely `first`; nullptr: none has.
  const std::string* class_with(const std::string& name, entries_by_name class_catalogue::*of, const std::string& first) const;

  entries_by_name clusters_;                        ///< of connectors, for the classes that dial directly
  std::map<std::string, class_catalogue> classes_;  ///< a route, as a scope, is in one of them at most
  std::map<partition_id, revision_t> processed_;
};

}  // namespace warren::gateway
