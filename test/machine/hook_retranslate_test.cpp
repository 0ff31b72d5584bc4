// test/machine/hook_retranslate_test.cpp -- when Envoy Gateway is asked to translate again: once per burst, naming what
// changed, and not for what it does not route.
#include <catch2/catch.hpp>

#include "services/hook/retranslate.hpp"
#include "test/support/hook.hpp"

using namespace warren;
using namespace warren::test;
using hook::retranslation;
namespace busv1 = warren::bus::v1;

namespace {

const hook::tunnel_key a{"p", "a"}, b{"p", "b"}, unrouted{"p", "x"};
const auto on = truth({online_rule()}), off = truth({offline_rule()});

/// One fleet runs a and b, online; what was said at the start is over.
retranslation called() {
  retranslation r{"one"};
  r.started({{a, on}, {b, on}}, 0);
  r.answered("eg", {{a, on}, {b, on}}, 0);
  return r;
}
std::vector<std::string> names(const busv1::Retranslate& s) {
  std::vector<std::string> out;
  for (const auto& t : s.tunnels()) out.push_back(t.name() + " " + t.state());
  return out;
}
using list = std::vector<std::string>;

}  // namespace

TEST_CASE("a burst is told once, when it is over, naming what changed") {
  auto r = called();
  CHECK_FALSE(r.wake_at_ms());
  r.noted(a, off, 1'000);
  r.noted(b, off, 1'100);
  CHECK_FALSE(r.take(1'200));
  REQUIRE(r.wake_at_ms());
  const auto said = r.take(*r.wake_at_ms());
  REQUIRE(said);
  CHECK(said->reason() == "changed");
  CHECK(said->instance() == "one");
  CHECK(names(*said) == list{"a offline", "b offline"});
  CHECK_FALSE(r.take(9'999));
  r.noted(a, off, 10'000);  // the same once more
  CHECK_FALSE(r.wake_at_ms());
}

TEST_CASE("a burst that does not end is told all the same") {
  auto r = called();
  std::optional<busv1::Retranslate> said;
  for (std::int64_t now = 0; now < 3'000 && !said; now += 50) {
    r.noted(a, now % 100 == 0 ? off : truth({online_rule(0), offline_rule(1)}), now);
    said = r.take(now);
    if (said) CHECK(now <= 1'050);
  }
  CHECK(said);
}

TEST_CASE("what comes back before it is told needs no telling, and what was told and comes back does") {
  auto r = called();
  r.noted(a, off, 1'000);
  r.noted(a, on, 1'050);
  CHECK_FALSE(r.take(5'000));
  r.noted(a, off, 6'000);
  REQUIRE(r.take(7'000));
  r.noted(a, on, 8'000);  // the automation may have been quick: nobody knows whether it was answered in between
  const auto again = r.take(9'000);
  REQUIRE(again);
  CHECK(names(*again) == list{"a online"});
}

TEST_CASE("an answer settles it; a change that crossed the answer does not") {
  auto r = called();
  r.noted(a, off, 1'000);
  r.answered("eg", {{a, off}, {b, on}}, 1'010);
  r.noted(a, off, 1'010);
  CHECK_FALSE(r.take(5'000));
  r.noted(a, on, 6'000);
  r.answered("eg", {{a, off}, {b, on}}, 6'010);  // made of what was true before
  r.noted(a, on, 6'010);
  CHECK(r.take(7'000));
}

TEST_CASE("a tunnel that no fleet routes is nobody's news; one that is named before it exists is") {
  auto r = called();
  r.noted(unrouted, on, 1'000);
  CHECK_FALSE(r.wake_at_ms());
  r.answered("eg", {{a, on}, {b, on}, {unrouted, nullptr}}, 2'000);
  r.noted(unrouted, off, 3'000);
  const auto said = r.take(4'000);
  REQUIRE(said);
  CHECK(names(*said) == list{"x offline"});
  r.answered("eg", {{unrouted, off}}, 5'000);
  r.noted(unrouted, nullptr, 6'000);
  const auto gone = r.take(7'000);
  REQUIRE(gone);
  CHECK(names(*gone) == list{"x gone"});
}

TEST_CASE("each fleet is answered for itself") {
  auto r = called();
  r.answered("other", {{a, on}}, 0);
  r.noted(a, off, 1'000);
  r.answered("eg", {{a, off}, {b, on}}, 1'010);
  r.noted(a, off, 1'010);
  CHECK(r.take(2'000));  // the other one still runs what was
}

TEST_CASE("a failed call is told, and more and more slowly while calls go on failing") {
  auto r = called();
  std::int64_t now = 1'000, last_wait = 0;
  for (int i = 0; i < 12; ++i) {
    r.failed(now);
    REQUIRE(r.wake_at_ms());
    const auto wait = *r.wake_at_ms() - now;
    CHECK(wait >= last_wait);
    CHECK(wait <= 60'000);
    last_wait = wait;
    now += wait;
    const auto said = r.take(now);
    REQUIRE(said);
    CHECK(said->reason() == "call-failed");
  }
  CHECK(last_wait == 60'000);
  r.answered("eg", {{a, on}, {b, on}}, now);
  r.failed(now);
  CHECK(*r.wake_at_ms() - now < 1'000);
  r.answered("eg", {{a, on}, {b, on}}, now);  // it came again by itself
  CHECK_FALSE(r.wake_at_ms());
}

TEST_CASE("before it has been called, an instance speaks unless one that has been called is there") {
  retranslation r{"two"};
  r.started({{a, on}}, 0);
  const auto started = r.take(1'000);
  REQUIRE(started);
  CHECK(started->reason() == "started");
  r.noted(b, on, 2'000);  // new to everybody
  REQUIRE(r.take(3'000));

  busv1::RetranslatePulse pulse;
  pulse.set_instance("two");
  r.heard(pulse, 3'900);  // our own echo
  pulse.set_instance("one");
  r.heard(pulse, 4'000);
  r.noted(a, off, 4'100);
  CHECK_FALSE(r.take(5'000));
  r.heard(pulse, 5'000);
  CHECK_FALSE(r.take(8'000));
  CHECK(r.take(9'000));  // one is gone, and nobody has told
}

TEST_CASE("what another instance has told is not told again") {
  auto r = called();
  r.noted(a, off, 1'000);
  r.noted(b, off, 1'000);
  busv1::Retranslate other;
  other.set_instance("two");
  auto* t = other.add_tunnels();
  t->set_namespace_("p");
  t->set_name("a");
  t->set_state("offline");
  r.heard(other);
  const auto said = r.take(2'000);
  REQUIRE(said);
  CHECK(names(*said) == list{"b offline"});
}

TEST_CASE("of many only some are named") {
  retranslation r{"one"};
  hook::answers all;
  for (int i = 0; i < 250; ++i) all[{"p", std::to_string(i)}] = on;
  r.answered("eg", all, 0);
  for (const auto& [key, unused] : all) r.noted(key, off, 1'000);
  const auto said = r.take(2'000);
  REQUIRE(said);
  CHECK(said->tunnels_size() == 100);
  CHECK(said->more() == 150);
}
