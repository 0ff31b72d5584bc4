// actors/partition/acks.cpp -- which gateways count, and what they run. No CAF, no I/O, no clock.
#include "actors/partition/acks.hpp"

#include <algorithm>

#include "actors/core/limits.hpp"

namespace warren {

namespace {

constexpr std::int64_t lease_ms = limits::instance_lease / 1ms;
constexpr std::int64_t forgotten_after_ms = limits::tombstone_kept / 1ms;
// Every instance repeats its reports each second: after this long all that live have spoken.
constexpr std::int64_t report_round_ms = 1100;

bool known_state(std::string_view state) {
  return state == "connecting" || state == "caught_up" || state == "stalled" || state == "gone";
}
bool counts(const busv1::GatewayAck& r) { return r.state() == "caught_up"; }

bool same_refusals(const busv1::GatewayAck& a, const busv1::GatewayAck& b) {
  return std::equal(a.refused().begin(), a.refused().end(), b.refused().begin(), b.refused().end(),
                    [](const v1::Refusal& x, const v1::Refusal& y) {
                      return x.tunnel_uid() == y.tunnel_uid() && x.connector() == y.connector() &&
                             x.revision() == y.revision() && x.message() == y.message() && x.pending() == y.pending() && x.every() == y.every();
                    });
}

}  // namespace

ack_effect apply_ack(gateway_reports& all, const busv1::GatewayAck& ack, std::int64_t steady_ms,
                     std::int64_t wall_ms) {
  if (ack.gateway().empty() || ack.gateway().size() > limits::label_chars_max ||
      ack.class_().size() > limits::label_chars_max || !known_state(ack.state()))
    return ack_effect::ignored;
  auto found = all.find(ack.gateway());
  if (found == all.end()) {
    gateway_report fresh{.report = ack, .received_at_ms = steady_ms, .since_ms = wall_ms};
    if (counts(ack)) fresh.first_heard_at_ms = steady_ms;
    all.emplace(ack.gateway(), std::move(fresh));
    return ack_effect::changed;
  }
  auto& have = found->second;
  const auto& old = have.report;
  if (ack.incarnation() < old.incarnation()) return ack_effect::ignored;
  if (ack.incarnation() == old.incarnation() && ack.stream() < old.stream()) return ack_effect::ignored;
  auto effect = ack_effect::refreshed;
  if (ack.acknowledged() != old.acknowledged()) effect = ack_effect::moved;
  if (ack.state() != old.state() || ack.class_() != old.class_() ||
      ack.stream() != old.stream() || ack.incarnation() != old.incarnation() ||
      ack.acknowledged() < old.acknowledged() || !same_refusals(ack, old))
    effect = ack_effect::changed;
  if (ack.state() != old.state()) have.since_ms = wall_ms;
  have.received_at_ms = steady_ms;
  if (counts(ack) && have.first_heard_at_ms == 0) have.first_heard_at_ms = steady_ms;
  if (effect != ack_effect::refreshed || ack.instance() != old.instance()) have.report = ack;
  return effect;
}

std::set<std::string> expire_acks(gateway_reports& all, std::int64_t steady_ms, std::int64_t wall_ms) {
  std::set<std::string> classes;
  for (auto it = all.begin(); it != all.end();) {
    auto& r = it->second;
    if (r.report.state() == "gone") {
      if (steady_ms >= r.received_at_ms + forgotten_after_ms) {
        it = all.erase(it);
        continue;
      }
    } else if (steady_ms >= r.received_at_ms + lease_ms) {
      classes.insert(r.report.class_());
      r.report.set_state("gone");
      r.since_ms = wall_ms;
    }
    ++it;
  }
  return classes;
}

std::int64_t next_expiry_ms(const gateway_reports& all) {
  std::int64_t next = 0;
  for (const auto& [name, r] : all) {
    const auto at = r.received_at_ms + (r.report.state() == "gone" ? forgotten_after_ms : lease_ms);
    if (next == 0 || at < next) next = at;
  }
  return next;
}

std::vector<v1::GatewayState> gateways_of(const gateway_reports& all, std::string_view gateway_class) {
  std::vector<v1::GatewayState> out;
  for (const auto& [name, r] : all) {
    if (r.report.class_() != gateway_class) continue;
    auto& state = out.emplace_back();
    state.set_gateway(name);
    state.set_class_(r.report.class_());
    state.set_counts(counts(r.report));
    state.set_stalled(r.report.state() == "stalled");
    state.set_connected(r.report.state() != "gone");
    state.set_acknowledged(r.report.acknowledged());
    *state.mutable_refused() = r.report.refused();
    state.set_handed_over(r.report.handed_over());
  }
  return out;
}

bool gateways_settled(const gateway_reports& all, std::string_view gateway_class,
                      const std::set<std::string>* registered, std::int64_t started_steady_ms,
                      std::int64_t steady_ms) {
  if (steady_ms >= started_steady_ms + limits::gateway_settle / 1ms) return true;
  std::int64_t first = 0;
  std::size_t heard = 0;
  for (const auto& [name, r] : all) {
    if (r.report.class_() != gateway_class || r.first_heard_at_ms == 0) continue;
    if (first == 0 || r.first_heard_at_ms < first) first = r.first_heard_at_ms;
    if (registered == nullptr || registered->count(name) > 0) ++heard;
  }
  if (registered != nullptr && heard >= registered->size()) return true;
  return first != 0 && steady_ms >= first + report_round_ms;
}

v1::Gateways gateway_acks::of_class(const std::string& gateway_class, std::int64_t steady_ms,
                                    const std::set<std::string>* registered) {
  v1::Gateways out;
  for (auto& g : gateways_of(all_, gateway_class)) *out.add_gateways() = std::move(g);
  if (settled_.count(gateway_class) == 0 &&
      gateways_settled(all_, gateway_class, registered, started_ms_, steady_ms))
    settled_.insert(gateway_class);
  out.set_settled(settled_.count(gateway_class) > 0);
  return out;
}

std::int64_t gateway_acks::next_deadline_ms(std::int64_t steady_ms) const {
  auto next = next_expiry_ms(all_);
  const auto consider = [&](std::int64_t at) {
    if (at > steady_ms && (next == 0 || at < next)) next = at;
  };
  consider(started_ms_ + limits::gateway_settle / 1ms);
  for (const auto& [name, r] : all_)
    if (r.first_heard_at_ms != 0) consider(r.first_heard_at_ms + report_round_ms);
  return next;
}

}  // namespace warren
