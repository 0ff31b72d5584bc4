// actors/registry/actor.cpp -- the shell of one gateway, gateway class or connector class.
#include "actors/registry/actor.hpp"

namespace warren::registry {

event traits::on_command(v1::Command c) {
  event e;
  *e.mutable_command() = std::move(c);
  return e;
}
event traits::on_reloaded(v1::Reloaded r) {
  event e;
  *e.mutable_reloaded() = std::move(r);
  return e;
}
event traits::on_saved(revision_t revision) {
  event e;
  e.mutable_saved()->set_revision(revision);
  return e;
}
event traits::on_failed(std::string code, std::string field, std::string message) {
  event e;
  e.mutable_failed()->set_code(std::move(code));
  e.mutable_failed()->set_field(std::move(field));
  e.mutable_failed()->set_message(std::move(message));
  return e;
}
event traits::on_wake() {
  event e;
  e.mutable_wake();
  return e;
}

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
