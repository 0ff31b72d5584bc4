// services/gateway/endpoint.hpp -- where a rule leads when gateways reach connectors through a tunnel gateway of their
// own: the target, and the key of the connector behind which it is. Pure: no I/O, no clock, no state.
#pragma once

#include <optional>
#include <string>

#include "actors/tunnel/routing.hpp"
#include "warren/core/v1/rows.pb.h"

namespace warren::gateway {

/// What the endpoint metadata `tunnel` says.
struct tunnel_endpoint {
  std::string address;      ///< "host:port" of the target, as the agent dials it
  std::string endpoint_id;  ///< the connector's public key
};

/// Nothing unless the rule is live, its target can be passed on, and `connector` (its connector's row; null: there is
/// none) has a usable key and says how it can be reached.
std::optional<tunnel_endpoint> endpoint_of(const tunnel::rule_plan& rule, const warren::core::v1::ConnectorRow* connector);

/// Whether endpoint_of says the same with either row of the connector, of whatever rule.
bool same_endpoint(const warren::core::v1::ConnectorRow& a, const warren::core::v1::ConnectorRow& b);

}  // namespace warren::gateway
