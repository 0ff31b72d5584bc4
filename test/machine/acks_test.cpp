// test/machine/acks_test.cpp -- which gateways count.
#include <catch2/catch.hpp>

#include "actors/partition/acks.hpp"
#include "test/support/rows.hpp"

using namespace warren;

TEST_CASE("a gateway counts while it has caught up") {
  gateway_reports all;
  CHECK(apply_ack(all, rows::ack("gw-a", 5, "connecting"), 0, 0) == ack_effect::changed);
  CHECK_FALSE(gateways_of(all, "default").at(0).counts());
  CHECK(apply_ack(all, rows::ack("gw-a", 5), 10, 10) == ack_effect::changed);
  CHECK(gateways_of(all, "default").at(0).counts());
  CHECK(apply_ack(all, rows::ack("gw-a", 5), 20, 20) == ack_effect::refreshed);
  CHECK(apply_ack(all, rows::ack("gw-a", 6), 30, 30) == ack_effect::moved);
  CHECK(apply_ack(all, rows::ack("gw-a", 6, "stalled"), 40, 40) == ack_effect::changed);
  CHECK(gateways_of(all, "default").at(0).stalled());
  CHECK_FALSE(gateways_of(all, "default").at(0).counts());
  CHECK(gateways_of(all, "other").empty());
}

TEST_CASE("the highest stream wins, and an older incarnation says nothing") {
  gateway_reports all;
  apply_ack(all, rows::ack("gw-a", (1ll << 32) + 5, "caught_up", 7), 0, 0);
  CHECK(apply_ack(all, rows::ack("gw-a", (1ll << 32) + 9, "gone", 6), 1, 1) == ack_effect::ignored);
  CHECK(apply_ack(all, rows::ack("gw-a", 9, "gone", 8), 1, 1) == ack_effect::ignored);
  CHECK(gateways_of(all, "default").at(0).connected());
  CHECK(apply_ack(all, rows::ack("gw-a", (1ll << 32) + 2, "connecting", 8), 1, 1) == ack_effect::changed);
  CHECK_FALSE(gateways_of(all, "default").at(0).counts());
}

TEST_CASE("a report ends with its instance's lease and lives again when it is heard") {
  gateway_reports all;
  apply_ack(all, rows::ack("gw-a", 5), 1000, 0);
  CHECK(next_expiry_ms(all) == 4000);
  CHECK(expire_acks(all, 3999, 0).empty());
  CHECK(expire_acks(all, 4000, 77) == std::set<std::string>{"default"});
  CHECK_FALSE(gateways_of(all, "default").at(0).connected());
  CHECK(all.at("gw-a").since_ms == 77);
  CHECK(apply_ack(all, rows::ack("gw-a", 5), 5000, 0) == ack_effect::changed);
  CHECK(gateways_of(all, "default").at(0).counts());
}

TEST_CASE("garbage counts for nothing") {
  gateway_reports all;
  CHECK(apply_ack(all, rows::ack("", 5), 0, 0) == ack_effect::ignored);
  CHECK(apply_ack(all, rows::ack(std::string(64, 'x'), 5), 0, 0) == ack_effect::ignored);
  CHECK(apply_ack(all, rows::ack("gw-a", 5, "sleepy"), 0, 0) == ack_effect::ignored);
  CHECK(all.empty());
}

TEST_CASE("gateways are settled when all are heard, when all could have spoken, or after 5 s") {
  gateway_reports all;
  const std::set<std::string> registered{"gw-a", "gw-b"};
  CHECK_FALSE(gateways_settled(all, "default", &registered, 0, 4999));
  CHECK(gateways_settled(all, "default", &registered, 0, 5000));
  apply_ack(all, rows::ack("gw-a", 5), 100, 0);
  CHECK_FALSE(gateways_settled(all, "default", &registered, 0, 100));
  CHECK(gateways_settled(all, "default", &registered, 0, 1200));
  apply_ack(all, rows::ack("gw-b", 5), 200, 0);
  CHECK(gateways_settled(all, "default", &registered, 0, 200));

  gateway_acks acks{0};
  acks.apply(rows::ack("gw-a", 5), 100, 0);
  CHECK_FALSE(acks.of_class("default", 100).settled());
  CHECK(acks.next_deadline_ms(100) == 1200);
  CHECK(acks.of_class("default", 1200).settled());

  gateway_acks informed{0};
  informed.apply(rows::ack("gw-a", 5), 100, 0);
  CHECK_FALSE(informed.of_class("default", 100, &registered).settled());
  const std::set<std::string> only{"gw-a"};
  CHECK(informed.of_class("default", 100, &only).settled());
}
