// services/admin/validate.cpp -- from requests to commands. Pure: no gRPC, no I/O, no clock.
#include "services/admin/validate.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/tunnel/spec.hpp"

namespace warren::admin {

namespace {

using violations = std::vector<violation>;

constexpr std::string_view label_rule = "must be 1 to 63 of a-z, 0-9 and '-', with '-' neither first nor last";
constexpr std::int64_t stream_idle_min_ms = 1000;
constexpr std::int64_t stream_idle_max_ms = 24 * 3600 * 1000;
constexpr std::int64_t stream_idle_default_ms = 5 * 60 * 1000;  // gateways.md: per stream, class setting

bool check_label(std::string_view text, std::string_view field, violations& out) {
  if (protocol::is_label(text)) return true;
  out.push_back({std::string{field}, text.empty() ? "must not be empty" : std::string{label_rule}});
  return false;
}

checked_command begin(std::string_view method, const std::string& request_id, std::string prefix) {
  checked_command c;
  c.prefix = std::move(prefix);
  c.command.mutable_caller()->set_method(std::string{method});
  check_text(request_id, limits::request_id_bytes_max, "request_id", c.violations);
  c.command.mutable_caller()->set_request_id(request_id);
  return c;
}

void check_etag(const std::string& etag, const std::string& field, violations& out) {
  check_text(etag, etag_bytes_max, field, out);
}

/// The fields of the resource that are to be taken over, in the order of `known`, each once.
/// `known`: the names in the API that can be changed; `populated`: those of them that are set.
std::vector<std::string> fields_of(const google::protobuf::FieldMask& mask, const std::vector<std::string>& known,
                                   const std::vector<std::string>& populated, const google::protobuf::Descriptor& type,
                                   violations& out) {
  if (mask.paths().empty()) {
    if (populated.empty())
      out.push_back({"update_mask", fmt::format("names nothing to change; can be changed: {}", fmt::join(known, ", "))});
    return populated;
  }
  std::set<std::string> asked;
  int at = 0;
  for (const auto& path : mask.paths()) {
    const auto field = fmt::format("update_mask.paths[{}]", at++);
    if (at > 32) {
      out.push_back({"update_mask", "must have at most 32 paths"});
      break;
    }
    if (path == "*") {
      asked.insert(known.begin(), known.end());
    } else if (std::find(known.begin(), known.end(), path) != known.end()) {
      asked.insert(path);
    } else if (path.size() <= 64 && type.FindFieldByName(path) != nullptr) {
      out.push_back({field, fmt::format("cannot be changed; can be changed: {}", fmt::join(known, ", "))});
    } else {
      out.push_back({field, fmt::format("is no field; can be changed: {}", fmt::join(known, ", "))});
    }
  }
  return {asked.begin(), asked.end()};
}

/// Milliseconds of a duration in [min, max]; anything finer is refused.
std::int64_t check_duration(const google::protobuf::Duration& d, std::int64_t min_ms, std::int64_t max_ms,
                            std::string_view words, const std::string& field, violations& out) {
  const bool sane = d.seconds() >= 0 && d.seconds() <= 1'000'000'000 && d.nanos() >= 0 && d.nanos() < 1'000'000'000;
  const auto ms = sane ? d.seconds() * 1000 + d.nanos() / 1'000'000 : -1;
  if (ms < min_ms || ms > max_ms) {
    out.push_back({field, fmt::format("must be {}", words)});
    return min_ms;
  }
  if (d.nanos() % 1'000'000 != 0) out.push_back({field, "must be whole milliseconds"});
  return ms;
}

void prefixed(violations from, const std::string& prefix, violations& to) {
  for (auto& v : from) to.push_back({prefix + v.field, std::move(v.message)});
}

// ---- tunnels ----

corev1::TunnelSpec tunnel_spec(const api::Tunnel& t) {
  corev1::TunnelSpec spec;
  *spec.mutable_hostnames() = t.hostnames();
  for (const auto& from : t.rules()) {
    auto& to = *spec.add_rules();
    to.set_path_prefix(from.path_prefix());
    to.set_connector(from.connector());
    to.set_target(from.target());
    if (from.has_tls_verify()) to.set_tls_verify(from.tls_verify());
  }
  spec.set_enabled(t.has_enabled() ? t.enabled() : true);
  spec.set_gateway_class(t.gateway_class());
  return spec;
}

// ---- connectors ----

corev1::ConnectorSpec connector_spec(const api::Connector& c, const std::string& prefix, violations& out) {
  corev1::ConnectorSpec spec;
  spec.set_class_(c.connector_class().empty() ? "default" : c.connector_class());
  check_label(spec.class_(), prefix + "connector_class", out);
  spec.set_lease_duration_ms(millis{limits::lease_default}.count());
  if (c.has_lease_duration())
    spec.set_lease_duration_ms(check_duration(c.lease_duration(), millis{limits::lease_min}.count(),
                                              millis{limits::lease_max}.count(), "from 3 s to 1 h",
                                              prefix + "lease_duration", out));
  return spec;
}

std::string check_key(const std::string& key, violations& out) {
  if (key.empty())
    out.push_back({"public_key", "must not be empty"});
  else if (!protocol::is_public_key_hex(key))
    out.push_back({"public_key", "must be an Ed25519 public key: 64 lower-case hex digits"});
  return key;
}

// ---- classes ----

/// "10.0.0.0/8" with all bits after the prefix zero; nullopt: it is none.
std::optional<std::string> canonical_network(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos || text.size() > 64) return std::nullopt;
  const auto digits = text.substr(slash + 1);
  int bits = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), bits);
  if (error != std::errc{} || end != digits.data() + digits.size() || bits < 0 || (digits.size() > 1 && digits[0] == '0'))
    return std::nullopt;
  std::array<unsigned char, 16> ip{};
  const std::string host{text.substr(0, slash)};
  int family = AF_INET;
  if (inet_pton(AF_INET, host.c_str(), ip.data()) != 1) {
    family = AF_INET6;
    if (inet_pton(AF_INET6, host.c_str(), ip.data()) != 1) return std::nullopt;
  }
  const int width = family == AF_INET ? 32 : 128;
  if (bits > width) return std::nullopt;
  for (int bit = bits; bit < width; ++bit)
    if ((ip.at(static_cast<std::size_t>(bit / 8)) >> (7 - bit % 8) & 1) != 0) return std::nullopt;
  std::array<char, INET6_ADDRSTRLEN> out{};
  inet_ntop(family, ip.data(), out.data(), out.size());
  return fmt::format("{}/{}", out.data(), bits);
}

corev1::ConnectorClassSpec connector_class_spec(const api::ConnectorClass& c, violations& out) {
  corev1::ConnectorClassSpec spec;
  const std::string field = "connector_class.allowed_networks";
  if (static_cast<std::size_t>(c.allowed_networks_size()) > limits::class_networks_max) {
    out.push_back({field, fmt::format("must have at most {} networks", limits::class_networks_max)});
    return spec;
  }
  for (int i = 0; i < c.allowed_networks_size(); ++i) {
    if (auto network = canonical_network(c.allowed_networks(i)))
      spec.add_allowed_networks(*network);
    else
      out.push_back({fmt::format("{}[{}]", field, i),
                     "must be a network such as 10.0.0.0/8 or fd00::/8, with all bits after the prefix zero"});
  }
  return spec;
}

corev1::GatewayClassSpec gateway_class_spec(const api::GatewayClass& c, bool listen_needed, violations& out) {
  corev1::GatewayClassSpec spec;
  spec.set_dial_mode(c.dial_mode().empty() ? "direct" : c.dial_mode());
  if (spec.dial_mode() != "direct" && spec.dial_mode() != "tunnel-listener")
    out.push_back({"gateway_class.dial_mode", "must be \"direct\" or \"tunnel-listener\""});
  spec.set_stream_idle_timeout_ms(stream_idle_default_ms);
  if (c.has_stream_idle_timeout())
    spec.set_stream_idle_timeout_ms(check_duration(c.stream_idle_timeout(), stream_idle_min_ms, stream_idle_max_ms,
                                                   "from 1 s to 24 h", "gateway_class.stream_idle_timeout", out));
  if (listen_needed && c.listen().empty())
    out.push_back({"gateway_class.listen", "must have at least one address"});
  if (static_cast<std::size_t>(c.listen_size()) > limits::class_listen_max) {
    out.push_back({"gateway_class.listen", fmt::format("must have at most {} addresses", limits::class_listen_max)});
    return spec;
  }
  std::set<std::string> seen;
  for (int i = 0; i < c.listen_size(); ++i) {
    const auto field = fmt::format("gateway_class.listen[{}]", i);
    const auto address = protocol::canonical_address(c.listen(i));
    if (!address)
      out.push_back({field, "must be ip:port or [ip6]:port"});
    else if (!seen.insert(*address).second)
      out.push_back({field, "is there twice"});
    else
      spec.add_listen(*address);
  }
  return spec;
}

/// The mask in the words of the spec, where they differ from the API's.
template <class Command>
void put_mask(Command& to, const std::vector<std::string>& fields) {
  for (const auto& f : fields) {
    if (f == "connector_class" || f == "gateway_class") to.add_update_mask("class");
    else if (f == "lease_duration") to.add_update_mask("lease_duration_ms");
    else if (f == "stream_idle_timeout") to.add_update_mask("stream_idle_timeout_ms");
    else to.add_update_mask(f);
  }
}

std::string in_project(std::string_view name, std::string_view collection, checked_command& c,
                       std::string_view field) {
  auto parsed = parse_name(name, collection, field, c.violations);
  if (!parsed) return {};
  c.command.set_project(parsed->project);
  return parsed->name;
}

std::string new_in_project(const std::string& parent, const std::string& id, std::string_view id_field,
                           checked_command& c) {
  c.command.set_project(parse_parent(parent, false, c.violations).value_or(""));
  check_label(id, id_field, c.violations);
  return id;
}

}  // namespace

void check_text(std::string_view text, std::size_t bytes_max, std::string_view field, violations& out) {
  if (text.size() > bytes_max)
    out.push_back({std::string{field}, fmt::format("must have at most {} bytes", bytes_max)});
  else if (!protocol::is_printable_utf8(text))
    out.push_back({std::string{field}, "must be UTF-8 without control characters"});
}

std::optional<resource_name> parse_name(std::string_view name, std::string_view collection, std::string_view field,
                                        violations& out) {
  const bool of_project = collection == "tunnels" || collection == "connectors";
  const auto singular = [&] {
    if (collection.ends_with("Classes")) return std::string{collection.substr(0, collection.size() - 2)};
    return std::string{collection.substr(0, collection.size() - 1)};
  };
  const auto form = of_project ? fmt::format("projects/{{project}}/{}/{{{}}}", collection, singular())
                               : fmt::format("{}/{{{}}}", collection, singular());
  const auto wrong = [&](std::string why) -> std::optional<resource_name> {
    out.push_back({std::string{field}, std::move(why)});
    return std::nullopt;
  };
  if (name.empty()) return wrong("must not be empty; its form is " + form);
  if (name.size() > 256) return wrong("is too long; its form is " + form);
  resource_name parsed;
  if (of_project) {
    if (!name.starts_with("projects/")) return wrong("must have the form " + form);
    name.remove_prefix(9);
    const auto slash = name.find('/');
    if (slash == std::string_view::npos) return wrong("must have the form " + form);
    parsed.project = name.substr(0, slash);
    name.remove_prefix(slash + 1);
    if (!protocol::is_label(parsed.project)) return wrong(fmt::format("has a project that is none: it {}", label_rule));
  }
  if (!name.starts_with(collection) || name.substr(collection.size(), 1) != "/")
    return wrong("must have the form " + form);
  name.remove_prefix(collection.size() + 1);
  if (name.find('/') != std::string_view::npos) return wrong("must have the form " + form);
  if (!protocol::is_label(name)) return wrong(fmt::format("must have the form {}: the last part {}", form, label_rule));
  parsed.name = name;
  return parsed;
}

std::optional<std::string> parse_parent(std::string_view parent, bool all_allowed, violations& out) {
  if (parent == "projects/-" && all_allowed) return std::string{};
  const bool form = parent.starts_with("projects/") && parent.size() <= 128;
  if (form && protocol::is_label(parent.substr(9))) return std::string{parent.substr(9)};
  if (parent.empty())
    out.push_back({"parent", "must not be empty; its form is projects/{project}"});
  else if (!form || parent.substr(9).find('/') != std::string_view::npos)
    out.push_back({"parent", "must have the form projects/{project}"});
  else
    out.push_back({"parent", fmt::format("has a project that is none: it {}", label_rule)});
  return std::nullopt;
}

std::string tunnel_name(std::string_view project, std::string_view name) {
  return fmt::format("projects/{}/tunnels/{}", project, name);
}
std::string connector_name(std::string_view project, std::string_view name) {
  return fmt::format("projects/{}/connectors/{}", project, name);
}

int page_size(std::int32_t asked, violations& out) {
  if (asked < 0) out.push_back({"page_size", "must not be negative"});
  if (asked <= 0) return limits::page_size_default;
  return std::min<int>(asked, limits::page_size_max);
}

std::string digest_of(const corev1::Command& command) {
  auto content = command;
  content.clear_caller();
  content.clear_deadline_ms();
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream out{&bytes};
    google::protobuf::io::CodedOutputStream coded{&out};
    coded.SetSerializationDeterministic(true);
    content.SerializeToCodedStream(&coded);
  }
  return protocol::sha256_hex(bytes);
}

// ---- tunnels ----

checked_command check(const api::CreateTunnelRequest& r) {
  auto c = begin("CreateTunnel", r.request_id(), "tunnel.");
  auto& to = *c.command.mutable_create_tunnel();
  to.set_name(new_in_project(r.parent(), r.tunnel_id(), "tunnel_id", c));
  *to.mutable_spec() = tunnel_spec(r.tunnel());
  prefixed(tunnel::canonicalise(*to.mutable_spec()), c.prefix, c.violations);
  return c;
}

checked_command check(const api::UpdateTunnelRequest& r) {
  auto c = begin("UpdateTunnel", r.request_id(), "tunnel.");
  auto& to = *c.command.mutable_update_tunnel();
  to.set_name(in_project(r.tunnel().name(), "tunnels", c, "tunnel.name"));
  check_etag(r.tunnel().etag(), "tunnel.etag", c.violations);
  to.set_etag(r.tunnel().etag());
  std::vector<std::string> populated;
  if (!r.tunnel().hostnames().empty()) populated.emplace_back("hostnames");
  if (!r.tunnel().rules().empty()) populated.emplace_back("rules");
  if (r.tunnel().has_enabled()) populated.emplace_back("enabled");
  if (!r.tunnel().gateway_class().empty()) populated.emplace_back("gateway_class");
  const auto fields = fields_of(r.update_mask(), {"hostnames", "rules", "enabled", "gateway_class"}, populated,
                                *api::Tunnel::descriptor(), c.violations);
  *to.mutable_spec() = tunnel_spec(r.tunnel());
  if (!fields.empty()) prefixed(tunnel::canonicalise(*to.mutable_spec(), fields), c.prefix, c.violations);
  for (const auto& f : fields) to.add_update_mask(f);
  return c;
}

checked_command check(const api::DeleteTunnelRequest& r) {
  auto c = begin("DeleteTunnel", r.request_id(), "");
  auto& to = *c.command.mutable_delete_tunnel();
  to.set_name(in_project(r.name(), "tunnels", c, "name"));
  check_etag(r.etag(), "etag", c.violations);
  to.set_etag(r.etag());
  return c;
}

// ---- connectors ----

checked_command check(const api::CreateConnectorRequest& r) {
  auto c = begin("CreateConnector", r.request_id(), "connector.");
  auto& to = *c.command.mutable_create_connector();
  to.set_name(new_in_project(r.parent(), r.connector_id(), "connector_id", c));
  *to.mutable_spec() = connector_spec(r.connector(), c.prefix, c.violations);
  return c;
}

checked_command check(const api::UpdateConnectorRequest& r) {
  auto c = begin("UpdateConnector", r.request_id(), "connector.");
  auto& to = *c.command.mutable_update_connector();
  to.set_name(in_project(r.connector().name(), "connectors", c, "connector.name"));
  check_etag(r.connector().etag(), "connector.etag", c.violations);
  to.set_etag(r.connector().etag());
  std::vector<std::string> populated;
  if (!r.connector().connector_class().empty()) populated.emplace_back("connector_class");
  if (r.connector().has_lease_duration()) populated.emplace_back("lease_duration");
  const auto fields = fields_of(r.update_mask(), {"connector_class", "lease_duration"}, populated,
                                *api::Connector::descriptor(), c.violations);
  *to.mutable_spec() = connector_spec(r.connector(), c.prefix, c.violations);
  put_mask(to, fields);
  return c;
}

checked_command check(const api::DeleteConnectorRequest& r) {
  auto c = begin("DeleteConnector", r.request_id(), "");
  auto& to = *c.command.mutable_delete_connector();
  to.set_name(in_project(r.name(), "connectors", c, "name"));
  check_etag(r.etag(), "etag", c.violations);
  to.set_etag(r.etag());
  return c;
}

checked_command check(const api::EnrolConnectorRequest& r) {
  auto c = begin("EnrolConnector", r.request_id(), "connector.");
  auto& to = *c.command.mutable_enrol_connector();
  to.set_name(new_in_project(r.parent(), r.connector_id(), "connector_id", c));
  to.set_public_key(check_key(r.public_key(), c.violations));
  *to.mutable_spec() = connector_spec(r.connector(), c.prefix, c.violations);
  return c;
}

checked_command check(const api::RotateConnectorKeyRequest& r) {
  auto c = begin("RotateConnectorKey", r.request_id(), "");
  auto& to = *c.command.mutable_rotate_connector_key();
  to.set_name(in_project(r.name(), "connectors", c, "name"));
  to.set_public_key(check_key(r.public_key(), c.violations));
  check_etag(r.etag(), "etag", c.violations);
  to.set_etag(r.etag());
  return c;
}

// ---- gateways ----

checked_command check(const api::CreateGatewayRequest& r) {
  auto c = begin("CreateGateway", r.request_id(), "gateway.");
  auto& to = *c.command.mutable_create_gateway();
  check_label(r.gateway_id(), "gateway_id", c.violations);
  to.set_name(r.gateway_id());
  to.mutable_spec()->set_class_(r.gateway().gateway_class().empty() ? "default" : r.gateway().gateway_class());
  check_label(to.spec().class_(), "gateway.gateway_class", c.violations);
  return c;
}

checked_command check(const api::UpdateGatewayRequest& r) {
  auto c = begin("UpdateGateway", r.request_id(), "gateway.");
  auto& to = *c.command.mutable_update_gateway();
  to.set_name(in_project(r.gateway().name(), "gateways", c, "gateway.name"));
  check_etag(r.gateway().etag(), "gateway.etag", c.violations);
  to.set_etag(r.gateway().etag());
  std::vector<std::string> populated;
  if (!r.gateway().gateway_class().empty()) populated.emplace_back("gateway_class");
  const auto fields =
      fields_of(r.update_mask(), {"gateway_class"}, populated, *api::Gateway::descriptor(), c.violations);
  to.mutable_spec()->set_class_(r.gateway().gateway_class().empty() ? "default" : r.gateway().gateway_class());
  check_label(to.spec().class_(), "gateway.gateway_class", c.violations);
  put_mask(to, fields);
  return c;
}

checked_command check(const api::DeleteGatewayRequest& r) {
  auto c = begin("DeleteGateway", r.request_id(), "");
  auto& to = *c.command.mutable_delete_gateway();
  to.set_name(in_project(r.name(), "gateways", c, "name"));
  check_etag(r.etag(), "etag", c.violations);
  to.set_etag(r.etag());
  return c;
}

// ---- classes ----

checked_command check(const api::CreateConnectorClassRequest& r) {
  auto c = begin("CreateConnectorClass", r.request_id(), "connector_class.");
  auto& to = *c.command.mutable_put_connector_class();
  to.set_create(true);
  check_label(r.connector_class_id(), "connector_class_id", c.violations);
  to.set_name(r.connector_class_id());
  *to.mutable_spec() = connector_class_spec(r.connector_class(), c.violations);
  return c;
}

checked_command check(const api::UpdateConnectorClassRequest& r) {
  auto c = begin("UpdateConnectorClass", r.request_id(), "connector_class.");
  auto& to = *c.command.mutable_put_connector_class();
  to.set_name(in_project(r.connector_class().name(), "connectorClasses", c, "connector_class.name"));
  check_etag(r.connector_class().etag(), "connector_class.etag", c.violations);
  to.set_etag(r.connector_class().etag());
  std::vector<std::string> populated;
  if (!r.connector_class().allowed_networks().empty()) populated.emplace_back("allowed_networks");
  const auto fields = fields_of(r.update_mask(), {"allowed_networks"}, populated, *api::ConnectorClass::descriptor(),
                                c.violations);
  *to.mutable_spec() = connector_class_spec(r.connector_class(), c.violations);
  put_mask(to, fields);
  return c;
}

checked_command check(const api::DeleteConnectorClassRequest& r) {
  auto c = begin("DeleteConnectorClass", r.request_id(), "");
  auto& to = *c.command.mutable_delete_connector_class();
  to.set_name(in_project(r.name(), "connectorClasses", c, "name"));
  check_etag(r.etag(), "etag", c.violations);
  to.set_etag(r.etag());
  return c;
}

checked_command check(const api::CreateGatewayClassRequest& r) {
  auto c = begin("CreateGatewayClass", r.request_id(), "gateway_class.");
  auto& to = *c.command.mutable_put_gateway_class();
  to.set_create(true);
  check_label(r.gateway_class_id(), "gateway_class_id", c.violations);
  to.set_name(r.gateway_class_id());
  *to.mutable_spec() = gateway_class_spec(r.gateway_class(), true, c.violations);
  return c;
}

checked_command check(const api::UpdateGatewayClassRequest& r) {
  auto c = begin("UpdateGatewayClass", r.request_id(), "gateway_class.");
  auto& to = *c.command.mutable_put_gateway_class();
  to.set_name(in_project(r.gateway_class().name(), "gatewayClasses", c, "gateway_class.name"));
  check_etag(r.gateway_class().etag(), "gateway_class.etag", c.violations);
  to.set_etag(r.gateway_class().etag());
  std::vector<std::string> populated;
  if (!r.gateway_class().dial_mode().empty()) populated.emplace_back("dial_mode");
  if (!r.gateway_class().listen().empty()) populated.emplace_back("listen");
  if (r.gateway_class().has_stream_idle_timeout()) populated.emplace_back("stream_idle_timeout");
  const auto fields = fields_of(r.update_mask(), {"dial_mode", "listen", "stream_idle_timeout"}, populated,
                                *api::GatewayClass::descriptor(), c.violations);
  const bool listen = std::find(fields.begin(), fields.end(), "listen") != fields.end();
  *to.mutable_spec() = gateway_class_spec(r.gateway_class(), listen, c.violations);
  put_mask(to, fields);
  return c;
}

checked_command check(const api::DeleteGatewayClassRequest& r) {
  auto c = begin("DeleteGatewayClass", r.request_id(), "");
  auto& to = *c.command.mutable_delete_gateway_class();
  to.set_name(in_project(r.name(), "gatewayClasses", c, "name"));
  check_etag(r.etag(), "etag", c.violations);
  to.set_etag(r.etag());
  return c;
}

}  // namespace warren::admin
