// services/admin/explain.hpp -- what `why` says of a connector, and of when its agent was heard. Pure: no gRPC, no
// I/O, no clock.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "services/admin/convert.hpp"

namespace warren::admin {

/// "Last heartbeat received 0.4 s ago.", or why there is none. `observed` null: the owner did not answer.
std::string heard_words(const corev1::Observed* observed, std::int64_t wall_ms);

/// What the API shows of it.
api::Hearing to_api(const corev1::Observed& observed);

/// The links between a connector's row and what gateways may route to, in the order in which they are to be repaired;
/// nothing is left out because of an earlier missing one.
std::vector<api::Link> explain_connector(const corev1::ConnectorRow& row, const corev1::Observed* observed,
                                         std::int64_t wall_ms);

}  // namespace warren::admin
