// actors/core/limits.hpp -- every limit, with its unit and its reason. No CAF, no I/O.
#pragma once

#include <cstddef>
#include <cstdint>

#include "actors/core/time.hpp"

namespace warren::limits {

// ---- names and specs (the API's contract) ----
inline constexpr std::size_t label_chars_max = 63;          // DNS-1123
inline constexpr std::size_t hostname_chars_max = 253;      // RFC 1035 2.3.4, without the final dot
inline constexpr std::size_t hostnames_max = 16;            // per tunnel
inline constexpr std::size_t rules_max = 16;                // per tunnel
inline constexpr std::size_t path_prefix_bytes_max = 1024;  // Envoy matches it byte by byte
inline constexpr std::size_t target_bytes_max = 300;        // scheme, host name, port
inline constexpr std::size_t addresses_max = 16;            // per connector
inline constexpr std::size_t home_relay_bytes_max = 2048;
inline constexpr auto lease_min = 3s;
inline constexpr auto lease_max = 1h;
inline constexpr auto lease_default = 30s;
inline constexpr std::size_t request_id_bytes_max = 128;
inline constexpr auto request_id_kept = 24h;
inline constexpr auto audit_kept = 24h * 90;
inline constexpr auto tombstone_kept = 1h;
inline constexpr std::size_t class_networks_max = 64;
inline constexpr std::size_t class_listen_max = 16;
inline constexpr auto stream_idle_min = 1s;                 // per gateway class
inline constexpr auto stream_idle_max = 24h;
inline constexpr auto stream_idle_default = 5min;           // gateways.md: per stream

// ---- wire ----
inline constexpr std::size_t agent_message_bytes_max = 64 * 1024;    // hello, heartbeat, event, reply
inline constexpr std::size_t bus_message_bytes_max = 900 * 1024;     // below NATS' default max_payload of 1 MiB
inline constexpr std::size_t api_request_bytes_max = 256 * 1024;
inline constexpr std::size_t target_message_bytes_max = 256;         // the agent's words, kept in the row
inline constexpr std::size_t agent_version_bytes_max = 64;
inline constexpr std::size_t bus_pending_messages_max = 65'536;      // per subscription; beyond: dropped and counted
inline constexpr std::size_t bus_pending_bytes_max = 64 * 1024 * 1024;
inline constexpr std::size_t bus_requests_max = 20'000;              // outstanding, per instance
// What agents say, per partition and kind of subject, from the bus until its connector has handled it; beyond:
// dropped and counted. 10,000 agents of one project say as much in 1.6 s.
inline constexpr std::size_t agents_waiting_messages_max = 8192;
inline constexpr std::size_t agents_waiting_bytes_max = 4 * 1024 * 1024;
inline constexpr std::size_t connector_waiting_messages_max = 64;    // of these for one connector: a lease's heartbeats,
                                                                     // and a flood of one agent's is its own

// ---- retries: delayed self-messages, full jitter ----
inline constexpr auto conflict_retry_first = 20ms;
inline constexpr auto conflict_retry_max = 200ms;
inline constexpr auto unavailable_retry_first = 50ms;   // the database is away
inline constexpr auto unavailable_retry_max = 1s;
inline constexpr auto repeat_after = 1s;                // announcements, until their effect is seen
inline constexpr auto request_timeout_default = 10s;    // admin requests without a deadline
inline constexpr auto request_timeout_max = 60s;

// ---- connectors ----
inline constexpr auto heartbeat_interval_default = 2s;
inline constexpr auto heartbeat_interval_unsaid = 10s;  // assumed of an agent after a takeover, until it says its own
inline constexpr std::int64_t heartbeats_per_second_max = 5'000;   // of an instance's agents: 10,000 at the default interval; beyond
                                                                   // that the interval doubles, so that heartbeats never
                                                                   // crowd out what changes something
inline constexpr auto heartbeat_interval_loaded_max = heartbeat_interval_unsaid;  // no longer, whatever the load
inline constexpr std::int64_t heartbeats_per_lease_min = 4;        // nor longer than a quarter of the lease: three may get lost
inline constexpr auto challenge_kept = 10s;
inline constexpr auto roll_call_answer = 5s;
inline constexpr std::size_t roll_call_offline = 10;    // offline ones called at a time, per partition and second
inline constexpr auto own_delay_max = 100ms;            // a wake that comes later: we were stopped or starved ourselves,
inline constexpr auto own_delay_grace = 500ms;          // and silence does not count until this has passed,
inline constexpr int own_delays_max = 3;                // not more often in a row: whoever is always late must decide, too
inline constexpr auto dial_timeout = 750ms;
inline constexpr auto dial_again_after = 50ms;
inline constexpr auto suspicions_apart = 50ms;          // whoever makes an agent's connection end in a loop makes 20 dials a second
inline constexpr std::size_t dials_max = 64;            // at a time, per instance
inline constexpr auto mass_silence_window = 10s;
inline constexpr auto mass_silence_max = 5min;
inline constexpr int mass_silence_percent = 5;
inline constexpr int mass_silence_connectors_min = 20;
inline constexpr auto dial_answer_max = 10s;            // from the dialer, its queue included; then: never dialled
inline constexpr std::size_t agent_wakes_at_a_time = 64;  // rows of sleeping connectors read for their agents, per partition:
                                                          // 20 ms of a store's lane
inline constexpr std::size_t agent_wakes_max = 1024;      // those that are read and those whose turn comes; beyond: `unavailable`
inline constexpr std::size_t agent_wake_messages_max = 4; // kept for each meanwhile: hello, heartbeat, report
inline constexpr auto stranger_retry = 10s;             // of an agent without a row or a key: an operator has to act first
inline constexpr std::size_t strangers_told_max = 20;   // heartbeats of such answered, per partition and second
inline constexpr int challenges_max = 4;                // outstanding, per connector
inline constexpr int attachment_wishes_max = 1024;      // not stored yet, per connector; tunnels ask again
inline constexpr int attachment_batch = 256;            // attachments per transition
inline constexpr int set_changes_max = 64;              // steps of the set kept for increments; else the whole set

// ---- gateways ----
inline constexpr auto gateway_stalled_after = 5s;
inline constexpr auto gateway_settle = 5s;              // after an instance's start
inline constexpr auto deletion_gateway_wait = 60s;      // for a gateway that is disconnected
inline constexpr auto deletion_agent_wait = 10s;        // for an online agent

// ---- ownership ----
inline constexpr auto instance_lease = 3s;
inline constexpr auto instance_renew = 1s;
inline constexpr auto instance_pulse = 100ms;           // "alive" on the bus
inline constexpr auto instance_silent_after = 300ms;    // three of them: the database is asked whether it is dead
inline constexpr auto judge_first = 20ms;               // PostgreSQL frees a dead one's lock within milliseconds
inline constexpr auto judge_max = 200ms;                // how long after its end a lease that ends is noticed
inline constexpr auto handover_answer = 500ms;          // from a successor; then the next partition is released
inline constexpr auto partition_behind_after = 3s;      // without looking at its clock: it is named in /readyz
inline constexpr std::size_t takes_max = 64;            // in one statement: a dead or a new instance's share at once
inline constexpr int moves_max = 8;                     // released in one round of balancing
inline constexpr int partitions_default = 64;

// ---- store ----
inline constexpr int store_lanes = 4;                   // connections that commit; each partition has a fixed one
inline constexpr std::size_t group_transitions_max = 256;
inline constexpr std::size_t lane_queue_max = 50'000;   // beyond: overloaded
inline constexpr auto store_answer_max = 30s;           // its promise for whatever is asked, so that askers need no limit of
                                                        // their own: a silent server is given up before that, also one that
                                                        // was reading a whole partition (20 s)
inline constexpr auto passivate_after = 60s;            // an entity with nothing owed and nobody asking
inline constexpr auto tunnel_passivate_after = 5s;      // of which there are most: awake it is 5 kB, and to wake it is one read
inline constexpr std::size_t entity_pending_commands_max = 64;
inline constexpr int command_repetitions_max = 64;      // of a command that waits: one a second, for as long as a caller does
inline constexpr std::size_t activate_batch = 500;      // rows per bulk load

// ---- scheduling ----
inline constexpr std::size_t actor_turn_messages = 64;  // then another actor has its turn, whatever waits for this one

// ---- log ----
inline constexpr auto outage_line_every = 10s;          // of what fails again and again; the lines between are counted
inline constexpr int news_lines_per_second = 10;        // of agents that come and go, per instance; the rest is counted

// ---- lists and watches ----
inline constexpr auto data_age_shown = 3s;              // of a read: three repeats of the revision have not come
inline constexpr int page_size_default = 100;
inline constexpr int page_size_max = 1000;
inline constexpr std::size_t page_bytes_max = 3 * 1024 * 1024;  // of a page's items, on the wire: gRPC's clients take 4 MiB
                                                                // unless told otherwise, its token and framing included
inline constexpr std::size_t watches_max = 1000;        // per instance
inline constexpr std::size_t watch_queue_max = 10'000;  // events per watcher; beyond: closed, to be resumed

// ---- flight recorder ----
inline constexpr std::size_t recorder_bytes_default = 48 * 1024 * 1024;  // 1,000 agents: half an hour; 10,000: a minute
inline constexpr std::size_t recorder_bytes_max = 4ull * 1024 * 1024 * 1024;
inline constexpr std::size_t recorder_shards = 8;              // writers at a time that do not meet
inline constexpr std::size_t recorder_segments = 3;            // of a shard; the oldest goes as a whole, two thirds stay
inline constexpr std::size_t recorder_segment_steps_max = 100'000;   // what one reader has to unpack at a time
inline constexpr std::size_t recorder_record_share = 4;        // a step or state larger than 1/4 segment is left out
inline constexpr std::size_t recorder_digest_credit = 64;      // bytes of state that a step that wrote nothing pays for
inline constexpr std::size_t recorder_digest_credit_saved = 8 * 1024;  // … that asked for a save: ten times a usual tunnel
inline constexpr std::size_t bundle_chunk_bytes = 256 * 1024;  // of a diagnostic bundle, in one message
inline constexpr std::size_t bundles_max = 2;                  // made at a time, per instance

}  // namespace warren::limits
