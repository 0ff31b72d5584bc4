// services/admin/explain.hpp -- what `why` says of a connector, and of when its agent was heard. Pure: no gRPC, no
// I/O, no clock.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "services/admin/convert.hpp"

namespace warren::admin {

/// "Last heartbeat received 0.4 s ago.", or why there is none. `observed` null: the owner did not answer. `deaf`: this
/// instance does not reach NATS, and so nobody.
std::string heard_words(const corev1::Observed* observed, std::int64_t wall_ms, bool deaf);
/// What to do then about an agent that is missed.
std::string_view deaf_hint();

/// What the API shows of it.
api::Hearing to_api(const corev1::Observed& observed);

/// What beside its row says how it is with a connector.
struct connector_surroundings {
  const corev1::Observed* observed = nullptr;  ///< null: its owner did not answer
  bool deaf = false;                           ///< this instance does not reach NATS
  std::string dialled_for, dialling_class;     ///< a tunnel to it whose gateways dial agents themselves, and their class; empty: none
};

/// The links between a connector's row and what gateways may route to, in the order in which they are to be repaired;
/// nothing is left out because of an earlier missing one.
std::vector<api::Link> explain_connector(const corev1::ConnectorRow& row, const connector_surroundings& around,
                                         std::int64_t wall_ms);

}  // namespace warren::admin
