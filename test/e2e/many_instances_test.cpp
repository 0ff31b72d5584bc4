// test/e2e/many_instances_test.cpp -- several warrend over one PostgreSQL and NATS share the work: who runs what,
// who takes over from whom, and what visitors, agents and callers notice of it (nothing).
#include <set>

#include "test/e2e/load.hpp"

using namespace warren::e2e;
using warren::stack::poll_until;
using whole = warren::stack::stack;

TEST_CASE("instances share the partitions evenly, also when one joins and when one leaves") {
  whole s{{.with_envoy = false, .instances = 2}};
  REQUIRE(s.await_spread({&s.at(0), &s.at(1)}, patience));
  auto& third = s.add_instance();
  third.start();
  REQUIRE(s.await_spread({&s.at(0), &s.at(1), &third}, patience));
  const auto before = s.owners();
  CHECK(s.at(1).stop().code == 0);
  REQUIRE(s.await_spread({&s.at(0), &third}, patience));
  // Nothing has moved that did not have to.
  int moved = 0;
  const auto left = s.id_of(s.at(1));
  CHECK(left == 0);  // it took its row with it
  const std::set<std::int64_t> stayed{s.id_of(s.at(0)), s.id_of(third)};
  for (const auto& [id, owner] : s.owners())
    if (stayed.contains(before.at(id)) && before.at(id) != owner) ++moved;
  CHECK(moved <= 1);  // the odd one
}

TEST_CASE("a restart under the same name goes on at once, a name that somebody holds is refused") {
  whole s{{.with_envoy = false, .instances = 2, .instance_lease_ms = 60'000}};
  REQUIRE(s.await_spread({&s.at(0), &s.at(1)}, patience));
  const auto former = s.id_of(s.at(1));
  s.at(1).kill();
  s.at(1).start();
  REQUIRE(s.await_spread({&s.at(0), &s.at(1)}, patience));  // long before the lease of the dead one is over
  CHECK(s.id_of(s.at(1)) != former);
  CHECK(s.sql("SELECT count(*) FROM instance WHERE name = 'warren-2'") == "1\n");

  auto& twin = s.add_instance();
  twin.launch({{"WARREN_INSTANCE_NAME", "warren-2"}});
  const auto ended = twin.running_process().wait(patience);
  REQUIRE(ended);
  CHECK(ended->code == 1);
  CHECK(twin.log().find("held by instance") != std::string::npos);
  CHECK(s.at(1).running());
  REQUIRE(s.await_spread({&s.at(0), &s.at(1)}, patience));
}

namespace {

/// A second gateway of the stack's class, led to one instance. It listens where the first does.
class second_envoy {
public:
  second_envoy(whole& s, const warren::stack::instance& at) : way_{{std::to_string(at.xds_port())}} {
    s.must_ctl({"gateway", "create", "gw-2", "--class", "demo"});
    auto text = s.must_ctl({"gateway", "bootstrap", "gw-2"}).out;
    const auto theirs = std::to_string(s.to_xds().port());
    for (auto at_text = text.find(theirs); at_text != std::string::npos; at_text = text.find(theirs, at_text + 1))
      text.replace(at_text, theirs.size(), std::to_string(way_.port()));
    const auto folder = place_.folder("envoy");
    warren::stack::write_file(folder / "envoy.yaml", text);
    process_ = warren::stack::process{{.name = "gw-2",
                                       .path = s.envoy().what().path,
                                       .arguments = {"-c", (folder / "envoy.yaml").string(), "--disable-hot-restart",
                                                     "--concurrency", "1", "-l", "warning"},
                                       .log = folder / "log"}};
  }

private:
  warren::stack::scratch place_{"warren-envoy"};
  warren::stack::forwarder way_;
  warren::stack::process process_;
};

bool counts(const whole& s, const std::string& gateway) {
  const auto shown = s.ctl({"gateway", "get", gateway, "-o", "json"}).json();
  return shown.is_object() && shown.value("counts", false);
}

bool programmed_at_two(const whole& s, const std::string& tunnel) {
  return whole::condition_message(s.tunnel(tunnel), "Programmed").starts_with("2/2 gateways");
}

}  // namespace

TEST_CASE("what gateways at several instances acknowledge meets at the owner, also at the next one") {
  WARREN_NEEDS_SERVERS();
  whole s{several(3)};
  REQUIRE(s.await_spread(everybody(s), patience));
  s.add_agent("home").await_session(patience);
  const auto partition = std::stoi(s.sql("SELECT partition FROM connector"));
  warren::stack::instance* owner = nullptr;
  for (std::size_t n = 0; n < 3; ++n)
    if (s.id_of(s.at(n)) == s.owners().at(partition)) owner = &s.at(n);
  REQUIRE(owner != nullptr);
  const auto rest = others(s, *owner);
  s.to_xds().lead_to({std::to_string(rest[0]->xds_port())}, true);
  const second_envoy second{s, *rest[1]};
  REQUIRE(poll_until([&] { return counts(s, "gw-1") && counts(s, "gw-2"); }, patience, 50ms));
  s.create_tunnel("one", "one.example.org", "home");
  REQUIRE(s.await_ready("one", patience));
  CHECK(poll_until([&] { return programmed_at_two(s, "one"); }, patience, 50ms));

  owner->kill();
  const auto& asked = *rest[0];
  CHECK(s.ctl_at(asked, {"tunnel", "create", "two", "--hostname", "two.example.org", "--connector", "home", "--target",
                         s.demo_origin().url(), "--gateway-class", "demo", "--timeout", "30s"}).ok());
  CHECK(s.ctl_at(asked, {"tunnel", "wait", "two", "--for", "ready", "--timeout", "30s"}).ok());
  owner->start();
  CHECK(poll_until([&] { return programmed_at_two(s, "two"); }, patience, 50ms));
  CHECK(poll_until([&] { return programmed_at_two(s, "one"); }, patience, 50ms));
  CHECK(is_the_targets(s.visit("two.example.org")));
}

TEST_CASE("an Envoy that moves to another instance is sent only what differs") {
  WARREN_NEEDS_SERVERS();
  whole s{several(2)};
  REQUIRE(s.await_spread(everybody(s), patience));
  s.to_xds().lead_to({std::to_string(s.at(0).xds_port())}, true);
  s.add_agent("home").await_session(patience);
  for (int n = 0; n < 20; ++n) s.create_tunnel("t" + std::to_string(n), "t" + std::to_string(n) + ".example.org", "home");
  for (int n = 0; n < 20; ++n) REQUIRE(s.await_ready("t" + std::to_string(n), patience));
  const auto first_sent = s.at(0).metric("warren_gateway_push_bytes_total");
  REQUIRE(s.at(1).metric("warren_gateway_push_bytes_total") == 0);
  REQUIRE(poll_until([&] { return s.at(0).metric("warren_gateway_streams") == 1; }, patience));

  s.to_xds().lead_to({std::to_string(s.at(1).xds_port())}, true);
  REQUIRE(poll_until([&] { return s.at(1).metric("warren_gateway_streams") == 1 && counts(s, "gw-1"); }, patience));
  const auto nothing_new = s.at(1).metric("warren_gateway_push_bytes_total");
  s.create_tunnel("more", "more.example.org", "home");
  REQUIRE(s.await_ready("more", patience));
  CHECK(is_the_targets(s.visit("more.example.org")));
  const auto one_more = s.at(1).metric("warren_gateway_push_bytes_total");
  INFO("first " << first_sent << ", after the move " << nothing_new << ", and with one more " << one_more);
  CHECK(nothing_new < first_sent / 10);  // answers that say "nothing", and no resource
  CHECK(one_more > nothing_new);
  CHECK(one_more < first_sent / 5);
}
