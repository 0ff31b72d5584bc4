// bench/api.cpp -- gRPC stubs and watches.
#include "bench/api.hpp"

#include <stdexcept>

#include <fmt/format.h>

namespace warren::bench {

void must(const grpc::Status& status, const std::string& what) {
  if (!status.ok()) throw std::runtime_error(what + ": " + status.error_message());
}

api::api(std::uint16_t port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 10);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 10);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(64 * 1024 * 1024);
  channel = grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", port), grpc::InsecureChannelCredentials(), arguments);
  tunnels = adminv1::TunnelService::NewStub(channel);
  connectors = adminv1::ConnectorService::NewStub(channel);
  operations = adminv1::OperationsService::NewStub(channel);
}

grpc::Status api::create_tunnel(const std::string& project, const std::string& name, const std::string& hostname,
                                const std::string& connector, const std::string& target) const {
  adminv1::CreateTunnelRequest q;
  q.set_parent("projects/" + project);
  q.set_tunnel_id(name);
  q.mutable_tunnel()->add_hostnames(hostname);
  q.mutable_tunnel()->set_gateway_class("demo");
  auto* rule = q.mutable_tunnel()->add_rules();
  rule->set_connector(connector);
  rule->set_target(target);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{30});
  adminv1::Tunnel answer;
  return tunnels->CreateTunnel(&context, q, &answer);
}

std::optional<std::vector<adminv1::Tunnel>> api::list_tunnels() const {
  std::vector<adminv1::Tunnel> out;
  adminv1::ListTunnelsRequest q;
  q.set_parent("projects/-");
  q.set_page_size(1000);
  do {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{5});
    adminv1::ListTunnelsResponse page;
    if (!tunnels->ListTunnels(&context, q, &page).ok()) return std::nullopt;
    for (auto& t : *page.mutable_tunnels()) out.push_back(std::move(t));
    q.set_page_token(page.next_page_token());
  } while (!q.page_token().empty());
  return out;
}

std::optional<std::vector<adminv1::Connector>> api::list_connectors() const {
  std::vector<adminv1::Connector> out;
  adminv1::ListConnectorsRequest q;
  q.set_parent("projects/-");
  q.set_page_size(1000);
  do {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{5});
    adminv1::ListConnectorsResponse page;
    if (!connectors->ListConnectors(&context, q, &page).ok()) return std::nullopt;
    for (auto& c : *page.mutable_connectors()) out.push_back(std::move(c));
    q.set_page_token(page.next_page_token());
  } while (!q.page_token().empty());
  return out;
}

tunnel_watch::tunnel_watch(const api& server, const std::string& project) : parent_{"projects/" + project} {
  adminv1::WatchTunnelsRequest q;
  q.set_parent(parent_);
  auto reader = server.tunnels->WatchTunnels(&context_, q);
  thread_ = std::thread{[this, reader = std::move(reader)] {
    adminv1::WatchTunnelsResponse one;
    while (reader->Read(&one)) {
      const auto now = clock::now();
      const std::lock_guard lock{mutex_};
      if (one.has_caught_up()) caught_up_ = true;
      if (one.has_tunnel()) {
        const auto& t = one.tunnel();
        auto& life = lives_[t.name()];
        ++life.events;
        const auto note = [&](auto& when, bool is) {
          if (is && !when) when = now;
        };
        note(life.seen, true);
        note(life.programmed, holds(t, "Programmed"));
        note(life.attached, holds(t, "ConnectorMetadataProgrammed"));
        note(life.reachable, holds(t, "TargetReachable"));
        if (!life.ready && holds(t, "Ready")) ++ready_;
        note(life.ready, holds(t, "Ready"));
      }
      changed_.notify_all();
    }
    reader->Finish();
    const std::lock_guard lock{mutex_};
    ended_ = true;
    changed_.notify_all();
  }};
  std::unique_lock lock{mutex_};
  changed_.wait(lock, [this] { return caught_up_ || ended_; });
}

tunnel_watch::~tunnel_watch() {
  context_.TryCancel();
  thread_.join();
}

std::optional<tunnel_life> tunnel_watch::await_ready(const std::string& name, milliseconds timeout) {
  std::unique_lock lock{mutex_};
  auto& life = lives_[parent_ + "/tunnels/" + name];
  if (!changed_.wait_for(lock, timeout, [&] { return life.ready.has_value() || ended_; }) || !life.ready)
    return std::nullopt;
  return life;
}

std::size_t tunnel_watch::ready() const {
  const std::lock_guard lock{mutex_};
  return ready_;
}

connector_watch::connector_watch(const api& server, const std::string& project) : parent_{"projects/" + project} {
  adminv1::WatchConnectorsRequest q;
  q.set_parent(parent_);
  auto reader = server.connectors->WatchConnectors(&context_, q);
  thread_ = std::thread{[this, reader = std::move(reader)] {
    adminv1::WatchConnectorsResponse one;
    while (reader->Read(&one)) {
      const auto now = clock::now();
      const std::lock_guard lock{mutex_};
      if (one.has_caught_up()) caught_up_ = true;
      if (one.has_connector()) events_.push_back({one.connector().name(), one.connector().online(), now});
      changed_.notify_all();
    }
    reader->Finish();
    const std::lock_guard lock{mutex_};
    ended_ = true;
    changed_.notify_all();
  }};
  std::unique_lock lock{mutex_};
  changed_.wait(lock, [this] { return caught_up_ || ended_; });
}

connector_watch::~connector_watch() {
  context_.TryCancel();
  thread_.join();
}

std::optional<clock::time_point> connector_watch::await_online(const std::string& name, bool online,
                                                               clock::time_point since, milliseconds timeout) {
  const auto resource = parent_ + "/connectors/" + name;
  const auto deadline = clock::now() + timeout;
  std::unique_lock lock{mutex_};
  for (std::size_t next = 0;;) {
    for (; next < events_.size(); ++next)
      if (events_[next].at >= since && events_[next].online == online && events_[next].name == resource)
        return events_[next].at;
    if (ended_ || changed_.wait_until(lock, deadline) == std::cv_status::timeout) return std::nullopt;
  }
}

}  // namespace warren::bench
