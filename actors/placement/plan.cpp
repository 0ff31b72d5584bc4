// actors/placement/plan.cpp -- which instance runs which partition. Pure: no CAF, no I/O, no clock.
#include "actors/placement/plan.hpp"

#include <algorithm>

namespace warren::placement {

namespace {

/// Who may own partitions, in order of id.
std::vector<instance_id> takers_of(const std::vector<member>& members) {
  const bool somebody_hears = std::any_of(members.begin(), members.end(), [](const member& m) {
    return m.alive && m.bus_ok && !m.draining;
  });
  std::vector<instance_id> takers;
  for (const auto& m : members)
    if (m.alive && !m.draining && (m.bus_ok || !somebody_hears)) takers.push_back(m.id);
  std::sort(takers.begin(), takers.end());
  return takers;
}

std::vector<holding> by_id(std::vector<holding> partitions) {
  std::sort(partitions.begin(), partitions.end(), [](const holding& a, const holding& b) { return a.id < b.id; });
  return partitions;
}

}  // namespace

std::map<partition_id, instance_id> assign(const std::vector<member>& members, const std::vector<holding>& partitions) {
  const auto takers = takers_of(members);
  std::map<partition_id, instance_id> out;
  if (takers.empty()) return out;
  const auto n = takers.size();
  std::map<instance_id, std::size_t> room;  // in order of id, as the takers are
  for (std::size_t i = 0; i < n; ++i) room[takers[i]] = partitions.size() / n + (i < partitions.size() % n ? 1 : 0);
  std::vector<partition_id> rest;
  for (const auto& h : by_id(partitions)) {
    const auto keeper = room.find(h.owner);
    if (keeper == room.end() || keeper->second == 0) {
      rest.push_back(h.id);
      continue;
    }
    --keeper->second;
    out[h.id] = h.owner;
  }
  auto to = room.begin();
  for (auto id : rest) {
    while (to->second == 0) ++to;  // the shares add up to all partitions: somebody has room
    --to->second;
    out[id] = to->first;
  }
  return out;
}

plan next(instance_id me, const std::vector<member>& members, const std::vector<holding>& partitions,
          int moves_max) {
  const auto alive = [&](instance_id id) {
    return std::any_of(members.begin(), members.end(), [id](const member& m) { return m.id == id && m.alive; });
  };
  const bool somebody_hears =
      std::any_of(members.begin(), members.end(), [](const member& m) { return m.alive && m.bus_ok; });
  plan p;
  const auto assigned = assign(members, partitions);
  for (const auto& h : by_id(partitions)) {
    const auto to = assigned.find(h.id);
    if (to == assigned.end()) continue;
    if (h.owner == me && to->second != me && somebody_hears && std::ssize(p.release) < moves_max)
      p.release.push_back(h.id);
    if (h.owner != me && to->second == me && (h.owner == 0 || !alive(h.owner))) p.take.push_back(h.id);
  }
  return p;
}

}  // namespace warren::placement
