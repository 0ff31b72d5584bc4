// test/simulation/scenario.hpp -- what happens in a run, as a person reads and writes it. Pure text: no simulation.
//
//   # anything after a hash is a comment
//   instances 3                      how many; these lines come first, each has a default
//   partitions 4
//   gateways 1
//   watches 2                        who follow tunnels, connectors, and tunnels of acme, in turn
//   lease 3s                         of an instance (instance.lease_ms)
//   heartbeat 2s                     of agents (agent.heartbeat_interval_ms)
//   heartbeats 1                     so many a second are enough for an instance; 0: as many as in earnest
//   seed 7                           of all chance in the run
//   bug no-fence                     planted (bugs.hpp)
//   at TIME VERB NOUN [NAME] [OPTION VALUE]…
//
// TIME and durations: 500ms, 3s, 1.5s, 2m, 4h. Names of tunnels and connectors: NAME or PROJECT/NAME (project acme).
// The verbs are the table in scenario.cpp; `warren-sim --grammar` prints it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "test/simulation/bugs.hpp"

namespace warren::simulation {

struct statement {
  std::int64_t at_ms = 0;
  std::string verb, noun, name;                 ///< "kill", "instance", "1"
  std::map<std::string, std::string> options;   ///< "for" → "2s"
  bool operator==(const statement&) const = default;

  bool is(std::string_view v, std::string_view n) const { return verb == v && noun == n; }
  const std::string& option(const std::string& key, const std::string& otherwise) const;
  std::int64_t option_ms(const std::string& key, std::int64_t otherwise) const;
  int option_number(const std::string& key, int otherwise) const;
};

struct scenario {
  std::string title;      ///< its first comment
  int instances = 3, partitions = 4, gateways = 1, watches = 2, heartbeats = 0;
  std::int64_t lease_ms = 3'000, heartbeat_ms = 2'000;  ///< as they are configured
  std::uint64_t seed = 1;
  bugs planted;
  std::vector<statement> what;  ///< in order of time
  bool operator==(const scenario&) const = default;
};

struct scenario_error {
  int line = 0;
  std::string message;
};

std::variant<scenario, scenario_error> parse_scenario(std::string_view text);
std::string print(const scenario& s);
std::string print(const statement& s);
/// Every verb with its options, for people.
std::string grammar();

/// "1.5s" → 1500.
std::optional<std::int64_t> parse_duration(std::string_view text);
std::string print_duration(std::int64_t ms);

}  // namespace warren::simulation
