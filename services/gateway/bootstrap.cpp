// services/gateway/bootstrap.cpp -- the configuration that an Envoy starts with to become a gateway. No I/O.
#include "services/gateway/bootstrap.hpp"

#include <array>
#include <string_view>

#include <arpa/inet.h>
#include <fmt/format.h>

namespace warren::gateway {

namespace {

bool is_ip(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> parsed{};
  return inet_pton(AF_INET, host.c_str(), parsed.data()) == 1 || inet_pton(AF_INET6, host.c_str(), parsed.data()) == 1;
}

constexpr std::string_view text = R"yaml(# Envoy as a Warren gateway. Start it with: envoy -c THIS_FILE

node:
  # The name under which the gateway is registered (warrenctl gateway create); any other is refused.
  id: "{gateway}"
  # Shown by `warrenctl gateway list`; yours to change, and so is a locality (region, zone, sub_zone).
  cluster: warren
  metadata:
    # Must be the class of the registration: a mistake shows here and not as somebody else's routes.
    warren_class: "{gateway_class}"
    # How this file dials connectors. A class that dials otherwise refuses it: make it anew.
    warren_dial_mode: {dial_mode}

# Statistics are brought up to date when they are read. Doing it every 5 s would hold the main thread for as long
# as a change of routes may take.
stats_flush_on_admin: true
stats_config:
  # Envoy keeps a tree of statistics per route configuration and per connector. This is what an operator reads;
  # without it each tunnel costs memory for numbers that nobody looks at.
  stats_matcher:
    inclusion_list:
      patterns:
      - prefix: "http.visitors.downstream_"
      - prefix: "http.visitors.rq_"
      - prefix: "http.visitors.no_route"
      - prefix: "http.visitors.tracing"
      - prefix: "cluster.warren-ads."
{stats_of_dialling}      - prefix: "cluster_manager."
      - prefix: "listener_manager."
      - prefix: "control_plane."
      - prefix: "server."

bootstrap_extensions:
# Connectors are dialled through a listener inside Envoy ({listener}), which needs this.
- name: envoy.bootstrap.internal_listener
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener

dynamic_resources:
  # Everything comes over one stream to Warren: clusters, listeners (with the access log: one JSON line per
  # request on standard output), scoped routes and routes.
  ads_config:
    api_type: DELTA_GRPC  # only what changes is sent
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services:
    - envoy_grpc:
        cluster_name: warren-ads
        # After the control plane was away, back within a second; visitors are served meanwhile.
        retry_policy:
          retry_back_off: {{base_interval: 0.1s, max_interval: 1s}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}

static_resources:
{tunnel_listener}  clusters:
{tunnel_gateway}  # Where the control plane is.
  - name: warren-ads
    type: {type}
    # Of a name, all addresses: one instance behind it may listen on IPv4 only, another on IPv6.
    dns_lookup_family: ALL
    connect_timeout: 1s
    load_assignment:
      cluster_name: warren-ads
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: "{xds_host}", port_value: {xds_port}}}}}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options:
            # Finds out within 6 s that the control plane's instance is gone or stands still. The answer is read by
            # the main thread, which loading many connectors keeps busy for seconds: hence the timeout.
            connection_keepalive: {{interval: 1s, timeout: 5s}}

# Statistics and state for the operator. Whoever reaches it can stop Envoy: keep it on loopback.
admin:
  address: {{socket_address: {{address: "{admin_host}", port_value: {admin_port}}}}}
)yaml";

// Dial mode `tunnel-listener`. Where the tunnel gateway is only the operator knows.
constexpr std::string_view tunnel_listener_text = R"yaml(  listeners:
  # Connections to targets begin here: what a cluster says of its endpoint (metadata `tunnel`) becomes a CONNECT to the
  # tunnel gateway, which finds the connector by its key.
  - name: connector-tunnel
    internal_listener: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: connector-tunnel
          cluster: tunnel-gateway
          idle_timeout: 3600s  # also ends WebSockets that say nothing for so long
          tunneling_config:
            hostname: "%DYNAMIC_METADATA(tunnel:address)%"
            headers_to_add:
            - header: {key: x-iroh-endpoint-id, value: "%DYNAMIC_METADATA(tunnel:endpoint_id)%"}
              append_action: OVERWRITE_IF_EXISTS_OR_ADD
)yaml";
constexpr std::string_view tunnel_gateway_text = R"yaml(  # The tunnel gateway, an HTTP CONNECT server that reaches connectors: its address is yours to change.
  - name: tunnel-gateway
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: tunnel-gateway
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: "127.0.0.1", port_value: 7450}}}
)yaml";

}  // namespace

std::string bootstrap_yaml(const std::string& gateway, const std::string& gateway_class, const std::string& xds_host,
                           int xds_port, const std::string& admin_address, dial_mode dial) {
  const bool tunnel = dial == dial_mode::tunnel_listener;
  const auto colon = admin_address.rfind(':');
  auto admin_host = admin_address.substr(0, colon);
  if (admin_host.size() > 2 && admin_host.front() == '[') admin_host = admin_host.substr(1, admin_host.size() - 2);
  const auto admin_port = colon == std::string::npos ? std::string{"0"} : admin_address.substr(colon + 1);
  return fmt::format(text, fmt::arg("gateway", gateway), fmt::arg("gateway_class", gateway_class),
                     fmt::arg("xds_host", xds_host), fmt::arg("xds_port", xds_port),
                     fmt::arg("type", is_ip(xds_host) ? "STATIC" : "STRICT_DNS"), fmt::arg("admin_host", admin_host),
                     fmt::arg("admin_port", admin_port),
                     fmt::arg("dial_mode", tunnel ? "tunnel-listener" : "direct"),
                     fmt::arg("listener", tunnel ? "connector-tunnel" : "connector-direct"),
                     fmt::arg("stats_of_dialling", tunnel ? "      - prefix: \"cluster.tunnel-gateway.\"\n      - prefix: \"tcp.connector-tunnel.\"\n"
                                                          : "      - prefix: \"cluster.agents-by-metadata.\"\n      - prefix: \"tcp.connector-direct.\"\n"),
                     fmt::arg("tunnel_listener", tunnel ? tunnel_listener_text : ""),
                     fmt::arg("tunnel_gateway", tunnel ? tunnel_gateway_text : ""));
}

}  // namespace warren::gateway
