// test/simulation/determinism_test.cpp -- a seed gives the same run, to the last event.
#include <catch2/catch.hpp>

#include <spdlog/spdlog.h>

#include "test/simulation/faults.hpp"
#include "test/simulation/shrink.hpp"

using namespace warren::simulation;

TEST_CASE("the same seed gives the same run, to the last event") {
  spdlog::set_level(spdlog::level::off);
  for (std::uint64_t seed : {1, 2, 3}) {
    const auto s = from_seed(seed, {.faulty_ms = 30'000});
    const auto first = run(s), second = run(s);
    INFO("seed " << seed);
    CHECK(first.digest == second.digest);
    CHECK(first.steps == second.steps);
    CHECK(first.virtual_ms == second.virtual_ms);
    CHECK(first.steps > 1'000);
  }
}

TEST_CASE("another seed gives another run") {
  const auto a = run(from_seed(11, {.faulty_ms = 10'000})), b = run(from_seed(12, {.faulty_ms = 10'000}));
  CHECK(a.digest != b.digest);
}

TEST_CASE("equal seeds make equal scenarios, and a scenario survives being written and read") {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    const auto s = from_seed(seed, {});
    CHECK(s == from_seed(seed, {}));
    auto again = parse_scenario(print(s));
    REQUIRE(std::holds_alternative<scenario>(again));
    CHECK(std::get<scenario>(again) == s);
  }
}
