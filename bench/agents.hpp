// bench/agents.hpp -- a thousand agents in one process: each runs the real agent's session (its decisions), all of
// them share one NATS connection and two ports where dials are answered and gateways are let in: behind them is one
// target for all, in this process. No disk.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

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

  /// Enrols a connector in class "local" with a fresh key; its agent says hello at once. `lease` 0: the default.
  void add(const api& server, const std::string& project, const std::string& name, std::chrono::seconds lease = {});
  /// Whether they can be reached and reach anything: all at once, at that moment. While they cannot, heartbeats stop,
  /// commands are lost, and dials are taken and not answered.
  void reachable(bool are);
  /// Each is ended and started again, with what its disk would hold: all say hello at once, or when reachable.
  void start_again();
  // -- some of them, as "project/name"; return when it was done --
  /// They say bye and stop.
  clock::time_point stop(const std::vector<std::string>& which);
  /// They start again with what their disks would hold, and say hello.
  clock::time_point start(const std::vector<std::string>& which);
  /// Their heartbeats are sent no more, or again; all else is as it was.
  clock::time_point mute(const std::vector<std::string>& which, bool are);
  /// They report the other of the two ports. Visitors see it in `x-door`: "front" or "back".
  clock::time_point move(const std::vector<std::string>& which);
  /// When the first heartbeat at `since` or later went out; empty: not yet.
  std::optional<clock::time_point> first_heartbeat(const std::string& which, clock::time_point since) const;
  /// When it last said anything: its lease runs from there.
  std::optional<clock::time_point> last_word(const std::string& which) const;
  /// Visitors' requests that arrived at the target.
  std::uint64_t visits() const;

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
