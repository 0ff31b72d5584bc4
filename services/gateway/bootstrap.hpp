// services/gateway/bootstrap.hpp -- the configuration that an Envoy starts with to become a gateway. No I/O.
#pragma once

#include <string>

namespace warren::gateway {

/// A complete Envoy bootstrap in YAML, each part with what it is for.
/// `xds_host` is an IP address or a name, `admin_address` an "ip:port" (loopback: the admin page can stop Envoy).
/// The arguments have been checked: names are labels, addresses parse.
std::string bootstrap_yaml(const std::string& gateway, const std::string& gateway_class, const std::string& xds_host,
                           int xds_port, const std::string& admin_address);

}  // namespace warren::gateway
