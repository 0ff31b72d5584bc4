// actors/connector/rows.cpp -- from what is known and wished to what the rows shall say. Pure.
#include "actors/connector/rows.hpp"

#include <fmt/format.h>

#include "actors/connector/attachments.hpp"
#include "actors/connector/liveness.hpp"
#include "actors/connector/session.hpp"
#include "actors/connector/spec.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/protocol.hpp"

namespace warren::connector {

namespace {

void plan_addressing(const state& s, plan& p) {
  if (!s.addressing_changed() || !s.class_heard() || !s.class_().found() || s.class_().name() != p.row.class_()) return;
  busv1::Addressing stored;
  stored.set_home_relay(p.row.home_relay());
  *stored.mutable_addresses() = p.row.addresses();
  const bool known = !stored.home_relay().empty() || stored.addresses_size() > 0;
  if (!s.has_addressing() && !known) return;
  const auto judged = judge_addressing(s.has_addressing() ? s.addressing() : stored, s.class_().allowed_networks());
  if (judged.error) {
    p.row.set_addressing_error(judged.error->field + ": " + judged.error->message);
    return;
  }
  // A refused report that nobody remembers keeps its refusal until the agent reports again.
  if (s.has_addressing()) p.row.clear_addressing_error();
  else if (!p.row.addressing_error().empty()) return;
  busv1::Addressing wanted;
  wanted.set_home_relay(judged.home_relay);
  for (const auto& a : judged.addresses) wanted.add_addresses(a);
  if (same(wanted, stored)) return;
  const auto before = addresses_of(p.row);
  p.row.set_home_relay(wanted.home_relay());
  *p.row.mutable_addresses() = wanted.addresses();
  p.row.set_addressing_generation(p.row.addressing_generation() + 1);
  if (addresses_of(p.row) != before) p.row.set_dialable(false);
}

/// A key or a lease that a rival wrote, and that is none, makes the row unusable whatever the agent reports.
void plan_spoilt(plan& p) {
  const auto wrong = p.row.session_token_hash().empty() ? std::nullopt : check_own_fields(p.row);
  if (wrong) p.row.set_addressing_error(wrong->field + ": " + wrong->message);
  else if (is_of_row(p.row.addressing_error())) p.row.clear_addressing_error();
}

void plan_row(const state& s, plan& p, moment now) {
  auto& row = p.row;
  auto& conditions = *row.mutable_conditions();
  if (s.spec_changed_by_rival()) row.set_generation(row.generation() + 1);
  if (s.class_heard() && s.class_().name() == row.class_()) {
    row.set_observed_generation(row.generation());
    if (s.class_().found())
      set_condition(conditions, "Accepted", status_true, "Accepted", "The connector is accepted.", row.generation(), now.wall_ms);
    else
      set_condition(conditions, "Accepted", status_false, "ConnectorClassNotFound",
                    fmt::format("There is no connector class \"{}\".", row.class_()), row.generation(), now.wall_ms);
  } else if (find_condition(conditions, "Accepted") == nullptr) {
    set_condition(conditions, "Accepted", status_unknown, "Pending", "The connector class is being read.",
                  row.generation(), now.wall_ms);
  }
  plan_addressing(s, p);
  plan_spoilt(p);
  if (s.proved_dialable() && s.proved_addresses() == addresses_of(row)) row.set_dialable(true);
  // The agent's word counts for what it can hold. A number from a history that was lost says nothing: until it has
  // answered with one of ours, what it had acknowledged before holds.
  const auto ours = s.incarnation() << 32;
  const bool lost = s.held_generation() > row.attachment_generation() ||
                    (s.held_generation() < ours && row.attachment_generation() >= ours &&
                     s.held_generation() > row.attached_generation());
  if (!lost) row.set_attached_generation(s.held_generation());

  const bool accepted = is_true(conditions, "Accepted");
  const bool addressed = !row.home_relay().empty() || row.addresses_size() > 0;
  const bool online = accepted && addressed && row.addressing_error().empty() && s.silence().empty() &&
                      !row.session_token_hash().empty();
  row.set_online(online);
  if (online && s.mass_silence() && is_silent(s, now))
    set_condition(conditions, "Ready", status_unknown, "MassSilence",
                  "Many connectors fell silent at once; silence does not count until it is clear why.", row.generation(), now.wall_ms);
  else if (online)
    set_condition(conditions, "Ready", status_true, "ConnectorReady", ready_message, row.generation(), now.wall_ms);
  else if (const auto* refused = find_condition(conditions, "Accepted"); refused != nullptr && refused->reason() == "ConnectorClassNotFound")
    set_condition(conditions, "Ready", status_false, "ConnectorNotReady", std::string{refused->message()}, row.generation(), now.wall_ms);
  else if (!row.addressing_error().empty())
    set_condition(conditions, "Ready", status_false, "InvalidAddressing", row.addressing_error(), row.generation(), now.wall_ms);
  else
    set_condition(conditions, "Ready", status_false, "ConnectorNotReady",
                  s.silence().empty() ? lease_not_renewed : std::string_view{s.silence()}, row.generation(), now.wall_ms);
}

bool gateways_must_know(const v1::ConnectorRow& a, const v1::ConnectorRow& b) {
  return a.online() != b.online() || a.home_relay() != b.home_relay() || addresses_of(a) != addresses_of(b) ||
         a.addressing_error() != b.addressing_error() || a.public_key() != b.public_key() || a.class_() != b.class_() ||
         a.attached_generation() != b.attached_generation();
}

}  // namespace

bool same_spec(const v1::ConnectorRow& a, const v1::ConnectorRow& b) {
  return a.class_() == b.class_() && a.lease_duration_ms() == b.lease_duration_ms() && a.public_key() == b.public_key();
}

void reconcile(transition& t, moment now) {
  state& s = t.next;
  plan p{s.row(), {}, {}};
  const bool welcome = s.has_welcome() && !s.welcome().stored();
  if (welcome) plan_session(s, p.row);
  std::optional<state> after;
  if (s.wishes_size() > 0 || s.targets_changed() || s.set_changed_by_rival()) {
    after = lend(s);
    plan_wishes(s, *after, p);
    if (s.targets_changed()) plan_targets(*after, p);
  }
  plan_row(s, p, now);
  const bool row_changed = !same(p.row, s.row());
  if (!row_changed && p.children.empty()) {
    if (after) t.next = std::move(*after);
    t.next.set_addressing_changed(t.next.addressing_changed() && !t.next.class_heard());
    t.next.set_proved_dialable(false);
    t.next.set_spec_changed_by_rival(false);
    return;
  }
  if (!after) after = lend(s);
  save_request save;
  save.write = welcome                                           ? "connector_session"
               : p.row.attachment_generation() != s.row().attachment_generation() ? "connector_attachments"
               : !row_changed                                    ? "attachment_target"
                                                                 : "connector_status";
  if (row_changed) {
    *p.row.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
    save.rows.push_back(write_of(row_write::op::update, p.row, s.row().version(), gateways_must_know(p.row, s.row())));
  }
  for (auto& [key, write] : p.children) save.rows.push_back(std::move(write));

  if (welcome) {
    after->mutable_welcome()->set_stored(true);
    if (s.row().session() > 0 && !s.row().session_token_hash().empty()) {
      after->set_superseded_session(s.row().session());
      after->set_superseded_message("a newer agent holds this connector's key");
    }
  }
  // Tunnels for which this changes something: what becomes attached or no longer is, and, when liveness
  // changes, those that wait for the agent.
  for (const auto& [key, a] : after->attachments()) {
    const bool is = attached(a, p.row);
    if (is != attached(a, s.row()) || (p.row.online() != s.row().online() && !is))
      owe_state(*after, a.tunnel(), a.tunnel_uid(), a.tunnel_generation());
  }
  if (p.row.online() && !s.row().online()) after->set_proved_addresses("");
  after->set_addressing_changed(after->addressing_changed() && !after->class_heard());
  after->set_proved_dialable(false);
  after->set_spec_changed_by_rival(false);
  *after->mutable_row() = std::move(p.row);
  state next = std::move(*after);
  begin_save(t, std::move(save), std::move(next), "status", std::move(p.before));
}

}  // namespace warren::connector
