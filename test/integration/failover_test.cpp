// test/integration/failover_test.cpp -- PostgreSQL's own troubles: a standby takes over that lacks the last second,
// an older copy of the data is put back, a former primary still runs. Recognised, and everything read anew.
#include <catch2/catch.hpp>

#include <thread>

#include <grpcpp/grpcpp.h>

#include "test/integration/store_fixture.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

using namespace warren;
using namespace warren::store_test;
namespace api = warren::admin::v1;

namespace {

constexpr stack::milliseconds patience{30'000};
constexpr const char* second_life = "4294967296";

std::filesystem::path postgres_bin() {
  std::filesystem::path newest;
  for (const auto& each : std::filesystem::directory_iterator{"/usr/lib/postgresql"})
    if (std::filesystem::exists(each.path() / "bin/pg_basebackup")) newest = std::max(newest, each.path() / "bin");
  return newest;
}

/// A PostgreSQL on a folder that another one's backup was put into.
class copied_server {
public:
  copied_server(const stack::scratch& place, const std::string& name) : folder_{place.folder(name)}, log_{place.path() / (name + ".log")} {}
  void copy(const stack::postgres_cluster& from, const std::vector<std::string>& how) {
    stack::program p{.name = "pg_basebackup",
                     .path = postgres_bin() / "pg_basebackup",
                     .arguments = {"-D", folder_.string(), "-c", "fast", "--no-sync", "-d", from.url("postgres")}};
    p.arguments.insert(p.arguments.end(), how.begin(), how.end());
    const auto made = stack::run(p);
    INFO(made.err);
    REQUIRE(made.code == 0);
  }
  void start(std::uint16_t port) {
    const auto offset = stack::read_file(log_).size();
    server_ = stack::process{{.name = "postgres (copy)",
                              .path = postgres_bin() / "postgres",
                              .arguments = {"-D", folder_.string(), "-p", std::to_string(port), "-k", folder_.string(), "-c",
                                            "listen_addresses=127.0.0.1", "-c", "max_connections=100", "-c",
                                            "shared_buffers=64MB"},
                              .log = log_,
                              .death_signal = SIGQUIT,
                              .stop_signal = SIGINT}};
    const bool up = server_.await_log("ready to accept", patience, offset);  // also "… read-only connections"
    INFO(stack::read_file(log_));
    REQUIRE(up);
  }
  const std::filesystem::path& folder() const { return folder_; }

private:
  std::filesystem::path folder_, log_;
  stack::process server_;
};

/// The same address with another port; with two of them: both, and whichever takes writes.
std::string with_port(const std::string& url, std::uint16_t from, const std::string& to) {
  const auto old = ":" + std::to_string(from) + "/";
  auto out = url;
  out.replace(out.find(old), old.size(), ":" + to + "/");
  return out;
}

/// A primary and a streaming standby.
struct pair_of_servers {
  pair_of_servers() {
    stack::run_sql(primary.url("postgres"), "CREATE DATABASE warren");
    migrate(primary.url("warren"), migrations());
    standby.copy(primary, {"-R", "-X", "stream"});
    standby.start(standby_port);
  }
  std::string standby_url(const std::string& database = "warren") const {
    return with_port(primary.url(database), primary.port(), std::to_string(standby_port));
  }
  std::string both() const {
    return with_port(primary.url("warren"), primary.port(),
                     std::to_string(primary.port()) + ",127.0.0.1:" + std::to_string(standby_port)) +
           "?target_session_attrs=read-write";
  }
  /// What is committed from here on, the standby never hears of.
  void cut_off() {
    const auto there = stack::run_sql(primary.url("postgres"), "SELECT pg_current_wal_lsn()");
    const auto position = there.substr(0, there.find('\n'));
    const auto on_standby = [&](const std::string& question) { return stack::run_sql(standby_url("postgres"), question); };
    REQUIRE(stack::poll_until([&] { return on_standby("SELECT pg_last_wal_replay_lsn() >= '" + position + "'") == "t\n"; }, patience));
    stack::run_sql(standby_url("postgres"), "ALTER SYSTEM SET primary_conninfo = ''");
    stack::run_sql(standby_url("postgres"), "SELECT pg_reload_conf()");
    REQUIRE(stack::poll_until([&] { return on_standby("SELECT count(*) FROM pg_stat_wal_receiver") == "0\n"; }, patience));
  }
  void promote() {
    stack::run_sql(standby_url("postgres"), "SELECT pg_promote()");
    REQUIRE(stack::poll_until([&] { return stack::run_sql(standby_url("postgres"), "SELECT pg_is_in_recovery()") == "f\n"; }, patience));
  }
  std::string now(const std::string& question) const { return stack::run_sql(standby_url(), question); }

  stack::scratch place{"warren-pair"};
  stack::postgres_cluster primary{place};
  std::uint16_t standby_port = stack::free_port();
  copied_server standby{place, "standby"};
};

/// Warren on a database that is not the stack's own; what gateways do is shown where there is an Envoy.
struct world {
  explicit world(const std::string& url, bool start = true)
      : s{{.start = start, .configuration = {{"database.url", url}}}}, envoy{stack::has_envoy()} {}
  void create(const std::string& name) {
    const auto host = name + ".example.org";
    if (envoy) return s.create_tunnel(name, host, "home");
    s.must_ctl({"tunnel", "create", name, "--hostname", host, "--connector", "home", "--target", s.demo_origin().url()});
  }
  /// As far as it gets without gateways, where there are none.
  bool comes_to_life(const std::string& name) const {
    if (envoy) return s.await_ready(name, patience);
    return stack::poll_until(
        [&] {
          const auto t = s.tunnel(name);
          return stack::stack::condition(t, "Accepted") == "True" && stack::stack::condition(t, "TargetReachable") == "True";
        },
        patience);
  }
  bool gone(const std::string& name) const {
    return stack::poll_until([&] { return s.ctl({"tunnel", "get", name}).err.find("NOT_FOUND") != std::string::npos; }, patience);
  }
  bool meets(const std::string& host, int status) const {
    return !envoy || stack::poll_until([&] { return s.visit(host + ".example.org").status == status; }, patience);
  }
  std::unique_ptr<api::TunnelService::Stub> stub() const {
    return api::TunnelService::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(s.admin_port()), grpc::InsecureChannelCredentials()));
  }
  /// A watch up to its last snapshot event: the names, and the token that it can be resumed with.
  grpc::Status watch(const std::string& from, std::set<std::string>& names, std::string& token) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    api::WatchTunnelsRequest request;
    request.set_parent("projects/" + s.options().project);
    request.set_resume_token(from);
    auto talk = stub();
    auto reader = talk->WatchTunnels(&context, request);
    for (api::WatchTunnelsResponse r; reader->Read(&r);) {
      if (!r.resume_token().empty()) token = r.resume_token();
      if (r.has_tunnel()) names.insert(r.tunnel().name().substr(r.tunnel().name().rfind('/') + 1));
      if (r.has_caught_up()) {
        context.TryCancel();
        reader->Finish();
        return grpc::Status::OK;
      }
    }
    return reader->Finish();
  }

  stack::stack s;
  bool envoy;
};

const char* const owners = "SELECT count(*) FROM partition WHERE owner <> 0";

/// What somebody who had not noticed would do wrong.
void is_another_life(const std::function<std::string(const std::string&)>& sql, const char* incarnation = "2") {
  CHECK(sql("SELECT incarnation FROM installation") == incarnation + std::string{"\n"});
  CHECK(stack::poll_until([&] { return sql(owners) == "65\n"; }, patience));
  CHECK(sql("SELECT min(epoch) > " + std::string{second_life} + ", min(revision) >= " + second_life + " FROM partition") == "t|t\n");
}

}  // namespace

TEST_CASE("a standby that lacks the last second takes over: what was lost is gone everywhere, the rest goes on") {
  pair_of_servers db;
  world w{db.both()};
  w.s.add_agent("home").await_session();
  for (const char* name : {"kept", "victim", "moved"}) w.create(name);
  for (const char* name : {"kept", "victim", "moved"}) REQUIRE(w.comes_to_life(name));
  std::set<std::string> names;
  std::string token;
  REQUIRE(w.watch("", names, token).ok());
  CHECK(names == std::set<std::string>{"kept", "moved", "victim"});
  const auto warrend = w.s.warrend().pid();

  db.cut_off();
  w.create("lost");
  REQUIRE(w.comes_to_life("lost"));
  w.s.must_ctl({"tunnel", "delete", "victim"});
  REQUIRE(w.gone("victim"));
  w.s.must_ctl({"tunnel", "update", "moved", "--hostname", "elsewhere.example.org"});
  REQUIRE(w.comes_to_life("moved"));
  REQUIRE(w.meets("lost", 200));
  REQUIRE(w.meets("victim", 404));
  REQUIRE(w.meets("elsewhere", 200));
  REQUIRE(w.meets("moved", 404));

  std::unique_ptr<stack::continuous_visitor> visitor;
  if (w.envoy) {
    visitor = std::make_unique<stack::continuous_visitor>(w.s.visitor_port(), stack::request{.host = "kept.example.org"}, stack::milliseconds{3});
    REQUIRE(visitor->await_status(200, patience));
  }
  db.primary.kill();
  db.promote();
  const auto sql = [&](const std::string& question) { return db.now(question); };
  REQUIRE(stack::poll_until([&] { return sql("SELECT incarnation FROM installation") == "2\n"; }, patience));
  is_another_life(sql);
  CHECK(sql("SELECT timeline FROM installation") == "2\n");

  // The truth of the new primary, in the API, at the gateway and at the agent.
  CHECK(w.gone("lost"));
  for (const char* name : {"kept", "victim", "moved"}) {
    INFO(name);
    CHECK(w.comes_to_life(name));
    CHECK(w.meets(name, 200));
  }
  CHECK(w.meets("lost", 404));
  CHECK(w.meets("elsewhere", 404));
  CHECK(stack::poll_until([&] { return sql("SELECT bool_and(attached_generation = attachment_generation AND online) FROM connector") == "t\n"; }, patience));
  CHECK(sql("SELECT string_agg(tunnel, ' ' ORDER BY tunnel) FROM attachment") == "kept moved victim\n");

  std::string none;
  names.clear();
  CHECK(w.watch(token, names, none).error_code() == grpc::StatusCode::OUT_OF_RANGE);
  names.clear();
  CHECK(w.watch("", names, token).ok());
  CHECK(names == std::set<std::string>{"kept", "moved", "victim"});

  // It works, not only shows; and the names of the lost second are free.
  w.create("lost");
  CHECK(w.comes_to_life("lost"));
  CHECK(w.meets("lost", 200));
  CHECK(w.s.warrend().running());
  CHECK(w.s.warrend().pid() == warrend);
  CHECK(w.s.metric("warren_reconcile_errors_total") == 0);
  if (visitor) {
    visitor->stop();
    for (const auto& seen : visitor->answers()) {
      INFO(seen.what.status << " " << seen.what.body << " " << seen.what.error);
      CHECK(seen.what.status == 200);
      if (seen.what.status != 200) break;
    }
  }
}

TEST_CASE("an instance that began in the second that was lost goes on, under its own number") {
  pair_of_servers db;
  world w{db.both(), false};
  db.cut_off();
  w.s.start_warrend();
  REQUIRE(stack::run_sql(db.primary.url("warren"), "SELECT count(*) FROM instance") == "1\n");
  const auto warrend = w.s.warrend().pid();
  db.primary.kill();
  db.promote();
  CHECK(stack::poll_until([&] { return db.now("SELECT id, name FROM instance") == "1|warren-1\n"; }, patience));
  is_another_life([&](const std::string& question) { return db.now(question); });
  CHECK(w.s.must_ctl({"tunnel", "create", "web", "--hostname", "web.example.org", "--connector", "home", "--target", "http://localhost:1"}).ok());
  CHECK(w.s.warrend().pid() == warrend);
  // Whoever starts later gets another number.
  lease_store next{{.conninfo = db.standby_url(), .name = "next"}};
  CHECK(next.start() == "");
  CHECK(next.id() > 1);
}

TEST_CASE("an older copy of the data that is put back is recognised, also on the same timeline, by whoever remembers") {
  const bool archived = GENERATE(true, false);
  INFO((archived ? "recovered to its end: another timeline" : "just started: the same timeline"));
  stack::scratch place{"warren-restore"};
  stack::postgres_cluster server{place};
  stack::run_sql(server.url("postgres"), "CREATE DATABASE warren");
  migrate(server.url("warren"), migrations());
  world w{server.url("warren")};
  w.s.add_agent("home").await_session();
  for (const char* name : {"kept", "victim"}) w.create(name);
  for (const char* name : {"kept", "victim"}) REQUIRE(w.comes_to_life(name));

  copied_server backup{place, "backup"};
  backup.copy(server, {"-X", "fetch"});
  w.create("lost");
  REQUIRE(w.comes_to_life("lost"));
  w.s.must_ctl({"tunnel", "delete", "victim"});
  REQUIRE(w.gone("victim"));

  server.stop();
  if (archived) {
    stack::write_file(backup.folder() / "recovery.signal", "");
    stack::write_file(backup.folder() / "postgresql.auto.conf", "restore_command = 'false'\n");
  }
  backup.start(server.port());
  const auto sql = [&](const std::string& question) { return stack::run_sql(server.url("warren"), question); };
  REQUIRE(stack::poll_until([&] { return sql("SELECT incarnation FROM installation") == "2\n"; }, patience));
  is_another_life(sql);
  CHECK(sql("SELECT timeline FROM installation") == (archived ? "2\n" : "1\n"));
  CHECK(w.gone("lost"));
  for (const char* name : {"kept", "victim"}) {
    INFO(name);
    CHECK(w.comes_to_life(name));
    CHECK(w.meets(name, 200));
  }
  CHECK(w.meets("lost", 404));
  w.create("lost");
  CHECK(w.comes_to_life("lost"));
}

TEST_CASE("an older copy under connections that live on is recognised by the first write") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  auto last = must_save(a.save(inserting(epoch, tunnel_row("t")))).revision;
  for (const char* name : {"u", "v"}) last = must_save(a.save(inserting(epoch, tunnel_row(name)))).revision;
  // As if it had been restored in place by statements.
  db.exec("SET warren.writer = 'on'; DELETE FROM tunnel WHERE name IN ('u', 'v'); UPDATE partition SET revision = revision - 2 WHERE id = " +
          std::to_string(home));
  must_be<save_lost>(a.save(inserting(epoch, tunnel_row("w"))));
  CHECK(db.value<std::int64_t>("SELECT incarnation FROM installation") == 2);
  CHECK(a.renew().incarnation == 2);
  const auto later = a.own(home);
  CHECK(later > (std::int64_t{1} << 32));
  CHECK(must_save(a.save(inserting(later, tunnel_row("w")))).revision > (std::int64_t{1} << 32));
  CHECK(last > 0);
}

TEST_CASE("what nobody remembers an operator says") {
  database db;
  {
    instance a{db};
    must_save(a.save(inserting(a.own(home), tunnel_row("t"))));
  }
  instance a{db};
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, tunnel_row("u"))));
  CHECK(db.value<std::int64_t>("SELECT warren_restored(4)") == 5);
  must_be<save_lost>(a.save(inserting(epoch, tunnel_row("v"))));
  CHECK(a.renew().incarnation == 5);
  const auto later = a.own(home);
  CHECK(later > (std::int64_t{4} << 32));
  must_save(a.save(inserting(later, tunnel_row("v"))));
  // Connections that were open before speak of the new life, too.
  CHECK(a.announced(home).back().incarnation() == 5);
  const auto all = a.fetch(home, 1);
  CHECK(all.complete);
  CHECK(all.incarnation == 5);
}

TEST_CASE("a former primary that still runs is neither read nor written") {
  pair_of_servers db;
  instance a{db.both(), "a"};
  must_save(a.save(inserting(a.own(home), tunnel_row("t"))));
  db.cut_off();
  db.primary.stop();
  db.promote();
  REQUIRE(stack::poll_until([&] { return a.renew().incarnation == 2; }, patience));
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, tunnel_row("u"))));

  // It is back, is the first of the two, and takes writes; the new one is cut off from us.
  db.primary.start();
  stack::run_sql(db.standby_url("postgres"), "ALTER SYSTEM SET default_transaction_read_only = on");
  stack::run_sql(db.standby_url("postgres"), "SELECT pg_reload_conf()");
  stack::run_sql(db.standby_url("postgres"), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'warrend/%'");
  must_be<save_unavailable>(a.save(inserting(epoch, tunnel_row("v"))));
  CHECK_THAT(a.renew().error, Catch::Contains("former primary"));
  CHECK(a.fetch(home, 0).error != "");
  CHECK(stack::run_sql(db.primary.url("warren"), "SELECT incarnation FROM installation") == "1\n");
  CHECK(stack::run_sql(db.primary.url("warren"), "SELECT string_agg(name, ' ') FROM tunnel") == "t\n");
  CHECK(a.lost.empty());

  db.primary.stop();
  stack::run_sql(db.standby_url("postgres"), "ALTER SYSTEM RESET default_transaction_read_only");
  stack::run_sql(db.standby_url("postgres"), "SELECT pg_reload_conf()");
  REQUIRE(stack::poll_until([&] { return a.renew().renewed; }, patience));
  must_save(a.save(inserting(a.own(home), tunnel_row("v"))));
  CHECK(db.now("SELECT string_agg(name, ' ' ORDER BY name) FROM tunnel") == "t u v\n");
}
