// bench/failover.cpp -- how long nobody takes writes of a partition when the instance that owns it is killed, stopped,
// or vanishes; and how long etcd, beside it, has no leader of an election in the same case.
#include <fmt/format.h>

#include <atomic>
#include <filesystem>
#include <mutex>
#include <thread>

#include "bench/visitor.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto patience = milliseconds{60'000};

/// Writes to one project without end, one write after the other, and keeps when each was done.
class writer {
public:
  writer(const api& server, std::string project) : project_{std::move(project)}, thread_{[this, &server] { run(server); }} {}
  ~writer() {
    stopping_ = true;
    thread_.join();
  }
  const std::string& project() const { return project_; }
  std::size_t failed() const { return failed_; }
  std::string why() const {
    const std::lock_guard lock{mutex_};
    return why_;
  }
  /// The longest time without a write that was done, from `from` on.
  double longest_gap(clock::time_point from) const {
    const std::lock_guard lock{mutex_};
    double longest = 0;
    for (std::size_t n = 1; n < done_.size(); ++n)
      if (done_[n] >= from) longest = std::max(longest, ms_between(std::max(done_[n - 1], from), done_[n]));
    return longest;
  }
  /// Whether a write that began after `since` is done.
  bool wrote_after(clock::time_point since) const {
    const std::lock_guard lock{mutex_};
    return last_begun_ >= since;
  }

private:
  void run(const api& server) {
    for (int n = 0; !stopping_; ++n) {
      const auto begun = clock::now();
      const auto status = server.create_tunnel(project_, fmt::format("w{}", n), fmt::format("w{}.{}.bench.example", n, project_),
                                               "nobody", "http://localhost:80");
      const std::lock_guard lock{mutex_};
      if (status.ok()) {
        done_.push_back(clock::now());
        last_begun_ = begun;
      } else {
        ++failed_;
        why_ = status.error_message();
      }
    }
  }

  std::string project_;
  mutable std::mutex mutex_;
  std::vector<clock::time_point> done_;
  clock::time_point last_begun_{};
  std::string why_;
  std::atomic<std::size_t> failed_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

struct world {
  stack::stack s;
  explicit world(stack::stack_options o) : s{std::move(o)} {}

  std::vector<const stack::instance*> all() {
    std::vector<const stack::instance*> out;
    for (std::size_t n = 0; n < s.instances(); ++n) out.push_back(&s.at(n));
    return out;
  }
  void settle() {
    if (!s.await_spread(all(), patience)) throw stack::stack_error("the partitions are not spread evenly");
  }
};

/// etcd's own way to have one of several do something: a lock with a lease of 3 s. The next one has it when the lease
/// is over.
std::optional<sample> etcd_leaders(int rounds, const command_line& line) {
  const auto find = [](const std::string& name) -> std::filesystem::path {
    std::istringstream folders{std::string{std::getenv("PATH") == nullptr ? "" : std::getenv("PATH")} + ":/usr/bin"};
    for (std::string folder; std::getline(folders, folder, ':');)
      if (std::filesystem::exists(std::filesystem::path{folder} / name)) return std::filesystem::path{folder} / name;
    return {};
  };
  const auto server = find("etcd"), ctl = find("etcdctl");
  if (server.empty() || ctl.empty()) return std::nullopt;
  const stack::scratch place{"warren-etcd"};
  const auto client = fmt::format("http://127.0.0.1:{}", stack::free_port());
  const auto peer = fmt::format("http://127.0.0.1:{}", stack::free_port());
  stack::process etcd{{.name = "etcd",
                       .path = server,
                       .arguments = {"--data-dir", (place.folder("data") / "etcd").string(), "--listen-client-urls", client,
                                     "--advertise-client-urls", client, "--listen-peer-urls", peer,
                                     "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer},
                       .log = place.folder("log") / "etcd"}};
  if (!etcd.await_log("ready to serve client requests", milliseconds{20'000}))
    throw stack::stack_error("etcd does not start: " + etcd.log());
  const auto candidate = [&](int n) {
    return stack::process{{.name = "etcdctl lock",
                           .path = ctl,
                           .arguments = {"--endpoints", client, "lock", "--ttl", "3", "--", "leader", "/bin/sh", "-c",
                                         "echo candidate-" + std::to_string(n) + " leads; exec sleep 1000"},
                           .environment = {{"ETCDCTL_API", "3"}},
                           .log = place.folder("log") / ("candidate-" + std::to_string(n))}};
  };
  sample out;
  int next = 0;
  auto leader = candidate(next++);
  if (!leader.await_log("candidate-0 leads", milliseconds{10'000})) throw stack::stack_error("nobody leads: " + leader.log());
  for (int n = 0; n < rounds; ++n) {
    line.say(fmt::format("etcd, round {}", n + 1));
    const auto name = fmt::format("candidate-{} leads", next);
    auto waits = candidate(next++);
    std::this_thread::sleep_for(milliseconds{500});  // its keys are written by then
    const auto killed = clock::now();
    leader.kill();
    if (!waits.await_log(name, patience)) throw stack::stack_error("nobody follows: " + waits.log());
    out.add(ms_between(killed, clock::now()));
    leader = std::move(waits);
  }
  leader.kill();
  etcd.kill();
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  command_line line{"failover", "An instance of three is killed, stopped, or vanishes: the longest gap for any write."};
  int projects = 12, rounds = 10, vanishing = 3, etcd_rounds = 5;
  line.app.add_option("--projects", projects, "Written to at the same time, each one write after the other")->check(CLI::Range(1, 1'000));
  line.app.add_option("--rounds", rounds, "Kills, and as many stops")->check(CLI::Range(0, 1'000));
  line.app.add_option("--vanishing", vanishing, "Rounds in which an instance's packets end")->check(CLI::Range(0, 100));
  line.app.add_option("--etcd", etcd_rounds, "Rounds with etcd, where it is installed")->check(CLI::Range(0, 100));
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    line.say("starting PostgreSQL, NATS, three warrend, Envoy and an agent");
    auto options = as_by_default();
    options.instances = 3;
    options.with_ways = true;
    world w{options};
    auto& s = w.s;
    w.settle();
    s.add_agent("home").await_session();
    s.create_tunnel("web", "web.bench.example", "home");
    if (!s.await_ready("web", patience)) throw stack::stack_error("the tunnel is not Ready");
    // Whoever asks is the first instance, and the gateway is there, too: the others die.
    s.to_xds().lead_to({std::to_string(s.at(0).xds_port())}, true);
    const api server{s.at(0).admin_port()};
    const auto connector_before = s.sql("SELECT session, online, conditions FROM connector");
    const gaze visitor{s.visitor_port(), "web.bench.example", std::chrono::milliseconds{5}};

    std::vector<std::unique_ptr<writer>> writers;
    const auto first = clock::now();
    for (int n = 0; n < projects; ++n) writers.push_back(std::make_unique<writer>(server, fmt::format("project-{}", n)));
    if (!stack::poll_until([&] { return std::all_of(writers.begin(), writers.end(), [first](const auto& each) { return each->wrote_after(first); }); }, patience))
      throw stack::stack_error("writes do not work: " + writers.front()->why());
    std::map<std::string, int> partition_of_project;
    for (const auto& each : writers)
      partition_of_project[each->project()] =
          std::stoi(s.sql("SELECT partition FROM tunnel WHERE project = '" + each->project() + "' LIMIT 1"));

    sample killed, stopped, vanished, left_in;
    int victims = 0;
    /// Does it to the second or third instance, and notes the longest gap of each project that was its.
    const auto round = [&](sample& into, const std::function<void(stack::instance&)>& fault,
                           const std::function<void(stack::instance&)>& undo) {
      w.settle();
      auto& victim = s.at(1 + static_cast<std::size_t>(victims++ % 2));
      const auto id = s.id_of(victim);
      const auto owners = s.owners();
      const auto from = clock::now();
      fault(victim);
      const auto over = clock::now();
      if (!stack::poll_until([&] { return std::all_of(writers.begin(), writers.end(), [&](const auto& each) { return each->wrote_after(over); }); }, patience))
        throw stack::stack_error("writes do not come back");
      for (const auto& each : writers)
        if (owners.at(partition_of_project.at(each->project())) == id) into.add(each->longest_gap(from));
      undo(victim);
    };
    for (int n = 0; n < rounds; ++n) {
      line.say(fmt::format("kill -9, round {}", n + 1));
      round(killed, [](auto& i) { i.kill(); }, [](auto& i) { i.start(); });
    }
    for (int n = 0; n < rounds; ++n) {
      line.say(fmt::format("SIGTERM, round {}", n + 1));
      round(
          stopped,
          [&](auto& i) {
            const auto asked = clock::now();
            if (i.stop().code != 0) throw stack::stack_error(i.name() + " does not stop cleanly: " + i.log());
            left_in.add(ms_between(asked, clock::now()));
          },
          [](auto& i) { i.start(); });
    }
    for (int n = 0; n < vanishing; ++n) {
      line.say(fmt::format("no packet any more, round {}", n + 1));
      round(
          vanished,
          [](auto& i) {
            i.to_postgres().swallow();
            i.to_nats().swallow();
          },
          [](auto& i) {
            i.to_postgres().mend();
            i.to_nats().mend();
          });
    }
    w.settle();
    std::size_t refused = 0;
    for (const auto& each : writers) {
      refused += each->failed();
      if (each->failed() > 0) line.say(each->project() + ": " + each->why());
    }
    const auto answers = visitor.total();
    const auto not_200 = answers - visitor.count(200);
    const bool flipped = s.sql("SELECT session, online, conditions FROM connector") != connector_before;
    writers.clear();

    report out{"failover"};
    const double lease = options.instance_lease_ms;
    if (rounds > 0) {
      out.leg("kill -9 → the longest gap of writes, each project of the dead one", killed, {{}, 500, {}});
      out.leg("SIGTERM → the longest gap of writes, each project of the one that leaves", stopped, {{}, {}, 300});
      out.leg("SIGTERM → the process has ended", left_in, {{}, {}, 30'000});
    }
    if (vanishing > 0) out.leg("no packet any more → the longest gap of writes (lease 3 s)", vanished, {{}, {}, lease + 1'000});
    out.figure("writes that failed", static_cast<double>(refused), "", 0);
    out.figure("a visitor's answers meanwhile", static_cast<double>(answers), "");
    out.figure("of them not 200", static_cast<double>(not_200), "", 0);
    out.figure("connectors that flipped", flipped ? 1 : 0, "", 0);
    if (etcd_rounds > 0) {
      if (const auto peers = etcd_leaders(etcd_rounds, line)) out.leg("etcd: the leader is killed → the next leads (lease 3 s)", *peers);
      else out.note("etcd is not installed: not compared with it");
    }
    return out;
  });
}
