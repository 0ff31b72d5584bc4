// services/admin/observe.hpp -- asks connectors' owners for what only they know: when their agents were last heard.
// Internal to the room.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "services/admin/call.hpp"

namespace warren::admin {

/// By the connector's name. An owner that did not answer in time has no entry: nothing is known then.
using observations = std::map<std::string, corev1::Observed>;

/// All at once, for half a second at the most: an answer without them beats none. `done` is called
/// exactly once, on any thread.
void observe(context& shared, const std::string& project, const std::set<std::string>& connectors,
             std::chrono::system_clock::time_point deadline, std::function<void(observations)> done);

}  // namespace warren::admin
