// actors/placement/plan.hpp -- which instance runs which partition. Pure: no CAF, no I/O, no clock.
#pragma once

#include <map>
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
  std::vector<partition_id> take;     ///< free or a dead owner's, and ours by the assignment; in order of id
  std::vector<partition_id> release;  ///< somebody else's by the assignment, and he is there to take it
  bool operator==(const plan&) const = default;
};

/// Who should own each partition: spread evenly (± 1) over the live instances that hear the bus and do not
/// drain; when no such instance is there, over the live ones that do not drain. Everybody keeps what it has,
/// up to its share; the rest goes, in order of id, to those who have less than theirs, in order of theirs. Who
/// takes part of what it is assigned changes nobody else's assignment: all who see the same members agree.
/// Empty: nobody is there to own anything.
std::map<partition_id, instance_id> assign(const std::vector<member>& members, const std::vector<holding>& partitions);

/// What `me` should do next. At most `moves_max` releases in one plan; what is free is taken at once. Where
/// nobody hears the bus nothing is given away, as nobody would hear of it.
plan next(instance_id me, const std::vector<member>& members, const std::vector<holding>& partitions,
          int moves_max);

}  // namespace warren::placement
