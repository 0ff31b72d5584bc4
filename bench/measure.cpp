// bench/measure.cpp -- figures and how they are printed.
#include "bench/measure.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>

#include <sys/utsname.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace warren::bench {

double sample::percentile(double percent) const {
  if (values_.empty()) return 0;
  if (sorted_ != values_.size()) {
    std::sort(values_.begin(), values_.end());
    sorted_ = values_.size();
  }
  const auto rank = static_cast<std::size_t>(std::ceil(percent / 100 * static_cast<double>(values_.size())));
  return values_[std::clamp<std::size_t>(rank, 1, values_.size()) - 1];
}

bool report::leg_row::met() const {
  if (values.size() == 0) return !wanted.p50 && !wanted.p99 && !wanted.max;
  return (!wanted.p50 || values.percentile(50) <= *wanted.p50) &&
         (!wanted.p99 || values.percentile(99) <= *wanted.p99) && (!wanted.max || values.max() <= *wanted.max);
}

void report::leg(std::string name, sample values, goal wanted) {
  legs_.push_back({std::move(name), std::move(values), wanted});
}
void report::figure(std::string name, double value, std::string unit, std::optional<double> at_most) {
  figures_.push_back({std::move(name), value, std::move(unit), at_most});
}

bool report::goals_met() const {
  return std::all_of(legs_.begin(), legs_.end(), [](const auto& l) { return l.met(); }) &&
         std::all_of(figures_.begin(), figures_.end(), [](const auto& f) { return f.met(); });
}

namespace {

std::string say_goal(const goal& g, bool met) {
  std::string out;
  const auto say = [&](std::string_view what, const std::optional<double>& limit) {
    if (limit) out += fmt::format("{}{} ≤ {:g}", out.empty() ? "" : ", ", what, *limit);
  };
  say("p50", g.p50);
  say("p99", g.p99);
  say("max", g.max);
  if (!out.empty()) out += met ? ": met" : ": MISSED";
  return out;
}

}  // namespace

void report::print(bool as_json) const {
  double load[1] = {0};
  if (getloadavg(load, 1) != 1) load[0] = 0;
  if (as_json) {
    nlohmann::json out{{"program", program_}, {"machine", machine()}, {"preset", preset()},
                       {"date", date()},      {"load_average", load[0]}, {"goals_met", goals_met()},
                       {"notes", notes_},     {"legs", nlohmann::json::array()},
                       {"figures", nlohmann::json::array()}};
    for (const auto& l : legs_) {
      nlohmann::json one{{"name", l.name},
                         {"count", l.values.size()},
                         {"p50_ms", l.values.percentile(50)},
                         {"p90_ms", l.values.percentile(90)},
                         {"p99_ms", l.values.percentile(99)},
                         {"max_ms", l.values.max()}};
      if (l.wanted.p50) one["goal_p50_ms"] = *l.wanted.p50;
      if (l.wanted.p99) one["goal_p99_ms"] = *l.wanted.p99;
      if (l.wanted.max) one["goal_max_ms"] = *l.wanted.max;
      out["legs"].push_back(std::move(one));
    }
    for (const auto& f : figures_) {
      nlohmann::json one{{"name", f.name}, {"value", f.value}, {"unit", f.unit}};
      if (f.at_most) one["goal_at_most"] = *f.at_most;
      out["figures"].push_back(std::move(one));
    }
    fmt::print("{}\n", out.dump());
    return;
  }
  fmt::print("{}: {}, preset {}, {}, load {:.1f}\n", program_, machine(), preset(), date(), load[0]);
  if (!legs_.empty()) {
    fmt::print("{:<58} {:>5} {:>9} {:>9} {:>9} {:>9}  goal\n", "milliseconds", "n", "p50", "p90", "p99", "max");
    for (const auto& l : legs_)
      fmt::print("{:<58} {:>5} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f}  {}\n", l.name, l.values.size(),
                 l.values.percentile(50), l.values.percentile(90), l.values.percentile(99), l.values.max(),
                 say_goal(l.wanted, l.met()));
  }
  for (const auto& f : figures_)
    fmt::print("{:<58} {:>15.2f} {}{}\n", f.name, f.value, f.unit,
               f.at_most ? fmt::format("  (≤ {:g}: {})", *f.at_most, f.met() ? "met" : "MISSED") : "");
  for (const auto& n : notes_) fmt::print("{}\n", n);
}

std::string machine() {
  std::string cpu = "unknown processor";
  std::ifstream info{"/proc/cpuinfo"};
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      cpu = line.substr(line.find(':') + 2);
      break;
    }
  utsname system{};
  uname(&system);
  const auto bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  return fmt::format("{} × {}, {:.0f} GB, {} {}", std::thread::hardware_concurrency(), cpu, bytes / 1e9,
                     system.sysname, system.release);
}

std::string preset() { return WARREN_PRESET " (" WARREN_BUILD_TYPE ")"; }

std::string date() {
  const auto now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &utc);
  return text;
}

}  // namespace warren::bench
