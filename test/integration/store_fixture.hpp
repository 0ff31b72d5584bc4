// test/integration/store_fixture.hpp -- a database of one's own, and instances (lease and store) on it; rows and
// transitions as the tests of the store write them.
#pragma once

#include <catch2/catch.hpp>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <pqxx/pqxx>

#include "services/store/lease_store.hpp"
#include "services/store/migrate.hpp"
#include "services/store/store.hpp"
#include "test/support/stack.hpp"

namespace warren::store_test {

/// Of the source tree that this program was built in.
inline std::string migrations() {
  for (auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path(); folder != folder.root_path();
       folder = folder.parent_path())
    if (std::filesystem::exists(folder / "migrations/0001_init.sql")) return folder / "migrations";
  throw std::runtime_error{"migrations/ is not above this program"};
}

/// A server for tests that stop it; one for the program.
struct own_server {
  stack::scratch place{"warren-store"};
  stack::postgres_cluster cluster{place};
  static own_server& get() {
    static own_server it;
    return it;
  }
};

/// A database with all migrations: on the server that all tests share, or on one that may be stopped.
struct database {
  database() : shared{std::make_unique<stack::test_database>()}, conninfo{shared->url()} {}
  explicit database(stack::postgres_cluster& server, bool migrated = true) {
    static int count = 0;
    const auto name = "warren" + std::to_string(++count);
    stack::run_sql(server.url("postgres"), "CREATE DATABASE " + name);
    conninfo = server.url(name);
    if (migrated) migrate(conninfo, migrations());
  }
  /// As a rival: without warren.writer.
  pqxx::result exec(const std::string& sql) const {
    pqxx::connection c{conninfo};
    pqxx::work tx{c};
    auto r = tx.exec(sql);
    tx.commit();
    return r;
  }
  template <class T> T value(const std::string& sql) const { return exec(sql)[0][0].as<T>(); }
  /// Sessions of this database by their application's name, as LIKE has it.
  void end_sessions(const std::string& like) const {
    exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
         "AND application_name LIKE '" + like + "'");
  }
  std::vector<int> processes(const std::string& like) const {
    std::vector<int> out;
    for (const auto& row : exec("SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                                "AND application_name LIKE '" + like + "'"))
      out.push_back(row[0].as<int>());
    return out;
  }
  int advisory_locks() const {
    return value<int>("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = "
                      "(SELECT oid FROM pg_database WHERE datname = current_database())");
  }

  std::unique_ptr<stack::test_database> shared;
  std::string conninfo;
};

template <class T> T get(std::future<T> f) {
  REQUIRE(f.wait_for(20s) == std::future_status::ready);
  return f.get();
}

/// An instance: lease, store, and what the store has announced.
struct instance {
  explicit instance(const database& db, const std::string& name = "a", counters* count = nullptr,
                    millis ttl = limits::instance_lease)
      : instance{db.conninfo, name, count, ttl} {}
  instance(const std::string& conninfo, const std::string& name, counters* count = nullptr,
           millis ttl = limits::instance_lease)
      : lease{{.conninfo = conninfo,
               .name = name,
               .ttl = ttl,
               .history = history,
               .on_lost = [this](const std::string& reason) {
                 std::lock_guard lock{mutex};
                 lost = reason;
                 changed.notify_all();
               }}} {
    const auto error = lease.start();
    INFO(error);
    REQUIRE(error.empty());
    s = std::make_unique<store>(store_config{
        .conninfo = conninfo,
        .instance = lease.id(),
        .whole_read = 4s,
        .count = count,
        .history = history,
        .on_commit =
            [this](const busv1::Revision& r) {
              std::lock_guard lock{mutex};
              commits.push_back(r);
            },
        .on_rival =
            [this](partition_id p) {
              std::lock_guard lock{mutex};
              rivals.push_back(p);
              changed.notify_all();
            },
        .on_state =
            [this](bool is_up, const std::string&) {
              std::lock_guard lock{mutex};
              up = is_up;
              changed.notify_all();
            },
    });
    s->start();
    REQUIRE(wait([this] { return up; }));
  }
  ~instance() {
    s->stop();
    lease.stop();
  }

  template <class F> bool wait(F f, millis limit = 10s) {
    std::unique_lock lock{mutex};
    return changed.wait_for(lock, limit, f);
  }
  placement_view take(partition_id p) { return take_all({p}); }
  placement_view take_all(std::vector<partition_id> p) {
    std::promise<placement_view> done;
    lease.take({std::move(p)}, [&](placement_view v) { done.set_value(std::move(v)); });
    return get(done.get_future());
  }
  placement_view renew() {
    std::promise<placement_view> done;
    lease.renew({}, [&](placement_view v) { done.set_value(std::move(v)); });
    return get(done.get_future());
  }
  epoch_t own(partition_id p) {
    const auto v = take(p);
    REQUIRE(v.error == "");
    REQUIRE_FALSE(v.taken.empty());
    return v.partitions.at(static_cast<std::size_t>(p)).epoch;
  }
  std::future<save_result> begin(save_request r) {
    auto done = std::make_shared<std::promise<save_result>>();
    auto f = done->get_future();
    s->save(std::move(r), [done](save_result x) { done->set_value(std::move(x)); });
    return f;
  }
  save_result save(save_request r) { return get(begin(std::move(r))); }
  template <class What> loaded load(What what) {
    std::promise<loaded> done;
    s->load(std::move(what), [&](loaded l) { done.set_value(std::move(l)); });
    return get(done.get_future());
  }
  loaded adopt(partition_id p, epoch_t e) {
    std::promise<loaded> done;
    s->adopt({p, e}, [&](loaded l) { done.set_value(std::move(l)); });
    return get(done.get_future());
  }
  changes fetch(partition_id p, revision_t after) {
    std::promise<changes> done;
    s->fetch({p, after}, [&](changes c) { done.set_value(std::move(c)); });
    return get(done.get_future());
  }
  std::vector<busv1::Revision> announced(partition_id p) {
    std::lock_guard lock{mutex};
    std::vector<busv1::Revision> out;
    for (const auto& r : commits)
      if (r.partition() == p) out.push_back(r);
    return out;
  }

  std::shared_ptr<lineage> history = std::make_shared<lineage>();
  lease_store lease;
  std::unique_ptr<store> s;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<busv1::Revision> commits;
  std::vector<partition_id> rivals;
  bool up = false;
  std::string lost;  ///< why it would have stepped down
};

inline const std::string project = "acme";
inline const partition_id home = partition_of(project, 64);

inline v1::Row tunnel_row(const std::string& name, std::vector<std::string> hostnames = {}, const std::string& in = project) {
  v1::Row row;
  auto& t = *row.mutable_tunnel();
  t.set_project(in);
  t.set_name(name);
  t.set_uid("uid-" + in + "-" + name);
  t.set_generation(1);
  t.set_enabled(true);
  t.set_gateway_class("default");
  for (auto& h : hostnames) t.add_hostnames(h);
  auto& rule = *t.add_rules();
  rule.set_path_prefix("/");
  rule.set_connector("box");
  rule.set_target("http://localhost:8080");
  rule.set_tls_verify(false);
  auto& c = *t.add_conditions();
  c.set_type("Accepted");
  c.set_status("True");
  c.set_observed_generation(1);
  *c.mutable_last_transition_time() = timestamp_from_ms(1'700'000'000'123);
  return row;
}
inline v1::Row connector_row(const std::string& name, const std::string& key = "") {
  v1::Row row;
  auto& c = *row.mutable_connector();
  c.set_project(project);
  c.set_name(name);
  c.set_uid("uid-" + name);
  c.set_generation(1);
  c.set_class_("default");
  c.set_lease_duration_ms(30'000);
  c.set_public_key(key);
  return row;
}
inline v1::Row attachment_row(const std::string& connector, const v1::Row& tunnel) {
  v1::Row row;
  auto& a = *row.mutable_attachment();
  a.set_project(project);
  a.set_connector(connector);
  a.set_tunnel(tunnel.tunnel().name());
  a.set_tunnel_uid(tunnel.tunnel().uid());
  a.set_tunnel_generation(1);
  a.set_target_state("Unknown");
  return row;
}

inline save_request writing(epoch_t epoch, std::vector<row_write> rows, partition_id p = home) {
  save_request r;
  r.write = "test";
  r.partition = p;
  r.epoch = epoch;
  r.rows = std::move(rows);
  return r;
}
inline save_request inserting(epoch_t epoch, v1::Row row, partition_id p = home) {
  save_request r = writing(epoch, {{row_write::op::insert, row, 0, true}}, p);
  if (row.has_tunnel() && row.tunnel().hostnames_size() > 0)
    r.claims = claim_change{row.tunnel().project(), row.tunnel().name(), row.tunnel().uid(),
                            {row.tunnel().hostnames().begin(), row.tunnel().hostnames().end()}, {}};
  return r;
}
inline save_request updating(epoch_t epoch, v1::Row row, std::int64_t expected) {
  return writing(epoch, {{row_write::op::update, std::move(row), expected, false}});
}
inline save_request erasing(epoch_t epoch, v1::Row row, std::int64_t expected) {
  return writing(epoch, {{row_write::op::erase, std::move(row), expected, true}});
}

inline const saved& must_save(const save_result& r) {
  if (const auto* refused = std::get_if<save_refused>(&r)) FAIL("refused: " << refused->field << " " << refused->message);
  if (const auto* c = std::get_if<save_conflict>(&r)) FAIL("conflict: " << c->what);
  if (const auto* u = std::get_if<save_unavailable>(&r)) FAIL("unavailable: " << u->message);
  REQUIRE(std::holds_alternative<saved>(r));
  return std::get<saved>(r);
}
template <class T> const T& must_be(const save_result& r) {
  INFO("answer " << r.index());
  if (const auto* refused = std::get_if<save_refused>(&r)) INFO("refused: " << refused->field << " " << refused->message);
  REQUIRE(std::holds_alternative<T>(r));
  return std::get<T>(r);
}

}  // namespace warren::store_test
