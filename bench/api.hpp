// bench/api.hpp -- the admin API as a program sees it: gRPC stubs, and watches that note when they were told what.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "bench/measure.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

namespace warren::bench {

namespace adminv1 = warren::admin::v1;

/// Throws std::runtime_error with the words of the server, named by `what`.
void must(const grpc::Status& status, const std::string& what);

/// Thread-safe.
struct api {
  explicit api(std::uint16_t port);
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<adminv1::TunnelService::Stub> tunnels;
  std::unique_ptr<adminv1::ConnectorService::Stub> connectors;
  std::unique_ptr<adminv1::OperationsService::Stub> operations;

  /// One rule, class demo.
  grpc::Status create_tunnel(const std::string& project, const std::string& name, const std::string& hostname,
                             const std::string& connector, const std::string& target) const;
  /// Every tunnel or connector there is; empty: the server cannot be asked.
  std::optional<std::vector<adminv1::Tunnel>> list_tunnels() const;
  std::optional<std::vector<adminv1::Connector>> list_connectors() const;
};

template <class Resource> bool holds(const Resource& r, const std::string& condition) {
  for (const auto& c : r.conditions())
    if (c.type() == condition) return c.status() == "True";
  return false;
}

/// When a watch first told that a tunnel was so far.
struct tunnel_life {
  std::optional<clock::time_point> seen, programmed, attached, reachable, ready;
  int events = 0;
};

/// Follows all tunnels of a project from now on, on a thread of its own. Thread-safe.
class tunnel_watch {
public:
  /// Returns when it is caught up.
  tunnel_watch(const api& server, const std::string& project);
  ~tunnel_watch();
  tunnel_watch(const tunnel_watch&) = delete;
  tunnel_watch& operator=(const tunnel_watch&) = delete;
  /// Waits until it is ready; empty: not in time.
  std::optional<tunnel_life> await_ready(const std::string& name, milliseconds timeout);
  std::size_t ready() const;

private:
  grpc::ClientContext context_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, tunnel_life> lives_;  // by resource name
  std::size_t ready_ = 0;
  bool caught_up_ = false, ended_ = false;
  std::string parent_;
  std::thread thread_;
};

/// Follows the connectors of a project from now on. Thread-safe.
class connector_watch {
public:
  connector_watch(const api& server, const std::string& project);
  ~connector_watch();
  connector_watch(const connector_watch&) = delete;
  connector_watch& operator=(const connector_watch&) = delete;
  /// When it was first told at `since` or later that the connector was online, or not; empty: not in time.
  std::optional<clock::time_point> await_online(const std::string& name, bool online, clock::time_point since,
                                                milliseconds timeout);

private:
  struct told {
    std::string name;
    bool online;
    clock::time_point at;
  };
  grpc::ClientContext context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<told> events_;
  bool caught_up_ = false, ended_ = false;
  std::string parent_;
  std::thread thread_;
};

}  // namespace warren::bench
