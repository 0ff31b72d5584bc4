// services/warrend/ports.hpp -- whether the addresses of the settings can be listened on, found out before anything else
// starts. Keeps nothing open.
#pragma once

#include <string>

#include "services/warrend/config.hpp"

namespace warren {

/// One sentence that names the first setting whose address cannot be had at the moment, and why; empty: all can.
std::string unavailable_port(const config::effective& settings);

}  // namespace warren
