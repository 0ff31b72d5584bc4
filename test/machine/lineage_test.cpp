// test/machine/lineage_test.cpp -- which life of the database it is, as a table: what it says, what is remembered.
#include <catch2/catch.hpp>

#include "services/store/lineage.hpp"

using namespace warren;
using what = life_verdict::what;

namespace {

struct row {
  const char* name;
  database_life now;
  remembered_life memory;
  what is;
  std::int64_t incarnation;
};

database_life life(std::optional<std::int64_t> recorded_id, std::optional<std::int64_t> id, std::optional<int> recorded,
                   int timeline, std::int64_t incarnation, revision_t revision = 10) {
  return {recorded_id, id, recorded, timeline, incarnation, {{0, revision}, {1, 5}}};
}
remembered_life memory(std::int64_t incarnation, std::optional<std::int64_t> id, int timeline, revision_t revision = 10) {
  return {incarnation, id, timeline, {{0, revision}}};
}
const remembered_life nothing;

}  // namespace

TEST_CASE("a database that went back in time is another one") {
  const std::vector<row> table{
      {"never looked at", life({}, 7, {}, 1, 1), nothing, what::first, 1},
      {"its identifier may not be read, then it may", life({}, 7, 1, 1, 1), nothing, what::first, 1},
      {"its identifier may not be read any more", life(7, {}, 1, 1, 1), memory(1, 7, 1), what::same, 1},
      {"as it was", life(7, 7, 1, 1, 1), memory(1, 7, 1), what::same, 1},
      {"it has moved on", life(7, 7, 1, 1, 1, 99), memory(1, 7, 1), what::same, 1},
      {"a standby was promoted", life(7, 7, 1, 2, 1), nothing, what::another, 2},
      {"a standby was promoted, we were there", life(7, 7, 1, 2, 1), memory(1, 7, 1), what::another, 2},
      {"somebody else has seen to it", life(7, 7, 2, 2, 2, 4), memory(1, 7, 1), what::same, 2},
      {"restored into another cluster", life(7, 8, 1, 1, 1), nothing, what::another, 2},
      {"restored twice, to the same timeline: the number is not used again", life(7, 7, 1, 2, 1), memory(2, 7, 2),
       what::another, 3},
      {"the same for another cluster, seen to by somebody who does not remember", life(8, 8, 1, 1, 2), memory(2, 7, 2),
       what::another, 3},
      {"an older copy in place: lower revisions", life(7, 7, 1, 1, 1, 9), memory(1, 7, 1, 10), what::another, 2},
      {"an older copy in place: a partition is missing", {7, 7, 1, 1, 1, {{1, 5}}}, memory(1, 7, 1, 10), what::another, 2},
      {"an older copy in place: from before the last failover", life(7, 7, 2, 2, 1), memory(2, 7, 2), what::another, 3},
      {"an older copy in place, nobody remembers", life(7, 7, 1, 1, 1, 2), nothing, what::same, 1},
      {"an operator says that it was restored", life(7, 7, 0, 1, 1), nothing, what::another, 2},
      {"a former primary that still runs", life(7, 7, 1, 1, 1, 99), memory(2, 7, 2), what::former, 1},
  };
  for (const auto& r : table) {
    INFO(r.name);
    const auto v = judge_life(r.now, r.memory);
    CHECK(v.is == r.is);
    CHECK(v.incarnation == r.incarnation);
  }
}

TEST_CASE("what is remembered is of the newest life only") {
  lineage l;
  CHECK(l.incarnation() == 0);
  l.settled(1, 7, 1);
  l.revision_seen(1, 3, 10);
  l.revision_seen(1, 3, 8);
  CHECK(l.look().revisions.at(3) == 10);
  CHECK(l.repeats(1, 3, 10));
  CHECK_FALSE(l.repeats(1, 3, 11));
  CHECK_FALSE(l.repeats(1, 4, 1));

  l.incarnation_seen(2);  // somebody was told: connections of the first are over, nothing of the second is known
  CHECK(l.incarnation() == 2);
  CHECK(l.look().incarnation == 1);
  l.settled(1, 7, 1);  // one that was on its way
  CHECK(l.incarnation() == 2);

  l.settled(2, 7, 2);
  CHECK(l.look().revisions.empty());
  l.revision_seen(1, 3, 99);
  CHECK(l.look().revisions.empty());
  CHECK_FALSE(l.repeats(2, 3, 10));
}
