// test/simulation/xds_side.hpp -- an instance's side of the gateways' streams: the real catalogue and sessions, and the
// reports that services/gateway/xds makes of them, without gRPC and threads.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "services/gateway/session.hpp"
#include "services/replica/view.hpp"
#include "test/simulation/bugs.hpp"
#include "test/simulation/timeline.hpp"
#include "warren/bus/v1/bus.pb.h"

namespace warren::simulation {

namespace discovery = envoy::service::discovery::v3;

class xds_side {
public:
  struct wiring {
    replica::view& view;
    instance_id me = 0;
    std::function<std::int64_t()> now_ms;  ///< the process's steady clock
    std::function<void(std::function<void(std::optional<std::int64_t>)>)> next_stream;
    std::function<void(const busv1::GatewayAck&)> on_ack;
    std::function<void(std::uint64_t stream, const discovery::DeltaDiscoveryResponse&)> send;
    std::function<void(std::uint64_t stream)> close;  ///< the instance ends it
    const bugs* planted = nullptr;
  };
  explicit xds_side(wiring w) : to_{std::move(w)} {}

  void open(std::uint64_t stream, const std::string& gateway, const std::string& gateway_class);
  void request(std::uint64_t stream, const discovery::DeltaDiscoveryRequest& r);
  void ended(std::uint64_t stream);
  void changed(const replica::change_set& c);
  void tick();
  /// Sends everybody away.
  void stop();

  bool warm() const { return warm_; }
  const gateway::catalogue& rows() const { return rows_; }
  /// What a stream's session says, before anybody hears it: what reports are measured by.
  std::function<void(const busv1::GatewayAck&)> on_report;

private:
  struct connected {
    std::string gateway, gateway_class;
    std::int64_t number = 0;
    bool numbering = false;
    std::unique_ptr<gateway::session> talk;
    std::vector<discovery::DeltaDiscoveryRequest> held;  // until the view is warm
  };
  void admit(std::uint64_t id);
  void number(std::uint64_t id);
  void pump(std::uint64_t id, connected& c);
  void report(connected& c, partition_id p, gateway::stream_state state);
  void report_touched(connected& c);
  void end(std::uint64_t id, bool say_gone);

  bool has(bug b) const { return to_.planted != nullptr && to_.planted->count(b) > 0; }

  wiring to_;
  gateway::catalogue rows_;
  bool warm_ = false;
  std::map<std::uint64_t, connected> streams_;
  std::int64_t reported_at_ms_ = 0;
};

}  // namespace warren::simulation
