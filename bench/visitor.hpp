// bench/visitor.hpp -- a visitor that costs little and looks closely: plain sockets, times to the microsecond.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bench/measure.hpp"

namespace warren::bench {

struct glimpse {
  clock::time_point asked, answered;
  int status = 0;      ///< 0: no head arrived
  std::string reason;  ///< x-warren-reason
};

/// GET / on a connection of its own to 127.0.0.1:`port`.
glimpse look(std::uint16_t port, const std::string& host, milliseconds timeout = milliseconds{5'000});

/// Looks again and again, `pause` after each answer. Keeps every answer.
class gaze {
public:
  gaze(std::uint16_t port, std::string host, std::chrono::microseconds pause, milliseconds timeout = milliseconds{5'000});
  ~gaze();
  gaze(const gaze&) = delete;
  gaze& operator=(const gaze&) = delete;
  /// The first answer that came at `since` or later and satisfies; empty: none in time.
  std::optional<glimpse> await(const std::function<bool(const glimpse&)>& satisfies, clock::time_point since,
                               milliseconds timeout);
  std::optional<glimpse> await_status(int status, clock::time_point since, milliseconds timeout) {
    return await([status](const glimpse& g) { return g.status == status; }, since, timeout);
  }
  /// Answers that came at `from` or later.
  std::vector<glimpse> since(clock::time_point from) const;
  /// Answers so far whose head was `status`.
  std::size_t count(int status) const;
  std::size_t total() const;

private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<glimpse> seen_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace warren::bench
