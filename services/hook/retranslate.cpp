// services/hook/retranslate.cpp -- decides when Envoy Gateway has to be asked to translate again. Pure.
#include "services/hook/retranslate.hpp"

#include <algorithm>
#include <utility>

namespace warren::hook {

namespace {

constexpr std::int64_t quiet_ms = 150;          // a burst is over when nothing has come for so long,
constexpr std::int64_t burst_ms_max = 1'000;    // or has gone on for so long
constexpr std::int64_t failure_ms_max = 60'000; // a call that fails each time must not be asked for in a loop
constexpr std::int64_t pulse_ms_max = 3'500;    // three pulses missed: nobody speaks
constexpr std::size_t fleets_max = 256;         // beyond: the one that has not called for longest is forgotten
constexpr int tunnels_listed_max = 100;         // automation acts on fleets; people read a few names

std::string state_of(const truth_ptr& truth) {
  if (!truth) return "gone";
  const auto online = std::count_if(truth->rules.begin(), truth->rules.end(), [](const auto& r) { return r.online(); });
  return online == 0 ? "offline" : online == static_cast<std::ptrdiff_t>(truth->rules.size()) ? "online" : "partly";
}

}  // namespace

bool same_to_visitors(const truth_ptr& a, const truth_ptr& b) {
  if (a == b) return true;
  return a && b && std::equal(a->rules.begin(), a->rules.end(), b->rules.begin(), b->rules.end(), [](const auto& x, const auto& y) {
           return x.index == y.index && x.online() == y.online() && x.address == y.address && x.endpoint_id == y.endpoint_id;
         });
}

void retranslation::started(answers all, std::int64_t now_ms) {
  baseline_ = std::move(all);
  start_pending_ = true;
  first_ms_ = last_ms_ = now_ms;
}

bool retranslation::differs(const tunnel_key& key, const truth_ptr& truth) const {
  if (fleets_.empty()) {
    const auto it = baseline_.find(key);
    return !same_to_visitors(it == baseline_.end() ? nullptr : it->second, truth);
  }
  // A fleet that has never named it does not route it.
  return std::any_of(fleets_.begin(), fleets_.end(), [&](const auto& f) {
    const auto it = f.second.what.find(key);
    return it != f.second.what.end() && !same_to_visitors(it->second, truth);
  });
}

void retranslation::noted(const tunnel_key& key, const truth_ptr& truth, std::int64_t now_ms) {
  if (!differs(key, truth)) {
    // Back to what was answered. Had it been told otherwise, it is told again.
    const auto told = told_.find(key);
    if (told == told_.end()) {
      pending_.erase(key);
      return;
    }
  }
  if (const auto told = told_.find(key); told != told_.end() && same_to_visitors(told->second, truth)) {
    pending_.erase(key);
    return;
  }
  const bool began = pending_.empty() && !start_pending_ && !failure_pending_;
  const auto [at, fresh] = pending_.try_emplace(key, truth);
  if (!fresh && same_to_visitors(at->second, truth)) return;
  at->second = truth;
  if (began) first_ms_ = now_ms;
  last_ms_ = now_ms;
}

void retranslation::answered(const std::string& name, answers what, std::int64_t now_ms) {
  for (const auto& [key, truth] : what) {
    told_.erase(key);
    pending_.erase(key);
  }
  if (fleets_.empty()) {
    // What it was called about is known from here on; the rest is nobody's.
    pending_.clear();
    told_.clear();
    baseline_.clear();
  }
  start_pending_ = failure_pending_ = false;
  failures_ = 0;
  fleets_[name] = {std::move(what), now_ms};
  if (fleets_.size() > fleets_max)
    fleets_.erase(std::min_element(fleets_.begin(), fleets_.end(),
                                   [](const auto& a, const auto& b) { return a.second.at_ms < b.second.at_ms; }));
}

void retranslation::failed(std::int64_t now_ms) {
  if (pending_.empty() && !start_pending_ && !failure_pending_) first_ms_ = now_ms;
  failure_pending_ = true;
  failures_ = std::min(failures_ + 1, 20);
  last_ms_ = now_ms;
}

void retranslation::heard(const busv1::Retranslate& signal) {
  if (signal.instance() == instance_) return;
  for (const auto& t : signal.tunnels()) {
    const auto it = pending_.find({t.namespace_(), t.name()});
    if (it == pending_.end() || state_of(it->second) != t.state()) continue;
    told_[it->first] = it->second;
    pending_.erase(it);
  }
  if (signal.reason() == "started") start_pending_ = false;
}

void retranslation::heard(const busv1::RetranslatePulse& pulse, std::int64_t now_ms) {
  if (pulse.instance() != instance_) silent_until_ms_ = now_ms + pulse_ms_max;
}

std::int64_t retranslation::due_at_ms() const {
  auto at = std::min(last_ms_ + quiet_ms, first_ms_ + burst_ms_max);
  if (failure_pending_ && pending_.empty() && !start_pending_)
    at = last_ms_ + std::min(quiet_ms << (failures_ - 1), failure_ms_max);
  return has_answered() || failure_pending_ ? at : std::max(at, silent_until_ms_);
}

std::optional<std::int64_t> retranslation::wake_at_ms() const {
  if (pending_.empty() && !start_pending_ && !failure_pending_) return std::nullopt;
  return due_at_ms();
}

std::optional<busv1::Retranslate> retranslation::take(std::int64_t now_ms) {
  const auto at = wake_at_ms();
  if (!at || now_ms < *at) return std::nullopt;
  busv1::Retranslate out;
  out.set_version(1);
  out.set_instance(instance_);
  out.set_sequence(++sequence_);
  out.set_reason(!pending_.empty() ? "changed" : failure_pending_ ? "call-failed" : "started");
  for (const auto& [key, truth] : pending_) {
    told_[key] = truth;
    if (out.tunnels_size() >= tunnels_listed_max) {
      out.set_more(out.more() + 1);
      continue;
    }
    auto* t = out.add_tunnels();
    t->set_namespace_(key.first);
    t->set_name(key.second);
    t->set_state(state_of(truth));
  }
  pending_.clear();
  start_pending_ = failure_pending_ = false;
  return out;
}

}  // namespace warren::hook
