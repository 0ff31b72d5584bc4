// services/dialer/dialer.hpp -- knocks at agents' doors: one thread, many sockets, no decisions.
#pragma once

#include "actors/core/counters.hpp"
#include "actors/messages.hpp"

namespace warren::dialer {

/// For each dial_request: `OPTIONS * HTTP/1.1` with `x-warren-endpoint-id` to all addresses at once; the first
/// 204 answers it. Refused: every address said so outright (connection refused, or any other status). What waits
/// for a free place does not wait longer than its own timeout. The actor lives until it is sent an exit message, and
/// `counts` must outlive it.
dialer_actor spawn_dialer(caf::actor_system& system, counters& counts);

}  // namespace warren::dialer
