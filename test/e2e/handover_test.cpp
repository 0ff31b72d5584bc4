// test/e2e/handover_test.cpp -- instances that leave and come in order, under load: nobody notices.
#include "test/e2e/load.hpp"

using namespace warren::e2e;
using warren::stack::poll_until;
using whole = warren::stack::stack;

TEST_CASE("an instance is stopped under load, and nobody notices") {
  WARREN_NEEDS_SERVERS();
  whole s{several(3)};
  REQUIRE(s.await_spread(everybody(s), patience));
  load l{s};
  auto& leaves = l.owner("p0");
  const auto& stays = *others(s, leaves).front();
  s.to_xds().lead_to({std::to_string(leaves.xds_port()), std::to_string(stays.xds_port())}, true);  // the gateway is at the one that goes
  l.write_by(stays);
  REQUIRE(l.await_writes());

  const auto ended = leaves.stop();
  CHECK(ended.code == 0);
  REQUIRE(s.await_spread(others(s, leaves), patience));
  CHECK(s.id_of(leaves) == 0);
  REQUIRE(l.await_writes());
  CHECK(l.noticed_by_anybody() == "");
}

TEST_CASE("all instances are restarted one after the other under load, and nobody notices") {
  WARREN_NEEDS_SERVERS();
  whole s{several(3)};
  REQUIRE(s.await_spread(everybody(s), patience));
  load l{s};
  for (auto* each : {&s.at(2), &s.at(1), &s.at(0)}) {
    INFO(each->name());
    l.write_by(*others(s, *each).front());
    REQUIRE(l.await_writes());
    CHECK(each->stop().code == 0);
    each->start();
    REQUIRE(s.await_spread(everybody(s), patience));
  }
  REQUIRE(l.await_writes());
  CHECK(l.noticed_by_anybody() == "");
}

TEST_CASE("an instance that is drained holds nothing, takes nothing, and stays") {
  WARREN_NEEDS_SERVERS();
  whole s{several(2)};
  REQUIRE(s.await_spread(everybody(s), patience));
  load l{s};
  auto& drained = l.owner("p0");
  l.write_by(*others(s, drained).front());
  drained.running_process().signal(SIGUSR1);
  REQUIRE(s.await_spread(others(s, drained), patience));
  CHECK(poll_until([&] { return drained.readyz().dump().find("draining") != std::string::npos; }, patience));
  CHECK(drained.running());
  CHECK(s.sql("SELECT draining FROM instance WHERE name = '" + drained.name() + "'") == "t\n");
  REQUIRE(l.await_writes());
  CHECK(drained.stop().code == 0);
  CHECK(l.noticed_by_anybody() == "");

  drained.start();  // a new start is a new instance
  CHECK(s.await_spread(everybody(s), patience));
}
