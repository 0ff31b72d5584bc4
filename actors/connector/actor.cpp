// actors/connector/actor.cpp -- the shell of one connector. It decides nothing.
#include "actors/connector/actor.hpp"

#include <mutex>
#include <optional>

#include "actors/connector/session.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/line_limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"
#include "actors/core/wire.hpp"

namespace warren::connector {

namespace {

constexpr std::size_t secret_bytes = 32;

/// Of many lines of one kind, for all connectors of the process together: how many were left out since the last one;
/// none: leave this one out.
class shared_budget {
public:
  explicit shared_budget(int lines_per_second) : budget_{lines_per_second} {}
  std::optional<std::int64_t> allow(self_ptr self) {
    const std::lock_guard lock{mutex_};
    return budget_.allow(shell::now_of(self).steady_ms);
  }

private:
  std::mutex mutex_;
  line_budget budget_;
};

/// Counts what cannot be understood, and says so at most once a second: a bad release of agents must not fill the log.
void drop(self_ptr self, std::string_view what, const wire::bad_message& why) {
  auto& s = self->state;
  s.ctx.count->add("warren_bus_dropped_total", why.reason);
  static shared_budget budget{1};
  if (const auto left_out = budget.allow(self))
    log_line(spdlog::level::warn, "an agent's message was dropped",
             {{"project", s.project}, {"connector", s.name}, {"partition", s.ctx.id}, {"kind", what},
              {"reason", why.reason}, {"field", why.field}, {"error", why.message}},
             *left_out);
}
template <class Parsed> bool dropped(self_ptr self, std::string_view what, const Parsed& parsed) {
  if (!parsed) drop(self, what, parsed.error);
  return !parsed;
}

/// Whoever wrote that agent learns what is wrong with its hello; silence would look like an owner that is away.
void refuse_hello(self_ptr self, const std::string& reply_to, const wire::bad_message& why) {
  if (reply_to.empty()) return;
  const auto words = why.field.empty() ? why.message : why.field + ": " + why.message;
  const auto reply = hello_error(errc::invalid, words, limits::stranger_retry / 1ms);
  self->send(self->state.ctx.bus, bus_publish{reply_to, reply.SerializeAsString()});
}

void hear_command_reply(self_ptr self, const std::string& payload) {
  auto reply = wire::parse_command_reply(payload);
  if (dropped(self, "command_reply", reply)) return;
  event e;
  *e.mutable_command_reply() = std::move(*reply);
  shell::handle<traits>(self, std::move(e));
}

void hear_agent(self_ptr self, const agent_message& m) {
  auto& s = self->state;
  event e;
  switch (m.kind) {
    case agent_message::what::hello: {
      auto hello = wire::parse_hello(m.payload);
      if (dropped(self, "hello", hello)) return refuse_hello(self, m.reply_to, hello.error);
      *e.mutable_hello()->mutable_hello() = std::move(*hello);
      if (s.ctx.loaded_interval_ms) e.set_loaded_interval_ms(s.ctx.loaded_interval_ms());
      e.mutable_hello()->set_reply_to(m.reply_to);
      e.set_fresh_challenge(s.ctx.secret(secret_bytes));
      e.set_fresh_token(protocol::hex(s.ctx.secret(secret_bytes)));
      break;
    }
    case agent_message::what::heartbeat: {
      auto beat = wire::parse_heartbeat(m.payload);
      if (dropped(self, "heartbeat", beat)) return;
      s.ctx.count->add("warren_heartbeats_total");
      *e.mutable_heartbeat()->mutable_heartbeat() = std::move(*beat);
      if (s.ctx.loaded_interval_ms) e.set_loaded_interval_ms(s.ctx.loaded_interval_ms());
      e.mutable_heartbeat()->set_reply_to(m.reply_to);
      break;
    }
    case agent_message::what::event: {
      auto said = wire::parse_event(m.payload);
      if (dropped(self, "event", said)) return;
      *e.mutable_agent_event()->mutable_event() = std::move(*said);
      e.mutable_agent_event()->set_reply_to(m.reply_to);
      break;
    }
    case agent_message::what::command_reply: return hear_command_reply(self, m.payload);
  }
  shell::handle<traits>(self, std::move(e));
}

/// A tunnel's wish. What waits behind it in the mailbox goes into the same save: a thousand new tunnels are a few
/// steps of the agent's set, not a thousand.
void wished(self_ptr self, event e) {
  auto& s = self->state;
  if (!s.machine.known()) return shell::handle<traits>(self, std::move(e));
  const auto now = shell::now_of(self);
  shell::recorded<traits>(self, e, true, 0, now);
  if (e.has_attach()) note(s.machine, e.attach(), now);
  else if (e.has_detach()) note(s.machine, e.detach(), now);
  else note(s.machine, e.push(), now);
  shell::concluded(self, step_outcome::done, nullptr);
  shell::arm(self, now.steady_ms);
}

std::string_view name_of(const busv1::AgentCommand& c) {
  switch (c.command_case()) {
    case busv1::AgentCommand::kAttach: return "attach";
    case busv1::AgentCommand::kDetach: return "detach";
    case busv1::AgentCommand::kSet: return "set";
    case busv1::AgentCommand::kReport: return "report";
    case busv1::AgentCommand::kSuperseded: return "superseded";
    case busv1::AgentCommand::kHelloAgain: return "hello_again";
    case busv1::AgentCommand::kInterval: return "set_interval";
    case busv1::AgentCommand::COMMAND_NOT_SET: return "none";
  }
  return "none";
}

struct announcer {
  self_ptr self;

  void operator()(const agent_command& c) const {
    auto& s = self->state;
    s.ctx.count->add("warren_agent_commands_total", name_of(c.command));
    auto subject = bus::command_subject(s.project, bus::kind_connector, s.name);
    auto payload = c.command.SerializeAsString();
    if (!c.answered) {
      self->send(s.ctx.bus, bus_publish{std::move(subject), std::move(payload)});
      return;
    }
    // The bus always answers; what gets no answer is said again when the machine's own time has come.
    self->request(s.ctx.bus, caf::infinite, bus_request{std::move(subject), std::move(payload), limits::repeat_after})
        .then(
            [me = self](const bus_reply& r) {
              if (r.error.empty()) hear_command_reply(me, r.payload);
            },
            [](const caf::error&) {});
  }
  void operator()(const agent_reply& r) const {
    auto payload = std::visit([](const auto& m) { return m.SerializeAsString(); }, r.payload);
    self->send(self->state.ctx.bus, bus_publish{r.reply_to, std::move(payload)});
  }
  void operator()(const v1::AttachmentState& a) const {
    self->send(self->state.ctx.partition, route_to_tunnel{self->state.project, a.tunnel(), a});
  }
  void operator()(const dial& d) const {
    const auto answer = [me = self, serial = d.serial](std::string_view outcome) {
      event e;
      e.mutable_dialed()->set_serial(serial);
      e.mutable_dialed()->set_outcome(std::string{outcome});
      shell::handle<traits>(me, std::move(e));
    };
    self->request(self->state.ctx.dialer, caf::infinite, dial_request{d.endpoint_id, d.addresses, limits::dial_timeout})
        .then(
            [answer](const dial_result& r) {
              switch (r.what) {
                case dial_result::outcome::answered: return answer("answered");
                case dial_result::outcome::refused: return answer("refused");
                case dial_result::outcome::unanswered: return answer("unanswered");
              }
            },
            // Our own dialer failed: that says nothing about the agent.
            [](const caf::error&) {});
  }
  void operator()(const silence_told& t) const {
    const auto& s = self->state;
    self->send(s.ctx.silence, silence_report{s.project, s.name, t.online, t.silent});
  }
  void operator()(const appeared&) const {
    self->send(self->state.ctx.partition, connector_appeared{self->state.project, self->state.name});
  }
  void operator()(const class_asked& c) const {
    self->send(self->state.ctx.partition, class_wanted{self->state.project, self->state.name, c.name});
  }
  void operator()(const load_asked&) const { shell::reload<traits>(self, false, false); }
};

}  // namespace

void traits::announce(self_ptr self, const announcement& a) { std::visit(announcer{self}, a); }

/// Says when the agent comes and goes. What is found at a takeover is no news.
void traits::carried_out(self_ptr self) {
  auto& s = self->state;
  const bool online = s.machine.has_row() && s.machine.row().online();
  if (!s.machine.known() || s.shown_online == online) return;
  const bool news = s.shown_online.has_value();
  s.shown_online = online;
  if (!news) return;
  static shared_budget budget{limits::news_lines_per_second};  // a site that loses its network must not fill a disk
  const auto left_out = budget.allow(self);
  if (!left_out) return;
  const auto* ready = s.machine.has_row() ? find_condition(s.machine.row().conditions(), "Ready") : nullptr;
  log_line(spdlog::level::info, online ? "connector is online" : "connector is offline",
           {{"project", s.project}, {"connector", s.name}, {"partition", s.ctx.id}, {"epoch", s.ctx.epoch},
            {"session", s.machine.row().session()},
            {"reason", ready != nullptr ? ready->message() : "The connector was deleted."}},
           *left_out);
}

connector_actor::behavior_type actor(self_ptr self, entity_context ctx, std::string project, std::string name,
                                     bool preloaded) {
  auto& s = self->state;
  s.machine = initial(ctx.id, ctx.epoch, ctx.incarnation, ctx.heartbeat_interval_ms, project, name);
  s.machine.set_listening_ms(ctx.listening_ms);
  s.machine.set_heard_before_ms(ctx.heard_before_ms);
  s.ctx = std::move(ctx);
  s.project = std::move(project);
  s.name = std::move(name);
  shell::begin<traits>(self);
  // However it ends, the watch on silence no longer counts it: another instance does, or nobody.
  self->attach_functor([watch = s.ctx.silence, report = silence_report{s.project, s.name, false, false}] {
    if (watch) caf::anon_send(watch, report);
  });
  if (!preloaded) shell::reload<traits>(self, false, false);
  return {
      [self](v1::Command& command) { return shell::ask<traits>(self, std::move(command)); },
      [self](const agent_message& m) { hear_agent(self, m); },
      [self](v1::AttachTunnel& a) {
        event e;
        *e.mutable_attach() = std::move(a);
        wished(self, std::move(e));
      },
      [self](v1::DetachTunnel& d) {
        event e;
        *e.mutable_detach() = std::move(d);
        wished(self, std::move(e));
      },
      [self](v1::PushAddressing& p) {
        event e;
        *e.mutable_push() = std::move(p);
        wished(self, std::move(e));
      },
      [self](v1::ClassState& c) {
        event e;
        *e.mutable_class_() = std::move(c);
        shell::handle<traits>(self, std::move(e));
      },
      [self](v1::Reloaded& r) { shell::reloaded<traits>(self, std::move(r)); },
      [self](const agent_disconnected&) {
        event e;
        e.mutable_disconnected();
        shell::handle<traits>(self, std::move(e));
      },
      [self](const mass_silence& m) {
        event e;
        e.mutable_mass_silence()->set_on(m.on);
        shell::handle<traits>(self, std::move(e));
      },
      [self](const bus_state& b) {
        event e;
        e.mutable_bus()->set_connected(b.connected);
        shell::handle<traits>(self, std::move(e));
      },
      [self](const roll_call&) {
        event e;
        e.mutable_roll_call();
        shell::handle<traits>(self, std::move(e));
      },
      [self](const wake_up& w) { shell::woken<traits>(self, w); },
  };
}

}  // namespace warren::connector
