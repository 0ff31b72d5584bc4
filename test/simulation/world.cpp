// test/simulation/world.cpp -- puts the parts of a run together and carries it from one event to the next.
#include "test/simulation/world.hpp"

#include <algorithm>

#include "actors/core/conditions.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"

namespace warren::simulation {

namespace {

/// Longer than the longest wait: a deletion for a gateway that is gone; a lease, and a heartbeat that tells.
std::int64_t settle_ms_max(const scenario& s) { return 120'000 + 2 * s.lease_ms + 2 * s.heartbeat_ms; }
constexpr std::int64_t look_every_ms = 500;
constexpr std::int64_t stays_ms = 4'000;
constexpr std::uint64_t steps_at_one_moment_max = 20'000;
constexpr std::int64_t purge_every_ms = 600'000;
constexpr std::int64_t keepalive_ms = 5'000;  // a gateway's, to an instance that does not answer any more

}  // namespace

std::pair<std::string, std::string> split_name(const std::string& name) {
  const auto slash = name.find('/');
  if (slash == std::string::npos) return {"acme", name};
  return {name.substr(0, slash), name.substr(slash + 1)};
}

world::world(const scenario& s, bool talkative)
    : plan_{s}, time_{s.seed, talkative}, db_{s.partitions}, net_{time_}, audit_{time_, db_},
      admins_{time_, net_, s.partitions}, deceit_{plan_.planted} {
  db_.planted = &plan_.planted;
  db_.clock_ms = process::wall_epoch_ms;
  db_.on_commit = [this](const committed_transaction& log) {
    ++commits_;
    audit_.committed(log);
  };
  db_.on_rival = [this](partition_id p) {
    for (auto& h : hosts_)
      if (h->running() && !h->store_cut())
        time_.after(time_.store.between(0, 3), [&h, p] {
          h->deliver([&h, p] { h->running()->rival_marked(p); });
        });
  };
  audit_.has_refused = [this](const std::string& name, const std::string& resource) {
    return std::any_of(gateways_.begin(), gateways_.end(), [&](const auto& g) {
      return (name.empty() || g->name() == name) && g->has_refused(resource);
    });
  };
  audit_.find_agent = [this](const std::string& key) -> const agent_host* {
    auto it = agents_.find(key);
    return it == agents_.end() ? nullptr : it->second.get();
  };
  net_.overheard = [this](link_id, const bus_message& m) {
    audit_.overheard(m);
    deceit_.overheard(m);
  };
  if (deceit::tampers(plan_.planted))
    net_.tamper = [this](bus_message& m, const std::string& to) { deceit_.tamper(m, to); };
  furnish();
  connect_streams();
}

world::~world() {
  time_.clear();
  hosts_.clear();
}

/// What the first migration and an operator have put there.
void world::furnish() {
  const auto put = [&](const v1::Row& row) { db_.now.rows[database::key_of(row)] = std::make_shared<const v1::Row>(row); };
  const auto describe = [&](auto& row, const std::string& name) {
    row.set_partition(plan_.partitions);
    row.set_name(name);
    row.set_uid("uid-" + name);
    row.set_version(1);
    row.set_route_version(1);
    row.set_generation(1);
  };
  db_.now.partitions.at(plan_.partitions).revision = 1;
  v1::Row connectors, gateways;
  describe(*connectors.mutable_connector_class(), "default");
  connectors.mutable_connector_class()->add_allowed_networks("192.0.2.0/24");
  put(connectors);
  describe(*gateways.mutable_gateway_class(), "default");
  gateways.mutable_gateway_class()->set_dial_mode("direct");
  gateways.mutable_gateway_class()->add_listen("0.0.0.0:8080");
  put(gateways);
  for (int i = 1; i <= plan_.gateways; ++i) {
    v1::Row g;
    describe(*g.mutable_gateway(), fmt::format("gw-{}", i));
    g.mutable_gateway()->set_class_("default");
    put(g);
  }
}

void world::connect_streams() {
  for (int i = 1; i <= plan_.instances; ++i) {
    process_wiring w{.time = time_, .db = db_, .net = net_, .weather = weather_, .partitions = plan_.partitions};
    // Clocks of different machines agree in nothing but their pace.
    w.lease = millis{plan_.lease_ms};
    w.heartbeat_interval_ms = plan_.heartbeat_ms;
    if (plan_.heartbeats > 0) w.heartbeats_per_second = plan_.heartbeats;
    w.steady_offset_ms = 3'600'000 + 977 * i;
    w.wall_offset_ms = (i % 3 - 1) * 150;
    w.dial = [this](const dial_request& q) { return dialled(q); };
    w.next_ticket = [this] { return ++tickets_; };
    w.on_answer = [this](std::uint64_t ticket, const save_result& r) { audit_.answered(ticket, r); };
    w.on_announce = [this](const busv1::Revision& r) { audit_.announced(r); };
    w.on_owned = [](const owned_partitions&) {};
    const auto index = static_cast<std::size_t>(i - 1);
    w.on_view_change = [this, i, index](const replica::change_set& c) {
      auto& h = *hosts_[index];
      if (h.running()) audit_.view_changed(i, h.starts(), h.running()->view(), c);
    };
    w.send_to_gateway = [this](std::uint64_t id, const discovery::DeltaDiscoveryResponse& r) {
      auto it = streams_.find(id);
      if (it == streams_.end()) return;
      const auto at = std::max(it->second.arrives_at_ms, time_.now_ms() + time_.network.between(1, 3));
      it->second.arrives_at_ms = at;
      time_.after(at - time_.now_ms(), [this, id, r] {
        auto s = streams_.find(id);
        if (s != streams_.end()) s->second.gateway->received(id, r);
      });
    };
    w.close_gateway = [this](std::uint64_t id) {
      time_.after(1, [this, id] {
        auto it = streams_.find(id);
        if (it == streams_.end()) return;
        auto* g = it->second.gateway;
        streams_.erase(it);
        g->closed(id);
      });
    };
    w.send_to_watch = [this](std::uint64_t id, const watch_message& m) {
      auto it = watch_streams_.find(id);
      if (it == watch_streams_.end()) return;
      const auto at = std::max(it->second.arrives_at_ms, time_.now_ms() + time_.readers.between(1, 3));
      it->second.arrives_at_ms = at;
      time_.after(at - time_.now_ms(), [this, id, m] {
        auto s = watch_streams_.find(id);
        if (s != watch_streams_.end()) s->second.watch->received(id, m);
      });
    };
    w.close_watch = [this](std::uint64_t id, const replica::watcher::refused& why) {
      auto it = watch_streams_.find(id);
      if (it == watch_streams_.end()) return;
      const auto at = std::max(it->second.arrives_at_ms, time_.now_ms() + 1);
      time_.after(at - time_.now_ms(), [this, id, why] {
        auto s = watch_streams_.find(id);
        if (s == watch_streams_.end()) return;
        auto* watch = s->second.watch;
        watch_streams_.erase(s);
        watch->closed(id, &why);
      });
    };
    hosts_.push_back(std::make_unique<host>(i, std::move(w)));
    auto& h = *hosts_.back();
    h.on_start = [this](process& p) {
      p.gateways().on_report = [this](const busv1::GatewayAck& said) { audit_.gateway_said(said); };
    };
    h.on_end = [this, &h](instance_id gone, bool noticed) {
      const auto& counted = h.running()->count.values;
      if (auto it = counted.find("warren_reconcile_errors_total"); it != counted.end() && it->second > 0)
        time_.violate(fmt::format("instance {}: an entity has failed", h.number()));
      // Its sockets are closed, or nobody answers on them.
      noticed ? end_streams(h, 1, 50) : end_streams(h, keepalive_ms, keepalive_ms);
      if (!noticed || h.bus_cut()) return;
      for (auto& other : hosts_)
        if (other.get() != &h && other->running() && !other->bus_cut() && !time_.network.chance(20))
          time_.after(time_.network.between(1, 5), [&other, gone] {
            other->deliver([&other, gone] { other->running()->peer_ended(gone); });
          });
    };
  }
  db_.on_take = [this](partition_id p, const partition_row& before, instance_id by) {
    ++takeovers_;
    bool runs = false, expired = true;
    for (auto& h : hosts_)
      if (h->running() && h->running()->me() == before.owner && !h->paused() && before.owner != by) {
        auto it = h->running()->owned().find(p);
        runs = it != h->running()->owned().end() && it->second == before.epoch;
      }
    if (auto it = db_.now.instances.find(before.owner); it != db_.now.instances.end())
      expired = it->second.expires_at_ms <= db_.clock_ms && db_.ended_early.count(before.owner) == 0;
    audit_.taken(p, before, by, runs, expired);
  };
  connect_gateways();
  connect_watches();
}

void world::end_streams(host& h, std::int64_t after_ms_min, std::int64_t after_ms_max) {
  std::vector<std::uint64_t> ended, unwatched;
  for (const auto& [id, s] : streams_)
    if (s.at == &h) ended.push_back(id);
  for (const auto& [id, s] : watch_streams_)
    if (s.at == &h) unwatched.push_back(id);
  for (auto id : ended) {
    auto* g = streams_.at(id).gateway;
    streams_.erase(id);
    time_.after(time_.network.between(after_ms_min, after_ms_max), [g, id] { g->closed(id); });
  }
  for (auto id : unwatched) {
    auto* w = watch_streams_.at(id).watch;
    watch_streams_.erase(id);
    time_.after(time_.readers.between(after_ms_min, after_ms_max), [w, id] { w->closed(id, nullptr); });
  }
}

void world::connect_gateways() {
  for (int i = 1; i <= plan_.gateways; ++i) {
    gateways_.push_back(nullptr);
    auto& slot = gateways_.back();
    const auto index = gateways_.size() - 1;
    slot = std::make_unique<gateway_host>(
        fmt::format("gw-{}", i), "default",
        gateway_host::wiring{
            .time = time_,
            .open =
                [this, i, index](std::uint64_t id, int tries) {
                  const auto n = hosts_.size();
                  auto& h = *hosts_[(static_cast<std::size_t>(i + tries)) % n];
                  if (!h.answers() || h.stopping()) return false;
                  streams_[id] = {gateways_[index].get(), &h, h.starts(), 0};
                  h.deliver([&h, id, g = gateways_[index].get()] { h.running()->gateways().open(id, g->name(), g->gateway_class()); });
                  return true;
                },
            .send =
                [this](std::uint64_t id, const discovery::DeltaDiscoveryRequest& r) {
                  auto it = streams_.find(id);
                  if (it == streams_.end() || it->second.life != it->second.at->starts()) return;
                  auto* h = it->second.at;
                  h->deliver([h, id, r] { h->running()->gateways().request(id, r); });
                },
            .hang_up =
                [this](std::uint64_t id) {
                  auto it = streams_.find(id);
                  if (it == streams_.end()) return;
                  auto* h = it->second.at;
                  streams_.erase(it);
                  h->deliver([h, id] { h->running()->gateways().ended(id); });
                },
            .fresh_stream = [this] { return next_stream_++; }});
  }
}

void world::connect_watches() {
  for (int i = 1; i <= plan_.watches; ++i) {
    watches_.push_back(nullptr);
    auto& slot = watches_.back();
    const auto index = watches_.size() - 1;
    slot = std::make_unique<watch_host>(
        fmt::format("watch {}", i), i % 3 == 2 ? replica::watched::connectors : replica::watched::tunnels, i % 3 == 0 ? "acme" : "",
        watch_host::wiring{
            .time = time_,
            .open =
                [this, i, index](std::uint64_t id, int tries, const watch_wish& q) {
                  auto& h = *hosts_[static_cast<std::size_t>(i + tries) % hosts_.size()];
                  if (!h.answers() || h.stopping()) return false;
                  watch_streams_[id] = {watches_[index].get(), &h, 0};
                  time_.after(1, [this, &h, id, q, life = h.starts()] {
                    h.deliver([this, &h, id, q, life] {
                      if (h.starts() == life && watch_streams_.count(id) > 0) h.running()->watches().open(id, q);
                    });
                  });
                  return true;
                },
            .hang_up =
                [this](std::uint64_t id) {
                  auto it = watch_streams_.find(id);
                  if (it == watch_streams_.end()) return;
                  auto* h = it->second.at;
                  watch_streams_.erase(it);
                  h->deliver([h, id] { h->running()->watches().ended(id); });
                },
            .fresh_stream = [this] { return next_stream_++; },
            .was_stored = [this](const v1::Row& row) { return audit_.was_stored(row); }});
  }
}

dial_result world::dialled(const dial_request& q) {
  for (const auto& [key, a] : agents_)
    if (a->keys().public_hex() == q.endpoint_id) {
      if (a->answers(q.endpoint_id)) return {dial_result::outcome::answered};
      return {a->cut_off() ? dial_result::outcome::unanswered : dial_result::outcome::refused};
    }
  return {dial_result::outcome::unanswered};
}

// ---- names ----

agent_host& world::agent(const std::string& name) {
  const auto [project, plain] = split_name(name);
  auto& slot = agents_[project + "/" + plain];
  if (!slot) {
    slot = std::make_unique<agent_host>(
        project, plain, static_cast<int>(agents_.size()),
        agent_host::wiring{.time = time_, .net = net_, .partitions = plan_.partitions, .planted = &plan_.planted});
    slot->on_end = [this, key = project + "/" + plain](const std::string& why) {
      time_.violate("agent " + key + " was told to end: " + why);
    };
    slot->on_old_owner_obeyed = [this, key = project + "/" + plain](epoch_t obeyed, epoch_t newest) {
      time_.violate(fmt::format("the agent of {} obeyed an owner at epoch {}, and knew of epoch {}", key, obeyed, newest));
    };
    slot->on_disconnect = [this, plain = plain, project = project] {
      // The server's system account says so, to whoever listens; sometimes nobody hears it.
      if (time_.network.chance(20)) return;
      for (auto& h : hosts_)
        if (h->running() && !h->bus_cut())
          time_.after(time_.network.between(1, 5), [&h, project, plain, p = partition_of(project, plan_.partitions)] {
            h->deliver([&h, project, plain, p] { h->running()->tell_placement({p, agent_disconnected{project, plain}}); });
          });
    };
  }
  return *slot;
}

host& world::instance(const std::string& number) {
  const auto n = static_cast<std::size_t>(std::max(1, std::atoi(number.c_str())));
  return *hosts_[(n - 1) % hosts_.size()];
}
gateway_host& world::gateway(const std::string& number) {
  const auto n = static_cast<std::size_t>(std::max(1, std::atoi(number.c_str())));
  return *gateways_[(n - 1) % gateways_.size()];
}

// ---- the run ----

bool world::step(std::int64_t until_ms) {
  enum class next : std::uint8_t { nothing, planned, timer, agent };
  auto what = next::nothing;
  std::int64_t at = until_ms;
  host* whose = nullptr;
  agent_host* who = nullptr;
  if (const auto t = time_.next_ms(); t && *t <= at) {
    what = next::planned;
    at = *t;
  }
  for (const auto& h : hosts_)
    if (const auto t = h->next_timer_ms(); t && (*t < at || (what == next::nothing && *t <= at))) {
      what = next::timer;
      at = *t;
      whose = h.get();
    }
  for (const auto& [key, a] : agents_)
    if (const auto t = a->deadline_ms(); t && (*t < at || (what == next::nothing && *t <= at))) {
      what = next::agent;
      at = std::max(*t, time_.now_ms());
      who = a.get();
    }
  if (what == next::nothing) {
    time_.pass_to(until_ms);
    db_.clock_ms = process::wall_epoch_ms + until_ms;
    return false;
  }
  at = std::max(at, time_.now_ms());
  steps_here_ = at == time_.now_ms() ? steps_here_ + 1 : 0;
  if (steps_here_ == steps_at_one_moment_max) time_.violate("time stands still: something goes round and round");
  time_.pass_to(at);
  db_.clock_ms = process::wall_epoch_ms + at;
  ++steps_;
  switch (what) {
    case next::planned: time_.run_next(); break;
    case next::timer:
      time_.record("timer", whose->name());
      whose->fire_timer();
      break;
    case next::agent:
      time_.record("wake", who->key());
      who->wake();
      break;
    case next::nothing: break;
  }
  if (!expected_.empty()) check_expectations();
  return true;
}

void world::pass(std::int64_t until_ms) {
  while (time_.violations().empty() && step(until_ms)) {
  }
}

outcome world::run() {
  for (auto& h : hosts_) h->start();
  for (auto& g : gateways_) g->connect();
  for (auto& w : watches_) w->connect();
  // A failover loses what came after a moment that is known beforehand.
  for (const auto& s : plan_.what)
    if (s.is("fail-over", "store")) {
      const auto moment = std::max<std::int64_t>(0, s.at_ms - s.option_ms("losing", 1'000));
      time_.after(moment, [this, moment] { backups_[moment] = db_.now; });
    }
  std::function<void()> purge = [this, &purge] {
    db_.purge();
    time_.after(purge_every_ms, purge);
  };
  time_.after(purge_every_ms, purge);
  for (const auto& s : plan_.what) {
    pass(s.at_ms);
    if (!time_.violations().empty()) break;
    happen(s);
  }
  if (!faults_over_ && time_.violations().empty()) end_faults();
  const auto over_at = time_.now_ms();
  outcome out;
  for (auto left = disagreements();; left = disagreements()) {
    if (!time_.violations().empty()) break;
    if (left.empty() && expected_.empty()) {
      // And it stays so: nobody is about to change it again.
      out.converged_after_ms = time_.now_ms() - over_at;
      pass(time_.now_ms() + stays_ms);
      left = disagreements();
      if (left.empty()) break;
    }
    if (time_.now_ms() - over_at >= settle_ms_max(plan_)) {
      for (auto& one : left) time_.violate("long after the last fault: " + one);
      break;
    }
    pass(time_.now_ms() + look_every_ms);
  }
  for (auto& h : hosts_)
    h->kill();
  out.violations = time_.violations();
  out.steps = steps_;
  out.checks = audit_.checks();
  out.digest = time_.digest();
  out.virtual_ms = time_.now_ms();
  out.commits = commits_;
  out.messages = net_.published;
  out.requests = admins_.all().size();
  out.takeovers = takeovers_;
  for (const auto& w : watches_) out.resumed += static_cast<std::uint64_t>(w->resumed());
  return out;
}

// ---- expectations ----

void world::check_expectations() {
  for (auto it = expected_.begin(); it != expected_.end();) {
    const auto why = missing(it->what);
    if (why.empty()) {
      time_.tell("as expected: {}", print(it->what));
      it = expected_.erase(it);
    } else if (time_.now_ms() >= it->until_ms) {
      time_.violate(fmt::format("\"{}\" did not come: {}", print(it->what), why));
      it = expected_.erase(it);
    } else {
      ++it;
    }
  }
}

std::string world::missing(const statement& s) {
  const auto [project, name] = split_name(s.name);
  if (s.noun == "converged" || s.noun == "owned") {
    std::vector<std::string> left;
    if (s.noun == "owned") placed(left);
    else left = disagreements();
    return left.empty() ? "" : left.front();
  }
  if (s.noun == "online" || s.noun == "offline") {
    const auto* row = db_.row("connector/" + project + "/" + name);
    if (row == nullptr) return "there is no such connector";
    return row->connector().online() == (s.noun == "online") ? "" : "its row does not say so";
  }
  const auto* row = db_.row("tunnel/" + project + "/" + name);
  if (s.noun == "gone") {
    if (row != nullptr) return "its row is still there";
    for (const auto& g : gateways_)
      for (const auto& [host, route] : g->scopes())
        if (route == gateway::route_name(project, name)) return g->name() + " still routes it";
    return "";
  }
  if (row == nullptr) return "there is no such tunnel";
  for (const auto& h : hosts_) {
    if (!h->answers() || h->bus_cut() || h->store_cut()) continue;
    if (s.noun == "rejected") {
      const bool rejected = h->running()->view().read([&](const replica::tables& t) {
        const auto d = t.derived.find({project, name});
        const auto conditions = d == t.derived.end() ? replica::condition_list{} : d->second.conditions();
        return std::any_of(conditions.begin(), conditions.end(), [](const v1::Condition& c) { return c.reason() == "Rejected"; });
      });
      if (!rejected) return fmt::format("instance {} does not say so", h->number());
      continue;
    }
    const bool ready = h->running()->view().read([&](const replica::tables& t) {
      const auto d = t.derived.find({project, name});
      const auto conditions = d == t.derived.end() ? replica::condition_list{} : d->second.conditions();
      const auto* c = conditions.of_type("Ready");
      return c != nullptr && c->status() == status_true;
    });
    if (ready != (s.noun == "ready")) return fmt::format("instance {} says otherwise", h->number());
  }
  if (s.noun == "unready" || s.noun == "rejected") return "";
  for (const auto& g : gateways_)
    for (const auto& hostname : row->tunnel().hostnames()) {
      const auto* route = g->meets(hostname);
      if (route == nullptr || route->clusters.empty()) return g->name() + " sends visitors nowhere";
    }
  return "";
}

}  // namespace warren::simulation
