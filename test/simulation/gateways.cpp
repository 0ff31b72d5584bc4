// test/simulation/gateways.cpp -- a simulated Envoy.
#include "test/simulation/gateways.hpp"

#include <array>

#include "envoy/config/route/v3/route.pb.h"
#include "services/gateway/compile.hpp"

namespace warren::simulation {

namespace {
constexpr std::int64_t connect_ms_min = 50, connect_ms_max = 1'000;  // Envoy's back-off, jittered
constexpr std::array wildcard_kinds{gateway::kind::cluster, gateway::kind::listener, gateway::kind::scope};
}  // namespace

void gateway_host::connect() {
  if (connected()) return;
  const auto fresh = to_.fresh_stream();
  stream_ = fresh;
  if (to_.open(fresh, tries_)) {
    to_.time.record("stream", name_);
    return begin_stream();
  }
  stream_ = 0;
  ++tries_;
  to_.time.after(to_.time.network.between(connect_ms_min, connect_ms_max), [this] { connect(); });
}

void gateway_host::begin_stream() {
  asked_routes_.clear();
  for (auto k : wildcard_kinds) {
    discovery::DeltaDiscoveryRequest r;
    r.set_type_url(std::string{gateway::type_url(k)});
    r.mutable_node()->set_id(name_);
    const auto& have = k == gateway::kind::cluster    ? clusters_
                       : k == gateway::kind::listener ? listeners_
                                                      : scope_versions_;
    for (const auto& [resource, version] : have) (*r.mutable_initial_resource_versions())[resource] = version;
    send_later(std::move(r));
  }
  follow_scopes();
}

/// Asks for the routes that scopes name, and drops those that none names any more.
void gateway_host::follow_scopes() {
  std::set<std::string> wanted;
  for (const auto& [host, name] : scopes_) wanted.insert(name);
  discovery::DeltaDiscoveryRequest r;
  r.set_type_url(std::string{gateway::type_url(gateway::kind::route)});
  const bool first = asked_routes_.empty();
  for (const auto& name : wanted)
    if (asked_routes_.insert(name).second) {
      r.add_resource_names_subscribe(name);
      if (auto it = routes_.find(name); first && it != routes_.end())
        (*r.mutable_initial_resource_versions())[name] = it->second.version;
    }
  for (auto it = asked_routes_.begin(); it != asked_routes_.end();) {
    if (wanted.count(*it) > 0) {
      ++it;
      continue;
    }
    r.add_resource_names_unsubscribe(*it);
    it = asked_routes_.erase(it);
  }
  std::erase_if(routes_, [&](const auto& held) { return wanted.count(held.first) == 0; });
  if (r.resource_names_subscribe_size() > 0 || r.resource_names_unsubscribe_size() > 0) send_later(std::move(r));
}

void gateway_host::send_later(discovery::DeltaDiscoveryRequest r) {
  // One connection: order is kept whatever each takes.
  const auto now = to_.time.now_ms();
  const auto at = std::max({sent_until_ms_, frozen_until_ms_, now + to_.time.network.between(1, 4)});
  sent_until_ms_ = at;
  to_.time.after(at - now, [this, stream = stream_, r = std::move(r)] {
    if (stream == stream_ && stream_ != 0) to_.send(stream, r);
  });
}

void gateway_host::received(std::uint64_t stream, const discovery::DeltaDiscoveryResponse& r) {
  if (stream != stream_ || stream_ == 0) return;
  to_.time.record("xds", name_, r.nonce());
  auto taken = r;
  const auto bad = take_out_disliked(taken);
  const bool in_parts = r.type_url() == gateway::type_url(gateway::kind::cluster);
  if (bad.empty() || in_parts) apply(taken);
  discovery::DeltaDiscoveryRequest ack;
  ack.set_type_url(r.type_url());
  ack.set_response_nonce(r.nonce());
  if (!bad.empty()) {
    to_.time.record("refused", name_, bad.front());
    to_.time.tell("{} refuses {}", name_, fmt::join(bad, ", "));
    ack.mutable_error_detail()->set_code(13);  // INTERNAL, as Envoy says
    ack.mutable_error_detail()->set_message(fmt::format("{}: not to my taste", fmt::join(bad, ", ")));
  }
  send_later(std::move(ack));
  if (r.type_url() == gateway::type_url(gateway::kind::scope)) follow_scopes();
}

std::vector<std::string> gateway_host::take_out_disliked(discovery::DeltaDiscoveryResponse& r) {
  std::vector<std::string> bad;
  auto& all = *r.mutable_resources();
  for (auto it = all.begin(); it != all.end();) {
    if (disliked_.count(it->name()) == 0) {
      ++it;
      continue;
    }
    bad.push_back(it->name());
    refused_.insert(it->name());
    it = all.erase(it);
  }
  return bad;
}

void gateway_host::like(const std::string& resource) {
  if (disliked_.erase(resource) > 0 && has_refused(resource)) hang_up();
}

void gateway_host::like_all() {
  for (const auto& one : std::set<std::string>{disliked_}) like(one);
}

void gateway_host::apply(const discovery::DeltaDiscoveryResponse& r) {
  const auto k = gateway::kind_from(r.type_url());
  if (!k) return;
  for (const auto& resource : r.resources()) {
    const auto& name = resource.name();
    switch (*k) {
      case gateway::kind::cluster: clusters_[name] = resource.version(); break;
      case gateway::kind::listener: listeners_[name] = resource.version(); break;
      case gateway::kind::route: {
        envoy::config::route::v3::RouteConfiguration parsed;
        parsed.ParseFromString(resource.resource().value());
        auto& held = routes_[name] = {resource.version(), {}};
        for (const auto& host : parsed.virtual_hosts())
          for (const auto& one : host.routes())
            if (one.has_route() && !one.route().cluster().empty()) held.clusters.insert(one.route().cluster());
        break;
      }
      case gateway::kind::scope: {
        envoy::config::route::v3::ScopedRouteConfiguration parsed;
        parsed.ParseFromString(resource.resource().value());
        scope_versions_[name] = resource.version();
        scopes_[name] = parsed.route_configuration_name();
        break;
      }
    }
  }
  for (const auto& name : r.removed_resources()) {
    switch (*k) {
      case gateway::kind::cluster: clusters_.erase(name); break;
      case gateway::kind::listener: listeners_.erase(name); break;
      case gateway::kind::route: routes_.erase(name); break;
      case gateway::kind::scope:
        scope_versions_.erase(name);
        scopes_.erase(name);
        break;
    }
  }
}

void gateway_host::closed(std::uint64_t stream) {
  if (stream != stream_ || stream_ == 0) return;
  stream_ = 0;
  ++tries_;
  to_.time.after(to_.time.network.between(connect_ms_min, connect_ms_max), [this] { connect(); });
}

void gateway_host::hang_up() {
  if (!connected()) return;
  const auto ended = stream_;
  to_.hang_up(ended);
  closed(ended);
}

void gateway_host::restart() {
  clusters_.clear();
  listeners_.clear();
  scope_versions_.clear();
  scopes_.clear();
  routes_.clear();
  to_.time.record("gateway restarts", name_);
  hang_up();
}

void gateway_host::freeze(std::int64_t ms) { frozen_until_ms_ = to_.time.now_ms() + ms; }

const gateway_host::route* gateway_host::meets(const std::string& hostname) const {
  auto scope = scopes_.find(hostname);
  if (scope == scopes_.end()) return nullptr;
  auto found = routes_.find(scope->second);
  return found == routes_.end() ? nullptr : &found->second;
}

}  // namespace warren::simulation
