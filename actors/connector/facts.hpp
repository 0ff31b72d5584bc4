// actors/connector/facts.hpp -- what all rooms of a connector's machine ask and say alike. Pure.
// For the rooms of this folder only; others include machine.hpp.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "actors/connector/machine.hpp"
#include "actors/core/pending.hpp"

namespace warren::connector {

constexpr std::int64_t ms(auto duration) { return std::chrono::duration_cast<millis>(duration).count(); }

template <class Message> bool same(const Message& a, const Message& b) {
  return a.SerializeAsString() == b.SerializeAsString();  // our messages without maps: one spelling each
}

template <class Repeated, class Predicate> void drop_if(Repeated& all, Predicate drop) {
  all.erase(std::remove_if(all.begin(), all.end(), drop), all.end());
}

inline bool exists(const state& s) { return s.has_row(); }

/// The addresses as one text, to compare and to remember them.
std::string addresses_of(const v1::ConnectorRow& row);

/// Wakes the machine at `at_ms`, or earlier.
void want_wake(transition& t, std::int64_t at_ms);

/// A command of this owner to that session of the agent; without an id nobody waits for its reply.
busv1::AgentCommand command_for(const state& s, std::int64_t session, std::int64_t id);
/// To the current session, with the next id.
busv1::AgentCommand next_command(state& s);

/// What one save shall make of the rows.
struct plan {
  v1::ConnectorRow row;
  std::map<std::string, row_write> children;  // by attachment key
  struct {
    std::map<std::string, std::optional<v1::AttachmentRow>> attachments;  // those that change; none: there was none
    std::map<std::string, busv1::TargetState> targets;                    // those that go
  } before;
};

/// A copy of `s` that has its attachments and targets instead of it: they are as many as there are tunnels.
state lend(state& s);

/// `routes`: gateways have to know.
row_write write_of(row_write::op what, const v1::ConnectorRow& row, std::int64_t expected, bool routes);
row_write write_of(row_write::op what, const v1::AttachmentRow& row, std::int64_t expected);

/// Ends the step: `after` follows when `save` was stored, what the transition held until here when not.
void begin_save(transition& t, save_request save, state after, std::string_view what);
/// The same, where `after` has been lent by it and has changed the attachments in `before`.
void begin_save(transition& t, save_request save, state after, std::string_view what, decltype(plan::before) before);

}  // namespace warren::connector
