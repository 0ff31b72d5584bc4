// actors/messages.hpp -- every actor interface, one sentence per message. The only file with CAF macros.
// All messages are local to the process: between processes there is only protobuf over NATS.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <caf/all.hpp>
#include <caf/default_attachable.hpp>

#include "actors/core/ids.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/save.hpp"
#include "actors/core/time.hpp"
#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/commands.pb.h"
#include "warren/core/v1/events.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren {

namespace busv1 = warren::bus::v1;

// ---- store ----

/// One entity with its children: a tunnel and its claims, a connector and its attachments.
struct load_entity {
  std::string kind;  ///< "tunnel", "connector", "gateway", "gateway_class", "connector_class"
  std::string project, name;
  partition_id partition = 0;
  epoch_t epoch = 0;  ///< a row that a rival marked is adopted under this epoch first
};
/// What in a partition is online, is being deleted or owes something, after adopting a rival's marks.
struct load_partition {
  partition_id partition = 0;
  epoch_t epoch = 0;
};
/// What this request id was answered before: save_replayed; save_refused: it stood for another content;
/// `saved` without rows: it is new.
struct find_answer {
  answered_request request;
};
/// The tunnels of a project that name this connector.
struct load_naming {
  std::string project, connector;
};
/// Rows that a rival touched in this partition: adopted at a revision of ours, and returned; with them the tunnels
/// of which it deleted a claim or an attachment.
struct adopt_rivals {
  partition_id partition = 0;
  epoch_t epoch = 0;
};
struct loaded {
  std::string error;           ///< not empty: the database is away, try again
  bool lost = false;           ///< the partition is no longer ours
  std::vector<v1::Row> rows;   ///< entities first, then their children
};
/// All replicated rows of a partition that changed after `after` (0: all), in one snapshot.
struct fetch_changes {
  partition_id partition = 0;
  revision_t after = 0;
};
struct changes {
  std::string error;
  bool complete = false;       ///< everything that exists (after was too old, or 0): forget what is not here
  revision_t revision = 0;     ///< the partition's revision in the same snapshot
  epoch_t epoch = 0;
  std::int64_t incarnation = 0;  ///< of the database that was read; 0: not said
  std::vector<v1::Row> rows;   ///< tombstones included
  revision_t tombstones_from = -1;  ///< deletions after this revision are all in `rows` (complete only); -1: not said
};

// ---- placement's part of the store ----

/// `drain_asked`: who wants it to drain, for the audit trail, which says so once.
struct renew_lease { bool bus_ok = true; bool draining = false; std::optional<audit_entry> drain_asked = {}; };
/// Takes those of them that may be taken (actors/placement/README.md); at most limits::takes_max, without repetition.
struct take_partitions { std::vector<partition_id> partitions; };
struct release_partition { partition_id partition = 0; epoch_t epoch = 0; };
/// Ends the lease of an instance whose advisory lock can be had: its process is dead, or has lost its database.
/// Somebody alive who is asked about keeps everything. 0: only look.
struct judge_instance { instance_id instance = 0; };
struct partition_row {
  partition_id id = 0;
  instance_id owner = 0;  ///< 0: nobody
  epoch_t epoch = 0;
  revision_t revision = 0;
};
struct instance_row {
  instance_id id = 0;
  std::string name;
  std::int64_t started_at_ms = 0, expires_at_ms = 0;  ///< database's wall clock
  bool bus_ok = true, draining = false, alive = false;
};
/// The answer to all four: what the database says after the statement.
struct placement_view {
  std::string error;            ///< not empty: the database is away; act as if nothing is known
  bool renewed = false;         ///< our lease row was there and has been prolonged
  bool reconnected = false;     ///< our lock was lost with its connection and taken again: others' may be as well
  std::vector<partition_id> taken;  ///< take_partitions: those that are ours now, at the epochs in `partitions`
  std::int64_t incarnation = 0;
  std::vector<instance_row> instances;
  std::vector<partition_row> partitions;
};

// ---- bus ----

struct bus_message {
  std::string subject, payload, reply_to;  ///< reply_to empty: nobody waits
  std::shared_ptr<const void> place = {};  ///< among what may wait for the receiver; goes with whatever comes of it
};
struct bus_publish {
  std::string subject, payload;
  bool bulk = false;  ///< may wait a millisecond to travel with others
  std::shared_ptr<const void> place = {};  ///< of the message that this answers
};
struct bus_request {
  std::string subject, payload;
  millis timeout{1000};
};
struct bus_reply {
  std::string error;    ///< "", "no_responders", "timeout", "disconnected", "overloaded"
  std::string payload;
};
/// Messages on `subject` go to `receiver` as bus_message until unsubscribed or until it ends. Beyond what may wait
/// (their places are taken) they are dropped and counted: mailboxes have no bound of their own.
struct bus_subscribe {
  std::string subject;
  caf::actor receiver;
  std::size_t messages_max = limits::bus_pending_messages_max, bytes_max = limits::bus_pending_bytes_max;
};
struct bus_unsubscribe { std::string subject; caf::actor receiver; };
struct bus_state { bool connected = false; };  ///< sent to whoever asked with bus_watch
struct bus_watch { caf::actor receiver; };

// ---- dialer ----

/// OPTIONS * with the endpoint id to all addresses at once.
struct dial_request { std::string endpoint_id; std::vector<std::string> addresses; millis timeout{750}; };
struct dial_result {
  enum class outcome : std::uint8_t { answered, refused, unanswered };
  outcome what = outcome::unanswered;  ///< refused: every dial was refused outright
};

// ---- replica ----

/// Something an agent said, as it came; the receiver parses it, sizes first.
struct agent_message {
  enum class what : std::uint8_t { hello, heartbeat, event, command_reply };
  what kind = what::heartbeat;
  std::string project, name, payload, reply_to;
  std::shared_ptr<const void> place = {};  ///< among what may wait of the bus
  std::shared_ptr<const void> line = {};   ///< among what may wait for its connector
};
/// A hint that the agent's NATS connection has ended (system account): no more than a suspicion.
struct agent_disconnected { std::string project, name; };
/// A hint that another instance's NATS connection has ended (system account): it may be dead.
struct peer_disconnected { instance_id instance = 0; };
/// The instance's verdict on silence (mass silence): while `on`, silence and unanswered dials do not count.
struct mass_silence { bool on = false; };
/// connector -> the instance's watch on silence.
struct silence_report {
  std::string project, name;
  bool online = false, silent = false;
};
/// An entity ends so when the store says that its partition is not ours any more, or cannot say what became of a write:
/// the partition ends with it, and is taken anew if it is still this instance's.
inline constexpr auto ownership_lost = caf::exit_reason::remote_link_unreachable;
/// An entity has nothing owed and nobody asking: its partition may let it go. `again`: it was let go while
/// something reached it that leaves it owing, so a fresh one has to go on from its row.
struct idle_notice {
  std::string kind, project, name;
  bool again = false;
  std::int64_t heard_ms = 0;  ///< a connector's: when its agent was last heard, on the steady clock; 0: not at all
};
/// entity -> partition: please carry this to another entity of the same project, activating it.
struct route_to_connector {
  std::string project, name;
  std::variant<v1::AttachTunnel, v1::DetachTunnel, v1::PushAddressing> what;
};
struct route_to_tunnel {
  std::string project, name;
  v1::AttachmentState what;
};
/// connector -> partition: I exist (again); wake the tunnels that name me.
struct connector_appeared { std::string project, name; };
/// connector -> partition: tell me (v1::ClassState) what this class says, and when it changes.
struct class_wanted { std::string project, connector, name; };
/// tunnel -> partition: tell me (v1::Gateways) what the gateways say, now and at each change; or no longer.
struct gateways_wanted { std::string project, name, gateway_class; bool wanted = false; };
/// A delayed message to oneself. A hint only: the machine compares deadlines.
struct wake_up { std::uint64_t serial = 0; };
/// A takeover, the end of a cut from NATS: a full lease for everyone from now, and a roll call.
struct roll_call {};

/// A committed transaction of ours, straight from the store: applied before anyone else hears of it.
struct committed { busv1::Revision revision; };

}  // namespace warren

CAF_BEGIN_TYPE_ID_BLOCK(warren, first_custom_type_id)
CAF_END_TYPE_ID_BLOCK(warren)

#define WARREN_LOCAL_MESSAGE(T) CAF_ALLOW_UNSAFE_MESSAGE_TYPE(T)

WARREN_LOCAL_MESSAGE(warren::save_request)
WARREN_LOCAL_MESSAGE(warren::save_result)
WARREN_LOCAL_MESSAGE(warren::load_entity)
WARREN_LOCAL_MESSAGE(warren::load_partition)
WARREN_LOCAL_MESSAGE(warren::find_answer)
WARREN_LOCAL_MESSAGE(warren::load_naming)
WARREN_LOCAL_MESSAGE(warren::adopt_rivals)
WARREN_LOCAL_MESSAGE(warren::loaded)
WARREN_LOCAL_MESSAGE(warren::fetch_changes)
WARREN_LOCAL_MESSAGE(warren::changes)
WARREN_LOCAL_MESSAGE(warren::renew_lease)
WARREN_LOCAL_MESSAGE(warren::take_partitions)
WARREN_LOCAL_MESSAGE(warren::release_partition)
WARREN_LOCAL_MESSAGE(warren::judge_instance)
WARREN_LOCAL_MESSAGE(warren::placement_view)
WARREN_LOCAL_MESSAGE(warren::peer_disconnected)
WARREN_LOCAL_MESSAGE(warren::bus_message)
WARREN_LOCAL_MESSAGE(warren::bus_publish)
WARREN_LOCAL_MESSAGE(warren::bus_request)
WARREN_LOCAL_MESSAGE(warren::bus_reply)
WARREN_LOCAL_MESSAGE(warren::bus_subscribe)
WARREN_LOCAL_MESSAGE(warren::bus_unsubscribe)
WARREN_LOCAL_MESSAGE(warren::bus_state)
WARREN_LOCAL_MESSAGE(warren::bus_watch)
WARREN_LOCAL_MESSAGE(warren::dial_request)
WARREN_LOCAL_MESSAGE(warren::dial_result)
WARREN_LOCAL_MESSAGE(warren::committed)
WARREN_LOCAL_MESSAGE(warren::roll_call)
WARREN_LOCAL_MESSAGE(warren::gateways_wanted)
WARREN_LOCAL_MESSAGE(warren::wake_up)
WARREN_LOCAL_MESSAGE(warren::class_wanted)
WARREN_LOCAL_MESSAGE(warren::connector_appeared)
WARREN_LOCAL_MESSAGE(warren::route_to_tunnel)
WARREN_LOCAL_MESSAGE(warren::route_to_connector)
WARREN_LOCAL_MESSAGE(warren::idle_notice)
WARREN_LOCAL_MESSAGE(warren::silence_report)
WARREN_LOCAL_MESSAGE(warren::mass_silence)
WARREN_LOCAL_MESSAGE(warren::agent_disconnected)
WARREN_LOCAL_MESSAGE(warren::agent_message)
WARREN_LOCAL_MESSAGE(warren::core::v1::Command)
WARREN_LOCAL_MESSAGE(warren::core::v1::Reply)
WARREN_LOCAL_MESSAGE(warren::core::v1::AttachTunnel)
WARREN_LOCAL_MESSAGE(warren::core::v1::DetachTunnel)
WARREN_LOCAL_MESSAGE(warren::core::v1::PushAddressing)
WARREN_LOCAL_MESSAGE(warren::core::v1::AttachmentState)
WARREN_LOCAL_MESSAGE(warren::core::v1::Gateways)
WARREN_LOCAL_MESSAGE(warren::core::v1::ConnectorAppeared)
WARREN_LOCAL_MESSAGE(warren::core::v1::ClassState)
WARREN_LOCAL_MESSAGE(warren::core::v1::Reloaded)
WARREN_LOCAL_MESSAGE(warren::bus::v1::GatewayAck)
WARREN_LOCAL_MESSAGE(warren::bus::v1::Revision)

namespace warren {

/// Writes and reads; an answer for each request, always (services/store promises it within seconds).
using store_actor = caf::typed_actor<
    /// One transition, in the next group commit of its partition's lane.
    caf::replies_to<save_request>::with<save_result>,
    /// One entity as the database has it.
    caf::replies_to<load_entity>::with<loaded>,
    /// What a starting partition has to activate.
    caf::replies_to<load_partition>::with<loaded>,
    /// Whether a request id has been answered.
    caf::replies_to<find_answer>::with<save_result>,
    /// Tunnels to wake when a connector appears.
    caf::replies_to<load_naming>::with<loaded>,
    /// Rows that rivals touched.
    caf::replies_to<adopt_rivals>::with<loaded>,
    /// What a replica has missed.
    caf::replies_to<fetch_changes>::with<changes>>;

/// The instance's lease and the partitions' owners, on a connection of its own.
using lease_store_actor = caf::typed_actor<
    caf::replies_to<renew_lease>::with<placement_view>,
    caf::replies_to<take_partitions>::with<placement_view>,
    caf::replies_to<release_partition>::with<placement_view>,
    caf::replies_to<judge_instance>::with<placement_view>>;

/// NATS. Publishing is buffered and bounded; what cannot be sent is dropped and counted.
using bus_actor = caf::typed_actor<
    caf::reacts_to<bus_publish>,
    /// Always answered, at the latest after its timeout.
    caf::replies_to<bus_request>::with<bus_reply>,
    caf::reacts_to<bus_subscribe>,
    caf::reacts_to<bus_unsubscribe>,
    /// Tells the receiver bus_state at once and at each change.
    caf::reacts_to<bus_watch>>;

/// Knocks at agents' doors.
using dialer_actor = caf::typed_actor<caf::replies_to<dial_request>::with<dial_result>>;

/// One tunnel: decides when it is attached, programmed and gone. Owns its row and its host-name claims.
using tunnel_actor = caf::typed_actor<
    /// A change that an administrator asks for; answered when it is stored and this instance has said so.
    caf::replies_to<v1::Command>::with<v1::Reply>,
    /// How far a connector's agent is.
    caf::reacts_to<v1::AttachmentState>,
    /// What the gateways of the tunnel's class run.
    caf::reacts_to<v1::Gateways>,
    /// A connector that may be one of ours exists (again).
    caf::reacts_to<v1::ConnectorAppeared>,
    /// The row as the store has it: a rival changed it, or it was loaded in bulk.
    caf::reacts_to<v1::Reloaded>,
    caf::reacts_to<wake_up>>;

/// One connector: session, liveness, addressing, attachments. Owns its row and its attachments.
using connector_actor = caf::typed_actor<
    caf::replies_to<v1::Command>::with<v1::Reply>,
    /// Hello, heartbeat, event: as they came from NATS.
    caf::reacts_to<agent_message>,
    caf::reacts_to<v1::AttachTunnel>,
    caf::reacts_to<v1::DetachTunnel>,
    /// A tunnel of ours became Programmed: see that the agent and the gateways have what the row says.
    caf::reacts_to<v1::PushAddressing>,
    caf::reacts_to<v1::ClassState>,
    caf::reacts_to<v1::Reloaded>,
    caf::reacts_to<agent_disconnected>,
    caf::reacts_to<mass_silence>,
    caf::reacts_to<bus_state>,
    caf::reacts_to<roll_call>,
    caf::reacts_to<wake_up>>;

/// Everything of one partition that is awake on this instance: activates, supervises and passivates
/// entities and routes between them. One per partition that this instance owns.
using partition_actor = caf::typed_actor<
    caf::reacts_to<bus_message>,
    caf::reacts_to<route_to_connector>,
    caf::reacts_to<route_to_tunnel>,
    caf::reacts_to<connector_appeared>,
    caf::reacts_to<class_wanted>,
    caf::reacts_to<gateways_wanted>,
    caf::reacts_to<idle_notice>,
    caf::reacts_to<bus::v1::GatewayAck>,
    caf::reacts_to<adopt_rivals>,
    caf::reacts_to<agent_disconnected>,
    caf::reacts_to<mass_silence>,
    caf::reacts_to<bus_state>,
    caf::reacts_to<wake_up>>;

/// Per instance: weighs how many online connectors fall silent at once (tunnels.md, "Mass silence").
using silence_actor = caf::typed_actor<caf::reacts_to<silence_report>, caf::reacts_to<wake_up>>;

}  // namespace warren
