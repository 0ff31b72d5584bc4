// services/hook/truth.hpp -- rows in, what visitors of a tunnel meet out, for the extension hook. Asks the same questions
// of the same rows as the routes of services/gateway. Pure: no I/O, no clock.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "services/hook/transform.hpp"
#include "services/replica/view.hpp"

namespace warren::hook {

/// Which project an HTTPRoute's namespace means. A project's namespace is its own name, unless it is given another one;
/// two projects never share one.
class namespaces {
public:
  namespaces() = default;
  /// "project=namespace" each. Errors: std::invalid_argument, saying which one and why.
  explicit namespaces(const std::vector<std::string>& given);
  /// Empty: no project's.
  std::string project_of(std::string_view route_namespace) const;
  std::string namespace_of(std::string_view project) const;

private:
  std::map<std::string, std::string, std::less<>> project_, namespace_;
};

/// Null: there is no such tunnel.
truth_ptr truth_of(const replica::tables& t, const std::string& project, const std::string& tunnel);

/// Tunnels whose truth may be another one after this change.
std::set<replica::entity_key> touched_tunnels(const replica::tables& t, const replica::change_set& c);

}  // namespace warren::hook
