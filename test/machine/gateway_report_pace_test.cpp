// test/machine/gateway_report_pace_test.cpp -- a few reports at once, and then no flood.
#include <algorithm>
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

TEST_CASE("a few reports are told at once, and then one in a few milliseconds") {
  constexpr auto few = static_cast<int>(report_pace::at_once);
  constexpr auto apart = report_pace::apart_ms;
  report_pace pace;
  const auto first = told(pace, 5'000, few + 3);
  CHECK(std::count(first.begin(), first.end(), 5'000) == few);
  CHECK(std::vector(first.end() - 3, first.end()) == std::vector<std::int64_t>{5'000 + apart, 5'000 + 2 * apart, 5'000 + 3 * apart});
  SECTION("a short pause earns a few") {
    const auto now = first.back() + 2 * apart;
    CHECK(told(pace, now, 3) == std::vector<std::int64_t>{now, now, now + apart});
  }
  SECTION("a long one earns no more than at first") {
    const auto then = told(pace, 90'000, few + 1);
    CHECK(std::count(then.begin(), then.end(), 90'000) == few);
    CHECK(then.back() == 90'000 + apart);
  }
}
