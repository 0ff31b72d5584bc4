// test/simulation/faults.cpp -- what a seed lets happen.
#include "test/simulation/faults.hpp"

#include <algorithm>
#include <array>

#include "test/simulation/timeline.hpp"

namespace warren::simulation {

namespace {

constexpr std::array projects{"acme", "beta", "gamma", "delta", "omega"};

struct writer {
  dice chance;
  const fault_options& with;
  scenario out;

  std::string connector(int i) const {
    return fmt::format("{}/c{}", projects[static_cast<std::size_t>(i % with.projects) % projects.size()], i);
  }
  std::string any_connector() { return connector(static_cast<int>(chance.between(0, with.connectors - 1))); }
  std::string any_tunnel() {
    const auto i = chance.between(0, with.tunnels - 1);
    return fmt::format("{}/t{}", projects[static_cast<std::size_t>(i % with.projects) % projects.size()], i);
  }
  /// One or two of the project's connectors, or one that nobody has enrolled.
  std::string connectors_for(const std::string& tunnel) {
    const auto project = tunnel.substr(0, tunnel.find('/'));
    std::vector<std::string> own;
    for (int i = 0; i < with.connectors; ++i)
      if (connector(i).substr(0, project.size() + 1) == project + "/") own.push_back(connector(i).substr(project.size() + 1));
    if (own.empty() || chance.chance(5)) return "nobody";
    auto first = own[static_cast<std::size_t>(chance.roll() % own.size())];
    if (!chance.chance(30)) return first;
    const auto& second = own[static_cast<std::size_t>(chance.roll() % own.size())];
    return second == first ? first : first + "," + second;
  }
  std::string any_instance() { return std::to_string(chance.between(1, with.instances)); }
  std::string some_time(std::int64_t low, std::int64_t high) { return print_duration(chance.between(low / 10, high / 10) * 10); }
  void say(std::int64_t at_ms, std::string verb, std::string noun, std::string name, std::map<std::string, std::string> options = {}) {
    out.what.push_back({at_ms, std::move(verb), std::move(noun), std::move(name), std::move(options)});
  }

  void change(std::int64_t at) {
    const auto name = any_tunnel();
    const auto target = fmt::format("http://localhost:{}", chance.between(8000, 8005));
    switch (chance.between(0, 9)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        std::map<std::string, std::string> options{{"connector", connectors_for(name)}, {"target", target}};
        if (chance.chance(10)) options["host"] = fmt::format("shared{}.example.com", chance.between(0, 1));
        return say(at, "create", "tunnel", name, std::move(options));
      }
      case 4:
      case 5:
      case 6: return say(at, "update", "tunnel", name, {{"connector", connectors_for(name)}, {"target", target}});
      case 7: return say(at, chance.chance(50) ? "disable" : "enable", "tunnel", name);
      case 8: return say(at, "touch", chance.chance(50) ? "tunnel" : "connector", chance.chance(50) ? name : any_connector());
      default: return say(at, "delete", "tunnel", name);
    }
  }

  void fault(std::int64_t at) {
    const auto instance = any_instance();
    switch (chance.between(0, 19)) {
      case 0:
      case 1: return say(at, "kill", "instance", instance, {{"for", some_time(50, 5'000)}});
      case 2: return say(at, "vanish", "instance", instance, {{"for", some_time(500, 9'000)}});
      case 3: return say(at, "stop", "instance", instance, {{"for", some_time(500, 5'000)}});
      case 4:
      case 5: return say(at, "pause", "instance", instance, {{"for", some_time(100, chance.chance(20) ? 45'000 : 9'000)}});
      case 6:
      case 7: return say(at, "cut", "instance", instance, {{"from", "bus"}, {"for", some_time(100, 9'000)}});
      case 8:
      case 9: return say(at, "cut", "instance", instance, {{"from", "store"}, {"for", some_time(100, 9'000)}});
      case 10: return say(at, "lose", "bus", "", {{"for", some_time(100, 6'000)}});
      case 11: return say(at, "lose", "store", "", {{"for", some_time(100, 5'000)}});
      case 12: return chance.chance(40) ? say(at, "fail-over", "store", "", {{"losing", some_time(100, 1'000)}}) : void();
      case 13:
        return say(at, "leave", "commits", "",
                   {{"undecided", std::to_string(chance.between(5, 40))}, {"contended", std::to_string(chance.between(0, 20))},
                    {"for", some_time(500, 8'000)}});
      case 14: {
        std::map<std::string, std::string> options{{"for", some_time(20, chance.chance(40) ? 400 : 8'000)}};
        if (chance.chance(30)) options["disk"] = "lost";
        return say(at, "kill", "agent", any_connector(), std::move(options));
      }
      case 15: return say(at, "stop", "agent", any_connector(), {{"for", some_time(100, 8'000)}});
      case 16: return say(at, "cut", "agent", any_connector(), {{"for", some_time(100, chance.chance(20) ? 50'000 : 9'000)}});
      case 17: return say(at, "move", "agent", any_connector());
      case 18:
        return with.gateways == 0 ? void()
                                  : say(at, chance.chance(50) ? "restart" : "disconnect", "gateway",
                                        std::to_string(chance.between(1, with.gateways)));
      default:
        return with.gateways == 0 ? void()
                                  : say(at, "freeze", "gateway", std::to_string(chance.between(1, with.gateways)),
                                        {{"for", some_time(500, 8'000)}});
    }
  }
};

}  // namespace

scenario from_seed(std::uint64_t seed, const fault_options& options) {
  writer w{dice{seed * 7919 + 17}, options, {}};
  w.out.title = fmt::format("seed {}", seed);
  w.out.seed = seed;
  w.out.instances = options.instances;
  w.out.partitions = options.partitions;
  w.out.gateways = options.gateways;
  if (w.chance.chance(70))
    w.say(0, "disturb", "bus", "",
          {{"lost", std::to_string(w.chance.between(0, 10))}, {"repeated", std::to_string(w.chance.between(0, 5))},
           {"late", std::to_string(w.chance.between(0, 12))}, {"by", w.some_time(100, 900)},
           {"for", print_duration(options.faulty_ms)}});
  for (int i = 0; i < options.connectors; ++i)
    if (w.chance.chance(85)) w.say(w.chance.between(200, 3'000), "start", "agent", w.connector(i));
  // Some seeds are about one fault, others about many.
  const auto faults_every = w.chance.between(1'500, 12'000);
  const auto changes_every = w.chance.between(700, 4'000);
  for (std::int64_t at = 4'000; at < options.faulty_ms; at += w.chance.between(faults_every / 3, faults_every * 2)) w.fault(at);
  for (std::int64_t at = 1'000; at < options.faulty_ms; at += w.chance.between(changes_every / 3, changes_every * 2)) w.change(at);
  w.say(options.faulty_ms, "end", "faults", "");
  if (options.quiet_ms > 0)
    w.say(options.faulty_ms + options.quiet_ms, "expect", "converged", "", {{"within", "1s"}});
  std::stable_sort(w.out.what.begin(), w.out.what.end(),
                   [](const statement& a, const statement& b) { return a.at_ms < b.at_ms; });
  return w.out;
}

}  // namespace warren::simulation
