// services/gateway/endpoint.cpp -- where a rule leads when gateways reach connectors through a tunnel gateway. Pure.
#include "services/gateway/endpoint.hpp"

#include <algorithm>

#include "services/gateway/compile.hpp"

namespace warren::gateway {

std::optional<tunnel_endpoint> endpoint_of(const tunnel::rule_plan& rule, const warren::core::v1::ConnectorRow* connector) {
  if (rule.what != tunnel::outcome::live || connector == nullptr) return std::nullopt;
  if (connector->addresses().empty() && connector->home_relay().empty()) return std::nullopt;
  constexpr std::size_t key_digits = 64;  // Ed25519, in lower-case hex
  const auto& key = connector->public_key();
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (key.size() != key_digits || !std::all_of(key.begin(), key.end(), is_digit)) return std::nullopt;
  auto authority = target_authority(rule.rule.target());
  if (!authority) return std::nullopt;
  return tunnel_endpoint{std::move(*authority), key};
}

}  // namespace warren::gateway
