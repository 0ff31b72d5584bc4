// test/integration/outage_test.cpp -- PostgreSQL and NATS go away and come back: what readers and the log say of it.
#include <catch2/catch.hpp>

#include <sstream>

#include "test/support/stack.hpp"

using namespace warren;
using namespace std::chrono_literals;
using whole = stack::stack;
using stack::poll_until;
using nlohmann::json;

namespace {

constexpr auto patience = 30s;

/// Of that sentence; `of`: only those about that connection.
std::vector<json> lines(const std::string& log, const std::string& sentence, const std::string& of = {}) {
  std::vector<json> out;
  std::istringstream in{log};
  for (std::string line; std::getline(in, line);)
    if (auto said = json::parse(line, nullptr, false); said.is_object() && said.value("msg", "") == sentence && said.value("connection", "").starts_with(of))
      out.push_back(said);
  return out;
}

bool self_is_alive(const json& listed) {
  for (const auto& i : listed.at("instances"))
    if (i.value("self", false)) return i.value("alive", false);
  return false;
}

}  // namespace

TEST_CASE("while the database and NATS are away reads say how old they are, and the log says each once") {
  if (!stack::has_shared_postgres()) {
    WARN("skipped: WARREN_TEST_PG names no PostgreSQL");
    return;
  }
  whole s{{.with_envoy = false, .own_postgres = true}};
  s.must_ctl({"connector", "create", "home"});
  s.create_tunnel("web", "web.example.org", "home", "http://localhost:1");
  const auto fresh = s.must_ctl({"tunnel", "list", "-o", "json"});
  CHECK(fresh.err.empty());
  CHECK(self_is_alive(s.must_ctl({"instance", "list", "-o", "json"}).json()));

  s.postgres().stop();
  stack::told old;
  REQUIRE(poll_until([&] { return !(old = s.ctl({"tunnel", "list", "-o", "json"})).err.empty(); }, patience, 100ms));
  CHECK(old.ok());
  CHECK(old.json().at("tunnels")[0].at("uid") == fresh.json().at("tunnels")[0].at("uid"));  // and nothing but JSON is there
  CHECK(old.err.find("warrenctl: data is ") == 0);
  CHECK(old.err.find(" s old: database: ") != std::string::npos);
  stack::told instances;
  REQUIRE(poll_until([&] { return !self_is_alive((instances = s.must_ctl({"instance", "list", "-o", "json"})).json()); }, patience, 100ms));
  REQUIRE(poll_until([&] { return s.ctl({"instance", "list", "-o", "json"}).err.find("warrenctl: data is ") == 0; }, patience, 100ms));
  const auto trail = s.ctl({"audit", "list", "--timeout", "60s"});
  CHECK(trail.code == 1);
  CHECK(trail.err.find("warrenctl: UNAVAILABLE: the audit trail is in the database, which is away: ") == 0);
  // A change that cannot be made: the line names the request.
  const auto refused = s.ctl({"tunnel", "update", "web", "--disabled", "--request-id", "outage-1", "--timeout", "300ms"});
  CHECK(refused.code == 1);
  REQUIRE(poll_until([&] { return !lines(s.at(0).log(), "a change was not made, or it is not known whether it was").empty(); }, patience, 50ms));
  const auto change = lines(s.at(0).log(), "a change was not made, or it is not known whether it was").front();
  CHECK(change.at("level") == "warn");
  CHECK(change.at("request_id") == "outage-1");
  CHECK(change.at("project") == "demo");
  s.postgres().start();
  REQUIRE(poll_until([&] { return self_is_alive(s.must_ctl({"instance", "list", "-o", "json"}).json()); }, patience, 100ms));
  REQUIRE(poll_until([&] { const auto now = s.ctl({"tunnel", "list", "-o", "json"}); return now.ok() && now.err.empty(); }, patience, 100ms));
  const auto failed = lines(s.at(0).log(), "the instance lease was not renewed");
  const auto again = lines(s.at(0).log(), "the instance lease is renewed again");
  REQUIRE(again.size() == 1);
  const auto away_ms = again[0].at("was_away_ms").get<std::int64_t>();
  CHECK(away_ms > 0);
  CHECK_FALSE(failed.empty());
  CHECK(static_cast<std::int64_t>(failed.size()) <= 1 + away_ms / 10'000);

  s.stop_nats();
  REQUIRE(poll_until([&] { return lines(s.at(0).log(), "NATS is lost", "warrend/").size() == 1; }, patience, 20ms));
  // The database alone keeps lists fresh; with neither they grow old, for both reasons.
  const auto read = s.must_ctl({"tunnel", "list", "-o", "json"});
  CHECK(read.json().at("tunnels").size() == 1);
  s.postgres().stop();
  stack::told aged;
  const bool told = poll_until([&] { return (aged = s.ctl({"tunnel", "list", "-o", "json"})).err.find("bus: not connected to NATS") != std::string::npos; }, patience, 50ms);
  INFO(aged.err << s.readyz().dump());
  REQUIRE(told);
  CHECK(aged.ok());
  CHECK(aged.err.find(" s old: database: ") != std::string::npos);
  s.postgres().start();
  // Somebody who knows no other instance waits for NATS: the instance says that it cannot, and is asked again.
  auto patient = s.launch_ctl({"tunnel", "update", "web", "--disabled", "--request-id", "patient", "--timeout", "60s"}, "patient.log");
  const auto told_patient = [&] {
    for (const auto& line : lines(s.at(0).log(), "a change was not made, or it is not known whether it was"))
      if (line.value("request_id", "") == "patient" && line.value("error", "").find("does not reach NATS") != std::string::npos) return true;
    return false;
  };
  REQUIRE(poll_until(told_patient, patience, 20ms));
  s.start_nats();
  const auto changed = patient.wait(60s);
  INFO(patient.log());
  REQUIRE(changed);
  CHECK(changed->code == 0);
  REQUIRE(poll_until([&] { return lines(s.at(0).log(), "NATS is back", "warrend/").size() == 1; }, patience, 20ms));
  const auto lost = lines(s.at(0).log(), "NATS is lost", "warrend/").front(), back = lines(s.at(0).log(), "NATS is back", "warrend/").front();
  CHECK(lost.at("level") == "warn");
  CHECK(back.at("level") == "info");
  CHECK(back.at("was_away_ms").get<std::int64_t>() > 0);
  CHECK(lines(s.at(0).log(), "NATS is lost", "warrend/").size() == 1);
}

TEST_CASE("the log says when a connector comes and goes, with what it is about") {
  if (!stack::has_shared_postgres()) {
    WARN("skipped: WARREN_TEST_PG names no PostgreSQL");
    return;
  }
  whole s{{.with_envoy = false}};
  auto& home = s.add_agent("home");
  home.await_session();
  // The agent's log is made alike: a sentence, and what varies beside it.
  const auto connected = lines(home.running_process().log(), "NATS is there");
  REQUIRE_FALSE(connected.empty());
  CHECK_FALSE(connected[0].value("connection", "").empty());
  CHECK(connected[0].at("level") == "info");
  CHECK(home.running_process().log().find("u001f") == std::string::npos);
  const auto said = [&](const std::string& sentence) { return lines(s.at(0).log(), sentence); };
  REQUIRE(poll_until([&] { return said("connector is online").size() == 1; }, patience, 20ms));
  home.stop();
  REQUIRE(poll_until([&] { return said("connector is offline").size() == 1; }, patience, 20ms));
  const auto gone = said("connector is offline").front();
  CHECK(gone.at("level") == "info");
  CHECK(gone.at("project") == "demo");
  CHECK(gone.at("connector") == "home");
  CHECK(gone.at("partition").is_number_integer());
  CHECK(gone.at("epoch").get<std::int64_t>() > 0);
  CHECK(gone.at("reason") == "Connector disconnected.");
  home.start();
  REQUIRE(poll_until([&] { return said("connector is online").size() == 2; }, patience, 20ms));
  // What another owner finds is no news.
  s.kill_warrend();
  s.start_warrend();
  REQUIRE(poll_until([&] { return whole::condition(s.connector("home"), "Ready") == "True"; }, patience, 50ms));
  home.stop();
  REQUIRE(poll_until([&] { return said("connector is offline").size() == 1; }, patience, 20ms));
  CHECK(said("connector is online").empty());  // since this start
}
