// services/replica/rows.cpp -- rows in and out. Costs what is touched, not what there is. No CAF, no I/O.
#include "services/replica/rows.hpp"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <google/protobuf/util/message_differencer.h>

namespace warren::replica {

namespace {

template <class Map, class Key> auto value_or_null(const Map& m, const Key& k) {
  auto found = m.find(k);
  return found == m.end() ? typename Map::mapped_type{} : found->second;
}

template <class Row> row_ptr<Row> read(const row_ptr<Row>& row) { return row; }
template <class Row> row_ptr<Row> read(const packed_row<Row>& row) { return row.unpack(); }

template <class Kept, class Row> bool is_news(const Kept& kept, const Row& got, bool complete) {
  const auto have = read(kept);
  if (!have) return true;
  return complete ? have->version() != got.version() || got.version() == rival_version
                  : got.version() >= have->version();
}

template <class Kept> bool is_older(const Kept& kept, const v1::TombstoneRow& gone) {
  const auto have = read(kept);
  return have && have->version() < gone.version();
}

// Whether nothing is different but how far the connector's set is: with thousands of tunnels behind one connector,
// that is news to those whose attachment has just been acknowledged, and to no other.
bool only_set_moved(const v1::ConnectorRow& before, const v1::ConnectorRow& after) {
  if (before.online() != after.online()) return false;  // the usual other change, found without a copy
  v1::ConnectorRow moved = before;
  moved.set_version(after.version());
  moved.set_route_version(after.route_version());
  moved.set_attachment_generation(after.attachment_generation());
  moved.set_attached_generation(after.attached_generation());
  moved.clear_updated_at();
  if (after.has_updated_at()) *moved.mutable_updated_at() = after.updated_at();
  return google::protobuf::util::MessageDifferencer::Equals(moved, after);
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

/// All that is known of a row that was gone before our time.
template <class Row> Row stub_of(const application& a, const v1::TombstoneRow& gone, const entity_key& key) {
  Row stub;
  stub.set_partition(a.partition);
  if constexpr (requires { stub.set_project(key.first); }) stub.set_project(key.first);
  stub.set_name(key.second);
  stub.set_uid(gone.uid());
  stub.set_version(gone.version());
  return stub;
}

/// Nobody is told more of a row that is gone: there may be many of them.
template <class Row> Row stub_of(const Row& gone) {
  Row stub;
  stub.set_partition(gone.partition());
  if constexpr (requires { gone.project(); }) stub.set_project(gone.project());
  stub.set_name(gone.name());
  stub.set_uid(gone.uid());
  stub.set_version(gone.version());
  return stub;
}

deletions::deleted deletion(const application& a, revision_t revision, const v1::TunnelRow& row) {
  return {revision, a.wall_ms, packed_row{stub_of(row)}, {}, {}};
}
deletions::deleted deletion(const application& a, revision_t revision, const v1::ConnectorRow& row) {
  return {revision, a.wall_ms, {}, packed_row{stub_of(row)}, {}};
}
deletions::deleted deletion(const application& a, revision_t revision, const v1::GatewayRow& row) {
  return {revision, a.wall_ms, {}, {}, packed_row{stub_of(row)}};
}

}  // namespace

// ---- in ----

void row_keeper::take(application& a, const v1::Row& row, census* seen) {
  const bool complete = seen != nullptr;
  const auto entity = [&](const auto& r, auto& have, auto census::*all) {
    const entity_key key{r.project(), r.name()};
    if (complete) (seen->*all).insert(key);
    if (is_news(value_or_null(have, key), r, complete)) put(a, r);
  };
  const auto registered = [&](const auto& r, auto& rows, auto census::*all, std::set<std::string>& changed) {
    if (complete) (seen->*all).insert(r.name());
    using row_type = std::decay_t<decltype(r)>;
    auto& have = rows[r.name()];
    if (!is_news(have, r, complete)) return;
    have = std::make_shared<const row_type>(r);
    changed.insert(r.name());
  };
  switch (row.row_case()) {
    case v1::Row::kTunnel: return entity(row.tunnel(), tables_.tunnels, &census::tunnels);
    case v1::Row::kConnector: return entity(row.connector(), tables_.connectors, &census::connectors);
    case v1::Row::kAttachment: {
      const auto& r = row.attachment();
      const attachment_key key{r.project(), r.connector(), r.tunnel_uid(), r.tunnel_generation()};
      if (complete) seen->attachments.insert(key);
      const auto* have = tables_.attachments.find(key);
      if (have == nullptr || is_news(*have, r, complete)) put(a, r);
      return;
    }
    case v1::Row::kHostnameClaim: return take_claim(a, row.hostname_claim(), seen);
    case v1::Row::kGateway: return registered(row.gateway(), tables_.gateways, &census::gateways, a.change.gateways);
    case v1::Row::kGatewayClass:
      return registered(row.gateway_class(), tables_.gateway_classes, &census::gateway_classes, a.change.gateway_classes);
    case v1::Row::kConnectorClass:
      return registered(row.connector_class(), tables_.connector_classes, &census::connector_classes, a.change.connector_classes);
    case v1::Row::kTombstone:
    case v1::Row::ROW_NOT_SET: return;
  }
}

void row_keeper::take_claim(application& a, const v1::HostnameClaimRow& r, census* seen) {
  const auto found = tables_.claims.find(r.hostname());
  auto have = found == tables_.claims.end() ? nullptr : found->second.unpack();
  if (have && have->partition() != a.partition) {
    // Two partitions' messages come in any order: of two claims the higher number is the newer, unless it is of
    // a life of the database that is over, which its partition has not been read anew from.
    const bool outlived = lineage(tables_.partitions[have->partition()].revision) < lineage(a.revision);
    if (have->claim() > r.claim() && !outlived) return;
    erase_claim(a, r.hostname());
    have = nullptr;
  }
  if (seen != nullptr) seen->claims.insert(r.hostname());
  if (is_news(have, r, seen != nullptr)) put(a, r);
}

void row_keeper::put(application& a, const v1::TunnelRow& row) {
  const entity_key key{row.project(), row.name()};
  tables_.projects[a.partition].insert(row.project());
  auto& have = tables_.tunnels[key];
  a.change.tunnels.insert(key);
  a.change.tunnels_before.try_emplace(key, have);
  if (const auto before = have.unpack()) unindex(*before);
  index(row);
  have = packed_row{row};
  a.affected.insert(key);
}

void row_keeper::put(application& a, const v1::ConnectorRow& row) {
  const entity_key key{row.project(), row.name()};
  tables_.projects[a.partition].insert(row.project());
  auto& have = tables_.connectors[key];
  a.change.connectors.insert(key);
  a.change.connectors_before.try_emplace(key, have);
  const auto before = std::exchange(have, std::make_shared<const v1::ConnectorRow>(row));
  if (!before || !only_set_moved(*before, *have)) return touch_tunnels_of(a, key);
  const auto [low, high] = std::minmax({before->attached_generation(), have->attached_generation()});
  for (const auto& [of, packed] : tables_.attachments.of(key))
    if (const auto g = packed.attachment_generation; low < g && g <= high) a.affected.insert({key.first, packed.unpack()->tunnel()});
}

void row_keeper::put(application& a, const v1::AttachmentRow& row) {
  tables_.projects[a.partition].insert(row.project());
  a.affected.insert({row.project(), row.tunnel()});
  tables_.attachments[{row.project(), row.connector(), row.tunnel_uid(), row.tunnel_generation()}] = packed_attachment{row};
}

void row_keeper::put(application& a, const v1::HostnameClaimRow& row) {
  a.change.hostnames.insert(row.hostname());
  auto& have = tables_.claims[row.hostname()];
  if (const auto before = have.unpack()) a.affected.insert({before->project(), before->tunnel()});
  a.affected.insert({row.project(), row.tunnel()});
  have = packed_claim{row};
}

void row_keeper::index(const v1::TunnelRow& row) {
  for (const auto& c : connectors_of(row)) tables_.tunnels_by_connector[{row.project(), c}].insert(row.name());
  ++tables_.carried[{row.partition(), row.gateway_class()}];
}
void row_keeper::unindex(const v1::TunnelRow& row) {
  const auto class_of = tables_.carried.find({row.partition(), row.gateway_class()});
  if (class_of != tables_.carried.end() && --class_of->second == 0) tables_.carried.erase(class_of);
  for (const auto& c : connectors_of(row)) {
    auto named = tables_.tunnels_by_connector.find({row.project(), c});
    if (named == tables_.tunnels_by_connector.end()) continue;
    named->second.erase(row.name());
    if (named->second.empty()) tables_.tunnels_by_connector.erase(named);
  }
}
void row_keeper::touch_tunnels_of(application& a, const entity_key& connector) {
  if (auto named = tables_.tunnels_by_connector.find(connector); named != tables_.tunnels_by_connector.end())
    for (const auto& t : named->second) a.affected.emplace_hint(a.affected.end(), connector.first, t);
}

// ---- out ----

void row_keeper::erase_tunnel(application& a, const entity_key& key) {
  auto found = tables_.tunnels.find(key);
  if (found == tables_.tunnels.end()) return;
  a.change.tunnels.insert(key);
  a.change.tunnels_before.try_emplace(key, found->second);
  const auto row = found->second.unpack();
  unindex(*row);
  tables_.deleted[a.partition].all.push_back(deletion(a, a.revision, *row));
  tables_.tunnels.erase(found);
  a.affected.insert(key);
}

void row_keeper::erase_connector(application& a, const entity_key& key) {
  auto found = tables_.connectors.find(key);
  if (found == tables_.connectors.end()) return;
  a.change.connectors.insert(key);
  a.change.connectors_before.try_emplace(key, found->second);
  tables_.deleted[a.partition].all.push_back(deletion(a, a.revision, *found->second));
  tables_.connectors.erase(found);
  touch_tunnels_of(a, key);
}

void row_keeper::erase_attachment(application& a, const attachment_key& key) {
  const auto* found = tables_.attachments.find(key);
  if (found == nullptr) return;
  a.affected.insert({std::get<0>(key), found->unpack()->tunnel()});
  tables_.attachments.erase(key);
}

void row_keeper::erase_claim(application& a, const std::string& hostname) {
  auto found = tables_.claims.find(hostname);
  if (found == tables_.claims.end()) return;
  a.change.hostnames.insert(hostname);
  const auto row = found->second.unpack();
  a.affected.insert({row->project(), row->tunnel()});
  tables_.claims.erase(found);
}

void row_keeper::erase_gateway(application& a, const std::string& name) {
  auto found = tables_.gateways.find(name);
  if (found == tables_.gateways.end()) return;
  a.change.gateways.insert(name);
  tables_.deleted[a.partition].all.push_back(deletion(a, a.revision, *found->second));
  tables_.gateways.erase(found);
}

void row_keeper::forget(application& a, const v1::TombstoneRow& gone) {
  if (gone.version() == rival_version) return;  // comes again with a revision once its owner has adopted it
  const auto parts = split(gone.key());
  // What went before our time is known by its tombstone alone.
  const auto remember = [&]<class Row>(const auto& rows, const entity_key& key, const Row&) {
    if (tables_.partitions[a.partition].warm || rows.count(key) > 0) return;
    tables_.deleted[a.partition].all.push_back(deletion(a, gone.version(), stub_of<Row>(a, gone, key)));
  };
  const auto forget_class = [&](auto& rows, std::set<std::string>& changed) {
    if (!is_older(value_or_null(rows, gone.key()), gone)) return;
    rows.erase(gone.key());
    changed.insert(gone.key());
  };
  if (gone.kind() == "tunnel" && parts.size() == 2) {
    const entity_key key{parts[0], parts[1]};
    if (is_older(value_or_null(tables_.tunnels, key), gone)) return erase_tunnel(a, key);
    remember(tables_.tunnels, key, v1::TunnelRow{});
  } else if (gone.kind() == "connector" && parts.size() == 2) {
    const entity_key key{parts[0], parts[1]};
    if (is_older(value_or_null(tables_.connectors, key), gone)) return erase_connector(a, key);
    remember(tables_.connectors, key, v1::ConnectorRow{});
  } else if (gone.kind() == "attachment" && parts.size() == 4) {
    const auto generation = number(parts[3]);
    if (!generation) return;
    const attachment_key key{parts[0], parts[1], parts[2], *generation};
    if (const auto* have = tables_.attachments.find(key); have != nullptr && is_older(*have, gone)) erase_attachment(a, key);
  } else if (gone.kind() == "hostname_claim") {
    const auto have = value_or_null(tables_.claims, gone.key());
    if (is_older(have, gone) && have.partition == a.partition) erase_claim(a, gone.key());
  } else if (gone.kind() == "gateway") {
    if (is_older(value_or_null(tables_.gateways, gone.key()), gone)) return erase_gateway(a, gone.key());
    if (tables_.partitions[a.partition].warm || tables_.gateways.count(gone.key()) > 0) return;
    tables_.deleted[a.partition].all.push_back(deletion(a, gone.version(), stub_of<v1::GatewayRow>(a, gone, {"", gone.key()})));
  } else if (gone.kind() == "gateway_class") {
    forget_class(tables_.gateway_classes, a.change.gateway_classes);
  } else if (gone.kind() == "connector_class") {
    forget_class(tables_.connector_classes, a.change.connector_classes);
  }
}

void row_keeper::forget_unseen(application& a, const census& seen) {
  const auto missing = [](const auto& rows, const auto& first, const auto& present, auto&& is_ours) {
    std::vector<typename std::decay_t<decltype(rows)>::key_type> gone;
    for (auto it = rows.lower_bound(first); it != rows.end() && is_ours(it->first); ++it)
      if (present.count(it->first) == 0) gone.push_back(it->first);
    return gone;
  };
  for (const auto& project : tables_.projects[a.partition]) {
    const auto of_entity = [&](const entity_key& k) { return k.first == project; };
    for (const auto& key : missing(tables_.tunnels, entity_key{project, ""}, seen.tunnels, of_entity)) erase_tunnel(a, key);
    for (const auto& key : missing(tables_.connectors, entity_key{project, ""}, seen.connectors, of_entity)) erase_connector(a, key);
    std::vector<attachment_key> let_go;
    const auto& all = tables_.attachments.by_connector();
    for (auto it = all.lower_bound({project, ""}); it != all.end() && of_entity(it->first); ++it)
      for (const auto& [of, packed] : it->second)
        if (attachment_key key{project, it->first.second, of.first, of.second}; seen.attachments.count(key) == 0) let_go.push_back(std::move(key));
    for (const auto& key : let_go) erase_attachment(a, key);
  }
  std::vector<std::string> unclaimed;
  for (const auto& [hostname, row] : tables_.claims)
    if (row.partition == a.partition && seen.claims.count(hostname) == 0) unclaimed.push_back(hostname);
  for (const auto& hostname : unclaimed) erase_claim(a, hostname);

  if (a.partition != tables_.registry()) return;
  const auto any = [](const std::string&) { return true; };
  for (const auto& name : missing(tables_.gateways, std::string{}, seen.gateways, any)) erase_gateway(a, name);
  const auto keep = [&](auto& rows, const auto& present, auto& changed) {
    for (const auto& name : missing(rows, std::string{}, present, any)) {
      rows.erase(name);
      changed.insert(name);
    }
  };
  keep(tables_.gateway_classes, seen.gateway_classes, a.change.gateway_classes);
  keep(tables_.connector_classes, seen.connector_classes, a.change.connector_classes);
}

}  // namespace warren::replica
