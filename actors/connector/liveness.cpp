// actors/connector/liveness.cpp -- whether the agent is there. Pure.
#include "actors/connector/liveness.hpp"

#include <algorithm>
#include <limits>

#include "actors/connector/spec.hpp"
#include "actors/core/limits.hpp"

namespace warren::connector {

namespace {

std::int64_t heard_from(const state& s) { return std::max(s.heard_ms(), s.lease_from_ms()); }

/// Between the agent's heartbeats. Its former owner may have given it another one than ours.
std::int64_t interval_of(const state& s) {
  if (s.agent_interval_ms() != 0) return s.agent_interval_ms();
  return std::max(wanted_interval(s), ms(limits::heartbeat_interval_unsaid));
}

std::int64_t overdue_at(const state& s) { return s.heard_ms() + interval_of(s) * 3 / 2; }

bool in_grace(const state& s, moment now) { return now.steady_ms < s.grace_until_ms(); }

/// Whatever was not heard until here does not count. Offline ones are called by their partition, a few at a time.
void begin_lease(state& s, moment now) {
  s.set_lease_from_ms(now.steady_ms);
  if (exists(s) && s.row().online()) begin_roll_call(s, now, 0);
}

void end_suspicion(state& s) {
  s.set_suspicion(0);
  s.set_suspicion_serial(0);
}

/// Whether a sign that the agent may be gone would mean anything.
bool may_suspect(const state& s) {
  return exists(s) && s.row().online() && s.row().dialable() && !s.bus_down() && s.silence().empty();
}

constexpr std::int64_t never_ms = std::numeric_limits<std::int64_t>::max();

/// When the next suspicion begins if nothing happens: silence is one sign until the agent is heard, dialled once
/// per interval; each connection that ends is a sign of its own, as an answer before it proves nothing after it.
std::int64_t suspicion_due(const state& s, moment now) {
  if (s.suspicion() != 0 || !may_suspect(s)) return never_ms;
  const auto not_before = [&](std::int64_t apart) { return s.suspected_ms() == 0 ? now.steady_ms : s.suspected_ms() + apart; };
  auto due = never_ms;
  if (s.disconnect_heard()) due = not_before(ms(limits::suspicions_apart));
  if (is_silent(s, now)) due = std::min(due, not_before(interval_of(s)));
  return due;
}

/// Dials, as soon as everything else is said.
void suspect(state& s, moment now) {
  s.set_suspected_ms(std::max<std::int64_t>(now.steady_ms, 1));
  s.set_disconnect_heard(false);
  s.set_suspicion(1);
  s.set_suspicion_serial(0);
}

std::uint64_t say_dial(transition& t) {
  state& s = t.next;
  s.set_dial_serial(s.dial_serial() + 1);
  t.announce.push_back(dial{s.dial_serial(), s.row().public_key(), {s.row().addresses().begin(), s.row().addresses().end()}});
  return s.dial_serial();
}

}  // namespace

std::int64_t lease_of(const v1::ConnectorRow& row) {
  return check_lease(row.lease_duration_ms()) ? ms(limits::lease_default) : row.lease_duration_ms();
}

std::int64_t wanted_interval(const state& s) {
  return std::max(s.heartbeat_interval_ms(), std::min(s.loaded_interval_ms(), lease_of(s.row()) / limits::heartbeats_per_lease_min));
}

bool heard_since_lease(const state& s) { return s.heard_ms() != 0 && s.heard_ms() >= s.lease_from_ms(); }

void notice_delay(state& s, moment now) {
  if (s.wake_due_ms() == 0 || now.steady_ms < s.wake_due_ms()) return;
  const bool late = now.steady_ms > s.wake_due_ms() + ms(limits::own_delay_max);
  s.set_wake_due_ms(0);
  if (!late) return s.set_delays(0);
  if (s.delays() >= limits::own_delays_max) return;
  s.set_delays(s.delays() + 1);
  s.set_grace_until_ms(now.steady_ms + ms(limits::own_delay_grace));
}

bool is_silent(const state& s, moment now) {
  if (s.bus_down() || !s.silence().empty()) return false;
  if (in_grace(s, now) && !s.silent_reported()) return false;
  return s.call_unanswered() || (heard_since_lease(s) && now.steady_ms >= overdue_at(s));
}

void begin_roll_call(state& s, moment now, std::int64_t delay_ms) {
  s.set_roll_call(true);
  s.set_call_unanswered(false);
  s.set_report_first_ms(0);
  s.set_report_sent_ms(0);
  s.set_report_due_ms(now.steady_ms + delay_ms);
}

void hear_roll_call(state& s, moment now) {
  s.set_lease_from_ms(now.steady_ms);
  begin_roll_call(s, now, 0);
}

void hear_mass_silence(state& s, const v1::MassSilence& m, moment now) {
  if (s.mass_silence() && !m.on()) begin_lease(s, now);
  s.set_mass_silence(m.on());
}

void hear_bus(state& s, const v1::BusState& b, moment now) {
  if (!b.connected()) {
    end_suspicion(s);
  } else if (s.bus_down()) {
    begin_lease(s, now);
    s.set_listening_ms(now.steady_ms);
  }
  s.set_bus_down(!b.connected());
}

void want_report(state& s, moment now) {
  if (s.report_wanted()) return;
  s.set_report_wanted(true);
  s.set_report_first_ms(0);
  s.set_report_due_ms(now.steady_ms);
  if (s.report_sent_ms() + ms(limits::repeat_after) <= now.steady_ms) s.set_report_sent_ms(0);
}

void heard(state& s, moment now) {
  s.set_heard_ms(now.steady_ms);
  s.clear_silence();
  s.set_said_bye(false);
  s.set_roll_call(false);
  s.set_call_unanswered(false);
  s.set_disconnect_heard(false);
  end_suspicion(s);
}

void hear_load(state& s, std::int64_t loaded_interval_ms) {
  if (loaded_interval_ms > 0) s.set_loaded_interval_ms(loaded_interval_ms);
}

void hear_interval(state& s, std::int64_t said_ms) {
  // Who does not say it has been told ours with its session.
  s.set_agent_interval_ms(said_ms <= 0 ? wanted_interval(s) : std::min(said_ms, ms(limits::lease_max)));
}

void hear_disconnected(state& s) { s.set_disconnect_heard(true); }

void pass_time(state& s, moment now) {
  if (!exists(s)) return;
  if (s.roll_call() && s.report_first_ms() != 0 && !in_grace(s, now) &&
      now.steady_ms >= s.report_first_ms() + ms(limits::roll_call_answer)) {
    s.set_roll_call(false);
    s.set_call_unanswered(s.silence().empty());
  }
  if (!may_suspect(s)) s.set_disconnect_heard(false);
  else if (now.steady_ms >= suspicion_due(s, now)) suspect(s, now);
  if (s.suspicion() == 2 && now.steady_ms >= s.dial_due_ms()) {
    s.set_suspicion(3);
    s.set_suspicion_serial(0);
  }
  if (s.suspicion_serial() != 0 && now.steady_ms >= s.dial_until_ms()) end_suspicion(s);
  if (s.silence().empty() && !s.bus_down() && !s.mass_silence() && !in_grace(s, now) &&
      now.steady_ms > heard_from(s) + lease_of(s.row())) {
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
  if (!s.row().online()) s.set_roll_call(false);  // one call: it costs nothing that it is not there
  if (s.report_first_ms() == 0) s.set_report_first_ms(s.report_sent_ms());
  want_wake(t, std::min(now.steady_ms + ms(limits::repeat_after), s.report_first_ms() + ms(limits::roll_call_answer)));
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

void owe_interval(transition& t, moment now) {
  state& s = t.next;
  const bool other = s.agent_interval_ms() != 0 && s.agent_interval_ms() != wanted_interval(s);
  if (!other || !s.row().online() || s.bus_down() || is_silent(s, now)) return;
  const auto due = s.interval_told_ms() == 0 ? now.steady_ms : s.interval_told_ms() + ms(limits::repeat_after);
  if (now.steady_ms < due) return want_wake(t, due);
  auto command = next_command(s);
  command.mutable_interval()->set_heartbeat_interval_ms(wanted_interval(s));
  t.announce.push_back(agent_command{std::move(command), true});
  s.set_interval_told_ms(std::max<std::int64_t>(now.steady_ms, 1));
  want_wake(t, now.steady_ms + ms(limits::repeat_after));
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

void arm_liveness(transition& t, moment now) {
  const state& s = t.next;
  // Who is online stays awake, whether or not anything is due: what ends a cut from NATS or a mass silence is said to
  // those that are awake, and nobody else would ever find it silent.
  if (s.row().online()) want_wake(t, now.steady_ms + ms(limits::passivate_after));
  if (!s.silence().empty() || s.bus_down()) return;
  if (in_grace(s, now)) want_wake(t, s.grace_until_ms());
  if (!s.mass_silence()) want_wake(t, std::max(heard_from(s) + lease_of(s.row()) + 1, s.grace_until_ms()));
  if (!s.row().online()) return;
  if (heard_since_lease(s) && now.steady_ms < overdue_at(s)) want_wake(t, overdue_at(s));
  if (const auto due = suspicion_due(s, now); due != never_ms) want_wake(t, std::max(now.steady_ms + 1, due));
}

}  // namespace warren::connector
