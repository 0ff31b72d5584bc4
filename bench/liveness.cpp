// bench/liveness.cpp -- how soon an agent that is gone, frozen, back or elsewhere is known, to the API and to visitors.
#include <fmt/format.h>

#include "bench/visitor.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto patience = milliseconds{20'000};

template <class T> const T& had(const std::optional<T>& seen, const std::string& what) {
  if (!seen) throw stack::stack_error(what + ": not seen in 20 s");
  return *seen;
}

bool by_decision(const glimpse& g) { return g.status == 503 && g.reason == "connector-offline"; }

}  // namespace

int main(int argc, char** argv) {
  command_line line{"liveness", "Agents killed, frozen, back and moved: what the API and a continuous visitor see, and when."};
  int rounds = 20, frozen_rounds = 5, loaded_tunnels = 100, heartbeat_ms = 2'000;
  line.app.add_option("--rounds", rounds, "Of kill and return, and of moving")->check(CLI::Range(1, 1'000));
  line.app.add_option("--frozen-rounds", frozen_rounds, "Of SIGSTOP and SIGCONT; each takes seconds")->check(CLI::Range(0, 1'000));
  line.app.add_option("--loaded", loaded_tunnels, "Tunnels behind the agent")->check(CLI::Range(0, 10'000));
  line.app.add_option("--heartbeat-ms", heartbeat_ms, "Agents' heartbeat interval")->check(CLI::Range(50, 60'000));
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    line.say("starting PostgreSQL, NATS, warrend, Envoy and an agent");
    auto options = as_by_default();
    options.heartbeat_interval_ms = heartbeat_ms;
    stack::stack world{options};
    const auto project = world.options().project;
    auto& agent = world.add_agent("home", {.start = false});
    // Where it says it is lies in a file, read again on SIGHUP: a move without a restart. It always listens on the
    // one port; the other one is where nobody is.
    const auto addresses = agent.state().parent_path() / "addresses";
    const auto nowhere = stack::free_port();
    const auto say_address = [&](std::uint16_t port) { stack::write_file(addresses, fmt::format("127.0.0.1:{}\n", port)); };
    say_address(agent.port());
    const std::vector<std::string> arguments{"--advertise-file", addresses.string()};
    agent.start(arguments);
    agent.await_session();
    const api server{world.admin_port()};
    tunnel_watch tunnels{server, project};
    connector_watch connectors{server, project};
    load_tunnels(server, tunnels, project, {"home"}, world.demo_origin().url(), std::max(1, loaded_tunnels));
    gaze visitor{world.visitor_port(), "load-0.bench.example", std::chrono::microseconds{500}, milliseconds{250}};
    had(visitor.await_status(200, clock::now(), patience), "a visitor's 200");
    const auto pushes = [&] { return world.metric("warren_gateway_pushes_total"); };

    sample killed_api, killed_any, killed_503, back_200, back_api;
    line.say(fmt::format("killing it {} times", rounds));
    double pushed_offline = 0;
    for (int n = 0; n < rounds; ++n) {
      // The instance must have reached it by itself, or only the lease may decide.
      if (!stack::poll_until([&] { return world.sql("SELECT dialable FROM connector WHERE name = 'home'").starts_with("t"); }, patience))
        throw stack::stack_error("no instance has reached the agent");
      const auto before = pushes();
      const auto died = clock::now();
      agent.kill();
      killed_any.add(ms_between(died, had(visitor.await_status(503, died, patience), "a visitor's 503").answered));
      killed_api.add(ms_between(died, had(connectors.await_online("home", false, died, patience), "offline in the API")));
      killed_503.add(ms_between(died, had(visitor.await(by_decision, died, patience), "the deliberate 503").answered));
      pushed_offline += pushes() - before;
      const auto started = clock::now();
      agent.start(arguments);
      back_api.add(ms_between(started, had(connectors.await_online("home", true, started, patience), "online in the API")));
      back_200.add(ms_between(started, had(visitor.await_status(200, started, patience), "a visitor's 200 again").answered));
      agent.await_session();
    }

    sample frozen_api, frozen_503, thawed_200;
    line.say(fmt::format("freezing it {} times", frozen_rounds));
    for (int n = 0; n < frozen_rounds; ++n) {
      std::this_thread::sleep_for(milliseconds{300});
      const auto stopped = clock::now();
      agent.freeze();
      frozen_api.add(ms_between(stopped, had(connectors.await_online("home", false, stopped, patience), "offline in the API")));
      frozen_503.add(ms_between(stopped, had(visitor.await(by_decision, stopped, patience), "the deliberate 503").answered));
      // As soon as it runs its overdue heartbeat goes out.
      const auto thawed = clock::now();
      agent.thaw();
      thawed_200.add(ms_between(thawed, had(visitor.await_status(200, thawed, patience), "a visitor's 200 again").answered));
      had(connectors.await_online("home", true, thawed, patience), "online in the API");
    }

    sample moved;
    double pushed_moving = 0;
    line.say(fmt::format("moving it {} times", rounds));
    for (int n = 0; n < rounds; ++n) {
      const auto left = clock::now();
      say_address(nowhere);
      agent.running_process().signal(SIGHUP);
      had(visitor.await_status(503, left, patience), "a visitor's 503 while it says a wrong address");
      const auto before = pushes();
      say_address(agent.port());
      const auto moves = clock::now();
      agent.running_process().signal(SIGHUP);
      moved.add(ms_between(moves, had(visitor.await_status(200, moves, patience), "a visitor's 200 after the move").answered));
      pushed_moving += pushes() - before;
    }

    report out{"liveness"};
    out.leg("killed → offline in the API", killed_api, {{}, {}, 100});
    out.leg("killed → first 503", killed_any, {{}, {}, 100});
    out.leg("killed → first deliberate 503 (connector-offline)", killed_503, {{}, {}, 100});
    out.leg("started again → online in the API (process start included)", back_api);
    out.leg("started again → 200 (process start included)", back_200);
    if (frozen_rounds > 0) {
      out.leg("frozen → offline in the API", frozen_api, {{}, {}, 5'000});
      out.leg("frozen → first deliberate 503", frozen_503, {{}, {}, 5'000});
      out.leg("thawed (heartbeat overdue) → 200", thawed_200, {{}, 50, {}});
    }
    out.leg("moved (SIGHUP) → 200 at the new address", moved, {{}, 50, {}});
    out.figure("responses to the gateway for each offline flip", pushed_offline / rounds, "");
    out.figure("responses to the gateway for each move", pushed_moving / rounds, "");
    out.figure("answers other than 200 and 503 (visitors that a frozen agent kept waiting)",
               static_cast<double>(visitor.total() - visitor.count(200) - visitor.count(503)), "");
    out.note(fmt::format("{} tunnels behind the agent, heartbeats every {} ms, a visitor every 0.5 ms", std::max(1, loaded_tunnels), heartbeat_ms));
    return out;
  });
}
