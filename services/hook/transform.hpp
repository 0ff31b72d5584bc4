// services/hook/transform.hpp -- one translation of Envoy Gateway in, the same with our connectors in it out. Pure: no
// I/O, no clock, no state.
//
// Messages are cut open only where a connector is named, and put together again from the slices that came in: what is
// not ours to change, known to our schema or not, comes back byte for byte and in order.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "actors/core/ids.hpp"

namespace warren::hook {

/// What a visitor of one rule meets.
struct rule_truth {
  int index = 0;
  std::string reason;       ///< why not (x-warren-reason); empty: online
  std::string address;      ///< "host:port" of the target, as the agent dials it
  std::string endpoint_id;  ///< the connector's public key
  bool online() const { return reason.empty(); }
  bool operator==(const rule_truth&) const = default;
};

/// What is true of one tunnel at one moment.
struct tunnel_truth {
  std::vector<rule_truth> rules;
  bool operator==(const tunnel_truth&) const = default;
};
using truth_ptr = std::shared_ptr<const tunnel_truth>;

/// What was answered, by (namespace, tunnel); null: there is no such tunnel.
using answers = std::map<std::pair<std::string, std::string>, truth_ptr>;

/// The tunnel that a name in an HTTPRoute's namespace means; null: there is none. Asked once per tunnel and call.
using find_tunnel = std::function<truth_ptr(std::string_view route_namespace, std::string_view tunnel)>;

/// Which rule a cluster's name means: httproute/NAMESPACE/TUNNEL/rule/INDEX, or that and /backend/INDEX.
struct cluster_key {
  std::string_view route_namespace, tunnel;
  int rule = 0;
};
std::optional<cluster_key> parse_cluster_name(std::string_view name);

/// Whether connection managers get the upgrade to WebSocket beside that to CONNECT. Without it Envoy answers 403, and not
/// our 503, to a WebSocket of an offline tunnel; with it, routes that say nothing about WebSockets let them through.
enum class websocket_upgrade : std::uint8_t {
  harmless,  ///< where every route that is not a tunnel's says for itself whether it takes WebSockets, as Envoy Gateway's do
  always,
  never,
};

struct transform_settings {
  std::string listener = "connector-tunnel";  ///< the internal listener that reaches connectors
  bool reason_headers = false;                ///< retry-after and x-warren-reason on what answers 503
  websocket_upgrade websockets = websocket_upgrade::harmless;
};

/// What one call saw and did; names as in its log line.
struct transform_counts {
  std::int64_t clusters = 0, listeners = 0, route_configs = 0;
  std::int64_t clusters_replaced = 0;         ///< of online connectors
  std::int64_t clusters_offline = 0;          ///< left as they were; nothing leads to them
  std::int64_t vhosts_connector_applied = 0;
  std::int64_t connector_offline_routes = 0;  ///< visitors' routes that answer 503
};

struct transformed {
  std::string error;     ///< not empty: the request is no message, and there is no response
  std::string response;  ///< an encoded PostTranslateModifyResponse
  transform_counts counts;
  std::string fleet;     ///< whose translation it is: what its route configurations' names begin with
  answers answered;
};

/// What a fleet was answered, and took.
struct answered_call {
  std::string fleet;
  answers answered;
  std::map<partition_id, revision_t> revisions;  ///< it was true at these, or later
  std::string peer;                              ///< who called, as gRPC says it: "ipv4:192.0.2.7:4711"
};

/// `request`: an encoded PostTranslateModifyRequest. The answer to an answer, with the same truth, is that answer.
transformed transform(std::string_view request, const find_tunnel& find, const transform_settings& settings);

}  // namespace warren::hook
