// services/admin/convert.cpp -- rows as the API shows them. Pure: no gRPC, no I/O, no clock.
#include "services/admin/convert.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include "actors/core/subjects.hpp"
#include "actors/core/time.hpp"
#include "services/admin/validate.hpp"
#include "services/replica/query.hpp"

namespace warren::admin {

namespace {

template <class Conditions>
void put_conditions(const Conditions& from, google::protobuf::RepeatedPtrField<api::Condition>& to) {
  for (const auto& c : from) {
    auto& out = *to.Add();
    out.set_type(c.type());
    out.set_status(c.status());
    out.set_reason(c.reason());
    out.set_message(c.message());
    out.set_observed_generation(c.observed_generation());
    if (c.has_last_transition_time()) *out.mutable_last_transition_time() = c.last_transition_time();
  }
}

/// As much of it as fits into the message: it may be what an agent has said.
google::protobuf::Duration duration(std::int64_t ms) {
  constexpr std::int64_t ms_max = 315'576'000'000 * 1000;  // 10,000 years, google/protobuf/duration.proto
  ms = std::clamp(ms, -ms_max, ms_max);
  google::protobuf::Duration d;
  d.set_seconds(ms / 1000);
  d.set_nanos(static_cast<std::int32_t>(ms % 1000) * 1'000'000);
  return d;
}

template <class Row, class Out>
void put_common(const Row& row, Out& out) {
  out.set_uid(row.uid());
  out.set_etag(etag_of(row.uid(), row.generation()));
  out.set_generation(row.generation());
  if (row.has_created_at()) *out.mutable_create_time() = row.created_at();
  if (row.has_updated_at()) *out.mutable_update_time() = row.updated_at();
}

/// What a gateway refuses, as people call it.
std::string refused_resource(const corev1::Refusal& refusal, const replica::tables& tables) {
  if (refusal.tunnel_uid().empty()) {
    const auto slash = refusal.connector().find('/');
    if (slash == std::string::npos) return "connector " + refusal.connector();
    return connector_name(refusal.connector().substr(0, slash), refusal.connector().substr(slash + 1));
  }
  for (const auto& [key, tunnel] : tables.tunnels)
    if (tunnel.holds(refusal.tunnel_uid()) && tunnel.unpack()->uid() == refusal.tunnel_uid()) return tunnel_name(key.first, key.second);
  return "tunnel " + refusal.tunnel_uid();
}

}  // namespace

std::string etag_of(std::string_view uid, std::int64_t generation) { return fmt::format("{}-{}", uid, generation); }

api::Tunnel to_api(const corev1::TunnelRow& row, const std::vector<corev1::Condition>* derived) {
  api::Tunnel out;
  out.set_name(tunnel_name(row.project(), row.name()));
  *out.mutable_hostnames() = row.hostnames();
  for (const auto& from : row.rules()) {
    auto& to = *out.add_rules();
    to.set_path_prefix(from.path_prefix());
    to.set_connector(from.connector());
    to.set_target(from.target());
    to.set_tls_verify(!from.has_tls_verify() || from.tls_verify());
  }
  out.set_enabled(row.enabled());
  out.set_gateway_class(row.gateway_class());
  put_common(row, out);
  out.set_observed_generation(row.observed_generation());
  out.set_programmed_generation(row.programmed_generation());
  if (derived != nullptr && !derived->empty())
    put_conditions(*derived, *out.mutable_conditions());
  else
    put_conditions(row.conditions(), *out.mutable_conditions());
  if (row.has_delete_time()) *out.mutable_delete_time() = row.delete_time();
  return out;
}

api::Connector to_api(const corev1::ConnectorRow& row) {
  api::Connector out;
  out.set_name(connector_name(row.project(), row.name()));
  out.set_connector_class(row.class_());
  *out.mutable_lease_duration() = duration(row.lease_duration_ms());
  put_common(row, out);
  out.set_observed_generation(row.observed_generation());
  out.set_public_key(row.public_key());
  out.set_online(row.online());
  out.set_home_relay(row.home_relay());
  *out.mutable_addresses() = row.addresses();
  out.set_addressing_generation(row.addressing_generation());
  out.set_addressing_error(row.addressing_error());
  out.set_session(row.session());
  out.set_agent_version(row.agent_version());
  if (row.session() != 0) *out.mutable_clock_skew() = duration(row.clock_skew_ms());
  out.set_dialable(row.dialable());
  out.set_attachment_generation(row.attachment_generation());
  out.set_attached_generation(row.attached_generation());
  put_conditions(row.conditions(), *out.mutable_conditions());
  if (row.has_delete_time()) *out.mutable_delete_time() = row.delete_time();
  return out;
}

api::ConnectorClass to_api(const corev1::ConnectorClassRow& row) {
  api::ConnectorClass out;
  out.set_name("connectorClasses/" + row.name());
  *out.mutable_allowed_networks() = row.allowed_networks();
  put_common(row, out);
  return out;
}

api::GatewayClass to_api(const corev1::GatewayClassRow& row) {
  api::GatewayClass out;
  out.set_name("gatewayClasses/" + row.name());
  out.set_dial_mode(row.dial_mode());
  *out.mutable_listen() = row.listen();
  *out.mutable_stream_idle_timeout() = duration(row.stream_idle_timeout_ms());
  put_common(row, out);
  return out;
}

api::Gateway to_api(const corev1::GatewayRow& row, const replica::tables& tables, bool each_partition) {
  api::Gateway out;
  out.set_name("gateways/" + row.name());
  out.set_gateway_class(row.class_());
  put_common(row, out);
  const auto seen = replica::summary_of(tables, row.name());
  out.set_state(seen.state);
  if (seen.since_ms != 0) *out.mutable_state_since() = timestamp_from_ms(seen.since_ms);
  out.set_counts(seen.counts);
  out.set_acknowledged(seen.acknowledged);
  out.set_revision(seen.revision);
  out.set_lag(seen.revision - seen.acknowledged);
  out.set_refusals(seen.refusals);
  if (seen.last != nullptr) {
    auto& last = *out.mutable_last_refusal();
    last.set_message(seen.last->message());
    last.set_revision(seen.last->revision());
    if (seen.last->at_ms() != 0) *last.mutable_time() = timestamp_from_ms(seen.last->at_ms());
    last.set_resource(refused_resource(*seen.last, tables));
  }
  if (seen.report != nullptr) {
    out.set_node_id(seen.report->node_id());
    out.set_node_cluster(seen.report->node_cluster());
    out.set_node_locality(seen.report->node_locality());
    out.set_instance(seen.report->instance());
    out.set_peer(seen.report->peer());
  }
  if (!each_partition) return out;
  for (const auto& [partition, gateways] : tables.acks) {
    const auto at = gateways.find(row.name());
    if (at == gateways.end()) continue;
    const auto copy = tables.partitions.find(partition);
    auto& p = *out.add_partitions();
    p.set_partition(partition);
    p.set_state(at->second.report.state());
    p.set_acknowledged(at->second.report.acknowledged());
    p.set_revision(copy == tables.partitions.end() ? 0 : copy->second.revision);
  }
  return out;
}

api::Enrolment enrolment_of(const corev1::ConnectorRow& row, const agent_bus& bus) {
  api::Enrolment e;
  e.set_version(1);
  e.set_project(row.project());
  e.set_connector(row.name());
  e.set_uid(row.uid());
  e.set_partition(row.partition());
  for (const auto& url : bus.urls) e.mutable_nats()->add_urls(url);
  if (bus.issue) {
    auto own = bus.issue(row);
    e.mutable_nats()->set_jwt(std::move(own.jwt));
    e.mutable_nats()->set_seed(std::move(own.seed));
    e.mutable_nats()->set_inbox_prefix(std::move(own.inbox_prefix));
  } else {
    e.mutable_nats()->set_user(bus.user);
    e.mutable_nats()->set_password(bus.password);
    e.mutable_nats()->set_credentials(bus.credentials);
  }
  const auto kind = warren::bus::kind_connector;
  e.mutable_subjects()->set_hello(warren::bus::hello_subject(row.partition(), row.project(), kind, row.name()));
  e.mutable_subjects()->set_heartbeat(warren::bus::heartbeat_subject(row.partition(), row.project(), kind, row.name()));
  e.mutable_subjects()->set_event(warren::bus::event_subject(row.partition(), row.project(), kind, row.name()));
  e.mutable_subjects()->set_command(warren::bus::command_subject(row.project(), kind, row.name()));
  return e;
}

std::optional<std::string> enrolment_json(const api::Enrolment& e) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string out;
  if (const auto said = google::protobuf::util::MessageToJsonString(e, &out, options); !said.ok()) return std::nullopt;
  return out;
}

}  // namespace warren::admin
