// services/warren-agent/session.cpp -- decisions of the agent's control side. No I/O, no clock.
#include "services/warren-agent/session.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "actors/core/protocol.hpp"
#include "actors/core/wire.hpp"

namespace warren::agent {

namespace {

constexpr int wire_version = 1;
constexpr std::size_t nonce_bytes = 16;
constexpr std::size_t journal_name_bytes = 8;
constexpr std::int64_t interval_min_ms = 10;                // faster would be a fault of the owner's
constexpr std::int64_t interval_max_ms = 60 * 60 * 1000;
constexpr std::int64_t heartbeat_spread_percent = 10;

std::string bytes_of(const google::protobuf::MessageLite& message) { return message.SerializeAsString(); }

touched_keys touched_by(const busv1::AgentCommand& command) {
  std::vector<attachment_key> keys;
  if (command.has_attach())
    for (const auto& one : command.attach().attachments()) keys.push_back({one.tunnel_uid(), one.tunnel_generation()});
  else if (command.has_detach())
    for (const auto& one : command.detach().tunnels()) keys.push_back({one.tunnel_uid(), one.tunnel_generation()});
  else
    return std::nullopt;
  return keys;
}

}  // namespace

std::string_view to_string(phase p) {
  switch (p) {
    case phase::disconnected: return "disconnected";
    case phase::waiting: return "waiting";
    case phase::challenged: return "challenged";
    case phase::greeting: return "greeting";
    case phase::established: return "established";
    case phase::ended: break;
  }
  return "ended";
}

session::session(session_options options, session_sources sources, target_table& targets, busv1::Addressing addressing,
                 attachment_set on_disk)
    : options_(std::move(options)), sources_(std::move(sources)), targets_(targets), addressing_(std::move(addressing)),
      held_(std::move(on_disk)), connector_uid_(options_.connector_uid), durable_generation_(held_.generation()) {}

// ---- events ----

actions session::connected(moment now, bool is) {
  actions out;
  if (is == connected_ || phase_ == phase::ended) return out;
  connected_ = is;
  if (!is) {
    if (phase_ != phase::established) phase_ = phase::disconnected;
    return out;
  }
  if (!has_session_ || phase_ != phase::established) {
    greet(now, out);
    return out;
  }
  // The session outlives the connection; what the owner missed, it gets.
  if (std::exchange(report_owed_, false)) report_all(now, out);
  heartbeat(now, out);
  return out;
}

actions session::hello_answered(moment now, std::uint64_t number, std::string_view payload) {
  actions out;
  if (number != request_ || (phase_ != phase::challenged && phase_ != phase::greeting)) return out;
  const auto reply = wire::parse_hello_reply(payload);
  if (!reply) {
    ++bad_messages_;
    wait_for_hello(now, 0ms, fmt::format("the answer to hello is malformed: {} {}", reply.error.field, reply.error.message), out);
    return out;
  }
  note_omitted(reply.omitted, out);
  if (reply->error() == "superseded") {
    end(false, reply->message().empty() ? "a newer agent holds this connector's key" : reply->message(), out);
    return out;
  }
  if (!reply->error().empty()) {
    wait_for_hello(now, millis{std::min<std::int64_t>(reply->retry_after_ms(), 60'000)},
                   fmt::format("{}: {}", reply->error(), reply->message()), out);
    return out;
  }
  if (phase_ == phase::greeting) {
    if (reply->token().empty()) wait_for_hello(now, 0ms, "the answer to hello has no session", out);
    else welcome(now, *reply, out);
    return out;
  }
  if (reply->challenge().empty()) {
    wait_for_hello(now, 0ms, "the answer to hello has no challenge", out);
    return out;
  }
  busv1::HelloRequest hello;
  hello.set_version(wire_version);
  hello.set_nonce(nonce_);
  hello.set_challenge(reply->challenge());
  hello.set_agent_version(options_.agent_version);
  hello.set_sent_at_ms(now.wall_ms);
  *hello.mutable_addressing() = addressing_;
  hello.set_attached_generation(durable_generation_);
  hello.set_connector_uid(connector_uid_);
  hello.set_signature(sources_.sign(protocol::hello_to_sign(options_.project, "connector", options_.connector, hello)));
  phase_ = phase::greeting;
  hello_at_ = now.steady_ms + millis{hello_timeout}.count();
  out.push_back(ask_hello{++request_, bytes_of(hello)});
  return out;
}

actions session::hello_failed(moment now, std::uint64_t number, std::string_view why) {
  actions out;
  if (number == request_ && (phase_ == phase::challenged || phase_ == phase::greeting))
    wait_for_hello(now, 0ms, fmt::format("nobody answers hello: {}", why), out);
  return out;
}

actions session::commanded(moment now, std::string_view payload, std::string_view reply_to) {
  actions out;
  if (phase_ == phase::ended) return out;
  const auto command = wire::parse_agent_command(payload);
  if (!command) {
    ++bad_messages_;
    return out;
  }
  note_omitted(command.omitted, out);
  // Its hello may still be on its way to us: another subscription, another thread.
  if (phase_ == phase::greeting && (!has_session_ || command->session() > session_)) {
    if (early_.size() < early_commands_max) early_.emplace_back(payload, reply_to);
    return out;
  }
  obey(now, *command, reply_to, out);
  return out;
}

actions session::saved(moment now, std::int64_t generation, std::string_view error) {
  actions out;
  if (!saving_ || *saving_ != generation) return out;
  saving_.reset();
  if (!error.empty()) {
    out.push_back(say{true, fmt::format("attachments cannot be kept on disk: {}", error)});
    durable_ = false;
    journal_.clear();
    save_at_ = now.steady_ms + millis{save_retry}.count();
    for (const auto& owed : std::exchange(owed_, {})) answer(owed.reply_to, owed.command_id, "unavailable", {}, out);
    return out;
  }
  durable_generation_ = generation;
  settle(now, out);
  if (!durable_) save(out);
  return out;
}

actions session::targets_changed(moment now) {
  actions out;
  if (!targets_.has_changed()) return out;
  if (phase_ != phase::established || !connected_) {
    report_owed_ = true;
    return out;
  }
  if (!owed_.empty() || report_when_durable_) {
    if (changes_at_ == 0) changes_at_ = now.steady_ms + millis{target_change_held}.count();
    return out;
  }
  report(now, nullptr, targets_.take_changed(), false, out);
  return out;
}

actions session::addressing_is(moment now, busv1::Addressing addressing) {
  actions out;
  const auto before = digest();
  addressing_ = std::move(addressing);
  digest_version_ = 0;
  if (digest() == before) return out;
  if (phase_ == phase::established && connected_) report(now, &addressing_, {}, false, out);
  else report_owed_ = true;
  return out;
}

actions session::wake(moment now) {
  actions out;
  if (phase_ == phase::ended) return out;
  if (phase_ == phase::waiting && now.steady_ms >= hello_at_) greet(now, out);
  else if ((phase_ == phase::challenged || phase_ == phase::greeting) && now.steady_ms >= hello_at_)
    wait_for_hello(now, 0ms, "nobody answers hello in time", out);
  if (changes_at_ != 0 && now.steady_ms >= changes_at_) {
    changes_at_ = 0;
    if (phase_ == phase::established && connected_) report(now, nullptr, targets_.take_changed(), false, out);
    else report_owed_ = true;
  }
  if (phase_ == phase::established && connected_ && now.steady_ms >= heartbeat_at_) heartbeat(now, out);
  if (save_at_ != 0 && now.steady_ms >= save_at_) save(out);
  return out;
}

actions session::stop(moment now) {
  actions out;
  if (phase_ == phase::ended) return out;
  if (has_session_) {
    busv1::AgentEvent event;
    event.set_version(wire_version);
    event.set_session(session_);
    event.set_token(token_);
    event.set_sequence(++sequence_);
    event.set_sent_at_ms(now.wall_ms);
    event.mutable_bye();
    out.push_back(send_event{bytes_of(event)});
  }
  end(true, "stopped", out);
  return out;
}

std::optional<std::int64_t> session::deadline() const {
  if (phase_ == phase::ended) return std::nullopt;
  std::optional<std::int64_t> out;
  const auto at = [&](std::int64_t when) { out = out ? std::min(*out, when) : when; };
  if (phase_ == phase::waiting || phase_ == phase::challenged || phase_ == phase::greeting) at(hello_at_);
  if (phase_ == phase::established && connected_) at(heartbeat_at_);
  if (changes_at_ != 0) at(changes_at_);
  if (save_at_ != 0) at(save_at_);
  return out;
}

/// Once, however often the same set comes again.
void session::note_omitted(const wire::omission& omitted, actions& out) {
  if (omitted.tunnels == 0) return;
  omitted_tunnels_ += omitted.tunnels;
  auto words = fmt::format("{} tunnel(s) of what the owner sent are malformed and left out; the first is \"{}\": {} {}", omitted.tunnels,
                           omitted.tunnel, omitted.field, omitted.message);
  if (words == last_omission_) return;
  out.push_back(say{true, words});
  last_omission_ = std::move(words);
}

// ---- hello ----

void session::greet(moment now, actions& out) {
  busv1::HelloRequest hello;
  hello.set_version(wire_version);
  nonce_ = sources_.random_bytes(nonce_bytes);
  hello.set_nonce(nonce_);
  phase_ = phase::challenged;
  hello_at_ = now.steady_ms + millis{hello_timeout}.count();
  out.push_back(ask_hello{++request_, bytes_of(hello)});
}

/// Full jitter: a thousand agents that lost their owner at once do not come back at once.
void session::wait_for_hello(moment now, millis at_least, std::string why, actions& out) {
  const auto ceiling = std::min<std::int64_t>(millis{hello_retry_max}.count(), millis{hello_retry_first}.count() << std::min(attempts_, 10));
  ++attempts_;
  const auto jitter = static_cast<std::int64_t>(sources_.random_part() * static_cast<double>(ceiling));
  phase_ = connected_ ? phase::waiting : phase::disconnected;
  hello_at_ = now.steady_ms + at_least.count() + jitter;
  early_.clear();
  if (why != last_trouble_) out.push_back(say{true, why});
  last_trouble_ = std::move(why);
}

void session::welcome(moment now, const busv1::HelloReply& reply, actions& out) {
  phase_ = phase::established;
  has_session_ = true;
  session_ = reply.session();
  token_ = reply.token();
  interval_ms_ = std::clamp(reply.heartbeat_interval_ms(), interval_min_ms, interval_max_ms);
  attempts_ = 0;
  last_trouble_.clear();
  owed_.clear();  // they were asked for in a session that has ended
  report_owed_ = false;
  out.push_back(say{false, fmt::format("session {}: heartbeat every {} ms, {} attachments of generation {}", session_, interval_ms_,
                                       reply.attachments().attachments_size(), reply.attachments().generation())});
  if (!reply.addressing_error().empty())
    out.push_back(say{true, fmt::format("nobody can reach this agent: its addressing is refused: {}", reply.addressing_error())});
  if (!reply.connector_uid().empty() && reply.connector_uid() != connector_uid_) {
    out.push_back(say{true, "this connector has been created anew: its old attachments are dropped; enrol it again"});
    connector_uid_ = reply.connector_uid();
    durable_ = false;
    forget_steps();
  }
  const auto how = held_.apply(reply.attachments(), true);
  if (how == applied::changed) {
    durable_ = false;
    forget_steps();
    out.push_back(set_changed{});
  }
  if (!durable_ || saving_) {
    report_when_durable_ = true;
    save(out);
  }
  heartbeat(now, out);
  for (const auto& [payload, reply_to] : std::exchange(early_, {}))
    if (const auto command = wire::parse_agent_command(payload)) obey(now, *command, reply_to, out);
}

// ---- commands ----

void session::obey(moment now, const busv1::AgentCommand& command, std::string_view reply_to, actions& out) {
  if (!has_session_) return;
  // Of a newer session than ours: for the agent that replaced us. The owner says so when it hears from us.
  if (command.session() > session_) {
    if (phase_ == phase::established && connected_) heartbeat(now, out);
    return;
  }
  const bool overtaken = command.incarnation() < incarnation_ || (command.incarnation() == incarnation_ && command.epoch() < epoch_);
  if (command.session() < session_ || overtaken) return answer(reply_to, command.command_id(), "stale", {}, out);
  const bool restored = command.incarnation() > incarnation_ && incarnation_ != 0;
  incarnation_ = command.incarnation();
  epoch_ = command.epoch();

  switch (command.command_case()) {
    case busv1::AgentCommand::kAttach: return take(now, held_.apply(command.attach()), command, reply_to, out);
    case busv1::AgentCommand::kDetach: return take(now, held_.apply(command.detach()), command, reply_to, out);
    case busv1::AgentCommand::kSet: return take(now, held_.apply(command.set(), restored), command, reply_to, out);
    case busv1::AgentCommand::kReport: return answer_report(now, command.command_id(), reply_to, out);
    case busv1::AgentCommand::kInterval:
      interval_ms_ = std::clamp(command.interval().heartbeat_interval_ms(), interval_min_ms, interval_max_ms);
      answer(reply_to, command.command_id(), {}, {}, out);
      return heartbeat(now, out);
    case busv1::AgentCommand::kSuperseded:
      // While a hello of ours is under way, it may be that very hello which superseded us.
      if (phase_ != phase::established) return;
      answer(reply_to, command.command_id(), {}, {}, out);
      return end(false, command.superseded().message().empty() ? "a newer agent holds this connector's key" : command.superseded().message(), out);
    case busv1::AgentCommand::kHelloAgain:
      if (phase_ != phase::established) return;
      answer(reply_to, command.command_id(), {}, {}, out);
      out.push_back(say{false, "the owner does not know our session: hello again"});
      return greet(now, out);
    case busv1::AgentCommand::COMMAND_NOT_SET: return;
  }
}

void session::take(moment now, applied how, const busv1::AgentCommand& command, std::string_view reply_to, actions& out) {
  if (how == applied::overtaken) return answer(reply_to, command.command_id(), "stale", {}, out);
  if (how == applied::gap) return answer(reply_to, command.command_id(), {}, {}, out);  // says what we hold
  if (how == applied::changed) {
    durable_ = false;
    if (command.has_attach()) remember_step(command.attach());
    else if (command.has_detach()) remember_step(command.detach());
    else forget_steps();
    out.push_back(set_changed{touched_by(command)});
  }
  if (!reply_to.empty()) {
    // Repeats of a command that waits for the disk get one answer, on the newest inbox.
    std::erase_if(owed_, [&](const owed_reply& o) { return o.command_id == command.command_id(); });
    if (owed_.size() >= owed_replies_max) owed_.pop_front();
    owed_.push_back({std::string{reply_to}, command.command_id(), held_.generation()});
  } else {
    report_when_durable_ = true;
  }
  if (durable_ && !saving_) settle(now, out);
  else save(out);
}

void session::remember_step(set_step step) {
  if (!steps_lead_there_) return;
  if (unsaved_.size() >= unsaved_steps_max) return forget_steps();
  unsaved_.push_back(std::move(step));
}

void session::forget_steps() {
  unsaved_.clear();
  steps_lead_there_ = false;
}

/// A few steps go behind those of the journal; the whole set begins a journal anew.
void session::save(actions& out) {
  if (saving_) return;  // the newest is written when this one is done
  save_at_ = 0;
  durable_ = true;
  saving_ = held_.generation();
  save_set what{held_.generation(), false, {}};
  if (!journal_.empty() && steps_lead_there_)
    for (const auto& step : unsaved_) what.text += print_step(journal_, step);
  if (what.text.empty() || journal_bytes_ + what.text.size() > std::max(journal_bytes_min, whole_bytes_)) {
    journal_ = protocol::hex(sources_.random_bytes(journal_name_bytes));
    what.whole = true;
    what.text = print({connector_uid_, options_.public_key_hex, held_, journal_});
    whole_bytes_ = what.text.size();
    journal_bytes_ = 0;
  } else {
    journal_bytes_ += what.text.size();
  }
  unsaved_.clear();
  steps_lead_there_ = true;
  out.push_back(std::move(what));
}

/// Says what is on disk to all who asked for it.
void session::settle(moment now, actions& out) {
  std::vector<busv1::TargetState> states;
  const bool reached = !owed_.empty() && owed_.front().generation <= durable_generation_;
  if (reached && phase_ == phase::established && connected_) {
    states = targets_.take_changed();
    changes_at_ = 0;
  }
  while (!owed_.empty() && owed_.front().generation <= durable_generation_) {
    answer(owed_.front().reply_to, owed_.front().command_id, {}, std::exchange(states, {}), out);
    owed_.pop_front();
  }
  if (report_when_durable_ && durable_) {
    report_when_durable_ = false;
    report_all(now, out);
  }
}

// ---- messages ----

const std::string& session::digest() {
  if (digest_version_ != targets_.version()) {
    digest_ = protocol::report_digest(addressing_, targets_.states());
    digest_version_ = targets_.version();
  }
  return digest_;
}

void session::heartbeat(moment now, actions& out) {
  const auto spread = interval_ms_ * heartbeat_spread_percent / 100;
  heartbeat_at_ = now.steady_ms + interval_ms_ - spread + static_cast<std::int64_t>(sources_.random_part() * static_cast<double>(2 * spread + 1));
  if (options_.mute_heartbeats) return;
  busv1::Heartbeat beat;
  beat.set_version(wire_version);
  beat.set_session(session_);
  beat.set_token(token_);
  beat.set_sequence(++sequence_);
  beat.set_interval_ms(interval_ms_);
  beat.set_sent_at_ms(now.wall_ms);
  beat.set_attached_generation(durable_generation_);
  beat.set_digest(digest());
  out.push_back(send_heartbeat{bytes_of(beat)});
}

void session::report(moment now, const busv1::Addressing* addressing, std::vector<busv1::TargetState> states, bool full, actions& out) {
  std::size_t next = 0;
  bool first = true;
  while (first || next < states.size()) {
    busv1::AgentEvent event;
    event.set_version(wire_version);
    event.set_session(session_);
    event.set_token(token_);
    event.set_sequence(++sequence_);
    event.set_sent_at_ms(now.wall_ms);
    auto& said = *event.mutable_report();
    said.set_attached_generation(durable_generation_);
    if (addressing != nullptr && first) *said.mutable_addressing() = *addressing;
    std::size_t size = event.ByteSizeLong();
    while (next < states.size() && size < report_bytes_max) {
      size += states[next].ByteSizeLong() + 4;
      *said.add_targets() = std::move(states[next++]);
    }
    said.set_full(full && first && next == states.size());  // a piece is not everything that there is
    first = false;
    out.push_back(send_event{bytes_of(event)});
  }
}

void session::report_all(moment now, actions& out) {
  if (phase_ != phase::established || !connected_) {
    report_owed_ = true;
    return;
  }
  targets_.forget_changed();
  changes_at_ = 0;
  report(now, &addressing_, targets_.states(), true, out);
}

void session::answer(std::string_view reply_to, std::int64_t command_id, std::string_view error,
                     std::vector<busv1::TargetState> states, actions& out) {
  if (reply_to.empty()) return;
  busv1::CommandReply reply;
  reply.set_version(wire_version);
  reply.set_session(session_);
  reply.set_token(token_);
  reply.set_command_id(command_id);
  reply.set_error(std::string{error});
  reply.set_attached_generation(durable_generation_);
  std::size_t size = reply.ByteSizeLong();
  for (auto& state : states) {
    size += state.ByteSizeLong() + 4;
    if (size > report_bytes_max) {
      report_owed_ = true;  // the digest of the next heartbeat tells the owner, too
      break;
    }
    *reply.add_targets() = std::move(state);
  }
  out.push_back(send_reply{std::string{reply_to}, bytes_of(reply)});
}

/// In the answer itself where it fits, else as events.
void session::answer_report(moment now, std::int64_t command_id, std::string_view reply_to, actions& out) {
  busv1::CommandReply reply;
  reply.set_version(wire_version);
  reply.set_session(session_);
  reply.set_token(token_);
  reply.set_command_id(command_id);
  reply.set_attached_generation(durable_generation_);
  auto& said = *reply.mutable_report();
  said.set_full(true);
  said.set_attached_generation(durable_generation_);
  *said.mutable_addressing() = addressing_;
  for (auto& state : targets_.states()) *said.add_targets() = std::move(state);
  if (reply_to.empty() || reply.ByteSizeLong() > report_bytes_max) {
    answer(reply_to, command_id, {}, {}, out);
    return report_all(now, out);
  }
  targets_.forget_changed();
  changes_at_ = 0;
  out.push_back(send_reply{std::string{reply_to}, bytes_of(reply)});
}

void session::end(bool clean, std::string why, actions& out) {
  phase_ = phase::ended;
  out.push_back(end_agent{clean, std::move(why)});
}

}  // namespace warren::agent
