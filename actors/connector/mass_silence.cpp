// actors/connector/mass_silence.cpp -- weighs how many online connectors fall silent at once. Pure.
#include "actors/connector/mass_silence.hpp"

#include <algorithm>

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

void silence_watch::forget_fall(member& m) {
  const auto at = m.fallen_ms ? fallen_.find(*m.fallen_ms) : fallen_.end();
  m.fallen_ms.reset();
  if (at == fallen_.end()) return;  // longer ago than the window
  --fallen_count_;
  if (--at->second == 0) fallen_.erase(at);
}

void silence_watch::report(const std::string& key, bool online, bool silent, moment now) {
  auto it = members_.find(key);
  if (!online) {
    if (it == members_.end()) return;
    if (it->second.silent) --silent_;
    forget_fall(it->second);
    members_.erase(it);
    return judge(now);
  }
  if (it == members_.end()) it = members_.emplace(key, member{}).first;
  if (it->second.silent != silent) {
    it->second.silent = silent;
    if (silent) {
      ++silent_;
      if (now.steady_ms >= it->second.spent_until_ms) {
        it->second.fallen_ms = now.steady_ms;
        ++fallen_[now.steady_ms];
        ++fallen_count_;
      }
    } else {
      --silent_;
      forget_fall(it->second);
    }
  }
  judge(now);
}

void silence_watch::pass_time(moment now) { judge(now); }

void silence_watch::judge(moment now) {
  while (!fallen_.empty() && now.steady_ms > fallen_.begin()->first + window_ms) {
    fallen_count_ -= fallen_.begin()->second;
    fallen_.erase(fallen_.begin());
  }
  if (since_ms_ == 0) {
    if (too_many(fallen_count_)) since_ms_ = std::max<std::int64_t>(now.steady_ms, 1);
  } else if (!too_many(silent_) || now.steady_ms >= since_ms_ + longest_ms) {
    since_ms_ = 0;
    fallen_.clear();
    fallen_count_ = 0;
    // They have had their five minutes: the lease decides. The roll call that follows counts as a word from each
    // until it stays unanswered, which must not begin another five.
    for (auto& [key, m] : members_) {
      m.fallen_ms.reset();
      if (m.silent) m.spent_until_ms = now.steady_ms + window_ms;
    }
  }
}

std::int64_t silence_watch::wake_at_ms() const { return since_ms_ == 0 ? 0 : since_ms_ + longest_ms; }

}  // namespace warren::connector
