// actors/tunnel/actor.cpp -- the shell of one tunnel.
#include "actors/tunnel/actor.hpp"

namespace warren::tunnel {

tunnel_actor::behavior_type actor(tunnel_actor::stateful_pointer<actor_state> self, entity_context ctx,
                                  std::string project, std::string name, first_look look) {
  auto& s = self->state;
  s.machine = initial(ctx.id, ctx.epoch, project, name);
  s.ctx = std::move(ctx);
  s.idle_kept = limits::tunnel_passivate_after;
  shell::begin<traits>(self);
  s.project = std::move(project);
  s.name = std::move(name);
  if (look == first_look::read) shell::reload<traits>(self, false, false);
  if (look == first_look::absent) shell::presume_absent<traits>(self);
  return {
      [self](v1::Command& command) { return shell::ask<traits>(self, std::move(command)); },
      [self](v1::AttachmentState& a) {
        event e;
        *e.mutable_attachment() = std::move(a);
        shell::handle<traits>(self, std::move(e));
      },
      [self](v1::Gateways& g) {
        event e;
        *e.mutable_gateways() = std::move(g);
        shell::handle<traits>(self, std::move(e));
      },
      [self](v1::ConnectorAppeared& c) {
        event e;
        *e.mutable_connector_appeared() = std::move(c);
        shell::handle<traits>(self, std::move(e));
      },
      [self](v1::Reloaded& r) { shell::reloaded<traits>(self, std::move(r)); },
      [self](const wake_up& w) { shell::woken<traits>(self, w); },
  };
}

}  // namespace warren::tunnel
