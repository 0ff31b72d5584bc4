// test/simulation/happenings.cpp -- what each statement of a scenario does to the world.
#include <algorithm>
#include <sstream>

#include "services/gateway/compile.hpp"
#include "test/simulation/world.hpp"

namespace warren::simulation {

namespace {

std::vector<std::string> split_list(const std::string& text) {
  std::istringstream in{text};
  std::vector<std::string> out;
  for (std::string one; std::getline(in, one, ',');)
    if (!one.empty()) out.push_back(one);
  return out;
}

constexpr std::int64_t pause_noticed_ms = 5'000;  // a gateway's keepalive to an instance that does not answer

}  // namespace

void world::happen(const statement& s) {
  time_.record("happens", print(s));
  time_.tell("---- {}", print(s));
  if (s.verb == "expect") {
    expected_.push_back({s, time_.now_ms() + s.option_ms("within", 0)});
    return check_expectations();
  }
  happen_to_tunnels(s) || happen_to_agents(s) || happen_to_instances(s) || happen_to_gateways(s) || happen_to_watches(s) ||
      happen_to_all(s);
}

bool world::happen_to_tunnels(const statement& s) {
  if (s.verb == "refuse") {
    refuse(s);
    return true;
  }
  const auto [project, name] = split_name(s.name);
  if (s.noun == "tunnel") {
    const auto connectors = split_list(s.option("connector", "home"));
    const auto target = s.option("target", "http://localhost:8080");
    if (s.verb == "create")
      admins_.create_tunnel(project, name, connectors, s.option("host", name + "." + project + ".example.com"), target);
    else if (s.verb == "update") admins_.update_tunnel(project, name, connectors, target);
    else if (s.verb == "disable" || s.verb == "enable") admins_.enable_tunnel(project, name, s.verb == "enable");
    else if (s.verb == "delete") admins_.delete_tunnel(project, name);
    else if (s.verb == "touch") db_.touch_by_rival("tunnel/" + project + "/" + name);
    return true;
  }
  if (s.noun != "connector") return false;
  if (s.verb == "touch") db_.touch_by_rival("connector/" + project + "/" + name);
  else if (s.verb == "delete") admins_.delete_connector(project, name);
  else if (s.verb == "enrol") {
    auto& a = agent(s.name);
    a.enrolled = true;
    admins_.enrol(project, name, a.keys().public_hex(), s.option_ms("lease", 30'000), [&a](const v1::Reply& r) {
      if (r.row().has_connector()) a.uid = r.row().connector().uid();
    });
  }
  return true;
}

bool world::happen_to_agents(const statement& s) {
  if (s.noun != "agent") return false;
  auto& a = agent(s.name);
  const auto back = s.option_ms("for", -1);
  if (s.verb == "start") {
    if (!a.enrolled) happen_to_tunnels({s.at_ms, "enrol", "connector", s.name, {}});
    a.start();
  } else if (s.verb == "kill" || s.verb == "stop") {
    if (!a.running()) return true;
    s.verb == "kill" ? a.kill(s.option("disk", "") == "lost") : a.stop();
    if (back >= 0) time_.after(back, [&a] { a.start(); });
  } else if (s.verb == "cut") {
    a.cut(true);
    if (back >= 0) time_.after(back, [&a] { a.cut(false); });
  } else if (s.verb == "move") {
    a.move();
  }
  return true;
}

bool world::happen_to_instances(const statement& s) {
  if (s.noun != "instance") return false;
  auto& h = instance(s.name);
  const auto back = s.option_ms("for", -1);
  const auto again = [&](auto&& what) {
    if (back >= 0) time_.after(back, what);
  };
  if (s.verb == "start") h.start();
  else if (s.verb == "kill" || s.verb == "vanish" || s.verb == "stop") {
    if (!h.wanted()) return true;
    s.verb == "kill" ? h.kill() : s.verb == "vanish" ? h.vanish() : h.stop();
    again([&h] { h.start(); });
  } else if (s.verb == "pause") {
    if (!h.answers()) return true;
    if (s.option("inside", "") == "transaction") h.at_next_transaction([this, &h, back] { pause(h, back); });
    else pause(h, back);
  } else if (s.verb == "cut") {
    if (s.option("from", "bus") == "store") {
      h.cut_store(true);
      again([&h] { h.cut_store(false); });
    } else {
      h.cut_bus(true);
      again([&h] { h.cut_bus(false); });
    }
  }
  return true;
}

void world::pause(host& h, std::int64_t for_ms) {
  if (!h.answers() || faults_over_) return;
  h.pause();
  if (for_ms >= 0) time_.after(for_ms, [&h] { h.resume(); });
  // Its streams are open and silent: their other ends give them up after a while.
  time_.after(pause_noticed_ms, [this, &h, starts = h.starts()] {
    if (!h.paused() || h.starts() != starts) return;
    std::vector<gateway_host*> theirs;
    for (const auto& [id, one] : streams_)
      if (one.at == &h) theirs.push_back(one.gateway);
    for (auto* g : theirs) g->hang_up();
    std::vector<watch_host*> unwatched;
    for (const auto& [id, one] : watch_streams_)
      if (one.at == &h) unwatched.push_back(one.watch);
    for (auto* w : unwatched) w->hang_up();
  });
}

bool world::happen_to_gateways(const statement& s) {
  if (s.noun != "gateway") return false;
  if (gateways_.empty()) return true;
  auto& g = gateway(s.name);
  if (s.verb == "restart") g.restart();
  else if (s.verb == "disconnect") g.hang_up();
  else if (s.verb == "freeze") g.freeze(s.option_ms("for", 6'000));
  return true;
}

/// What is made of a tunnel or a connector is refused, by one gateway or by all.
void world::refuse(const statement& s) {
  const auto [project, name] = split_name(s.name);
  std::vector<std::string> resources;
  if (s.noun == "connector") {
    resources.push_back(gateway::cluster_name(project, name));
  } else if (s.option("its", "route") == "scope") {
    resources.push_back(name + "." + project + ".example.com");
    if (const auto* row = db_.row("tunnel/" + project + "/" + name)) resources = {row->tunnel().hostnames().begin(), row->tunnel().hostnames().end()};
  } else {
    resources.push_back(gateway::route_name(project, name));
  }
  const auto which = s.option("gateway", "");
  for (auto& g : gateways_) {
    if (!which.empty() && g.get() != &gateway(which)) continue;
    for (const auto& one : resources) g->dislike(one);
    if (const auto back = s.option_ms("for", -1); back >= 0)
      time_.after(back, [host = g.get(), resources] {
        for (const auto& one : resources) host->like(one);
      });
  }
}

bool world::happen_to_watches(const statement& s) {
  if (s.noun != "watch") return false;
  if (watches_.empty()) return true;
  const auto n = static_cast<std::size_t>(std::max(1, std::atoi(s.name.c_str())));
  watches_[(n - 1) % watches_.size()]->hang_up();
  return true;
}

bool world::happen_to_all(const statement& s) {
  const auto back = s.option_ms("for", -1);
  const auto again = [&](auto&& what) {
    if (back >= 0) time_.after(back, what);
  };
  if (s.is("end", "faults")) {
    end_faults();
  } else if (s.is("lose", "bus")) {
    for (auto& h : hosts_) h->cut_bus(true);
    for (auto& [key, a] : agents_) a->cut(true);
    again([this] {
      for (auto& h : hosts_) h->cut_bus(false);
      for (auto& [key, a] : agents_) a->cut(false);
    });
  } else if (s.is("lose", "store")) {
    weather_.away = true;
    again([this] { weather_.away = false; });
  } else if (s.is("fail-over", "store")) {
    fail_over(s.option_ms("losing", 1'000));
  } else if (s.is("leave", "commits")) {
    weather_.undecided_percent = s.option_number("undecided", 0);
    weather_.contended_percent = s.option_number("contended", 0);
    again([this] { weather_.undecided_percent = weather_.contended_percent = 0; });
  } else if (s.is("disturb", "store")) {
    weather_.late_percent = s.option_number("late", 0);
    weather_.late_ms_max = std::max<std::int64_t>(1, s.option_ms("by", 300));
    again([this] { weather_.late_percent = 0; });
  } else if (s.is("disturb", "bus")) {
    net_.noise_now = {.lost_percent = s.option_number("lost", 0),
                      .repeated_percent = s.option_number("repeated", 0),
                      .late_percent = s.option_number("late", 0),
                      .late_ms_max = s.option_ms("by", 700),
                      .delay_ms_max = 12};
    again([this] { net_.noise_now = {}; });
  }
  return true;
}

void world::fail_over(std::int64_t losing_ms) {
  const auto backup = backups_.find(std::max<std::int64_t>(0, time_.now_ms() - losing_ms));
  // Two failovers within what one loses: the second finds a replica that has seen the first.
  if (backup == backups_.end() || backup->second.incarnation != db_.now.incarnation) return;
  time_.tell("the database goes back by {} ms", losing_ms);
  db_.fail_over(backup->second);
  for (auto& h : hosts_)
    if (h->running()) h->running()->store().break_connections();
  // Sessions end with the server that had them; each instance takes its lock at the new one.
  db_.locks.clear();
  for (auto& h : hosts_)
    if (h->running()) h->running()->leases().lose_lock_connection();
  audit_.failed_over();
  for (auto& w : watches_) w->failed_over();
  weather_.away = true;
  time_.after(time_.store.between(300, 1'200), [this] { weather_.away = false; });
}

void world::end_faults() {
  faults_over_ = true;
  net_.noise_now = {};
  weather_.undecided_percent = weather_.contended_percent = weather_.late_percent = 0;
  weather_.away = false;
  for (auto& h : hosts_) {
    h->resume();
    h->cut_bus(false);
    h->cut_store(false);
    h->start();
  }
  for (auto& [key, a] : agents_) a->cut(false);
  for (auto& g : gateways_) {
    g->freeze(0);
    g->like_all();
  }
}

}  // namespace warren::simulation
