// test/support/hook.hpp -- translations of Envoy Gateway for tests: the captured ones, and ones made by hand. No I/O but
// reading the captured files.
#pragma once

#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoygateway/extension/extension.pb.h"
#include "services/hook/transform.hpp"
#include "services/hook/wire.hpp"

namespace warren::test {

namespace eg = envoygateway::extension;
namespace routes = envoy::config::route::v3;
using manager = envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

/// "request-0010-tunnel"
inline std::string captured(const std::string& name) {
  std::ifstream in{std::string{WARREN_VECTORS} + "/envoy-gateway/" + name + ".pb", std::ios::binary};
  if (!in) throw std::runtime_error("there is no captured request " + name);
  return {std::istreambuf_iterator<char>{in}, {}};
}

/// What is true, by "namespace/tunnel".
using truths = std::map<std::string, hook::truth_ptr>;
inline hook::find_tunnel find_in(const truths& all) {
  return [&all](std::string_view ns, std::string_view tunnel) -> hook::truth_ptr {
    const auto it = all.find(std::string{ns} + "/" + std::string{tunnel});
    return it == all.end() ? nullptr : it->second;
  };
}
inline hook::rule_truth online_rule(int index = 0) {
  return {index, "", "localhost:8080", std::string(64, 'a')};
}
inline hook::rule_truth offline_rule(int index = 0) { return {index, "connector-offline", "", ""}; }
inline hook::truth_ptr truth(std::vector<hook::rule_truth> rules) {
  return std::make_shared<const hook::tunnel_truth>(hook::tunnel_truth{std::move(rules)});
}
/// Every tunnel has two rules, online or not.
inline hook::find_tunnel all_of_them(bool online) {
  return [one = online ? truth({online_rule(0), online_rule(1)}) : truth({offline_rule(0), offline_rule(1)})](
             std::string_view, std::string_view) { return one; };
}

inline void add_cluster(eg::PostTranslateModifyRequest& r, const std::string& name) {
  auto* c = r.add_clusters();
  c->set_name(name);
  c->set_type(envoy::config::cluster::v3::Cluster::EDS);
}
inline routes::VirtualHost* add_host(routes::RouteConfiguration* config, const std::string& name,
                                     const std::string& domain) {
  auto* host = config->add_virtual_hosts();
  host->set_name(name);
  host->add_domains(domain);
  return host;
}
inline routes::Route* add_route(routes::VirtualHost* host, const std::string& name, const std::string& cluster,
                                const std::string& prefix = "/") {
  auto* r = host->add_routes();
  r->set_name(name);
  r->mutable_match()->set_prefix(prefix);
  if (!cluster.empty()) r->mutable_route()->set_cluster(cluster);
  return r;
}
inline void add_member(routes::Route* r, const std::string& cluster, unsigned weight) {
  auto* member = r->mutable_route()->mutable_weighted_clusters()->add_clusters();
  member->set_name(cluster);
  member->mutable_weight()->set_value(weight);
}
/// A listener whose connection manager takes its routes from `config`.
inline envoy::config::listener::v3::Listener* add_listener(eg::PostTranslateModifyRequest& r, const std::string& name,
                                                           const std::string& config, bool as_default = true) {
  manager m;
  m.set_stat_prefix("http");
  m.mutable_rds()->set_route_config_name(config);
  auto* l = r.add_listeners();
  l->set_name(name);
  auto* filter = (as_default ? l->mutable_default_filter_chain() : l->add_filter_chains())->add_filters();
  filter->set_name("envoy.filters.network.http_connection_manager");
  filter->mutable_typed_config()->PackFrom(m);
  return l;
}
inline manager manager_of(const envoy::config::listener::v3::Listener& l) {
  manager m;
  const auto& chain = l.has_default_filter_chain() ? l.default_filter_chain() : l.filter_chains(0);
  if (!chain.filters(0).typed_config().UnpackTo(&m)) throw std::runtime_error("no connection manager");
  return m;
}
inline int connect_upgrades(const envoy::config::listener::v3::Listener& l) {
  int n = 0;
  const auto m = manager_of(l);
  for (const auto& u : m.upgrade_configs()) n += u.upgrade_type() == "CONNECT";
  return n;
}

/// The request that the answer would be: the same slices under the request's numbers.
inline std::string as_request(const std::string& response) {
  std::string out;
  hook::wire::reader in{response};
  for (hook::wire::field f; in.next(f);) hook::wire::put_bytes(out, f.number + 1, f.payload);
  if (in.failed()) throw std::runtime_error("the answer is no message");
  return out;
}

}  // namespace warren::test
