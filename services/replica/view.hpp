// services/replica/view.hpp -- this instance's read copy of all rows, by revision: what lists, watches and
// routes are made of. Written by the replica actor alone, read from any thread. No CAF, no I/O.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <tuple>
#include <vector>

#include "actors/core/ids.hpp"
#include "actors/tunnel/routing.hpp"
#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren::replica {

namespace v1 = warren::core::v1;
namespace busv1 = warren::bus::v1;

template <class T> using row_ptr = std::shared_ptr<const T>;
using entity_key = std::pair<std::string, std::string>;  ///< project, name
using attachment_key =
    std::tuple<std::string, std::string, std::string, std::int64_t>;  ///< project, connector, tunnel uid, generation

/// How far this copy is in one partition.
struct partition_state {
  std::int64_t incarnation = 0;
  epoch_t epoch = 0;
  revision_t revision = 0;
  bool warm = false;             ///< complete at least once
  std::int64_t heard_at_ms = 0;  ///< steady clock: when the owner last said which revision it has
};

/// What follows from rows and acknowledgements (actors/tunnel/status).
struct derived_tunnel {
  tunnel::route_plan plan;
  revision_t routed_revision = 0;        ///< the revision at which `plan` (or a cluster under it) last changed
  std::vector<v1::Condition> conditions; ///< all five, in the order of tunnels.md
};

/// Where a gateway is, as its instance last reported it for one partition.
struct gateway_ack {
  busv1::GatewayAck report;
  std::int64_t received_at_ms = 0;  ///< steady clock; a report ends with its instance's lease (3 s)
  std::int64_t since_ms = 0;        ///< wall clock: when `state` last changed
};

struct tables {
  std::map<entity_key, row_ptr<v1::TunnelRow>> tunnels;
  std::map<entity_key, row_ptr<v1::ConnectorRow>> connectors;
  std::map<attachment_key, row_ptr<v1::AttachmentRow>> attachments;
  std::map<std::string, row_ptr<v1::HostnameClaimRow>> claims;
  std::map<std::string, row_ptr<v1::GatewayRow>> gateways;
  std::map<std::string, row_ptr<v1::GatewayClassRow>> gateway_classes;
  std::map<std::string, row_ptr<v1::ConnectorClassRow>> connector_classes;

  std::map<entity_key, std::set<std::string>> tunnels_by_connector;  ///< (project, connector) → tunnel names, previous rules included
  std::map<entity_key, derived_tunnel> derived;                      ///< of each tunnel
  std::map<partition_id, partition_state> partitions;
  std::map<partition_id, std::map<std::string, gateway_ack>> acks;   ///< by gateway
  bool warm = false;                                                 ///< every partition is
  bool gateways_settled = false;

  const v1::TunnelRow* tunnel(const std::string& project, const std::string& name) const;
  const v1::ConnectorRow* connector(const std::string& project, const std::string& name) const;
  const v1::AttachmentRow* attachment(const std::string& project, const std::string& connector,
                                      const std::string& tunnel_uid, std::int64_t generation) const;
  /// routing.hpp over these tables.
  tunnel::route_plan plan(const v1::TunnelRow& t) const;
};

/// What one applied message changed. `before` rows are gone from the tables; names may be deleted ones.
struct change_set {
  partition_id partition = 0;
  revision_t revision = 0;
  bool rebuilt = false;                  ///< read anew: compare everything
  std::set<entity_key> tunnels;          ///< rows that changed, appeared or went
  std::set<entity_key> connectors;
  std::set<entity_key> derived;          ///< tunnels whose conditions changed
  std::set<entity_key> routes;           ///< tunnels whose plan, host names or class may have changed
  std::set<std::string> hostnames;       ///< claims that changed
  std::set<std::string> gateways, gateway_classes, connector_classes;
  bool acks = false;                     ///< only acknowledgements moved
};

/// Thread-safe. Subscribers are called on the writer's thread, in order of revisions, without the lock
/// held; they must not block (send a message).
class view {
public:
  using subscriber = std::function<void(const change_set&)>;

  template <class F> auto read(F&& f) const {
    std::shared_lock lock{mutex_};
    return f(tables_);
  }

  /// Returns a token for unsubscribe.
  int subscribe(subscriber s);
  void unsubscribe(int token);

  /// Calls `then` once the copy has `revision` of `partition` (at once when it has), from the writer's
  /// thread or this one; with false after `timeout_ms` (checked when the writer ticks).
  void when_seen(partition_id partition, revision_t revision, std::int64_t deadline_steady_ms,
                 std::function<void(bool seen)> then);

  // ---- writing: the replica actor only (view.cpp) ----

  /// The result of applying a hint: applied, already known, or a gap that must be fetched.
  enum class applied : std::uint8_t { yes, known, gap };
  applied apply(const busv1::Revision& hint, std::int64_t steady_ms, std::int64_t wall_ms);
  /// Rows read from the store; `complete`: what is not in it does not exist.
  void apply_fetched(partition_id partition, bool complete, revision_t revision, epoch_t epoch,
                     const std::vector<v1::Row>& rows, std::int64_t steady_ms, std::int64_t wall_ms);
  void apply_ack(const busv1::GatewayAck& ack, std::int64_t steady_ms, std::int64_t wall_ms);
  /// Expires reports and waits; called about ten times a second.
  void tick(std::int64_t steady_ms, std::int64_t wall_ms);
  void set_partitions(int partitions, std::int64_t started_steady_ms);

private:
  struct waiting;
  void notify(const change_set& c);

  mutable std::shared_mutex mutex_;
  tables tables_;
  std::mutex subscribers_mutex_;
  std::map<int, subscriber> subscribers_;
  int next_token_ = 1;
  std::multimap<partition_id, std::shared_ptr<waiting>> waiting_;
  std::mutex waiting_mutex_;
};

}  // namespace warren::replica
