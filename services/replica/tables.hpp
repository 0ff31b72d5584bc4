// services/replica/tables.hpp -- all rows as this instance knows them, and what follows from them. Data and look-ups;
// who changes them is rows and derivation. No CAF, no I/O.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "actors/core/ids.hpp"
#include "actors/partition/acks.hpp"
#include "actors/tunnel/routing.hpp"
#include "actors/tunnel/status.hpp"
#include "services/replica/packed.hpp"
#include "warren/bus/v1/bus.pb.h"
#include "warren/core/v1/rows.pb.h"

namespace warren::replica {

namespace busv1 = warren::bus::v1;

using entity_key = std::pair<std::string, std::string>;  ///< project, name
using attachment_key =
    std::tuple<std::string, std::string, std::string, std::int64_t>;  ///< project, connector, tunnel uid, generation

struct entity_hash {
  std::size_t operator()(const entity_key& k) const {
    return std::hash<std::string>{}(k.first) * 31 + std::hash<std::string>{}(k.second);
  }
};

/// Attachments by their connector first: they are asked for one connector's at a time, by keys that differ late.
class attachment_table {
public:
  struct before {
    using is_transparent = void;
    template <class A, class B> bool operator()(const A& a, const B& b) const {
      return std::tie(a.second, a.first) < std::tie(b.second, b.first);
    }
  };
  using of_connector = std::map<std::pair<std::string, std::int64_t>, packed_attachment, before>;  ///< tunnel uid, generation

  /// nullptr: there is none.
  const packed_attachment* find(const entity_key& connector, std::string_view tunnel_uid, std::int64_t generation) const;
  const packed_attachment* find(const attachment_key& key) const;
  packed_attachment& operator[](const attachment_key& key);
  void erase(const attachment_key& key);
  const std::map<entity_key, of_connector>& by_connector() const { return all_; }
  const of_connector& of(const entity_key& connector) const;
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

private:
  std::map<entity_key, of_connector> all_;
  std::size_t size_ = 0;
};

/// How far this copy is in one partition.
struct partition_state {
  std::int64_t incarnation = 0;
  epoch_t epoch = 0;
  revision_t revision = 0;
  bool warm = false;             ///< complete at least once
  std::int64_t heard_at_ms = 0;  ///< steady clock: when the owner last said which revision it has
};

/// Conditions that many readers share without copying; reads as a const vector.
class condition_list {
public:
  condition_list() : all_(std::make_shared<const std::vector<v1::Condition>>()) {}
  condition_list(std::vector<v1::Condition> all)  // NOLINT: implicit, it is one
      : all_(std::make_shared<const std::vector<v1::Condition>>(std::move(all))) {}
  operator const std::vector<v1::Condition>&() const { return *all_; }  // NOLINT: implicit, it is one
  const std::vector<v1::Condition>& operator*() const { return *all_; }
  auto begin() const { return all_->begin(); }
  auto end() const { return all_->end(); }
  std::size_t size() const { return all_->size(); }
  bool empty() const { return all_->empty(); }
  const v1::Condition& operator[](std::size_t i) const { return (*all_)[i]; }
  const v1::Condition& at(std::size_t i) const { return all_->at(i); }
  /// The condition of that type; nullptr: there is none.
  const v1::Condition* of_type(std::string_view type) const { return tunnel::condition_of(*all_, type); }

private:
  std::shared_ptr<const std::vector<v1::Condition>> all_;
};

/// What follows from rows and acknowledgements (actors/tunnel/status).
struct derived_tunnel {
  revision_t routed_revision = 0;        ///< the revision at which its plan (or a cluster under it) last changed
  packed_status status;                  ///< all five conditions, in the order of tunnels.md, and what its gateways are known to run
  revision_t changed_revision = 0;       ///< the partition's revision when a condition last changed
  std::int64_t changed_wall_ms = 0;      ///< and the time
  std::uint64_t route_print = 0, cluster_print = 0;  ///< of what gateways route; change with it

  condition_list conditions() const { return status.unpack().conditions; }
  tunnel::gateway_knowledge gateways() const { return status.unpack().gateways; }
};

using gateway_ack = gateway_report;  ///< actors/partition/acks.hpp

/// Tunnels, connectors and gateways that are gone, for watches that resume; for an hour, and bounded.
struct deletions {
  struct deleted {
    revision_t revision = 0;
    std::int64_t wall_ms = 0;
    packed_row<v1::TunnelRow> tunnel;     ///< one of them: its key and uid, nothing else
    packed_row<v1::ConnectorRow> connector;
    packed_row<v1::GatewayRow> gateway;
  };
  revision_t complete_after = 0;  ///< every deletion after this revision is in `all`
  std::deque<deleted> all;        ///< in order of revisions
};

struct tables {
  std::map<entity_key, packed_row<v1::TunnelRow>> tunnels;
  std::map<entity_key, row_ptr<v1::ConnectorRow>> connectors;
  attachment_table attachments;
  std::unordered_map<std::string, packed_claim> claims;
  std::map<std::string, row_ptr<v1::GatewayRow>> gateways;
  std::map<std::string, row_ptr<v1::GatewayClassRow>> gateway_classes;
  std::map<std::string, row_ptr<v1::ConnectorClassRow>> connector_classes;

  std::map<entity_key, std::set<std::string>> tunnels_by_connector;  ///< (project, connector) → tunnel names, previous rules included
  std::unordered_map<entity_key, derived_tunnel, entity_hash> derived;  ///< of each tunnel
  std::map<partition_id, partition_state> partitions;
  std::map<partition_id, std::map<std::string, gateway_ack>> acks;   ///< by gateway
  bool warm = false;                                                 ///< every partition is
  bool gateways_settled = false;
  std::map<partition_id, deletions> deleted;
  std::map<partition_id, std::set<std::string>> projects;            ///< with rows in this partition
  std::map<std::pair<partition_id, std::string>, std::size_t> carried;  ///< how many tunnels of a partition a gateway class carries
  std::uint64_t serial = 0;  ///< of the last change_set

  row_ptr<v1::TunnelRow> tunnel(const std::string& project, const std::string& name) const;
  const v1::ConnectorRow* connector(const std::string& project, const std::string& name) const;
  row_ptr<v1::AttachmentRow> attachment(const std::string& project, const std::string& connector,
                                        const std::string& tunnel_uid, std::int64_t generation) const;
  /// Whether gateways of this class dial agents at their addresses.
  bool dials_agents(const std::string& gateway_class) const;
  /// Whether it is certain that there is no such gateway class.
  bool lacks_gateway_class(const std::string& name) const;
  /// Where everything is that belongs to no project: the last one.
  partition_id registry() const { return partitions.empty() ? 0 : partitions.rbegin()->first; }
  /// The gateways of a class as they were last heard of for one partition.
  std::vector<v1::GatewayState> gateways_of(partition_id partition, const std::string& gateway_class) const;
  /// routing.hpp over these tables.
  tunnel::route_plan plan(const v1::TunnelRow& t) const;
  /// The links between a visitor and the tunnel's targets (actors/tunnel/status). Empty: no such tunnel.
  std::vector<tunnel::chain_link> explain(const std::string& project, const std::string& name,
                                          std::int64_t wall_ms) const;
  /// Milliseconds since the owner, or the store, last said which revision `partition` has; -1: never yet.
  std::int64_t age_ms(partition_id partition, std::int64_t steady_ms) const;
  /// Of the partition that is behind most; -1: one has never been heard of.
  std::int64_t age_ms(std::int64_t steady_ms) const;
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
  bool owner = false;                    ///< the partition has another owner; all else is as it was
  std::uint64_t serial = 0;              ///< counts change_sets
  /// What `tunnels` and `connectors` were; nullptr: they did not exist.
  std::map<entity_key, packed_row<v1::TunnelRow>> tunnels_before;
  std::map<entity_key, row_ptr<v1::ConnectorRow>> connectors_before;
};

constexpr revision_t lineage(revision_t r) { return r >> 32; }

/// routing.hpp's questions about one tunnel, asked of `t`, which does not change meanwhile. What was asked before is
/// remembered, and answers live as long as this. One thread.
class questions {
public:
  /// Both outlive it.
  questions(const tables& t, const std::string& project);
  questions(const questions&) = delete;
  questions& operator=(const questions&) = delete;

  const tunnel::find_connector connector;
  const tunnel::find_attachment attachment;

  /// routing.hpp's answer for a tunnel of the project.
  tunnel::route_plan plan(const v1::TunnelRow& t) const { return tunnel::plan_routes(t, connector, attachment); }

private:
  const v1::ConnectorRow* ask(const std::string& name);
  const v1::AttachmentRow* ask(const std::string& connector, const std::string& tunnel_uid, std::int64_t generation);

  struct asked {
    std::string connector, tunnel_uid;
    std::int64_t generation = 0;
    row_ptr<v1::AttachmentRow> row;
  };
  const tables& tables_;
  const std::string& project_;
  std::vector<std::pair<std::string, const v1::ConnectorRow*>> connectors_;
  std::vector<asked> attachments_;
};

}  // namespace warren::replica
