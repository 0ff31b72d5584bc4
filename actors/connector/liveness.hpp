// actors/connector/liveness.hpp -- whether the agent is there: lease, roll call, suspicion, mass silence. Pure.
#pragma once

#include "actors/connector/facts.hpp"

namespace warren::connector {

// ---- what is known ----

/// A message of the current session has come since the lease last began anew.
bool heard_since_lease(const state& s);
/// No heartbeat where one was due. After a takeover or a cut, only the roll call can tell.
bool is_silent(const state& s, moment now);

/// How long silence is tolerated; what a rival spoilt counts as the default, and its field is named elsewhere.
std::int64_t lease_of(const v1::ConnectorRow& row);

/// What its agent shall leave between heartbeats: under load longer than the settings say, but several to a lease.
std::int64_t wanted_interval(const state& s);

// ---- what happens ----

/// A message of the current session: nothing is suspected, nobody needs to be called.
void heard(state& s, moment now);
/// A full lease from now, and a roll call at once, also of who is offline.
void hear_roll_call(state& s, moment now);
/// The agent is asked to report, not before `delay_ms` from now; no answer for 5 s is a suspicion.
void begin_roll_call(state& s, moment now, std::int64_t delay_ms);
/// The agent is asked to report; no answer means nothing.
void want_report(state& s, moment now);
/// How long the interval is under the instance's load; 0: not said.
void hear_load(state& s, std::int64_t loaded_interval_ms);
/// The agent has said at which interval its heartbeats come; 0: not said.
void hear_interval(state& s, std::int64_t said_ms);
/// The agent's NATS connection has ended: it is dialled, when a dial can tell.
void hear_disconnected(state& s);
void hear_dialed(state& s, const v1::Dialed& d, moment now);
void hear_mass_silence(state& s, const v1::MassSilence& m, moment now);
void hear_bus(state& s, const v1::BusState& b, moment now);
/// To be called before anything else: whether the wake that was asked for has come in time. What an agent says while
/// we are stopped or starved waits behind the wakes, and must not be taken for silence.
void notice_delay(state& s, moment now);
/// What the clock alone decides.
void pass_time(state& s, moment now);

// ---- what is owed ----

void owe_report(transition& t, moment now);
void owe_dials(transition& t, moment now);
/// An agent with another interval is told ours, until its heartbeats say so.
void owe_interval(transition& t, moment now);
/// To the instance's watch on silence.
void owe_silence(transition& t, moment now);
/// Wakes when the lease ends, when a heartbeat is overdue.
void arm_liveness(transition& t, moment now);

}  // namespace warren::connector
