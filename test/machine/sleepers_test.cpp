// test/machine/sleepers_test.cpp -- what waits for connectors that are asleep: in order, and bounded.
#include <catch2/catch.hpp>

#include "actors/partition/sleepers.hpp"

using namespace warren;

namespace {

using sleepers = partition::sleepers<int>;
sleepers::key named(std::size_t n) { return {"acme", "c" + std::to_string(n)}; }

}  // namespace

TEST_CASE("what is said to a sleeping connector is kept in order until its row is read, and the row is read once") {
  sleepers s;
  CHECK(s.wait(named(1), 10));
  CHECK(s.next() == std::vector{named(1)});
  CHECK(s.wait(named(1), 11));
  CHECK(s.wait(named(2), 20));
  CHECK(s.next() == std::vector{named(2)});
  CHECK(s.next().empty());
  CHECK(s.read(named(1)) == std::vector{10, 11});
  CHECK(s.read(named(2)) == std::vector{20});
  CHECK(s.size() == 0);
  CHECK(s.wait(named(1), 12));  // it may fall asleep again
  CHECK(s.next() == std::vector{named(1)});
  CHECK(s.read(named(1)) == std::vector{12});
}

TEST_CASE("no more than so many rows are read at a time, and the others follow in their turn") {
  sleepers s;
  constexpr auto more = limits::agent_wakes_at_a_time + 3;
  for (std::size_t n = 0; n < more; ++n) CHECK(s.wait(named(n), static_cast<int>(n)));
  const auto first = s.next();
  REQUIRE(first.size() == limits::agent_wakes_at_a_time);
  CHECK(first.front() == named(0));
  CHECK(s.next().empty());
  CHECK(s.read(first[5]) == std::vector{5});
  CHECK(s.next() == std::vector{named(limits::agent_wakes_at_a_time)});
  CHECK(s.next().empty());
}

TEST_CASE("whoever finds no room is told so, and what waits already is not pushed out") {
  sleepers s;
  for (std::size_t n = 0; n < limits::agent_wake_messages_max; ++n) CHECK(s.wait(named(0), static_cast<int>(n)));
  CHECK_FALSE(s.wait(named(0), 99));
  for (std::size_t n = 1; n < limits::agent_wakes_max; ++n) CHECK(s.wait(named(n), 1));
  CHECK_FALSE(s.wait(named(limits::agent_wakes_max), 1));
  CHECK(s.size() == limits::agent_wakes_max);
  REQUIRE(s.next().front() == named(0));
  CHECK(s.read(named(0)).size() == limits::agent_wake_messages_max);
  CHECK(s.wait(named(limits::agent_wakes_max), 1));
}
