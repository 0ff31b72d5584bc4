// actors/core/counters.hpp -- how rooms count without knowing the metrics library. No CAF, no I/O.
#pragma once

#include <string_view>

namespace warren {

/// Where counts go. Implemented by services/telemetry over a fixed table of metrics (an unknown name is a
/// bug and aborts in debug builds) and by tests. Thread-safe; never blocks.
class counters {
public:
  virtual ~counters() = default;
  /// Adds to a counter; `label` is the value of its one label, empty when it has none.
  virtual void add(std::string_view name, std::string_view label = {}, double n = 1) = 0;
  /// Sets a gauge.
  virtual void set(std::string_view name, double value, std::string_view label = {}) = 0;
  /// Observes a histogram, in its unit (seconds).
  virtual void observe(std::string_view name, double value, std::string_view label = {}) = 0;
};

}  // namespace warren
