// bench/hook.cpp -- how long the extension hook takes, against bare parsing and serialising of the same bytes by the same
// library in the same run; and what it costs in memory. Needs no server.
#include <malloc.h>

#include <fstream>
#include <future>
#include <iostream>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "bench/measure.hpp"
#include "envoygateway/extension/extension.pb.h"
#include "services/hook/server.hpp"
#include "services/hook/wire.hpp"
#include "services/telemetry/metrics.hpp"
#include "test/support/hook_client.hpp"
#include "test/support/process.hpp"
#include "test/support/rows.hpp"

namespace {

using namespace warren;
using namespace warren::bench;
namespace eg = envoygateway::extension;

constexpr const char* project = "ns-0000";  // where the captured request's HTTPRoutes are
constexpr int captured_tunnels = 10;

std::string captured() {
  std::ifstream in{std::string{WARREN_VECTORS} + "/envoy-gateway/request-0010-tunnel.pb", std::ios::binary};
  if (!in) throw std::runtime_error("there is no captured request");
  return {std::istreambuf_iterator<char>{in}, {}};
}

std::string tunnel_name(int n) { return fmt::format("tunnel-{:05}", n); }

/// The captured ten, again and again under other names of the same length, behind one listener.
std::string request_of(int tunnels) {
  const auto one = captured();
  std::string out, hosts, rest_of_config;
  for (int copy = 0; copy * captured_tunnels < tunnels; ++copy) {
    auto bytes = one;
    for (std::size_t at = bytes.find("tunnel-0000"); at != std::string::npos; at = bytes.find("tunnel-0000", at + 1)) {
      const int digit = bytes[at + 11] - '0';
      bytes.replace(at, 12, tunnel_name(copy * captured_tunnels + digit));
    }
    hook::wire::reader in{bytes};
    for (hook::wire::field f; in.next(f);) {
      if (f.is_bytes(2)) out += f.whole;
      if (copy == 0 && (f.is_bytes(3) || f.is_bytes(4))) out += f.whole;
      if (!f.is_bytes(5)) continue;
      hook::wire::reader config{f.payload};
      for (hook::wire::field of; config.next(of);) {
        if (of.is_bytes(2)) hosts += of.whole;
        else if (copy == 0) rest_of_config += of.whole;
      }
    }
  }
  hook::wire::put_bytes(out, 5, rest_of_config + hosts);
  return out;
}

/// Every second tunnel is offline.
void fill(replica::view& view, int tunnels) {
  std::vector<v1::Row> rows;
  auto gone = rows::connector(project, "gone", 1);
  gone.set_online(false);
  rows.push_back(rows::row(gone));
  rows.push_back(rows::row(rows::connector(project, "there", 1)));
  for (int i = 0; i < tunnels; ++i) {
    const std::string connector = i % 2 == 0 ? "there" : "gone";
    auto t = rows::tunnel(project, tunnel_name(i), connector, 1);
    *t.add_rules() = t.rules(0);
    t.mutable_rules(1)->set_path_prefix("/api");
    rows.push_back(rows::row(t));
    rows.push_back(rows::row(rows::attachment(t, connector, 1)));
  }
  view.set_partitions(1, 0);
  view.apply_fetched(0, true, 1, 1, rows, 0, 0);
  view.apply_fetched(1, true, 1, 1, {}, 0, 0);
}

double resident_mb() {
  std::ifstream in{"/proc/self/statm"};
  long size = 0, resident = 0;
  in >> size >> resident;
  return static_cast<double>(resident) * 4096 / 1e6;
}

template <class F> double timed(F&& f) {
  const auto begun = clock::now();
  f();
  return ms_between(begun, clock::now());
}

struct figures {
  sample bare, hook, call;
  std::size_t bytes = 0;
};

figures measure(int tunnels, int rounds) {
  replica::view view;
  fill(view, tunnels);
  telemetry::metrics count;
  hook::server server{view, {.listen = "127.0.0.1:0"}, count};
  if (!stack::poll_until([&] { return server.port() != 0; }, std::chrono::seconds{10}))
    throw std::runtime_error("the hook does not open");
  const test::hook_client client{"127.0.0.1:" + std::to_string(server.port())};
  const auto request = request_of(tunnels);
  const hook::find_tunnel find = [&](std::string_view ns, std::string_view name) {
    return view.read([&](const replica::tables& t) { return hook::truth_of(t, std::string{ns}, std::string{name}); });
  };
  figures out;
  out.bytes = request.size();
  for (int i = -2; i < rounds; ++i) {  // interleaved; the first two warm up
    const auto bare = timed([&] {
      eg::PostTranslateModifyRequest m;
      if (!m.ParseFromString(request) || m.SerializeAsString().size() != request.size())
        throw std::runtime_error("the request is no message");
    });
    const auto alone = timed([&] {
      const auto done = hook::transform(request, find, {});
      if (!done.error.empty() || done.counts.vhosts_connector_applied != tunnels)
        throw std::runtime_error("not every tunnel was found");
    });
    const auto whole = timed([&] {
      if (!client.translate(request).status.ok()) throw std::runtime_error("the call failed");
    });
    if (i < 0) continue;
    out.bare.add(bare);
    out.hook.add(alone);
    out.call.add(whole);
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"How long the extension hook takes for one translation of Envoy Gateway"};
  int rounds = 100, memory_rounds = 300;
  bool json = false;
  app.add_option("--rounds", rounds, "measured calls of each size")->check(CLI::Range(1, 10'000));
  app.add_option("--memory-rounds", memory_rounds, "calls over which memory is watched")->check(CLI::Range(20, 100'000));
  app.add_flag("--json", json, "one JSON object");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::off);
  try {
    report r{"hook"};
    const auto small = measure(1'000, rounds), large = measure(5'000, std::max(rounds / 5, 5));
    r.figure("request with 1,000 tunnels", static_cast<double>(small.bytes) / 1e6, "MB");
    r.leg("1,000: parse + serialise alone", small.bare);
    r.leg("1,000: the hook", small.hook, {.p50 = 25});
    r.leg("1,000: the whole call over loopback", small.call, {.p50 = 25});
    r.figure("1,000: hook / (parse + serialise), p50", small.hook.percentile(50) / small.bare.percentile(50), "×", 2);
    r.figure("1,000: call / (parse + serialise), p50", small.call.percentile(50) / small.bare.percentile(50), "×", 2);
    r.figure("request with 5,000 tunnels", static_cast<double>(large.bytes) / 1e6, "MB");
    r.leg("5,000: parse + serialise alone", large.bare);
    r.leg("5,000: the hook", large.hook);
    r.leg("5,000: the whole call over loopback", large.call);
    const auto per_byte = [](const sample& s, std::size_t bytes) { return s.percentile(50) / static_cast<double>(bytes); };
    // More bytes leave the caches, for whoever touches them: what counts is whether the hook grows more than that.
    const auto growth = [&](const sample& of_small, const sample& of_large) {
      return per_byte(of_large, large.bytes) / per_byte(of_small, small.bytes);
    };
    r.figure("5,000: call / (parse + serialise), p50", large.call.percentile(50) / large.bare.percentile(50), "×", 2);
    r.figure("5,000: parse + serialise per byte, against 1,000", growth(small.bare, large.bare), "×");
    r.figure("5,000: call per byte, against 1,000", growth(small.call, large.call), "×", 1.1 * growth(small.bare, large.bare));

    // Memory: after many calls it is what it was after the first few.
    replica::view view;
    fill(view, 1'000);
    telemetry::metrics count;
    hook::server server{view, {.listen = "127.0.0.1:0"}, count};
    stack::poll_until([&] { return server.port() != 0; }, std::chrono::seconds{10});
    const test::hook_client client{"127.0.0.1:" + std::to_string(server.port())};
    const auto request = request_of(1'000);
    const auto run = [&](int n) {
      for (int i = 0; i < n; ++i) client.translate(request);
      malloc_trim(0);
      return resident_mb();
    };
    const auto settled = run(memory_rounds), after = run(memory_rounds);
    r.figure(fmt::format("memory after {} calls", memory_rounds), settled, "MB");
    r.figure(fmt::format("memory gained over {} calls more", memory_rounds), after - settled, "MB", 5);
    r.print(json);
    return r.goals_met() ? 0 : 1;
  } catch (const std::exception& e) {
    std::cerr << "hook: " << e.what() << '\n';
    return 2;
  }
}
