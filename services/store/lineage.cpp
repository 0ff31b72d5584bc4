// services/store/lineage.cpp -- see lineage.hpp.
#include "services/store/lineage.hpp"

#include <algorithm>

namespace warren {

life_verdict judge_life(const database_life& now, const remembered_life& memory) {
  using what = life_verdict::what;
  const life_verdict another{what::another, std::max(now.incarnation, memory.incarnation) + 1};
  const auto differ = [](const std::optional<std::int64_t>& a, const std::optional<std::int64_t>& b) {
    return a && b && *a != *b;
  };
  if (differ(now.recorded_identifier, now.identifier)) return another;
  if (now.recorded_timeline && *now.recorded_timeline != now.timeline) return another;
  // From here on it is what it says itself. A newer incarnation than ours was raised by somebody else, rightly.
  if (memory.incarnation > 0 && now.incarnation <= memory.incarnation) {
    if (differ(now.identifier, memory.identifier)) return another;
    if (now.timeline < memory.timeline) return {what::former, now.incarnation};
    if (now.timeline > memory.timeline || now.incarnation < memory.incarnation) return another;
    for (const auto& [id, revision] : memory.revisions) {
      const auto found = now.revisions.find(id);
      if (found == now.revisions.end() || found->second < revision) return another;
    }
  }
  const bool complete = now.recorded_timeline && (now.recorded_identifier || !now.identifier);
  return {complete ? what::same : what::first, now.incarnation};
}

remembered_life lineage::look() const {
  std::lock_guard lock{mutex_};
  return memory_;
}

void lineage::settled(std::int64_t incarnation, std::optional<std::int64_t> identifier, int timeline) {
  std::lock_guard lock{mutex_};
  if (incarnation < memory_.incarnation) return;
  if (incarnation > memory_.incarnation) memory_.revisions.clear();
  memory_.incarnation = incarnation;
  memory_.timeline = timeline;
  if (identifier) memory_.identifier = identifier;
  incarnation_ = std::max(incarnation_.load(), incarnation);
}

void lineage::incarnation_seen(std::int64_t incarnation) {
  if (incarnation <= incarnation_) return;
  std::lock_guard lock{mutex_};
  incarnation_ = std::max(incarnation_.load(), incarnation);
}

void lineage::revision_seen(std::int64_t incarnation, partition_id partition, revision_t revision) {
  std::lock_guard lock{mutex_};
  if (incarnation != memory_.incarnation) return;
  auto& highest = memory_.revisions[partition];
  highest = std::max(highest, revision);
}

bool lineage::repeats(std::int64_t incarnation, partition_id partition, revision_t revision) const {
  std::lock_guard lock{mutex_};
  const auto found = memory_.revisions.find(partition);
  return incarnation == memory_.incarnation && found != memory_.revisions.end() && revision <= found->second;
}

}  // namespace warren
