// test/integration/credentials_test.cpp -- agents with credentials of their own, issued by a real warrend, and what one
// of them can do to another.
#include <catch2/catch.hpp>

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "actors/core/ids.hpp"
#include "actors/core/subjects.hpp"
#include "services/bus/connection.hpp"
#include "test/support/stack.hpp"

using namespace warren;

namespace {

nlohmann::json enrolment_of(const stack::agent& a) { return nlohmann::json::parse(stack::read_file(a.enrolment())); }

/// With what somebody found in an enrolment file.
std::shared_ptr<bus::connection> connect_as(const nlohmann::json& enrolment, const std::string& called) {
  bus::connection_options o;
  for (const auto& url : enrolment["nats"]["urls"]) o.urls.push_back(url.get<std::string>());
  o.name = called;
  o.user_jwt = enrolment["nats"]["jwt"].get<std::string>();
  o.user_seed = enrolment["nats"]["seed"].get<std::string>();
  o.inbox_prefix = enrolment["nats"]["inbox_prefix"].get<std::string>();
  o.bulk_connection = false;
  return bus::connection::open(o);
}

}  // namespace

TEST_CASE("an agent's enrolment file opens its own connector, and nobody else's") {
  stack::stack s{{.with_envoy = false, .agents_have_credentials = true}};
  auto& home = s.add_agent("home", {.lease_duration = "10m"});
  home.await_session();
  auto& evil = s.add_agent("evil", {.project = "other"});
  evil.await_session();
  const auto its = enrolment_of(home), found = enrolment_of(evil);
  for (const auto& file : {its, found}) {
    CHECK(file["nats"]["password"].get<std::string>().empty());
    CHECK(file["nats"]["seed"].get<std::string>().starts_with("SU"));
    CHECK(stack::read_file(s.directory() / "warrend.log").find(file["nats"]["seed"].get<std::string>()) == std::string::npos);
  }
  CHECK(its["nats"]["seed"] != found["nats"]["seed"]);
  CHECK(its["nats"]["inbox_prefix"] != found["nats"]["inbox_prefix"]);
  evil.kill();

  // What the owner says to the one is not heard by the other: its own subject is the mark behind it.
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> heard;
  const auto thief = connect_as(found, bus::agent_connection_name("demo", "connector", "home"));
  REQUIRE(thief->connected());
  std::vector<bus::subscription> kept;
  for (const auto& subject : {std::string{"_INBOX.>"}, its["nats"]["inbox_prefix"].get<std::string>() + ".>", std::string{"warren.v1.cmd.>"},
                              its["subjects"]["command"].get<std::string>(), found["subjects"]["command"].get<std::string>()})
    kept.push_back(thief->subscribe(subject, [&](auto on, auto, auto) {
      const std::lock_guard lock{mutex};
      heard.emplace_back(on);
      changed.notify_all();
    }));
  REQUIRE(thief->flush(stack::milliseconds{5'000}));
  home.kill();
  home.start();
  home.await_session();                              // hello and its answers
  s.create_tunnel("bait", "bait.example.com", "home");  // a command and its answer
  CHECK(stack::poll_until([&] { return s.sql("SELECT attached_generation > 0 FROM connector WHERE name = 'home'").starts_with("t"); },
                          stack::milliseconds{10'000}));
  bus::connection_options owner;
  owner.urls = {s.nats_url()};
  owner.name = "owner";
  owner.credentials_file = (s.directory() / "keys" / "warrend.creds").string();
  const auto link = bus::connection::open(owner);
  link->publish(found["subjects"]["command"].get<std::string>(), "mark");
  {
    std::unique_lock lock{mutex};
    REQUIRE(changed.wait_for(lock, stack::milliseconds{10'000}, [&] { return !heard.empty(); }));
    CHECK(heard == std::vector{found["subjects"]["command"].get<std::string>()});
  }

  // Nor can it say anything for the other: nothing of it reaches an instance, where it would be counted.
  const auto before = s.metric("warren_bus_dropped_total");
  for (const auto* subject : {"hello", "heartbeat", "event"}) thief->publish(its["subjects"][subject].get<std::string>(), "forged");
  thief->publish(found["subjects"]["event"].get<std::string>(), "forged");
  CHECK(stack::poll_until([&] { return s.metric("warren_bus_dropped_total") > before; }, stack::milliseconds{10'000}));
  CHECK(s.metric("warren_bus_dropped_total") == before + 1);
  // A connection that calls itself like the other one's ends: nobody is suspected for it.
  thief->close();

  // A second enrolment of the same key issues others.
  const auto again = s.must_ctl({"connector", "enrol", "home", "--public-key", home.public_key()}).json();
  CHECK(again["nats"]["seed"] != its["nats"]["seed"]);
  link->close();
}
