// actors/core/subjects.hpp -- every NATS subject of ours, built and parsed. Pure: no NATS, no CAF.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "actors/core/ids.hpp"
#include "actors/core/protocol.hpp"

namespace warren::bus {

// What both ends compute alike; machines use it from actors/core/protocol.hpp.
using protocol::hello_to_sign;
using protocol::report_digest;

inline constexpr std::string_view kind_connector = "connector";
inline constexpr std::string_view kind_peer = "peer";

// agent -> owner
std::string hello_subject(partition_id partition, std::string_view project, std::string_view kind, std::string_view name);
std::string heartbeat_subject(partition_id partition, std::string_view project, std::string_view kind, std::string_view name);
std::string event_subject(partition_id partition, std::string_view project, std::string_view kind, std::string_view name);
// owner -> agent
std::string command_subject(std::string_view project, std::string_view kind, std::string_view name);
// between instances
std::string api_subject(partition_id partition);
std::string revision_subject(partition_id partition);
std::string ack_subject(partition_id partition);
inline constexpr std::string_view lease_subject = "warren.v1.lease";
// subscriptions
std::string hello_wildcard(partition_id partition);      ///< all agents of a partition
std::string heartbeat_wildcard(partition_id partition);
std::string event_wildcard(partition_id partition);
inline constexpr std::string_view revision_wildcard = "warren.v1.rev.*";
inline constexpr std::string_view ack_wildcard = "warren.v1.ack.*";

enum class subject_room : std::uint8_t { hello, heartbeat, event, command, api, revision, ack, lease };

/// The views point into the parsed subject.
struct parsed_subject {
  subject_room room = subject_room::lease;
  partition_id partition = -1;                 ///< -1: the subject has none (command, lease)
  std::string_view project, kind, name;        ///< empty: the subject has none
};

/// Refuses everything that the builders above would not have made: unknown rooms and kinds, names that are
/// no DNS-1123 label, partitions with leading zeros or beyond 65,535, wildcards.
std::optional<parsed_subject> parse_subject(std::string_view subject);

/// How agents name their NATS connection, so that a DISCONNECT event can be told: "warren-agent/project/kind/name".
std::string agent_connection_name(std::string_view project, std::string_view kind, std::string_view name);
/// How instances name theirs: "warrend/name/id". The name is the configured one, and may hold anything.
std::string instance_connection_name(std::string_view name, instance_id id);
std::optional<instance_id> parse_instance_connection_name(std::string_view connection_name);
struct parsed_agent { std::string_view project, kind, name; };
std::optional<parsed_agent> parse_agent_connection_name(std::string_view connection_name);

}  // namespace warren::bus
