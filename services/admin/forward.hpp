// services/admin/forward.hpp -- brings a command to its partition's owner, wherever that is, within the
// caller's deadline. No gRPC service, no CAF; the transport comes in.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
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

/// Sends, and sends again with the same request id while there is no owner to be found, after 20 to 200 ms
/// with jitter. `done` is called exactly once, on any thread, at the latest shortly after `deadline`.
/// `cancelled` is asked before each attempt: nobody waits any more.
/// Order: attempts of one command follow each other; several commands are independent.
void forward(const send_function& send, partition_id partition, corev1::Command command,
             std::chrono::system_clock::time_point deadline, std::function<bool()> cancelled,
             std::function<void(forwarded)> done, counters* counts = nullptr);

/// 16 random bytes, hex: for callers without a request id, so that our own repetition is safe.
std::string fresh_request_id();

}  // namespace warren::admin
