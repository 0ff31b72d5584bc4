// bench/bare_ads.cpp -- one stream, one lock, no memory of what the gateway had before.
#include "bench/bare_ads.hpp"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace warren::bench {

namespace discovery = envoy::service::discovery::v3;
using gateway::kind;

struct bare_ads::impl final : discovery::AggregatedDiscoveryService::Service {
  using stream = grpc::ServerReaderWriter<discovery::DeltaDiscoveryResponse, discovery::DeltaDiscoveryRequest>;
  using key = std::pair<kind, std::string>;
  struct flight {
    kind type;
    std::vector<std::pair<std::string, gateway::version_t>> names;  ///< and versions
  };
  struct acknowledged {
    gateway::version_t version = gateway::no_version;
    clock::time_point at;
  };

  grpc::Status DeltaAggregatedResources(grpc::ServerContext*, stream* s) override {
    {
      const std::lock_guard lock{mutex};
      wire = s;
      asked.clear();
    }
    discovery::DeltaDiscoveryRequest r;
    while (s->Read(&r)) {
      const auto now = clock::now();
      const std::lock_guard lock{mutex};
      if (const auto k = gateway::kind_from(r.type_url())) hear(*k, r, now);
      changed.notify_all();
    }
    const std::lock_guard lock{mutex};
    wire = nullptr;
    return grpc::Status::OK;
  }

  void hear(kind k, const discovery::DeltaDiscoveryRequest& r, clock::time_point now) {
    if (const auto f = flights.find(r.response_nonce()); f != flights.end()) {
      if (r.has_error_detail()) refused = r.error_detail().message();
      else
        for (const auto& [name, version] : f->second.names) {
          auto& a = acked[{f->second.type, name}];
          if (a.version == gateway::no_version) ++counts[f->second.type];
          a = {version, now};
        }
      flights.erase(f);
    }
    if (k == kind::route) {
      for (const auto& name : r.resource_names_subscribe()) send(k, {name});
    } else if (!asked[k]) {
      asked[k] = true;
      std::vector<std::string> batch;
      for (const auto& [at, what] : all) {
        if (at.first != k) continue;
        batch.push_back(at.second);
        if (batch.size() < 1000) continue;
        send(k, batch);
        batch.clear();
      }
      send(k, batch);
    }
  }
  void send(kind k, const std::vector<std::string>& names) {
    discovery::DeltaDiscoveryResponse out;
    out.set_type_url(std::string{gateway::type_url(k)});
    out.set_nonce(std::to_string(++nonce));
    flight f{k, {}};
    for (const auto& name : names) {
      const auto it = all.find({k, name});
      if (it == all.end()) {
        out.add_removed_resources(name);
        continue;
      }
      auto* resource = out.add_resources();
      resource->set_name(name);
      resource->set_version(gateway::text_of(it->second->version));
      resource->mutable_resource()->set_type_url(out.type_url());
      resource->mutable_resource()->set_value(it->second->bytes());
      f.names.emplace_back(name, it->second->version);
    }
    flights[out.nonce()] = std::move(f);
    bytes += out.ByteSizeLong();
    if (wire != nullptr) wire->Write(out);
  }

  mutable std::mutex mutex;
  std::condition_variable changed;
  std::map<key, gateway::resource_ptr> all;
  std::map<key, acknowledged> acked;
  std::map<kind, std::size_t> counts;
  std::map<kind, bool> asked;
  std::map<std::string, flight> flights;
  std::string refused;
  std::uint64_t nonce = 0;
  std::size_t bytes = 0;
  stream* wire = nullptr;
  std::unique_ptr<grpc::Server> server;
};

bare_ads::bare_ads() : impl_{std::make_unique<impl>()} {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.SetMaxReceiveMessageSize(64 * 1024 * 1024);
  // Gateways ping every 5 s; gRPC's default takes that for abuse.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.RegisterService(impl_.get());
  impl_->server = builder.BuildAndStart();
  if (!impl_->server) throw std::runtime_error("the bare ADS server gets no port");
}

bare_ads::~bare_ads() { impl_->server->Shutdown(std::chrono::system_clock::now()); }

void bare_ads::put(kind k, const gateway::resource_ptr& r) {
  const std::lock_guard lock{impl_->mutex};
  impl_->all[{k, r->name}] = r;
}

clock::time_point bare_ads::push(kind k, const std::string& name) {
  const std::lock_guard lock{impl_->mutex};
  const auto now = clock::now();
  impl_->send(k, {name});
  return now;
}

clock::time_point bare_ads::push_all(kind k, const std::vector<std::string>& names, std::size_t in_each) {
  const auto begun = clock::now();
  for (std::size_t n = 0; n < names.size(); n += in_each) {
    // The lock is let go in between: acknowledgements are heard meanwhile.
    const std::lock_guard lock{impl_->mutex};
    impl_->send(k, {names.begin() + static_cast<std::ptrdiff_t>(n), names.begin() + static_cast<std::ptrdiff_t>(std::min(n + in_each, names.size()))});
  }
  return begun;
}

std::optional<clock::time_point> bare_ads::await(kind k, const std::string& name, gateway::version_t version, milliseconds timeout) {
  std::unique_lock lock{impl_->mutex};
  const auto there = [&] {
    const auto it = impl_->acked.find({k, name});
    return !impl_->refused.empty() || (it != impl_->acked.end() && it->second.version == version);
  };
  if (!impl_->changed.wait_for(lock, timeout, there)) return std::nullopt;
  if (!impl_->refused.empty()) throw std::runtime_error("Envoy refuses what the bare ADS server sent: " + impl_->refused);
  return impl_->acked[{k, name}].at;
}

bool bare_ads::await_count(kind k, std::size_t count, milliseconds timeout) {
  std::unique_lock lock{impl_->mutex};
  return impl_->changed.wait_for(lock, timeout, [&] { return impl_->counts[k] >= count; });
}

std::size_t bare_ads::bytes_sent() const {
  const std::lock_guard lock{impl_->mutex};
  return impl_->bytes;
}

}  // namespace warren::bench
