// services/warren-agent/targets.cpp -- which targets can be reached, and when each is dialled again. Pure.
#include "services/warren-agent/targets.hpp"

#include <algorithm>
#include <charconv>
#include <limits>

#include <arpa/inet.h>

#include "actors/core/limits.hpp"
#include "actors/core/wire.hpp"

namespace warren::agent {

namespace {

constexpr std::string_view malformed_words = "the target is no http:// or https:// URL";

bool is_host_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
}

}  // namespace

bool target::loopback() const {
  if (host == "localhost" || host.ends_with(".localhost")) return true;
  in_addr v4{};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6{};
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

std::string target::authority() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::optional<target> parse_target(std::string_view url, bool tls_verify) {
  if (url.size() > limits::target_bytes_max) return std::nullopt;
  target out;
  if (url.starts_with("https://")) {
    out.tls = true;
    url.remove_prefix(8);
  } else if (url.starts_with("http://")) {
    url.remove_prefix(7);
  } else {
    return std::nullopt;
  }
  if (url.ends_with('/')) url.remove_suffix(1);
  out.tls_verify = !out.tls || tls_verify;
  out.port = out.tls ? 443 : 80;

  std::string_view host = url, port;
  if (url.starts_with('[')) {
    const auto end = url.find(']');
    if (end == std::string_view::npos) return std::nullopt;
    host = url.substr(1, end - 1);
    const auto rest = url.substr(end + 1);
    if (!rest.empty() && rest.front() != ':') return std::nullopt;
    port = rest.empty() ? rest : rest.substr(1);
    if (!rest.empty() && port.empty()) return std::nullopt;
    in6_addr v6{};
    if (inet_pton(AF_INET6, std::string{host}.c_str(), &v6) != 1) return std::nullopt;
  } else {
    if (const auto colon = url.find(':'); colon != std::string_view::npos) {
      host = url.substr(0, colon);
      port = url.substr(colon + 1);
      if (port.empty()) return std::nullopt;
    }
    if (host.empty() || !std::all_of(host.begin(), host.end(), is_host_character)) return std::nullopt;
  }
  out.host = host;
  if (!port.empty()) {
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
    if (error != std::errc{} || end != port.data() + port.size() || out.port == 0) return std::nullopt;
  }
  return out;
}

std::string_view to_string(reach r) {
  switch (r) {
    case reach::reachable: return "Reachable";
    case reach::unreachable: return "Unreachable";
    case reach::unknown: break;
  }
  return "Unknown";
}

void target_table::schedule(const target& t, entry& e, std::optional<std::int64_t> at) {
  if (e.next_dial_ms) queue_.erase({*e.next_dial_ms, t});
  e.next_dial_ms = at;
  if (at) queue_.insert({*at, t});
}

void target_table::mark(const entry& e) {
  for (const auto& [key, rule] : e.rules) changed_.insert(key);
  ++version_;
}

void target_table::lead_away(const std::pair<attachment_key, int>& where, const target& from) {
  const auto e = entries_.find(from);
  e->second.rules.erase(where);
  if (!e->second.rules.empty()) return;
  schedule(e->first, e->second, std::nullopt);
  if (e->second.dialling) --dialling_;
  entries_.erase(e);
}

/// What one attachment's rules lead to now. True: something has changed.
bool target_table::follow(const attachment_key& key, const busv1::Attachment* attachment, std::int64_t now_ms) {
  std::map<int, std::optional<target>> wanted;
  if (attachment != nullptr)
    for (const auto& rule : attachment->rules()) wanted.insert_or_assign(rule.index(), parse_target(rule.target(), rule.tls_verify()));

  // What they lead to first, so that a target that only changes its rule keeps its state.
  bool changed = false;
  for (const auto& [index, to] : wanted) {
    const std::pair where{key, index};
    const auto [at, fresh] = rules_.try_emplace(where);
    if (!fresh && at->second == to) continue;
    changed = true;
    const auto before = std::exchange(at->second, to);
    if (to) {
      const auto [e, unknown] = entries_.try_emplace(*to);
      e->second.rules.insert(where);
      if (unknown) schedule(e->first, e->second, now_ms);
      else if (e->second.state != reach::unknown) changed_.insert(key);  // known from another rule
    } else {
      changed_.insert(key);
    }
    if (before) lead_away(where, *before);
  }
  for (auto at = rules_.lower_bound({key, std::numeric_limits<int>::min()}); at != rules_.end() && at->first.first == key;) {
    if (wanted.contains(at->first.second)) {
      ++at;
      continue;
    }
    changed = true;
    if (at->second) lead_away(at->first, *at->second);
    at = rules_.erase(at);
  }
  if (attachment == nullptr) changed_.erase(key);
  return changed;
}

void target_table::attach(const attachment_set& set, std::int64_t now_ms, const touched_keys& touched) {
  std::set<attachment_key> keys;
  if (touched) {
    keys.insert(touched->begin(), touched->end());
  } else {
    for (const auto& [where, to] : rules_) keys.insert(where.first);
    for (const auto& [key, attachment] : set.all()) keys.insert(key);
  }
  // Those that stay first: a target of an attachment that goes may be theirs as well.
  bool changed = false;
  for (const bool held : {true, false})
    for (const auto& key : keys) {
      const auto* attachment = set.find(key.tunnel_uid, key.tunnel_generation);
      if ((attachment != nullptr) == held) changed |= follow(key, attachment, now_ms);
    }
  if (changed) ++version_;
}

std::vector<target> target_table::due(std::int64_t now_ms) {
  std::vector<target> out;
  while (!queue_.empty() && queue_.begin()->first <= now_ms && dialling_ < probes_max) {
    const auto t = queue_.begin()->second;
    auto& e = entries_.at(t);
    schedule(t, e, std::nullopt);
    e.dialling = true;
    ++dialling_;
    out.push_back(t);
  }
  return out;
}

std::optional<std::int64_t> target_table::deadline() const {
  if (queue_.empty() || dialling_ >= probes_max) return std::nullopt;
  return queue_.begin()->first;
}

bool target_table::dialled(const target& t, std::string_view words, bool probe, std::int64_t now_ms) {
  const auto at = entries_.find(t);
  if (at == entries_.end()) return false;
  auto& e = at->second;
  if (probe && e.dialling) {
    e.dialling = false;
    --dialling_;
  }
  const auto was = e.state;
  const auto said = e.words;
  if (words.empty()) {
    e.state = reach::reachable;
    e.words.clear();
    e.delay_ms = 0;
    schedule(t, e, std::nullopt);
  } else {
    e.state = reach::unreachable;
    // Visitors meet what they meet, many at once; once it is down the words are those of probes, which back off.
    if (probe || was != reach::unreachable) e.words = wire::clean_text(words, limits::target_message_bytes_max);
    // A visitor's failed dial starts the back-off; only a probe's own failure lengthens it.
    if (e.delay_ms == 0) e.delay_ms = millis{redial_first}.count();
    else if (probe) e.delay_ms = std::min(e.delay_ms * 2, millis{redial_max}.count());
    if (!e.dialling && !e.next_dial_ms) schedule(t, e, now_ms + e.delay_ms);
  }
  if (e.state == was && e.words == said) return false;
  mark(e);
  return true;
}

std::vector<busv1::TargetState> target_table::states() const {
  std::vector<busv1::TargetState> out;
  out.reserve(rules_.size());
  for (const auto& [where, to] : rules_) {
    auto& one = out.emplace_back();
    one.set_tunnel_uid(where.first.tunnel_uid);
    one.set_tunnel_generation(where.first.tunnel_generation);
    one.set_rule(where.second);
    if (!to) {
      one.set_state(std::string{to_string(reach::unreachable)});
      one.set_message(std::string{malformed_words});
      continue;
    }
    const auto& e = entries_.at(*to);
    one.set_state(std::string{to_string(e.state)});
    one.set_message(e.words);
  }
  return out;
}

std::vector<busv1::TargetState> target_table::take_changed() {
  std::vector<busv1::TargetState> out;
  for (const auto& key : changed_)
    for (auto at = rules_.lower_bound({key, 0}); at != rules_.end() && at->first.first == key; ++at) {
      auto& one = out.emplace_back();
      one.set_tunnel_uid(key.tunnel_uid);
      one.set_tunnel_generation(key.tunnel_generation);
      one.set_rule(at->first.second);
      const auto* e = at->second ? &entries_.at(*at->second) : nullptr;
      one.set_state(std::string{to_string(e == nullptr ? reach::unreachable : e->state)});
      one.set_message(e == nullptr ? std::string{malformed_words} : e->words);
    }
  changed_.clear();
  return out;
}

reach target_table::state_of(const target& t) const {
  const auto at = entries_.find(t);
  return at == entries_.end() ? reach::unknown : at->second.state;
}

}  // namespace warren::agent
