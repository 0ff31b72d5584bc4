// actors/connector/spec.cpp -- what a connector's spec and its agent's addressing may say. Pure.
#include "actors/connector/spec.hpp"

#include <algorithm>
#include <array>
#include <charconv>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::connector {

namespace {

constexpr std::int64_t lease_min_ms = millis{limits::lease_min}.count();
constexpr std::int64_t lease_max_ms = millis{limits::lease_max}.count();

/// An address as bytes in network order; an IPv4 address inside IPv6 is what it stands for.
std::optional<network> parse_ip(std::string_view text) {
  if (text.size() > 45) return std::nullopt;
  const std::string host{text};
  std::array<char, 16> bytes{};
  if (inet_pton(AF_INET, host.c_str(), bytes.data()) == 1) return network{false, {bytes.data(), 4}, 32};
  if (inet_pton(AF_INET6, host.c_str(), bytes.data()) == 1) return network{true, {bytes.data(), 16}, 128};
  return std::nullopt;
}

constexpr std::string_view mapped_prefix{"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12};

network unmapped(network ip) {
  if (ip.v6 && std::string_view{ip.bytes}.substr(0, 12) == mapped_prefix) return {false, ip.bytes.substr(12), 32};
  return ip;
}

/// Whether `inner` lies within `outer`.
bool within(const network& inner, const network& outer) {
  if (inner.v6 != outer.v6 || inner.prefix < outer.prefix) return false;
  for (int bit = 0; bit < outer.prefix; ++bit) {
    const auto at = static_cast<std::size_t>(bit / 8);
    const int mask = 0x80 >> (bit % 8);
    if ((inner.bytes[at] & mask) != (outer.bytes[at] & mask)) return false;
  }
  return true;
}

struct special_range {
  std::string_view cidr, name;
};
// RFC 1122 3.2.1.3, RFC 3927, RFC 5771, RFC 4291 2.4, 2.7.
constexpr std::array<special_range, 9> special_ranges{{{"0.0.0.0/8", "unspecified"},
                                                       {"127.0.0.0/8", "loopback"},
                                                       {"169.254.0.0/16", "link-local"},
                                                       {"224.0.0.0/4", "multicast"},
                                                       {"255.255.255.255/32", "broadcast"},
                                                       {"::/128", "unspecified"},
                                                       {"::1/128", "loopback"},
                                                       {"fe80::/10", "link-local"},
                                                       {"ff00::/8", "multicast"}}};

struct special_network {
  network range;
  std::string_view name;
};
const std::vector<special_network>& special_networks() {
  static const auto all = [] {
    std::vector<special_network> out;
    for (const auto& s : special_ranges) out.push_back({*parse_network(s.cidr), s.name});
    return out;
  }();
  return all;
}

/// Why a class with these networks does not allow `ip`; empty: it does.
std::string not_allowed(const network& ip, const std::vector<network>& allowed) {
  const special_network* special = nullptr;
  for (const auto& s : special_networks())
    if (within(ip, s.range)) special = &s;
  for (const auto& net : allowed)
    if (within(ip, net) && (special == nullptr || within(net, special->range))) return {};
  return special != nullptr ? fmt::format("a {} address, which the connector class does not name", special->name)
                            : "not in a network that the connector class allows";
}

std::string url_problem(std::string_view url) {
  if (url.size() > limits::home_relay_bytes_max)
    return fmt::format("longer than {} bytes", limits::home_relay_bytes_max);
  if (!std::all_of(url.begin(), url.end(), [](char c) { return c > 0x20 && c < 0x7f; }))
    return "has spaces, control characters or characters outside ASCII";
  const auto colon = url.find("://");
  if (colon == std::string_view::npos || (url.substr(0, colon) != "https" && url.substr(0, colon) != "http"))
    return "is no http:// or https:// URL";
  const auto host = url.substr(colon + 3, url.find_first_of("/?#", colon + 3) - (colon + 3));
  if (host.empty() || host.front() == ':') return "has no host";
  if (host.find('@') != std::string_view::npos) return "has user info";
  if (const auto literal = host.find('['); literal != std::string_view::npos) {
    const auto end = host.find(']');
    if (literal != 0 || end == std::string_view::npos || !parse_ip(host.substr(1, end - 1))) return "has no IP address in its brackets";
  }
  return {};
}

bool has(const std::vector<std::string>& fields, std::string_view field) {
  return fields.empty() || std::find(fields.begin(), fields.end(), field) != fields.end();
}

}  // namespace

std::vector<violation> canonicalise(v1::ConnectorSpec& spec, const std::vector<std::string>& fields) {
  std::vector<violation> wrong;
  for (const auto& field : fields)
    if (field != "class" && field != "lease_duration_ms" && field != "lease_duration")
      wrong.push_back({"update_mask", "there is no such field"});
  if (has(fields, "class")) {
    if (spec.class_().empty()) spec.set_class_("default");
    if (!protocol::is_label(spec.class_()))
      wrong.push_back({"class", "must be 1 to 63 of a-z, 0-9 and '-', neither first nor last"});
  }
  if (has(fields, "lease_duration_ms") || has(fields, "lease_duration")) {
    if (spec.lease_duration_ms() == 0) spec.set_lease_duration_ms(millis{limits::lease_default}.count());
    if (auto bad = check_lease(spec.lease_duration_ms())) wrong.push_back(std::move(*bad));
  }
  return wrong;
}

std::optional<violation> check_spec(const v1::ConnectorSpec& spec) {
  v1::ConnectorSpec copy = spec;
  auto wrong = canonicalise(copy);
  if (!wrong.empty()) return wrong.front();
  if (spec.class_().empty()) return violation{"class", "is empty"};
  return check_lease(spec.lease_duration_ms());
}

std::optional<violation> check_lease(std::int64_t lease_duration_ms) {
  if (lease_duration_ms >= lease_min_ms && lease_duration_ms <= lease_max_ms) return std::nullopt;
  return violation{"lease_duration", "must be between 3 s and 1 h"};
}

std::optional<violation> check_public_key(std::string_view key) {
  if (protocol::is_low_order_key_hex(key)) return violation{"public_key", "is a point of low order: anybody could sign for it"};
  if (protocol::is_public_key_hex(key)) return std::nullopt;
  return violation{"public_key", "must be 64 lower-case hex digits"};
}

std::optional<violation> check_own_fields(const v1::ConnectorRow& row) {
  if (auto wrong = check_public_key(row.public_key())) return wrong;
  return check_lease(row.lease_duration_ms());
}

bool is_of_row(std::string_view addressing_error) {
  return addressing_error.starts_with("public_key: ") || addressing_error.starts_with("lease_duration: ");
}

std::optional<violation> check_row(const v1::ConnectorRow& row) {
  if (auto wrong = check_public_key(row.public_key())) return wrong;
  if (row.addresses_size() > static_cast<int>(limits::addresses_max))
    return violation{"addresses", fmt::format("{} addresses, more than {}", row.addresses_size(), limits::addresses_max)};
  for (int i = 0; i < row.addresses_size(); ++i)
    if (protocol::canonical_address(row.addresses(i)) != row.addresses(i))
      return violation{fmt::format("addresses[{}]", i), "is no IP address with a port between 1 and 65535"};
  if (!row.home_relay().empty())
    if (auto problem = url_problem(row.home_relay()); !problem.empty()) return violation{"home_relay", std::move(problem)};
  if (row.home_relay().empty() && row.addresses().empty()) return violation{"addresses", "neither an address nor a home relay"};
  return std::nullopt;
}

std::optional<network> parse_network(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  auto ip = parse_ip(text.substr(0, slash));
  if (!ip) return std::nullopt;
  const auto digits = text.substr(slash + 1);
  int prefix = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), prefix);
  if (error != std::errc{} || end != digits.data() + digits.size() || prefix < 0 || prefix > (ip->v6 ? 128 : 32))
    return std::nullopt;
  for (int bit = prefix; bit < (ip->v6 ? 128 : 32); ++bit)
    if ((ip->bytes[static_cast<std::size_t>(bit / 8)] & (0x80 >> (bit % 8))) != 0) return std::nullopt;
  ip->prefix = prefix;
  return ip;
}

std::optional<std::string> canonical_network(std::string_view text) {
  const auto net = parse_network(text);
  if (!net) return std::nullopt;
  std::array<char, INET6_ADDRSTRLEN> host{};
  inet_ntop(net->v6 ? AF_INET6 : AF_INET, net->bytes.data(), host.data(), host.size());
  return fmt::format("{}/{}", host.data(), net->prefix);
}

judged_addressing judge_addressing(const busv1::Addressing& reported,
                                   const google::protobuf::RepeatedPtrField<std::string>& allowed_networks) {
  judged_addressing out;
  const auto refuse = [&](std::string field, std::string message) {
    out.error = violation{std::move(field), std::move(message)};
    return out;
  };
  if (reported.addresses_size() > static_cast<int>(limits::addresses_max))
    return refuse("addresses", fmt::format("{} addresses, more than {}", reported.addresses_size(), limits::addresses_max));
  if (reported.home_relay().empty() && reported.addresses().empty())
    return refuse("addresses", "neither an address nor a home relay");
  if (!reported.home_relay().empty()) {
    if (auto problem = url_problem(reported.home_relay()); !problem.empty())
      return refuse("home_relay", std::move(problem));
    out.home_relay = reported.home_relay();
  }
  std::vector<network> allowed;
  for (const auto& text : allowed_networks)
    if (auto net = parse_network(text)) allowed.push_back(std::move(*net));
  for (int i = 0; i < reported.addresses_size(); ++i) {
    const auto field = fmt::format("addresses[{}]", i);
    auto address = protocol::canonical_address(reported.addresses(i));
    if (!address) return refuse(field, "is no IP address with a port between 1 and 65535");
    auto host = address->substr(0, address->rfind(':'));
    if (host.front() == '[') host = host.substr(1, host.size() - 2);
    const auto ip = parse_ip(host);
    if (!ip) return refuse(field, "is no IP address");
    if (auto why = not_allowed(unmapped(*ip), allowed); !why.empty()) return refuse(field, std::move(why));
    out.addresses.push_back(std::move(*address));
  }
  std::sort(out.addresses.begin(), out.addresses.end());
  out.addresses.erase(std::unique(out.addresses.begin(), out.addresses.end()), out.addresses.end());
  return out;
}

}  // namespace warren::connector
