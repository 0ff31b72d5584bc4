// test/simulation/database.cpp -- transactions on tables in memory: fence, judgement, writes.
#include "test/simulation/database.hpp"

#include <algorithm>

#include "actors/core/limits.hpp"
#include "test/support/memory_store.hpp"

namespace warren::simulation {

namespace {

std::string request_key(const answered_request& r) { return r.project + "/" + r.method + "/" + r.request_id; }

partition_id partition_of_row(const v1::Row& r) {
  if (r.has_tunnel()) return r.tunnel().partition();
  if (r.has_connector()) return r.connector().partition();
  if (r.has_attachment()) return r.attachment().partition();
  if (r.has_hostname_claim()) return r.hostname_claim().partition();
  if (r.has_gateway()) return r.gateway().partition();
  if (r.has_gateway_class()) return r.gateway_class().partition();
  return r.connector_class().partition();
}

}  // namespace

std::string database::key_of(const v1::Row& r) { return test::memory_store::key_of(r); }
std::int64_t database::version_of(const v1::Row& r) { return test::memory_store::version_of(r); }

const v1::Row* database::row(const std::string& key) const {
  auto it = now.rows.find(key);
  return it == now.rows.end() ? nullptr : it->second.get();
}

database::database(int partitions) {
  for (partition_id p = 0; p <= partitions; ++p) now.partitions[p] = {.id = p};
}

// ---- transactions ----

database::begun database::begin(instance_id me, partition_id partition, epoch_t epoch) {
  const auto& p = now.partitions.at(partition);
  const bool exclusive = !has(bug::fence_by_reading) && !has(bug::no_fence);
  if (exclusive)
    for (auto [it, end] = open_.equal_range(partition); it != end; ++it)
      if (it->second.me != me) return begun::locked;
  bool ours = p.owner == me && p.epoch == epoch;
  if (has(bug::released_still_written)) ours = p.epoch == epoch;
  if (has(bug::no_fence)) ours = true;
  if (!ours) return begun::lost;
  open_.insert({partition, {me, epoch}});
  return begun::open;
}

bool database::is_open(instance_id me, partition_id partition) const {
  if (has(bug::fence_by_reading) || has(bug::no_fence)) return true;  // nothing was locked that could be lost
  auto [it, end] = open_.equal_range(partition);
  return std::any_of(it, end, [me](const auto& t) { return t.second.me == me; });
}

void database::roll_back(instance_id me, partition_id partition) {
  for (auto [it, end] = open_.equal_range(partition); it != end; ++it)
    if (it->second.me == me) {
      open_.erase(it);
      return;
    }
}

void database::end_sessions(instance_id of) {
  std::erase_if(open_, [of](const auto& t) { return t.second.me == of; });
}

std::vector<save_result> database::commit(instance_id me, partition_id partition, epoch_t epoch,
                                          const std::vector<wanted>& group, busv1::Revision& hint) {
  auto& p = now.partitions.at(partition);
  committed_transaction log{.by = me, .partition = partition, .epoch = epoch, .before = p, .revision = p.revision + 1};
  hint.set_version(1);
  hint.set_incarnation(now.incarnation);
  hint.set_partition(partition);
  hint.set_epoch(epoch);
  std::vector<save_result> out;
  for (const auto& w : group) {
    if (auto verdict = judge(*w.request)) {
      out.push_back(std::move(*verdict));
      continue;
    }
    saved done{log.revision, {}};
    write(*w.request, log.revision, done, hint, log);
    log.transitions.emplace_back(w.ticket, w.request);
    out.push_back(std::move(done));
  }
  roll_back(me, partition);  // its lock goes with its end
  if (log.transitions.empty()) return out;
  p.revision = log.revision;
  hint.set_revision(p.revision);
  if (on_commit) on_commit(log);
  return out;
}

std::optional<save_result> database::judge(const save_request& q) const {
  if (q.request && !q.request->request_id.empty())
    if (auto it = now.answers.find(request_key(*q.request)); it != now.answers.end()) {
      if (it->second.digest != q.request->digest)
        return save_refused{errc::invalid, "request_id", "used before with another content"};
      return save_replayed{it->second.reply};
    }
  for (const auto& w : q.rows) {
    const auto* have = row(key_of(w.row));
    const bool fits = w.what == row_write::op::insert ? have == nullptr
                                                      : have != nullptr && version_of(*have) == w.expected;
    if (!fits) return save_conflict{key_of(w.row)};
    if (w.what != row_write::op::erase && w.row.has_connector() && !w.row.connector().public_key().empty())
      for (const auto& [key, other] : now.rows)
        if (other->has_connector() && other->connector().public_key() == w.row.connector().public_key() &&
            key != key_of(w.row))
          return save_refused{errc::already_exists, "public_key", "another connector has this public key"};
    if (w.what == row_write::op::insert && w.row.has_attachment()) {
      const auto& uid = w.row.attachment().tunnel_uid();
      const bool there = std::any_of(now.rows.begin(), now.rows.end(), [&](const auto& r) {
        return r.second->has_tunnel() && r.second->tunnel().uid() == uid;
      });
      if (!there) return save_refused{errc::not_found, "tunnel_uid", "there is no such tunnel"};
    }
  }
  if (q.claims)
    for (const auto& h : q.claims->claim)
      if (const auto* have = row("hostname_claim/" + h);
          have != nullptr && have->hostname_claim().tunnel_uid() != q.claims->tunnel_uid)
        return save_refused{errc::already_exists, "hostnames", "the host name " + h + " belongs to another tunnel"};
  return std::nullopt;
}

void database::erase(const std::string& key, revision_t revision, partition_id partition, busv1::Revision& hint,
                     committed_transaction& log) {
  auto it = now.rows.find(key);
  if (it == now.rows.end()) return;
  v1::TombstoneRow t;
  t.set_partition(partition);
  t.set_version(revision);
  t.set_kind(key.substr(0, key.find('/')));
  t.set_key(key.substr(key.find('/') + 1));
  if (it->second->has_tunnel()) t.set_uid(it->second->tunnel().uid());
  if (it->second->has_connector()) t.set_uid(it->second->connector().uid());
  *t.mutable_deleted_at() = timestamp_from_ms(clock_ms);
  log.rows.emplace_back(it->second, nullptr);
  now.rows.erase(it);
  if (has(bug::tombstone_forgotten)) return;
  *hint.add_rows()->mutable_tombstone() = t;
  now.tombstones[partition].push_back(std::move(t));
}

void database::write(const save_request& q, revision_t revision, saved& done, busv1::Revision& hint,
                     committed_transaction& log) {
  for (const auto& w : q.rows) {
    const auto key = key_of(w.row);
    auto it = now.rows.find(key);
    if (w.what == row_write::op::erase) {
      const auto before = it->second;
      done.rows.push_back(w.row);
      if (before->has_tunnel()) {    // ON DELETE CASCADE
        std::vector<std::string> children;
        for (const auto& [k, r] : now.rows)
          if (r->has_attachment() && r->attachment().tunnel_uid() == before->tunnel().uid()) children.push_back(k);
        for (const auto& k : children) erase(k, revision, q.partition, hint, log);
      }
      erase(key, revision, q.partition, hint, log);
      continue;
    }
    v1::Row image = w.row;
    test::memory_store::stamp(image, revision, w.routes);
    done.rows.push_back(image);
    *hint.add_rows() = image;
    auto& have = now.rows[key];
    auto after = std::make_shared<const v1::Row>(std::move(image));
    log.rows.emplace_back(have, after);
    have = std::move(after);
  }
  if (q.claims) {
    for (const auto& h : q.claims->drop) {
      const auto* have = row("hostname_claim/" + h);
      const bool kept = std::find(q.claims->claim.begin(), q.claims->claim.end(), h) != q.claims->claim.end();
      if (have != nullptr && !kept && have->hostname_claim().tunnel_uid() == q.claims->tunnel_uid)
        erase("hostname_claim/" + h, revision, q.partition, hint, log);
    }
    for (const auto& h : q.claims->claim) {
      if (row("hostname_claim/" + h) != nullptr) continue;
      auto fresh = std::make_shared<v1::Row>();
      auto& c = *fresh->mutable_hostname_claim();
      c.set_partition(q.partition);
      c.set_hostname(h);
      c.set_version(revision);
      c.set_project(q.claims->project);
      c.set_tunnel(q.claims->tunnel);
      c.set_tunnel_uid(q.claims->tunnel_uid);
      c.set_claim(now.next_claim++);
      *hint.add_rows() = *fresh;
      log.rows.emplace_back(nullptr, fresh);
      now.rows["hostname_claim/" + h] = std::move(fresh);
    }
  }
  if (q.audit) ++now.audits[q.audit->project + "/" + q.audit->request_id];
  if (q.request && !q.request->request_id.empty()) {
    stored_answer a{q.request->digest, {}, clock_ms};
    if (!done.rows.empty()) *a.reply.mutable_row() = done.rows.front();
    a.reply.set_partition(q.partition);
    a.reply.set_revision(revision);
    now.answers[request_key(*q.request)] = std::move(a);
  }
}

database::fate database::look_up(instance_id me, partition_id partition, epoch_t epoch, revision_t revision) const {
  if (open_.count(partition) > 0) return fate::locked;
  const auto& p = now.partitions.at(partition);
  if (p.owner != me || p.epoch != epoch) return fate::lost;
  if (p.revision == revision) return fate::committed;
  return p.revision == revision - 1 ? fate::rolled_back : fate::lost;
}

// ---- rivals ----

bool database::is_marked(const load_entity& q) const {
  const auto answer = load(q);
  return std::any_of(answer.rows.begin(), answer.rows.end(), [](const v1::Row& r) { return version_of(r) == rival_version; });
}

std::optional<loaded> database::adopt(instance_id me, partition_id partition, epoch_t epoch, busv1::Revision& hint) {
  auto& p = now.partitions.at(partition);
  if (p.owner != me || p.epoch != epoch) return std::nullopt;
  loaded out;
  committed_transaction log{.by = me, .partition = partition, .epoch = epoch, .before = p, .revision = p.revision + 1};
  for (auto& [key, r] : now.rows) {
    if (version_of(*r) != rival_version || partition_of_row(*r) != partition) continue;
    auto fresh = std::make_shared<v1::Row>(*r);
    test::memory_store::stamp(*fresh, log.revision, true);
    out.rows.push_back(*fresh);
    log.rows.emplace_back(r, fresh);
    r = std::move(fresh);
  }
  if (out.rows.empty()) return out;
  p.revision = log.revision;
  hint.set_version(1);
  hint.set_incarnation(now.incarnation);
  hint.set_partition(partition);
  hint.set_epoch(epoch);
  hint.set_revision(p.revision);
  for (const auto& r : out.rows) *hint.add_rows() = r;
  if (on_commit) on_commit(log);
  return out;
}

void database::touch_by_rival(const std::string& key) {
  auto it = now.rows.find(key);
  if (it == now.rows.end()) return;
  auto marked = std::make_shared<v1::Row>(*it->second);
  test::memory_store::stamp(*marked, rival_version, false);
  const auto partition = partition_of_row(*marked);
  it->second = std::move(marked);
  if (on_rival) on_rival(partition);
}

void database::fail_over(const tables& backup) {
  const auto incarnation = now.incarnation;
  now = backup;
  open_.clear();
  if (has(bug::incarnation_ignored)) return;
  now.incarnation = incarnation + 1;
  for (auto& [id, p] : now.partitions) {
    p.owner = 0;
    p.epoch += std::int64_t{1} << 32;
    now.tombstones_from[id] = p.revision + (std::int64_t{1} << 32);
    p.revision += std::int64_t{1} << 32;
  }
}

}  // namespace warren::simulation
