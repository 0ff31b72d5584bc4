// services/admin/connector_service.cpp -- connectors in the admin API. No SQL, no CAF.
#include "services/admin/explain.hpp"
#include "services/admin/observe.hpp"
#include "services/admin/services.hpp"
#include "services/admin/watches.hpp"

namespace warren::admin {

namespace {

/// As this instance's copy has it; as the owner answered, once it is something else there.
corev1::ConnectorRow newest(const context& shared, const corev1::Reply& reply) {
  const auto& row = reply.row().connector();
  return shared.view.read([&](const replica::tables& tables) {
    const auto* known = tables.connector(row.project(), row.name());
    return known != nullptr && of_same_spec(row, *known) ? *known : row;
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
    auto file = enrolment_json(a->enrolment());
    if (!file) return error_status(errc::internal, "the enrolment file cannot be written as JSON");
    a->set_enrolment_json(std::move(*file));
    return grpc::Status::OK;
  });
}

namespace {

/// A tunnel to it whose gateways dial agents themselves.
void find_dialling(const replica::tables& tables, const std::string& project, const std::string& name, connector_surroundings& out) {
  const auto tunnels = tables.tunnels_by_connector.find({project, name});
  if (tunnels == tables.tunnels_by_connector.end()) return;
  for (const auto& each : tunnels->second) {
    const auto row = tables.tunnel(project, each);
    if (!row || !tunnel::dial_agents(tables.dials_agents(row->gateway_class()), tables.gateways_of(row->partition(), row->gateway_class())))
      continue;
    out.dialled_for = each;
    out.dialling_class = row->gateway_class();
    return;
  }
}

/// Reads a connector here and asks its owner when its agent was last heard; then `answer(row, surroundings, now)`.
template <class Answer> unary* get_observed(context& shared, rpc& of, const std::string& full_name, Answer answer) {
  auto c = std::make_shared<call>(shared, of);
  if (!c->admitted()) return c->reactor();
  std::vector<violation> violations;
  const auto name = parse_name(full_name, "connectors", "name", violations);
  if (!name) {
    c->finish(invalid_status(std::move(violations)));
    return c->reactor();
  }
  auto row = std::make_shared<corev1::ConnectorRow>();
  auto around = std::make_shared<connector_surroundings>();
  std::int64_t age_ms = 0;
  const auto status = shared.view.read([&](const replica::tables& tables) {
    if (auto cold = warm_enough(tables, shared.partition_of(name->project)); !cold.ok()) return cold;
    const auto* found = tables.connector(name->project, name->name);
    if (found == nullptr) return not_found(full_name);
    *row = *found;
    find_dialling(tables, name->project, name->name, *around);
    age_ms = tables.age_ms(shared.partition_of(name->project), steady_ms());
    return grpc::Status::OK;
  });
  if (!status.ok()) {
    c->finish(status);
    return c->reactor();
  }
  tell_age(shared, of, age_ms);
  observe(shared, name->project, {name->name}, c->deadline(), [c, row, around, answer](const observations& heard) {
    const auto at = heard.find(row->name());
    around->observed = at == heard.end() ? nullptr : &at->second;
    around->deaf = is_deaf(c->shared());
    answer(*row, *around, wall_ms());
    c->finish(grpc::Status::OK);
  });
  return c->reactor();
}

}  // namespace

unary* connector_service::GetConnector(rpc* of, const api::GetConnectorRequest* q, api::Connector* a) {
  return get_observed(shared_, *of, q->name(), [a](const corev1::ConnectorRow& row, const connector_surroundings& around, std::int64_t) {
    *a = to_api(row);
    if (around.observed != nullptr) *a->mutable_hearing() = to_api(*around.observed);
  });
}

unary* connector_service::ExplainConnector(rpc* of, const api::ExplainConnectorRequest* q,
                                           api::ExplainConnectorResponse* a) {
  return get_observed(
      shared_, *of, q->name(), [a](const corev1::ConnectorRow& row, const connector_surroundings& around, std::int64_t now) {
        a->set_name(connector_name(row.project(), row.name()));
        a->set_online(row.online());
        a->set_summary("The agent is there.");
        bool said = false;
        for (auto& link : explain_connector(row, around, now)) {
          if (!link.ok() && !std::exchange(said, true)) a->set_summary(link.what() + ": " + link.message());
          *a->add_links() = std::move(link);
        }
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
        put_page(*a, *a->mutable_connectors(), page, [](const auto& item) { return to_api(*item); });
        return grpc::Status::OK;
      });
}

grpc::ServerWriteReactor<api::WatchConnectorsResponse>* connector_service::WatchConnectors(
    rpc* of, const api::WatchConnectorsRequest* q) {
  return watch_connectors(shared_, *of, *q);
}

}  // namespace warren::admin
