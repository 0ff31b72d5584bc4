// actors/tunnel/machine.cpp -- decisions of one tunnel. No CAF, no I/O, no clock, no randomness.
#include "actors/tunnel/machine.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>

#include "actors/core/audit.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/pending.hpp"
#include "actors/tunnel/spec.hpp"
#include "actors/tunnel/status.hpp"

namespace warren::tunnel {

namespace {

using google::protobuf::util::MessageDifferencer;

std::int64_t ms(auto duration) { return std::chrono::duration_cast<millis>(duration).count(); }

bool exists(const state& s) { return s.has_row(); }
bool deleting(const state& s) { return exists(s) && s.row().has_delete_time(); }

v1::TunnelSpec spec_of(const v1::TunnelRow& row) {
  v1::TunnelSpec spec;
  *spec.mutable_hostnames() = row.hostnames();
  *spec.mutable_rules() = row.rules();
  spec.set_enabled(row.enabled());
  spec.set_gateway_class(row.gateway_class());
  return spec;
}

void put_spec(v1::TunnelRow& row, const v1::TunnelSpec& spec) {
  *row.mutable_hostnames() = spec.hostnames();
  *row.mutable_rules() = spec.rules();
  row.set_enabled(spec.enabled());
  row.set_gateway_class(spec.gateway_class());
}

/// Every connector whose agent may hold something of this tunnel.
std::set<std::string> connectors_of(const v1::TunnelRow& row) {
  std::set<std::string> names{row.retiring().begin(), row.retiring().end()};
  for (const auto& r : row.rules()) names.insert(r.connector());
  for (const auto& r : row.previous_rules()) names.insert(r.connector());
  return names;
}
std::set<std::string> current_connectors_of(const v1::TunnelRow& row) {
  std::set<std::string> names;
  for (const auto& r : row.rules()) names.insert(r.connector());
  return names;
}

claim_change claims_between(const v1::TunnelRow& row, const v1::TunnelRow& before) {
  claim_change c{row.project(), row.name(), row.uid(), {}, {}};
  const auto& now = row.hostnames();
  const auto& was = before.hostnames();
  for (const auto& h : now)
    if (std::find(was.begin(), was.end(), h) == was.end()) c.claim.push_back(h);
  for (const auto& h : was)
    if (std::find(now.begin(), now.end(), h) == now.end()) c.drop.push_back(h);
  return c;
}

/// The connectors of a generation that is being replaced have to let go of it in the end, also when nobody
/// ever got to see it.
void retire(v1::TunnelRow& row, const v1::TunnelRow& replaced) {
  std::set<std::string> names{row.retiring().begin(), row.retiring().end()};
  for (const auto& r : replaced.rules())
    if (names.insert(r.connector()).second) row.add_retiring(r.connector());
}

/// A new generation: not yet observed by gateways, and what was live stays routed until agents hold it.
void begin_generation(v1::TunnelRow& row, const v1::TunnelRow& before, std::int64_t wall_ms) {
  row.set_generation(before.generation() + 1);
  // Also when agents have not yet let go of an older one: they may do so at any moment.
  if (before.programmed_generation() == before.generation()) {
    row.set_previous_generation(before.generation());
    *row.mutable_previous_rules() = before.rules();
  }
  retire(row, before);
  set_condition(*row.mutable_conditions(), "Programmed", status_unknown, "Pending",
                "waiting for gateways", row.generation(), wall_ms);
}

/// A new generation is news to every connector, however lately it was told of another; and one that was not
/// there when an older generation named it may have appeared since.
void forget_told(state& s) {
  for (auto& [name, c] : *s.mutable_connectors()) {
    c.set_heard(false);
    c.set_told_at_ms(0);
    c.set_push_owed(false);
    c.set_detached(false);
    c.set_detach_told_at_ms(0);
  }
}

void accept(v1::TunnelRow& row, std::int64_t wall_ms) {
  row.set_observed_generation(row.generation());
  set_condition(*row.mutable_conditions(), "Accepted", status_true, "Accepted",
                "The tunnel is valid and its host names are claimed.", row.generation(), wall_ms);
}

save_request save_of(std::string write, row_write::op what, const v1::TunnelRow& row,
                     std::int64_t expected, bool routes) {
  save_request save;
  save.write = std::move(write);
  row_write w;
  w.what = what;
  *w.row.mutable_tunnel() = row;
  w.expected = expected;
  w.routes = routes;
  save.rows.push_back(std::move(w));
  return save;
}

std::string resource_of(const state& s) {
  return fmt::format("projects/{}/tunnels/{}", s.project(), s.name());
}

/// A command's own outcome: an answer at once, or a save that answers when it is stored.
struct outcome_of_command {
  std::optional<v1::Reply> reply;
  std::optional<save_request> save;
  v1::TunnelRow row;  ///< after the save
};

bool etag_differs(const std::string& wanted, const v1::TunnelRow& row) {
  return !wanted.empty() && wanted != etag_of(row);
}
v1::Reply aborted(const v1::TunnelRow& row) {
  auto r = error_reply(errc::aborted, "etag", "the tunnel has changed since it was read");
  r.set_etag(etag_of(row));
  return r;
}
v1::Reply unchanged(const state& s) {
  v1::Reply r;
  *r.mutable_row()->mutable_tunnel() = s.row();
  r.set_partition(s.partition());
  r.set_revision(s.row().version());
  return r;
}

outcome_of_command create(const state& s, const v1::PendingCommand& p, moment now) {
  if (exists(s))
    return {error_reply(errc::already_exists, "tunnel_id",
                        deleting(s) ? "a tunnel of this name is still being deleted"
                                    : "a tunnel of this name exists"),
            {}, {}};
  v1::TunnelRow row;
  row.set_partition(s.partition());
  row.set_project(s.project());
  row.set_name(s.name());
  row.set_uid(p.fresh_uid());
  row.set_generation(1);
  put_spec(row, p.command().create_tunnel().spec());
  *row.mutable_created_at() = timestamp_from_ms(now.wall_ms);
  *row.mutable_updated_at() = row.created_at();
  accept(row, now.wall_ms);
  set_condition(*row.mutable_conditions(), "Programmed", status_unknown, "Pending",
                "waiting for gateways", 1, now.wall_ms);
  auto save = save_of("tunnel_spec", row_write::op::insert, row, 0, true);
  save.claims = claims_between(row, {});
  attach_caller(save, p.command(), resource_of(s), "", audit_json(row));
  return {std::nullopt, std::move(save), std::move(row)};
}

outcome_of_command update(const state& s, const v1::PendingCommand& p, moment now) {
  const auto& command = p.command().update_tunnel();
  if (!exists(s)) return {error_reply(errc::not_found, "name", "there is no such tunnel"), {}, {}};
  if (deleting(s))
    return {error_reply(errc::failed_precondition, "name", "the tunnel is being deleted"), {}, {}};
  if (etag_differs(command.etag(), s.row())) return {aborted(s.row()), {}, {}};
  auto spec = spec_of(s.row());
  for (const auto& field : command.update_mask()) {
    if (field == "hostnames") *spec.mutable_hostnames() = command.spec().hostnames();
    else if (field == "rules") *spec.mutable_rules() = command.spec().rules();
    else if (field == "enabled") spec.set_enabled(command.spec().enabled());
    else if (field == "gateway_class") spec.set_gateway_class(command.spec().gateway_class());
    else return {error_reply(errc::invalid, "update_mask", "there is no field " + field), {}, {}};
  }
  if (MessageDifferencer::Equals(spec, spec_of(s.row()))) return {unchanged(s), {}, {}};
  v1::TunnelRow row = s.row();
  put_spec(row, spec);
  begin_generation(row, s.row(), now.wall_ms);
  accept(row, now.wall_ms);
  *row.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
  auto save = save_of("tunnel_spec", row_write::op::update, row, s.row().version(), true);
  save.claims = claims_between(row, s.row());
  attach_caller(save, p.command(), resource_of(s), audit_json(s.row()), audit_json(row));
  return {std::nullopt, std::move(save), std::move(row)};
}

outcome_of_command erase(const state& s, const v1::PendingCommand& p, moment now) {
  const auto& command = p.command().delete_tunnel();
  if (!exists(s)) return {error_reply(errc::not_found, "name", "there is no such tunnel"), {}, {}};
  if (etag_differs(command.etag(), s.row())) return {aborted(s.row()), {}, {}};
  if (deleting(s)) return {unchanged(s), {}, {}};
  v1::TunnelRow row = s.row();
  *row.mutable_delete_time() = timestamp_from_ms(now.wall_ms);
  *row.mutable_updated_at() = row.delete_time();
  auto save = save_of("tunnel_delete", row_write::op::update, row, s.row().version(), true);
  attach_caller(save, p.command(), resource_of(s), audit_json(s.row()), audit_json(row));
  return {std::nullopt, std::move(save), std::move(row)};
}

outcome_of_command decide(const state& s, const v1::PendingCommand& p, moment now) {
  switch (p.command().command_case()) {
    case v1::Command::kCreateTunnel: return create(s, p, now);
    case v1::Command::kUpdateTunnel: return update(s, p, now);
    case v1::Command::kDeleteTunnel: return erase(s, p, now);
    default: return {error_reply(errc::invalid, "command", "not a command for a tunnel"), {}, {}};
  }
}

// ---- what a stored row owes ----

void want_wake(transition& t, std::int64_t at_ms) {
  if (t.wake_at_ms == 0 || at_ms < t.wake_at_ms) t.wake_at_ms = at_ms;
}

/// A save that may have to be tried again: `s` is what we go on from when it does not happen.
void save_with(transition& t, save_request save, state after) {
  t.kept = t.next;
  t.next = std::move(after);
  t.save = std::move(save);
}

bool concerns(const state& s, const v1::ConnectorProgress& c) {
  return c.heard() && c.state().tunnel_uid() == s.row().uid() &&
         (c.state().tunnel_generation() == s.row().generation() || c.state().unknown());
}

/// Tells each connector of the current rules what its agent shall hold, until it says that it is stored.
void owe_attachments(transition& t, moment now) {
  state& s = t.next;
  for (const auto& name : current_connectors_of(s.row())) {
    auto& c = (*s.mutable_connectors())[name];
    if (concerns(s, c) && (c.state().stored() || c.state().unknown())) continue;
    const auto due = c.told_at_ms() == 0 ? now.steady_ms : c.told_at_ms() + ms(limits::repeat_after);
    if (now.steady_ms < due) {
      want_wake(t, due);
      continue;
    }
    if (check_row(s.row())) return;  // its conditions name the field; an agent gets one message for all tunnels
    v1::AttachTunnel attach;
    attach.set_connector(name);
    attach.set_tunnel(s.name());
    attach.set_tunnel_uid(s.row().uid());
    attach.set_tunnel_generation(s.row().generation());
    for (int i = 0; i < s.row().rules_size(); ++i) {
      const auto& rule = s.row().rules(i);
      if (rule.connector() != name) continue;
      auto* r = attach.add_rules();
      r->set_index(i);
      r->set_target(rule.target());
      r->set_tls_verify(!rule.has_tls_verify() || rule.tls_verify());
    }
    t.announce.push_back(std::move(attach));
    c.set_told_at_ms(now.steady_ms);
    want_wake(t, now.steady_ms + ms(limits::repeat_after));
  }
}

/// Tells connectors to let go of generations below `below` (0: all). Returns whether all have.
bool owe_detachments(transition& t, const std::set<std::string>& names, std::int64_t below, moment now) {
  state& s = t.next;
  bool all = true;
  for (const auto& name : names) {
    auto& c = (*s.mutable_connectors())[name];
    if (c.detached() || (c.heard() && c.state().unknown())) continue;
    all = false;
    const auto due =
        c.detach_told_at_ms() == 0 ? now.steady_ms : c.detach_told_at_ms() + ms(limits::repeat_after);
    if (now.steady_ms < due) {
      want_wake(t, due);
      continue;
    }
    v1::DetachTunnel detach;
    detach.set_connector(name);
    detach.set_tunnel(s.name());
    detach.set_tunnel_uid(s.row().uid());
    detach.set_below_generation(below);
    t.announce.push_back(std::move(detach));
    c.set_detach_told_at_ms(now.steady_ms);
    want_wake(t, now.steady_ms + ms(limits::repeat_after));
  }
  return all;
}

/// After the transition to Programmed: each connector makes sure that its addressing and the attachment are
/// what its agent and the gateways have. Told again until it answers.
void owe_pushes(transition& t, moment now) {
  state& s = t.next;
  for (const auto& name : current_connectors_of(s.row())) {
    auto& c = (*s.mutable_connectors())[name];
    if (!c.push_owed()) continue;
    if (c.heard() && c.state().unknown()) {
      c.set_push_owed(false);
      continue;
    }
    const auto due =
        c.push_told_at_ms() == 0 ? now.steady_ms : c.push_told_at_ms() + ms(limits::repeat_after);
    if (now.steady_ms < due) {
      want_wake(t, due);
      continue;
    }
    v1::PushAddressing push;
    push.set_connector(name);
    push.set_tunnel(s.name());
    push.set_tunnel_uid(s.row().uid());
    push.set_tunnel_generation(s.row().generation());
    t.announce.push_back(std::move(push));
    c.set_push_told_at_ms(now.steady_ms);
    want_wake(t, now.steady_ms + ms(limits::repeat_after));
  }
}

/// The revision that gateways must have acknowledged for this generation to be programmed; nullopt: an
/// agent has to hold it first, because the generation before it is still the one that is routed.
std::optional<revision_t> revision_to_program(const state& s) {
  revision_t needed = s.row().route_version();
  if (s.row().previous_generation() == 0 || !s.row().enabled()) return needed;
  for (const auto& name : current_connectors_of(s.row())) {
    auto it = s.connectors().find(name);
    if (it == s.connectors().end() || !concerns(s, it->second)) return std::nullopt;
    const auto& a = it->second.state();
    if (a.unknown()) continue;
    if (!a.stored() || (a.online() && !a.attached())) return std::nullopt;
    needed = std::max<revision_t>(needed, a.revision());
  }
  return needed;
}

struct gateway_verdict {
  enum class what { acknowledged, waiting, pending, rejected, none } is = what::none;
  std::string message;
};

gateway_verdict ask_gateways(const state& s, revision_t needed) {
  int counting = 0, done = 0;
  std::string missing, refusal, handed_over;
  bool pending = false;
  const auto add = [](std::string& list, const std::string& one) { list += (list.empty() ? "" : ", ") + one; };
  for (const auto& g : s.gateways().gateways()) {
    if (g.class_() != s.row().gateway_class() || !g.counts()) continue;
    ++counting;
    const auto refused = std::find_if(g.refused().begin(), g.refused().end(), [&](const auto& r) {
      return r.revision() >= s.row().route_version() &&
             (r.every() || r.tunnel_uid() == s.row().uid() ||
              (r.tunnel_uid().empty() &&
               std::any_of(s.row().rules().begin(), s.row().rules().end(), [&](const auto& rule) {
                 return r.connector() == s.project() + "/" + rule.connector();
               })));
    });
    if (refused != g.refused().end() && refused->pending()) {
      pending = true;
      add(missing, fmt::format("{} ({})", g.gateway(), refused->message()));
    } else if (refused != g.refused().end()) {
      refusal = fmt::format("{}: {}", g.gateway(), refused->message());
    } else if (g.acknowledged() >= needed) {
      ++done;
      if (g.handed_over()) add(handed_over, g.gateway());
    } else {
      add(missing, g.gateway());
    }
  }
  if (!refusal.empty()) return {gateway_verdict::what::rejected, refusal};
  if (counting == 0) {
    const auto away = absent_gateways(s.gateways().gateways(), s.row().gateway_class());
    const bool ever = std::any_of(s.gateways().gateways().begin(), s.gateways().gateways().end(), [&](const auto& g) {
      return g.class_() == s.row().gateway_class() && g.acknowledged() > 0;
    });
    if (ever) return {gateway_verdict::what::pending, fmt::format("waiting for gateways: {}", away)};
    return {gateway_verdict::what::none, fmt::format("no gateway of this class has acknowledged{}{}", away.empty() ? "" : ": ", away)};
  }
  if (done < counting)
    return {pending ? gateway_verdict::what::pending : gateway_verdict::what::waiting,
            fmt::format("{}/{} gateways; waiting for {}", done, counting, missing)};
  return {gateway_verdict::what::acknowledged,
          fmt::format("{}/{} gateways, revision {}{}", done, counting, needed & 0xffffffff,
                      handed_over.empty() ? "" : "; handed over: " + handed_over)};
}

void decide_programmed(transition& t, moment now) {
  const state& s = t.next;
  if (!is_true(s.row().conditions(), "Accepted")) return;
  if (s.row().programmed_generation() == s.row().generation()) {
    if (is_true(s.row().conditions(), "Programmed")) return;
    state after = s;  // latched, whatever a rival has made of the words
    set_condition(*after.mutable_row()->mutable_conditions(), "Programmed", status_true, "Programmed",
                  "the gateways have acknowledged this generation", s.row().generation(), now.wall_ms);
    auto save = save_of("tunnel_status", row_write::op::update, after.row(), s.row().version(), false);
    return save_with(t, std::move(save), std::move(after));
  }
  if (!s.gateways_heard() || !s.gateways().settled()) return;
  const auto needed = revision_to_program(s);
  if (!needed) return;
  const auto verdict = ask_gateways(s, *needed);
  if (verdict.is == gateway_verdict::what::waiting) return;
  state after = s;
  auto& row = *after.mutable_row();
  switch (verdict.is) {
    case gateway_verdict::what::acknowledged:
      row.set_programmed_generation(row.generation());
      set_condition(*row.mutable_conditions(), "Programmed", status_true, "Programmed", verdict.message,
                    row.generation(), now.wall_ms);
      for (const auto& name : current_connectors_of(row)) {
        auto& c = (*after.mutable_connectors())[name];
        c.set_push_owed(row.enabled());  // who lets go has nothing to be reached for
        c.set_push_told_at_ms(0);
      }
      break;
    case gateway_verdict::what::pending:  // nobody but who configures that gateway can do something about it
      if (!set_condition(*row.mutable_conditions(), "Programmed", status_false, "Pending", verdict.message,
                         row.generation(), now.wall_ms))
        return;
      break;
    case gateway_verdict::what::rejected:
      if (!set_condition(*row.mutable_conditions(), "Programmed", status_false, "Rejected",
                         verdict.message, row.generation(), now.wall_ms))
        return;
      break;
    default:
      if (!set_condition(*row.mutable_conditions(), "Programmed", status_false, "NoGateway",
                         verdict.message, row.generation(), now.wall_ms))
        return;
  }
  *row.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
  auto save = save_of("tunnel_status", row_write::op::update, row, s.row().version(), false);
  save_with(t, std::move(save), std::move(after));
}

/// Once the new generation runs everywhere, agents let go of those before it.
void retire_previous(transition& t, moment now) {
  const auto& row = t.next.row();
  if (t.save || row.programmed_generation() != row.generation()) return;
  if (row.previous_generation() == 0 && row.retiring().empty()) return;
  const std::set<std::string> names{row.retiring().begin(), row.retiring().end()};
  if (!owe_detachments(t, names, row.generation(), now)) return;
  state after = t.next;
  after.mutable_row()->set_previous_generation(0);
  after.mutable_row()->clear_previous_rules();
  after.mutable_row()->clear_retiring();
  for (auto& [name, c] : *after.mutable_connectors()) {
    c.set_detached(false);
    c.set_detach_told_at_ms(0);
  }
  auto save = save_of("tunnel_status", row_write::op::update, after.row(), t.next.row().version(), false);
  save_with(t, std::move(save), std::move(after));
}

/// Gateways stop routing, then agents let go, then row, claims and attachments go in one transaction.
void delete_on(transition& t, moment now) {
  state& s = t.next;
  if (s.delete_seen_at_ms() == 0) {
    s.set_delete_seen_at_ms(now.steady_ms);
    for (auto& [name, c] : *s.mutable_connectors()) {
      c.set_detached(false);
      c.set_detach_told_at_ms(0);
    }
  }
  if (s.detach_since_ms() == 0) {
    if (!s.gateways_heard() || !s.gateways().settled()) {
      want_wake(t, now.steady_ms + ms(limits::repeat_after));
      return;
    }
    const auto patience = s.delete_seen_at_ms() + ms(limits::deletion_gateway_wait);
    for (const auto& g : s.gateways().gateways()) {
      if (g.class_() != s.row().gateway_class() || g.acknowledged() >= s.row().route_version()) continue;
      const bool refused_it = std::any_of(g.refused().begin(), g.refused().end(), [&](const auto& r) {
        return r.tunnel_uid() == s.row().uid();
      });
      if (g.stalled() || refused_it) continue;
      if (now.steady_ms < patience) {
        want_wake(t, patience);
        return;
      }
    }
    s.set_detach_since_ms(std::max<std::int64_t>(now.steady_ms, 1));
  }
  const auto deadline = s.detach_since_ms() + ms(limits::deletion_agent_wait);
  if (!owe_detachments(t, connectors_of(s.row()), 0, now) && now.steady_ms < deadline) {
    want_wake(t, deadline);
    return;
  }
  state after = s;
  auto save = save_of("tunnel_erase", row_write::op::erase, s.row(), s.row().version(), true);
  claim_change claims{s.project(), s.name(), s.row().uid(), {}, {}};
  for (const auto& h : s.row().hostnames()) claims.drop.push_back(h);
  save.claims = std::move(claims);
  after.clear_row();
  after.clear_connectors();
  after.set_delete_seen_at_ms(0);
  after.set_detach_since_ms(0);
  t.announce.clear();
  save_with(t, std::move(save), std::move(after));
}

bool unjudged(const state& s);
void adopt_rival(transition& t, moment now);
bool owes_claims(const state& s);
void claim_again(transition& t, moment now);

/// Derives what is owed and does the first of it; a save ends the step, and Saved comes back here.
void settle(transition& t, moment now) {
  if (!t.next.known()) {  // the shell reads the row again at the wake
    if (t.next.retry_at_ms() != 0) want_wake(t, t.next.retry_at_ms());
    return;
  }
  if (now.steady_ms < t.next.retry_at_ms()) return want_wake(t, t.next.retry_at_ms());
  if (unjudged(t.next)) return adopt_rival(t, now);
  if (owes_claims(t.next)) return claim_again(t, now);
  while (t.next.pending_size() > 0) {
    const auto p = t.next.pending(0);
    auto done = decide(t.next, p, now);
    if (done.save) {
      state after = t.next;
      drop_first_pending(after);
      const bool fresh = !exists(t.next);
      *after.mutable_row() = std::move(done.row);
      if (fresh) after.clear_connectors();
      else if (after.row().generation() != t.next.row().generation()) forget_told(after);
      owe_answer(t, p, {});
      save_with(t, std::move(*done.save), std::move(after));
      return;
    }
    owe_answer(t, p, *done.reply);
    drop_first_pending(t.next);
  }
  if (!exists(t.next)) {
    t.gone = true;
    return;
  }
  if (deleting(t.next)) return delete_on(t, now);
  // What is switched off is attached nowhere: once no gateway routes to it, agents let go and end its connections.
  if (t.next.row().enabled()) owe_attachments(t, now);
  owe_pushes(t, now);
  decide_programmed(t, now);
  if (!t.save) retire_previous(t, now);
  // A save answers nobody here, so what was said beside it may be said at once after it.
}

// ---- events ----

void hear_attachment(state& s, const v1::AttachmentState& a) {
  if (!exists(s)) return;
  if (!a.unknown() && a.tunnel_uid() != s.row().uid()) return;
  auto& c = (*s.mutable_connectors())[a.connector()];
  if (a.gone()) {
    // One that answers an earlier, smaller wish must not pass for the present one.
    const auto wanted = deleting(s) ? 0 : s.row().generation() - 1;
    if (a.unknown() || a.tunnel_generation() == 0 || (wanted != 0 && a.tunnel_generation() >= wanted))
      c.set_detached(true);
    return;
  }
  if (!a.unknown() && a.tunnel_generation() != s.row().generation()) return;
  *c.mutable_state() = a;
  c.mutable_state()->set_tunnel_uid(s.row().uid());
  c.set_heard(true);
  if (c.push_owed() && c.push_told_at_ms() != 0) c.set_push_owed(false);
}

void connector_appeared(state& s, const std::string& name) {
  auto it = s.mutable_connectors()->find(name);
  if (it == s.mutable_connectors()->end()) return;
  it->second.set_heard(false);
  it->second.set_told_at_ms(0);
}

/// A spec that nobody has judged yet: a rival wrote it (the trigger has raised its generation), or what was said of it
/// is no longer there.
bool unjudged(const state& s) {
  return exists(s) && !deleting(s) &&
         (s.row().observed_generation() < s.row().generation() || find_condition(s.row().conditions(), "Accepted") == nullptr);
}

/// Checks and claims what a rival wrote, as if it had been asked for.
void adopt_rival(transition& t, moment now) {
  state after = t.next;
  auto& row = *after.mutable_row();
  if (after.has_adopted_from() &&
      after.adopted_from().programmed_generation() == after.adopted_from().generation()) {
    row.set_previous_generation(after.adopted_from().generation());
    *row.mutable_previous_rules() = after.adopted_from().rules();
  }
  if (after.has_adopted_from()) retire(row, after.adopted_from());
  if (!row.enabled()) retire(row, row);  // whatever its agents hold of it, also from before anybody looked
  after.clear_adopted_from();
  after.clear_claim_refused();
  forget_told(after);
  set_condition(*row.mutable_conditions(), "Programmed", status_unknown, "Pending",
                "waiting for gateways", row.generation(), now.wall_ms);
  *row.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
  std::optional<claim_change> claims;
  auto wrong = check_spec(spec_of(row));
  if (!wrong) wrong = check_row(row);
  if (!wrong && !t.next.claim_refused().empty()) wrong = violation{"hostnames", t.next.claim_refused()};
  if (wrong) {
    row.set_observed_generation(row.generation());
    set_condition(*row.mutable_conditions(), "Accepted", status_false, "Invalid",
                  wrong->field + ": " + wrong->message, row.generation(), now.wall_ms);
    set_condition(*row.mutable_conditions(), "Programmed", status_false, "Pending",
                  "not before the spec is valid: " + wrong->field + ": " + wrong->message, row.generation(), now.wall_ms);
  } else {
    accept(row, now.wall_ms);
    v1::TunnelRow claimed;
    *claimed.mutable_hostnames() = t.next.claimed();
    claims = claims_between(row, claimed);
  }
  auto save = save_of("tunnel_spec", row_write::op::update, row, t.next.row().version(), true);
  save.claims = std::move(claims);
  save_with(t, std::move(save), std::move(after));
}

/// The claims of an accepted tunnel are its host names: a rival deleted one, or inserted another.
bool owes_claims(const state& s) {
  if (!exists(s) || deleting(s) || !is_true(s.row().conditions(), "Accepted")) return false;
  const auto& wanted = s.row().hostnames();
  const auto& held = s.claimed();
  return std::set<std::string>{wanted.begin(), wanted.end()} != std::set<std::string>{held.begin(), held.end()};
}

/// A name that somebody else has claimed meanwhile is his: then the spec no longer holds, and says so.
void claim_again(transition& t, moment now) {
  state after = t.next;
  auto& row = *after.mutable_row();
  after.clear_claim_refused();
  *row.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
  std::optional<claim_change> claims;
  if (!t.next.claim_refused().empty()) {
    set_condition(*row.mutable_conditions(), "Accepted", status_false, "Invalid",
                  "hostnames: " + t.next.claim_refused(), row.generation(), now.wall_ms);
  } else {
    v1::TunnelRow claimed;
    *claimed.mutable_hostnames() = t.next.claimed();
    claims = claims_between(row, claimed);
  }
  auto save = save_of("tunnel_claims", row_write::op::update, row, t.next.row().version(), true);
  save.claims = std::move(claims);
  save_with(t, std::move(save), std::move(after));
}

void hear_reloaded(state& s, const event& e, moment now) {
  const auto& r = e.reloaded();
  const bool had = exists(s);
  const v1::TunnelRow before = s.row();
  s.set_known(true);
  if (r.has_row()) {
    *s.mutable_row() = r.row().tunnel();
    if (had && before.uid() != s.row().uid()) s.clear_connectors();
  } else {
    s.clear_row();
    s.clear_connectors();
  }
  if (r.conflict()) {
    if (s.conflicts() == 0) s.set_conflict_since_ms(now.steady_ms);
    retry_after_conflict(s, now, e.random());
  }
  s.clear_claimed();
  for (const auto& child : r.children())
    if (child.has_hostname_claim() && child.hostname_claim().tunnel_uid() == s.row().uid())
      s.add_claimed(child.hostname_claim().hostname());
  // A row that a rival only touched stays as it is; of one whose spec it changed, what was live stays routed.
  const bool same = had && r.has_row() && before.uid() == s.row().uid();
  if (!same) s.clear_adopted_from();
  else if (before.generation() < s.row().generation() && !s.has_adopted_from())
    *s.mutable_adopted_from() = before;
  // A rival touched something that hangs off the row: what connectors said of it may be over.
  if (same && r.rival() && before.version() == s.row().version())
    for (auto& [name, c] : *s.mutable_connectors()) {
      c.set_heard(false);
      c.set_told_at_ms(0);
    }
}

void hear_failed(transition& t, const event& e, moment now) {
  state& s = t.next;
  const auto& f = e.failed();
  if (f.code() == "replayed") {  // the shell has given the first answer; the row may have moved since
    return drop_first_pending(s);
  }
  const auto code = errc_from(f.code()).value_or(errc::internal);
  // What a rival did is settled before commands are looked at: its refusal answers none of them.
  const bool for_command = code == errc::unavailable || !(unjudged(s) || owes_claims(s));
  const bool answered = s.pending_size() > 0 && for_command;
  if (answered) refuse_pending(t, f);
  else if (code == errc::already_exists) s.set_claim_refused(f.message());
  // A refusal is its caller's alone: whoever waits behind it has nothing to do with it, and the store is there.
  if (answered && code != errc::unavailable) forget_retries(s);
  else retry_after_failure(s, now, e.random());
}

}  // namespace

state initial(partition_id partition, epoch_t epoch, std::string project, std::string name) {
  state s;
  s.set_partition(partition);
  s.set_epoch(epoch);
  s.set_project(std::move(project));
  s.set_name(std::move(name));
  return s;
}

std::string etag_of(const v1::TunnelRow& row) { return fmt::format("{}-{}", row.uid(), row.generation()); }

bool waits_for_gateways(const state& s) {
  return exists(s) && (deleting(s) || s.row().programmed_generation() != s.row().generation());
}

void adopt(state& next, const saved& written) {
  for (const auto& row : written.rows)
    if (row.has_tunnel() && next.has_row()) {
      *next.mutable_row() = row.tunnel();
      if (is_true(row.tunnel().conditions(), "Accepted")) *next.mutable_claimed() = row.tunnel().hostnames();
    }
}

transition step(const state& s, const event& e, moment now) {
  transition t;
  t.next = s;
  switch (e.event_case()) {
    case event::kCommand: queue_command(t, e, now); break;
    case event::kAttachment: hear_attachment(t.next, e.attachment()); break;
    case event::kGateways:
      *t.next.mutable_gateways() = e.gateways();
      t.next.set_gateways_heard(true);
      break;
    case event::kReloaded: hear_reloaded(t.next, e, now); break;
    case event::kSaved: forget_retries(t.next); break;
    case event::kFailed: hear_failed(t, e, now); break;
    case event::kConnectorAppeared: connector_appeared(t.next, e.connector_appeared().connector()); break;
    case event::kWake:
    case event::EVENT_NOT_SET: break;
  }
  drop_expired(t, now);
  settle(t, now);
  return t;
}

}  // namespace warren::tunnel
