// services/bus/codec.hpp -- the parsers of actors/core/wire.hpp under the name of this room. Pure.
#pragma once

#include "actors/core/wire.hpp"

namespace warren::bus {

using wire::bad_message;
using wire::parse_agent_command;
using wire::parse_api_command;
using wire::parse_api_reply;
using wire::parse_command_reply;
using wire::parse_event;
using wire::parse_gateway_ack;
using wire::parse_heartbeat;
using wire::parse_hello;
using wire::parse_hello_reply;
using wire::parse_lease_notice;
using wire::parse_revision;
using wire::parsed;

}  // namespace warren::bus
