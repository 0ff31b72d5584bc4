// services/gateway/compile.cpp -- rows in, Envoy resources out. No I/O, no clock, no state.
#include "services/gateway/compile.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <openssl/sha.h>

#include "actors/connector/spec.hpp"
#include "actors/core/limits.hpp"
#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "envoy/extensions/access_loggers/stream/v3/stream.pb.h"
#include "envoy/extensions/filters/http/lua/v3/lua.pb.h"
#include "envoy/extensions/filters/http/router/v3/router.pb.h"
#include "envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.pb.h"
#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.pb.h"
#include "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.pb.h"
#include "envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.pb.h"
#include "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"

namespace warren::gateway {

namespace {

namespace core = envoy::config::core::v3;
namespace route = envoy::config::route::v3;
namespace ext = envoy::extensions;
namespace hcm = ext::filters::network::http_connection_manager::v3;

constexpr std::string_view offline_body = "Tunnel not online";
constexpr std::string_view retry_after_seconds = "5";
constexpr std::string_view set_filter_state = "envoy.filters.http.set_filter_state";
constexpr std::string_view internal_listener = "connector-direct";
constexpr std::string_view agents_cluster = "agents-by-metadata";
constexpr std::string_view tunnel_listener = "connector-tunnel";  // of the gateway's bootstrap
constexpr int connect_timeout_seconds = 5;
constexpr int websocket_idle_seconds = 3600;   // also of a CONNECT tunnel
constexpr std::int64_t idle_ms_max = 7 * 24 * 3600 * 1000;  // Envoy refuses durations that it cannot hold
constexpr int pool_idle_seconds = 60;          // of a connection without a request
constexpr std::uint32_t breaker_max = 1'000'000;  // far above what an agent takes: its limit is not ours

std::string serialise(const google::protobuf::Message& m) {
  std::string out;
  google::protobuf::io::StringOutputStream stream{&out};
  google::protobuf::io::CodedOutputStream coded{&stream};
  coded.SetSerializationDeterministic(true);
  m.SerializeToCodedStream(&coded);
  coded.Trim();
  return out;
}

/// Any whose bytes are deterministic: Any::PackFrom promises no order of map entries.
void pack(const google::protobuf::Message& m, google::protobuf::Any* any) {
  any->set_type_url("type.googleapis.com/" + m.GetDescriptor()->full_name());
  any->set_value(serialise(m));
}

constexpr std::size_t version_bytes = 7;

version_t version_of(std::string_view bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  version_t out = 0;
  for (std::size_t i = 0; i < version_bytes; ++i) out = out << 8 | digest[i];
  return out == no_version ? 1 : out;
}

/// Nearly all of a route is the same in every other.
const replica::dictionary& common();

resource_ptr make(std::string name, const google::protobuf::Message& m, std::vector<std::string> clusters = {}) {
  const auto bytes = serialise(m);
  auto out = std::make_shared<resource>();
  out->name = std::move(name);
  out->version = version_of(bytes);
  out->clusters = std::move(clusters);
  out->packed = common().pack(bytes);
  return out;
}

bool only(std::string_view text, std::string_view also) {
  return std::all_of(text.begin(), text.end(), [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || also.find(c) != std::string_view::npos;
  });
}
bool is_label(std::string_view text) {
  return !text.empty() && text.size() <= limits::label_chars_max && only(text, "-");
}
bool is_uid(std::string_view text) {
  return !text.empty() && text.size() <= limits::label_chars_max &&
         only(text, "-ABCDEFGHIJKLMNOPQRSTUVWXYZ");
}
bool is_hostname(std::string_view text) {
  return !text.empty() && text.size() <= limits::hostname_chars_max && only(text, "-._") && text.front() != '.' &&
         text.back() != '.';
}
/// Printable ASCII, no query and no fragment: Envoy matches prefixes against the path alone.
bool is_path_prefix(std::string_view text) {
  return !text.empty() && text.size() <= limits::path_prefix_bytes_max && text.front() == '/' &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f && c != '?' && c != '#'; });
}

std::optional<std::uint32_t> parse_port(std::string_view text) {
  std::uint32_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc{} || end != text.data() + text.size() || port == 0 || port > 65'535) return {};
  return port;
}

struct ip_port {
  std::string ip;
  std::uint32_t port = 0;
};
/// "192.0.2.7:7400" or "[2001:db8::7]:7400", and nothing else.
std::optional<ip_port> parse_ip_port(std::string_view text) {
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) return {};
  const auto port = parse_port(text.substr(colon + 1));
  auto host = text.substr(0, colon);
  const bool v6 = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (v6) host = host.substr(1, host.size() - 2);
  std::array<unsigned char, sizeof(in6_addr)> parsed{};
  const std::string ip{host};
  if (ip.size() != host.size() || ip.find('\0') != std::string::npos) return {};
  if (!port || inet_pton(v6 ? AF_INET6 : AF_INET, ip.c_str(), parsed.data()) != 1) return {};
  return ip_port{ip, *port};
}

void set_seconds(google::protobuf::Duration* d, std::int64_t seconds) { d->set_seconds(seconds); }
void set_millis(google::protobuf::Duration* d, std::int64_t ms) {
  d->set_seconds(ms / 1000);
  d->set_nanos(static_cast<std::int32_t>(ms % 1000) * 1'000'000);
}

void add_header(google::protobuf::RepeatedPtrField<core::HeaderValueOption>* to, std::string_view key,
                std::string_view value) {
  auto* h = to->Add();
  h->mutable_header()->set_key(std::string{key});
  h->mutable_header()->set_value(std::string{value});
  h->set_append_action(core::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
}

void set_breakers(envoy::config::cluster::v3::Cluster& c) {
  auto* t = c.mutable_circuit_breakers()->add_thresholds();
  t->mutable_max_connections()->set_value(breaker_max);
  t->mutable_max_pending_requests()->set_value(breaker_max);
  t->mutable_max_requests()->set_value(breaker_max);
  t->mutable_max_retries()->set_value(breaker_max);
}

// ---- routes ----

ext::filters::common::set_filter_state::v3::FilterStateValue* add_filter_state(
    ext::filters::http::set_filter_state::v3::Config& config, std::string_view key, std::string_view value) {
  auto* v = config.add_on_request_headers();
  v->set_object_key(std::string{key});
  v->mutable_format_string()->mutable_text_format_source()->set_inline_string(std::string{value});
  return v;
}
/// For the connection to the agent too: pools are split by it.
void share_filter_state(ext::filters::http::set_filter_state::v3::Config& config, std::string_view key,
                        std::string_view value) {
  auto* v = add_filter_state(config, key, value);
  v->set_factory_key("envoy.hashable_string");
  v->set_shared_with_upstream(ext::filters::common::set_filter_state::v3::FilterStateValue::ONCE);
}

/// One rule as it will be routed.
struct routed_rule {
  const tunnel::rule_plan* plan = nullptr;
  std::string name;       ///< of its routes, for the access log
  std::string cluster;    ///< empty: 503
  std::string authority;  ///< of the target
  std::string tunnel_id;
  std::string_view reason;
};

void set_match(const std::string& prefix, route::RouteMatch* match) {
  if (prefix.back() == '/') match->set_prefix(prefix);
  else match->set_path_separated_prefix(prefix);
}

/// What dials, and the access log, have to know of a request.
void pack_state(const routed_rule& r, dial_mode dial, google::protobuf::Any* any) {
  ext::filters::http::set_filter_state::v3::Config config;
  if (dial == dial_mode::direct) {
    share_filter_state(config, "warren.tunnel.target", r.authority);
    share_filter_state(config, "warren.tunnel.id", r.tunnel_id);
  } else {
    add_filter_state(config, "warren.tunnel.id", r.tunnel_id)->set_factory_key("envoy.string");
  }
  pack(config, any);
}

void lead(const routed_rule& r, std::int64_t idle_ms, bool shared_state, dial_mode dial, route::Route* to) {
  to->set_name(r.name);
  auto* action = to->mutable_route();
  action->set_cluster(r.cluster);
  action->mutable_timeout();  // 0s: a slow answer is not cut
  set_millis(action->mutable_idle_timeout(), idle_ms);
  if (!shared_state) pack_state(r, dial, &(*to->mutable_typed_per_filter_config())[std::string{set_filter_state}]);
}

void refuse(const routed_rule& r, route::Route* to) {
  to->set_name(r.name);
  auto* response = to->mutable_direct_response();
  response->set_status(503);
  response->mutable_body()->set_inline_string(std::string{offline_body});
  add_header(to->mutable_response_headers_to_add(), "retry-after", retry_after_seconds);
  add_header(to->mutable_response_headers_to_add(), "x-warren-reason", r.reason);
}

}  // namespace

std::string_view type_url(kind k) {
  switch (k) {
    case kind::cluster: return "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    case kind::listener: return "type.googleapis.com/envoy.config.listener.v3.Listener";
    case kind::route: return "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    case kind::scope: return "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
  }
  return "";
}

std::string_view short_name(kind k) {
  constexpr std::array<std::string_view, kinds> names{"cds", "lds", "rds", "srds"};
  return names.at(static_cast<std::size_t>(k));
}

std::optional<kind> kind_from(std::string_view url) {
  for (auto k : {kind::cluster, kind::listener, kind::route, kind::scope})
    if (type_url(k) == url) return k;
  return {};
}

std::string text_of(version_t v) { return v == no_version ? "" : v == foreign_version ? "foreign" : fmt::format("{:014x}", v); }
version_t version_from(std::string_view text) {
  version_t v = no_version;
  if (text.empty()) return v;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v, 16);
  return error == std::errc{} && text_of(v) == text ? v : foreign_version;
}

std::string resource::bytes() const { return std::string{common().unpack(packed)}; }
std::size_t resource::size() const { return replica::dictionary::size_of(packed); }

class_settings settings_of(const v1::GatewayClassRow& row) {
  class_settings out;
  out.dial = dial_mode_of(row.dial_mode());
  for (const auto& l : row.listen())
    if (parse_ip_port(l)) out.listen.push_back(l);
  std::sort(out.listen.begin(), out.listen.end());
  out.listen.erase(std::unique(out.listen.begin(), out.listen.end()), out.listen.end());
  if (row.stream_idle_timeout_ms() > 0)
    out.stream_idle_timeout_ms = std::min<std::int64_t>(row.stream_idle_timeout_ms(), idle_ms_max);
  return out;
}

bool is_visitors_listener(std::string_view name) { return name != internal_listener; }
std::string cluster_name(std::string_view project, std::string_view connector) {
  return "connector/" + std::string{project} + "/" + std::string{connector};
}
std::string route_name(std::string_view project, std::string_view tunnel) {
  return "tunnel/" + std::string{project} + "/" + std::string{tunnel};
}
std::string rule_cluster_name(std::string_view project, std::string_view tunnel, int index) {
  return "rule/" + std::string{project} + "/" + std::string{tunnel} + "/" + std::to_string(index);
}
dial_mode dial_mode_of(std::string_view text) {
  return text.empty() || text == "direct" ? dial_mode::direct : text == "tunnel-listener" ? dial_mode::tunnel_listener : dial_mode::none;
}

bool newer_claim(const v1::HostnameClaimRow& a, const v1::HostnameClaimRow& b) { return a.claim() > b.claim(); }

std::optional<std::string> target_authority(std::string_view target) {
  if (target.size() > limits::target_bytes_max) return {};
  const auto scheme = target.find("://");
  if (scheme == std::string_view::npos) return {};
  if (target.substr(0, scheme) != "http" && target.substr(0, scheme) != "https") return {};
  const auto authority = target.substr(scheme + 3);
  const auto colon = authority.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || !parse_port(authority.substr(colon + 1))) return {};
  const auto host = authority.substr(0, colon);
  if (!is_hostname(host) && !parse_ip_port(authority)) return {};
  return std::string{authority};
}

resource_ptr compile_scope(const v1::HostnameClaimRow& claim) {
  if (!is_hostname(claim.hostname()) || !is_label(claim.project()) || !is_label(claim.tunnel())) return nullptr;
  route::ScopedRouteConfiguration scope;
  scope.set_name(claim.hostname());
  scope.set_route_configuration_name(route_name(claim.project(), claim.tunnel()));
  scope.mutable_key()->add_fragments()->set_string_key(claim.hostname());
  return make(claim.hostname(), scope);
}

std::string route_of(const resource& scope) {
  route::ScopedRouteConfiguration parsed;
  parsed.ParseFromString(scope.bytes());
  return parsed.route_configuration_name();
}

namespace {

/// Only what may be repeated is repeated: a request whose connection was reset may already have run. Said by clusters and
/// not by routes, of which there are ten times as many, and which change with each agent that goes and comes.
void set_retries(route::RetryPolicy* retry) {
  retry->set_retry_on("reset,connect-failure");
  retry->mutable_num_retries()->set_value(2);
  retry->set_host_selection_retry_max_attempts(5);
  // Another of the agent's addresses, or the same agent started again: there is no crowd to spread in time, and whoever
  // waits here (25 ms and more by default) meets an answer that is older than what is said of the tunnel.
  set_millis(retry->mutable_retry_back_off()->mutable_base_interval(), 5);
  set_millis(retry->mutable_retry_back_off()->mutable_max_interval(), 20);
  auto* predicate = retry->add_retry_host_predicate();
  predicate->set_name("envoy.retry_host_predicates.previous_hosts");
  pack(ext::retry::host::previous_hosts::v3::PreviousHostsPredicate{}, predicate->mutable_typed_config());
  // Any of them; a regular expression would be compiled for each cluster.
  for (const auto* method : {"GET", "HEAD", "OPTIONS"}) {
    auto* header = retry->add_retriable_request_headers();
    header->set_name(":method");
    header->mutable_string_match()->set_exact(method);
  }
}

/// Leads to an internal listener, with whom to dial as metadata of each endpoint.
envoy::config::cluster::v3::Cluster internal_cluster(const std::string& name) {
  envoy::config::cluster::v3::Cluster c;
  c.set_name(name);
  c.set_type(envoy::config::cluster::v3::Cluster::STATIC);
  set_seconds(c.mutable_connect_timeout(), connect_timeout_seconds);
  set_breakers(c);
  c.mutable_load_assignment()->set_cluster_name(name);
  c.mutable_load_assignment()->add_endpoints();

  ext::transport_sockets::internal_upstream::v3::InternalUpstreamTransport transport;
  auto* passed = transport.add_passthrough_metadata();
  passed->mutable_kind()->mutable_host();
  passed->set_name("tunnel");
  transport.mutable_transport_socket()->set_name("envoy.transport_sockets.raw_buffer");
  pack(ext::transport_sockets::raw_buffer::v3::RawBuffer{},
       transport.mutable_transport_socket()->mutable_typed_config());
  c.mutable_transport_socket()->set_name("envoy.transport_sockets.internal_upstream");
  pack(transport, c.mutable_transport_socket()->mutable_typed_config());

  // Bounds the pools here and not in the internal listener, which would also end idle WebSockets.
  ext::upstreams::http::v3::HttpProtocolOptions http;
  set_seconds(http.mutable_common_http_protocol_options()->mutable_idle_timeout(), pool_idle_seconds);
  http.mutable_explicit_http_config()->mutable_http_protocol_options();
  set_retries(http.mutable_retry_policy());
  pack(http, &(*c.mutable_typed_extension_protocol_options())["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]);
  return c;
}

/// `endpoint_id` changes with whatever the metadata say: connections that are pooled follow it, and not those.
void add_endpoint(envoy::config::cluster::v3::Cluster& c, std::string_view listener, const std::string& address,
                  const std::string& key, const std::string& endpoint_id) {
  auto* lb = c.mutable_load_assignment()->mutable_endpoints(0)->add_lb_endpoints();
  auto* internal = lb->mutable_endpoint()->mutable_address()->mutable_envoy_internal_address();
  internal->set_server_listener_name(std::string{listener});
  internal->set_endpoint_id(endpoint_id);
  auto& fields = *(*lb->mutable_metadata()->mutable_filter_metadata())["tunnel"].mutable_fields();
  fields["address"].set_string_value(address);
  fields["endpoint_id"].set_string_value(key);
}

}  // namespace

resource_ptr compile_cluster(const v1::ConnectorRow& row) {
  if (row.has_delete_time() || !row.addressing_error().empty()) return nullptr;
  if (!is_label(row.project()) || !is_label(row.name()) || connector::check_public_key(row.public_key())) return nullptr;
  if (static_cast<std::size_t>(row.addresses_size()) > limits::addresses_max) return nullptr;
  const std::set<std::string> addresses{row.addresses().begin(), row.addresses().end()};
  if (addresses.empty()) return nullptr;
  if (!std::all_of(addresses.begin(), addresses.end(), [](const auto& a) { return parse_ip_port(a).has_value(); }))
    return nullptr;
  const auto name = cluster_name(row.project(), row.name());
  auto c = internal_cluster(name);
  for (const auto& address : addresses)
    add_endpoint(c, internal_listener, address, row.public_key(), address + "/" + std::to_string(row.addressing_generation()));
  return make(name, c);
}

resource_ptr compile_rule_cluster(std::string_view project, std::string_view tunnel, int index, std::string_view connector, const tunnel_endpoint& to) {
  if (!is_label(project) || !is_label(tunnel)) return nullptr;
  const auto name = rule_cluster_name(project, tunnel, index);
  auto c = internal_cluster(name);
  c.set_alt_stat_name(cluster_name(project, connector));  // so that the access log names the connector in both dial modes
  add_endpoint(c, tunnel_listener, to.address, to.endpoint_id, to.address + "/" + to.endpoint_id);
  return make(name, c);
}

resource_ptr compile_route(const v1::TunnelRow& row, const tunnel::route_plan& plan,
                           const std::function<bool(const std::string&)>& has_cluster,
                           const class_settings& settings) {
  return compile_route(
      row, plan,
      cluster_of_rule{[&](const tunnel::rule_plan& p) {
        return has_cluster(p.rule.connector()) ? cluster_name(row.project(), p.rule.connector()) : std::string{};
      }},
      settings);
}

namespace {

/// `clusters` is given those that it leads to.
route::RouteConfiguration route_configuration(const v1::TunnelRow& row, const tunnel::route_plan& plan, const cluster_of_rule& cluster_of,
                                              const class_settings& settings, std::set<std::string>& clusters) {
  std::vector<routed_rule> rules;
  for (const auto& p : plan.rules) {
    if (!is_path_prefix(p.rule.path_prefix())) continue;
    routed_rule r;
    r.plan = &p;
    r.name = row.project() + "/" + row.name() + "/" + std::to_string(p.index);
    r.reason = tunnel::reason_of(p.what);
    if (p.what == tunnel::outcome::live) {
      const auto authority = target_authority(p.rule.target());
      if (authority) r.cluster = cluster_of(p);
      if (!r.cluster.empty()) {
        r.authority = *authority;
        r.tunnel_id = row.project() + "/" + row.uid() + "/" + std::to_string(p.index) + "/" +
                      std::to_string(plan.generation);
        clusters.insert(r.cluster);
      } else {
        r.reason = tunnel::reason_of(tunnel::outcome::invalid_addressing);
      }
    }
    rules.push_back(std::move(r));
  }
  // The longest prefix first, and of equal ones the earlier rule: Envoy takes the first match.
  std::stable_sort(rules.begin(), rules.end(), [](const routed_rule& a, const routed_rule& b) {
    return a.plan->rule.path_prefix().size() > b.plan->rule.path_prefix().size();
  });

  const auto name = route_name(row.project(), row.name());
  route::RouteConfiguration config;
  config.set_name(name);
  auto* host = config.add_virtual_hosts();
  host->set_name(name);
  host->add_domains("*");  // the scope has chosen

  // A single rule keeps its state on the virtual host: said once for its three routes.
  const bool shared_state = rules.size() == 1 && !rules.front().cluster.empty();
  if (shared_state) {
    pack_state(rules.front(), settings.dial, &(*host->mutable_typed_per_filter_config())[std::string{set_filter_state}]);
  }

  const auto long_idle_ms = std::max<std::int64_t>(websocket_idle_seconds * 1000, settings.stream_idle_timeout_ms);
  if (!rules.empty()) {
    // Of equally short ones the earlier: the same that a path would meet.
    const auto shortest = std::min_element(rules.begin(), rules.end(), [](const auto& a, const auto& b) {
      return a.plan->rule.path_prefix().size() < b.plan->rule.path_prefix().size();
    });
    auto* connect = host->add_routes();
    connect->mutable_match()->mutable_connect_matcher();
    if (shortest->cluster.empty()) {
      refuse(*shortest, connect);
    } else {
      lead(*shortest, long_idle_ms, shared_state, settings.dial, connect);
      auto* upgrade = connect->mutable_route()->add_upgrade_configs();
      upgrade->set_upgrade_type("CONNECT");
      upgrade->mutable_connect_config();
    }
  }
  for (const auto& r : rules) {
    const auto& prefix = r.plan->rule.path_prefix();
    if (r.cluster.empty()) {
      auto* to = host->add_routes();
      set_match(prefix, to->mutable_match());
      refuse(r, to);
      continue;
    }
    auto* websocket = host->add_routes();
    set_match(prefix, websocket->mutable_match());
    auto* upgrade = websocket->mutable_match()->add_headers();
    upgrade->set_name("upgrade");
    upgrade->mutable_string_match()->set_exact("websocket");
    upgrade->mutable_string_match()->set_ignore_case(true);
    lead(r, long_idle_ms, shared_state, settings.dial, websocket);
    auto* to = host->add_routes();
    set_match(prefix, to->mutable_match());
    lead(r, settings.stream_idle_timeout_ms, shared_state, settings.dial, to);
  }
  return config;
}

const replica::dictionary& common() {
  static const replica::dictionary all{[] {
    v1::TunnelRow row;
    row.set_project("default");
    row.set_name("home");
    row.set_uid("01890a5d-ac96-774b-bcce-b302099a8057");
    tunnel::rule_plan rule;
    rule.rule.set_path_prefix("/");
    rule.rule.set_connector("home");
    rule.rule.set_target("http://127.0.0.1:8080");
    std::string out;
    for (const auto what : {tunnel::outcome::offline, tunnel::outcome::live}) {
      rule.what = what;
      std::set<std::string> clusters;
      out += serialise(route_configuration(row, {.generation = 1, .rules = {rule}},
                                           [](const tunnel::rule_plan&) { return cluster_name("default", "home"); }, {}, clusters));
    }
    return out;
  }()};
  return all;
}

}  // namespace

resource_ptr compile_route(const v1::TunnelRow& row, const tunnel::route_plan& plan, const cluster_of_rule& cluster_of,
                           const class_settings& settings) {
  if (!is_label(row.project()) || !is_label(row.name()) || !is_uid(row.uid())) return nullptr;
  std::set<std::string> clusters;
  const auto config = route_configuration(row, plan, cluster_of, settings, clusters);
  return make(route_name(row.project(), row.name()), config, {clusters.begin(), clusters.end()});
}

// ---- listeners ----

namespace {

void add_http_filter(hcm::HttpConnectionManager& m, std::string_view name, const google::protobuf::Message& config) {
  auto* f = m.add_http_filters();
  f->set_name(std::string{name});
  pack(config, f->mutable_typed_config());
}

void set_ads(core::ConfigSource* source) {
  source->mutable_ads();
  source->set_resource_api_version(core::V3);
  source->mutable_initial_fetch_timeout();  // 0s: wait for it, rather than serve without
}

void set_scoped_routes(hcm::HttpConnectionManager& m) {
  auto* scoped = m.mutable_scoped_routes();
  scoped->set_name("warren");
  auto* by_host = scoped->mutable_scope_key_builder()->add_fragments()->mutable_header_value_extractor();
  by_host->set_name(":authority");
  by_host->set_index(0);
  set_ads(scoped->mutable_rds_config_source());
  set_ads(scoped->mutable_scoped_rds()->mutable_scoped_rds_config_source());
}

/// What Envoy would say by itself when an agent cannot be reached becomes the one answer.
void set_local_replies(hcm::HttpConnectionManager& m) {
  auto* mapper = m.mutable_local_reply_config()->add_mappers();
  for (const auto* flag : {"UF", "UC", "UH", "NC", "UR", "UO", "UT", "UPE", "SI"})
    mapper->mutable_filter()->mutable_response_flag_filter()->add_flags(flag);
  mapper->mutable_status_code()->set_value(503);
  mapper->mutable_body()->set_inline_string(std::string{offline_body});
  add_header(mapper->mutable_headers_to_add(), "retry-after", retry_after_seconds);
  add_header(mapper->mutable_headers_to_add(), "x-warren-reason", "connector-unreachable");
}

/// One JSON line per request.
void set_access_log(hcm::HttpConnectionManager& m) {
  ext::access_loggers::stream::v3::StdoutAccessLog log;
  auto& fields = *log.mutable_log_format()->mutable_json_format()->mutable_fields();
  constexpr std::array<std::pair<const char*, const char*>, 20> format{{
      {"at", "%START_TIME%"},
      {"request_id", "%REQ(X-REQUEST-ID)%"},
      {"host", "%REQ(:AUTHORITY)%"},
      {"method", "%REQ(:METHOD)%"},
      {"path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"},
      {"protocol", "%PROTOCOL%"},
      {"upgrade", "%REQ(UPGRADE)%"},
      {"visitor", "%DOWNSTREAM_REMOTE_ADDRESS%"},
      {"status", "%RESPONSE_CODE%"},
      {"response_flags", "%RESPONSE_FLAGS%"},
      {"reason", "%RESP(X-WARREN-REASON)%"},  // of our own 503s; of what Envoy said by itself, `response_flags`
      {"details", "%RESPONSE_CODE_DETAILS%"},
      {"route", "%ROUTE_NAME%"},
      {"tunnel", "%FILTER_STATE(warren.tunnel.id:PLAIN)%"},
      {"connector", "%UPSTREAM_CLUSTER%"},
      {"attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"},
      {"bytes_received", "%BYTES_RECEIVED%"},
      {"bytes_sent", "%BYTES_SENT%"},
      {"duration_ms", "%DURATION%"},
      {"upstream_ms", "%RESPONSE_DURATION%"},
  }};
  for (const auto& [key, value] : format) fields[key].set_string_value(value);
  auto* access = m.add_access_log();
  access->set_name("envoy.access_loggers.stdout");
  pack(log, access->mutable_typed_config());
}

// Scope keys are compared byte by byte: without this WWW.Example.COM is a 404, and so is a host with a colon and no
// port behind it (RFC 9110 allows one), which Envoy takes for no port.
constexpr std::string_view lower_host = R"lua(function envoy_on_request(h)
  local a = h:headers():get(":authority")
  if a and (a:find("%u") or a:find(":$")) then
    h:headers():replace(":authority", (a:lower():gsub("%.?:$", "")))
    h:clearRouteCache()
  end
end
)lua";

resource_ptr visitors_listener(const std::string& listen, const class_settings& settings) {
  const auto at = parse_ip_port(listen).value();
  hcm::HttpConnectionManager m;
  m.set_stat_prefix("visitors");
  m.set_strip_any_host_port(true);
  m.set_strip_trailing_host_dot(true);
  m.add_upgrade_configs()->set_upgrade_type("websocket");
  m.add_upgrade_configs()->set_upgrade_type("CONNECT");
  m.mutable_http_protocol_options()->set_accept_http_10(true);  // old monitors and proxies speak it; else a 426
  m.mutable_http2_protocol_options()->set_allow_connect(true);
  set_millis(m.mutable_stream_idle_timeout(), settings.stream_idle_timeout_ms);
  // No visitor is internal: x-envoy-* headers, which could ask for retries of a POST, are taken off.
  m.mutable_use_remote_address()->set_value(true);
  m.mutable_internal_address_config();
  m.set_server_header_transformation(hcm::HttpConnectionManager::PASS_THROUGH);
  set_scoped_routes(m);
  set_local_replies(m);
  set_access_log(m);

  ext::filters::http::lua::v3::Lua lua;
  lua.mutable_default_source_code()->set_inline_string(std::string{lower_host});
  add_http_filter(m, "envoy.filters.http.lua", lua);
  // After Lua, and never `disabled`: that is decided by the first route lookup, before Lua clears it.
  add_http_filter(m, set_filter_state, ext::filters::http::set_filter_state::v3::Config{});
  ext::filters::http::router::v3::Router router;
  router.set_suppress_envoy_headers(true);
  add_http_filter(m, "envoy.filters.http.router", router);

  const auto name = "visitors/" + listen;
  envoy::config::listener::v3::Listener l;
  l.set_name(name);
  auto* socket = l.mutable_address()->mutable_socket_address();
  socket->set_address(at.ip);
  socket->set_port_value(at.port);
  auto* filter = l.add_filter_chains()->add_filters();
  filter->set_name("envoy.filters.network.http_connection_manager");
  pack(m, filter->mutable_typed_config());
  return make(name, l);
}

resource_ptr dialling_listener() {
  ext::filters::network::tcp_proxy::v3::TcpProxy proxy;
  proxy.set_stat_prefix(std::string{internal_listener});
  proxy.set_cluster(std::string{agents_cluster});
  set_seconds(proxy.mutable_idle_timeout(), websocket_idle_seconds);
  auto* tunneling = proxy.mutable_tunneling_config();
  tunneling->set_hostname("%FILTER_STATE(warren.tunnel.target:PLAIN)%");
  add_header(tunneling->mutable_headers_to_add(), "x-warren-endpoint-id", "%DYNAMIC_METADATA(tunnel:endpoint_id)%");
  add_header(tunneling->mutable_headers_to_add(), "x-warren-tunnel", "%FILTER_STATE(warren.tunnel.id:PLAIN)%");

  envoy::config::listener::v3::Listener l;
  l.set_name(std::string{internal_listener});
  l.mutable_internal_listener();
  auto* filter = l.add_filter_chains()->add_filters();
  filter->set_name("envoy.filters.network.tcp_proxy");
  pack(proxy, filter->mutable_typed_config());
  return make(std::string{internal_listener}, l);
}

}  // namespace

std::vector<resource_ptr> compile_listeners(const class_settings& settings) {
  std::vector<resource_ptr> out;
  if (settings.dial == dial_mode::direct) out.push_back(dialling_listener());
  for (const auto& listen : settings.listen) out.push_back(visitors_listener(listen, settings));
  return out;
}

resource_ptr compile_agents_cluster() {
  envoy::config::cluster::v3::Cluster c;
  c.set_name(std::string{agents_cluster});
  c.set_type(envoy::config::cluster::v3::Cluster::ORIGINAL_DST);
  c.set_lb_policy(envoy::config::cluster::v3::Cluster::CLUSTER_PROVIDED);
  set_seconds(c.mutable_connect_timeout(), connect_timeout_seconds);
  set_breakers(c);
  auto* key = c.mutable_original_dst_lb_config()->mutable_metadata_key();
  key->set_key("tunnel");
  key->add_path()->set_key("address");
  return make(std::string{agents_cluster}, c);
}

}  // namespace warren::gateway
