// test/simulation/seeds_test.cpp -- several instances, agents and gateways, and whatever a seed lets go wrong: nothing is
// ever wrong that must not be, and in the end all agree. WARREN_SEED=n runs that seed alone.
#include <catch2/catch.hpp>

#include <cstdlib>

#include <spdlog/spdlog.h>

#include "test/simulation/faults.hpp"
#include "test/simulation/shrink.hpp"

namespace {

using namespace warren::simulation;

void run_seeds(std::uint64_t first, std::uint64_t last, const fault_options& with) {
  spdlog::set_level(spdlog::level::off);
  if (const char* one = std::getenv("WARREN_SEED")) first = last = std::strtoull(one, nullptr, 10);
  for (auto seed = first; seed <= last; ++seed) {
    const auto s = from_seed(seed, with);
    const auto o = run(s);
    CHECK(o.commits > 10);
    CHECK(o.requests > 5);
    if (o.violations.empty()) continue;
    const auto least = shrink(s, 60);
    std::string all;
    for (const auto& v : o.violations) all += "\n  " + v;
    FAIL_CHECK("seed " << seed << all << "\nshorter:\n" << print(least.what));
  }
}

}  // namespace

TEST_CASE("with three instances, whatever fails on the way, nothing is wrong and everything converges") {
  run_seeds(1, 60, {});
}

TEST_CASE("with one instance, whatever fails on the way, nothing is wrong and everything converges") {
  run_seeds(1001, 1016, {.instances = 1, .partitions = 2, .gateways = 1, .projects = 2, .connectors = 3, .tunnels = 6});
}

TEST_CASE("with five instances that share few partitions, nothing is wrong and everything converges") {
  run_seeds(2001, 2006, {.instances = 5, .partitions = 3, .gateways = 2, .projects = 5, .connectors = 5, .tunnels = 8});
}

TEST_CASE("when all connectors are one instance's and many fall silent at once, nobody alive is called dead") {
  run_seeds(3001, 3003, {.instances = 2, .partitions = 1, .gateways = 1, .projects = 1, .connectors = 26, .tunnels = 10});
}
