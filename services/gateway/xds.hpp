// services/gateway/xds.hpp -- the delta ADS server: gateways' streams on one side, the replica's view on the other.
// All decisions are made in session and catalogue, on one thread of its own; gRPC's threads and the view's
// writer only put events into its queue.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/ids.hpp"
#include "actors/core/time.hpp"
#include "services/gateway/session.hpp"
#include "services/replica/view.hpp"
#include "warren/bus/v1/bus.pb.h"

namespace warren::gateway {

namespace busv1 = warren::bus::v1;

struct xds_config {
  instance_id instance = 0;
  /// The next stream number, from the database; called on a thread that may block, again after an exception.
  /// The gateway is served meanwhile; what it acknowledged is reported once its stream has a number.
  std::function<std::int64_t()> next_stream;
  /// Called on the server's thread: on change, and for every partition once a second.
  std::function<void(const busv1::GatewayAck&)> on_ack;
  millis report_every{1000};
  std::size_t streams_max = 1000;            ///< beyond: RESOURCE_EXHAUSTED
  int request_bytes_max = 64 * 1024 * 1024;  ///< a reconnecting gateway lists all that it has
};

/// A connected gateway, for `warrenctl gateway list`.
struct gateway_status {
  std::string gateway, gateway_class, peer;
  std::string node_id, node_cluster, node_locality;
  std::int64_t stream = 0;                    ///< 0: no number yet
  stream_state state = stream_state::connecting;
  std::int64_t since_ms = 0;                  ///< wall clock: when `state` last changed
  std::size_t pending = 0;                    ///< names that wait for an acknowledgement
  std::map<partition_id, revision_t> acknowledged;
  revision_t lag = 0;                         ///< the largest distance to what this instance knows
  std::optional<refusal> last_refusal;        ///< its at_ms is wall clock
  std::size_t bytes_sent = 0;
  std::array<std::size_t, kinds> responses{};
  std::size_t nacks = 0;
};

/// A page of what one gateway shall run beside what it has acknowledged.
struct programmed_page {
  bool connected = false;  ///< to this instance; false: nothing else is known
  stream_state state = stream_state::connecting;
  std::vector<programmed_name> names;
};

/// Serves registered gateways from start() to stop(). Thread-safe.
class gateway_server {
public:
  /// `v` and `count` outlive the server.
  gateway_server(replica::view& v, xds_config config, counters& count);
  ~gateway_server();
  gateway_server(const gateway_server&) = delete;
  gateway_server& operator=(const gateway_server&) = delete;

  /// Listens on "ip:port" (port 0: any free one). Returns the port, or 0 when the address cannot be had.
  int start(const std::string& address);
  /// Sends the gateways away, one by one over `over`, so that they do not all arrive elsewhere at once.
  void stop(millis over = millis{0});
  /// While `on`, nobody is served: those who are here leave, one by one over `over`, and whoever comes is refused, and
  /// its connection ended soon, so that it tries another address.
  void turn_away(bool on, millis over = millis{0});

  std::vector<gateway_status> status() const;
  /// Names of a type that follow `after`, in order, at most `max`. Nothing: the server did not answer within a second.
  std::optional<programmed_page> programmed(const std::string& gateway, kind k, const std::string& after, std::size_t max) const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::gateway
