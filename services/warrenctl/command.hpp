// services/warrenctl/command.hpp -- the whole command line: parses, calls, prints. Knows the admin API only.
#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace warren::ctl {

struct surroundings {
  std::ostream& out;
  std::ostream& err;
  bool terminal = false;  ///< `out` is one: colour, relative times
  bool others_may_read = false;  ///< `out` is a file, and not its owner's alone
};

inline constexpr int done = 0, failed = 1, wrong_usage = 2, timed_out = 3;

/// Returns the exit code. `arguments` without the program's name.
int run(std::vector<std::string> arguments, surroundings& around);

}  // namespace warren::ctl
