// services/hook/truth.cpp -- rows in, what visitors of a tunnel meet out, for the extension hook. Pure.
#include "services/hook/truth.hpp"

#include <optional>
#include <stdexcept>

#include "services/gateway/endpoint.hpp"

namespace warren::hook {

namespaces::namespaces(const std::vector<std::string>& given) {
  for (const auto& one : given) {
    const auto equals = one.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == one.size())
      throw std::invalid_argument{"'" + one + "' is not PROJECT=NAMESPACE"};
    const auto project = one.substr(0, equals), name = one.substr(equals + 1);
    if (!namespace_.emplace(project, name).second)
      throw std::invalid_argument{"project " + project + " has two namespaces"};
    if (!project_.emplace(name, project).second)
      throw std::invalid_argument{"namespace " + name + " is given to two projects"};
  }
}

std::string namespaces::project_of(std::string_view route_namespace) const {
  if (const auto it = project_.find(route_namespace); it != project_.end()) return it->second;
  // Its own name means a project only as long as that one has no other namespace.
  return namespace_.find(route_namespace) == namespace_.end() ? std::string{route_namespace} : std::string{};
}

std::string namespaces::namespace_of(std::string_view project) const {
  if (const auto it = namespace_.find(project); it != namespace_.end()) return it->second;
  return project_.find(project) == project_.end() ? std::string{project} : std::string{};
}

truth_ptr truth_of(const replica::tables& t, const std::string& project, const std::string& tunnel) {
  const auto row = t.tunnel(project, tunnel);
  if (row == nullptr) return nullptr;
  const auto plan = t.plan(*row);
  auto out = std::make_shared<tunnel_truth>();
  for (const auto& p : plan.rules) {
    rule_truth rule{.index = p.index, .reason = std::string{tunnel::reason_of(p.what)}};
    if (row->has_delete_time()) {
      rule.reason = tunnel::reason_of(tunnel::outcome::disabled);
    } else if (p.what == tunnel::outcome::live) {
      if (auto endpoint = gateway::endpoint_of(p, t.connector(project, p.rule.connector()))) {
        rule.address = std::move(endpoint->address);
        rule.endpoint_id = std::move(endpoint->endpoint_id);
      } else {
        rule.reason = tunnel::reason_of(tunnel::outcome::invalid_addressing);
      }
    }
    out->rules.push_back(std::move(rule));
  }
  return out;
}

std::set<replica::entity_key> touched_tunnels(const replica::tables& t, const replica::change_set& c) {
  std::set<replica::entity_key> out = c.routes;
  out.insert(c.tunnels.begin(), c.tunnels.end());
  for (const auto& key : c.connectors)
    if (const auto at = t.tunnels_by_connector.find(key); at != t.tunnels_by_connector.end())
      for (const auto& tunnel : at->second) out.insert({key.first, tunnel});
  return out;
}

}  // namespace warren::hook
