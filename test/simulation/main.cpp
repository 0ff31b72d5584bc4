// test/simulation/main.cpp -- warren-sim: seeds, one seed, or a scenario in a file, on virtual time.
#include <chrono>
#include <fstream>
#include <iostream>
#include <sstream>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "test/simulation/faults.hpp"
#include "test/simulation/replay.hpp"
#include "test/simulation/shrink.hpp"

namespace {

using namespace warren::simulation;

struct totals {
  std::uint64_t seeds = 0, failed = 0, steps = 0, checks = 0, commits = 0, messages = 0, takeovers = 0, resumed = 0, violations = 0;
  std::int64_t virtual_ms = 0;

  void add(const outcome& o) {
    ++seeds;
    failed += o.violations.empty() ? 0 : 1;
    steps += o.steps;
    checks += o.checks;
    commits += o.commits;
    messages += o.messages;
    takeovers += o.takeovers;
    resumed += o.resumed;
    violations += o.violations.size();
    virtual_ms += o.virtual_ms;
  }
  void say(const std::string& what) const {
    fmt::print("{} commits, {} messages, {} partitions taken, {} watches resumed, {} checks\n", commits, messages, takeovers, resumed, checks);
    fmt::print("{}: {} steps, {:.1f} h of virtual time, {} violations\n", what, steps,
               static_cast<double>(virtual_ms) / 3'600'000, violations);
  }
};

void tell_failure(const scenario& s, const outcome& o, const std::string& how_to_repeat, bool shorter) {
  fmt::print("\n{} failed; again with: {}\n", s.title, how_to_repeat);
  for (const auto& v : o.violations) fmt::print("  {}\n", v);
  if (!shorter) return;
  fmt::print("making it shorter …\n");
  std::fflush(stdout);
  const auto least = shrink(s);
  fmt::print("after {} runs; save it as a file, and run it with --scenario FILE --verbose:\n\n{}\n", least.runs, print(least.what));
  for (const auto& v : least.came_to.violations) fmt::print("# {}\n", v);
  std::fflush(stdout);
}

std::optional<scenario> read_scenario(const std::string& file) {
  std::ifstream in{file};
  if (!in) {
    std::cerr << "warren-sim: " << file << " cannot be read\n";
    return std::nullopt;
  }
  std::ostringstream text;
  text << in.rdbuf();
  auto parsed = parse_scenario(text.str());
  if (auto* error = std::get_if<scenario_error>(&parsed)) {
    std::cerr << file << ":" << error->line << ": " << error->message << '\n';
    return std::nullopt;
  }
  auto s = std::get<scenario>(std::move(parsed));
  if (s.title.empty()) s.title = file;
  return s;
}

/// "7" or "1..1000".
bool parse_range(const std::string& text, std::uint64_t& first, std::uint64_t& last) {
  const auto dots = text.find("..");
  try {
    first = std::stoull(text.substr(0, dots));
    last = dots == std::string::npos ? first : std::stoull(text.substr(dots + 2));
  } catch (const std::exception&) {
    return false;
  }
  return first <= last;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Runs Warren's decisions on virtual time over a bus and a database that fail."};
  std::string seeds, bug;
  std::vector<std::string> files;
  fault_options with;
  double faulty_s = 60, quiet_s = 0, long_h = 0;
  bool verbose = false, keep_length = false, show = false, show_grammar = false, keep_going = false;
  app.add_option("--seeds,--seed", seeds, "A..B, or one");
  app.add_option("--scenario", files, "files of statements");
  app.add_option("--instances", with.instances, "how many warrend")->check(CLI::Range(1, 9))->capture_default_str();
  app.add_option("--partitions", with.partitions)->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--gateways", with.gateways)->check(CLI::Range(0, 9))->capture_default_str();
  app.add_option("--projects", with.projects)->check(CLI::Range(1, 5))->capture_default_str();
  app.add_option("--connectors", with.connectors)->check(CLI::Range(1, 60))->capture_default_str();
  app.add_option("--tunnels", with.tunnels)->check(CLI::Range(1, 200))->capture_default_str();
  app.add_option("--faulty", faulty_s, "seconds of a seed in which things go wrong")->capture_default_str();
  app.add_option("--quiet", quiet_s, "seconds after that in which nothing does")->capture_default_str();
  app.add_option("--long", long_h, "hours: each seed lasts for so long, with a pair of instances and a fault now and then; of the above nothing counts");
  app.add_option("--bug", bug, "plant one (bugs.hpp)");
  app.add_flag("--verbose", verbose, "every event");
  app.add_flag("--no-shrink", keep_length, "a failing seed is told as it is");
  app.add_flag("--keep-going", keep_going, "after a failing seed; else the first one ends it");
  app.add_flag("--print", show, "print the scenario of a seed, and do not run it; --replay: print each step");
  std::string recording;
  replay_options again;
  app.add_option("--replay", recording, "what warrenctl diag saved (or one recording out of it): run again, step by step");
  app.add_option("--entity", again.entity, "--replay --print: only of this one, such as acme/web");
  app.add_flag("--states", again.states, "--replay --print: and the state after each step");
  app.add_flag("--grammar", show_grammar, "print what a scenario may say");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::off);
  if (!recording.empty()) {
    again.print = show || again.states;
    return replay_file(recording, again, std::cout, std::cerr);
  }
  with.faulty_ms = static_cast<std::int64_t>(faulty_s * 1000);
  with.quiet_ms = static_cast<std::int64_t>(quiet_s * 1000);
  if (show_grammar) {
    fmt::print("{}", grammar());
    return 0;
  }

  totals all;
  for (const auto& file : files) {
    const auto s = read_scenario(file);
    if (!s) return 2;
    const auto o = run(*s, verbose);
    all.add(o);
    if (!o.violations.empty()) tell_failure(*s, o, "warren-sim --scenario " + file + " --verbose", !keep_length);
  }
  if (!files.empty()) {
    all.say(fmt::format("{} scenarios", files.size()));
    return all.violations == 0 ? 0 : 1;
  }

  std::uint64_t first = 0, last = 0;
  if (!parse_range(seeds, first, last)) {
    std::cerr << "warren-sim: --seeds A..B, --seed N or --scenario FILE says what to run; --help says the rest\n";
    return 2;
  }
  auto said_at = std::chrono::steady_clock::now();
  for (auto seed = first; seed <= last; ++seed) {
    auto s = long_h > 0 ? long_from_seed(seed, static_cast<std::int64_t>(long_h * 3'600'000)) : from_seed(seed, with);
    if (!bug.empty()) {
      const auto b = bug_from(bug);
      if (!b) {
        std::cerr << "warren-sim: there is no bug \"" << bug << "\"\n";
        return 2;
      }
      s.planted.insert(*b);
    }
    if (show) {
      fmt::print("{}", print(s));
      continue;
    }
    const auto o = run(s, verbose);
    all.add(o);
    if (!o.violations.empty()) {
      tell_failure(s, o,
                   long_h > 0 ? fmt::format("warren-sim --seed {} --long {}{} --verbose", seed, long_h, bug.empty() ? "" : " --bug " + bug)
                   : fmt::format("warren-sim --seed {} --instances {} --partitions {} --gateways {} --projects {} --connectors {} "
                               "--tunnels {} --faulty {} --quiet {}{} --verbose",
                               seed, with.instances, with.partitions, with.gateways, with.projects, with.connectors,
                               with.tunnels, faulty_s, quiet_s, bug.empty() ? "" : " --bug " + bug),
                   !keep_length);
      if (!keep_going) {
        last = seed;
        break;
      }
    }
    if (std::chrono::steady_clock::now() - said_at > std::chrono::seconds{30}) {
      said_at = std::chrono::steady_clock::now();
      fmt::print("… seed {}: {} steps, {} violations\n", seed, all.steps, all.violations);
      std::fflush(stdout);
    }
  }
  if (show) return 0;
  all.say(fmt::format("seeds {}..{}", first, last));
  return all.violations == 0 ? 0 : 1;
}
