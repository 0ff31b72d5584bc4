// actors/core/recorder.hpp -- how shells have their steps remembered without knowing where. No CAF, no I/O.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include <google/protobuf/message_lite.h>

#include "actors/core/ids.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/time.hpp"
#include "warren/core/v1/rows.pb.h"

namespace warren {

/// Whose steps they are. The texts outlive the call.
struct recorded_entity {
  std::string_view kind, project, name;
  partition_id partition = 0;
  epoch_t epoch = 0;
};

/// What became of a step.
enum class step_outcome : std::uint8_t { unknown, done, saved, conflict, refused, replayed, unavailable, lost };

/// What the recorder has to know of one actor. A member of its shell; the recorder alone changes it.
struct record_track {
  std::uint64_t life = 0;          ///< number of this actor; 0: not heard of yet
  std::uint64_t steps = 0;         ///< so far
  std::uint64_t segment = 0;       ///< that holds its newest step; 0: none
  std::uint32_t index = 0;         ///< in that segment
  std::uint32_t base_at = 0, base_bytes = 0;  ///< the event in that segment that later ones resemble
  bool open = false;               ///< a step has begun and is not concluded
  std::size_t digest_credit = 0;   ///< bytes of state that may be digested by now
  std::size_t digest_bytes = 0;    ///< of the last digest

  /// Whether the state after this step is worth its digest: each step pays for some bytes, so that a large state
  /// is digested at some of its steps only, and no step costs as much as its connector is large.
  bool digest_due(bool written) {
    digest_credit += written ? limits::recorder_digest_credit_saved : limits::recorder_digest_credit;
    if (digest_credit < digest_bytes) return false;
    digest_credit = 0;
    return true;
  }
};

/// Remembers steps. Implemented by services/telemetry over a bounded ring, and by tests. Thread-safe; neither
/// waits for I/O nor grows.
class recorder {
public:
  virtual ~recorder() = default;

  /// An event is about to be decided, or only to be noted. `state` is the one before it, `event` does not have its
  /// `random` yet.
  virtual void begin(record_track& track, const recorded_entity& entity, const google::protobuf::MessageLite& state,
                     const google::protobuf::MessageLite& event, bool noted, std::uint64_t random, moment now) = 0;
  /// The step that began last is over. `rows` as the store wrote them; `digest` of the state after it, if taken.
  virtual void conclude(record_track& track, step_outcome outcome, revision_t revision,
                        const std::vector<core::v1::Row>* rows, std::optional<std::uint64_t> digest) = 0;
};

}  // namespace warren
