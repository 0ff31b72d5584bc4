// bench/world.hpp -- what every program here begins with: its options, and a Warren with tunnels in it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "bench/api.hpp"
#include "bench/measure.hpp"
#include "test/support/stack.hpp"

namespace warren::bench {

/// --json, and what else a program adds.
class command_line {
public:
  command_line(const std::string& name, const std::string& what);
  CLI::App app;
  bool json = false;
  /// The body throws what it cannot go on with. Exit code: 0, 1 (failed, or a goal is missed), 2 (usage).
  int run(int argc, char** argv, const std::function<report()>& body);
  /// Progress, to standard error unless --json.
  void say(const std::string& sentence) const;
};

/// Creates `count` tunnels "load-N" over `connectors`, `width` at a time, and waits until all are Ready.
/// Returns what creating them one by one would be compared with: seconds for all calls, seconds to all Ready.
struct loaded {
  double created_s = 0, ready_s = 0;
};
loaded load_tunnels(const api& server, tunnel_watch& watch, const std::string& project,
                    const std::vector<std::string>& connectors, const std::string& target, int count, int width = 16);

/// Settings that operators run with: as by default, not those that make tests quick.
stack::stack_options as_by_default(const std::string& project = "demo");

}  // namespace warren::bench
