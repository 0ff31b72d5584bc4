// services/gateway/session.cpp -- one gateway's delta stream as a state machine. No I/O, no clock, no thread.
#include "services/gateway/session.hpp"

#include <algorithm>

#include "actors/core/limits.hpp"

namespace warren::gateway {

namespace {

constexpr std::size_t batch_names_max = 1000;        // in one response
constexpr std::size_t batch_bytes_max = 1024 * 1024;
constexpr std::size_t routes_under_way_max = 64;     // responses
constexpr std::size_t routes_waiting_many = 32;      // a mass change: some travel together, half the work for a gateway
constexpr std::size_t routes_under_way_many = 8;     // responses: the same
constexpr std::size_t routes_together_max = 16;
constexpr std::size_t message_bytes_max = 1024;      // of a gateway's own words
constexpr std::size_t name_bytes_max = 512;
constexpr std::size_t foreign_names_max = 200'000;   // subscribed or listed by the gateway

/// Additions in this order; see poll().
constexpr std::array order{kind::cluster, kind::listener, kind::route, kind::scope};

}  // namespace

std::string_view to_string(stream_state s) {
  constexpr std::array<std::string_view, 4> names{"connecting", "caught_up", "stalled", "gone"};
  return names.at(static_cast<std::size_t>(s));
}

session::session(const catalogue& c, std::string gateway_class) : catalogue_{c}, class_{std::move(gateway_class)} {
  // Until the gateway says otherwise it has nothing, and how old that state is does not matter.
  for (auto k : order)
    for (const auto& [name, e] : catalogue_.entries(class_, k)) {
      auto& n = types_[index(k)].names[std::string{name}];
      n.partition = e.partition;
      n.baseline = true;
      ++baseline_left_;
      set_pending(n, 1);
    }
}

// ---- in ----

std::string session::request(const discovery::DeltaDiscoveryRequest& r, std::int64_t now_ms) {
  const auto k = kind_from(r.type_url());
  // Other types are nobody's error (Envoy may ask for secrets); they are never answered.
  if (!k) return {};
  auto& t = types_[index(*k)];
  if (t.subscriptions + static_cast<std::size_t>(r.resource_names_subscribe_size()) > foreign_names_max ||
      static_cast<std::size_t>(r.initial_resource_versions_size()) > foreign_names_max)
    return "more names than a gateway can have";
  for (const auto& name : r.resource_names_subscribe())
    if (name.size() > name_bytes_max) return "a name is longer than any of ours";
  for (const auto& [name, version] : r.initial_resource_versions())
    if (name.size() > name_bytes_max || version.size() > name_bytes_max) return "a name is longer than any of ours";

  if (!r.response_nonce().empty()) answer(*k, r.response_nonce(), r, now_ms);
  if (!t.known) {
    first_request(*k, r);
  } else {
    for (const auto& name : r.resource_names_subscribe()) subscribe(*k, name);
    for (const auto& name : r.resource_names_unsubscribe()) {
      if (name == "*") t.wildcard = false;
      if (const auto it = t.names.find(name); it != t.names.end()) set_subscribed(t, it->second, false);
      drop_if_idle(*k, name);
    }
  }
  update_state(now_ms);
  return {};
}

void session::first_request(kind k, const discovery::DeltaDiscoveryRequest& r) {
  auto& t = types_[index(k)];
  t.known = true;
  std::set<std::string> subscribed;
  for (const auto& name : r.resource_names_subscribe()) {
    if (name == "*") t.wildcard = true;
    else subscribed.insert(name);
  }
  if (r.resource_names_subscribe().empty() && k != kind::route) t.wildcard = true;
  t.owes_answer = t.wildcard && r.initial_resource_versions().empty();
  t.answered = !t.owes_answer;
  for (const auto& [name, version] : r.initial_resource_versions()) {
    const auto [it, added] = t.names.try_emplace(name);
    it->second.acked = version_from(version);
    // Something that is not ours any more: taken away before the gateway has caught up.
    if (added && k != kind::route && (t.wildcard || subscribed.count(name) != 0)) {
      it->second.baseline = true;
      ++baseline_left_;
      set_pending(it->second, 1);
    }
  }
  for (const auto& name : subscribed) {
    auto& n = t.names[name];
    set_subscribed(t, n, true);
    if (n.acked == no_version) n.must_answer = true;
  }
  for (auto& [name, n] : t.names)
    if (covers(t, n)) weigh(k, name, n, 0);
}

void session::set_subscribed(type_state& t, name_state& n, bool is) {
  if (n.subscribed == is) return;
  n.subscribed = is;
  t.subscriptions = is ? t.subscriptions + 1 : t.subscriptions - 1;
}

void session::subscribe(kind k, const std::string& name) {
  auto& t = types_[index(k)];
  if (name == "*") {
    t.wildcard = true;
    return forget_all(k);
  }
  auto& n = t.names[name];
  set_subscribed(t, n, true);
  if (k == kind::route) unasked_.erase(name);
  forget(k, name, n);
}

void session::forget(kind k, const std::string& name, name_state& n) {
  n.acked = no_version;
  n.must_answer = true;
  if (n.refused) n.refused->version = no_version;
  weigh(k, name, n, 0);
}

void session::forget_all(kind k) {
  auto& t = types_[index(k)];
  t.owes_answer = true;
  for (auto& [name, n] : t.names) forget(k, name, n);
}

void session::changed(const change& c) {
  if (!c.gateway_class.empty() && c.gateway_class != class_) return;
  auto& n = types_[index(c.type)].names[c.name];
  set_partition(n, c.partition);
  weigh(c.type, c.name, n, std::max<revision_t>(c.revision, 1));
  if (c.type == kind::listener) weigh_listeners();
  drop_if_idle(c.type, c.name);
  // A scope refused for good leaves its route without a subscription; a new one brings it back.
  if (c.type == kind::scope)
    if (const auto* e = catalogue_.find(class_, kind::scope, c.name)) {
      const auto route = route_of(*e->what);
      unasked_.erase(route);
      if (const auto it = types_[index(kind::route)].names.find(route); it != types_[index(kind::route)].names.end())
        weigh(kind::route, route, it->second, std::max<revision_t>(c.revision, 1));
    }
}

void session::tick(std::int64_t now_ms) { update_state(now_ms); }

// ---- what has to be sent ----

version_t session::target_version(kind k, const std::string& name) const {
  const auto* e = catalogue_.find(class_, k, name);
  return e ? e->what->version : no_version;
}

void session::weigh(kind k, const std::string& name, name_state& n, revision_t revision) {
  auto& t = types_[index(k)];
  const auto* e = catalogue_.find(class_, k, name);
  const auto target = e ? e->what->version : no_version;
  const bool removal = (k == kind::cluster || k == kind::listener) && e == nullptr;
  if (e) set_partition(n, e->partition);

  // A route configuration goes when its last scope does: the gateway unsubscribes by itself.
  const bool ignored = k == kind::route && target == no_version && !n.must_answer;
  if (ignored) n.acked = no_version;
  if (n.in_flight) {
    if (target == n.sent && !n.must_answer) {
      n.pending_next = 0;
      unmark(t, name, n);
    } else if (ignored) {
      unmark(t, name, n);
    } else {
      if (revision != 0 && n.pending_next == 0) n.pending_next = revision;
      mark(t, name, n, removal);
    }
    return;
  }
  // What has changed since it was refused is tried; until that is acknowledged the refusal stands for what was before.
  const bool withheld = n.refused && target == n.refused->version && !n.must_answer;
  const bool unasked = k == kind::route && !unasked_.empty() && unasked_.count(name) != 0;
  const bool kept = k == kind::listener && removal && refuses_listener();
  const bool done = ignored || withheld || unasked || kept || (target == n.acked && !n.must_answer);
  if (done) {
    if (!withheld) forget_refusal(k, name, n);
    unmark(t, name, n);
    set_pending(n, 0);
    settle_baseline(n);
    return;
  }
  if (revision != 0 && (n.pending == 0 || revision < n.pending)) set_pending(n, revision);
  // A new tunnel's route is pending from the start, and is sent when the gateway, told of its scope, asks.
  if (covers(t, n)) mark(t, name, n, removal);
  else unmark(t, name, n);
}

void session::forget_refusal(kind k, const std::string& name, name_state& n) {
  if (!n.refused) return;
  refused_[n.refused->what.partition].erase({k, name});
  touched_.insert(n.refused->what.partition);
  n.refused.reset();
}

void session::mark(type_state& t, const std::string& name, name_state& n, bool removal) {
  if (n.dirty) (removal ? t.dirty : t.dirty_removals).erase(name);
  n.dirty = true;
  (removal ? t.dirty_removals : t.dirty).insert(name);
}

void session::unmark(type_state& t, const std::string& name, name_state& n) {
  if (!n.dirty) return;
  n.dirty = false;
  t.dirty.erase(name);
  t.dirty_removals.erase(name);
}

void session::set_pending(name_state& n, revision_t revision) {
  if (n.pending == revision) return;
  auto& all = pending_[n.partition];
  if (n.pending != 0) {
    if (const auto it = all.find(n.pending); --it->second == 0) all.erase(it);
    --pending_names_;
  }
  if (revision != 0) {
    ++all[revision];
    ++pending_names_;
  }
  n.pending = revision;
  touched_.insert(n.partition);
}

/// A name that only the gateway knew belongs to nobody's partition until a row says whose it is.
void session::set_partition(name_state& n, partition_id p) {
  if (n.partition == p) return;
  const auto revision = n.pending;
  set_pending(n, 0);
  n.partition = p;
  set_pending(n, revision);
}

void session::settle_baseline(name_state& n) {
  if (!n.baseline) return;
  n.baseline = false;
  --baseline_left_;
}

void session::drop_if_idle(kind k, const std::string& name) {
  auto& t = types_[index(k)];
  const auto it = t.names.find(name);
  if (it == t.names.end()) return;
  auto& n = it->second;
  if (k == kind::route && !n.subscribed && !t.wildcard) {
    // Envoy drops what it unsubscribes from.
    n.acked = no_version;
    n.must_answer = false;
    if (!n.in_flight) unmark(t, name, n);
  }
  if (n.in_flight || n.dirty || n.must_answer || n.pending != 0 || n.refused || n.subscribed) return;
  if (n.acked != no_version && k != kind::route) return;
  if (target_version(k, name) != no_version) return;
  settle_baseline(n);
  if (k == kind::route) unasked_.erase(name);
  t.names.erase(it);
}

std::vector<programmed_name> session::programmed(kind k, const std::string& after, std::size_t max) const {
  std::vector<programmed_name> out;
  std::vector<const std::pair<const std::string, name_state>*> following;
  for (const auto& each : types_[index(k)].names)
    if (each.first > after) following.push_back(&each);
  const auto page = following.begin() + static_cast<std::ptrdiff_t>(std::min(max, following.size()));
  std::partial_sort(following.begin(), page, following.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
  for (auto it = following.begin(); it != page; ++it) {
    const auto& [name, n] = **it;
    out.push_back({name, target_version(k, name), n.acked, n.in_flight, n.refused != nullptr});
  }
  return out;
}

// ---- answers ----

void session::answer(kind k, const std::string& nonce, const discovery::DeltaDiscoveryRequest& r, std::int64_t now_ms) {
  auto& t = types_[index(k)];
  const auto it = t.flights.find(nonce);
  if (it == t.flights.end()) return;
  const auto f = std::move(it->second);
  t.flights.erase(it);
  t.answered = true;
  if (!r.has_error_detail()) {
    for (const auto& name : f.names) accepted(k, name);
    if (on_acknowledged) on_acknowledged(k, now_ms - f.sent_at_ms);
    return;
  }
  ++nacks_;
  if (f.names.size() == 1) return refuse(k, f.names.front(), r.error_detail().message(), now_ms);
  // Which of them it was: each half by itself.
  for (const auto& name : f.names) {
    auto& n = t.names[name];
    n.in_flight = false;
    n.pending_next = 0;
    weigh(k, name, n, 0);
  }
  const auto middle = f.names.begin() + static_cast<std::ptrdiff_t>(f.names.size() / 2);
  if (!f.names.empty()) {
    t.suspects.push_front({middle, f.names.end()});
    t.suspects.push_front({f.names.begin(), middle});
  }
}

void session::accepted(kind k, const std::string& name) {
  auto& t = types_[index(k)];
  const auto it = t.names.find(name);
  if (it == t.names.end()) return;
  auto& n = it->second;
  n.in_flight = false;
  // Envoy's scopes belong to its visitors' listeners. Those that it was told while it had a listener that it then
  // refused or lost are gone, and it does not ask for them again.
  if (k == kind::listener && is_visitors_listener(name) && n.sent != no_version) {
    const bool scopes_gone = visitors_listener_tried_ && !runs_visitors_listener();
    visitors_listener_tried_ = true;
    if (scopes_gone && types_[index(kind::scope)].known) forget_all(kind::scope);
  }
  n.acked = n.sent;
  n.sent = no_version;
  forget_refusal(k, name, n);
  set_pending(n, n.pending_next);
  n.pending_next = 0;
  settle_baseline(n);
  weigh(k, name, n, 0);
  if (k == kind::listener) weigh_listeners();
  drop_if_idle(k, name);
}

void session::refuse(kind k, const std::string& name, const std::string& message, std::int64_t now_ms) {
  auto& n = types_[index(k)].names[name];
  n.in_flight = false;
  if (k == kind::listener && is_visitors_listener(name)) visitors_listener_tried_ = true;
  const auto refused_version = n.sent;
  n.sent = no_version;
  refusal out{.type = k, .name = name, .partition = n.partition, .revision = n.pending,
              .message = message.substr(0, message_bytes_max), .at_ms = now_ms};
  if (const auto* e = catalogue_.find(class_, k, name)) {
    out.tunnel_uid = e->tunnel_uid.view();
    if (k == kind::cluster) out.connector = connector_of(name);
  }
  last_refusal_ = out;
  forget_refusal(k, name, n);
  if (refused_version == no_version) {  // a removal: there is nothing to withhold
    n.acked = no_version;
    n.must_answer = false;
  } else {
    if (target_version(k, name) == refused_version) n.must_answer = false;
    n.refused = std::make_unique<refused_as>(refused_as{std::move(out), refused_version});
    refused_[n.partition].insert({k, name});
    touched_.insert(n.partition);
  }
  set_pending(n, n.pending_next);
  n.pending_next = 0;
  settle_baseline(n);
  weigh(k, name, n, 0);
  if (k == kind::listener) weigh_listeners();

  // Nobody will ask for a route none of whose scopes is accepted.
  if (k != kind::scope) return;
  const auto* e = catalogue_.find(class_, kind::scope, name);
  if (e == nullptr) return;
  auto& routes = types_[index(kind::route)];
  const auto route = route_of(*e->what);
  const auto r = routes.names.find(route);
  if (r == routes.names.end() || r->second.subscribed) return;
  unasked_.insert(route);
  set_pending(r->second, 0);
  settle_baseline(r->second);
}

bool session::refuses_listener() const {
  const auto& names = types_[index(kind::listener)].names;
  return std::any_of(names.begin(), names.end(), [&](const auto& each) {
    const auto& [name, n] = each;
    return n.refused && target_version(kind::listener, name) != no_version;
  });
}

bool session::runs_visitors_listener() const {
  const auto& names = types_[index(kind::listener)].names;
  return std::any_of(names.begin(), names.end(),
                     [](const auto& each) { return is_visitors_listener(each.first) && each.second.acked != no_version; });
}

void session::weigh_listeners() {
  auto& t = types_[index(kind::listener)];
  for (auto& [name, n] : t.names)
    if (covers(t, n)) weigh(kind::listener, name, n, 0);
  for (const auto& [p, revision] : catalogue_.processed()) touched_.insert(p);  // shut() is said in each
}

// ---- out ----

std::string session::shut() const {
  const auto& t = types_[index(kind::listener)];
  if (!t.known) return {};
  std::string refused;  // the first by name: it is said again and again
  bool wanted = false;
  for (const auto& [name, n] : t.names) {
    if (!is_visitors_listener(name)) continue;
    if (n.acked != no_version || n.in_flight) return {};
    if (target_version(kind::listener, name) == no_version) continue;
    wanted = true;
    if (!n.refused) continue;
    auto words = name + ": " + n.refused->what.message;
    if (refused.empty() || words < refused) refused = std::move(words);
  }
  return wanted ? refused : "its class listens nowhere";
}

bool session::may_send_route(const entry* e) const {
  const auto& clusters = types_[index(kind::cluster)];
  if (e == nullptr || !clusters.known) return true;
  return std::all_of(e->what->clusters.begin(), e->what->clusters.end(), [&](const std::string& cluster) {
    const auto it = clusters.names.find(cluster);
    if (it == clusters.names.end()) return true;
    const auto& n = it->second;
    return n.acked != no_version || n.refused || (n.in_flight && n.sent != no_version);
  });
}

std::vector<std::string> session::take_batch(kind k, std::set<std::string>& from) {
  std::vector<std::string> out;
  std::size_t bytes = 0;
  for (const auto& name : from) {
    const auto* e = catalogue_.find(class_, k, name);
    const auto size = e ? e->what->size() : name.size();
    if (!out.empty() && (out.size() >= batch_names_max || bytes + size > batch_bytes_max)) break;
    bytes += size;
    out.push_back(name);
  }
  return out;
}

/// One alone, unless many wait; one that was refused before is always alone.
std::vector<std::string> session::take_routes(const type_state& t) const {
  std::vector<std::string> out;
  if (t.flights.size() >= routes_under_way_max) return out;
  const bool many = t.dirty.size() >= routes_waiting_many || t.flights.size() >= routes_under_way_many;
  const auto most = many ? routes_together_max : 1;
  std::size_t bytes = 0;
  for (const auto& name : t.dirty) {
    const auto& n = t.names.find(name)->second;
    const auto* e = catalogue_.find(class_, kind::route, name);
    if (n.in_flight || (n.refused && !out.empty()) || !may_send_route(e)) continue;
    bytes += e ? e->what->size() : name.size();
    if (!out.empty() && bytes > batch_bytes_max) break;
    out.push_back(name);
    if (n.refused || out.size() >= most) break;
  }
  return out;
}

/// The next part of a refused response, as far as it still has to be sent; empty: there is none.
std::vector<std::string> session::take_suspects(type_state& t) const {
  while (!t.suspects.empty()) {
    auto group = std::move(t.suspects.front());
    t.suspects.pop_front();
    std::erase_if(group, [&](const std::string& name) {
      const auto it = t.names.find(name);
      return it == t.names.end() || !it->second.dirty || it->second.in_flight;
    });
    if (!group.empty()) return group;
  }
  return {};
}

std::optional<discovery::DeltaDiscoveryResponse> session::poll(std::int64_t now_ms) {
  bool routes_or_scopes_left = false;
  for (auto k : order) {
    auto& t = types_[index(k)];
    if (!t.known) continue;
    if (k == kind::route) {
      routes_or_scopes_left = !t.dirty.empty();
      auto names = take_suspects(t);
      if (names.empty()) names = take_routes(t);
      if (!names.empty()) return respond(k, names, now_ms);
      continue;
    }
    if (!t.flights.empty()) {
      routes_or_scopes_left = routes_or_scopes_left || (k == kind::scope && !t.dirty.empty());
      continue;
    }
    if (const auto suspects = take_suspects(t); !suspects.empty()) return respond(k, suspects, now_ms);
    if (!t.dirty.empty() || t.owes_answer) return respond(k, take_batch(k, t.dirty), now_ms);
    if (k == kind::listener && !t.dirty_removals.empty()) return respond(k, take_batch(k, t.dirty_removals), now_ms);
  }
  auto& clusters = types_[index(kind::cluster)];
  if (!routes_or_scopes_left && clusters.known && clusters.flights.empty() && !clusters.dirty_removals.empty())
    return respond(kind::cluster, take_batch(kind::cluster, clusters.dirty_removals), now_ms);
  return {};
}

discovery::DeltaDiscoveryResponse session::respond(kind k, const std::vector<std::string>& names, std::int64_t now_ms) {
  auto& t = types_[index(k)];
  t.owes_answer = false;
  discovery::DeltaDiscoveryResponse out;
  out.set_type_url(std::string{type_url(k)});
  out.set_nonce(std::to_string(next_nonce_++));
  for (const auto& name : names) {
    auto& n = t.names[name];
    n.in_flight = true;
    n.must_answer = false;
    n.pending_next = 0;
    if (const auto* e = catalogue_.find(class_, k, name)) {
      n.sent = e->what->version;
      auto* resource = out.add_resources();
      resource->set_name(name);
      resource->set_version(text_of(n.sent));
      resource->mutable_resource()->set_type_url(out.type_url());
      resource->mutable_resource()->set_value(e->what->bytes());
    } else {
      n.sent = no_version;
      out.add_removed_resources(name);
    }
    unmark(t, name, n);
  }
  t.flights[out.nonce()] = {names, now_ms};
  ++t.responses;
  bytes_sent_ += out.ByteSizeLong();
  return out;
}

revision_t session::acknowledged(partition_id p) const {
  const auto it = pending_.find(p);
  if (it == pending_.end() || it->second.empty()) return catalogue_.processed(p);
  return std::min(it->second.begin()->first - 1, catalogue_.processed(p));
}

bool session::refuses(partition_id p) const {
  const auto it = refused_.find(p);
  return it != refused_.end() && !it->second.empty();
}

std::vector<refusal> session::refusals(partition_id p) const {
  std::vector<refusal> out;
  const auto it = refused_.find(p);
  if (it == refused_.end()) return out;
  for (const auto& [k, name] : it->second) {
    const auto& names = types_[index(k)].names;
    const auto known = names.find(name);
    if (known == names.end() || !known->second.refused) continue;
    const auto& n = known->second;
    out.push_back(n.refused->what);
    const bool on_trial = n.pending != 0 && target_version(k, name) != n.refused->version;
    out.back().until = on_trial ? n.pending - 1 : std::max(n.refused->what.revision, catalogue_.processed(p));
  }
  return out;
}

std::set<partition_id> session::take_touched() { return std::exchange(touched_, {}); }

void session::update_state(std::int64_t now_ms) {
  std::int64_t oldest = now_ms;
  for (const auto& t : types_)
    for (const auto& [nonce, f] : t.flights) oldest = std::min(oldest, f.sent_at_ms);
  const bool silent = now_ms - oldest >= std::chrono::milliseconds{limits::gateway_stalled_after}.count();
  // Its listeners open when the first answer about scopes is there, also one that says there are none.
  const bool asked_for_all = types_[index(kind::cluster)].answered && types_[index(kind::listener)].answered &&
                             types_[index(kind::scope)].answered;
  auto next = state_;
  if (silent) {
    if (state_ != stream_state::stalled)
      for (auto& t : types_)  // it counts again when it has caught up with what it owes
        for (auto& [name, n] : t.names)
          if (n.pending != 0 && !n.baseline) {
            n.baseline = true;
            ++baseline_left_;
          }
    next = stream_state::stalled;
  } else if (state_ != stream_state::caught_up && baseline_left_ == 0 && asked_for_all) {
    next = stream_state::caught_up;
  }
  if (next == state_) return;
  state_ = next;
  for (const auto& [p, revision] : catalogue_.processed()) touched_.insert(p);
}

}  // namespace warren::gateway
