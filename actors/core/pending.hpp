// actors/core/pending.hpp -- what every machine does alike with commands that wait and saves that failed. Pure;
// works on any state that has the fields pending, conflicts, failures and retry_at_ms.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "actors/core/error.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/transition.hpp"
#include "warren/core/v1/tunnel.pb.h"

namespace warren {

inline v1::Reply error_reply(errc code, std::string field, std::string message) {
  v1::Reply r;
  r.set_code(std::string{to_string(code)});
  r.set_field(std::move(field));
  r.set_message(std::move(message));
  return r;
}

/// The outcome of a command, to everybody who asked for it. Without code and row: filled in from what is written.
template <class Transition> void owe_answer(Transition& t, const v1::PendingCommand& p, const v1::Reply& r) {
  t.replies.push_back({p.ticket(), r});
  for (const auto ticket : p.repetitions()) t.replies.push_back({ticket, r});
}

/// What nobody waits for any more is not carried out: whoever asked has been told that it is not known, and may have
/// asked for something else since. To be called before commands are decided, and after a save that failed was answered.
template <class Transition> void drop_expired(Transition& t, moment now) {
  auto& pending = *t.next.mutable_pending();
  const auto over = [&](const v1::PendingCommand& p) {
    return p.deadline_ms() != 0 && p.deadline_ms() <= now.steady_ms;
  };
  for (const auto& p : pending) {
    if (!over(p)) continue;
    owe_answer(t, p, error_reply(errc::unavailable, "", "its deadline came before its turn"));
    ++t.expired;
  }
  pending.erase(std::remove_if(pending.begin(), pending.end(), over), pending.end());
}

/// Whether `c` is the request that waits as `p`, said again: whoever forwards it hears nothing and repeats it.
/// Without a request id nobody can tell.
inline bool repeats(const v1::Command& c, const v1::PendingCommand& p) {
  const auto& a = c.caller();
  const auto& b = p.command().caller();
  return !a.request_id().empty() && a.request_id() == b.request_id() && a.method() == b.method() &&
         a.digest() == b.digest() && c.project() == p.command().project();
}

/// Takes a command in, to be decided in its turn; one too many is answered at once. One that waits already is answered
/// together with its repetition, and may wait as long as the one that has more time.
template <class Transition, class Event> void queue_command(Transition& t, const Event& e, moment now) {
  drop_expired(t, now);
  const auto patience_ms = std::min<std::int64_t>(e.command().patience_ms(), limits::request_timeout_max / 1ms);
  const auto deadline_ms = patience_ms == 0 ? 0 : now.steady_ms + patience_ms;
  auto& pending = *t.next.mutable_pending();
  const auto first = std::find_if(pending.begin(), pending.end(), [&](const auto& p) { return repeats(e.command(), p); });
  const bool full = first != pending.end() ? first->repetitions_size() >= limits::command_repetitions_max
                                           : pending.size() >= static_cast<int>(limits::entity_pending_commands_max);
  if (full) {
    t.replies.push_back({e.ticket(), error_reply(errc::overloaded, "", "too many changes at once")});
    return;
  }
  if (first != pending.end()) {
    first->add_repetitions(e.ticket());
    const auto before_ms = first->deadline_ms();
    first->set_deadline_ms(before_ms == 0 || deadline_ms == 0 ? 0 : std::max(before_ms, deadline_ms));
    return;
  }
  auto* p = pending.Add();
  p->set_deadline_ms(deadline_ms);
  p->set_ticket(e.ticket());
  *p->mutable_command() = e.command();
  p->set_fresh_uid(e.fresh_uid());
}

template <class State> void drop_first_pending(State& s) {
  if (s.pending_size() > 0) s.mutable_pending()->erase(s.pending().begin());
}

/// The first command that waits is over: its save was answered with `f`. With the database away so are all that wait
/// behind it: nobody can say when they would have their turn.
template <class Transition> void refuse_pending(Transition& t, const v1::Failed& f) {
  v1::Reply r;
  r.set_code(f.code());
  r.set_field(f.field());
  r.set_message(f.message());
  const bool all = f.code() == to_string(errc::unavailable);
  while (t.next.pending_size() > 0) {
    owe_answer(t, t.next.pending(0), r);
    drop_first_pending(t.next);
    if (!all) return;
  }
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
