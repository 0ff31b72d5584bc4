// services/warrenctl/classes.cpp -- the verbs of connector classes and gateway classes.
#include "services/warrenctl/command_line.hpp"

namespace warren::ctl {

namespace {

api::ConnectorClass connector_class_from(const options& o) {
  api::ConnectorClass c;
  for (const auto& n : o.networks) c.add_allowed_networks(n);
  return c;
}
api::GatewayClass gateway_class_from(const options& o) {
  api::GatewayClass c;
  c.set_dial_mode(o.dial_mode);
  for (const auto& l : o.listen) c.add_listen(l);
  if (!o.idle_timeout.empty()) put(*c.mutable_stream_idle_timeout(), o.idle_timeout, "--stream-idle-timeout");
  return c;
}

}  // namespace

void add_classes(command_line& line) {
  auto* c = line.noun("connector-class", "Which addresses connectors may have");
  line.add(c, "list", "List connector classes", [](session& s) {
    s.list<classes>(&classes::Stub::ListConnectorClasses, s.listing<api::ListConnectorClassesRequest>(), [](auto& r) { return r.mutable_connector_classes(); });
  }, false);
  line.add(c, "get", "Show a connector class", [](session& s) {
    s.show(s.call<classes>(&classes::Stub::GetConnectorClass, s.named<api::GetConnectorClassRequest>("connectorClasses")));
  }, true);
  line.add(c, "create", "Create a connector class", [](session& s) {
    api::CreateConnectorClassRequest q;
    q.set_connector_class_id(s.o.name);
    *q.mutable_connector_class() = connector_class_from(s.o);
    q.set_request_id(s.o.request_id);
    s.show(s.call<classes>(&classes::Stub::CreateConnectorClass, q));
  }, true)->add_option("--allow", line.o.networks, "network, for example 10.0.0.0/8; repeatable")->allow_extra_args(false);
  line.add(c, "update", "Replace its networks", [](session& s) {
    api::UpdateConnectorClassRequest q;
    *q.mutable_connector_class() = connector_class_from(s.o);
    q.mutable_connector_class()->set_name(s.full("connectorClasses"));
    q.mutable_connector_class()->set_etag(s.o.etag);
    q.mutable_update_mask()->add_paths("allowed_networks");
    q.set_request_id(s.o.request_id);
    s.show(s.call<classes>(&classes::Stub::UpdateConnectorClass, q));
  }, true)->add_option("--allow", line.o.networks, "network; repeatable; none: the default")->allow_extra_args(false);
  line.add(c, "delete", "Delete a connector class", [](session& s) {
    s.call<classes>(&classes::Stub::DeleteConnectorClass, s.named<api::DeleteConnectorClassRequest>("connectorClasses"));
    print_deleted(s.around, s.out_format, s.full("connectorClasses"));
  }, true);

  auto* g = line.noun("gateway-class", "How a kind of gateways is configured");
  const auto spec = [&](CLI::App* v) {
    v->add_option("--dial-mode", line.o.dial_mode, "direct or tunnel-listener");
    v->add_option("--listen", line.o.listen, "IP:PORT; repeatable")->allow_extra_args(false);
    v->add_option("--stream-idle-timeout", line.o.idle_timeout, "for example 5m");
  };
  line.add(g, "list", "List gateway classes", [](session& s) {
    s.list<classes>(&classes::Stub::ListGatewayClasses, s.listing<api::ListGatewayClassesRequest>(), [](auto& r) { return r.mutable_gateway_classes(); });
  }, false);
  line.add(g, "get", "Show a gateway class", [](session& s) {
    s.show(s.call<classes>(&classes::Stub::GetGatewayClass, s.named<api::GetGatewayClassRequest>("gatewayClasses")));
  }, true);
  spec(line.add(g, "create", "Create a gateway class", [](session& s) {
    api::CreateGatewayClassRequest q;
    q.set_gateway_class_id(s.o.name);
    *q.mutable_gateway_class() = gateway_class_from(s.o);
    q.set_request_id(s.o.request_id);
    s.show(s.call<classes>(&classes::Stub::CreateGatewayClass, q));
  }, true));
  spec(line.add(g, "update", "Change what is named on the command line", [](session& s) {
    api::UpdateGatewayClassRequest q;
    *q.mutable_gateway_class() = gateway_class_from(s.o);
    q.mutable_gateway_class()->set_name(s.full("gatewayClasses"));
    q.mutable_gateway_class()->set_etag(s.o.etag);
    q.set_request_id(s.o.request_id);
    s.show(s.call<classes>(&classes::Stub::UpdateGatewayClass, q));
    if (!s.o.dial_mode.empty())
      s.around.err << "hint: an Envoy that was started for another dial mode needs a new bootstrap: warrenctl gateway bootstrap NAME\n";
  }, true));
  line.add(g, "delete", "Delete a gateway class", [](session& s) {
    s.call<classes>(&classes::Stub::DeleteGatewayClass, s.named<api::DeleteGatewayClassRequest>("gatewayClasses"));
    print_deleted(s.around, s.out_format, s.full("gatewayClasses"));
  }, true);
}

}  // namespace warren::ctl
