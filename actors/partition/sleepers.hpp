// actors/partition/sleepers.hpp -- what agents said to connectors that are asleep, until their rows have been read.
// Bounded, as anybody can name any connector. No CAF, no I/O, no clock.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "actors/core/limits.hpp"

namespace warren::partition {

template <class Message> class sleepers {
public:
  using key = std::pair<std::string, std::string>;  ///< project, name

  /// False: there is no room for it.
  bool wait(const key& connector, Message said) {
    const auto at = waiting_.find(connector);
    if (at == waiting_.end()) {
      if (waiting_.size() >= limits::agent_wakes_max) return false;
      turn_.push_back(connector);
      waiting_[connector].push_back(std::move(said));
      return true;
    }
    if (at->second.size() >= limits::agent_wake_messages_max) return false;
    at->second.push_back(std::move(said));
    return true;
  }

  /// Whose row is to be read at once: each of them ends with `read`.
  std::vector<key> next() {
    std::vector<key> out;
    for (; reading_ < limits::agent_wakes_at_a_time && !turn_.empty(); ++reading_) {
      out.push_back(std::move(turn_.front()));
      turn_.pop_front();
    }
    return out;
  }

  /// The row was read, or cannot be: what waited for it, in the order of arrival.
  std::vector<Message> read(const key& connector) {
    --reading_;
    const auto at = waiting_.find(connector);
    if (at == waiting_.end()) return {};
    auto out = std::move(at->second);
    waiting_.erase(at);
    return out;
  }

  std::size_t size() const { return waiting_.size(); }

private:
  std::map<key, std::vector<Message>> waiting_;
  std::deque<key> turn_;     // those that nobody reads yet
  std::size_t reading_ = 0;
};

}  // namespace warren::partition
