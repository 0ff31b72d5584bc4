// test/simulation/planted_bugs_test.cpp -- the simulation bites: every bug that is planted on purpose is found, and the same
// run without it is clean.
#include <catch2/catch.hpp>

#include <fstream>
#include <sstream>

#include <spdlog/spdlog.h>

#include "test/simulation/faults.hpp"
#include "test/simulation/shrink.hpp"

using namespace warren::simulation;

namespace {

struct planted {
  bug what;
  std::string_view scenario;  ///< a run in which it must show: its text, or the name of a file in test/scenarios
};

std::string text_of(std::string_view what) {
  if (!what.ends_with(".txt")) return std::string{what};
  std::ifstream in{std::string{WARREN_SCENARIOS} + "/" + std::string{what}};
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

constexpr std::string_view undecided = R"(
at 1s start agent home
at 2s leave commits undecided 40% contended 20% for 40s
at 3s create tunnel a connector home
at 4s create tunnel b connector home
at 5s update tunnel a connector home target http://localhost:9000
at 6s create tunnel c connector home
at 7s delete tunnel b
at 8s update tunnel c connector home target http://localhost:9001
at 9s create tunnel d connector home
at 10s delete tunnel a
at 20s kill agent home for 1s
)";

/// A holder that believes to hold: paused, with a renewal of its belief under way, while others write.
constexpr std::string_view old_belief = R"(
at 1s start agent home
at 1s start agent beta/away
at 1s start agent gamma/third
at 3s create tunnel web connector home
at 3s create tunnel beta/shop connector away
at 3s create tunnel gamma/wiki connector third
at 8s pause instance 1 for 9s
at 8.5s kill agent home for 4s
at 9s kill agent beta/away for 4s
at 9.5s kill agent gamma/third for 4s
at 11s pause instance 2 for 9s
at 12s create tunnel more connector home
at 13s create tunnel beta/more connector away
at 14s create tunnel gamma/more connector third
at 24s cut instance 3 from store for 9s
at 27s update tunnel web connector home target http://localhost:9000
at 27s update tunnel beta/shop connector away target http://localhost:9000
at 27s update tunnel gamma/wiki connector third target http://localhost:9000
)";

/// Nobody owns anything for longer than a lease.
constexpr std::string_view outage = R"(
instances 2
at 1s start agent home
at 3s create tunnel web connector home
at 10s vanish instance 1 for 45s
at 10s vanish instance 2 for 45s
at 70s expect online home within 1s
)";

constexpr std::string_view bad_network = R"(
at 0s disturb bus lost 12% repeated 8% late 25% by 900ms for 60s
at 1s start agent home
at 1s start agent beta/away
at 3s create tunnel a connector home
at 4s create tunnel b connector home
at 5s create tunnel beta/c connector away
at 6s update tunnel a connector home target http://localhost:9000
at 7s update tunnel b connector home target http://localhost:9000
at 8s update tunnel beta/c connector away target http://localhost:9000
at 9s delete tunnel a
at 10s create tunnel d connector home
at 11s delete tunnel b
at 12s create tunnel a connector home
at 13s update tunnel d connector home target http://localhost:9002
at 14s delete tunnel beta/c
at 15s create tunnel e connector home
at 16s update tunnel e connector home target http://localhost:9002
at 17s delete tunnel e
)";

constexpr std::string_view lost_disks = R"(
at 0s disturb bus repeated 30% late 40% by 900ms for 60s
at 1s start agent home
at 3s create tunnel a connector home
at 4s create tunnel b connector home
at 10s kill agent home for 20ms disk lost
at 14s kill agent home for 40ms disk lost
at 18s kill agent home for 60ms disk lost
at 22s kill agent home for 20ms disk lost
at 26s kill agent home for 40ms disk lost
at 30s kill agent home for 60ms disk lost
)";

constexpr std::string_view forgetful_gateways = R"(
gateways 2
at 0s disturb bus repeated 20% late 30% by 900ms for 60s
at 1s start agent home
at 3s create tunnel a connector home
at 5s update tunnel a connector home target http://localhost:9000
at 6s restart gateway 1
at 7s create tunnel b connector home
at 9s restart gateway 2
at 10s update tunnel a connector home target http://localhost:9001
at 11s restart gateway 1
at 12s restart gateway 2
at 13s create tunnel c connector home
at 15s restart gateway 1
)";

constexpr std::string_view back_in_time = R"(
at 1s start agent home
at 3s create tunnel a connector home
at 9.5s create tunnel b connector home
at 10s fail-over store losing 1s
at 14s create tunnel c connector home
)";

constexpr planted all[] = {
    {bug::announce_before_save, undecided},      {bug::answer_before_save, undecided},
    {bug::no_fence, old_belief},                 {bug::fence_by_reading, "paused_inside_a_transaction.txt"},
    {bug::released_still_written, "late_writes.txt"}, {bug::dead_epoch_obeyed, "late_commands.txt"},
    {bug::blind_repetition, undecided},
    {bug::old_silence_trusted, outage},
    {bug::older_session_counted, lost_disks},    {bug::attachments_gap_ignored, bad_network},
    {bug::tombstone_forgotten, bad_network},     {bug::revision_gap_ignored, bad_network},
    {bug::older_stream_counted, forgetful_gateways}, {bug::incarnation_ignored, back_in_time},
    {bug::lease_outlived, old_belief},           {bug::rows_before_revision, bad_network},
    {bug::watch_resumed_from_now, "watches_go_on_elsewhere.txt"}, {bug::watch_does_not_wait, "a_watch_is_ahead.txt"},
    {bug::refusal_taken_for_acknowledgement, "a_gateway_refuses.txt"},
    {bug::refusal_laid_at_another_door, "a_gateway_refuses.txt"},
};

constexpr std::uint64_t seeds_max = 40;  // of chance, for one scenario: a bug may need some

}  // namespace

TEST_CASE("every planted bug is found, and the same run without it is clean") {
  spdlog::set_level(spdlog::level::off);
  for (const auto& one : all) {
    std::string_view name;
    for (const auto& b : bug_names)
      if (b.what == one.what) name = b.name;
    auto parsed = parse_scenario(text_of(one.scenario));
    REQUIRE(std::holds_alternative<scenario>(parsed));
    auto s = std::get<scenario>(parsed);
    s.planted.insert(one.what);
    std::uint64_t found_by = 0;
    for (s.seed = 1; s.seed <= seeds_max && found_by == 0; ++s.seed)
      if (!run(s).violations.empty()) found_by = s.seed;
    INFO("bug " << name);
    CHECK(found_by != 0);
    if (found_by == 0) continue;
    s.planted.clear();
    s.seed = found_by;
    const auto clean = run(s);
    std::string words;
    for (const auto& v : clean.violations) words += "\n  " + v;
    INFO("without it, with seed " << found_by << ":" << words);
    CHECK(clean.violations.empty());
  }
}

TEST_CASE("there is a run for every bug that can be planted") {
  std::set<bug> tried;
  for (const auto& one : all) tried.insert(one.what);
  CHECK(tried.size() == bug_names.size());
}

TEST_CASE("a failing run makes itself shorter, and the shorter one fails in the same way") {
  spdlog::set_level(spdlog::level::off);
  auto s = from_seed(5, {});
  s.planted.insert(bug::tombstone_forgotten);
  std::uint64_t seed = 5;
  auto o = run(s);
  while (o.violations.empty() && seed < 15) {
    s = from_seed(++seed, {});
    s.planted.insert(bug::tombstone_forgotten);
    o = run(s);
  }
  REQUIRE_FALSE(o.violations.empty());
  const auto least = shrink(s, 80);
  REQUIRE_FALSE(least.came_to.violations.empty());
  CHECK(kind_of(least.came_to.violations.front()) == kind_of(o.violations.front()));
  CHECK(least.what.what.size() * 2 < s.what.size());
  // What is printed is what was run.
  auto again = parse_scenario(print(least.what));
  REQUIRE(std::holds_alternative<scenario>(again));
  CHECK(run(std::get<scenario>(again)).digest == least.came_to.digest);
}
