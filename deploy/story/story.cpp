// deploy/story/story.cpp -- a tunnel's life, told from what the admin API and visitors see. Starts no server.
#include "deploy/story/story.hpp"

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include "warren/admin/v1/admin.grpc.pb.h"

namespace warren::story {

namespace api = warren::admin::v1;
using stack::milliseconds;
using stack::stack_error;

namespace {

constexpr const char* hostname = "demo.warren.test";
constexpr const char* tunnel_name = "demo";
constexpr const char* connector_name = "home";
constexpr const char* gateway_class_name = "demo";  // of the stack's gateways; a tunnel that names none is of the class default
constexpr milliseconds patience{15'000};

/// Follows one project's tunnels through WatchTunnels and notes when each condition was first shown with each
/// status. Ends with this object.
class tunnel_watch {
public:
  tunnel_watch(const std::shared_ptr<grpc::Channel>& channel, const std::string& project)
      : stub_{api::TunnelService::NewStub(channel)} {
    api::WatchTunnelsRequest request;
    request.set_parent("projects/" + project);
    stream_ = stub_->WatchTunnels(&context_, request);
    reader_ = std::thread{[this] { read(); }};
  }
  ~tunnel_watch() {
    context_.TryCancel();
    reader_.join();
  }
  tunnel_watch(const tunnel_watch&) = delete;
  tunnel_watch& operator=(const tunnel_watch&) = delete;

  /// Until what there was has been told: what comes then is news.
  void await_caught_up() {
    wait("the watch to catch up", [this] { return caught_up_; });
  }
  /// Forgets what was shown so far.
  void restart() {
    const std::lock_guard lock{mutex_};
    shown_.clear();
    exists_.reset();
  }
  clock::time_point await_existence() {
    wait("the tunnel to be listed", [this] { return exists_.has_value(); });
    return *exists_;
  }
  clock::time_point await(const std::string& type, const std::string& status) {
    const auto key = type + "=" + status;
    wait("the tunnel to show " + key, [&] { return shown_.count(key) > 0; });
    return shown_.at(key);
  }
  std::string message(const std::string& type) {
    const std::lock_guard lock{mutex_};
    return messages_[type];
  }

private:
  void read() {
    api::WatchTunnelsResponse response;
    while (stream_->Read(&response)) {
      const auto now = clock::now();
      const std::lock_guard lock{mutex_};
      if (response.has_caught_up())
        caught_up_ = true;
      if (response.has_tunnel()) {
        exists_ = exists_.value_or(now);
        for (const auto& each : response.tunnel().conditions()) {
          shown_.emplace(each.type() + "=" + each.status(), now);
          messages_[each.type()] = each.message();
        }
      }
      changed_.notify_all();
    }
    const std::lock_guard lock{mutex_};
    ended_ = true;
    changed_.notify_all();
  }

  template <class Holds>
  void wait(const std::string& what, Holds holds) {
    std::unique_lock lock{mutex_};
    const bool in_time = changed_.wait_for(lock, patience, [&] { return ended_ || holds(); });
    if (!in_time || !holds())
      throw stack_error(fmt::format("Waited {} s for {}, in vain; its last words: {}", patience.count() / 1000, what,
                                    messages_.count("Ready") > 0 ? messages_.at("Ready") : "none"));
  }

  std::unique_ptr<api::TunnelService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<api::WatchTunnelsResponse>> stream_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool caught_up_ = false, ended_ = false;
  std::optional<clock::time_point> exists_;
  std::map<std::string, clock::time_point> shown_;
  std::map<std::string, std::string> messages_;
  std::thread reader_;
};

/// How many got which answer, for people: "212 got 200, 9 got 503".
std::string tally(const std::vector<stack::seen_answer>& answers, clock::time_point since) {
  std::map<int, int> by_status;
  for (const auto& each : answers)
    if (each.at >= since)
      ++by_status[each.what.status];
  std::string out;
  for (const auto& [status, n] : by_status)
    out += fmt::format("{}{} got {}", out.empty() ? "" : ", ", n, status == 0 ? "no answer" : std::to_string(status));
  return out;
}

stack::seen_answer await_visitor(stack::continuous_visitor& visitors, int status, clock::time_point since) {
  const auto seen = visitors.await_status(status, patience, since);
  if (!seen)
    throw stack_error(fmt::format("Waited {} s for a visitor to get {}, in vain: {}", patience.count() / 1000, status,
                                  tally(visitors.answers(), since)));
  return *seen;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

void tell(stack::stack& servers, teller& out) {
  const auto& project = servers.options().project;
  const auto channel = grpc::CreateChannel("127.0.0.1:" + std::to_string(servers.admin_port()), grpc::InsecureChannelCredentials());
  const auto tunnels = api::TunnelService::NewStub(channel);
  auto& target = servers.demo_origin();
  auto& agent = servers.find_agent(connector_name);
  const bool has_gateway = servers.envoy_runs();

  tunnel_watch watch{channel, project};
  watch.await_caught_up();
  std::unique_ptr<stack::continuous_visitor> visitors;
  if (has_gateway) {
    visitors = std::make_unique<stack::continuous_visitor>(servers.visitor_port(), stack::request{.host = hostname});
    await_visitor(*visitors, 404, {});
    out.progress(fmt::format("visitors ask for http://{}/ one after the other, and get 404: nobody knows it", hostname));
  }

  // ---- it comes to life ----
  api::CreateTunnelRequest request;
  request.set_parent("projects/" + project);
  request.set_tunnel_id(tunnel_name);
  request.mutable_tunnel()->add_hostnames(hostname);
  request.mutable_tunnel()->set_gateway_class(gateway_class_name);
  auto& rule = *request.mutable_tunnel()->add_rules();
  rule.set_connector(connector_name);
  rule.set_target(target.url());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  api::Tunnel made;
  const auto asked = clock::now();
  const auto status = tunnels->CreateTunnel(&context, request, &made);
  const auto answered = clock::now();
  if (!status.ok())
    throw stack_error("The tunnel is refused: " + status.error_message());
  const auto created = std::min(watch.await_existence(), answered);
  out.event("created", created, fmt::format("created: tunnel {} for {} → connector {} → {}", tunnel_name, hostname, connector_name, target.url()), asked);
  out.event("accepted", watch.await("Accepted", "True"), "accepted: the spec is valid and the host name is its own", asked);

  if (!has_gateway) {
    const char* why = "There is no Envoy here, so nothing carries visitors: programmed, addressing_pushed, ready and all "
                      "visitors are not shown.";
    out.event("not_shown", clock::now(), why, {},
              {{"events", {"programmed", "addressing_pushed", "ready", "visitor_200", "visitor_503", "visitor_200_again"}},
               {"why", "no Envoy: WARREN_ENVOY names none"}});
  } else {
    const auto programmed = watch.await("Programmed", "True");
    out.event("programmed", programmed, "programmed: the gateway has the route (" + watch.message("Programmed") + ")", asked);
    const auto pushed = watch.await("ConnectorMetadataProgrammed", "True");
    out.event("addressing_pushed", pushed, "addressing pushed: the gateway knows where the agent is, the agent serves the tunnel", asked);
    const auto ready = watch.await("Ready", "True");
    out.event("ready", ready, "ready: " + watch.message("Ready"), asked);
    const auto very_first = await_visitor(*visitors, 200, asked);
    const auto after = await_visitor(*visitors, 200, ready);
    out.event("visitor_200", after.at,
              fmt::format("a visitor gets 200 \"{}\" (the first one of all at +{:.1f} ms)", first_line(after.what.body),
                          milliseconds_between(asked, very_first.at)),
              asked, {{"first_200_after_ms", std::round(milliseconds_between(asked, very_first.at) * 10) / 10}});
  }

  // ---- its agent goes ----
  watch.restart();
  const auto stopped = clock::now();
  agent.running_process().signal(SIGTERM);
  out.event("agent_stopped", stopped, "the agent is stopped");
  if (has_gateway) {
    const auto refused = await_visitor(*visitors, 503, stopped);
    if (first_line(refused.what.body) != "Tunnel not online")
      throw stack_error("A visitor got 503 with other words than \"Tunnel not online\": " + refused.what.body);
    const auto shown = watch.await("Ready", "False");
    out.event("visitor_503", refused.at,
              fmt::format("a visitor gets 503 \"{}\" (the API says so at +{:.1f} ms)", first_line(refused.what.body),
                          milliseconds_between(stopped, shown)),
              stopped, {{"shown_after_ms", std::round(milliseconds_between(stopped, shown) * 10) / 10}});
  } else {
    servers.await("connector", connector_name, [](const auto& c) { return !c.value("online", false); });
    out.event("connector_offline", clock::now(), "the connector is offline", stopped);
  }
  agent.stop();

  // ---- and comes back ----
  watch.restart();
  const auto back = clock::now();
  agent.start();
  out.event("agent_back", back, "the agent is started again");
  if (has_gateway) {
    const auto again = await_visitor(*visitors, 200, back);
    out.event("visitor_200_again", again.at, fmt::format("a visitor gets 200 \"{}\"", first_line(again.what.body)), back);
    watch.await("Ready", "True");
    visitors->stop();
    out.progress("of all visitors: " + tally(visitors->answers(), asked) + " (404 before the route was there)");
  } else {
    servers.await("connector", connector_name, [](const auto& c) { return c.value("online", false); });
    out.event("connector_online", clock::now(), "the connector is online again", back);
  }
}

void tell_what_next(stack::stack& servers, teller& out) {
  const auto local = [](std::uint16_t port) { return "127.0.0.1:" + std::to_string(port); };
  const auto bin = stack::bin_dir().lexically_normal();
  const auto& agent = servers.find_agent(connector_name);
  const bool has_gateway = servers.envoy_runs();
  nlohmann::json where{{"admin", local(servers.admin_port())}, {"xds", local(servers.xds_port())},
                       {"http", local(servers.http_port())},   {"nats", local(servers.nats_port())},
                       {"postgres", local(servers.postgres().port())}, {"agent", local(agent.port())},
                       {"origin", local(servers.demo_origin().port())}, {"files", servers.directory().string()}};
  std::vector<std::string> text{"", "Listening, all on loopback:"};
  const auto row = [&](const std::string& what, const std::string& at) { text.push_back(fmt::format("  {:<22} {}", what, at)); };
  if (has_gateway) {
    where["visitors"] = local(servers.visitor_port());
    where["envoy_admin"] = servers.envoy_admin();
    row("visitors (Envoy)", "http://" + local(servers.visitor_port()));
    row("Envoy's administration", "http://" + servers.envoy_admin());
  }
  row("warrend, admin API", local(servers.admin_port()));
  row("warrend, gateways", local(servers.xds_port()));
  row("warrend, metrics", "http://" + local(servers.http_port()) + "/metrics   /readyz   /healthz");
  row("agent", local(agent.port()));
  row("demo origin", servers.demo_origin().url());
  row("NATS", servers.nats_url());
  row("PostgreSQL", fmt::format("psql -h {} -p {} -U warren warren", (servers.directory() / "postgres").string(), servers.postgres().port()));
  row("logs, configurations", servers.directory().string());
  text.insert(text.end(), {"", "Try next, in another terminal:",
                           fmt::format("  export WARREN_SERVER={} WARREN_PROJECT={} PATH=\"{}:$PATH\"", local(servers.admin_port()), servers.options().project, bin.string())});
  if (has_gateway)
    text.push_back(fmt::format("  curl -i -H 'Host: {}' http://{}/", hostname, local(servers.visitor_port())));
  text.insert(text.end(), {"  warrenctl tunnel list",
                           fmt::format("  warrenctl tunnel why {}", tunnel_name),
                           fmt::format("  warrenctl tunnel watch {}        # and meanwhile, elsewhere:", tunnel_name),
                           fmt::format("  warrenctl tunnel update {} --disabled", tunnel_name),
                           fmt::format("  warrenctl tunnel create mine --hostname mine.warren.test --connector {} --target {} --gateway-class {}", connector_name, servers.demo_origin().url(), gateway_class_name),
                           fmt::format("  kill -9 {}                   # the agent: see how fast it is noticed", servers.find_agent(connector_name).running_process().pid()),
                           "  warrenctl audit list", ""});
  out.lines(text);
  out.event("up", clock::now(), "everything is up", {}, where);
}

}  // namespace warren::story
