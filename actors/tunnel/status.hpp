// actors/tunnel/status.hpp -- conditions of a tunnel that are derived from rows and acknowledgements, and
// `why`. No CAF, no I/O, no clock.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "actors/core/ids.hpp"
#include "actors/tunnel/routing.hpp"
#include "warren/core/v1/events.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren::tunnel {

/// What was last known of the gateways that count, as to the routes of one tunnel. Kept between two
/// derivations: with no gateway counting, it is what the conditions go by.
struct gateway_knowledge {
  enum class verdict : std::uint8_t {
    unknown,  ///< nothing has been heard since the instance's start
    run,      ///< all that count run the routes of `revision`
    behind,   ///< some do not yet
    refused,  ///< one refuses them
  };
  verdict what = verdict::unknown;
  revision_t revision = 0;
  std::string words;  ///< for a person: "2/3 gateways; waiting for gw-b"
  std::int64_t since_ms = 0;  ///< wall clock: this verdict on these routes since; 0: from before this instance knew
};

/// Everything that conditions follow from. References must outlive the call only.
struct status_inputs {
  const v1::TunnelRow& tunnel;
  const route_plan& plan;
  find_connector connector;
  find_attachment attachment;
  const std::vector<v1::GatewayState>& gateways;  ///< of the tunnel's class
  bool settled = false;                           ///< they have been heard, or waited for long enough
  revision_t routed_revision = 0;                 ///< of the last change of what gateways route for this tunnel
  gateway_knowledge before;                       ///< as the last derivation left it
  const std::vector<v1::Condition>* previous = nullptr;  ///< the last conditions; nullptr: there are none
  std::int64_t wall_ms = 0;
  bool dials_agents = false;                      ///< gateways of the class dial agents themselves: a relay is no way to them
  bool class_missing = false;                     ///< it is certain that there is no gateway class of that name
};

struct status {
  std::vector<v1::Condition> conditions;  ///< Accepted, Programmed, ConnectorMetadataProgrammed, TargetReachable, Ready
  gateway_knowledge gateways;
};

/// Ready is True only when a visitor gets through: the current generation is latched as programmed, every
/// rule leads to a live target, and every gateway that counts runs the routes as of `routed_revision`.
/// A transition time moves only when the status does.
status derive(const status_inputs& in);

/// One link of the chain between a visitor and the target.
struct chain_link {
  enum class state : std::uint8_t { ok, missing, unknown };
  std::string name;           ///< "tunnel accepted", "connector edge-1 online"
  state what = state::unknown;
  std::int64_t since_ms = 0;  ///< wall clock; 0: not known
  std::string words;          ///< what a person needs to know, and can do, about it
  std::string hint = {};      ///< of a missing one: the command, or the step, that comes next; empty: the words say it all
};
std::string_view to_string(chain_link::state s);  ///< "ok", "missing", "unknown"

/// The whole chain, in the order in which it is to be repaired; nothing is left out because of an earlier
/// missing link.
std::vector<chain_link> explain(const status_inputs& in);
/// The first that is not ok; nullptr: a visitor gets through.
const chain_link* first_missing(const std::vector<chain_link>& chain);

/// Whether gateways dial agents at their addresses, when their class says so: a fleet behind the extension hook has a
/// tunnel gateway of its own all the same.
bool dial_agents(bool class_says, const std::vector<v1::GatewayState>& gateways);

/// "gw-a is stalled, gw-b is not connected": those of a class that do not count. Empty: there are none.
template <class Gateways> std::string absent_gateways(const Gateways& all, std::string_view gateway_class) {
  std::string out;
  for (const v1::GatewayState& g : all) {
    if (g.class_() != gateway_class || g.counts()) continue;
    out += (out.empty() ? "" : ", ") + g.gateway() + (g.stalled() ? " is stalled" : g.connected() ? " has not caught up" : " is not connected");
  }
  return out;
}

/// The condition of that type; nullptr: there is none.
const v1::Condition* condition_of(const std::vector<v1::Condition>& all, std::string_view type);

}  // namespace warren::tunnel
