// test/support/memory_store.hpp -- the store's promises kept in memory, for deterministic tests: versions,
// claims, request ids, tombstones, one revision per transaction. No database, no threads.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "actors/core/save.hpp"
#include "actors/messages.hpp"

namespace warren::test {

class memory_store {
public:
  std::map<partition_id, revision_t> revisions;
  std::map<partition_id, epoch_t> epochs;          ///< who holds it; unset: any epoch is right
  std::map<std::string, v1::Row> rows;             ///< by "table/key"
  std::map<std::string, v1::Reply> requests;       ///< by project/method/id
  std::map<std::string, std::string> digests;
  std::vector<audit_entry> audit;
  std::vector<std::string> writes;                 ///< names of the transitions that were stored
  std::function<void(const busv1::Revision&)> on_commit;
  bool away = false;                               ///< the database is gone
  int conflicts_to_come = 0;                       ///< a rival touches the first row of each of the next saves
  int conflicts = 0;
  mutable int loads = 0;                           ///< of one entity
  std::int64_t next_claim = 1;

  static std::string key_of(const v1::Row& r) {
    if (r.has_tunnel()) return "tunnel/" + r.tunnel().project() + "/" + r.tunnel().name();
    if (r.has_connector()) return "connector/" + r.connector().project() + "/" + r.connector().name();
    if (r.has_attachment())
      return "attachment/" + r.attachment().project() + "/" + r.attachment().connector() + "/" +
             r.attachment().tunnel_uid() + "/" + std::to_string(r.attachment().tunnel_generation());
    if (r.has_hostname_claim()) return "hostname_claim/" + r.hostname_claim().hostname();
    if (r.has_gateway()) return "gateway/" + r.gateway().name();
    if (r.has_gateway_class()) return "gateway_class/" + r.gateway_class().name();
    return "connector_class/" + r.connector_class().name();
  }
  static std::int64_t version_of(const v1::Row& r) {
    if (r.has_tunnel()) return r.tunnel().version();
    if (r.has_connector()) return r.connector().version();
    if (r.has_attachment()) return r.attachment().version();
    if (r.has_hostname_claim()) return r.hostname_claim().version();
    if (r.has_gateway()) return r.gateway().version();
    if (r.has_gateway_class()) return r.gateway_class().version();
    return r.connector_class().version();
  }
  static void stamp(v1::Row& r, revision_t revision, bool routes) {
    const auto put = [&](auto& row) {
      row.set_version(revision);
      if (routes) row.set_route_version(revision);
    };
    if (r.has_tunnel()) put(*r.mutable_tunnel());
    else if (r.has_connector()) put(*r.mutable_connector());
    else if (r.has_attachment()) r.mutable_attachment()->set_version(revision);
    else if (r.has_hostname_claim()) r.mutable_hostname_claim()->set_version(revision);
    else if (r.has_gateway()) put(*r.mutable_gateway());
    else if (r.has_gateway_class()) put(*r.mutable_gateway_class());
    else put(*r.mutable_connector_class());
  }

  save_result save(const save_request& q) {
    if (away) return save_unavailable{"the database is away"};
    if (auto e = epochs.find(q.partition); e != epochs.end() && e->second != q.epoch) return save_lost{};
    if (q.request) {
      const auto id = q.request->project + "/" + q.request->method + "/" + q.request->request_id;
      if (requests.contains(id)) {
        if (digests[id] != q.request->digest)
          return save_refused{errc::invalid, "request_id", "used before with another content"};
        return save_replayed{requests[id]};
      }
    }
    if (conflicts_to_come > 0 && !q.rows.empty() && q.rows.front().what != row_write::op::insert) {
      --conflicts_to_come;
      auto& row = rows.at(key_of(q.rows.front().row));
      stamp(row, ++revisions[q.partition], false);
    }
    for (const auto& w : q.rows) {
      const auto it = rows.find(key_of(w.row));
      const bool fits = w.what == row_write::op::insert
                            ? it == rows.end()
                            : it != rows.end() && version_of(it->second) == w.expected;
      if (!fits) {
        ++conflicts;
        return save_conflict{key_of(w.row)};
      }
    }
    if (q.claims)
      for (const auto& h : q.claims->claim) {
        auto it = rows.find("hostname_claim/" + h);
        if (it != rows.end() && it->second.hostname_claim().tunnel_uid() != q.claims->tunnel_uid)
          return save_refused{errc::already_exists, "hostnames", "the host name " + h + " is taken"};
      }
    busv1::Revision hint;
    hint.set_version(1);
    hint.set_partition(q.partition);
    hint.set_epoch(q.epoch);
    hint.set_revision(++revisions[q.partition]);
    saved done{hint.revision(), {}};
    const auto erase = [&](const std::string& key, const v1::Row& row) {
      auto* t = hint.add_rows()->mutable_tombstone();
      t->set_partition(q.partition);
      t->set_version(done.revision);
      t->set_kind(key.substr(0, key.find('/')));
      t->set_key(key.substr(key.find('/') + 1));
      if (row.has_tunnel()) t->set_uid(row.tunnel().uid());
      rows.erase(key);
    };
    for (const auto& w : q.rows) {
      v1::Row row = w.row;
      stamp(row, done.revision, w.routes);
      done.rows.push_back(row);
      if (w.what == row_write::op::erase) {
        const auto uid = row.tunnel().uid();
        erase(key_of(row), row);
        if (w.row.has_tunnel()) {
          std::vector<std::pair<std::string, v1::Row>> children;
          for (const auto& [k, r] : rows)
            if (r.has_attachment() && r.attachment().tunnel_uid() == uid) children.emplace_back(k, r);
          for (const auto& [k, r] : children) erase(k, r);
        }
      } else {
        rows[key_of(row)] = row;
        *hint.add_rows() = row;
      }
    }
    if (q.claims) {
      for (const auto& h : q.claims->drop) {
        auto it = rows.find("hostname_claim/" + h);
        if (it != rows.end() && it->second.hostname_claim().tunnel_uid() == q.claims->tunnel_uid)
          erase("hostname_claim/" + h, v1::Row{it->second});
      }
      for (const auto& h : q.claims->claim) {
        v1::Row row;
        auto& c = *row.mutable_hostname_claim();
        c.set_partition(q.partition);
        c.set_hostname(h);
        c.set_version(done.revision);
        c.set_project(q.claims->project);
        c.set_tunnel(q.claims->tunnel);
        c.set_tunnel_uid(q.claims->tunnel_uid);
        c.set_claim(next_claim++);
        rows["hostname_claim/" + h] = row;
        *hint.add_rows() = row;
      }
    }
    writes.push_back(q.write);
    if (q.audit) audit.push_back(*q.audit);
    if (q.request) {
      const auto id = q.request->project + "/" + q.request->method + "/" + q.request->request_id;
      v1::Reply r;
      if (!done.rows.empty()) *r.mutable_row() = done.rows.front();
      r.set_partition(q.partition);
      r.set_revision(done.revision);
      requests[id] = r;
      digests[id] = q.request->digest;
    }
    if (on_commit) on_commit(hint);
    return done;
  }

  loaded load(const load_entity& q) const {
    ++loads;
    loaded out;
    if (away) {
      out.error = "the database is away";
      return out;
    }
    const auto key = q.project.empty() ? q.kind + "/" + q.name : q.kind + "/" + q.project + "/" + q.name;
    auto it = rows.find(key);
    if (it == rows.end()) return out;
    out.rows.push_back(it->second);
    for (const auto& [k, r] : rows) {
      if (q.kind == "connector" && r.has_attachment() && r.attachment().project() == q.project &&
          r.attachment().connector() == q.name)
        out.rows.push_back(r);
      if (q.kind == "tunnel" && r.has_hostname_claim() && r.hostname_claim().project() == q.project &&
          r.hostname_claim().tunnel() == q.name)
        out.rows.push_back(r);
    }
    return out;
  }
  loaded load_all(partition_id partition) const {
    loaded out;
    if (away) out.error = "the database is away";
    else
      for (const auto& [k, r] : rows)
        if ((r.has_tunnel() && r.tunnel().partition() == partition) ||
            (r.has_connector() && r.connector().partition() == partition) ||
            (r.has_attachment() && r.attachment().partition() == partition) ||
            (r.has_hostname_claim() && r.hostname_claim().partition() == partition))
          out.rows.push_back(r);
    return out;
  }
  save_result find(const find_answer& q) const {
    const auto id = q.request.project + "/" + q.request.method + "/" + q.request.request_id;
    if (away) return save_unavailable{"the database is away"};
    if (!requests.contains(id)) return saved{};
    if (digests.at(id) != q.request.digest) return save_refused{errc::invalid, "request_id", "another content"};
    return save_replayed{requests.at(id)};
  }
  loaded load(const load_naming& q) const {
    loaded out;
    if (away) {
      out.error = "the database is away";
      return out;
    }
    for (const auto& [k, r] : rows) {
      if (!r.has_tunnel() || r.tunnel().project() != q.project) continue;
      for (const auto& rule : r.tunnel().rules())
        if (rule.connector() == q.connector) {
          out.rows.push_back(r);
          break;
        }
    }
    return out;
  }
};

/// The store's interface over one memory_store.
inline store_actor::behavior_type memory_store_actor(store_actor::pointer, memory_store* s) {
  return {
      [s](const save_request& q) { return s->save(q); },
      [s](const load_entity& q) { return s->load(q); },
      [s](const load_partition& q) { return s->load_all(q.partition); },
      [s](const find_answer& q) { return s->find(q); },
      [s](const load_naming& q) { return s->load(q); },
      [](const adopt_rivals&) { return loaded{}; },
      [](const fetch_changes&) { return changes{}; },
  };
}

}  // namespace warren::test
