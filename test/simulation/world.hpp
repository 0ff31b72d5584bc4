// test/simulation/world.hpp -- everything that there is in a run, carried from one event to the next.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "test/simulation/admins.hpp"
#include "test/simulation/agents.hpp"
#include "test/simulation/auditor.hpp"
#include "test/simulation/database.hpp"
#include "test/simulation/deceit.hpp"
#include "test/simulation/gateways.hpp"
#include "test/simulation/host.hpp"
#include "test/simulation/network.hpp"
#include "test/simulation/scenario.hpp"
#include "test/simulation/watches.hpp"

namespace warren::simulation {

/// What a run came to.
struct outcome {
  std::vector<std::string> violations;
  std::uint64_t steps = 0, checks = 0, digest = 0;
  std::int64_t virtual_ms = 0, converged_after_ms = 0;  ///< the latter: after the faults ended
  std::uint64_t commits = 0, messages = 0, requests = 0, takeovers = 0, resumed = 0;
};

class world {
public:
  world(const scenario& s, bool talkative);
  ~world();
  world(const world&) = delete;
  world& operator=(const world&) = delete;

  /// Until everything in the scenario has happened, the faults are over and all agree, or it took too long.
  outcome run();

  /// What does not agree yet; empty: everything does.
  std::vector<std::string> disagreements();

private:
  struct expectation {
    statement what;
    std::int64_t until_ms = 0;
  };

  // ---- world.cpp ----
  void furnish();
  void connect_streams();
  void connect_gateways();
  void connect_watches();
  /// All streams of this instance end after a moment, or when their other end misses it.
  void end_streams(host& h, std::int64_t after_ms_min, std::int64_t after_ms_max);
  bool step(std::int64_t until_ms);
  void pass(std::int64_t until_ms);
  void check_expectations();
  /// Empty: it holds.
  std::string missing(const statement& expected);
  dial_result dialled(const dial_request& q);
  agent_host& agent(const std::string& name);
  host& instance(const std::string& number);
  gateway_host& gateway(const std::string& number);

  // ---- happenings.cpp ----
  void happen(const statement& s);
  bool happen_to_tunnels(const statement& s);
  bool happen_to_agents(const statement& s);
  bool happen_to_instances(const statement& s);
  bool happen_to_gateways(const statement& s);
  bool happen_to_watches(const statement& s);
  void refuse(const statement& s);
  bool happen_to_all(const statement& s);
  void pause(host& h, std::int64_t for_ms);
  void end_faults();
  void fail_over(std::int64_t losing_ms);

  // ---- agreement.cpp ----
  void placed(std::vector<std::string>& out);
  void rows_settled(std::vector<std::string>& out);
  void agents_agree(std::vector<std::string>& out);
  void interval_agrees(const agent_host& a, const v1::ConnectorRow& row, const std::string& key, std::vector<std::string>& out);
  void replicas_agree(std::vector<std::string>& out);
  void gateways_agree(std::vector<std::string>& out);
  void watches_agree(std::vector<std::string>& out);

  const scenario plan_;
  timeline time_;
  database db_;
  network net_;
  store_weather weather_;
  auditor audit_;
  admins admins_;
  deceit deceit_;
  std::vector<std::unique_ptr<host>> hosts_;
  std::map<std::string, std::unique_ptr<agent_host>> agents_;
  std::vector<std::unique_ptr<gateway_host>> gateways_;
  struct stream {
    gateway_host* gateway = nullptr;
    host* at = nullptr;
    std::uint64_t life = 0;
    std::int64_t arrives_at_ms = 0;  ///< of the last response: order is kept
  };
  std::map<std::uint64_t, stream> streams_;
  std::vector<std::unique_ptr<watch_host>> watches_;
  struct watch_stream {
    watch_host* watch = nullptr;
    host* at = nullptr;
    std::int64_t arrives_at_ms = 0;  ///< of the last message: order is kept
  };
  std::map<std::uint64_t, watch_stream> watch_streams_;
  std::map<std::int64_t, tables> backups_;  ///< for failovers to come, by time
  std::vector<expectation> expected_;
  std::uint64_t steps_ = 0, steps_here_ = 0, tickets_ = 0, next_stream_ = 1, commits_ = 0, takeovers_ = 0;
  bool faults_over_ = false;
};

/// "project/name", or a name of the project acme.
std::pair<std::string, std::string> split_name(const std::string& name);

}  // namespace warren::simulation
