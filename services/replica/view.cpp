// services/replica/view.cpp -- the order in which messages are applied to the read copy: hints, loads, reports of
// gateways, time. What they do to it is rows and derivation. No CAF, no I/O.
#include "services/replica/view.hpp"

#include <algorithm>

#include "actors/core/limits.hpp"
#include "actors/core/time.hpp"

namespace warren::replica {

namespace {

constexpr std::size_t deletions_max = 100'000;  // per partition; older ones end a watch's chance to resume
constexpr std::int64_t prune_every_ms = 10'000;

}  // namespace

void view::set_partitions(int partitions, std::int64_t started_steady_ms) {
  std::unique_lock lock{mutex_};
  derivation_.begin(started_steady_ms);
  for (partition_id p = 0; p <= partitions; ++p) tables_.partitions.try_emplace(p);
}

revision_t view::revision(partition_id partition) const {
  std::shared_lock lock{mutex_};
  auto p = tables_.partitions.find(partition);
  return p == tables_.partitions.end() || !p->second.warm ? -1 : p->second.revision;
}

revision_t view::fetch_after(partition_id partition) const {
  std::shared_lock lock{mutex_};
  auto p = tables_.partitions.find(partition);
  if (p == tables_.partitions.end() || !p->second.warm) return 0;
  auto newer = lineage_seen_.find(partition);
  if (newer != lineage_seen_.end() && newer->second > lineage(p->second.revision)) return 0;
  return p->second.revision;
}

void view::when_seen(partition_id partition, revision_t revision, std::int64_t deadline_steady_ms,
                     std::function<void(bool)> then) {
  waits_.add(partition, revision, deadline_steady_ms, std::move(then), [&] {
    return read([&](const tables& t) {
      auto p = t.partitions.find(partition);
      return p != t.partitions.end() && p->second.warm && p->second.revision >= revision;
    });
  });
}

// ---- hints ----

view::opened view::open_hint(const busv1::Revision& hint, std::int64_t steady_ms) {
  auto found = tables_.partitions.find(hint.partition());
  if (found == tables_.partitions.end()) return {applied::known};  // nobody's: not ours to keep
  auto& p = found->second;
  if (!p.warm) return {applied::gap};
  if (hint.incarnation() < p.incarnation || lineage(hint.revision()) < lineage(p.revision)) return {applied::known};
  if (lineage(hint.revision()) > lineage(p.revision)) {
    lineage_seen_[hint.partition()] = lineage(hint.revision());
    return {applied::gap};
  }
  p.incarnation = hint.incarnation();
  if (hint.revision() <= p.revision) {
    if (hint.revision() == p.revision) p.heard_at_ms = steady_ms;
    if (hint.epoch() <= p.epoch) return {applied::known};
    p.epoch = hint.epoch();
    return {applied::known, false, true};
  }
  if (hint.revision() != p.revision + 1 || hint.truncated() || hint.rows_size() == 0) return {applied::gap};
  p.revision = hint.revision();
  p.epoch = std::max(p.epoch, hint.epoch());
  p.heard_at_ms = steady_ms;
  return {applied::yes, true};
}

view::applied view::apply(const busv1::Revision& hint, std::int64_t steady_ms, std::int64_t wall_ms) {
  application a{.partition = hint.partition(), .steady_ms = steady_ms, .wall_ms = wall_ms};
  opened how;
  std::vector<application> others;
  {
    std::unique_lock lock{mutex_};
    how = open_hint(hint, steady_ms);
    if (!how.rows && !how.owner) return how.result;
    a.revision = tables_.partitions[a.partition].revision;
    a.change.owner = how.owner;
    if (how.rows) {
      rows_.apply(a, hint.rows(), false);
      derivation_.rows_changed(a);
      others = derivation_.classes_changed(a);
    }
    finish(a);
    for (auto& each : others) finish(each);
  }
  subscribers_.tell(a.change);
  for (const auto& each : others) subscribers_.tell(each.change);
  if (how.rows) waits_.seen(a.partition, a.revision);
  return how.result;
}

// ---- loads ----

void view::apply_fetched(partition_id partition, bool complete, revision_t revision, epoch_t epoch,
                         const std::vector<v1::Row>& rows, std::int64_t steady_ms, std::int64_t wall_ms,
                         revision_t tombstones_from, std::int64_t incarnation) {
  application a{.partition = partition, .revision = revision, .steady_ms = steady_ms, .wall_ms = wall_ms};
  std::vector<application> others;
  {
    std::unique_lock lock{mutex_};
    auto found = tables_.partitions.find(partition);
    if (found == tables_.partitions.end()) return;
    auto& p = found->second;
    const bool other_lineage = p.warm && lineage(revision) != lineage(p.revision);
    if (!complete && (!p.warm || other_lineage)) return;  // an increment to something that we do not have
    if (p.warm && revision < p.revision) return;          // hints have overtaken it
    if (revision == p.revision && p.warm && !complete) {
      p.heard_at_ms = steady_ms;
      return;
    }
    auto& deleted = tables_.deleted[partition];
    if (!p.warm || other_lineage) {
      deleted.all.clear();
      deleted.complete_after = tombstones_from >= 0 && !other_lineage ? tombstones_from : revision;
    }
    // What gateways run of a life that is over says nothing of this one; until they speak, what was known holds.
    if (other_lineage) tables_.acks.erase(partition);
    p.incarnation = std::max(p.incarnation, incarnation);
    p.revision = revision;
    p.epoch = std::max(p.epoch, epoch);
    p.heard_at_ms = steady_ms;
    a.change.rebuilt = complete;
    rows_.apply(a, rows, complete);
    p.warm = true;
    tables_.warm = std::all_of(tables_.partitions.begin(), tables_.partitions.end(),
                               [](const auto& each) { return each.second.warm; });
    derivation_.rows_changed(a);
    others = derivation_.classes_changed(a);
    std::stable_sort(deleted.all.begin(), deleted.all.end(),
                     [](const auto& x, const auto& y) { return x.revision < y.revision; });
    finish(a);
    for (auto& each : others) finish(each);
  }
  subscribers_.tell(a.change);
  for (const auto& each : others) subscribers_.tell(each.change);
  waits_.seen(partition, revision);
}

void view::finish(application& a) {
  a.change.partition = a.partition;
  a.change.revision = a.revision;
  a.change.serial = ++tables_.serial;
}

// ---- gateways ----

void view::apply_ack(const busv1::GatewayAck& ack, std::int64_t steady_ms, std::int64_t wall_ms) {
  application a{.partition = ack.partition(), .steady_ms = steady_ms, .wall_ms = wall_ms};
  {
    std::unique_lock lock{mutex_};
    auto p = tables_.partitions.find(ack.partition());
    if (p == tables_.partitions.end() || ack.incarnation() < p->second.incarnation) return;
    // Our own server may speak of the former life for a moment after we have read the new one.
    if (ack.state() == "caught_up" && lineage(ack.acknowledged()) < lineage(p->second.revision)) return;
    a.revision = p->second.revision;
    auto& reports = tables_.acks[ack.partition()];
    std::string class_before;
    revision_t acknowledged_before = 0;
    if (auto r = reports.find(ack.gateway()); r != reports.end()) {
      class_before = r->second.report.class_();
      acknowledged_before = r->second.report.acknowledged();
    }
    switch (warren::apply_ack(reports, ack, steady_ms, wall_ms)) {
      case ack_effect::ignored:
      case ack_effect::refreshed: return;
      case ack_effect::moved: derivation_.acknowledged(a, ack.class_(), acknowledged_before, ack.acknowledged()); break;
      case ack_effect::changed:
        derivation_.class_changed(a, ack.class_());
        if (!class_before.empty() && class_before != ack.class_()) derivation_.class_changed(a, class_before);
    }
    a.change.acks = true;
    finish(a);
  }
  subscribers_.tell(a.change);
}

// ---- time ----

void view::prune_deletions(std::int64_t wall_ms) {
  const auto kept_ms = limits::tombstone_kept / 1ms;
  for (auto& [id, d] : tables_.deleted)
    while (!d.all.empty() && (d.all.size() > deletions_max || d.all.front().wall_ms + kept_ms < wall_ms)) {
      d.complete_after = std::max(d.complete_after, d.all.front().revision);
      d.all.pop_front();
    }
}

void view::tick(std::int64_t steady_ms, std::int64_t wall_ms) {
  std::vector<application> works;
  {
    std::unique_lock lock{mutex_};
    for (auto& [id, reports] : tables_.acks) {
      const auto classes = expire_acks(reports, steady_ms, wall_ms);
      if (classes.empty()) continue;
      auto& a = works.emplace_back(application{.partition = id, .revision = tables_.partitions[id].revision, .steady_ms = steady_ms, .wall_ms = wall_ms});
      a.change.acks = true;
      for (const auto& c : classes) derivation_.class_changed(a, c);
    }
    for (auto& a : derivation_.settle(steady_ms, wall_ms)) works.push_back(std::move(a));
    for (auto& a : works) finish(a);
    if (steady_ms >= pruned_at_ms_ + prune_every_ms) {
      pruned_at_ms_ = steady_ms;
      prune_deletions(wall_ms);
    }
  }
  for (const auto& a : works) subscribers_.tell(a.change);
  waits_.expire(steady_ms);
}

}  // namespace warren::replica
