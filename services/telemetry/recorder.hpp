// services/telemetry/recorder.hpp -- the flight recorder: the last steps of this instance's entities, in a ring of
// constant size. It knows no machine; actors/replay runs what it kept.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/recorder.hpp"
#include "warren/core/v1/recording.pb.h"

namespace warren::telemetry {

/// Thread-safe. An actor writes to one shard, so its steps stay in order; a shard is a ring of segments, of which the
/// oldest is dropped as a whole. The first step of an actor in a segment is preceded by its state, so that a segment
/// needs no other to be replayed. Memory is taken when it is first needed and kept.
///
/// A segment is a list of records, all numbers varints (z: zigzag), all texts with their length before them:
///   begin     flags run# sequence:z steady:z wall:z [kind project name partition epoch life first_step state]
///             random:8 (event | prefix suffix middle)
///   conclude  flags run# [revision n row*n] [digest:8]
/// Times and sequence are relative to the segment's first. `prefix` and `suffix` are how many bytes the event has in
/// common with the base: the run's last event that was written in full and is not tiny. Heartbeats are 150 bytes,
/// and a dozen differ.
class flight_recorder final : public recorder {
public:
  /// `bytes`: of the whole ring; 0: remembers nothing. `count` may be null, and outlives this.
  explicit flight_recorder(std::size_t bytes, counters* count = nullptr);
  ~flight_recorder() override;

  void begin(record_track& track, const recorded_entity& entity, const google::protobuf::MessageLite& state,
             const google::protobuf::MessageLite& event, bool noted, std::uint64_t random, moment now) override;
  void conclude(record_track& track, step_outcome outcome, revision_t revision,
                const std::vector<core::v1::Row>* rows, std::optional<std::uint64_t> digest) override;

  /// One segment, by its number; of one shard they grow.
  struct stretch { std::size_t shard = 0; std::uint64_t segment = 0; };
  /// Everything that is there, the oldest of each shard first.
  std::vector<stretch> stretches() const;
  /// Unpacks one. It holds secrets: actors/replay/redact is for whoever lets it out. nullopt: dropped meanwhile.
  std::optional<core::v1::Recording> unpack(const stretch& which) const;

  std::size_t bytes_used() const;

private:
  struct segment;
  struct shard;
  void left_out(record_track& track);

  std::size_t segment_bytes_ = 0;
  counters* count_;
  std::atomic<std::uint64_t> lives_{0}, sequences_{0}, segments_{0};
  std::vector<std::unique_ptr<shard>> shards_;
};

}  // namespace warren::telemetry
