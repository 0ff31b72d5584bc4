// test/simulation/process.hpp -- one start of one warrend: its actor system on a clock of its own, the real placement,
// partitions, entities, silence watch, replica and gateway sessions; store, bus and dialer lead to what is simulated.
#pragma once

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "actors/connector/silence_actor.hpp"
#include "actors/placement/actor.hpp"
#include "services/replica/actor.hpp"
#include "test/simulation/lease_link.hpp"
#include "test/simulation/network.hpp"
#include "test/simulation/store_link.hpp"
#include "test/simulation/watches.hpp"
#include "test/simulation/xds_side.hpp"
#include "test/support/actor_fixture.hpp"

namespace warren::simulation {

/// What a process is given by the host on which it runs.
struct process_wiring {
  timeline& time;
  database& db;
  network& net;
  const store_weather& weather;
  int number = 0;             ///< of its host, for the log
  instance_id me = 0;
  std::uint64_t lock_session = 0;
  int partitions = 0;
  millis lease{3'000};
  std::int64_t heartbeat_interval_ms = 2'000;
  std::int64_t heartbeats_per_second = limits::heartbeats_per_second_max;
  std::int64_t steady_offset_ms = 0;  ///< its steady clock is ahead of virtual time by this much
  std::int64_t wall_offset_ms = 0;
  std::function<dial_result(const dial_request&)> dial;
  std::function<void(std::function<void()>)> deliver;  ///< now, or when the process is no longer paused
  std::function<void(const std::string&)> step_down;
  std::function<std::uint64_t()> next_ticket;
  std::function<void()> on_open;      ///< it has a transaction open
  std::function<void(std::uint64_t, const save_result&)> on_answer;
  std::function<void(const busv1::Revision&)> on_announce;
  std::function<void(const owned_partitions&)> on_owned;
  std::function<void(const replica::change_set&)> on_view_change;
  std::function<void(std::uint64_t stream, const discovery::DeltaDiscoveryResponse&)> send_to_gateway;
  std::function<void(std::uint64_t stream)> close_gateway;
  std::function<void(std::uint64_t stream, const watch_message&)> send_to_watch;
  std::function<void(std::uint64_t stream, const replica::watcher::refused&)> close_watch;
};

class process {
public:
  explicit process(process_wiring w);
  ~process();
  process(const process&) = delete;
  process& operator=(const process&) = delete;

  /// Until nobody in it has anything to do at this moment.
  void settle();
  /// Virtual time of its next timer.
  std::optional<std::int64_t> next_timer_ms() const;
  void fire_timer();
  /// What the clock says when the process runs: all of its timers that are due are due now.
  void follow_clock();

  /// SIGTERM: hands its partitions over, then calls back.
  void drain(std::function<void()> done);
  void tell_placement(to_partition what);
  /// NATS says that another instance's connection has ended.
  void peer_ended(instance_id peer);
  void rival_marked(partition_id p);

  instance_id me() const { return to_.me; }
  link_id bus_link() const { return link_; }
  replica::view& view() { return view_; }
  const std::map<partition_id, epoch_t>& owned() const { return owned_; }
  bool holds_lease() const { return held_; }
  /// What its agents are told under its load.
  std::int64_t paced_interval_ms() const { return pace_->interval_ms; }
  store_link& store() { return *store_; }
  lease_link& leases() { return *leases_; }
  xds_side& gateways() { return *xds_; }
  watch_side& watches() { return *watches_; }
  test::recording_counters count;
  std::int64_t steady_ms() const { return to_.time.now_ms() + to_.steady_offset_ms; }
  std::int64_t wall_ms() const { return wall_epoch_ms + to_.time.now_ms() + to_.wall_offset_ms; }

  static constexpr std::int64_t wall_epoch_ms = 1'700'000'000'000;

private:
  void spawn_edge();
  void spawn_rooms();
  void connect_bus();
  void tick_gateways();
  void heard(const std::string& pattern, const bus_message& m);
  bool ignore_gap(const bus_message& m);
  /// Store, lease store, bus and dialer in one.
  caf::behavior edge(caf::event_based_actor* self);
  template <class Answer> std::function<void(Answer)> answer_later(caf::typed_response_promise<Answer> promise);
  void ask_store(const save_request& q, std::function<void(save_result)> then);
  void ask_store(const find_answer& q, std::function<void(save_result)> then);
  void ask_store(const adopt_rivals& q, std::function<void(loaded)> then);
  void ask_store(const fetch_changes& q, std::function<void(changes)> then);
  void ask_store(const auto& q, std::function<void(loaded)> then);
  void request(const bus_request& q, std::function<void(bus_reply)> then);
  void answer_request(std::uint64_t id, bus_reply r);
  void dial(const dial_request& q, std::function<void(dial_result)> then);
  void forget_receiver(const caf::actor_addr& gone);

  struct system_config : caf::actor_system_config {
    system_config() { set("scheduler.policy", caf::atom("testing")); }
  };

  process_wiring to_;
  system_config config_;
  caf::actor_system system_{config_};
  caf::scheduler::test_coordinator& jobs_ = dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
  replica::view view_;
  std::shared_ptr<store_link> store_;
  std::shared_ptr<lease_link> leases_;
  std::unique_ptr<xds_side> xds_;
  std::unique_ptr<watch_side> watches_;
  link_id link_ = 0;
  bool dead_ = false;

  caf::actor edge_;
  silence_actor silence_;
  std::shared_ptr<connector::heartbeat_pace> pace_;
  replica::replica_actor replica_;
  placement_actor placement_;
  caf::actor asker_;

  std::map<std::string, std::vector<caf::actor>> subscribers_;  ///< by pattern
  std::vector<caf::actor> bus_watchers_;
  // What waits in virtual time is known to it by number: it holds no handle of this system.
  std::map<std::uint64_t, std::function<void(bus_reply)>> requests_;
  std::map<std::uint64_t, std::function<void(dial_result)>> dials_;
  std::uint64_t next_request_ = 1;
  std::function<void()> drained_;
  std::map<partition_id, epoch_t> owned_;
  bool held_ = false;
  std::uint64_t uids_ = 0;
  std::shared_ptr<int> life_ = std::make_shared<int>(0);  ///< expired: this process is gone
};

}  // namespace warren::simulation
