// bench/truth.cpp -- whether what the API says and what visitors get change together: by how much one is ahead of the
// other at each change, and the longest time that they contradict each other while agents are killed and started.
#include <map>
#include <mutex>
#include <random>
#include <utility>

#include <fmt/format.h>

#include "bench/visitor.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto patience = milliseconds{20'000};

enum class word : std::uint8_t { yes, no, unknown };

/// Follows what is said of Ready of all tunnels of a project, from now on. Thread-safe.
class ready_watch {
public:
  struct told {
    word is;
    clock::time_point at;
  };
  ready_watch(const api& server, const std::string& project) : prefix_{"projects/" + project + "/tunnels/"} {
    adminv1::WatchTunnelsRequest q;
    q.set_parent("projects/" + project);
    thread_ = std::thread{[this, reader = server.tunnels->WatchTunnels(&context_, q)] {
      adminv1::WatchTunnelsResponse one;
      while (reader->Read(&one)) {
        const auto now = clock::now();
        if (!one.has_tunnel()) continue;
        auto is = word::no;
        for (const auto& c : one.tunnel().conditions())
          if (c.type() == "Ready") is = c.status() == "True" ? word::yes : c.status() == "Unknown" ? word::unknown : word::no;
        const std::lock_guard lock{mutex_};
        auto& all = told_[one.tunnel().name().substr(prefix_.size())];
        if (all.empty() || all.back().is != is) all.push_back({is, now});
        changed_.notify_all();
      }
      reader->Finish();
    }};
  }
  ~ready_watch() {
    context_.TryCancel();
    thread_.join();
  }
  ready_watch(const ready_watch&) = delete;
  ready_watch& operator=(const ready_watch&) = delete;

  /// When it was first told at `since` or later.
  std::optional<clock::time_point> await(const std::string& tunnel, word wanted, clock::time_point since) {
    std::unique_lock lock{mutex_};
    std::optional<clock::time_point> found;
    changed_.wait_for(lock, patience, [&] {
      for (const auto& each : told_[tunnel])
        if (each.at >= since && each.is == wanted) {
          found = each.at;
          return true;
        }
      return false;
    });
    return found;
  }
  std::vector<told> all(const std::string& tunnel) const {
    const std::lock_guard lock{mutex_};
    const auto it = told_.find(tunnel);
    return it == told_.end() ? std::vector<told>{} : it->second;
  }

private:
  grpc::ClientContext context_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::vector<told>> told_;
  std::string prefix_;
  std::thread thread_;
};

/// Answers that contradict what was being said all the while they were under way, in runs without an agreeing one.
struct contradictions {
  double longest_ms = 0, total_ms = 0;
  int runs = 0;
  std::size_t foreign = 0;  ///< neither the target's answer nor the 503
};
contradictions compare(const std::vector<glimpse>& seen, const std::vector<ready_watch::told>& told) {
  contradictions out;
  bool running = false;
  clock::time_point since{}, until{};
  const auto end_run = [&] {
    if (!std::exchange(running, false)) return;
    const auto ms = ms_between(since, until);
    out.longest_ms = std::max(out.longest_ms, ms);
    out.total_ms += ms;
    ++out.runs;
  };
  std::size_t next = 0;  // the first that was told after the present answer was asked for
  for (const auto& g : seen) {
    if (g.status != 0 && g.status != 200 && g.status != 503) ++out.foreign;
    while (next < told.size() && told[next].at <= g.asked) ++next;
    const bool steady = next > 0 && (next == told.size() || told[next].at > g.answered);
    const bool contradicts = steady && told[next - 1].is != word::unknown && (told[next - 1].is == word::yes) != (g.status == 200);
    if (!contradicts) {
      if (steady) end_run();
      continue;
    }
    if (!std::exchange(running, true)) since = g.asked;
    until = g.answered;
  }
  end_run();
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  command_line line{"truth", "What the API says of tunnels beside what a continuous visitor gets."};
  int rounds = 50, agents = 4, seconds = 30, heartbeat_ms = 2'000, instances = 1;
  line.app.add_option("--rounds", rounds, "Of each change, one after another")->check(CLI::Range(0, 10'000));
  line.app.add_option("--agents", agents, "Killed and started at random, each with one tunnel")->check(CLI::Range(0, 100));
  line.app.add_option("--seconds", seconds, "For so long")->check(CLI::Range(1, 86'400));
  line.app.add_option("--instances", instances, "Of warrend; all but the first are killed and started as well")->check(CLI::Range(1, 16));
  line.app.add_option("--heartbeat-ms", heartbeat_ms, "Agents' heartbeat interval")->check(CLI::Range(50, 60'000));
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    line.say("starting PostgreSQL, NATS, warrend, Envoy and agents");
    auto options = as_by_default();
    options.heartbeat_interval_ms = heartbeat_ms;
    options.instances = instances;
    options.with_ways = instances > 1;
    stack::stack world{options};
    const auto project = world.options().project;
    const api server{world.admin_port()};
    std::vector<stack::agent*> all;
    std::vector<std::string> names;
    ready_watch watch{server, project};
    for (int n = 0; n <= agents; ++n) {
      names.push_back(fmt::format("t{}", n));
      all.push_back(&world.add_agent(fmt::format("home-{}", n)));
      all.back()->await_session();
      world.create_tunnel(names.back(), names.back() + ".bench.example", fmt::format("home-{}", n));
    }
    for (const auto& name : names)
      if (!world.await_ready(name, patience)) throw stack::stack_error(name + " does not become Ready");
    for (int n = 0; n <= agents; ++n)  // suspicion may decide once an instance has dialled it
      if (!stack::poll_until([&] { return world.connector(fmt::format("home-{}", n)).value("dialable", false); }, patience, milliseconds{50}))
        throw stack::stack_error("an agent has not been dialled");

    report out{"truth"};
    std::size_t refused_though_ready = 0, foreign = 0;
    if (rounds > 0) {
      line.say(fmt::format("{} rounds of each change", rounds));
      gaze visitor{world.visitor_port(), "t0.bench.example", std::chrono::microseconds{500}};
      if (!visitor.await_status(200, clock::now(), patience)) throw stack::stack_error("no visitor gets through");
      std::map<std::string, sample> apart, said_first;
      sample decided;
      const auto change = [&](const std::string& what, bool to_ready, const std::function<bool(const glimpse&)>& shows,
                              bool by_decision, const std::function<void()>& act) {
        const auto begun = clock::now();
        act();
        const auto said = watch.await("t0", to_ready ? word::yes : word::no, begun);
        const auto seen = visitor.await(shows, begun, patience);
        if (!said || !seen) {
          std::map<int, int> got;
          for (const auto& g : visitor.since(begun)) ++got[g.status];
          std::string answers;
          for (const auto& [status, count] : got) answers += fmt::format(" {} × {}", count, status);
          throw stack::stack_error(fmt::format("{}: {} is not seen; visitors got{}", what, said ? "the change for visitors" : "the word", answers));
        }
        const auto ms = ms_between(*said, seen->answered);
        apart[what].add(std::abs(ms));
        if (by_decision) decided.add(std::abs(ms));
        std::this_thread::sleep_for(milliseconds{30});
        if (to_ready)
          for (const auto& g : visitor.since(*said))
            if (g.asked > *said && g.status != 200) ++refused_though_ready;
      };
      const auto is_200 = [](const glimpse& g) { return g.status == 200; };
      const auto reason = [](std::string wanted) {
        return [wanted](const glimpse& g) { return g.status == 503 && g.reason == wanted; };
      };
      const auto is_503 = [](const glimpse& g) { return g.status == 503; };
      for (int n = 0; n < rounds; ++n) {
        change("switched off", false, reason("disabled"), true, [&] { world.must_ctl({"tunnel", "update", "t0", "--disabled"}); });
        change("switched on", true, is_200, true, [&] { world.must_ctl({"tunnel", "update", "t0", "--enabled"}); });
        change("agent says bye", false, reason("connector-offline"), true, [&] { all[0]->stop(); });
        change("agent starts", true, is_200, true, [&] { all[0]->start(); });
        change("agent killed, found out", false, reason("connector-offline"), true, [&] { all[0]->kill(); });
        change("agent starts", true, is_200, true, [&] { all[0]->start(); });
        change("agent killed, first 503", false, is_503, false, [&] { all[0]->kill(); });
        change("agent starts", true, is_200, true, [&] { all[0]->start(); });
        change("target down", false, is_503, false, [&] { world.demo_origin().down(); });
        change("target up", true, is_200, false, [&] { world.demo_origin().up(); });
      }
      for (const auto& g : visitor.since({}))
        if (g.status != 0 && g.status != 200 && g.status != 503) ++foreign;
      for (const auto& [what, values] : apart) out.leg(what + ": word and visitor apart", values);
      out.leg("all that Warren decides: word and visitor apart", decided, {{}, 50, {}});
      out.figure("visitors refused though Ready had been told", static_cast<double>(refused_though_ready), "", 0);
    }

    if (agents > 0) {
      line.say(fmt::format("{} agents are killed and started for {} s", agents, seconds));
      std::vector<std::unique_ptr<gaze>> visitors;
      for (int n = 1; n <= agents; ++n)
        visitors.push_back(std::make_unique<gaze>(world.visitor_port(), fmt::format("t{}.bench.example", n), std::chrono::milliseconds{3}));
      std::mt19937 random{std::random_device{}()};
      const auto until = clock::now() + std::chrono::seconds{seconds};
      int kills = 0, deaths = 0;
      std::size_t dead = 0;  // an instance; one at a time
      auto next_death = clock::now() + milliseconds{1'000};
      while (clock::now() < until) {
        if (instances > 1 && clock::now() >= next_death) {
          if (dead == 0) {
            dead = 1 + random() % static_cast<unsigned>(instances - 1);
            world.at(dead).kill();
            ++deaths;
          } else {
            world.at(std::exchange(dead, 0)).launch();
          }
          next_death = clock::now() + milliseconds{2'000};
        }
        auto& one = *all[1 + random() % static_cast<unsigned>(agents)];
        if (one.running()) {
          one.kill();
          ++kills;
        } else {
          one.start();
        }
        std::this_thread::sleep_for(milliseconds{20 + random() % 200});
      }
      for (int n = 1; n <= agents; ++n) all[static_cast<std::size_t>(n)]->start();
      for (const auto& name : names)
        if (!world.await_ready(name, patience)) throw stack::stack_error(name + " does not become Ready again");
      double longest = 0, total = 0;
      std::size_t answers = 0;
      int runs = 0;
      for (std::size_t n = 0; n < visitors.size(); ++n) {
        const auto seen = visitors[n]->since({});
        const auto found = compare(seen, watch.all(names[n + 1]));
        longest = std::max(longest, found.longest_ms);
        total += found.total_ms;
        runs += found.runs;
        foreign += found.foreign;
        answers += seen.size();
      }
      if (instances > 1) out.figure("instances killed", deaths, "");
      out.figure("agents killed", kills, "");
      out.figure("answers meanwhile", static_cast<double>(answers), "");
      out.figure("longest contradiction between word and visitor", longest, "ms", 1'000);
      out.figure("contradictions", runs, "");
      out.figure("contradictions, mean", runs == 0 ? 0 : total / runs, "ms");
    }
    out.figure("answers that are neither the target's nor our 503", static_cast<double>(foreign), "", 0);
    return out;
  });
}
