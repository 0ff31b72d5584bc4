// services/replica/rows.hpp -- brings rows into the tables and takes them out, keeps what finds them, and says which
// tunnels that touches. Derives nothing. No CAF, no I/O.
#pragma once

#include <set>
#include <string>

#include "services/replica/tables.hpp"

namespace warren::replica {

/// One message, while it is applied.
struct application {
  partition_id partition = 0;
  revision_t revision = 0;
  std::int64_t steady_ms = 0, wall_ms = 0;
  change_set change;
  std::set<entity_key> affected;  ///< tunnels to derive anew
};

/// Of two rows of one key the higher version is the newer; a whole snapshot is taken as it is.
class row_keeper {
public:
  /// `t` outlives it.
  explicit row_keeper(tables& t) : tables_{t} {}

  /// All rows of one message. `complete`: what is not among them does not exist in its partition.
  template <class Rows> void apply(application& a, const Rows& rows, bool complete) {
    for (const auto& row : rows)
      if (row.has_tombstone()) forget(a, row.tombstone());
    if (!complete) {
      for (const auto& row : rows) take(a, row, nullptr);
      return;
    }
    census seen;
    for (const auto& row : rows) take(a, row, &seen);
    forget_unseen(a, seen);
  }

private:
  /// What a complete load has shown to exist.
  struct census {
    std::set<entity_key> tunnels, connectors;
    std::set<attachment_key> attachments;
    std::set<std::string> claims, gateways, gateway_classes, connector_classes;
  };

  void take(application& a, const v1::Row& row, census* seen);
  void take_claim(application& a, const v1::HostnameClaimRow& row, census* seen);
  void forget(application& a, const v1::TombstoneRow& gone);
  void forget_unseen(application& a, const census& seen);

  void put(application& a, const v1::TunnelRow& row);
  void put(application& a, const v1::ConnectorRow& row);
  void put(application& a, const v1::AttachmentRow& row);
  void put(application& a, const v1::HostnameClaimRow& row);
  void erase_tunnel(application& a, const entity_key& key);
  void erase_connector(application& a, const entity_key& key);
  void erase_attachment(application& a, const attachment_key& key);
  void erase_claim(application& a, const std::string& hostname);
  void erase_gateway(application& a, const std::string& name);

  /// What finds a tunnel by what its row says.
  void index(const v1::TunnelRow& row);
  void unindex(const v1::TunnelRow& row);
  void touch_tunnels_of(application& a, const entity_key& connector);

  tables& tables_;
};

}  // namespace warren::replica
