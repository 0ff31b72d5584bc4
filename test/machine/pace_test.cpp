// test/machine/pace_test.cpp -- how often agents report when there are many of them, and how often the log repeats itself.
#include <catch2/catch.hpp>

#include "actors/connector/pace.hpp"
#include "actors/core/line_limits.hpp"
#include "actors/core/log_fields.hpp"

using namespace warren;
using connector::paced_interval;

TEST_CASE("the heartbeat interval doubles as often as it takes to stay below the limit of heartbeats") {
  static_assert(limits::heartbeats_per_second_max == 5'000);
  struct row { std::int64_t asked, current; std::size_t online; std::int64_t paced; };
  const row table[] = {
      {2000, 2000, 0, 2000},
      {2000, 2000, 10'000, 2000},   // 5,000 a second
      {2000, 2000, 10'001, 4000},
      {2000, 2000, 20'000, 4000},
      {2000, 2000, 20'001, 8000},
      {2000, 2000, 40'001, 10'000}, // no longer than that,
      {2000, 2000, 500'000, 10'000},  // whatever it costs
      {2000, 4000, 10'000, 4000},   // back only with a quarter to spare
      {2000, 4000, 7'501, 4000},
      {2000, 4000, 7'500, 2000},
      {2000, 8000, 15'001, 8000},
      {2000, 8000, 15'000, 4000},
      {2000, 10'000, 7'500, 2000},
      {2000, 10'000, 30'001, 10'000},
      {2000, 10'000, 30'000, 8000},
      {50, 50, 251, 100},           // asked for often
      {50, 50, 100'000, 10'000},
      {60'000, 60'000, 1'000'000, 60'000},  // asked for more seldom than we would under any load
      {60'000, 2000, 10, 60'000},
  };
  for (const auto& r : table) {
    INFO(r.asked << " asked, " << r.current << " at present, " << r.online << " online");
    CHECK(paced_interval(r.asked, r.current, r.online) == r.paced);
    CHECK(paced_interval(r.asked, r.paced, r.online) == r.paced);  // and stays so
  }
}

TEST_CASE("a failure that lasts is said when it begins, every ten seconds, and when it is over") {
  outage o;
  CHECK_FALSE(o.over(500));
  CHECK(o.failed(1000) == 1);
  for (int i = 1; i < 50; ++i) CHECK_FALSE(o.failed(1000 + i * 200));
  CHECK(o.failed(11'000) == 50);
  CHECK_FALSE(o.failed(11'001));
  CHECK(o.over(12'000) == 11'000);
  CHECK_FALSE(o.over(12'001));
  CHECK(o.failed(12'002) == 1);
}

TEST_CASE("news have so many lines a second, and what is left out is counted") {
  line_budget b;
  for (int i = 0; i < limits::news_lines_per_second; ++i) CHECK(b.allow(5000 + i) == 0);
  for (int i = 0; i < 7; ++i) CHECK_FALSE(b.allow(5900));
  CHECK(b.allow(6000) == 7);
  CHECK(b.allow(6001) == 0);
  CHECK(b.allow(100) == 0);  // another clock
}

TEST_CASE("fields of a line are JSON, whatever is in them") {
  CHECK(with_fields("said", {}) == "said");
  CHECK(with_fields("said", {{"a", 1}, {"b", "x\"\n\x01"}}, 3) == "said\x1f,\"a\":1,\"b\":\"x\\\"\\n\\u0001\",\"suppressed\":3");
  CHECK(with_fields("", {}, 1) == "\x1f,\"suppressed\":1");
}
