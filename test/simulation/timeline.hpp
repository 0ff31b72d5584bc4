// test/simulation/timeline.hpp -- virtual time: what happens when, chance that a seed repeats, and the log of a run
// as one number. Knows nothing of what is simulated.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

namespace warren::simulation {

/// Random numbers of one purpose: what another purpose draws does not move them, so that a fault that is left out
/// changes little else. SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
class dice {
public:
  explicit dice(std::uint64_t seed) : state_{seed} {}
  std::uint64_t roll() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  bool chance(int percent) { return static_cast<int>(roll() % 100) < percent; }
  /// Both ends included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(roll() % static_cast<std::uint64_t>(high - low + 1));
  }

private:
  std::uint64_t state_;
};

class timeline {
public:
  explicit timeline(std::uint64_t seed, bool talkative = false);

  std::int64_t now_ms() const { return now_ms_; }
  void pass_to(std::int64_t at_ms) { now_ms_ = at_ms; }
  /// Of two events of one moment the one that was planned first comes first.
  void after(std::int64_t ms, std::function<void()> what);
  std::optional<std::int64_t> next_ms() const;
  void run_next();
  /// Forgets everything that was to come: at the end of a run.
  void clear();

  dice network, store, agents, load, schedule, secrets, readers;

  /// Into the digest of the run, and to the terminal when it is wanted.
  void record(std::string_view what, std::string_view whom, std::string_view bytes = {});
  template <class... Ts> void tell(fmt::format_string<Ts...> text, Ts&&... xs) {
    if (talkative_) say(fmt::format(text, std::forward<Ts>(xs)...));
  }
  bool talkative() const { return talkative_; }
  std::uint64_t digest() const { return digest_; }
  std::uint64_t records() const { return records_; }

  /// Something that must never be. Bounded: the first ones tell.
  void violate(std::string what);
  const std::vector<std::string>& violations() const { return violations_; }

private:
  struct event {
    std::int64_t at_ms;
    std::uint64_t serial;
    std::function<void()> what;
    bool operator<(const event& other) const {  // the queue's top is the greatest
      return at_ms != other.at_ms ? at_ms > other.at_ms : serial > other.serial;
    }
  };
  void say(const std::string& text) const;

  std::int64_t now_ms_ = 0;
  std::priority_queue<event> events_;
  std::uint64_t serial_ = 0, digest_ = 14695981039346656037ull, records_ = 0;
  bool talkative_;
  std::vector<std::string> violations_;
};

}  // namespace warren::simulation
