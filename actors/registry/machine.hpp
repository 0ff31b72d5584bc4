// actors/registry/machine.hpp -- decisions about one gateway, gateway class or connector class. No CAF, no
// I/O, no clock.
#pragma once

#include <string>
#include <variant>

#include "actors/core/transition.hpp"
#include "warren/core/v1/registry.pb.h"

namespace warren::registry {

using state = v1::RegistryState;
using event = v1::RegistryEvent;
using announcement = std::monostate;  ///< nobody is told: replicas see the row
using transition = warren::transition<state, announcement>;

state initial(partition_id partition, std::string kind, std::string name);
transition step(const state& s, const event& e, moment now);
void adopt(state& next, const saved& written);

/// The kind ("gateway", …) and name that a command is about; empty kind: not one of ours.
std::pair<std::string, std::string> target_of(const v1::Command& command);

std::string etag_of(const v1::Row& row);

}  // namespace warren::registry
