// test/integration/lease_restart_test.cpp -- a PostgreSQL that starts anew has nobody's lock: nobody is dead because of it.
#include <catch2/catch.hpp>

#include <csignal>

#include "test/integration/store_fixture.hpp"

using namespace warren;
using namespace warren::store_test;

namespace {

constexpr millis lease{3000};

placement_view judged(instance& by, instance_id whom) {
  std::promise<placement_view> done;
  by.lease.judge({whom}, [&](placement_view v) { done.set_value(std::move(v)); });
  return get(done.get_future());
}

bool alive(const placement_view& view, instance_id id) {
  return std::any_of(view.instances.begin(), view.instances.end(), [&](const auto& i) { return i.id == id && i.alive; });
}

/// The server is killed and recovers by itself; back when it takes connections.
void crash(const database& db) {
  const auto before = db.processes("warrend/%");
  pqxx::connection victim{db.conninfo};
  REQUIRE(::kill(victim.backendpid(), SIGKILL) == 0);
  REQUIRE(stack::poll_until(
      [&] {
        try {
          // Those that connect again may be there before we look.
          const auto now = db.processes("warrend/%");
          return std::none_of(before.begin(), before.end(), [&](int pid) { return std::find(now.begin(), now.end(), pid) != now.end(); });
        } catch (const std::exception&) {
          return false;
        }
      },
      20s, 10ms));
}

}  // namespace

TEST_CASE("after a short restart of the database nobody passes for dead, and later the dead do") {
  auto& server = own_server::get().cluster;
  database db{server};
  instance a{db, "a", nullptr, lease}, b{db, "b", nullptr, lease};
  const auto epoch = a.own(3);
  REQUIRE(b.renew().renewed);
  REQUIRE(a.renew().renewed);

  SECTION("stopped and started") {
    server.stop();
    server.start();
  }
  SECTION("crashed and recovered") { crash(db); }
  SECTION("stopped and started, and judged by somebody who has just begun") {
    server.stop();
    server.start();
    instance c{db, "c", nullptr, lease};
    CHECK(alive(judged(c, a.lease.id()), a.lease.id()));
    CHECK(c.take(3).taken.empty());
  }
  // A's lock can be had now, and its lease is not over.
  REQUIRE(db.value<int>("SELECT count(*) FROM instance WHERE expires_at > now()") >= 2);
  REQUIRE(db.value<bool>("SELECT pg_try_advisory_xact_lock_shared(1463898707, " + std::to_string(a.lease.id()) + ")"));
  CHECK(alive(judged(b, a.lease.id()), a.lease.id()));
  CHECK(b.take(3).taken.empty());
  CHECK(a.renew().renewed);
  CHECK(a.renew().partitions.at(3).epoch == epoch);

  // Its lock goes with its session, and it does not come for another: that it is dead is believed when the restart
  // is a lease ago, and as its lease lasts.
  REQUIRE(stack::poll_until(
      [&] {
        db.end_sessions("%/" + std::to_string(a.lease.id()) + "/lock");
        db.exec("UPDATE instance SET expires_at = now() + interval '1 hour'");
        return !alive(judged(b, a.lease.id()), a.lease.id());
      },
      20s, 100ms));
  CHECK(b.own(3) == epoch + 1);
}
