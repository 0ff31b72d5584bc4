// test/machine/replica_lives_test.cpp -- the read copy when the database begins another life: what was lost is
// forgotten, what is back is back, and nothing of the former life passes for news.
#include <catch2/catch.hpp>

#include "services/replica/view.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::replica;

namespace {

constexpr revision_t second_life = revision_t{1} << 32;
constexpr int partitions = 2;  // 0 has project p, 1 has project q, 2 is the reserved one

v1::Row claim(const std::string& project, int partition, std::int64_t number, std::int64_t version) {
  v1::Row out;
  auto& c = *out.mutable_hostname_claim();
  c.set_partition(partition);
  c.set_hostname("web.example");
  c.set_project(project);
  c.set_tunnel("web");
  c.set_tunnel_uid("uid-web");
  c.set_claim(number);
  c.set_version(version);
  return out;
}

struct world {
  view v;
  std::int64_t now = 1'000'000;
  change_set last;

  world() {
    v.set_partitions(partitions, now);
    v.subscribe([this](const change_set& c) { last = c; });
    for (int p = 0; p <= partitions; ++p) load(p, 100, {});
  }
  void load(int partition, revision_t revision, const std::vector<v1::Row>& all) {
    v.apply_fetched(partition, true, revision, revision >> 32, all, now, now, 0, 1 + (revision >> 32));
  }
  std::string holder() {
    return v.read([](const tables& t) {
      const auto found = t.claims.find("web.example");
      return found == t.claims.end() ? std::string{} : found->second.unpack()->project();
    });
  }
  std::string ready() {
    return v.read([](const tables& t) { return t.derived.at({"p", "web"}).conditions().of_type("Ready")->status(); });
  }
  void ack(revision_t acknowledged, std::int64_t incarnation) {
    auto a = rows::ack("gw-a", acknowledged);
    a.set_incarnation(incarnation);
    v.apply_ack(a, now, now);
  }
};

std::vector<v1::Row> live(revision_t version) {
  auto t = rows::tunnel("p", "web", "edge", version);
  return {rows::row(t), rows::row(rows::connector("p", "edge", version)), rows::row(rows::attachment(t, "edge", version))};
}

}  // namespace

TEST_CASE("a host name whose change of hands was lost is back with whom it was, in whatever order it is read") {
  world w;
  w.load(0, 110, {claim("p", 0, 7, 110)});
  // In the second that is lost, p gave it up and q took it.
  w.load(0, 111, {});
  w.load(1, 105, {claim("q", 1, 8, 105)});
  REQUIRE(w.holder() == "q");
  const std::vector<v1::Row> of_p{claim("p", 0, 7, 110)};
  SECTION("the partition that has it back first") {
    w.load(0, second_life + 110, of_p);
    CHECK(w.holder() == "p");
    w.load(1, second_life + 104, {});
    CHECK(w.holder() == "p");
  }
  SECTION("the partition that never had it first") {
    w.load(1, second_life + 104, {});
    CHECK(w.holder().empty());
    w.load(0, second_life + 110, of_p);
    CHECK(w.holder() == "p");
  }
  SECTION("within one life the newer claim holds all the same") {
    w.load(0, 112, of_p);
    CHECK(w.holder() == "q");
  }
}

TEST_CASE("a tunnel of the lost second is gone, one that was deleted in it is back") {
  world w;
  auto lost = rows::row(rows::tunnel("p", "lost", "edge", 120));
  auto all = live(110);
  all.push_back(lost);
  w.load(0, 120, all);
  w.load(0, 121, {lost});  // and web was deleted
  CHECK(w.v.read([](const tables& t) { return t.tunnel("p", "web") == nullptr; }));
  CHECK(w.v.apply(rows::hint(second_life + 110, {}), w.now, w.now) == view::applied::gap);
  CHECK(w.v.fetch_after(0) == 0);  // everything
  w.load(0, second_life + 110, live(110));
  CHECK(w.v.read([](const tables& t) { return t.tunnel("p", "lost") == nullptr; }));
  CHECK(w.v.read([](const tables& t) { return t.tunnel("p", "web") != nullptr; }));
  CHECK(w.last.rebuilt);
  CHECK(w.v.read([](const tables& t) { return t.partitions.at(0).incarnation; }) == 2);
  // A straggler of the former life, however high its number.
  auto straggler = rows::hint(4000, {lost});
  straggler.set_incarnation(1);
  CHECK(w.v.apply(straggler, w.now, w.now) == view::applied::known);
  CHECK(w.v.read([](const tables& t) { return t.tunnel("p", "lost") == nullptr; }));
}

TEST_CASE("what gateways ran in the former life is no acknowledgement in this one, and lowers nothing") {
  world w;
  w.load(0, 110, live(110));
  w.now += 5000;
  w.v.tick(w.now, w.now);
  w.ack(110, 1);
  REQUIRE(w.ready() == "True");

  w.load(0, second_life + 110, live(110));
  CHECK(w.ready() == "True");  // its routes are the same: what was known holds
  auto moved = rows::connector("p", "edge", second_life + 111);
  moved.set_addresses(0, "192.0.2.9:7000");
  auto hint = rows::hint(second_life + 111, {rows::row(moved)});
  hint.set_incarnation(2);
  REQUIRE(w.v.apply(hint, w.now, w.now) == view::applied::yes);
  CHECK(w.ready() == "False");
  w.ack(4000, 1);  // from an instance that has not noticed
  CHECK(w.ready() == "False");
  w.ack(4000, 2);  // from our own server, which is about to
  CHECK(w.ready() == "False");
  w.ack(second_life + 111, 2);
  CHECK(w.ready() == "True");
}
