// actors/core/line_limits.hpp -- when a line of the log is worth another one. Pure: logs nothing, knows no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "actors/core/limits.hpp"

namespace warren {

/// Something that fails again and again until it works: one line when it begins, then one now and then with how often,
/// and one when it is over.
class outage {
public:
  /// It has failed. Returns how often since the last line, this time included, when there is something to say.
  std::optional<std::int64_t> failed(std::int64_t now_ms) {
    ++unsaid_;
    if (since_ms_ && now_ms < said_ms_ + limits::outage_line_every / 1ms) return std::nullopt;
    if (!since_ms_) since_ms_ = now_ms;
    said_ms_ = now_ms;
    return std::exchange(unsaid_, 0);
  }
  /// It works. Returns how long it has not, in milliseconds, when it had failed.
  std::optional<std::int64_t> over(std::int64_t now_ms) {
    if (!since_ms_) return std::nullopt;
    unsaid_ = 0;
    return now_ms - *std::exchange(since_ms_, std::nullopt);
  }

private:
  std::optional<std::int64_t> since_ms_;  // none: it works
  std::int64_t said_ms_ = 0, unsaid_ = 0;
};

/// At most so many lines a second; the rest is counted. Not thread-safe.
class line_budget {
public:
  explicit line_budget(int lines_per_second = limits::news_lines_per_second) : lines_max_{lines_per_second} {}

  /// How many were left out since the last line; nullopt: leave this one out.
  std::optional<std::int64_t> allow(std::int64_t now_ms) {
    if (lines_ == 0 || now_ms >= second_ms_ + 1000 || now_ms < second_ms_) {
      second_ms_ = now_ms;
      lines_ = 0;
    }
    if (lines_ >= lines_max_) {
      ++left_out_;
      return std::nullopt;
    }
    ++lines_;
    return std::exchange(left_out_, 0);
  }

private:
  std::int64_t second_ms_ = 0, left_out_ = 0;
  int lines_ = 0, lines_max_;
};

}  // namespace warren
