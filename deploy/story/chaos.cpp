// deploy/story/chaos.cpp -- three instances in use, and what becomes of it when they fail one after the other.
#include "deploy/story/chaos.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
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

constexpr int projects = 6;
constexpr milliseconds patience{30'000};
constexpr milliseconds nap{10'000};

std::string project_name(int n) { return fmt::format("team-{}", n); }
std::string host_name(int n) { return fmt::format("team-{}.warren.test", n); }

/// Changes one tunnel again and again, each time when the last change is done.
class writer {
public:
  writer(const std::shared_ptr<grpc::Channel>& channel, const std::string& project)
      : stub_{api::TunnelService::NewStub(channel)}, project_{project}, thread_{[this] { run(); }} {}
  ~writer() {
    stopping_ = true;
    thread_.join();
  }
  writer(const writer&) = delete;
  writer& operator=(const writer&) = delete;

  /// The longest time without a write that was done, of what ended at `from` or later.
  double longest_gap_ms(clock::time_point from) const {
    const std::lock_guard lock{mutex_};
    double longest = 0;
    for (std::size_t n = 1; n < done_.size(); ++n)
      if (done_[n] >= from) longest = std::max(longest, milliseconds_between(done_[n - 1], done_[n]));
    return longest;
  }
  std::size_t done() const {
    const std::lock_guard lock{mutex_};
    return done_.size();
  }
  /// Whether a write that began at `since` or later is done.
  bool wrote_after(clock::time_point since) const {
    const std::lock_guard lock{mutex_};
    return begun_last_ >= since;
  }
  std::size_t failed() const { return failed_; }
  std::string why() const {
    const std::lock_guard lock{mutex_};
    return why_;
  }

private:
  void run() {
    for (bool enabled = false; !stopping_; enabled = !enabled) {
      api::UpdateTunnelRequest request;
      request.mutable_tunnel()->set_name("projects/" + project_ + "/tunnels/spare");
      request.mutable_tunnel()->set_enabled(enabled);
      request.mutable_update_mask()->add_paths("enabled");
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + patience);
      api::Tunnel changed;
      const auto begun = clock::now();
      const auto status = stub_->UpdateTunnel(&context, request, &changed);
      const std::lock_guard lock{mutex_};
      if (status.ok()) {
        done_.push_back(clock::now());
        begun_last_ = begun;
      } else {
        ++failed_;
        why_ = status.error_message();
      }
    }
  }

  std::unique_ptr<api::TunnelService::Stub> stub_;
  std::string project_;
  mutable std::mutex mutex_;
  std::vector<clock::time_point> done_;
  clock::time_point begun_last_{};
  std::string why_;
  std::atomic<std::size_t> failed_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

struct use {
  std::vector<std::unique_ptr<writer>> writers;
  std::vector<std::unique_ptr<stack::continuous_visitor>> visitors;

  double longest_gap_ms(clock::time_point from) const {
    double longest = 0;
    for (const auto& each : writers) longest = std::max(longest, each->longest_gap_ms(from));
    return longest;
  }
  void await_writes(clock::time_point since) const {
    if (!stack::poll_until([&] { return std::all_of(writers.begin(), writers.end(), [&](const auto& w) { return w->wrote_after(since); }); }, patience))
      throw stack_error("Writes do not come back: " + writers.front()->why());
  }
  std::pair<std::size_t, std::size_t> visits_and_failures() const {
    std::size_t all = 0, failed = 0;
    for (const auto& each : visitors)
      for (const auto& seen : each->answers()) {
        ++all;
        if (seen.what.status != 200) ++failed;
      }
    return {all, failed};
  }
};

/// Agents, tunnels, and whoever uses them.
use begin_use(stack::stack& servers) {
  use u;
  for (int n = 0; n < projects; ++n) {
    auto& home = servers.add_agent(fmt::format("home-{}", n), {.project = project_name(n)});
    home.await_session();
    for (const auto& [name, host] : {std::pair{"web", host_name(n)}, std::pair{"spare", "spare." + host_name(n)}})
      servers.must_ctl({"tunnel", "create", name, "--hostname", host, "--connector", home.name(), "--target",
                        servers.demo_origin().url(), "--gateway-class", "demo", "-p", project_name(n)});
  }
  if (servers.envoy_runs())
    for (int n = 0; n < projects; ++n) {
      servers.must_ctl({"tunnel", "wait", "web", "--for", "ready", "--timeout", "30s", "-p", project_name(n)});
      u.visitors.push_back(std::make_unique<stack::continuous_visitor>(servers.visitor_port(), stack::request{.host = host_name(n)},
                                                                       milliseconds{5}));
      if (!u.visitors.back()->await_status(200, patience)) throw stack_error("No visitor gets 200.");
    }
  const auto channel = grpc::CreateChannel(fmt::format("127.0.0.1:{}", servers.at(0).admin_port()), grpc::InsecureChannelCredentials());
  const auto first = clock::now();
  for (int n = 0; n < projects; ++n) u.writers.push_back(std::make_unique<writer>(channel, project_name(n)));
  u.await_writes(first);
  return u;
}

struct fault {
  std::string name, sentence;
  bool gateway_at_victim;  ///< elsewhere it is at the first instance, as callers are
  std::function<void(stack::instance&)> act, undo;
  std::string undone;
};

std::vector<fault> faults() {
  return {
      {"kill", "is killed (kill -9)", true, [](auto& i) { i.kill(); }, [](auto& i) { i.start(); }, "is started again"},
      {"stop", "is stopped (SIGTERM): it hands over", true, [](auto& i) { i.stop(); }, [](auto& i) { i.start(); }, "is started again"},
      {"pause", fmt::format("is paused for {} s (SIGSTOP)", nap / milliseconds{1'000}), false, [](auto& i) { i.freeze(); },
       [](auto& i) { i.thaw(); }, "wakes up with an old belief (SIGCONT)"},
      {"deaf", "loses NATS, and keeps PostgreSQL", false, [](auto& i) { i.to_nats().cut(); }, [](auto& i) { i.to_nats().mend(); }, "has NATS again"},
      {"blind", "loses PostgreSQL, and keeps NATS", false, [](auto& i) { i.to_postgres().cut(); },
       [](auto& i) { i.to_postgres().mend(); }, "has PostgreSQL again"},
      {"vanish", "vanishes: no packet comes from it any more", false,
       [](auto& i) {
         i.to_postgres().swallow();
         i.to_nats().swallow();
       },
       [](auto& i) {
         i.to_postgres().mend();
         i.to_nats().mend();
       },
       "is back on the network"},
  };
}

}  // namespace

void tell_chaos(stack::stack& servers, teller& out) {
  const auto everybody = [&] {
    std::vector<const stack::instance*> all;
    for (std::size_t n = 0; n < servers.instances(); ++n) all.push_back(&servers.at(n));
    return all;
  };
  const auto settle = [&](const std::vector<const stack::instance*>& over) {
    if (!servers.await_spread(over, patience)) throw stack_error("The partitions are not spread evenly.");
  };
  settle(everybody());
  out.progress(fmt::format("{} agents, {} tunnels; a visitor and a caller for each who never stop", projects, 2 * projects));
  const auto online_before = [&] { return servers.sql("SELECT project, session, online, conditions FROM connector ORDER BY 1"); };
  auto u = begin_use(servers);
  const auto connectors = online_before();
  const auto begun = clock::now();
  out.event("in_use", begun, fmt::format("three instances share {} partitions; visitors are served, and writes are done", servers.owners().size()));

  std::size_t next = 1;
  for (const auto& f : faults()) {
    auto& victim = servers.at(next);
    next = next == 1 ? 2 : 1;  // callers are at the first: who dies under a call, its caller asks another
    settle(everybody());
    std::vector<const stack::instance*> rest;
    for (const auto* each : everybody())
      if (each != &victim) rest.push_back(each);
    std::vector<std::string> gateway_way;
    if (f.gateway_at_victim) gateway_way.push_back(std::to_string(victim.xds_port()));
    for (const auto* each : rest) gateway_way.push_back(std::to_string(each->xds_port()));
    servers.to_xds().lead_to(gateway_way, true);

    const auto at = clock::now();
    out.event("fault", at, fmt::format("{} {}", victim.name(), f.sentence), {}, {{"fault", f.name}, {"instance", victim.name()}});
    f.act(victim);
    settle(rest);
    const auto taken = clock::now();
    u.await_writes(taken);
    const auto gap = u.longest_gap_ms(at);
    const auto [visits, failures] = u.visits_and_failures();
    out.event("taken_over", taken, fmt::format("its partitions run elsewhere; the longest gap of a write: {:.0f} ms; {} visitors, {} failed", gap, visits, failures),
              at, {{"longest_write_gap_ms", std::round(gap * 10) / 10}, {"visitors", visits}, {"failed_visitors", failures}});
    if (f.name == "pause") (void)stack::poll_until([&] { return clock::now() - at >= nap; }, nap, milliseconds{50});
    const auto undone = clock::now();
    out.event("undone", undone, fmt::format("{} {}", victim.name(), f.undone));
    f.undo(victim);
    settle(everybody());
    u.await_writes(clock::now());
    out.event("whole_again", clock::now(), "all three share the partitions again", undone);
  }

  std::size_t failed_writes = 0, writes = 0;
  for (const auto& each : u.writers) {
    failed_writes += each->failed();
    writes += each->done();
  }
  const auto gap = u.longest_gap_ms(begun);
  const auto [visits, failures] = u.visits_and_failures();
  const bool flipped = online_before() != connectors;
  const auto visitors = u.visitors.empty() ? std::string{"visitors: not shown, there is no Envoy here"}
                                           : fmt::format("failed visitors: {} (of {})", failures, visits);
  out.event("over", clock::now(),
            fmt::format("{}; failed writes: {} (of {}); connectors that flipped: {}; the longest gap of a write: {:.0f} ms",
                        visitors, failed_writes, writes, flipped ? "some" : "none", gap),
            {},
            {{"visitors", visits}, {"failed_visitors", failures}, {"writes", writes}, {"failed_writes", failed_writes},
             {"connectors_flipped", flipped}, {"longest_write_gap_ms", std::round(gap * 10) / 10}});
  if (failures > 0 || failed_writes > 0 || flipped) throw stack_error("Somebody noticed something: see above.");
}

}  // namespace warren::story
