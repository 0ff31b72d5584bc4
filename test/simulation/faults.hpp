// test/simulation/faults.hpp -- what a seed lets happen: a scenario as text could say it. Pure: no simulation.
#pragma once

#include <cstdint>

#include "test/simulation/scenario.hpp"

namespace warren::simulation {

struct fault_options {
  int instances = 3, partitions = 4, gateways = 2, projects = 3, connectors = 5, tunnels = 8;
  std::int64_t faulty_ms = 60'000;  ///< how long things go wrong
  std::int64_t quiet_ms = 0;        ///< and then how long nothing does
};

/// A seed that lasts for hours: mostly a pair of instances that are configured for patience, few entities, and now and
/// then a fault, which may last for minutes.
scenario long_from_seed(std::uint64_t seed, std::int64_t ms);

/// Equal options and seed: an equal scenario.
scenario from_seed(std::uint64_t seed, const fault_options& options);

}  // namespace warren::simulation
