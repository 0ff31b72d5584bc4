// services/hook/retranslate.hpp -- decides when Envoy Gateway has to be asked to translate again: what it was last
// answered is not true any more, or a call failed, and it would not come by itself. Pure: no I/O, no clock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/core/time.hpp"
#include "services/hook/transform.hpp"
#include "warren/bus/v1/hook.pb.h"

namespace warren::hook {

namespace busv1 = warren::bus::v1;
using tunnel_key = std::pair<std::string, std::string>;  ///< namespace, name

/// Why nobody is there makes no difference to a visitor.
bool same_to_visitors(const truth_ptr& a, const truth_ptr& b);

/// One instance's view of it. Several instances may be called by one Envoy Gateway after the other: who has been called
/// knows what was answered and speaks; the others listen for as long as they hear one that has.
class retranslation {
public:
  explicit retranslation(std::string instance) : instance_(std::move(instance)) {}

  // -- in; times are of a steady clock --

  /// Everything has been read: this is what is true. Whoever was answered before our time may run something else.
  void started(answers all, std::int64_t now_ms);
  /// A tunnel may have changed; `truth` null: there is none.
  void noted(const tunnel_key& key, const truth_ptr& truth, std::int64_t now_ms);
  /// A fleet was answered this. Whoever calls notes each of these tunnels again: it may have changed meanwhile.
  void answered(const std::string& fleet, answers what, std::int64_t now_ms);
  void failed(std::int64_t now_ms);
  /// Of another instance.
  void heard(const busv1::Retranslate& signal);
  void heard(const busv1::RetranslatePulse& pulse, std::int64_t now_ms);

  // -- out --

  /// A signal that is due; each change is told once.
  std::optional<busv1::Retranslate> take(std::int64_t now_ms);
  /// When to ask again at the latest; nothing: not before something comes in.
  std::optional<std::int64_t> wake_at_ms() const;
  /// It has been called, so the others may rely on it.
  bool has_answered() const { return !fleets_.empty(); }

private:
  struct fleet {
    answers what;
    std::int64_t at_ms = 0;
  };
  bool differs(const tunnel_key& key, const truth_ptr& truth) const;
  std::int64_t due_at_ms() const;

  const std::string instance_;
  answers baseline_;                       // until the first call: what was true at the start
  std::map<std::string, fleet> fleets_;
  std::map<tunnel_key, truth_ptr> pending_;
  std::map<tunnel_key, truth_ptr> told_;   // since they were last answered
  bool start_pending_ = false, failure_pending_ = false;
  int failures_ = 0;                       // in a row
  std::int64_t first_ms_ = 0, last_ms_ = 0;  // of the burst
  std::int64_t silent_until_ms_ = 0;       // somebody else speaks
  std::int64_t sequence_ = 0;
};

}  // namespace warren::hook
