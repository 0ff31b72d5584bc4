// deploy/story/story.hpp -- a tunnel's life, told from what the admin API and visitors see. Starts no server.
#pragma once

#include "deploy/story/teller.hpp"
#include "test/support/stack.hpp"

namespace warren::story {

/// From the tunnel's creation to its answer after the agent's return. `servers` run; with an Envoy among them
/// visitors take part. Throws stack::stack_error when something does not come to pass.
void tell(stack::stack& servers, teller& out);

/// Where everything listens, and what to try.
void tell_what_next(stack::stack& servers, teller& out);

}  // namespace warren::story
