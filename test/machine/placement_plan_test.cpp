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
  const auto p = next(1, {{1, true}, {2, false}, {3, true}}, all, 8);
  CHECK(p.take == std::vector<partition_id>{0, 1});
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
  CHECK(next(1, {{1, true, false}, {2, true, false}}, partitions(2, 1), 8).release.size() == 1);  // mere balance
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
