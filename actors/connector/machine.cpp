// actors/connector/machine.cpp -- decisions of one connector. No CAF, no I/O, no clock, no randomness.
//
// Each event first changes what is known and wished (hear_*); settle() then saves what the rows do not say yet,
// or, when there is nothing to save, says what the stored rows owe. So nothing is said that is not stored, and a
// conflict loses no wish.
#include "actors/connector/machine.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "actors/connector/attachments.hpp"
#include "actors/connector/commands.hpp"
#include "actors/connector/liveness.hpp"
#include "actors/connector/rows.hpp"
#include "actors/connector/session.hpp"
#include "actors/connector/spec.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"

namespace warren::connector {

namespace {

void hear_push(state& s, const v1::PushAddressing& p, moment now) {
  owe_state(s, p.tunnel(), p.tunnel_uid(), p.tunnel_generation());
  if (!exists(s)) return;
  auto it = s.attachments().find(attachment_key(p.tunnel_uid(), p.tunnel_generation()));
  if (it != s.attachments().end() && !attached(it->second, s.row())) s.set_set_told_ms(0);  // say it again, now
  if (!heard_since_lease(s) || now.steady_ms > s.heard_ms() + std::max(wanted_interval(s), s.agent_interval_ms())) want_report(s, now);
}

void hear_class(state& s, const v1::ClassState& c, moment now) {
  if (exists(s) && c.name() != s.row().class_()) return;
  if (s.class_heard() && same(s.class_(), c)) return;
  s.set_class_heard(true);
  *s.mutable_class_() = c;
  s.set_addressing_changed(true);
  // What was refused may be allowed now; only the agent knows it, when nobody has heard it since the takeover.
  if (exists(s) && !s.row().addressing_error().empty() && !is_of_row(s.row().addressing_error()) && !s.has_addressing())
    want_report(s, now);
}

/// A row that this owner sees for the first time: everything that only a former owner knew starts anew.
void begin_life(state& s, const event& e, moment now) {
  s.mutable_targets()->clear();
  s.clear_addressing();
  s.clear_changes();
  s.clear_detaching();
  s.set_addressing_changed(true);
  s.set_heard_ms(0);
  // Of one that had this name before, which was deleted while it slept.
  if (exists(s) && now.wall_ms - (now.steady_ms - s.heard_before_ms()) < to_ms(s.row().created_at())) s.set_heard_before_ms(0);
  s.set_wake_due_ms(0);
  s.set_grace_until_ms(0);
  s.set_agent_interval_ms(0);
  s.set_said_bye(false);
  s.set_proved_addresses("");
  s.set_settled_digest("");
  s.set_held_generation(s.row().attached_generation());
  s.set_set_told_generation(0);
  s.set_set_told_ms(0);
  s.set_lease_from_ms(now.steady_ms);
  if (s.row().online()) {
    s.clear_silence();
    // In bulk after a takeover: spread, unless the partition calls by name.
    begin_roll_call(s, now, static_cast<std::int64_t>(e.random() % static_cast<std::uint64_t>(ms(limits::repeat_after))));
  } else {
    const auto* ready = find_condition(s.row().conditions(), "Ready");
    const bool told = ready != nullptr && (ready->message() == lease_expired || ready->message() == disconnected);
    s.set_silence(told ? ready->message() : std::string{lease_not_renewed});
  }
}

void hear_reloaded(state& s, const event& e, moment now) {
  const auto& r = e.reloaded();
  const bool first = !s.known(), had = exists(s);
  const v1::ConnectorRow before = s.row();
  s.set_known(true);
  const auto held = s.attachments();
  s.mutable_attachments()->clear();
  s.clear_row();
  if (r.has_row() && r.row().has_connector()) {
    *s.mutable_row() = r.row().connector();
    for (const auto& child : r.children())
      if (child.has_attachment()) {
        const auto& a = child.attachment();
        auto& kept = (*s.mutable_attachments())[attachment_key(a.tunnel_uid(), a.tunnel_generation())];
        kept = a;
        if (!sound(a)) kept.set_attachment_generation(never_attached);  // whoever wrote it, it goes like a rival's
      }
    const bool same_entity = had && before.uid() == s.row().uid();
    if (!same_entity) {
      if (!first) s.set_heard_before_ms(0);
      begin_life(s, e, now);
      if (!first) s.set_appeared(true);
    } else {
      // Only this actor writes the row through the store: any other spec, addressing or target is a rival's.
      if (before.generation() == s.row().generation() && !same_spec(before, s.row()))
        s.set_spec_changed_by_rival(true);
      if (before.session() != s.row().session()) s.set_held_generation(s.row().attached_generation());
      s.set_addressing_changed(true);
      s.set_targets_changed(true);
      s.set_settled_digest("");
      // What hung off a tunnel that is gone, or was deleted around us: the agent lets go of it, and a tunnel that
      // still wants it asks again.
      for (const auto& [key, a] : held)
        if (!s.attachments().contains(key)) {
          drop_targets(s, key, a);
          s.set_set_changed_by_rival(true);
          owe_state(s, a.tunnel(), a.tunnel_uid(), a.tunnel_generation());
        }
    }
    for (const auto& [key, a] : s.attachments())
      if (a.attachment_generation() == never_attached) s.set_set_changed_by_rival(true);
  }
  if (r.conflict()) {
    retry_after_conflict(s, now, e.random());
  } else if (first) {
    s.set_failures(0);
    s.set_retry_at_ms(0);
  }
}

void hear_failed(transition& t, const event& e, moment now) {
  state& s = t.next;
  const auto& f = e.failed();
  const auto code = errc_from(f.code()).value_or(errc::internal);
  const bool for_command = s.known() && s.saving() == "command" && s.pending_size() > 0;
  if (f.code() == "replayed") {  // the shell has given the first answer
    if (for_command) drop_first_pending(s);
    return;
  }
  while (!s.known() && s.pending_size() > 0) {  // nobody can say when it will be read: callers try again
    owe_answer(t, s.pending(0), error_reply(errc::unavailable, "", f.message()));
    drop_first_pending(s);
  }
  if (for_command) {
    refuse_pending(t, f);
    // A refusal is its caller's alone: whoever waits behind it has nothing to do with it, and the store is there.
    if (code != errc::unavailable) return forget_retries(s);
  } else if (code != errc::unavailable && s.saving() == "status" && s.wishes_size() > 0) {
    // One of them will not be stored, whatever is tried (its tunnel has gone): its tunnel asks again if it has to.
    s.mutable_wishes()->erase(s.wishes().begin());
  } else if (code != errc::unavailable && s.has_welcome() && !s.welcome().stored()) {
    refuse_welcome(t);
  }
  retry_after_failure(s, now, e.random());
}

void owe_class(transition& t, moment now) {
  state& s = t.next;
  if (!exists(s) || (s.class_heard() && s.class_().name() == s.row().class_())) return;
  const auto due = s.class_asked_ms() == 0 ? now.steady_ms : s.class_asked_ms() + ms(limits::repeat_after);
  if (now.steady_ms >= due) {
    t.announce.push_back(class_asked{s.row().class_()});
    s.set_class_asked_ms(std::max<std::int64_t>(now.steady_ms, 1));
  }
  want_wake(t, s.class_asked_ms() + ms(limits::repeat_after));
}

/// Nothing there: whoever asked hears so.
void answer_without_row(state& s) {
  answer_wishes(s);
  s.clear_welcome();
  s.clear_challenges();
  s.set_suspicion(0);
}

void settle(transition& t, moment now) {
  state& s = t.next;
  if (!s.known()) {
    // The first read failed, or is under way.
    if (s.retry_at_ms() == 0) return;
    if (now.steady_ms < s.retry_at_ms()) return want_wake(t, s.retry_at_ms());
    s.set_retry_at_ms(0);
    t.announce.push_back(load_asked{});
    return;
  }
  pass_time(s, now);
  if (now.steady_ms < s.retry_at_ms()) {
    want_wake(t, s.retry_at_ms());
  } else if (!t.announce.empty() || !t.replies.empty()) {
    want_wake(t, now.steady_ms);  // what has just been said must not be lost to a conflict
  } else {
    if (s.pending_size() > 0) {
      auto reply = do_command(t, now);
      if (t.save) return;
      owe_answer(t, s.pending(0), *reply);
      drop_first_pending(s);
      want_wake(t, now.steady_ms);
    } else if (exists(s)) {
      reconcile(t, now);
      if (t.save) return;
    }
  }
  state& n = t.next;
  if (!exists(n)) answer_without_row(n);
  owe_class(t, now);
  if (n.has_welcome() && n.welcome().stored()) tell_set_with_hello(n, now);
  owe_sessions(t);
  if (n.appeared() && exists(n)) t.announce.push_back(appeared{});
  n.set_appeared(false);
  owe_silence(t, now);
  if (exists(n)) {
    owe_set(t, now);
    owe_report(t, now);
    owe_dials(t, now);
    owe_interval(t, now);
    arm_liveness(t, now);
  }
  owe_tunnels(t);
  t.gone = !exists(n) && n.pending_size() == 0;
}

}  // namespace

state initial(partition_id partition, epoch_t epoch, std::int64_t incarnation, std::int64_t heartbeat_interval_ms,
              std::string project, std::string name) {
  state s;
  s.set_partition(partition);
  s.set_epoch(epoch);
  s.set_incarnation(incarnation);
  s.set_heartbeat_interval_ms(heartbeat_interval_ms);
  s.set_project(std::move(project));
  s.set_name(std::move(name));
  return s;
}

std::string attachment_key(std::string_view tunnel_uid, std::int64_t tunnel_generation) {
  return fmt::format("{}/{}", tunnel_uid, tunnel_generation);
}

std::string etag_of(const v1::ConnectorRow& row) { return fmt::format("{}-{}", row.uid(), row.generation()); }

void adopt(state& next, const saved& written) {
  for (const auto& row : written.rows) {
    if (row.has_connector() && next.has_row()) *next.mutable_row() = row.connector();
    if (!row.has_attachment()) continue;
    auto it = next.mutable_attachments()->find(
        attachment_key(row.attachment().tunnel_uid(), row.attachment().tunnel_generation()));
    if (it != next.mutable_attachments()->end()) it->second = row.attachment();
  }
}

void note(state& s, const v1::AttachTunnel& a, moment) { hear_attach(s, a); }
void note(state& s, const v1::DetachTunnel& d, moment) { hear_detach(s, d); }
void note(state& s, const v1::PushAddressing& p, moment now) { hear_push(s, p, now); }

transition step(state before, const event& e, moment now) {
  transition t;
  t.next = std::move(before);
  state& s = t.next;
  notice_delay(s, now);
  hear_load(s, e.loaded_interval_ms());
  switch (e.event_case()) {
    case event::kCommand: queue_command(t, e, now); break;
    case event::kHello: hear_hello(t, e.hello(), e, now); break;
    case event::kHeartbeat: hear_heartbeat(t, e.heartbeat(), now); break;
    case event::kAgentEvent: hear_agent_event(t, e.agent_event(), now); break;
    case event::kCommandReply: hear_command_reply(s, e.command_reply(), now); break;
    case event::kAttach: hear_attach(s, e.attach()); break;
    case event::kDetach: hear_detach(s, e.detach()); break;
    case event::kPush: hear_push(s, e.push(), now); break;
    case event::kClass: hear_class(s, e.class_(), now); break;
    case event::kReloaded: hear_reloaded(s, e, now); break;
    case event::kSaved:
      forget_retries(s);
      s.clear_saving();
      break;
    case event::kFailed: hear_failed(t, e, now); break;
    case event::kDisconnected: hear_disconnected(s); break;
    case event::kMassSilence: hear_mass_silence(s, e.mass_silence(), now); break;
    case event::kBus: hear_bus(s, e.bus(), now); break;
    case event::kRollCall: hear_roll_call(s, now); break;
    case event::kDialed: hear_dialed(s, e.dialed(), now); break;
    case event::kWake:
    case event::EVENT_NOT_SET: break;
  }
  drop_expired(t, now);
  settle(t, now);
  if (!t.save) t.next.set_wake_due_ms(t.wake_at_ms);
  return t;
}

}  // namespace warren::connector
