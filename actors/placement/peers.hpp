// actors/placement/peers.hpp -- whom to ask the database about, and whom to believe dead: what an instance knows
// of the others between two looks at the table. Pure: no CAF, no I/O, no clock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "actors/core/ids.hpp"
#include "actors/core/time.hpp"
#include "actors/placement/plan.hpp"

namespace warren::placement {

/// How often an instance says that it lives: limits::instance_pulse, or a thirtieth of a lease above 3 s, which asks
/// for less haste.
millis pulse_of(millis lease);

/// Times are milliseconds of our steady clock.
class peers {
public:
  peers() = default;
  peers(instance_id me, millis lease) : me_{me}, lease_{lease} {}

  /// The table's members, ourselves included.
  void seen(const std::vector<member>& members, std::int64_t now_ms);
  /// A peer said something on the bus. False: the table had none of this id when we last saw it.
  bool heard(instance_id peer, std::int64_t now_ms);
  /// A peer's connection to the bus has ended.
  void disconnected(instance_id peer, std::int64_t now_ms);
  /// Our own connection to the bus. Silence means nothing while it is down.
  void bus(bool connected, std::int64_t now_ms);
  /// The database was away, for us at least: others need as long as a lease to find it again.
  void database_was_away(std::int64_t now_ms);

  /// Who is to be judged by the database now. Asked again after 20 to 200 ms, as long as they are suspected:
  /// a dead one's lock is freed within milliseconds, and a vanished one's lease ends.
  std::vector<instance_id> due(std::int64_t now_ms);
  /// When the next of them is due; nullopt: nobody is suspected.
  std::optional<std::int64_t> next_due_ms() const;

  /// The members as the plan shall see them: one whose lease has ended while the database was away for us as
  /// well is taken for somebody alive who drains, until it has had the time to renew it.
  std::vector<member> believed(std::vector<member> members, std::int64_t now_ms) const;
  /// Whether somebody alive does not hear the bus: what it gives away only the table says.
  bool somebody_is_deaf() const;
  /// Whether we, who do not hear the bus, give partitions to those who say that they do: only after both has
  /// lasted long enough for everybody to say so, as a bus that goes or returns does so for one after the other.
  bool gives_as_deaf(std::int64_t now_ms) const;
  /// Whether gateways are better off at others: we give as deaf, and the table has said of late that others hear.
  bool sends_gateways_away(std::int64_t now_ms) const;

private:
  struct known {
    bool alive = true, bus_ok = true;
    std::int64_t heard_ms = 0;
    std::int64_t suspicious_until_ms = 0;  // a message may still be on its way when its connection has ended
    std::int64_t judge_at_ms = 0;
    int tries = 0;
  };
  bool suspected(const known& p, std::int64_t now_ms) const;
  std::int64_t silent_after_ms() const;

  instance_id me_ = 0;
  millis lease_{0};
  std::map<instance_id, known> peers_;
  bool connected_ = true;
  std::int64_t connected_since_ms_ = 0;
  std::int64_t doubt_until_ms_ = 0;
  std::optional<std::int64_t> only_others_hear_since_ms_;
  bool others_hear_ = false;
  std::int64_t seen_ms_ = 0;  ///< the table, last
};

}  // namespace warren::placement
