// services/gateway/compile.hpp -- rows in, Envoy resources out. No I/O, no clock, no state.
// Nothing that a tenant wrote reaches a resource unchecked: Envoy refuses a whole response for one bad field,
// and '%' in a format string is a command. What cannot be expressed is answered by a 503 of its own rule.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "actors/tunnel/routing.hpp"
#include "services/gateway/endpoint.hpp"
#include "services/replica/packed.hpp"
#include "warren/core/v1/rows.pb.h"

namespace warren::gateway {

namespace v1 = warren::core::v1;

/// The four resource types, in the order in which a gateway must learn of additions.
enum class kind : std::uint8_t { cluster, listener, route, scope };
inline constexpr int kinds = 4;
std::string_view type_url(kind k);
std::string_view short_name(kind k);  ///< "cds", "lds", "rds", "srds"
std::optional<kind> kind_from(std::string_view type_url);

/// Hash of a resource's bytes: equal on all instances, and after a restore.
using version_t = std::uint64_t;
inline constexpr version_t no_version = 0;                   ///< of what is not there
inline constexpr version_t foreign_version = ~version_t{0};  ///< of what somebody else has made
std::string text_of(version_t v);
/// What a gateway says that it has.
version_t version_from(std::string_view text);

/// One resource as every gateway of a class gets it.
struct resource {
  std::string name;
  version_t version = no_version;
  std::vector<std::string> clusters;  ///< that a route leads to
  replica::shared_bytes packed;

  /// Serialised deterministically.
  std::string bytes() const;
  std::size_t size() const;
};
using resource_ptr = std::shared_ptr<const resource>;

/// How the gateways of a class reach connectors.
enum class dial_mode : std::uint8_t {
  none,             ///< not one that is known: the class is not served
  direct,           ///< CONNECT to the agent's address; a cluster for each connector
  tunnel_listener,  ///< through a tunnel gateway of their own; a cluster for each rule
};
/// Of a row's words; empty ones mean `direct`.
dial_mode dial_mode_of(std::string_view text);

/// What of a gateway class shapes its routes and listeners.
struct class_settings {
  dial_mode dial = dial_mode::direct;
  std::vector<std::string> listen;                    ///< "ip:port"; what cannot be parsed is left out
  std::int64_t stream_idle_timeout_ms = 5 * 60'000;
};
class_settings settings_of(const v1::GatewayClassRow& row);

/// Whether visitors come in through a listener of this name.
bool is_visitors_listener(std::string_view name);
std::string cluster_name(std::string_view project, std::string_view connector);
std::string route_name(std::string_view project, std::string_view tunnel);
/// Of a rule's own cluster: "rule/<project>/<tunnel>/<index>".
std::string rule_cluster_name(std::string_view project, std::string_view tunnel, int index);

/// Is the newer of two claims of one host name.
bool newer_claim(const v1::HostnameClaimRow& a, const v1::HostnameClaimRow& b);

/// The scope of a host name: null when the name cannot be one.
resource_ptr compile_scope(const v1::HostnameClaimRow& claim);
/// The route configuration that a scope names.
std::string route_of(const resource& scope);

/// The connector's cluster: null unless it has a usable key and usable addresses. It stays while the connector is
/// offline: its tunnels' routes do not lead there, and to remove and make it again costs Envoy more than to keep it.
resource_ptr compile_cluster(const v1::ConnectorRow& connector);

/// A rule's own cluster, for dial mode `tunnel-listener`: null when its names cannot be used.
resource_ptr compile_rule_cluster(std::string_view project, std::string_view tunnel, int index, std::string_view connector, const tunnel_endpoint& to);

/// The name of the cluster that a live rule leads to; empty: it cannot be passed on.
using cluster_of_rule = std::function<std::string(const tunnel::rule_plan&)>;

/// The tunnel's route configuration.
///
/// Path prefixes count by segments: `/api` covers `/api` and what is below `/api/`, not `/apis`; a prefix
/// that ends in `/` covers only what is below it. The longest one wins, a CONNECT follows the shortest.
/// A path that no rule covers is a 404. A live rule without a cluster, or with a target that cannot be passed on,
/// answers 503 with reason `invalid-addressing`. Null when the tunnel's own names cannot be used.
resource_ptr compile_route(const v1::TunnelRow& tunnel, const tunnel::route_plan& plan, const cluster_of_rule& cluster_of,
                           const class_settings& settings);
/// Dial mode `direct`: `has_cluster` tells whether a connector's cluster exists.
resource_ptr compile_route(const v1::TunnelRow& tunnel, const tunnel::route_plan& plan,
                           const std::function<bool(const std::string& connector)>& has_cluster,
                           const class_settings& settings);

/// Listeners of a class: one per address for visitors, and in dial mode `direct` the internal one that dials agents.
std::vector<resource_ptr> compile_listeners(const class_settings& settings);

/// The cluster whose connections go wherever the internal listener was told.
resource_ptr compile_agents_cluster();

/// Host and port of a canonical target ("http://host:port"), or nothing when Envoy could not pass it on.
std::optional<std::string> target_authority(std::string_view target);

}  // namespace warren::gateway
