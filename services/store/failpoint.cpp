// services/store/failpoint.cpp -- counting passes of failpoints. No I/O but the kill.
#include "services/store/failpoint.hpp"

#ifdef WARREN_FAILPOINTS
#include <csignal>
#include <cstdlib>
#include <mutex>

namespace warren {
namespace {

struct armed {
  std::mutex mutex;
  std::string name, action;
  int passes_left = 0;

  armed() {
    if (const char* spec = std::getenv("WARREN_FAILPOINT")) arm(spec);
  }
  void arm(std::string_view spec) {
    auto equals = spec.find('=');
    action = equals == std::string_view::npos ? "" : std::string{spec.substr(equals + 1)};
    spec = spec.substr(0, equals);
    auto colon = spec.find(':');
    passes_left = colon == std::string_view::npos ? 1 : std::atoi(std::string{spec.substr(colon + 1)}.c_str());
    name = std::string{spec.substr(0, colon)};
  }
};

armed& the_failpoint() {
  static armed it;
  return it;
}

}  // namespace

std::string pass_failpoint(std::string_view name) {
  auto& it = the_failpoint();
  std::lock_guard lock{it.mutex};
  if (it.name != name || it.passes_left <= 0 || --it.passes_left > 0) return {};
  if (it.action.empty()) std::raise(SIGKILL);
  if (it.action == "stop") {
    std::raise(SIGSTOP);
    return {};
  }
  return it.action;
}

void set_failpoint(std::string_view spec) {
  auto& it = the_failpoint();
  std::lock_guard lock{it.mutex};
  it.arm(spec);
}

}  // namespace warren
#endif
