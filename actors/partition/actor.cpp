// actors/partition/actor.cpp -- everything of one partition that is awake on this instance.
#include "actors/partition/actor.hpp"

#include <algorithm>
#include <utility>

#include <spdlog/spdlog.h>

#include "actors/connector/session.hpp"
#include "actors/core/subjects.hpp"
#include "actors/core/wire.hpp"

namespace warren::partition {

namespace {

using self_ptr = partition_actor::stateful_pointer<actor_state>;
using key = actor_state::key;

constexpr auto drops_said_every = 1s;
constexpr std::size_t drop_subject_bytes_max = 256;  // the longest of ours has 160

std::int64_t steady_ms(self_ptr self) {
  return std::chrono::duration_cast<millis>(self->clock().now().time_since_epoch()).count();
}

bool reserved(self_ptr self) { return self->state.ctx.entity.id == self->state.ctx.partitions; }

/// A project that lives in another partition must never be activated here: two owners would write it.
bool ours(self_ptr self, const std::string& project) {
  return partition_of(project, self->state.ctx.partitions) == self->state.ctx.entity.id;
}

/// Counts what is dropped, and says so at most once a second: whoever can reach the bus must not fill the log.
void drop(self_ptr self, const std::string& subject, const wire::bad_message& why) {
  auto& s = self->state;
  s.ctx.entity.count->add("warren_bus_dropped_total", why.reason);
  const auto now = steady_ms(self);
  if (s.drop_said_ms != 0 && now < s.drop_said_ms + drops_said_every / 1ms) {
    ++s.drops_unsaid;
    return;
  }
  spdlog::warn("partition {}: dropped a message on {}: {} {} {}; {} more since the last line", s.ctx.entity.id,
               wire::clean_text(subject, drop_subject_bytes_max), why.reason, why.field, why.message,
               std::exchange(s.drops_unsaid, 0));
  s.drop_said_ms = now;
}

entity_context context_for_entity(self_ptr self) {
  auto c = self->state.ctx.entity;
  c.partition = caf::actor_cast<partition_actor>(self);
  c.listening_ms = self->state.listening_ms;
  return c;
}

tunnel_actor find_tunnel(self_ptr self, const std::string& project, const std::string& name,
                         tunnel::first_look look = tunnel::first_look::read) {
  auto& handle = self->state.tunnels[{project, name}];
  if (!handle)
    handle = self->spawn<caf::monitored>(tunnel::actor, context_for_entity(self), project, name, look);
  return handle;
}

connector_actor find_connector(self_ptr self, const std::string& project, const std::string& name,
                               bool preloaded = false) {
  auto& handle = self->state.connectors[{project, name}].handle;
  if (!handle) {
    auto context = context_for_entity(self);
    if (const auto slept = self->state.heard.extract({project, name})) context.heard_before_ms = slept.mapped();
    handle = self->spawn<caf::monitored>(connector::actor, std::move(context), project, name, preloaded);
    if (!self->state.bus_connected) self->send(handle, bus_state{false});
    if (self->state.silence) self->send(handle, mass_silence{true});
  }
  return handle;
}

registry::registry_actor find_registered(self_ptr self, const std::string& kind, const std::string& name) {
  auto& handle = self->state.registry[{kind, name}];
  if (!handle)
    handle = self->spawn<caf::monitored>(registry::actor, context_for_entity(self), kind, name);
  return handle;
}

// ---- commands ----

void answer(self_ptr self, const std::string& reply_to, const v1::Reply& reply) {
  self->state.owed.erase(reply_to);
  if (reply_to.empty()) return;
  self->send(self->state.ctx.entity.bus, bus_publish{reply_to, reply.SerializeAsString(), false});
}

v1::Reply failure(errc code, std::string message) {
  v1::Reply r;
  r.set_code(std::string{to_string(code)});
  r.set_message(std::move(message));
  return r;
}

/// An entity refuses by its present state; a request that was carried out before gets its first answer.
bool may_be_a_repetition(const v1::Reply& r) {
  const auto code = errc_from(r.code()).value_or(errc::internal);
  return code == errc::already_exists || code == errc::not_found || code == errc::aborted ||
         code == errc::failed_precondition;
}

void answer_unless_repeated(self_ptr self, const answered_request& request, const std::string& reply_to,
                            v1::Reply refusal) {
  self->request(self->state.ctx.entity.store, caf::infinite, find_answer{request})
      .then(
          [self, reply_to, refusal](const save_result& found) {
            v1::Reply reply = refusal;
            if (const auto* first = std::get_if<save_replayed>(&found)) reply = first->reply;
            if (const auto* other = std::get_if<save_refused>(&found)) {
              reply = failure(other->code, other->message);
              reply.set_field(other->field);
            }
            if (const auto* away = std::get_if<save_unavailable>(&found))
              reply = failure(errc::unavailable, away->message);
            answer(self, reply_to, reply);
          },
          [self, reply_to, refusal](const caf::error&) { answer(self, reply_to, refusal); });
}

template <class Handle> void ask(self_ptr self, const Handle& entity, v1::Command command, std::string reply_to) {
  self->state.owed.insert(reply_to);
  const answered_request request{command.project(), command.caller().method(), command.caller().request_id(),
                                 command.caller().digest()};
  self->request(entity, caf::infinite, std::move(command))
      .then(
          [self, reply_to, request](const v1::Reply& r) {
            if (!request.request_id.empty() && may_be_a_repetition(r))
              return answer_unless_repeated(self, request, reply_to, r);
            answer(self, reply_to, r);
          },
          [self, reply_to](const caf::error&) {
            // The entity was let go or has failed between two messages: the caller tries again.
            answer(self, reply_to, failure(errc::not_owner, "try again"));
          });
}

/// The name that a tunnel's or a connector's command is about.
const std::string* name_of(const v1::Command& c) {
  switch (c.command_case()) {
    case v1::Command::kCreateTunnel: return &c.create_tunnel().name();
    case v1::Command::kUpdateTunnel: return &c.update_tunnel().name();
    case v1::Command::kDeleteTunnel: return &c.delete_tunnel().name();
    case v1::Command::kCreateConnector: return &c.create_connector().name();
    case v1::Command::kUpdateConnector: return &c.update_connector().name();
    case v1::Command::kDeleteConnector: return &c.delete_connector().name();
    case v1::Command::kEnrolConnector: return &c.enrol_connector().name();
    case v1::Command::kRotateConnectorKey: return &c.rotate_connector_key().name();
    case v1::Command::kObserveConnector: return &c.observe_connector().name();
    default: return nullptr;
  }
}

bool is_for_tunnel(const v1::Command& c) {
  return c.has_create_tunnel() || c.has_update_tunnel() || c.has_delete_tunnel();
}

void dispatch(self_ptr self, const bus_message& m) {
  auto command = wire::parse_api_command(m.payload);
  if (!command) {
    drop(self, m.subject, command.error);
    auto r = failure(errc::invalid, command.error.message);
    r.set_field(command.error.field);
    return answer(self, m.reply_to, r);
  }
  if (reserved(self)) {
    const auto [kind, name] = registry::target_of(*command);
    if (kind.empty() || !command->project().empty())
      return answer(self, m.reply_to, failure(errc::not_owner, "another partition's"));
    if (!protocol::is_label(name)) {
      auto r = failure(errc::invalid, "the name is a DNS-1123 label");
      r.set_field("name");
      return answer(self, m.reply_to, r);
    }
    return ask(self, find_registered(self, kind, name), *command, m.reply_to);
  }
  const auto* name = name_of(*command);
  if (name == nullptr || !protocol::is_label(command->project()) || !protocol::is_label(*name)) {
    auto r = failure(errc::invalid, "the project and the name are DNS-1123 labels");
    r.set_field("name");
    return answer(self, m.reply_to, r);
  }
  if (!ours(self, command->project()))
    return answer(self, m.reply_to, failure(errc::not_owner, "another partition's"));
  if (is_for_tunnel(*command))
    ask(self, find_tunnel(self, command->project(), *name,
                          command->has_create_tunnel() ? tunnel::first_look::absent : tunnel::first_look::read),
        *command, m.reply_to);
  else
    ask(self, find_connector(self, command->project(), *name), *command, m.reply_to);
}

// ---- gateways ----

void tell_gateways(self_ptr self, const tunnel_actor& to, const std::string& gateway_class) {
  auto& s = self->state;
  std::optional<std::set<std::string>> registered;
  if (s.ctx.registered_gateways) registered = s.ctx.registered_gateways(gateway_class);
  self->send(to, s.acks.of_class(gateway_class, steady_ms(self), registered ? &*registered : nullptr));
}

void tell_waiting(self_ptr self) {
  auto& s = self->state;
  for (const auto& [k, gateway_class] : s.waiting) {
    auto it = s.tunnels.find(k);
    if (it != s.tunnels.end()) tell_gateways(self, it->second, gateway_class);
  }
}

void hear_gateway(self_ptr self, busv1::GatewayAck ack) {
  auto& s = self->state;
  // Epochs and revisions of a later life of the database have higher upper halves: what was acknowledged in a
  // former one is none of ours, whatever its number.
  if (ack.acknowledged() >> 32 < s.ctx.entity.epoch >> 32) ack.set_acknowledged(0);
  const auto effect = s.acks.apply(ack, steady_ms(self), s.ctx.entity.wall_ms());
  if (effect == ack_effect::moved || effect == ack_effect::changed) tell_waiting(self);
}

// ---- classes ----

void tell_class(self_ptr self, const std::string& name, bool only_if_changed) {
  auto& s = self->state;
  const auto c = s.ctx.find_class(name);
  if (!c.known) return;  // the tick asks again
  v1::ClassState message;
  message.set_name(name);
  message.set_found(c.found);
  for (const auto& n : c.allowed_networks) message.add_allowed_networks(n);
  auto print = message.SerializeAsString();
  auto& told = s.class_told[name];
  const bool news = !told.empty() && told != print;
  if (only_if_changed && told == print) return;
  told = std::move(print);
  for (const auto& k : s.class_interest[name]) {
    // Also those that were let go: what their rows say of the class is no longer so.
    if (news) {
      self->send(find_connector(self, k.first, k.second), message);
      continue;
    }
    auto it = s.connectors.find(k);
    if (it != s.connectors.end()) self->send(it->second.handle, message);
  }
}

// ---- rows ----

void activate(self_ptr self, std::vector<v1::Row> rows) {
  auto& s = self->state;
  std::map<key, v1::Reloaded> tunnels, connectors;
  for (auto& row : rows) {
    if (row.has_tunnel()) *tunnels[{row.tunnel().project(), row.tunnel().name()}].mutable_row() = row;
    else if (row.has_connector()) *connectors[{row.connector().project(), row.connector().name()}].mutable_row() = row;
  }
  for (auto& row : rows) {
    if (row.has_attachment()) {
      auto it = connectors.find({row.attachment().project(), row.attachment().connector()});
      if (it != connectors.end()) *it->second.add_children() = std::move(row);
    } else if (row.has_hostname_claim()) {
      auto it = tunnels.find({row.hostname_claim().project(), row.hostname_claim().tunnel()});
      if (it != tunnels.end()) *it->second.add_children() = std::move(row);
    }
  }
  // What is awake already has read its row itself. Connectors first: tunnels talk to them.
  for (auto& [k, r] : connectors)
    if (!s.connectors.contains(k)) self->send(find_connector(self, k.first, k.second, true), std::move(r));
  for (auto& [k, r] : tunnels)
    if (!s.tunnels.contains(k)) self->send(find_tunnel(self, k.first, k.second, tunnel::first_look::given), std::move(r));
}

/// Who is online is called by its own actor; the others sleep, and may be alive all the same. A few at a time:
/// each of them is read and activated.
void call_offline(self_ptr self) {
  auto& s = self->state;
  if (!s.roll_from || !s.bus_connected || !s.ctx.offline_connectors) return;
  const auto some = s.ctx.offline_connectors(s.ctx.entity.id, *s.roll_from, limits::roll_call_offline);
  if (!some) return;  // the tick asks again
  for (const auto& k : *some) self->send(find_connector(self, k.first, k.second), roll_call{});
  if (some->size() < limits::roll_call_offline) s.roll_from.reset();
  else s.roll_from = some->back();
}

void load(self_ptr self) {
  auto& s = self->state;
  self->request(s.ctx.entity.store, caf::infinite, load_partition{s.ctx.entity.id, s.ctx.entity.epoch})
      .then(
          [self](loaded& answer) {
            auto& st = self->state;
            if (answer.lost) return self->quit();
            if (!answer.error.empty()) {
              const auto wait = backoff_ms(limits::unavailable_retry_first, limits::unavailable_retry_max,
                                           ++st.load_tries, st.ctx.entity.random());
              self->delayed_send(self, millis{wait}, wake_up{1});
              return;
            }
            st.loaded = true;
            activate(self, std::move(answer.rows));
            if (!reserved(self)) st.roll_from.emplace();
            call_offline(self);
          },
          [self](const caf::error&) { self->quit(caf::exit_reason::unhandled_exception); });
}

/// The tunnels that name a connector which exists (again). Asked for until the database answers: nobody else
/// would tell them.
void wake_naming(self_ptr self, const connector_appeared& c) {
  self->request(self->state.ctx.entity.store, caf::infinite, load_naming{c.project, c.name})
      .then(
          [self, c](const loaded& answer) {
            if (!answer.error.empty()) {
              self->delayed_send(self, limits::repeat_after, c);
              return;
            }
            for (const auto& row : answer.rows) {
              if (!row.has_tunnel()) continue;
              v1::ConnectorAppeared message;
              message.set_connector(c.name);
              self->send(find_tunnel(self, row.tunnel().project(), row.tunnel().name()), message);
            }
          },
          [](const caf::error&) {});
}

template <class Handle> void look_again(self_ptr self, const Handle& entity) {
  v1::Reloaded go_and_look;
  go_and_look.set_rival(true);
  self->send(entity, std::move(go_and_look));
}

void adopt(self_ptr self) {
  auto& s = self->state;
  self->request(s.ctx.entity.store, caf::infinite, adopt_rivals{s.ctx.entity.id, s.ctx.entity.epoch})
      .then(
          [self](loaded& answer) {
            if (answer.lost) return self->quit();
            if (!answer.error.empty()) {  // nobody says it a second time
              self->delayed_send(self, limits::repeat_after, adopt_rivals{});
              return;
            }
            std::set<key> tunnels, connectors, registered;
            for (const auto& row : answer.rows) {
              if (row.has_gateway()) registered.insert({"gateway", row.gateway().name()});
              if (row.has_gateway_class()) registered.insert({"gateway_class", row.gateway_class().name()});
              if (row.has_connector_class()) registered.insert({"connector_class", row.connector_class().name()});
              if (row.has_tunnel()) tunnels.insert({row.tunnel().project(), row.tunnel().name()});
              if (row.has_hostname_claim())
                tunnels.insert({row.hostname_claim().project(), row.hostname_claim().tunnel()});
              if (row.has_connector()) connectors.insert({row.connector().project(), row.connector().name()});
              if (row.has_attachment())
                connectors.insert({row.attachment().project(), row.attachment().connector()});
              if (row.has_tombstone()) {
                const auto& t = row.tombstone();
                registered.insert({t.kind(), t.key()});
                const auto slash = t.key().find('/');
                if (slash == std::string::npos) continue;
                const auto rest = t.key().substr(slash + 1);
                const auto name = rest.substr(0, rest.find('/'));
                if (t.kind() == "tunnel") tunnels.insert({t.key().substr(0, slash), name});
                if (t.kind() == "connector" || t.kind() == "attachment")
                  connectors.insert({t.key().substr(0, slash), name});
              }
            }
            for (const auto& k : connectors)
              look_again(self, find_connector(self, k.first, k.second));
            for (const auto& k : tunnels)
              look_again(self, find_tunnel(self, k.first, k.second));
            // Gateways and classes owe nothing: who sleeps reads its row when somebody asks.
            for (const auto& k : registered)
              if (const auto awake = self->state.registry.find(k); awake != self->state.registry.end()) look_again(self, awake->second);
          },
          [](const caf::error&) {});
}

// ---- agents ----
// Anybody who can reach the bus can name any connector, and as often as he likes: a message wakes nobody before it is
// known that there is somebody, and what waits is bounded everywhere.

/// A hello that will be welcome at another time, or never.
void refuse_hello(self_ptr self, const agent_message& m, errc code, std::string words, millis retry) {
  if (m.kind != agent_message::what::hello || m.reply_to.empty()) return;
  const auto reply = connector::hello_error(code, std::move(words), retry.count());
  self->send(self->state.ctx.entity.bus, bus_publish{m.reply_to, reply.SerializeAsString(), false, m.place});
}

std::string subject_of(self_ptr self, const agent_message& m) {
  const auto id = self->state.ctx.entity.id;
  switch (m.kind) {
    case agent_message::what::hello: return bus::hello_subject(id, m.project, bus::kind_connector, m.name);
    case agent_message::what::event: return bus::event_subject(id, m.project, bus::kind_connector, m.name);
    default: return bus::heartbeat_subject(id, m.project, bus::kind_connector, m.name);
  }
}

/// There is no room for it: its agent says it again.
void no_room(self_ptr self, const agent_message& m, const char* where) {
  drop(self, subject_of(self, m), {"behind", {}, where});
  refuse_hello(self, m, errc::unavailable, "too much is waiting; try again", limits::repeat_after);
}

/// Nobody of this name exists: an agent of a connector that was deleted learns so by its next hello.
void hear_stranger(self_ptr self, const agent_message& m) {
  auto& s = self->state;
  drop(self, subject_of(self, m), {"unknown", {}, "there is no such connector"});
  if (m.kind == agent_message::what::hello) {
    if (wire::parse_hello(m.payload))
      refuse_hello(self, m, errc::not_found, "there is no such connector", limits::stranger_retry);
    return;
  }
  const auto now = steady_ms(self);
  if (now >= s.strangers_told_since_ms + 1000) {
    s.strangers_told_since_ms = now;
    s.strangers_told = 0;
  }
  if (s.strangers_told >= limits::strangers_told_max) return;
  std::int64_t session = 0;
  if (m.kind == agent_message::what::heartbeat) {
    const auto beat = wire::parse_heartbeat(m.payload);
    if (!beat) return;
    session = beat->session();
  } else {
    const auto said = wire::parse_event(m.payload);
    if (!said) return;
    session = said->session();
  }
  ++s.strangers_told;
  busv1::AgentCommand again;
  again.set_version(1);
  again.set_incarnation(s.ctx.entity.incarnation);
  again.set_epoch(s.ctx.entity.epoch);
  again.set_session(session);
  again.mutable_hello_again();
  auto to = m.reply_to.empty() ? bus::command_subject(m.project, bus::kind_connector, m.name) : m.reply_to;
  self->send(s.ctx.entity.bus, bus_publish{std::move(to), again.SerializeAsString(), false, m.place});
}

void hand_over(self_ptr self, awake_connector& to, agent_message m) {
  if (!to.line) to.line = std::make_shared<const char>('\0');
  if (to.line.use_count() > static_cast<long>(limits::connector_waiting_messages_max))
    return no_room(self, m, "its connector is behind");
  m.line = to.line;
  self->send(to.handle, std::move(m));
}

/// The row of a connector whose agent has spoken, as the database has it.
void wake_spoken_to(self_ptr self, const key& k, loaded& answer, std::vector<agent_message> waiting) {
  auto& s = self->state;
  if (!s.connectors.contains(k)) {
    if (!answer.error.empty()) {
      for (const auto& m : waiting) no_room(self, m, "its connector cannot be read");
      return;
    }
    v1::Reloaded reloaded;
    for (auto& row : answer.rows) {
      if (row.has_connector()) *reloaded.mutable_row() = std::move(row);
      else *reloaded.add_children() = std::move(row);
    }
    if (!reloaded.has_row()) {
      for (const auto& m : waiting) hear_stranger(self, m);
      return;
    }
    self->send(find_connector(self, k.first, k.second, true), std::move(reloaded));
  }
  auto& awake = s.connectors.at(k);
  for (auto& m : waiting) hand_over(self, awake, std::move(m));
}

void read_sleepers(self_ptr self) {
  auto& s = self->state;
  for (const auto& k : s.asleep.next())
    self->request(s.ctx.entity.store, caf::infinite,
                  load_entity{"connector", k.first, k.second, s.ctx.entity.id, s.ctx.entity.epoch})
        .then(
            [self, k](loaded& answer) {
              if (answer.lost) return self->quit();
              wake_spoken_to(self, k, answer, self->state.asleep.read(k));
              read_sleepers(self);
            },
            [self](const caf::error&) { self->quit(caf::exit_reason::unhandled_exception); });
}

void agent_said(self_ptr self, const bus_message& m, const bus::parsed_subject& subject) {
  auto& s = self->state;
  const key k{subject.project, subject.name};
  if (m.payload.size() > limits::agent_message_bytes_max)
    return drop(self, m.subject, {"oversized", {}, std::to_string(m.payload.size()) + " bytes"});
  if (reserved(self) || !ours(self, k.first) || subject.kind != bus::kind_connector)
    return drop(self, m.subject, {"foreign", {}, "not of this partition"});
  auto kind = agent_message::what::heartbeat;
  if (subject.room == bus::subject_room::hello) kind = agent_message::what::hello;
  if (subject.room == bus::subject_room::event) kind = agent_message::what::event;
  agent_message said{kind, k.first, k.second, m.payload, m.reply_to, m.place};
  if (const auto awake = s.connectors.find(k); awake != s.connectors.end())
    return hand_over(self, awake->second, std::move(said));
  const auto known =
      s.ctx.knows_connector ? s.ctx.knows_connector(s.ctx.entity.id, s.ctx.started_revision, k) : std::nullopt;
  if (known == false) return hear_stranger(self, said);
  if (!s.asleep.wait(k, said)) return no_room(self, said, "too many connectors are being read");
  read_sleepers(self);
}

void tick(self_ptr self) {
  auto& s = self->state;
  auto& e = s.ctx.entity;
  busv1::Revision hint;
  hint.set_version(1);
  hint.set_incarnation(e.incarnation);
  hint.set_partition(e.id);
  hint.set_epoch(e.epoch);
  hint.set_revision(s.ctx.seen_revision(e.id));
  self->send(e.bus, bus_publish{bus::revision_subject(e.id), hint.SerializeAsString(), true});
  if (s.ctx.looked_at_ms) *s.ctx.looked_at_ms = steady_ms(self);
  std::vector<std::string> classes;
  for (const auto& [name, interested] : s.class_interest) classes.push_back(name);
  for (const auto& name : classes) tell_class(self, name, true);
  s.acks.expire(steady_ms(self), e.wall_ms());
  if (!s.waiting.empty()) tell_waiting(self);
  call_offline(self);
  self->delayed_send(self, 1s, wake_up{0});
}

template <class Handle> const Handle& handle_of(const Handle& handle) { return handle; }
const connector_actor& handle_of(const awake_connector& awake) { return awake.handle; }

/// Whose handle it was; nullopt: none of these.
template <class Map> std::optional<key> erase_handle(Map& map, const caf::actor_addr& source) {
  for (auto it = map.begin(); it != map.end(); ++it)
    if (const auto& handle = handle_of(it->second); handle && caf::actor_cast<caf::actor_addr>(handle) == source) {
      auto k = it->first;
      map.erase(it);
      return k;
    }
  return std::nullopt;
}

/// Lets an idle entity go. What is in its mailbox already is still handled; versions guard against a
/// successor that loads while the last of it is being saved.
template <class Map> void let_go(self_ptr self, Map& map, const key& k) {
  auto it = map.find(k);
  if (it == map.end()) return;
  auto handle = handle_of(it->second);
  map.erase(it);
  self->demonitor(handle.address());
  self->send_exit(handle, caf::exit_reason::user_shutdown);
}

}  // namespace

partition_actor::behavior_type actor(self_ptr self, partition_context ctx) {
  auto& s = self->state;
  s.incarnation = ctx.entity.incarnation;
  s.bus_connected = ctx.bus_connected;
  s.listening_ms = steady_ms(self);
  s.ctx = std::move(ctx);
  s.acks = gateway_acks{s.ctx.started_steady_ms};
  auto& e = s.ctx.entity;
  const auto me = caf::actor_cast<caf::actor>(self);
  for (const auto& subject : {bus::api_subject(e.id), bus::ack_subject(e.id)})
    self->send(e.bus, bus_subscribe{subject, me});
  if (!reserved(self))
    for (const auto& subject :
         {bus::hello_wildcard(e.id), bus::heartbeat_wildcard(e.id), bus::event_wildcard(e.id)})
      self->send(e.bus, bus_subscribe{subject, me, limits::agents_waiting_messages_max, limits::agents_waiting_bytes_max});
  self->set_down_handler([self](const caf::down_msg& down) {
    // A fresh one goes on from its row: the failed one may have owed something. Not at once, as it may fail
    // over the same row again. Gateways and classes owe nothing; the next command activates them.
    auto& st = self->state;
    const auto tunnel = erase_handle(st.tunnels, down.source);
    const auto connector = tunnel ? std::nullopt : erase_handle(st.connectors, down.source);
    if (!tunnel && !connector) erase_handle(st.registry, down.source);
    if (tunnel) st.waiting.erase(*tunnel);
    if (down.reason == ownership_lost) return self->quit();
    if (down.reason) {
      if (const auto& failed = tunnel ? tunnel : connector)
        self->delayed_send(self, limits::repeat_after,
                           idle_notice{tunnel ? "tunnel" : "connector", failed->first, failed->second, true});
      st.ctx.entity.count->add("warren_reconcile_errors_total");
      spdlog::error("partition {}: an entity has failed: {}", st.ctx.entity.id,
                    self->system().render(down.reason));
    }
  });
  // Whoever waits asks the next owner, with the same request id: what was saved is answered, not repeated.
  self->set_exit_handler([self](caf::exit_msg& m) {
    for (const auto& reply_to : std::exchange(self->state.owed, {}))
      answer(self, reply_to, failure(errc::not_owner, "the partition is changing hands"));
    self->quit(std::move(m.reason));
  });
  load(self);  // the reserved one, too: what rivals wrote while nobody owned it is adopted
  self->send(self, wake_up{0});
  return {
      [self](const bus_message& m) {
        const auto subject = bus::parse_subject(m.subject);
        if (!subject || subject->partition != self->state.ctx.entity.id)
          return drop(self, m.subject, {"subject", {}, "none of this partition's"});
        switch (subject->room) {
          case bus::subject_room::api: return dispatch(self, m);
          case bus::subject_room::ack: {
            auto ack = wire::parse_gateway_ack(m.payload);
            if (!ack) return drop(self, m.subject, ack.error);
            if (ack->partition() != subject->partition)
              return drop(self, m.subject, {"field", "partition", "is not the subject's"});
            return hear_gateway(self, *ack);
          }
          default: return agent_said(self, m, *subject);
        }
      },
      [self](const route_to_connector& r) {
        auto to = find_connector(self, r.project, r.name);
        std::visit([&](const auto& message) { self->send(to, message); }, r.what);
      },
      [self](const route_to_tunnel& r) { self->send(find_tunnel(self, r.project, r.name), r.what); },
      [self](const connector_appeared& c) { wake_naming(self, c); },
      [self](const class_wanted& w) {
        auto& st = self->state;
        const key k{w.project, w.connector};
        for (auto& [name, interested] : st.class_interest) interested.erase(k);
        st.class_interest[w.name].insert(k);
        tell_class(self, w.name, false);
      },
      [self](const gateways_wanted& w) {
        auto& st = self->state;
        if (!w.wanted) {
          st.waiting.erase({w.project, w.name});
          return;
        }
        st.waiting[{w.project, w.name}] = w.gateway_class;
        auto it = st.tunnels.find({w.project, w.name});
        if (it != st.tunnels.end()) tell_gateways(self, it->second, w.gateway_class);
      },
      [self](const idle_notice& n) {
        auto& st = self->state;
        if (n.heard_ms != 0) st.heard[{n.project, n.name}] = n.heard_ms;
        if (n.again) {
          if (n.kind == "tunnel") find_tunnel(self, n.project, n.name);
          else if (n.kind == "connector") find_connector(self, n.project, n.name);
          return;
        }
        // Who waits for gateways owes something, and nobody else would tell it of them.
        if (n.kind == "tunnel" && st.waiting.contains({n.project, n.name})) return;
        if (n.kind == "tunnel") let_go(self, st.tunnels, {n.project, n.name});
        else if (n.kind == "connector") let_go(self, st.connectors, {n.project, n.name});
        else let_go(self, st.registry, {n.kind, n.name});
      },
      [self](const busv1::GatewayAck& ack) {
        hear_gateway(self, ack);
      },
      [self](const adopt_rivals&) { adopt(self); },
      [self](const agent_disconnected& d) {
        auto it = self->state.connectors.find({d.project, d.name});
        if (it != self->state.connectors.end()) self->send(it->second.handle, d);
      },
      [self](const mass_silence& m) {
        self->state.silence = m.on;
        for (auto& [k, awake] : self->state.connectors) self->send(awake.handle, m);
      },
      [self](const bus_state& b) {
        auto& st = self->state;
        if (b.connected && !st.bus_connected) st.listening_ms = steady_ms(self);
        if (b.connected && !st.bus_connected && st.loaded && !reserved(self)) st.roll_from.emplace();
        st.bus_connected = b.connected;
        for (auto& [k, awake] : st.connectors) self->send(awake.handle, b);
      },
      [self](const wake_up& w) {
        if (w.serial == 1) return load(self);
        tick(self);
      },
  };
}

}  // namespace warren::partition
