// services/admin/operations_service.cpp -- instances, partitions and the audit trail in the admin API. No SQL, no
// CAF.
#include <atomic>
#include <charconv>

#include <grpcpp/alarm.h>

#include "services/admin/services.hpp"

namespace warren::admin {

namespace {

constexpr millis audit_patience{3000};  // a page of the trail takes some milliseconds

constexpr std::string_view instances = "instances/", partitions = "partitions/";

std::optional<std::int64_t> number_after(std::string_view prefix, std::string_view text) {
  if (!text.starts_with(prefix)) return std::nullopt;
  text.remove_prefix(prefix.size());
  std::int64_t out = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || out < 0) return std::nullopt;
  return out;
}

/// What pages of numbered things start from: the token is the last number.
std::int64_t after_of(const std::string& token, std::vector<violation>& out) {
  if (token.empty()) return -1;
  const auto after = number_after("", token);
  if (!after) out.push_back({"page_token", "is none that was given"});
  return after.value_or(-1);
}

/// What the database last said. When that is longer ago than a lease, only that of somebody who has said on the bus
/// since then that he holds his is known to hold.
placement_info placement_of(context& shared, rpc& of) {
  placement_info p;
  p.error = "not known yet";
  if (shared.config.placement) p = shared.config.placement();
  if (p.known_at_ms == 0 || !p.error.empty()) return p;
  const auto age_ms = std::max<std::int64_t>(0, steady_ms() - p.known_at_ms);
  if (age_ms >= p.lease_ms)
    for (auto& each : p.instances) each.alive = each.heard_at_ms != 0 && steady_ms() - each.heard_at_ms < p.lease_ms;
  tell_age(shared, of, age_ms);
  return p;
}
grpc::Status unknown(const std::string& why) {
  return error_status(errc::unavailable, "the database has not said: " + why);
}

api::Instance to_api(const instance_info& from, const placement_info& all, instance_id self) {
  api::Instance to;
  to.set_name(std::string{instances} + std::to_string(from.id));
  to.set_display_name(from.name);
  *to.mutable_start_time() = timestamp_from_ms(from.started_at_ms);
  *to.mutable_expire_time() = timestamp_from_ms(from.expires_at_ms);
  to.set_alive(from.alive);
  to.set_bus_ok(from.bus_ok);
  to.set_draining(from.draining);
  for (const auto& p : all.partitions)
    if (p.owner == from.id) to.set_partitions(to.partitions() + 1);
  to.set_self(from.id == self);
  return to;
}

std::map<partition_id, api::Partition> all_partitions(const context& shared, const placement_info& placement) {
  std::map<partition_id, api::Partition> out;
  for (const auto& from : placement.partitions) {
    auto& to = out[from.id];
    if (from.owner != 0) to.set_owner(std::string{instances} + std::to_string(from.owner));
    to.set_epoch(from.epoch);
    to.set_revision(from.revision);
  }
  const auto now = steady_ms();
  shared.view.read([&](const replica::tables& tables) {
    for (const auto& [id, from] : tables.partitions) {
      auto& to = out[id];
      to.set_replica_revision(from.revision);
      to.set_revision(std::max(to.revision(), from.revision));
      to.set_epoch(std::max(to.epoch(), from.epoch));
      to.set_warm(from.warm);
      to.set_incarnation(from.incarnation);
      if (from.heard_at_ms == 0) continue;
      const auto ms = std::max<std::int64_t>(0, now - from.heard_at_ms);
      to.mutable_heard()->set_seconds(ms / 1000);
      to.mutable_heard()->set_nanos(static_cast<std::int32_t>(ms % 1000) * 1'000'000);
    }
  });
  for (auto& [id, to] : out) to.set_name(std::string{partitions} + std::to_string(id));
  return out;
}

/// A call that needs no replica: judged and answered at once.
template <class Answer>
unary* at_once(context& shared, rpc& of, Answer answer) {
  call c{shared, of};
  if (!c.admitted()) return c.reactor();
  std::vector<violation> violations;
  auto status = answer(violations);
  c.finish(violations.empty() ? status : invalid_status(std::move(violations)));
  return c.reactor();
}

}  // namespace

unary* operations_service::GetInstance(rpc* of, const api::GetInstanceRequest* q, api::Instance* a) {
  return at_once(shared_, *of, [&](auto& out) {
    const auto id = number_after(instances, q->name());
    if (!id) {
      out.push_back({"name", "must have the form instances/{id}"});
      return grpc::Status::OK;
    }
    const auto placement = placement_of(shared_, *of);
    if (!placement.error.empty()) return unknown(placement.error);
    for (const auto& each : placement.instances)
      if (each.id == *id) {
        *a = to_api(each, placement, shared_.config.self);
        return grpc::Status::OK;
      }
    return not_found(q->name());
  });
}

unary* operations_service::ListInstances(rpc* of, const api::ListInstancesRequest* q, api::ListInstancesResponse* a) {
  return at_once(shared_, *of, [&](auto& out) {
    const auto size = page_size(q->page_size(), out);
    const auto after = after_of(q->page_token(), out);
    auto placement = placement_of(shared_, *of);
    if (!placement.error.empty()) return unknown(placement.error);
    std::sort(placement.instances.begin(), placement.instances.end(),
              [](const auto& x, const auto& y) { return x.id < y.id; });
    page_room room;
    for (const auto& each : placement.instances) {
      if (each.id <= after) continue;
      auto shown = to_api(each, placement, shared_.config.self);
      if (a->instances_size() == size || !room.takes(shown)) {
        a->set_next_page_token(a->instances().rbegin()->name().substr(instances.size()));
        break;
      }
      *a->add_instances() = std::move(shown);
    }
    return grpc::Status::OK;
  });
}

unary* operations_service::DrainInstance(rpc* of, const api::DrainInstanceRequest* q, api::Instance* a) {
  auto c = std::make_shared<call>(shared_, *of);
  if (!c->admitted()) return c->reactor();
  const auto refuse = [&](const grpc::Status& why) {
    c->finish(why);
    return c->reactor();
  };
  const auto id = number_after(instances, q->name());
  if (!id) return refuse(invalid_status({{"name", "must have the form instances/{id}"}}));
  const auto placement = placement_of(shared_, *of);
  if (!placement.error.empty()) return refuse(unknown(placement.error));
  const instance_info* it = nullptr;
  bool others = false;
  for (const auto& each : placement.instances) {
    if (each.id == *id) it = &each;
    else others |= each.alive && !each.draining;
  }
  if (it == nullptr) return refuse(not_found(q->name()));
  *a = to_api(*it, placement, shared_.config.self);
  if (!it->alive)
    return refuse(error_status(errc::failed_precondition, q->name() + " is not alive: the others take its partitions by themselves"));
  if (it->draining) return refuse(grpc::Status::OK);
  if (!others)
    return refuse(error_status(errc::failed_precondition, "no other instance is there to take the partitions of " + q->name()));
  if (!shared_.config.drain) return refuse(error_status(errc::unavailable, "this instance cannot reach the others"));
  const auto left = std::chrono::duration_cast<millis>(c->deadline() - std::chrono::system_clock::now());
  shared_.config.drain(*id, {principal_of(*of), of->peer()}, left, [c, a, name = q->name()](bool heard) {
    if (!heard) return c->finish(error_status(errc::unavailable, name + " does not answer"));
    a->set_draining(true);
    c->finish(grpc::Status::OK);
  });
  return c->reactor();
}

unary* operations_service::GetPartition(rpc* of, const api::GetPartitionRequest* q, api::Partition* a) {
  return at_once(shared_, *of, [&](auto& out) {
    const auto id = number_after(partitions, q->name());
    if (!id) {
      out.push_back({"name", "must have the form partitions/{number}"});
      return grpc::Status::OK;
    }
    const auto all = all_partitions(shared_, placement_of(shared_, *of));
    const auto at = *id > shared_.config.partitions ? all.end() : all.find(static_cast<partition_id>(*id));
    if (at == all.end()) return not_found(q->name());
    *a = at->second;
    return grpc::Status::OK;
  });
}

unary* operations_service::ListPartitions(rpc* of, const api::ListPartitionsRequest* q,
                                          api::ListPartitionsResponse* a) {
  return at_once(shared_, *of, [&](auto& out) {
    const auto size = page_size(q->page_size(), out);
    const auto after = after_of(q->page_token(), out);
    page_room room;
    for (auto& [id, each] : all_partitions(shared_, placement_of(shared_, *of))) {
      if (id <= after) continue;
      if (a->partitions_size() == size || !room.takes(each)) {
        a->set_next_page_token(a->partitions().rbegin()->name().substr(partitions.size()));
        break;
      }
      *a->add_partitions() = std::move(each);
    }
    return grpc::Status::OK;
  });
}

unary* operations_service::ListAuditEvents(rpc* of, const api::ListAuditEventsRequest* q,
                                           api::ListAuditEventsResponse* a) {
  auto c = std::make_shared<call>(shared_, *of);
  if (!c->admitted()) return c->reactor();
  std::vector<violation> out;
  audit_query query;
  query.project = q->project();
  if (!query.project.empty() && !protocol::is_label(query.project))
    out.push_back({"project", "must be the name of a project, or empty"});
  query.limit = page_size(q->page_size(), out);
  if (!q->page_token().empty()) {
    query.before_id = std::max<std::int64_t>(0, after_of(q->page_token(), out));
    if (query.before_id == 0 && out.empty()) out.push_back({"page_token", "is none that was given"});
  }
  if (!out.empty() || !shared_.config.audit) {
    c->finish(out.empty() ? error_status(errc::unavailable, "the audit trail is not at hand")
                          : invalid_status(std::move(out)));
    return c->reactor();
  }
  if (const auto away = shared_.config.database_away ? shared_.config.database_away() : ""; !away.empty()) {
    c->finish(error_status(errc::unavailable, "the audit trail is in the database, which is away: " + away));
    return c->reactor();
  }
  const auto limit = query.limit;
  // Whoever comes first answers; the trail may come when nobody owns `a` any more.
  struct race {
    std::atomic<bool> over{false};
    std::shared_ptr<grpc::Alarm> patience = std::make_shared<grpc::Alarm>();
  };
  const auto first = std::make_shared<race>();
  // The callback owns the alarm while it waits, and lets go of all: gRPC keeps the callback as long as the alarm lives.
  first->patience->Set(std::min(c->deadline(), std::chrono::system_clock::now() + audit_patience),
                       [c, first, alarm = first->patience](bool) mutable {
                         const auto mine = std::move(c);
                         const auto of_both = std::move(first);
                         const auto gone = std::move(alarm);
                         if (of_both->over.exchange(true)) return;
                         mine->finish(error_status(errc::unavailable, "the database, which has the audit trail, does not answer"));
                       });
  shared_.config.audit(std::move(query), [c, a, limit, first](audit_page page) {
    if (first->over.exchange(true)) return;
    std::exchange(first->patience, nullptr)->Cancel();
    if (!page.error.empty()) return c->finish(error_status(errc::unavailable, "the database is away: " + page.error));
    page_room room;
    for (auto& from : page.events) {
      api::AuditEvent to;
      to.set_id(from.id);
      *to.mutable_time() = timestamp_from_ms(from.at_ms);
      to.set_project(std::move(from.project));
      to.set_principal(std::move(from.principal));
      to.set_remote(std::move(from.remote));
      to.set_method(std::move(from.method));
      to.set_resource(std::move(from.resource));
      to.set_request_id(std::move(from.request_id));
      to.set_before(std::move(from.before_json));
      to.set_after(std::move(from.after_json));
      if (!room.takes(to)) break;
      *a->add_events() = std::move(to);
    }
    if (a->events_size() >= limit || room.full()) a->set_next_page_token(std::to_string(a->events(a->events_size() - 1).id()));
    c->finish(grpc::Status::OK);
  });
  return c->reactor();
}

unary* operations_service::GetServerInfo(rpc* of, const api::GetServerInfoRequest*, api::ServerInfo* a) {
  return at_once(shared_, *of, [&](auto&) {
    a->set_version(shared_.config.version);
    a->set_instance(shared_.config.self);
    a->set_partitions(shared_.config.partitions);
    a->set_ready(shared_.view.read([](const replica::tables& tables) { return tables.warm; }));
    return grpc::Status::OK;
  });
}

}  // namespace warren::admin
