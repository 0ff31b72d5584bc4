// bench/bare_ads.hpp -- Envoy's limit: a delta ADS server without any decisions, which sends what it is given and notes
// when Envoy acknowledged it. One gateway.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "bench/measure.hpp"
#include "envoy/service/discovery/v3/discovery.grpc.pb.h"
#include "services/gateway/compile.hpp"

namespace warren::bench {

/// Thread-safe.
class bare_ads {
public:
  bare_ads();
  ~bare_ads();
  bare_ads(const bare_ads&) = delete;
  bare_ads& operator=(const bare_ads&) = delete;
  int port() const { return port_; }

  /// What a gateway gets when it asks, or when it is pushed; of a route configuration, when it subscribes.
  void put(gateway::kind k, const gateway::resource_ptr& r);
  /// Sends what was put, by itself. Returns when.
  clock::time_point push(gateway::kind k, const std::string& name);
  /// The same for many, so many in each response.
  clock::time_point push_all(gateway::kind k, const std::vector<std::string>& names, std::size_t in_each = 1);
  /// When this version was acknowledged; empty: not in time. Throws what Envoy said when it refuses it.
  std::optional<clock::time_point> await(gateway::kind k, const std::string& name, gateway::version_t version, milliseconds timeout);
  /// Waits until so many resources of a type are acknowledged.
  bool await_count(gateway::kind k, std::size_t count, milliseconds timeout);
  std::size_t bytes_sent() const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
  int port_ = 0;
};

}  // namespace warren::bench
