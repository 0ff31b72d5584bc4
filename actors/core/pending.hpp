// actors/core/pending.hpp -- what every machine does alike with commands that wait and saves that failed. Pure;
// works on any state that has the fields pending, conflicts, failures and retry_at_ms.
#pragma once

#include <string>
#include <utility>

#include "actors/core/error.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/transition.hpp"

namespace warren {

inline v1::Reply error_reply(errc code, std::string field, std::string message) {
  v1::Reply r;
  r.set_code(std::string{to_string(code)});
  r.set_field(std::move(field));
  r.set_message(std::move(message));
  return r;
}

/// Takes a command in, to be decided in its turn; one too many is answered at once.
template <class Transition, class Event> void queue_command(Transition& t, const Event& e) {
  if (t.next.pending_size() >= static_cast<int>(limits::entity_pending_commands_max)) {
    t.replies.push_back({e.ticket(), error_reply(errc::overloaded, "", "too many changes at once")});
    return;
  }
  auto* p = t.next.add_pending();
  p->set_ticket(e.ticket());
  *p->mutable_command() = e.command();
  p->set_fresh_uid(e.fresh_uid());
}

template <class State> void drop_first_pending(State& s) {
  if (s.pending_size() > 0) s.mutable_pending()->erase(s.pending().begin());
}

/// The first command that waits is over: its save was answered with `f`.
template <class Transition> void refuse_first_pending(Transition& t, const v1::Failed& f) {
  if (t.next.pending_size() == 0) return;
  v1::Reply r;
  r.set_code(f.code());
  r.set_field(f.field());
  r.set_message(f.message());
  t.replies.push_back({t.next.pending(0).ticket(), std::move(r)});
  drop_first_pending(t.next);
}

/// A write found another version: again soon, for as long as it lasts (architecture: "Conflict").
template <class State> void retry_after_conflict(State& s, moment now, std::uint64_t random) {
  s.set_conflicts(s.conflicts() + 1);
  s.set_retry_at_ms(now.steady_ms +
                    backoff_ms(limits::conflict_retry_first, limits::conflict_retry_max, s.conflicts(), random));
}

/// The store did not do it: again later.
template <class State> void retry_after_failure(State& s, moment now, std::uint64_t random) {
  s.set_failures(s.failures() + 1);
  s.set_retry_at_ms(now.steady_ms + backoff_ms(limits::unavailable_retry_first, limits::unavailable_retry_max,
                                               s.failures(), random));
}

template <class State> void forget_retries(State& s) {
  s.set_conflicts(0);
  s.set_failures(0);
  s.set_retry_at_ms(0);
}

}  // namespace warren
