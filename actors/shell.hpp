// actors/shell.hpp -- carries out a transition: save, announce, arm, reply. The one place where an entity
// touches CAF; it decides nothing.
//
// An entity's shell is a stateful actor whose state derives from shell_state<Traits>. Traits says:
//   using state, event, transition;              // protobuf, protobuf, warren::transition<…>
//   static transition step(const state&, const event&, moment);
//   static void adopt(state& next, const saved&);     // versions of what was written
//   static std::string kind(const state&);            // "tunnel"
//   static bool is_entity(const v1::Row&);            // the entity's own row, not a child
//   static void announce(Self*, const announcement&); // says one thing to the world
//   static void carried_out(Self*);                   // after each transition
// and derives from shell_events<event>, which makes the events that the shell itself brings.
#pragma once

#include <exception>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include <spdlog/spdlog.h>

#include "actors/core/counters.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/recorder.hpp"
#include "actors/core/transition.hpp"
#include "actors/log.hpp"
#include "actors/messages.hpp"
#include "actors/replay/digest.hpp"

namespace warren {

/// What every entity's actor is given. Handles stay valid for the life of the partition.
struct entity_context {
  store_actor store;
  bus_actor bus;
  dialer_actor dialer;
  silence_actor silence;
  partition_actor partition;         ///< where routes between entities meet
  counters* count = nullptr;         ///< outlives all actors
  recorder* record = nullptr;        ///< outlives all actors; null: nothing is remembered
  partition_id id = 0;
  epoch_t epoch = 0;
  std::int64_t incarnation = 0;
  std::int64_t heartbeat_interval_ms = limits::heartbeat_interval_default / 1ms;
  std::int64_t listening_ms = 0;     ///< agents have been heard without a gap since, on the steady clock; 0: not known
  std::int64_t heard_before_ms = 0;  ///< of a connector that has slept: when it was last heard; 0: not at all
  /// What it is under the instance's load, at this moment; unset: never longer.
  std::function<std::int64_t()> loaded_interval_ms = {};
  std::function<std::int64_t()> wall_ms;      ///< milliseconds since 1970
  std::function<std::uint64_t()> random;      ///< jitter
  std::function<std::string()> fresh_uid;     ///< 32 hex digits
  std::function<std::string(std::size_t)> secret;  ///< n random bytes, for challenges and tokens
};

/// The events that every shell brings to its machine, whatever else the entity hears. Every entity's event
/// has these five under the same names.
template <class Event> struct shell_events {
  static Event on_command(v1::Command c) {
    Event e;
    *e.mutable_command() = std::move(c);
    return e;
  }
  static Event on_reloaded(v1::Reloaded r) {
    Event e;
    *e.mutable_reloaded() = std::move(r);
    return e;
  }
  static Event on_saved(revision_t revision) {
    Event e;
    e.mutable_saved()->set_revision(revision);
    return e;
  }
  static Event on_failed(std::string code, std::string field, std::string message) {
    Event e;
    e.mutable_failed()->set_code(std::move(code));
    e.mutable_failed()->set_field(std::move(field));
    e.mutable_failed()->set_message(std::move(message));
    return e;
  }
  static Event on_wake() {
    Event e;
    e.mutable_wake();
    return e;
  }
};

template <class Traits> struct shell_state {
  shell_state() = default;  // never an aggregate: CAF would initialise its first member with self

  entity_context ctx;
  std::string project, name;
  typename Traits::state machine;
  std::uint64_t next_ticket = 1;
  std::map<std::uint64_t, caf::typed_response_promise<v1::Reply>> askers;
  std::int64_t armed_ms = 0;        ///< when the armed wake fires; 0: none
  std::uint64_t wake_serial = 0;    ///< of the armed wake; an older one is ignored
  std::int64_t idle_since_ms = 0;   ///< nothing owed since then; 0: busy
  millis idle_kept = limits::passivate_after;  ///< how long it stays awake then
  std::int64_t conflict_since_ms = 0;  ///< the first conflict of the save that is being tried again; 0: none
  bool gone = false;                ///< there is no such entity, and it owes nothing
  bool presumed_absent = false;     ///< nobody has looked for a row: an insert that succeeds proves it, anything else is looked up
  record_track track;
};

namespace shell {

constexpr millis absent_kept = 1s;  // who looked for it is most often about to create it

/// How long an entity that owes nothing stays awake.
inline millis kept_awake(const auto& state) { return state.gone ? absent_kept : state.idle_kept; }

template <class Self> moment now_of(Self* self) {
  const auto steady = self->clock().now().time_since_epoch();
  return {std::chrono::duration_cast<millis>(steady).count(), self->state.ctx.wall_ms()};
}

/// What the partition keeps of it when it is let go.
template <class Traits, class Self> idle_notice idle(Self* self, bool again) {
  const auto& s = self->state;
  idle_notice n{Traits::kind(s.machine), s.project, s.name, again};
  if constexpr (requires { s.machine.heard_before_ms(); })
    if (!s.gone) n.heard_ms = s.machine.heard_ms() != 0 ? s.machine.heard_ms() : s.machine.heard_before_ms();
  return n;
}

template <class Traits, class Self> void handle(Self* self, typename Traits::event event);
template <class Traits, class Self> void reload(Self* self, bool conflict, bool rival);

inline void reply_to(auto& state, std::uint64_t ticket, v1::Reply reply) {
  auto asker = state.askers.find(ticket);
  if (asker == state.askers.end()) return;
  asker->second.deliver(std::move(reply));
  state.askers.erase(asker);
}

/// An answer that was decided without the save; the others are filled in from what was written.
inline bool decided(const v1::Reply& reply) { return !reply.code().empty() || reply.has_row(); }

/// The save did not happen: what was decided without it is said all the same, or nobody would say it.
inline void answer_decided(auto& state, std::vector<answer>& replies) {
  for (auto& a : replies)
    if (decided(a.reply)) reply_to(state, a.ticket, std::move(a.reply));
  std::erase_if(replies, [&](const answer& a) { return !state.askers.contains(a.ticket); });
}

template <class Self> void answer_all(Self* self, errc code, const std::string& message) {
  for (auto& [ticket, promise] : self->state.askers) {
    v1::Reply reply;
    reply.set_code(std::string{to_string(code)});
    reply.set_message(message);
    promise.deliver(std::move(reply));
  }
  self->state.askers.clear();
}

template <class Self> void arm(Self* self, std::int64_t at_ms) {
  auto& s = self->state;
  const auto now = now_of(self).steady_ms;
  if (at_ms == 0) {
    // Nothing is owed: come back once, to be let go when nobody has asked in between.
    if (s.idle_since_ms == 0) s.idle_since_ms = now;
    at_ms = s.idle_since_ms + kept_awake(s).count();
  } else {
    s.idle_since_ms = 0;
  }
  if (s.armed_ms != 0 && s.armed_ms <= at_ms) return;  // an earlier wake re-arms
  s.armed_ms = at_ms;
  if (at_ms <= now) self->send(self, wake_up{++s.wake_serial});  // behind what waits already
  else self->delayed_send(self, millis{at_ms - now}, wake_up{++s.wake_serial});
}

/// Called first in an entity's actor: it ends with its partition, and whoever still waits hears `not_owner`
/// (a dropped promise would be a silence until the asker's timeout).
template <class Traits, class Self> void begin(Self* self) {
  self->monitor(self->state.ctx.partition);
  // CAF leaves who has ended in the list of those who watch the partition, and an actor's memory with it.
  self->attach_functor([partition = self->state.ctx.partition, me = self->address()] {
    caf::actor_cast<caf::abstract_actor*>(partition)->detach(
        caf::default_attachable::observe_token{me, caf::default_attachable::monitor});
  });
  self->set_down_handler([self](const caf::down_msg&) {
    answer_all(self, errc::not_owner, "the partition has moved");
    self->quit();
  });
  self->set_exception_handler([self](std::exception_ptr& failure) {
    const auto& s = self->state;
    std::string why = "no exception of ours";
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& e) {
      why = e.what();
    } catch (...) {
    }
    const auto kind = Traits::kind(s.machine);
    const auto request = [&]() -> std::string {
      if constexpr (requires { s.machine.pending_size(); })
        if (s.machine.pending_size() > 0) return s.machine.pending(0).command().caller().request_id();
      return {};
    }();
    log_line(spdlog::level::err, "an entity has failed",
             {{"kind", kind}, {"project", s.project}, {kind, s.name}, {"partition", s.ctx.id}, {"epoch", s.ctx.epoch},
              {"request_id", request}, {"error", why}});
    answer_all(self, errc::internal, "this failed; the log says how");
    return caf::error{caf::exit_reason::unhandled_exception};
  });
  self->set_exit_handler([self](caf::exit_msg& m) {
    auto& s = self->state;
    answer_all(self, errc::not_owner, "let go; try again");
    if (m.reason == caf::exit_reason::user_shutdown && s.armed_ms != 0 && s.idle_since_ms == 0)
      self->send(s.ctx.partition, idle<Traits>(self, true));
    self->quit(std::move(m.reason));
  });
}

/// For the flight recorder: this event is about to change the machine's state.
template <class Traits, class Self>
void recorded(Self* self, const typename Traits::event& event, bool noted, std::uint64_t random, moment now) {
  auto& s = self->state;
  if (s.ctx.record == nullptr) return;
  const auto kind = Traits::kind(s.machine);
  s.ctx.record->begin(s.track, {kind, s.project, s.name, s.ctx.id, s.ctx.epoch}, s.machine, event, noted, random, now);
}

/// And this is what became of it.
template <class Self> void concluded(Self* self, step_outcome outcome, const saved* written) {
  auto& s = self->state;
  if (s.ctx.record == nullptr) return;
  std::optional<std::uint64_t> digest;
  if (outcome != step_outcome::lost && s.track.digest_due(outcome != step_outcome::done)) {
    const auto taken = replay::digest_of(s.machine);
    s.track.digest_bytes = taken.bytes;
    digest = taken.value;
  }
  s.ctx.record->conclude(s.track, outcome, written == nullptr ? 0 : written->revision,
                         written == nullptr ? nullptr : &written->rows, digest);
}

/// Everything below `save` in the transition.
template <class Traits, class Self>
void finish(Self* self, typename Traits::transition t, const saved* written) {
  auto& s = self->state;
  s.machine = std::move(t.next);
  concluded(self, written == nullptr ? step_outcome::done : step_outcome::saved, written);
  for (const auto& a : t.announce) Traits::announce(self, a);
  Traits::carried_out(self);
  s.gone = t.gone;
  arm(self, t.gone ? 0 : t.wake_at_ms);
  for (auto& a : t.replies) {
    if (written != nullptr && !decided(a.reply)) {
      if (!written->rows.empty()) *a.reply.mutable_row() = written->rows.front();
      a.reply.set_partition(s.ctx.id);
      a.reply.set_revision(written->revision);
    }
    reply_to(s, a.ticket, std::move(a.reply));
  }
  if (written == nullptr && s.presumed_absent) return reload<Traits>(self, false, false);
  s.presumed_absent = false;
  if (t.gone) return;
  if (written != nullptr) handle<Traits>(self, Traits::on_saved(written->revision));
}

template <class Traits, class Self> void reload(Self* self, bool conflict, bool rival) {
  auto& s = self->state;
  s.presumed_absent = false;
  load_entity ask{Traits::kind(s.machine), s.project, s.name, s.ctx.id, s.ctx.epoch};
  self->request(s.ctx.store, caf::infinite, std::move(ask))
      .await(
          [self, conflict, rival](loaded& rows) {
            if (rows.lost) {
              answer_all(self, errc::not_owner, "the partition has moved");
              self->quit(ownership_lost);
              return;
            }
            if (!rows.error.empty()) {
              handle<Traits>(self, Traits::on_failed("unavailable", "", rows.error));
              return;
            }
            v1::Reloaded reloaded;
            reloaded.set_conflict(conflict);
            reloaded.set_rival(rival);
            for (auto& row : rows.rows) {
              if (!reloaded.has_row() && Traits::is_entity(row)) *reloaded.mutable_row() = std::move(row);
              else *reloaded.add_children() = std::move(row);
            }
            handle<Traits>(self, Traits::on_reloaded(std::move(reloaded)));
          },
          [self](const caf::error&) { self->quit(caf::exit_reason::unhandled_exception); });
}

template <class Traits, class Self> void carry_out(Self* self, typename Traits::transition t) {
  auto& s = self->state;
  if (t.expired > 0) s.ctx.count->add("warren_bus_dropped_total", "expired", t.expired);
  if (!t.save) return finish<Traits>(self, std::move(t), nullptr);
  t.save->partition = s.ctx.id;
  t.save->epoch = s.ctx.epoch;
  auto request = *t.save;
  // await, not then: no other message is looked at until the save is decided.
  self->request(s.ctx.store, caf::infinite, std::move(request))
      .await(
          [self, t = std::move(t)](save_result& result) mutable {
            auto& st = self->state;
            if (auto* done = std::get_if<saved>(&result)) {
              if (st.conflict_since_ms != 0) {
                const auto waited = now_of(self).steady_ms - st.conflict_since_ms;
                st.ctx.count->observe("warren_conflict_retry_seconds", static_cast<double>(waited) / 1000);
                st.conflict_since_ms = 0;
              }
              Traits::adopt(t.next, *done);
              finish<Traits>(self, std::move(t), done);
              return;
            }
            answer_decided(st, t.replies);
            if (std::holds_alternative<save_conflict>(result)) {
              st.machine = t.fall_back();
              concluded(self, step_outcome::conflict, nullptr);
              if (st.conflict_since_ms == 0) st.conflict_since_ms = now_of(self).steady_ms;
              reload<Traits>(self, true, false);
            } else if (std::holds_alternative<save_lost>(result)) {
              concluded(self, step_outcome::lost, nullptr);
              answer_all(self, errc::not_owner, "the partition has moved");
              self->quit(ownership_lost);
            } else if (auto* refused = std::get_if<save_refused>(&result)) {
              st.machine = t.fall_back();
              concluded(self, step_outcome::refused, nullptr);
              handle<Traits>(self, Traits::on_failed(std::string{to_string(refused->code)},
                                                     refused->field, refused->message));
            } else if (auto* replayed = std::get_if<save_replayed>(&result)) {
              st.machine = t.fall_back();
              concluded(self, step_outcome::replayed, nullptr);
              for (const auto& a : t.replies) reply_to(st, a.ticket, replayed->reply);  // what is left is the save's
              handle<Traits>(self, Traits::on_failed("replayed", "", ""));
            } else {
              st.machine = t.fall_back();
              concluded(self, step_outcome::unavailable, nullptr);
              handle<Traits>(self, Traits::on_failed("unavailable", "",
                                                     std::get<save_unavailable>(result).message));
            }
          },
          [self](const caf::error&) {
            answer_all(self, errc::unavailable, "the store has stopped");
            self->quit(caf::exit_reason::unhandled_exception);
          });
}

/// One event to completion.
template <class Traits, class Self> void handle(Self* self, typename Traits::event event) {
  auto& s = self->state;
  const auto now = now_of(self);
  const auto random = s.ctx.random();
  if (event.has_command()) event.set_fresh_uid(s.ctx.fresh_uid());  // a command alone may create something
  recorded<Traits>(self, event, false, random, now);
  event.set_random(random);
  carry_out<Traits>(self, Traits::step(s.machine, event, now));
}

/// A command: remembers the asker and hands it to the machine, which answers by its ticket.
template <class Traits, class Self>
caf::typed_response_promise<v1::Reply> ask(Self* self, v1::Command command) {
  auto& s = self->state;
  auto promise = self->template make_response_promise<caf::typed_response_promise<v1::Reply>>();
  const auto ticket = s.next_ticket++;
  s.askers.emplace(ticket, promise);
  s.idle_since_ms = 0;
  auto event = Traits::on_command(std::move(command));
  event.set_ticket(ticket);
  handle<Traits>(self, std::move(event));
  return promise;
}

/// Instead of looking for a row that a creation is about to insert: most often there is none, and when there is one
/// the insert meets it.
template <class Traits, class Self> void presume_absent(Self* self) {
  handle<Traits>(self, Traits::on_reloaded({}));
  self->state.presumed_absent = true;
}

/// The armed wake has fired, or one that was overtaken.
template <class Traits, class Self> void woken(Self* self, const wake_up& w) {
  auto& s = self->state;
  if (w.serial != s.wake_serial) return;
  s.armed_ms = 0;
  const auto now = now_of(self).steady_ms;
  if (s.idle_since_ms != 0 && now >= s.idle_since_ms + kept_awake(s).count() && s.askers.empty()) {
    self->send(s.ctx.partition, idle<Traits>(self, false));
    return;
  }
  if (!s.machine.known()) return reload<Traits>(self, false, false);
  handle<Traits>(self, Traits::on_wake());
}

/// `Reloaded` as a message: with a row it is a bulk activation, without one a request to go and look.
template <class Traits, class Self> void reloaded(Self* self, v1::Reloaded message) {
  self->state.idle_since_ms = 0;
  if (message.has_row()) return handle<Traits>(self, Traits::on_reloaded(std::move(message)));
  reload<Traits>(self, false, message.rival());
}

}  // namespace shell
}  // namespace warren
