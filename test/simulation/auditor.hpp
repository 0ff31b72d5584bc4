// test/simulation/auditor.hpp -- what must hold at every step: it sees each commit, each word on the bus and each change
// of each replica, and compares them with what is stored and with what agents and gateways really hold.
#pragma once

#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "services/replica/view.hpp"
#include "test/simulation/agents.hpp"
#include "test/simulation/database.hpp"
#include "test/simulation/timeline.hpp"

namespace warren::simulation {

class auditor {
public:
  auditor(timeline& t, const database& db) : time_{t}, db_{db} {}

  /// Whether a gateway has ever refused the resource of this name; gateway empty: any.
  std::function<bool(const std::string& gateway, const std::string& resource)> has_refused;
  /// The agent of a connector; null: there is none.
  std::function<const agent_host*(const std::string& key)> find_agent;

  // ---- the database ----
  void committed(const committed_transaction& log);
  void answered(std::uint64_t ticket, const save_result& r);
  /// Before a partition changes hands: who believes to run it.
  void taken(partition_id p, const partition_row& before, instance_id by, bool owner_still_runs_it, bool owner_expired);
  /// The database went back in time: what is stored now counts, what was said before stays said.
  void failed_over();

  // ---- the bus ----
  void announced(const busv1::Revision& r);
  void overheard(const bus_message& m);

  // ---- replicas ----
  void view_changed(int host, std::uint64_t life, replica::view& v, const replica::change_set& c);
  void gateway_said(const busv1::GatewayAck& said);

  /// Whether this row has ever been stored as it is.
  bool was_stored(const v1::Row& row) const;

  std::uint64_t checks() const { return checks_; }

private:
  struct known_connector {
    std::int64_t session = 0, attachment_generation = 0;
    bool online = false;
  };
  void check_connector(const v1::ConnectorRow& c, const v1::ConnectorRow* before);
  void check_ready(const replica::tables& t, const replica::entity_key& key, int host);
  void check_reports(const replica::tables& t, partition_id p, int host);
  void check_rejected(const replica::tables& t, const replica::entity_key& key, int host);
  bool refused_of(const std::string& gateway, const v1::TunnelRow& t) const;
  void remember(const std::string& key, std::int64_t version, const std::string& bytes);
  void violate(std::string what) { time_.violate(std::move(what)); }

  timeline& time_;
  const database& db_;
  std::map<std::pair<partition_id, epoch_t>, instance_id> writers_;
  std::map<partition_id, revision_t> revisions_;
  std::unordered_map<std::string, std::unordered_set<std::uint64_t>> history_;  ///< "table/key@version" → rows as stored
  std::map<std::string, known_connector> connectors_;
  std::map<std::string, v1::TunnelRow> tunnels_;  ///< by uid: name, and every host name that it ever had
  std::map<std::string, std::pair<std::string, int>> greeting_;       ///< inbox → connector, and the agent's disk
  std::map<std::pair<std::string, std::int64_t>, int> session_disk_;  ///< connector and session → the agent's disk
  std::unordered_set<std::uint64_t> carried_out_;  ///< tickets
  std::map<std::string, int> audits_;
  std::map<std::tuple<int, std::uint64_t, partition_id>, revision_t> seen_;     ///< by host, life
  std::map<std::tuple<std::string, std::int64_t, partition_id>, std::set<revision_t>> said_;
  std::uint64_t checks_ = 0;
};

}  // namespace warren::simulation
