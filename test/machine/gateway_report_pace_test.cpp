// test/machine/gateway_report_pace_test.cpp -- a few reports at once, and then no flood.
#include <vector>

#include <catch2/catch.hpp>

#include "services/gateway/report_pace.hpp"

using warren::gateway::report_pace;

namespace {

/// When each of so many is told that are owed from `from` on.
std::vector<std::int64_t> told(report_pace& pace, std::int64_t from, int count) {
  std::vector<std::int64_t> out;
  for (auto now = from; static_cast<int>(out.size()) < count; ++now)
    while (static_cast<int>(out.size()) < count && now >= pace.next_ms()) {
      pace.told(now);
      out.push_back(now);
    }
  return out;
}

}  // namespace

TEST_CASE("a few reports are told at once, and then one in ten milliseconds") {
  report_pace pace;
  using times = std::vector<std::int64_t>;
  CHECK(told(pace, 5000, 7) == times{5000, 5000, 5000, 5000, 5010, 5020, 5030});
  SECTION("a short pause earns a few") { CHECK(told(pace, 5055, 4) == times{5055, 5055, 5060, 5070}); }
  SECTION("a long one earns no more than at first") { CHECK(told(pace, 90'000, 5) == times{90'000, 90'000, 90'000, 90'000, 90'010}); }
}
