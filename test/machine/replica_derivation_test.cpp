// test/machine/replica_derivation_test.cpp -- which tunnels a gateway's word is news to, and what becomes of them.
#include <random>

#include <catch2/catch.hpp>

#include "services/replica/derivation.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::replica;

namespace {

/// Tables with settled gateways, and what is told of them.
struct scene {
  tables t;
  row_keeper rows{t};
  derivation derived{t};
  revision_t now = 1;

  scene() {
    t.partitions[0].warm = true;
    t.partitions[1].warm = true;
    t.gateways_settled = true;
  }
  application apply(std::vector<v1::Row> changed) {
    application a{.partition = 0, .revision = ++now, .wall_ms = 1000 + now};
    rows.apply(a, changed, false);
    derived.rows_changed(a);
    return a;
  }
  /// As the view does it.
  std::set<entity_key> ack(const std::string& gateway, revision_t r) {
    auto& reports = t.acks[0];
    const auto before = reports.count(gateway) > 0 ? reports[gateway].report.acknowledged() : 0;
    application a{.partition = 0, .revision = now};
    if (apply_ack(reports, rows::ack(gateway, r, "caught_up", 1), 0, 0) == ack_effect::moved) derived.acknowledged(a, "default", before, r);
    else derived.class_changed(a, "default");
    return a.change.derived;
  }
  std::string ready(const std::string& name) { return t.derived.at({"p", name}).conditions().of_type("Ready")->status(); }
  std::string words(const std::string& name) { return t.derived.at({"p", name}).gateways().words; }
};

std::vector<v1::Row> live(const std::string& name, revision_t version) {
  auto row = rows::tunnel("p", name, "edge-" + name, version);
  return {rows::row(row), rows::row(rows::connector("p", "edge-" + name, version)), rows::row(rows::attachment(row, "edge-" + name, version))};
}

std::string names(const std::vector<entity_key>& all) {
  std::string out;
  for (const auto& [project, name] : all) out += name + " ";
  return out;
}
std::string names(const std::set<entity_key>& all) { return names(std::vector<entity_key>{all.begin(), all.end()}); }

}  // namespace

TEST_CASE("who waits is found by the revisions that are new to a gateway") {
  waiting_tunnels w;
  w.add({"p", "a"}, 5);
  w.add({"p", "b"}, 7);
  w.add({"p", "c"}, 7);
  w.add({"p", "d"}, 9);
  struct row { revision_t from, to; const char* found; };
  for (const auto& [from, to, found] : {row{0, 4, ""}, row{0, 5, "a "}, row{4, 5, "a "}, row{5, 6, ""}, row{5, 7, "b c "}, row{6, 100, "b c d "},
                                        row{0, 100, "a b c d "}, row{9, 100, ""}, row{7, 5, ""}}) {
    CAPTURE(from, to);
    CHECK(names(w.between(from, to)) == found);
  }
  SECTION("a newer route takes the place of the one before") {
    w.add({"p", "a"}, 12);
    w.add({"p", "a"}, 12);
    CHECK(w.size() == 4);
    CHECK(names(w.between(0, 7)) == "b c ");
    CHECK(names(w.between(9, 12)) == "a ");
  }
  SECTION("who waits no more is not found") {
    w.remove({"p", "b"});
    w.remove({"p", "b"});
    w.remove({"p", "unheard of"});
    CHECK(w.size() == 3);
    CHECK(names(w.between(5, 7)) == "c ");
  }
}

TEST_CASE("an acknowledgement is news to the tunnels whose routes it reaches, and to no other") {
  scene s;
  s.ack("gw", 1);
  for (const auto* name : {"a", "b", "c"}) s.apply(live(name, s.now + 1));  // at 2, 3 and 4
  CHECK(names(s.ack("gw", 2)) == "a ");
  CHECK(names(s.ack("gw", 4)) == "b c ");
  CHECK(names(s.ack("gw", 4)).empty());
  CHECK(s.ready("a") == "True");
  CHECK(s.ready("c") == "True");
  CHECK(s.words("c") == "1/1 gateways, revision 4");

  auto gone = rows::connector("p", "edge-b", 5);
  gone.set_online(false);
  CHECK(names(s.apply({rows::row(gone)}).change.derived) == "b ");
  CHECK(s.ready("b") == "False");
  CHECK(names(s.ack("gw", 5)) == "");  // why it is not ready is the connector, before and after
  CHECK(s.words("b") == "1/1 gateways, revision 5");
}

TEST_CASE("of two gateways each is waited for") {
  scene s;
  s.ack("gw-a", 1);
  s.ack("gw-b", 1);
  s.apply(live("a", 2));
  s.apply(live("b", 3));
  CHECK(s.words("b") == "0/2 gateways; waiting for gw-a, gw-b");
  CHECK(names(s.ack("gw-a", 3)) == "a b ");  // the words change
  CHECK(s.words("b") == "1/2 gateways; waiting for gw-b");
  CHECK(s.ready("a") == "False");
  CHECK(names(s.ack("gw-b", 2)) == "a ");
  CHECK(s.ready("a") == "True");
  CHECK(s.ready("b") == "False");
  CHECK(names(s.ack("gw-b", 3)) == "b ");
  CHECK(s.ready("b") == "True");
}

TEST_CASE("a gateway that goes back, or begins to count, is news to all") {
  scene s;
  s.ack("gw-a", 1);
  s.apply(live("a", 2));
  s.apply(live("b", 3));
  s.ack("gw-a", 3);
  CHECK(names(s.ack("gw-b", 2)) == "a b ");
  CHECK(s.ready("a") == "True");
  CHECK(s.ready("b") == "False");
  CHECK(s.words("b") == "1/2 gateways; waiting for gw-b");
  CHECK(names(s.ack("gw-b", 3)) == "b ");
  CHECK(names(s.ack("gw-b", 1)) == "a b ");
  CHECK(s.ready("a") == "False");
}

TEST_CASE("only what gateways route makes them owe an acknowledgement") {
  scene s;
  s.ack("gw", 1);
  s.apply(live("a", 2));
  s.ack("gw", 2);
  struct row { const char* what; std::function<void(v1::TunnelRow&, v1::ConnectorRow&)> change; bool routes, owed; };
  const std::vector<row> table{
      {"nothing", [](auto&, auto&) {}, false, false},
      {"the connector's session", [](auto&, auto& c) { c.set_session(9); }, false, false},
      {"the connector's lease", [](auto&, auto& c) { c.set_lease_duration_ms(9000); }, false, false},
      {"a condition", [](auto& t, auto&) { rows::condition(t, "Programmed", "False"); }, false, false},
      {"an address", [](auto&, auto& c) { c.add_addresses("192.0.2.2:7000"); }, false, true},
      {"the key", [](auto&, auto& c) { c.set_public_key(std::string(64, 'b')); }, false, true},
      {"liveness", [](auto&, auto& c) { c.set_online(false); }, true, true},
      {"the target", [](auto& t, auto&) { t.mutable_rules(0)->set_target("http://localhost:9090"); }, true, true},
      {"the path", [](auto& t, auto&) { t.mutable_rules(0)->set_path_prefix("/a"); }, true, true},
      {"TLS verification", [](auto& t, auto&) { t.mutable_rules(0)->set_tls_verify(false); }, true, true},
      {"the switch", [](auto& t, auto&) { t.set_enabled(false); }, true, true},
      {"a host name", [](auto& t, auto&) { t.add_hostnames("more.example"); }, true, true},
      {"the class", [](auto& t, auto&) { t.set_gateway_class("other"); }, true, true},
      {"its end", [](auto& t, auto&) { *t.mutable_delete_time() = timestamp_from_ms(1); }, true, true},
  };
  auto t = rows::tunnel("p", "a", "edge-a", 3);
  auto c = rows::connector("p", "edge-a", 3);
  for (const auto& [what, change, routes, owed] : table) {
    CAPTURE(what);
    change(t, c);  // each on top of those before
    t.set_version(s.now + 1);
    c.set_version(s.now + 1);
    const auto a = s.apply({rows::row(t), rows::row(c)});
    CHECK(a.change.routes.count({"p", "a"}) == (routes ? 1 : 0));
    CHECK((s.t.derived.at({"p", "a"}).routed_revision == s.now) == owed);
  }
}

TEST_CASE("acknowledged one by one or all at once, conditions are the same") {
  const auto seed = GENERATE(range(1u, 11u));
  CAPTURE(seed);
  std::mt19937 random{seed};
  scene step, jump;
  for (auto* s : {&step, &jump})
    for (const auto* g : {"gw-a", "gw-b", "gw-c"}) s->ack(g, 1);
  for (int n = 0; n < 40; ++n) {
    auto rows = live("t" + std::to_string(random() % 8), step.now + 1);
    if (random() % 3 == 0) rows[1].mutable_connector()->set_online(false);
    step.apply(rows);
    jump.apply(rows);
  }
  const std::string gateways[] = {"gw-a", "gw-b", "gw-c"};
  std::map<std::string, revision_t> at{{"gw-a", 1}, {"gw-b", 1}, {"gw-c", 1}};
  for (int n = 0; n < 60; ++n) {
    const auto& g = gateways[random() % 3];
    at[g] = std::min<revision_t>(at[g] + static_cast<revision_t>(random() % 5), step.now);
    step.ack(g, at[g]);
  }
  for (const auto& [g, r] : at) jump.ack(g, r);
  for (const auto& [key, d] : step.t.derived) {
    CAPTURE(key.second);
    const auto& other = jump.t.derived.at(key);
    CHECK(d.gateways().words == other.gateways().words);
    CHECK(d.gateways().what == other.gateways().what);
    const auto conditions = d.conditions(), others = other.conditions();
    REQUIRE(conditions.size() == others.size());
    for (std::size_t i = 0; i < conditions.size(); ++i) {
      CHECK(conditions[i].status() == others[i].status());
      CHECK(conditions[i].message() == others[i].message());
    }
  }
}
