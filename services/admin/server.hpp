// services/admin/server.hpp -- the gRPC admin API of one instance: reads from its replica, sends changes to
// their owners. No CAF, no SQL; what it needs of other rooms comes in as functions.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/ids.hpp"
#include "actors/core/limits.hpp"
#include "services/admin/convert.hpp"
#include "services/admin/forward.hpp"
#include "services/replica/view.hpp"
#include "services/telemetry/bundle.hpp"

namespace warren::admin {

struct instance_info {
  instance_id id = 0;
  std::string name;
  std::int64_t started_at_ms = 0, expires_at_ms = 0;  ///< wall clock
  bool alive = false, bus_ok = false, draining = false;
  std::int64_t heard_at_ms = 0;  ///< steady clock: when it last said on the bus that it holds its lease; 0: never
};
struct partition_info {
  partition_id id = 0;
  instance_id owner = 0;  ///< 0: nobody
  epoch_t epoch = 0;
  revision_t revision = 0;
};
/// As the database last said.
struct placement_info {
  std::string error;  ///< not empty: not known
  std::int64_t known_at_ms = 0;  ///< steady clock; 0: of this moment
  std::int64_t lease_ms = 0;     ///< of instances: longer after `known_at_ms` nobody is known to be alive
  std::vector<instance_info> instances;
  std::vector<partition_info> partitions;
};

struct audit_query {
  std::string project;                               ///< empty: all
  std::int64_t before_id = 0;                        ///< only older ones; 0: from the newest
  int limit = limits::page_size_default;             ///< the newest so many, or as many as pass page_bytes_max
};
struct audit_event {
  std::int64_t id = 0, at_ms = 0;
  std::string project, principal, remote, method, resource, request_id, before_json, after_json;
};
struct audit_page {
  std::string error;  ///< not empty: the database is away
  std::vector<audit_event> events;
};

struct server_config {
  /// "127.0.0.1:7443", "[::1]:0" (any free port) or "unix:/path". There is no TLS yet, so that anything but
  /// loopback and unix sockets is refused.
  std::string listen = "127.0.0.1:7443";
  int partitions = limits::partitions_default;  ///< of projects, as the database says
  instance_id self = 0;
  std::string version;
  agent_bus agents;  ///< what enrolment files say

  send_function send;
  /// Answers on any thread, exactly once.
  std::function<void(audit_query, std::function<void(audit_page)>)> audit;
  /// Why this instance does not reach the database at the moment; empty: it does. May be null.
  std::function<std::string()> database_away;
  /// Why this instance does not reach NATS at the moment; empty: it does. May be null.
  std::function<std::string()> bus_away;
  std::function<placement_info()> placement;  ///< what is known at the moment; does not block
  /// Whether any instance has said within the last moments that it has the database; may be empty.
  std::function<bool()> database_reached;
  drain_function drain;
  /// What of this instance's dependencies is away, in words; empty: nothing. Says why reads are old. May be null.
  std::function<std::string()> away;
  /// The text that the gateway's Envoy starts with; the class is null when there is none of that name.
  std::function<std::string(const corev1::GatewayRow&, const corev1::GatewayClassRow*)> bootstrap;

  /// What goes into a diagnostic bundle, without secrets; instances and partitions are added to it. Contents are
  /// made on a thread of their own, which ends with the server.
  std::function<std::vector<telemetry::bundle_part>()> diagnose;

  counters* counts = nullptr;       ///< may be null; outlives the server
  std::size_t calls_max = 2000;     ///< unary calls at a time; beyond: RESOURCE_EXHAUSTED
  std::size_t watches_max = limits::watches_max;
  std::size_t watch_queue_max = limits::watch_queue_max;  ///< events that wait for one watcher
  millis watch_patience{30'000};    ///< with a watcher that takes nothing while there is news; then it is cut off
};

class server {
public:
  /// Listens at once; answers reads once `view` is warm. `view` outlives the server.
  /// Errors: std::invalid_argument (configuration), std::runtime_error (cannot listen).
  static std::unique_ptr<server> start(server_config config, replica::view& view);
  ~server();
  server(const server&) = delete;
  server& operator=(const server&) = delete;

  int port() const;  ///< 0 for a unix socket
  /// What grpc.health.v1 says; not serving until told.
  void set_ready(bool ready);
  /// Ends watches one by one (UNAVAILABLE, to be resumed elsewhere), so that they do not all arrive there at once,
  /// and takes no new ones. Blocks for as long.
  void send_watches_away(millis over);
  /// No new calls; ends watches (UNAVAILABLE, to be resumed elsewhere), waits for the other calls, and cuts
  /// them off after `deadline`. Blocks.
  void shutdown(millis deadline);

  struct impl;

private:
  explicit server(std::unique_ptr<impl> i);
  std::unique_ptr<impl> impl_;
};

/// Whether plaintext may be listened on there: loopback or a unix socket.
bool is_local_address(std::string_view listen);
/// Whether a caller with that gRPC peer string is on this machine.
bool is_local_peer(std::string_view peer);

}  // namespace warren::admin
