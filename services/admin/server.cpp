// services/admin/server.cpp -- listening, health, shutdown. No SQL, no CAF.
#include "services/admin/server.hpp"

#include <algorithm>
#include <map>
#include <random>
#include <stdexcept>
#include <thread>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include "services/admin/diag.hpp"
#include "services/admin/services.hpp"

namespace warren::admin {

struct server::impl {
  impl(server_config config, replica::view& view) : shared{.config = std::move(config), .view = view} {}

  context shared;
  tunnel_service tunnels{shared};
  connector_service connectors{shared};
  gateway_service gateways{shared};
  class_service classes{shared};
  operations_service operations{shared};
  diagnostics_service diagnostics{shared};
  int port = 0;
  int subscription = 0;  // to the view: who owns what
  std::unique_ptr<grpc::Server> server;
};

server::server(std::unique_ptr<impl> i) : impl_{std::move(i)} {}
server::~server() { shutdown(millis{1000}); }

std::unique_ptr<server> server::start(server_config config, replica::view& view) {
  if (!is_local_address(config.listen))
    throw std::invalid_argument{"the admin API has no TLS yet: it listens on loopback or a unix socket only, not on " +
                                config.listen};
  if (!config.send) throw std::invalid_argument{"the admin API needs a way to the owners"};

  auto i = std::make_unique<impl>(std::move(config), view);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(i->shared.config.listen, grpc::InsecureServerCredentials(), &i->port);
  builder.SetMaxReceiveMessageSize(static_cast<int>(limits::api_request_bytes_max));
  // Another program on the same port would take every other connection.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 * 1024);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);  // warrenctl's watches ask every 2 s
  for (grpc::Service* service : std::initializer_list<grpc::Service*>{&i->tunnels, &i->connectors, &i->gateways,
                                                                      &i->classes, &i->operations,
                                                                      &i->diagnostics})
    builder.RegisterService(service);
  i->server = builder.BuildAndStart();
  if (!i->server) throw std::runtime_error{"cannot listen on " + i->shared.config.listen};
  if (i->shared.config.listen.starts_with("unix:")) i->port = 0;
  std::map<partition_id, epoch_t> epochs;
  view.read([&](const replica::tables& t) {
    for (const auto& [id, p] : t.partitions) epochs[id] = p.epoch;
  });
  i->subscription = view.subscribe([&shared = i->shared, epochs](const replica::change_set& c) mutable {
    const auto epoch = shared.view.read([&](const replica::tables& t) {
      const auto at = t.partitions.find(c.partition);
      return at == t.partitions.end() ? 0 : at->second.epoch;
    });
    const auto before = std::exchange(epochs[c.partition], epoch);
    if (before != 0 && before < epoch) shared.news.taken(c.partition);  // 0: read for the first time
  });
  auto started = std::unique_ptr<server>{new server{std::move(i)}};
  started->set_ready(false);
  return started;
}

int server::port() const { return impl_->port; }

void server::set_ready(bool ready) {
  if (!impl_->server) return;
  if (auto* health = impl_->server->GetHealthCheckService(); health != nullptr) health->SetServingStatus(ready);
}

void server::send_watches_away(millis over) {
  if (!impl_->server) return;
  std::vector<std::shared_ptr<endable>> watches;
  {
    std::lock_guard lock{impl_->shared.watches_mutex};
    impl_->shared.ending = true;
    watches.assign(impl_->shared.watches.begin(), impl_->shared.watches.end());
  }
  std::mt19937_64 random{std::random_device{}()};
  std::vector<std::int64_t> when;
  for (std::size_t n = 0; n < watches.size(); ++n)
    when.push_back(std::uniform_int_distribution<std::int64_t>{0, over.count()}(random));
  std::sort(when.begin(), when.end());
  const auto begun = std::chrono::steady_clock::now();
  for (std::size_t n = 0; n < watches.size(); ++n) {
    std::this_thread::sleep_until(begun + millis{when[n]});
    watches[n]->end(error_status(errc::unavailable, "this instance is going away: go on elsewhere with the resume token"));
  }
}

void server::shutdown(millis deadline) {
  if (!impl_->server) return;
  set_ready(false);
  send_watches_away(millis{0});
  impl_->server->Shutdown(std::chrono::system_clock::now() + deadline);
  impl_->server->Wait();
  impl_->shared.view.unsubscribe(impl_->subscription);
  // A watch may still be on its way out of the replica's thread.
  std::unique_lock lock{impl_->shared.watches_mutex};
  impl_->shared.watches_gone.wait(lock, [&] { return impl_->shared.watches.empty(); });
  lock.unlock();
  impl_->server.reset();
}

}  // namespace warren::admin
