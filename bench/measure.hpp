// bench/measure.hpp -- figures: samples, percentiles, goals, and on which machine they were taken. Knows nothing
// of Warren.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace warren::bench {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

inline double ms_between(clock::time_point from, clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

/// Not thread-safe.
class sample {
public:
  void add(double value) { values_.push_back(value); }
  std::size_t size() const { return values_.size(); }
  /// The smallest value that at least `percent` of all do not exceed; 0 of none.
  double percentile(double percent) const;
  double max() const { return percentile(100); }

private:
  mutable std::vector<double> values_;
  mutable std::size_t sorted_ = 0;
};

struct goal {
  std::optional<double> p50, p99, max;  ///< at most
};

/// What one program has found out, as a table or as one JSON object.
class report {
public:
  explicit report(std::string program) : program_(std::move(program)) {}
  /// Milliseconds.
  void leg(std::string name, sample values, goal wanted = {});
  /// One number; `at_most` is its goal.
  void figure(std::string name, double value, std::string unit, std::optional<double> at_most = {});
  void note(std::string sentence) { notes_.push_back(std::move(sentence)); }
  /// To standard output.
  void print(bool as_json) const;
  bool goals_met() const;

private:
  struct leg_row {
    std::string name;
    sample values;
    goal wanted;
    bool met() const;
  };
  struct figure_row {
    std::string name;
    double value;
    std::string unit;
    std::optional<double> at_most;
    bool met() const { return !at_most || value <= *at_most; }
  };
  std::string program_;
  std::vector<leg_row> legs_;
  std::vector<figure_row> figures_;
  std::vector<std::string> notes_;
};

/// "2 × <CPU>, 24 GB, Linux 6.1"
std::string machine();
/// "release (RelWithDebInfo)"
std::string preset();
/// UTC, minutes.
std::string date();

}  // namespace warren::bench
