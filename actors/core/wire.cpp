// actors/core/wire.cpp -- from bytes off the bus to messages within their limits. Pure.
#include "actors/core/wire.hpp"

#include <algorithm>
#include <array>
#include <climits>

#include <google/protobuf/stubs/logging.h>

#include "actors/core/error.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::wire {

namespace {

constexpr int wire_version = 1;
constexpr std::size_t nonce_bytes = 16;
constexpr std::size_t challenge_bytes = 32;
constexpr std::size_t signature_bytes = 64;  // Ed25519, RFC 8032 5.1.6
constexpr std::size_t token_chars = 64;      // 32 bytes in hex
constexpr std::size_t digest_chars = 32;     // 16 bytes in hex
constexpr std::size_t word_bytes_max = 64;   // an enumerated word that is not known here
constexpr int addresses_read_max = 256;      // more than may be stored, so that "too many" can be shown
constexpr std::size_t connector_path_bytes_max = 2 * limits::label_chars_max + 1;  // project/name
constexpr std::size_t refusal_bytes_max = 4096;   // a gateway's own words, shown to the operator
constexpr std::size_t node_bytes_max = 256;       // what an Envoy says of itself, shown only
constexpr std::size_t caller_bytes_max = 256;     // the edge lets 128 through; an address is shorter
constexpr int targets_max = 4096;            // what fits into agent_message_bytes_max anyway
constexpr std::size_t set_bytes_max = limits::bus_message_bytes_max;

bad_message field_error(std::string field, std::string message) {
  return {"field", std::move(field), std::move(message)};
}

template <class T>
parsed<T> read(std::string_view bytes, std::size_t bytes_max) {
  static_assert(limits::bus_message_bytes_max < INT_MAX);
  if (bytes.size() > bytes_max)
    return {std::nullopt, {"oversized", {}, std::to_string(bytes.size()) + " bytes, more than " + std::to_string(bytes_max)}};
  // The library writes a line to stderr for each string that is no UTF-8: a stranger must not fill the log.
  [[maybe_unused]] static const auto quiet = google::protobuf::SetLogHandler(nullptr);
  parsed<T> out{T{}, {}};
  if (!out.value->ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return {std::nullopt, {"garbage", {}, "is not a " + std::string{T::descriptor()->name()}}};
  return out;
}

template <class T>
parsed<T> read_versioned(std::string_view bytes, std::size_t bytes_max) {
  auto out = read<T>(bytes, bytes_max);
  if (out && out->version() != wire_version)
    return {std::nullopt, {"version", {}, "version " + std::to_string(out->version()) + ", known is 1"}};
  return out;
}

using problem = std::optional<bad_message>;

/// The first check that fails turns the message down.
template <class T>
parsed<T> judged(parsed<T> message, problem (*judge)(T&)) {
  if (!message) return message;
  if (auto found = judge(*message)) return {std::nullopt, std::move(*found)};
  return message;
}

/// The same for a message that arrives without some of its tunnels.
template <class T>
parsed<T> judged(parsed<T> message, problem (*judge)(T&, omission&)) {
  if (!message) return message;
  if (auto found = judge(*message, message.omitted)) return {std::nullopt, std::move(*found)};
  return message;
}

/// What a Timestamp can say: a clock may be wrong, and what differs from ours is shown.
problem wall_time(std::int64_t ms, const char* field) {
  constexpr std::int64_t end_of_year_9999 = 253'402'300'799'999;
  if (ms >= 0 && ms <= end_of_year_9999) return {};
  return field_error(field, "is no time between 1970 and 9999");
}
problem not_negative(std::int64_t value, const char* field) {
  if (value < 0) return field_error(field, "is negative");
  return {};
}
problem word(std::string_view text, std::size_t bytes_max, const char* field) {
  if (text.size() > bytes_max) return field_error(field, "is longer than " + std::to_string(bytes_max) + " bytes");
  if (!protocol::is_printable_utf8(text)) return field_error(field, "has control characters");
  return {};
}
problem exactly(std::string_view bytes, std::size_t size, const char* field) {
  if (bytes.size() != size) return field_error(field, "is not " + std::to_string(size) + " bytes long");
  return {};
}
problem hex_of(std::string_view text, std::size_t chars, const char* field) {
  if (text.size() != chars || !protocol::unhex(text))
    return field_error(field, "is not " + std::to_string(chars) + " lower-case hex digits");
  return {};
}
template <class... Checks>
problem first_of(problem found, Checks... rest) {
  if (found) return found;
  if constexpr (sizeof...(rest) > 0) return first_of(std::move(rest)...);
  else return {};
}

problem judge_addressing(const bus::v1::Addressing& addressing) {
  if (addressing.addresses_size() > addresses_read_max)
    return field_error("addressing.addresses", "more than " + std::to_string(addresses_read_max));
  return {};
}

template <class Targets>
problem judge_targets(Targets& targets) {
  if (targets.size() > targets_max) return field_error("targets", "more than " + std::to_string(targets_max));
  for (auto& target : targets) {
    if (target.state() != "Reachable" && target.state() != "Unreachable" && target.state() != "Unknown")
      return field_error("targets.state", "is none of Reachable, Unreachable, Unknown");
    if (target.tunnel_uid().empty()) return field_error("targets.tunnel_uid", "is empty");
    if (target.rule() < 0 || target.rule() >= static_cast<std::int32_t>(limits::rules_max))
      return field_error("targets.rule", "is not the index of a rule");
    if (auto found = first_of(word(target.tunnel_uid(), uid_bytes_max, "targets.tunnel_uid"),
                              not_negative(target.tunnel_generation(), "targets.tunnel_generation")))
      return found;
    target.set_message(clean_text(target.message(), limits::target_message_bytes_max));
  }
  return {};
}

problem judge_report(bus::v1::Report& report) {
  return first_of(judge_addressing(report.addressing()),
                  not_negative(report.attached_generation(), "report.attached_generation"),
                  judge_targets(*report.mutable_targets()));
}

template <class T>
problem judge_session(const T& message) {
  return first_of(not_negative(message.session(), "session"), hex_of(message.token(), token_chars, "token"));
}

problem judge_hello(bus::v1::HelloRequest& hello) {
  if (auto found = exactly(hello.nonce(), nonce_bytes, "nonce")) return found;
  if (hello.challenge().empty() && hello.signature().empty()) return {};  // asks for a challenge
  return first_of(exactly(hello.challenge(), challenge_bytes, "challenge"),
                  exactly(hello.signature(), signature_bytes, "signature"),
                  word(hello.agent_version(), limits::agent_version_bytes_max, "agent_version"),
                  judge_addressing(hello.addressing()), wall_time(hello.sent_at_ms(), "sent_at_ms"),
                  not_negative(hello.attached_generation(), "attached_generation"),
                  word(hello.connector_uid(), uid_bytes_max, "connector_uid"));
}

problem judge_heartbeat(bus::v1::Heartbeat& beat) {
  return first_of(judge_session(beat), not_negative(beat.sequence(), "sequence"),
                  wall_time(beat.sent_at_ms(), "sent_at_ms"),
                  not_negative(beat.attached_generation(), "attached_generation"),
                  not_negative(beat.interval_ms(), "interval_ms"), hex_of(beat.digest(), digest_chars, "digest"));
}

problem judge_event(bus::v1::AgentEvent& event) {
  if (auto found = first_of(judge_session(event), not_negative(event.sequence(), "sequence"),
                            wall_time(event.sent_at_ms(), "sent_at_ms")))
    return found;
  switch (event.event_case()) {
    case bus::v1::AgentEvent::kBye: return {};
    case bus::v1::AgentEvent::kReport: return judge_report(*event.mutable_report());
    case bus::v1::AgentEvent::EVENT_NOT_SET: break;
  }
  return field_error("event", "is none that is known");
}

problem judge_command_reply(bus::v1::CommandReply& reply) {
  if (auto found = first_of(judge_session(reply), not_negative(reply.command_id(), "command_id"),
                            word(reply.error(), word_bytes_max, "error"),
                            not_negative(reply.attached_generation(), "attached_generation"),
                            judge_targets(*reply.mutable_targets())))
    return found;
  if (reply.has_report()) return judge_report(*reply.mutable_report());
  return {};
}

problem judge_attachment_key(const bus::v1::Attachment& attachment) {
  if (attachment.tunnel_uid().empty()) return field_error("attachments.tunnel_uid", "is empty");
  return first_of(word(attachment.tunnel_uid(), uid_bytes_max, "attachments.tunnel_uid"),
                  not_negative(attachment.tunnel_generation(), "attachments.tunnel_generation"));
}

problem judge_attachment_content(const bus::v1::Attachment& attachment) {
  if (attachment.rules_size() > static_cast<int>(limits::rules_max))
    return field_error("attachments.rules", "more than " + std::to_string(limits::rules_max));
  if (auto found = word(attachment.tunnel(), limits::label_chars_max, "attachments.tunnel")) return found;
  for (const auto& rule : attachment.rules()) {
    if (rule.index() < 0 || rule.index() >= static_cast<std::int32_t>(limits::rules_max))
      return field_error("attachments.rules.index", "is not the index of a rule");
    if (auto found = word(rule.target(), limits::target_bytes_max, "attachments.rules.target")) return found;
  }
  return {};
}

/// One that is not sound must not keep its neighbours from being held.
void omit_unsound(google::protobuf::RepeatedPtrField<bus::v1::Attachment>& attachments, omission& omitted) {
  for (auto& attachment : attachments) {
    const auto wrong = check_attachment(attachment);
    if (!wrong) continue;
    auto name = clean_text(attachment.tunnel(), limits::label_chars_max);
    if (omitted.tunnels++ == 0) {
      omitted.tunnel = name;
      omitted.field = wrong->field;
      omitted.message = wrong->message;
    }
    attachment.set_tunnel(std::move(name));
    attachment.clear_rules();
  }
  const auto nameless = [](const auto& attachment) { return judge_attachment_key(attachment).has_value(); };
  attachments.erase(std::remove_if(attachments.begin(), attachments.end(), nameless), attachments.end());
}

problem judge_hello_reply(bus::v1::HelloReply& reply, omission& omitted) {
  reply.set_message(clean_text(reply.message(), 1024));
  reply.set_addressing_error(clean_text(reply.addressing_error(), 1024));
  if (auto found = first_of(word(reply.error(), word_bytes_max, "error"), not_negative(reply.session(), "session"),
                            not_negative(reply.retry_after_ms(), "retry_after_ms"),
                            not_negative(reply.heartbeat_interval_ms(), "heartbeat_interval_ms"),
                            not_negative(reply.lease_duration_ms(), "lease_duration_ms"),
                            word(reply.connector_uid(), uid_bytes_max, "connector_uid"),
                            not_negative(reply.attachments().generation(), "attachments.generation")))
    return found;
  if (reply.has_attachments()) omit_unsound(*reply.mutable_attachments()->mutable_attachments(), omitted);
  if (!reply.challenge().empty()) return exactly(reply.challenge(), challenge_bytes, "challenge");
  if (reply.error().empty()) return hex_of(reply.token(), token_chars, "token");
  return {};
}

problem judge_agent_command(bus::v1::AgentCommand& command, omission& omitted) {
  if (auto found = first_of(not_negative(command.incarnation(), "incarnation"), not_negative(command.epoch(), "epoch"),
                            not_negative(command.session(), "session"), not_negative(command.command_id(), "command_id")))
    return found;
  switch (command.command_case()) {
    case bus::v1::AgentCommand::kAttach:
      omit_unsound(*command.mutable_attach()->mutable_attachments(), omitted);
      return first_of(not_negative(command.attach().from_generation(), "attach.from_generation"),
                      not_negative(command.attach().generation(), "attach.generation"));
    case bus::v1::AgentCommand::kSet:
      omit_unsound(*command.mutable_set()->mutable_attachments(), omitted);
      return not_negative(command.set().generation(), "set.generation");
    case bus::v1::AgentCommand::kDetach:
      for (const auto& tunnel : command.detach().tunnels())
        if (auto found = first_of(word(tunnel.tunnel_uid(), uid_bytes_max, "detach.tunnels.tunnel_uid"),
                                  not_negative(tunnel.tunnel_generation(), "detach.tunnels.tunnel_generation")))
          return found;
      return first_of(not_negative(command.detach().from_generation(), "detach.from_generation"),
                      not_negative(command.detach().generation(), "detach.generation"));
    case bus::v1::AgentCommand::kInterval:
      return not_negative(command.interval().heartbeat_interval_ms(), "interval.heartbeat_interval_ms");
    case bus::v1::AgentCommand::kSuperseded:
      command.mutable_superseded()->set_message(clean_text(command.superseded().message(), 1024));
      return {};
    case bus::v1::AgentCommand::kReport:
    case bus::v1::AgentCommand::kHelloAgain: return {};
    case bus::v1::AgentCommand::COMMAND_NOT_SET: break;
  }
  return field_error("command", "is none that is known");
}

problem judge_revision(bus::v1::Revision& revision) {
  if (auto found = first_of(not_negative(revision.partition(), "partition"), not_negative(revision.epoch(), "epoch"),
                            not_negative(revision.revision(), "revision"),
                            not_negative(revision.incarnation(), "incarnation")))
    return found;
  for (const auto& row : revision.rows())
    if (row.row_case() == core::v1::Row::ROW_NOT_SET) return field_error("rows", "has a row of no known kind");
  return {};
}

problem judge_gateway_ack(bus::v1::GatewayAck& ack) {
  if (!protocol::is_label(ack.gateway())) return field_error("gateway", "is no label");
  if (ack.state() != "connecting" && ack.state() != "caught_up" && ack.state() != "stalled" && ack.state() != "gone")
    return field_error("state", "is none of connecting, caught_up, stalled, gone");
  for (auto& refusal : *ack.mutable_refused()) {
    if (auto found = first_of(word(refusal.tunnel_uid(), uid_bytes_max, "refused.tunnel_uid"),
                              word(refusal.connector(), connector_path_bytes_max, "refused.connector"),
                              not_negative(refusal.revision(), "refused.revision"),
                              not_negative(refusal.at_ms(), "refused.at_ms")))
      return found;
    refusal.set_message(clean_text(refusal.message(), refusal_bytes_max));
  }
  for (auto* text : {ack.mutable_node_id(), ack.mutable_node_cluster(), ack.mutable_node_locality()})
    *text = clean_text(*text, node_bytes_max);
  return first_of(not_negative(ack.incarnation(), "incarnation"), not_negative(ack.instance(), "instance"),
                  not_negative(ack.partition(), "partition"), not_negative(ack.stream(), "stream"),
                  not_negative(ack.acknowledged(), "acknowledged"), word(ack.class_(), limits::label_chars_max, "class"));
}

problem judge_lease_notice(bus::v1::LeaseNotice& notice) {
  static constexpr std::array<std::string_view, 5> known{"alive", "released", "taken", "leaving", "drain"};
  if (std::find(known.begin(), known.end(), notice.what()) == known.end())
    return field_error("what", "is none of alive, released, taken, leaving, drain");
  return first_of(not_negative(notice.instance(), "instance"), not_negative(notice.partition(), "partition"),
                  not_negative(notice.successor(), "successor"), not_negative(notice.epoch(), "epoch"),
                  word(notice.principal(), caller_bytes_max, "principal"), word(notice.remote(), caller_bytes_max, "remote"));
}

problem judge_api_command(core::v1::Command& command) {
  if (!command.project().empty() && !protocol::is_label(command.project())) return field_error("project", "is no label");
  if (command.command_case() == core::v1::Command::COMMAND_NOT_SET) return field_error("command", "is none that is known");
  return first_of(not_negative(command.patience_ms(), "patience_ms"),
                  word(command.caller().principal(), caller_bytes_max, "caller.principal"),
                  word(command.caller().remote(), caller_bytes_max, "caller.remote"),
                  word(command.caller().request_id(), limits::request_id_bytes_max, "caller.request_id"),
                  word(command.caller().method(), word_bytes_max, "caller.method"),
                  word(command.caller().digest(), word_bytes_max, "caller.digest"));
}

problem judge_api_reply(core::v1::Reply& reply) {
  if (!errc_from(reply.code())) return field_error("code", "is none that is known");
  return first_of(not_negative(reply.retry_after_ms(), "retry_after_ms"), not_negative(reply.partition(), "partition"),
                  not_negative(reply.revision(), "revision"));
}

}  // namespace

parsed<bus::v1::HelloRequest> parse_hello(std::string_view bytes) {
  return judged(read_versioned<bus::v1::HelloRequest>(bytes, limits::agent_message_bytes_max), judge_hello);
}
parsed<bus::v1::Heartbeat> parse_heartbeat(std::string_view bytes) {
  return judged(read_versioned<bus::v1::Heartbeat>(bytes, limits::agent_message_bytes_max), judge_heartbeat);
}
parsed<bus::v1::AgentEvent> parse_event(std::string_view bytes) {
  return judged(read_versioned<bus::v1::AgentEvent>(bytes, limits::agent_message_bytes_max), judge_event);
}
parsed<bus::v1::CommandReply> parse_command_reply(std::string_view bytes) {
  return judged(read_versioned<bus::v1::CommandReply>(bytes, limits::agent_message_bytes_max), judge_command_reply);
}
parsed<bus::v1::HelloReply> parse_hello_reply(std::string_view bytes) {
  return judged(read_versioned<bus::v1::HelloReply>(bytes, set_bytes_max), judge_hello_reply);
}
parsed<bus::v1::AgentCommand> parse_agent_command(std::string_view bytes) {
  return judged(read_versioned<bus::v1::AgentCommand>(bytes, set_bytes_max), judge_agent_command);
}
parsed<bus::v1::Revision> parse_revision(std::string_view bytes) {
  return judged(read_versioned<bus::v1::Revision>(bytes, limits::bus_message_bytes_max), judge_revision);
}
parsed<bus::v1::GatewayAck> parse_gateway_ack(std::string_view bytes) {
  return judged(read_versioned<bus::v1::GatewayAck>(bytes, limits::bus_message_bytes_max), judge_gateway_ack);
}
parsed<bus::v1::LeaseNotice> parse_lease_notice(std::string_view bytes) {
  return judged(read_versioned<bus::v1::LeaseNotice>(bytes, limits::agent_message_bytes_max), judge_lease_notice);
}
parsed<core::v1::Command> parse_api_command(std::string_view bytes) {
  return judged(read<core::v1::Command>(bytes, limits::api_request_bytes_max), judge_api_command);
}
parsed<core::v1::Reply> parse_api_reply(std::string_view bytes) {
  return judged(read<core::v1::Reply>(bytes, limits::bus_message_bytes_max), judge_api_reply);
}

std::optional<bad_message> check_attachment(const bus::v1::Attachment& attachment) {
  auto wrong = judge_attachment_key(attachment);
  return wrong ? wrong : judge_attachment_content(attachment);
}

std::string clean_text(std::string_view text, std::size_t bytes_max) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    const auto character = text.substr(i, length);
    const bool good = character.size() == length && protocol::is_printable_utf8(character);
    const auto shown = good ? character : std::string_view{"?"};
    if (out.size() + shown.size() > bytes_max) break;
    out.append(shown);
    i += good ? length : 1;
  }
  return out;
}

}  // namespace warren::wire
