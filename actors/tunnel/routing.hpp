// actors/tunnel/routing.hpp -- what a visitor of a tunnel meets, derived from rows. No CAF, no I/O, no clock.
// Gateways' routes (services/gateway/compile), derived conditions (tunnel/status) and the tunnel's own
// progress all ask this one function, so they cannot disagree.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "warren/core/v1/rows.pb.h"

namespace warren::tunnel {

namespace v1 = warren::core::v1;

enum class outcome : std::uint8_t {
  live,                ///< the target answers
  offline,             ///< the connector is not online, or does not hold the attachment yet
  unknown,             ///< there is no such connector
  disabled,            ///< the tunnel is switched off
  invalid_addressing,  ///< the connector's last report could not be used, or its row cannot (connector::check_row); or the
                       ///< tunnel was refused, and its own cannot (tunnel::check_row)
};

/// What x-warren-reason says; empty for live.
std::string_view reason_of(outcome o);

struct rule_plan {
  int index = 0;
  v1::Rule rule;
  outcome what = outcome::unknown;
};

struct route_plan {
  std::int64_t generation = 0;  ///< the spec that is served: the current one, or the one before it
  std::vector<rule_plan> rules; ///< in the order of the spec; of a refused one those that there may be, or one
  bool operator==(const route_plan&) const;
};

/// The connector of the tunnel's project by name; nullptr: there is none.
using find_connector = std::function<const v1::ConnectorRow*(const std::string& name)>;
/// Its attachment for one generation of the tunnel; nullptr: there is none.
using find_attachment =
    std::function<const v1::AttachmentRow*(const std::string& connector, const std::string& tunnel_uid,
                                           std::int64_t tunnel_generation)>;

/// The current generation is served as soon as every rule whose connector is online is attached; until then
/// the previous one, when there is one (tunnels.md, "Attachments"), and never again once the current one has been
/// programmed. Within a generation each rule follows its own connector; a tunnel that was refused for what check_row
/// finds follows none.
route_plan plan_routes(const v1::TunnelRow& tunnel, const find_connector& connector,
                       const find_attachment& attachment);

}  // namespace warren::tunnel
