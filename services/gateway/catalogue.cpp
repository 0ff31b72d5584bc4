// services/gateway/catalogue.cpp -- everything that gateways are told, compiled once for all of them. No I/O.
#include "services/gateway/catalogue.hpp"

#include <algorithm>
#include <utility>

#include "actors/core/limits.hpp"

namespace warren::gateway {

namespace {

template <class Row> replica::row_ptr<Row> read(const replica::row_ptr<Row>& row) { return row; }
template <class Row> replica::row_ptr<Row> read(const replica::packed_row<Row>& row) { return row.unpack(); }

template <class Map, class Key> auto row_at(const Map& rows, const Key& key) -> decltype(read(rows.begin()->second)) {
  const auto it = rows.find(key);
  return it == rows.end() ? nullptr : read(it->second);
}

/// Whether the claim means this tunnel, and it can be routed.
bool leads_to(const v1::HostnameClaimRow& claim, const v1::TunnelRow& row) {
  return claim.project() == row.project() && claim.tunnel() == row.name() && claim.tunnel_uid() == row.uid() && !row.has_delete_time();
}

/// The tunnel that a claim leads to; nullptr: none.
replica::row_ptr<v1::TunnelRow> routed_tunnel(const replica::tables& t, const v1::HostnameClaimRow& claim) {
  auto row = t.tunnel(claim.project(), claim.tunnel());
  return row && leads_to(claim, *row) ? row : nullptr;
}

bool has_claim(const replica::tables& t, const v1::TunnelRow& row) {
  return std::any_of(row.hostnames().begin(), row.hostnames().end(), [&](const std::string& host) {
    const auto claim = row_at(t.claims, host);
    return claim && leads_to(*claim, row);
  });
}

}  // namespace

/// What is to be compiled, and at which revision it counts as changed.
struct catalogue::work {
  std::set<replica::entity_key> tunnels, connectors;
  std::set<replica::entity_key> replanned;  ///< tunnels whose row is what it was, as are its scopes with it
  std::set<std::string> hostnames, classes;
  partition_id partition = 0;
  revision_t revision = 0;
  const std::map<replica::entity_key, replica::row_ptr<v1::ConnectorRow>>* connectors_before = nullptr;

  /// Whether what a rule's own cluster says of its connector may be different. Most changes of a connector's row are
  /// of what its agent holds, and it may have very many tunnels.
  bool reached_otherwise(const replica::entity_key& key, const v1::ConnectorRow* now) const {
    if (connectors_before == nullptr) return true;
    const auto it = connectors_before->find(key);
    const auto* was = it == connectors_before->end() ? nullptr : it->second.get();
    return was == nullptr || now == nullptr ? was != now : !same_endpoint(*was, *now);
  }
};

std::string_view connector_of(std::string_view cluster) {
  constexpr std::string_view prefix = "connector/";
  return cluster.substr(0, prefix.size()) == prefix ? cluster.substr(prefix.size()) : std::string_view{};
}

std::vector<replica::change_set> parts_of(replica::change_set c, std::size_t routes_max) {
  auto routes = std::exchange(c.routes, {});
  for (const auto& key : c.tunnels) routes.erase(key);  // they are compiled with their rows
  std::vector<replica::change_set> out;
  out.push_back(std::move(c));
  while (!routes.empty()) {
    if (out.back().routes.size() >= routes_max) out.push_back({.partition = out[0].partition, .revision = out[0].revision});
    out.back().routes.insert(out.back().routes.end(), routes.extract(routes.begin()));
  }
  return out;
}

const std::string* catalogue::class_with(const std::string& name, entries_by_name class_catalogue::*of, const std::string& first) const {
  const auto likely = classes_.find(first);
  if (likely != classes_.end() && (likely->second.*of).count(name) != 0) return &likely->first;
  for (const auto& [each, c] : classes_)
    if ((c.*of).count(name) != 0) return &each;
  return nullptr;
}

void catalogue::put(std::vector<change>& out, entries_by_name& into, const std::string& gateway_class,
                    kind k, const std::string& name, entry e, revision_t revision) {
  const auto it = into.find(name);
  const bool same = it == into.end() ? e.what == nullptr
                                     : e.what != nullptr && it->second.what->version == e.what->version;
  const auto partition = e.what ? e.partition : it == into.end() ? 0 : it->second.partition;
  if (e.what == nullptr) {
    if (it != into.end()) into.erase(it);
  } else if (same) {
    // The bytes are the same, whoever they belong to may be another incarnation.
    e.what = it->second.what;
    it->second = std::move(e);
  } else {
    const std::string_view key = e.what->name;
    if (it == into.end()) {
      into.emplace(key, std::move(e));
    } else {
      auto node = into.extract(it);
      node.key() = key;  // before what it has pointed to may go
      node.mapped() = std::move(e);
      into.insert(std::move(node));
    }
  }
  if (!same) out.push_back({gateway_class, k, name, partition, revision});
}

std::vector<change> catalogue::compile(const replica::tables& t, work& w) {
  std::vector<change> out;

  for (const auto& name : w.classes) {
    const auto row = row_at(t.gateway_classes, name);
    auto& c = classes_[name];
    c.settings = row ? settings_of(*row) : class_settings{};
    c.served = row != nullptr && c.settings.dial != dial_mode::none;
    std::map<std::string, resource_ptr> wanted;
    if (c.served)
      for (auto& l : compile_listeners(c.settings)) wanted.emplace(l->name, l);
    for (const auto& [known, unused] : c.listeners) wanted.try_emplace(std::string{known}, nullptr);
    for (auto& [listener, what] : wanted)
      put(out, c.listeners, name, kind::listener, listener, {.what = what, .partition = row ? row->partition() : 0},
          w.revision);
    if (c.settings.dial != dial_mode::tunnel_listener)
      while (!c.clusters.empty()) put(out, c.clusters, name, kind::cluster, std::string{c.clusters.begin()->first}, {}, w.revision);
    // A class's settings are part of each of its routes.
    for (const auto& [key, packed] : t.tunnels)
      if (const auto tunnel = packed.unpack(); tunnel->gateway_class() == name) {
        w.tunnels.insert(key);
        w.hostnames.insert(tunnel->hostnames().begin(), tunnel->hostnames().end());
      }
  }

  for (const auto& key : w.connectors) {
    const auto name = cluster_name(key.first, key.second);
    const auto row = row_at(t.connectors, key);
    const bool was = clusters_.count(name) != 0;
    auto what = row ? compile_cluster(*row) : nullptr;
    // A route goes without a cluster that is not there, and a rule's own cluster says what the connector's key is.
    const bool appears_or_goes = was != (what != nullptr);
    if (appears_or_goes || w.reached_otherwise(key, row.get()))
      if (const auto it = t.tunnels_by_connector.find(key); it != t.tunnels_by_connector.end())
        for (const auto& tunnel : it->second) w.replanned.insert({key.first, tunnel});
    put(out, clusters_, "", kind::cluster, name,
        {.what = std::move(what), .partition = row ? row->partition() : w.partition}, w.revision);
  }

  // A tunnel that changes class or goes takes its host names along.
  for (const auto& key : w.tunnels)
    if (const auto row = row_at(t.tunnels, key))
      w.hostnames.insert(row->hostnames().begin(), row->hostnames().end());
  for (const auto& host : w.hostnames)
    if (const auto claim = row_at(t.claims, host)) w.tunnels.insert({claim->project(), claim->tunnel()});

  w.replanned.merge(w.tunnels);
  for (const auto& key : w.replanned) {
    const auto name = route_name(key.first, key.second);
    const auto row = row_at(t.tunnels, key);
    const bool routed = row != nullptr && !row->has_delete_time() && has_claim(t, *row);
    const auto* was = class_with(name, &class_catalogue::routes, row ? row->gateway_class() : std::string{});
    if (was != nullptr && (!routed || *was != row->gateway_class())) {
      put(out, classes_[*was].routes, *was, kind::route, name, {}, w.revision);
      drop_clusters(out, *was, key, {}, w.revision);
    }
    if (!routed) continue;
    auto& c = classes_[row->gateway_class()];
    auto what = compile_tunnel(out, t, *row, w.revision);
    put(out, c.routes, row->gateway_class(), kind::route, name,
        {.what = std::move(what), .partition = row->partition(), .tunnel_uid = replica::shared_bytes{row->uid()}}, w.revision);
  }

  for (const auto& host : w.hostnames) {
    const auto claim = row_at(t.claims, host);
    const auto row = claim ? routed_tunnel(t, *claim) : nullptr;
    const auto* was = class_with(host, &class_catalogue::scopes, row ? row->gateway_class() : std::string{});
    if (was != nullptr && (row == nullptr || *was != row->gateway_class()))
      put(out, classes_[*was].scopes, *was, kind::scope, host, {}, w.revision);
    if (row == nullptr) continue;
    auto& c = classes_[row->gateway_class()];
    // A scope without its route configuration would hold Envoy's answer back for ever.
    const auto route = c.routes.find(route_name(row->project(), row->name()));
    auto what = route == c.routes.end() ? nullptr : compile_scope(*claim);
    put(out, c.scopes, row->gateway_class(), kind::scope, host,
        {.what = std::move(what), .partition = row->partition(),
         .tunnel_uid = route == c.routes.end() ? replica::shared_bytes{} : route->second.tunnel_uid}, w.revision);
  }
  return out;
}

resource_ptr catalogue::compile_tunnel(std::vector<change>& out, const replica::tables& t, const v1::TunnelRow& row,
                                       revision_t revision) {
  auto& c = classes_[row.gateway_class()];
  const auto plan = t.plan(row);
  if (c.settings.dial != dial_mode::tunnel_listener)
    return compile_route(
        row, plan,
        [&](const std::string& connector) { return clusters_.count(cluster_name(row.project(), connector)) != 0; },
        c.settings);

  std::map<int, resource_ptr> clusters;
  for (auto p : plan.rules) {
    if (p.index >= static_cast<int>(limits::rules_max)) continue;  // written around us
    // Where it would lead: the cluster stays while the connector is offline, as one that is dialled directly does.
    p.what = tunnel::outcome::live;
    if (const auto to = endpoint_of(p, t.connector(row.project(), p.rule.connector())))
      if (auto cluster = compile_rule_cluster(row.project(), row.name(), p.index, p.rule.connector(), *to)) clusters[p.index] = std::move(cluster);
  }
  auto what = compile_route(
      row, plan,
      cluster_of_rule{[&](const tunnel::rule_plan& p) { return clusters.count(p.index) ? clusters[p.index]->name : std::string{}; }},
      c.settings);
  if (!what) clusters.clear();
  std::set<std::string> kept;
  for (auto& [index, cluster] : clusters) {
    kept.insert(cluster->name);
    put(out, c.clusters, row.gateway_class(), kind::cluster, cluster->name,
        {.what = cluster, .partition = row.partition(), .tunnel_uid = replica::shared_bytes{row.uid()}}, revision);
  }
  drop_clusters(out, row.gateway_class(), {row.project(), row.name()}, kept, revision);
  return what;
}

void catalogue::drop_clusters(std::vector<change>& out, const std::string& gateway_class, const replica::entity_key& tunnel,
                              const std::set<std::string>& but, revision_t revision) {
  auto& all = classes_[gateway_class].clusters;
  for (std::size_t index = 0; index < limits::rules_max && !all.empty(); ++index)
    if (const auto name = rule_cluster_name(tunnel.first, tunnel.second, static_cast<int>(index)); but.count(name) == 0 && all.count(name) != 0)
      put(out, all, gateway_class, kind::cluster, name, {}, revision);
}

std::vector<change> catalogue::rebuild(const replica::tables& t) {
  work w;
  w.revision = 1;  // when it changed is not known: as early as can be
  for (const auto& [key, row] : t.tunnels) w.tunnels.insert(key);
  for (const auto& [key, row] : t.connectors) w.connectors.insert(key);
  const auto entity = [](std::string_view path) {
    const auto slash = path.find('/');
    return replica::entity_key{path.substr(0, slash), path.substr(slash + 1)};
  };
  for (const auto& [name, e] : clusters_)
    if (const auto of = connector_of(name); !of.empty()) w.connectors.insert(entity(of));
  for (const auto& [host, row] : t.claims) w.hostnames.insert(host);
  for (const auto& [name, row] : t.gateway_classes) w.classes.insert(name);
  for (const auto& [name, c] : classes_) {
    w.classes.insert(name);
    for (const auto& [route, e] : c.routes) w.tunnels.insert(entity(route.substr(route.find('/') + 1)));
    for (const auto& [host, e] : c.scopes) w.hostnames.emplace(host);
  }
  auto out = compile(t, w);
  auto agents = compile_agents_cluster();
  put(out, clusters_, "", kind::cluster, agents->name, {.what = agents}, w.revision);
  for (const auto& [p, state] : t.partitions) processed_[p] = std::max(processed_[p], state.revision);
  return out;
}

std::vector<change> catalogue::apply(const replica::tables& t, const replica::change_set& c, bool last) {
  std::vector<change> out;
  auto& processed = processed_[c.partition];
  if (c.rebuilt) {
    const auto before = processed_;
    out = rebuild(t);
    // Somewhere between what was applied and what is there.
    for (auto& one : out) {
      const auto it = before.find(one.partition);
      one.revision = it == before.end() ? 1 : it->second + 1;
    }
    for (auto& [p, revision] : processed_)
      if (p != c.partition)
        if (const auto it = before.find(p); it != before.end()) revision = it->second;
    processed_[c.partition] = std::max(processed_[c.partition], c.revision);
    return out;
  }
  work w;
  w.partition = c.partition;
  // An increment that was fetched holds changes of several revisions: the first that was missing.
  w.revision = processed == 0 || c.revision <= processed ? std::max<revision_t>(c.revision, 1) : processed + 1;
  w.replanned = c.routes;
  w.tunnels = c.tunnels;
  w.connectors = c.connectors;
  w.connectors_before = &c.connectors_before;
  w.hostnames = c.hostnames;
  w.classes = c.gateway_classes;
  if (!w.tunnels.empty() || !w.replanned.empty() || !w.connectors.empty() || !w.hostnames.empty() || !w.classes.empty()) out = compile(t, w);
  if (last) processed = std::max(processed, c.revision);
  return out;
}

const entry* catalogue::find(const std::string& gateway_class, kind k, const std::string& name) const {
  const auto& all = entries(gateway_class, k);
  const auto it = all.find(name);
  return it == all.end() ? nullptr : &it->second;
}

const class_catalogue* catalogue::find_class(const std::string& name) const {
  const auto it = classes_.find(name);
  return it == classes_.end() ? nullptr : &it->second;
}

const entries_by_name& catalogue::entries(const std::string& gateway_class, kind k) const {
  static const entries_by_name none;
  const auto* c = find_class(gateway_class);
  if (k == kind::cluster) return c && c->settings.dial == dial_mode::tunnel_listener ? c->clusters : clusters_;
  if (c == nullptr) return none;
  return k == kind::listener ? c->listeners : k == kind::route ? c->routes : c->scopes;
}

revision_t catalogue::processed(partition_id p) const {
  const auto it = processed_.find(p);
  return it == processed_.end() ? 0 : it->second;
}

}  // namespace warren::gateway
