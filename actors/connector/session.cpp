// actors/connector/session.cpp -- who speaks for the connector, and what is said in a session. Pure.
#include "actors/connector/session.hpp"

#include <algorithm>

#include "actors/connector/attachments.hpp"
#include "actors/connector/liveness.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::connector {

namespace {

enum class session_is { current, older, unknown };

/// Who holds the token of the row's session is the newest there is: where its number differs, a rival has changed it.
session_is judge_session(const state& s, std::int64_t session, const std::string& token) {
  const bool newest = exists(s) && !s.row().session_token_hash().empty() &&
                      protocol::equal_constant_time(protocol::sha256_hex(token), s.row().session_token_hash());
  if (exists(s) && session > 0 && session < s.row().session() && !newest) return session_is::older;
  if (!newest || session != s.row().session()) return session_is::unknown;
  // A newer hello is being stored: its agent speaks for the connector from now on.
  return s.has_welcome() && !s.welcome().stored() ? session_is::older : session_is::current;
}

/// Whether a message counts; one of another session is told so, at most once a second.
bool current_session(transition& t, std::int64_t session, const std::string& token, const std::string& reply_to,
                     moment now) {
  state& s = t.next;
  if (!s.known()) return false;  // nobody can say what it is: the row has not been read yet
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

/// Whether it was overtaken by its session's bye. Whoever goes on speaking lives all the same: it is asked for a hello,
/// at most once a second, as nothing that it says in this session counts any more.
bool sent_before_bye(transition& t, std::int64_t session, std::int64_t sequence, const std::string& reply_to, moment now) {
  state& s = t.next;
  if (!s.said_bye() || sequence > s.bye_sequence()) return false;
  if (s.older_told_ms() != 0 && now.steady_ms < s.older_told_ms() + ms(limits::repeat_after)) return true;
  s.set_older_told_ms(std::max<std::int64_t>(now.steady_ms, 1));
  auto command = command_for(s, session, 0);
  command.mutable_hello_again();
  if (reply_to.empty()) t.announce.push_back(agent_command{std::move(command), false});
  else t.announce.push_back(agent_reply{reply_to, std::move(command)});
  return true;
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

void hear_report(state& s, const busv1::Report& r) {
  hear_held(s, r.attached_generation());
  if (r.has_addressing()) {
    *s.mutable_addressing() = r.addressing();
    s.set_addressing_changed(true);
  }
  if (r.full()) {
    forget_targets(s);  // what it leaves out is unknown
    s.set_settled_digest(s.asked_digest());
  }
  hear_targets(s, r.targets());
  s.set_report_wanted(false);
}

}  // namespace

busv1::HelloReply hello_error(errc code, std::string message, std::int64_t retry_after_ms) {
  busv1::HelloReply r;
  r.set_version(1);
  r.set_error(std::string{to_string(code)});
  r.set_message(std::move(message));
  r.set_retry_after_ms(retry_after_ms);
  return r;
}

void hear_hello(transition& t, const v1::HelloHeard& h, const event& e, moment now) {
  state& s = t.next;
  const auto& hello = h.hello();
  const auto answer = [&](busv1::HelloReply r) {
    if (!h.reply_to().empty()) t.announce.push_back(agent_reply{h.reply_to(), std::move(r)});
  };
  if (!s.known()) return answer(hello_error(errc::unavailable, "the connector is being read", ms(limits::repeat_after)));
  if (!exists(s)) return answer(hello_error(errc::not_found, "there is no such connector", ms(limits::stranger_retry)));
  if (s.row().public_key().empty())
    return answer(hello_error(errc::failed_precondition, "the connector is not enrolled", ms(limits::stranger_retry)));

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
    return answer(hello_error(errc::permission_denied, "the signature does not fit the connector's key", ms(limits::stranger_retry)));

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
  hear_interval(s, wanted_interval(s));  // its answer says so
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

void hear_heartbeat(transition& t, const v1::HeartbeatHeard& h, moment now) {
  state& s = t.next;
  const auto& beat = h.heartbeat();
  if (!current_session(t, beat.session(), beat.token(), h.reply_to(), now)) return;
  if (sent_before_bye(t, beat.session(), beat.sequence(), h.reply_to(), now)) return;
  heard(s, now);
  hear_interval(s, beat.interval_ms());
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
  if (sent_before_bye(t, e.session(), e.sequence(), h.reply_to(), now)) return;
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
  hear_step_answered(s, r);
}

void refuse_welcome(transition& t) {
  state& s = t.next;
  auto sorry = hello_error(errc::internal, "the session could not be stored", ms(limits::stranger_retry));
  if (!s.welcome().reply_to().empty()) t.announce.push_back(agent_reply{s.welcome().reply_to(), std::move(sorry)});
  s.clear_welcome();
}

void plan_session(const state& s, v1::ConnectorRow& row) {
  row.set_session(s.row().session() + 1);
  row.set_session_token_hash(protocol::sha256_hex(s.welcome().token()));
  row.set_agent_version(s.welcome().agent_version());
  row.set_clock_skew_ms(s.welcome().clock_skew_ms());
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
  r.set_heartbeat_interval_ms(wanted_interval(s));
  r.set_connector_uid(s.row().uid());
  r.set_lease_duration_ms(lease_of(s.row()));
  r.set_retry_after_ms(ms(limits::repeat_after));
  r.set_addressing_error(s.row().addressing_error());
  fill_set(*r.mutable_attachments(), s);
  if (!s.welcome().reply_to().empty()) t.announce.push_back(agent_reply{s.welcome().reply_to(), std::move(r)});
  s.clear_welcome();
}

}  // namespace warren::connector
