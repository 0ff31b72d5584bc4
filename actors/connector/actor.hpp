// actors/connector/actor.hpp -- the shell of one connector. It decides nothing.
#pragma once

#include <optional>

#include "actors/connector/machine.hpp"
#include "actors/shell.hpp"

namespace warren::connector {

struct actor_state;
using self_ptr = connector_actor::stateful_pointer<actor_state>;

struct traits : shell_events<event> {
  using state = connector::state;
  using event = connector::event;
  using transition = connector::transition;

  /// The shell keeps no other copy of the state than the one that the transition brings back.
  static transition step(state& s, const event& e, moment now) { return connector::step(std::move(s), e, now); }
  static void adopt(state& next, const saved& written) { connector::adopt(next, written); }
  static std::string kind(const state&) { return "connector"; }
  static bool is_entity(const v1::Row& row) { return row.has_connector(); }
  static void announce(self_ptr self, const announcement& a);
  static void carried_out(self_ptr self);
};

struct actor_state : shell_state<traits> {
  actor_state() = default;
  std::optional<bool> shown_online;  ///< what the log last knew; none: nothing yet
};

/// Spawned by the partition. Waits for Reloaded when `preloaded`, else reads its rows first.
connector_actor::behavior_type actor(self_ptr self, entity_context ctx, std::string project, std::string name,
                                     bool preloaded);

}  // namespace warren::connector
