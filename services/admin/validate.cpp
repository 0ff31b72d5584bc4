// services/admin/validate.cpp -- from requests to commands. Pure: no gRPC, no I/O, no clock.
#include "services/admin/validate.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include "actors/connector/spec.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/registry/spec.hpp"
#include "actors/tunnel/spec.hpp"

namespace warren::admin {

namespace {

using violations = std::vector<violation>;

bool check_label(std::string_view text, std::string_view field, violations& out) {
  if (protocol::is_label(text)) return true;
  out.push_back({std::string{field}, text.empty() ? "must not be empty" : std::string{protocol::label_rule}});
  return false;
}

// The rules of each spec, in one place for all who write one.
using connector::canonicalise;
using registry::canonicalise;
using tunnel::canonicalise;

void add(violations from, checked_command& c) {
  for (auto& v : from) c.violations.push_back({request_field(c.names, v.field), std::move(v.message)});
}

// ---- the parts of a request that resources share ----

checked_command begin(std::string_view method, const std::string& request_id, request_names names) {
  checked_command c;
  c.names = std::move(names);
  c.command.mutable_caller()->set_method(std::string{method});
  check_text(request_id, limits::request_id_bytes_max, "request_id", c.violations);
  c.command.mutable_caller()->set_request_id(request_id);
  return c;
}

/// The name of what there is already. Also says which project's.
template <class Command>
void take_name(Command& to, const std::string& name, std::string_view collection, checked_command& c) {
  const auto parsed = parse_name(name, collection, c.names.id, c.violations);
  if (!parsed) return;
  c.command.set_project(parsed->project);
  to.set_name(parsed->name);
}
/// The name of what is to be created; `parent` null: it belongs to no project.
template <class Command>
void take_id(Command& to, const std::string* parent, const std::string& id, checked_command& c) {
  if (parent != nullptr) c.command.set_project(parse_parent(*parent, false, c.violations).value_or(""));
  check_label(id, c.names.id, c.violations);
  to.set_name(id);
}
template <class Command> void take_etag(Command& to, const std::string& etag, checked_command& c) {
  check_text(etag, etag_bytes_max, c.names.etag, c.violations);
  to.set_etag(etag);
}
template <class Command> void take_key(Command& to, const std::string& key, checked_command& c) {
  if (const auto wrong = connector::check_public_key(key)) add({*wrong}, c);
  to.set_public_key(key);
}

bool is_set(const google::protobuf::Message& resource, const google::protobuf::FieldDescriptor& field) {
  const auto& reflection = *resource.GetReflection();
  return field.is_repeated() ? reflection.FieldSize(resource, &field) > 0 : reflection.HasField(resource, &field);
}

/// The fields of the resource that are to be taken over, each once. `known`: those that can be changed.
std::vector<std::string> fields_of(const google::protobuf::FieldMask& mask, const std::vector<std::string>& known,
                                   const google::protobuf::Message& resource, violations& out) {
  const auto& type = *resource.GetDescriptor();
  std::set<std::string> asked;
  if (mask.paths().empty()) {
    for (const auto& name : known)
      if (is_set(resource, *type.FindFieldByName(name))) asked.insert(name);
    if (asked.empty())
      out.push_back({"update_mask", fmt::format("names nothing to change; can be changed: {}", fmt::join(known, ", "))});
    return {asked.begin(), asked.end()};
  }
  if (mask.paths_size() > update_mask_paths_max) {
    out.push_back({"update_mask", fmt::format("must have at most {} paths", update_mask_paths_max)});
    return {};
  }
  for (int i = 0; i < mask.paths_size(); ++i) {
    const auto& path = mask.paths(i);
    const auto field = fmt::format("update_mask.paths[{}]", i);
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

/// How the spec calls what the API calls `field`.
std::string spec_field(const std::string& field, const request_names& names) {
  if (field == "connector_class" || (field == "gateway_class" && names.prefix == "gateway.")) return "class";
  if (field == "lease_duration" || field == "stream_idle_timeout") return field + "_ms";
  return field;
}

/// The spec of a creation: all of it counts.
template <class Command, class Spec> void take_spec(Command& to, Spec spec, checked_command& c) {
  add(canonicalise(spec, {}), c);
  *to.mutable_spec() = std::move(spec);
}
/// The spec of an update: what the mask names, or what is set.
template <class Command, class Spec>
void take_changes(Command& to, Spec spec, const google::protobuf::Message& resource,
                  const google::protobuf::FieldMask& mask, const std::vector<std::string>& known, checked_command& c) {
  std::vector<std::string> fields;
  for (const auto& field : fields_of(mask, known, resource, c.violations)) fields.push_back(spec_field(field, c.names));
  if (!fields.empty()) add(canonicalise(spec, fields), c);
  *to.mutable_spec() = std::move(spec);
  *to.mutable_update_mask() = {fields.begin(), fields.end()};
}

/// 0 where it is absent, which a spec reads as its default; -1 where it can be none.
std::int64_t milliseconds_of(bool present, const google::protobuf::Duration& d, std::string_view field, checked_command& c) {
  if (!present) return 0;
  if (d.nanos() % 1'000'000 != 0) {
    c.violations.push_back({c.names.prefix + std::string{field}, "must be whole milliseconds"});
    return 0;
  }
  const bool sane = d.seconds() >= 0 && d.seconds() <= 1'000'000'000 && d.nanos() >= 0 && d.nanos() < 1'000'000'000;
  const auto ms = sane ? d.seconds() * 1000 + d.nanos() / 1'000'000 : -1;
  return ms == 0 ? -1 : ms;
}

// ---- specs, as they came ----

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
corev1::ConnectorSpec connector_spec(const api::Connector& from, checked_command& c) {
  corev1::ConnectorSpec spec;
  spec.set_class_(from.connector_class());
  spec.set_lease_duration_ms(milliseconds_of(from.has_lease_duration(), from.lease_duration(), "lease_duration", c));
  return spec;
}
corev1::GatewaySpec gateway_spec(const api::Gateway& from) {
  corev1::GatewaySpec spec;
  spec.set_class_(from.gateway_class());
  return spec;
}
corev1::GatewayClassSpec gateway_class_spec(const api::GatewayClass& from, checked_command& c) {
  corev1::GatewayClassSpec spec;
  spec.set_dial_mode(from.dial_mode());
  *spec.mutable_listen() = from.listen();
  spec.set_stream_idle_timeout_ms(
      milliseconds_of(from.has_stream_idle_timeout(), from.stream_idle_timeout(), "stream_idle_timeout", c));
  return spec;
}
corev1::ConnectorClassSpec connector_class_spec(const api::ConnectorClass& from) {
  corev1::ConnectorClassSpec spec;
  *spec.mutable_allowed_networks() = from.allowed_networks();
  return spec;
}

// ---- how each kind of request calls its parts ----

request_names creation(const std::string& resource) { return {resource + ".", resource + "_id", ""}; }
request_names update(const std::string& resource) { return {resource + ".", resource + ".name", resource + ".etag"}; }
request_names by_name() { return {"", "name", "etag"}; }

}  // namespace

std::string request_field(const request_names& names, std::string_view field) {
  if (field == "name" || field == "tunnel_id" || field == "connector_id") return names.id;
  if (field == "etag") return names.etag;
  if (field == "request_id" || field == "update_mask" || field == "public_key" || field == "parent")
    return std::string{field};
  if (field == "class") return names.prefix + (names.prefix == "gateway." ? "gateway_class" : "connector_class");
  if (field.ends_with("_ms")) field.remove_suffix(3);
  return names.prefix + std::string{field};
}

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
    if (!protocol::is_label(parsed.project)) return wrong(fmt::format("has a project that is none: it {}", protocol::label_rule));
  }
  if (!name.starts_with(collection) || name.substr(collection.size(), 1) != "/")
    return wrong("must have the form " + form);
  name.remove_prefix(collection.size() + 1);
  if (name.find('/') != std::string_view::npos) return wrong("must have the form " + form);
  if (!protocol::is_label(name)) return wrong(fmt::format("must have the form {}: the last part {}", form, protocol::label_rule));
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
    out.push_back({"parent", fmt::format("has a project that is none: it {}", protocol::label_rule)});
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
  content.clear_patience_ms();
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
  auto c = begin("CreateTunnel", r.request_id(), creation("tunnel"));
  auto& to = *c.command.mutable_create_tunnel();
  take_id(to, &r.parent(), r.tunnel_id(), c);
  take_spec(to, tunnel_spec(r.tunnel()), c);
  return c;
}

checked_command check(const api::UpdateTunnelRequest& r) {
  auto c = begin("UpdateTunnel", r.request_id(), update("tunnel"));
  auto& to = *c.command.mutable_update_tunnel();
  take_name(to, r.tunnel().name(), "tunnels", c);
  take_etag(to, r.tunnel().etag(), c);
  take_changes(to, tunnel_spec(r.tunnel()), r.tunnel(), r.update_mask(),
               {"hostnames", "rules", "enabled", "gateway_class"}, c);
  return c;
}

checked_command check(const api::DeleteTunnelRequest& r) {
  auto c = begin("DeleteTunnel", r.request_id(), by_name());
  auto& to = *c.command.mutable_delete_tunnel();
  take_name(to, r.name(), "tunnels", c);
  take_etag(to, r.etag(), c);
  return c;
}

// ---- connectors ----

checked_command check(const api::CreateConnectorRequest& r) {
  auto c = begin("CreateConnector", r.request_id(), creation("connector"));
  auto& to = *c.command.mutable_create_connector();
  take_id(to, &r.parent(), r.connector_id(), c);
  take_spec(to, connector_spec(r.connector(), c), c);
  return c;
}

checked_command check(const api::UpdateConnectorRequest& r) {
  auto c = begin("UpdateConnector", r.request_id(), update("connector"));
  auto& to = *c.command.mutable_update_connector();
  take_name(to, r.connector().name(), "connectors", c);
  take_etag(to, r.connector().etag(), c);
  take_changes(to, connector_spec(r.connector(), c), r.connector(), r.update_mask(), {"connector_class", "lease_duration"}, c);
  return c;
}

checked_command check(const api::DeleteConnectorRequest& r) {
  auto c = begin("DeleteConnector", r.request_id(), by_name());
  auto& to = *c.command.mutable_delete_connector();
  take_name(to, r.name(), "connectors", c);
  take_etag(to, r.etag(), c);
  return c;
}

checked_command check(const api::EnrolConnectorRequest& r) {
  auto c = begin("EnrolConnector", r.request_id(), creation("connector"));
  auto& to = *c.command.mutable_enrol_connector();
  take_id(to, &r.parent(), r.connector_id(), c);
  take_key(to, r.public_key(), c);
  take_spec(to, connector_spec(r.connector(), c), c);
  return c;
}

checked_command check(const api::RotateConnectorKeyRequest& r) {
  auto c = begin("RotateConnectorKey", r.request_id(), by_name());
  auto& to = *c.command.mutable_rotate_connector_key();
  take_name(to, r.name(), "connectors", c);
  take_key(to, r.public_key(), c);
  take_etag(to, r.etag(), c);
  return c;
}

// ---- gateways ----

checked_command check(const api::CreateGatewayRequest& r) {
  auto c = begin("CreateGateway", r.request_id(), creation("gateway"));
  auto& to = *c.command.mutable_create_gateway();
  take_id(to, nullptr, r.gateway_id(), c);
  take_spec(to, gateway_spec(r.gateway()), c);
  return c;
}

checked_command check(const api::UpdateGatewayRequest& r) {
  auto c = begin("UpdateGateway", r.request_id(), update("gateway"));
  auto& to = *c.command.mutable_update_gateway();
  take_name(to, r.gateway().name(), "gateways", c);
  take_etag(to, r.gateway().etag(), c);
  take_changes(to, gateway_spec(r.gateway()), r.gateway(), r.update_mask(), {"gateway_class"}, c);
  return c;
}

checked_command check(const api::DeleteGatewayRequest& r) {
  auto c = begin("DeleteGateway", r.request_id(), by_name());
  auto& to = *c.command.mutable_delete_gateway();
  take_name(to, r.name(), "gateways", c);
  take_etag(to, r.etag(), c);
  return c;
}

// ---- classes ----

checked_command check(const api::CreateConnectorClassRequest& r) {
  auto c = begin("CreateConnectorClass", r.request_id(), creation("connector_class"));
  auto& to = *c.command.mutable_put_connector_class();
  to.set_create(true);
  take_id(to, nullptr, r.connector_class_id(), c);
  take_spec(to, connector_class_spec(r.connector_class()), c);
  return c;
}

checked_command check(const api::UpdateConnectorClassRequest& r) {
  auto c = begin("UpdateConnectorClass", r.request_id(), update("connector_class"));
  auto& to = *c.command.mutable_put_connector_class();
  take_name(to, r.connector_class().name(), "connectorClasses", c);
  take_etag(to, r.connector_class().etag(), c);
  take_changes(to, connector_class_spec(r.connector_class()), r.connector_class(), r.update_mask(), {"allowed_networks"}, c);
  return c;
}

checked_command check(const api::DeleteConnectorClassRequest& r) {
  auto c = begin("DeleteConnectorClass", r.request_id(), by_name());
  auto& to = *c.command.mutable_delete_connector_class();
  take_name(to, r.name(), "connectorClasses", c);
  take_etag(to, r.etag(), c);
  return c;
}

checked_command check(const api::CreateGatewayClassRequest& r) {
  auto c = begin("CreateGatewayClass", r.request_id(), creation("gateway_class"));
  auto& to = *c.command.mutable_put_gateway_class();
  to.set_create(true);
  take_id(to, nullptr, r.gateway_class_id(), c);
  take_spec(to, gateway_class_spec(r.gateway_class(), c), c);
  return c;
}

checked_command check(const api::UpdateGatewayClassRequest& r) {
  auto c = begin("UpdateGatewayClass", r.request_id(), update("gateway_class"));
  auto& to = *c.command.mutable_put_gateway_class();
  take_name(to, r.gateway_class().name(), "gatewayClasses", c);
  take_etag(to, r.gateway_class().etag(), c);
  take_changes(to, gateway_class_spec(r.gateway_class(), c), r.gateway_class(), r.update_mask(),
               {"dial_mode", "listen", "stream_idle_timeout"}, c);
  return c;
}

checked_command check(const api::DeleteGatewayClassRequest& r) {
  auto c = begin("DeleteGatewayClass", r.request_id(), by_name());
  auto& to = *c.command.mutable_delete_gateway_class();
  take_name(to, r.name(), "gatewayClasses", c);
  take_etag(to, r.etag(), c);
  return c;
}

}  // namespace warren::admin
