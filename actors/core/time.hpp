// actors/core/time.hpp -- the two clocks. No CAF, no I/O, and nobody reads a clock here.
#pragma once

#include <chrono>
#include <cstdint>

#include <google/protobuf/timestamp.pb.h>

namespace warren {

using namespace std::chrono_literals;
using millis = std::chrono::milliseconds;

/// One instant as the shell hands it to a machine: deadlines come from `steady_ms`, what a person reads
/// from `wall_ms` (milliseconds since 1970).
struct moment {
  std::int64_t steady_ms = 0;
  std::int64_t wall_ms = 0;
};

inline google::protobuf::Timestamp timestamp_from_ms(std::int64_t wall_ms) {
  google::protobuf::Timestamp out;
  out.set_seconds(wall_ms / 1000);
  out.set_nanos(static_cast<std::int32_t>(wall_ms % 1000) * 1'000'000);
  return out;
}
inline std::int64_t to_ms(const google::protobuf::Timestamp& t) {
  return t.seconds() * 1000 + t.nanos() / 1'000'000;
}

}  // namespace warren
