// actors/placement/actor.cpp -- keeps this instance's lease, takes and releases partitions.
#include "actors/placement/actor.hpp"

#include <algorithm>

#include <spdlog/spdlog.h>

#include "actors/core/subjects.hpp"
#include "actors/core/wire.hpp"
#include "actors/log.hpp"

namespace warren::placement {

namespace {

using self_ptr = placement_actor::stateful_pointer<actor_state>;

// Serials of wakes.
constexpr std::uint64_t renewal = 0;       // every second, or third of a lease
constexpr std::uint64_t lease_end = 1;     // our own clock
constexpr std::uint64_t pulse = 2;         // say that we live, and listen who does not
constexpr std::uint64_t look = 3;          // somebody is suspected
constexpr std::uint64_t renew_again = 4;   // after an error

constexpr auto renew_again_after = 200ms;

std::int64_t steady_ms(self_ptr self) {
  return std::chrono::duration_cast<millis>(self->clock().now().time_since_epoch()).count();
}

void changed(self_ptr self) {
  auto& s = self->state;
  s.ctx.partition.entity.count->set("warren_partitions_owned", static_cast<double>(s.epochs.size()));
  if (s.ctx.on_change) s.ctx.on_change({s.epochs, s.held, s.ctx.me, s.behind});
}

/// Partitions that do not answer are told of: nobody else would say why what they hold stands still.
void look_for_behind(self_ptr self) {
  auto& s = self->state;
  const auto before = steady_ms(self) - limits::partition_behind_after / 1ms;
  std::set<partition_id> behind;
  for (const auto& [id, looked] : s.looked_at_ms)
    if (*looked < before) behind.insert(id);
  s.ctx.partition.entity.count->set("warren_partitions_behind", static_cast<double>(behind.size()));
  if (behind == s.behind) return;
  for (auto id : behind)
    if (!s.behind.contains(id)) spdlog::error("partition {} is behind: it has not looked at its clock for {} s", id, limits::partition_behind_after / 1s);
  s.behind = std::move(behind);
  changed(self);
}

void forget(self_ptr self, partition_id id) {
  auto& s = self->state;
  s.running.erase(id);
  if (const auto it = s.epochs.find(id); it != s.epochs.end()) {
    s.ended[id] = it->second;
    s.epochs.erase(it);
  }
  s.looked_at_ms.erase(id);
}

void stop(self_ptr self, partition_id id) {
  auto& s = self->state;
  auto it = s.running.find(id);
  if (it == s.running.end()) return;
  self->demonitor(it->second.address());
  self->send_exit(it->second, caf::exit_reason::user_shutdown);
  forget(self, id);
}

bool has_ended(const actor_state& s, const partition_row& row) {
  const auto it = s.ended.find(row.id);
  return it != s.ended.end() && row.epoch <= it->second;
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
  ctx.started_revision = row.revision;
  ctx.looked_at_ms = s.looked_at_ms[row.id] = std::make_shared<std::atomic<std::int64_t>>(steady_ms(self));
  auto handle = self->spawn<caf::monitored>(partition::actor, std::move(ctx));
  if (s.silence) self->send(handle, mass_silence{true});
  s.running[row.id] = std::move(handle);
  s.epochs[row.id] = row.epoch;
  s.ctx.partition.entity.count->add("warren_takeovers_total");
}

void take_next(self_ptr self);
void take_soon(self_ptr self, partition_id id);
void release_next(self_ptr self);
void renew(self_ptr self, bool news = false);

// ---- what others are told ----

busv1::LeaseNotice notice(self_ptr self, const char* what, partition_id partition = 0, instance_id successor = 0) {
  busv1::LeaseNotice n;
  n.set_version(1);
  n.set_instance(self->state.ctx.me);
  n.set_what(what);
  n.set_partition(partition);
  n.set_successor(successor);
  return n;
}

void tell(self_ptr self, const busv1::LeaseNotice& n, std::string subject = std::string{bus::lease_subject}) {
  self->send(self->state.ctx.partition.entity.bus, bus_publish{std::move(subject), n.SerializeAsString(), false});
}

/// Whoever let go of a partition waits until it runs here, or will not.
void answer_offer(self_ptr self, partition_id id) {
  auto& s = self->state;
  const auto it = s.offered.find(id);
  if (it == s.offered.end()) return;
  if (!it->second.empty()) tell(self, notice(self, "taken", id), it->second);
  s.offered.erase(it);
}

// ---- what the table says ----

std::vector<member> members_of(const placement_view& view) {
  std::vector<member> members;
  for (const auto& i : view.instances) members.push_back({i.id, i.alive, i.bus_ok, i.draining});
  return members;
}

std::vector<holding> holdings_of(const placement_view& view) {
  std::vector<holding> partitions;
  for (const auto& p : view.partitions) partitions.push_back({p.id, p.owner});
  return partitions;
}

/// What the database says after one of our statements.
void learn(self_ptr self, const placement_view& view) {
  auto& s = self->state;
  s.view = view;
  s.others.seen(members_of(view), steady_ms(self));
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
      if (row.owner == s.ctx.me && !s.releasing.contains(row.id) && !has_ended(s, row)) start(self, row);
  if (!lost.empty()) changed(self);
}

/// Before what is free anyway: somebody waits for it.
void take_soon(self_ptr self, partition_id id) {
  auto& s = self->state;
  std::erase(s.to_take, id);
  s.to_take.insert(s.to_take.begin(), id);
}

/// Gateways go when the table has just been looked at; they may come back at any time.
void look_at_gateways(self_ptr self) {
  auto& s = self->state;
  const bool away = !s.bus_ok && s.others.sends_gateways_away(steady_ms(self));
  if (away == s.gateways_away) return;
  s.gateways_away = away;
  if (s.ctx.on_gateways_away) s.ctx.on_gateways_away(away);
}

void act(self_ptr self) {
  auto& s = self->state;
  if (s.draining || !safe(self)) return;
  look_at_gateways(self);
  const auto now = steady_ms(self);
  // What nobody can reach here goes at once.
  const int moves_max = s.bus_ok ? limits::moves_max : s.ctx.partition.partitions + 1;
  auto members = s.others.believed(members_of(s.view), now);
  for (auto& m : members)
    if (m.id == s.ctx.me) m.bus_ok = s.bus_ok;  // the table may not have heard yet
  auto plan = next(s.ctx.me, members, holdings_of(s.view), moves_max);
  if (!s.bus_ok && !s.others.gives_as_deaf(now)) plan.release.clear();
  s.to_take = std::move(plan.take);
  for (const auto& row : s.view.partitions)
    if (row.owner == s.ctx.me && !s.releasing.contains(row.id) && has_ended(s, row)) s.to_take.push_back(row.id);
  for (const auto& [id, reply_to] : s.offered) take_soon(self, id);
  take_next(self);
  if (!s.release_under_way && !plan.release.empty()) {
    s.to_release = std::move(plan.release);
    release_next(self);
  }
}

/// Of what a statement of ours has taken, what somebody else had.
std::vector<partition_id> taken_from_others(const actor_state& s, const placement_view& after) {
  std::vector<partition_id> out;
  for (auto id : after.taken)
    for (const auto& before : s.view.partitions)
      if (before.id == id && before.owner != 0 && before.owner != s.ctx.me) out.push_back(id);
  return out;
}

/// Their former owner may have lost the database, and answer that it is away for as long as its lease lasts.
void tell_taken(self_ptr self, const std::vector<partition_id>& ids) {
  for (auto id : ids) {
    const auto runs = self->state.epochs.find(id);
    if (runs == self->state.epochs.end()) continue;
    auto n = notice(self, "taken", id);
    n.set_epoch(runs->second);
    tell(self, n);
  }
}

void take_next(self_ptr self) {
  auto& s = self->state;
  if (s.taking) return;
  if (s.to_take.empty() || s.draining) {
    while (!s.offered.empty()) answer_offer(self, s.offered.begin()->first);
    return;
  }
  s.taking = true;
  std::vector<partition_id> some{s.to_take.begin(), s.to_take.begin() + static_cast<std::ptrdiff_t>(std::min(s.to_take.size(), limits::takes_max))};
  self->request(s.ctx.leases, caf::infinite, take_partitions{some})
      .then(
          [self, some](const placement_view& view) {
            auto& st = self->state;
            st.taking = false;
            for (auto id : some) std::erase(st.to_take, id);
            if (view.error.empty()) {
              const auto from_others = taken_from_others(st, view);
              learn(self, view);
              changed(self);
              tell_taken(self, from_others);
            } else {
              st.to_take.clear();  // the next renewal plans anew
            }
            for (auto id : some) answer_offer(self, id);
            take_next(self);
          },
          [self](const caf::error&) {
            self->state.taking = false;
            self->state.to_take.clear();
          });
}

// ---- giving away ----

void finish_drain(self_ptr self) {
  auto& s = self->state;
  if (!s.draining) return;
  tell(self, notice(self, "leaving"));
  for (auto& promise : std::exchange(s.drain_promises, {})) promise.deliver(drained{s.released});
}

/// The next one goes when this one runs elsewhere, or its successor does not answer.
void offer(self_ptr self, partition_id id) {
  auto& s = self->state;
  const auto go_on = [self] {
    self->state.release_under_way = false;
    release_next(self);
  };
  auto members = s.others.believed(members_of(s.view), steady_ms(self));
  if (s.draining)
    for (auto& m : members)
      if (m.id == s.ctx.me) m.draining = true;
  const auto assigned = assign(members, holdings_of(s.view));
  const auto at = assigned.find(id);
  const auto to = at == assigned.end() || at->second == s.ctx.me ? instance_id{0} : at->second;
  const auto say = notice(self, "released", id, to);
  if (to == 0 || !s.bus_ok) {  // nobody would answer
    tell(self, say);
    return go_on();
  }
  self->request(s.ctx.partition.entity.bus, caf::infinite,
                bus_request{std::string{bus::lease_subject}, say.SerializeAsString(), limits::handover_answer})
      .then([go_on](const bus_reply&) { go_on(); }, [go_on](const caf::error&) { go_on(); });
}

void release_next(self_ptr self) {
  auto& s = self->state;
  if (s.release_under_way) return;
  if (s.to_release.empty()) {
    changed(self);
    return finish_drain(self);
  }
  const auto id = s.to_release.front();
  s.to_release.erase(s.to_release.begin());
  const auto held = s.epochs.find(id);
  if (held == s.epochs.end()) return release_next(self);  // lost meanwhile
  s.release_under_way = true;
  const auto epoch = held->second;
  s.releasing.insert(id);
  stop(self, id);
  const auto failed = [self, id] {
    // The rest could not be released either; it ends with our lease.
    auto& st = self->state;
    st.releasing.erase(id);
    st.release_under_way = false;
    st.to_release.clear();
    release_next(self);
  };
  self->request(s.ctx.leases, caf::infinite, release_partition{id, epoch})
      .then(
          [self, id, failed](const placement_view& view) {
            auto& st = self->state;
            if (!view.error.empty()) return failed();
            st.releasing.erase(id);
            ++st.released;
            learn(self, view);
            offer(self, id);
          },
          [failed](const caf::error&) { failed(); });
}

// ---- the lease ----

/// `news`: what it says has changed.
void renew(self_ptr self, bool news) {
  auto& s = self->state;
  if (s.renewing) {  // an answer is promised; a queue of renewals would only keep it waiting
    s.renew_once_more = s.renew_once_more || news;
    return;
  }
  s.renewing = true;
  s.renew_once_more = false;
  const auto sent = steady_ms(self);
  renew_lease what{s.bus_ok, s.draining};
  if (s.draining) what.drain_asked = s.drain_asked;
  self->request(s.ctx.leases, caf::infinite, what)
      .then(
          [self, sent, said = what.drain_asked.has_value()](const placement_view& view) {
            auto& st = self->state;
            st.renewing = false;
            const auto now = steady_ms(self);
            if (!view.error.empty() || view.reconnected) st.others.database_was_away(now);
            st.renewal_failed = !view.error.empty() || !view.renewed;
            if (st.renewal_failed) {
              if (const auto times = view.error.empty() ? std::nullopt : st.renewals.failed(now))
                log_line(spdlog::level::warn, "the instance lease was not renewed",
                         {{"instance_id", st.ctx.me}, {"error", view.error}, {"times", *times}});
              if (!std::exchange(st.renew_again_armed, true))
                self->delayed_send(self, renew_again_after, wake_up{renew_again});
              return;
            }
            if (const auto away_ms = st.renewals.over(now))
              log_line(spdlog::level::info, "the instance lease is renewed again", {{"instance_id", st.ctx.me}, {"was_away_ms", *away_ms}});
            const auto until = sent + st.ctx.lease.count();
            if (until <= now) return renew(self);  // over before we heard of it
            st.lease_until_ms = until;
            if (said) st.drain_asked.reset();
            const bool first = !st.held;
            st.held = true;
            self->delayed_send(self, millis{until - now}, wake_up{lease_end});
            learn(self, view);
            act(self);
            if (first) changed(self);
            if (st.renew_once_more) renew(self);
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

// ---- the others ----

/// Asks the database about whoever is suspected.
void judge(self_ptr self) {
  auto& s = self->state;
  const auto now = steady_ms(self);
  if (!safe(self)) return;  // we may be the one who is cut off
  const auto suspects = s.others.due(now);
  for (auto id : suspects)
    self->request(s.ctx.leases, caf::infinite, judge_instance{id})
        .then(
            [self](const placement_view& view) {
              if (!view.error.empty()) return;
              learn(self, view);
              act(self);
            },
            [](const caf::error&) {});
  // The pulse looks often enough for what comes later.
  const auto due = s.others.next_due_ms();
  if (!suspects.empty() && due && *due - now < pulse_of(s.ctx.lease).count())
    self->delayed_send(self, millis{std::max<std::int64_t>(1, *due - now)}, wake_up{look});
}

/// A newcomer is made room for before the next renewal.
void look_at_table(self_ptr self) {
  auto& s = self->state;
  if (!safe(self) || std::exchange(s.looking, true)) return;
  self->request(s.ctx.leases, caf::infinite, judge_instance{0})
      .then(
          [self](const placement_view& view) {
            self->state.looking = false;
            if (!view.error.empty()) return;
            learn(self, view);
            act(self);
          },
          [self](const caf::error&) { self->state.looking = false; });
}

void begin_drain(self_ptr self) {
  auto& s = self->state;
  if (s.draining) return;
  s.draining = true;
  s.released = 0;  // of the drain, and not of what was given before
  s.to_take.clear();
  take_next(self);    // nobody waits for us
  renew(self, true);  // so that the others plan without us
  s.to_release.clear();
  for (const auto& [id, epoch] : s.epochs) s.to_release.push_back(id);
  release_next(self);
}

void heard(self_ptr self, const bus_message& m) {
  auto& s = self->state;
  const auto n = wire::parse_lease_notice(m.payload);
  if (!n) {
    s.ctx.partition.entity.count->add("warren_bus_dropped_total", n.error.reason);
    return;
  }
  if (n->what() == "drain") {
    if (n->instance() != s.ctx.me) return;
    if (!m.reply_to.empty()) tell(self, notice(self, "leaving"), m.reply_to);
    if (s.draining) return;
    if (!n->principal().empty())
      s.drain_asked = audit_entry{"", "DrainInstance", "instances/" + std::to_string(s.ctx.me), n->principal(), n->remote(), "",
                                  R"({"draining": false})", R"({"draining": true})"};
    if (s.ctx.on_drain_asked) return s.ctx.on_drain_asked();
    return begin_drain(self);
  }
  if (n->instance() == s.ctx.me) return;
  if (!s.others.heard(n->instance(), steady_ms(self))) look_at_table(self);
  if (n->what() == "taken") {
    const auto ours = s.epochs.find(n->partition());
    if (ours == s.epochs.end() || ours->second >= n->epoch()) return;
    spdlog::warn("partition {} has moved, says instance {}", n->partition(), n->instance());
    stop(self, n->partition());
    return changed(self);
  }
  if (n->what() == "released" && n->successor() == s.ctx.me) {
    if (n->partition() > s.ctx.partition.partitions) return;
    s.offered[n->partition()] = m.reply_to;
    if (s.draining || !safe(self)) return answer_offer(self, n->partition());
    take_soon(self, n->partition());
    take_next(self);
  }
}

void beat(self_ptr self) {
  auto& s = self->state;
  if (safe(self) && s.bus_ok && !s.renewal_failed) tell(self, notice(self, "alive"));
  judge(self);
  if (s.others.somebody_is_deaf()) look_at_table(self);
  if (s.gateways_away) look_at_gateways(self);
  self->delayed_send(self, pulse_of(s.ctx.lease), wake_up{pulse});
}

}  // namespace

placement_actor::behavior_type actor(self_ptr self, placement_context ctx) {
  auto& s = self->state;
  s.ctx = std::move(ctx);
  s.bus_ok = s.ctx.partition.bus_connected;
  s.others = peers{s.ctx.me, s.ctx.lease};
  s.others.bus(s.bus_ok, steady_ms(self));
  self->set_down_handler([self](const caf::down_msg& down) {
    auto& st = self->state;
    for (auto& [id, handle] : st.running) {
      if (caf::actor_cast<caf::actor_addr>(handle) != down.source) continue;
      // Lost ownership ends a partition cleanly; a failure starts it again with the next look at the table.
      if (down.reason && down.reason != caf::exit_reason::user_shutdown)
        spdlog::error("partition {} has failed: {}", id, self->system().render(down.reason));
      forget(self, partition_id{id});
      changed(self);
      return;
    }
  });
  self->set_exit_handler([self](caf::exit_msg& m) {
    stop_all(self, "the instance stops");
    self->quit(std::move(m.reason));
  });
  self->send(s.ctx.partition.entity.bus,
             bus_subscribe{std::string{bus::lease_subject}, caf::actor_cast<caf::actor>(self)});
  self->send(self, wake_up{renewal});
  self->send(self, wake_up{pulse});
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
        auto promise = self->make_response_promise<caf::typed_response_promise<drained>>();
        auto& st = self->state;
        const bool over = st.draining && !st.release_under_way && st.to_release.empty();
        if (over) promise.deliver(drained{st.released});
        else st.drain_promises.push_back(promise);
        begin_drain(self);
        return promise;
      },
      [self](const owned_query&) {
        auto& st = self->state;
        return owned_partitions{st.epochs, st.held, st.ctx.me};
      },
      [self](const bus_state& b) {
        auto& st = self->state;
        st.bus_ok = b.connected;
        st.others.bus(b.connected, steady_ms(self));
        for (auto& [id, handle] : st.running) self->send(handle, b);
        renew(self, true);
      },
      [self](const mass_silence& m) {
        auto& st = self->state;
        st.silence = m.on;
        for (auto& [id, handle] : st.running) self->send(handle, m);
      },
      [self](const bus_message& m) { heard(self, m); },
      [self](const peer_disconnected& p) {
        self->state.others.disconnected(p.instance, steady_ms(self));
        judge(self);
      },
      [self](const wake_up& w) {
        switch (w.serial) {
          case lease_end: return end_lease(self);
          case pulse: return beat(self);
          case look: return judge(self);
          case renew_again:
            self->state.renew_again_armed = false;
            return renew(self);
          default:
            end_lease(self);
            renew(self);
            look_for_behind(self);
            self->delayed_send(self, std::min<millis>(self->state.ctx.lease / 3, limits::instance_renew), wake_up{renewal});
        }
      },
  };
}

}  // namespace warren::placement
