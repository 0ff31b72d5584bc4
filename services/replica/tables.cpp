// services/replica/tables.cpp -- look-ups, and questions that need several rows. No CAF, no I/O.
#include "services/replica/tables.hpp"

#include <algorithm>
#include <utility>

namespace warren::replica {

// ---- attachments ----

const packed_attachment* attachment_table::find(const entity_key& connector, std::string_view tunnel_uid, std::int64_t generation) const {
  const auto& all = of(connector);
  const auto it = all.find(std::pair{tunnel_uid, generation});
  return it == all.end() ? nullptr : &it->second;
}
const packed_attachment* attachment_table::find(const attachment_key& key) const {
  const auto& [project, connector, tunnel_uid, generation] = key;
  return find({project, connector}, tunnel_uid, generation);
}

packed_attachment& attachment_table::operator[](const attachment_key& key) {
  const auto& [project, connector, tunnel_uid, generation] = key;
  const auto [it, fresh] = all_[{project, connector}].try_emplace({tunnel_uid, generation});
  if (fresh) ++size_;
  return it->second;
}

void attachment_table::erase(const attachment_key& key) {
  const auto& [project, connector, tunnel_uid, generation] = key;
  const auto it = all_.find({project, connector});
  if (it == all_.end()) return;
  size_ -= it->second.erase({tunnel_uid, generation});
  if (it->second.empty()) all_.erase(it);
}

const attachment_table::of_connector& attachment_table::of(const entity_key& connector) const {
  static const of_connector none;
  const auto it = all_.find(connector);
  return it == all_.end() ? none : it->second;
}

// ---- questions ----

questions::questions(const tables& t, const std::string& project)
    : connector{[this](const std::string& name) { return ask(name); }},
      attachment{[this](const std::string& of, const std::string& uid, std::int64_t generation) { return ask(of, uid, generation); }},
      tables_{t}, project_{project} {}

const v1::ConnectorRow* questions::ask(const std::string& name) {
  for (const auto& [known, row] : connectors_)
    if (known == name) return row;
  return connectors_.emplace_back(name, tables_.connector(project_, name)).second;
}

const v1::AttachmentRow* questions::ask(const std::string& of, const std::string& uid, std::int64_t generation) {
  for (const auto& each : attachments_)
    if (each.generation == generation && each.connector == of && each.tunnel_uid == uid) return each.row.get();
  return attachments_.emplace_back(asked{of, uid, generation, tables_.attachment(project_, of, uid, generation)}).row.get();
}

// ---- look-ups ----

row_ptr<v1::TunnelRow> tables::tunnel(const std::string& project, const std::string& name) const {
  auto found = tunnels.find({project, name});
  return found == tunnels.end() ? nullptr : found->second.unpack();
}

const v1::ConnectorRow* tables::connector(const std::string& project, const std::string& name) const {
  auto found = connectors.find({project, name});
  return found == connectors.end() ? nullptr : found->second.get();
}

row_ptr<v1::AttachmentRow> tables::attachment(const std::string& project, const std::string& connector,
                                              const std::string& tunnel_uid, std::int64_t generation) const {
  const auto* found = attachments.find({project, connector}, tunnel_uid, generation);
  return found == nullptr ? nullptr : found->unpack();
}

tunnel::route_plan tables::plan(const v1::TunnelRow& t) const {
  return questions{*this, t.project()}.plan(t);
}

std::vector<tunnel::chain_link> tables::explain(const std::string& project, const std::string& name,
                                                std::int64_t wall_ms) const {
  const auto row = tunnel(project, name);
  const auto found = derived.find({project, name});
  if (row == nullptr || found == derived.end()) return {};
  const auto& d = found->second;
  const auto known = d.status.unpack();
  const questions q{*this, project};
  const auto current = q.plan(*row);
  const auto states = gateways_of(row->partition(), row->gateway_class());
  // What the derivation went by, also while the gateways have not been heard.
  const bool settled = gateways_settled || known.gateways.what != tunnel::gateway_knowledge::verdict::unknown;
  return tunnel::explain({.tunnel = *row,
                          .plan = current,
                          .connector = q.connector,
                          .attachment = q.attachment,
                          .gateways = states,
                          .settled = settled,
                          .routed_revision = d.routed_revision,
                          .before = known.gateways,
                          .previous = &known.conditions,
                          .wall_ms = wall_ms,
                          .dials_agents = dials_agents(row->gateway_class()),
                          .class_missing = lacks_gateway_class(row->gateway_class())});
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

bool tables::dials_agents(const std::string& gateway_class) const {
  const auto it = gateway_classes.find(gateway_class);
  return it != gateway_classes.end() && (it->second->dial_mode().empty() || it->second->dial_mode() == "direct");
}

bool tables::lacks_gateway_class(const std::string& name) const {
  const auto at = partitions.find(registry());
  return at != partitions.end() && at->second.warm && gateway_classes.count(name) == 0;
}

std::vector<v1::GatewayState> tables::gateways_of(partition_id partition, const std::string& gateway_class) const {
  auto found = acks.find(partition);
  return found == acks.end() ? std::vector<v1::GatewayState>{} : warren::gateways_of(found->second, gateway_class);
}

}  // namespace warren::replica
