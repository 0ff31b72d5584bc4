// test/machine/placement_peers_test.cpp -- whom an instance has the database judge, and whom it believes.
#include <catch2/catch.hpp>

#include "actors/core/limits.hpp"
#include "actors/placement/peers.hpp"

using namespace warren;
using namespace warren::placement;

namespace {

using ids = std::vector<instance_id>;
const std::vector<member> three{{1, true}, {2, true}, {3, true}};

struct world {
  peers p{1, 3s};
  std::int64_t now = 1'000'000;
  world() {
    p.bus(false, now - 10'000);
    p.bus(true, now - 5'000);
    p.seen(three, now);
  }
  void all_say(std::initializer_list<instance_id> who) {
    for (auto id : who) p.heard(id, now);
  }
};

}  // namespace

TEST_CASE("a longer lease asks for fewer words, and gives silence longer") {
  CHECK(pulse_of(200ms) == 100ms);
  CHECK(pulse_of(3s) == 100ms);
  CHECK(pulse_of(60s) == 2s);
  peers calm{1, 60s};
  calm.seen(three, 1'000'000);
  CHECK(calm.due(1'006'000).empty());
  CHECK(calm.due(1'006'001) == ids{2, 3});
}

TEST_CASE("whoever is heard is not suspected; whoever is silent is, and asked about again and again") {
  world w;
  for (int i = 0; i < 10; ++i, w.now += 100) {
    w.all_say({2, 3});
    CHECK(w.p.due(w.now).empty());
  }
  CHECK_FALSE(w.p.next_due_ms());
  for (int i = 0; i < 4; ++i, w.now += 100) {
    w.all_say({3});
    if (w.p.due(w.now) == ids{2}) break;
  }
  std::vector<std::int64_t> waits;
  for (int i = 0; i < 7; ++i) {
    const auto next = w.p.next_due_ms();
    REQUIRE(next);
    waits.push_back(*next - w.now);
    CHECK(w.p.due(*next - 1).empty());
    w.now = *next;
    w.all_say({3});
    CHECK(w.p.due(w.now) == ids{2});
  }
  CHECK(waits == std::vector<std::int64_t>{20, 40, 80, 160, 200, 200, 200});

  SECTION("until it is heard again") {
    w.all_say({2});
    w.now += 200;
    CHECK(w.p.due(w.now).empty());
  }
  SECTION("until the table says that it is dead") {
    w.p.seen({{1, true}, {2, false}, {3, true}}, w.now);
    w.now += 200;
    w.all_say({3});
    CHECK(w.p.due(w.now).empty());
    CHECK_FALSE(w.p.next_due_ms() > w.now + 10'000);
  }
  SECTION("until it is gone from the table") {
    w.p.seen({{1, true}, {3, true}}, w.now);
    CHECK(w.p.due(w.now + 200).empty());
  }
}

TEST_CASE("an ended connection is judged at once, also when its last words arrive after it") {
  world w;
  w.all_say({2, 3});
  w.p.disconnected(2, w.now);
  CHECK(w.p.due(w.now) == ids{2});
  w.p.heard(2, w.now + 1);
  CHECK(w.p.due(w.now + 20) == ids{2});
  w.p.disconnected(2, w.now + 21);  // its second connection: the same suspicion
  CHECK(w.p.due(w.now + 21).empty());
  CHECK(w.p.due(w.now + 60) == ids{2});
  w.now += 330;
  w.all_say({2, 3});
  CHECK(w.p.due(w.now).empty());
  w.p.disconnected(9, w.now);  // not in the table
  CHECK(w.p.due(w.now).empty());
}

TEST_CASE("silence means nothing while we, or they, do not hear the bus") {
  world w;
  w.p.bus(false, w.now);
  w.now += 10'000;
  CHECK(w.p.due(w.now).empty());
  w.p.bus(true, w.now);
  CHECK(w.p.due(w.now + 300).empty());  // they need a moment to speak
  CHECK(w.p.due(w.now + 301) == ids{2, 3});

  world other;
  other.p.seen({{1, true}, {2, true, false}, {3, true}}, other.now);
  other.now += 1000;
  other.all_say({3});
  CHECK(other.p.due(other.now).empty());
  other.p.seen(three, other.now);  // it says that it hears: from now on it has to be heard
  CHECK(other.p.due(other.now + 300).empty());
  other.now += 301;
  other.all_say({3});
  CHECK(other.p.due(other.now) == ids{2});
}

TEST_CASE("that somebody is deaf is known from the table, as long as he lives and we hear ourselves") {
  world w;
  CHECK_FALSE(w.p.somebody_is_deaf());
  w.p.seen({{1, true}, {2, true, false}, {3, true}}, w.now);
  CHECK(w.p.somebody_is_deaf());
  w.p.seen({{1, true}, {2, false, false}, {3, true}}, w.now);
  CHECK_FALSE(w.p.somebody_is_deaf());
  w.p.seen({{1, true}, {2, true, false}, {3, true}}, w.now);
  w.p.bus(false, w.now);
  CHECK_FALSE(w.p.somebody_is_deaf());
}

TEST_CASE("a database that was away for us was away for others: their ended leases are not believed for a while") {
  world w;
  const std::vector<member> ended{{1, true}, {2, false}, {3, true}};
  CHECK_FALSE(w.p.believed(ended, w.now)[1].alive);
  w.p.database_was_away(w.now);
  const auto b = w.p.believed(ended, w.now + 2999);
  CHECK(b[1].alive);
  CHECK(b[1].draining);  // nothing is given to it either
  CHECK_FALSE(b[2].draining);
  w.p.disconnected(3, w.now);
  CHECK(w.p.due(w.now).empty());  // its lock may be free for the same reason
  CHECK_FALSE(w.p.believed(ended, w.now + 3000)[1].alive);
}

TEST_CASE("a deaf instance gives only after others have said for long enough that they hear") {
  world w;
  CHECK_FALSE(w.p.gives_as_deaf(w.now));
  w.p.bus(false, w.now);
  CHECK_FALSE(w.p.gives_as_deaf(w.now + 1999));
  CHECK(w.p.gives_as_deaf(w.now + 2000));

  SECTION("and sends its gateways away as long as the table says that others hear") {
    CHECK_FALSE(w.p.sends_gateways_away(w.now + 2000));  // nobody has looked at it since
    w.p.seen(three, w.now + 1000);
    CHECK_FALSE(w.p.sends_gateways_away(w.now + 1999));
    CHECK(w.p.sends_gateways_away(w.now + 2500));
    CHECK_FALSE(w.p.sends_gateways_away(w.now + 2501));
    w.p.seen(three, w.now + 3000);
    CHECK(w.p.sends_gateways_away(w.now + 3000));
    w.p.seen({{1, true, false}, {2, true, false}, {3, true, false}}, w.now + 3100);
    CHECK_FALSE(w.p.sends_gateways_away(w.now + 3100));
  }
  SECTION("not when they turn out to be deaf, too") {
    w.p.seen({{1, true, false}, {2, true, false}, {3, true, false}}, w.now + 1500);
    CHECK_FALSE(w.p.gives_as_deaf(w.now + 60'000));
    SECTION("and one of them hears again a moment before us") {
      w.p.seen({{1, true, false}, {2, true, true}, {3, true, false}}, w.now + 60'000);
      CHECK_FALSE(w.p.gives_as_deaf(w.now + 61'999));
      w.p.bus(true, w.now + 61'000);
      CHECK_FALSE(w.p.gives_as_deaf(w.now + 70'000));
    }
  }
  SECTION("not to somebody dead or draining") {
    w.p.seen({{1, true, false}, {2, false, true}, {3, true, true, true}}, w.now + 100);
    CHECK_FALSE(w.p.gives_as_deaf(w.now + 60'000));
  }
}
