// test/machine/hook_handover_test.cpp -- how far a fleet behind the extension hook is, as a gateway: it runs what it was
// last answered, and nothing that it was not asked about.
#include <catch2/catch.hpp>

#include "services/hook/handover.hpp"
#include "test/support/hook.hpp"

using namespace warren;
using namespace warren::test;
using hook::carried_tunnel;
using hook::handover;

namespace {

const hook::tunnel_key a{"p", "a"}, b{"p", "b"}, elsewhere{"q", "c"};
const auto on = truth({online_rule()}), off = truth({offline_rule()});

carried_tunnel tunnel(const std::string& uid, hook::truth_ptr is, revision_t version = 1, partition_id partition = 0) {
  return {uid, partition, version, std::move(is)};
}

/// a and b are online, and the fleet was answered so at revision 10.
handover answered() {
  handover h;
  h.noted(a, tunnel("uid-a", on), 0);
  h.noted(b, tunnel("uid-b", on), 0);
  h.noted(elsewhere, tunnel("uid-c", off, 1, 1), 0);
  h.seen(0, 10);
  h.seen(1, 20);
  h.answered({{a, on}, {b, on}, {elsewhere, off}}, {{0, 10}, {1, 20}}, 0);
  return h;
}
std::vector<std::string> uids(const std::vector<hook::corev1::Refusal>& all) {
  std::vector<std::string> out;
  for (const auto& r : all) out.push_back(r.tunnel_uid());
  return out;
}
using list = std::vector<std::string>;

}  // namespace

TEST_CASE("a fleet is the gateway of its two names, if one can be called so") {
  CHECK(hook::gateway_of("envoy-gateway-system/eg") == "envoy-gateway-system-eg");
  for (const auto* none : {"", "eg", "A/b", "a/b.c", "a/-"}) CHECK(hook::gateway_of(none).empty());
  CHECK(hook::gateway_of(std::string(40, 'a') + "/" + std::string(40, 'b')).empty());
}

TEST_CASE("what is as it was answered is acknowledged, however far the revisions move") {
  auto h = answered();
  CHECK(h.acknowledged(0) == 10);
  h.seen(0, 14);
  CHECK(h.acknowledged(0) == 14);
  h.noted(a, tunnel("uid-a", on, 15), 1);  // its row, and nothing that a visitor meets
  h.seen(0, 15);
  CHECK(h.acknowledged(0) == 15);
  CHECK(h.pending(0).empty());
  CHECK_FALSE(h.stalled(1'000'000));
}

TEST_CASE("what is not as it was answered is not acknowledged until it is answered anew, or as it was") {
  auto h = answered();
  h.noted(a, tunnel("uid-a", off), 100);
  h.seen(0, 11);
  CHECK(h.acknowledged(0) == 10);
  CHECK(h.acknowledged(1) == 20);
  h.noted(a, tunnel("uid-a", off, 12), 150);  // still not
  h.seen(0, 12);
  CHECK(h.acknowledged(0) == 10);
  h.noted(b, tunnel("uid-b", off), 200);
  h.seen(0, 12);
  CHECK(h.acknowledged(0) == 10);
  SECTION("answered") {
    h.answered({{a, off}, {b, off}, {elsewhere, off}}, {{0, 12}, {1, 20}}, 300);
    CHECK(h.acknowledged(0) == 12);
  }
  SECTION("as it was") {
    h.noted(a, tunnel("uid-a", on), 300);
    h.seen(0, 13);
    CHECK(h.acknowledged(0) == 10);  // b is not
    h.noted(b, tunnel("uid-b", on), 300);
    h.seen(0, 14);
    CHECK(h.acknowledged(0) == 14);
  }
  SECTION("gone: nobody asks about it") {
    h.noted(a, std::nullopt, 300);
    h.noted(b, std::nullopt, 300);
    h.seen(0, 13);
    CHECK(h.acknowledged(0) == 13);
  }
  SECTION("answered what had been true before") {
    h.answered({{a, on}, {b, off}, {elsewhere, off}}, {{0, 11}, {1, 20}}, 300);
    CHECK(h.acknowledged(0) == 11);
  }
}

TEST_CASE("a tunnel that it was not asked about is named, and holds nobody back") {
  auto h = answered();
  const hook::tunnel_key fresh{"p", "fresh"};
  h.noted(fresh, tunnel("uid-fresh", on, 11), 100);
  h.seen(0, 11);
  CHECK(h.acknowledged(0) == 11);
  REQUIRE(uids(h.pending(0)) == list{"uid-fresh"});
  CHECK(h.pending(1).empty());
  const auto one = h.pending(0).front();
  CHECK(one.pending());
  CHECK(one.revision() == 11);
  CHECK(one.message().find("p/fresh") != std::string::npos);
  CHECK_FALSE(h.stalled(1'000'000));
  SECTION("asked") {
    h.answered({{a, on}, {b, on}, {elsewhere, off}, {fresh, on}}, {{0, 11}, {1, 20}}, 200);
    CHECK(h.pending(0).empty());
    CHECK(h.acknowledged(0) == 11);
  }
  SECTION("asked before it was there: it is not what was answered") {
    h.answered({{a, on}, {b, on}, {elsewhere, off}, {fresh, nullptr}}, {{0, 10}, {1, 20}}, 200);
    CHECK(h.pending(0).empty());
    CHECK(h.acknowledged(0) == 10);
  }
  SECTION("gone, or of another class") {
    h.noted(fresh, std::nullopt, 200);
    CHECK(h.pending(0).empty());
  }
}

TEST_CASE("a fleet that is not answered anew in time has stalled, and has caught up when it is") {
  auto h = answered();
  h.noted(a, tunnel("uid-a", off), 1'000);
  h.noted(a, tunnel("uid-a", off, 12), 5'000);  // the same once more: since it began
  CHECK_FALSE(h.stalled(5'999));
  CHECK(h.stalled(6'000));
  h.answered({{a, off}, {b, on}, {elsewhere, off}}, {{0, 12}, {1, 20}}, 7'000);
  CHECK_FALSE(h.stalled(100'000));
}

TEST_CASE("each partition for which something may have changed is told once") {
  auto h = answered();
  CHECK(h.take_touched() == std::set<partition_id>{0, 1});
  CHECK(h.take_touched().empty());
  h.noted(elsewhere, tunnel("uid-c", on, 21, 1), 0);
  CHECK(h.take_touched() == std::set<partition_id>{1});
  h.seen(0, 10);
  CHECK(h.take_touched().empty());
  h.seen(0, 11);
  CHECK(h.take_touched() == std::set<partition_id>{0});
}
