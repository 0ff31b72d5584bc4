// services/replica/tables.cpp -- look-ups, and questions that need several rows. No CAF, no I/O.
#include "services/replica/tables.hpp"

#include <algorithm>
#include <utility>

namespace warren::replica {

tunnel::find_connector connectors_in(const tables& t, const std::string& project) {
  return [&t, &project](const std::string& name) { return t.connector(project, name); };
}
tunnel::find_attachment attachments_in(const tables& t, const std::string& project) {
  // A derivation asks for the same few again and again.
  using answers = std::vector<std::pair<const packed_attachment*, row_ptr<v1::AttachmentRow>>>;
  return [&t, &project, given = std::make_shared<answers>()](const std::string& connector, const std::string& uid,
                                                             std::int64_t generation) -> const v1::AttachmentRow* {
    const auto found = t.attachments.find({project, connector, uid, generation});
    if (found == t.attachments.end()) return nullptr;
    for (const auto& [of, row] : *given)
      if (of == &found->second) return row.get();
    return given->emplace_back(&found->second, found->second.unpack()).second.get();
  };
}

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
  auto found = attachments.find({project, connector, tunnel_uid, generation});
  return found == attachments.end() ? nullptr : found->second.unpack();
}

tunnel::route_plan tables::plan(const v1::TunnelRow& t) const {
  return tunnel::plan_routes(t, connectors_in(*this, t.project()), attachments_in(*this, t.project()));
}

std::vector<tunnel::chain_link> tables::explain(const std::string& project, const std::string& name,
                                                std::int64_t wall_ms) const {
  const auto row = tunnel(project, name);
  const auto found = derived.find({project, name});
  if (row == nullptr || found == derived.end()) return {};
  const auto& d = found->second;
  const auto known = d.status.unpack();
  const auto current = plan(*row);
  const auto states = gateways_of(row->partition(), row->gateway_class());
  // What the derivation went by, also while the gateways have not been heard.
  const bool settled = gateways_settled || known.gateways.what != tunnel::gateway_knowledge::verdict::unknown;
  return tunnel::explain({.tunnel = *row,
                          .plan = current,
                          .connector = connectors_in(*this, project),
                          .attachment = attachments_in(*this, project),
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
