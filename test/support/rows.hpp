// test/support/rows.hpp -- rows as tests write them: complete enough to carry traffic, each a word to change.
#pragma once

#include <string>
#include <vector>

#include "actors/core/time.hpp"
#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren::rows {

namespace v1 = warren::core::v1;
namespace busv1 = warren::bus::v1;

inline void condition(auto& row, const std::string& type, const std::string& status, const std::string& reason = "",
                      const std::string& message = "") {
  for (auto& c : *row.mutable_conditions())
    if (c.type() == type) {
      c.set_status(status);
      c.set_reason(reason);
      c.set_message(message);
      return;
    }
  auto* c = row.add_conditions();
  c->set_type(type);
  c->set_status(status);
  c->set_reason(reason.empty() ? type : reason);
  c->set_message(message);
  *c->mutable_last_transition_time() = timestamp_from_ms(1000);
}

/// Accepted and programmed, one rule to `connector`.
inline v1::TunnelRow tunnel(const std::string& project, const std::string& name, const std::string& connector,
                            std::int64_t version, int partition = 0) {
  v1::TunnelRow t;
  t.set_partition(partition);
  t.set_project(project);
  t.set_name(name);
  t.set_uid("uid-" + name);
  t.set_version(version);
  t.set_route_version(version);
  t.set_generation(1);
  t.set_observed_generation(1);
  t.add_hostnames(name + "." + project + ".example");
  auto* r = t.add_rules();
  r->set_path_prefix("/");
  r->set_connector(connector);
  r->set_target("http://localhost:8080");
  t.set_enabled(true);
  t.set_gateway_class("default");
  t.set_programmed_generation(1);
  condition(t, "Accepted", "True");
  condition(t, "Programmed", "True");
  *t.mutable_created_at() = timestamp_from_ms(1000);
  *t.mutable_updated_at() = timestamp_from_ms(1000);
  return t;
}

/// Online, holding every attachment up to generation 1.
inline v1::ConnectorRow connector(const std::string& project, const std::string& name, std::int64_t version,
                                  int partition = 0) {
  v1::ConnectorRow c;
  c.set_partition(partition);
  c.set_project(project);
  c.set_name(name);
  c.set_uid("uid-" + name);
  c.set_version(version);
  c.set_class_("default");
  c.set_public_key(std::string(64, 'a'));
  c.add_addresses("192.0.2.1:7000");
  c.set_addressing_generation(1);
  c.set_online(true);
  c.set_attachment_generation(1);
  c.set_attached_generation(1);
  condition(c, "Accepted", "True");
  condition(c, "Ready", "True", "ConnectorReady");
  *c.mutable_created_at() = timestamp_from_ms(1000);
  return c;
}

inline v1::AttachmentRow attachment(const v1::TunnelRow& t, const std::string& connector, std::int64_t version) {
  v1::AttachmentRow a;
  a.set_partition(t.partition());
  a.set_project(t.project());
  a.set_connector(connector);
  a.set_tunnel_uid(t.uid());
  a.set_tunnel_generation(t.generation());
  a.set_version(version);
  a.set_tunnel(t.name());
  a.set_attachment_generation(1);
  a.set_target_state("Reachable");
  return a;
}

inline v1::Row row(v1::TunnelRow r) { v1::Row out; *out.mutable_tunnel() = std::move(r); return out; }
inline v1::Row row(v1::ConnectorRow r) { v1::Row out; *out.mutable_connector() = std::move(r); return out; }
inline v1::Row row(v1::AttachmentRow r) { v1::Row out; *out.mutable_attachment() = std::move(r); return out; }
inline v1::Row row(v1::GatewayRow r) { v1::Row out; *out.mutable_gateway() = std::move(r); return out; }

inline v1::Row tombstone(const std::string& kind, const std::string& key, std::int64_t version,
                         const std::string& uid = "") {
  v1::Row out;
  auto* t = out.mutable_tombstone();
  t->set_kind(kind);
  t->set_key(key);
  t->set_version(version);
  t->set_uid(uid);
  return out;
}

inline busv1::Revision hint(std::int64_t revision, std::vector<v1::Row> changed, int partition = 0) {
  busv1::Revision r;
  r.set_version(1);
  r.set_incarnation(revision >> 32);
  r.set_partition(partition);
  r.set_epoch(1);
  r.set_revision(revision);
  for (auto& each : changed) *r.add_rows() = std::move(each);
  return r;
}

inline busv1::GatewayAck ack(const std::string& gateway, std::int64_t acknowledged, const std::string& state = "caught_up",
                             std::int64_t stream = 1, int partition = 0) {
  busv1::GatewayAck a;
  a.set_version(1);
  a.set_incarnation(acknowledged >> 32);
  a.set_instance(1);
  a.set_gateway(gateway);
  a.set_class_("default");
  a.set_stream(stream);
  a.set_state(state);
  a.set_partition(partition);
  a.set_acknowledged(acknowledged);
  return a;
}

}  // namespace warren::rows
