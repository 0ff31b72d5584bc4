// bench/restart.cpp -- many connectors: warrend killed and started under them, and heartbeats that change nothing.
#include <fmt/format.h>

#include "bench/agents.hpp"
#include "bench/visitor.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto patience = milliseconds{60'000};

struct shown {
  std::size_t connectors_ready = 0, tunnels_ready = 0;
  bool operator==(const shown&) const = default;
};

/// Empty: the API cannot be asked.
std::optional<shown> look_at(const api& server) {
  const auto connectors = server.list_connectors();
  if (!connectors) return std::nullopt;
  const auto tunnels = server.list_tunnels();
  if (!tunnels) return std::nullopt;
  shown out;
  for (const auto& c : *connectors)
    if (c.online() && holds(c, "Ready")) ++out.connectors_ready;
  for (const auto& t : *tunnels)
    if (holds(t, "Ready")) ++out.tunnels_ready;
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  command_line line{"restart", "warrend killed and started with many connectors; heartbeats that change nothing."};
  int connectors = 1'000, projects = 20, rounds = 5, beats = 100, beat_ms = 500;
  line.app.add_option("--connectors", connectors, "Simulated agents, each with one tunnel")->check(CLI::Range(1, 100'000));
  line.app.add_option("--projects", projects, "They are spread over")->check(CLI::Range(1, 1'000));
  line.app.add_option("--rounds", rounds, "Restarts")->check(CLI::Range(0, 1'000));
  line.app.add_option("--beats", beats, "Heartbeats of each connector that are counted; 0: none")->check(CLI::Range(0, 100'000));
  line.app.add_option("--beat-ms", beat_ms, "Agents' heartbeat interval while they are counted; as by default before")->check(CLI::Range(50, 60'000));
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    line.say("starting PostgreSQL, NATS, warrend, Envoy and an agent");
    stack::stack world{as_by_default()};
    world.add_agent("home").await_session();
    const api server{world.admin_port()};

    line.say(fmt::format("{} connectors say hello", connectors));
    simulated_agents agents{{world.nats_url(), "agent", world.nats_password()}};
    const auto project = [&](int n) { return fmt::format("project-{}", n % projects); };
    const auto begun = clock::now();
    std::vector<std::thread> callers;
    std::atomic<int> next{0};
    std::atomic<bool> failed{false};
    for (int i = 0; i < 16; ++i)
      callers.emplace_back([&] {
        try {
          for (int n = next++; n < connectors && !failed; n = next++) {
            const auto name = fmt::format("home-{}", n);
            agents.add(server, project(n), name);
            must(server.create_tunnel(project(n), name, name + ".bench.example", name, world.demo_origin().url()), name);
          }
        } catch (const std::exception& e) {
          if (!failed.exchange(true)) fmt::print(stderr, "{}\n", e.what());
        }
      });
    for (auto& each : callers) each.join();
    if (failed || !agents.await_sessions(patience)) throw stack::stack_error("the agents got no sessions");
    world.create_tunnel("web", "web.bench.example", "home");
    const shown whole{static_cast<std::size_t>(connectors) + 1, static_cast<std::size_t>(connectors) + 1};
    std::optional<shown> last;
    if (!stack::poll_until([&] { return (last = look_at(server)) == whole; }, patience, milliseconds{50}))
      throw stack::stack_error(fmt::format("of {} connectors and tunnels, {} and {} are Ready", whole.connectors_ready,
                                           last ? last->connectors_ready : 0, last ? last->tunnels_ready : 0));
    report out{"restart"};
    out.figure("enrolled, said hello, tunnel Ready", connectors / (ms_between(begun, clock::now()) / 1000), "/s");

    gaze visitor{world.visitor_port(), "web.bench.example", std::chrono::milliseconds{1}};
    sample asked, all_ready;
    std::size_t not_200 = 0;
    const auto restart = [&](bool measured, const stack::settings& environment = {}) {
      const auto sessions = agents.sessions();
      world.kill_warrend();
      std::this_thread::sleep_for(milliseconds{200});
      const auto started = clock::now();
      world.launch_warrend(environment);
      std::optional<clock::time_point> answered, whole_at;
      std::optional<shown> seen;
      while (!whole_at && ms_between(started, clock::now()) < 60'000) {
        seen = look_at(api{world.admin_port()});  // a channel of its own: one that was refused waits before it tries again
        const auto now = clock::now();
        if (seen && !answered) answered = now;
        if (seen == whole) whole_at = now;
        if (!whole_at) std::this_thread::sleep_for(milliseconds{5});
      }
      if (!whole_at)
        throw stack::stack_error(fmt::format("a minute after the start {} of {} connectors and {} of {} tunnels are Ready",
                                             seen ? seen->connectors_ready : 0, whole.connectors_ready,
                                             seen ? seen->tunnels_ready : 0, whole.tunnels_ready));
      if (!measured) return;
      asked.add(ms_between(started, *answered));
      all_ready.add(ms_between(started, *whole_at));
      out.figure(fmt::format("restart {}: agents that had to say hello again", asked.size()), static_cast<double>(agents.sessions() - sessions), "", 0);
    };
    for (int n = 0; n < rounds; ++n) {
      line.say(fmt::format("restart {}", n + 1));
      restart(true);
      std::this_thread::sleep_for(milliseconds{1'000});
    }
    not_200 = visitor.total() - visitor.count(200);
    if (rounds > 0) {
      out.leg("warrend started → the API answers", asked);
      out.leg(fmt::format("warrend started → all {} connectors and tunnels Ready", connectors), all_ready, {{}, {}, 1'000});
      out.figure("a visitor's answers meanwhile", static_cast<double>(visitor.total()), "");
      out.figure("of them not 200", static_cast<double>(not_200), "", 0);
    }

    if (beats > 0) {
      line.say(fmt::format("{} heartbeats of {} connectors", beats, connectors));
      restart(false, {{"WARREN_AGENT_HEARTBEAT_INTERVAL_MS", std::to_string(beat_ms)}});
      // What a restart leaves to be done (roll call, dials) must be over: then nothing is written any more.
      const auto rows = [&] { return world.metric("warren_store_rows_written_total"); };
      stack::poll_until([&, before = rows()]() mutable { const auto now = rows(); return std::exchange(before, now) == now; }, patience, milliseconds{2'000});
      const auto rows_before = rows(), transactions = world.metric("warren_store_transactions_total"),
                 pushes = world.metric("warren_gateway_pushes_total"), received = world.metric("warren_heartbeats_total");
      const auto wanted = static_cast<double>(connectors) * beats;
      const auto from = clock::now();
      if (!stack::poll_until([&] { return world.metric("warren_heartbeats_total") - received >= wanted; },
                             milliseconds{10'000} + milliseconds{beat_ms * 4} * beats, milliseconds{100}))
        throw stack::stack_error("the heartbeats do not arrive");
      const auto took = ms_between(from, clock::now()) / 1000;
      out.figure("heartbeats counted", world.metric("warren_heartbeats_total") - received, "");
      out.figure("heartbeats taken in", wanted / took, "/s");
      out.figure("rows written for them", rows() - rows_before, "", 0);
      out.figure("transactions for them", world.metric("warren_store_transactions_total") - transactions, "", 0);
      out.figure("responses to the gateway for them", world.metric("warren_gateway_pushes_total") - pushes, "", 0);
    }
    return out;
  });
}
