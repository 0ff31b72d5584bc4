// services/warrend/ports.cpp -- tries the addresses of the settings. Keeps nothing open.
#include "services/warrend/ports.hpp"

#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include "actors/core/listen.hpp"

namespace warren {

namespace {

/// Why nobody can listen there; empty: it can be listened on.
std::string try_to_bind(const listen_address& at) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int r = getaddrinfo(at.host.c_str(), std::to_string(at.port).c_str(), &wanted, &found); r != 0)
    return gai_strerror(r);
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned{found, freeaddrinfo};
  const int fd = ::socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, found->ai_protocol);
  if (fd < 0) return std::strerror(errno);
  // What the servers set as well: a port whose last connections still linger can be had, one with a listener cannot.
  const int on = 1;
  (void)::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const int error = ::bind(fd, found->ai_addr, found->ai_addrlen) == 0 && ::listen(fd, 1) == 0 ? 0 : errno;
  ::close(fd);
  return error == 0 ? "" : std::strerror(error);
}

}  // namespace

std::string unavailable_port(const config::effective& settings) {
  std::map<std::pair<std::string, int>, std::string> taken;  // by a setting before
  for (const auto* key : {"admin.listen", "xds.listen", "http.listen", "hook.listen", "hook.http_listen"}) {
    const auto text = settings.text(key);
    const auto at = parse_listen(text);
    if (!at || at->host.empty()) continue;  // not used, or a unix socket, which its server opens
    if (at->port != 0)
      if (const auto [other, fresh] = taken.try_emplace({at->host, at->port}, key); !fresh)
        return fmt::format("{} {} cannot be listened on: {} has it already", key, text, other->second);
    if (const auto why = try_to_bind(*at); !why.empty()) return fmt::format("{} {} cannot be listened on: {}", key, text, why);
  }
  return "";
}

}  // namespace warren
