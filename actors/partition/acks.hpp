// actors/partition/acks.hpp -- which gateways count, and what they run, as their instances report it for one
// partition. No CAF, no I/O, no clock.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/events.pb.h"

namespace warren {

namespace v1 = warren::core::v1;
namespace busv1 = warren::bus::v1;

/// Where a gateway is, as its instance last reported it for one partition.
struct gateway_report {
  busv1::GatewayAck report;
  std::int64_t received_at_ms = 0;     ///< steady clock; a report ends with its instance's lease (3 s)
  std::int64_t since_ms = 0;           ///< wall clock: when `report.state` last changed
  std::int64_t first_heard_at_ms = 0;  ///< steady clock: when this gateway first said that it runs something
};

/// By gateway. A gateway that disconnected stays, with state "gone".
using gateway_reports = std::map<std::string, gateway_report>;

/// What a report moved.
enum class ack_effect : std::uint8_t {
  ignored,    ///< of an older stream or incarnation, or malformed
  refreshed,  ///< the same again: it lives
  moved,      ///< only `acknowledged` grew
  changed,    ///< who counts, or what is refused
};
ack_effect apply_ack(gateway_reports& all, const busv1::GatewayAck& ack, std::int64_t steady_ms,
                     std::int64_t wall_ms);

/// Ends reports whose instance has fallen silent; the classes in which somebody stopped counting. What has
/// been gone for an hour is forgotten.
std::set<std::string> expire_acks(gateway_reports& all, std::int64_t steady_ms, std::int64_t wall_ms);
/// When expire_acks has something to do at the earliest, on the steady clock; 0: never.
std::int64_t next_expiry_ms(const gateway_reports& all);

/// The gateways of a class, sorted by name; those that are gone are not connected.
std::vector<v1::GatewayState> gateways_of(const gateway_reports& all, std::string_view gateway_class);

/// Whether the class's gateways have been heard, or waited for long enough (tunnels.md): 5 s after
/// `started_steady_ms`, or as soon as all `registered` ones were heard, or when each instance has had its
/// turn to report (every second) after the first acknowledgement. `registered` null: not known.
bool gateways_settled(const gateway_reports& all, std::string_view gateway_class,
                      const std::set<std::string>* registered, std::int64_t started_steady_ms,
                      std::int64_t steady_ms);

/// One partition's reports with the time since when they are listened for: what a partition's actor keeps.
class gateway_acks {
public:
  gateway_acks() = default;
  explicit gateway_acks(std::int64_t started_steady_ms) : started_ms_(started_steady_ms) {}

  ack_effect apply(const busv1::GatewayAck& ack, std::int64_t steady_ms, std::int64_t wall_ms) {
    return apply_ack(all_, ack, steady_ms, wall_ms);
  }
  std::set<std::string> expire(std::int64_t steady_ms, std::int64_t wall_ms) {
    return expire_acks(all_, steady_ms, wall_ms);
  }
  /// The message for the tunnels of a class. Once settled, a class stays so. `registered` as above.
  v1::Gateways of_class(const std::string& gateway_class, std::int64_t steady_ms,
                        const std::set<std::string>* registered = nullptr);
  /// When `of_class` may answer differently without another report, on the steady clock; 0: never.
  std::int64_t next_deadline_ms(std::int64_t steady_ms) const;
  const gateway_reports& reports() const { return all_; }

private:
  gateway_reports all_;
  std::set<std::string> settled_;
  std::int64_t started_ms_ = 0;
};

}  // namespace warren
