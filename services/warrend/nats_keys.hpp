// services/warrend/nats_keys.hpp -- the keys of an installation's bus, as files. Never prints or logs a seed.
#pragma once

#include <string>
#include <vector>

#include "services/bus/nkey.hpp"

namespace warren {

/// Makes the folder if it is not there, and in it seeds, .creds files (mode 0600) and what nats-server includes.
/// Returns the names of the files. Errors: std::runtime_error: one of them exists, or cannot be written.
std::vector<std::string> make_nats_keys(const std::string& folder);

/// Errors: std::runtime_error: it cannot be read, others may read it, or it is no account's seed.
bus::nkey read_account_seed(const std::string& file);

}  // namespace warren
