// services/warrend/serve.hpp -- one instance, from its first connection to its last.
#pragma once

#include "services/warrend/config.hpp"

namespace warren {

/// Runs until SIGTERM or SIGINT. Returns the process's exit code; what could not be started is on stderr in
/// one sentence.
int serve(const config::effective& settings);

}  // namespace warren
