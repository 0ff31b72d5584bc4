// services/admin/tunnel_service.cpp -- tunnels in the admin API. No SQL, no CAF.
#include "services/admin/services.hpp"
#include "services/admin/watches.hpp"

namespace warren::admin {

namespace {

/// As this instance's copy has it, with derived conditions; as the owner answered, once it is gone from there.
void show(const context& shared, const corev1::Reply& reply, api::Tunnel& out) {
  const auto& row = reply.row().tunnel();
  shared.view.read([&](const replica::tables& tables) {
    const auto at = tables.tunnels.find({row.project(), row.name()});
    if (at == tables.tunnels.end() || at->second->uid() != row.uid()) {
      out = to_api(row, nullptr);
      return;
    }
    const auto derived = tables.derived.find(at->first);
    out = to_api(*at->second, derived == tables.derived.end() ? nullptr : &*derived->second.conditions);
  });
}

auto shown(const context& shared, api::Tunnel* a) {
  return [&shared, a](const corev1::Reply& reply) { show(shared, reply, *a); };
}

std::string hint_for(const tunnel::chain_link& link, const resource_name& name) {
  if (link.what != tunnel::chain_link::state::missing) return {};
  const auto has = [&](std::string_view word) { return link.name.find(word) != std::string::npos; };
  if (has("connector") && has("online"))
    return "start its agent (warren-agent run), or see: warrenctl connector get -p " + name.project;
  if (has("gateway")) return "see: warrenctl gateway list";
  if (has("target")) return "see whether the target can be reached from the agent's machine";
  return {};
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
        *a = to_api(*at->second, derived == tables.derived.end() ? nullptr : &*derived->second.conditions);
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
        for (const auto& item : page.items) *a->add_tunnels() = to_api(*item.row, &*item.conditions);
        a->set_next_page_token(page.next_page_token);
        return grpc::Status::OK;
      });
}

unary* tunnel_service::ExplainTunnel(rpc* of, const api::ExplainTunnelRequest* q, api::ExplainTunnelResponse* a) {
  std::optional<resource_name> name;
  return read(
      shared_, *of,
      [&](auto& out) {
        name = parse_name(q->name(), "tunnels", "name", out);
        return name ? shared_.partition_of(name->project) : 0;
      },
      [&](const replica::tables& tables) {
        const auto chain = tables.explain(name->project, name->name, wall_ms());
        if (chain.empty()) return not_found(q->name());
        a->set_name(q->name());
        for (const auto& link : chain) {
          auto& to = *a->add_links();
          to.set_what(link.name);
          to.set_ok(link.what == tunnel::chain_link::state::ok);
          to.set_state(std::string{tunnel::to_string(link.what)});
          to.set_message(link.words);
          if (link.since_ms != 0) *to.mutable_since() = timestamp_from_ms(link.since_ms);
          to.set_hint(hint_for(link, *name));
        }
        const auto* missing = tunnel::first_missing(chain);
        a->set_ready(missing == nullptr);
        a->set_summary(missing == nullptr ? "A visitor gets through."
                                          : missing->name + (missing->words.empty() ? "" : ": " + missing->words));
        return grpc::Status::OK;
      });
}

grpc::ServerWriteReactor<api::WatchTunnelsResponse>* tunnel_service::WatchTunnels(rpc* of,
                                                                                  const api::WatchTunnelsRequest* q) {
  return watch_tunnels(shared_, *of, *q);
}

}  // namespace warren::admin
