// test/simulation/host.hpp -- a machine on which warrend is started, killed, paused and cut off, again and again.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "test/simulation/process.hpp"

namespace warren::simulation {

class host {
public:
  /// `base` without what changes with each start.
  host(int number, process_wiring base);

  int number() const { return number_; }
  const std::string& name() const { return name_; }

  // ---- what an operator, or fate, does ----
  void start();
  /// kill -9: connections end at once, the advisory lock is free.
  void kill();
  /// The machine is gone: nobody is told, and the database notices after a while.
  void vanish();
  /// SIGTERM: hands over, then ends.
  void stop();
  void pause();
  void resume();
  /// Once: when it has a transaction open, which it does not know yet. Forgotten when the process ends.
  void at_next_transaction(std::function<void()> what) { at_next_transaction_ = std::move(what); }
  void cut_bus(bool on);
  void cut_store(bool on);

  process* running() { return process_.get(); }
  bool paused() const { return paused_; }
  /// Somebody who connects gets an answer.
  bool answers() const { return process_ && !paused_; }
  bool wanted() const { return wanted_; }
  bool stopping() const { return stopping_; }
  bool bus_cut() const { return bus_cut_; }
  bool store_cut() const { return store_cut_; }
  std::uint64_t starts() const { return starts_; }

  std::optional<std::int64_t> next_timer_ms() const;
  void fire_timer();
  /// Into the process: at once, or when it is resumed; never, when it has ended by then.
  void deliver(std::function<void()> what);

  std::function<void(process&)> on_start;
  /// `noticed`: its connections are closed, and not merely silent.
  std::function<void(instance_id, bool noticed)> on_end;
  std::function<void(const std::string&)> on_step_down;

private:
  void try_start(std::uint64_t turn);
  void end(bool lock_is_free);

  int number_;
  std::string name_;
  process_wiring base_;
  std::unique_ptr<process> process_;
  std::deque<std::function<void()>> backlog_;  // what reached its sockets while it was paused
  bool wanted_ = false, paused_ = false, bus_cut_ = false, store_cut_ = false, stopping_ = false;
  std::function<void()> at_next_transaction_;
  std::uint64_t starts_ = 0, turn_ = 0;
};

}  // namespace warren::simulation
