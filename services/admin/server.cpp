// services/admin/server.cpp -- listening, health, shutdown. No SQL, no CAF.
#include "services/admin/server.hpp"

#include <stdexcept>

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
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  for (grpc::Service* service : std::initializer_list<grpc::Service*>{&i->tunnels, &i->connectors, &i->gateways,
                                                                      &i->classes, &i->operations,
                                                                      &i->diagnostics})
    builder.RegisterService(service);
  i->server = builder.BuildAndStart();
  if (!i->server) throw std::runtime_error{"cannot listen on " + i->shared.config.listen};
  if (i->shared.config.listen.starts_with("unix:")) i->port = 0;
  auto started = std::unique_ptr<server>{new server{std::move(i)}};
  started->set_ready(false);
  return started;
}

int server::port() const { return impl_->port; }

void server::set_ready(bool ready) {
  if (!impl_->server) return;
  if (auto* health = impl_->server->GetHealthCheckService(); health != nullptr) health->SetServingStatus(ready);
}

void server::shutdown(millis deadline) {
  if (!impl_->server) return;
  set_ready(false);
  std::set<std::shared_ptr<endable>> watches;
  {
    std::lock_guard lock{impl_->shared.watches_mutex};
    impl_->shared.ending = true;
    watches = impl_->shared.watches;
  }
  for (const auto& watch : watches)
    watch->end(error_status(errc::unavailable, "this instance is going away: go on elsewhere with the resume token"));
  watches.clear();
  impl_->server->Shutdown(std::chrono::system_clock::now() + deadline);
  impl_->server->Wait();
  // A watch may still be on its way out of the replica's thread.
  std::unique_lock lock{impl_->shared.watches_mutex};
  impl_->shared.watches_gone.wait(lock, [&] { return impl_->shared.watches.empty(); });
  lock.unlock();
  impl_->server.reset();
}

}  // namespace warren::admin
