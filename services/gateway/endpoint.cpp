// services/gateway/endpoint.cpp -- where a rule leads when gateways reach connectors through a tunnel gateway. Pure.
#include "services/gateway/endpoint.hpp"

#include "actors/connector/spec.hpp"
#include "services/gateway/compile.hpp"

namespace warren::gateway {

std::optional<tunnel_endpoint> endpoint_of(const tunnel::rule_plan& rule, const warren::core::v1::ConnectorRow* connector) {
  if (rule.what != tunnel::outcome::live || connector == nullptr) return std::nullopt;
  if (connector->addresses().empty() && connector->home_relay().empty()) return std::nullopt;
  if (connector::check_public_key(connector->public_key())) return std::nullopt;
  auto authority = target_authority(rule.rule.target());
  if (!authority) return std::nullopt;
  return tunnel_endpoint{std::move(*authority), connector->public_key()};
}

}  // namespace warren::gateway
