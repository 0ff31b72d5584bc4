// actors/placement/actor.cpp -- keeps this instance's lease, takes and releases partitions.
#include "actors/placement/actor.hpp"

#include <algorithm>

#include <spdlog/spdlog.h>

namespace warren::placement {

namespace {

using self_ptr = placement_actor::stateful_pointer<actor_state>;

constexpr std::uint64_t lease_end = 1;  // serial of the wake at the end of a lease
constexpr int moves_max = 8;  // released in one round: a successor activates them before the next ones move

std::int64_t steady_ms(self_ptr self) {
  return std::chrono::duration_cast<millis>(self->clock().now().time_since_epoch()).count();
}

void changed(self_ptr self) {
  auto& s = self->state;
  s.ctx.partition.entity.count->set("warren_partitions_owned", static_cast<double>(s.epochs.size()));
  if (s.ctx.on_change) s.ctx.on_change({s.epochs, s.held, s.ctx.me});
}

void stop(self_ptr self, partition_id id) {
  auto& s = self->state;
  auto it = s.running.find(id);
  if (it == s.running.end()) return;
  self->demonitor(it->second.address());
  self->send_exit(it->second, caf::exit_reason::user_shutdown);
  s.running.erase(it);
  s.epochs.erase(id);
}

void stop_all(self_ptr self, const char* why) {
  auto& s = self->state;
  if (s.running.empty()) return;
  spdlog::error("partitions stopped: {}", why);
  while (!s.running.empty()) stop(self, s.running.begin()->first);
  changed(self);
}

/// Whether our own clock says that nobody else can have taken over yet.
bool safe(self_ptr self) {
  const auto& s = self->state;
  return s.held && steady_ms(self) < s.lease_until_ms;
}

void start(self_ptr self, const partition_row& row) {
  auto& s = self->state;
  if (auto it = s.epochs.find(row.id); it != s.epochs.end()) {
    if (it->second == row.epoch) return;
    stop(self, row.id);
  }
  auto ctx = s.ctx.partition;
  ctx.entity.id = row.id;
  ctx.entity.epoch = row.epoch;
  ctx.entity.incarnation = s.incarnation;
  ctx.bus_connected = s.bus_ok;
  auto handle = self->spawn<caf::monitored>(partition::actor, std::move(ctx));
  if (s.silence) self->send(handle, mass_silence{true});
  s.running[row.id] = std::move(handle);
  s.epochs[row.id] = row.epoch;
  s.ctx.partition.entity.count->add("warren_takeovers_total");
}

void take_next(self_ptr self);
void renew(self_ptr self);

/// What the database says after one of our statements.
void learn(self_ptr self, const placement_view& view) {
  auto& s = self->state;
  if (s.ctx.on_view) s.ctx.on_view(view);
  if (view.incarnation != s.incarnation) {
    stop_all(self, "the database is another incarnation");
    s.incarnation = view.incarnation;
  }
  // A partition that another instance has taken is not ours any more, whatever our clock says.
  std::vector<partition_id> lost;
  for (const auto& [id, epoch] : s.epochs) {
    const auto row = std::find_if(view.partitions.begin(), view.partitions.end(),
                                  [id = id](const partition_row& p) { return p.id == id; });
    if (row == view.partitions.end() || row->owner != s.ctx.me || row->epoch != epoch) lost.push_back(id);
  }
  for (auto id : lost) {
    spdlog::warn("partition {} has moved", id);
    stop(self, id);
  }
  // An answer that comes after the lease is over says what was; the next renewal says what is.
  if (safe(self) && !s.draining)
    for (const auto& row : view.partitions)
      if (row.owner == s.ctx.me && !s.releasing.contains(row.id)) start(self, row);
  if (!lost.empty()) changed(self);
}

void release_next(self_ptr self, std::vector<partition_id> ids);

void act(self_ptr self, const placement_view& view) {
  auto& s = self->state;
  std::vector<member> members;
  for (const auto& i : view.instances) members.push_back({i.id, i.alive, i.bus_ok, i.draining});
  std::vector<holding> partitions;
  for (const auto& p : view.partitions) partitions.push_back({p.id, p.owner});
  const auto plan = next(s.ctx.me, members, partitions, moves_max);
  if (s.draining) return;
  const bool idle = s.to_take.empty();
  s.to_take = plan.take;
  if (idle && !s.to_take.empty()) take_next(self);
  if (!plan.release.empty()) release_next(self, plan.release);
}

void take_next(self_ptr self) {
  auto& s = self->state;
  if (s.to_take.empty()) {
    changed(self);
    return;
  }
  const auto id = s.to_take.front();
  self->request(s.ctx.leases, caf::infinite, take_partition{id})
      .then(
          [self, id](const placement_view& view) {
            auto& st = self->state;
            std::erase(st.to_take, id);
            if (view.error.empty()) learn(self, view);
            else st.to_take.clear();  // the next renewal plans anew
            take_next(self);
          },
          [self](const caf::error&) { self->state.to_take.clear(); });
}

void release_next(self_ptr self, std::vector<partition_id> ids) {
  auto& s = self->state;
  if (ids.empty()) {
    changed(self);
    if (s.draining && s.drain_promise.pending()) s.drain_promise.deliver(drained{s.released});
    return;
  }
  const auto id = ids.back();
  ids.pop_back();
  const auto held = s.epochs.find(id);
  if (held == s.epochs.end()) return release_next(self, std::move(ids));  // lost meanwhile, or on its way already
  const auto epoch = held->second;
  s.releasing.insert(id);
  stop(self, id);
  self->request(s.ctx.leases, caf::infinite, release_partition{id, epoch})
      .then(
          [self, id, ids](const placement_view& view) {
            self->state.releasing.erase(id);
            if (view.error.empty()) ++self->state.released;
            release_next(self, ids);
          },
          [self, id, ids](const caf::error&) {
            self->state.releasing.erase(id);
            release_next(self, ids);
          });
}

void renew(self_ptr self) {
  auto& s = self->state;
  if (s.renewing) return;  // an answer is promised; a queue of renewals would only keep it waiting
  s.renewing = true;
  const auto sent = steady_ms(self);
  self->request(s.ctx.leases, caf::infinite, renew_lease{s.bus_ok, s.draining})
      .then(
          [self, sent](const placement_view& view) {
            auto& st = self->state;
            st.renewing = false;
            if (!view.error.empty() || !view.renewed) {
              if (!view.error.empty()) spdlog::warn("the instance lease was not renewed: {}", view.error);
              return;
            }
            const auto until = sent + st.ctx.lease.count();
            if (until <= steady_ms(self)) return renew(self);  // over before we heard of it
            st.lease_until_ms = until;
            const bool first = !st.held;
            st.held = true;
            self->delayed_send(self, millis{until - steady_ms(self)}, wake_up{lease_end});
            learn(self, view);
            act(self, view);
            if (first) changed(self);
          },
          [self](const caf::error&) { self->state.renewing = false; });
}

/// Nobody else may start our partitions before our own clock says that the lease could be over.
void end_lease(self_ptr self) {
  auto& s = self->state;
  if (!s.held || safe(self)) return;
  s.held = false;
  s.to_take.clear();
  stop_all(self, "the instance lease could not be renewed in time");
  changed(self);
}

void tick(self_ptr self) {
  end_lease(self);
  renew(self);
  self->delayed_send(self, self->state.ctx.lease / 3, wake_up{0});
}

}  // namespace

placement_actor::behavior_type actor(self_ptr self, placement_context ctx) {
  auto& s = self->state;
  s.ctx = std::move(ctx);
  s.bus_ok = s.ctx.partition.bus_connected;
  self->set_down_handler([self](const caf::down_msg& down) {
    auto& st = self->state;
    for (auto& [id, handle] : st.running) {
      if (caf::actor_cast<caf::actor_addr>(handle) != down.source) continue;
      // Lost ownership ends a partition cleanly; a failure starts it again with the next look at the table.
      if (down.reason && down.reason != caf::exit_reason::user_shutdown)
        spdlog::error("partition {} has failed: {}", id, self->system().render(down.reason));
      const auto gone = id;
      st.running.erase(gone);
      st.epochs.erase(gone);
      changed(self);
      return;
    }
  });
  self->set_exit_handler([self](caf::exit_msg& m) {
    stop_all(self, "the instance stops");
    self->quit(std::move(m.reason));
  });
  self->send(self, wake_up{0});
  return {
      [self](const to_partition& m) {
        auto& st = self->state;
        const auto send = [&](const partition_actor& to) {
          std::visit([&](const auto& what) { self->send(to, what); }, m.what);
        };
        if (m.partition >= 0) {
          auto it = st.running.find(m.partition);
          if (it != st.running.end()) send(it->second);
          return;
        }
        for (auto& [id, handle] : st.running) send(handle);
      },
      [self](const drain&) -> caf::result<drained> {
        auto& st = self->state;
        st.draining = true;
        st.to_take.clear();
        st.drain_promise = self->make_response_promise<caf::typed_response_promise<drained>>();
        std::vector<partition_id> all;
        for (const auto& [id, epoch] : st.epochs) all.push_back(id);
        release_next(self, std::move(all));
        return st.drain_promise;
      },
      [self](const owned_query&) {
        auto& st = self->state;
        return owned_partitions{st.epochs, st.held, st.ctx.me};
      },
      [self](const bus_state& b) {
        auto& st = self->state;
        st.bus_ok = b.connected;
        for (auto& [id, handle] : st.running) self->send(handle, b);
      },
      [self](const mass_silence& m) {
        auto& st = self->state;
        st.silence = m.on;
        for (auto& [id, handle] : st.running) self->send(handle, m);
      },
      [self](const wake_up& w) {
        if (w.serial == lease_end) return end_lease(self);
        tick(self);
      },
  };
}

}  // namespace warren::placement
