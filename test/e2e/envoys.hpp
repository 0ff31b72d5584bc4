// test/e2e/envoys.hpp -- more Envoys than the stack's own, and what is told of them. Decides nothing.
#pragma once

#include <functional>
#include <string>

#include "test/e2e/expect.hpp"

namespace warren::e2e {

/// A second Envoy, registered and started. One of the stack's class listens where gw-1 does: the kernel spreads new
/// connections over both, so who wants one of them asks until it is the one, or stops the other.
class another_envoy {
public:
  /// `edit` makes of the bootstrap what an operator would.
  another_envoy(stack::stack& s, const std::string& name, const std::string& gateway_class,
                const std::function<std::string(std::string)>& edit = {})
      : s_{s}, name_{name} {
    s.must_ctl({"gateway", "create", name, "--class", gateway_class});
    const auto folder = place_.folder("envoy");
    const auto bootstrap = s.must_ctl({"gateway", "bootstrap", name}).out;
    stack::write_file(folder / "envoy.yaml", edit ? edit(bootstrap) : bootstrap);
    process_ = stack::process{{.name = name,
                                       .path = s.envoy().what().path,
                                       .arguments = {"-c", (folder / "envoy.yaml").string(), "--disable-hot-restart",
                                                     "--concurrency", "1", "-l", "warning"},
                                       .log = folder / "log"}};
  }
  stack::process& running() { return process_; }
  nlohmann::json shown() const { return s_.ctl({"gateway", "get", name_, "-o", "json"}).json(); }
  bool await(const std::function<bool(const nlohmann::json&)>& satisfies) const {
    return stack::poll_until([&] { return satisfies(shown()); }, patience, 50ms);
  }

private:
  stack::stack& s_;
  std::string name_;
  stack::scratch place_{"warren-envoy"};
  stack::process process_;
};

inline bool counts(const nlohmann::json& gateway) { return gateway.is_object() && gateway.value("counts", false); }
/// 64-bit numbers are strings in protobuf's JSON, and zeros are left out.
inline bool has_caught_up(const nlohmann::json& gateway) { return counts(gateway) && gateway.value("lag", "0") == "0"; }
inline std::string state(const nlohmann::json& gateway) { return gateway.is_object() ? gateway.value("state", "") : ""; }

/// Which target answered.
inline std::string from(const answer& a) {
  const auto at = a.headers.find("x-origin");
  return at == a.headers.end() ? std::string{} : at->second;
}

}  // namespace warren::e2e
