// actors/replay/secrets.hpp -- where secrets are in states, events and rows: the one list of them. Pure.
#pragma once

#include <string>

#include "warren/core/v1/recording.pb.h"

namespace warren::replay {

namespace v1 = warren::core::v1;

/// A public key is no secret, but goes with them: who replays a hello has to sign it, and only the agent can sign
/// for its own key.
enum class secret { token, token_hash, challenge, public_key };

/// Calls `f(secret, std::string&)` for each one that is there. Signatures are no secrets of themselves; they follow
/// from the key and the challenge.
template <class F> void visit_secrets(v1::Row& row, F f) {
  if (!row.has_connector()) return;
  f(secret::token_hash, *row.mutable_connector()->mutable_session_token_hash());
  f(secret::public_key, *row.mutable_connector()->mutable_public_key());
}

template <class F> void visit_secrets(v1::Command& c, F f) {
  if (c.has_enrol_connector()) f(secret::public_key, *c.mutable_enrol_connector()->mutable_public_key());
  if (c.has_rotate_connector_key()) f(secret::public_key, *c.mutable_rotate_connector_key()->mutable_public_key());
}

template <class F> void visit_secrets(v1::ConnectorState& s, F f) {
  if (s.has_row()) {
    f(secret::token_hash, *s.mutable_row()->mutable_session_token_hash());
    f(secret::public_key, *s.mutable_row()->mutable_public_key());
  }
  for (auto& p : *s.mutable_pending())
    if (p.has_command()) visit_secrets(*p.mutable_command(), f);
  for (auto& c : *s.mutable_challenges()) f(secret::challenge, *c.mutable_challenge());
  if (s.has_welcome()) f(secret::token, *s.mutable_welcome()->mutable_token());
}
template <class F> void visit_secrets(v1::TunnelState&, F) {}
template <class F> void visit_secrets(v1::RegistryState&, F) {}

template <class F> void visit_secrets(v1::ConnectorEvent& e, F f) {
  if (e.has_command()) visit_secrets(*e.mutable_command(), f);
  if (e.has_hello()) f(secret::challenge, *e.mutable_hello()->mutable_hello()->mutable_challenge());
  if (e.has_heartbeat()) f(secret::token, *e.mutable_heartbeat()->mutable_heartbeat()->mutable_token());
  if (e.has_agent_event()) f(secret::token, *e.mutable_agent_event()->mutable_event()->mutable_token());
  if (e.has_command_reply()) f(secret::token, *e.mutable_command_reply()->mutable_token());
  if (e.has_reloaded()) {
    if (e.reloaded().has_row()) visit_secrets(*e.mutable_reloaded()->mutable_row(), f);
    for (auto& child : *e.mutable_reloaded()->mutable_children()) visit_secrets(child, f);
  }
  f(secret::challenge, *e.mutable_fresh_challenge());
  f(secret::token, *e.mutable_fresh_token());
}
template <class F> void visit_secrets(v1::TunnelEvent&, F) {}
template <class F> void visit_secrets(v1::RegistryEvent&, F) {}

}  // namespace warren::replay
