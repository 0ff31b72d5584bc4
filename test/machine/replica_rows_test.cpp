// test/machine/replica_rows_test.cpp -- rows into the tables and out, and which tunnels that touches.
#include <catch2/catch.hpp>

#include "services/replica/rows.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::replica;

namespace {

struct shelf {
  tables t;
  row_keeper keeper{t};
  revision_t now = 1;

  explicit shelf(bool warm = true) {
    for (partition_id p : {0, 1, 2}) t.partitions[p] = {.revision = 1, .warm = warm};
  }
  application apply(std::vector<v1::Row> rows, bool complete = false, partition_id p = 0) {
    application a{.partition = p, .revision = ++now, .wall_ms = 1000};
    keeper.apply(a, rows, complete);
    return a;
  }
};

std::string names(const std::set<entity_key>& all) {
  std::string out;
  for (const auto& [project, name] : all) out += name + " ";
  return out;
}

v1::Row claim(const std::string& host, const std::string& tunnel, std::int64_t number, revision_t version, partition_id p = 0) {
  v1::Row r;
  auto& c = *r.mutable_hostname_claim();
  c.set_partition(p);
  c.set_hostname(host);
  c.set_project("p");
  c.set_tunnel(tunnel);
  c.set_tunnel_uid("uid-" + tunnel);
  c.set_claim(number);
  c.set_version(version);
  return r;
}

}  // namespace

TEST_CASE("a row touches the tunnels that it says something about") {
  shelf s;
  const auto web = rows::tunnel("p", "web", "edge", 2), api = rows::tunnel("p", "api", "edge", 2), far = rows::tunnel("p", "far", "away", 2);
  CHECK(names(s.apply({rows::row(web), rows::row(api), rows::row(far)}).affected) == "api far web ");
  CHECK(names(s.apply({rows::row(rows::connector("p", "edge", 3))}).affected) == "api web ");
  CHECK(names(s.apply({rows::row(rows::attachment(far, "away", 4))}).affected) == "far ");
  CHECK(names(s.apply({claim("web.p.example", "web", 1, 5)}).affected) == "web ");
  CHECK(names(s.apply({claim("web.p.example", "api", 2, 6)}).affected) == "api web ");  // who has it, and who had it
  CHECK(names(s.apply({rows::row(rows::connector("q", "edge", 7))}).affected).empty());  // of another project
  CHECK(names(s.apply({rows::tombstone("connector", "p/edge", 8)}).affected) == "api web ");
  CHECK(names(s.apply({rows::tombstone("attachment", "p/away/uid-far/1", 9)}).affected) == "far ");
  CHECK(names(s.apply({rows::tombstone("hostname_claim", "web.p.example", 10)}).affected) == "api ");
  CHECK(names(s.apply({rows::tombstone("tunnel", "p/far", 11, "uid-far")}).affected) == "far ");
}

TEST_CASE("a tunnel is found by the connectors that it names, the previous rules' included") {
  shelf s;
  auto t = rows::tunnel("p", "web", "a", 2);
  s.apply({rows::row(t)});
  *t.add_previous_rules() = t.rules(0);
  t.mutable_rules(0)->set_connector("b");
  t.set_version(3);
  s.apply({rows::row(t)});
  CHECK(names(s.apply({rows::row(rows::connector("p", "a", 4))}).affected) == "web ");
  CHECK(names(s.apply({rows::row(rows::connector("p", "b", 5))}).affected) == "web ");
  t.clear_previous_rules();
  t.set_version(6);
  s.apply({rows::row(t)});
  CHECK(names(s.apply({rows::row(rows::connector("p", "a", 7))}).affected).empty());
  CHECK(s.t.tunnels_by_connector.size() == 1);
}

TEST_CASE("of two versions the newer stays, however they arrive") {
  struct row { const char* what; revision_t have, got; bool complete, taken; };
  for (const auto& [what, have, got, complete, taken] : {
           row{"newer", 5, 6, false, true}, row{"the same again", 5, 5, false, true}, row{"older", 5, 4, false, false},
           row{"newer, complete", 5, 6, true, true}, row{"the same, complete", 5, 5, true, false},
           row{"back in time, complete", 5, 4, true, true}, row{"a rival's, again, complete", rival_version, rival_version, true, true},
           row{"a rival's", 5, rival_version, false, false}}) {
    CAPTURE(what);
    shelf s;
    s.apply({rows::row(rows::tunnel("p", "web", "edge", have))});
    CHECK(s.apply({rows::row(rows::tunnel("p", "web", "edge", got))}, complete).change.tunnels.size() == (taken ? 1 : 0));
    CHECK(s.t.tunnel("p", "web")->version() == (taken ? got : have));
  }
}

TEST_CASE("a tombstone takes what is older than it, and only rows that were adopted") {
  struct row { const char* kind; const char* key; revision_t version; bool gone; };
  for (const auto& [kind, key, version, gone] : {
           row{"tunnel", "p/web", 6, true}, row{"tunnel", "p/web", 5, false}, row{"tunnel", "p/web", rival_version, false},
           row{"tunnel", "p", 6, false}, row{"tunnel", "p/web/more", 6, false}, row{"connector", "p/web", 6, false},
           row{"attachment", "p/edge/uid-web/1", 6, true}, row{"attachment", "p/edge/uid-web/one", 6, false},
           row{"attachment", "p/edge/uid-web/99999999999999999999", 6, false}, row{"hostname_claim", "web.p.example", 6, true},
           row{"hostname_claim", "web.p.example", 5, false}, row{"nobody's", "p/web", 6, false}, row{"", "", 6, false}}) {
    CAPTURE(kind, key, version);
    shelf s;
    const auto t = rows::tunnel("p", "web", "edge", 5);
    s.apply({rows::row(t), rows::row(rows::attachment(t, "edge", 5)), claim("web.p.example", "web", 1, 5)});
    const auto before = s.t.tunnels.size() + s.t.attachments.size() + s.t.claims.size();
    s.apply({rows::tombstone(kind, key, version)});
    CHECK(before - (s.t.tunnels.size() + s.t.attachments.size() + s.t.claims.size()) == (gone ? 1 : 0));
  }
}

TEST_CASE("what was gone before our time is known by its tombstone") {
  shelf cold{false};
  cold.apply({rows::tombstone("tunnel", "p/web", 5, "uid-web"), rows::tombstone("connector", "p/edge", 6, "uid-edge"),
              rows::tombstone("gateway", "gw", 7, "uid-gw"), rows::tombstone("tunnel", "p/alive", 4, "uid-old"),
              rows::row(rows::tunnel("p", "alive", "edge", 8))}, true);
  const auto& all = cold.t.deleted[0].all;
  REQUIRE(all.size() == 4);
  CHECK(all[0].tunnel.unpack()->uid() == "uid-web");
  CHECK(all[0].tunnel.unpack()->project() == "p");
  CHECK(all[1].connector.unpack()->name() == "edge");
  CHECK(all[2].gateway.unpack()->name() == "gw");
  CHECK(all[3].revision == 4);
  CHECK(cold.t.tunnel("p", "alive") != nullptr);
  shelf warm;
  warm.apply({rows::tombstone("tunnel", "p/web", 5, "uid-web")});
  CHECK(warm.t.deleted[0].all.empty());
}

TEST_CASE("of two partitions' claims the higher number wins, in any order, within one life of the database") {
  for (const bool newer_first : {false, true}) {
    CAPTURE(newer_first);
    shelf s;
    const auto old_one = [&] { s.apply({claim("a.example", "old", 7, 5, 0)}, false, 0); };
    const auto new_one = [&] { s.apply({claim("a.example", "new", 8, 3, 1)}, false, 1); };
    if (newer_first) new_one(), old_one();
    else old_one(), new_one();
    CHECK(s.t.claims.at("a.example").unpack()->tunnel() == "new");
    s.apply({rows::tombstone("hostname_claim", "a.example", 9)}, false, 0);  // the other partition's own
    CHECK(s.t.claims.count("a.example") == 1);
  }
  shelf s;
  s.apply({claim("a.example", "lost", 9, 5, 0)}, false, 0);
  s.now = (1ll << 32) + 5;
  s.apply({claim("a.example", "found", 8, s.now, 1)}, false, 1);
  CHECK(s.t.claims.at("a.example").unpack()->tunnel() == "found");
}

TEST_CASE("a complete load takes away what it does not hold, of its partition alone") {
  shelf s;
  v1::GatewayRow g;
  g.set_name("gw");
  v1::Row inside;
  inside.mutable_gateway_class()->set_name("inside");
  s.apply({rows::row(g), inside}, true, 2);
  auto other = rows::tunnel("q", "web", "edge", 2, 1);
  s.apply({rows::row(other), claim("web.q.example", "web", 1, 2, 1)}, false, 1);
  const auto t = rows::tunnel("p", "web", "edge", 2);
  s.apply({rows::row(t), rows::row(rows::connector("p", "edge", 2)), rows::row(rows::attachment(t, "edge", 2)), claim("web.p.example", "web", 2, 2)});
  const auto a = s.apply({rows::row(rows::tunnel("p", "api", "edge", 3))}, true);
  CHECK(names(a.change.tunnels) == "api web ");
  CHECK(names(a.change.connectors) == "edge ");
  CHECK(a.change.hostnames == std::set<std::string>{"web.p.example"});
  CHECK(s.t.attachments.empty());
  CHECK(s.t.tunnels.size() == 2);
  CHECK(s.t.claims.size() == 1);
  CHECK(s.t.gateways.size() == 1);
  const auto registry = s.apply({}, true, 2);
  CHECK(registry.change.gateways.size() == 1);
  CHECK(registry.change.gateway_classes.size() == 1);
  CHECK(s.t.gateways.empty());
  CHECK(s.t.gateway_classes.empty());
  CHECK(s.t.tunnels.size() == 2);
}

TEST_CASE("a connector whose set alone moved touches the tunnels that the step covers") {
  shelf s;
  std::vector<v1::Row> all;
  for (int n = 1; n <= 5; ++n) {
    auto t = rows::tunnel("p", "t" + std::to_string(n), "edge", 2);
    auto a = rows::attachment(t, "edge", 2);
    a.set_attachment_generation(n);
    all.push_back(rows::row(t));
    all.push_back(rows::row(a));
  }
  auto c = rows::connector("p", "edge", 2);
  c.set_attached_generation(0);
  all.push_back(rows::row(c));
  s.apply(all);
  struct row { std::int64_t attached; const char* touched; };
  for (const auto& [attached, touched] : {row{1, "t1 "}, row{4, "t2 t3 t4 "}, row{4, ""}, row{2, "t3 t4 "}, row{5, "t3 t4 t5 "}}) {
    CAPTURE(attached);
    c.set_version(s.now + 1);
    c.set_attached_generation(attached);
    CHECK(names(s.apply({rows::row(c)}).affected) == touched);
  }
  c.set_version(s.now + 1);
  c.set_attached_generation(1);
  c.set_online(false);
  CHECK(names(s.apply({rows::row(c)}).affected) == "t1 t2 t3 t4 t5 ");
}
