// services/hook/server.cpp -- the extension hook's gRPC server.
#include "services/hook/server.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

#include <arpa/inet.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>

#include "envoygateway/extension/extension.grpc.pb.h"
#include "services/hook/certificates.hpp"
#include "services/telemetry/logging.hpp"

namespace warren::hook {

namespace {

namespace eg = envoygateway::extension;

constexpr int request_bytes_max = 256 * 1024 * 1024;             // gateways.md; maxMessageSize of Envoy Gateway
constexpr std::size_t memory_bytes_max = 1024ull * 1024 * 1024;  // what is being read and written, of all calls
constexpr auto certificates_read_every = std::chrono::seconds{1};
constexpr auto close_patience = std::chrono::seconds{5};
constexpr auto open_again_after = std::chrono::seconds{1};

bool is_local(const std::string& listen) {
  if (listen.rfind("unix:", 0) == 0) return true;
  const auto host = listen.substr(0, listen.rfind(':'));
  in_addr v4{};
  return host == "[::1]" || (host.rfind("127.", 0) == 0 && inet_pton(AF_INET, host.c_str(), &v4) == 1);
}

/// What handshakes are made with. Thread-safe.
class current_certificates {
public:
  explicit current_certificates(certificate_set first) : set_(std::move(first)) {}
  void put(certificate_set set) {
    const std::lock_guard lock{mutex_};
    set_ = std::move(set);
    ++version_;
  }
  /// gRPC's form of it, which is the caller's then, where it is not the one that `known` says.
  grpc_ssl_server_certificate_config* if_newer(std::uint64_t& known) const {
    const std::lock_guard lock{mutex_};
    if (std::exchange(known, version_) == version_) return nullptr;
    const grpc_ssl_pem_key_cert_pair pair{set_.key.c_str(), set_.certificate.c_str()};
    return grpc_ssl_server_certificate_config_create(set_.client_ca.c_str(), &pair, 1);
  }

private:
  mutable std::mutex mutex_;
  certificate_set set_;
  std::uint64_t version_ = 1;
};

/// Mutual TLS with whatever is current when a client comes. gRPC's own credentials that follow files hand on what they
/// find; those that ask somebody for the current set exist in its C interface only. For one port; both outlive the server.
class current_credentials final : public grpc::ServerCredentials {
public:
  explicit current_credentials(const current_certificates& from) : from_(from) {
    auto* options = grpc_ssl_server_credentials_create_options_using_config_fetcher(
        GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, fetch, this);
    credentials_ = grpc_ssl_server_credentials_create_with_options(options);
  }
  ~current_credentials() override { grpc_server_credentials_release(credentials_); }
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}  // nobody sets one

private:
  int AddPortToServer(const std::string& address, grpc_server* to) override {
    return grpc_server_add_http2_port(to, address.c_str(), credentials_);
  }
  /// Before each handshake. gRPC replaces what it has without a lock; it can, as one listening socket's handshakes begin one
  /// after the other (port reuse, which would make several sockets of one port, is off).
  static grpc_ssl_certificate_config_reload_status fetch(void* self, grpc_ssl_server_certificate_config** out) {
    auto& me = *static_cast<current_credentials*>(self);
    auto* newer = me.from_.if_newer(me.known_);
    if (newer == nullptr) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    *out = newer;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const current_certificates& from_;
  grpc_server_credentials* credentials_ = nullptr;
  std::uint64_t known_ = 0;
};

}  // namespace

struct server::impl {
  impl(replica::view& v, server_config c, counters& n) : view(v), config(std::move(c)), count(n), service(*this) {
    if (config.tls_certificate.empty()) return;
    const certificate_files files{config.tls_certificate, config.tls_key, config.tls_client_ca};
    watch.emplace(files, read_certificates(files));
    certificates.emplace(watch->serving());
  }

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
      const auto status = owner.answer(request, response, what, seconds);
      what.peer = std::move(peer);
      failed = !status.ok();
      Finish(status);
    }
    void OnCancel() override { failed = true; }
    void OnDone() override {
      {
        const std::lock_guard lock{owner.one_at_a_time};
        const std::string_view outcome = failed ? "error" : "success";
        owner.count.add("nso_extension_hook_calls_total", outcome);
        owner.count.observe("nso_extension_hook_duration_seconds", seconds, outcome);
        if (failed && owner.config.on_failed) owner.config.on_failed();
        if (!failed && owner.config.on_answered) owner.config.on_answered(what);
      }
      delete this;
    }

  private:
    impl& owner;
    answered_call what;
    double seconds = 0;
    std::atomic<bool> failed{false};  // also: nobody took the answer
  };

  grpc::Status answer(const grpc::ByteBuffer& request, grpc::ByteBuffer& response, answered_call& what, double& seconds) {
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
    const bool too_large = done.error.empty() && done.response.size() > config.answer_bytes_max;
    if (too_large) done.error = "the answer has " + std::to_string(done.response.size()) + " bytes, and may have " + std::to_string(config.answer_bytes_max);
    const auto& n = done.counts;
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
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    if (done.error.empty()) return grpc::Status::OK;
    return {too_large ? grpc::StatusCode::RESOURCE_EXHAUSTED : grpc::StatusCode::INVALID_ARGUMENT, done.error};
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

  /// Reads the files, and hands a set that is usable to the port. On the thread of keep_open() only.
  void look_at_certificates() {
    const auto what = watch->look(read_certificates(watch->files()));
    const auto expiry = expired(watch->files(), watch->serving(), std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now()));
    if (what == certificate_watch::outcome::refused) {
      count.add("warren_hook_certificate_changes_total", "error");
      telemetry::log(spdlog::level::warn, "the hook's certificates cannot be used; those it had go on", {{"error", watch->refused()}});
    } else if (what == certificate_watch::outcome::taken) {
      certificates->put(watch->serving());
      count.add("warren_hook_certificate_changes_total", "success");
      telemetry::log(spdlog::level::info, "the hook's certificates were read again", {});
    }
    if (!expiry.empty() && expiry != said_expiry)
      telemetry::log(spdlog::level::warn, "a certificate of the hook has expired", {{"error", expiry}});
    said_expiry = expiry;
    auto trouble = watch->refused().empty() ? std::string{} : "not taken: " + watch->refused();
    if (!expiry.empty()) trouble += (trouble.empty() ? "" : "; ") + expiry;
    if (trouble == said_trouble) return;
    said_trouble = std::move(trouble);
    if (config.on_certificates) config.on_certificates(said_trouble);
  }

  std::string open() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    int bound = 0;
    auto credentials = watch ? std::make_shared<current_credentials>(*certificates) : grpc::InsecureServerCredentials();
    builder.AddListeningPort(config.listen, credentials, &bound);
    builder.SetMaxReceiveMessageSize(request_bytes_max);
    builder.SetMaxSendMessageSize(-1);  // answer() looks, and counts
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
    running_with = std::move(credentials);
    port = config.listen.rfind("unix:", 0) == 0 ? 0 : bound;
    return "";
  }

  void keep_open() {
    std::unique_lock lock{mutex};
    while (!closing) {
      const bool was_warm = warm, must_open = warm && !running;
      lock.unlock();
      if (watch) look_at_certificates();
      if (must_open) {
        const auto error = open();
        if (config.on_state) config.on_state(error.empty(), error);
      }
      lock.lock();
      const auto due = [&] { return closing || warm != was_warm; };
      if (watch) wake.wait_for(lock, certificates_read_every, due);
      else if (warm && !running) wake.wait_for(lock, open_again_after, due);
      else wake.wait(lock, due);
    }
  }

  replica::view& view;
  const server_config config;
  counters& count;
  std::mutex one_at_a_time;
  service_impl service;
  std::optional<certificate_watch> watch;  // nothing: plaintext
  std::optional<current_certificates> certificates;
  std::string said_expiry, said_trouble;  // of look_at_certificates()
  std::mutex mutex;                       // guards what follows
  std::condition_variable wake;
  bool warm = false, closing = false;
  std::shared_ptr<grpc::ServerCredentials> running_with;  // gRPC's server does not keep them
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
  impl_->opener = std::thread{[i = impl_.get()] { i->keep_open(); }};
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
