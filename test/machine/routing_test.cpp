// test/machine/routing_test.cpp -- what a visitor meets, by rows.
#include <map>

#include <catch2/catch.hpp>

#include "actors/tunnel/routing.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::tunnel;

namespace {

struct world {
  v1::TunnelRow t = rows::tunnel("p", "web", "edge", 1);
  std::map<std::string, v1::ConnectorRow> connectors{{"edge", rows::connector("p", "edge", 1)}};
  std::vector<v1::AttachmentRow> attachments{rows::attachment(t, "edge", 1)};

  route_plan plan() const {
    return plan_routes(
        t, [this](const std::string& n) { return connectors.count(n) > 0 ? &connectors.at(n) : nullptr; },
        [this](const std::string& n, const std::string& uid, std::int64_t generation) -> const v1::AttachmentRow* {
          for (const auto& a : attachments)
            if (a.connector() == n && a.tunnel_uid() == uid && a.tunnel_generation() == generation) return &a;
          return nullptr;
        });
  }
  outcome first() const { return plan().rules.at(0).what; }
};

}  // namespace

TEST_CASE("a visitor meets the target only when everything is there") {
  world w;
  CHECK(w.first() == outcome::live);
  auto& c = w.connectors.at("edge");
  SECTION("offline") { c.set_online(false); CHECK(w.first() == outcome::offline); }
  SECTION("not attached") { c.set_attached_generation(0); CHECK(w.first() == outcome::offline); }
  SECTION("no attachment") { w.attachments.clear(); CHECK(w.first() == outcome::offline); }
  SECTION("attachment of another incarnation") { w.t.set_uid("another"); CHECK(w.first() == outcome::offline); }
  SECTION("unknown") { w.connectors.clear(); CHECK(w.first() == outcome::unknown); }
  SECTION("being deleted") { *c.mutable_delete_time() = timestamp_from_ms(1); CHECK(w.first() == outcome::unknown); }
  SECTION("a key that is none") { c.set_public_key("0123\n"); CHECK(w.first() == outcome::invalid_addressing); }
  SECTION("no key") { c.clear_public_key(); CHECK(w.first() == outcome::invalid_addressing); }
  SECTION("an address that is none") { c.add_addresses("example.org:80"); CHECK(w.first() == outcome::invalid_addressing); }
  SECTION("nowhere to be reached") { c.clear_addresses(); CHECK(w.first() == outcome::invalid_addressing); }
  SECTION("a relay alone") {
    c.clear_addresses();
    c.set_home_relay("https://relay.example.org");
    CHECK(w.first() == outcome::live);
  }
  SECTION("offline, whatever its row says") {
    c.set_online(false);
    c.clear_public_key();
    CHECK(w.first() == outcome::offline);
  }
  SECTION("invalid") { c.set_addressing_error("addresses[0]"); CHECK(w.first() == outcome::invalid_addressing); }
  SECTION("disabled") { w.t.set_enabled(false); CHECK(w.first() == outcome::disabled); }
}

TEST_CASE("the previous generation is served until the agents hold the current one") {
  world w;
  w.t.set_generation(2);
  w.t.set_previous_generation(1);
  *w.t.mutable_previous_rules() = w.t.rules();
  w.t.mutable_rules(0)->set_target("http://localhost:9090");
  CHECK(w.plan().generation == 1);
  CHECK(w.first() == outcome::live);
  SECTION("attached: the current one") {
    auto a = rows::attachment(w.t, "edge", 2);
    w.attachments.push_back(a);
    CHECK(w.plan().generation == 2);
    CHECK(w.plan().rules.at(0).rule.target() == "http://localhost:9090");
  }
  SECTION("rules that were refused: nobody will ever hold them") {
    auto* beside = w.t.add_rules();  // it is of the same spec
    *beside = w.t.rules(0);
    beside->set_path_prefix("/api");
    auto& rule = *w.t.mutable_rules(0);
    SECTION("a target") { rule.set_target("http://no\x01host:80"); }
    SECTION("a target in another spelling") { rule.set_target("http://localhost"); }
    SECTION("a path prefix") { rule.set_path_prefix("no-slash\n"); }
    SECTION("a connector") { rule.set_connector("edge\n"); }
    SECTION("two of one path prefix") { beside->set_path_prefix("/"); }
    SECTION("a uid") { w.t.set_uid("a/b"); }
    CHECK(w.plan().generation == 1);  // not judged yet
    rows::condition(w.t, "Accepted", "False", "Invalid", "rules[0]");
    const auto plan = w.plan();
    CHECK(plan.generation == 2);
    REQUIRE(plan.rules.size() == 2);
    for (const auto& each : plan.rules) CHECK(each.what == outcome::invalid_addressing);
    CHECK(plan.rules[0].rule.path_prefix() == "/");  // a visitor gets an answer wherever he goes
    CHECK(plan.rules[1].index == 1);
    w.t.set_enabled(false);
    CHECK(w.first() == outcome::disabled);
  }
  SECTION("rules that were refused for their number") {
    rows::condition(w.t, "Accepted", "False", "Invalid", "rules: ");
    w.t.clear_rules();
    REQUIRE(w.plan().rules.size() == 1);
    CHECK(w.first() == outcome::invalid_addressing);
    CHECK(w.plan().rules[0].rule.path_prefix() == "/");
    for (int i = 0; i < 1000; ++i) w.t.add_rules();
    CHECK(w.plan().rules.size() == 16);
    CHECK(w.first() == outcome::invalid_addressing);
  }
  SECTION("a spec that was refused for something else") {
    rows::condition(w.t, "Accepted", "False", "Invalid", "hostnames: ");
    CHECK(w.plan().generation == 1);
    CHECK(w.first() == outcome::live);
  }
  SECTION("an agent that is away is not waited for") {
    w.connectors.at("edge").set_online(false);
    CHECK(w.plan().generation == 2);
    CHECK(w.first() == outcome::offline);
  }
  SECTION("switched off is at once") {
    w.t.set_enabled(false);
    CHECK(w.plan().generation == 2);
  }
}

TEST_CASE("once gateways run a generation, nobody is sent back to the one before") {
  world w;
  w.t.set_previous_generation(1);
  *w.t.mutable_previous_rules() = w.t.rules();
  w.t.set_generation(2);
  w.t.set_programmed_generation(2);
  auto* r = w.t.add_rules();
  r->set_path_prefix("/api");
  r->set_connector("late");
  // The one agent holds it and lets go of the one before; the other has just come back and does not hold it yet.
  w.connectors["late"] = rows::connector("p", "late", 1);
  w.attachments = {rows::attachment(w.t, "edge", 2)};
  CHECK(w.plan().generation == 2);
  CHECK(w.plan().rules.at(0).what == outcome::live);
  CHECK(w.plan().rules.at(1).what == outcome::offline);
}

TEST_CASE("each rule follows its own connector") {
  world w;
  auto* r = w.t.add_rules();
  r->set_path_prefix("/api");
  r->set_connector("other");
  const auto plan = w.plan();
  CHECK(plan.rules.at(0).what == outcome::live);
  CHECK(plan.rules.at(1).what == outcome::unknown);
  CHECK(plan == w.plan());
}
