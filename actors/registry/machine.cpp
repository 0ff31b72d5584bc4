// actors/registry/machine.cpp -- decisions about one gateway, gateway class or connector class. No CAF, no
// I/O, no clock.
#include "actors/registry/machine.hpp"

#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>

#include "actors/core/audit.hpp"
#include "actors/core/pending.hpp"
#include "actors/registry/spec.hpp"

namespace warren::registry {

namespace {

template <class F> auto visit_row(v1::Row& row, F f) {
  if (row.has_gateway()) f(*row.mutable_gateway());
  else if (row.has_gateway_class()) f(*row.mutable_gateway_class());
  else if (row.has_connector_class()) f(*row.mutable_connector_class());
}

std::int64_t version_of(const v1::Row& row) {
  return row.has_gateway()         ? row.gateway().version()
         : row.has_gateway_class() ? row.gateway_class().version()
                                   : row.connector_class().version();
}

std::string audit_json_of(v1::Row row) {
  std::string out;
  visit_row(row, [&](auto& r) { out = audit_json(r); });
  return out;
}

/// What the API calls it.
std::string resource_of(const std::string& kind, const std::string& name) {
  return (kind == "gateway" ? "gateways/" : kind == "gateway_class" ? "gatewayClasses/" : "connectorClasses/") + name;
}

/// What a command wants: a row to be there, changed or gone.
struct wish {
  bool create = false, update = false, erase = false;
  std::string etag;
  const google::protobuf::RepeatedPtrField<std::string>* mask = nullptr;
};

wish wish_of(const v1::Command& c) {
  switch (c.command_case()) {
    case v1::Command::kCreateGateway: return {.create = true};
    case v1::Command::kUpdateGateway:
      return {.update = true, .etag = c.update_gateway().etag(), .mask = &c.update_gateway().update_mask()};
    case v1::Command::kDeleteGateway: return {.erase = true, .etag = c.delete_gateway().etag()};
    case v1::Command::kPutGatewayClass: {
      const auto& p = c.put_gateway_class();
      return {.create = p.create(), .update = !p.create(), .etag = p.etag(), .mask = &p.update_mask()};
    }
    case v1::Command::kDeleteGatewayClass: return {.erase = true, .etag = c.delete_gateway_class().etag()};
    case v1::Command::kPutConnectorClass: {
      const auto& p = c.put_connector_class();
      return {.create = p.create(), .update = !p.create(), .etag = p.etag(), .mask = &p.update_mask()};
    }
    case v1::Command::kDeleteConnectorClass:
      return {.erase = true, .etag = c.delete_connector_class().etag()};
    default: return {};
  }
}

/// Takes one named field of the command's spec over into the row. False: there is no such field.
bool put_field(v1::Row& row, const v1::Command& c, const std::string& field) {
  if (row.has_gateway() && field == "class") {
    row.mutable_gateway()->set_class_(c.has_create_gateway() ? c.create_gateway().spec().class_()
                                                             : c.update_gateway().spec().class_());
    return true;
  }
  if (row.has_gateway_class()) {
    auto& r = *row.mutable_gateway_class();
    const auto& spec = c.put_gateway_class().spec();
    if (field == "dial_mode") return r.set_dial_mode(spec.dial_mode()), true;
    if (field == "listen") return *r.mutable_listen() = spec.listen(), true;
    if (field == "stream_idle_timeout_ms" || field == "stream_idle_timeout")
      return r.set_stream_idle_timeout_ms(spec.stream_idle_timeout_ms()), true;
  }
  if (row.has_connector_class() && field == "allowed_networks") {
    *row.mutable_connector_class()->mutable_allowed_networks() =
        c.put_connector_class().spec().allowed_networks();
    return true;
  }
  return false;
}

std::vector<std::string> fields_of(const std::string& kind) {
  if (kind == "gateway") return {"class"};
  if (kind == "gateway_class") return {"dial_mode", "listen", "stream_idle_timeout_ms"};
  return {"allowed_networks"};
}

v1::Row blank(const std::string& kind) {
  v1::Row row;
  if (kind == "gateway") row.mutable_gateway();
  else if (kind == "gateway_class") row.mutable_gateway_class();
  else row.mutable_connector_class();
  return row;
}

/// Brings the spec of a creation or an update into its one spelling; or what is wrong with it.
std::optional<violation> canonicalised(v1::Command& c) {
  const auto judge = [](auto& put, bool all) {
    const std::vector<std::string> mask{put.update_mask().begin(), put.update_mask().end()};
    if (!all && mask.empty()) return std::vector<violation>{};
    return canonicalise(*put.mutable_spec(), all ? std::vector<std::string>{} : mask);
  };
  std::vector<violation> wrong;
  if (c.has_create_gateway()) wrong = canonicalise(*c.mutable_create_gateway()->mutable_spec());
  if (c.has_update_gateway()) wrong = judge(*c.mutable_update_gateway(), false);
  if (c.has_put_gateway_class()) wrong = judge(*c.mutable_put_gateway_class(), c.put_gateway_class().create());
  if (c.has_put_connector_class()) wrong = judge(*c.mutable_put_connector_class(), c.put_connector_class().create());
  if (wrong.empty()) return std::nullopt;
  return wrong.front();
}

struct decided {
  std::optional<v1::Reply> reply;
  std::optional<save_request> save;
  v1::Row row;
};

save_request save_of(const state& s, const v1::Command& c, row_write::op what, const v1::Row& row,
                     std::string before, std::string after) {
  save_request save;
  save.write = s.kind();
  save.rows.push_back({what, row, s.has_row() ? version_of(s.row()) : 0, true});
  attach_caller(save, c, resource_of(s.kind(), s.name()), std::move(before), std::move(after));
  return save;
}

decided decide(const state& s, const v1::PendingCommand& p, moment now) {
  auto c = p.command();
  const auto wrong = canonicalised(c);
  const auto w = wish_of(c);
  if (!w.create && !s.has_row())
    return {error_reply(errc::not_found, "name", "there is no such " + s.kind()), {}, {}};
  if (w.create && s.has_row())
    return {error_reply(errc::already_exists, "name", "a " + s.kind() + " of this name exists"), {}, {}};
  if (!w.etag.empty() && w.etag != etag_of(s.row())) {
    auto r = error_reply(errc::aborted, "etag", "it has changed since it was read");
    r.set_etag(etag_of(s.row()));
    return {std::move(r), {}, {}};
  }
  if (w.erase) {
    if (s.name() == "default" && s.kind() != "gateway")
      return {error_reply(errc::failed_precondition, "name", "the class default stays"), {}, {}};
    return {std::nullopt, save_of(s, c, row_write::op::erase, s.row(), audit_json_of(s.row()), ""), {}};
  }
  if (wrong) return {error_reply(errc::invalid, wrong->field, wrong->message), {}, {}};
  v1::Row row = w.create ? blank(s.kind()) : s.row();
  if (w.create) {
    for (const auto& field : fields_of(s.kind())) put_field(row, c, field);
  } else {
    for (const auto& field : *w.mask)
      if (!put_field(row, c, field))
        return {error_reply(errc::invalid, "update_mask", "there is no field " + field), {}, {}};
    if (google::protobuf::util::MessageDifferencer::Equals(row, s.row())) {
      v1::Reply r;
      *r.mutable_row() = s.row();
      r.set_partition(s.partition());
      r.set_revision(version_of(s.row()));
      return {std::move(r), {}, {}};
    }
  }
  visit_row(row, [&](auto& r) {
    r.set_partition(s.partition());
    r.set_name(s.name());
    r.set_generation(r.generation() + 1);
    *r.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
    if (w.create) {
      r.set_uid(p.fresh_uid());
      *r.mutable_created_at() = r.updated_at();
    }
  });
  const auto what = w.create ? row_write::op::insert : row_write::op::update;
  auto save = save_of(s, c, what, row, s.has_row() ? audit_json_of(s.row()) : "", audit_json_of(row));
  return {std::nullopt, std::move(save), std::move(row)};
}

void settle(transition& t, moment now) {
  if (!t.next.known()) {  // the shell reads the row again at the wake
    t.wake_at_ms = t.next.retry_at_ms();
    return;
  }
  if (now.steady_ms < t.next.retry_at_ms()) {
    t.wake_at_ms = t.next.retry_at_ms();
    return;
  }
  while (t.next.pending_size() > 0) {
    const auto p = t.next.pending(0);
    auto done = decide(t.next, p, now);
    if (done.save) {
      t.kept = t.next;
      drop_first_pending(t.next);
      if (done.save->rows.front().what == row_write::op::erase) t.next.clear_row();
      else *t.next.mutable_row() = std::move(done.row);
      owe_answer(t, p, {});
      t.save = std::move(done.save);
      return;
    }
    owe_answer(t, p, *done.reply);
    drop_first_pending(t.next);
  }
  t.gone = !t.next.has_row();
}

}  // namespace

state initial(partition_id partition, std::string kind, std::string name) {
  state s;
  s.set_partition(partition);
  s.set_kind(std::move(kind));
  s.set_name(std::move(name));
  return s;
}

std::string etag_of(const v1::Row& row) {
  std::string out;
  v1::Row copy = row;
  visit_row(copy, [&](auto& r) { out = fmt::format("{}-{}", r.uid(), r.generation()); });
  return out;
}

void adopt(state& next, const saved& written) {
  if (next.has_row() && !written.rows.empty()) *next.mutable_row() = written.rows.front();
}

std::pair<std::string, std::string> target_of(const v1::Command& c) {
  switch (c.command_case()) {
    case v1::Command::kCreateGateway: return {"gateway", c.create_gateway().name()};
    case v1::Command::kUpdateGateway: return {"gateway", c.update_gateway().name()};
    case v1::Command::kDeleteGateway: return {"gateway", c.delete_gateway().name()};
    case v1::Command::kPutGatewayClass: return {"gateway_class", c.put_gateway_class().name()};
    case v1::Command::kDeleteGatewayClass: return {"gateway_class", c.delete_gateway_class().name()};
    case v1::Command::kPutConnectorClass: return {"connector_class", c.put_connector_class().name()};
    case v1::Command::kDeleteConnectorClass: return {"connector_class", c.delete_connector_class().name()};
    default: return {};
  }
}

transition step(const state& s, const event& e, moment now) {
  transition t;
  t.next = s;
  switch (e.event_case()) {
    case event::kCommand: queue_command(t, e, now); break;
    case event::kReloaded:
      t.next.set_known(true);
      if (e.reloaded().has_row()) *t.next.mutable_row() = e.reloaded().row();
      else t.next.clear_row();
      if (e.reloaded().conflict()) retry_after_conflict(t.next, now, e.random());
      break;
    case event::kSaved: forget_retries(t.next); break;
    case event::kFailed:
      if (e.failed().code() == "replayed") drop_first_pending(t.next);  // the shell has given the first answer
      else refuse_pending(t, e.failed());
      if (e.failed().code() == "unavailable") retry_after_failure(t.next, now, e.random());
      break;
    case event::kWake:
    case event::EVENT_NOT_SET: break;
  }
  drop_expired(t, now);
  settle(t, now);
  return t;
}

}  // namespace warren::registry
