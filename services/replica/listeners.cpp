// services/replica/listeners.cpp -- see listeners.hpp.
#include "services/replica/listeners.hpp"

#include <utility>

namespace warren::replica {

int subscribers::add(call c) {
  std::lock_guard lock{mutex_};
  all_.emplace(next_token_, std::make_shared<call>(std::move(c)));
  return next_token_++;
}

void subscribers::remove(int token) {
  std::lock_guard lock{mutex_};
  all_.erase(token);
}

void subscribers::tell(const change_set& c) {
  // Held while they run, so that remove can promise that none runs afterwards; recursive, because one may remove
  // itself in its own call.
  std::lock_guard lock{mutex_};
  const auto now = all_;
  for (const auto& [token, one] : now)
    if (all_.count(token) > 0) (*one)(c);
}

void revision_waits::add(partition_id partition, revision_t revision, std::int64_t deadline_steady_ms,
                         std::function<void(bool)> then, const std::function<bool()>& is_seen) {
  {
    // Asked with the lock held: seen() is called after the copy has the revision, and finds whom this adds.
    std::lock_guard lock{mutex_};
    if (!is_seen()) {
      all_.emplace(partition, wait{revision, deadline_steady_ms, std::move(then)});
      return;
    }
  }
  then(true);
}

std::vector<std::function<void(bool)>> revision_waits::take(waits::iterator from, waits::iterator to,
                                                            const std::function<bool(const wait&)>& over) {
  std::vector<std::function<void(bool)>> out;
  while (from != to) {
    if (!over(from->second)) {
      ++from;
      continue;
    }
    out.push_back(std::move(from->second.then));
    from = all_.erase(from);
  }
  return out;
}

void revision_waits::seen(partition_id partition, revision_t revision) {
  std::vector<std::function<void(bool)>> told;
  {
    std::lock_guard lock{mutex_};
    const auto [from, to] = all_.equal_range(partition);
    told = take(from, to, [&](const wait& w) { return w.revision <= revision; });
  }
  for (const auto& then : told) then(true);
}

void revision_waits::expire(std::int64_t steady_ms) {
  std::vector<std::function<void(bool)>> told;
  {
    std::lock_guard lock{mutex_};
    told = take(all_.begin(), all_.end(), [&](const wait& w) { return steady_ms >= w.deadline_ms; });
  }
  for (const auto& then : told) then(false);
}

}  // namespace warren::replica
