// actors/registry/actor.cpp -- the shell of one gateway, gateway class or connector class.
#include "actors/registry/actor.hpp"

namespace warren::registry {

registry_actor::behavior_type actor(registry_actor::stateful_pointer<actor_state> self, entity_context ctx,
                                    std::string kind, std::string name) {
  auto& s = self->state;
  s.machine = initial(ctx.id, std::move(kind), name);
  s.ctx = std::move(ctx);
  shell::begin<traits>(self);
  s.name = std::move(name);
  shell::reload<traits>(self, false, false);
  return {
      [self](v1::Command& command) { return shell::ask<traits>(self, std::move(command)); },
      [self](v1::Reloaded& r) { shell::reloaded<traits>(self, std::move(r)); },
      [self](const wake_up& w) { shell::woken<traits>(self, w); },
  };
}

}  // namespace warren::registry
