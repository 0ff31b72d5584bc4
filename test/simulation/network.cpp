// test/simulation/network.cpp -- a simulated NATS. Knows no message's meaning.
#include "test/simulation/network.hpp"

#include <charconv>

namespace warren::simulation {

namespace {

constexpr std::int64_t cut_noticed_ms_max = 1'500;   // until the client's pings are missed
constexpr std::int64_t reconnect_ms_min = 20, reconnect_ms_max = 400;
constexpr std::string_view inbox_prefix = "_INBOX.";

bool matches(std::string_view pattern, std::string_view subject) {
  while (true) {
    const auto p = pattern.substr(0, pattern.find('.'));
    const auto s = subject.substr(0, subject.find('.'));
    if (p == ">") return !subject.empty();
    if (p != "*" && p != s) return false;
    const bool pattern_ends = p.size() == pattern.size(), subject_ends = s.size() == subject.size();
    if (pattern_ends || subject_ends) return pattern_ends && subject_ends;
    pattern.remove_prefix(p.size() + 1);
    subject.remove_prefix(s.size() + 1);
  }
}

/// Whose inbox it is; 0: it is none.
link_id inbox_owner(std::string_view subject) {
  if (subject.substr(0, inbox_prefix.size()) != inbox_prefix) return 0;
  subject.remove_prefix(inbox_prefix.size());
  link_id out = 0;
  std::from_chars(subject.data(), subject.data() + subject.size(), out);
  return out;
}

}  // namespace

link_id network::connect(std::string name, receiver to) {
  const auto id = next_++;
  connections_[id] = {.name = std::move(name), .to = std::move(to)};
  return id;
}

void network::disconnect(link_id link) {
  connections_.erase(link);
  routes_.clear();
}

void network::subscribe(link_id link, const std::string& pattern) {
  auto it = connections_.find(link);
  if (it == connections_.end() || !it->second.patterns.insert(pattern).second) return;
  routes_.clear();
}

void network::unsubscribe(link_id link, const std::string& pattern) {
  auto it = connections_.find(link);
  if (it != connections_.end() && it->second.patterns.erase(pattern) > 0) routes_.clear();
}

std::string network::inbox(link_id link, std::uint64_t number) {
  return fmt::format("{}{}.{}", inbox_prefix, link, number);
}

const std::vector<network::subscription>& network::subscribers(const std::string& subject) {
  auto known = routes_.find(subject);
  if (known != routes_.end()) return known->second;
  auto& out = routes_[subject];
  for (const auto& [id, c] : connections_)
    for (const auto& pattern : c.patterns)
      if (matches(pattern, subject)) out.push_back({id, pattern});
  return out;
}

void network::publish(link_id from, bus_message m) {
  auto it = connections_.find(from);
  if (it == connections_.end()) return;
  ++published;
  if (overheard) overheard(from, m);
  if (it->second.cut || !it->second.seen_connected) {
    ++lost;
    return;
  }
  if (const auto owner = inbox_owner(m.subject); owner != 0) return carry(from, owner, m.subject, m);
  for (const auto& s : subscribers(m.subject)) carry(from, s.link, s.pattern, m);
}

void network::request(link_id from, bus_message m) {
  auto it = connections_.find(from);
  if (it == connections_.end()) return;
  const bool nobody = subscribers(m.subject).empty();
  const bool reachable = !it->second.cut && it->second.seen_connected;
  const auto reply_to = m.reply_to;
  publish(from, std::move(m));
  // The server itself says that nobody listens: a message without a subject's payload, and without a reply.
  if (nobody && reachable) carry(from, from, reply_to, bus_message{reply_to, "", "no_responders"});
}

void network::carry(link_id from, link_id to, const std::string& pattern, const bus_message& m) {
  auto it = connections_.find(to);
  if (it == connections_.end() || it->second.cut) {
    ++lost;
    return;
  }
  auto& d = time_.network;
  if (d.chance(noise_now.lost_percent)) {
    ++lost;
    return;
  }
  const auto send = [&](std::int64_t ms) {
    time_.after(ms, [this, to, cuts = it->second.cuts, pattern, m] { arrive(to, cuts, pattern, m); });
  };
  // What an instance says to itself does not become late; all else may.
  const bool late = from != to && d.chance(noise_now.late_percent);
  send(late ? d.between(1, noise_now.late_ms_max) : noise_now.delay_ms_max <= 1 ? 1 : d.between(1, noise_now.delay_ms_max));
  if (d.chance(noise_now.repeated_percent)) send(d.between(1, noise_now.late_ms_max));
}

void network::arrive(link_id to, std::uint64_t cuts, const std::string& pattern, const bus_message& m) {
  auto it = connections_.find(to);
  if (it == connections_.end() || it->second.cut || it->second.cuts != cuts) {
    ++lost;
    return;
  }
  if (pattern != m.subject || inbox_owner(m.subject) == 0)
    if (it->second.patterns.count(pattern) == 0) return;
  ++delivered;
  auto on_arrival = it->second.to.message;
  if (!tamper) return on_arrival(pattern, m);
  auto changed = m;
  tamper(changed, it->second.name);
  on_arrival(pattern, changed);
}

void network::cut(link_id link) {
  auto it = connections_.find(link);
  if (it == connections_.end() || it->second.cut) return;
  it->second.cut = true;
  ++it->second.cuts;
  time_.after(time_.network.between(0, cut_noticed_ms_max), [this, link, cuts = it->second.cuts] {
    auto c = connections_.find(link);
    if (c == connections_.end() || !c->second.cut || c->second.cuts != cuts || !c->second.seen_connected) return;
    c->second.seen_connected = false;
    if (c->second.to.state) c->second.to.state(false);
  });
}

void network::mend(link_id link) {
  auto it = connections_.find(link);
  if (it == connections_.end() || !it->second.cut) return;
  it->second.cut = false;
  if (it->second.seen_connected) return;  // too short to be noticed: what was said meanwhile is lost all the same
  time_.after(time_.network.between(reconnect_ms_min, reconnect_ms_max), [this, link, cuts = it->second.cuts] {
    auto c = connections_.find(link);
    if (c == connections_.end() || c->second.cut || c->second.cuts != cuts || c->second.seen_connected) return;
    c->second.seen_connected = true;
    if (c->second.to.state) c->second.to.state(true);
  });
}

bool network::connected(link_id link) const {
  auto it = connections_.find(link);
  return it != connections_.end() && it->second.seen_connected;
}

}  // namespace warren::simulation
