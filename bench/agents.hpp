// bench/agents.hpp -- a thousand agents in one process: each runs the real agent's session (its decisions), all of
// them share one NATS connection and one port where dials are answered. No disk, no proxy: visitors go elsewhere.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "bench/api.hpp"

namespace warren::bench {

struct agents_options {
  std::string nats_url, user, password;
};

/// Thread-safe. Targets count as reachable without being dialled.
class simulated_agents {
public:
  explicit simulated_agents(agents_options options);
  ~simulated_agents();
  simulated_agents(const simulated_agents&) = delete;
  simulated_agents& operator=(const simulated_agents&) = delete;

  /// Enrols a connector in class "local" with a fresh key; its agent says hello at once.
  void add(const api& server, const std::string& project, const std::string& name);
  /// Whether they can be reached and reach anything: all at once, at that moment. While they cannot, heartbeats stop,
  /// commands are lost, and dials are taken and not answered.
  void reachable(bool are);
  /// Each is ended and started again, with what its disk would hold: all say hello at once, or when reachable.
  void start_again();
  /// Waits until all have a session; false: not in time.
  bool await_sessions(milliseconds timeout) const;
  std::size_t established() const;
  std::uint64_t heartbeats() const;  ///< sent
  std::uint64_t hellos() const;      ///< asked
  std::uint64_t dials() const;       ///< answered
  /// Every session's number added up: it moves when any agent had to say hello again.
  std::int64_t sessions() const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::bench
