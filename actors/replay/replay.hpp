// actors/replay/replay.hpp -- runs what was recorded through the machines again and says whether the same came out.
// Pure: no CAF, no I/O, no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <variant>

#include "warren/core/v1/recording.pb.h"

namespace warren::replay {

namespace v1 = warren::core::v1;

inline constexpr int format_known = 1;

/// A step, as it is being replayed. The references hold for the call.
struct shown_step {
  const v1::Run& run;
  int index = 0;  ///< in run.steps()
  const google::protobuf::Message& after;
};

/// Where replaying came to something else than what was recorded.
struct divergence {
  std::string entity;         ///< "tunnel acme/web"
  std::uint64_t step = 0;     ///< of the entity's life
  std::uint64_t sequence = 0; ///< of the instance
  std::string what;           ///< one sentence
  std::string before, event, after;  ///< as text; `after` is what replaying came to
  std::string expected;       ///< as far as it is known: how a later recorded state differs from the replayed one
};

struct totals {
  std::size_t recordings = 0, runs = 0, steps = 0, saves = 0, digests = 0, continued = 0, unfinished = 0;
};

/// Replays the recordings of one instance, given in the order in which they were saved.
class replayer {
public:
  /// Called after each step.
  std::function<void(const shown_step&)> on_step;

  /// Returns what is wrong with the recording itself; empty: nothing. A divergence is no such thing.
  std::string add(v1::Recording recording);

  const totals& counted() const { return totals_; }
  /// The first one.
  const std::optional<divergence>& diverged() const { return diverged_; }

private:
  using any_state = std::variant<v1::TunnelState, v1::ConnectorState, v1::RegistryState>;
  /// Where a life's last run ended, if it ended with a step that is over.
  struct reached { std::uint64_t next_step = 0; any_state last; };

  template <class Machine> void play(v1::Run& run);
  template <class State> void compare_with_reached(const v1::Run& run, const State& before);
  void diverge(const v1::Run& run, const v1::Step* step, std::uint64_t number, std::string what, std::string before,
               std::string after);

  totals totals_;
  std::optional<divergence> diverged_;
  std::uint64_t diverged_life_ = 0;
  std::map<std::uint64_t, reached> reached_;  ///< by life
};

/// A state, an event or a row as a person reads it.
std::string text_of(const google::protobuf::Message& m);
std::string entity_of(const v1::Run& run);

}  // namespace warren::replay
