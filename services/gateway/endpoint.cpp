// services/gateway/endpoint.cpp -- where a rule leads when gateways reach connectors through a tunnel gateway. Pure.
#include "services/gateway/endpoint.hpp"

#include "actors/connector/spec.hpp"
#include "services/gateway/compile.hpp"

namespace warren::gateway {

namespace {

bool says_where(const warren::core::v1::ConnectorRow& row) { return !row.addresses().empty() || !row.home_relay().empty(); }

}  // namespace

std::optional<tunnel_endpoint> endpoint_of(const tunnel::rule_plan& rule, const warren::core::v1::ConnectorRow* connector) {
  if (rule.what != tunnel::outcome::live || connector == nullptr) return std::nullopt;
  if (!says_where(*connector)) return std::nullopt;
  if (connector::check_public_key(connector->public_key())) return std::nullopt;
  auto authority = target_authority(rule.rule.target());
  if (!authority) return std::nullopt;
  return tunnel_endpoint{std::move(*authority), connector->public_key()};
}

bool same_endpoint(const warren::core::v1::ConnectorRow& a, const warren::core::v1::ConnectorRow& b) {
  return a.public_key() == b.public_key() && says_where(a) == says_where(b);
}

}  // namespace warren::gateway
