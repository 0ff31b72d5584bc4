// bench/storm.cpp -- very many agents that come back at the same moment: after NATS was away, after they could not be
// reached, after all of them were started anew. How soon all is as it was, who was called offline, what it cost.
#include <atomic>
#include <map>
#include <mutex>
#include <thread>

#include <fmt/format.h>

#include "bench/agents.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto patience = milliseconds{120'000};

/// Follows every connector. Thread-safe.
class storm_watch {
public:
  explicit storm_watch(const api& server) {
    adminv1::WatchConnectorsRequest q;
    q.set_parent("projects/-");
    thread_ = std::thread{[this, reader = server.connectors->WatchConnectors(&context_, q)] {
      adminv1::WatchConnectorsResponse one;
      while (reader->Read(&one)) {
        const std::lock_guard lock{mutex_};
        if (one.has_connector()) hear(one.connector());
        changed_.notify_all();
      }
      const auto status = reader->Finish();
      if (!stopping_) fmt::print(stderr, "the watch ended: {}\n", status.error_message());
    }};
  }
  ~storm_watch() {
    stopping_ = true;
    context_.TryCancel();
    thread_.join();
  }
  storm_watch(const storm_watch&) = delete;
  storm_watch& operator=(const storm_watch&) = delete;

  /// From now on nobody's session is a fresh one.
  void forget_sessions() {
    const std::lock_guard lock{mutex_};
    for (auto& [name, k] : all_) k.fresh = false;
    good_and_fresh_ = 0;
  }
  /// Waits until so many are online and Ready, in fresh sessions if that is asked for; false: not in time.
  bool await_all(std::size_t count, bool fresh, milliseconds timeout) {
    std::unique_lock lock{mutex_};
    return changed_.wait_for(lock, timeout, [&] { return (fresh ? good_and_fresh_ : good_) >= count; });
  }
  std::size_t good() {
    const std::lock_guard lock{mutex_};
    return good_;
  }
  /// Told so far: online that became offline, and Ready that became unknown.
  int flips() {
    const std::lock_guard lock{mutex_};
    return flips_;
  }
  int doubts() {
    const std::lock_guard lock{mutex_};
    return doubts_;
  }

private:
  struct known {
    bool online = false, ready = false, fresh = false;
    std::int64_t session = 0;
    bool good() const { return online && ready; }
  };
  void hear(const adminv1::Connector& c) {
    auto& k = all_[c.name()];
    const auto was = k;
    k.online = c.online();
    k.ready = holds(c, "Ready");
    k.fresh = was.fresh || c.session() != was.session;
    k.session = c.session();
    if (was.online && !k.online) ++flips_;
    if (was.good() && k.online && !k.ready) ++doubts_;
    good_ += (k.good() ? 1u : 0u);
    good_ -= (was.good() ? 1u : 0u);
    good_and_fresh_ += (k.good() && k.fresh ? 1u : 0u);
    good_and_fresh_ -= (was.good() && was.fresh ? 1u : 0u);
  }

  grpc::ClientContext context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, known> all_;
  std::size_t good_ = 0, good_and_fresh_ = 0;
  int flips_ = 0, doubts_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace

int main(int argc, char** argv) {
  command_line line{"storm", "Very many agents that come back at the same moment."};
  int count = 10'000, projects = 200, rounds = 1, away_s = 10, heartbeat_ms = 2'000;
  line.app.add_option("--agents", count, "Simulated agents")->check(CLI::Range(1, 100'000));
  line.app.add_option("--projects", projects, "They are spread over")->check(CLI::Range(1, 10'000));
  line.app.add_option("--rounds", rounds, "Of each storm")->check(CLI::Range(1, 1'000));
  line.app.add_option("--away-s", away_s, "How long NATS, or the agents, are away")->check(CLI::Range(1, 600));
  line.app.add_option("--heartbeat-ms", heartbeat_ms, "Agents' heartbeat interval")->check(CLI::Range(50, 60'000));
  return line.run(argc, argv, [&] {
    line.say("starting PostgreSQL, NATS and warrend");
    auto options = as_by_default();
    options.heartbeat_interval_ms = heartbeat_ms;
    options.with_envoy = false;
    stack::stack world{options};
    world.must_ctl({"connector-class", "create", "local", "--allow", "127.0.0.0/8"});
    const api server{world.admin_port()};
    storm_watch watch{server};

    line.say(fmt::format("{} agents are enrolled and say hello", count));
    simulated_agents agents{{world.nats_url(), "agent", world.nats_password()}};
    const auto begun = clock::now();
    std::vector<std::thread> callers;
    std::atomic<int> next{0};
    std::atomic<bool> failed{false};
    for (int i = 0; i < 32; ++i)
      callers.emplace_back([&] {
        try {
          for (int n = next++; n < count && !failed; n = next++) agents.add(server, fmt::format("project-{}", n % projects), fmt::format("home-{}", n));
        } catch (const std::exception& e) {
          if (!failed.exchange(true)) fmt::print(stderr, "{}\n", e.what());
        }
      });
    for (auto& each : callers) each.join();
    const auto all = static_cast<std::size_t>(count);
    if (failed || !agents.await_sessions(patience) || !watch.await_all(all, false, patience))
      throw stack::stack_error(fmt::format("{} of {} agents have a session, {} are shown online", agents.established(), count, watch.good()));
    report out{"storm"};
    out.figure("enrolled and online", count / (ms_between(begun, clock::now()) / 1000), "/s");

    const auto storm = [&](const std::string& what, bool new_sessions, const std::function<void()>& outage, const std::function<void()>& end) {
      sample took, transactions, hellos;
      double per_second = 0;
      int flips = 0, doubts = 0;
      for (int n = 0; n < rounds; ++n) {
        line.say(fmt::format("{}, {}", what, n + 1));
        const auto flips_before = watch.flips(), doubts_before = watch.doubts();
        outage();
        const auto asked = agents.hellos();
        const auto transactions_before = world.metric("warren_store_transactions_total");
        const auto heartbeats = agents.heartbeats();
        if (new_sessions) watch.forget_sessions();
        const auto back = clock::now();
        end();
        const auto heard = [&] {  // also those whose row says nothing new have to be heard of once
          return new_sessions || agents.heartbeats() - heartbeats >= all;
        };
        if (!stack::poll_until([&] { return watch.await_all(all, new_sessions, milliseconds{50}) && heard(); }, patience, milliseconds{1}))
          throw stack::stack_error(fmt::format("{}: two minutes later {} of {} are online, {} have a session", what, watch.good(), count, agents.established()));
        const auto seconds = ms_between(back, clock::now()) / 1000;
        const auto spent = world.metric("warren_store_transactions_total") - transactions_before;
        took.add(seconds * 1000);
        transactions.add(spent);
        hellos.add(static_cast<double>(agents.hellos() - asked));
        per_second = std::max(per_second, spent / seconds);
        // What is late in coming: a lease that ends, a dial that is not answered.
        std::this_thread::sleep_for(milliseconds{5'000});
        flips += watch.flips() - flips_before;
        doubts += watch.doubts() - doubts_before;
        if (!watch.await_all(all, false, patience)) throw stack::stack_error(what + ": not all stay online");
      }
      out.leg(what + ": all online again", took, {{}, {}, 5'000});
      out.figure(what + ": transactions", transactions.max(), "");
      out.figure(what + ": transactions a second, most", per_second, "/s", 100);
      out.figure(what + ": hellos asked", hellos.max(), "");
      out.figure(what + ": connectors called offline", flips, "", 0);
      out.figure(what + ": connectors in doubt (mass silence)", doubts, "");
    };
    const auto pause = [&] { std::this_thread::sleep_for(std::chrono::seconds{away_s}); };
    storm("NATS was away", false, [&] { world.stop_nats(); pause(); }, [&] { world.start_nats(); });
    storm("agents were cut off", false, [&] { agents.reachable(false); pause(); }, [&] { agents.reachable(true); });
    storm("all agents start anew", true, [&] { agents.reachable(false); agents.start_again(); pause(); }, [&] { agents.reachable(true); });
    return out;
  });
}
