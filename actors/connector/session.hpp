// actors/connector/session.hpp -- who speaks for the connector, and what is said in a session. Pure.
#pragma once

#include "actors/connector/facts.hpp"

namespace warren::connector {

// ---- what the agent says: of another session it is ignored, and its sender is told ----

void hear_hello(transition& t, const v1::HelloHeard& h, const event& e, moment now);
void hear_heartbeat(transition& t, const v1::HeartbeatHeard& h, moment now);
void hear_agent_event(transition& t, const v1::AgentEventHeard& h, moment now);
void hear_command_reply(state& s, const busv1::CommandReply& r, moment now);

/// The answer to a hello that is not welcome.
busv1::HelloReply hello_error(errc code, std::string message, std::int64_t retry_after_ms);

/// The session that a good hello waits for will not be stored.
void refuse_welcome(transition& t);

/// The session of a good hello, into the row.
void plan_session(const state& s, v1::ConnectorRow& row);

/// The answer to the hello whose session is stored, and a word to whom it superseded.
void owe_sessions(transition& t);

}  // namespace warren::connector
