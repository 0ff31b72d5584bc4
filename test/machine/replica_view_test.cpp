// test/machine/replica_view_test.cpp -- the read copy: hints in any order, loads, derived conditions, lists, watches.
#include <random>

#include <catch2/catch.hpp>

#include "services/replica/query.hpp"
#include "services/replica/view.hpp"
#include "services/replica/watch.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::replica;

namespace {

constexpr int partitions = 1;  // 0 for all projects, 1 is the reserved one

struct world {
  view v;
  std::int64_t now = 1'000'000;
  std::vector<change_set> heard;

  explicit world(revision_t base = 0) {
    v.set_partitions(partitions, now);
    v.subscribe([this](const change_set& c) { heard.push_back(c); });
    if (base >= 0) load(base + 1, {});
  }
  void load(revision_t revision, const std::vector<v1::Row>& all, bool complete = true, revision_t from = -1) {
    v.apply_fetched(0, complete, revision, 1, all, now, now, from);
    if (complete) v.apply_fetched(1, true, revision, 1, {}, now, now);
  }
  view::applied hint(revision_t r, std::vector<v1::Row> changed) { return v.apply(rows::hint(r, std::move(changed)), now, now); }
  void ack(const std::string& g, revision_t r, const std::string& state = "caught_up", std::int64_t stream = 1) {
    v.apply_ack(rows::ack(g, r, state, stream), now, now);
  }
  void settle() {
    now += 5000;
    v.tick(now, now);
  }
  std::string ready(const std::string& name) {
    return v.read([&](const tables& t) {
      auto d = t.derived.find({"p", name});
      return d == t.derived.end() ? std::string{"-"} : d->second.conditions().of_type("Ready")->status();
    });
  }
};

// A tunnel with everything under it, live.
std::vector<v1::Row> live(const std::string& name, revision_t version, const std::string& connector = "edge") {
  auto t = rows::tunnel("p", name, connector, version);
  return {rows::row(t), rows::row(rows::connector("p", connector, version)), rows::row(rows::attachment(t, connector, version))};
}

std::string flat(const std::vector<v1::Condition>& all) {
  std::string out;
  for (const auto& c : all) out += c.type() + "=" + c.status() + "/" + c.reason() + " ";
  return out;
}

std::string text(const std::vector<watch_event>& all) {
  std::string out;
  for (const auto& e : all) {
    const auto name = e.tunnel ? e.tunnel->name() : e.connector ? e.connector->name() : "";
    switch (e.what) {
      case watch_event::kind::created: out += "+" + name; break;
      case watch_event::kind::updated: out += "~" + name; break;
      case watch_event::kind::deleted: out += "-" + name; break;
      case watch_event::kind::caught_up: out += "|"; break;
    }
    out += " ";
  }
  return out;
}

}  // namespace

TEST_CASE("hints apply in order, once; a missing one is a gap") {
  world w;
  CHECK(w.hint(2, live("web", 2)) == view::applied::yes);
  CHECK(w.hint(2, live("web", 2)) == view::applied::known);
  CHECK(w.hint(1, live("old", 1)) == view::applied::known);
  CHECK(w.hint(4, live("four", 4)) == view::applied::gap);
  CHECK(w.hint(2, {}) == view::applied::known);
  CHECK(w.hint(3, {}) == view::applied::gap);
  CHECK(w.v.fetch_after(0) == 2);
  CHECK(w.v.read([](const tables& t) { return t.tunnel("p", "old") == nullptr && t.tunnel("p", "four") == nullptr; }));
  w.load(4, live("four", 4), false);
  CHECK(w.v.revision(0) == 4);
  CHECK(w.v.read([](const tables& t) { return t.tunnels.size(); }) == 2);
  CHECK(w.hint(3, live("three", 3)) == view::applied::known);
}

TEST_CASE("nothing is applied before the first complete load") {
  world w{-1};
  CHECK(w.hint(2, live("web", 2)) == view::applied::gap);
  w.load(5, live("web", 2), false);
  CHECK(w.v.revision(0) == -1);
  w.load(5, live("web", 2));
  CHECK(w.v.revision(0) == 5);
  CHECK(w.v.read([](const tables& t) { return t.warm; }));
}

TEST_CASE("tombstones remove rows, and nothing that is newer") {
  world w;
  w.hint(2, live("web", 2));
  w.hint(3, {rows::tombstone("tunnel", "p/web", 3, "uid-web"), rows::tombstone("attachment", "p/edge/uid-web/1", 3)});
  w.v.read([](const tables& t) {
    CHECK(t.tunnels.empty());
    CHECK(t.derived.empty());
    CHECK(t.attachments.empty());
    CHECK(t.tunnels_by_connector.empty());
    CHECK(t.connectors.size() == 1);
  });
  w.load(9, {rows::tombstone("tunnel", "p/web", 5), rows::row(rows::tunnel("p", "web", "edge", 8))}, false);
  CHECK(w.v.read([](const tables& t) { return t.tunnel("p", "web") != nullptr; }));
  w.load(10, {rows::tombstone("tunnel", "p/web", 6)}, false);
  CHECK(w.v.read([](const tables& t) { return t.tunnel("p", "web") != nullptr; }));
}

TEST_CASE("a complete load forgets what it does not hold") {
  world w;
  w.hint(2, live("web", 2));
  w.hint(3, live("api", 3));
  w.load(7, live("api", 3));
  w.v.read([](const tables& t) {
    CHECK(t.tunnel("p", "web") == nullptr);
    CHECK(t.tunnel("p", "api") != nullptr);
    CHECK(t.attachments.size() == 1);
  });
}

TEST_CASE("after a change of incarnation everything is read anew, also what went back in time") {
  world w;
  w.hint(2, live("web", 2));
  w.hint(3, live("lost", 3));
  const revision_t next = (1ll << 32) + 2;
  CHECK(w.hint(next + 1, live("new", next + 1)) == view::applied::gap);
  CHECK(w.v.fetch_after(0) == 0);
  w.load(next, {}, false);
  CHECK(w.v.revision(0) == 3);
  w.load(next, live("web", 1));
  w.v.read([](const tables& t) {
    CHECK(t.tunnel("p", "lost") == nullptr);
    CHECK(t.tunnel("p", "web")->version() == 1);
  });
  CHECK(w.hint(next + 1, live("new", next + 1)) == view::applied::yes);
  CHECK(w.hint(4, live("ghost", 4)) == view::applied::known);
}

TEST_CASE("ready follows rows and acknowledgements") {
  world w;
  w.hint(2, live("web", 2));
  CHECK(w.ready("web") == "Unknown");
  w.settle();
  w.ack("gw-a", 1);
  CHECK(w.ready("web") == "False");
  w.ack("gw-a", 2);
  CHECK(w.ready("web") == "True");
  auto c = rows::connector("p", "edge", 3);
  c.set_online(false);
  w.heard.clear();
  w.hint(3, {rows::row(c)});
  CHECK(w.ready("web") == "False");
  CHECK(w.heard.at(0).derived.count({"p", "web"}) == 1);
  CHECK(w.heard.at(0).routes.count({"p", "web"}) == 1);
  CHECK(w.heard.at(0).tunnels.empty());
  w.hint(4, {rows::row(rows::connector("p", "edge", 4))});
  CHECK(w.ready("web") == "False");  // the gateway has not acknowledged the way back
  w.ack("gw-a", 4);
  CHECK(w.ready("web") == "True");
  SECTION("a new address is not ready before the gateways have it") {
    auto moved = rows::connector("p", "edge", 5);
    moved.add_addresses("192.0.2.2:7000");
    w.hint(5, {rows::row(moved)});
    CHECK(w.ready("web") == "False");
    w.ack("gw-a", 5);
    CHECK(w.ready("web") == "True");
  }
  SECTION("what gateways do not see needs no acknowledgement") {
    auto same = rows::connector("p", "edge", 5);
    same.set_session(9);
    w.heard.clear();
    w.hint(5, {rows::row(same)});
    CHECK(w.ready("web") == "True");
    CHECK(w.heard.at(0).routes.empty());
    CHECK(w.heard.at(0).derived.empty());
  }
  SECTION("a gateway that falls silent does not lower what is known") {
    w.now += 3000;
    w.v.tick(w.now, w.now);
    CHECK(w.v.read([](const tables& t) { return t.acks.at(0).at("gw-a").report.state(); }) == "gone");
    CHECK(w.ready("web") == "True");
  }
  SECTION("deleted and created again is another tunnel") {
    auto t = rows::tunnel("p", "web", "edge", 5);
    t.set_uid("another");
    w.hint(5, {rows::tombstone("tunnel", "p/web", 5, "uid-web"), rows::row(t)});
    CHECK(w.ready("web") == "False");
  }
}

TEST_CASE("a gateway class that does not exist is named, until it does") {
  world w{-1};
  auto t = rows::tunnel("p", "web", "edge", 2);
  t.set_gateway_class("edges");
  t.set_programmed_generation(0);
  rows::condition(t, "Programmed", "False", "NoGateway", "no gateway of this class has acknowledged");
  const auto words = [&](std::string_view type) {
    return w.v.read([&](const tables& all) { return all.derived.at({"p", "web"}).conditions().of_type(type)->message(); });
  };
  const auto programmed = [&] {
    for (const auto& link : w.v.read([&](const tables& all) { return all.explain("p", "web", w.now); }))
      if (link.name == "gateways programmed") return link;
    return tunnel::chain_link{};
  };
  v1::GatewayClassRow c;
  c.set_name("edges");
  c.set_version(2);
  w.v.apply_fetched(0, true, 2, 1, {rows::row(t)}, w.now, w.now);
  w.settle();
  CHECK(words("Programmed") == "no gateway of this class has acknowledged");  // what classes there are has not been read
  CHECK(programmed().words.find("There is no gateway class") == std::string::npos);
  w.heard.clear();
  w.v.apply_fetched(1, true, 1, 1, {}, w.now, w.now);
  CHECK(words("Programmed") == "There is no gateway class edges.");
  CHECK(words("Ready") == "There is no gateway class edges.");
  CHECK(programmed().words.find("There is no gateway class edges.") == 0);
  CHECK(programmed().hint.find("warrenctl gateway-class create edges ") == 0);
  // Whoever watches hears of it, in the tunnel's own partition.
  REQUIRE(w.heard.size() == 2);
  CHECK(w.heard[1].partition == 0);
  CHECK(w.heard[1].derived.count({"p", "web"}) == 1);
  CHECK(w.heard[1].tunnels.empty());
  auto created = rows::hint(2, {});
  created.set_partition(1);
  created.add_rows()->mutable_gateway_class()->CopyFrom(c);
  REQUIRE(w.v.apply(created, w.now, w.now) == view::applied::yes);
  CHECK(words("Programmed") == "no gateway of this class has acknowledged");
  CHECK(programmed().hint.find("warrenctl gateway create NAME --class edges") == 0);
}

TEST_CASE("gateways are settled as soon as all registered ones are heard") {
  world w{-1};
  v1::GatewayRow g;
  g.set_name("gw-a");
  g.set_class_("default");
  w.v.apply_fetched(0, true, 2, 1, live("web", 2), w.now, w.now);
  w.v.apply_fetched(1, true, 2, 1, {rows::row(g)}, w.now, w.now);
  w.v.tick(w.now, w.now);
  CHECK(w.ready("web") == "Unknown");
  w.ack("gw-a", 2);
  w.v.tick(w.now, w.now);
  CHECK(w.ready("web") == "True");
  CHECK(w.v.read([](const tables& t) { return t.gateways_settled; }));
}

TEST_CASE("who waits for a revision is told, or told that it did not come") {
  world w;
  int seen = 0, late = 0;
  const auto count = [&](bool yes) { ++(yes ? seen : late); };
  w.v.when_seen(0, 1, w.now, count);
  CHECK(seen == 1);
  w.v.when_seen(0, 2, w.now + 100, count);
  w.v.when_seen(0, 3, w.now + 100, count);
  w.hint(2, live("web", 2));
  CHECK(seen == 2);
  w.v.tick(w.now + 100, w.now);
  CHECK(late == 1);
}

TEST_CASE("an agent that acknowledges more of its set, or loses it, makes exactly those tunnels ready") {
  world w;
  w.settle();
  revision_t r = 1;
  constexpr int count = 9;
  std::vector<v1::Row> all;
  ++r;
  for (int n = 1; n <= count; ++n) {
    auto t = rows::tunnel("p", "t" + std::to_string(n), "edge", r);
    auto a = rows::attachment(t, "edge", r);
    a.set_attachment_generation(n);
    all.push_back(rows::row(t));
    all.push_back(rows::row(a));
  }
  w.hint(r, all);
  // Forwards by one and by many, back to nothing (a new session of the agent), and to all.
  for (const std::int64_t attached : {0, 1, 2, 5, 4, 9, 0, 3, 9, 9, 1}) {
    auto c = rows::connector("p", "edge", ++r);
    c.set_attachment_generation(count);
    c.set_attached_generation(attached);
    w.hint(r, {rows::row(c)});
    w.ack("gw-a", r);
    for (int n = 1; n <= count; ++n) {
      INFO("attached " << attached << ", tunnel " << n);
      CHECK(w.ready("t" + std::to_string(n)) == (n <= attached ? "True" : "False"));
    }
  }
}

TEST_CASE("conditions derived step by step equal those derived at once") {
  const auto seed = GENERATE(range(1u, 21u));
  CAPTURE(seed);
  std::mt19937 random{seed};
  const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  world w;
  w.settle();
  std::map<std::string, v1::TunnelRow> ts;
  std::map<std::string, v1::ConnectorRow> cs;
  std::map<std::string, v1::AttachmentRow> as;
  revision_t r = 1;
  std::vector<busv1::Revision> held;
  for (int step = 0; step < 200; ++step) {
    ++r;
    std::vector<v1::Row> changed;
    const auto name = "t" + std::to_string(pick(6)), edge = "e" + std::to_string(pick(3));
    switch (pick(7)) {
      case 0:
      case 1: {
        const bool again = ts.count(name) > 0;
        auto t = rows::tunnel("p", name, edge, r);
        if (again) t.set_uid(ts[name].uid());
        else t.set_uid(name + std::to_string(r));
        t.set_enabled(pick(5) != 0);
        if (pick(3) == 0) t.set_programmed_generation(0);
        changed.push_back(rows::row(ts[name] = t));
        break;
      }
      case 2: {
        if (ts.erase(name) == 0) break;
        changed.push_back(rows::tombstone("tunnel", "p/" + name, r));
        break;
      }
      case 3:
      case 4: {
        auto c = rows::connector("p", edge, r);
        c.set_online(pick(3) != 0);
        c.set_attachment_generation(5);
        c.set_attached_generation(pick(6));
        if (pick(3) == 0) c.add_addresses("192.0.2.9:" + std::to_string(7000 + pick(3)));
        changed.push_back(rows::row(cs[edge] = c));
        break;
      }
      case 5: {
        if (cs.erase(edge) == 0) break;
        changed.push_back(rows::tombstone("connector", "p/" + edge, r));
        break;
      }
      default: {
        if (ts.count(name) == 0) break;
        const auto connector = ts[name].rules(0).connector();
        auto a = rows::attachment(ts[name], connector, r);
        a.set_target_state(pick(2) == 0 ? "Reachable" : pick(2) == 0 ? "Unreachable" : "Unknown");
        a.set_attachment_generation(1 + pick(5));
        const auto key = "p/" + connector + "/" + a.tunnel_uid() + "/1";
        changed.push_back(rows::row(as[key] = a));
      }
    }
    if (changed.empty()) {
      --r;
      continue;
    }
    const auto all = [&] {
      std::vector<v1::Row> out;
      for (auto& [k, t] : ts) out.push_back(rows::row(t));
      for (auto& [k, c] : cs) out.push_back(rows::row(c));
      for (auto& [k, a] : as) out.push_back(rows::row(a));
      return out;
    };
    const auto message = rows::hint(r, changed);
    held.push_back(message);
    if (pick(8) != 0) w.v.apply(message, w.now, w.now);                       // else: lost
    if (pick(4) == 0) w.v.apply(held[random() % held.size()], w.now, w.now);  // again, or late
    // Never ready before the gateways run what is routed.
    w.ack("gw-a", std::max<revision_t>(1, w.v.revision(0) - pick(3)));
    w.v.read([&](const tables& t) {
      for (const auto& [key, d] : t.derived) {
        if (d.conditions().of_type("Ready")->status() != "True") continue;
        CHECK(t.acks.at(0).at("gw-a").report.acknowledged() >= d.routed_revision);
        const auto plan = t.plan(*t.tunnel(key.first, key.second));
        for (const auto& rule : plan.rules) CHECK(rule.what == tunnel::outcome::live);
        CHECK(t.tunnel(key.first, key.second)->programmed_generation() == 1);
      }
    });
    if (w.v.revision(0) != r) w.load(r, all());
    w.ack("gw-a", r);
    world fresh;
    fresh.load(r, all());
    fresh.settle();
    fresh.ack("gw-a", r);
    std::map<entity_key, std::string> mine, theirs;
    w.v.read([&](const tables& t) { for (auto& [k, d] : t.derived) mine[k] = flat(d.conditions()); });
    fresh.v.read([&](const tables& t) { for (auto& [k, d] : t.derived) theirs[k] = flat(d.conditions()); });
    REQUIRE(mine == theirs);
  }
}

TEST_CASE("a change costs what it affects, however many tunnels there are") {
  std::vector<v1::Row> all;
  for (int i = 0; i < 10'000; ++i)
    for (auto& r : live("t" + std::to_string(i), 2, "e" + std::to_string(i / 20))) all.push_back(std::move(r));
  world w;
  w.load(2, all);
  std::size_t changes = 0, touched_most = 0;
  const auto token = w.v.subscribe([&](const change_set& c) {
    ++changes;
    touched_most = std::max({touched_most, c.tunnels.size(), c.derived.size(), c.routes.size(), c.connectors.size()});
  });
  for (revision_t r = 3; r < 1003; ++r) {
    auto c = rows::connector("p", "e1", r);
    c.set_online(r % 2 == 0);
    w.hint(r, {rows::row(c)});
  }
  w.v.unsubscribe(token);
  CHECK(w.v.read([](const tables& t) { return t.derived.size(); }) == 10'000);
  CHECK(changes == 1'000);
  CHECK(touched_most == 20);  // the tunnels of one connector, however many there are
}

// ---- lists ----

TEST_CASE("lists filter, order and page") {
  world w;
  std::vector<v1::Row> all;
  for (int i = 0; i < 25; ++i) {
    auto t = rows::tunnel("p", "t" + std::string(i < 10 ? "0" : "") + std::to_string(i), i % 2 == 0 ? "even" : "odd", 2);
    *t.mutable_created_at() = timestamp_from_ms(1'767'225'600'000 - i * 1000);
    all.push_back(rows::row(t));
  }
  all.push_back(rows::row(rows::tunnel("q", "alien", "even", 2)));
  w.load(2, all);
  const auto list = [&](list_request r) { return w.v.read([&](const tables& t) { return list_tunnels(t, r); }); };
  const auto names = [&](const list_page<tunnel_item>& page) {
    std::string out;
    for (const auto& i : page.items) out += i.row()->name() + " ";
    return out;
  };
  CHECK(list({}).items.size() == 26);
  CHECK(list({.project = "p"}).items.size() == 25);
  CHECK(list({.project = "p", .filter = "connector = even"}).items.size() == 13);
  CHECK(list({.project = "p", .filter = "connector != \"even\" AND name >= t20"}).items.size() == 2);
  CHECK(names(list({.filter = "hostname:t07.p.example"})) == "t07 ");
  CHECK(names(list({.filter = "name:lie"})) == "alien ");
  CHECK(list({.project = "p", .filter = "ready = unknown"}).items.size() == 25);
  CHECK(list({.project = "p", .filter = "create_time > 2025-12-31T23:59:50Z"}).items.size() == 10);
  CHECK(names(list({.project = "p", .order_by = "create_time", .page_size = 3})) == "t24 t23 t22 ");
  CHECK(names(list({.project = "p", .order_by = "programmed desc, name desc", .page_size = 2})) == "t24 t23 ");

  for (const auto* order : {"", "name desc", "create_time"}) {
    list_request r{.project = "p", .filter = "connector = even", .order_by = order, .page_size = 4};
    std::set<std::string> seen;
    int pages = 0;
    do {
      const auto page = list(r);
      REQUIRE_FALSE(page.error);
      for (const auto& i : page.items) CHECK(seen.insert(i.row()->name()).second);
      r.page_token = page.next_page_token;
      // What comes and goes in between disturbs nobody else.
      w.load(w.v.revision(0) + 1, {rows::row(rows::tunnel("p", "a" + std::to_string(++pages), "odd", w.v.revision(0) + 1))}, false);
    } while (!r.page_token.empty());
    CHECK(seen.size() == 13);
    CHECK(pages == 4);
  }
}

TEST_CASE("a page that is shown in part goes on where it was left") {
  world w;
  std::vector<v1::Row> all;
  for (const auto* name : {"a", "b", "c", "d", "e", "f", "g"}) all.push_back(rows::row(rows::tunnel("p", name, "edge", 2)));
  w.load(2, all);
  for (const std::string order : {"", "name desc", "programmed, name"}) {
    CAPTURE(order);
    list_request r{.project = "p", .order_by = order, .page_size = 4};
    std::string told;
    for (int pages = 0; pages < 20; ++pages) {
      const auto page = w.v.read([&](const tables& t) { return list_tunnels(t, r); });
      REQUIRE_FALSE(page.error);
      const auto shown = std::min<std::size_t>(page.items.size(), 2);
      for (std::size_t i = 0; i < shown; ++i) told += page.items[i].row()->name();
      if (page.items.size() == 4) CHECK(page.next_page_token == page.token_after(3));
      if (shown == page.items.size() && page.next_page_token.empty()) break;
      r.page_token = page.token_after(shown - 1);
    }
    CHECK(told == (order == "name desc" ? "gfedcba" : "abcdefg"));
  }
}

TEST_CASE("a list says what is wrong with it") {
  world w;
  for (int i = 0; i < 3; ++i) w.hint(2 + i, live("t" + std::to_string(i), 2 + i));
  const auto field = [&](list_request r) {
    const auto page = w.v.read([&](const tables& t) { return list_tunnels(t, r); });
    return page.error ? page.error->field : "";
  };
  for (const auto* bad : {"nope = 1", "name", "name =", "name = a AND", "name = a OR name = b", "name = a name = b", "enabled = maybe",
                          "ready = yes", "hostname < a", "create_time > yesterday", "generation = x", "name = \"a", "= a", "name ! a"}) {
    CAPTURE(bad);
    CHECK(field({.filter = bad}) == "filter");
  }
  for (const auto* bad : {"nope", "name up", "hostname", "name,,uid", "name,name", "name asc desc"}) {
    CAPTURE(bad);
    CHECK(field({.order_by = bad}) == "order_by");
  }
  CHECK(field({.page_size = -1}) == "page_size");
  CHECK(field({.page_token = "!!"}) == "page_token");
  CHECK(field({.page_token = "AAAA"}) == "page_token");
  const auto token = w.v.read([&](const tables& t) { return list_tunnels(t, {.page_size = 1}).next_page_token; });
  CHECK_FALSE(token.empty());
  CHECK(field({.filter = "name = t1", .page_token = token}) == "page_token");
  CHECK(field({.page_token = token}).empty());
  CHECK(parse_time("2026-01-01T00:00:00Z") == 1'767'225'600'000);
  CHECK(parse_time("2026-01-01T01:00:00.5+01:00") == 1'767'225'600'500);
  for (const auto* bad : {"", "2026-01-01", "2026-02-30T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.Z"}) CHECK_FALSE(parse_time(bad));
}

// ---- watches ----

TEST_CASE("a watch is a snapshot, caught up, then what changes") {
  world w;
  w.hint(2, live("web", 2));
  int woken = 0;
  auto opened = watcher::open(w.v, {.project = "p", .ready = [&] { ++woken; }});
  auto& watch = *std::get<std::unique_ptr<watcher>>(opened);
  CHECK(watch.take(10).empty());  // the gateways have not been heard
  w.ack("gw-a", 2);
  w.settle();
  CHECK(woken == 1);
  CHECK(watch.token(0).empty());
  auto first = watch.take(10);
  CHECK(text(first) == "+web | ");
  CHECK(first[0].conditions.of_type("Ready")->status() == "Unknown");  // its report had ended
  w.ack("gw-a", 2);
  auto flip = watch.take(10);
  CHECK(text(flip) == "~web ");
  CHECK(flip.at(0).conditions.of_type("Ready")->status() == "True");
  w.hint(3, live("api", 3));
  w.hint(4, {rows::tombstone("tunnel", "p/web", 4, "uid-web")});
  auto again = rows::tunnel("p", "api", "edge", 5);
  again.set_uid("another");
  w.hint(5, {rows::row(again)});
  w.hint(6, {rows::row(rows::tunnel("q", "alien", "edge", 6))});
  CHECK(text(watch.take(100)) == "+api -web -api +api ");
}

TEST_CASE("a watch resumes where it was, on any instance") {
  world a, b;
  for (auto* w : {&a, &b}) {
    w->hint(2, live("web", 2));
    w->hint(3, live("api", 3));
    w->settle();
    w->ack("gw-a", 3);
  }
  auto opened = watcher::open(a.v, {.project = "p"});
  auto& watch = *std::get<std::unique_ptr<watcher>>(opened);
  CHECK(text(watch.take(100)) == "+api +web | ");
  const std::int64_t later = a.now + 60'000;
  const auto token = watch.token(later);
  const auto resume = [&](view& v, const std::string& from) {
    auto o = watcher::open(v, {.project = "p", .resume_token = from});
    if (auto* bad = std::get_if<watcher::refused>(&o)) return std::string{to_string(bad->code)};
    return text(std::get<std::unique_ptr<watcher>>(o)->take(100));
  };
  CHECK(resume(b.v, token) == "| ");
  b.hint(4, live("new", 4, "other"));
  b.hint(5, {rows::tombstone("tunnel", "p/web", 5, "uid-web")});
  CHECK(resume(b.v, token) == "-web ~new | ");

  SECTION("an instance that is behind catches up first") {
    auto c = watcher::open(b.v, {.project = "p"});
    std::get<std::unique_ptr<watcher>>(c)->take(100);
    const auto ahead = std::get<std::unique_ptr<watcher>>(c)->token(later);
    auto o = watcher::open(a.v, {.project = "p", .resume_token = ahead});
    auto& behind = *std::get<std::unique_ptr<watcher>>(o);
    CHECK(behind.take(100).empty());
    a.hint(4, live("new", 4, "other"));
    CHECK(behind.take(100).empty());
    a.hint(5, {rows::tombstone("tunnel", "p/web", 5, "uid-web")});
    CHECK(text(behind.take(100)) == "| ");
  }
  SECTION("an instance that has restarted knows deletions from tombstones") {
    world fresh{-1};
    auto all = live("api", 3);
    all.push_back(rows::tombstone("tunnel", "p/web", 5, "uid-web"));
    fresh.load(5, all, true, 0);
    fresh.settle();
    CHECK(resume(fresh.v, token).find("-web") != std::string::npos);
    world blind{-1};
    blind.load(5, live("api", 3));
    blind.settle();
    CHECK(resume(blind.v, token) == "out_of_range");
  }
  SECTION("a restored database ends it") {
    b.load((1ll << 32) + 3, live("web", 2));
    b.settle();
    CHECK(resume(b.v, token) == "out_of_range");
  }
  SECTION("tokens are ours, and of this watch") {
    CHECK(resume(b.v, "x") == "invalid");
    auto broken = token;
    broken[5] = broken[5] == 'A' ? 'B' : 'A';
    CHECK(resume(b.v, broken) == "invalid");
    auto o = watcher::open(b.v, {.what = watched::connectors, .project = "p", .resume_token = token});
    CHECK(std::holds_alternative<watcher::refused>(o));
  }
}

TEST_CASE("a token between two events of one revision brings the second again") {
  world w;
  w.settle();
  auto opened = watcher::open(w.v, {});
  auto& watch = *std::get<std::unique_ptr<watcher>>(opened);
  CHECK(text(watch.take(10)) == "| ");
  auto two = live("a", 2);
  two.push_back(rows::row(rows::tunnel("p", "b", "edge", 2)));
  w.hint(2, two);
  CHECK(text(watch.take(1)) == "+a ");
  auto resumed = watcher::open(w.v, {.resume_token = watch.token(w.now + 60'000)});
  CHECK(text(std::get<std::unique_ptr<watcher>>(resumed)->take(10)) == "~a ~b | ");
}

TEST_CASE("a watch that is read too slowly ends with a reason, and can be resumed") {
  world w;
  w.settle();
  auto opened = watcher::open(w.v, {.queue_max = 3});
  auto& watch = *std::get<std::unique_ptr<watcher>>(opened);
  for (revision_t r = 2; r < 10; ++r) w.hint(r, live("t" + std::to_string(r), r, "e" + std::to_string(r)));
  CHECK_FALSE(watch.closed());
  CHECK(text(watch.take(100)) == "| +t2 +t3 +t4 ");
  REQUIRE(watch.closed());
  CHECK(watch.closed()->code == errc::overloaded);
  auto resumed = watcher::open(w.v, {.resume_token = watch.token(w.now + 60'000)});
  const auto rest = text(std::get<std::unique_ptr<watcher>>(resumed)->take(100));
  CHECK(rest.find("~t5 ") != std::string::npos);
  CHECK(rest.find("~t9 ") != std::string::npos);
}
