// services/warrenctl/tries.hpp -- of one call: who is asked for how long, who next, and when it is over. Pure: no
// network, no clock.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>

#include <grpcpp/support/status.h>

namespace warren::ctl {

using std::chrono::milliseconds;
using std::chrono::system_clock;

/// It was no warrend that said so, or one on its way out: its refusals have details.
bool unanswered(const grpc::Status& status);
/// When it says that it may be asked again; nothing: it does not.
std::optional<milliseconds> retry_delay(const grpc::Status& status);

/// One server has the whole time, and is asked again when it says so. Of several each gets a share, so that one that is
/// silent does not use up the time of the others: a second or two in the first round, twice as long in each that follows.
class tries {
public:
  tries(std::size_t servers, system_clock::time_point until) : servers_{servers}, until_{until} {}

  /// Until when the try that begins may last.
  system_clock::time_point next(system_clock::time_point now);
  /// What to do after the last one ended so; nothing: told() is what came of it.
  struct repetition {
    bool elsewhere = false;
    milliseconds pause{0};
  };
  std::optional<repetition> after(const grpc::Status& status, system_clock::time_point now);

  /// Of all that was heard what says most.
  const grpc::Status& told() const { return told_; }
  std::size_t made() const { return made_; }

private:
  std::size_t round() const { return (made_ - 1) / servers_; }
  void hear(const grpc::Status& status);
  std::optional<repetition> after_the_only(const grpc::Status& status, system_clock::time_point now) const;

  const std::size_t servers_;
  const system_clock::time_point until_;
  std::size_t made_ = 0;
  bool shared_ = false;      // the time of the last try was a share
  bool hope_ = false;        // somebody of this round did not answer, or said that he may be asked again
  milliseconds wait_{0};     // the longest that somebody of this round asked for
  grpc::Status told_;
};

}  // namespace warren::ctl
