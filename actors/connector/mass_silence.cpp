// actors/connector/mass_silence.cpp -- weighs how many online connectors fall silent at once. Pure.
#include "actors/connector/mass_silence.hpp"

#include <algorithm>
#include <set>

#include "actors/core/limits.hpp"

namespace warren::connector {

namespace {
constexpr std::int64_t window_ms = millis{limits::mass_silence_window}.count();
constexpr std::int64_t longest_ms = millis{limits::mass_silence_max}.count();
}  // namespace

bool silence_watch::too_many(std::size_t fallen) const {
  return fallen >= static_cast<std::size_t>(limits::mass_silence_connectors_min) &&
         fallen * 100 > members_.size() * static_cast<std::size_t>(limits::mass_silence_percent);
}

void silence_watch::report(const std::string& key, bool online, bool silent, moment now) {
  auto it = members_.find(key);
  if (!online) {
    if (it == members_.end()) return;
    if (it->second.silent) --silent_;
    members_.erase(it);
    std::erase_if(fallen_, [&](const auto& f) { return f.second == key; });
    return judge(now);
  }
  if (it == members_.end()) it = members_.emplace(key, member{}).first;
  if (it->second.silent != silent) {
    it->second.silent = silent;
    if (silent) {
      ++silent_;
      if (now.steady_ms >= it->second.spent_until_ms) fallen_.emplace_back(now.steady_ms, key);
    } else {
      --silent_;
      std::erase_if(fallen_, [&](const auto& f) { return f.second == key; });
    }
  }
  judge(now);
}

void silence_watch::pass_time(moment now) { judge(now); }

void silence_watch::judge(moment now) {
  while (!fallen_.empty() && now.steady_ms > fallen_.front().first + window_ms) fallen_.pop_front();
  if (since_ms_ == 0) {
    if (too_many(fallen_.size())) since_ms_ = std::max<std::int64_t>(now.steady_ms, 1);
  } else if (!too_many(silent_) || now.steady_ms >= since_ms_ + longest_ms) {
    since_ms_ = 0;
    fallen_.clear();
    // They have had their five minutes: the lease decides. The roll call that follows counts as a word from each
    // until it stays unanswered, which must not begin another five.
    for (auto& [key, m] : members_)
      if (m.silent) m.spent_until_ms = now.steady_ms + window_ms;
  }
}

std::int64_t silence_watch::wake_at_ms() const { return since_ms_ == 0 ? 0 : since_ms_ + longest_ms; }

}  // namespace warren::connector
