// actors/core/listen.hpp -- addresses that a server listens on, as settings spell them. Pure: opens nothing.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace warren {

struct listen_address {
  std::string host;        ///< a name or an IP without brackets; empty: a unix socket
  bool numeric = false;    ///< the host is an IP
  int port = 0;            ///< 0: any free one
  std::string socket_path; ///< of a unix socket
};

/// "host:port", "[ip6]:port" or "unix:/path"; nullopt: none of these.
std::optional<listen_address> parse_listen(std::string_view text);

/// Nobody beyond this machine gets there: a loopback IP, "localhost", or a unix socket.
bool is_local(const listen_address& at);

}  // namespace warren
