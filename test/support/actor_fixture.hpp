// test/support/actor_fixture.hpp -- CAF's deterministic scheduler and clock inside Catch2, with everything
// that an entity's actor talks to played in memory. Time moves only when a test says so.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>

#include "actors/shell.hpp"
#include "test/support/memory_store.hpp"

namespace warren::test {

/// Counts by "name" or "name{label}".
class recording_counters : public counters {
public:
  std::map<std::string, double> values;
  void add(std::string_view name, std::string_view label, double n) override { values[key(name, label)] += n; }
  void set(std::string_view name, double value, std::string_view label) override {
    values[key(name, label)] = value;
  }
  void observe(std::string_view name, double, std::string_view label) override { values[key(name, label)] += 1; }

private:
  static std::string key(std::string_view name, std::string_view label) {
    return label.empty() ? std::string{name} : std::string{name} + "{" + std::string{label} + "}";
  }
};

/// What the bus was told; requests are answered by `answer` (unset: no responders).
struct recorded_bus {
  std::vector<bus_publish> published;
  std::vector<bus_request> requested;
  std::vector<std::string> subscribed;
  std::function<bus_reply(const bus_request&)> answer;
};

inline bus_actor::behavior_type recorded_bus_actor(bus_actor::pointer, recorded_bus* b) {
  return {
      [b](const bus_publish& p) { b->published.push_back(p); },
      [b](const bus_request& q) {
        b->requested.push_back(q);
        return b->answer ? b->answer(q) : bus_reply{"no_responders", ""};
      },
      [b](const bus_subscribe& s) { b->subscribed.push_back(s.subject); },
      [](const bus_unsubscribe&) {},
      [](const bus_watch&) {},
  };
}

struct recorded_dials {
  std::vector<dial_request> dialled;
  std::function<dial_result(const dial_request&)> answer;
};
inline dialer_actor::behavior_type recorded_dialer_actor(dialer_actor::pointer, recorded_dials* d) {
  return {[d](const dial_request& q) {
    d->dialled.push_back(q);
    return d->answer ? d->answer(q) : dial_result{dial_result::outcome::unanswered};
  }};
}

struct recorded_silence {
  std::vector<silence_report> reports;
};
inline silence_actor::behavior_type recorded_silence_actor(silence_actor::pointer, recorded_silence* s) {
  return {[s](const silence_report& r) { s->reports.push_back(r); }, [](const wake_up&) {}};
}

struct actor_fixture {
  struct config : caf::actor_system_config {
    config() { set("scheduler.policy", caf::atom("testing")); }
  };

  memory_store db;
  recorded_bus bus;
  recorded_dials dials;
  recorded_silence silence;
  recording_counters count;
  config cfg;
  caf::actor_system sys{cfg};
  caf::scheduler::test_coordinator& sched =
      dynamic_cast<caf::scheduler::test_coordinator&>(sys.scheduler());
  caf::scoped_actor self{sys, true};
  std::vector<caf::actor> spawned;
  std::uint64_t random_state = 1;
  int uids = 0;

  actor_fixture() { sched.clock().current_time += std::chrono::hours{1}; }  // time zero hides bugs
  ~actor_fixture() {
    for (auto& a : spawned) caf::anon_send_exit(a, caf::exit_reason::kill);
    run();
  }

  template <class F, class... Ts> auto spawn(F f, Ts&&... xs) {
    auto handle = sys.spawn(f, std::forward<Ts>(xs)...);
    spawned.push_back(caf::actor_cast<caf::actor>(handle));
    run();
    return handle;
  }
  /// Until nobody has anything to do at this instant.
  void run() {
    while (sched.try_run_once()) {
    }
  }
  /// Lets time pass, in steps, so that what fires on the way arms what comes after it.
  void advance(millis d, millis step = millis{50}) {
    for (auto left = d; left.count() > 0; left -= step) {
      sched.advance_time(std::min(left, step));
      run();
    }
  }
  std::int64_t steady_ms() const {
    return std::chrono::duration_cast<millis>(sched.clock().current_time.time_since_epoch()).count();
  }

  entity_context context(partition_actor partition, partition_id id = 0, epoch_t epoch = 1) {
    entity_context c;
    c.store = spawn(memory_store_actor, &db);
    c.bus = spawn(recorded_bus_actor, &bus);
    c.dialer = spawn(recorded_dialer_actor, &dials);
    c.silence = spawn(recorded_silence_actor, &silence);
    c.partition = std::move(partition);
    c.count = &count;
    c.id = id;
    c.epoch = epoch;
    c.wall_ms = [this] { return 1'700'000'000'000 + steady_ms(); };
    c.random = [this] { return random_state = random_state * 6364136223846793005ull + 1442695040888963407ull; };
    c.fresh_uid = [this] { return "uid" + std::to_string(++uids); };
    c.secret = [this](std::size_t n) { return std::string(n, static_cast<char>('a' + ++uids % 26)); };
    return c;
  }
};

}  // namespace warren::test
