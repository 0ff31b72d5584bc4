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
  bool long_faults = false;  ///< some of them for twenty times as long

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
  std::string some_time(std::int64_t low, std::int64_t high) {
    if (long_faults && chance.chance(30)) high *= 20;
    return print_duration(chance.between(low / 10, high / 10) * 10);
  }
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
    switch (chance.between(0, 24)) {
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
        return say(at, "pause", "instance", instance, {{"inside", "transaction"}, {"for", some_time(500, 9'000)}});
      case 19:
        return say(at, "disturb", "store", "",
                   {{"late", std::to_string(chance.between(2, 30))}, {"by", some_time(50, 900)}, {"for", some_time(1'000, 10'000)}});
      case 20: return say(at, "disconnect", "watch", std::to_string(chance.between(1, 3)));
      case 21: {
        std::map<std::string, std::string> options{{"for", some_time(1'000, 20'000)}};
        if (with.gateways > 1 && chance.chance(50)) options["gateway"] = std::to_string(chance.between(1, with.gateways));
        if (chance.chance(30)) return say(at, "refuse", "connector", any_connector(), std::move(options));
        if (chance.chance(30)) options["its"] = "scope";
        return say(at, "refuse", "tunnel", any_tunnel(), std::move(options));
      }
      case 22:
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
  writer w{dice{seed * 7919 + 17}, options, {}, false};
  w.out.title = fmt::format("seed {}", seed);
  w.out.seed = seed;
  w.out.instances = options.instances;
  w.out.partitions = options.partitions;
  w.out.gateways = options.gateways;
  w.out.watches = 3;
  // A third of them has agents that are told to say less, and more again when some have gone.
  if (dice paced{seed * 7919 + 41}; paced.chance(33)) w.out.heartbeats = static_cast<int>(paced.between(1, 2));
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

scenario long_from_seed(std::uint64_t seed, std::int64_t ms) {
  const fault_options few{.instances = 2, .partitions = 1, .gateways = 1, .projects = 1, .connectors = 2, .tunnels = 3};
  writer w{dice{seed * 7919 + 29}, few, {}, true};
  w.out.title = fmt::format("seed {}, {}", seed, print_duration(ms));
  w.out.seed = seed;
  w.out.instances = w.chance.chance(10) ? 3 : 2;
  w.out.partitions = few.partitions;
  w.out.gateways = few.gateways;
  constexpr std::array leases_ms{3'000, 30'000, 60'000, 60'000, 60'000};
  constexpr std::array heartbeats_ms{2'000, 10'000, 30'000, 60'000, 300'000};
  w.out.lease_ms = leases_ms[static_cast<std::size_t>(w.chance.roll() % leases_ms.size())];
  w.out.heartbeat_ms = heartbeats_ms[static_cast<std::size_t>(w.chance.roll() % heartbeats_ms.size())];
  for (int i = 0; i < few.connectors; ++i) {
    const auto lease_ms = w.chance.between(std::max<std::int64_t>(30'000, 3 * w.out.heartbeat_ms), 3'600'000);
    w.say(200, "enrol", "connector", w.connector(i), {{"lease", print_duration(lease_ms)}});
    w.say(w.chance.between(500, 60'000), "start", "agent", w.connector(i));
  }
  const auto faults_every = w.chance.between(5 * 60'000, 60 * 60'000), changes_every = w.chance.between(60'000, 30 * 60'000);
  for (std::int64_t at = 60'000; at < ms; at += w.chance.between(faults_every / 3, faults_every * 2)) {
    if (w.chance.chance(10))
      w.say(at, "disturb", "bus", "",
            {{"lost", std::to_string(w.chance.between(0, 30))}, {"repeated", std::to_string(w.chance.between(0, 10))},
             {"late", std::to_string(w.chance.between(0, 30))}, {"by", w.some_time(100, 2'000)}, {"for", w.some_time(5'000, 60'000)}});
    else w.fault(at);
  }
  for (std::int64_t at = 2'000; at < ms; at += w.chance.between(changes_every / 3, changes_every * 2)) w.change(at);
  w.say(ms, "end", "faults", "");
  std::stable_sort(w.out.what.begin(), w.out.what.end(),
                   [](const statement& a, const statement& b) { return a.at_ms < b.at_ms; });
  return w.out;
}

}  // namespace warren::simulation
