// services/hook/handover.cpp -- how far a fleet behind the extension hook is, as a gateway. Pure.
#include "services/hook/handover.hpp"

#include <algorithm>
#include <utility>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::hook {

namespace {

template <class Map> auto value_at(const Map& map, partition_id partition) {
  const auto it = map.find(partition);
  return it == map.end() ? typename Map::mapped_type{} : it->second;
}

}  // namespace

std::string gateway_of(const std::string& fleet) {
  std::string out = fleet;
  std::replace(out.begin(), out.end(), '/', '-');
  return fleet.find('/') != std::string::npos && protocol::is_label(out) ? out : std::string{};
}

void handover::answered(answers what, const std::map<partition_id, revision_t>& at, std::int64_t now_ms) {
  answered_ = std::move(what);
  answered_at_ = at;
  outdated_.clear();
  outdated_in_.clear();
  unasked_.clear();
  for (const auto& [key, tunnel] : tunnels_) weigh(key, tunnel, now_ms);
  frozen_ = at;  // what is outdated already became so later
  for (const auto& [partition, revision] : at) touched_.insert(partition);
}

void handover::noted(const tunnel_key& key, std::optional<carried_tunnel> tunnel, std::int64_t now_ms) {
  const auto before = outdated_.find(key);
  const bool was_outdated = before != outdated_.end();
  const auto since_ms = was_outdated ? before->second.since_ms : now_ms;
  const auto frozen = was_outdated ? value_at(frozen_, before->second.partition) : 0;
  forget(key);
  if (!tunnel) {
    tunnels_.erase(key);
    return;
  }
  touched_.insert(tunnel->partition);
  weigh(key, *tunnel, since_ms);
  // It was so before: nothing has been acknowledged since.
  if (was_outdated && outdated_.count(key) > 0) frozen_[tunnel->partition] = frozen;
  tunnels_[key] = std::move(*tunnel);
}

void handover::weigh(const tunnel_key& key, const carried_tunnel& tunnel, std::int64_t now_ms) {
  const auto it = answered_.find(key);
  if (it == answered_.end()) {
    auto& r = unasked_[tunnel.partition][key];
    r.set_tunnel_uid(tunnel.uid);
    r.set_revision(tunnel.route_version);
    r.set_pending(true);
    r.set_message("it was not asked about HTTPRoute " + key.first + "/" + key.second);
    return;
  }
  if (same_to_visitors(it->second, tunnel.truth)) return;
  outdated_[key] = {tunnel.partition, now_ms};
  if (++outdated_in_[tunnel.partition] == 1)
    frozen_[tunnel.partition] = std::max(value_at(answered_at_, tunnel.partition), value_at(seen_, tunnel.partition));
}

void handover::forget(const tunnel_key& key) {
  const auto known = tunnels_.find(key);
  if (known == tunnels_.end()) return;
  const auto partition = known->second.partition;
  touched_.insert(partition);
  if (outdated_.erase(key) > 0) --outdated_in_[partition];
  if (const auto in = unasked_.find(partition); in != unasked_.end()) in->second.erase(key);
}

void handover::seen(partition_id partition, revision_t revision) {
  auto& have = seen_[partition];
  if (revision <= have) return;
  have = revision;
  touched_.insert(partition);
}

revision_t handover::acknowledged(partition_id partition) const {
  if (value_at(outdated_in_, partition) > 0) return value_at(frozen_, partition);
  return std::max(value_at(answered_at_, partition), value_at(seen_, partition));
}

std::vector<corev1::Refusal> handover::pending(partition_id partition) const {
  std::vector<corev1::Refusal> out;
  if (const auto in = unasked_.find(partition); in != unasked_.end())
    for (const auto& [key, one] : in->second) out.push_back(one);
  return out;
}

bool handover::stalled(std::int64_t now_ms) const {
  constexpr auto patience_ms = millis{limits::gateway_stalled_after}.count();
  return std::any_of(outdated_.begin(), outdated_.end(), [&](const auto& o) { return now_ms - o.second.since_ms >= patience_ms; });
}

std::vector<tunnel_key> handover::tunnels() const {
  std::vector<tunnel_key> out;
  for (const auto& [key, tunnel] : tunnels_) out.push_back(key);
  return out;
}

}  // namespace warren::hook
