// bench/silence.cpp -- a thousand connectors fall silent at one moment: nobody may be called offline for it, and visitors of
// all their tunnels have to meet the target or the deliberate answer all the while.
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "bench/agents.hpp"
#include "bench/visitor.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto patience = milliseconds{120'000};

struct shown {
  std::size_t online = 0, ready = 0, in_doubt = 0;  ///< in doubt: Ready is Unknown/MassSilence
};
std::optional<shown> look_at(const api& server) {
  const auto all = server.list_connectors();
  if (!all) return std::nullopt;
  shown out;
  for (const auto& c : *all) {
    out.online += c.online() ? 1u : 0u;
    for (const auto& one : c.conditions())
      if (one.type() == "Ready") {
        out.ready += one.status() == "True" ? 1u : 0u;
        out.in_doubt += one.status() == "Unknown" && one.reason() == "MassSilence" ? 1u : 0u;
      }
  }
  return out;
}

/// Visitors of all hosts in turn, from several sides.
class crowd {
public:
  crowd(std::uint16_t port, int hosts, milliseconds timeout) {
    for (int side = 0; side < sides; ++side)
      threads_.emplace_back([=, this] {
        for (int n = side; !stopping_; n += sides) {
          const auto got = look(port, fmt::format("home-{}.bench.example", n % hosts), timeout);
          const std::lock_guard lock{mutex_};
          if (got.status == 200) ++target_;
          else if (got.status == 503 && !got.reason.empty()) ++deliberate_;
          else if (got.status == 0) ++waited_;
          else ++foreign_;
        }
      });
  }
  ~crowd() {
    stopping_ = true;
    for (auto& each : threads_) each.join();
  }
  crowd(const crowd&) = delete;
  crowd& operator=(const crowd&) = delete;
  struct tally {
    std::size_t target = 0, deliberate = 0, waited = 0, foreign = 0;
  };
  tally take() {
    const std::lock_guard lock{mutex_};
    return {std::exchange(target_, 0), std::exchange(deliberate_, 0), std::exchange(waited_, 0), std::exchange(foreign_, 0)};
  }

private:
  static constexpr int sides = 4;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::size_t target_ = 0, deliberate_ = 0, waited_ = 0, foreign_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace

int main(int argc, char** argv) {
  command_line line{"silence", "Very many connectors that fall silent at one moment, under visitors."};
  int count = 1'000, projects = 20, hold_s = 12, lease_s = 4, heartbeat_ms = 1'000;
  line.app.add_option("--connectors", count, "Simulated agents, each with one tunnel")->check(CLI::Range(30, 100'000));
  line.app.add_option("--projects", projects, "They are spread over")->check(CLI::Range(1, 1'000));
  line.app.add_option("--hold-s", hold_s, "How long they stay silent beyond their leases")->check(CLI::Range(1, 600));
  line.app.add_option("--lease-s", lease_s, "Of each connector")->check(CLI::Range(3, 60));
  line.app.add_option("--heartbeat-ms", heartbeat_ms, "Agents' heartbeat interval")->check(CLI::Range(50, 60'000));
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    line.say("starting PostgreSQL, NATS, warrend and Envoy");
    auto options = as_by_default();
    options.heartbeat_interval_ms = heartbeat_ms;
    stack::stack world{options};
    world.must_ctl({"connector-class", "create", "local", "--allow", "127.0.0.0/8"});
    const api server{world.admin_port()};

    line.say(fmt::format("{} connectors say hello, and a tunnel is created for each", count));
    simulated_agents agents{{world.nats_url(), "agent", world.nats_password()}};
    std::vector<std::thread> callers;
    std::atomic<int> next{0};
    std::atomic<bool> failed{false};
    std::vector<std::string> all;
    for (int n = 0; n < count; ++n) all.push_back(fmt::format("project-{}/home-{}", n % projects, n));
    for (int i = 0; i < 16; ++i)
      callers.emplace_back([&] {
        try {
          for (int n = next++; n < count && !failed; n = next++) {
            const auto name = fmt::format("home-{}", n), project = fmt::format("project-{}", n % projects);
            agents.add(server, project, name, std::chrono::seconds{lease_s});
            must(server.create_tunnel(project, name, name + ".bench.example", name, world.demo_origin().url()), name);
          }
        } catch (const std::exception& e) {
          if (!failed.exchange(true)) fmt::print(stderr, "{}\n", e.what());
        }
      });
    for (auto& each : callers) each.join();
    const auto everybody = static_cast<std::size_t>(count);
    const auto all_ready = [&] {
      const auto tunnels = server.list_tunnels();
      const auto is = look_at(server);
      return is && is->ready == everybody && tunnels && static_cast<std::size_t>(std::count_if(tunnels->begin(), tunnels->end(), [](const auto& t) { return holds(t, "Ready"); })) == everybody;
    };
    if (failed || !agents.await_sessions(patience) || !stack::poll_until(all_ready, patience, milliseconds{200}))
      throw stack::stack_error("not all connectors and tunnels are Ready");
    report out{"silence"};
    crowd visitors{world.visitor_port(), count, milliseconds{1'000}};

    const auto silence = [&](const std::string& what, const std::function<void(bool)>& silent, bool reachable) {
      line.say(what);
      visitors.take();
      const auto begun = clock::now();
      silent(true);
      if (!stack::poll_until([&] { return world.readyz().dump().find("mass_silence") != std::string::npos; }, patience, milliseconds{50}))
        throw stack::stack_error(what + ": mass silence is never noticed");
      out.figure(what + " → noticed", ms_between(begun, clock::now()) / 1000, "s");
      std::size_t fewest_online = everybody, most_in_doubt = 0;
      const auto end = clock::now() + std::chrono::seconds{hold_s};
      stack::poll_until([&] {
        if (const auto is = look_at(server)) {
          fewest_online = std::min(fewest_online, is->online);
          most_in_doubt = std::max(most_in_doubt, is->in_doubt);
        }
        return clock::now() >= end;
      }, milliseconds{hold_s * 1'000 + 5'000}, milliseconds{200});
      const auto met = visitors.take();
      out.figure(what + ": connectors called offline", static_cast<double>(everybody - fewest_online), "", 0);
      out.figure(what + ": connectors whose Ready is in doubt, most", static_cast<double>(most_in_doubt), "");
      out.figure(what + ": visitors who met the target", static_cast<double>(met.target), "");
      out.figure(what + ": visitors who met the deliberate 503", static_cast<double>(met.deliberate), "");
      out.figure(what + ": visitors who met anything else", static_cast<double>(met.foreign), "", 0);
      if (reachable) out.figure(what + ": visitors who had no answer in a second", static_cast<double>(met.waited), "", 0);
      else out.figure(what + ": visitors who had no answer in a second", static_cast<double>(met.waited), "");
      const auto back = clock::now();
      silent(false);
      if (!stack::poll_until(all_ready, patience, milliseconds{100})) throw stack::stack_error(what + ": not all are Ready again");
      out.figure(what + ": heard again → all Ready", ms_between(back, clock::now()) / 1000, "s");
      if (!stack::poll_until([&] { return world.readyz().dump().find("mass_silence") == std::string::npos; }, patience, milliseconds{100}))
        throw stack::stack_error(what + ": mass silence does not end");
    };
    silence("heartbeats are lost", [&](bool are) { agents.mute(all, are); }, true);
    silence("nothing gets through", [&](bool are) { agents.reachable(!are); }, false);
    return out;
  });
}
