// actors/tunnel/actor.hpp -- the shell of one tunnel.
#pragma once

#include "actors/shell.hpp"
#include "actors/tunnel/machine.hpp"

namespace warren::tunnel {

struct traits : shell_events<event> {
  using state = tunnel::state;
  using event = tunnel::event;
  using transition = tunnel::transition;

  static transition step(const state& s, const event& e, moment now) { return tunnel::step(s, e, now); }
  static void adopt(state& next, const saved& written) { tunnel::adopt(next, written); }
  static std::string kind(const state&) { return "tunnel"; }
  static bool is_entity(const v1::Row& row) { return row.has_tunnel(); }
  template <class Self> static void announce(Self* self, const announcement& a) {
    std::visit(
        [self](const auto& message) {
          self->send(self->state.ctx.partition,
                     route_to_connector{self->state.project, message.connector(), message});
        },
        a);
  }
  /// While a generation or a deletion waits for gateways, the partition tells what they say.
  template <class Self> static void carried_out(Self* self) {
    auto& st = self->state;
    const bool wanted = waits_for_gateways(st.machine);
    if (wanted == st.hears_gateways) return;
    st.hears_gateways = wanted;
    self->send(st.ctx.partition, gateways_wanted{st.project, st.name, st.machine.row().gateway_class(), wanted});
  }
};

struct actor_state : shell_state<traits> {
  actor_state() = default;
  bool hears_gateways = false;  ///< what the partition was last told
};

/// How it comes to know its row.
enum class first_look {
  read,    ///< reads it before anything else
  given,   ///< waits for Reloaded, which the partition sends
  absent,  ///< for a creation: presumes that there is none
};

/// Spawned by the partition.
tunnel_actor::behavior_type actor(tunnel_actor::stateful_pointer<actor_state> self, entity_context ctx,
                                  std::string project, std::string name, first_look look);

}  // namespace warren::tunnel
