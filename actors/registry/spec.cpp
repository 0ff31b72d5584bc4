// actors/registry/spec.cpp -- what the specs of gateways and classes may say. Pure.
#include "actors/registry/spec.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "actors/connector/spec.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::registry {

namespace {

constexpr std::int64_t idle_min_ms = millis{limits::stream_idle_min}.count();
constexpr std::int64_t idle_max_ms = millis{limits::stream_idle_max}.count();

bool has(const std::vector<std::string>& fields, std::string_view field) {
  return fields.empty() || std::find(fields.begin(), fields.end(), field) != fields.end();
}

}  // namespace

std::vector<violation> canonicalise(v1::GatewaySpec& spec, const std::vector<std::string>& fields) {
  std::vector<violation> wrong;
  if (has(fields, "class")) {
    if (spec.class_().empty()) spec.set_class_("default");
    if (!protocol::is_label(spec.class_())) wrong.push_back({"class", std::string{protocol::label_rule}});
  }
  return wrong;
}

std::vector<violation> canonicalise(v1::GatewayClassSpec& spec, const std::vector<std::string>& fields) {
  std::vector<violation> wrong;
  if (has(fields, "dial_mode")) {
    if (spec.dial_mode().empty()) spec.set_dial_mode("direct");
    if (spec.dial_mode() != "direct" && spec.dial_mode() != "tunnel-listener")
      wrong.push_back({"dial_mode", "must be \"direct\" or \"tunnel-listener\""});
  }
  if (has(fields, "listen")) {
    std::set<std::string> seen;
    const auto given = spec.listen();
    spec.clear_listen();
    if (given.empty()) wrong.push_back({"listen", "must have at least one address"});
    if (static_cast<std::size_t>(given.size()) > limits::class_listen_max) {
      wrong.push_back({"listen", fmt::format("must have at most {} addresses", limits::class_listen_max)});
      return wrong;
    }
    for (int i = 0; i < given.size(); ++i) {
      const auto field = fmt::format("listen[{}]", i);
      const auto address = protocol::canonical_address(given[i]);
      if (!address)
        wrong.push_back({field, "must be ip:port or [ip6]:port"});
      else if (!seen.insert(*address).second)
        wrong.push_back({field, "is there twice"});
      else
        spec.add_listen(*address);
    }
  }
  if (has(fields, "stream_idle_timeout_ms")) {
    if (spec.stream_idle_timeout_ms() == 0) spec.set_stream_idle_timeout_ms(millis{limits::stream_idle_default}.count());
    if (spec.stream_idle_timeout_ms() < idle_min_ms || spec.stream_idle_timeout_ms() > idle_max_ms)
      wrong.push_back({"stream_idle_timeout_ms", "must be between 1 s and 24 h"});
  }
  return wrong;
}

std::vector<violation> canonicalise(v1::ConnectorClassSpec& spec, const std::vector<std::string>& fields) {
  std::vector<violation> wrong;
  if (!has(fields, "allowed_networks")) return wrong;
  const auto given = spec.allowed_networks();
  spec.clear_allowed_networks();
  if (static_cast<std::size_t>(given.size()) > limits::class_networks_max) {
    wrong.push_back({"allowed_networks", fmt::format("must have at most {} networks", limits::class_networks_max)});
    return wrong;
  }
  std::set<std::string> seen;
  for (int i = 0; i < given.size(); ++i) {
    const auto field = fmt::format("allowed_networks[{}]", i);
    const auto network = connector::canonical_network(given[i]);
    if (!network)
      wrong.push_back({field, "must be a network such as 10.0.0.0/8 or fd00::/8, with all bits after the prefix zero"});
    else if (!seen.insert(*network).second)
      wrong.push_back({field, "is there twice"});
    else
      spec.add_allowed_networks(*network);
  }
  return wrong;
}

}  // namespace warren::registry
