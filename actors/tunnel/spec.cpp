// actors/tunnel/spec.cpp -- what a tunnel's spec may say, and its one spelling. Pure: no CAF, no I/O, no clock.
#include "actors/tunnel/spec.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <idn2.h>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/wire.hpp"

namespace warren::tunnel {

namespace {

constexpr std::string_view label_rule = "must be 1 to 63 of a-z, 0-9 and '-', with '-' neither first nor last";

canonical bad(std::string why) { return {{}, std::move(why)}; }
canonical good(std::string value) { return {std::move(value), {}}; }

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}
std::string lower(std::string_view text) {
  std::string out{text};
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}
bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> out;
  for (;;) {
    const auto end = text.find(at);
    out.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

bool has_a_label(const std::vector<std::string_view>& labels) {
  return std::any_of(labels.begin(), labels.end(), [](std::string_view l) { return l.starts_with("xn--"); });
}

// What a browser makes of a name that somebody types: lower case, composed, A-labels; those that are there already
// have to stand for what they would be made of.
canonical to_a_labels(const std::string& name) {
  std::uint8_t* out = nullptr;
  const int error = idn2_lookup_u8(reinterpret_cast<const std::uint8_t*>(name.c_str()), &out, IDN2_NONTRANSITIONAL | IDN2_NFC_INPUT);
  if (error != IDN2_OK) return bad(idn2_strerror(error));
  std::string ascii{reinterpret_cast<const char*>(out)};
  idn2_free(out);
  return good(std::move(ascii));
}

// What resolvers and browsers take for an IPv4 address, whatever its spelling ("1.2.3.4", "127.1", "x.0x7f").
bool ends_in_number(std::string_view last_label) {
  if (all_digits(last_label)) return true;
  if (!last_label.starts_with("0x")) return false;
  return std::all_of(last_label.begin() + 2, last_label.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::optional<std::string> ipv4(const std::string& text) {
  in_addr ip{};
  if (inet_pton(AF_INET, text.c_str(), &ip) != 1) return std::nullopt;
  return text;  // inet_pton takes only the canonical spelling, but for leading zeros, which glibc refuses too
}
std::optional<std::string> ipv6(const std::string& text) {
  in6_addr ip{};
  std::array<char, INET6_ADDRSTRLEN> out{};
  if (inet_pton(AF_INET6, text.c_str(), &ip) != 1) return std::nullopt;
  inet_ntop(AF_INET6, &ip, out.data(), out.size());
  return std::string{out.data()};
}

// A target's host is a name in the agent's world: one label is enough, and '_' occurs there.
canonical target_host(std::string_view text) {
  if (text.starts_with('[')) {
    if (!text.ends_with(']')) return bad("has a bracket that is not closed");
    if (auto ip = ipv6(std::string{text.substr(1, text.size() - 2)})) return good("[" + *ip + "]");
    return bad("has no valid IPv6 address in its brackets");
  }
  auto host = lower(text);
  if (host.ends_with('.')) host.pop_back();
  if (host.empty()) return bad("has no host");
  if (host.size() > limits::hostname_chars_max) return bad("has a host name of more than 253 characters");
  const auto labels = split(host, '.');
  if (ends_in_number(labels.back())) {
    if (auto ip = ipv4(host)) return good(*ip);
    return bad("has a host that is neither a name nor an IPv4 address");
  }
  for (const auto label : labels) {
    const bool fits = !label.empty() && label.size() <= limits::label_chars_max && label.front() != '-' &&
                      label.back() != '-' && std::all_of(label.begin(), label.end(), [](char c) {
                        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
                      });
    if (!fits) return bad("has a host that is no host name");
  }
  return good(std::move(host));
}

class judge {
public:
  explicit judge(std::vector<violation>& out) : out_{out} {}
  void wrong(std::string field, std::string message) { out_.push_back({std::move(field), std::move(message)}); }

  /// Replaces `text` by its canonical spelling; false: it has none.
  bool settle(std::string& text, canonical (*how)(std::string_view), const std::string& field) {
    auto result = how(text);
    if (!result) {
      wrong(field, std::move(result.error));
      return false;
    }
    text = std::move(result.value);
    return true;
  }

private:
  std::vector<violation>& out_;
};

void settle_hostnames(v1::TunnelSpec& spec, judge& j) {
  auto& names = *spec.mutable_hostnames();
  if (names.empty()) return j.wrong("hostnames", "must have at least one host name");
  if (static_cast<std::size_t>(names.size()) > limits::hostnames_max)
    return j.wrong("hostnames", fmt::format("must have at most {} host names", limits::hostnames_max));
  std::map<std::string, int> seen;
  for (int i = 0; i < names.size(); ++i) {
    const auto field = fmt::format("hostnames[{}]", i);
    if (!j.settle(*names.Mutable(i), canonical_hostname, field)) continue;
    const auto [first, fresh] = seen.try_emplace(names[i], i);
    if (!fresh) j.wrong(field, fmt::format("is the same host name as hostnames[{}]", first->second));
  }
}

void settle_rules(v1::TunnelSpec& spec, judge& j) {
  auto& rules = *spec.mutable_rules();
  if (rules.empty()) return j.wrong("rules", "must have at least one rule");
  if (static_cast<std::size_t>(rules.size()) > limits::rules_max)
    return j.wrong("rules", fmt::format("must have at most {} rules", limits::rules_max));
  std::map<std::string, int> seen;
  for (int i = 0; i < rules.size(); ++i) {
    auto& rule = *rules.Mutable(i);
    const auto at = fmt::format("rules[{}].", i);
    if (j.settle(*rule.mutable_path_prefix(), canonical_path_prefix, at + "path_prefix")) {
      const auto [first, fresh] = seen.try_emplace(rule.path_prefix(), i);
      if (!fresh)
        j.wrong(at + "path_prefix", fmt::format("is the same path prefix as that of rules[{}]", first->second));
    }
    if (!protocol::is_label(rule.connector())) j.wrong(at + "connector", std::string{label_rule});
    j.settle(*rule.mutable_target(), canonical_target, at + "target");
  }
}

void settle_gateway_class(v1::TunnelSpec& spec, judge& j) {
  if (spec.gateway_class().empty()) spec.set_gateway_class("default");
  if (!protocol::is_label(spec.gateway_class())) j.wrong("gateway_class", std::string{label_rule});
}

/// The first of the rules that is not spelt as it is stored.
std::optional<violation> misspelt(const v1::TunnelSpec& spec, const v1::TunnelSpec& settled) {
  for (int i = 0; i < spec.rules_size(); ++i) {
    const auto at = fmt::format("rules[{}].", i);
    if (spec.rules(i).path_prefix() != settled.rules(i).path_prefix())
      return violation{at + "path_prefix", fmt::format("must be written {}", settled.rules(i).path_prefix())};
    if (spec.rules(i).target() != settled.rules(i).target())
      return violation{at + "target", fmt::format("must be written {}", settled.rules(i).target())};
  }
  return std::nullopt;
}

}  // namespace

canonical canonical_hostname(std::string_view text) {
  if (text.empty()) return bad("must not be empty");
  constexpr auto utf8_bytes_max = 4;
  const bool ascii = is_ascii(text);
  if (text.size() > (limits::hostname_chars_max + 1) * (ascii ? 1 : utf8_bytes_max)) return bad("must have at most 253 characters");
  auto name = lower(text);
  if (!ascii) {
    if (!protocol::is_printable_utf8(text)) return bad("must be UTF-8 without control characters");
    auto converted = to_a_labels(name);
    if (!converted) return bad(fmt::format("has characters outside ASCII that no A-label can stand for: {}", converted.error));
    name = std::move(converted.value);
  }
  if (name.ends_with('.')) name.pop_back();
  if (name.size() > limits::hostname_chars_max) return bad("must have at most 253 characters");
  if (name.find('*') != std::string::npos) return bad("must not be a wildcard");
  if (name.find_first_of(":[]") != std::string::npos)
    return bad("must be a host name alone: no address, no port");
  const auto labels = split(name, '.');
  for (const auto label : labels) {
    if (label.empty()) return bad("has an empty label");
    if (!protocol::is_label(label)) return bad(fmt::format("has a label that is none: each {}", label_rule));
    if (label.size() >= 4 && label.substr(2, 2) == "--" && !label.starts_with("xn--"))
      return bad("has a label with '--' in third place, which is reserved (RFC 5891)");
  }
  if (labels.size() < 2) return bad("must be fully qualified: two labels or more");
  if (ends_in_number(labels.back())) return bad("must be a host name, not an address");
  if (has_a_label(labels))
    if (const auto again = to_a_labels(name); !again || again.value != name)
      return bad(fmt::format("has an A-label that stands for nothing: {}", again ? "it would be written " + again.value : again.error));
  return good(std::move(name));
}

canonical canonical_target(std::string_view text) {
  if (text.empty()) return bad("must not be empty");
  if (text.size() > limits::target_bytes_max)
    return bad(fmt::format("must have at most {} bytes", limits::target_bytes_max));
  const bool visible = std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!visible) return bad("must have printable ASCII characters only, without spaces");
  const auto scheme_end = text.find("://");
  if (scheme_end == std::string_view::npos) return bad("must begin with http:// or https://");
  const auto scheme = lower(text.substr(0, scheme_end));
  if (scheme != "http" && scheme != "https") return bad("must begin with http:// or https://");
  auto rest = text.substr(scheme_end + 3);
  if (rest.find('@') != std::string_view::npos) return bad("must not have user info");
  if (rest.find('?') != std::string_view::npos) return bad("must not have a query");
  if (rest.find('#') != std::string_view::npos) return bad("must not have a fragment");
  if (const auto slash = rest.find('/'); slash != std::string_view::npos) {
    if (slash + 1 != rest.size()) return bad("must not have a path");
    rest.remove_suffix(1);  // "http://host/" is how a browser writes "no path"
  }

  const auto bracket = rest.rfind(']');
  const auto colon = rest.find(':', bracket == std::string_view::npos ? 0 : bracket);
  int port = scheme == "http" ? 80 : 443;
  if (colon != std::string_view::npos) {
    const auto digits = rest.substr(colon + 1);
    if (!all_digits(digits) || digits.size() > 5 || digits.front() == '0')
      return bad("has a port that is not a number from 1 to 65535");
    std::from_chars(digits.data(), digits.data() + digits.size(), port);
    if (port > 65535) return bad("has a port that is not a number from 1 to 65535");
    rest = rest.substr(0, colon);
  }
  auto host = target_host(rest);
  if (!host) return host;
  return good(fmt::format("{}://{}:{}", scheme, host.value, port));
}

canonical canonical_path_prefix(std::string_view text) {
  if (text.empty()) return good("/");
  if (text.size() > limits::path_prefix_bytes_max)
    return bad(fmt::format("must have at most {} bytes", limits::path_prefix_bytes_max));
  if (text.front() != '/') return bad("must begin with '/'");
  for (const char c : text) {
    if (c <= 0x20 || c >= 0x7f) return bad("must have printable ASCII characters only: percent-encode the others");
    if (c == '?' || c == '#') return bad("must be a path: no '?' and no '#'");
  }
  return good(std::string{text});
}

std::vector<violation> canonicalise(v1::TunnelSpec& spec, const std::vector<std::string>& fields) {
  std::vector<violation> out;
  judge j{out};
  const auto asked = [&](std::string_view field) {
    return fields.empty() || std::find(fields.begin(), fields.end(), field) != fields.end();
  };
  if (asked("hostnames")) settle_hostnames(spec, j);
  if (asked("rules")) settle_rules(spec, j);
  if (asked("gateway_class")) settle_gateway_class(spec, j);
  return out;
}

std::optional<violation> check_spec(const v1::TunnelSpec& spec) {
  auto settled = spec;
  auto wrong = canonicalise(settled);
  if (!wrong.empty()) return wrong.front();
  for (int i = 0; i < spec.hostnames_size(); ++i)
    if (spec.hostnames(i) != settled.hostnames(i))
      return violation{fmt::format("hostnames[{}]", i), fmt::format("must be written {}", settled.hostnames(i))};
  if (auto found = misspelt(spec, settled)) return found;
  if (spec.gateway_class() != settled.gateway_class())
    return violation{"gateway_class", fmt::format("must be written {}", settled.gateway_class())};
  return std::nullopt;
}

std::optional<violation> check_row(const v1::TunnelRow& row) {
  // It stands between slashes in what gateways tell agents.
  const auto& uid = row.uid();
  const bool fits = !uid.empty() && uid.size() <= wire::uid_bytes_max &&
                    std::all_of(uid.begin(), uid.end(), [](char c) { return c > 0x20 && c < 0x7f && c != '/'; });
  if (!fits) return violation{"uid", fmt::format("must be 1 to {} printable ASCII characters without '/'", wire::uid_bytes_max)};
  v1::TunnelSpec spec;
  *spec.mutable_rules() = row.rules();
  auto settled = spec;
  const auto wrong = canonicalise(settled, {"rules"});
  return wrong.empty() ? misspelt(spec, settled) : wrong.front();
}

}  // namespace warren::tunnel
