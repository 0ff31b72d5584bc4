// actors/connector/commands.cpp -- what administrators ask for. Pure.
#include "actors/connector/commands.hpp"

#include <map>
#include <string_view>

#include <fmt/format.h>

#include "actors/connector/attachments.hpp"
#include "actors/connector/rows.hpp"
#include "actors/connector/spec.hpp"
#include "actors/core/audit.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::connector {

namespace {

v1::Reply invalid(const violation& v) { return error_reply(errc::invalid, v.field, v.message); }

v1::Reply missing() { return error_reply(errc::not_found, "name", "there is no such connector"); }

v1::Reply aborted(const v1::ConnectorRow& row) {
  auto r = error_reply(errc::aborted, "etag", "the connector has changed since it was read");
  r.set_etag(etag_of(row));
  return r;
}

v1::Reply unchanged(const state& s) {
  v1::Reply r;
  *r.mutable_row()->mutable_connector() = s.row();
  r.mutable_row()->mutable_connector()->clear_session_token_hash();
  r.set_partition(s.partition());
  r.set_revision(s.row().version());
  return r;
}

/// Of our own clock's past, on the wall's. 0 stays 0.
std::int64_t wall_of(std::int64_t steady_ms, moment now) {
  return steady_ms == 0 ? 0 : now.wall_ms - (now.steady_ms - steady_ms);
}

v1::Reply observed(const state& s, moment now) {
  auto r = unchanged(s);
  auto& o = *r.mutable_observed();
  o.set_heard_ms(wall_of(s.heard_ms() != 0 ? s.heard_ms() : s.heard_before_ms(), now));
  o.set_listening_ms(wall_of(s.listening_ms(), now));
  o.set_agent_interval_ms(s.agent_interval_ms());
  return r;
}

std::string audit_json_of(v1::ConnectorRow row) {
  row.clear_session_token_hash();  // the audit trail is read by people
  return audit_json(std::move(row));
}

void save_command(transition& t, row_write::op what, v1::ConnectorRow row, moment now) {
  state& s = t.next;
  const auto p = s.pending(0);
  *row.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
  save_request save;
  save.write = what == row_write::op::erase ? "connector_erase" : "connector_spec";
  save.rows.push_back(write_of(what, row, s.row().version(), true));
  attach_caller(save, p.command(), fmt::format("projects/{}/connectors/{}", s.project(), s.name()),
                exists(s) ? audit_json_of(s.row()) : "", what == row_write::op::erase ? "" : audit_json_of(row));

  state after = s;
  drop_first_pending(after);
  if (what == row_write::op::erase) {
    std::map<std::string_view, const v1::AttachmentRow*> sorted;  // the state's map has no order, a replay needs one
    for (const auto& [key, a] : s.attachments()) sorted[key] = &a;
    for (const auto& [key, a] : sorted) {
      save.rows.push_back(write_of(row_write::op::erase, *a, a->version()));
      owe_state(after, a->tunnel(), a->tunnel_uid(), a->tunnel_generation());
    }
    if (!s.row().session_token_hash().empty()) {
      after.set_superseded_session(s.row().session());
      after.set_superseded_message("the connector was deleted");
    }
    after.clear_row();
    after.mutable_attachments()->clear();
    // What the answer shows: it was there, and nobody is let through any more.
    auto& last = *save.rows.front().row.mutable_connector();
    *last.mutable_delete_time() = timestamp_from_ms(now.wall_ms);
    last.set_online(false);
    last.clear_session_token_hash();
    set_condition(*last.mutable_conditions(), "Ready", status_false, "Deleting", "The connector is being deleted.",
                  last.generation(), now.wall_ms);
  } else {
    if (what == row_write::op::insert) {
      after.set_appeared(true);
      after.set_silence(std::string{lease_not_renewed});
      after.set_heard_ms(0);
      after.clear_addressing();
      after.mutable_targets()->clear();
      after.clear_changes();
      after.set_held_generation(0);
      after.set_set_told_generation(0);
      after.set_bye_sequence(0);
      after.set_said_bye(false);
      after.set_settled_digest("");
    }
    if (exists(s) && s.row().public_key() != row.public_key() && !s.row().session_token_hash().empty()) {
      after.set_superseded_session(s.row().session());
      after.set_superseded_message("the connector's key was changed");
      after.set_silence(std::string{lease_not_renewed});
    }
    if (exists(s) && s.row().class_() != row.class_()) after.set_addressing_changed(true);
    *after.mutable_row() = std::move(row);
  }
  owe_answer(t, p, {});
  begin_save(t, std::move(save), std::move(after), "command");
}

v1::ConnectorRow fresh_row(const state& s, const v1::ConnectorSpec& spec, const std::string& uid, moment now) {
  v1::ConnectorRow row;
  row.set_partition(s.partition());
  row.set_project(s.project());
  row.set_name(s.name());
  row.set_uid(uid);
  row.set_generation(1);
  row.set_class_(spec.class_());
  row.set_lease_duration_ms(spec.lease_duration_ms());
  *row.mutable_created_at() = timestamp_from_ms(now.wall_ms);
  set_condition(*row.mutable_conditions(), "Accepted", status_unknown, "Pending", "The connector class is being read.",
                1, now.wall_ms);
  set_condition(*row.mutable_conditions(), "Ready", status_false, "ConnectorNotReady", lease_not_renewed, 1,
                now.wall_ms);
  return row;
}

}  // namespace

std::optional<v1::Reply> do_command(transition& t, moment now) {
  state& s = t.next;
  const auto p = s.pending(0);
  const auto& c = p.command();
  const auto insert = [&](v1::ConnectorSpec spec, const std::string& key) -> std::optional<v1::Reply> {
    auto wrong = canonicalise(spec);
    if (!protocol::is_label(s.name())) wrong.push_back({"connector_id", "must be 1 to 63 of a-z, 0-9 and '-', neither first nor last"});
    if (!protocol::is_label(s.project())) wrong.push_back({"parent", "must be 1 to 63 of a-z, 0-9 and '-', neither first nor last"});
    if (!wrong.empty()) return invalid(wrong.front());
    auto row = fresh_row(s, spec, p.fresh_uid(), now);
    row.set_public_key(key);
    save_command(t, row_write::op::insert, std::move(row), now);
    return std::nullopt;
  };
  const auto changed = [&](v1::ConnectorRow row) -> std::optional<v1::Reply> {
    row.set_generation(row.generation() + 1);
    save_command(t, row_write::op::update, std::move(row), now);
    return std::nullopt;
  };
  switch (c.command_case()) {
    case v1::Command::kCreateConnector:
      if (exists(s)) return error_reply(errc::already_exists, "connector_id", "a connector of this name exists");
      return insert(c.create_connector().spec(), "");
    case v1::Command::kUpdateConnector: {
      const auto& u = c.update_connector();
      if (!exists(s)) return missing();
      if (!u.etag().empty() && u.etag() != etag_of(s.row())) return aborted(s.row());
      std::vector<std::string> fields{u.update_mask().begin(), u.update_mask().end()};
      if (fields.empty()) fields = {"class", "lease_duration_ms"};
      auto spec = u.spec();
      if (auto wrong = canonicalise(spec, fields); !wrong.empty()) return invalid(wrong.front());
      auto row = s.row();
      for (const auto& field : fields)
        if (field == "class") row.set_class_(spec.class_());
        else row.set_lease_duration_ms(spec.lease_duration_ms());
      if (same_spec(row, s.row())) return unchanged(s);
      return changed(std::move(row));
    }
    case v1::Command::kDeleteConnector:
      if (!exists(s)) return missing();
      if (const auto& etag = c.delete_connector().etag(); !etag.empty() && etag != etag_of(s.row()))
        return aborted(s.row());
      save_command(t, row_write::op::erase, s.row(), now);
      return std::nullopt;
    case v1::Command::kEnrolConnector: {
      const auto& e = c.enrol_connector();
      if (auto wrong = check_public_key(e.public_key())) return invalid(*wrong);
      if (!exists(s)) return insert(e.spec(), e.public_key());
      if (s.row().public_key() == e.public_key()) return unchanged(s);
      if (!s.row().public_key().empty())
        return error_reply(errc::failed_precondition, "public_key",
                           "the connector has a key already; RotateConnectorKey changes it");
      auto row = s.row();
      row.set_public_key(e.public_key());
      return changed(std::move(row));
    }
    case v1::Command::kRotateConnectorKey: {
      const auto& r = c.rotate_connector_key();
      if (!exists(s)) return missing();
      if (auto wrong = check_public_key(r.public_key())) return invalid(*wrong);
      if (!r.etag().empty() && r.etag() != etag_of(s.row())) return aborted(s.row());
      if (s.row().public_key().empty())
        return error_reply(errc::failed_precondition, "public_key", "the connector is not enrolled");
      if (s.row().public_key() == r.public_key()) return unchanged(s);
      auto row = s.row();
      row.set_public_key(r.public_key());
      // Who holds the former key has no session any more, and gateways dial nobody under the new one
      // before its holder has said hello.
      row.clear_session_token_hash();
      row.set_online(false);
      set_condition(*row.mutable_conditions(), "Ready", status_false, "ConnectorNotReady", lease_not_renewed,
                    row.generation() + 1, now.wall_ms);
      return changed(std::move(row));
    }
    case v1::Command::kObserveConnector: return exists(s) ? observed(s, now) : missing();
    default: return error_reply(errc::invalid, "command", "not a command for a connector");
  }
}

}  // namespace warren::connector
