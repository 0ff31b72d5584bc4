// actors/replay/digest.hpp -- a number by which two states are known to be equal. Pure.
#pragma once

#include <cstddef>
#include <cstdint>

#include "actors/replay/secrets.hpp"

namespace warren::replay {

struct state_digest {
  std::uint64_t value = 0;
  std::size_t bytes = 0;  ///< that were looked at
};

/// Of everything in the state but its secrets, so that it holds for a redacted one as well. Secrets are taken out
/// for the time of the call, so the state must not be anybody else's meanwhile; it is the same afterwards.
state_digest digest_of(v1::TunnelState& state);
state_digest digest_of(v1::ConnectorState& state);
state_digest digest_of(v1::RegistryState& state);

}  // namespace warren::replay
