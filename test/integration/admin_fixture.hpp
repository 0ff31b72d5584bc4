// test/integration/admin_fixture.hpp -- the admin API over a real connection, with an owner and a replica that are
// played here.
#pragma once

#include <catch2/catch.hpp>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdlib>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "actors/core/wire.hpp"
#include "services/admin/server.hpp"
#include "services/warrenctl/command.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

namespace warren::played {

namespace api = warren::admin::v1;
namespace corev1 = warren::core::v1;
namespace busv1 = warren::bus::v1;

inline constexpr int partitions = 2;
inline std::int64_t steady_ms() {
  return std::chrono::duration_cast<millis>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline std::int64_t wall_ms() {
  return std::chrono::duration_cast<millis>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// Owner of all partitions: keeps tunnels and connectors in memory and tells the replica what it wrote.
class owner {
public:
  explicit owner(replica::view& view) : view_{view} {
    view_.set_partitions(partitions, steady_ms());
    for (int p = 0; p <= partitions; ++p) view_.apply_fetched(p, true, revisions_[p] = 1, 1, {}, steady_ms(), 0);
  }

  void request(partition_id partition, std::string payload, bus::reply_callback done) {
    if (refuse > 0) {
      --refuse;
      return done(refuse % 2 == 0 ? bus::request_error::no_responders : bus::request_error::timeout, {});
    }
    const auto command = wire::parse_api_command(payload);
    must(command.value.has_value());
    corev1::Reply reply;
    {
      std::lock_guard lock{mutex_};
      seen.push_back(*command);
      if (silent) return held_.push_back(std::move(done));
      reply = answer(partition, *command);
    }
    done(bus::request_error::none, reply.SerializeAsString());
  }
  /// What came while it was silent, answered with this error.
  void answer_held(bus::request_error error) {
    std::vector<bus::reply_callback> all;
    {
      std::lock_guard lock{mutex_};
      all.swap(held_);
    }
    for (const auto& done : all) done(error, {});
  }
  std::size_t heard() {
    std::lock_guard lock{mutex_};
    return seen.size();
  }
  /// Changes a tunnel's row, as an agent's report would.
  void touch(const std::string& project, const std::string& name) {
    std::lock_guard lock{mutex_};
    corev1::Row row;
    *row.mutable_tunnel() = tunnels_.at({project, name});
    write(row.tunnel().partition(), row);
  }
  /// Another instance runs all partitions from here on, and has said so.
  void move() {
    std::vector<busv1::Revision> hints;
    {
      std::lock_guard lock{mutex_};
      ++epoch_;
      for (const auto& [partition, revision] : revisions_) {
        auto& hint = hints.emplace_back();
        hint.set_version(1);
        hint.set_partition(partition);
        hint.set_epoch(epoch_);
        hint.set_revision(revision);
      }
    }
    // Whoever hears it asks at once.
    for (const auto& hint : hints) REQUIRE(view_.apply(hint, steady_ms(), wall_ms()) == replica::view::applied::known);
  }

  std::atomic<int> refuse{0};
  std::atomic<bool> silent{false};  ///< commands are heard and not answered
  std::atomic<std::int64_t> heard_ms{0}, listening_ms{0};  ///< what it knows of every connector's agent
  std::vector<corev1::Command> seen;  ///< look at it when nothing is under way

private:
  corev1::Reply answer(partition_id partition, const corev1::Command& c) {
    corev1::Reply reply;
    corev1::Row row;
    if (c.has_create_tunnel()) {
      auto& t = *row.mutable_tunnel();
      const auto& spec = c.create_tunnel().spec();
      if (spec.hostnames(0) == "taken.example.com") {
        reply.set_code("already_exists");
        reply.set_field("hostnames[0]");
        reply.set_message("taken.example.com belongs to another tunnel");
        return reply;
      }
      t.set_partition(partition);
      t.set_project(c.project());
      t.set_name(c.create_tunnel().name());
      t.set_uid("u-" + c.create_tunnel().name());
      t.set_generation(1);
      *t.mutable_hostnames() = spec.hostnames();
      *t.mutable_rules() = spec.rules();
      t.set_enabled(spec.enabled());
      t.set_gateway_class(spec.gateway_class());
    } else if (c.has_enrol_connector()) {
      auto& r = *row.mutable_connector();
      r.set_partition(partition);
      r.set_project(c.project());
      r.set_name(c.enrol_connector().name());
      r.set_uid("u-c");
      r.set_generation(1);
      r.set_public_key(c.enrol_connector().public_key());
    } else if (c.has_observe_connector()) {
      reply.mutable_observed()->set_heard_ms(heard_ms);
      reply.mutable_observed()->set_listening_ms(listening_ms);
      return reply;
    } else if (c.has_update_tunnel()) {
      reply.set_code("aborted");
      reply.set_etag("u-1");
      reply.set_message("the tunnel has changed since it was read");
      return reply;
    } else {
      reply.set_code("not_found");
      reply.set_message("there is no such thing");
      return reply;
    }
    const auto revision = write(partition, row);
    *reply.mutable_row() = row;
    reply.set_partition(partition);
    reply.set_revision(revision);
    return reply;
  }

  /// On any thread, where the test's own words cannot be used.
  static void must(bool so) {
    if (!so) std::abort();
  }
  revision_t write(partition_id partition, corev1::Row& row) {
    const auto revision = ++revisions_[partition];
    if (row.has_tunnel()) {
      row.mutable_tunnel()->set_version(revision);
      tunnels_[{row.tunnel().project(), row.tunnel().name()}] = row.tunnel();
    }
    if (row.has_connector()) row.mutable_connector()->set_version(revision);
    busv1::Revision hint;
    hint.set_version(1);
    hint.set_partition(partition);
    hint.set_epoch(epoch_);
    hint.set_revision(revision);
    *hint.add_rows() = row;
    must(view_.apply(hint, steady_ms(), wall_ms()) == replica::view::applied::yes);
    return revision;
  }

  replica::view& view_;
  std::mutex mutex_;
  std::map<partition_id, revision_t> revisions_;
  std::map<std::pair<std::string, std::string>, corev1::TunnelRow> tunnels_;
  std::vector<bus::reply_callback> held_;
  epoch_t epoch_ = 1;
};

struct fixture {
  replica::view view;
  played::owner owner{view};
  std::unique_ptr<admin::server> server;
  std::string address;

  explicit fixture(const std::function<void(admin::server_config&)>& adjust = {}) {
    admin::server_config config;
    config.listen = "127.0.0.1:0";
    config.partitions = partitions;
    config.version = "test";
    config.agents.urls = {"nats://127.0.0.1:4222"};
    config.send = [this](partition_id p, std::string payload, millis, bus::reply_callback done) {
      owner.request(p, std::move(payload), std::move(done));
    };
    config.audit = [](admin::audit_query, auto then) {
      admin::audit_page page;
      page.events.push_back({7, 1'900'000'000'000, "p", "local", "ipv4:127.0.0.1:1", "CreateTunnel", "projects/p/tunnels/t", "r", "", "{}"});
      then(std::move(page));
    };
    config.bootstrap = [](const auto& g, const auto*) { return "node: " + g.name(); };
    if (adjust) adjust(config);
    server = admin::server::start(std::move(config), view);
    address = "127.0.0.1:" + std::to_string(server->port());
  }

  struct outcome {
    int code;
    std::string out, err;
  };
  outcome ctl(std::vector<std::string> arguments) {
    std::ostringstream out, err;
    ctl::surroundings around{out, err, false};
    arguments.insert(arguments.begin(), {"--server", address, "-p", "p"});
    const int code = ctl::run(arguments, around);
    return {code, out.str(), err.str()};
  }
  /// Conditions are known once gateways were heard or waited for; watches tell nothing before.
  void settle() { view.tick(steady_ms() + 60'000, wall_ms() - 60'000); }
  std::shared_ptr<grpc::Channel> channel() const {
    // Of its own: channels with the same arguments share a connection.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // Who does not read gets no more than this; a window that grows would take thousands of events.
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 * 1024);
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }
  outcome create(const std::string& name, const std::string& hostname = "a.example.com") {
    return ctl({"tunnel", "create", name, "--hostname", hostname, "--connector", "c", "--target", "http://localhost:8080"});
  }
};

}  // namespace warren::played
