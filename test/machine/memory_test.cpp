// test/machine/memory_test.cpp -- what a tunnel costs an instance, in bytes of heap: its rows, what is derived from them,
// its resources, and what is known of each gateway. Counted by this program's own operator new.
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include <catch2/catch.hpp>

#include <fmt/format.h>

#include "actors/core/time.hpp"
#include "envoy/config/route/v3/route.pb.h"
#include "services/gateway/session.hpp"
#include "services/replica/view.hpp"
#include "test/support/rows.hpp"

namespace {

std::atomic<std::int64_t> held{0};

// With the allocator's own header: what it takes from the system, but for what lies idle between two pieces.
void count(void* p, int sign) { held += sign * static_cast<std::int64_t>(malloc_usable_size(p) + sizeof(std::size_t)); }
void* take(std::size_t bytes) {
  void* p = std::malloc(bytes == 0 ? 1 : bytes);
  if (p == nullptr) throw std::bad_alloc{};
  count(p, 1);
  return p;
}
void* take(std::size_t bytes, std::align_val_t align) {
  void* p = nullptr;
  if (posix_memalign(&p, static_cast<std::size_t>(align), bytes) != 0) throw std::bad_alloc{};
  count(p, 1);
  return p;
}
void give(void* p) noexcept {
  if (p == nullptr) return;
  count(p, -1);
  std::free(p);
}

}  // namespace

void* operator new(std::size_t n) { return take(n); }
void* operator new[](std::size_t n) { return take(n); }
void* operator new(std::size_t n, std::align_val_t a) { return take(n, a); }
void* operator new[](std::size_t n, std::align_val_t a) { return take(n, a); }
void operator delete(void* p) noexcept { give(p); }
void operator delete[](void* p) noexcept { give(p); }
void operator delete(void* p, std::size_t) noexcept { give(p); }
void operator delete[](void* p, std::size_t) noexcept { give(p); }
void operator delete(void* p, std::align_val_t) noexcept { give(p); }
void operator delete[](void* p, std::align_val_t) noexcept { give(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { give(p); }

namespace {

using namespace warren;
using gateway::kind;
namespace busv1 = warren::bus::v1;
namespace discovery = envoy::service::discovery::v3;

constexpr int tunnels = 2'000, connectors = 200, projects = 20;
constexpr std::int64_t now = 1'767'225'600'123;

std::string uid(char of, int n) { return fmt::format("{}{:031x}", of, 0x9e3779b97f4a7c15ull * static_cast<std::uint64_t>(n + 1)); }
std::string project(int connector) { return fmt::format("project-{}", connector % projects); }

/// Rows as a store writes them: names and identifiers of the usual length.
std::vector<v1::Row> all_rows(revision_t revision) {
  std::vector<v1::Row> out;
  const auto at = timestamp_from_ms(now);
  const auto condition = [&](v1::Condition& c) {
    c.set_observed_generation(1);
    *c.mutable_last_transition_time() = at;
  };
  for (int n = 0; n < connectors; ++n) {
    auto c = rows::connector(project(n), fmt::format("home-{}", n), revision);
    c.set_uid(uid('c', n));
    c.set_attachment_generation(revision);
    c.set_attached_generation(revision);
    c.set_session(1);
    c.set_session_token_hash(std::string(64, 'b'));
    for (auto& each : *c.mutable_conditions()) condition(each);
    out.push_back(rows::row(std::move(c)));
  }
  for (int n = 0; n < tunnels; ++n) {
    const auto behind = n % connectors;
    auto t = rows::tunnel(project(behind), fmt::format("t-{}", n), fmt::format("home-{}", behind), revision);
    t.set_uid(uid('d', n));
    t.set_hostnames(0, fmt::format("t-{}.bench.example", n));
    t.mutable_conditions(0)->set_message("The tunnel is accepted.");
    t.mutable_conditions(1)->set_message("The gateways run this generation.");
    for (auto& each : *t.mutable_conditions()) condition(each);
    auto a = rows::attachment(t, fmt::format("home-{}", behind), revision);
    auto* rule = a.add_rules();
    rule->set_target(t.rules(0).target());
    rule->set_tls_verify(true);
    v1::Row claim;
    claim.mutable_hostname_claim()->set_hostname(t.hostnames(0));
    claim.mutable_hostname_claim()->set_version(revision);
    claim.mutable_hostname_claim()->set_project(t.project());
    claim.mutable_hostname_claim()->set_tunnel(t.name());
    claim.mutable_hostname_claim()->set_tunnel_uid(t.uid());
    claim.mutable_hostname_claim()->set_claim(n + 1);
    out.push_back(rows::row(std::move(a)));
    out.push_back(rows::row(std::move(t)));
    out.push_back(std::move(claim));
  }
  return out;
}

/// A gateway that acknowledges all and subscribes to the routes that its scopes name.
void settle(gateway::session& talk) {
  const auto say = [&](const discovery::DeltaDiscoveryRequest& r) { REQUIRE(talk.request(r, 0).empty()); };
  for (const auto k : {kind::cluster, kind::listener, kind::scope}) {
    discovery::DeltaDiscoveryRequest first;
    first.set_type_url(std::string{gateway::type_url(k)});
    say(first);
  }
  while (const auto response = talk.poll(0)) {
    discovery::DeltaDiscoveryRequest ack, routes;
    ack.set_type_url(response->type_url());
    ack.set_response_nonce(response->nonce());
    say(ack);
    if (gateway::kind_from(response->type_url()) != kind::scope) continue;
    routes.set_type_url(std::string{gateway::type_url(kind::route)});
    for (const auto& each : response->resources()) {
      envoy::config::route::v3::ScopedRouteConfiguration scope;
      REQUIRE(scope.ParseFromString(each.resource().value()));
      routes.add_resource_names_subscribe(scope.route_configuration_name());
    }
    if (routes.resource_names_subscribe_size() > 0) say(routes);
  }
  REQUIRE(talk.state() == gateway::stream_state::caught_up);
  REQUIRE(talk.pending() == 0);
}

double per_tunnel(std::int64_t before) { return static_cast<double>(held - before) / tunnels; }

}  // namespace

TEST_CASE("what a tunnel costs in memory is bounded, owner by owner") {
  const revision_t revision = (revision_t{1} << 32) + 100;
  const auto start = held.load();
  replica::view v;
  v.set_partitions(1, 0);
  {
    const auto rows = all_rows(revision);
    v.apply_fetched(0, true, revision, 1, rows, 0, now);
  }
  {
    v1::Row cls, gw;
    cls.mutable_gateway_class()->set_partition(1);
    cls.mutable_gateway_class()->set_name("default");
    cls.mutable_gateway_class()->set_dial_mode("direct");
    cls.mutable_gateway_class()->add_listen("127.0.0.1:8080");
    gw.mutable_gateway()->set_partition(1);
    gw.mutable_gateway()->set_name("gw-1");
    gw.mutable_gateway()->set_class_("default");
    v.apply_fetched(1, true, revision, 1, {cls, gw}, 0, now);
  }
  v.tick(6'000, now);
  v.apply_ack(rows::ack("gw-1", revision), 6'000, now);
  const auto ready = v.read([](const replica::tables& t) {
    return std::count_if(t.derived.begin(), t.derived.end(), [](const auto& each) { return each.second.conditions().of_type("Ready")->status() == "True"; });
  });
  REQUIRE(ready == tunnels);
  const auto of_replica = per_tunnel(start);

  const auto before_catalogue = held.load();
  gateway::catalogue rows;
  v.read([&](const replica::tables& t) { rows.rebuild(t); });
  REQUIRE(rows.entries("default", kind::route).size() == tunnels);
  REQUIRE(rows.entries("default", kind::scope).size() == tunnels);
  const auto of_catalogue = per_tunnel(before_catalogue);

  const auto before_session = held.load();
  gateway::session talk{rows, "default"};
  settle(talk);
  const auto of_session = per_tunnel(before_session);

  // All tunnels go; for an hour it is remembered that they were there.
  {
    std::vector<v1::Row> gone;
    for (int n = 0; n < tunnels; ++n) {
      const auto behind = n % connectors;
      const auto key = fmt::format("{}/t-{}", project(behind), n);
      gone.push_back(rows::tombstone("tunnel", key, revision + 1, uid('d', n)));
      gone.push_back(rows::tombstone("attachment", fmt::format("{}/home-{}/{}/1", project(behind), behind, uid('d', n)), revision + 1));
      gone.push_back(rows::tombstone("hostname_claim", fmt::format("t-{}.bench.example", n), revision + 1));
    }
    replica::change_set last;
    const auto token = v.subscribe([&](const replica::change_set& c) { last = c; });
    v.apply(rows::hint(revision + 1, gone), 0, now);
    v.unsubscribe(token);
    for (const auto& each : v.read([&](const replica::tables& t) { return rows.apply(t, last); })) talk.changed(each);
  }
  settle(talk);
  const auto of_deleted = per_tunnel(start);

  INFO(fmt::format("bytes for each tunnel: replica {:.0f}, catalogue {:.0f}, each gateway {:.0f}; and once deleted {:.0f}", of_replica,
                   of_catalogue, of_session, of_deleted));
  CHECK(of_replica > 300);  // else nothing was counted
  CHECK(of_replica < 1'650);
  CHECK(of_catalogue < 1'100);
  CHECK(of_session < 400);
  CHECK(of_deleted < 1'000);
}
