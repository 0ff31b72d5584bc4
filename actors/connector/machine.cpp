// actors/connector/machine.cpp -- decisions of one connector. No CAF, no I/O, no clock, no randomness.
//
// Each event first changes what is known and wished (hear_*); settle() then saves what the rows do not say yet,
// or, when there is nothing to save, says what the stored rows owe. So nothing is said that is not stored, and a
// conflict loses no wish.
#include "actors/connector/machine.hpp"

#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include "actors/connector/spec.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::connector {

namespace {

constexpr std::int64_t ms(auto duration) { return std::chrono::duration_cast<millis>(duration).count(); }

template <class Message> bool same(const Message& a, const Message& b) {
  return a.SerializeAsString() == b.SerializeAsString();  // our messages without maps: one spelling each
}

template <class Repeated, class Predicate> void drop_if(Repeated& all, Predicate drop) {
  all.erase(std::remove_if(all.begin(), all.end(), drop), all.end());
}

v1::Reply error_reply(errc code, std::string field, std::string message) {
  v1::Reply r;
  r.set_code(std::string{to_string(code)});
  r.set_field(std::move(field));
  r.set_message(std::move(message));
  return r;
}

bool exists(const state& s) { return s.has_row(); }

void want_wake(transition& t, std::int64_t at_ms) {
  if (t.wake_at_ms == 0 || at_ms < t.wake_at_ms) t.wake_at_ms = at_ms;
}

std::string addresses_of(const v1::ConnectorRow& row) {
  std::string out;
  for (const auto& a : row.addresses()) out += a + ' ';
  return out;
}

bool attached(const v1::AttachmentRow& a, const v1::ConnectorRow& row) {
  return a.attachment_generation() <= row.attached_generation();
}

busv1::Attachment attachment_of(const v1::AttachmentRow& a) {
  busv1::Attachment out;
  out.set_tunnel(a.tunnel());
  out.set_tunnel_uid(a.tunnel_uid());
  out.set_tunnel_generation(a.tunnel_generation());
  *out.mutable_rules() = a.rules();
  return out;
}

void fill_set(busv1::AttachmentSet& set, const state& s) {
  set.set_generation(s.row().attachment_generation());
  std::map<std::string, const v1::AttachmentRow*> sorted;  // the state's map has no order
  for (const auto& [key, a] : s.attachments()) sorted[key] = &a;
  for (const auto& [key, a] : sorted) *set.add_attachments() = attachment_of(*a);
}

busv1::AgentCommand command_for(const state& s, std::int64_t session, std::int64_t id) {
  busv1::AgentCommand c;
  c.set_version(1);
  c.set_incarnation(s.incarnation());
  c.set_epoch(s.epoch());
  c.set_session(session);
  c.set_command_id(id);
  return c;
}

/// A command to the current session.
busv1::AgentCommand next_command(state& s) {
  s.set_last_command_id(s.last_command_id() + 1);
  return command_for(s, s.row().session(), s.last_command_id());
}

void owe_state(state& s, const std::string& tunnel, const std::string& uid, std::int64_t generation) {
  for (const auto& o : s.owed())
    if (o.tunnel_uid() == uid && o.tunnel_generation() == generation) return;
  auto* o = s.add_owed();
  o->set_connector(s.name());
  o->set_tunnel(tunnel);
  o->set_tunnel_uid(uid);
  o->set_tunnel_generation(generation);
}

// ---- liveness ----

std::int64_t heard_from(const state& s) { return std::max(s.heard_ms(), s.lease_from_ms()); }
std::int64_t overdue_at(const state& s) { return s.heard_ms() + s.heartbeat_interval_ms() * 3 / 2; }
bool heard_since_lease(const state& s) { return s.heard_ms() != 0 && s.heard_ms() >= s.lease_from_ms(); }

/// No heartbeat where one was due. After a takeover or a cut, only the roll call can tell.
bool is_silent(const state& s, moment now) {
  if (s.bus_down() || !s.silence().empty()) return false;
  return s.call_unanswered() || (heard_since_lease(s) && now.steady_ms >= overdue_at(s));
}

void begin_roll_call(state& s, moment now, std::int64_t delay_ms) {
  s.set_roll_call(true);
  s.set_call_unanswered(false);
  s.set_report_first_ms(0);
  s.set_report_sent_ms(0);
  s.set_report_due_ms(now.steady_ms + delay_ms);
}

void want_report(state& s, moment now) {
  if (s.report_wanted()) return;
  s.set_report_wanted(true);
  s.set_report_first_ms(0);
  s.set_report_due_ms(now.steady_ms);
  if (s.report_sent_ms() + ms(limits::repeat_after) <= now.steady_ms) s.set_report_sent_ms(0);
}

void end_suspicion(state& s) {
  s.set_suspicion(0);
  s.set_suspicion_serial(0);
}

void suspect(state& s, moment now) {
  if (!exists(s) || !s.row().online() || s.suspicion() != 0 || s.bus_down() || !s.silence().empty()) return;
  if (s.suspected_ms() != 0 && now.steady_ms < s.suspected_ms() + s.heartbeat_interval_ms()) return;
  s.set_suspected_ms(now.steady_ms);
  if (!s.row().dialable()) return;  // a dial that fails would prove nothing: the lease decides
  s.set_suspicion(1);
  s.set_suspicion_serial(0);
}

void heard(state& s, moment now) {
  s.set_heard_ms(now.steady_ms);
  s.clear_silence();
  s.set_said_bye(false);
  s.set_roll_call(false);
  s.set_call_unanswered(false);
  end_suspicion(s);
}

/// What the clock alone decides.
void pass_time(state& s, moment now) {
  if (!exists(s)) return;
  if (s.roll_call() && s.report_first_ms() != 0 &&
      now.steady_ms >= s.report_first_ms() + ms(limits::roll_call_answer)) {
    s.set_roll_call(false);
    s.set_call_unanswered(s.silence().empty());
    suspect(s, now);
  }
  if (is_silent(s, now)) suspect(s, now);
  if (s.suspicion() == 2 && now.steady_ms >= s.dial_due_ms()) {
    s.set_suspicion(3);
    s.set_suspicion_serial(0);
  }
  if (s.suspicion_serial() != 0 && now.steady_ms >= s.dial_until_ms()) end_suspicion(s);
  if (s.silence().empty() && !s.bus_down() && !s.mass_silence() &&
      now.steady_ms > heard_from(s) + s.row().lease_duration_ms()) {
    s.set_silence(std::string{lease_expired});
    end_suspicion(s);
  }
}

void hear_dialed(state& s, const v1::Dialed& d, moment now) {
  if (d.serial() == 0) return;
  const bool answered = d.outcome() == "answered";
  if (d.serial() == s.proving_serial()) {
    s.set_proving_serial(0);
    if (answered && exists(s) && s.proved_addresses() == addresses_of(s.row())) s.set_proved_dialable(true);
  }
  if (d.serial() != s.suspicion_serial()) return;
  s.set_suspicion_serial(0);
  if (answered || (s.mass_silence() && d.outcome() != "refused")) return end_suspicion(s);
  if (s.suspicion() == 1) {
    s.set_suspicion(2);
    s.set_dial_due_ms(now.steady_ms + ms(limits::dial_again_after));
  } else if (s.suspicion() == 3) {
    end_suspicion(s);
    if (exists(s) && s.row().dialable()) s.set_silence(std::string{disconnected});
  }
}

// ---- what agents say ----

/// The agent says which set it holds. A lower number than before is believed when it comes twice: replies
/// and heartbeats may overtake each other by one.
void hear_held(state& s, std::int64_t generation) {
  if (generation >= s.held_generation()) {
    s.set_held_generation(generation);
    s.set_lower_seen(false);
  } else if (s.lower_seen() && s.lower_generation() == generation) {
    s.set_held_generation(generation);
    s.set_lower_seen(false);
    s.set_whole_set_wanted(true);
  } else {
    s.set_lower_seen(true);
    s.set_lower_generation(generation);
  }
}

std::string target_key(const busv1::TargetState& t) {
  return fmt::format("{}/{}", attachment_key(t.tunnel_uid(), t.tunnel_generation()), t.rule());
}

void hear_targets(state& s, const google::protobuf::RepeatedPtrField<busv1::TargetState>& targets) {
  for (const auto& target : targets) {
    auto it = s.attachments().find(attachment_key(target.tunnel_uid(), target.tunnel_generation()));
    if (it == s.attachments().end()) continue;
    const auto& rules = it->second.rules();
    if (std::none_of(rules.begin(), rules.end(), [&](const auto& r) { return r.index() == target.rule(); })) continue;
    (*s.mutable_targets())[target_key(target)] = target;
    s.set_targets_changed(true);
  }
}

void hear_report(state& s, const busv1::Report& r) {
  hear_held(s, r.attached_generation());
  if (r.has_addressing()) {
    *s.mutable_addressing() = r.addressing();
    s.set_addressing_changed(true);
  }
  if (r.full()) {
    for (auto& [key, target] : *s.mutable_targets()) {
      target.set_state("Unknown");
      target.clear_message();
    }
    // What a full report leaves out is unknown, also where only the row knows a state.
    for (const auto& [key, a] : s.attachments()) {
      if (a.target_state().empty() || a.target_state() == "Unknown") continue;
      for (const auto& rule : a.rules()) {
        auto& target = (*s.mutable_targets())[fmt::format("{}/{}", key, rule.index())];
        target.set_tunnel_uid(a.tunnel_uid());
        target.set_tunnel_generation(a.tunnel_generation());
        target.set_rule(rule.index());
        target.set_state("Unknown");
      }
    }
    s.set_targets_changed(true);
    s.set_settled_digest(s.asked_digest());
  }
  hear_targets(s, r.targets());
  s.set_report_wanted(false);
}

std::string digest_of(const state& s) {
  busv1::Addressing addressing;
  if (s.has_addressing()) {
    addressing = s.addressing();
  } else {
    addressing.set_home_relay(s.row().home_relay());
    *addressing.mutable_addresses() = s.row().addresses();
  }
  std::vector<busv1::TargetState> targets;
  for (const auto& [key, a] : s.attachments()) {
    busv1::TargetState target;
    target.set_tunnel_uid(a.tunnel_uid());
    target.set_tunnel_generation(a.tunnel_generation());
    target.set_state(a.target_state().empty() ? "Unknown" : a.target_state());
    targets.push_back(std::move(target));
  }
  return protocol::report_digest(addressing, targets);
}

enum class session_is { current, older, unknown };

session_is judge_session(const state& s, std::int64_t session, const std::string& token) {
  if (exists(s) && session > 0 && session < s.row().session()) return session_is::older;
  if (!exists(s) || session != s.row().session() || s.row().session_token_hash().empty() ||
      !protocol::equal_constant_time(protocol::sha256_hex(token), s.row().session_token_hash()))
    return session_is::unknown;
  // A newer hello is being stored: its agent speaks for the connector from now on.
  return s.has_welcome() && !s.welcome().stored() ? session_is::older : session_is::current;
}

/// Whether a message counts; one of another session is told so, at most once a second.
bool current_session(transition& t, std::int64_t session, const std::string& token, const std::string& reply_to,
                     moment now) {
  state& s = t.next;
  const auto is = judge_session(s, session, token);
  if (is == session_is::current) return true;
  if (s.older_told_ms() != 0 && now.steady_ms < s.older_told_ms() + ms(limits::repeat_after)) return false;
  s.set_older_told_ms(std::max<std::int64_t>(now.steady_ms, 1));
  auto command = command_for(s, session, 0);
  if (is == session_is::older) command.mutable_superseded()->set_message("a newer agent holds this connector's key");
  else command.mutable_hello_again();
  if (reply_to.empty()) t.announce.push_back(agent_command{std::move(command), false});
  else t.announce.push_back(agent_reply{reply_to, std::move(command)});
  return false;
}

bool sent_before_bye(const state& s, std::int64_t sequence) { return s.said_bye() && sequence <= s.bye_sequence(); }

void hear_heartbeat(transition& t, const v1::HeartbeatHeard& h, moment now) {
  state& s = t.next;
  const auto& beat = h.heartbeat();
  if (!current_session(t, beat.session(), beat.token(), h.reply_to(), now)) return;
  if (sent_before_bye(s, beat.sequence())) return;
  heard(s, now);
  hear_held(s, beat.attached_generation());
  if (beat.digest() == s.settled_digest()) return;
  if (beat.digest() == digest_of(s)) {
    s.set_settled_digest(beat.digest());
    return;
  }
  s.set_asked_digest(beat.digest());
  want_report(s, now);
}

void hear_agent_event(transition& t, const v1::AgentEventHeard& h, moment now) {
  state& s = t.next;
  const auto& e = h.event();
  if (!current_session(t, e.session(), e.token(), h.reply_to(), now)) return;
  if (sent_before_bye(s, e.sequence())) return;
  heard(s, now);
  if (e.event_case() == busv1::AgentEvent::kBye) {
    s.set_silence(std::string{disconnected});
    s.set_said_bye(true);
    s.set_bye_sequence(e.sequence());
  } else if (e.event_case() == busv1::AgentEvent::kReport) {
    if (e.sequence() != 0 && e.sequence() <= s.report_sequence()) return;
    s.set_report_sequence(e.sequence());
    hear_report(s, e.report());
  }
}

void hear_command_reply(state& s, const busv1::CommandReply& r, moment now) {
  if (judge_session(s, r.session(), r.token()) != session_is::current) return;
  if (r.error() == to_string(errc::superseded) || r.error() == "stale") return;
  if (s.said_bye()) return;
  heard(s, now);
  if (r.has_report()) {
    hear_report(s, r.report());
  } else {
    hear_held(s, r.attached_generation());
    hear_targets(s, r.targets());
  }
  if (s.set_command_id() == 0 || r.command_id() != s.set_command_id()) return;
  // It answers the last step, so nothing it said before counts; holding another set, it could not follow.
  s.set_held_generation(r.attached_generation());
  s.set_lower_seen(false);
  if (r.attached_generation() != s.set_told_generation()) s.set_whole_set_wanted(true);
}

busv1::HelloReply hello_error(errc code, std::string message, std::int64_t retry_after_ms) {
  busv1::HelloReply r;
  r.set_version(1);
  r.set_error(std::string{to_string(code)});
  r.set_message(std::move(message));
  r.set_retry_after_ms(retry_after_ms);
  return r;
}

/// Without a row or a key nobody can be let in; worth a try again only when an operator has acted.
constexpr std::int64_t stranger_retry_ms = 10'000;

void hear_hello(transition& t, const v1::HelloHeard& h, const event& e, moment now) {
  state& s = t.next;
  const auto& hello = h.hello();
  const auto answer = [&](busv1::HelloReply r) {
    if (!h.reply_to().empty()) t.announce.push_back(agent_reply{h.reply_to(), std::move(r)});
  };
  if (!s.known()) return answer(hello_error(errc::unavailable, "the connector is being read", ms(limits::repeat_after)));
  if (!exists(s)) return answer(hello_error(errc::not_found, "there is no such connector", stranger_retry_ms));
  if (s.row().public_key().empty())
    return answer(hello_error(errc::failed_precondition, "the connector is not enrolled", stranger_retry_ms));

  auto& challenges = *s.mutable_challenges();
  drop_if(challenges, [&](const auto& c) { return now.steady_ms > c.until_ms(); });
  if (hello.challenge().empty() && hello.signature().empty()) {
    drop_if(challenges, [&](const auto& c) { return c.nonce() == hello.nonce(); });
    if (challenges.size() >= limits::challenges_max) challenges.erase(challenges.begin());
    auto* c = challenges.Add();
    c->set_nonce(hello.nonce());
    c->set_challenge(e.fresh_challenge());
    c->set_until_ms(now.steady_ms + ms(limits::challenge_kept));
    busv1::HelloReply r;
    r.set_version(1);
    r.set_challenge(e.fresh_challenge());
    return answer(std::move(r));
  }
  const auto found = std::find_if(challenges.begin(), challenges.end(), [&](const auto& c) {
    return c.nonce() == hello.nonce() && protocol::equal_constant_time(c.challenge(), hello.challenge());
  });
  if (found == challenges.end())
    return answer(hello_error(errc::permission_denied, "the challenge is unknown or too old", ms(limits::repeat_after)));
  challenges.erase(found);  // one try each
  if (!protocol::ed25519_verify(s.row().public_key(),
                                protocol::hello_to_sign(s.project(), "connector", s.name(), hello), hello.signature()))
    return answer(hello_error(errc::permission_denied, "the signature does not fit the connector's key", stranger_retry_ms));

  if (s.has_welcome()) {
    auto overtaken = hello_error(errc::superseded, "a newer agent holds this connector's key", 0);
    if (!s.welcome().reply_to().empty()) t.announce.push_back(agent_reply{s.welcome().reply_to(), std::move(overtaken)});
  }
  auto& w = *s.mutable_welcome();
  w.Clear();
  w.set_reply_to(h.reply_to());
  w.set_token(e.fresh_token());
  w.set_agent_version(hello.agent_version());
  w.set_clock_skew_ms(hello.sent_at_ms() == 0 ? 0 : hello.sent_at_ms() - now.wall_ms);
  heard(s, now);
  s.set_bye_sequence(0);
  s.set_report_sequence(0);
  s.set_held_generation(hello.connector_uid() == s.row().uid() ? hello.attached_generation() : 0);
  s.set_lower_seen(false);
  s.set_whole_set_wanted(false);
  s.set_settled_digest("");
  s.mutable_targets()->clear();
  s.set_targets_changed(false);
  if (hello.has_addressing()) {
    *s.mutable_addressing() = hello.addressing();
    s.set_addressing_changed(true);
  }
}

// ---- what tunnels and the partition say ----

void hear_attach(state& s, const v1::AttachTunnel& a) {
  for (auto& w : *s.mutable_wishes())
    if (w.has_attach() && w.attach().tunnel_uid() == a.tunnel_uid() &&
        w.attach().tunnel_generation() == a.tunnel_generation()) {
      *w.mutable_attach() = a;
      return;
    }
  if (s.wishes_size() >= limits::attachment_wishes_max) return;  // it asks again
  *s.add_wishes()->mutable_attach() = a;
}

void hear_detach(state& s, const v1::DetachTunnel& d) {
  // What is to go need not be stored first.
  drop_if(*s.mutable_wishes(), [&](const auto& w) {
    if (w.has_detach())
      return w.detach().tunnel_uid() == d.tunnel_uid() && w.detach().below_generation() == d.below_generation();
    return w.attach().tunnel_uid() == d.tunnel_uid() &&
           (d.below_generation() == 0 || w.attach().tunnel_generation() < d.below_generation());
  });
  if (s.wishes_size() >= limits::attachment_wishes_max) return;
  *s.add_wishes()->mutable_detach() = d;
}

void hear_push(state& s, const v1::PushAddressing& p, moment now) {
  owe_state(s, p.tunnel(), p.tunnel_uid(), p.tunnel_generation());
  if (!exists(s)) return;
  auto it = s.attachments().find(attachment_key(p.tunnel_uid(), p.tunnel_generation()));
  if (it != s.attachments().end() && !attached(it->second, s.row())) s.set_set_told_ms(0);  // say it again, now
  if (!heard_since_lease(s) || now.steady_ms > s.heard_ms() + s.heartbeat_interval_ms()) want_report(s, now);
}

void hear_class(state& s, const v1::ClassState& c, moment now) {
  if (exists(s) && c.name() != s.row().class_()) return;
  if (s.class_heard() && same(s.class_(), c)) return;
  s.set_class_heard(true);
  *s.mutable_class_() = c;
  s.set_addressing_changed(true);
  // What was refused may be allowed now; only the agent knows it, when nobody has heard it since the takeover.
  if (exists(s) && !s.row().addressing_error().empty() && !s.has_addressing()) want_report(s, now);
}

void hear_command(transition& t, const event& e) {
  if (t.next.pending_size() >= static_cast<int>(limits::entity_pending_commands_max)) {
    v1::Reply r;
    r.set_code(std::string{to_string(errc::overloaded)});
    r.set_message("too many changes at once");
    t.replies.push_back({e.ticket(), std::move(r)});
    return;
  }
  auto* p = t.next.add_pending();
  p->set_ticket(e.ticket());
  *p->mutable_command() = e.command();
  p->set_fresh_uid(e.fresh_uid());
}

bool same_spec(const v1::ConnectorRow& a, const v1::ConnectorRow& b) {
  return a.class_() == b.class_() && a.lease_duration_ms() == b.lease_duration_ms() && a.public_key() == b.public_key();
}

/// A row that this owner sees for the first time: everything that only a former owner knew starts anew.
void begin_life(state& s, const event& e, moment now) {
  s.mutable_targets()->clear();
  s.clear_addressing();
  s.clear_changes();
  s.clear_detaching();
  s.set_addressing_changed(true);
  s.set_heard_ms(0);
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
    const bool told = ready != nullptr && ready->reason() == "ConnectorNotReady" && !ready->message().empty();
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
      if (child.has_attachment())
        (*s.mutable_attachments())[attachment_key(child.attachment().tunnel_uid(),
                                                  child.attachment().tunnel_generation())] = child.attachment();
    const bool same_entity = had && before.uid() == s.row().uid();
    if (!same_entity) {
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
          s.set_set_changed_by_rival(true);
          owe_state(s, a.tunnel(), a.tunnel_uid(), a.tunnel_generation());
        }
    }
  }
  if (r.conflict()) {
    s.set_conflicts(s.conflicts() + 1);
    s.set_retry_at_ms(now.steady_ms + backoff_ms(limits::conflict_retry_first, limits::conflict_retry_max,
                                                 s.conflicts(), e.random()));
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
    if (for_command) s.mutable_pending()->erase(s.pending().begin());
    return;
  }
  while (!s.known() && s.pending_size() > 0) {  // nobody can say when it will be read: callers try again
    t.replies.push_back({s.pending(0).ticket(), error_reply(errc::unavailable, "", f.message())});
    s.mutable_pending()->erase(s.pending().begin());
  }
  if (for_command) {
    v1::Reply r;
    r.set_code(f.code());
    r.set_field(f.field());
    r.set_message(f.message());
    t.replies.push_back({s.pending(0).ticket(), std::move(r)});
    s.mutable_pending()->erase(s.pending().begin());
  } else if (code != errc::unavailable && s.saving() == "status" && s.wishes_size() > 0) {
    // One of them will not be stored, whatever is tried (its tunnel has gone): its tunnel asks again if it has to.
    s.mutable_wishes()->erase(s.wishes().begin());
  } else if (code != errc::unavailable && s.has_welcome() && !s.welcome().stored()) {
    auto sorry = hello_error(errc::internal, "the session could not be stored", stranger_retry_ms);
    if (!s.welcome().reply_to().empty()) t.announce.push_back(agent_reply{s.welcome().reply_to(), std::move(sorry)});
    s.clear_welcome();
  }
  s.set_failures(s.failures() + 1);
  s.set_retry_at_ms(now.steady_ms + backoff_ms(limits::unavailable_retry_first, limits::unavailable_retry_max,
                                               s.failures(), e.random()));
}

// ---- commands of administrators ----

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

std::string json_of(v1::ConnectorRow row) {
  row.clear_session_token_hash();  // the audit trail is read by people
  std::string out;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  (void)google::protobuf::util::MessageToJsonString(row, &out, options);
  return out;
}

row_write write_of(row_write::op what, const v1::ConnectorRow& row, std::int64_t expected, bool routes) {
  row_write w;
  w.what = what;
  *w.row.mutable_connector() = row;
  w.expected = expected;
  w.routes = routes;
  return w;
}
row_write write_of(row_write::op what, const v1::AttachmentRow& row, std::int64_t expected) {
  row_write w;
  w.what = what;
  *w.row.mutable_attachment() = row;
  w.expected = expected;
  return w;
}

void begin_save(transition& t, save_request save, state after, std::string_view what) {
  t.next.set_saving(std::string{what});
  t.kept = std::move(t.next);
  t.next = std::move(after);
  t.next.set_saving(std::string{what});
  t.save = std::move(save);
}

void save_command(transition& t, row_write::op what, v1::ConnectorRow row, moment now) {
  state& s = t.next;
  const auto p = s.pending(0);
  const auto& caller = p.command().caller();
  *row.mutable_updated_at() = timestamp_from_ms(now.wall_ms);
  save_request save;
  save.write = what == row_write::op::erase ? "connector_erase" : "connector_spec";
  save.rows.push_back(write_of(what, row, s.row().version(), true));
  save.audit = audit_entry{p.command().project(), caller.method(),
                           fmt::format("projects/{}/connectors/{}", s.project(), s.name()), caller.principal(),
                           caller.remote(), caller.request_id(), exists(s) ? json_of(s.row()) : "",
                           what == row_write::op::erase ? "" : json_of(row)};
  if (!caller.request_id().empty())
    save.request = answered_request{p.command().project(), caller.method(), caller.request_id(), caller.digest()};

  state after = s;
  after.mutable_pending()->erase(after.pending().begin());
  if (what == row_write::op::erase) {
    for (const auto& [key, a] : s.attachments()) {
      save.rows.push_back(write_of(row_write::op::erase, a, a.version()));
      owe_state(after, a.tunnel(), a.tunnel_uid(), a.tunnel_generation());
    }
    if (!s.row().session_token_hash().empty()) {
      after.set_superseded_session(s.row().session());
      after.set_superseded_message("the connector was deleted");
    }
    after.clear_row();
    after.mutable_attachments()->clear();
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
  t.replies.push_back({p.ticket(), {}});
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

/// The first pending command: answered at once (and dropped from the queue), or a save that answers.
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
    default: return error_reply(errc::invalid, "command", "not a command for a connector");
  }
}

// ---- from what is known and wished to the rows ----

struct plan {
  v1::ConnectorRow row;
  std::map<std::string, row_write> children;  // by attachment key
};

/// The set moves on by one. A number of another incarnation never meets one of ours.
std::int64_t next_generation(const state& s) {
  return std::max(s.row().attachment_generation(), s.incarnation() << 32) + 1;
}

/// Takes as many wishes of one kind as fit into one step of the set; those that the rows fulfil already are
/// done. Works on `after`, what is to be stored goes into `p`.
void plan_wishes(const state& s, state& after, plan& p) {
  v1::SetChange change;
  change.set_from_generation(s.row().attachment_generation());
  change.set_generation(next_generation(s));
  int done = 0;
  for (const auto& w : s.wishes()) {
    if (done >= limits::attachment_batch) break;
    if (w.has_attach()) {
      if (change.detached_size() > 0) break;
      const auto& a = w.attach();
      const auto key = attachment_key(a.tunnel_uid(), a.tunnel_generation());
      owe_state(after, a.tunnel(), a.tunnel_uid(), a.tunnel_generation());
      ++done;
      auto it = s.attachments().find(key);
      v1::AttachmentRow row;
      if (it != s.attachments().end()) row = it->second;
      row.set_partition(s.partition());
      row.set_project(s.project());
      row.set_connector(s.name());
      row.set_tunnel_uid(a.tunnel_uid());
      row.set_tunnel_generation(a.tunnel_generation());
      row.set_tunnel(a.tunnel());
      *row.mutable_rules() = a.rules();
      if (it != s.attachments().end() && same(row, it->second)) continue;
      row.set_attachment_generation(change.generation());
      row.set_target_state("Unknown");
      row.clear_target_message();
      *change.add_attached() = attachment_of(row);
      (*after.mutable_attachments())[key] = row;
      p.children[key] = it == s.attachments().end() ? write_of(row_write::op::insert, row, 0)
                                                    : write_of(row_write::op::update, row, it->second.version());
    } else {
      const auto& d = w.detach();
      std::vector<const v1::AttachmentRow*> going;
      for (const auto& [key, a] : s.attachments())
        if (a.tunnel_uid() == d.tunnel_uid() &&
            (d.below_generation() == 0 || a.tunnel_generation() < d.below_generation()))
          going.push_back(&a);
      if (!going.empty() && change.attached_size() > 0) break;
      ++done;
      drop_if(*after.mutable_detaching(), [&](const auto& each) {
        return each.tunnel_uid() == d.tunnel_uid() && each.below_generation() == d.below_generation();
      });
      auto* waiting = after.add_detaching();
      waiting->set_tunnel(d.tunnel());
      waiting->set_tunnel_uid(d.tunnel_uid());
      waiting->set_below_generation(d.below_generation());
      waiting->set_generation(going.empty() ? s.row().attachment_generation() : change.generation());
      for (const auto* a : going) {
        const auto key = attachment_key(a->tunnel_uid(), a->tunnel_generation());
        if (p.children.contains(key)) continue;  // two tunnels cannot share it, two wishes can
        auto* gone = change.add_detached();
        gone->set_tunnel_uid(a->tunnel_uid());
        gone->set_tunnel_generation(a->tunnel_generation());
        p.children[key] = write_of(row_write::op::erase, *a, a->version());
        after.mutable_attachments()->erase(key);
      }
    }
  }
  after.mutable_wishes()->DeleteSubrange(0, done);
  if (change.attached_size() == 0 && change.detached_size() == 0) return;
  p.row.set_attachment_generation(change.generation());
  if (after.changes_size() >= limits::set_changes_max) after.mutable_changes()->erase(after.changes().begin());
  *after.add_changes() = std::move(change);
}

/// The state of each target as its rules' worst, into the attachments that say something else.
void plan_targets(const state& s, state& after, plan& p) {
  after.set_targets_changed(false);
  std::map<std::string, const busv1::TargetState*> worst;
  for (const auto& [key, target] : s.targets()) {
    const auto attachment = attachment_key(target.tunnel_uid(), target.tunnel_generation());
    auto [it, fresh] = worst.try_emplace(attachment, &target);
    if (fresh) continue;
    const bool other = it->second->state() == target.state()
                           ? target.rule() < it->second->rule()
                           : protocol::worse_target_state(it->second->state(), target.state()) == target.state();
    if (other) it->second = &target;
  }
  for (const auto& [key, target] : worst) {
    auto it = after.mutable_attachments()->find(key);
    if (it == after.mutable_attachments()->end()) continue;
    auto& row = it->second;
    if (row.target_state() == target->state() && row.target_message() == target->message()) continue;
    auto planned = p.children.find(key);
    if (planned != p.children.end()) continue;  // its rules are new: this was said of the former ones
    row.set_target_state(target->state());
    row.set_target_message(target->message());
    p.children[key] = write_of(row_write::op::update, row, row.version());
  }
}

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
  if (s.proved_dialable() && s.proved_addresses() == addresses_of(row)) row.set_dialable(true);
  // The agent's word counts for what it can hold; a number from a history that was lost counts as nothing.
  row.set_attached_generation(s.held_generation() <= row.attachment_generation() ? s.held_generation() : 0);

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

/// One save of everything that is wished and not stored.
void reconcile(transition& t, moment now) {
  const state& s = t.next;
  plan p{s.row(), {}};
  const bool welcome = s.has_welcome() && !s.welcome().stored();
  if (welcome) {
    p.row.set_session(s.row().session() + 1);
    p.row.set_session_token_hash(protocol::sha256_hex(s.welcome().token()));
    p.row.set_agent_version(s.welcome().agent_version());
    p.row.set_clock_skew_ms(s.welcome().clock_skew_ms());
  }
  std::optional<state> after;
  if (s.wishes_size() > 0 || s.targets_changed() || s.set_changed_by_rival()) {
    after = s;
    plan_wishes(s, *after, p);
    if (s.set_changed_by_rival()) {  // no step leads there: the agent gets the whole set
      p.row.set_attachment_generation(next_generation(s));
      after->clear_changes();
      after->set_set_changed_by_rival(false);
    }
    if (s.targets_changed()) plan_targets(s, *after, p);
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
  if (!after) after = s;
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
  begin_save(t, std::move(save), std::move(next), "status");
}

// ---- what the stored rows owe ----

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

void owe_sessions(transition& t) {
  state& s = t.next;
  if (s.superseded_session() != 0) {
    auto command = command_for(s, s.superseded_session(), 0);
    command.mutable_superseded()->set_message(s.superseded_message());
    t.announce.push_back(agent_command{std::move(command), false});
    s.set_superseded_session(0);
    s.clear_superseded_message();
  }
  if (!s.has_welcome() || !s.welcome().stored()) return;
  busv1::HelloReply r;
  r.set_version(1);
  r.set_session(s.row().session());
  r.set_token(s.welcome().token());
  r.set_heartbeat_interval_ms(s.heartbeat_interval_ms());
  r.set_connector_uid(s.row().uid());
  r.set_lease_duration_ms(s.row().lease_duration_ms());
  r.set_retry_after_ms(ms(limits::repeat_after));
  fill_set(*r.mutable_attachments(), s);
  if (!s.welcome().reply_to().empty()) t.announce.push_back(agent_reply{s.welcome().reply_to(), std::move(r)});
  s.clear_welcome();
}

void owe_hello_set_told(state& s, moment now) {
  s.set_set_told_generation(s.row().attachment_generation());
  s.set_set_told_ms(std::max<std::int64_t>(now.steady_ms, 1));
  s.set_set_command_id(0);
  s.set_whole_set_wanted(false);
}

void say_step(transition& t, const v1::SetChange& change) {
  state& s = t.next;
  auto command = next_command(s);
  if (change.attached_size() > 0) {
    auto& attach = *command.mutable_attach();
    attach.set_from_generation(change.from_generation());
    attach.set_generation(change.generation());
    *attach.mutable_attachments() = change.attached();
  } else {
    auto& detach = *command.mutable_detach();
    detach.set_from_generation(change.from_generation());
    detach.set_generation(change.generation());
    *detach.mutable_tunnels() = change.detached();
  }
  s.set_set_command_id(command.command_id());
  t.announce.push_back(agent_command{std::move(command), true});
}

/// The online agent gets from what it holds to the row's set: step by step when the steps are known.
void owe_set(transition& t, moment now) {
  state& s = t.next;
  const auto wanted = s.row().attachment_generation();
  if (!s.row().online() || s.held_generation() == wanted) {
    if (s.held_generation() == wanted) s.set_whole_set_wanted(false);
    return;
  }
  const auto repeat = s.set_told_ms() + ms(limits::repeat_after);
  const bool told = s.set_told_ms() != 0 && now.steady_ms < repeat;
  const bool all_said = told && s.set_told_generation() == wanted;
  // An agent that cannot follow gets the whole set at once, but no faster than it could answer.
  const auto whole_due = s.set_told_ms() == 0 ? now.steady_ms : s.set_told_ms() + ms(limits::dial_again_after);
  const bool whole = s.whole_set_wanted() && now.steady_ms >= whole_due;
  if (!whole && s.whole_set_wanted()) want_wake(t, whole_due);
  if (all_said && !whole) return want_wake(t, repeat);

  const auto from = told ? s.set_told_generation() : s.held_generation();
  const auto& changes = s.changes();
  const auto step = std::find_if(changes.begin(), changes.end(), [&](const auto& c) { return c.from_generation() == from; });
  if (!whole && !s.whole_set_wanted() && step != changes.end()) {
    const std::vector<v1::SetChange> steps{step, changes.end()};
    for (const auto& each : steps) say_step(t, each);
  } else {
    auto command = next_command(s);
    fill_set(*command.mutable_set(), s);
    s.set_set_command_id(command.command_id());
    t.announce.push_back(agent_command{std::move(command), true});
    s.set_whole_set_wanted(false);
  }
  s.set_set_told_generation(wanted);
  s.set_set_told_ms(std::max<std::int64_t>(now.steady_ms, 1));
  want_wake(t, now.steady_ms + ms(limits::repeat_after));
}

void owe_report(transition& t, moment now) {
  state& s = t.next;
  if (!(s.roll_call() || s.report_wanted()) || s.bus_down()) return;
  if (s.row().session() == 0 || s.row().session_token_hash().empty()) {
    s.set_roll_call(false);
    s.set_report_wanted(false);
    return;
  }
  if (s.report_first_ms() != 0 && now.steady_ms >= s.report_first_ms() + ms(limits::roll_call_answer)) {
    s.set_report_wanted(false);  // what is still needed is asked for by the next heartbeat or push
    return;
  }
  const auto due = std::max(s.report_due_ms(), s.report_sent_ms() == 0 ? 0 : s.report_sent_ms() + ms(limits::repeat_after));
  if (now.steady_ms < due) return want_wake(t, due);
  auto command = next_command(s);
  command.mutable_report();
  t.announce.push_back(agent_command{std::move(command), true});
  s.set_report_sent_ms(std::max<std::int64_t>(now.steady_ms, 1));
  if (s.report_first_ms() == 0) s.set_report_first_ms(s.report_sent_ms());
  want_wake(t, std::min(now.steady_ms + ms(limits::repeat_after), s.report_first_ms() + ms(limits::roll_call_answer)));
}

std::uint64_t say_dial(transition& t) {
  state& s = t.next;
  s.set_dial_serial(s.dial_serial() + 1);
  t.announce.push_back(dial{s.dial_serial(), s.row().public_key(), {s.row().addresses().begin(), s.row().addresses().end()}});
  return s.dial_serial();
}

void owe_dials(transition& t, moment now) {
  state& s = t.next;
  if (s.suspicion() == 2) want_wake(t, s.dial_due_ms());
  if (s.suspicion() == 1 || s.suspicion() == 3) {
    if (s.suspicion_serial() == 0) {
      if (s.row().addresses_size() == 0) return end_suspicion(s);
      s.set_suspicion_serial(say_dial(t));
      s.set_dial_until_ms(now.steady_ms + ms(limits::dial_answer_max));
    }
    want_wake(t, s.dial_until_ms());
    return;
  }
  const auto addresses = addresses_of(s.row());
  if (s.row().online() && !s.row().dialable() && !addresses.empty() && s.proved_addresses() != addresses) {
    s.set_proved_addresses(addresses);
    s.set_proving_serial(say_dial(t));
  }
}

void owe_silence(transition& t, moment now) {
  state& s = t.next;
  const bool online = exists(s) && s.row().online();
  const bool silent = online && is_silent(s, now);
  if (online == s.online_reported() && silent == s.silent_reported()) return;
  t.announce.push_back(silence_told{online, silent});
  s.set_online_reported(online);
  s.set_silent_reported(silent);
}

void owe_tunnels(transition& t) {
  state& s = t.next;
  for (auto& o : *s.mutable_owed()) {
    v1::AttachmentState a = o;
    if (!exists(s)) {
      a.set_unknown(true);
    } else {
      auto it = s.attachments().find(attachment_key(o.tunnel_uid(), o.tunnel_generation()));
      a.set_stored(it != s.attachments().end());
      a.set_attached(a.stored() && attached(it->second, s.row()));
      a.set_online(s.row().online());
      a.set_revision(s.row().route_version());
    }
    t.announce.push_back(std::move(a));
  }
  s.clear_owed();
  for (int i = 0; i < s.detaching_size();) {
    const auto& d = s.detaching(i);
    if (exists(s) && s.row().online() && s.row().attached_generation() < d.generation()) {
      ++i;
      continue;
    }
    v1::AttachmentState a;
    a.set_connector(s.name());
    a.set_tunnel(d.tunnel());
    a.set_tunnel_uid(d.tunnel_uid());
    a.set_tunnel_generation(d.below_generation() == 0 ? 0 : d.below_generation() - 1);
    a.set_gone(true);
    a.set_unknown(!exists(s));
    a.set_online(exists(s) && s.row().online());
    a.set_revision(exists(s) ? s.row().route_version() : 0);
    t.announce.push_back(std::move(a));
    s.mutable_detaching()->erase(s.detaching().begin() + i);
  }
}

void arm_liveness(transition& t, moment now) {
  const state& s = t.next;
  if (!s.silence().empty() || s.bus_down()) return;
  if (!s.mass_silence()) want_wake(t, heard_from(s) + s.row().lease_duration_ms() + 1);
  if (!s.row().online()) return;
  if (heard_since_lease(s) && now.steady_ms < overdue_at(s)) want_wake(t, overdue_at(s));
  // Suspected once per interval, as long as it is silent and a dial could tell.
  else if (is_silent(s, now) && s.suspicion() == 0 && s.row().dialable())
    want_wake(t, std::max(now.steady_ms + 1, s.suspected_ms() + s.heartbeat_interval_ms()));
}

/// Nothing there: whoever asked hears so.
void answer_without_row(state& s) {
  for (const auto& w : s.wishes())
    if (w.has_attach()) {
      owe_state(s, w.attach().tunnel(), w.attach().tunnel_uid(), w.attach().tunnel_generation());
    } else {
      auto* d = s.add_detaching();
      d->set_tunnel(w.detach().tunnel());
      d->set_tunnel_uid(w.detach().tunnel_uid());
      d->set_below_generation(w.detach().below_generation());
    }
  s.clear_wishes();
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
      t.replies.push_back({s.pending(0).ticket(), std::move(*reply)});
      s.mutable_pending()->erase(s.pending().begin());
      want_wake(t, now.steady_ms);
    } else if (exists(s)) {
      reconcile(t, now);
      if (t.save) return;
    }
  }
  state& n = t.next;
  if (!exists(n)) answer_without_row(n);
  owe_class(t, now);
  if (n.has_welcome() && n.welcome().stored()) owe_hello_set_told(n, now);
  owe_sessions(t);
  if (n.appeared() && exists(n)) t.announce.push_back(appeared{});
  n.set_appeared(false);
  owe_silence(t, now);
  if (exists(n)) {
    owe_set(t, now);
    owe_report(t, now);
    owe_dials(t, now);
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

std::string etag_of(const v1::ConnectorRow& row) { return fmt::format("{}-{}", row.uid(), row.generation()); }

std::string attachment_key(std::string_view tunnel_uid, std::int64_t tunnel_generation) {
  return fmt::format("{}/{}", tunnel_uid, tunnel_generation);
}

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
  switch (e.event_case()) {
    case event::kCommand: hear_command(t, e); break;
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
      s.set_conflicts(0);
      s.set_failures(0);
      s.set_retry_at_ms(0);
      s.clear_saving();
      break;
    case event::kFailed: hear_failed(t, e, now); break;
    case event::kDisconnected: suspect(s, now); break;
    case event::kMassSilence:
      if (s.mass_silence() && !e.mass_silence().on()) {
        s.set_lease_from_ms(now.steady_ms);
        begin_roll_call(s, now, 0);
      }
      s.set_mass_silence(e.mass_silence().on());
      break;
    case event::kBus:
      if (!e.bus().connected()) {
        end_suspicion(s);
      } else if (s.bus_down()) {
        s.set_lease_from_ms(now.steady_ms);
        begin_roll_call(s, now, 0);
      }
      s.set_bus_down(!e.bus().connected());
      break;
    case event::kRollCall:
      s.set_lease_from_ms(now.steady_ms);
      begin_roll_call(s, now, 0);
      break;
    case event::kDialed: hear_dialed(s, e.dialed(), now); break;
    case event::kWake:
    case event::EVENT_NOT_SET: break;
  }
  settle(t, now);
  return t;
}

}  // namespace warren::connector
