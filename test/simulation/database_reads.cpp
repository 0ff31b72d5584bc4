// test/simulation/database_reads.cpp -- what is asked of the tables in memory, and who owns what.
#include <algorithm>

#include "actors/core/limits.hpp"
#include "test/simulation/database.hpp"

namespace warren::simulation {

namespace {

std::string entity_key(const load_entity& q) {
  return q.project.empty() ? q.kind + "/" + q.name : q.kind + "/" + q.project + "/" + q.name;
}

/// What owing_of of services/store/statements reads.
bool owes(const v1::ConnectorRow& c) {
  return c.online() || c.attached_generation() < c.attachment_generation() ||
         c.observed_generation() < c.generation() || c.has_delete_time();
}

}  // namespace

loaded database::load(const load_entity& q) const {
  loaded out;
  const auto* own = row(entity_key(q));
  if (own != nullptr) out.rows.push_back(*own);
  for (const auto& [key, r] : now.rows) {
    if (q.kind == "connector" && r->has_attachment() && r->attachment().project() == q.project &&
        r->attachment().connector() == q.name)
      out.rows.push_back(*r);
    if (q.kind == "tunnel" && own != nullptr && r->has_hostname_claim() &&
        r->hostname_claim().tunnel_uid() == own->tunnel().uid())
      out.rows.push_back(*r);
  }
  return out;
}

loaded database::load(const load_partition& q, instance_id me) const {
  loaded out;
  const auto& p = now.partitions.at(q.partition);
  if (p.owner != me || p.epoch != q.epoch) {
    out.lost = true;
    return out;
  }
  std::set<std::string> tunnel_uids, connectors;
  for (const auto& [key, r] : now.rows) {
    if (r->has_connector() && r->connector().partition() == q.partition && owes(r->connector())) {
      out.rows.push_back(*r);
      connectors.insert(r->connector().project() + "/" + r->connector().name());
    }
    if (!r->has_tunnel() || r->tunnel().partition() != q.partition) continue;
    const auto& t = r->tunnel();
    bool owed = t.has_delete_time() || t.programmed_generation() < t.generation() || t.previous_generation() != 0 ||
                t.retiring_size() > 0 || t.observed_generation() < t.generation();
    for (const auto& rule : t.rules())
      owed = owed || (row("connector/" + t.project() + "/" + rule.connector()) != nullptr &&
                      row("attachment/" + t.project() + "/" + rule.connector() + "/" + t.uid() + "/" +
                          std::to_string(t.generation())) == nullptr);
    if (!owed) continue;
    out.rows.push_back(*r);
    tunnel_uids.insert(t.uid());
  }
  for (const auto& [key, r] : now.rows) {
    if (r->has_attachment() && connectors.count(r->attachment().project() + "/" + r->attachment().connector()) > 0)
      out.rows.push_back(*r);
    if (r->has_hostname_claim() && tunnel_uids.count(r->hostname_claim().tunnel_uid()) > 0) out.rows.push_back(*r);
  }
  return out;
}

loaded database::load(const load_naming& q) const {
  loaded out;
  for (const auto& [key, r] : now.rows) {
    if (!r->has_tunnel() || r->tunnel().project() != q.project) continue;
    const auto names = [&](const auto& rules) {
      return std::any_of(rules.begin(), rules.end(), [&](const auto& rule) { return rule.connector() == q.connector; });
    };
    if (names(r->tunnel().rules()) || names(r->tunnel().previous_rules())) out.rows.push_back(*r);
  }
  return out;
}

save_result database::find(const find_answer& q) const {
  auto it = now.answers.find(q.request.project + "/" + q.request.method + "/" + q.request.request_id);
  if (it == now.answers.end()) return saved{};
  if (it->second.digest != q.request.digest) return save_refused{errc::invalid, "request_id", "another content"};
  return save_replayed{it->second.reply};
}

changes database::fetch(const fetch_changes& q) const {
  changes out;
  const auto& p = now.partitions.at(q.partition);
  auto from = now.tombstones_from.find(q.partition);
  const revision_t forgotten = from == now.tombstones_from.end() ? 0 : from->second;
  out.epoch = p.epoch;
  out.incarnation = now.incarnation;
  out.revision = p.revision;
  out.complete = q.after <= 0 || q.after < forgotten || q.after > out.revision;
  for (const auto& [key, r] : now.rows) {
    const auto in_partition = [&](const auto& each) { return each.partition() == q.partition; };
    const bool ours = r->has_tunnel()            ? in_partition(r->tunnel())
                      : r->has_connector()       ? in_partition(r->connector())
                      : r->has_attachment()      ? in_partition(r->attachment())
                      : r->has_hostname_claim()  ? in_partition(r->hostname_claim())
                      : r->has_gateway()         ? in_partition(r->gateway())
                      : r->has_gateway_class()   ? in_partition(r->gateway_class())
                      : r->has_connector_class() ? in_partition(r->connector_class())
                                                 : false;
    if (ours && (out.complete || version_of(*r) > q.after)) out.rows.push_back(*r);
  }
  if (auto t = now.tombstones.find(q.partition); t != now.tombstones.end())
    for (const auto& gone : t->second)
      if (gone.version() > (out.complete ? forgotten : q.after)) *out.rows.emplace_back().mutable_tombstone() = gone;
  if (out.complete) out.tombstones_from = forgotten;
  return out;
}

// ---- instances and partitions ----

placement_view database::view(bool renewed, std::vector<partition_id> taken) const {
  placement_view v;
  v.renewed = renewed;
  v.taken = std::move(taken);
  v.incarnation = now.incarnation;
  for (const auto& [id, i] : now.instances)
    v.instances.push_back({.id = id, .name = i.name, .started_at_ms = i.started_at_ms, .expires_at_ms = i.expires_at_ms,
                           .bus_ok = i.bus_ok, .draining = i.draining, .alive = i.expires_at_ms > clock_ms});
  for (const auto& [id, p] : now.partitions) v.partitions.push_back(p);
  return v;
}

placement_view database::renew(instance_id me, const renew_lease& q, std::int64_t ttl_ms) {
  auto it = now.instances.find(me);
  if (it == now.instances.end()) return view();
  it->second.expires_at_ms = clock_ms + ttl_ms;
  ended_early.erase(me);
  for (const auto& [id, p] : now.partitions)
    if (p.owner == me) owned_at_ms_[id] = clock_ms;
  it->second.bus_ok = q.bus_ok;
  it->second.draining = q.draining;
  return view(true);
}

bool database::judge_owner(instance_id me, partition_id partition) const {
  const auto& p = now.partitions.at(partition);
  if (p.owner == 0 || p.owner == me) return true;
  auto owner = now.instances.find(p.owner);
  if (owner == now.instances.end() || owner->second.expires_at_ms <= clock_ms) return true;
  return locks.count(p.owner) == 0;
}

bool database::take(instance_id me, partition_id partition, const partition_row& judged) {
  auto& p = now.partitions.at(partition);
  if (open_.count(partition) > 0 && !has(bug::fence_by_reading) && !has(bug::no_fence)) return false;
  if (p.owner != judged.owner || p.epoch != judged.epoch) return false;
  if (on_take) on_take(partition, p, me);
  if (auto seen = owned_at_ms_.find(partition); seen != owned_at_ms_.end()) unowned_ms_[partition] = clock_ms - seen->second;
  p.owner = me;
  ++p.epoch;
  return true;
}

void database::release(instance_id me, const release_partition& q) {
  auto& p = now.partitions.at(q.partition);
  if (p.owner == me && p.epoch == q.epoch) p.owner = 0;
}

bool database::end_lease_of_dead(instance_id suspect) {
  auto it = now.instances.find(suspect);
  if (it == now.instances.end() || it->second.expires_at_ms <= clock_ms || locks.count(suspect) > 0) return false;
  it->second.expires_at_ms = clock_ms;
  ended_early.insert(suspect);
  return true;
}

void database::purge() {
  const auto kept_from = clock_ms - limits::tombstone_kept / 1ms;
  for (auto& [id, all] : now.tombstones)
    std::erase_if(all, [&](const v1::TombstoneRow& t) {
      if (to_ms(t.deleted_at()) >= kept_from) return false;
      now.tombstones_from[id] = std::max(now.tombstones_from[id], t.version());
      return true;
    });
  std::erase_if(now.answers, [&](const auto& a) { return a.second.at_ms < clock_ms - millis{limits::request_id_kept}.count(); });
  std::erase_if(now.instances, [&](const auto& i) { return i.second.expires_at_ms < clock_ms - millis{1h}.count(); });
}

}  // namespace warren::simulation
