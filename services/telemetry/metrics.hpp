// services/telemetry/metrics.hpp -- the one table of metrics, and warren::counters over it. No metric has a
// label per tunnel, connector or project.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "actors/core/counters.hpp"

namespace warren::telemetry {

/// Thread-safe. A name that is not in the table, or a use that is not its type's, aborts in debug builds and is
/// logged once otherwise. A new metric is one line in metrics.cpp.
class metrics final : public counters {
public:
  explicit metrics(std::string_view instance_name = {});
  ~metrics() override;
  void add(std::string_view name, std::string_view label = {}, double n = 1) override;
  void set(std::string_view name, double value, std::string_view label = {}) override;
  void observe(std::string_view name, double value, std::string_view label = {}) override;
  /// Prometheus' text format, version 0.0.4.
  std::string text() const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::telemetry
