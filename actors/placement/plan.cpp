// actors/placement/plan.cpp -- which instance runs which partition. Pure: no CAF, no I/O, no clock.
#include "actors/placement/plan.hpp"

#include <algorithm>

namespace warren::placement {

plan next(instance_id me, const std::vector<member>& members, const std::vector<holding>& partitions,
          int moves_max) {
  const auto alive = [&](instance_id id) {
    return std::any_of(members.begin(), members.end(),
                       [id](const member& m) { return m.id == id && m.alive; });
  };
  std::vector<instance_id> takers;
  for (const auto& m : members)
    if (m.alive && m.bus_ok && !m.draining) takers.push_back(m.id);
  if (takers.empty())
    for (const auto& m : members)
      if (m.alive && !m.draining) takers.push_back(m.id);
  std::sort(takers.begin(), takers.end());

  plan p;
  std::vector<partition_id> mine, free;
  for (const auto& h : partitions) {
    if (h.owner == me) mine.push_back(h.id);
    else if (h.owner == 0 || !alive(h.owner)) free.push_back(h.id);
  }
  std::sort(mine.begin(), mine.end());
  std::sort(free.begin(), free.end());

  const auto rank = std::find(takers.begin(), takers.end(), me);
  if (rank == takers.end()) {
    // Draining, or deaf while somebody else hears: give away, as long as somebody is there to take.
    if (!takers.empty())
      p.release.assign(mine.begin(), mine.begin() + std::min<std::ptrdiff_t>(moves_max, std::ssize(mine)));
    return p;
  }
  const auto n = static_cast<std::size_t>(takers.size());
  const auto index = static_cast<std::size_t>(rank - takers.begin());
  const auto share = partitions.size() / n + (index < partitions.size() % n ? 1 : 0);
  if (mine.size() < share) {
    const auto wanted = std::min(share - mine.size(), free.size());
    p.take.assign(free.begin(), free.begin() + static_cast<std::ptrdiff_t>(wanted));
  } else if (mine.size() > share) {
    const auto surplus = std::min<std::size_t>(mine.size() - share, static_cast<std::size_t>(moves_max));
    p.release.assign(mine.end() - static_cast<std::ptrdiff_t>(surplus), mine.end());
  }
  return p;
}

}  // namespace warren::placement
