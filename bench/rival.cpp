// bench/rival.cpp -- a rival bumps every row that it can see, as fast as it can, while a tunnel comes to life.
#include <fmt/format.h>

#include "bench/postgres.hpp"
#include "bench/world.hpp"

using namespace warren;
using namespace warren::bench;

int main(int argc, char** argv) {
  command_line line{"rival", "From a creation to Ready while a rival bumps every row, as fast as it can, for so many rounds."};
  int rounds = 20, repeats = 20, connections = 4, conflicts_least = 20;
  line.app.add_option("--rounds", rounds, "Times that each of its connections touches every row of the project")->check(CLI::Range(1, 10'000));
  line.app.add_option("--conflicts", conflicts_least, "It goes on until so many writes have met it")->check(CLI::Range(0, 10'000));
  line.app.add_option("--connections", connections, "Of the rival")->check(CLI::Range(1, 64));
  line.app.add_option("--repeats", repeats, "Tunnels, one after another")->check(CLI::Range(1, 1'000));
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    line.say("starting PostgreSQL, NATS, warrend, Envoy and an agent");
    stack::stack world{as_by_default()};
    const auto project = world.options().project;
    world.add_agent("home").await_session();
    const api server{world.admin_port()};
    tunnel_watch watch{server, project};
    const auto target = world.demo_origin().url();
    const auto live = [&](const std::string& name) {
      const auto begun = clock::now();
      must(server.create_tunnel(project, name, name + ".bench.example", "home", target), name);
      const auto life = watch.await_ready(name, milliseconds{30'000});
      if (!life) throw stack::stack_error(name + " is not Ready after 30 s");
      return ms_between(begun, *life->ready);
    };
    const auto settled = [&](const std::string& name, const std::string& wanted) {
      return stack::poll_until([&] { return final_rows(world.database_url(), project, name) == wanted; },
                               milliseconds{10'000}, milliseconds{20});
    };

    sample undisturbed;
    for (int n = 0; n < repeats; ++n) undisturbed.add(live(fmt::format("calm-{}", n)));
    std::this_thread::sleep_for(milliseconds{200});  // whatever is written after Ready
    const auto wanted = final_rows(world.database_url(), project, "calm-0");

    line.say(fmt::format("{} tunnels against {} connections, {} rounds and {} conflicts each", repeats, connections, rounds, conflicts_least));
    const auto errors = world.metric("warren_reconcile_errors_total");
    sample ready, fought, met;
    std::int64_t rows = 0;
    int differing = 0;
    for (int n = 0; n < repeats; ++n) {
      const auto name = fmt::format("fought-{}", n);
      const auto conflicts = world.metric("warren_conflicts_total");
      auto enemy = std::make_unique<rival>(world.database_url(), project, connections);
      // It is there before the tunnel is, and leaves when it has had its rounds and so many writes have met it.
      std::thread referee{[&] {
        const auto begun = clock::now();
        stack::poll_until([&] {
          return enemy->rounds_with(name) >= rounds && world.metric("warren_conflicts_total") - conflicts >= conflicts_least;
        }, milliseconds{20'000}, milliseconds{10});
        fought.add(ms_between(begun, clock::now()));
        rows += enemy->rows();
        met.add(world.metric("warren_conflicts_total") - conflicts);
        enemy.reset();
      }};
      try {
        ready.add(live(name));
      } catch (...) {
        referee.join();
        throw;
      }
      referee.join();
      if (!settled(name, wanted)) ++differing;
    }

    report out{"rival"};
    out.leg("undisturbed: created → Ready", undisturbed);
    out.leg(fmt::format("against {} connections: created → Ready", connections), ready, {{}, {}, 5'000});
    out.leg("the rival's time, from before the creation", fought);
    out.figure("rows that the rival touched", static_cast<double>(rows), "");
    out.figure("conflicts met and retried for each creation, p50", met.percentile(50), "");
    out.figure("fewest", met.percentile(0), "");
    out.figure("most", met.max(), "");
    out.figure("warren_reconcile_errors_total, change", world.metric("warren_reconcile_errors_total") - errors, "", 0);
    out.figure("tunnels whose rows differ from an undisturbed run's", differing, "", 0);
    return out;
  });
}
