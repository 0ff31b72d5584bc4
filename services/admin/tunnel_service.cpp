// services/admin/tunnel_service.cpp -- tunnels in the admin API. No SQL, no CAF.
#include <fmt/format.h>

#include "services/admin/explain.hpp"
#include "services/admin/observe.hpp"
#include "services/admin/services.hpp"
#include "services/admin/watches.hpp"

namespace warren::admin {

namespace {

/// As this instance's copy has it, with derived conditions; as the owner answered, once it is something else there.
void show(const context& shared, const corev1::Reply& reply, api::Tunnel& out) {
  const auto& row = reply.row().tunnel();
  shared.view.read([&](const replica::tables& tables) {
    const auto at = tables.tunnels.find({row.project(), row.name()});
    const auto known = at == tables.tunnels.end() ? nullptr : at->second.unpack();
    if (!known || !of_same_spec(row, *known)) {
      out = to_api(row, nullptr);
      return;
    }
    const auto derived = tables.derived.find(at->first);
    out = to_api(*known, derived == tables.derived.end() ? nullptr : &*derived->second.conditions());
  });
}

auto shown(const context& shared, api::Tunnel* a) {
  return [&shared, a](const corev1::Reply& reply) { show(shared, reply, *a); };
}

void show_chain(const std::vector<tunnel::chain_link>& chain, const resource_name& name, api::ExplainTunnelResponse& a) {
  a.set_name(tunnel_name(name.project, name.name));
  for (const auto& link : chain) {
    auto& to = *a.add_links();
    to.set_what(link.name);
    to.set_ok(link.what == tunnel::chain_link::state::ok);
    to.set_state(std::string{tunnel::to_string(link.what)});
    to.set_message(link.words);
    if (link.since_ms != 0) *to.mutable_since() = timestamp_from_ms(link.since_ms);
    to.set_hint(link.hint);
  }
  const auto* missing = tunnel::first_missing(chain);
  a.set_ready(missing == nullptr);
  a.set_summary(missing == nullptr ? "A visitor gets through."
                                   : missing->name + (missing->words.empty() ? "" : ": " + missing->words));
}

}  // namespace

unary* tunnel_service::CreateTunnel(rpc* of, const api::CreateTunnelRequest* q, api::Tunnel* a) {
  return change(shared_, *of, *q, shown(shared_, a));
}
unary* tunnel_service::UpdateTunnel(rpc* of, const api::UpdateTunnelRequest* q, api::Tunnel* a) {
  return change(shared_, *of, *q, shown(shared_, a));
}
unary* tunnel_service::DeleteTunnel(rpc* of, const api::DeleteTunnelRequest* q, api::Tunnel* a) {
  return change(shared_, *of, *q, shown(shared_, a));
}

unary* tunnel_service::GetTunnel(rpc* of, const api::GetTunnelRequest* q, api::Tunnel* a) {
  std::optional<resource_name> name;
  return read(
      shared_, *of,
      [&](auto& out) {
        name = parse_name(q->name(), "tunnels", "name", out);
        return name ? shared_.partition_of(name->project) : 0;
      },
      [&](const replica::tables& tables) {
        const auto at = tables.tunnels.find({name->project, name->name});
        if (at == tables.tunnels.end()) return not_found(q->name());
        const auto derived = tables.derived.find(at->first);
        *a = to_api(*at->second.unpack(), derived == tables.derived.end() ? nullptr : &*derived->second.conditions());
        return grpc::Status::OK;
      });
}

unary* tunnel_service::ListTunnels(rpc* of, const api::ListTunnelsRequest* q, api::ListTunnelsResponse* a) {
  replica::list_request wanted;
  return read(
      shared_, *of,
      [&](auto& out) {
        wanted = list_request_of(*q, parse_parent(q->parent(), true, out).value_or(""), out);
        return wanted.project.empty() ? -1 : shared_.partition_of(wanted.project);
      },
      [&](const replica::tables& tables) {
        auto page = replica::list_tunnels(tables, wanted);
        if (page.error) return invalid_status({*page.error});
        put_page(*a, *a->mutable_tunnels(), page, [](const auto& item) { return to_api(*item.row(), &*item.conditions()); });
        return grpc::Status::OK;
      });
}

unary* tunnel_service::ExplainTunnel(rpc* of, const api::ExplainTunnelRequest* q, api::ExplainTunnelResponse* a) {
  auto c = std::make_shared<call>(shared_, *of);
  if (!c->admitted()) return c->reactor();
  std::vector<violation> violations;
  const auto name = parse_name(q->name(), "tunnels", "name", violations);
  if (!name) {
    c->finish(invalid_status(std::move(violations)));
    return c->reactor();
  }
  auto chain = std::make_shared<std::vector<tunnel::chain_link>>();
  std::set<std::string> connectors;
  std::int64_t age_ms = 0;
  const auto status = shared_.view.read([&](const replica::tables& tables) {
    if (auto cold = warm_enough(tables, shared_.partition_of(name->project)); !cold.ok()) return cold;
    *chain = tables.explain(name->project, name->name, wall_ms());
    if (chain->empty()) return not_found(q->name());
    const auto row = tables.tunnel(name->project, name->name);
    for (const auto& rule : row->rules())
      if (tables.connector(name->project, rule.connector()) != nullptr) connectors.insert(rule.connector());
    age_ms = tables.age_ms(shared_.partition_of(name->project), steady_ms());
    return grpc::Status::OK;
  });
  if (!status.ok()) {
    c->finish(status);
    return c->reactor();
  }
  tell_age(shared_, *of, age_ms);
  observe(shared_, name->project, connectors, c->deadline(), [c, a, chain, name, connectors](const observations& heard) {
    const auto now = wall_ms();
    const bool deaf = is_deaf(c->shared());
    for (const auto& each : connectors)
      for (auto& link : *chain) {
        if (link.name != "connector " + each + " online") continue;
        const auto at = heard.find(each);
        link.words += (link.words.empty() ? "" : " ") + heard_words(at == heard.end() ? nullptr : &at->second, now, deaf);
        if (deaf && at == heard.end() && link.hint.starts_with("start its agent (warren-agent run)")) link.hint = deaf_hint();
      }
    show_chain(*chain, *name, *a);
    c->finish(grpc::Status::OK);
  });
  return c->reactor();
}

grpc::ServerWriteReactor<api::WatchTunnelsResponse>* tunnel_service::WatchTunnels(rpc* of,
                                                                                  const api::WatchTunnelsRequest* q) {
  return watch_tunnels(shared_, *of, *q);
}

}  // namespace warren::admin
