// test/e2e/expect.hpp -- what the tests of the whole expect again and again. Decides nothing.
#pragma once

#include <catch2/catch.hpp>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "test/support/stack.hpp"

/// Leaves the test, with a line that `check` repeats, when a server that it needs cannot be had.
#define WARREN_NEEDS_SERVERS()                                                             \
  do {                                                                                     \
    if (!warren::stack::has_envoy()) {                                                     \
      WARN("SKIPPED: no Envoy (WARREN_ENVOY): what visitors meet is not shown");           \
      return;                                                                              \
    }                                                                                      \
  } while (false)

namespace warren::e2e {

using namespace std::chrono_literals;
using stack::answer;
using stack::milliseconds;

/// Long enough for anything that shall happen at all, on a slow machine.
constexpr milliseconds patience = 30s;

/// `./check full`.
inline bool full() {
  const char* said = std::getenv("WARREN_TEST_FULL");
  return said != nullptr && *said != '\0' && *said != '0';
}

inline bool is_ours(const answer& a) { return a.status == 503 && a.body == "Tunnel not online"; }
inline bool is_the_targets(const answer& a) { return a.status == 200 && a.headers.count("x-origin") > 0; }

inline std::string describe(const answer& a) {
  std::string out = std::to_string(a.status) + " '" + a.body + "'";
  for (const auto& [name, value] : a.headers) out += " " + name + ": " + value + ";";
  return out + (a.error.empty() ? "" : " (" + a.error + ")");
}

/// The first answer with a head that is neither the target's nor our 503; empty: there is none.
inline std::string foreign_answer(const std::vector<stack::seen_answer>& answers) {
  for (const auto& seen : answers)
    if (seen.what.status != 0 && !is_ours(seen.what) && !is_the_targets(seen.what)) return describe(seen.what);
  return {};
}

/// The first answer that is not the target's (also: none at all); empty: a visitor noticed nothing.
inline std::string noticed(const std::vector<stack::seen_answer>& answers) {
  for (const auto& seen : answers)
    if (!is_the_targets(seen.what)) return describe(seen.what);
  return {};
}

/// Visits until the answer satisfies; the last answer either way.
template <class Satisfies>
answer visit_until(const stack::stack& s, const stack::request& r, Satisfies satisfies) {
  answer last;
  stack::poll_until(
      [&] {
        last = s.visit(r);
        return satisfies(last);
      },
      patience, 20ms);
  return last;
}

inline std::string reason(const answer& a) {
  const auto at = a.headers.find("x-warren-reason");
  return at == a.headers.end() ? std::string{} : at->second;
}

}  // namespace warren::e2e
