// test/integration/hook_server_test.cpp -- the extension hook's port: when it opens, to whom, and what it says to what.
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include <sys/stat.h>

#include "services/hook/server.hpp"
#include "services/telemetry/metrics.hpp"
#include "test/support/certificates.hpp"
#include "test/support/hook.hpp"
#include "test/support/hook_client.hpp"
#include "test/support/process.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::test;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

/// A view of one partition of projects, with tunnel p/on online and p/off not.
struct hook_world {
  replica::view view;
  telemetry::metrics count;
  stack::scratch place{"warren-hook"};
  std::unique_ptr<hook::server> server;

  hook_world() { view.set_partitions(1, 0); }

  void warm_up() {
    std::vector<v1::Row> rows;
    auto off = rows::connector("p", "gone", 1);
    off.set_online(false);
    for (const auto& [tunnel, connector] : {std::pair{"on", "there"}, {"off", "gone"}}) {
      const auto t = rows::tunnel("p", tunnel, connector, 1);
      rows.push_back(rows::row(t));
      rows.push_back(rows::row(rows::attachment(t, connector, 1)));
    }
    rows.push_back(rows::row(off));
    rows.push_back(rows::row(rows::connector("p", "there", 1)));
    view.apply_fetched(0, true, 1, 1, rows, 0, 0);
    view.apply_fetched(1, true, 1, 1, {}, 0, 0);
  }
  void serve(hook::server_config c) { server = std::make_unique<hook::server>(view, std::move(c), count); }
  std::string address() const { return "127.0.0.1:" + std::to_string(server->port()); }
  bool await_open() const { return stack::poll_until([&] { return server->port() != 0; }, 10s); }

  std::string file(const std::string& name, const std::string& content) const {
    const auto path = place.path() / name;
    std::ofstream{path.string() + ".new", std::ios::binary} << content;
    fs::rename(path.string() + ".new", path);
    return path;
  }
};

std::string request_for(const std::string& tunnel) {
  eg::PostTranslateModifyRequest r;
  const auto name = "httproute/p/" + tunnel + "/rule/0";
  add_cluster(r, name);
  auto* config = r.add_routes();
  config->set_name("c");
  add_route(add_host(config, "h", tunnel + ".test"), "r", name);
  return r.SerializeAsString();
}

int clusters_replaced(const std::string& response) {
  eg::PostTranslateModifyResponse r;
  REQUIRE(r.ParseFromString(response));
  int n = 0;
  for (const auto& c : r.clusters()) n += c.has_transport_socket();
  return n;
}

}  // namespace

TEST_CASE_METHOD(hook_world, "the port opens when everything is known, and a call that waited is answered") {
  const auto port = stack::free_port();
  serve({.listen = "127.0.0.1:" + std::to_string(port)});
  const hook_client client{"127.0.0.1:" + std::to_string(port)};
  CHECK(client.translate(request_for("on"), false).status.error_code() == grpc::StatusCode::UNAVAILABLE);
  auto waiting = std::async(std::launch::async, [&] { return client.translate(request_for("on")); });
  CHECK_FALSE(stack::listens(port));
  view.apply_fetched(0, true, 1, 1, {}, 0, 0);  // the tenants' partition, not the other one
  CHECK(server->port() == 0);
  CHECK_FALSE(stack::listens(port));
  warm_up();
  const auto answer = waiting.get();
  REQUIRE(answer.status.ok());
  CHECK(clusters_replaced(answer.bytes) == 1);
  CHECK(client.healthy());
  CHECK(client.healthy("envoygateway.extension.EnvoyGatewayExtension"));
}

TEST_CASE_METHOD(hook_world, "what is no message is refused, and the next call is answered") {
  warm_up();
  int failed = 0, answered = 0;
  serve({.listen = "127.0.0.1:0",
         .on_answered = [&](const hook::answered_call& what) {
           ++answered;
           CHECK(what.revisions.at(0) == 1);
           CHECK(what.peer.rfind("ipv4:127.0.0.1:", 0) == 0);
         },
         .on_failed = [&] { ++failed; }});
  REQUIRE(await_open());
  const hook_client client{address()};
  CHECK(client.translate("\xff\xff").status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  const auto off = client.translate(request_for("off"));
  REQUIRE(off.status.ok());
  CHECK(clusters_replaced(off.bytes) == 0);
  CHECK(client.translate("").status.ok());
  CHECK(client.call("/envoygateway.extension.EnvoyGatewayExtension/PostRouteModify", "").status.error_code() ==
        grpc::StatusCode::UNIMPLEMENTED);
  server->close();
  CHECK(answered == 2);
  CHECK(failed == 1);
  const auto metrics = count.text();
  const auto has = [&](const std::string& line) { return metrics.find(line) != std::string::npos; };
  CHECK(has("nso_extension_hook_calls_total{outcome=\"success\"} 2"));
  CHECK(has("nso_extension_hook_calls_total{outcome=\"error\"} 1"));
  CHECK(has("nso_extension_hook_duration_seconds_count{outcome=\"success\"} 2"));
  CHECK(has("nso_extension_connector_clusters_replaced_total 0"));
  CHECK(has("nso_extension_connector_routes_applied_total 1"));
  CHECK(has("nso_extension_connector_offline_routes_total 1"));
}

TEST_CASE_METHOD(hook_world, "a large translation goes through, several at once") {
  warm_up();
  serve({.listen = "127.0.0.1:0"});
  REQUIRE(await_open());
  eg::PostTranslateModifyRequest r;
  r.add_secrets()->set_name(std::string(80'000'000, 's'));
  add_cluster(r, "httproute/p/on/rule/0");
  const auto request = r.SerializeAsString();
  std::vector<std::future<hook_client::answer>> calls;
  for (int i = 0; i < 3; ++i)
    calls.push_back(std::async(std::launch::async, [&] { return hook_client{address()}.translate(request); }));
  for (auto& c : calls) {
    const auto a = c.get();
    REQUIRE(a.status.ok());
    CHECK(a.bytes.size() > 80'000'000);
  }
}

TEST_CASE_METHOD(hook_world, "the largest translation that is promised goes through, and a larger one is refused alone", "[long]") {
  warm_up();
  serve({.listen = "127.0.0.1:0"});
  REQUIRE(await_open());
  constexpr std::size_t answer_max = 256 * 1024 * 1024, tunnels_bytes = 225 * 1024 * 1024;
  constexpr std::size_t tunnel_bytes = 1'300;  // what Envoy Gateway's is
  std::string hosts, cluster;
  {
    eg::PostTranslateModifyRequest one;
    add_cluster(one, "httproute/p/on/rule/0");
    cluster = one.SerializeAsString();
  }
  std::size_t n = 0;
  for (; hosts.size() < tunnels_bytes; ++n) {
    routes::VirtualHost host;
    host.set_name("eg/http/t" + std::to_string(n));
    host.add_domains("t" + std::to_string(n) + ".test");
    auto* r = add_route(&host, "r", n % 2 == 0 ? "httproute/p/on/rule/0" : "httproute/p/off/rule/0");
    r->mutable_typed_per_filter_config()->operator[]("f").set_value(std::string(tunnel_bytes - 150, 'f'));
    hook::wire::put_bytes(hosts, 2, host.SerializeAsString());
  }
  std::string config;
  hook::wire::put_bytes(config, 1, "ns/eg/http");
  std::string request = cluster;
  hook::wire::put_bytes(request, 5, config + hosts);
  const hook_client client{address()};
  constexpr auto long_patience = std::chrono::seconds{120};
  const auto method = "/envoygateway.extension.EnvoyGatewayExtension/PostTranslateModify";
  const auto a = client.call(method, request, true, long_patience);
  INFO(n << " tunnels, " << request.size() << " bytes: " << a.status.error_message() << ", " << a.bytes.size() << " bytes back");
  REQUIRE(a.status.ok());
  CHECK(a.bytes.size() > request.size());
  CHECK(a.bytes.size() <= answer_max);

  auto largest = request;
  hook::wire::put_bytes(largest, 3, std::string(answer_max - request.size() - 10, 's'));
  REQUIRE(largest.size() <= answer_max);
  const auto b = client.call(method, largest, true, long_patience);
  INFO(largest.size() << " bytes: " << b.status.error_message() << ", " << b.bytes.size() << " bytes back");
  REQUIRE(b.status.ok());
  CHECK(b.bytes.size() > answer_max);

  hook::wire::put_bytes(request, 3, std::string(answer_max - request.size() + 1, 's'));
  CHECK(client.call(method, request, true, long_patience).status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(clusters_replaced(client.translate(request_for("on")).bytes) == 1);
}

TEST_CASE_METHOD(hook_world, "an answer that is too large is an error, and is said to be one") {
  warm_up();
  const auto request = request_for("on");
  int failed = 0, answered = 0;
  serve({.listen = "127.0.0.1:0", .answer_bytes_max = 1'000'000, .on_answered = [&](const auto&) { ++answered; }, .on_failed = [&] { ++failed; }});
  REQUIRE(await_open());
  const hook_client client{address()};
  CHECK(client.translate(request).status.ok());
  eg::PostTranslateModifyRequest r;
  REQUIRE(r.ParseFromString(request));
  r.add_secrets()->set_name(std::string(999'990 - request.size(), 's'));
  const auto larger = r.SerializeAsString();
  REQUIRE(larger.size() <= 1'000'010);
  const auto a = client.translate(larger);
  CHECK(a.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK_THAT(a.status.error_message(), Catch::Contains("bytes, and may have 1000000"));
  CHECK(client.translate(request).status.ok());
  server->close();
  CHECK(answered == 2);
  CHECK(failed == 1);
  const auto metrics = count.text();
  CHECK_THAT(metrics, Catch::Contains("nso_extension_hook_calls_total{outcome=\"success\"} 2"));
  CHECK_THAT(metrics, Catch::Contains("nso_extension_hook_calls_total{outcome=\"error\"} 1"));
  CHECK_THAT(metrics, Catch::Contains("nso_extension_hook_duration_seconds_count{outcome=\"error\"} 1"));
}

TEST_CASE_METHOD(hook_world, "a unix socket needs no certificate, an open port does") {
  warm_up();
  const auto path = (place.path() / "hook.sock").string();
  serve({.listen = "unix:" + path});
  const hook_client client{"unix:" + path};
  CHECK(client.translate(request_for("on")).status.ok());
  for (const auto* open : {"0.0.0.0:0", "[::]:0", "192.0.2.1:5005", "127.example.test:5005", "localhost.example:1", "5005"})
    CHECK_THROWS_AS((hook::server{view, {.listen = open}, count}), std::invalid_argument);
  CHECK_THROWS_AS((hook::server{view, {.listen = "127.0.0.1:0", .tls_key = "only"}, count}), std::invalid_argument);
}

TEST_CASE_METHOD(hook_world, "a port that is taken is tried again") {
  warm_up();
  hook_world other;
  other.warm_up();
  other.serve({.listen = "127.0.0.1:0"});
  REQUIRE(other.await_open());
  std::promise<std::string> told;
  bool said = false;
  serve({.listen = other.address(), .on_state = [&](bool open, const std::string& reason) {
           if (!open && !std::exchange(said, true)) told.set_value(reason);
         }});
  CHECK(told.get_future().get().find("cannot listen on") != std::string::npos);
  other.server->close();
  REQUIRE(await_open());
  CHECK(hook_client{address()}.translate(request_for("on")).status.ok());
}

namespace {

/// The hook's own files, of the first of two authorities, and a client of the same.
struct tls_world : hook_world {
  const authority first{"first"}, second{"second"};
  const identity certificate = first.issue("hook"), client_certificate = first.issue("envoy-gateway");
  const std::string cert_file = file("cert.pem", certificate.certificate), key_file = file("key.pem", certificate.key),
                    ca_file = file("ca.pem", first.certificate());

  bool admitted(const hook_client& c) const { return c.translate(request_for("on"), false).status.ok(); }
  bool admitted(const authority& trusted, const identity& who) const {
    return admitted(hook_client{address(), grpc::SslCredentials({trusted.certificate(), who.key, who.certificate}), "localhost"});
  }
};

}  // namespace

TEST_CASE_METHOD(tls_world, "mutual TLS: strangers are turned away, and changed files are read again") {
  warm_up();
  serve({.listen = "127.0.0.1:0", .tls_certificate = cert_file, .tls_key = key_file, .tls_client_ca = ca_file});
  REQUIRE(await_open());
  CHECK(admitted(first, client_certificate));
  CHECK_FALSE(admitted(first, second.issue("envoy-gateway")));
  CHECK_FALSE(admitted(hook_client{address(), grpc::SslCredentials({first.certificate(), "", ""}), "localhost"}));
  CHECK_FALSE(admitted(hook_client{address()}));

  const auto renewed = second.issue("hook"), new_client = second.issue("envoy-gateway");
  file("key.pem", renewed.key);
  file("cert.pem", renewed.certificate);
  file("ca.pem", second.certificate());
  CHECK(stack::poll_until([&] { return admitted(second, new_client); }, 20s, 100ms));
  CHECK_FALSE(admitted(second, client_certificate));
}

TEST_CASE_METHOD(tls_world, "mutual TLS: files that cannot be used are warned of, and the last good ones go on") {
  warm_up();
  std::mutex mutex;
  std::string trouble;
  serve({.listen = "127.0.0.1:0", .tls_certificate = cert_file, .tls_key = key_file, .tls_client_ca = ca_file,
         .on_certificates = [&](const std::string& t) {
           const std::lock_guard lock{mutex};
           trouble = t;
         }});
  REQUIRE(await_open());
  REQUIRE(admitted(first, client_certificate));
  const auto await_trouble = [&](const std::string& expected) {
    return stack::poll_until([&] {
      const std::lock_guard lock{mutex};
      return trouble == expected;
    }, 20s, 20ms);
  };
  // In place, as cp and a shell's redirection do it.
  const auto rewrite = [](const std::string& path, const std::string& content) { std::ofstream{path, std::ios::binary | std::ios::trunc} << content; };
  struct row { std::string path, content, good, error; };
  const row rows[] = {
      {cert_file, "", certificate.certificate, "hook.tls_certificate " + cert_file + ": is empty"},
      {key_file, "", certificate.key, "hook.tls_key " + key_file + ": is empty"},
      {ca_file, "", first.certificate(), "hook.tls_client_ca " + ca_file + ": is empty"},
      {cert_file, "garbage", certificate.certificate, "hook.tls_certificate " + cert_file + ": has no PEM certificate"},
      {key_file, first.issue("hook").key, certificate.key, "hook.tls_key " + key_file + ": is not the key of hook.tls_certificate " + cert_file},
  };
  double n = 0;
  const auto changes = [&](const char* outcome, double times) {
    return count.text().find(std::string{"warren_hook_certificate_changes_total{outcome=\""} + outcome + "\"} " + std::to_string(static_cast<int>(times))) != std::string::npos;
  };
  for (const auto& r : rows) {
    INFO(r.error);
    rewrite(r.path, r.content);
    REQUIRE(await_trouble("not taken: " + r.error));
    CHECK(admitted(first, client_certificate));
    CHECK(server->port() != 0);
    rewrite(r.path, r.good);
    REQUIRE(await_trouble(""));
    CHECK(admitted(first, client_certificate));
    ++n;
    CHECK(changes("error", n));
    CHECK(changes("success", n));
  }
  fs::remove(key_file);
  REQUIRE(await_trouble("not taken: hook.tls_key " + key_file + ": cannot be read: No such file or directory"));
  CHECK(admitted(first, client_certificate));

  const auto renewed = second.issue("hook"), new_client = second.issue("envoy-gateway");
  rewrite(cert_file, renewed.certificate);
  rewrite(key_file, renewed.key);
  rewrite(ca_file, second.certificate());
  REQUIRE(await_trouble(""));
  CHECK(stack::poll_until([&] { return admitted(second, new_client); }, 20s, 100ms));
  CHECK_FALSE(admitted(second, client_certificate));
}

TEST_CASE_METHOD(hook_world, "mutual TLS: what cannot be used at the start is refused by name, what has expired is warned of") {
  warm_up();
  const authority ours{"ours"};
  const auto good = ours.issue("hook");
  const auto cert = file("cert.pem", good.certificate), key = file("key.pem", good.key), ca = file("ca.pem", ours.certificate()),
             empty = file("empty.pem", ""), garbage = file("garbage.pem", "garbage"), other = file("other.pem", ours.issue("hook").key),
             missing = (place.path() / "missing.pem").string(), folder = place.path().string(),
             huge = file("huge.pem", good.certificate + std::string(2 * 1024 * 1024, '\n')), zero = file("zero.pem", std::string(1, '\0') + good.key),
             pipe = (place.path() / "pipe").string();
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  struct row { std::string cert, key, ca, error; };
  const row rows[] = {
      {empty, key, ca, "hook.tls_certificate " + empty + ": is empty"},
      {cert, empty, ca, "hook.tls_key " + empty + ": is empty"},
      {cert, key, empty, "hook.tls_client_ca " + empty + ": is empty"},
      {garbage, key, ca, "hook.tls_certificate " + garbage + ": has no PEM certificate"},
      {cert, garbage, ca, "hook.tls_key " + garbage + ": has no PEM key that can be read without a password"},
      {cert, key, garbage, "hook.tls_client_ca " + garbage + ": has no PEM certificate"},
      {cert, other, ca, "hook.tls_key " + other + ": is not the key of hook.tls_certificate " + cert},
      {missing, key, ca, "hook.tls_certificate " + missing + ": cannot be read: No such file or directory"},
      {cert, missing, ca, "hook.tls_key " + missing + ": cannot be read: No such file or directory"},
      {folder, key, ca, "hook.tls_certificate " + folder + ": is not a file"},
      {pipe, key, ca, "hook.tls_certificate " + pipe + ": is not a file"},
      {huge, key, ca, "hook.tls_certificate " + huge + ": is larger than 1048576 bytes"},
      {cert, zero, ca, "hook.tls_key " + zero + ": is not PEM"},
  };
  for (const auto& r : rows) {
    INFO(r.error);
    CHECK_THROWS_WITH((hook::server{view, {.listen = "127.0.0.1:0", .tls_certificate = r.cert, .tls_key = r.key, .tls_client_ca = r.ca}, count}), r.error);
  }
  const auto past = ours.issue("hook", -60);
  std::promise<std::string> told;
  serve({.listen = "127.0.0.1:0", .tls_certificate = file("past.pem", past.certificate), .tls_key = file("past-key.pem", past.key), .tls_client_ca = ca,
         .on_certificates = [&](const std::string& t) { told.set_value(t); }});
  CHECK_THAT(told.get_future().get(), Catch::StartsWith("hook.tls_certificate " + (place.path() / "past.pem").string() + ": expired at 20"));
  CHECK(await_open());
}
