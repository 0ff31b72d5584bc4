// services/gateway/report_pace.hpp -- how often a gateway's acknowledgements of one partition are told. No clock.
#pragma once

#include <algorithm>
#include <cstdint>

namespace warren::gateway {

/// A few at once, as a creation with its steps needs them, and then no more than one in `apart_ms`: each is three
/// messages, and conditions derived anew.
class report_pace {
public:
  static constexpr std::int64_t apart_ms = 2;
  static constexpr std::int64_t at_once = 8;

  /// When the next may be told.
  std::int64_t next_ms() const { return full_at_ms_ - (at_once - 1) * apart_ms; }
  void told(std::int64_t now_ms) { full_at_ms_ = std::max(full_at_ms_, now_ms) + apart_ms; }

private:
  std::int64_t full_at_ms_ = 0;  ///< when as many as ever may be told at once again
};

}  // namespace warren::gateway
