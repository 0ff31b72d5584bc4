// actors/connector/silence_actor.cpp -- per instance: the shell of the watch on silence. It decides nothing.
#include "actors/connector/silence_actor.hpp"

#include "actors/connector/pace.hpp"
#include "actors/log.hpp"

namespace warren::connector {

namespace {

using self_ptr = silence_actor::stateful_pointer<silence_state>;

moment now_of(self_ptr self) {
  const auto steady = self->clock().now().time_since_epoch();
  return {std::chrono::duration_cast<millis>(steady).count(), 0};
}

template <class Change> void change(self_ptr self, Change what) {
  auto& s = self->state;
  const bool before = s.watch.on();
  const auto now = now_of(self);
  what(now);
  if (s.watch.on() != before) {
    if (s.watch.on())
      spdlog::error("{} of {} online connectors fell silent within seconds: silence does not count until it is clear why",
                    s.watch.silent(), s.watch.online());
    else
      spdlog::info("silence of connectors counts again ({} of {} are silent)", s.watch.silent(), s.watch.online());
    s.count->set("warren_mass_silence", s.watch.on() ? 1 : 0);
    s.tell(s.watch.on());
  }
  s.count->set("warren_connectors_online", static_cast<double>(s.watch.online()));
  if (s.pace) {
    const auto former = s.pace->interval_ms.load();
    const auto interval = paced_interval(s.pace->asked_ms, former, s.watch.online(), s.pace->per_second);
    s.pace->interval_ms = interval;
    if (interval != former)
      log_line(spdlog::level::info, "agents are told another heartbeat interval",
               {{"interval_ms", interval}, {"former_interval_ms", former}, {"connectors_online", s.watch.online()}});
  }
  const auto at = s.watch.wake_at_ms();
  if (at == 0 || at == s.armed_ms) return;
  s.armed_ms = at;
  self->delayed_send(self, millis{std::max<std::int64_t>(at - now.steady_ms, 0)}, wake_up{});
}

}  // namespace

silence_actor::behavior_type silence(self_ptr self, std::function<void(bool on)> tell, counters* count,
                                     std::shared_ptr<heartbeat_pace> pace) {
  self->state.pace = std::move(pace);
  self->state.tell = std::move(tell);
  self->state.count = count;
  return {
      [self](const silence_report& r) {
        change(self, [&](moment now) { self->state.watch.report(r.project + '/' + r.name, r.online, r.silent, now); });
      },
      [self](const wake_up&) {
        change(self, [&](moment now) { self->state.watch.pass_time(now); });
      },
  };
}

silence_actor spawn_silence(caf::actor_system& system, std::function<void(bool on)> tell, counters& count,
                            std::shared_ptr<heartbeat_pace> pace) {
  return system.spawn(silence, std::move(tell), &count, std::move(pace));
}

}  // namespace warren::connector
