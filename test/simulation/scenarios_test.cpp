// test/simulation/scenarios_test.cpp -- every file in test/scenarios is run, and what it expects comes.
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <sstream>

#include <spdlog/spdlog.h>

#include "test/simulation/shrink.hpp"

using namespace warren::simulation;

TEST_CASE("every written scenario comes out as it says") {
  spdlog::set_level(spdlog::level::off);
  int found = 0;
  for (const auto& file : std::filesystem::directory_iterator{WARREN_SCENARIOS}) {
    if (file.path().extension() != ".txt") continue;
    ++found;
    std::ifstream in{file.path()};
    std::ostringstream text;
    text << in.rdbuf();
    auto parsed = parse_scenario(text.str());
    INFO(file.path().filename().string());
    if (const auto* error = std::get_if<scenario_error>(&parsed)) {
      FAIL_CHECK("line " << error->line << ": " << error->message);
      continue;
    }
    const auto o = run(std::get<scenario>(parsed));
    std::string all;
    for (const auto& v : o.violations) all += "\n  " + v;
    INFO(all);
    CHECK(o.violations.empty());
  }
  CHECK(found >= 10);
}
