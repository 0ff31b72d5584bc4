// services/admin/connector_service.cpp -- connectors in the admin API. No SQL, no CAF.
#include "services/admin/services.hpp"
#include "services/admin/watches.hpp"

namespace warren::admin {

namespace {

/// As this instance's copy has it; as the owner answered, once it is gone from there.
corev1::ConnectorRow newest(const context& shared, const corev1::Reply& reply) {
  const auto& row = reply.row().connector();
  return shared.view.read([&](const replica::tables& tables) {
    const auto* known = tables.connector(row.project(), row.name());
    return known != nullptr && known->uid() == row.uid() ? *known : row;
  });
}

/// Into the answer.
auto shown(const context& shared, api::Connector* a) {
  return [&shared, a](const corev1::Reply& reply) { *a = to_api(newest(shared, reply)); };
}

}  // namespace

unary* connector_service::CreateConnector(rpc* of, const api::CreateConnectorRequest* q, api::Connector* a) {
  return change(shared_, *of, *q, shown(shared_, a));
}
unary* connector_service::UpdateConnector(rpc* of, const api::UpdateConnectorRequest* q, api::Connector* a) {
  return change(shared_, *of, *q, shown(shared_, a));
}
unary* connector_service::DeleteConnector(rpc* of, const api::DeleteConnectorRequest* q, api::Connector* a) {
  return change(shared_, *of, *q, shown(shared_, a));
}
unary* connector_service::RotateConnectorKey(rpc* of, const api::RotateConnectorKeyRequest* q, api::Connector* a) {
  return change(shared_, *of, *q, shown(shared_, a));
}
unary* connector_service::EnrolConnector(rpc* of, const api::EnrolConnectorRequest* q,
                                         api::EnrolConnectorResponse* a) {
  return change(shared_, *of, *q, [this, a](const corev1::Reply& reply) {
    const auto row = newest(shared_, reply);
    *a->mutable_connector() = to_api(row);
    *a->mutable_enrolment() = enrolment_of(row, shared_.config.agents);
    a->set_enrolment_json(enrolment_json(a->enrolment()));
  });
}

unary* connector_service::GetConnector(rpc* of, const api::GetConnectorRequest* q, api::Connector* a) {
  std::optional<resource_name> name;
  return read(
      shared_, *of,
      [&](auto& out) {
        name = parse_name(q->name(), "connectors", "name", out);
        return name ? shared_.partition_of(name->project) : 0;
      },
      [&](const replica::tables& tables) {
        const auto* row = tables.connector(name->project, name->name);
        if (row == nullptr) return not_found(q->name());
        *a = to_api(*row);
        return grpc::Status::OK;
      });
}

unary* connector_service::ListConnectors(rpc* of, const api::ListConnectorsRequest* q,
                                         api::ListConnectorsResponse* a) {
  replica::list_request wanted;
  return read(
      shared_, *of,
      [&](auto& out) {
        wanted = list_request_of(*q, parse_parent(q->parent(), true, out).value_or(""), out);
        return wanted.project.empty() ? -1 : shared_.partition_of(wanted.project);
      },
      [&](const replica::tables& tables) {
        auto page = replica::list_connectors(tables, wanted);
        if (page.error) return invalid_status({*page.error});
        for (const auto& item : page.items) *a->add_connectors() = to_api(*item);
        a->set_next_page_token(page.next_page_token);
        return grpc::Status::OK;
      });
}

grpc::ServerWriteReactor<api::WatchConnectorsResponse>* connector_service::WatchConnectors(
    rpc* of, const api::WatchConnectorsRequest* q) {
  return watch_connectors(shared_, *of, *q);
}

}  // namespace warren::admin
