// actors/placement/peers.cpp -- whom to ask the database about, and whom to believe dead. Pure.
#include "actors/placement/peers.hpp"

#include <algorithm>

#include "actors/core/limits.hpp"

namespace warren::placement {

millis pulse_of(millis lease) { return std::max<millis>(limits::instance_pulse, lease / 30); }

std::int64_t peers::silent_after_ms() const {
  return std::max<millis>(limits::instance_silent_after, 3 * pulse_of(lease_)).count();
}

void peers::seen(const std::vector<member>& members, std::int64_t now_ms) {
  std::erase_if(peers_, [&](const auto& entry) {
    return std::none_of(members.begin(), members.end(), [&](const member& m) { return m.id == entry.first; });
  });
  others_hear_ = false;
  seen_ms_ = now_ms;
  for (const auto& m : members) {
    if (m.id == me_) continue;
    if (m.alive && m.bus_ok && !m.draining) others_hear_ = true;
    auto [it, fresh] = peers_.try_emplace(m.id);
    auto& p = it->second;
    // Whoever is new, or has come back, has said nothing yet.
    if (fresh || (!p.alive && m.alive) || (!p.bus_ok && m.bus_ok)) p.heard_ms = now_ms;
    p.alive = m.alive;
    p.bus_ok = m.bus_ok;
    if (!suspected(p, now_ms)) p.tries = 0;
  }
  if (connected_ || !others_hear_) only_others_hear_since_ms_.reset();
  else if (!only_others_hear_since_ms_) only_others_hear_since_ms_ = now_ms;
}

bool peers::heard(instance_id peer, std::int64_t now_ms) {
  const auto it = peers_.find(peer);
  if (it == peers_.end()) return false;
  it->second.heard_ms = now_ms;
  if (!suspected(it->second, now_ms)) it->second.tries = 0;
  return true;
}

void peers::disconnected(instance_id peer, std::int64_t now_ms) {
  const auto it = peers_.find(peer);
  if (it == peers_.end()) return;
  auto& p = it->second;
  // Several connections of one instance end together: one suspicion.
  if (now_ms >= p.suspicious_until_ms) {
    p.tries = 0;
    p.judge_at_ms = now_ms;
  }
  p.suspicious_until_ms = now_ms + silent_after_ms();
}

void peers::bus(bool connected, std::int64_t now_ms) {
  if (connected == connected_) return;
  connected_ = connected;
  connected_since_ms_ = now_ms;
  if (connected || !others_hear_) only_others_hear_since_ms_.reset();
  else only_others_hear_since_ms_ = now_ms;
}

void peers::database_was_away(std::int64_t now_ms) { doubt_until_ms_ = now_ms + lease_.count(); }

bool peers::suspected(const known& p, std::int64_t now_ms) const {
  if (!p.alive) return false;  // there is nothing left to learn
  if (now_ms < p.suspicious_until_ms) return true;
  if (!connected_ || !p.bus_ok) return false;  // its silence, or our deafness, is explained
  return now_ms - std::max(p.heard_ms, connected_since_ms_) > silent_after_ms();
}

std::vector<instance_id> peers::due(std::int64_t now_ms) {
  std::vector<instance_id> out;
  if (now_ms < doubt_until_ms_) return out;
  for (auto& [id, p] : peers_) {
    if (!suspected(p, now_ms)) {
      p.tries = 0;
      continue;
    }
    if (p.tries > 0 && now_ms < p.judge_at_ms) continue;
    out.push_back(id);
    const auto wait = std::min<std::int64_t>(millis{limits::judge_first}.count() << std::min(p.tries, 16),
                                             millis{limits::judge_max}.count());
    ++p.tries;
    p.judge_at_ms = now_ms + wait;
  }
  return out;
}

std::optional<std::int64_t> peers::next_due_ms() const {
  std::optional<std::int64_t> out;
  for (const auto& [id, p] : peers_)
    if (p.tries > 0 && (!out || p.judge_at_ms < *out)) out = p.judge_at_ms;
  return out;
}

std::vector<member> peers::believed(std::vector<member> members, std::int64_t now_ms) const {
  if (now_ms < doubt_until_ms_)
    for (auto& m : members)
      if (!m.alive) m.alive = m.draining = true;  // keeps what it has, and is given nothing
  return members;
}

bool peers::somebody_is_deaf() const {
  return connected_ && std::any_of(peers_.begin(), peers_.end(), [](const auto& p) { return p.second.alive && !p.second.bus_ok; });
}

bool peers::gives_as_deaf(std::int64_t now_ms) const {
  return only_others_hear_since_ms_ && now_ms - *only_others_hear_since_ms_ >= lease_.count() * 2 / 3;
}

// Who lost both at once does not know of the others: an instance that says old things is better than none.
bool peers::sends_gateways_away(std::int64_t now_ms) const {
  return gives_as_deaf(now_ms) && now_ms - seen_ms_ <= lease_.count() / 2;
}

}  // namespace warren::placement
