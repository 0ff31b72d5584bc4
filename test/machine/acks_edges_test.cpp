// test/machine/acks_edges_test.cpp -- gateways' reports to the millisecond: when they end, when they are forgotten, when a
// class has been heard, and what of a report is news.
#include <catch2/catch.hpp>

#include "actors/partition/acks.hpp"
#include "test/support/rows.hpp"

using namespace warren;

namespace {

constexpr std::int64_t lease = 3000, hour = 3'600'000, round_of_reports = 1100, patience = 5000;

busv1::GatewayAck refusing(busv1::GatewayAck a, const std::string& uid, const std::string& connector = "", std::int64_t revision = 5,
                           const std::string& message = "no") {
  auto& r = *a.add_refused();
  r.set_tunnel_uid(uid);
  r.set_connector(connector);
  r.set_revision(revision);
  r.set_message(message);
  return a;
}

}  // namespace

TEST_CASE("a report ends at its lease, is gone then, and is forgotten an hour after it was last heard") {
  gateway_reports all;
  apply_ack(all, rows::ack("gw-a", 5), 100, 7000);
  CHECK(all.at("gw-a").since_ms == 7000);
  CHECK(next_expiry_ms(all) == 100 + lease);
  CHECK(expire_acks(all, 100 + lease - 1, 8000).empty());
  CHECK(gateways_of(all, "default").at(0).connected());
  CHECK(expire_acks(all, 100 + lease, 9000) == std::set<std::string>{"default"});
  CHECK_FALSE(gateways_of(all, "default").at(0).connected());
  CHECK_FALSE(gateways_of(all, "default").at(0).counts());
  CHECK(gateways_of(all, "default").at(0).acknowledged() == 5);
  CHECK(all.at("gw-a").since_ms == 9000);
  CHECK(next_expiry_ms(all) == 100 + hour);
  CHECK(expire_acks(all, 100 + lease + 1, 9001).empty());
  CHECK(all.at("gw-a").since_ms == 9000);
  expire_acks(all, 100 + hour - 1, 10'000);
  CHECK(all.size() == 1);
  expire_acks(all, 100 + hour, 10'000);
  CHECK(all.empty());
  CHECK(next_expiry_ms(all) == 0);
}

TEST_CASE("the earliest expiry is the next one, and every gateway that expires is expired at once") {
  gateway_reports all;
  apply_ack(all, rows::ack("gw-c", 5), 500, 0);
  apply_ack(all, rows::ack("gw-a", 5), 300, 0);
  auto other = rows::ack("gw-b", 5);
  other.set_class_("edge");
  apply_ack(all, other, 400, 0);
  CHECK(next_expiry_ms(all) == 300 + lease);
  CHECK(expire_acks(all, 400 + lease, 1) == std::set<std::string>{"default", "edge"});
  CHECK(gateways_of(all, "default").at(1).connected());
  CHECK(gateways_of(all, "default").at(0).gateway() == "gw-a");
  CHECK(gateways_of(all, "edge").size() == 1);
}

TEST_CASE("what of a report is news") {
  gateway_reports all;
  const auto effect = [&](const busv1::GatewayAck& a) { return apply_ack(all, a, 10, 20); };
  effect(rows::ack("gw-a", 5));
  CHECK(effect(rows::ack("gw-a", 5)) == ack_effect::refreshed);
  CHECK(effect(rows::ack("gw-a", 6)) == ack_effect::moved);
  CHECK(all.at("gw-a").report.acknowledged() == 6);
  CHECK(effect(rows::ack("gw-a", 4)) == ack_effect::changed);  // it has lost something
  CHECK(all.at("gw-a").report.acknowledged() == 4);
  auto a = rows::ack("gw-a", 4);
  a.set_class_("edge");
  CHECK(effect(a) == ack_effect::changed);
  CHECK(gateways_of(all, "edge").size() == 1);
  a.set_stream(a.stream() + 1);
  CHECK(effect(a) == ack_effect::changed);
  a.set_incarnation(a.incarnation() + 1);
  CHECK(effect(a) == ack_effect::changed);
  a.set_stream(0);
  CHECK(effect(a) == ack_effect::ignored);
  a.set_incarnation(a.incarnation() + 1);
  CHECK(effect(a) == ack_effect::changed);  // a stream of another incarnation is not compared
  a.set_instance(a.instance() + 1);
  CHECK(effect(a) == ack_effect::refreshed);
  CHECK(all.at("gw-a").report.instance() == a.instance());
  for (const auto& refused : {refusing(a, "t1"), refusing(a, "t2"), refusing(a, "t2", "acme/c"), refusing(a, "t2", "acme/c", 6),
                              refusing(a, "t2", "acme/c", 6, "why"), refusing(refusing(a, "t2", "acme/c", 6, "why"), "t3"), a}) {
    CHECK(effect(refused) == ack_effect::changed);
    CHECK(effect(refused) == ack_effect::refreshed);
    CHECK(gateways_of(all, "edge").at(0).refused_size() == refused.refused_size());
  }
}

TEST_CASE("since when it is as it is moves with the state alone") {
  gateway_reports all;
  apply_ack(all, rows::ack("gw-a", 5, "connecting"), 0, 100);
  CHECK(all.at("gw-a").first_heard_at_ms == 0);
  apply_ack(all, rows::ack("gw-a", 6, "connecting"), 10, 200);
  CHECK(all.at("gw-a").since_ms == 100);
  apply_ack(all, rows::ack("gw-a", 6), 20, 300);
  CHECK(all.at("gw-a").since_ms == 300);
  CHECK(all.at("gw-a").first_heard_at_ms == 20);
  apply_ack(all, rows::ack("gw-a", 6), 30, 400);
  CHECK(all.at("gw-a").since_ms == 300);
  CHECK(all.at("gw-a").first_heard_at_ms == 20);
  CHECK(all.at("gw-a").received_at_ms == 30);
}

TEST_CASE("names at their longest, and one more") {
  gateway_reports all;
  auto a = rows::ack(std::string(63, 'g'), 5);
  a.set_class_(std::string(63, 'c'));
  CHECK(apply_ack(all, a, 0, 0) == ack_effect::changed);
  a.set_class_(std::string(64, 'c'));
  CHECK(apply_ack(all, a, 0, 0) == ack_effect::ignored);
  CHECK(apply_ack(all, rows::ack(std::string(64, 'g'), 5), 0, 0) == ack_effect::ignored);
  CHECK(apply_ack(all, rows::ack("", 5), 0, 0) == ack_effect::ignored);
  CHECK(apply_ack(all, rows::ack("gw", 5, "asleep"), 0, 0) == ack_effect::ignored);
  for (const auto* state : {"connecting", "caught_up", "stalled", "gone"})
    CHECK(apply_ack(all, rows::ack("gw", 5, state), 0, 0) == ack_effect::changed);
}

TEST_CASE("a class is settled by its registered gateways, by a round of reports, or by patience, to the millisecond") {
  gateway_reports all;
  const std::set<std::string> two{"gw-a", "gw-b"}, none;
  CHECK_FALSE(gateways_settled(all, "default", &two, 1000, 1000 + patience - 1));
  CHECK(gateways_settled(all, "default", &two, 1000, 1000 + patience));
  CHECK(gateways_settled(all, "default", &none, 1000, 1000));
  CHECK_FALSE(gateways_settled(all, "default", nullptr, 1000, 1001));
  apply_ack(all, rows::ack("gw-b", 5), 1300, 0);
  apply_ack(all, rows::ack("gw-a", 5, "connecting"), 1200, 0);
  CHECK_FALSE(gateways_settled(all, "default", &two, 1000, 1300));
  CHECK_FALSE(gateways_settled(all, "default", &two, 1000, 1300 + round_of_reports - 1));
  CHECK(gateways_settled(all, "default", &two, 1000, 1300 + round_of_reports));
  CHECK(gateways_settled(all, "default", nullptr, 1000, 1300 + round_of_reports));
  CHECK_FALSE(gateways_settled(all, "edge", nullptr, 1000, 1300 + round_of_reports));
  apply_ack(all, rows::ack("gw-a", 5), 1400, 0);
  CHECK(gateways_settled(all, "default", &two, 1000, 1400));
  apply_ack(all, rows::ack("gw-x", 5), 1250, 0);  // registered nowhere: it is heard, and does not stand for another
  const std::set<std::string> three{"gw-a", "gw-b", "gw-c"};
  CHECK_FALSE(gateways_settled(all, "default", &three, 1000, 1250 + round_of_reports - 1));
  CHECK(gateways_settled(all, "default", &three, 1000, 1250 + round_of_reports));
}

TEST_CASE("once settled a class stays settled, and the next deadline is the next that can change anything") {
  gateway_acks acks{1000};
  CHECK(acks.next_deadline_ms(1000) == 1000 + patience);
  CHECK(acks.next_deadline_ms(1000 + patience) == 0);
  CHECK_FALSE(acks.of_class("default", 1100).settled());
  acks.apply(rows::ack("gw-a", 5), 1200, 0);
  CHECK(acks.next_deadline_ms(1200) == 1200 + round_of_reports);
  CHECK(acks.next_deadline_ms(1200 + round_of_reports) == 1200 + lease);
  CHECK_FALSE(acks.of_class("default", 1200 + round_of_reports - 1).settled());
  const auto now = acks.of_class("default", 1200 + round_of_reports);
  CHECK(now.settled());
  CHECK(now.gateways_size() == 1);
  CHECK(now.gateways(0).gateway() == "gw-a");
  CHECK(acks.expire(1200 + lease, 0).size() == 1);
  CHECK(acks.of_class("default", 1).settled());
  CHECK_FALSE(acks.of_class("edge", 1).settled());
}
