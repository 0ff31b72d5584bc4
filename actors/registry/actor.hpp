// actors/registry/actor.hpp -- the shell of one gateway, gateway class or connector class.
#pragma once

#include "actors/registry/machine.hpp"
#include "actors/shell.hpp"

namespace warren::registry {

/// One thing that belongs to no project. Owns its row.
using registry_actor = caf::typed_actor<
    caf::replies_to<v1::Command>::with<v1::Reply>,
    caf::reacts_to<v1::Reloaded>,
    caf::reacts_to<wake_up>>;

struct traits : shell_events<event> {
  using state = registry::state;
  using event = registry::event;
  using transition = registry::transition;

  static transition step(const state& s, const event& e, moment now) { return registry::step(s, e, now); }
  static void adopt(state& next, const saved& written) { registry::adopt(next, written); }
  static std::string kind(const state& s) { return s.kind(); }
  static bool is_entity(const v1::Row& row) {
    return row.has_gateway() || row.has_gateway_class() || row.has_connector_class();
  }
  template <class Self> static void announce(Self*, const announcement&) {}
  template <class Self> static void carried_out(Self*) {}
};

struct actor_state : shell_state<traits> {
  actor_state() = default;
};

registry_actor::behavior_type actor(registry_actor::stateful_pointer<actor_state> self, entity_context ctx,
                                    std::string kind, std::string name);

}  // namespace warren::registry
