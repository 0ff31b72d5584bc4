// test/simulation/host.cpp -- a machine on which warrend is started, killed, paused and cut off.
#include "test/simulation/host.hpp"

namespace warren::simulation {

namespace {
constexpr std::int64_t restart_ms = 1'000;            // the supervisor's
constexpr std::int64_t lock_noticed_ms_min = 1'500, lock_noticed_ms_max = 8'000;  // keepalives of a dead connection
constexpr std::int64_t backlog_max = 65'536;          // limits::bus_pending_messages_max
constexpr std::int64_t connection_survives_ms = 1'000;  // a cut that is shorter is repaired by TCP
}  // namespace

host::host(int number, process_wiring base)
    : number_{number}, name_{fmt::format("warren-{}", number)}, base_{std::move(base)} {
  base_.number = number;
  base_.deliver = [this](std::function<void()> what) { deliver(std::move(what)); };
  base_.on_open = [this] {
    if (auto what = std::exchange(at_next_transaction_, nullptr)) what();
  };
  base_.step_down = [this](const std::string& why) {
    base_.time.tell("instance {} steps down: {}", number_, why);
    if (on_step_down) on_step_down(why);
    // Not from within its own actors' work.
    base_.time.after(0, [this, turn = turn_] {
      if (turn == turn_ && process_) end(true);
    });
  };
}

void host::deliver(std::function<void()> what) {
  if (!process_) return;
  if (paused_) {
    if (backlog_.size() < static_cast<std::size_t>(backlog_max)) backlog_.push_back(std::move(what));
    return;
  }
  process_->follow_clock();
  what();
  if (process_) process_->settle();
}

void host::start() {
  if (wanted_) return;
  wanted_ = true;
  if (!process_) try_start(++turn_);  // else when the one that is stopping has ended
}

void host::try_start(std::uint64_t turn) {
  if (turn != turn_ || !wanted_ || process_) return;
  const auto again = [this, turn] { base_.time.after(restart_ms, [this, turn] { try_start(turn); }); };
  if (store_cut_ || base_.weather.away || paused_) return again();
  const auto session = fresh_session(base_.time);
  const auto me = lease_link::enter(base_.db, name_, base_.lease.count(), session);
  if (!me) return again();
  base_.time.record("start", name_);
  auto wiring = base_;
  wiring.me = *me;
  wiring.lock_session = session;
  ++starts_;
  process_ = std::make_unique<process>(std::move(wiring));
  process_->store().cut = store_cut_;
  if (bus_cut_) base_.net.cut(process_->bus_link());
  if (on_start) on_start(*process_);
}

void host::end(bool lock_is_free) {
  if (!process_) return;
  const auto me = process_->me();
  const auto session = process_->leases().lock_session();
  base_.time.record("end", name_);
  const auto forget = [db = &base_.db, me, session] {
    auto it = db->locks.find(me);
    if (it != db->locks.end() && it->second == session) db->locks.erase(it);
    db->end_sessions(me);
  };
  if (on_end) on_end(me, lock_is_free);
  process_.reset();
  at_next_transaction_ = nullptr;
  backlog_.clear();
  paused_ = stopping_ = false;
  ++turn_;
  if (wanted_) base_.time.after(restart_ms, [this, mine = turn_] { try_start(mine); });
  if (lock_is_free && !store_cut_) return forget();
  base_.time.after(base_.time.store.between(lock_noticed_ms_min, lock_noticed_ms_max), forget);
}

void host::kill() {
  wanted_ = false;
  ++turn_;
  end(true);
}

void host::vanish() {
  wanted_ = false;
  ++turn_;
  end(false);
}

void host::stop() {
  wanted_ = false;
  if (!process_ || paused_) return kill();
  stopping_ = true;
  base_.time.record("stop", name_);
  const auto ended = [this, turn = turn_] {
    base_.time.after(0, [this, turn] {
      if (turn != turn_ || !process_) return;
      process_->leases().leave();
      end(true);
    });
  };
  base_.time.after(30'000, ended);  // whatever hangs: it exits within 30 s
  deliver([this, ended] { process_->drain(ended); });
}

void host::pause() {
  if (!process_ || paused_) return;
  base_.time.record("pause", name_);
  paused_ = true;
}

void host::resume() {
  if (!process_ || !paused_) return;
  base_.time.record("resume", name_);
  paused_ = false;
  process_->follow_clock();
  // Its timers fire first or its sockets are read first: threads of a process that wakes know no order. One of each.
  auto waiting = std::exchange(backlog_, {});
  const auto turn = turn_;
  for (auto& what : waiting) {
    while (turn == turn_ && base_.time.schedule.chance(50)) {
      const auto timer = process_->next_timer_ms();
      if (!timer || *timer > base_.time.now_ms()) break;
      process_->fire_timer();
    }
    if (turn != turn_ || !process_) return;
    deliver(std::move(what));
  }
}

void host::cut_bus(bool on) {
  bus_cut_ = on;
  if (!process_) return;
  if (on) base_.net.cut(process_->bus_link());
  else base_.net.mend(process_->bus_link());
}

void host::cut_store(bool on) {
  store_cut_ = on;
  if (!process_) return;
  process_->store().cut = on;
  if (!on) return;
  const auto me = process_->me();
  const auto session = process_->leases().lock_session();
  base_.time.after(connection_survives_ms, [this, turn = turn_, me, session] {
    if (turn != turn_ || !store_cut_ || !process_) return;
    // Both ends give the connection up; the database later than we do.
    process_->leases().lose_lock_connection();
    process_->store().break_connections();
    const auto noticed = base_.time.store.between(0, lock_noticed_ms_max - lock_noticed_ms_min);
    base_.time.after(noticed, [db = &base_.db, me, session] {
      auto it = db->locks.find(me);
      if (it != db->locks.end() && it->second == session) db->locks.erase(it);
    });
  });
}

std::optional<std::int64_t> host::next_timer_ms() const {
  if (!process_ || paused_) return std::nullopt;
  return process_->next_timer_ms();
}

void host::fire_timer() { process_->fire_timer(); }

}  // namespace warren::simulation
