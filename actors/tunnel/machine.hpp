// actors/tunnel/machine.hpp -- decisions of one tunnel. No CAF, no I/O, no clock, no randomness.
#pragma once

#include <string>
#include <variant>

#include "actors/core/transition.hpp"
#include "warren/core/v1/events.pb.h"
#include "warren/core/v1/tunnel.pb.h"

namespace warren::tunnel {

using state = v1::TunnelState;
using event = v1::TunnelEvent;

/// What a tunnel says to the connector named in the message.
using announcement = std::variant<v1::AttachTunnel, v1::DetachTunnel, v1::PushAddressing>;
using transition = warren::transition<state, announcement>;

/// The state of a tunnel about which nothing is known yet; the first event is Reloaded.
state initial(partition_id partition, epoch_t epoch, std::string project, std::string name);

/// One event. A transition with a save is followed by Saved, Reloaded (conflict) or Failed; what the stored
/// row still owes is derived anew at every step (settle), so an announcement that got lost is made again.
transition step(const state& s, const event& e, moment now);

/// Takes over what the store wrote (versions) into the state that follows.
void adopt(state& next, const saved& written);

/// Whether what gateways acknowledge decides about the next step.
bool waits_for_gateways(const state& s);

/// uid and generation, as the API shows it: a change of status does not move it.
std::string etag_of(const v1::TunnelRow& row);

}  // namespace warren::tunnel
