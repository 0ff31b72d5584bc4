// test/simulation/agreement.cpp -- when faults are over, everything agrees: rows, owners, agents, replicas, gateways,
// and nothing is left behind.
#include <algorithm>
#include <set>

#include <google/protobuf/util/message_differencer.h>

#include "actors/core/conditions.hpp"
#include "test/simulation/world.hpp"

namespace warren::simulation {

namespace {

constexpr std::size_t told_max = 12;  // the first disagreements tell

bool same(const google::protobuf::Message& a, const google::protobuf::Message& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

using condition_list_of = std::function<std::vector<v1::Condition>()>;

std::string attachment_key(const v1::TunnelRow& t, const std::string& connector) {
  return fmt::format("attachment/{}/{}/{}/{}", t.project(), connector, t.uid(), t.generation());
}

}  // namespace

std::vector<std::string> world::disagreements() {
  std::vector<std::string> out;
  placed(out);
  rows_settled(out);
  agents_agree(out);
  // The rest is compared with rows that have settled.
  if (out.empty()) replicas_agree(out);
  if (out.empty()) gateways_agree(out);
  if (out.empty()) watches_agree(out);
  if (out.size() > told_max) out.resize(told_max);
  return out;
}

void world::placed(std::vector<std::string>& out) {
  std::map<instance_id, host*> alive;
  for (const auto& h : hosts_) {
    if (h->stopping()) out.push_back(h->name() + " is still handing over");
    if (h->wanted() && !h->running()) out.push_back(h->name() + " has not started");
    else if (h->answers() && !h->running()->holds_lease()) out.push_back(h->name() + " has no lease");
    if (h->answers() && !h->stopping()) alive[h->running()->me()] = h.get();
  }
  if (alive.empty()) return;
  std::map<instance_id, std::size_t> counts;
  for (const auto& [id, p] : db_.now.partitions) {
    auto owner = alive.find(p.owner);
    if (owner == alive.end()) {
      out.push_back(fmt::format("partition {} has no owner that is alive", id));
      continue;
    }
    ++counts[p.owner];
    const auto& owned = owner->second->running()->owned();
    auto runs = owned.find(id);
    if (runs == owned.end() || runs->second != p.epoch)
      out.push_back(fmt::format("partition {} is not run by its owner", id));
  }
  for (const auto& [id, h] : alive) {
    const auto share = db_.now.partitions.size() / alive.size();
    if (counts[id] < share || counts[id] > share + 1)
      out.push_back(fmt::format("{} has {} of {} partitions", h->name(), counts[id], db_.now.partitions.size()));
  }
}

void world::rows_settled(std::vector<std::string>& out) {
  for (const auto& r : admins_.all())
    if (!r->answered)
      out.push_back(fmt::format("request {} ({}) is not answered", r->command.caller().request_id(), r->command.caller().method()));
  std::set<std::string> hostnames, uids;
  for (const auto& [key, row] : db_.now.rows) {
    if (database::version_of(*row) == rival_version) out.push_back(key + " bears a rival's mark");
    if (!row->has_tunnel()) continue;
    const auto& t = row->tunnel();
    uids.insert(t.uid());
    for (const auto& h : t.hostnames()) {
      hostnames.insert(h);
      const auto* claim = db_.row("hostname_claim/" + h);
      if (claim == nullptr || claim->hostname_claim().tunnel_uid() != t.uid()) out.push_back(key + " has not claimed " + h);
    }
    if (t.has_delete_time()) out.push_back(key + " is still being deleted");
    else if (!gateways_.empty() && t.programmed_generation() != t.generation()) out.push_back(key + " is not programmed");
    if (t.previous_generation() != 0) out.push_back(key + " still holds its previous generation");
    for (const auto& rule : t.rules()) {
      const auto* c = db_.row("connector/" + t.project() + "/" + rule.connector());
      if (c == nullptr || c->connector().has_delete_time()) continue;
      const auto* a = db_.row(attachment_key(t, rule.connector()));
      if (!t.enabled()) {
        if (a != nullptr) out.push_back(fmt::format("{} is switched off and has an attachment at {}", key, rule.connector()));
        continue;
      }
      if (a == nullptr) out.push_back(fmt::format("{} has no attachment at {}", key, rule.connector()));
      else if (c->connector().online() && a->attachment().attachment_generation() > c->connector().attached_generation())
        out.push_back(fmt::format("{} is not attached at {}", key, rule.connector()));
    }
  }
  for (const auto& [key, row] : db_.now.rows) {
    if (row->has_connector() && row->connector().has_delete_time()) out.push_back(key + " is still being deleted");
    if (row->has_hostname_claim() && hostnames.count(row->hostname_claim().hostname()) == 0) out.push_back("left behind: " + key);
    if (!row->has_attachment()) continue;
    const auto& a = row->attachment();
    const auto* t = db_.row("tunnel/" + a.project() + "/" + a.tunnel());
    if (uids.count(a.tunnel_uid()) == 0 || (t != nullptr && t->tunnel().generation() != a.tunnel_generation()))
      out.push_back("left behind: " + key);
  }
}

void world::agents_agree(std::vector<std::string>& out) {
  for (const auto& [key, a] : agents_) {
    const auto* row = db_.row("connector/" + key);
    if (row == nullptr) continue;
    if (a->running() != row->connector().online())
      out.push_back(fmt::format("the agent of {} is {}, and its row says {}", key, a->running() ? "running" : "dead",
                                row->connector().online() ? "online" : "offline"));
    if (!a->running()) continue;
    if (row->connector().online()) interval_agrees(*a, row->connector(), key, out);
    std::set<std::string> held, wanted;
    for (const auto& [k, one] : a->held().all()) held.insert(fmt::format("{}/{}", k.tunnel_uid, k.tunnel_generation));
    for (const auto& [k, r] : db_.now.rows)
      if (r->has_attachment() && r->attachment().project() + "/" + r->attachment().connector() == key)
        wanted.insert(fmt::format("{}/{}", r->attachment().tunnel_uid(), r->attachment().tunnel_generation()));
    if (held != wanted) out.push_back(fmt::format("the agent of {} holds {} attachments, and {} are its own", key, held.size(), wanted.size()));
  }
}

/// Agents say as often that they live as their owner, under its load, wants it.
void world::interval_agrees(const agent_host& a, const v1::ConnectorRow& row, const std::string& key, std::vector<std::string>& out) {
  const auto owner = db_.now.partitions.at(row.partition()).owner;
  for (const auto& h : hosts_) {
    if (!h->answers() || h->running()->me() != owner) continue;
    const auto paced = std::min(h->running()->paced_interval_ms(), row.lease_duration_ms() / limits::heartbeats_per_lease_min);
    const auto wanted = std::max(plan_.heartbeat_ms, paced), has = a.session()->heartbeat_interval().count();
    if (has != wanted) out.push_back(fmt::format("the agent of {} speaks every {} ms, and its owner wants it every {} ms", key, has, wanted));
  }
}

void world::replicas_agree(std::vector<std::string>& out) {
  for (const auto& h : hosts_) {
    if (!h->answers()) continue;
    h->running()->view().read([&](const replica::tables& t) {
      const auto differs = [&](const std::string& key) { out.push_back(fmt::format("{} in the replica of {}", key, h->name())); };
      std::map<std::string, v1::Row> have;
      const auto add = [&](auto put, const auto& row) {
        v1::Row r;
        put(r) = *row;
        have[database::key_of(r)] = std::move(r);
      };
      for (const auto& [k, r] : t.tunnels) add([](v1::Row& x) -> auto& { return *x.mutable_tunnel(); }, r.unpack());
      for (const auto& [k, r] : t.connectors) add([](v1::Row& x) -> auto& { return *x.mutable_connector(); }, r);
      for (const auto& [connector, attached] : t.attachments.by_connector())
        for (const auto& [k, r] : attached) add([](v1::Row& x) -> auto& { return *x.mutable_attachment(); }, r.unpack());
      for (const auto& [k, r] : t.claims) add([](v1::Row& x) -> auto& { return *x.mutable_hostname_claim(); }, r.unpack());
      for (const auto& [k, r] : t.gateways) add([](v1::Row& x) -> auto& { return *x.mutable_gateway(); }, r);
      for (const auto& [k, r] : t.gateway_classes) add([](v1::Row& x) -> auto& { return *x.mutable_gateway_class(); }, r);
      for (const auto& [k, r] : t.connector_classes) add([](v1::Row& x) -> auto& { return *x.mutable_connector_class(); }, r);
      for (const auto& [key, row] : db_.now.rows) {
        auto it = have.find(key);
        if (it == have.end()) differs("missing: " + key);
        else if (!same(it->second, *row)) differs("other than stored: " + key);
      }
      for (const auto& [key, row] : have)
        if (db_.row(key) == nullptr) differs("left behind: " + key);
      for (const auto& [id, p] : db_.now.partitions) {
        auto it = t.partitions.find(id);
        if (it == t.partitions.end() || it->second.revision != p.revision) differs(fmt::format("the revision of partition {}", id));
      }
      return 0;
    });
  }
}

void world::gateways_agree(std::vector<std::string>& out) {
  std::map<std::string, std::set<std::string>> expected;  // by host name
  const auto row_of = [&](const std::string& project) {
    return [&, project](const std::string& name) -> const v1::ConnectorRow* {
      const auto* r = db_.row("connector/" + project + "/" + name);
      return r == nullptr ? nullptr : &r->connector();
    };
  };
  for (const auto& [key, row] : db_.now.rows) {
    if (!row->has_tunnel()) continue;
    const auto& t = row->tunnel();
    const auto plan = tunnel::plan_routes(
        t, row_of(t.project()), [&](const std::string& connector, const std::string& uid, std::int64_t generation) {
          const auto* a = db_.row(fmt::format("attachment/{}/{}/{}/{}", t.project(), connector, uid, generation));
          return a == nullptr ? nullptr : &a->attachment();
        });
    bool all_live = !plan.rules.empty();
    std::set<std::string> clusters;
    for (const auto& r : plan.rules) {
      if (r.what == tunnel::outcome::live) clusters.insert(gateway::cluster_name(t.project(), r.rule.connector()));
      else all_live = false;
    }
    for (const auto& h : t.hostnames()) expected[h] = clusters;
    // What visitors meet, and what everybody is told about it.
    for (const auto& h : hosts_) {
      if (!h->answers() || gateways_.empty()) continue;
      const bool ready = h->running()->view().read([&](const replica::tables& tables) {
        const auto d = tables.derived.find({t.project(), t.name()});
        const auto conditions = d == tables.derived.end() ? replica::condition_list{} : d->second.conditions();
        const auto* c = conditions.of_type("Ready");
        return c != nullptr && c->status() == status_true;
      });
      if (ready != all_live) out.push_back(fmt::format("{} says that {} is {}ready", h->name(), key, ready ? "" : "not "));
    }
  }
  for (const auto& g : gateways_) {
    if (!g->connected()) {
      out.push_back(g->name() + " is not connected");
      continue;
    }
    for (const auto& [host, clusters] : expected) {
      const auto* route = g->meets(host);
      if (route == nullptr) out.push_back(fmt::format("{} does not know {}", g->name(), host));
      else if (route->clusters != clusters) out.push_back(fmt::format("{} sends visitors of {} to {} places, and {} are right", g->name(), host, route->clusters.size(), clusters.size()));
      else
        for (const auto& c : clusters)
          if (g->clusters().count(c) == 0) out.push_back(fmt::format("{} routes to {}, which it does not know", g->name(), c));
    }
    for (const auto& [host, route] : g->scopes())
      if (expected.count(host) == 0) out.push_back(fmt::format("{} still knows {}", g->name(), host));
  }
}

/// Whoever follows knows what there is, and what its instance says of it.
void world::watches_agree(std::vector<std::string>& out) {
  for (const auto& w : watches_) {
    const auto at = watch_streams_.find(w->stream());
    if (!w->caught_up() || at == watch_streams_.end() || !at->second.at->answers()) {
      out.push_back(w->name() + " has not caught up");
      continue;
    }
    std::size_t there = 0;
    const auto compare = [&](const std::string& key, const auto& row, const condition_list_of& conditions_of) {
      if (!w->concerns(row.project())) return;
      ++there;
      const auto it = w->model().find({row.project(), row.name()});
      if (it == w->model().end()) return out.push_back(fmt::format("{} has not heard of {}", w->name(), key));
      if (it->second.uid != row.uid() || it->second.version != row.version())
        return out.push_back(fmt::format("{} knows {} at {}, and it is at {}", w->name(), key, it->second.version, row.version()));
      const auto now = conditions_of();
      const auto alike = [](const v1::Condition& a, const v1::Condition& b) {
        return a.type() == b.type() && a.status() == b.status() && a.reason() == b.reason();
      };
      if (!std::equal(now.begin(), now.end(), it->second.conditions.begin(), it->second.conditions.end(), alike))
        out.push_back(fmt::format("{} knows other conditions of {}", w->name(), key));
    };
    auto& view = at->second.at->running()->view();
    for (const auto& [key, row] : db_.now.rows) {
      if (w->what() == replica::watched::tunnels && row->has_tunnel())
        compare(key, row->tunnel(), [&] {
          return view.read([&](const replica::tables& t) -> std::vector<v1::Condition> {
            const auto d = t.derived.find({row->tunnel().project(), row->tunnel().name()});
            return d == t.derived.end() ? std::vector<v1::Condition>{} : *d->second.conditions();
          });
        });
      if (w->what() == replica::watched::connectors && row->has_connector())
        compare(key, row->connector(), [] { return std::vector<v1::Condition>{}; });
    }
    if (w->model().size() > there) out.push_back(fmt::format("{} knows of {}, and there are {}", w->name(), w->model().size(), there));
  }
}

}  // namespace warren::simulation
