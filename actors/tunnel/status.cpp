// actors/tunnel/status.cpp -- derived conditions and the chain behind them. No CAF, no I/O, no clock.
#include "actors/tunnel/status.hpp"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "actors/connector/spec.hpp"
#include "actors/core/conditions.hpp"
#include "actors/tunnel/spec.hpp"

namespace warren::tunnel {

namespace {

using verdict = gateway_knowledge::verdict;

// What keeps a condition from being True; nothing: it is.
struct obstacle {
  std::string_view status = status_false;
  std::string reason, message;
};
using maybe = std::optional<obstacle>;

std::vector<std::string> connectors_of(const v1::TunnelRow& t) {
  std::vector<std::string> out;
  for (const auto& rule : t.rules())
    if (std::find(out.begin(), out.end(), rule.connector()) == out.end()) out.push_back(rule.connector());
  return out;
}

bool attached(const v1::AttachmentRow* a, const v1::ConnectorRow& c) {
  return a != nullptr && a->attachment_generation() <= c.attached_generation();
}

std::string join(const std::vector<std::string>& names) { return fmt::format("{}", fmt::join(names, ", ")); }

std::string stalled_words(const std::vector<v1::GatewayState>& gateways) {
  std::vector<std::string> names;
  for (const auto& g : gateways)
    if (g.stalled()) names.push_back(g.gateway());
  return names.empty() ? std::string{} : fmt::format("; stalled, not counted: {}", join(names));
}

std::string handed_over_words(const std::vector<v1::GatewayState>& gateways) {
  std::vector<std::string> names;
  for (const auto& g : gateways)
    if (g.counts() && g.handed_over()) names.push_back(g.gateway());
  return names.empty() ? std::string{} : fmt::format("; handed over: {}", join(names));
}

const v1::Refusal* refusal_for(const v1::GatewayState& g, const v1::TunnelRow& t,
                               const std::vector<std::string>& connectors) {
  for (const auto& r : g.refused()) {
    if (r.every()) return &r;
    if (!r.tunnel_uid().empty()) {
      if (r.tunnel_uid() == t.uid()) return &r;
      continue;
    }
    for (const auto& name : connectors)
      if (r.connector() == fmt::format("{}/{}", t.project(), name)) return &r;
  }
  return nullptr;
}

/// A gateway that is heard of is of a class, whatever this instance has read of it.
bool class_missing(const status_inputs& in) { return in.class_missing && in.gateways.empty(); }
std::string class_missing_words(const status_inputs& in) { return fmt::format("There is no gateway class {}.", in.tunnel.gateway_class()); }

gateway_knowledge judge(const status_inputs& in, const std::vector<std::string>& connectors) {
  if (!in.settled) return {.words = "The gateways have not been heard yet."};
  std::size_t counting = 0;
  std::vector<std::string> behind;
  gateway_knowledge refused, shut;
  const auto refused_by = [&](const v1::GatewayState& g, const v1::Refusal& r) {
    return gateway_knowledge{.what = verdict::refused,
                             .revision = in.routed_revision,
                             .words = fmt::format("Gateway {} refuses it: {}", g.gateway(), r.message())};
  };
  for (const auto& g : in.gateways) {
    const auto* r = refusal_for(g, in.tunnel, connectors);
    // It is there and lets nobody in: it counts only for as long as no other one does.
    if (!g.counts() && g.connected() && r != nullptr && r->every() && shut.words.empty()) shut = refused_by(g, *r);
    if (!g.counts()) continue;
    ++counting;
    if (r != nullptr && r->pending()) {
      behind.push_back(fmt::format("{} ({})", g.gateway(), r->message()));
      continue;
    }
    if (r != nullptr && refused.words.empty()) refused = refused_by(g, *r);
    if (g.acknowledged() < in.routed_revision) behind.push_back(g.gateway());
  }
  const auto stalled = stalled_words(in.gateways);
  if (counting == 0) {
    if (!shut.words.empty()) return shut;
    // What was known stays true of these routes; of newer ones nothing can be known.
    auto kept = in.before;
    if (kept.what == verdict::run && kept.revision < in.routed_revision) kept.what = verdict::behind;
    if (class_missing(in) && kept.what != verdict::run)
      kept.words = class_missing_words(in);
    else if (kept.what == verdict::unknown)
      kept.words = fmt::format("No gateway of class {} is connected{}.", in.tunnel.gateway_class(), stalled);
    else if (kept.what == verdict::behind)
      kept.words = fmt::format("No gateway of class {} is connected to take the newest routes{}.",
                               in.tunnel.gateway_class(), stalled);
    return kept;
  }
  if (!refused.words.empty()) return refused;
  if (!behind.empty())
    return {.what = verdict::behind,
            .revision = in.routed_revision,
            .words = fmt::format("{}/{} gateways; waiting for {}{}", counting - behind.size(), counting, join(behind), stalled)};
  return {.what = verdict::run,
          .revision = in.routed_revision,
          .words = fmt::format("{}/{} gateways, revision {}{}{}", counting, counting, in.routed_revision,
                               handed_over_words(in.gateways), stalled)};
}

gateway_knowledge weigh(const status_inputs& in, const std::vector<std::string>& connectors) {
  auto out = judge(in, connectors);
  const auto& before = in.before;
  const bool as_before = out.what == before.what && (out.what != verdict::run || out.revision == before.revision);
  // What is found at the first look has been so for a while, nobody here knows how long.
  out.since_ms = as_before ? before.since_ms : before.what == verdict::unknown ? 0 : in.wall_ms;
  return out;
}

// What of a connector's row keeps the tunnel's gateways from reaching it.
std::optional<violation> unreachable(const status_inputs& in, const v1::ConnectorRow& c) {
  if (auto wrong = connector::check_row(c)) return wrong;
  if (c.addresses().empty() && dial_agents(in.dials_agents, in.gateways))
    return violation{"addresses", fmt::format("has none, and gateways of class {} dial agents themselves: a home relay is no way to it",
                                              in.tunnel.gateway_class())};
  return std::nullopt;
}

// The connector's own words, when they are on record.
maybe connector_obstacle(const status_inputs& in, const std::string& name) {
  const auto* c = in.connector(name);
  if (c == nullptr || c->has_delete_time())
    return obstacle{status_false, "ConnectorNotFound",
                    fmt::format("Connector {} does not exist{}.", name, c == nullptr ? "" : " any more")};
  if (const auto* accepted = find_condition(c->conditions(), "Accepted");
      accepted != nullptr && accepted->status() == status_false)
    return obstacle{status_false, accepted->reason(), fmt::format("Connector {}: {}", name, accepted->message())};
  if (!c->addressing_error().empty())
    return obstacle{status_false, "InvalidAddressing", fmt::format("Connector {}: {}", name, c->addressing_error())};
  if (!c->online()) {
    const auto* ready = find_condition(c->conditions(), "Ready");
    const bool told = ready != nullptr && ready->status() != status_true && !ready->message().empty();
    return obstacle{status_false, "ConnectorNotReady",
                    fmt::format("Connector {}: {}", name, told ? ready->message() : "Connector is not online.")};
  }
  if (const auto wrong = unreachable(in, *c))
    return obstacle{status_false, "InvalidAddressing", fmt::format("Connector {}: {}: {}", name, wrong->field, wrong->message)};
  return std::nullopt;
}

// A connector whose silence does not count for the time being: online as far as routes go, and yet unsure.
maybe connector_doubt(const status_inputs& in, const std::string& name) {
  const auto* c = in.connector(name);
  const auto* ready = c == nullptr ? nullptr : find_condition(c->conditions(), "Ready");
  if (ready == nullptr || ready->status() == status_true) return std::nullopt;
  return obstacle{ready->status() == status_unknown ? status_unknown : status_false,
                  ready->reason().empty() ? "ConnectorNotReady" : ready->reason(),
                  fmt::format("Connector {}: {}", name, ready->message())};
}

maybe attachment_obstacle(const status_inputs& in, const std::string& name) {
  const auto* c = in.connector(name);
  if (c == nullptr) return std::nullopt;
  const auto* a = in.attachment(name, in.tunnel.uid(), in.tunnel.generation());
  if (attached(a, *c)) return std::nullopt;
  if (!in.tunnel.enabled())
    return obstacle{status_false, "Pending", fmt::format("The agent of connector {} does not hold the tunnel while it is switched off.", name)};
  if (const auto wrong = check_row(in.tunnel))
    return obstacle{status_false, "Pending", fmt::format("No agent is told of the tunnel before it is valid: {}: {}", wrong->field, wrong->message)};
  return obstacle{status_false, "Pending",
                  fmt::format("The agent of connector {} has not acknowledged the tunnel yet.", name)};
}

maybe target_obstacle(const status_inputs& in, const std::string& name) {
  const auto* c = in.connector(name);
  const auto* a = in.attachment(name, in.tunnel.uid(), in.tunnel.generation());
  if (c == nullptr || !c->online() || !attached(a, *c) || (a->target_state() != "Reachable" && a->target_state() != "Unreachable"))
    return obstacle{status_unknown, "Unknown",
                    fmt::format("The agent of connector {} has not said whether it reaches the target.", name)};
  if (a->target_state() == "Reachable") return std::nullopt;
  return obstacle{status_false, "TargetUnreachable",
                  fmt::format("Connector {}: {}", name,
                              a->target_message().empty() ? "The target cannot be reached." : a->target_message())};
}

maybe accepted_obstacle(const v1::TunnelRow& t) {
  const auto* c = find_condition(t.conditions(), "Accepted");
  if (c == nullptr) return obstacle{status_unknown, "Pending", "The tunnel has not been looked at yet."};
  if (c->status() == status_true) return std::nullopt;
  return obstacle{c->status() == status_false ? status_false : status_unknown, c->reason(), c->message()};
}

maybe programmed_obstacle(const status_inputs& in) {
  const auto& t = in.tunnel;
  const auto* c = find_condition(t.conditions(), "Programmed");
  const bool latched = t.programmed_generation() > 0 && t.programmed_generation() == t.generation();
  if (latched && c != nullptr && c->status() == status_true) return std::nullopt;
  if (class_missing(in)) return obstacle{status_false, "NoGateway", class_missing_words(in)};
  if (c != nullptr && c->status() != status_true) return obstacle{status_false, c->reason(), c->message()};
  return obstacle{status_false, "Pending", "The gateways have not acknowledged this generation yet."};
}

maybe gateways_obstacle(const gateway_knowledge& g) {
  switch (g.what) {
    case verdict::run: return std::nullopt;
    case verdict::unknown: return obstacle{status_unknown, "Unknown", g.words};
    case verdict::behind: return obstacle{status_false, "Pending", g.words};
    case verdict::refused: return obstacle{status_false, "Rejected", g.words};
  }
  return std::nullopt;
}

maybe lifecycle_obstacle(const v1::TunnelRow& t) {
  if (t.has_delete_time()) return obstacle{status_false, "Deleting", "The tunnel is being deleted."};
  if (!t.enabled())
    return obstacle{status_false, "Disabled", "The tunnel is switched off; enable it to let visitors in."};
  return std::nullopt;
}

// Routes that disagree with the rows above cannot happen unless a rule is missing altogether.
maybe plan_obstacle(const status_inputs& in) {
  const auto live = std::all_of(in.plan.rules.begin(), in.plan.rules.end(),
                                [](const rule_plan& r) { return r.what == outcome::live; });
  if (live && !in.plan.rules.empty() && in.plan.generation == in.tunnel.generation()) return std::nullopt;
  return obstacle{status_false, "Pending", "The routes do not lead to the targets yet."};
}

template <class Obstacle> maybe first_of(const std::vector<std::string>& connectors, Obstacle of) {
  for (const auto& name : connectors)
    if (auto o = of(name)) return o;
  return std::nullopt;
}

// A target that cannot be reached outweighs one that has not been tried.
maybe targets_obstacle(const status_inputs& in, const std::vector<std::string>& connectors) {
  if (connectors.empty()) return obstacle{status_unknown, "Unknown", "There is no rule, and so no target."};
  maybe unknown;
  for (const auto& name : connectors) {
    auto o = target_obstacle(in, name);
    if (o && o->status == status_false) return o;
    if (o && !unknown) unknown = std::move(o);
  }
  return unknown;
}

maybe metadata_obstacle(const status_inputs& in, const std::vector<std::string>& connectors,
                        const gateway_knowledge& gateways) {
  if (!in.settled) return gateways_obstacle(gateways);
  if (auto o = lifecycle_obstacle(in.tunnel)) {
    o->reason = "Pending";
    return o;
  }
  // An agent's word is older than its silence: without the connector nothing of it is in the gateways.
  if (auto o = first_of(connectors, [&](auto& name) { return connector_obstacle(in, name); })) {
    o->reason = "ConnectorNotReady";
    return o;
  }
  if (auto o = first_of(connectors, [&](auto& name) { return attachment_obstacle(in, name); })) return o;
  if (auto o = plan_obstacle(in)) return o;
  auto o = gateways_obstacle(gateways);
  if (o) o->reason = "Pending";
  return o;
}

maybe ready_obstacle(const status_inputs& in, const std::vector<std::string>& connectors,
                     const gateway_knowledge& gateways) {
  if (!in.settled) return gateways_obstacle(gateways);
  if (auto o = lifecycle_obstacle(in.tunnel)) return o;
  if (auto o = accepted_obstacle(in.tunnel)) return o;
  if (auto o = programmed_obstacle(in)) return o;
  // What certainly stands in the way is said first; what is only not known comes after it.
  maybe doubt;
  for (const auto& name : connectors) {
    auto o = connector_obstacle(in, name);
    if (!o) o = attachment_obstacle(in, name);
    if (!o) o = target_obstacle(in, name);
    if (!o || o->status != status_false)
      if (auto unsure = connector_doubt(in, name)) o = std::move(unsure);
    if (o && o->status == status_false) return o;
    if (o && !doubt) doubt = std::move(o);
  }
  if (auto o = plan_obstacle(in)) return o;
  auto o = gateways_obstacle(gateways);
  if (o && (o->status == status_false || !doubt)) return o;
  return doubt;
}

// The moment of the newest fact that a first derivation rests on: since then it has been like this.
std::int64_t newest_fact_ms(const status_inputs& in, const std::vector<std::string>& connectors) {
  std::int64_t newest = 0;
  const auto take = [&](const google::protobuf::Timestamp& t) { newest = std::max(newest, to_ms(t)); };
  if (in.tunnel.has_created_at()) take(in.tunnel.created_at());
  for (const auto& c : in.tunnel.conditions())
    if (c.has_last_transition_time()) take(c.last_transition_time());
  for (const auto& name : connectors)
    if (const auto* row = in.connector(name); row != nullptr)
      for (const auto& c : row->conditions())
        if (c.has_last_transition_time()) take(c.last_transition_time());
  if (newest == 0 || newest > in.wall_ms) return in.wall_ms;
  return newest;
}

v1::Condition stored(const v1::TunnelRow& t, std::string_view type) {
  if (const auto* c = find_condition(t.conditions(), type)) return *c;
  v1::Condition c;
  c.set_type(std::string{type});
  c.set_status(std::string{type == "Accepted" ? status_unknown : status_false});
  c.set_reason("Pending");
  c.set_observed_generation(t.generation());
  if (t.has_created_at()) *c.mutable_last_transition_time() = t.created_at();
  return c;
}

/// As its owner stored it, who knows gateways and no classes.
v1::Condition programmed(const status_inputs& in) {
  auto c = stored(in.tunnel, "Programmed");
  if (c.status() == status_true || !class_missing(in)) return c;
  c.set_reason("NoGateway");
  c.set_message(class_missing_words(in));
  return c;
}

v1::Condition derived(const status_inputs& in, const std::vector<std::string>& connectors,
                      std::string_view type, const maybe& o, std::string_view good_reason,
                      std::string_view good_message) {
  v1::Condition c;
  c.set_type(std::string{type});
  c.set_status(std::string{o ? o->status : status_true});
  c.set_reason(o ? o->reason : std::string{good_reason});
  c.set_message(o ? o->message : std::string{good_message});
  c.set_observed_generation(in.tunnel.generation());
  const auto* before = in.previous == nullptr ? nullptr : condition_of(*in.previous, type);
  if (before != nullptr && before->status() == c.status()) {
    *c.mutable_last_transition_time() = before->last_transition_time();
  } else {
    // Before the gateways were heard nothing was known: what comes out then is older than this moment.
    const bool first = before == nullptr || in.before.what == verdict::unknown;
    *c.mutable_last_transition_time() =
        timestamp_from_ms(first ? newest_fact_ms(in, connectors) : in.wall_ms);
  }
  return c;
}

/// What is said before another sentence; agents and gateways end theirs as they like.
std::string as_sentence(std::string words) {
  if (!words.empty() && std::string_view{".!?:;"}.find(words.back()) == std::string_view::npos) words += '.';
  return words;
}

/// What can be done about a link that is missing, in words, and as the command or the step that comes next.
struct remedy {
  std::string advice = {}, hint = {};
};

chain_link link(std::string name, const maybe& o, std::int64_t since_ms, std::string good_words, remedy r = {}) {
  if (!o) return {std::move(name), chain_link::state::ok, since_ms, std::move(good_words)};
  const bool unknown = o->status == status_unknown;
  return {std::move(name), unknown ? chain_link::state::unknown : chain_link::state::missing, since_ms,
          r.advice.empty() ? o->message : fmt::format("{} {}", as_sentence(o->message), r.advice),
          unknown ? std::string{} : std::move(r.hint)};
}

std::int64_t since_of(const v1::Condition* c) {
  return c != nullptr && c->has_last_transition_time() ? to_ms(c->last_transition_time()) : 0;
}

bool some_gateway_counts(const status_inputs& in) {
  return std::any_of(in.gateways.begin(), in.gateways.end(), [](auto& g) { return g.counts(); });
}

remedy for_gateways(const status_inputs& in) {
  const auto& of_class = in.tunnel.gateway_class();
  if (class_missing(in))
    return {"Create it, and a gateway of it, or let the tunnel have another one.",
            fmt::format("warrenctl gateway-class create {} --listen IP:PORT", of_class)};
  if (some_gateway_counts(in)) return {"", "see: warrenctl gateway list"};
  if (in.gateways.empty())
    return {"Register a gateway with `warrenctl gateway create` if there is none, and start it with the configuration that "
            "`warrenctl gateway bootstrap` prints.",
            fmt::format("warrenctl gateway create NAME --class {}; those that there are: warrenctl gateway list", of_class)};
  return {"Look at `warrenctl gateway list`, and at the gateways' own logs.", "see: warrenctl gateway list"};
}

/// What is known of gateways may be older than they are there.
std::string with_absence(std::string words, const status_inputs& in) {
  const auto away = some_gateway_counts(in) ? std::string{} : absent_gateways(in.gateways, in.tunnel.gateway_class());
  return away.empty() ? words : fmt::format("{} Now {}.", as_sentence(std::move(words)), away);
}

// Of one connector: exists, accepted, online, attachment, target; each on its own, whatever is before it.
void explain_connector(const status_inputs& in, const std::string& name, std::vector<chain_link>& chain) {
  const auto* c = in.connector(name);
  const auto named = [&](std::string_view what) { return fmt::format("connector {} {}", name, what); };
  const auto self = fmt::format("{} -p {}", name, in.tunnel.project());
  const auto enrol = fmt::format("warrenctl connector enrol {} --key-file FILE", self);
  const auto why = fmt::format("see: warrenctl connector why {}", self);
  const bool exists = c != nullptr && !c->has_delete_time();
  maybe o;
  if (!exists) o = connector_obstacle(in, name);
  chain.push_back(link(named("exists"), o,
                       c == nullptr ? 0 : to_ms(exists ? c->created_at() : c->delete_time()), "The connector exists.",
                       {"Enrol it with `warrenctl connector enrol`, or point the rule at another one.", enrol}));
  if (!exists) {
    for (const auto* what : {"accepted", "online", "attachment", "target"})
      chain.push_back({named(what), chain_link::state::unknown, 0, "There is no such connector."});
    return;
  }
  const auto* accepted = find_condition(c->conditions(), "Accepted");
  o.reset();
  if (accepted == nullptr || accepted->status() != status_true)
    o = obstacle{accepted != nullptr && accepted->status() == status_false ? status_false : status_unknown,
                 "", accepted == nullptr ? "The connector has not been looked at yet." : accepted->message()};
  const bool classless = accepted != nullptr && accepted->reason() == "ConnectorClassNotFound";
  const auto other_class = classless ? fmt::format("warrenctl connector-class create {}; those that there are: warrenctl connector-class list", c->class_())
                                     : std::string{"see: warrenctl connector-class list"};
  chain.push_back(link(named("accepted"), o, since_of(accepted), "The connector is accepted.", {"Check the connector's class.", other_class}));
  const auto* ready = find_condition(c->conditions(), "Ready");
  remedy r;
  o.reset();
  if (!c->addressing_error().empty()) {
    o = obstacle{status_false, "InvalidAddressing", c->addressing_error()};
    r = {connector::is_of_row(c->addressing_error()) ? "Correct its row: it was not written by Warren."
                                                     : "Correct what the agent reports, or the networks that the connector's class allows.",
         why};
  } else if (!c->online()) {
    o = obstacle{status_false, "", ready != nullptr && ready->status() != status_true && !ready->message().empty()
                                       ? ready->message()
                                       : "Connector is not online."};
    if (classless) r = {"", other_class};
    else if (c->public_key().empty()) r = {"It has no key yet: enrol it with `warrenctl connector enrol`.", enrol};
    else r = {"Check that warren-agent runs there and reaches NATS.", "start its agent (warren-agent run), or " + why};
  } else if (const auto wrong = unreachable(in, *c)) {
    o = obstacle{status_false, "InvalidAddressing", fmt::format("{}: {}", wrong->field, wrong->message)};
    if (connector::check_row(*c)) r = {"Correct its row: it was not written by Warren.", why};
    else r = {"Let its agent report an address.", "let its agent advertise an address where gateways reach it (--advertise, or a line of its --advertise-file)"};
  } else if (ready != nullptr && ready->status() != status_true) {
    o = obstacle{ready->status() == status_unknown ? status_unknown : status_false, "", ready->message()};
    r = {"", why};
  }
  chain.push_back(link(named("online"), o, since_of(ready), "The connector is online.", std::move(r)));
  const auto* a = in.attachment(name, in.tunnel.uid(), in.tunnel.generation());
  const bool told = in.tunnel.enabled() && c->online() && !check_row(in.tunnel);
  chain.push_back(link(named("attachment"), attachment_obstacle(in, name), 0,
                       "The agent holds the tunnel's current generation.",
                       told ? remedy{"The agent is told again each second; its log says why it does not answer.", why} : remedy{}));
  const bool tried = a != nullptr && (a->target_state() == "Reachable" || a->target_state() == "Unreachable");
  chain.push_back(link(named("target"), target_obstacle(in, name), 0, "The agent reaches the target.",
                       {tried && c->online() ? "Check the service behind the connector; the agent tries again by itself." : "",
                        fmt::format("see whether the target can be reached from the machine of {}'s agent", name)}));
}

}  // namespace

bool dial_agents(bool class_says, const std::vector<v1::GatewayState>& gateways) {
  return class_says && std::none_of(gateways.begin(), gateways.end(), [](auto& g) { return g.handed_over(); });
}

std::string_view to_string(chain_link::state s) {
  switch (s) {
    case chain_link::state::ok: return "ok";
    case chain_link::state::missing: return "missing";
    case chain_link::state::unknown: return "unknown";
  }
  return "unknown";
}

std::vector<chain_link> explain(const status_inputs& in) {
  const auto& t = in.tunnel;
  const auto connectors = connectors_of(t);
  const auto gateways = weigh(in, connectors);
  const auto* accepted = find_condition(t.conditions(), "Accepted");
  const auto* programmed = find_condition(t.conditions(), "Programmed");
  std::vector<chain_link> chain;
  chain.push_back(link("tunnel exists", t.has_delete_time() ? lifecycle_obstacle(t) : maybe{},
                       to_ms(t.has_delete_time() ? t.delete_time() : t.created_at()), "The tunnel exists."));
  chain.push_back(link("tunnel enabled", t.has_delete_time() ? maybe{} : lifecycle_obstacle(t),
                       t.enabled() ? 0 : to_ms(t.has_updated_at() ? t.updated_at() : t.created_at()),
                       "The tunnel is switched on.",
                       {"", fmt::format("warrenctl tunnel update {} -p {} --enabled", t.name(), t.project())}));
  chain.push_back(link("tunnel accepted", accepted_obstacle(t), since_of(accepted),
                       "The spec is valid and the host names are claimed.",
                       {accepted != nullptr && accepted->status() == status_false
                            ? "Correct the named field."
                            : "The instance that owns the project judges it as soon as it can."}));
  // What is not valid is given to no gateway: then none of them can help.
  const bool refused = accepted != nullptr && accepted->status() == status_false;
  auto to_program = programmed_obstacle(in);
  if (to_program && refused) to_program->message = "No gateway is given the tunnel before its spec is valid.";
  chain.push_back(link("gateways programmed", to_program, since_of(programmed),
                       with_absence(programmed == nullptr ? "" : programmed->message(), in),
                       refused ? remedy{} : for_gateways(in)));
  for (const auto& name : connectors) explain_connector(in, name, chain);
  auto routed = gateways_obstacle(gateways);
  const auto* metadata = in.previous == nullptr ? nullptr : condition_of(*in.previous, "ConnectorMetadataProgrammed");
  // Routed: when they acknowledged it. Not routed: since when it is known to be so.
  const auto since = !routed || gateways.since_ms != 0 ? gateways.since_ms : since_of(metadata);
  chain.push_back(link("gateways routed", routed, since, with_absence(gateways.words, in), for_gateways(in)));
  return chain;
}

const chain_link* first_missing(const std::vector<chain_link>& chain) {
  for (const auto& l : chain)
    if (l.what != chain_link::state::ok) return &l;
  return nullptr;
}

const v1::Condition* condition_of(const std::vector<v1::Condition>& all, std::string_view type) {
  for (const auto& c : all)
    if (c.type() == type) return &c;
  return nullptr;
}

status derive(const status_inputs& in) {
  const auto connectors = connectors_of(in.tunnel);
  status out;
  out.gateways = weigh(in, connectors);
  out.conditions.reserve(5);
  out.conditions.push_back(stored(in.tunnel, "Accepted"));
  out.conditions.push_back(programmed(in));
  out.conditions.push_back(derived(in, connectors, "ConnectorMetadataProgrammed",
                                   metadata_obstacle(in, connectors, out.gateways),
                                   "ConnectorMetadataProgrammed", out.gateways.words));
  out.conditions.push_back(derived(in, connectors, "TargetReachable",
                                   targets_obstacle(in, connectors), "TargetReachable",
                                   "The agents reach every target."));
  out.conditions.push_back(derived(in, connectors, "Ready", ready_obstacle(in, connectors, out.gateways),
                                   "Ready", "Visitors get through."));
  return out;
}

}  // namespace warren::tunnel
