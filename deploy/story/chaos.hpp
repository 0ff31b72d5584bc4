// deploy/story/chaos.hpp -- three instances in use, and what becomes of it when they are killed, stopped, paused and
// cut off, one after the other. Starts no server.
#pragma once

#include "deploy/story/teller.hpp"
#include "test/support/stack.hpp"

namespace warren::story {

/// `servers` has three instances with ways, and runs. Ends with how many visitors failed, and the longest time
/// without a write. Throws stack::stack_error when something does not come to pass.
void tell_chaos(stack::stack& servers, teller& out);

}  // namespace warren::story
