// services/warrenctl/gateways.cpp -- the verbs of gateways.
#include "services/warrenctl/command_line.hpp"

namespace warren::ctl {

namespace {

void create_gateway(session& s) {
  api::CreateGatewayRequest q;
  q.set_gateway_id(s.o.name);
  q.mutable_gateway()->set_gateway_class(s.o.gateway_class);
  q.set_request_id(s.o.request_id);
  s.show(s.call<gateways>(&gateways::Stub::CreateGateway, q));
}
void update_gateway(session& s) {
  api::UpdateGatewayRequest q;
  q.mutable_gateway()->set_name(s.full("gateways"));
  q.mutable_gateway()->set_gateway_class(s.o.gateway_class);
  q.mutable_gateway()->set_etag(s.o.etag);
  q.set_request_id(s.o.request_id);
  s.show(s.call<gateways>(&gateways::Stub::UpdateGateway, q));
}
void watch_gateways(session& s) {
  s.watch<gateways>(&gateways::Stub::WatchGateways, api::WatchGatewaysRequest{}, s.o.name.empty() ? "" : s.full("gateways"),
                    [](const api::WatchGatewaysResponse& r) { return r.gateway(); });
}

}  // namespace

void add_gateways(command_line& line) {
  auto* n = line.noun("gateway", "Envoys that take visitors");
  line.add(n, "list", "List gateways", [](session& s) {
    if (s.o.watch) return watch_gateways(s);
    s.list<gateways>(&gateways::Stub::ListGateways, s.listing<api::ListGatewaysRequest>(), [](auto& r) { return r.mutable_gateways(); });
  }, false);
  line.add(n, "watch", "Follow gateways", watch_gateways, false)->add_option("NAME", line.o.name, "only this one");
  line.add(n, "get", "Show a gateway", [](session& s) {
    if (s.o.watch) return watch_gateways(s);
    s.show(s.call<gateways>(&gateways::Stub::GetGateway, s.named<api::GetGatewayRequest>("gateways")));
  }, true);
  line.add(n, "create", "Register a gateway", create_gateway, true)->add_option("--class", line.o.gateway_class, "its gateway class");
  line.add(n, "update", "Change its class", update_gateway, true)->add_option("--class", line.o.gateway_class, "its gateway class")->required();
  line.add(n, "delete", "Remove a gateway", [](session& s) {
    s.call<gateways>(&gateways::Stub::DeleteGateway, s.named<api::DeleteGatewayRequest>("gateways"));
    print_deleted(s.around, s.out_format, s.full("gateways"));
  }, true);
  line.add(n, "bootstrap", "Print the configuration that its Envoy starts with", [](session& s) {
    s.around.out << s.call<gateways>(&gateways::Stub::GetGatewayBootstrap, s.named<api::GetGatewayBootstrapRequest>("gateways")).text();
  }, true);
}

}  // namespace warren::ctl
