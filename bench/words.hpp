// bench/words.hpp -- what instances tell each other over NATS: which revision was committed, and which a gateway runs.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/measure.hpp"
#include "services/bus/connection.hpp"
#include "test/support/stack.hpp"

namespace warren::bench {

struct revision_of {
  int partition = 0;
  std::int64_t revision = 0;
  clock::time_point heard;
};

/// Follows them from now on. Thread-safe.
class instance_words {
public:
  explicit instance_words(const stack::stack& world);
  ~instance_words();
  instance_words(const instance_words&) = delete;
  instance_words& operator=(const instance_words&) = delete;

  /// Forgets all commits so far.
  void forget();
  /// The first commit that wrote the tunnel "project/name" with this `enabled`; empty: not in time.
  std::optional<revision_of> await_tunnel(const std::string& which, bool enabled, milliseconds timeout);
  /// The first commit that wrote the connector "project/name" as online, or not.
  std::optional<revision_of> await_connector(const std::string& which, bool online, milliseconds timeout);
  /// When a gateway first said that it runs that revision; empty: not in time.
  std::optional<clock::time_point> await_ack(const std::string& gateway, const revision_of& of, milliseconds timeout);
  /// When a gateway, caught up, first ran everything that was committed; empty: not in time.
  std::optional<clock::time_point> await_caught_up(const std::string& gateway, milliseconds timeout);

private:
  using commits = std::map<std::pair<std::string, bool>, revision_of>;
  struct acknowledgement {
    std::string state;
    std::vector<std::pair<std::int64_t, clock::time_point>> steps;  ///< each larger than the one before
  };
  std::optional<revision_of> await_commit(const commits& in, const std::string& which, bool is, milliseconds timeout);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  commits tunnels_, connectors_;
  std::map<int, std::int64_t> revisions_;
  std::map<std::pair<std::string, int>, acknowledgement> acks_;
  std::shared_ptr<bus::connection> nats_;
  bus::subscription commits_heard_, acks_heard_;
};

}  // namespace warren::bench
