// services/replica/derivation.cpp -- routes' prints and conditions. No CAF, no I/O.
#include "services/replica/derivation.hpp"

#include <algorithm>
#include <string_view>

#include "actors/core/limits.hpp"
#include "actors/core/time.hpp"

namespace warren::replica {

namespace {

/// A hash (FNV-1a) of parts, each with its length or as eight bytes, so that parts cannot run into each other.
class print {
public:
  void text(std::string_view t) {
    number(static_cast<std::int64_t>(t.size()));
    for (const char c : t) byte(static_cast<unsigned char>(c));
  }
  void number(std::int64_t n) {
    for (int shift = 0; shift < 64; shift += 8) byte(static_cast<unsigned char>(n >> shift));
  }
  std::uint64_t hash() const { return hash_; }

private:
  void byte(unsigned char b) {
    hash_ ^= b;
    hash_ *= 1099511628211ull;
  }
  std::uint64_t hash_ = 14695981039346656037ull;
};

std::uint64_t print_routes(const tables& t, const v1::TunnelRow& row, const tunnel::route_plan& plan) {
  print p;
  p.text(row.uid());
  p.number(row.has_delete_time());
  p.number(row.enabled());
  p.text(row.gateway_class());
  p.number(row.hostnames_size());
  for (const auto& name : row.hostnames()) {
    p.text(name);
    const auto found = t.claims.find(name);
    const auto claim = found == t.claims.end() ? nullptr : found->second.unpack();
    p.number(claim && claim->tunnel_uid() == row.uid() ? claim->claim() : 0);
  }
  p.number(plan.generation);
  for (const auto& r : plan.rules) {
    p.number(r.index);
    p.number(static_cast<std::int64_t>(r.what));
    p.text(r.rule.path_prefix());
    p.text(r.rule.connector());
    p.text(r.rule.target());
    p.number(!r.rule.has_tls_verify() || r.rule.tls_verify());
  }
  return p.hash();
}

std::uint64_t print_clusters(const tunnel::route_plan& plan, const questions& q) {
  print p;
  for (const auto& r : plan.rules) {
    if (r.what != tunnel::outcome::live) continue;
    const auto* c = q.connector(r.rule.connector());
    if (c == nullptr) continue;
    p.text(c->uid());
    p.text(c->public_key());
    p.text(c->home_relay());
    p.number(c->addresses_size());
    for (const auto& a : c->addresses()) p.text(a);
  }
  return p.hash();
}

bool same(const std::vector<v1::Condition>& a, const std::vector<v1::Condition>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const v1::Condition& x, const v1::Condition& y) {
    return x.type() == y.type() && x.status() == y.status() && x.reason() == y.reason() &&
           x.message() == y.message() && x.observed_generation() == y.observed_generation();
  });
}

bool same(const tunnel::gateway_knowledge& a, const tunnel::gateway_knowledge& b) {
  return a.what == b.what && a.revision == b.revision && a.words == b.words && a.since_ms == b.since_ms;
}

}  // namespace

// ---- who waits for gateways ----

void waiting_tunnels::add(const entity_key& key, revision_t routed) {
  const auto [it, fresh] = routed_.try_emplace(key, routed);
  if (!fresh) {
    if (it->second == routed) return;
    forget(it->second, key);
    it->second = routed;
  }
  by_revision_[routed].insert(key);
}

void waiting_tunnels::remove(const entity_key& key) {
  const auto it = routed_.find(key);
  if (it == routed_.end()) return;
  forget(it->second, key);
  routed_.erase(it);
}

void waiting_tunnels::forget(revision_t routed, const entity_key& key) {
  const auto at = by_revision_.find(routed);
  at->second.erase(key);
  if (at->second.empty()) by_revision_.erase(at);
}

std::vector<entity_key> waiting_tunnels::between(revision_t from, revision_t to) const {
  std::vector<entity_key> out;
  for (auto it = by_revision_.upper_bound(from); it != by_revision_.end() && it->first <= to; ++it)
    out.insert(out.end(), it->second.begin(), it->second.end());
  return out;
}

// ---- one tunnel ----

bool derivation::look_at_routes(application& a, const entity_key& key, const v1::TunnelRow& row, const tunnel::route_plan& plan,
                                const questions& q, derived_tunnel& d, bool fresh) {
  // Deleted and created again is another tunnel: nothing that was known holds for it.
  if (const auto was = a.change.tunnels_before.find(key);
      !fresh && was != a.change.tunnels_before.end() && was->second && was->second.unpack()->uid() != row.uid()) {
    d = {};
    fresh = true;
  }
  const auto routes = print_routes(tables_, row, plan);
  const auto clusters = print_clusters(plan, q);
  if (fresh || routes != d.route_print) a.change.routes.insert(a.change.routes.end(), key);
  if (fresh || routes != d.route_print || clusters != d.cluster_print) d.routed_revision = a.revision;
  d.route_print = routes;
  d.cluster_print = clusters;
  return fresh;
}

void derivation::judge(application& a, const entity_key& key, const v1::TunnelRow& row, const tunnel::route_plan& plan,
                       const questions& q, derived_tunnel& d, bool fresh, gateways_met& met) {
  const auto [gateways, unmet] = met.try_emplace({row.partition(), row.gateway_class()});
  if (unmet) gateways->second = tables_.gateways_of(row.partition(), row.gateway_class());
  auto before = d.status.unpack();
  const auto known = before.gateways;
  auto status = tunnel::derive({.tunnel = row,
                                .plan = plan,
                                .connector = q.connector,
                                .attachment = q.attachment,
                                .gateways = gateways->second,
                                .settled = is_settled(row.partition(), row.gateway_class()),
                                .routed_revision = d.routed_revision,
                                .before = std::move(before.gateways),
                                .previous = fresh ? nullptr : &before.conditions,
                                .wall_ms = a.wall_ms,
                                .dials_agents = tables_.dials_agents(row.gateway_class()),
                                .class_missing = tables_.lacks_gateway_class(row.gateway_class())});
  if (status.gateways.what == tunnel::gateway_knowledge::verdict::run) waiting_[row.partition()].remove(key);
  else waiting_[row.partition()].add(key, d.routed_revision);
  const bool changed = fresh || !same(before.conditions, status.conditions);
  if (!changed && same(known, status.gateways)) return;
  d.status = packed_status{changed ? status.conditions : before.conditions, status.gateways};
  if (!changed) return;
  d.changed_revision = a.revision;
  d.changed_wall_ms = a.wall_ms;
  a.change.derived.insert(key);
}

/// Its rows are as they were.
void derivation::derive(application& a, const entity_key& key, const v1::TunnelRow& row, gateways_met& met) {
  const auto found = tables_.derived.find(key);
  if (found == tables_.derived.end()) return;
  const questions q{tables_, key.first};
  judge(a, key, row, q.plan(row), q, found->second, false, met);
}

// ---- what happens ----

void derivation::rows_changed(application& a) {
  gateways_met met;
  for (const auto& key : a.affected) {
    const auto row = tables_.tunnel(key.first, key.second);
    if (!row) {
      if (tables_.derived.erase(key) > 0) a.change.routes.insert(key);
      waiting_[a.partition].remove(key);
      continue;
    }
    const auto [found, fresh] = tables_.derived.try_emplace(key);
    const questions q{tables_, key.first};
    const auto plan = q.plan(*row);
    const bool other = look_at_routes(a, key, *row, plan, q, found->second, fresh);
    judge(a, key, *row, plan, q, found->second, other, met);
  }
}

void derivation::acknowledged(application& a, const std::string& gateway_class, revision_t before, revision_t now) {
  gateways_met met;
  for (const auto& key : waiting_[a.partition].between(before, now))
    if (const auto row = tables_.tunnel(key.first, key.second); row && row->gateway_class() == gateway_class)
      derive(a, key, *row, met);
}

void derivation::class_changed(application& a, const std::string& gateway_class) {
  const auto projects = tables_.projects.find(a.partition);
  if (projects == tables_.projects.end() || tables_.carried.count({a.partition, gateway_class}) == 0) return;
  gateways_met met;
  for (const auto& project : projects->second)
    for (auto it = tables_.tunnels.lower_bound({project, ""}); it != tables_.tunnels.end() && it->first.first == project; ++it)
      if (const auto row = it->second.unpack(); row->gateway_class() == gateway_class) derive(a, it->first, *row, met);
}

std::vector<application> derivation::classes_changed(const application& a) {
  std::vector<application> out;
  if (a.partition != tables_.registry()) return out;
  for (const auto& [each, tunnels] : tables_.carried) {
    const auto& [partition, gateway_class] = each;
    // Read for the first time: only then is it known which there are not.
    const bool found_missing = a.change.rebuilt && tables_.lacks_gateway_class(gateway_class);
    if (!found_missing && a.change.gateway_classes.count(gateway_class) == 0) continue;
    if (out.empty() || out.back().partition != partition) {
      out.push_back({.partition = partition, .revision = tables_.partitions[partition].revision, .steady_ms = a.steady_ms, .wall_ms = a.wall_ms});
      out.back().change.acks = true;
    }
    class_changed(out.back(), gateway_class);
  }
  std::erase_if(out, [](const application& each) { return each.change.derived.empty(); });
  return out;
}

// ---- at the start ----

bool derivation::is_settled(partition_id partition, const std::string& gateway_class) const {
  return tables_.gateways_settled || settled_.count({partition, gateway_class}) > 0;
}

std::vector<application> derivation::settle(std::int64_t steady_ms, std::int64_t wall_ms) {
  std::vector<application> out;
  if (tables_.gateways_settled) return out;
  const auto begin = [&](partition_id p) {
    application a{.partition = p, .revision = tables_.partitions[p].revision, .steady_ms = steady_ms, .wall_ms = wall_ms};
    a.change.acks = true;
    return a;
  };
  std::set<std::pair<partition_id, std::string>> open;
  for (const auto& [each, tunnels] : tables_.carried)
    if (settled_.count(each) == 0) open.insert(each);
  const auto registry = tables_.partitions.find(tables_.registry());
  const bool registry_known = registry != tables_.partitions.end() && registry->second.warm;
  std::map<std::string, std::set<std::string>> registered;
  for (const auto& [name, row] : tables_.gateways) registered[row->class_()].insert(name);
  bool all = true;
  for (const auto& each : open) {
    if (!warren::gateways_settled(tables_.acks[each.first], each.second, registry_known ? &registered[each.second] : nullptr,
                                  started_ms_, steady_ms)) {
      all = false;
      continue;
    }
    settled_.insert(each);
    out.push_back(begin(each.first));
    class_changed(out.back(), each.second);
  }
  if (steady_ms >= started_ms_ + limits::gateway_settle / 1ms || (all && tables_.warm)) {
    tables_.gateways_settled = true;
    settled_.clear();
    out.push_back(begin(tables_.registry()));  // whoever waits for this moment hears of it
  }
  return out;
}

}  // namespace warren::replica
