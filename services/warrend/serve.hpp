// services/warrend/serve.hpp -- one instance, from its first connection to its last.
#pragma once

#include <functional>

#include "services/warrend/config.hpp"

namespace warren {

/// Runs until SIGTERM or SIGINT. Returns the process's exit code; what could not be started is on stderr in
/// one sentence. `reload` reads file, environment and flags once more, at SIGHUP; of its answer only the log
/// level counts, and nothing when it has errors.
int serve(const config::effective& settings, const std::function<config::loaded()>& reload);

}  // namespace warren
