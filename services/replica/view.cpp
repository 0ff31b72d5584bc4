// services/replica/view.cpp -- applies changes to the read copy and derives what follows from them. Costs what
// is affected, not what there is. No CAF, no I/O.
#include "services/replica/view.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>

#include "actors/core/limits.hpp"
#include "actors/core/time.hpp"

namespace warren::replica {

namespace {

constexpr std::size_t deletions_max = 100'000;  // per partition; older ones end a watch's chance to resume
constexpr std::int64_t prune_every_ms = 10'000;

constexpr revision_t lineage(revision_t r) { return r >> 32; }

template <class Map, class Key> auto value_or_null(const Map& m, const Key& k) {
  auto found = m.find(k);
  return found == m.end() ? typename Map::mapped_type{} : found->second;
}

// Bytes that are equal exactly when the parts are.
class print {
public:
  void text(std::string_view t) {
    bytes_ += fmt::format("{}:", t.size());
    bytes_ += t;
  }
  void number(std::int64_t n) { bytes_ += fmt::format("{};", n); }
  std::uint64_t hash() const { return fnv1a_64(bytes_); }

private:
  std::string bytes_;
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
    const auto claim = value_or_null(t.claims, name);
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

std::uint64_t print_clusters(const tables& t, const v1::TunnelRow& row, const tunnel::route_plan& plan) {
  print p;
  for (const auto& r : plan.rules) {
    if (r.what != tunnel::outcome::live) continue;
    const auto* c = t.connector(row.project(), r.rule.connector());
    if (c == nullptr) continue;
    p.text(c->uid());
    p.text(c->public_key());
    p.text(c->home_relay());
    p.number(c->addresses_size());
    for (const auto& a : c->addresses()) p.text(a);
  }
  return p.hash();
}

// Whether nothing is different but how far the connector's set is: with thousands of tunnels behind one connector,
// that is news to those whose attachment has just been acknowledged, and to no other.
bool only_set_moved(const v1::ConnectorRow& before, const v1::ConnectorRow& after) {
  v1::ConnectorRow moved = before;
  moved.set_version(after.version());
  moved.set_route_version(after.route_version());
  moved.set_attachment_generation(after.attachment_generation());
  moved.set_attached_generation(after.attached_generation());
  moved.clear_updated_at();
  if (after.has_updated_at()) *moved.mutable_updated_at() = after.updated_at();
  return google::protobuf::util::MessageDifferencer::Equals(moved, after);
}

bool same(const condition_list& a, const std::vector<v1::Condition>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const v1::Condition& x, const v1::Condition& y) {
    return x.type() == y.type() && x.status() == y.status() && x.reason() == y.reason() &&
           x.message() == y.message() && x.observed_generation() == y.observed_generation();
  });
}

std::set<std::string> connectors_of(const v1::TunnelRow& row) {
  std::set<std::string> out;
  for (const auto& r : row.rules()) out.insert(r.connector());
  for (const auto& r : row.previous_rules()) out.insert(r.connector());
  return out;
}

std::vector<std::string> split(const std::string& key) {
  std::vector<std::string> parts(1);
  for (char c : key) {
    if (c == '/') parts.emplace_back();
    else parts.back() += c;
  }
  return parts;
}

std::optional<std::int64_t> number(const std::string& text) {
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  return std::stoll(text);
}

tunnel::find_connector connectors_in(const tables& t, const std::string& project) {
  return [&t, &project](const std::string& name) { return t.connector(project, name); };
}
tunnel::find_attachment attachments_in(const tables& t, const std::string& project) {
  return [&t, &project](const std::string& connector, const std::string& uid, std::int64_t generation) {
    return t.attachment(project, connector, uid, generation);
  };
}

std::vector<v1::GatewayState> gateways_for(const tables& t, partition_id partition, const std::string& gateway_class) {
  auto found = t.acks.find(partition);
  return found == t.acks.end() ? std::vector<v1::GatewayState>{} : gateways_of(found->second, gateway_class);
}

}  // namespace

// ---- reading ----

const v1::TunnelRow* tables::tunnel(const std::string& project, const std::string& name) const {
  auto found = tunnels.find({project, name});
  return found == tunnels.end() ? nullptr : found->second.get();
}

const v1::ConnectorRow* tables::connector(const std::string& project, const std::string& name) const {
  auto found = connectors.find({project, name});
  return found == connectors.end() ? nullptr : found->second.get();
}

const v1::AttachmentRow* tables::attachment(const std::string& project, const std::string& connector,
                                            const std::string& tunnel_uid, std::int64_t generation) const {
  auto found = attachments.find({project, connector, tunnel_uid, generation});
  return found == attachments.end() ? nullptr : found->second.get();
}

tunnel::route_plan tables::plan(const v1::TunnelRow& t) const {
  return tunnel::plan_routes(t, connectors_in(*this, t.project()), attachments_in(*this, t.project()));
}

std::vector<tunnel::chain_link> tables::explain(const std::string& project, const std::string& name,
                                                std::int64_t wall_ms) const {
  const auto* row = tunnel(project, name);
  const auto found = derived.find({project, name});
  if (row == nullptr || found == derived.end()) return {};
  const auto& d = found->second;
  const auto states = gateways_for(*this, row->partition(), row->gateway_class());
  // What the derivation went by, also while the gateways have not been heard.
  const bool settled = gateways_settled || d.gateways.what != tunnel::gateway_knowledge::verdict::unknown;
  return tunnel::explain({.tunnel = *row,
                          .plan = d.plan,
                          .connector = connectors_in(*this, project),
                          .attachment = attachments_in(*this, project),
                          .gateways = states,
                          .settled = settled,
                          .routed_revision = d.routed_revision,
                          .before = d.gateways,
                          .previous = &*d.conditions,
                          .wall_ms = wall_ms});
}

std::int64_t tables::age_ms(partition_id partition, std::int64_t steady_ms) const {
  auto found = partitions.find(partition);
  if (found == partitions.end() || !found->second.warm) return -1;
  return std::max<std::int64_t>(steady_ms - found->second.heard_at_ms, 0);
}

std::int64_t tables::age_ms(std::int64_t steady_ms) const {
  std::int64_t oldest = partitions.empty() ? -1 : 0;
  for (const auto& [id, p] : partitions) {
    const auto age = age_ms(id, steady_ms);
    if (age < 0) return -1;
    oldest = std::max(oldest, age);
  }
  return oldest;
}

// ---- subscribers ----

struct view::waiting {
  revision_t revision = 0;
  std::int64_t deadline_ms = 0;
  std::function<void(bool)> then;
};

int view::subscribe(subscriber s) {
  std::lock_guard lock{subscribers_mutex_};
  subscribers_.emplace(next_token_, std::make_shared<subscriber>(std::move(s)));
  return next_token_++;
}

void view::unsubscribe(int token) {
  std::lock_guard lock{subscribers_mutex_};
  subscribers_.erase(token);
}

void view::notify(const change_set& c) {
  // Held while they run, so that unsubscribe can promise that none runs afterwards; recursive, because one
  // may unsubscribe in its own call.
  std::lock_guard lock{subscribers_mutex_};
  const auto now = subscribers_;
  for (const auto& [token, call] : now)
    if (subscribers_.count(token) > 0) (*call)(c);
}

void view::when_seen(partition_id partition, revision_t revision, std::int64_t deadline_steady_ms,
                     std::function<void(bool)> then) {
  {
    std::lock_guard lock{waiting_mutex_};
    const bool seen = read([&](const tables& t) {
      auto p = t.partitions.find(partition);
      return p != t.partitions.end() && p->second.warm && p->second.revision >= revision;
    });
    if (!seen) {
      waiting_.emplace(partition, std::make_shared<waiting>(waiting{revision, deadline_steady_ms, std::move(then)}));
      return;
    }
  }
  then(true);
}

void view::wake(partition_id partition, revision_t revision) {
  std::vector<std::shared_ptr<waiting>> seen;
  {
    std::lock_guard lock{waiting_mutex_};
    auto [it, end] = waiting_.equal_range(partition);
    while (it != end) {
      if (it->second->revision > revision) {
        ++it;
        continue;
      }
      seen.push_back(std::move(it->second));
      it = waiting_.erase(it);
    }
  }
  for (const auto& w : seen) w->then(true);
}

// ---- writing ----

struct view::work {
  partition_id partition = 0;
  revision_t revision = 0;
  std::int64_t steady_ms = 0, wall_ms = 0;
  change_set change;
  std::set<entity_key> affected;  // tunnels to derive anew
  // Of a complete load: what exists.
  std::set<entity_key> seen_tunnels, seen_connectors;
  std::set<attachment_key> seen_attachments;
  std::set<std::string> seen_claims, seen_gateways, seen_gateway_classes, seen_connector_classes;
};

void view::set_partitions(int partitions, std::int64_t started_steady_ms) {
  std::unique_lock lock{mutex_};
  partitions_ = partitions;
  started_ms_ = started_steady_ms;
  for (partition_id p = 0; p <= partitions; ++p) tables_.partitions.try_emplace(p);
}

revision_t view::revision(partition_id partition) const {
  std::shared_lock lock{mutex_};
  auto p = tables_.partitions.find(partition);
  return p == tables_.partitions.end() || !p->second.warm ? -1 : p->second.revision;
}

revision_t view::fetch_after(partition_id partition) const {
  std::shared_lock lock{mutex_};
  auto p = tables_.partitions.find(partition);
  if (p == tables_.partitions.end() || !p->second.warm) return 0;
  auto newer = lineage_seen_.find(partition);
  if (newer != lineage_seen_.end() && newer->second > lineage(p->second.revision)) return 0;
  return p->second.revision;
}

view::applied view::apply(const busv1::Revision& hint, std::int64_t steady_ms, std::int64_t wall_ms) {
  work w{.partition = hint.partition(), .revision = hint.revision(), .steady_ms = steady_ms, .wall_ms = wall_ms};
  {
    std::unique_lock lock{mutex_};
    auto found = tables_.partitions.find(hint.partition());
    if (found == tables_.partitions.end()) return applied::known;  // nobody's: not ours to keep
    auto& p = found->second;
    if (!p.warm) return applied::gap;
    if (hint.incarnation() < p.incarnation || lineage(hint.revision()) < lineage(p.revision)) return applied::known;
    if (lineage(hint.revision()) > lineage(p.revision)) {
      lineage_seen_[hint.partition()] = lineage(hint.revision());
      return applied::gap;
    }
    p.incarnation = hint.incarnation();
    if (hint.revision() <= p.revision) {
      if (hint.revision() == p.revision) p.heard_at_ms = steady_ms;
      if (hint.epoch() <= p.epoch) return applied::known;
      p.epoch = hint.epoch();
      w.revision = p.revision;
      w.change.owner = true;
    } else {
      if (hint.revision() != p.revision + 1 || hint.truncated() || hint.rows_size() == 0) return applied::gap;
      p.revision = hint.revision();
      p.epoch = std::max(p.epoch, hint.epoch());
      p.heard_at_ms = steady_ms;
      for (const auto& row : hint.rows())
        if (row.has_tombstone()) forget(w, row.tombstone());
      for (const auto& row : hint.rows()) apply_row(w, row, false);
      derive(w);
    }
    finish(w);
  }
  notify(w.change);
  if (w.change.owner) return applied::known;
  wake(hint.partition(), hint.revision());
  return applied::yes;
}

void view::apply_fetched(partition_id partition, bool complete, revision_t revision, epoch_t epoch,
                         const std::vector<v1::Row>& rows, std::int64_t steady_ms, std::int64_t wall_ms,
                         revision_t tombstones_from, std::int64_t incarnation) {
  work w{.partition = partition, .revision = revision, .steady_ms = steady_ms, .wall_ms = wall_ms};
  {
    std::unique_lock lock{mutex_};
    auto found = tables_.partitions.find(partition);
    if (found == tables_.partitions.end()) return;
    auto& p = found->second;
    const bool other_lineage = p.warm && lineage(revision) != lineage(p.revision);
    if (!complete && (!p.warm || other_lineage)) return;  // an increment to something that we do not have
    if (p.warm && revision < p.revision) return;          // hints have overtaken it
    if (revision == p.revision && p.warm && !complete) {
      p.heard_at_ms = steady_ms;
      return;
    }
    auto& deleted = tables_.deleted[partition];
    if (!p.warm || other_lineage) {
      deleted.all.clear();
      deleted.complete_after = tombstones_from >= 0 && !other_lineage ? tombstones_from : revision;
    }
    // What gateways run of a life that is over says nothing of this one; until they speak, what was known holds.
    if (other_lineage) tables_.acks.erase(partition);
    p.incarnation = std::max(p.incarnation, incarnation);
    p.revision = revision;
    p.epoch = std::max(p.epoch, epoch);
    p.heard_at_ms = steady_ms;
    w.change.rebuilt = complete;
    for (const auto& row : rows)
      if (row.has_tombstone()) forget(w, row.tombstone());
    for (const auto& row : rows) apply_row(w, row, complete);
    if (complete) forget_unseen(w);
    p.warm = true;
    tables_.warm = std::all_of(tables_.partitions.begin(), tables_.partitions.end(),
                               [](const auto& each) { return each.second.warm; });
    derive(w);
    std::stable_sort(deleted.all.begin(), deleted.all.end(),
                     [](const auto& a, const auto& b) { return a.revision < b.revision; });
    finish(w);
  }
  notify(w.change);
  wake(partition, revision);
}

void view::apply_row(work& w, const v1::Row& row, bool complete) {
  // Within one lineage the higher version is the newer; a whole snapshot is taken as it is.
  const auto newer = [complete](const auto& have, const auto& got) {
    if (!have) return true;
    return complete ? have->version() != got.version() || got.version() == rival_version
                    : got.version() >= have->version();
  };
  switch (row.row_case()) {
    case v1::Row::kTunnel: {
      const auto& r = row.tunnel();
      const entity_key key{r.project(), r.name()};
      w.seen_tunnels.insert(key);
      if (newer(value_or_null(tables_.tunnels, key), r)) put(w, std::make_shared<const v1::TunnelRow>(r));
      return;
    }
    case v1::Row::kConnector: {
      const auto& r = row.connector();
      const entity_key key{r.project(), r.name()};
      w.seen_connectors.insert(key);
      if (newer(value_or_null(tables_.connectors, key), r)) put(w, std::make_shared<const v1::ConnectorRow>(r));
      return;
    }
    case v1::Row::kAttachment: {
      const auto& r = row.attachment();
      const attachment_key key{r.project(), r.connector(), r.tunnel_uid(), r.tunnel_generation()};
      w.seen_attachments.insert(key);
      if (newer(value_or_null(tables_.attachments, key), r)) put(w, std::make_shared<const v1::AttachmentRow>(r));
      return;
    }
    case v1::Row::kHostnameClaim: {
      const auto& r = row.hostname_claim();
      if (auto have = value_or_null(tables_.claims, r.hostname()); have && have->partition() != w.partition) {
        // Two partitions' messages come in any order: of two claims the higher number is the newer, unless it is of
        // a life of the database that is over, which its partition has not been read anew from.
        const bool outlived = lineage(tables_.partitions[have->partition()].revision) < lineage(w.revision);
        if (have->claim() > r.claim() && !outlived) return;
        erase_claim(w, r.hostname());
      }
      w.seen_claims.insert(r.hostname());
      if (newer(value_or_null(tables_.claims, r.hostname()), r)) put(w, std::make_shared<const v1::HostnameClaimRow>(r));
      return;
    }
    case v1::Row::kGateway: {
      const auto& r = row.gateway();
      w.seen_gateways.insert(r.name());
      auto& have = tables_.gateways[r.name()];
      if (!newer(have, r)) return;
      have = std::make_shared<const v1::GatewayRow>(r);
      w.change.gateways.insert(r.name());
      return;
    }
    case v1::Row::kGatewayClass: {
      const auto& r = row.gateway_class();
      w.seen_gateway_classes.insert(r.name());
      auto& have = tables_.gateway_classes[r.name()];
      if (!newer(have, r)) return;
      have = std::make_shared<const v1::GatewayClassRow>(r);
      w.change.gateway_classes.insert(r.name());
      return;
    }
    case v1::Row::kConnectorClass: {
      const auto& r = row.connector_class();
      w.seen_connector_classes.insert(r.name());
      auto& have = tables_.connector_classes[r.name()];
      if (!newer(have, r)) return;
      have = std::make_shared<const v1::ConnectorClassRow>(r);
      w.change.connector_classes.insert(r.name());
      return;
    }
    case v1::Row::kTombstone:
    case v1::Row::ROW_NOT_SET: return;
  }
}

void view::put(work& w, row_ptr<v1::TunnelRow> row) {
  const entity_key key{row->project(), row->name()};
  projects_[w.partition].insert(row->project());
  auto& have = tables_.tunnels[key];
  w.change.tunnels.insert(key);
  w.change.tunnels_before.try_emplace(key, have);
  if (have)
    for (const auto& c : connectors_of(*have)) {
      auto named = tables_.tunnels_by_connector.find({key.first, c});
      if (named == tables_.tunnels_by_connector.end()) continue;
      named->second.erase(key.second);
      if (named->second.empty()) tables_.tunnels_by_connector.erase(named);
    }
  for (const auto& c : connectors_of(*row)) tables_.tunnels_by_connector[{key.first, c}].insert(key.second);
  have = std::move(row);
  w.affected.insert(key);
}

void view::put(work& w, row_ptr<v1::ConnectorRow> row) {
  const entity_key key{row->project(), row->name()};
  projects_[w.partition].insert(row->project());
  auto& have = tables_.connectors[key];
  w.change.connectors.insert(key);
  w.change.connectors_before.try_emplace(key, have);
  const auto before = std::exchange(have, std::move(row));
  if (before && only_set_moved(*before, *have)) {
    const auto [low, high] = std::minmax({before->attached_generation(), have->attached_generation()});
    for (auto it = tables_.attachments.lower_bound({key.first, key.second, "", INT64_MIN});
         it != tables_.attachments.end() && std::get<0>(it->first) == key.first && std::get<1>(it->first) == key.second; ++it)
      if (const auto g = it->second->attachment_generation(); low < g && g <= high)
        w.affected.insert({key.first, it->second->tunnel()});
    return;
  }
  if (auto named = tables_.tunnels_by_connector.find(key); named != tables_.tunnels_by_connector.end())
    for (const auto& t : named->second) w.affected.insert({key.first, t});
}

void view::put(work& w, row_ptr<v1::AttachmentRow> row) {
  projects_[w.partition].insert(row->project());
  w.affected.insert({row->project(), row->tunnel()});
  const attachment_key key{row->project(), row->connector(), row->tunnel_uid(), row->tunnel_generation()};
  tables_.attachments[key] = std::move(row);
}

void view::put(work& w, row_ptr<v1::HostnameClaimRow> row) {
  claims_[w.partition].insert(row->hostname());
  w.change.hostnames.insert(row->hostname());
  auto& have = tables_.claims[row->hostname()];
  if (have) w.affected.insert({have->project(), have->tunnel()});
  w.affected.insert({row->project(), row->tunnel()});
  have = std::move(row);
}

void view::erase_tunnel(work& w, const entity_key& key) {
  auto found = tables_.tunnels.find(key);
  if (found == tables_.tunnels.end()) return;
  w.change.tunnels.insert(key);
  w.change.tunnels_before.try_emplace(key, found->second);
  for (const auto& c : connectors_of(*found->second)) {
    auto named = tables_.tunnels_by_connector.find({key.first, c});
    if (named == tables_.tunnels_by_connector.end()) continue;
    named->second.erase(key.second);
    if (named->second.empty()) tables_.tunnels_by_connector.erase(named);
  }
  tables_.deleted[w.partition].all.push_back({w.revision, w.wall_ms, found->second, nullptr, nullptr});
  tables_.tunnels.erase(found);
  w.affected.insert(key);
}

void view::erase_connector(work& w, const entity_key& key) {
  auto found = tables_.connectors.find(key);
  if (found == tables_.connectors.end()) return;
  w.change.connectors.insert(key);
  w.change.connectors_before.try_emplace(key, found->second);
  tables_.deleted[w.partition].all.push_back({w.revision, w.wall_ms, nullptr, found->second, nullptr});
  tables_.connectors.erase(found);
  if (auto named = tables_.tunnels_by_connector.find(key); named != tables_.tunnels_by_connector.end())
    for (const auto& t : named->second) w.affected.insert({key.first, t});
}

void view::erase_attachment(work& w, const attachment_key& key) {
  auto found = tables_.attachments.find(key);
  if (found == tables_.attachments.end()) return;
  w.affected.insert({found->second->project(), found->second->tunnel()});
  tables_.attachments.erase(found);
}

void view::erase_claim(work& w, const std::string& hostname) {
  auto found = tables_.claims.find(hostname);
  if (found == tables_.claims.end()) return;
  w.change.hostnames.insert(hostname);
  w.affected.insert({found->second->project(), found->second->tunnel()});
  claims_[found->second->partition()].erase(hostname);
  tables_.claims.erase(found);
}

void view::erase_gateway(work& w, const std::string& name) {
  auto found = tables_.gateways.find(name);
  if (found == tables_.gateways.end()) return;
  w.change.gateways.insert(name);
  tables_.deleted[w.partition].all.push_back({w.revision, w.wall_ms, nullptr, nullptr, found->second});
  tables_.gateways.erase(found);
}

void view::forget(work& w, const v1::TombstoneRow& gone) {
  if (gone.version() == rival_version) return;  // comes again with a revision once its owner has adopted it
  const auto older = [&](const auto& have) { return have && have->version() < gone.version(); };
  const auto parts = split(gone.key());
  if (gone.kind() == "tunnel" && parts.size() == 2) {
    const entity_key key{parts[0], parts[1]};
    if (older(value_or_null(tables_.tunnels, key))) return erase_tunnel(w, key);
    if (tables_.partitions[w.partition].warm || tables_.tunnels.count(key) > 0) return;
    auto stub = std::make_shared<v1::TunnelRow>();
    stub->set_partition(w.partition);
    stub->set_project(key.first);
    stub->set_name(key.second);
    stub->set_uid(gone.uid());
    stub->set_version(gone.version());
    tables_.deleted[w.partition].all.push_back({gone.version(), w.wall_ms, std::move(stub), nullptr, nullptr});
  } else if (gone.kind() == "connector" && parts.size() == 2) {
    const entity_key key{parts[0], parts[1]};
    if (older(value_or_null(tables_.connectors, key))) return erase_connector(w, key);
    if (tables_.partitions[w.partition].warm || tables_.connectors.count(key) > 0) return;
    auto stub = std::make_shared<v1::ConnectorRow>();
    stub->set_partition(w.partition);
    stub->set_project(key.first);
    stub->set_name(key.second);
    stub->set_uid(gone.uid());
    stub->set_version(gone.version());
    tables_.deleted[w.partition].all.push_back({gone.version(), w.wall_ms, nullptr, std::move(stub), nullptr});
  } else if (gone.kind() == "attachment" && parts.size() == 4) {
    const auto generation = number(parts[3]);
    if (!generation) return;
    const attachment_key key{parts[0], parts[1], parts[2], *generation};
    if (older(value_or_null(tables_.attachments, key))) erase_attachment(w, key);
  } else if (gone.kind() == "hostname_claim") {
    auto have = value_or_null(tables_.claims, gone.key());
    if (older(have) && have->partition() == w.partition) erase_claim(w, gone.key());
  } else if (gone.kind() == "gateway") {
    if (older(value_or_null(tables_.gateways, gone.key()))) return erase_gateway(w, gone.key());
    if (tables_.partitions[w.partition].warm || tables_.gateways.count(gone.key()) > 0) return;
    auto stub = std::make_shared<v1::GatewayRow>();
    stub->set_partition(w.partition);
    stub->set_name(gone.key());
    stub->set_uid(gone.uid());
    stub->set_version(gone.version());
    tables_.deleted[w.partition].all.push_back({gone.version(), w.wall_ms, nullptr, nullptr, std::move(stub)});
  } else if (gone.kind() == "gateway_class") {
    if (older(value_or_null(tables_.gateway_classes, gone.key()))) {
      tables_.gateway_classes.erase(gone.key());
      w.change.gateway_classes.insert(gone.key());
    }
  } else if (gone.kind() == "connector_class") {
    if (older(value_or_null(tables_.connector_classes, gone.key()))) {
      tables_.connector_classes.erase(gone.key());
      w.change.connector_classes.insert(gone.key());
    }
  }
}

// A complete load does not hold them: they do not exist.
void view::forget_unseen(work& w) {
  const auto missing_of_project = [](const auto& map, const auto& first, const auto& project, const auto& seen,
                                     const auto& project_of) {
    std::vector<typename std::decay_t<decltype(map)>::key_type> gone;
    for (auto it = map.lower_bound(first); it != map.end() && project_of(it->first) == project; ++it)
      if (seen.count(it->first) == 0) gone.push_back(it->first);
    return gone;
  };
  const auto of_entity = [](const entity_key& k) -> const std::string& { return k.first; };
  const auto of_attachment = [](const attachment_key& k) -> const std::string& { return std::get<0>(k); };
  for (const auto& project : projects_[w.partition]) {
    for (const auto& key : missing_of_project(tables_.tunnels, entity_key{project, ""}, project, w.seen_tunnels, of_entity))
      erase_tunnel(w, key);
    for (const auto& key : missing_of_project(tables_.connectors, entity_key{project, ""}, project, w.seen_connectors, of_entity))
      erase_connector(w, key);
    for (const auto& key : missing_of_project(tables_.attachments, attachment_key{project, "", "", INT64_MIN}, project,
                                              w.seen_attachments, of_attachment))
      erase_attachment(w, key);
  }
  const auto claims = claims_[w.partition];
  for (const auto& hostname : claims)
    if (w.seen_claims.count(hostname) == 0) erase_claim(w, hostname);
  if (w.partition != partitions_) return;
  const auto keep = [](auto& map, const auto& seen, auto& changed) {
    for (auto it = map.begin(); it != map.end();) {
      if (seen.count(it->first) > 0) {
        ++it;
        continue;
      }
      changed.insert(it->first);
      it = map.erase(it);
    }
  };
  std::vector<std::string> gone;
  for (const auto& [name, row] : tables_.gateways)
    if (w.seen_gateways.count(name) == 0) gone.push_back(name);
  for (const auto& name : gone) erase_gateway(w, name);
  keep(tables_.gateway_classes, w.seen_gateway_classes, w.change.gateway_classes);
  keep(tables_.connector_classes, w.seen_connector_classes, w.change.connector_classes);
}

// ---- deriving ----

void view::derive(work& w) {
  for (const auto& key : w.affected) derive_one(w, key);
}

void view::derive_one(work& w, const entity_key& key) {
  const auto* row = tables_.tunnel(key.first, key.second);
  if (row == nullptr) {
    if (tables_.derived.erase(key) > 0) w.change.routes.insert(key);
    behind_[w.partition].erase(key);
    return;
  }
  auto [found, fresh] = tables_.derived.try_emplace(key);
  auto& d = found->second;
  if (!fresh) {
    // Deleted and created again is another tunnel: nothing that was known holds for it.
    auto before = w.change.tunnels_before.find(key);
    if (before != w.change.tunnels_before.end() && before->second && before->second->uid() != row->uid()) {
      d = {};
      fresh = true;
    }
  }
  d.plan = tables_.plan(*row);
  const auto routes = print_routes(tables_, *row, d.plan);
  const auto clusters = print_clusters(tables_, *row, d.plan);
  if (fresh || routes != d.route_print) w.change.routes.insert(key);
  if (fresh || routes != d.route_print || clusters != d.cluster_print) d.routed_revision = w.revision;
  d.route_print = routes;
  d.cluster_print = clusters;
  const auto gateways = gateways_for(tables_, row->partition(), row->gateway_class());
  auto status = tunnel::derive({.tunnel = *row,
                                .plan = d.plan,
                                .connector = connectors_in(tables_, key.first),
                                .attachment = attachments_in(tables_, key.first),
                                .gateways = gateways,
                                .settled = is_settled(row->partition(), row->gateway_class()),
                                .routed_revision = d.routed_revision,
                                .before = d.gateways,
                                .previous = fresh ? nullptr : &*d.conditions,
                                .wall_ms = w.wall_ms});
  d.gateways = std::move(status.gateways);
  auto& behind = behind_[row->partition()];
  if (d.gateways.what == tunnel::gateway_knowledge::verdict::run) behind.erase(key);
  else behind.insert(key);
  if (!fresh && same(d.conditions, status.conditions)) return;
  d.conditions = std::move(status.conditions);
  d.changed_revision = w.revision;
  d.changed_wall_ms = w.wall_ms;
  w.change.derived.insert(key);
}

// All tunnels of the partition that are carried by this class (null: by any).
void view::derive_class(work& w, const std::string* gateway_class) {
  auto projects = projects_.find(w.partition);
  if (projects == projects_.end()) return;
  for (const auto& project : projects->second)
    for (auto it = tables_.tunnels.lower_bound({project, ""});
         it != tables_.tunnels.end() && it->first.first == project; ++it)
      if (gateway_class == nullptr || it->second->gateway_class() == *gateway_class) derive_one(w, it->first);
}

void view::finish(work& w) {
  w.change.partition = w.partition;
  w.change.revision = w.revision;
  w.change.serial = ++tables_.serial;
}

// ---- gateways ----

bool view::is_settled(partition_id partition, const std::string& gateway_class) const {
  return tables_.gateways_settled || settled_.count({partition, gateway_class}) > 0;
}

void view::apply_ack(const busv1::GatewayAck& ack, std::int64_t steady_ms, std::int64_t wall_ms) {
  work w{.partition = ack.partition(), .steady_ms = steady_ms, .wall_ms = wall_ms};
  {
    std::unique_lock lock{mutex_};
    auto p = tables_.partitions.find(ack.partition());
    if (p == tables_.partitions.end() || ack.incarnation() < p->second.incarnation) return;
    // Our own server may speak of the former life for a moment after we have read the new one.
    if (ack.state() == "caught_up" && lineage(ack.acknowledged()) < lineage(p->second.revision)) return;
    w.revision = p->second.revision;
    auto& reports = tables_.acks[ack.partition()];
    std::string class_before;
    if (auto r = reports.find(ack.gateway()); r != reports.end()) class_before = r->second.report.class_();
    const auto effect = warren::apply_ack(reports, ack, steady_ms, wall_ms);
    if (effect == ack_effect::ignored || effect == ack_effect::refreshed) return;
    w.change.acks = true;
    if (effect == ack_effect::changed) {
      const std::string gateway_class = ack.class_();
      derive_class(w, &gateway_class);
      if (!class_before.empty() && class_before != gateway_class) derive_class(w, &class_before);
    } else {
      const auto behind = behind_[ack.partition()];
      for (const auto& key : behind)
        if (const auto* row = tables_.tunnel(key.first, key.second);
            row != nullptr && row->gateway_class() == ack.class_())
          derive_one(w, key);
    }
    finish(w);
  }
  notify(w.change);
}

// Which classes have been heard, until all have.
void view::settle(std::int64_t steady_ms, std::int64_t wall_ms, std::vector<work>& works) {
  std::set<std::pair<partition_id, std::string>> open;
  for (const auto& [key, row] : tables_.tunnels)
    if (settled_.count({row->partition(), row->gateway_class()}) == 0)
      open.insert({row->partition(), row->gateway_class()});
  const auto reserved = tables_.partitions.find(partitions_);
  const bool registry_known = reserved != tables_.partitions.end() && reserved->second.warm;
  std::map<std::string, std::set<std::string>> registered;
  for (const auto& [name, row] : tables_.gateways) registered[row->class_()].insert(name);
  bool all = true;
  for (const auto& pair : open) {
    const auto& reports = tables_.acks[pair.first];
    if (!warren::gateways_settled(reports, pair.second, registry_known ? &registered[pair.second] : nullptr,
                                  started_ms_, steady_ms)) {
      all = false;
      continue;
    }
    settled_.insert(pair);
    work w{.partition = pair.first, .revision = tables_.partitions[pair.first].revision,
           .steady_ms = steady_ms, .wall_ms = wall_ms};
    w.change.acks = true;
    derive_class(w, &pair.second);
    finish(w);
    works.push_back(std::move(w));
  }
  if (steady_ms >= started_ms_ + limits::gateway_settle / 1ms || (all && tables_.warm)) {
    tables_.gateways_settled = true;
    settled_.clear();
    // Whoever waits for this moment hears of it.
    work w{.partition = partitions_, .revision = tables_.partitions[partitions_].revision,
           .steady_ms = steady_ms, .wall_ms = wall_ms};
    w.change.acks = true;
    finish(w);
    works.push_back(std::move(w));
  }
}

void view::prune_deletions(std::int64_t wall_ms) {
  const auto kept_ms = limits::tombstone_kept / 1ms;
  for (auto& [id, d] : tables_.deleted)
    while (!d.all.empty() && (d.all.size() > deletions_max || d.all.front().wall_ms + kept_ms < wall_ms)) {
      d.complete_after = std::max(d.complete_after, d.all.front().revision);
      d.all.pop_front();
    }
}

void view::tick(std::int64_t steady_ms, std::int64_t wall_ms) {
  std::vector<work> works;
  {
    std::unique_lock lock{mutex_};
    for (auto& [id, reports] : tables_.acks) {
      const auto classes = expire_acks(reports, steady_ms, wall_ms);
      if (classes.empty()) continue;
      work w{.partition = id, .revision = tables_.partitions[id].revision, .steady_ms = steady_ms, .wall_ms = wall_ms};
      w.change.acks = true;
      for (const auto& c : classes) derive_class(w, &c);
      finish(w);
      works.push_back(std::move(w));
    }
    if (!tables_.gateways_settled) settle(steady_ms, wall_ms, works);
    if (steady_ms >= pruned_at_ms_ + prune_every_ms) {
      pruned_at_ms_ = steady_ms;
      prune_deletions(wall_ms);
    }
  }
  for (const auto& w : works) notify(w.change);

  std::vector<std::shared_ptr<waiting>> late;
  {
    std::lock_guard lock{waiting_mutex_};
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      if (steady_ms < it->second->deadline_ms) {
        ++it;
        continue;
      }
      late.push_back(std::move(it->second));
      it = waiting_.erase(it);
    }
  }
  for (const auto& w : late) w->then(false);
}

}  // namespace warren::replica
