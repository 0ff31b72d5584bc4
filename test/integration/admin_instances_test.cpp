// test/integration/admin_instances_test.cpp -- the admin API of two warrend over one database: watches that go on
// elsewhere, changes while partitions move, draining.
#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>

#include "test/support/stack.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

using namespace warren;
using namespace std::chrono_literals;
namespace api = warren::admin::v1;
namespace st = warren::stack;

namespace {

constexpr auto patience = 20s;

std::shared_ptr<grpc::Channel> channel_to(std::uint16_t port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments);
}

/// A stack whose warrend has a companion over the same database and bus.
struct pair_of_instances {
  st::stack first{{.with_envoy = false, .partitions = 8}};
  std::uint16_t port = st::free_port();
  st::process second;
  std::string first_name;  // as configured

  pair_of_instances() {
    first_name = first.must_ctl({"instance", "list", "-o", "json"}).json().at("instances").at(0).at("display_name");
    start_second();
    await_share();
  }
  void start_second() {
    second = st::process{{.name = "warrend-2",
                          .path = st::bin_dir() / "warrend",
                          .arguments = {"serve", "-c", (first.directory() / "warrend.toml").string(), "--instance-name", "second",
                                        "--admin-listen", fmt::format("127.0.0.1:{}", port), "--xds-listen",
                                        fmt::format("127.0.0.1:{}", st::free_port()), "--http-listen",
                                        fmt::format("127.0.0.1:{}", st::free_port())},
                          .log = first.directory() / "warrend-2.log"}};
    REQUIRE(second.await_log("\"msg\":\"ready: ", patience));
  }
  st::told ctl(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"--server", fmt::format("127.0.0.1:{}", port)});
    auto r = st::run({.name = "warrenctl", .path = st::bin_dir() / "warrenctl", .arguments = std::move(arguments)});
    return {r.code, std::move(r.out), std::move(r.err)};
  }
  nlohmann::json instance(const std::string& name) const {
    const auto all = ctl({"instance", "list", "-o", "json"}).json();
    if (!all.is_object()) return {};
    for (const auto& each : all.at("instances"))
      if (each.at("display_name") == name && each.at("alive")) return each;
    return {};
  }
  int partitions_of(const std::string& name) const {
    const auto i = instance(name);
    return i.is_object() ? i.at("partitions").get<int>() : -1;
  }
  void await_share() const {
    REQUIRE(st::poll_until([&] { return partitions_of("second") > 0 && partitions_of(first_name) > 0; }, patience));
  }
};

api::CreateTunnelRequest tunnel(const std::string& project, const std::string& name) {
  api::CreateTunnelRequest q;
  q.set_parent("projects/" + project);
  q.set_tunnel_id(name);
  q.mutable_tunnel()->add_hostnames(name + "." + project + ".example.com");
  auto& rule = *q.mutable_tunnel()->add_rules();
  rule.set_connector("c");
  rule.set_target("http://localhost");
  return q;
}
grpc::Status create(api::TunnelService::Stub& stub, const std::string& project, const std::string& name) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + 10s);
  api::Tunnel answer;
  return stub.CreateTunnel(&context, tunnel(project, name), &answer);
}

/// Creates tunnels in many projects through one instance, one after another in each of some threads.
class writers {
public:
  explicit writers(std::uint16_t port) {
    for (int i = 0; i < 4; ++i)
      threads_.emplace_back([this, i, port] {
        auto stub = api::TunnelService::NewStub(channel_to(port));
        for (int n = 0; !over_; ++n) {
          const auto project = fmt::format("w{}-{}", i, n % 16);
          const auto begun = std::chrono::steady_clock::now();
          const auto status = create(*stub, project, fmt::format("t{}", n));
          const auto took = std::chrono::steady_clock::now() - begun;
          const std::lock_guard lock{mutex_};
          ++made_;
          longest_ = std::max<std::chrono::nanoseconds>(longest_, took);
          if (!status.ok()) failures_.push_back(fmt::format("{}: {}", project, status.error_message()));
        }
      });
  }
  ~writers() { stop(); }
  int made() {
    const std::lock_guard lock{mutex_};
    return made_;
  }
  /// Failures, each in its words.
  std::vector<std::string> stop() {
    over_ = true;
    for (auto& t : threads_)
      if (t.joinable()) t.join();
    return failures_;
  }
  long long longest_ms() const { return std::chrono::duration_cast<std::chrono::milliseconds>(longest_).count(); }

private:
  std::atomic<bool> over_{false};
  std::mutex mutex_;
  int made_ = 0;
  std::chrono::nanoseconds longest_{0};
  std::vector<std::string> failures_;
  std::vector<std::thread> threads_;
};

void go_on(writers& w, int more) {
  const auto from = w.made();
  REQUIRE(st::poll_until([&] { return w.made() >= from + more; }, 30s));
}

bool can_run() {
  if (st::has_shared_postgres()) return true;
  WARN("SKIPPED: WARREN_TEST_PG names no PostgreSQL");
  return false;
}

}  // namespace

TEST_CASE("a watch goes on at another instance, from where it was") {
  if (!can_run()) return;
  pair_of_instances both;
  auto here = api::TunnelService::NewStub(channel_to(both.first.admin_port()));
  auto there = api::TunnelService::NewStub(channel_to(both.port));
  for (const auto* name : {"old-1", "old-2"}) REQUIRE(create(*here, "p", name).ok());
  REQUIRE(create(*here, "q", "elsewhere").ok());

  api::WatchTunnelsRequest q;
  q.set_parent("projects/p");
  api::WatchTunnelsResponse r;
  std::set<std::string> told;
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    auto reader = here->WatchTunnels(&context, q);
    while (reader->Read(&r) && !r.has_caught_up()) told.insert(r.tunnel().name());
    REQUIRE(r.has_caught_up());
    CHECK(told == std::set<std::string>{"projects/p/tunnels/old-1", "projects/p/tunnels/old-2"});
    q.set_resume_token(r.resume_token());
    context.TryCancel();
  }
  // While nobody watches: one comes, one goes, one changes.
  REQUIRE(create(*there, "p", "new").ok());
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    api::DeleteTunnelRequest gone;
    gone.set_name("projects/p/tunnels/old-1");
    api::Tunnel answer;
    REQUIRE(there->DeleteTunnel(&context, gone, &answer).ok());
  }
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  auto reader = there->WatchTunnels(&context, q);
  std::set<std::string> changed, deleted;
  // Deletion takes its steps; whether the last of them is told before or after catching up is open.
  for (bool caught_up = false; !caught_up || deleted.empty();) {
    REQUIRE(reader->Read(&r));
    if (r.has_tunnel()) changed.insert(r.tunnel().name());
    if (!r.deleted().empty()) deleted.insert(r.deleted());
    caught_up |= r.has_caught_up();
  }
  CHECK(changed.count("projects/p/tunnels/new") == 1);
  CHECK(deleted == std::set<std::string>{"projects/p/tunnels/old-1"});
  // And what comes through the first instance is told by the second.
  REQUIRE(create(*here, "p", "newer").ok());
  do REQUIRE(reader->Read(&r));
  while (r.tunnel().name() != "projects/p/tunnels/newer");
  context.TryCancel();
}

TEST_CASE("warrenctl's watch outlives the instance that it began with") {
  if (!can_run()) return;
  pair_of_instances both;
  auto there = api::TunnelService::NewStub(channel_to(both.port));
  REQUIRE(create(*there, "p", "before").ok());
  auto watch = both.first.launch_ctl({"-p", "p", "tunnel", "watch", "-o", "json"}, "watch.log");
  REQUIRE(watch.await_log("caught_up", patience));
  both.first.stop_warrend();
  REQUIRE(create(*there, "p", "meanwhile").ok());
  both.first.start_warrend();
  CHECK(watch.await_log("projects/p/tunnels/meanwhile", patience));
  CHECK(watch.running());
}

TEST_CASE("no change fails while an instance hands its partitions over, or dies") {
  if (!can_run()) return;
  pair_of_instances both;
  writers w{both.port};
  go_on(w, 100);
  SECTION("a clean stop") { both.first.stop_warrend(); }
  SECTION("SIGKILL") { both.first.kill_warrend(); }
  go_on(w, 100);
  REQUIRE(st::poll_until([&] { return both.partitions_of("second") == 9; }, patience));
  go_on(w, 100);
  const auto failures = w.stop();
  CHECK(failures == std::vector<std::string>{});
  std::printf("longest change: %lld ms of %d\n", w.longest_ms(), w.made());
  // Each was carried out once: as many rows as answers, and one entry each in the audit trail.
  CHECK(both.first.sql("SELECT count(*) FROM tunnel WHERE project LIKE 'w%'").substr(0, 20).find(std::to_string(w.made())) == 0);
  CHECK(both.first.sql("SELECT count(*) FROM audit_event WHERE method = 'CreateTunnel'").find(std::to_string(w.made())) == 0);
}

TEST_CASE("a caller whose own instance dies under the call asks another one, and it is one change") {
  if (!can_run()) return;
  pair_of_instances both;
  const auto addresses = fmt::format("127.0.0.1:{},127.0.0.1:{}", both.first.admin_port(), both.port);
  const std::string locks = "SELECT count(*) FROM pg_locks WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                            "AND relation = 'audit_event'::regclass AND ";
  // Nothing can be committed for a while: the call is in the hands of the first one, who dies with it.
  std::thread holds{[&] { both.first.sql("BEGIN; LOCK TABLE audit_event IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(2); COMMIT"); }};
  const bool held = st::poll_until([&] { return both.first.sql(locks + "granted AND mode = 'AccessExclusiveLock'") == "1\n"; }, patience, 5ms);
  st::process caller{{.name = "warrenctl",
                      .path = st::bin_dir() / "warrenctl",
                      .arguments = {"--server", addresses, "-p", "p", "tunnel", "create", "t", "--hostname", "t.example.com", "--connector", "c",
                                    "--target", "http://localhost", "--timeout", "20s"},
                      .log = both.first.directory() / "caller.log"}};
  const bool waits = st::poll_until([&] { return both.first.sql(locks + "NOT granted") != "0\n"; }, patience, 5ms);
  both.first.kill_warrend();
  holds.join();
  REQUIRE(held);
  REQUIRE(waits);
  const auto ended = caller.wait(patience);
  INFO(caller.log());
  REQUIRE(ended);
  CHECK(ended->code == 0);
  CHECK(both.first.sql("SELECT count(*) FROM tunnel") == "1\n");
  CHECK(both.first.sql("SELECT count(*) FROM audit_event WHERE method = 'CreateTunnel'") == "1\n");
  // From the beginning on: the first of them does not answer.
  st::process later{{.name = "warrenctl",
                     .path = st::bin_dir() / "warrenctl",
                     .arguments = {"--server", addresses, "-p", "p", "tunnel", "list", "-o", "name"},
                     .log = both.first.directory() / "later.log"}};
  const auto listed = later.wait(patience);
  REQUIRE(listed);
  CHECK(listed->code == 0);
  CHECK(later.log() == "projects/p/tunnels/t\n");
}

TEST_CASE("a caller and a watch that are at an instance that is stopped go on at the other one") {
  if (!can_run()) return;
  pair_of_instances both;
  const auto addresses = fmt::format("127.0.0.1:{},127.0.0.1:{}", both.first.admin_port(), both.port);
  const auto launch = [&](std::vector<std::string> words, const std::string& log) {
    words.insert(words.begin(), {"--server", addresses, "-p", "p"});
    return st::process{{.name = "warrenctl", .path = st::bin_dir() / "warrenctl", .arguments = std::move(words), .log = both.first.directory() / log}};
  };
  auto watch = launch({"tunnel", "watch", "-o", "json"}, "watch.log");
  REQUIRE(watch.await_log("caught_up", patience));
  both.first.freeze_warrend();
  auto caller = launch({"tunnel", "create", "meanwhile", "--hostname", "t.example.com", "--connector", "c", "--target", "http://localhost", "--timeout", "60s"},
                       "caller.log");
  const auto ended = caller.wait(60s);
  const bool watched = watch.await_log("projects/p/tunnels/meanwhile", patience);
  both.first.thaw_warrend();
  INFO(caller.log() << watch.log());
  REQUIRE(ended);
  CHECK(ended->code == 0);
  CHECK(watched);
  CHECK(watch.running());
  CHECK(both.first.sql("SELECT count(*) FROM audit_event WHERE method = 'CreateTunnel'") == "1\n");
}

TEST_CASE("an instance is drained by name: it holds nothing, and still answers") {
  if (!can_run()) return;
  pair_of_instances both;
  const auto& name = both.first_name;
  writers w{both.first.admin_port()};
  go_on(w, 20);
  const auto r = both.ctl({"instance", "drain", name, "--wait", "-o", "json"});
  INFO(r.err);
  REQUIRE(r.code == 0);
  CHECK(r.json().at("draining") == true);
  CHECK_THAT(r.err, Catch::Contains("takes partitions again when it is restarted"));
  CHECK(r.json().at("partitions") == 0);
  const auto drains = "SELECT resource, principal, after ->> 'draining' FROM audit_event WHERE method = 'DrainInstance'";
  const auto drained = r.json().at("name").get<std::string>() + "|local|true\n";
  CHECK(both.first.sql(drains) == drained);
  go_on(w, 20);  // through the one that was drained
  CHECK(w.stop() == std::vector<std::string>{});
  CHECK(both.partitions_of("second") == 9);
  CHECK(both.ctl({"instance", "get", name, "-o", "json"}).json().at("draining") == true);
  CHECK(both.ctl({"instance", "drain", name}).code == 0);  // again changes nothing
  CHECK(both.first.sql(drains) == drained);
  const auto last = both.ctl({"instance", "drain", "second"});
  CHECK(last.code == 1);
  CHECK(last.err.find("FAILED_PRECONDITION") != std::string::npos);
  const auto nobody = both.ctl({"instance", "drain", "nobody"});
  CHECK(nobody.code == 1);
  CHECK(nobody.err.find("NOT_FOUND") != std::string::npos);
  CHECK(both.ctl({"instance", "drain", "instances/x"}).err.find("name: ") != std::string::npos);
  // Once restarted it takes part again.
  both.first.stop_warrend();
  both.first.start_warrend();
  both.await_share();
}
