// actors/placement/plan.hpp -- which instance runs which partition. Pure: no CAF, no I/O, no clock.
#pragma once

#include <string>
#include <vector>

#include "actors/core/ids.hpp"

namespace warren::placement {

struct member {
  instance_id id = 0;
  bool alive = false;      ///< its lease has not ended, by the database's clock
  bool bus_ok = true;
  bool draining = false;
};

struct holding {
  partition_id id = 0;
  instance_id owner = 0;   ///< 0: nobody
};

struct plan {
  std::vector<partition_id> take;     ///< free or a dead owner's, and within our share; in order of id
  std::vector<partition_id> release;  ///< beyond our share, and somebody is there to take them
  bool operator==(const plan&) const = default;
};

/// What `me` should do next. Partitions are spread evenly (± 1) over the live instances that hear the bus and
/// do not drain; when no such instance is there, over the live ones, so that a bus that is away for all
/// gives nothing away. At most `moves_max` releases in one plan; what is free is taken at once.
plan next(instance_id me, const std::vector<member>& members, const std::vector<holding>& partitions,
          int moves_max);

}  // namespace warren::placement
