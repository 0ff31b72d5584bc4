// test/simulation/network.cpp -- a simulated NATS. Knows no message's meaning.
#include "test/simulation/network.hpp"

#include <algorithm>
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
  connections_[id] = {.name = std::move(name), .to = std::make_shared<const receiver>(std::move(to))};
  return id;
}

void network::disconnect(link_id link) {
  connections_.erase(link);
  routes_.clear();
}

void network::subscribe(link_id link, const std::string& pattern) {
  auto it = connections_.find(link);
  if (it == connections_.end() || !it->second.patterns.insert(&*patterns_.insert(pattern).first).second) return;
  routes_.clear();
}

void network::unsubscribe(link_id link, const std::string& pattern) {
  auto it = connections_.find(link);
  const auto known = patterns_.find(pattern);
  if (it != connections_.end() && known != patterns_.end() && it->second.patterns.erase(&*known) > 0) routes_.clear();
}

std::string network::inbox(link_id link, std::uint64_t number) {
  return fmt::format("{}{}.{}", inbox_prefix, link, number);
}

const std::vector<network::subscription>& network::subscribers(const std::string& subject) {
  auto known = routes_.find(subject);
  if (known != routes_.end()) return known->second;
  auto& out = routes_[subject];
  for (const auto& [id, c] : connections_)
    for (const auto* pattern : c.patterns)
      if (matches(*pattern, subject)) out.push_back({id, pattern});
  std::sort(out.begin(), out.end(), [](const subscription& a, const subscription& b) {
    return a.link != b.link ? a.link < b.link : *a.pattern < *b.pattern;  // addresses have an order of their own
  });
  return out;
}

void network::publish(link_id from, bus_message m) { publish(from, std::make_shared<const bus_message>(std::move(m))); }

void network::publish(link_id from, const heard_message& m) {
  auto it = connections_.find(from);
  if (it == connections_.end()) return;
  ++published;
  if (overheard) overheard(from, *m);
  if (it->second.cut || !it->second.seen_connected) {
    ++lost;
    return;
  }
  if (const auto owner = inbox_owner(m->subject); owner != 0) return carry(from, owner, nullptr, m);
  for (const auto& s : subscribers(m->subject)) carry(from, s.link, s.pattern, m);
}

void network::request(link_id from, bus_message m) {
  auto it = connections_.find(from);
  if (it == connections_.end()) return;
  const bool nobody = subscribers(m.subject).empty();
  const bool reachable = !it->second.cut && it->second.seen_connected;
  const auto reply_to = m.reply_to;
  publish(from, std::move(m));
  // The server itself says that nobody listens: a message without a subject's payload, and without a reply.
  if (nobody && reachable)
    carry(from, from, nullptr, std::make_shared<const bus_message>(bus_message{reply_to, "", "no_responders"}));
}

void network::carry(link_id from, link_id to, const std::string* pattern, const heard_message& m) {
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

void network::arrive(link_id to, std::uint64_t cuts, const std::string* pattern, const heard_message& m) {
  auto it = connections_.find(to);
  if (it == connections_.end() || it->second.cut || it->second.cuts != cuts) {
    ++lost;
    return;
  }
  if (pattern != nullptr && it->second.patterns.count(pattern) == 0) return;
  ++delivered;
  const auto whom = it->second.to;
  const auto& by = pattern == nullptr ? m->subject : *pattern;
  if (!tamper) return whom->message(by, m);
  auto changed = *m;
  tamper(changed, it->second.name);
  whom->message(by, std::make_shared<const bus_message>(std::move(changed)));
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
    if (const auto whom = c->second.to; whom->state) whom->state(false);
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
    if (const auto whom = c->second.to; whom->state) whom->state(true);
  });
}

bool network::connected(link_id link) const {
  auto it = connections_.find(link);
  return it != connections_.end() && it->second.seen_connected;
}

}  // namespace warren::simulation
