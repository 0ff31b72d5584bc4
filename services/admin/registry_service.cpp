// services/admin/registry_service.cpp -- gateways and classes in the admin API: what belongs to no project. No
// SQL, no CAF.
#include "services/admin/services.hpp"

#include <fmt/format.h>

#include "services/admin/watches.hpp"

namespace warren::admin {

namespace {

/// One of the installation's own rows by name.
template <class Rows, class Show>
unary* get(context& shared, rpc& of, const std::string& full_name, std::string_view collection,
           Rows replica::tables::*rows, Show show) {
  std::optional<resource_name> name;
  return read(
      shared, of,
      [&](auto& out) {
        name = parse_name(full_name, collection, "name", out);
        return shared.partition_of("");
      },
      [&](const replica::tables& tables) {
        const auto at = (tables.*rows).find(name->name);
        if (at == (tables.*rows).end()) return not_found(full_name);
        return show(tables, *at->second);
      });
}

/// A page of them. `query` is the replica's list of that kind, `to` the answer's field; `show(tables, item)` is what it
/// shows of one.
template <class Request, class Response, class Resources, class Query, class Show>
unary* list(context& shared, rpc& of, const Request& q, Response& a, Resources& to, Query query, Show show) {
  replica::list_request wanted;
  return read(
      shared, of,
      [&](auto& out) {
        wanted = list_request_of(q, "", out);
        return shared.partition_of("");
      },
      [&](const replica::tables& tables) {
        auto page = query(tables, wanted);
        if (page.error) return invalid_status({*page.error});
        put_page(a, to, page, [&](const auto& item) { return show(tables, item); });
        return grpc::Status::OK;
      });
}

/// A refusal that follows from this instance's copy alone. A copy that is not complete refuses nothing. A rival in
/// the same instant gets through; the gateway is then refused by name.
template <class Judge> judgement by_copy(const context& shared, Judge judge) {
  return shared.view.read([&](const replica::tables& tables) -> judgement {
    return warm_enough(tables, shared.partition_of("")).ok() ? judge(tables) : std::nullopt;
  });
}
judgement class_missing(const context& shared, const std::string& name) {
  return by_copy(shared, [&](const replica::tables& tables) -> judgement {
    if (name.empty() || tables.gateway_classes.contains(name)) return std::nullopt;
    return invalid_status({{"gateway.gateway_class", "there is no gateway class " + name}});
  });
}
/// `full_name` is well-formed.
judgement class_in_use(const context& shared, const std::string& full_name) {
  const auto name = full_name.substr(full_name.find('/') + 1);
  return by_copy(shared, [&](const replica::tables& tables) -> judgement {
    if (!tables.gateway_classes.contains(name)) return std::nullopt;
    for (const auto& [gateway, row] : tables.gateways)
      if (row->class_() == name)
        return error_status(errc::failed_precondition,
                            "gateway " + gateway + " is of this class: delete it, or move it to another class, first");
    return std::nullopt;
  });
}
/// The same for the agents' side. A connector that is created in the same instant names a class that is not there, as
/// it may at any time, and says so.
judgement connector_class_in_use(const context& shared, const std::string& full_name) {
  const auto name = full_name.substr(full_name.find('/') + 1);
  return by_copy(shared, [&](const replica::tables& tables) -> judgement {
    if (!tables.connector_classes.contains(name)) return std::nullopt;
    const corev1::ConnectorRow* first = nullptr;
    std::size_t more = 0;
    for (const auto& [key, row] : tables.connectors) {
      if (row->class_() != name) continue;
      if (first == nullptr) first = row.get();
      else ++more;
    }
    if (first == nullptr) return std::nullopt;
    return error_status(errc::failed_precondition,
                        fmt::format("connector projects/{}/connectors/{}{} of this class: delete {}, or move {} to another class, first",
                                    first->project(), first->name(), more == 0 ? " is" : fmt::format(" and {} more are", more),
                                    more == 0 ? "it" : "them", more == 0 ? "it" : "them"));
  });
}

/// A class's row, as it was written, into the answer.
auto shown(api::ConnectorClass* a) {
  return [a](const corev1::Reply& reply) { *a = to_api(reply.row().connector_class()); };
}
auto shown(api::GatewayClass* a) {
  return [a](const corev1::Reply& reply) { *a = to_api(reply.row().gateway_class()); };
}
/// Creates or moves a gateway, if its class is there.
template <class Request> unary* put_gateway(context& shared, rpc& of, const Request& q, api::Gateway* a) {
  return change(
      shared, of, q,
      [&shared, a](const corev1::Reply& reply) {
        *a = shared.view.read([&](const auto& tables) { return to_api(reply.row().gateway(), tables, true); });
      },
      [&] { return class_missing(shared, q.gateway().gateway_class()); });
}

}  // namespace

// ---- gateways ----

unary* gateway_service::CreateGateway(rpc* of, const api::CreateGatewayRequest* q, api::Gateway* a) {
  return put_gateway(shared_, *of, *q, a);
}
unary* gateway_service::UpdateGateway(rpc* of, const api::UpdateGatewayRequest* q, api::Gateway* a) {
  return put_gateway(shared_, *of, *q, a);
}
unary* gateway_service::DeleteGateway(rpc* of, const api::DeleteGatewayRequest* q, Empty*) {
  return change(shared_, *of, *q, [](const corev1::Reply&) {});
}
unary* gateway_service::GetGateway(rpc* of, const api::GetGatewayRequest* q, api::Gateway* a) {
  return get(shared_, *of, q->name(), "gateways", &replica::tables::gateways,
             [a](const replica::tables& tables, const corev1::GatewayRow& row) {
               *a = to_api(row, tables, true);
               return grpc::Status::OK;
             });
}
unary* gateway_service::ListGateways(rpc* of, const api::ListGatewaysRequest* q, api::ListGatewaysResponse* a) {
  return list(shared_, *of, *q, *a, *a->mutable_gateways(), replica::list_gateways,
              [](const auto& tables, const replica::gateway_item& item) { return to_api(*item.row, tables, false); });
}
grpc::ServerWriteReactor<api::WatchGatewaysResponse>* gateway_service::WatchGateways(
    rpc* of, const api::WatchGatewaysRequest* q) {
  return watch_gateways(shared_, *of, *q);
}
unary* gateway_service::GetGatewayBootstrap(rpc* of, const api::GetGatewayBootstrapRequest* q,
                                            api::GatewayBootstrap* a) {
  return get(shared_, *of, q->name(), "gateways", &replica::tables::gateways,
             [this, a](const replica::tables& tables, const corev1::GatewayRow& row) {
               if (!shared_.config.bootstrap)
                 return error_status(errc::failed_precondition, "this instance serves no gateways");
               const auto at = tables.gateway_classes.find(row.class_());
               a->set_text(
                   shared_.config.bootstrap(row, at == tables.gateway_classes.end() ? nullptr : at->second.get()));
               return grpc::Status::OK;
             });
}

// ---- connector classes ----

unary* class_service::CreateConnectorClass(rpc* of, const api::CreateConnectorClassRequest* q,
                                           api::ConnectorClass* a) {
  return change(shared_, *of, *q, shown(a));
}
unary* class_service::UpdateConnectorClass(rpc* of, const api::UpdateConnectorClassRequest* q,
                                           api::ConnectorClass* a) {
  return change(shared_, *of, *q, shown(a));
}
unary* class_service::DeleteConnectorClass(rpc* of, const api::DeleteConnectorClassRequest* q, Empty*) {
  return change(shared_, *of, *q, [](const corev1::Reply&) {}, [&] { return connector_class_in_use(shared_, q->name()); });
}
unary* class_service::GetConnectorClass(rpc* of, const api::GetConnectorClassRequest* q, api::ConnectorClass* a) {
  return get(shared_, *of, q->name(), "connectorClasses", &replica::tables::connector_classes,
             [a](const replica::tables&, const corev1::ConnectorClassRow& row) {
               *a = to_api(row);
               return grpc::Status::OK;
             });
}
unary* class_service::ListConnectorClasses(rpc* of, const api::ListConnectorClassesRequest* q,
                                           api::ListConnectorClassesResponse* a) {
  return list(shared_, *of, *q, *a, *a->mutable_connector_classes(), replica::list_connector_classes,
              [](const auto&, const replica::connector_class_item& row) { return to_api(*row); });
}

// ---- gateway classes ----

unary* class_service::CreateGatewayClass(rpc* of, const api::CreateGatewayClassRequest* q, api::GatewayClass* a) {
  return change(shared_, *of, *q, shown(a));
}
unary* class_service::UpdateGatewayClass(rpc* of, const api::UpdateGatewayClassRequest* q, api::GatewayClass* a) {
  return change(shared_, *of, *q, shown(a));
}
unary* class_service::DeleteGatewayClass(rpc* of, const api::DeleteGatewayClassRequest* q, Empty*) {
  return change(shared_, *of, *q, [](const corev1::Reply&) {}, [&] { return class_in_use(shared_, q->name()); });
}
unary* class_service::GetGatewayClass(rpc* of, const api::GetGatewayClassRequest* q, api::GatewayClass* a) {
  return get(shared_, *of, q->name(), "gatewayClasses", &replica::tables::gateway_classes,
             [a](const replica::tables&, const corev1::GatewayClassRow& row) {
               *a = to_api(row);
               return grpc::Status::OK;
             });
}
unary* class_service::ListGatewayClasses(rpc* of, const api::ListGatewayClassesRequest* q,
                                         api::ListGatewayClassesResponse* a) {
  return list(shared_, *of, *q, *a, *a->mutable_gateway_classes(), replica::list_gateway_classes,
              [](const auto&, const replica::gateway_class_item& row) { return to_api(*row); });
}

}  // namespace warren::admin
