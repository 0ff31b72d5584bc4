// test/machine/connector_spec_test.cpp -- what a spec and addressing may say, and the watch on silence.
#include <catch2/catch.hpp>

#include "actors/connector/mass_silence.hpp"
#include "actors/connector/spec.hpp"
#include "actors/core/limits.hpp"

using namespace warren;

namespace {

connector::judged_addressing judge(const std::vector<std::string>& addresses, const std::string& relay = "",
                                   const std::vector<std::string>& networks = {"0.0.0.0/0", "::/0"}) {
  bus::v1::Addressing a;
  a.set_home_relay(relay);
  for (const auto& each : addresses) a.add_addresses(each);
  google::protobuf::RepeatedPtrField<std::string> allowed{networks.begin(), networks.end()};
  return connector::judge_addressing(a, allowed);
}

}  // namespace

TEST_CASE("addressing is canonical: order and spelling do not matter") {
  const auto a = judge({"10.0.0.2:80", "[2001:DB8:0::1]:443", "10.0.0.1:80", "10.0.0.2:80"}, "https://relay.example.com./");
  REQUIRE_FALSE(a.error);
  CHECK(a.addresses == std::vector<std::string>{"10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:443"});
  CHECK(a.home_relay == "https://relay.example.com./");
}

TEST_CASE("addressing that is refused, by field") {
  const auto text = GENERATE(as<std::string>{}, "example.com:80", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:+1",
                             "10.0.0.256:1", "fd00::1:80", "10.0.0.1:80\n", "10.0.0.1 :80", "127.0.0.1:80", "169.254.1.1:80",
                             "224.0.0.1:80", "0.0.0.0:80", "255.255.255.255:80", "[::]:80", "[::1]:80", "[fe80::1]:80",
                             "[ff02::1]:80", "[::ffff:127.0.0.1]:80", "");
  CAPTURE(text);
  const auto a = judge({"10.0.0.1:1", text});
  REQUIRE(a.error);
  CHECK(a.error->field == "addresses[1]");
}

TEST_CASE("special networks only where the class names them") {
  CHECK_FALSE(judge({"127.0.0.1:80"}, "", {"127.0.0.0/8"}).error);
  CHECK_FALSE(judge({"127.0.0.1:80"}, "", {"127.0.0.1/32"}).error);
  CHECK(judge({"127.0.0.2:80"}, "", {"127.0.0.1/32", "0.0.0.0/0"}).error);
  CHECK_FALSE(judge({"[::1]:80"}, "", {"::1/128"}).error);
  CHECK(judge({"10.0.0.1:80"}, "", {}).error);
  CHECK(judge({"10.0.0.1:80"}, "", {"192.168.0.0/16", "nonsense"}).error);
}

TEST_CASE("limits and relays") {
  CHECK_FALSE(judge(std::vector<std::string>(16, "10.0.0.1:80")).error);
  CHECK(judge(std::vector<std::string>(17, "10.0.0.1:80")).error->field == "addresses");
  CHECK(judge({}).error->field == "addresses");
  const std::string start = "https://r.example.com/";
  CHECK_FALSE(judge({}, "http://[2001:db8::1]:8443/").error);
  CHECK_FALSE(judge({}, start + std::string(limits::home_relay_bytes_max - start.size(), 'x')).error);
  for (const auto& bad : {start + std::string(limits::home_relay_bytes_max, 'x'), std::string{"ftp://r"}, std::string{"https://"},
                          std::string{"https://a b"}, std::string{"https://a\x01"}, std::string{"https://u@h/"}, std::string{"r.example.com"},
                          std::string{"http://[::1"}, std::string{"http://[::1:443/"}, std::string{"http://[relay]/"}, std::string{"http://r[::1]/"}})
    CHECK(judge({"10.0.0.1:80"}, bad).error->field == "home_relay");
}

TEST_CASE("networks") {
  CHECK(connector::parse_network("10.0.0.0/8"));
  CHECK(connector::parse_network("::/0"));
  for (const auto* bad : {"10.0.0.1/8", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "::1/129", "x/8", "/8", "10.0.0.0/"})
    CHECK_FALSE(connector::parse_network(bad));
}

TEST_CASE("silence counts as mass silence above 5 % and from 20 within 10 s") {
  connector::silence_watch w;
  const auto key = [](int i) { return "p/c" + std::to_string(i); };
  for (int i = 0; i < 400; ++i) w.report(key(i), true, false, {1000, 0});
  SECTION("20 of 400 are 5 %: not more") {
    for (int i = 0; i < 20; ++i) w.report(key(i), true, true, {2000, 0});
    CHECK_FALSE(w.on());
    w.report(key(20), true, true, {12'000, 0});
    CHECK(w.on());
    CHECK(w.wake_at_ms() == 12'000 + 300'000);
    SECTION("until 5 minutes are over") {
      w.pass_time({311'999, 0});
      CHECK(w.on());
      w.pass_time({312'000, 0});
      CHECK_FALSE(w.on());
    }
    SECTION("and the roll call that nobody answers then does not begin another five") {
      w.pass_time({312'000, 0});
      for (int i = 0; i <= 20; ++i) w.report(key(i), true, false, {312'000, 0});  // called: none of them is silent
      for (int i = 0; i <= 20; ++i) w.report(key(i), true, true, {317'100, 0});   // nobody has answered
      CHECK_FALSE(w.on());
      SECTION("others that fall silent do") {
        for (int i = 30; i <= 50; ++i) w.report(key(i), true, true, {318'000, 0});
        CHECK(w.on());
      }
    }
    SECTION("or they are heard again") {
      w.report(key(3), true, false, {13'000, 0});
      CHECK_FALSE(w.on());
    }
  }
  SECTION("spread over more than 10 s they do not count") {
    for (int i = 0; i < 20; ++i) w.report(key(i), true, true, {2000, 0});
    w.report(key(20), true, true, {12'001, 0});
    CHECK_FALSE(w.on());
  }
  SECTION("those that said good-bye do not count") {
    for (int i = 0; i < 30; ++i) w.report(key(i), true, true, {2000, 0});
    CHECK(w.on());
    for (int i = 0; i < 30; ++i) w.report(key(i), false, false, {2100, 0});
    CHECK_FALSE(w.on());
    CHECK(w.online() == 370);
  }
  SECTION("nor do those that were heard again meanwhile, however often they fell silent") {
    for (int round = 0; round < 5; ++round)
      for (int i = 0; i < 19; ++i) {
        w.report(key(i), true, true, {2000 + 100 * round, 0});
        w.report(key(i), true, false, {2000 + 100 * round, 0});
      }
    for (int i = 0; i < 20; ++i) w.report(key(i), true, true, {2500, 0});
    CHECK_FALSE(w.on());
    w.report(key(3), true, false, {12'600, 0});  // longer ago than the window: it counts for nothing any more
    w.report(key(4), true, false, {12'600, 0});
    for (int i = 30; i < 50; ++i) w.report(key(i), true, true, {12'700, 0});
    CHECK_FALSE(w.on());
    w.report(key(50), true, true, {12'700, 0});
    CHECK(w.on());
  }
}

TEST_CASE("19 of a few are too few") {
  connector::silence_watch w;
  for (int i = 0; i < 19; ++i) w.report("p/" + std::to_string(i), true, true, {1000, 0});
  CHECK_FALSE(w.on());
  w.report("p/19", true, true, {1000, 0});
  CHECK(w.on());
}
