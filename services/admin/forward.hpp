// services/admin/forward.hpp -- brings a command to its partition's owner, wherever that is, within the
// caller's deadline. No gRPC service, no CAF; the transport comes in.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include "actors/core/counters.hpp"
#include "actors/core/ids.hpp"
#include "actors/core/time.hpp"
#include "services/bus/connection.hpp"
#include "warren/core/v1/commands.pb.h"

namespace warren::admin {

namespace corev1 = warren::core::v1;

/// One attempt: `payload` to the owner of `partition`; the answer comes on any thread, exactly once.
/// On the bus: connection::request on api_subject(partition).
using send_function =
    std::function<void(partition_id partition, std::string payload, millis timeout, bus::reply_callback done)>;

/// What became of it in the end.
struct forwarded {
  corev1::Reply reply;   ///< code "unavailable" or "internal" also for what the transport says
  bool undecided = false;  ///< the deadline came while it was unknown whether it was carried out
};

/// Whom news of an owner reach. Thread-safe; outlives every forward().
class hand_overs {
public:
  /// A request that is on its way to an owner, or waits for there to be one.
  class asker {
  public:
    virtual ~asker() = default;
    virtual void ask_now() = 0;
  };
  /// Another instance runs `partition`: all requests for it are sent there at once, also those that its former
  /// owner was sent and has not answered.
  void taken(partition_id partition);

  void join(partition_id partition, std::shared_ptr<asker> who);
  void leave(partition_id partition, const std::shared_ptr<asker>& who);

private:
  std::mutex mutex_;
  std::map<partition_id, std::set<std::shared_ptr<asker>>> askers_;
};

/// What a forward() needs beside its command; all of it outlives the call.
struct forwarding {
  const send_function& send;
  hand_overs& news;
  counters* counts = nullptr;  ///< may be null
  /// Whether some instance has the database at this moment: then an owner that has lost it is about to lose its
  /// partitions as well, and is asked again. Empty: nobody can tell, and what an owner says of it is final.
  std::function<bool()> database_reached = {};
};

/// Sends, and sends again with the same request id while there is no owner to be found, after 20 to 200 ms
/// with jitter, or as soon as `news` tells of one; so as well while only its owner has lost the database.
/// While this instance does not reach the bus it gives up after a second, with a delay after which it may be asked
/// again: another one may reach it. `done` is called exactly once, on any thread, at the latest
/// shortly after `deadline`. `cancelled` is asked before each attempt: nobody waits any more.
/// Order: several commands are independent.
void forward(const forwarding& over, partition_id partition, corev1::Command command,
             std::chrono::system_clock::time_point deadline, std::function<bool()> cancelled,
             std::function<void(forwarded)> done);

/// Who asks, for the audit trail.
struct drain_caller {
  std::string principal, remote;
};
/// Tells an instance to give its partitions away; answers on any thread, exactly once: it has heard.
using drain_function = std::function<void(instance_id instance, const drain_caller& by, millis timeout, std::function<void(bool heard)> done)>;
/// With a notice on the bus (schema/warren/bus/v1: LeaseNotice "drain").
drain_function drain_over(std::shared_ptr<bus::connection> link);

/// 16 random bytes, hex: for callers without a request id, so that our own repetition is safe.
std::string fresh_request_id();

}  // namespace warren::admin
