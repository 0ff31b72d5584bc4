// services/hook/fleets.hpp -- reports to partitions how far the fleets behind the extension hook are, each as the gateway
// that it is registered as. What they have acknowledged is decided in handover.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "actors/core/ids.hpp"
#include "actors/core/time.hpp"
#include "services/hook/transform.hpp"
#include "services/hook/truth.hpp"
#include "services/replica/view.hpp"
#include "warren/bus/v1/bus.pb.h"

namespace warren::hook {

namespace busv1 = warren::bus::v1;

struct fleets_config {
  instance_id instance = 0;
  namespaces projects;
  /// The next stream number, from the database; must not block. Asked again when there is none.
  std::function<void(std::function<void(std::optional<std::int64_t>)>)> next_stream;
  /// On change, and for every partition once a second; on our own thread.
  std::function<void(const busv1::GatewayAck&)> on_ack;
  millis report_every{1000};
};

/// From its construction to its destruction, on a thread of its own. Costs nothing until a fleet calls. Thread-safe; nothing
/// here blocks.
class fleets {
public:
  /// `v` outlives it.
  fleets(replica::view& v, fleets_config config);
  ~fleets();
  fleets(const fleets&) = delete;
  fleets& operator=(const fleets&) = delete;

  void answered(const answered_call& what);
  /// Says that all of them are gone, and nothing more.
  void stop();

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::hook
