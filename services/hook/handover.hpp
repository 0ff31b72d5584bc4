// services/hook/handover.hpp -- how far a fleet behind the extension hook is, as a gateway: it runs what it was last
// answered. Pure: no I/O, no clock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "actors/core/ids.hpp"
#include "services/hook/retranslate.hpp"
#include "services/hook/transform.hpp"
#include "warren/core/v1/events.pb.h"

namespace warren::hook {

namespace corev1 = warren::core::v1;

/// The gateway that a fleet is registered as: "eg-system/edge" is `eg-system-edge`. Empty: no gateway can have that name.
std::string gateway_of(const std::string& fleet);

/// A tunnel of the class that the fleet carries, as it is.
struct carried_tunnel {
  std::string uid;
  partition_id partition = 0;
  revision_t route_version = 0;
  truth_ptr truth;  ///< never null
};

/// One fleet. What it was answered is true of it until it is answered anew. A tunnel that it was not asked about has no
/// HTTPRoute there: it is not acknowledged, and holds nobody back.
class handover {
public:
  // -- in; times are of a steady clock --

  /// It was answered `what`, which was true at these revisions or later.
  void answered(answers what, const std::map<partition_id, revision_t>& at, std::int64_t now_ms);
  /// A tunnel may have changed; nothing: the class has none of this name (any more).
  void noted(const tunnel_key& key, std::optional<carried_tunnel> tunnel, std::int64_t now_ms);
  /// Everything up to this revision has been noted.
  void seen(partition_id partition, revision_t revision);

  // -- out --

  /// Route revisions up to this one are what it was answered, `pending` excepted.
  revision_t acknowledged(partition_id partition) const;
  /// Tunnels of the partition that it was not asked about.
  std::vector<corev1::Refusal> pending(partition_id partition) const;
  /// Something that it was answered has not been true for longer than a gateway may take.
  bool stalled(std::int64_t now_ms) const;
  /// Partitions for which anything above may have changed since the last call.
  std::set<partition_id> take_touched() { return std::exchange(touched_, {}); }
  /// Those that were noted.
  std::vector<tunnel_key> tunnels() const;

private:
  struct outdated {
    partition_id partition = 0;
    std::int64_t since_ms = 0;
  };
  void weigh(const tunnel_key& key, const carried_tunnel& tunnel, std::int64_t now_ms);
  void forget(const tunnel_key& key);

  answers answered_;
  std::map<tunnel_key, carried_tunnel> tunnels_;
  std::map<tunnel_key, outdated> outdated_;              // answered, and not true any more
  std::map<partition_id, int> outdated_in_;
  std::map<partition_id, std::map<tunnel_key, corev1::Refusal>> unasked_;
  std::map<partition_id, revision_t> answered_at_, seen_, frozen_;  // frozen: before the first that is outdated
  std::set<partition_id> touched_;
};

}  // namespace warren::hook
