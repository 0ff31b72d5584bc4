// actors/core/listen.cpp -- addresses that a server listens on. Opens nothing.
#include "actors/core/listen.hpp"

#include <charconv>

#include <arpa/inet.h>

namespace warren {

std::optional<listen_address> parse_listen(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return std::nullopt;  // inet_pton would stop there
  if (text.starts_with("unix:")) {
    if (text.size() == 5) return std::nullopt;
    return listen_address{"", false, 0, std::string{text.substr(5)}};
  }
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  auto host = text.substr(0, colon);
  const auto digits = text.substr(colon + 1);
  int port = 0;
  const auto r = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (digits.empty() || r.ec != std::errc{} || r.ptr != digits.data() + digits.size() || port < 0 || port > 65535)
    return std::nullopt;
  if (host.starts_with('[') != host.ends_with(']')) return std::nullopt;
  const bool bracketed = host.starts_with('[');
  if (bracketed) host = host.substr(1, host.size() - 2);
  in6_addr v6{};
  if (bracketed && inet_pton(AF_INET6, std::string{host}.c_str(), &v6) != 1) return std::nullopt;
  if (host.empty() || (!bracketed && host.find(':') != std::string_view::npos)) return std::nullopt;
  in_addr v4{};
  const bool numeric = bracketed || inet_pton(AF_INET, std::string{host}.c_str(), &v4) == 1;
  return listen_address{std::string{host}, numeric, port, ""};
}

bool is_local(const listen_address& at) {
  if (!at.socket_path.empty() || at.host == "localhost" || at.host == "::1") return true;
  return at.numeric && at.host.starts_with("127.");  // a name may begin so as well
}

}  // namespace warren
