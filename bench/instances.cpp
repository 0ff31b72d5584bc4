// bench/instances.cpp -- what three instances do in the time of one: tunnels created and heartbeats taken in, and the
// processor time of the instance that works most. Where there are fewer processors than programs only the latter can
// grow: what each could do with processors of its own is said as such.
#include <algorithm>
#include <atomic>
#include <fstream>
#include <sstream>
#include <thread>

#include <unistd.h>

#include <fmt/format.h>

#include "bench/agents.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto patience = milliseconds{60'000};

/// Of all its threads, since its start.
double processor_seconds(pid_t pid) {
  std::ifstream in{fmt::format("/proc/{}/stat", pid)};
  std::string text{std::istreambuf_iterator<char>{in}, {}};
  const auto end = text.rfind(')');  // its name may hold anything
  if (end == std::string::npos) throw stack::stack_error(fmt::format("process {} has no /proc/stat", pid));
  std::istringstream fields{text.substr(end + 1)};
  std::string skipped;
  for (int n = 3; n < 14; ++n) fields >> skipped;
  double user = 0, kernel = 0;
  fields >> user >> kernel;
  return (user + kernel) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

/// What was done in a stretch of time, and what it cost each instance.
struct stretch {
  double done = 0, seconds = 0;
  std::vector<double> processor_s;
  double per_second() const { return done / seconds; }
  double busiest_us() const { return *std::max_element(processor_s.begin(), processor_s.end()) * 1e6 / done; }
  double all_us() const {
    double sum = 0;
    for (const auto each : processor_s) sum += each;
    return sum * 1e6 / done;
  }
};

stretch measured(stack::stack& world, const std::function<double()>& work) {
  stretch out;
  std::vector<double> before;
  for (std::size_t n = 0; n < world.instances(); ++n) before.push_back(processor_seconds(world.at(n).running_process().pid()));
  const auto begun = clock::now();
  out.done = work();
  out.seconds = ms_between(begun, clock::now()) / 1000;
  for (std::size_t n = 0; n < world.instances(); ++n)
    out.processor_s.push_back(processor_seconds(world.at(n).running_process().pid()) - before[n]);
  if (out.done <= 0) throw stack::stack_error("nothing was done");
  return out;
}

struct outcome {
  stretch heartbeats, creations;
};

}  // namespace

int main(int argc, char** argv) {
  command_line line{"instances", "Creations and heartbeats of three instances beside those of one."};
  int agents_count = 2'000, projects = 200, heartbeat_ms = 500, seconds = 8, width = 16, many = 3;
  line.app.add_option("--agents", agents_count, "Simulated agents")->check(CLI::Range(1, 100'000));
  line.app.add_option("--projects", projects, "They are spread over, and so are the tunnels")->check(CLI::Range(1, 10'000));
  line.app.add_option("--heartbeat-ms", heartbeat_ms, "Agents' heartbeat interval")->check(CLI::Range(50, 60'000));
  line.app.add_option("--seconds", seconds, "Of heartbeats, and of creations")->check(CLI::Range(1, 600));
  line.app.add_option("--width", width, "Callers at a time, who ask all instances in turn")->check(CLI::Range(1, 1'000));
  line.app.add_option("--instances", many, "How many beside one")->check(CLI::Range(2, 16));
  return line.run(argc, argv, [&] {
    const auto run = [&](int instances) {
      line.say(fmt::format("starting PostgreSQL, NATS and {} warrend", instances));
      auto options = as_by_default();
      options.heartbeat_interval_ms = heartbeat_ms;
      options.with_envoy = false;
      options.instances = instances;
      stack::stack world{options};
      std::vector<const stack::instance*> all;
      std::vector<std::unique_ptr<api>> servers;
      for (int n = 0; n < instances; ++n) {
        all.push_back(&world.at(static_cast<std::size_t>(n)));
        servers.push_back(std::make_unique<api>(all.back()->admin_port()));
      }
      if (!world.await_spread(all, patience)) throw stack::stack_error("the partitions are not spread evenly");
      world.must_ctl({"connector-class", "create", "local", "--allow", "127.0.0.0/8"});
      const auto in_parallel = [&](const std::function<bool(int n)>& one) {
        std::atomic<int> next{0};
        std::vector<std::thread> callers;
        std::mutex mutex;
        std::string wrong;
        for (int i = 0; i < width; ++i)
          callers.emplace_back([&] {
            try {
              while (one(next++)) {}
            } catch (const std::exception& e) {
              const std::lock_guard lock{mutex};
              wrong = e.what();
            }
          });
        for (auto& each : callers) each.join();
        if (!wrong.empty()) throw stack::stack_error(wrong);
      };
      const auto server = [&](int n) -> const api& { return *servers[static_cast<std::size_t>(n) % servers.size()]; };
      const auto project = [&](int n) { return fmt::format("project-{}", n % projects); };
      outcome out;
      line.say(fmt::format("creations for {} s", seconds));
      std::atomic<int> created{0};
      out.creations = measured(world, [&] {
        const auto until = clock::now() + std::chrono::seconds{seconds};
        in_parallel([&](int n) {
          if (clock::now() >= until) return false;
          must(server(n).create_tunnel(project(n), fmt::format("t{}", n), fmt::format("t{}.bench.example", n), "nobody", "http://localhost:80"), "creating");
          ++created;
          return true;
        });
        return static_cast<double>(created.load());
      });
      line.say(fmt::format("{} agents say hello", agents_count));
      simulated_agents agents{{world.nats_url(), "agent", world.nats_password()}};
      in_parallel([&](int n) {
        if (n >= agents_count) return false;
        agents.add(server(n), project(n), fmt::format("home-{}", n));
        return true;
      });
      if (!agents.await_sessions(patience)) throw stack::stack_error(fmt::format("{} of {} agents have a session", agents.established(), agents_count));
      const auto sum = [&](const std::string& metric) {
        double total = 0;
        for (const auto* each : all) total += each->metric(metric);
        return total;
      };
      // What a hello leaves to be done (reports, dials) must be over.
      stack::poll_until([&, before = -1.0]() mutable { const auto now = sum("warren_store_rows_written_total"); return std::exchange(before, now) == now; },
                        patience, milliseconds{2'000});
      line.say(fmt::format("heartbeats for {} s", seconds));
      out.heartbeats = measured(world, [&] {
        const auto before = sum("warren_heartbeats_total");
        std::this_thread::sleep_for(std::chrono::seconds{seconds});
        return sum("warren_heartbeats_total") - before;
      });
      return out;
    };
    const auto one = run(1), several = run(many);
    report out{"instances"};
    const auto compare = [&](const std::string& what, const stretch& of_one, const stretch& of_many) {
      out.figure(fmt::format("{}: one instance", what), of_one.per_second(), "/s");
      out.figure(fmt::format("{}: {} instances, all on this machine", what, many), of_many.per_second(), "/s");
      out.figure(fmt::format("{}: processor time of each, one instance", what), of_one.busiest_us(), "µs");
      out.figure(fmt::format("{}: processor time of each, the busiest of {}", what, many), of_many.busiest_us(), "µs");
      out.figure(fmt::format("{}: processor time of each, all {} together", what, many), of_many.all_us(), "µs");
      out.figure(fmt::format("{}: with a processor for each instance, one could do", what), 1e6 / of_one.busiest_us(), "/s");
      out.figure(fmt::format("{}: with a processor for each instance, {} could do", what, many), 1e6 / of_many.busiest_us(), "/s");
    };
    compare("heartbeats", one.heartbeats, several.heartbeats);
    compare("creations", one.creations, several.creations);
    out.note("what instances could do with processors of their own follows from the processor time of the busiest one; "
             "PostgreSQL, NATS and the load have theirs beside it");
    return out;
  });
}
