// test/simulation/scenario_text_test.cpp -- what a scenario's text may say, and what is answered to what it may not.
#include <catch2/catch.hpp>

#include "test/simulation/scenario.hpp"

using namespace warren::simulation;

namespace {

scenario good(const std::string& text) {
  auto parsed = parse_scenario(text);
  if (const auto* error = std::get_if<scenario_error>(&parsed)) FAIL("line " << error->line << ": " << error->message);
  return std::get<scenario>(parsed);
}
scenario_error bad(const std::string& text) {
  auto parsed = parse_scenario(text);
  REQUIRE(std::holds_alternative<scenario_error>(parsed));
  return std::get<scenario_error>(parsed);
}

}  // namespace

TEST_CASE("a scenario is read as it is written") {
  const auto s = good("# what it is about\n"
                      "instances 2\nseed 9\nbug no-fence\n"
                      "\n"
                      "at 3s cut instance 2 from bus for 4s   # and why\n"
                      "at 1.5s create tunnel beta/web connector home,away\n");
  CHECK(s.title == "what it is about");
  CHECK(s.instances == 2);
  CHECK(s.seed == 9);
  CHECK(s.planted == bugs{bug::no_fence});
  REQUIRE(s.what.size() == 2);
  CHECK(s.what[0].at_ms == 1'500);
  CHECK(s.what[0].is("create", "tunnel"));
  CHECK(s.what[0].option("connector", "") == "home,away");
  CHECK(s.what[1].option_ms("for", 0) == 4'000);
  CHECK(s.what[1].name == "2");
}

TEST_CASE("what cannot be understood is named with its line") {
  CHECK(bad("at 1s").message == "a verb and a noun are missing");
  CHECK(bad("instances 1\nat soon kill instance 1").line == 2);
  CHECK(bad("at 1s melt instance 1").message.find("\"melt instance\"") != std::string::npos);
  CHECK(bad("at 1s kill instance one").message == "\"one\" is no number");
  CHECK(bad("at 1s kill instance 1 in 3s").message == "\"kill instance\" has no \"in\"");
  CHECK(bad("at 1s kill instance 1 for").message == "the value of \"for\" is missing");
  CHECK(bad("at 1s kill instance 1 for ever").message.find("no duration") != std::string::npos);
  CHECK(bad("at 1s disturb bus lost 101%").message.find("no percentage") != std::string::npos);
  CHECK(bad("bug of-the-year").message == "there is no bug \"of-the-year\"");
  CHECK(bad("instances 1000").message.find("more than 100") != std::string::npos);
}

TEST_CASE("durations are written with their unit") {
  CHECK(parse_duration("250ms") == 250);
  CHECK(parse_duration("1.5s") == 1'500);
  CHECK(parse_duration("2m") == 120'000);
  CHECK(parse_duration("4h") == 14'400'000);
  CHECK_FALSE(parse_duration("4"));
  CHECK_FALSE(parse_duration("s"));
  CHECK_FALSE(parse_duration("1.2.3s"));
  for (std::int64_t ms : {0, 1, 250, 1'000, 1'500, 60'000, 3'600'000}) CHECK(parse_duration(print_duration(ms)) == ms);
}

TEST_CASE("every bug has a name that is found again") {
  for (const auto& b : bug_names) CHECK(bug_from(b.name) == b.what);
}

TEST_CASE("what instances and agents are configured with is within what they can be configured with") {
  const auto s = good("lease 60s\nheartbeat 10m\n");
  CHECK(s.lease_ms == 60'000);
  CHECK(s.heartbeat_ms == 600'000);
  CHECK(good(print(s)) == s);
  CHECK(s.heartbeats == 0);
  const auto paced = good("heartbeats 2\n");
  CHECK(paced.heartbeats == 2);
  CHECK(good(print(paced)) == paced);
  CHECK(bad("lease 61s").message == "lease is from 200ms to 1m");
  CHECK(bad("heartbeat 1h").message == "heartbeat is from 50ms to 10m");
  CHECK(bad("lease 60").message.find("no time") != std::string::npos);
}
