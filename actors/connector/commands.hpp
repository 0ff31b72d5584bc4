// actors/connector/commands.hpp -- what administrators ask for. Pure.
#pragma once

#include <optional>

#include "actors/connector/facts.hpp"

namespace warren::connector {

/// The first pending command: answered at once (and dropped from the queue), or a save that answers.
std::optional<v1::Reply> do_command(transition& t, moment now);

}  // namespace warren::connector
