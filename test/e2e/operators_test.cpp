// test/e2e/operators_test.cpp -- what operators see is what is so: gateways, heartbeats, /debug/programmed beside Envoy's own
// dump, and where a URL ends.
#include <algorithm>
#include <map>
#include <sstream>

#include "test/e2e/envoys.hpp"
#include "test/e2e/expect.hpp"

using namespace warren::e2e;
using nlohmann::json;
using warren::stack::origin;
using warren::stack::poll_until;
using whole = warren::stack::stack;

namespace {

json page(const whole& s, const std::string& target) {
  const auto a = warren::stack::visit(s.http_port(), {.host = "localhost", .target = target});
  INFO(describe(a));
  REQUIRE(a.status == 200);
  return json::parse(a.body);
}

using versions = std::map<std::string, std::string>;

/// Of one kind, over all pages: what it shall run, and what it has acknowledged.
std::pair<versions, versions> programmed(const whole& s, const std::string& kind, int limit) {
  std::pair<versions, versions> out;
  std::string after;
  for (;;) {
    const auto j = page(s, "/debug/programmed?gateway=gw-1&kind=" + kind + "&limit=" + std::to_string(limit) + "&after=" + after);
    const auto& names = j[kind]["names"];
    CHECK(names.size() <= static_cast<std::size_t>(limit));
    for (const auto& n : names) {
      const auto name = n["name"].get<std::string>();
      CHECK(out.first.count(name) == 0);
      if (n["intended"] != "") out.first[name] = n["intended"];
      if (n["acknowledged"] != "") out.second[name] = n["acknowledged"];
    }
    if (!j[kind].contains("next")) return out;
    after = j[kind]["next"].get<std::string>();
  }
}

/// What Envoy says that it runs, by type.
std::map<std::string, versions> dumped(const whole& s) {
  const auto admin = s.envoy_admin();
  const auto port = static_cast<std::uint16_t>(std::stoi(admin.substr(admin.rfind(':') + 1)));
  const auto a = warren::stack::visit(port, {.host = "localhost", .target = "/config_dump"});
  const auto dump = json::parse(a.body);
  std::map<std::string, versions> out;
  for (const auto& config : dump["configs"]) {
    if (config.contains("dynamic_active_clusters"))
      for (const auto& c : config["dynamic_active_clusters"]) out["cds"][c["cluster"]["name"]] = c["version_info"];
    if (config.contains("dynamic_listeners"))
      for (const auto& l : config["dynamic_listeners"]) out["lds"][l["name"]] = l["active_state"]["version_info"];
    if (config.contains("dynamic_route_configs"))
      for (const auto& r : config["dynamic_route_configs"]) out["rds"][r["route_config"]["name"]] = r["version_info"];
    if (config.contains("dynamic_scoped_route_configs"))
      for (const auto& all : config["dynamic_scoped_route_configs"])
        for (const auto& r : all["scoped_route_configs"]) out["srds"][r["name"]] = "";  // one version for all of them, which the dump leaves out
  }
  return out;
}

json trace(const whole& s, const std::string& url, int code) {
  const auto r = s.ctl({"trace", url, "-o", "json"});
  INFO(r.out << r.err);
  CHECK(r.code == code);
  const auto j = r.json();
  REQUIRE(j.is_object());
  return j;
}
json step(const json& traced, const std::string& who) {
  for (const auto& s : traced["steps"])
    if (s["who"] == who) return s;
  return {};
}

}  // namespace

TEST_CASE("/debug/programmed says what a real Envoy's own dump says") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  s.create_tunnel("other", "other.example.org", "home");
  s.create_tunnel("lost", "lost.example.org", "nowhere");
  for (const auto* name : {"web", "other"}) REQUIRE(s.await_ready(name, patience));
  REQUIRE(poll_until([&] { return has_caught_up(s.ctl({"gateway", "get", "gw-1", "-o", "json"}).json()); }, patience, 50ms));

  const auto all = page(s, "/debug/programmed");
  REQUIRE(all["gateways"].size() == 1);
  CHECK(all["gateways"][0]["gateway"] == "gw-1");
  CHECK(all["gateways"][0]["pending"] == 0);
  const auto runs = dumped(s);
  for (const std::string kind : {"cds", "lds", "rds"}) {
    INFO(kind);
    const auto [intended, acknowledged] = programmed(s, kind, 2);
    CHECK_FALSE(intended.empty());
    CHECK(intended == acknowledged);
    REQUIRE(runs.count(kind) == 1);
    CHECK(runs.at(kind) == acknowledged);
  }
  {
    const auto [intended, acknowledged] = programmed(s, "srds", 2);
    CHECK(intended == acknowledged);
    versions names;
    for (const auto& [name, version] : runs.at("srds")) names[name] = acknowledged.at(name);
    CHECK(names == acknowledged);
  }
  CHECK(page(s, "/debug/programmed?gateway=gw-1&different=1")["rds"]["names"].empty());

  // A change that the gateway cannot take in yet is there to be seen.
  s.envoy().freeze();
  s.must_ctl({"tunnel", "update", "web", "--disabled"});
  CHECK(poll_until(
      [&] {
        const auto j = page(s, "/debug/programmed?gateway=gw-1&kind=rds&different=1")["rds"]["names"];
        return j.size() == 1 && j[0]["name"] == "tunnel/demo/web" && j[0]["under_way"] == true && j[0]["intended"] != j[0]["acknowledged"];
      },
      patience, 50ms));
  s.envoy().thaw();
  CHECK(poll_until([&] { return page(s, "/debug/programmed?gateway=gw-1&different=1")["rds"]["names"].empty(); }, patience, 50ms));

  const auto status = [&](const std::string& target) { return warren::stack::visit(s.http_port(), {.host = "localhost", .target = target}).status; };
  CHECK(status("/debug/programmed?gateway=nobody") == 404);
  CHECK(status("/debug/programmed?gateway=gw-1&kind=eds") == 400);
  CHECK(status("/debug/programmed?gateway=gw-1&limit=0") == 400);
  CHECK(status("/debug/programmed?gateway=gw-1&limit=5001") == 400);
  CHECK(status("/debug/programmed?gateway=" + std::string(4'000, 'x')) == 400);
  CHECK(status("/debug/other") == 404);
}

TEST_CASE("trace says who says no, and how long each took") {
  WARREN_NEEDS_SERVERS();
  whole s;
  auto& home = s.add_agent("home");
  home.await_session();
  origin mortal{"mortal"};
  s.create_tunnel("web", "web.example.org", "home");
  s.create_tunnel("dying", "dying.example.org", "home", mortal.url());
  s.create_tunnel("lost", "lost.example.org", "nowhere");
  for (const auto* name : {"web", "dying"}) REQUIRE(s.await_ready(name, patience));

  {
    const auto t = trace(s, "http://WEB.example.org/path?q=1", 0);
    CHECK(t["ok"] == true);
    CHECK(t["who_says_no"] == "");
    CHECK(t["tunnel"] == "projects/demo/tunnels/web");
    CHECK(t["steps"].size() == 3);
    for (const auto* who : {"gateway", "agent", "target"}) {
      INFO(who);
      CHECK(step(t, who)["ok"] == true);
      CHECK(step(t, who)["first_byte_ms"].get<double>() > 0);
    }
    CHECK(step(t, "gateway")["where"] == "127.0.0.1:" + std::to_string(s.visitor_port()));
    const auto table = s.ctl({"trace", "web.example.org"}).out;
    INFO(table);
    CHECK(table.find("nobody says no") != std::string::npos);
    CHECK(table.find("gw-1") != std::string::npos);
  }
  {
    const auto t = trace(s, "http://nobody.example.org/", 1);
    CHECK(t["who_says_no"] == "gateway");
    CHECK(step(t, "gateway")["status"] == 404);
  }
  CHECK(trace(s, "lost.example.org", 1)["summary"] == "connector nowhere does not exist");
  {
    // The address is given, and nobody listens there.
    const auto r = s.ctl({"trace", "web.example.org", "--gateway", "gw-1=127.0.0.1:" + std::to_string(warren::stack::free_port()), "-o", "json"});
    CHECK(r.code == 1);
    CHECK(r.json()["who_says_no"] == "gateway");
    CHECK(step(r.json(), "gateway")["known_by"] == "given");
    CHECK(step(r.json(), "target")["ok"] == true);
    CHECK(s.ctl({"trace", "web.example.org", "--gateway", "gw-9=127.0.0.1:1"}).code == 1);
    CHECK(s.ctl({"trace", "https://web.example.org"}).code == 2);
    CHECK(s.ctl({"trace", "web.example.org", "-o", "name"}).code == 2);
  }
  mortal.down();
  {
    const auto t = trace(s, "http://dying.example.org/", 1);
    CHECK(t["who_says_no"] == "target");
    CHECK(step(t, "gateway")["status"] == 503);
    CHECK(step(t, "gateway")["reason"] == "connector-unreachable");
    CHECK(step(t, "agent")["status"] == 503);
  }
  home.stop();
  // A gateway that cannot reach the agent says the same 503 by itself, before it has heard that the agent is offline.
  const auto reason = [&] { return step(trace(s, "http://web.example.org/", 1), "gateway")["reason"]; };
  REQUIRE(poll_until([&] { return is_ours(s.visit("web.example.org")) && reason() == "connector-offline"; }, patience, 50ms));
  {
    const auto t = trace(s, "http://web.example.org/", 1);
    CHECK(t["who_says_no"] == "connector");
    CHECK(step(t, "gateway")["reason"] == "connector-offline");
    CHECK(t["summary"].get<std::string>().find("home is offline") != std::string::npos);
  }
}

TEST_CASE("operators see gateways and heartbeats as they are") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  REQUIRE(s.await_ready("web", patience));

  const auto listed = s.ctl({"gateway", "list", "--filter", "state=caught_up", "-o", "json"}).json();
  REQUIRE(listed["gateways"].size() == 1);
  const auto& g = listed["gateways"][0];
  CHECK(g["node_id"] == "gw-1");
  CHECK(g["node_cluster"] == "warren");
  CHECK(g["peer"].get<std::string>().starts_with("127.0.0.1:"));
  CHECK(std::stoll(g["acknowledged"].get<std::string>()) > 0);
  CHECK(s.ctl({"gateway", "list", "--filter", "state=stalled", "-o", "name"}).out.empty());

  auto watch = s.launch_ctl({"gateway", "watch", "gw-1", "-o", "json"}, "watch");
  s.envoy().freeze();
  s.must_ctl({"tunnel", "update", "web", "--disabled"});
  CHECK(poll_until([&] { return s.ctl({"gateway", "list", "--filter", "state=stalled", "-o", "name"}).out == "gateways/gw-1\n"; }, patience, 100ms));
  CHECK(watch.await_log("\"state\":\"stalled\"", patience));
  s.envoy().thaw();
  CHECK(poll_until([&] { return s.ctl({"gateway", "list", "--filter", "state=caught_up", "-o", "name"}).out == "gateways/gw-1\n"; }, patience, 100ms));

  CHECK(s.ctl({"connector", "why", "home"}).out.find("Last heartbeat received 0.") != std::string::npos);
  const auto seen = [&] { return s.ctl({"connector", "get", "home", "-o", "json"}).json()["hearing"]["last_heartbeat_time"].get<std::string>(); };
  const auto first = seen();
  CHECK(poll_until([&] { return seen() > first; }, patience, 100ms));
  CHECK(s.ctl({"tunnel", "why", "web"}).out.find("Last heartbeat received") != std::string::npos);
}

TEST_CASE("the access log says of each request whose it was and how it went") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  s.create_tunnel("lost", "lost.example.org", "nowhere");
  REQUIRE(s.await_ready("web", patience));
  REQUIRE(is_the_targets(s.visit({.host = "web.example.org", .method = "POST", .target = "/echo", .body = "12345"})));
  REQUIRE(is_ours(s.visit("lost.example.org")));

  /// The last line about a host; Envoy writes it when it likes.
  const auto line_of = [&](const std::string& host) {
    json found;
    REQUIRE(poll_until(
        [&] {
          std::istringstream in{s.envoy().log()};
          for (std::string text; std::getline(in, text);) {
            const auto j = json::parse(text, nullptr, false);
            if (j.is_object() && j.value("host", "") == host) found = j;
          }
          return !found.is_null();
        },
        patience, 50ms));
    return found;
  };
  const auto web = line_of("web.example.org");
  INFO(web.dump());
  CHECK(web["status"] == 200);
  CHECK(web["connector"] == "connector/demo/home");
  CHECK(web["route"] == "demo/web/0");
  CHECK(web["tunnel"].get<std::string>().starts_with("demo/"));
  CHECK(web["request_id"].get<std::string>().size() == 36);
  CHECK(web["response_flags"] == "-");
  CHECK(web["bytes_received"] == 5);
  CHECK(web["bytes_sent"] == 5);
  CHECK(web["attempts"] == 1);
  for (const auto* time : {"duration_ms", "upstream_ms"}) CHECK(web[time].is_number());
  CHECK(web["at"].get<std::string>().starts_with("20"));

  const auto lost = line_of("lost.example.org");
  INFO(lost.dump());
  CHECK(lost["status"] == 503);
  CHECK(lost["route"] == "demo/lost/0");
  CHECK(lost["reason"] == "connector-unknown");
  CHECK(lost["response_flags"] == "-");
  CHECK(lost["connector"].is_null());
}
