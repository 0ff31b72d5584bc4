// services/dialer/dialer.hpp -- knocks at agents' doors: one thread, many sockets, no decisions.
#pragma once

#include "actors/core/counters.hpp"
#include "actors/messages.hpp"

namespace warren::dialer {

/// For each dial_request: `OPTIONS * HTTP/1.1` with `x-warren-endpoint-id` to all addresses at once; the first
/// 204 answers it. Refused: every address said so outright (connection refused, or any other status). What waits
/// for a free place does not wait longer than its own timeout. `counts` must outlive the actor.
dialer_actor spawn_dialer(caf::actor_system& system, counters& counts);

}  // namespace warren::dialer
