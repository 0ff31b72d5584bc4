// test/simulation/shrink.hpp -- runs scenarios, and makes one that fails as short as it can be made.
#pragma once

#include "test/simulation/scenario.hpp"
#include "test/simulation/world.hpp"

namespace warren::simulation {

outcome run(const scenario& s, bool talkative = false);

/// What a violation is about, without names, numbers and times: two runs fail in the same way when these are equal.
std::string kind_of(const std::string& violation);

struct shrunk {
  scenario what;   ///< fails in the same way as the one it was made of
  outcome came_to;
  int runs = 0;
};
/// Leaves out what is not needed for the first violation of `failing`, half of it, then a quarter, down to single
/// statements; then takes instances and gateways away. At most `runs_max` runs.
shrunk shrink(const scenario& failing, int runs_max = 400);

}  // namespace warren::simulation
