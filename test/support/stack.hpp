// test/support/stack.hpp -- a whole Warren on free loopback ports: PostgreSQL, NATS, warrend, agents, an Envoy.
// Works through the programs only; knows no room of services/. Also used by deploy/story.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "test/support/forwarder.hpp"
#include "test/support/http.hpp"
#include "test/support/process.hpp"

namespace warren::stack {

using settings = std::vector<std::pair<std::string, std::string>>;

/// Where warrend, warrenctl and warren-agent are: WARREN_BIN_DIR of the environment, else of this build.
std::filesystem::path bin_dir();

/// Whether WARREN_ENVOY names an Envoy; what shows visitors is skipped without one.
bool has_envoy();

/// What warrenctl said.
struct told {
  int code = -1;
  std::string out;
  std::string err;
  bool ok() const { return code == 0; }
  /// `out` as JSON; null when it is none (use `-o json`).
  nlohmann::json json() const;
};

/// A cluster of our own, for whoever stops it; reachable by TCP on loopback with a password.
class postgres_cluster {
public:
  /// Initialised and started.
  explicit postgres_cluster(const scratch& place);
  void start();
  /// All sessions end at once; what was committed is there after start().
  void stop();
  /// SIGKILL to everything: what a crash of the machine is.
  void kill();
  std::string url(const std::string& database) const;
  std::uint16_t port() const { return port_; }
  process& server() { return server_; }

private:
  std::filesystem::path place_;
  std::uint16_t port_;
  std::string password_;
  process server_;
};

/// A database that has all of migrations/, copied from a template that is made once for each content of
/// migrations/. Lies in the PostgreSQL of WARREN_TEST_PG. Dropped with this object.
class test_database {
public:
  explicit test_database(int partitions = 64);
  ~test_database();
  test_database(const test_database&) = delete;
  test_database& operator=(const test_database&) = delete;
  const std::string& url() const { return url_; }

private:
  std::string name_, url_;
};

/// Whether WARREN_TEST_PG names a PostgreSQL (`check` sets it).
bool has_shared_postgres();

/// Statements through psql. Rows are lines, columns are separated by '|'. Throws stack_error with psql's words.
std::string run_sql(const std::string& url, const std::string& statements);

struct stack_options {
  bool with_envoy = true;            ///< where there is one: see has_envoy()
  bool own_postgres = false;         ///< a cluster of its own, so that it can be stopped
  bool start = true;                 ///< warrend is running, and warm, when the constructor returns
  int instances = 1;                 ///< of warrend: warren-1, warren-2, …
  bool with_ways = false;            ///< each instance reaches PostgreSQL, NATS and gateways by ways that can be cut
  bool agents_have_credentials = false;  ///< each its own, issued by warrend; else they share a user
  int partitions = 64;
  int instance_lease_ms = 1'000;
  int heartbeat_interval_ms = 300;   ///< of the agents
  std::string project = "demo";
  settings configuration = {};       ///< more of warrend's settings, by key: {"database.lanes", "1"}
  settings environment = {};         ///< of warrend's first start: {"WARREN_FAILPOINT", "after_commit"}
  bool keep_logs = true;             ///< when an exception is on its way
  std::uint16_t visitor_port = 0;    ///< where Envoy listens; 0: a free port
};

struct agent_options {
  std::string lease_duration = {};   ///< "3s"; empty: the API's default
  std::string project = {};          ///< empty: the stack's
  std::vector<std::string> arguments = {};  ///< more for `warren-agent run`: "--mute-heartbeats"
  bool start = true;
};

class stack;

/// An enrolled connector and its agent.
class agent {
public:
  const std::string& name() const { return name_; }
  const std::string& project() const { return project_; }
  std::uint16_t port() const { return port_; }                ///< where gateways come in
  const std::filesystem::path& enrolment() const { return enrolment_; }
  const std::filesystem::path& key() const { return key_; }
  const std::filesystem::path& state() const { return state_; }
  const std::string& public_key() const { return public_key_; }
  /// Starts the process; awaits nothing. `more` is added to its arguments.
  void start(const std::vector<std::string>& more = {});
  /// Waits until the owner has answered its hello (since the last start).
  void await_session(milliseconds timeout = milliseconds{10'000});
  /// A clean stop: it says bye.
  void stop() { process_.stop(); }
  void kill() { process_.kill(); }
  void freeze() { process_.freeze(); }
  void thaw() { process_.thaw(); }
  bool running() { return process_.running(); }
  process& running_process() { return process_; }
  /// From the next start on: another port.
  void move();

private:
  friend class stack;
  std::string name_, project_, public_key_;
  std::filesystem::path enrolment_, key_, state_, log_;
  std::uint16_t port_ = 0;
  std::vector<std::string> arguments_;
  std::size_t log_offset_ = 0;
  process process_;
};

/// One warrend of a stack.
class instance {
public:
  const std::string& name() const { return name_; }
  std::uint16_t admin_port() const { return admin_port_; }
  std::uint16_t xds_port() const { return xds_port_; }
  std::uint16_t http_port() const { return http_port_; }

  /// Returns when it is ready: the replica is warm and the admin API serves.
  void start(const settings& environment = {});
  /// As start, but awaits nothing.
  void launch(const settings& environment = {});
  /// Waits for "ready" of the last launch; false: it ended before, or took longer.
  bool await_ready(milliseconds timeout = milliseconds{20'000});
  /// SIGTERM: it drains; SIGKILL after `patience`.
  exit_status stop(milliseconds patience = milliseconds{30'000}) { return process_.stop(patience); }
  void kill() { process_.kill(); }
  void freeze() { process_.freeze(); }
  void thaw() { process_.thaw(); }
  bool running() { return process_.running(); }
  process& running_process() { return process_; }
  /// Since its last start.
  std::string log() const;

  /// Its own ways to the servers. Throw unless with_ways.
  forwarder& to_postgres();
  forwarder& to_nats();

  std::string metrics_text() const;
  /// Sum of the samples of `name` (with a label of value `label`, unless that is empty); 0: there is none.
  double metric(const std::string& name, const std::string& label = {}) const;
  nlohmann::json readyz() const;

private:
  friend class stack;
  std::string name_;
  std::filesystem::path config_, log_;
  std::uint16_t admin_port_ = free_port(), xds_port_ = free_port(), http_port_ = free_port();
  std::unique_ptr<forwarder> to_postgres_, to_nats_;
  std::size_t log_offset_ = 0;
  process process_;
};

/// Everything a tunnel's life needs. One thread at a time, except ctl(), sql(), metric() and visit().
/// Ends all its processes with itself. Its directory goes with it, unless an exception is on its way, keep()
/// was called or WARREN_TEST_KEEP is set: then the logs stay, and standard error says where.
class stack {
public:
  explicit stack(stack_options options = {});
  ~stack();
  stack(const stack&) = delete;
  stack& operator=(const stack&) = delete;

  const stack_options& options() const;
  const std::filesystem::path& directory() const;
  void keep();

  // -- several of them --
  /// From 0; the first is the one of the functions below, and the one that ctl() asks.
  instance& at(std::size_t n);
  std::size_t instances() const;
  /// Names the next one and gives it ports; does not start it.
  instance& add_instance();
  /// partition → instance id, as the table has it (0: nobody's).
  std::map<int, std::int64_t> owners() const;
  /// The id of the last start of an instance that has this name; 0: it has none.
  std::int64_t id_of(const instance& i) const;
  /// Waits until every partition is owned by one of these, evenly (± 1).
  bool await_spread(const std::vector<const instance*>& over, milliseconds timeout = milliseconds{20'000}) const;
  /// Where the stack's Envoy finds instances, in this order; with_ways only.
  forwarder& to_xds();

  // -- warrend --
  /// Returns when it is ready: the replica is warm and the admin API serves.
  void start_warrend(const settings& environment = {});
  /// As start_warrend, but awaits nothing.
  void launch_warrend(const settings& environment = {});
  /// Waits for "ready" of the last launch; false: it ended before, or took longer.
  bool await_warrend(milliseconds timeout = milliseconds{20'000});
  void stop_warrend();  ///< SIGTERM: it drains
  void kill_warrend();
  void freeze_warrend();
  void thaw_warrend();
  process& warrend();
  std::uint16_t admin_port() const;
  std::uint16_t xds_port() const;
  std::uint16_t http_port() const;

  // -- NATS: accounts WARREN (users warren, agent) and SYS --
  void start_nats();
  void stop_nats();
  void kill_nats();
  void freeze_nats();
  void thaw_nats();
  process& nats();
  std::uint16_t nats_port() const;
  std::string nats_url() const;
  const std::string& nats_password() const;  ///< of every user of it

  // -- PostgreSQL --
  std::string database_url() const;
  /// Throws unless own_postgres.
  postgres_cluster& postgres();
  /// See run_sql; a session that has not said that it is warrend's writer, so a rival.
  std::string sql(const std::string& statements) const;

  // -- visitors' side --
  /// Registered as gateway gw-1 of class demo. Returns when it takes visitors and counts.
  void start_envoy();
  void stop_envoy();
  void kill_envoy();
  bool envoy_runs();
  process& envoy();
  std::uint16_t visitor_port() const;
  /// "127.0.0.1:PORT" of its administration; empty: it does not run.
  std::string envoy_admin() const;
  /// GET / of a host, through Envoy.
  answer visit(const std::string& host, milliseconds timeout = milliseconds{5'000}) const;
  answer visit(const request& r) const;

  // -- agents and what is behind them --
  /// The first is the target of create_tunnel; made when first asked for.
  origin& demo_origin();
  /// Enrolled in connector class "local" (which may be anywhere on loopback), and started. Lives as long as
  /// the stack.
  agent& add_agent(const std::string& name, const agent_options& options = {});
  agent& find_agent(const std::string& name);

  // -- the admin API through warrenctl --
  /// With --server and --project of this stack.
  told ctl(std::vector<std::string> arguments, milliseconds timeout = milliseconds{40'000}) const;
  /// The same by another instance.
  told ctl_at(const instance& i, std::vector<std::string> arguments, milliseconds timeout = milliseconds{40'000}) const;
  /// Throws stack_error with its words unless it exits 0.
  told must_ctl(std::vector<std::string> arguments, milliseconds timeout = milliseconds{40'000}) const;
  /// A child that runs on, for watches: lines appear in its log.
  process launch_ctl(std::vector<std::string> arguments, const std::string& log_name) const;
  /// One rule, class demo; `target` empty: the demo origin.
  void create_tunnel(const std::string& name, const std::string& hostname, const std::string& connector,
                     const std::string& target = {});
  /// warrenctl tunnel wait --for ready; false: not in time.
  bool await_ready(const std::string& tunnel, milliseconds timeout = milliseconds{10'000}) const;
  /// `tunnel get` as JSON; null: there is none.
  nlohmann::json tunnel(const std::string& name) const;
  nlohmann::json connector(const std::string& name) const;
  /// "True", "False", "Unknown", or empty when it is not there. Of what tunnel() or connector() returned.
  static std::string condition(const nlohmann::json& resource, const std::string& type);
  static std::string condition_message(const nlohmann::json& resource, const std::string& type);
  /// Follows `warrenctl KIND watch` until `satisfies` holds for what it tells; empty JSON: not in time.
  nlohmann::json await(const std::string& kind, const std::string& name,
                       const std::function<bool(const nlohmann::json&)>& satisfies,
                       milliseconds timeout = milliseconds{10'000}) const;

  // -- telemetry --
  std::string metrics_text() const;
  /// Sum of the samples of `name` (with a label of value `label`, unless that is empty); 0: there is none.
  double metric(const std::string& name, const std::string& label = {}) const;
  nlohmann::json readyz() const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::stack
