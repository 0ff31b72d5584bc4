// actors/core/wire.hpp -- from bytes off the bus to messages whose every field is within its limits. Pure:
// no CAF, no NATS, no I/O, no logging.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/commands.pb.h"

namespace warren::wire {

inline constexpr std::size_t uid_bytes_max = 64;  // a UUID has 36

/// Why a message is dropped.
struct bad_message {
  std::string_view reason;  ///< label of warren_bus_dropped_total: "oversized", "garbage", "version", "field"
  std::string field;        ///< which one, with reason "field"
  std::string message;      ///< in words, without the sender's bytes
};

/// Tunnels of a set that no agent can hold. They are not in the message; whoever is beside them is.
struct omission {
  std::size_t tunnels = 0;
  std::string tunnel, field, message;  ///< of the first: its name without what is not printable, and what is wrong
};

template <class T>
struct parsed {
  std::optional<T> value;
  bad_message error;  ///< when there is no value
  omission omitted = {};
  explicit operator bool() const { return value.has_value(); }
  const T& operator*() const { return *value; }
  T& operator*() { return *value; }
  const T* operator->() const { return &*value; }
};

// Sizes first, then protobuf, then version, then each field. Addressing is passed on as it came: what is wrong
// with it is shown to the operator by the connector itself. Agents' texts are cut and cleaned, not refused.
parsed<bus::v1::HelloRequest> parse_hello(std::string_view bytes);
parsed<bus::v1::Heartbeat> parse_heartbeat(std::string_view bytes);
parsed<bus::v1::AgentEvent> parse_event(std::string_view bytes);
parsed<bus::v1::CommandReply> parse_command_reply(std::string_view bytes);
// What an agent hears. An attachment that check_attachment refuses arrives without rules, for that is what shall be held
// of it; one of which not even the key is sound does not arrive.
parsed<bus::v1::HelloReply> parse_hello_reply(std::string_view bytes);
parsed<bus::v1::AgentCommand> parse_agent_command(std::string_view bytes);
// between instances
parsed<bus::v1::Revision> parse_revision(std::string_view bytes);
parsed<bus::v1::GatewayAck> parse_gateway_ack(std::string_view bytes);
parsed<bus::v1::LeaseNotice> parse_lease_notice(std::string_view bytes);
parsed<core::v1::Command> parse_api_command(std::string_view bytes);
parsed<core::v1::Reply> parse_api_reply(std::string_view bytes);

/// Nothing, or what of an attachment no agent takes. Owners send none of these: a set is one message for all tunnels.
std::optional<bad_message> check_attachment(const bus::v1::Attachment& attachment);

/// At most `bytes_max` bytes of `text`, cut between characters, control characters and what is no UTF-8 as '?'.
std::string clean_text(std::string_view text, std::size_t bytes_max);

}  // namespace warren::wire
