// services/store/failpoint.hpp -- named points where a test kills the process or fails a step.
// Compiles to nothing without WARREN_FAILPOINTS. Any room may use it.
#pragma once

/// WARREN_FAILPOINT=<name>[:<n>][=<action>] in the environment: at the n-th pass (default the first) of that
/// point the process kills itself with SIGKILL, with the action "stop" pauses itself with SIGSTOP, or, with
/// another action, the code at the point does what that means to it, once. `set_failpoint` does the same from
/// within a test.
#ifdef WARREN_FAILPOINTS
#include <string>
#include <string_view>

namespace warren {
/// Counts a pass. Returns the action when it is due and is neither a kill nor a pause; empty otherwise.
std::string pass_failpoint(std::string_view name);
/// Replaces what the environment said; an empty text disarms. Thread-safe.
void set_failpoint(std::string_view spec);
}  // namespace warren

#define WARREN_FAILPOINT(name) static_cast<void>(::warren::pass_failpoint(name))
#define WARREN_FAILPOINT_ACTION(name, what) (::warren::pass_failpoint(name) == (what))
#else
#define WARREN_FAILPOINT(name) static_cast<void>(0)
#define WARREN_FAILPOINT_ACTION(name, what) false
#endif
