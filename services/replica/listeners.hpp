// services/replica/listeners.hpp -- who is told of changes, and who waits for a revision. Thread-safe. Knows no tables.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "services/replica/tables.hpp"

namespace warren::replica {

class subscribers {
public:
  using call = std::function<void(const change_set&)>;
  /// Returns a token for remove.
  int add(call c);
  /// It is not called any more once this returns (on its own thread: after the present call).
  void remove(int token);
  void tell(const change_set& c);

private:
  std::recursive_mutex mutex_;
  std::map<int, std::shared_ptr<call>> all_;
  int next_token_ = 1;
};

class revision_waits {
public:
  /// Calls `then(true)` at once when `is_seen` says so, and otherwise from seen() or, with false, from expire().
  void add(partition_id partition, revision_t revision, std::int64_t deadline_steady_ms, std::function<void(bool)> then,
           const std::function<bool()>& is_seen);
  void seen(partition_id partition, revision_t revision);
  void expire(std::int64_t steady_ms);

private:
  struct wait {
    revision_t revision = 0;
    std::int64_t deadline_ms = 0;
    std::function<void(bool)> then;
  };
  using waits = std::multimap<partition_id, wait>;
  /// Takes out those of them that are over; what they wait to be told is the caller's to tell, without the lock.
  std::vector<std::function<void(bool)>> take(waits::iterator from, waits::iterator to, const std::function<bool(const wait&)>& over);

  std::mutex mutex_;
  waits all_;
};

}  // namespace warren::replica
