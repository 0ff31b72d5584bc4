// actors/registry/spec.hpp -- what the specs of gateways and classes may say, and their one spelling. Pure: no
// CAF, no I/O, no clock.
// The API refuses by these rules, and the machine once more what comes another way.
#pragma once

#include <string>
#include <vector>

#include "actors/core/error.hpp"
#include "warren/core/v1/commands.pb.h"

namespace warren::registry {

namespace v1 = warren::core::v1;

/// Brings the named fields of the spec (none named: all) into the spelling that is stored, and fills in their
/// defaults.
/// Returns all that is wrong with them, each by its path ("listen[2]"); sizes are looked at first.
std::vector<violation> canonicalise(v1::GatewaySpec& spec, const std::vector<std::string>& fields = {});
std::vector<violation> canonicalise(v1::GatewayClassSpec& spec, const std::vector<std::string>& fields = {});
std::vector<violation> canonicalise(v1::ConnectorClassSpec& spec, const std::vector<std::string>& fields = {});

}  // namespace warren::registry
