// bench/world.cpp -- options, and a Warren with tunnels in it.
#include "bench/world.hpp"

#include <atomic>
#include <thread>

#include <fmt/format.h>

namespace warren::bench {

command_line::command_line(const std::string& name, const std::string& what) : app{what, name} {
  app.add_flag("--json", json, "One JSON object instead of the table");
}

int command_line::run(int argc, char** argv, const std::function<report()>& body) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    const auto found = body();
    found.print(json);
    return found.goals_met() ? 0 : 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}: {}\n", app.get_name(), e.what());
    return 1;
  }
}

void command_line::say(const std::string& sentence) const {
  if (!json) fmt::print(stderr, "{}\n", sentence);
}

loaded load_tunnels(const api& server, tunnel_watch& watch, const std::string& project,
                    const std::vector<std::string>& connectors, const std::string& target, int count, int width) {
  const auto begun = clock::now();
  const auto before = watch.ready();
  std::atomic<int> next{0};
  std::mutex mutex;
  std::string wrong;
  std::vector<std::thread> callers;
  for (int i = 0; i < width; ++i)
    callers.emplace_back([&] {
      for (int n = next++; n < count; n = next++) {
        const auto status = server.create_tunnel(project, fmt::format("load-{}", n), fmt::format("load-{}.bench.example", n),
                                                 connectors[static_cast<std::size_t>(n) % connectors.size()], target);
        if (status.ok()) continue;
        const std::lock_guard lock{mutex};
        wrong = fmt::format("load-{}: {}", n, status.error_message());
        next = count;
      }
    });
  for (auto& each : callers) each.join();
  if (!wrong.empty()) throw stack::stack_error(wrong);
  loaded out;
  out.created_s = ms_between(begun, clock::now()) / 1000;
  for (int n = 0; n < count; ++n)
    if (!watch.await_ready(fmt::format("load-{}", n), milliseconds{60'000}))
      throw stack::stack_error(fmt::format("load-{} is not Ready after a minute ({} of {} are)", n,
                                           watch.ready() - before, count));
  out.ready_s = ms_between(begun, clock::now()) / 1000;
  return out;
}

stack::stack_options as_by_default(const std::string& project) {
  stack::stack_options o;
  o.instance_lease_ms = 3'000;
  o.heartbeat_interval_ms = 2'000;
  o.project = project;
  return o;
}

}  // namespace warren::bench
