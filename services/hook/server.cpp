// services/hook/server.cpp -- the extension hook's gRPC server.
#include "services/hook/server.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>

#include <arpa/inet.h>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include "envoygateway/extension/extension.grpc.pb.h"
#include "services/telemetry/logging.hpp"

namespace warren::hook {

namespace {

namespace eg = envoygateway::extension;

constexpr int message_bytes_max = 256 * 1024 * 1024;            // gateways.md; maxMessageSize of Envoy Gateway
constexpr std::size_t memory_bytes_max = 1024ull * 1024 * 1024;  // what is being read and written, of all calls
constexpr unsigned certificates_read_every_seconds = 1;
constexpr auto close_patience = std::chrono::seconds{5};
constexpr auto open_again_after = std::chrono::seconds{1};

bool is_local(const std::string& listen) {
  if (listen.rfind("unix:", 0) == 0) return true;
  const auto host = listen.substr(0, listen.rfind(':'));
  in_addr v4{};
  return host == "[::1]" || (host.rfind("127.", 0) == 0 && inet_pton(AF_INET, host.c_str(), &v4) == 1);
}

}  // namespace

struct server::impl {
  impl(replica::view& v, server_config c, counters& n) : view(v), config(std::move(c)), count(n), service(*this) {}

  class service_impl final : public eg::EnvoyGatewayExtension::WithRawCallbackMethod_PostTranslateModify<eg::EnvoyGatewayExtension::Service> {
  public:
    explicit service_impl(impl& o) : owner(o) {}
    grpc::ServerUnaryReactor* PostTranslateModify(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) override {
      return new call{owner, *request, *response, context->peer()};
    }
    impl& owner;
  };

  /// One call; gone when gRPC is done with it.
  class call final : public grpc::ServerUnaryReactor {
  public:
    call(impl& o, const grpc::ByteBuffer& request, grpc::ByteBuffer& response, std::string peer) : owner(o) {
      const auto status = owner.answer(request, response, what);
      what.peer = std::move(peer);
      failed = !status.ok();
      Finish(status);
    }
    void OnCancel() override { failed = true; }
    void OnDone() override {
      {
        const std::lock_guard lock{owner.one_at_a_time};
        if (failed && owner.config.on_failed) owner.config.on_failed();
        if (!failed && owner.config.on_answered) owner.config.on_answered(what);
      }
      delete this;
    }

  private:
    impl& owner;
    answered_call what;
    std::atomic<bool> failed{false};
  };

  grpc::Status answer(const grpc::ByteBuffer& request, grpc::ByteBuffer& response, answered_call& what) {
    // One at a time: the largest translations would not fit side by side, and one takes milliseconds.
    const std::lock_guard lock{one_at_a_time};
    const auto begun = std::chrono::steady_clock::now();
    grpc::Slice bytes;
    transformed done;
    if (!request.DumpToSingleSlice(&bytes).ok()) {
      done.error = "the request could not be read";
    } else {
      // Read first: what is answered below is at least as new.
      view.read([&](const replica::tables& t) {
        for (const auto& [id, p] : t.partitions) what.revisions[id] = p.revision;
      });
      const find_tunnel find = [this](std::string_view route_namespace, std::string_view tunnel) -> truth_ptr {
        const auto project = config.projects.project_of(route_namespace);
        if (project.empty()) return nullptr;
        return view.read([&](const replica::tables& t) { return truth_of(t, project, std::string{tunnel}); });
      };
      done = transform({reinterpret_cast<const char*>(bytes.begin()), bytes.size()}, find, config.settings);
    }
    const std::string_view outcome = done.error.empty() ? "success" : "error";
    const auto& n = done.counts;
    count.add("nso_extension_hook_calls_total", outcome);
    count.add("nso_extension_connector_clusters_replaced_total", {}, static_cast<double>(n.clusters_replaced));
    count.add("nso_extension_connector_routes_applied_total", {}, static_cast<double>(n.vhosts_connector_applied));
    count.add("nso_extension_connector_offline_routes_total", {}, static_cast<double>(n.connector_offline_routes));
    log(done);
    if (done.error.empty()) {
      auto* kept = new std::string{std::move(done.response)};  // gRPC sends it from where it is
      grpc::Slice slice{kept->data(), kept->size(), [](void* p) { delete static_cast<std::string*>(p); }, kept};
      response = grpc::ByteBuffer{&slice, 1};
      what.fleet = std::move(done.fleet);
      what.answered = std::move(done.answered);
    }
    count.observe("nso_extension_hook_duration_seconds",
                  std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(), outcome);
    return done.error.empty() ? grpc::Status::OK : grpc::Status{grpc::StatusCode::INVALID_ARGUMENT, done.error};
  }

  static void log(const transformed& done) {
    const auto& n = done.counts;
    const telemetry::field clusters{"clusters", n.clusters}, listeners{"listeners", n.listeners},
        configs{"route_configs", n.route_configs}, replaced{"clusters_replaced", n.clusters_replaced},
        offline{"clusters_offline", n.clusters_offline}, hosts{"vhosts_connector_applied", n.vhosts_connector_applied},
        routes{"connector_offline_routes", n.connector_offline_routes};
    if (done.error.empty())
      telemetry::log(spdlog::level::info, "PostTranslateModify", {clusters, listeners, configs, replaced, offline, hosts, routes});
    else
      telemetry::log(spdlog::level::warn, "PostTranslateModify",
                     {clusters, listeners, configs, replaced, offline, hosts, routes, {"error", done.error}});
  }

  std::shared_ptr<grpc::ServerCredentials> credentials() const {
    if (config.tls_certificate.empty()) return grpc::InsecureServerCredentials();
    namespace tls = grpc::experimental;
    tls::TlsServerCredentialsOptions options{std::make_shared<tls::FileWatcherCertificateProvider>(
        config.tls_key, config.tls_certificate, config.tls_client_ca, certificates_read_every_seconds)};
    options.watch_identity_key_cert_pairs();
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    return tls::TlsServerCredentials(options);
  }

  std::string open() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    int bound = 0;
    builder.AddListeningPort(config.listen, credentials(), &bound);
    builder.SetMaxReceiveMessageSize(message_bytes_max);
    builder.SetMaxSendMessageSize(message_bytes_max);
    builder.SetResourceQuota(grpc::ResourceQuota{"hook"}.Resize(memory_bytes_max));
    // Another program on the same port would take every other connection.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
    builder.RegisterService(&service);
    auto started = builder.BuildAndStart();
    if (!started) return "cannot listen on " + config.listen;
    if (auto* health = started->GetHealthCheckService(); health != nullptr) {
      health->SetServingStatus(true);
      health->SetServingStatus(eg::EnvoyGatewayExtension::service_full_name(), true);
    }
    const std::lock_guard lock{mutex};
    running = std::move(started);
    port = config.listen.rfind("unix:", 0) == 0 ? 0 : bound;
    return "";
  }

  void open_when_warm() {
    std::unique_lock lock{mutex};
    while (!closing) {
      wake.wait(lock, [this] { return closing || warm; });
      if (closing) return;
      lock.unlock();
      const auto error = open();
      if (config.on_state) config.on_state(error.empty(), error);
      lock.lock();
      if (error.empty()) return;
      wake.wait_for(lock, open_again_after, [this] { return closing; });
    }
  }

  replica::view& view;
  const server_config config;
  counters& count;
  std::mutex one_at_a_time;
  service_impl service;
  std::mutex mutex;  // guards what follows
  std::condition_variable wake;
  bool warm = false, closing = false;
  std::unique_ptr<grpc::Server> running;
  int port = 0;
  int subscription = 0;
  std::thread opener;
};

server::server(replica::view& v, server_config config, counters& count) {
  const bool any = !config.tls_certificate.empty() || !config.tls_key.empty() || !config.tls_client_ca.empty();
  const bool all = !config.tls_certificate.empty() && !config.tls_key.empty() && !config.tls_client_ca.empty();
  if (any != all) throw std::invalid_argument{"TLS needs all three: a certificate, its key, and the authority of the clients"};
  if (!any && !is_local(config.listen))
    throw std::invalid_argument{"without TLS the hook listens on loopback or a unix socket only, not on " + config.listen};
  impl_ = std::make_unique<impl>(v, std::move(config), count);
  const auto look = [i = impl_.get()](const auto&) {
    if (!i->view.read([](const replica::tables& t) { return t.warm; })) return;
    const std::lock_guard lock{i->mutex};
    i->warm = true;
    i->wake.notify_all();
  };
  impl_->subscription = v.subscribe(look);
  look(replica::change_set{});
  impl_->opener = std::thread{[i = impl_.get()] { i->open_when_warm(); }};
}

server::~server() { close(); }

void server::close() {
  {
    const std::lock_guard lock{impl_->mutex};
    if (std::exchange(impl_->closing, true)) return;
    impl_->wake.notify_all();
  }
  impl_->view.unsubscribe(impl_->subscription);
  impl_->opener.join();
  std::unique_ptr<grpc::Server> ending;
  {
    const std::lock_guard lock{impl_->mutex};
    ending = std::move(impl_->running);
    impl_->port = 0;
  }
  if (!ending) return;
  ending->Shutdown(std::chrono::system_clock::now() + close_patience);
  ending->Wait();
}

int server::port() const {
  const std::lock_guard lock{impl_->mutex};
  return impl_->port;
}

}  // namespace warren::hook
