// services/gateway/programmed.cpp -- /debug/programmed as JSON. Reads what the server says of itself.
#include "services/gateway/programmed.hpp"

#include <charconv>
#include <map>

#include <fmt/format.h>

namespace warren::gateway {

namespace {

constexpr std::size_t limit_default = 1000, limit_max = 5000;  // of each kind: below a MiB of JSON
constexpr std::size_t query_bytes_max = 2048;

std::string quoted(std::string_view text) {
  std::string out{"\""};
  for (const char c : text) {
    if (c == '"' || c == '\\') out += {'\\', c};
    else if (static_cast<unsigned char>(c) < 0x20) out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    else out += c;
  }
  return out + '"';
}

/// "%2F" is '/'; what is no escape stays.
std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16).ptr == text.data() + i + 3) {
      out += static_cast<char>(value);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::map<std::string, std::string> parameters(std::string_view query) {
  std::map<std::string, std::string> out;
  while (!query.empty()) {
    const auto end = query.find('&');
    const auto part = query.substr(0, end);
    const auto equals = part.find('=');
    if (equals != std::string_view::npos) out[std::string{part.substr(0, equals)}] = unescaped(part.substr(equals + 1));
    if (end == std::string_view::npos) break;
    query.remove_prefix(end + 1);
  }
  return out;
}

debug_page wrong(int status, std::string_view why) { return {status, fmt::format("{{\"error\":{}}}\n", quoted(why))}; }

std::string all_gateways(const gateway_server& server) {
  std::string out = "{\"gateways\":[";
  const char* comma = "";
  for (const auto& g : server.status()) {
    out += fmt::format("{}{{\"gateway\":{},\"class\":{},\"state\":{},\"stream\":{},\"peer\":{},\"pending\":{},\"lag\":{},\"refusals\":{},\"acknowledged\":{{",
                       comma, quoted(g.gateway), quoted(g.gateway_class), quoted(to_string(g.state)), g.stream, quoted(g.peer), g.pending,
                       g.lag, g.nacks);
    const char* inner = "";
    for (const auto& [partition, revision] : g.acknowledged) {
      out += fmt::format("{}\"{}\":{}", inner, partition, revision);
      inner = ",";
    }
    out += "}}";
    comma = ",";
  }
  return out + "]}\n";
}

std::string name_json(const programmed_name& n) {
  return fmt::format("{{\"name\":{},\"intended\":{},\"acknowledged\":{},\"under_way\":{},\"refused\":{}}}", quoted(n.name), quoted(text_of(n.intended)),
                     quoted(text_of(n.acknowledged)), n.under_way, n.refused);
}

}  // namespace

debug_page programmed_json(const gateway_server& server, std::string_view query) {
  if (query.size() > query_bytes_max) return wrong(400, "the query is too long");
  auto asked = parameters(query);
  const auto& gateway = asked["gateway"];
  if (gateway.empty()) return {200, all_gateways(server)};

  std::size_t limit = limit_default;
  if (const auto& text = asked["limit"]; !text.empty()) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), limit);
    if (error != std::errc{} || end != text.data() + text.size() || limit == 0 || limit > limit_max)
      return wrong(400, fmt::format("limit is a number from 1 to {}", limit_max));
  }
  const auto& wanted = asked["kind"];
  const bool different = asked["different"] == "1";
  if (wanted.empty() && !asked["after"].empty()) return wrong(400, "after needs a kind: cds, lds, rds or srds");
  std::string out = fmt::format("{{\"gateway\":{}", quoted(gateway));
  bool some = false;
  for (const auto k : {kind::cluster, kind::listener, kind::route, kind::scope}) {
    if (!wanted.empty() && wanted != short_name(k)) continue;
    const auto page = server.programmed(gateway, k, asked["after"], limit);
    if (!page) return wrong(503, "the server is too busy to say");
    if (!page->connected) return wrong(404, "no such gateway is connected to this instance");
    if (!some) out += fmt::format(",\"state\":{}", quoted(to_string(page->state)));
    some = true;
    out += fmt::format(",{}:{{\"names\":[", quoted(short_name(k)));
    const char* comma = "";
    for (const auto& n : page->names) {
      if (different && n.intended == n.acknowledged) continue;
      out += comma + name_json(n);
      comma = ",";
    }
    out += "]";
    if (page->names.size() == limit) out += fmt::format(",\"next\":{}", quoted(page->names.back().name));
    out += "}";
  }
  if (!some) return wrong(400, "kind is cds, lds, rds or srds");
  return {200, out + "}\n"};
}

}  // namespace warren::gateway
