// test/support/ads_relay.hpp -- between gateways and the control plane: passes delta ADS streams on, and spoils chosen
// resources on the way, so that a real Envoy refuses them. Knows nothing of Warren but Envoy's contract.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "envoy/service/discovery/v3/discovery.grpc.pb.h"

namespace warren::test {

/// Thread-safe.
class ads_relay {
public:
  /// Makes other bytes of a resource's.
  using spoil = std::function<std::string(const std::string& bytes)>;

  /// Listens on 127.0.0.1:`port`, leads to 127.0.0.1:`to`.
  ads_relay(int port, int to) : service_{*this} {
    upstream_ = discovery::AggregatedDiscoveryService::NewStub(
        grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(to), grpc::InsecureChannelCredentials(), unlimited()));
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials());
    builder.SetMaxReceiveMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);  // Envoy's keepalive
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~ads_relay() { server_->Shutdown(std::chrono::system_clock::now()); }
  ads_relay(const ads_relay&) = delete;
  ads_relay& operator=(const ads_relay&) = delete;

  /// From now on, whenever a resource of that name is sent.
  void spoil_each(const std::string& name, spoil how) {
    const std::lock_guard lock{mutex_};
    spoilt_[name] = std::move(how);
  }
  void spoil_nothing() {
    const std::lock_guard lock{mutex_};
    spoilt_.clear();
  }
  /// How often a response was refused.
  int refusals() const { return refusals_; }
  /// How often a resource has been passed on.
  int passed(const std::string& name) const {
    const std::lock_guard lock{mutex_};
    const auto it = passed_.find(name);
    return it == passed_.end() ? 0 : it->second;
  }

private:
  struct discovery {
    using AggregatedDiscoveryService = envoy::service::discovery::v3::AggregatedDiscoveryService;
    using request = envoy::service::discovery::v3::DeltaDiscoveryRequest;
    using response = envoy::service::discovery::v3::DeltaDiscoveryResponse;
  };
  struct service final : discovery::AggregatedDiscoveryService::Service {
    explicit service(ads_relay& o) : owner{o} {}
    grpc::Status DeltaAggregatedResources(grpc::ServerContext* context,
                                          grpc::ServerReaderWriter<discovery::response, discovery::request>* gateway) override {
      grpc::ClientContext up;
      const auto control = owner.upstream_->DeltaAggregatedResources(&up);
      std::thread down{[&] {
        discovery::response r;
        while (control->Read(&r)) {
          owner.edit(r);
          if (!gateway->Write(r)) break;
        }
        context->TryCancel();
      }};
      discovery::request r;
      while (gateway->Read(&r)) {
        if (r.has_error_detail()) ++owner.refusals_;
        if (!control->Write(r)) break;
      }
      up.TryCancel();
      down.join();
      return control->Finish();
    }
    ads_relay& owner;
  };

  static grpc::ChannelArguments unlimited() {
    grpc::ChannelArguments out;
    out.SetMaxReceiveMessageSize(-1);
    return out;
  }
  void edit(discovery::response& r) {
    const std::lock_guard lock{mutex_};
    for (auto& one : *r.mutable_resources()) {
      ++passed_[one.name()];
      if (const auto it = spoilt_.find(one.name()); it != spoilt_.end())
        one.mutable_resource()->set_value(it->second(one.resource().value()));
    }
  }

  mutable std::mutex mutex_;
  std::map<std::string, spoil> spoilt_;
  std::map<std::string, int> passed_;
  std::atomic<int> refusals_{0};
  std::unique_ptr<discovery::AggregatedDiscoveryService::Stub> upstream_;
  service service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace warren::test
