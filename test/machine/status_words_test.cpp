// test/machine/status_words_test.cpp -- every word that a tunnel's conditions and its `why` say, in one situation after
// another, beside scripts/status.words. After a change that is meant to be one, WARREN_REWRITE=1 writes it down.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>

#include <fmt/format.h>

#include "actors/tunnel/status.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::tunnel;

namespace {

/// Two rules behind two connectors, two gateways, everything as it should be.
struct world {
  v1::TunnelRow t = rows::tunnel("p", "web", "edge", 1);
  std::map<std::string, v1::ConnectorRow> connectors;
  std::map<std::string, v1::AttachmentRow> attachments;
  std::vector<v1::GatewayState> gateways;
  bool settled = true;
  revision_t routed = 10;
  gateway_knowledge before;
  std::vector<v1::Condition> previous;
  std::int64_t wall = 50'000;
  route_plan plan;
  bool dials = false, class_missing = false;

  world() {
    auto& r = *t.add_rules();
    r.set_path_prefix("/api");
    r.set_connector("back");
    r.set_target("https://localhost:443");
    for (const auto* name : {"edge", "back"}) {
      connectors[name] = rows::connector("p", name, 1);
      attachments[name] = rows::attachment(t, name, 1);
    }
    gateway("gw-a", 10);
    gateway("gw-b", 12);
  }
  v1::GatewayState& gateway(const std::string& name, revision_t acknowledged, bool counts = true) {
    auto& g = gateways.emplace_back();
    g.set_gateway(name);
    g.set_class_("default");
    g.set_counts(counts);
    g.set_connected(true);
    g.set_acknowledged(acknowledged);
    return g;
  }
  status_inputs inputs() {
    find_connector c = [this](const std::string& n) { return connectors.count(n) > 0 ? &connectors.at(n) : nullptr; };
    find_attachment a = [this](const std::string& n, const std::string& uid, std::int64_t generation) {
      auto found = attachments.find(n);
      const bool is = found != attachments.end() && found->second.tunnel_uid() == uid &&
                      found->second.tunnel_generation() == generation;
      return is ? &found->second : nullptr;
    };
    plan = plan_routes(t, c, a);
    return {.tunnel = t, .plan = plan, .connector = c, .attachment = a, .gateways = gateways, .settled = settled,
            .routed_revision = routed, .before = before, .previous = previous.empty() ? nullptr : &previous, .wall_ms = wall,
            .dials_agents = dials, .class_missing = class_missing};
  }
  std::string words() {
    const auto s = derive(inputs());
    std::string out;
    for (const auto& c : s.conditions)
      out += fmt::format("  {}: {} {} \"{}\" of generation {} since {}\n", c.type(), c.status(), c.reason(), c.message(),
                         c.observed_generation(), to_ms(c.last_transition_time()));
    out += fmt::format("  gateways: {} {} \"{}\"\n", static_cast<int>(s.gateways.what), s.gateways.revision, s.gateways.words);
    for (const auto& l : explain(inputs())) out += fmt::format("  {:<8}{} since {}: {}\n", to_string(l.what), l.name, l.since_ms, l.words) + (l.hint.empty() ? "" : fmt::format("          -> {}\n", l.hint));
    previous = s.conditions;
    before = s.gateways;
    return out;
  }
};

using change = std::function<void(world&)>;

/// Each begins with a world in which all is well, and what was derived of it.
std::vector<std::pair<std::string, change>> situations() {
  return {
      {"all is well", [](world&) {}},
      {"nobody has judged the spec yet", [](world& w) { w.t.clear_conditions(); }},
      {"the spec is refused", [](world& w) { rows::condition(w.t, "Accepted", "False", "Invalid", "hostnames[0]: no"); }},
      {"a rival has taken its rules away",
       [](world& w) {
         w.t.clear_rules();
         w.t.set_generation(2);
         w.gateways.clear();
         rows::condition(w.t, "Accepted", "False", "Invalid", "rules: needs 1 to 16");
         rows::condition(w.t, "Programmed", "False", "Pending", "not before the spec is valid: rules: needs 1 to 16");
       }},
      {"a rival has spoilt the lease of its connector",
       [](world& w) {
         w.connectors["edge"].set_online(false);
         w.connectors["edge"].set_addressing_error("lease_duration: must be between 3 s and 1 h");
       }},
      {"the spec is of a generation that nobody has judged", [](world& w) { w.t.set_generation(2); }},
      {"switched off", [](world& w) {
         w.t.set_enabled(false);
         *w.t.mutable_updated_at() = timestamp_from_ms(4000);
       }},
      {"being deleted", [](world& w) { *w.t.mutable_delete_time() = timestamp_from_ms(3000); }},
      {"not programmed", [](world& w) {
         w.t.set_programmed_generation(0);
         rows::condition(w.t, "Programmed", "False", "Pending", "0/2 gateways; waiting for gw-a, gw-b");
       }},
      {"no gateway", [](world& w) {
         w.gateways.clear();
         w.t.set_programmed_generation(0);
         rows::condition(w.t, "Programmed", "False", "NoGateway", "no gateway of this class has acknowledged");
       }},
      {"there is no such gateway class", [](world& w) {
         w.gateways.clear();
         w.class_missing = true;
         w.before = {};
         w.t.set_gateway_class("nosuch");
         w.t.set_programmed_generation(0);
         rows::condition(w.t, "Programmed", "False", "NoGateway", "no gateway of this class has acknowledged");
       }},
      {"the gateway class of what is programmed has gone", [](world& w) {
         w.gateways.clear();
         w.class_missing = true;
         w.routed = 11;
       }},
      {"a gateway is heard whose class is not known", [](world& w) { w.class_missing = true; }},
      {"one connector does not exist", [](world& w) { w.connectors.erase("back"); }},
      {"one connector is offline", [](world& w) {
         w.connectors.at("edge").set_online(false);
         rows::condition(w.connectors.at("edge"), "Ready", "False", "ConnectorNotReady", "Connector disconnected.");
       }},
      {"one connector was never enrolled", [](world& w) {
         w.connectors.at("edge").set_online(false);
         w.connectors.at("edge").clear_public_key();
         w.connectors.at("edge").clear_conditions();
       }},
      {"one connector's class does not exist", [](world& w) {
         w.connectors.at("edge").set_online(false);
         rows::condition(w.connectors.at("edge"), "Accepted", "False", "ConnectorClassNotFound", "There is no connector class \"x\".");
       }},
      {"its silence does not count", [](world& w) { rows::condition(w.connectors.at("edge"), "Ready", "Unknown", "MassSilence", "Many are silent."); }},
      {"its addressing is refused", [](world& w) { w.connectors.at("edge").set_addressing_error("addresses[0]: port 0"); }},
      {"it has no addressing", [](world& w) {
         w.connectors.at("edge").clear_addresses();
         w.connectors.at("edge").clear_home_relay();
       }},
      {"it has a relay only, and gateways dial agents themselves", [](world& w) {
         w.dials = true;
         w.connectors.at("edge").clear_addresses();
         w.connectors.at("edge").set_home_relay("https://relay.example.com");
       }},
      {"nothing is attached", [](world& w) { w.attachments.clear(); }},
      {"an attachment is not acknowledged", [](world& w) { w.connectors.at("back").set_attached_generation(0); }},
      {"a target is down, another not tried", [](world& w) {
         w.attachments.at("edge").set_target_state("Unknown");
         w.attachments.at("back").set_target_state("Unreachable");
         w.attachments.at("back").set_target_message("connection refused");
       }},
      {"a target was not tried", [](world& w) { w.attachments.at("edge").set_target_state("Unknown"); }},
      {"a gateway is behind", [](world& w) { w.gateway("gw-c", 9); }},
      {"two gateways are behind", [](world& w) {
         w.gateway("gw-c", 9);
         w.gateway("gw-d", 8);
       }},
      {"a gateway has stalled, another does not count", [](world& w) {
         w.gateway("gw-c", 3, false).set_stalled(true);
         w.gateway("gw-d", 3, false);
       }},
      {"a gateway refuses the tunnel", [](world& w) {
         auto* r = w.gateways[1].add_refused();
         r->set_tunnel_uid("uid-web");
         r->set_message("bad route");
       }},
      {"a gateway refuses a connector's cluster", [](world& w) {
         auto* r = w.gateways[0].add_refused();
         r->set_connector("p/back");
         r->set_message("bad cluster");
       }},
      {"a gateway refuses another's", [](world& w) {
         w.gateways[0].add_refused()->set_tunnel_uid("uid-other");
         w.gateways[0].add_refused()->set_connector("q/back");
       }},
      {"gateways have not been heard", [](world& w) { w.settled = false; }},
      {"gateways have not been heard, and nothing was known before", [](world& w) {
         w.settled = false;
         w.before = {};
         w.previous.clear();
       }},
      {"no gateway counts any more", [](world& w) { w.gateways.clear(); }},
      {"no gateway counts any more, and routes have changed", [](world& w) {
         w.gateways.clear();
         w.routed = 11;
       }},
      {"the previous generation is still served", [](world& w) {
         w.t.set_generation(2);
         w.t.set_observed_generation(2);
         w.t.set_previous_generation(1);
         *w.t.mutable_previous_rules() = w.t.rules();
       }},
  };
}

}  // namespace

TEST_CASE("every situation is told in the words that are written down for it") {
  std::string got = "# What a tunnel's conditions and its `why` say. Each situation begins with a tunnel in which all is well.\n";
  for (const auto& [name, change] : situations()) {
    world w;
    w.words();
    w.wall = 60'000;
    change(w);
    got += fmt::format("\n{}\n{}", name, w.words());
  }
  const std::string path = std::string{WARREN_SCRIPTS} + "/status.words";
  if (std::getenv("WARREN_REWRITE") != nullptr) std::ofstream{path} << got;
  std::ifstream in{path};
  const std::string expected{std::istreambuf_iterator<char>{in}, {}};
  CHECK(got == expected);
}
