// test/simulation/deceit.hpp -- planted bugs that look like a message: what a guard would have noticed is made to look
// right on its way, so that the guard is as good as not there.
#pragma once

#include <map>
#include <string>

#include "actors/messages.hpp"
#include "test/simulation/bugs.hpp"

namespace warren::simulation {

class deceit {
public:
  explicit deceit(const bugs& planted) : planted_{planted} {}
  static bool tampers(const bugs& planted) {
    return planted.count(bug::older_session_counted) > 0 || planted.count(bug::older_stream_counted) > 0;
  }

  /// Learns the newest sessions and streams.
  void overheard(const bus_message& m);
  void tamper(bus_message& m, const std::string& to);

private:
  struct session {
    std::int64_t number = 0, sequence = 0;
    std::string token;
  };
  const bugs& planted_;
  std::map<std::string, session> sessions_;     ///< by connector
  std::map<std::string, std::string> greeting_;  ///< inbox → connector
  std::map<std::string, std::int64_t> streams_;  ///< by gateway
};

}  // namespace warren::simulation
