// services/warrenctl/trace_verb.cpp -- asks the API what a trace has to know, and prints what it finds.
#include <algorithm>
#include <map>

#include "services/warrenctl/command_line.hpp"

namespace warren::ctl {

namespace {

void trace_url_of(session& s) {
  s.refuse_names("trace");
  trace_question q;
  std::string why;
  const auto url = parse_trace_url(s.o.name, why);
  if (!url) throw usage{why};
  q.url = *url;
  if (!s.o.timeout.empty()) q.timeout = s.timeout;
  std::map<std::string, std::string> given;
  for (const auto& text : s.o.gateway_addresses) {
    const auto equals = text.find('=');
    if (equals == std::string::npos || text.find(':', equals) == std::string::npos)
      throw usage{"--gateway is NAME=HOST:PORT, where visitors reach that gateway"};
    given[text.substr(0, equals)] = text.substr(equals + 1);
  }

  api::ListTunnelsRequest by_host;
  by_host.set_parent("projects/-");
  by_host.set_filter(fmt::format("hostname = \"{}\"", q.url.host));
  const auto found = s.call<tunnels>(&tunnels::Stub::ListTunnels, by_host);
  if (!found.tunnels().empty()) q.tunnel = found.tunnels(0);
  if (q.tunnel) q.rule = rule_for(*q.tunnel, q.url.target);
  if (q.rule >= 0) {
    api::GetConnectorRequest behind;
    behind.set_name(q.tunnel->name().substr(0, q.tunnel->name().find("/tunnels/")) + "/connectors/" + q.tunnel->rules(q.rule).connector());
    try {
      q.connector = s.call<connectors>(&connectors::Stub::GetConnector, behind);
    } catch (const refused& r) {
      if (r.status.error_code() != grpc::StatusCode::NOT_FOUND) throw;
    }
  }
  const auto all_classes = all_of<classes>(s, &classes::Stub::ListGatewayClasses, api::ListGatewayClassesRequest{},
                                           [](const auto& page) -> const auto& { return page.gateway_classes(); });
  q.through_tunnel_gateway = q.tunnel && std::any_of(all_classes.begin(), all_classes.end(), [&](const api::GatewayClass& each) {
    return each.name() == "gatewayClasses/" + q.tunnel->gateway_class() && each.dial_mode() == "tunnel-listener";
  });
  for (const auto& g : all_of<gateways>(s, &gateways::Stub::ListGateways, api::ListGatewaysRequest{},
                                        [](const auto& page) -> const auto& { return page.gateways(); })) {
    const auto name = g.name().substr(g.name().rfind('/') + 1);
    const bool asked = s.o.gateway_addresses.empty() ? (!q.tunnel || q.tunnel->gateway_class() == g.gateway_class()) && g.state() != "never_seen" && g.state() != "gone"
                                     : given.contains(name);
    if (!asked) continue;
    const api::GatewayClass* of_class = nullptr;
    for (const auto& each : all_classes)
      if (each.name() == "gatewayClasses/" + g.gateway_class()) of_class = &each;
    q.gateways.push_back(locate(g, of_class, given.contains(name) ? given[name] : ""));
    given.erase(name);
  }
  if (!given.empty())
    throw refused{grpc::Status{grpc::StatusCode::NOT_FOUND, "there is no gateways/" + given.begin()->first}};

  const auto result = trace(q);
  print_trace(s.around, s.out_format, s.o.name, q, result);
  if (!result.ok) throw said_no{};
}

}  // namespace

void add_trace(command_line& line) {
  auto* trace = line.add("trace", "Ask for a URL through each gateway, the agent and the target, and say who says no", trace_url_of);
  trace->add_option("URL", line.o.name, "http://HOST/PATH, as a visitor would ask")->required();
  trace->add_option("--gateway", line.o.gateway_addresses, "NAME=HOST:PORT, where visitors reach it: only these are asked; repeatable")
      ->allow_extra_args(false);
}

}  // namespace warren::ctl
