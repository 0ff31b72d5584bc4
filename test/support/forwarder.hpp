// test/support/forwarder.hpp -- a TCP way to a server that a test can cut, swallow or lead elsewhere. Knows
// nothing of what passes. Also used by deploy/story.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace warren::stack {

/// Listens on a free port of loopback. Thread-safe.
class forwarder {
public:
  /// Each target is a port of 127.0.0.1 ("4222") or the path of a unix socket; a new connection goes to the
  /// first that takes it.
  explicit forwarder(std::vector<std::string> targets);
  ~forwarder();
  forwarder(const forwarder&) = delete;
  forwarder& operator=(const forwarder&) = delete;

  std::uint16_t port() const;
  /// Ends what is open, and ends at once whatever comes: what a dead machine's kernel says.
  void cut();
  /// Passes nothing any more and says nothing: what a pulled cable is. New connections are taken, and hang.
  void swallow();
  /// Back to passing; what was swallowed on a connection that is still open arrives.
  void mend();
  /// From the next connection on. `now`: what is open ends, so that there is a next one.
  void lead_to(std::vector<std::string> targets, bool now);

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::stack
