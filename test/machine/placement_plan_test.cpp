// test/machine/placement_plan_test.cpp -- who runs which partition.
#include <catch2/catch.hpp>

#include <map>
#include <random>

#include "actors/placement/plan.hpp"

using namespace warren;
using namespace warren::placement;

namespace {

std::vector<holding> partitions(int n, instance_id owner = 0) {
  std::vector<holding> out;
  for (int i = 0; i < n; ++i) out.push_back({i, owner});
  return out;
}

}  // namespace

TEST_CASE("one instance takes everything that is free") {
  const auto p = next(1, {{1, true}}, partitions(65), 8);
  CHECK(p.take.size() == 65);
  CHECK(p.release.empty());
}

TEST_CASE("what a dead instance holds is free, what a live one holds is not") {
  auto all = partitions(4, 2);
  all[3].owner = 3;
  const std::vector<member> members{{1, true}, {2, false}, {3, true}};
  CHECK(next(1, members, all, 8).take == std::vector<partition_id>{0, 1});
  CHECK(next(3, members, all, 8).take == std::vector<partition_id>{2});
}

TEST_CASE("survivors share what a dead one held without meeting, in whatever order they take it") {
  const std::vector<member> members{{1, true}, {2, false}, {3, true}, {4, true}};
  std::mt19937 random{3};
  for (int round = 0; round < 50; ++round) {
    std::vector<holding> all = partitions(65);
    for (int i = 0; i < 65; ++i) all[static_cast<std::size_t>(i)].owner = 1 + i % 4;
    const auto first = assign(members, all);
    for (;;) {
      CHECK(assign(members, all) == first);
      std::vector<std::pair<instance_id, partition_id>> wishes;
      for (instance_id me : {1, 3, 4})
        for (auto id : next(me, members, all, 8).take) wishes.emplace_back(me, id);
      if (wishes.empty()) break;
      const auto [who, what] = wishes[random() % wishes.size()];
      all[static_cast<std::size_t>(what)].owner = who;
    }
    for (const auto& h : all) CHECK(h.owner != 2);
  }
}

TEST_CASE("everybody agrees on who takes what a live one has to give, before and after it has given it") {
  auto all = partitions(9, 1);
  for (int i = 0; i < 3; ++i) all[static_cast<std::size_t>(i)].owner = 2;
  const std::vector<member> members{{1, true}, {2, true}, {3, true}};
  const auto p = next(1, members, all, 2);
  REQUIRE(p.release.size() == 2);
  const auto before = assign(members, all);
  for (auto id : p.release) {
    CHECK(before.at(id) == 3);
    all[static_cast<std::size_t>(id)].owner = 0;
  }
  CHECK(assign(members, all) == before);
  CHECK(next(3, members, all, 2).take == p.release);
}

TEST_CASE("a joiner is made room for, a bounded number of moves at a time") {
  const auto p = next(1, {{1, true}, {2, true}}, partitions(64, 1), 8);
  CHECK(p.release.size() == 8);
  CHECK(next(2, {{1, true}, {2, true}}, partitions(64, 1), 8) == plan{});
}

TEST_CASE("a draining instance gives all away, as long as somebody is there to take") {
  CHECK(next(1, {{1, true, true, true}, {2, true}}, partitions(3, 1), 8).release.size() == 3);
  CHECK(next(1, {{1, true, true, true}}, partitions(3, 1), 8) == plan{});
}

TEST_CASE("a deaf instance gives its partitions to one that hears; when all are deaf nobody does") {
  CHECK(next(1, {{1, true, false}, {2, true}}, partitions(3, 1), 8).release.size() == 3);
  CHECK(next(1, {{1, true, false}, {2, true, false}}, partitions(2, 1), 8) == plan{});
  CHECK(next(1, {{1, true, false}, {2, true, false}}, partitions(2), 8).take == std::vector<partition_id>{0});
  CHECK(next(1, {{1, true, false}}, partitions(3, 1), 8) == plan{});
}

TEST_CASE("from any start the plans of all converge to an even spread, and stay there") {
  std::mt19937 random{7};
  for (int seed = 0; seed < 200; ++seed) {
    const int n = 1 + static_cast<int>(random() % 6), count = 1 + static_cast<int>(random() % 70);
    std::vector<member> members;
    for (int i = 1; i <= n; ++i) members.push_back({i, true});
    auto all = partitions(count);
    for (auto& h : all) h.owner = static_cast<instance_id>(random() % static_cast<unsigned>(n + 2));
    bool moved = true;
    int rounds = 0;
    while (moved && rounds++ < 200) {
      moved = false;
      for (const auto& m : members) {
        const auto p = next(m.id, members, all, 8);
        for (auto id : p.take) all[static_cast<std::size_t>(id)].owner = m.id, moved = true;
        for (auto id : p.release) all[static_cast<std::size_t>(id)].owner = 0, moved = true;
      }
    }
    std::map<instance_id, int> held;
    for (const auto& h : all) ++held[h.owner];
    for (const auto& m : members) {
      INFO("seed " << seed << " instance " << m.id);
      CHECK(held[m.id] >= count / n);
      CHECK(held[m.id] <= count / n + 1);
    }
  }
}
