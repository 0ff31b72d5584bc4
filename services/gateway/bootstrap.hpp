// services/gateway/bootstrap.hpp -- the configuration that an Envoy starts with to become a gateway. No I/O.
#pragma once

#include <string>

#include "services/gateway/compile.hpp"

namespace warren::gateway {

/// A complete Envoy bootstrap in YAML, each part with what it is for.
/// `xds_host` is an IP address or a name, `admin_address` an "ip:port" (loopback: the admin page can stop Envoy).
/// The arguments have been checked: names are labels, addresses parse. For dial mode `tunnel-listener` it has the
/// listener `connector-tunnel`, and a cluster `tunnel-gateway` on loopback for the operator to change.
std::string bootstrap_yaml(const std::string& gateway, const std::string& gateway_class, const std::string& xds_host,
                           int xds_port, const std::string& admin_address, dial_mode dial = dial_mode::direct);

}  // namespace warren::gateway
