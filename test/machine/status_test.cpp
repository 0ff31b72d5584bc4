// test/machine/status_test.cpp -- derived conditions, and the chain that `why` prints.
#include <map>

#include <catch2/catch.hpp>

#include "actors/tunnel/status.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::tunnel;

namespace {

struct world {
  v1::TunnelRow t = rows::tunnel("p", "web", "edge", 1);
  std::map<std::string, v1::ConnectorRow> connectors{{"edge", rows::connector("p", "edge", 1)}};
  std::map<std::string, v1::AttachmentRow> attachments{{"edge", rows::attachment(t, "edge", 1)}};
  std::vector<v1::GatewayState> gateways;
  bool settled = true;
  revision_t routed = 10;
  gateway_knowledge before;
  std::vector<v1::Condition> previous;
  std::int64_t wall = 5000;
  route_plan plan;
  bool dials_agents = false;

  world() { gateway("gw-a", 10); }

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
            .dials_agents = dials_agents};
  }
  void step() {
    auto s = derive(inputs());
    previous = s.conditions;
    before = s.gateways;
  }
  std::string is(const std::string& type) {
    const auto* c = condition_of(previous, type);
    return c->status() + "/" + c->reason();
  }
  std::string words(const std::string& type) { return condition_of(previous, type)->message(); }
  std::string missing() {
    const auto chain = explain(inputs());
    const auto* l = first_missing(chain);
    return l == nullptr ? "" : l->name;
  }
};

}  // namespace

TEST_CASE("a tunnel is ready when every link holds") {
  world w;
  w.step();
  CHECK(w.previous.size() == 5);
  CHECK(w.is("ConnectorMetadataProgrammed") == "True/ConnectorMetadataProgrammed");
  CHECK(w.words("ConnectorMetadataProgrammed") == "1/1 gateways, revision 10");
  CHECK(w.is("TargetReachable") == "True/TargetReachable");
  CHECK(w.is("Ready") == "True/Ready");
  CHECK(w.missing().empty());
}

TEST_CASE("each missing link keeps a tunnel from being ready, and is named") {
  world w;
  std::string ready, missing, metadata = "True/ConnectorMetadataProgrammed";
  SECTION("not accepted") {
    rows::condition(w.t, "Accepted", "False", "Invalid", "hostnames[0]: no");
    ready = "False/Invalid", missing = "tunnel accepted";
  }
  SECTION("switched off") {
    w.t.set_enabled(false);
    ready = "False/Disabled", missing = "tunnel enabled", metadata = "False/Pending";
  }
  SECTION("being deleted") {
    *w.t.mutable_delete_time() = timestamp_from_ms(1);
    ready = "False/Deleting", missing = "tunnel exists", metadata = "False/Pending";
  }
  SECTION("an older generation is programmed") {
    w.t.set_programmed_generation(0);
    rows::condition(w.t, "Programmed", "False", "Pending", "0/1 gateways; waiting for gw-a");
    ready = "False/Pending", missing = "gateways programmed";
  }
  SECTION("no such connector") {
    w.connectors.clear();
    ready = "False/ConnectorNotFound", missing = "connector edge exists", metadata = "False/ConnectorNotReady";
  }
  SECTION("the connector is offline") {
    w.connectors.at("edge").set_online(false);
    rows::condition(w.connectors.at("edge"), "Ready", "False", "ConnectorNotReady", "Connector disconnected.");
    ready = "False/ConnectorNotReady", missing = "connector edge online", metadata = "False/ConnectorNotReady";
  }
  SECTION("its silence does not count") {
    rows::condition(w.connectors.at("edge"), "Ready", "Unknown", "MassSilence", "Many are silent.");
    ready = "Unknown/MassSilence", missing = "connector edge online";
  }
  SECTION("its addressing is refused") {
    w.connectors.at("edge").set_addressing_error("addresses[0]: port 0");
    ready = "False/InvalidAddressing", missing = "connector edge online", metadata = "False/ConnectorNotReady";
  }
  SECTION("its key is none") {
    w.connectors.at("edge").set_public_key(std::string(63, 'a') + '\n');
    ready = "False/InvalidAddressing", missing = "connector edge online", metadata = "False/ConnectorNotReady";
  }
  SECTION("an address of its row is none") {
    w.connectors.at("edge").set_addresses(0, "192.0.2.1:0");
    ready = "False/InvalidAddressing", missing = "connector edge online", metadata = "False/ConnectorNotReady";
  }
  SECTION("the agent has not acknowledged") {
    w.connectors.at("edge").set_attached_generation(0);
    ready = "False/Pending", missing = "connector edge attachment", metadata = "False/Pending";
  }
  SECTION("the target is down") {
    w.attachments.at("edge").set_target_state("Unreachable");
    w.attachments.at("edge").set_target_message("connection refused");
    ready = "False/TargetUnreachable", missing = "connector edge target";
  }
  SECTION("the target has not been tried") {
    w.attachments.at("edge").set_target_state("Unknown");
    ready = "Unknown/Unknown", missing = "connector edge target";
  }
  SECTION("a gateway is behind") {
    w.gateway("gw-b", 9);
    ready = "False/Pending", missing = "gateways routed", metadata = "False/Pending";
  }
  SECTION("a gateway refuses the tunnel") {
    auto* r = w.gateways[0].add_refused();
    r->set_tunnel_uid("uid-web");
    r->set_message("bad route");
    ready = "False/Rejected", missing = "gateways routed", metadata = "False/Pending";
  }
  SECTION("a gateway refuses the connector's cluster") {
    auto* r = w.gateways[0].add_refused();
    r->set_connector("p/edge");
    r->set_message("bad cluster");
    ready = "False/Rejected", missing = "gateways routed", metadata = "False/Pending";
  }
  SECTION("the only gateway there is runs no listener, and does not count for it") {
    w.gateways[0].set_counts(false);
    w.gateways[0].set_connected(true);
    auto* r = w.gateways[0].add_refused();
    r->set_every(true);
    r->set_message("visitors/0.0.0.0:80: cannot bind");
    ready = "False/Rejected", missing = "gateways routed", metadata = "False/Pending";
  }
  SECTION("a gateway that counts has lost its listeners") {
    auto* r = w.gateways[0].add_refused();
    r->set_every(true);
    r->set_message("its class listens nowhere");
    ready = "False/Rejected", missing = "gateways routed", metadata = "False/Pending";
  }
  SECTION("the gateways have not been heard") {
    w.settled = false;
    ready = "Unknown/Unknown", missing = "gateways routed", metadata = "Unknown/Unknown";
  }
  w.step();
  CHECK(w.is("Ready") == ready);
  CHECK(w.is("ConnectorMetadataProgrammed") == metadata);
  CHECK(w.missing() == missing);
}

TEST_CASE("of a tunnel that no agent is told of, no agent's silence is shown, and the field is named") {
  world w;
  w.t.set_generation(2);
  w.t.mutable_rules(0)->set_path_prefix("no-slash\n");
  SECTION("refused") {
    rows::condition(w.t, "Accepted", "False", "Invalid", "rules[0].path_prefix: must begin with '/'");
    w.step();
    CHECK(w.is("Ready") == "False/Invalid");
    CHECK(w.missing() == "tunnel accepted");
  }
  SECTION("taken for valid by an older release") {
    w.t.set_programmed_generation(2);
    w.step();
    CHECK(w.is("Ready") == "False/Pending");
    CHECK(w.missing() == "connector edge attachment");
  }
  CHECK(w.is("ConnectorMetadataProgrammed") == "False/Pending");
  CHECK_THAT(w.words("Ready"), Catch::Contains("rules[0].path_prefix: "));
  CHECK_THAT(w.words("ConnectorMetadataProgrammed"), Catch::Contains("rules[0].path_prefix: "));
  for (const auto& each : explain(w.inputs()))
    if (each.name == "connector edge attachment") {
      CHECK(each.what == chain_link::state::missing);
      CHECK_THAT(each.words, Catch::Contains("rules[0].path_prefix: ") && !Catch::Contains("told again each second"));
      CHECK(each.hint.empty());
    }
}

TEST_CASE("what of a connector's row cannot be told to gateways is named") {
  world w;
  w.connectors.at("edge").set_public_key("0123");
  w.step();
  CHECK(w.words("Ready") == "Connector edge: public_key: must be 64 lower-case hex digits");
  w.connectors.at("edge") = rows::connector("p", "edge", 1);
  w.connectors.at("edge").add_addresses("nowhere");
  w.step();
  CHECK(w.words("Ready") == "Connector edge: addresses[1]: is no IP address with a port between 1 and 65535");
}

TEST_CASE("a relay is no way to a connector for gateways that dial agents themselves") {
  world w;
  auto& c = w.connectors.at("edge");
  c.set_home_relay("https://relay.example.org");
  w.dials_agents = true;
  w.step();
  CHECK(w.is("Ready") == "True/Ready");
  c.clear_addresses();
  w.step();
  CHECK(w.is("Ready") == "False/InvalidAddressing");
  CHECK(w.words("Ready") == "Connector edge: addresses: has none, and gateways of class default dial agents themselves: a home relay is no way to it");
  CHECK(w.missing() == "connector edge online");
  SECTION("they have a tunnel gateway") { w.dials_agents = false; }
  SECTION("Envoy Gateway configures them") { w.gateways[0].set_handed_over(true); }
  w.step();
  CHECK(w.is("Ready") == (w.dials_agents && !w.gateways[0].handed_over() ? "False/InvalidAddressing" : "True/Ready"));
}

TEST_CASE("a gateway that runs no listener is not waited for beside one that does") {
  world w;
  w.gateway("gw-b", 0);
  w.gateways[1].set_counts(false);
  w.gateways[1].set_connected(true);
  auto* r = w.gateways[1].add_refused();
  r->set_every(true);
  r->set_message("visitors/0.0.0.0:80: cannot bind");
  w.step();
  CHECK(w.is("Ready") == "True/Ready");
}

TEST_CASE("another tunnel's refusal does not hold this one back") {
  world w;
  auto* r = w.gateways[0].add_refused();
  r->set_tunnel_uid("uid-other");
  r->set_message("bad");
  w.step();
  CHECK(w.is("Ready") == "True/Ready");
}

TEST_CASE("a fleet behind the extension hook counts by what it was handed, and by what it was asked about") {
  world w;
  w.gateways[0].set_handed_over(true);
  w.step();
  CHECK(w.is("Ready") == "True/Ready");
  CHECK(w.words("ConnectorMetadataProgrammed") == "1/1 gateways, revision 10; handed over: gw-a");
  auto* r = w.gateways[0].add_refused();
  r->set_tunnel_uid("uid-web");
  r->set_message("it was not asked about HTTPRoute p/web");
  r->set_pending(true);
  w.step();
  CHECK(w.is("Ready") == "False/Pending");
  CHECK(w.words("Ready") == "0/1 gateways; waiting for gw-a (it was not asked about HTTPRoute p/web)");
  CHECK(w.is("ConnectorMetadataProgrammed") == "False/Pending");
}

TEST_CASE("a gateway that has stalled is named and does not count") {
  world w;
  w.gateway("gw-b", 3, false).set_stalled(true);
  w.step();
  CHECK(w.is("Ready") == "True/Ready");
  CHECK(w.words("ConnectorMetadataProgrammed") == "1/1 gateways, revision 10; stalled, not counted: gw-b");
}

TEST_CASE("with no gateway counting conditions keep what was known, and newer routes are never ready") {
  world w;
  w.step();
  w.gateways.clear();
  w.step();
  CHECK(w.is("Ready") == "True/Ready");
  w.connectors.at("edge").set_online(false);
  w.routed = 11;
  w.step();
  CHECK(w.is("Ready") == "False/ConnectorNotReady");
  w.connectors.at("edge").set_online(true);
  w.routed = 12;
  w.step();
  CHECK(w.is("Ready") == "False/Pending");
  w.gateway("gw-a", 12);
  w.step();
  CHECK(w.is("Ready") == "True/Ready");
}

TEST_CASE("a transition time moves only when the status does") {
  world w;
  w.step();
  const auto time = [&] { return to_ms(condition_of(w.previous, "Ready")->last_transition_time()); };
  CHECK(time() == 1000);  // the newest fact that it rests on, not the moment of the instance's start
  w.wall = 6000;
  w.step();
  CHECK(time() == 1000);
  w.connectors.at("edge").set_online(false);
  w.step();
  CHECK(time() == 6000);
  w.wall = 7000;
  w.connectors.clear();
  w.step();
  CHECK(time() == 6000);
}

TEST_CASE("one unreachable target outweighs one that has not been tried") {
  world w;
  auto* r = w.t.add_rules();
  r->set_path_prefix("/api");
  r->set_connector("other");
  r->set_target("http://localhost:1");
  w.connectors["other"] = rows::connector("p", "other", 1);
  w.attachments["other"] = rows::attachment(w.t, "other", 1);
  w.attachments["edge"].set_target_state("Unknown");
  w.attachments["other"].set_target_state("Unreachable");
  w.step();
  CHECK(w.is("TargetReachable") == "False/TargetUnreachable");
  CHECK(w.is("Ready") == "False/TargetUnreachable");
  CHECK(explain(w.inputs()).size() == 4 + 2 * 5 + 1);
}

TEST_CASE("advice follows another's words as a sentence of its own") {
  world w;
  w.attachments["edge"].set_target_state("Unreachable");
  const auto words = [&](const std::string& said) {
    w.attachments["edge"].set_target_message(said);
    w.step();
    const auto chain = explain(w.inputs());
    const auto* missing = first_missing(chain);
    REQUIRE(missing != nullptr);
    return missing->words;
  };
  CHECK(words("connection refused").find("connection refused. Check the service") != std::string::npos);
  CHECK(words("connection refused.").find("connection refused. Check the service") != std::string::npos);
}

TEST_CASE("when the gateways came to run the routes is when they acknowledged them") {
  world w;
  const auto routed = [&] { return explain(w.inputs()).back(); };
  w.step();
  CHECK(routed().what == chain_link::state::ok);
  CHECK(routed().since_ms == 0);  // found like this: nobody here knows since when
  w.routed = 11;
  w.wall = 6000;
  w.step();
  CHECK(routed().what == chain_link::state::missing);
  CHECK(routed().since_ms == 6000);
  w.gateways[0].set_acknowledged(11);
  w.wall = 6500;
  w.step();
  w.wall = 9000;
  w.step();  // nothing has happened
  CHECK(routed().what == chain_link::state::ok);
  CHECK(routed().since_ms == 6500);
}

TEST_CASE("a tunnel that was created switched off is so since its creation") {
  world w;
  w.t.set_enabled(false);
  *w.t.mutable_created_at() = timestamp_from_ms(700);
  w.t.clear_updated_at();
  w.step();
  const auto chain = explain(w.inputs());
  const auto* off = first_missing(chain);
  REQUIRE(off != nullptr);
  CHECK(off->name == "tunnel enabled");
  CHECK(off->since_ms == 700);
}
