// test/integration/store_rows_test.cpp -- rows as the database prints them, and as rivals spoil them. No database.
#include <catch2/catch.hpp>

#include "services/store/rows.hpp"

using namespace warren;
using sql::parse_row;

namespace {

sql::v1::TunnelRow tunnel(const std::string& members) {
  const auto row = parse_row("tunnel", R"({"name": "web", "version": 7)" + (members.empty() ? "" : ", " + members) + "}");
  REQUIRE(row);
  return row->tunnel();
}
bool readable(const std::string& table, const std::string& json) { return parse_row(table, json).has_value(); }

}  // namespace

TEST_CASE("a row is read as to_jsonb prints it") {
  const auto t = tunnel(R"("hostnames": ["a.example", "b.example"], "enabled": true, "delete_time": null,
    "rules": [{"path_prefix": "/", "connector": "home", "target": "http://h:1", "tls_verify": false}, {"connector": "d\u00fcne"}],
    "conditions": [{"type": "Accepted", "observed_generation": 3, "last_transition_time": "2026-01-02T03:04:05.678901Z"}],
    "created_at": "2026-01-02T05:04:05.678901+02:00", "of_a_newer_release": {"any": ["thing"]})");
  CHECK(t.name() == "web");
  CHECK(t.version() == 7);
  CHECK(t.hostnames_size() == 2);
  CHECK(t.hostnames(1) == "b.example");
  CHECK(t.enabled());
  CHECK_FALSE(t.has_delete_time());
  REQUIRE(t.rules_size() == 2);
  CHECK(t.rules(0).has_tls_verify());
  CHECK_FALSE(t.rules(0).tls_verify());
  CHECK_FALSE(t.rules(1).has_tls_verify());
  CHECK(t.rules(1).connector() == "d\xc3\xbcne");
  REQUIRE(t.conditions_size() == 1);
  CHECK(t.conditions(0).observed_generation() == 3);
  CHECK(t.conditions(0).last_transition_time().nanos() == 678'901'000);
  CHECK(t.created_at().seconds() == t.conditions(0).last_transition_time().seconds());
}

TEST_CASE("numbers are read to their last digit, and none that does not fit") {
  CHECK(tunnel(R"("generation": 9223372036854775807)").generation() == INT64_MAX);
  CHECK(tunnel(R"("generation": -9223372036854775808)").generation() == INT64_MIN);
  CHECK(tunnel(R"("partition": 2147483647)").partition() == INT32_MAX);
  const auto spoilt = GENERATE(R"("generation": 9223372036854775808)", R"("partition": 2147483648)", R"("generation": 1.5)",
                               R"("generation": "7")", R"("enabled": 1)", R"("name": 7)", R"("hostnames": [null])", R"("hostnames": {})");
  CAPTURE(spoilt);
  CHECK_FALSE(readable("tunnel", std::string{"{"} + spoilt + "}"));
}

TEST_CASE("a row whose jsonb a rival has spoilt is read without it") {
  const auto spoilt = GENERATE(R"("rules": [7])", R"("rules": [{"connector": 7}])", R"("rules": "none")", R"("rules": [null])",
                               R"("conditions": [{"last_transition_time": "yesterday"}])", R"("previous_rules": {"connector": "home"})");
  CAPTURE(spoilt);
  const auto t = tunnel(std::string{spoilt} + R"(, "rules_of_others": 1, "enabled": true)");
  CHECK(t.name() == "web");
  CHECK(t.enabled());
  CHECK(t.rules_size() + t.previous_rules_size() + t.conditions_size() == 0);
}

TEST_CASE("of what a rival has spoilt nothing else is lost") {
  const auto t = tunnel(R"("rules": [{"connector": "home"}], "previous_rules": [5], "conditions": [{"type": "Accepted"}],
    "updated_at": "infinity", "created_at": "2026-01-02T03:04:05Z")");
  CHECK(t.rules_size() == 1);
  CHECK(t.previous_rules_size() == 0);
  CHECK(t.conditions_size() == 1);
  CHECK(t.has_created_at());
  CHECK_FALSE(t.has_updated_at());
}

TEST_CASE("what is no row is none") {
  CHECK_FALSE(readable("tunnel", ""));
  CHECK_FALSE(readable("tunnel", "[]"));
  CHECK_FALSE(readable("tunnel", R"({"name": "web")"));
  CHECK_FALSE(readable("no_such_table", "{}"));
  CHECK(readable("tunnel", "{}"));
}
