// services/hook/transform.cpp -- one translation of Envoy Gateway in, the same with our connectors in it out. Pure.
#include "services/hook/transform.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.pb.h"
#include "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.pb.h"
#include "services/hook/wire.hpp"

namespace warren::hook {

namespace {

namespace route = envoy::config::route::v3;
namespace core = envoy::config::core::v3;

constexpr std::string_view offline_body = "Tunnel not online";
constexpr std::string_view retry_after_seconds = "5";
constexpr std::string_view tunnel_domain = ".connector.internal";
constexpr std::string_view connect = "CONNECT", websocket = "websocket";
constexpr int connect_timeout_seconds = 5;
constexpr std::size_t index_digits_max = 9;  // fits an int; no HTTPRoute has a billion rules

// Field numbers of Envoy's contract that are read or written as slices.
namespace request_field { constexpr std::uint32_t clusters = 2, secrets = 3, listeners = 4, routes = 5; }
namespace response_field { constexpr std::uint32_t clusters = 1, secrets = 2, listeners = 3, routes = 4; }
namespace cluster_field { constexpr std::uint32_t name = 1, load_assignment = 33; }
namespace route_config_field { constexpr std::uint32_t name = 1, virtual_hosts = 2; }
namespace vhost_field { constexpr std::uint32_t name = 1, domains = 2, routes = 3; }
namespace route_field {
constexpr std::uint32_t match = 1, route = 2, direct_response = 7, response_headers_to_add = 10, name = 14;
constexpr bool is_action(std::uint32_t n) { return n == 2 || n == 3 || n == 7 || n == 17 || n == 18; }
}
namespace match_field {
constexpr std::uint32_t connect_matcher = 12;
constexpr bool is_path(std::uint32_t n) { return n == 1 || n == 2 || n == 10 || n == 12 || n == 14 || n == 15; }
}
namespace action_field {
constexpr std::uint32_t cluster = 1, weighted_clusters = 3, upgrade_configs = 25;
constexpr bool is_specifier(std::uint32_t n) { return n == 1 || n == 2 || n == 3 || n == 37 || n == 39; }
}
namespace weighted_field { constexpr std::uint32_t clusters = 1, total_weight = 3; }
namespace cluster_weight_field { constexpr std::uint32_t name = 1, weight = 2; }
namespace listener_field { constexpr std::uint32_t filter_chains = 3, default_filter_chain = 25; }
namespace filter_chain_field { constexpr std::uint32_t filters = 3; }
namespace filter_field { constexpr std::uint32_t typed_config = 4; }
namespace any_field { constexpr std::uint32_t type_url = 1, value = 2; }
namespace manager_field { constexpr std::uint32_t rds = 3, upgrade_configs = 23; }
namespace rds_field { constexpr std::uint32_t route_config_name = 2; }
namespace upgrade_field { constexpr std::uint32_t upgrade_type = 1; }

constexpr std::string_view manager_type =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

std::string lower(std::string_view text) {
  std::string out{text};
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

/// Envoy refuses the whole route configuration for a domain that no header could hold.
bool can_be_a_domain(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f;
  });
}

/// `connector-connect-<id>`, `<id>.connector.internal`
std::string id_of(std::string_view virtual_host) {
  std::string out{virtual_host};
  for (char& c : out)
    if (c == '/' || c == ' ' || c == ':') c = '-';
  return out;
}

/// "namespace/gateway" of "namespace/gateway/listener": of several the first in order stands for the fleet.
std::string_view fleet_of(std::string_view route_configuration) {
  const auto slash = route_configuration.find('/');
  return slash == std::string_view::npos ? route_configuration
                                         : route_configuration.substr(0, route_configuration.find('/', slash + 1));
}

/// A message that may stand in several pieces: by protobuf's rules they are one after the other.
class merged {
public:
  merged() = default;
  merged(const merged&) = delete;
  merged& operator=(const merged&) = delete;
  void add(std::string_view piece) {
    if (!there_) view_ = piece;
    else {
      if (owned_.empty()) owned_ = view_;
      owned_ += piece;
      view_ = owned_;
    }
    there_ = true;
  }
  void reset() { view_ = {}; owned_.clear(); there_ = false; }
  std::string_view view() const { return view_; }

private:
  std::string_view view_;
  std::string owned_;
  bool there_ = false;
};

/// The cluster that leads to a connector, but for what differs from one to the next.
class online_cluster {
public:
  explicit online_cluster(const std::string& listener) {
    envoy::config::cluster::v3::Cluster cluster;
    cluster.set_type(envoy::config::cluster::v3::Cluster::STATIC);
    cluster.mutable_connect_timeout()->set_seconds(connect_timeout_seconds);
    namespace sockets = envoy::extensions::transport_sockets;
    sockets::internal_upstream::v3::InternalUpstreamTransport transport;
    auto* passed = transport.add_passthrough_metadata();
    passed->mutable_kind()->mutable_host();
    passed->set_name("tunnel");
    transport.mutable_transport_socket()->set_name("envoy.transport_sockets.raw_buffer");
    transport.mutable_transport_socket()->mutable_typed_config()->PackFrom(sockets::raw_buffer::v3::RawBuffer{});
    cluster.mutable_transport_socket()->set_name("envoy.transport_sockets.internal_upstream");
    cluster.mutable_transport_socket()->mutable_typed_config()->PackFrom(transport);
    head_ = cluster.SerializeAsString();

    envoy::config::endpoint::v3::LbEndpoint endpoint;
    endpoint.mutable_endpoint()->mutable_address()->mutable_envoy_internal_address()->set_server_listener_name(listener);
    endpoint_ = endpoint.SerializeAsString();
  }

  std::string encode(std::string_view name, const rule_truth& to) const {
    // The metadata's map is written in one order, or the same cluster would look like another one to Envoy.
    const auto entry = [](std::string_view key, std::string_view payload) {
      std::string out;
      wire::put_bytes(out, 1, key);
      wire::put_bytes(out, 2, payload);
      return out;
    };
    std::string fields;
    for (const auto& [key, value] : {std::pair{"address", &to.address}, std::pair{"endpoint_id", &to.endpoint_id}}) {
      std::string text;  // google.protobuf.Value
      wire::put_bytes(text, 3, *value);
      wire::put_bytes(fields, 1, entry(key, text));
    }
    std::string metadata;  // core.Metadata
    wire::put_bytes(metadata, 1, entry("tunnel", fields));
    std::string endpoint = endpoint_;
    wire::put_bytes(endpoint, envoy::config::endpoint::v3::LbEndpoint::kMetadataFieldNumber, metadata);
    std::string locality;
    wire::put_bytes(locality, envoy::config::endpoint::v3::LocalityLbEndpoints::kLbEndpointsFieldNumber, endpoint);
    std::string assignment;
    wire::put_bytes(assignment, envoy::config::endpoint::v3::ClusterLoadAssignment::kClusterNameFieldNumber, name);
    wire::put_bytes(assignment, envoy::config::endpoint::v3::ClusterLoadAssignment::kEndpointsFieldNumber, locality);
    std::string out;
    wire::put_bytes(out, cluster_field::name, name);
    out += head_;
    wire::put_bytes(out, cluster_field::load_assignment, assignment);
    return out;
  }

private:
  std::string head_, endpoint_;
};

std::string direct_response() {
  route::DirectResponseAction answer;
  answer.set_status(503);
  answer.mutable_body()->set_inline_string(std::string{offline_body});
  return answer.SerializeAsString();
}

std::string connect_match() {
  route::RouteMatch match;
  match.mutable_connect_matcher();
  return match.SerializeAsString();
}

std::string connect_upgrade() {
  route::RouteAction::UpgradeConfig upgrade;
  upgrade.set_upgrade_type(std::string{connect});
  upgrade.mutable_connect_config();
  return upgrade.SerializeAsString();
}

std::string header(std::string_view key, std::string_view value) {
  core::HeaderValueOption option;
  option.mutable_header()->set_key(std::string{key});
  option.mutable_header()->set_value(std::string{value});
  option.set_append_action(core::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
  return option.SerializeAsString();
}

/// What becomes of a visitor's route.
struct route_verdict {
  enum class kind : std::uint8_t { not_ours, online, offline, partly } what = kind::not_ours;
  std::string connect_to;     ///< the first online cluster
  std::string reason;         ///< of the first offline one
  std::string new_action;     ///< of `partly`: without the offline members
};

class translation {
public:
  translation(const find_tunnel& find, const transform_settings& settings)
      : find_(find), settings_(settings), online_(settings.listener), answer_(direct_response()), connect_match_(connect_match()),
        connect_upgrade_(connect_upgrade()) {}

  transformed run(std::string_view request) {
    std::vector<std::string_view> clusters, secrets, listeners, routes;
    each(request, [&](const wire::field& f) {
      if (f.is_bytes(request_field::clusters)) clusters.push_back(f.payload);
      if (f.is_bytes(request_field::secrets)) secrets.push_back(f.payload);
      if (f.is_bytes(request_field::listeners)) listeners.push_back(f.payload);
      if (f.is_bytes(request_field::routes)) routes.push_back(f.payload);
    });
    auto& response = out_.response;
    response.reserve(request.size() + request.size() / 4);
    for (const auto cluster : clusters) put_cluster(cluster);
    for (const auto secret : secrets) wire::put_bytes(response, response_field::secrets, secret);
    // A listener's connection managers depend on whether their routes have tunnels.
    std::string changed_routes;
    changed_routes.reserve(request.size());
    for (const auto config : routes) wire::put_bytes(changed_routes, response_field::routes, route_configuration(config));
    for (const auto listener : listeners) put_listener(listener);
    response += changed_routes;
    out_.counts.clusters = static_cast<std::int64_t>(clusters.size());
    out_.counts.listeners = static_cast<std::int64_t>(listeners.size());
    out_.counts.route_configs = static_cast<std::int64_t>(routes.size());
    if (malformed_) return {.error = "the request is no PostTranslateModifyRequest"};
    return std::move(out_);
  }

private:
  template <class F> void each(std::string_view message, F&& f) {
    wire::reader in{message};
    for (wire::field field; in.next(field);) f(field);
    malformed_ = malformed_ || in.failed();
  }

  /// The message with the payloads that `change` returns for its fields; nothing when it changes none.
  template <class F> std::optional<std::string> rewrite(std::string_view message, F&& change) {
    std::string out;
    std::size_t copied = 0;
    each(message, [&](const wire::field& f) {
      if (f.what != wire::type::bytes) return;
      const std::optional<std::string> changed = change(f);
      if (!changed) return;
      const auto at = static_cast<std::size_t>(f.whole.data() - message.data());
      out.append(message.substr(copied, at - copied));
      wire::put_bytes(out, f.number, *changed);
      copied = at + f.whole.size();
    });
    if (copied == 0) return std::nullopt;
    out.append(message.substr(copied));
    return out;
  }

  std::string_view text_at(std::string_view message, std::uint32_t number) {
    std::string_view out;
    each(message, [&](const wire::field& f) {
      if (f.is_bytes(number)) out = f.payload;
    });
    return out;
  }

  // ---- who is meant ----

  /// Null: not a connector's cluster, or of no tunnel or rule that we know.
  const rule_truth* rule_of(std::string_view cluster) {
    if (const auto known = rules_.find(cluster); known != rules_.end()) return known->second;
    const auto key = parse_cluster_name(cluster);
    if (!key) return nullptr;
    auto [at, fresh] = out_.answered.try_emplace({std::string{key->route_namespace}, std::string{key->tunnel}});
    if (fresh) at->second = find_(key->route_namespace, key->tunnel);
    const rule_truth* rule = nullptr;
    if (at->second)
      for (const auto& each_rule : at->second->rules)
        if (each_rule.index == key->rule) rule = &each_rule;
    names_.push_back(std::make_unique<std::string>(cluster));
    rules_.emplace(*names_.back(), rule);
    return rule;
  }

  // ---- clusters ----

  void put_cluster(std::string_view cluster) {
    const auto name = text_at(cluster, cluster_field::name);
    const auto* rule = rule_of(name);
    if (rule != nullptr && rule->online()) {
      ++out_.counts.clusters_replaced;
      return wire::put_bytes(out_.response, response_field::clusters, online_.encode(name, *rule));
    }
    if (rule != nullptr) ++out_.counts.clusters_offline;
    wire::put_bytes(out_.response, response_field::clusters, cluster);
  }

  // ---- routes ----

  struct weighted_member {
    std::string_view name;
    std::uint32_t weight = 0;
    const rule_truth* rule = nullptr;
  };

  std::uint32_t number_in(std::string_view wrapper) {  // google.protobuf.UInt32Value
    std::uint32_t out = 0;
    each(wrapper, [&](const wire::field& f) {
      if (f.number == 1 && f.what == wire::type::varint) out = static_cast<std::uint32_t>(f.value);
    });
    return out;
  }

  route_verdict judge_weighted(std::string_view action, std::string_view weighted) {
    using kind = route_verdict::kind;
    std::vector<weighted_member> members;
    std::optional<std::uint32_t> total;
    each(weighted, [&](const wire::field& f) {
      if (f.is_bytes(weighted_field::total_weight)) total = number_in(f.payload);
      if (!f.is_bytes(weighted_field::clusters)) return;
      weighted_member m;
      each(f.payload, [&](const wire::field& of) {
        if (of.is_bytes(cluster_weight_field::name)) m.name = of.payload;
        if (of.is_bytes(cluster_weight_field::weight)) m.weight = number_in(of.payload);
      });
      m.rule = rule_of(m.name);
      members.push_back(m);
    });
    route_verdict out;
    std::uint64_t left = 0, lost = 0;
    bool ours = false, any_offline = false;
    for (const auto& m : members) {
      ours = ours || m.rule != nullptr;
      const bool offline = m.rule != nullptr && !m.rule->online();
      (offline ? lost : left) += m.weight;
      if (offline && !std::exchange(any_offline, true)) out.reason = m.rule->reason;
      if (m.rule != nullptr && !offline && out.connect_to.empty()) out.connect_to = m.name;
    }
    if (!ours) return out;
    out.what = !any_offline ? kind::online : left == 0 ? kind::offline : kind::partly;  // Envoy refuses a set without weight
    if (out.what == kind::offline) out.connect_to.clear();
    if (out.what != kind::partly) return out;

    std::string rest;
    std::size_t next = 0;
    each(weighted, [&](const wire::field& f) {
      if (f.is_bytes(weighted_field::total_weight)) return;
      const auto* rule = f.is_bytes(weighted_field::clusters) ? members[next++].rule : nullptr;
      if (rule == nullptr || rule->online()) rest += f.whole;
    });
    if (total) {
      std::string number;
      wire::put_value(number, 1, *total > lost ? *total - lost : 0);
      wire::put_bytes(rest, weighted_field::total_weight, number);
    }
    bool put = false;
    each(action, [&](const wire::field& f) {
      if (f.what != wire::type::bytes || !action_field::is_specifier(f.number)) out.new_action += f.whole;
      else if (!std::exchange(put, true)) wire::put_bytes(out.new_action, action_field::weighted_clusters, rest);
    });
    return out;
  }

  route_verdict judge(std::string_view action) {
    std::uint32_t specifier = 0;
    std::string_view cluster;
    merged weighted;
    each(action, [&](const wire::field& f) {
      if (f.what != wire::type::bytes || !action_field::is_specifier(f.number)) return;
      if (f.number != std::exchange(specifier, f.number)) weighted.reset();  // the last of a oneof is the one that counts
      if (f.number == action_field::cluster) cluster = f.payload;
      if (f.number == action_field::weighted_clusters) weighted.add(f.payload);
    });
    if (specifier == action_field::weighted_clusters) return judge_weighted(action, weighted.view());
    if (specifier != action_field::cluster) return {};
    const auto* rule = rule_of(cluster);
    if (rule == nullptr) return {};
    if (rule->online()) return {.what = route_verdict::kind::online, .connect_to = std::string{cluster}};
    return {.what = route_verdict::kind::offline, .reason = rule->reason};
  }

  void put_refusal(std::string& to, std::string_view reason) {
    wire::put_bytes(to, route_field::direct_response, answer_);
    if (!settings_.reason_headers) return;
    wire::put_bytes(to, route_field::response_headers_to_add, header("retry-after", retry_after_seconds));
    wire::put_bytes(to, route_field::response_headers_to_add, header("x-warren-reason", reason));
  }

  /// The route with another action where its action stood.
  template <class Put> std::string with_action(std::string_view message, Put&& put_action) {
    std::string out;
    bool put = false;
    each(message, [&](const wire::field& f) {
      if (f.what != wire::type::bytes || !route_field::is_action(f.number)) out += f.whole;
      else if (!std::exchange(put, true)) put_action(out);
    });
    return out;
  }

  struct seen_route {
    std::string_view payload;
    bool own = false;  ///< put there by us, when this was translated before
    route_verdict verdict;
  };

  seen_route look_at(std::string_view payload, const std::string& connect_name, const std::string& offline_name) {
    seen_route out{.payload = payload};
    std::string_view name;
    std::uint32_t action = 0;
    merged forward, match;
    each(payload, [&](const wire::field& f) {
      if (f.what != wire::type::bytes) return;
      if (f.number == route_field::name) name = f.payload;
      if (f.number == route_field::match) match.add(f.payload);
      if (!route_field::is_action(f.number)) return;
      if (f.number != std::exchange(action, f.number)) forward.reset();
      if (f.number == route_field::route) forward.add(f.payload);
    });
    if (name == connect_name || name == offline_name) {
      std::uint32_t path = 0;
      each(match.view(), [&](const wire::field& f) {
        if (f.what == wire::type::bytes && match_field::is_path(f.number)) path = f.number;
      });
      out.own = path == match_field::connect_matcher;
    }
    if (!out.own && action == route_field::route) {
      out.verdict = judge(forward.view());
      if (out.verdict.what == route_verdict::kind::not_ours && !decides_websockets(forward.view())) would_open_ = true;
    }
    return out;
  }

  /// Whether the route itself says if it takes WebSockets: then its connection manager's word does not matter to it.
  bool decides_websockets(std::string_view action) {
    bool out = false;
    each(action, [&](const wire::field& f) {
      if (f.is_bytes(action_field::upgrade_configs)) out = out || lower(text_at(f.payload, upgrade_field::upgrade_type)) == websocket;
    });
    return out;
  }

  struct virtual_host {
    std::string_view payload;
    std::string_view name;
    std::vector<std::string> domains;        ///< in lower case
    std::vector<bool> repeated;              ///< of each: somebody before has it
    bool lost = false;                       ///< none of its domains is left to it
  };

  std::string route_configuration(std::string_view config) {
    std::vector<virtual_host> hosts;
    std::string_view name;
    std::unordered_set<std::string> domains;
    each(config, [&](const wire::field& f) {
      if (f.is_bytes(route_config_field::name)) name = f.payload;
      if (!f.is_bytes(route_config_field::virtual_hosts)) return;
      virtual_host host{.payload = f.payload};
      each(f.payload, [&](const wire::field& of) {
        if (of.is_bytes(vhost_field::name)) host.name = of.payload;
        if (!of.is_bytes(vhost_field::domains)) return;
        host.domains.push_back(lower(of.payload));
        host.repeated.push_back(!domains.insert(host.domains.back()).second);
      });
      host.lost = !host.domains.empty() && std::all_of(host.repeated.begin(), host.repeated.end(), [](bool r) { return r; });
      hosts.push_back(std::move(host));
    });
    const auto fleet = fleet_of(name);
    if (out_.fleet.empty() || fleet < out_.fleet) out_.fleet = fleet;
    std::string out;
    out.reserve(config.size() + config.size() / 4);
    bool has_tunnels = false;
    would_open_ = false;
    std::size_t next = 0;
    each(config, [&](const wire::field& f) {
      if (!f.is_bytes(route_config_field::virtual_hosts)) {
        out += f.whole;
        return;
      }
      const auto& host = hosts[next++];
      if (!host.lost) has_tunnels |= put_virtual_host(out, host, domains);
    });
    if (has_tunnels) tunnelled_.insert(std::string{name});
    if (would_open_) undecided_.insert(std::string{name});
    return out;
  }

  /// Returns whether it has tunnels.
  bool put_virtual_host(std::string& to, const virtual_host& host, std::unordered_set<std::string>& domains) {
    const auto id = id_of(host.name);
    const auto connect_name = "connector-connect-" + id, offline_name = "connector-offline-" + id;
    std::vector<seen_route> routes;
    each(host.payload, [&](const wire::field& f) {
      if (f.is_bytes(vhost_field::routes)) routes.push_back(look_at(f.payload, connect_name, offline_name));
    });
    using kind = route_verdict::kind;
    const auto ours = std::find_if(routes.begin(), routes.end(), [](const auto& r) { return r.verdict.what != kind::not_ours; });
    const bool dirty = std::find(host.repeated.begin(), host.repeated.end(), true) != host.repeated.end();
    if (ours == routes.end() && !dirty) {
      wire::put_bytes(to, route_config_field::virtual_hosts, host.payload);
      return false;
    }

    std::string front, domain;  // what is put before the routes; nothing in a virtual host that is not ours
    if (ours != routes.end()) {
      ++out_.counts.vhosts_connector_applied;
      const auto online = std::find_if(routes.begin(), routes.end(), [](const auto& r) { return !r.verdict.connect_to.empty(); });
      if (online != routes.end()) {
        front = connect_route(connect_name, online->verdict.connect_to);
        domain = id + std::string{tunnel_domain};
        if (!can_be_a_domain(domain) || !domains.insert(lower(domain)).second) domain.clear();
      } else {
        front = refusing_route(offline_name, ours->verdict.reason);
      }
    }

    std::string out;
    out.reserve(host.payload.size() + front.size() + domain.size() + 16);
    std::size_t next_domain = 0, next_route = 0, domains_left = host.domains.size();
    const auto put_front = [&] {
      if (!front.empty()) wire::put_bytes(out, vhost_field::routes, front);
      front.clear();
    };
    const auto put_domain = [&] {
      if (!domain.empty()) wire::put_bytes(out, vhost_field::domains, domain);
      domain.clear();
    };
    if (domains_left == 0) put_domain();
    each(host.payload, [&](const wire::field& f) {
      if (f.is_bytes(vhost_field::domains)) {
        if (!host.repeated[next_domain++]) out += f.whole;
        if (--domains_left == 0) put_domain();
      } else if (f.is_bytes(vhost_field::routes)) {
        const auto& r = routes[next_route++];
        if (ours != routes.end() && r.own) return;
        put_front();
        put_route(out, f.whole, r);
      } else {
        out += f.whole;
      }
    });
    put_front();
    wire::put_bytes(to, route_config_field::virtual_hosts, out);
    return ours != routes.end();
  }

  void put_route(std::string& to, std::string_view whole, const seen_route& r) {
    using kind = route_verdict::kind;
    if (r.verdict.what == kind::offline) {
      ++out_.counts.connector_offline_routes;
      wire::put_bytes(to, vhost_field::routes,
                      with_action(r.payload, [&](std::string& out) { put_refusal(out, r.verdict.reason); }));
    } else if (r.verdict.what == kind::partly) {
      wire::put_bytes(to, vhost_field::routes, with_action(r.payload, [&](std::string& out) {
                        wire::put_bytes(out, route_field::route, r.verdict.new_action);
                      }));
    } else {
      to += whole;
    }
  }

  std::string connect_route(std::string_view name, std::string_view cluster) {
    std::string action, out;
    wire::put_bytes(action, action_field::cluster, cluster);
    wire::put_bytes(action, action_field::upgrade_configs, connect_upgrade_);
    wire::put_bytes(out, route_field::match, connect_match_);
    wire::put_bytes(out, route_field::route, action);
    wire::put_bytes(out, route_field::name, name);
    return out;
  }

  std::string refusing_route(std::string_view name, std::string_view reason) {
    std::string out;
    wire::put_bytes(out, route_field::match, connect_match_);
    put_refusal(out, reason);
    wire::put_bytes(out, route_field::name, name);
    return out;
  }

  // ---- listeners ----

  void put_listener(std::string_view listener) {
    const auto filter = [&](std::string_view config) { return rewrite(config, [&](const wire::field& f) {
      return f.is_bytes(filter_field::typed_config) ? any(f.payload) : std::nullopt;
    }); };
    const auto chain = [&](std::string_view config) { return rewrite(config, [&](const wire::field& f) {
      return f.is_bytes(filter_chain_field::filters) ? filter(f.payload) : std::nullopt;
    }); };
    const auto changed = rewrite(listener, [&](const wire::field& f) {
      return f.is_bytes(listener_field::filter_chains) || f.is_bytes(listener_field::default_filter_chain)
                 ? chain(f.payload)
                 : std::nullopt;
    });
    wire::put_bytes(out_.response, response_field::listeners, changed ? std::string_view{*changed} : listener);
  }

  std::optional<std::string> any(std::string_view config) {
    if (text_at(config, any_field::type_url) != manager_type) return std::nullopt;
    // Its bytes are data: when they are no connection manager, that is for Envoy to say.
    const bool before = malformed_;
    auto out = rewrite(config, [&](const wire::field& f) {
      return f.is_bytes(any_field::value) ? connection_manager(f.payload) : std::nullopt;
    });
    if (std::exchange(malformed_, before) != before) return std::nullopt;
    return out;
  }

  /// Without the upgrade, Envoy answers a CONNECT, or a WebSocket, to a direct response by 403.
  std::optional<std::string> connection_manager(std::string_view config) {
    std::string_view routes;
    std::unordered_set<std::string> upgrades;
    each(config, [&](const wire::field& f) {
      if (f.is_bytes(manager_field::rds))
        if (const auto name = text_at(f.payload, rds_field::route_config_name); !name.empty()) routes = name;
      if (f.is_bytes(manager_field::upgrade_configs)) upgrades.insert(lower(text_at(f.payload, upgrade_field::upgrade_type)));
    });
    if (tunnelled_.count(std::string{routes}) == 0) return std::nullopt;
    std::string out{config};
    const auto add = [&](std::string_view type) {
      if (!upgrades.insert(lower(type)).second) return;
      std::string upgrade;
      wire::put_bytes(upgrade, upgrade_field::upgrade_type, type);
      wire::put_bytes(out, manager_field::upgrade_configs, upgrade);
    };
    add(connect);
    const bool harmless = undecided_.count(std::string{routes}) == 0;
    if (settings_.websockets == websocket_upgrade::always || (settings_.websockets == websocket_upgrade::harmless && harmless)) add(websocket);
    if (out.size() == config.size()) return std::nullopt;
    return out;
  }

  const find_tunnel& find_;
  const transform_settings& settings_;
  const online_cluster online_;
  const std::string answer_, connect_match_, connect_upgrade_;
  transformed out_;
  bool malformed_ = false;
  std::vector<std::unique_ptr<std::string>> names_;  // what the keys of rules_ point into
  std::unordered_map<std::string_view, const rule_truth*> rules_;
  std::unordered_set<std::string> tunnelled_;        // route configurations that have tunnels
  std::unordered_set<std::string> undecided_;        // those with somebody else's route that leaves WebSockets to others
  bool would_open_ = false;                          // such a route is in the one that is being looked at
};

}  // namespace

std::optional<cluster_key> parse_cluster_name(std::string_view name) {
  constexpr std::size_t parts_max = 7;
  std::array<std::string_view, parts_max> part;
  std::size_t parts = 0;
  for (bool more = true; more; ++parts) {
    if (parts == parts_max) return std::nullopt;
    const auto slash = name.find('/');
    part[parts] = name.substr(0, slash);
    more = slash != std::string_view::npos;
    if (more) name.remove_prefix(slash + 1);
  }
  const auto index = [](std::string_view text) -> std::optional<int> {
    if (text.empty() || text.size() > index_digits_max) return std::nullopt;
    int out = 0;
    if (!std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; })) return std::nullopt;
    std::from_chars(text.data(), text.data() + text.size(), out);
    return out;
  };
  if (parts != 5 && parts != 7) return std::nullopt;
  if (part[0] != "httproute" || part[3] != "rule" || part[1].empty() || part[2].empty()) return std::nullopt;
  if (parts == 7 && (part[5] != "backend" || !index(part[6]))) return std::nullopt;
  const auto rule = index(part[4]);
  if (!rule) return std::nullopt;
  return cluster_key{part[1], part[2], *rule};
}

transformed transform(std::string_view request, const find_tunnel& find, const transform_settings& settings) {
  return translation{find, settings}.run(request);
}

}  // namespace warren::hook
