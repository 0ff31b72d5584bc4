// actors/connector/machine.hpp -- decisions of one connector: session, liveness, addressing, attachments. No
// CAF, no I/O, no clock, no randomness.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "actors/core/transition.hpp"
#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/connector.pb.h"

namespace warren::connector {

namespace busv1 = warren::bus::v1;

using state = v1::ConnectorState;
using event = v1::ConnectorEvent;

// The messages of the condition Ready.
inline constexpr std::string_view ready_message = "The connector is ready to tunnel traffic.";
inline constexpr std::string_view lease_not_renewed = "Connector lease has not been renewed yet.";
inline constexpr std::string_view lease_expired = "Connector lease has expired. Agent may be offline.";
inline constexpr std::string_view disconnected = "Connector disconnected.";

/// On the agent's command subject.
struct agent_command {
  busv1::AgentCommand command;
  bool answered = true;  ///< false: nobody waits for a CommandReply
};
/// On the subject that the agent gave with its message.
struct agent_reply {
  std::string reply_to;
  std::variant<busv1::HelloReply, busv1::AgentCommand> payload;
};
/// Dial these; the outcome comes back as Dialed with this serial, always.
struct dial {
  std::uint64_t serial = 0;
  std::string endpoint_id;
  std::vector<std::string> addresses;
};
/// To the instance's watch on silence.
struct silence_told { bool online = false, silent = false; };
/// This connector exists (again): the tunnels that name it have to know.
struct appeared {};
/// Say what this class allows, now and whenever it changes.
struct class_asked { std::string name; };
/// Read the rows: nothing is known yet.
struct load_asked {};

/// AttachmentState goes to the tunnel that it names.
using announcement = std::variant<agent_command, agent_reply, v1::AttachmentState, dial, silence_told, appeared,
                                  class_asked, load_asked>;
using transition = warren::transition<state, announcement>;

/// The state of a connector about which nothing is known yet; the first event is Reloaded.
state initial(partition_id partition, epoch_t epoch, std::int64_t incarnation, std::int64_t heartbeat_interval_ms,
              std::string project, std::string name);

/// One event. A transition with a save is followed by Saved, Reloaded (conflict) or Failed and says nothing
/// else: what the stored rows owe is derived anew at every step, so an announcement that got lost is made again.
transition step(state s, const event& e, moment now);

/// Remembers what a tunnel asks for and decides nothing: many of them can be stored in one step, at the next wake.
void note(state& s, const v1::AttachTunnel& a, moment now);
void note(state& s, const v1::DetachTunnel& d, moment now);
void note(state& s, const v1::PushAddressing& p, moment now);

/// Takes over what the store wrote (versions) into the state that follows.
void adopt(state& next, const saved& written);

/// uid and generation, as the API shows it: a change of status does not move it.
std::string etag_of(const v1::ConnectorRow& row);

/// "uid/generation": how the state names an attachment.
std::string attachment_key(std::string_view tunnel_uid, std::int64_t tunnel_generation);

}  // namespace warren::connector
