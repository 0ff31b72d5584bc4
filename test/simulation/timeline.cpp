// test/simulation/timeline.cpp -- virtual time. Knows nothing of what is simulated.
#include "test/simulation/timeline.hpp"

#include <algorithm>
#include <cstring>

namespace warren::simulation {

namespace {

constexpr std::size_t violations_max = 50;  // of one run: what follows from the first is of no interest

constexpr std::uint64_t odd = 0x9e3779b97f4a7c15ull;

void mix(std::uint64_t& hash, std::uint64_t word) {
  hash = (hash ^ word) * odd;
  hash ^= hash >> 29;
}
/// Eight bytes at a time: everything that is said comes by here.
void mix(std::uint64_t& hash, std::string_view bytes) {
  mix(hash, bytes.size());
  while (!bytes.empty()) {
    std::uint64_t word = 0;
    const auto n = std::min(bytes.size(), sizeof word);
    std::memcpy(&word, bytes.data(), n);
    mix(hash, word);
    bytes.remove_prefix(n);
  }
}

}  // namespace

timeline::timeline(std::uint64_t seed, bool talkative)
    : network{seed * 6 + 1}, store{seed * 6 + 2}, agents{seed * 6 + 3}, load{seed * 6 + 4}, schedule{seed * 6 + 5},
      secrets{seed * 6 + 6}, readers{~(seed * 6)}, talkative_{talkative} {}

void timeline::after(std::int64_t ms, std::function<void()> what) {
  events_.push({now_ms_ + ms, serial_++, std::move(what)});
}

std::optional<std::int64_t> timeline::next_ms() const {
  if (events_.empty()) return std::nullopt;
  return events_.top().at_ms;
}

void timeline::run_next() {
  // The queue gives its top only const; it is taken out before it runs, because it may plan others.
  auto what = std::move(const_cast<event&>(events_.top()).what);
  events_.pop();
  what();
}

void timeline::clear() { events_ = {}; }

void timeline::record(std::string_view what, std::string_view whom, std::string_view bytes) {
  ++records_;
  mix(digest_, static_cast<std::uint64_t>(now_ms_));
  mix(digest_, what);
  mix(digest_, whom);
  mix(digest_, bytes);
  if (talkative_) say(fmt::format("{} {} {:016x}", what, whom, digest_));
}

void timeline::violate(std::string what) {
  if (talkative_) say("VIOLATION " + what);
  if (violations_.size() < violations_max) violations_.push_back(fmt::format("{} ms: {}", now_ms_, what));
}

void timeline::say(const std::string& text) const { fmt::print("{:>9} {}\n", now_ms_, text); }

}  // namespace warren::simulation
