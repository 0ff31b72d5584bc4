// actors/tunnel/routing.cpp -- what a visitor of a tunnel meets, derived from rows. No CAF, no I/O, no clock.
#include "actors/tunnel/routing.hpp"

#include <algorithm>

#include <google/protobuf/util/message_differencer.h>

#include "actors/connector/spec.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"
#include "actors/tunnel/spec.hpp"

namespace warren::tunnel {

namespace {

outcome outcome_of(const v1::TunnelRow& tunnel, const v1::Rule& rule, std::int64_t generation,
                   const find_connector& connector, const find_attachment& attachment) {
  if (!tunnel.enabled()) return outcome::disabled;
  const auto* c = connector(rule.connector());
  if (c == nullptr || c->has_delete_time()) return outcome::unknown;
  if (!c->addressing_error().empty()) return outcome::invalid_addressing;
  if (!c->online()) return outcome::offline;
  if (connector::check_row(*c)) return outcome::invalid_addressing;  // written around us, and not judged yet
  const auto* a = attachment(rule.connector(), tunnel.uid(), generation);
  const bool attached = a != nullptr && a->attachment_generation() <= c->attached_generation();
  return attached ? outcome::live : outcome::offline;
}

route_plan plan_generation(const v1::TunnelRow& tunnel, std::int64_t generation,
                           const google::protobuf::RepeatedPtrField<v1::Rule>& rules,
                           const find_connector& connector, const find_attachment& attachment) {
  route_plan plan{.generation = generation};
  for (int i = 0; i < rules.size(); ++i)
    plan.rules.push_back({i, rules[i], outcome_of(tunnel, rules[i], generation, connector, attachment)});
  return plan;
}

/// No agent will ever hold it: what was live before is not waited with.
bool refused(const v1::TunnelRow& tunnel) {
  const auto* accepted = find_condition(tunnel.conditions(), "Accepted");
  return accepted != nullptr && accepted->status() == status_false && check_row(tunnel);
}

/// Its visitors meet one answer wherever they go: a path that is none is the root.
route_plan plan_refusal(const v1::TunnelRow& tunnel) {
  route_plan plan{.generation = tunnel.generation(), .rules = {}};
  const auto rules = std::min(tunnel.rules_size(), static_cast<int>(limits::rules_max));
  for (int i = 0; i < std::max(rules, 1); ++i) {
    rule_plan p{.index = i, .rule = {}, .what = outcome::invalid_addressing};
    if (i < rules) p.rule = tunnel.rules(i);
    const auto path = canonical_path_prefix(p.rule.path_prefix());
    p.rule.set_path_prefix(path ? path.value : "/");
    plan.rules.push_back(std::move(p));
  }
  return plan;
}

}  // namespace

std::string_view reason_of(outcome o) {
  switch (o) {
    case outcome::live: return "";
    case outcome::offline: return "connector-offline";
    case outcome::unknown: return "connector-unknown";
    case outcome::disabled: return "disabled";
    case outcome::invalid_addressing: return "invalid-addressing";
  }
  return "";
}

bool route_plan::operator==(const route_plan& other) const {
  return generation == other.generation &&
         std::equal(rules.begin(), rules.end(), other.rules.begin(), other.rules.end(),
                    [](const rule_plan& a, const rule_plan& b) {
                      return a.index == b.index && a.what == b.what &&
                             google::protobuf::util::MessageDifferencer::Equals(a.rule, b.rule);
                    });
}

route_plan plan_routes(const v1::TunnelRow& tunnel, const find_connector& connector,
                       const find_attachment& attachment) {
  if (tunnel.enabled() && refused(tunnel)) return plan_refusal(tunnel);
  auto current =
      plan_generation(tunnel, tunnel.generation(), tunnel.rules(), connector, attachment);
  if (tunnel.previous_generation() == 0 || !tunnel.enabled()) return current;
  // Once gateways run it there is no way back: agents have been told to let go of the one before.
  if (tunnel.programmed_generation() >= tunnel.generation()) return current;
  const bool waits_for_an_agent =
      std::any_of(current.rules.begin(), current.rules.end(), [&](const rule_plan& r) {
        const auto* c = connector(r.rule.connector());
        return r.what == outcome::offline && c != nullptr && c->online();
      });
  if (!waits_for_an_agent) return current;
  return plan_generation(tunnel, tunnel.previous_generation(), tunnel.previous_rules(), connector,
                         attachment);
}

}  // namespace warren::tunnel
