// test/integration/hook_test.cpp -- the extension hook of a real warrend: captured translations of Envoy Gateway, tunnels
// that come and go, a tenant with bad data, and the page of its health.
#include <catch2/catch.hpp>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include "services/bus/connection.hpp"
#include "test/support/certificates.hpp"
#include "test/support/hook.hpp"
#include "test/support/hook_client.hpp"
#include "test/support/stack.hpp"

using namespace warren;
using namespace warren::test;
using namespace std::chrono_literals;
using stack::milliseconds;

namespace {

namespace asio = boost::asio;

struct hooked {
  std::uint16_t port = stack::free_port(), http = stack::free_port();
  stack::stack w;
  hook_client client{"127.0.0.1:" + std::to_string(port)};

  explicit hooked(const std::string& project = "ns-0000", stack::settings more = {}, bool start = true)
      : w{[&] {
          stack::stack_options o;
          o.with_envoy = false;
          o.partitions = 4;
          o.project = project;
          o.start = start;
          o.configuration = std::move(more);
          o.configuration.emplace_back("hook.listen", "127.0.0.1:" + std::to_string(port));
          o.configuration.emplace_back("hook.http_listen", "127.0.0.1:" + std::to_string(http));
          return o;
        }()} {
    if (start) w.must_ctl({"gateway-class", "create", "demo", "--listen", "127.0.0.1:" + std::to_string(stack::free_port())});
  }

  eg::PostTranslateModifyResponse translate(const std::string& request) const {
    const auto a = client.translate(request);
    INFO(a.status.error_message());
    REQUIRE(a.status.ok());
    eg::PostTranslateModifyResponse out;
    REQUIRE(out.ParseFromString(a.bytes));
    return out;
  }
  /// Asks until the answer satisfies: rows reach the hook without anybody being told.
  template <class F> bool await(const std::string& request, F satisfies, milliseconds timeout = 20s) const {
    return stack::poll_until([&] { return satisfies(translate(request)); }, timeout, 20ms);
  }
  int healthz() const { return stack::visit(http, {.host = "127.0.0.1", .target = "/healthz"}).status; }
};

std::string tunnel_name(int n) { return "tunnel-0000" + std::to_string(n); }

bool is_online(const eg::PostTranslateModifyResponse& r, const std::string& cluster) {
  return std::any_of(r.clusters().begin(), r.clusters().end(), [&](const auto& c) {
    return c.name() == cluster && c.has_transport_socket() &&
           c.transport_socket().name() == "envoy.transport_sockets.internal_upstream";
  });
}
int online(const eg::PostTranslateModifyResponse& r) {
  return static_cast<int>(std::count_if(r.clusters().begin(), r.clusters().end(),
                                        [&](const auto& c) { return is_online(r, c.name()); }));
}
/// Of routes that are not ours.
int refused(const eg::PostTranslateModifyResponse& r) {
  int n = 0;
  for (const auto& config : r.routes())
    for (const auto& host : config.virtual_hosts())
      for (const auto& route : host.routes())
        n += route.direct_response().status() == 503 && route.name().rfind("connector-", 0) != 0;
  return n;
}

std::string condition(const nlohmann::json& t, const std::string& type) { return stack::stack::condition(t, type); }
std::string message(const nlohmann::json& t, const std::string& type) { return stack::stack::condition_message(t, type); }

/// What arrives, in order, to be waited for. Thread-safe.
class inbox {
public:
  void put(const std::string& json) {
    const std::lock_guard lock{mutex_};
    all_.push_back(nlohmann::json::parse(json));
    come_.notify_all();
  }
  /// The first from number `from` on that satisfies; null: none in time.
  nlohmann::json await(const std::function<bool(const nlohmann::json&)>& satisfies, std::size_t from = 0) {
    std::unique_lock lock{mutex_};
    nlohmann::json found;
    come_.wait_for(lock, 20s, [&] {
      for (std::size_t i = from; i < all_.size() && found.is_null(); ++i)
        if (satisfies(all_[i])) found = all_[i];
      return !found.is_null();
    });
    return found;
  }
  std::size_t size() {
    const std::lock_guard lock{mutex_};
    return all_.size();
  }

private:
  std::mutex mutex_;
  std::condition_variable come_;
  std::vector<nlohmann::json> all_;
};

/// Takes POSTs on a port of loopback; refuses the first of each body.
class receiver {
public:
  receiver() : acceptor_{io_, {asio::ip::address_v4::loopback(), 0}}, port_{acceptor_.local_endpoint().port()}, thread_{[this] { run(); }} {}
  ~receiver() {
    stopping_ = true;
    asio::io_context io;
    asio::ip::tcp::socket knock{io};
    boost::system::error_code ignored;
    knock.connect({asio::ip::address_v4::loopback(), port_}, ignored);
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/retranslate"; }
  inbox taken;
  std::atomic<int> refused{0};

private:
  using clock = std::chrono::steady_clock;
  void run() {
    std::set<std::string> seen;
    while (!stopping_) {
      boost::system::error_code error;
      asio::ip::tcp::socket socket{io_};
      acceptor_.accept(socket, error);
      if (error || stopping_) return;
      boost::beast::flat_buffer buffer;
      namespace http = boost::beast::http;
      http::request<http::string_body> request;
      http::read(socket, buffer, request, error);
      if (error) continue;
      const bool first = seen.insert(request.body()).second;
      const bool right = request.method() == http::verb::post && request.target() == "/retranslate";
      http::response<http::string_body> response{first || !right ? http::status::internal_server_error : http::status::no_content, 11};
      response.prepare_payload();
      http::write(socket, response, error);
      if (first) ++refused;
      else taken.put(request.body());
    }
  }

  asio::io_context io_;
  asio::ip::tcp::acceptor acceptor_;
  std::uint16_t port_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

/// Every tunnel that it names is in that state, and there are so many.
bool tells(const nlohmann::json& signal, const std::string& state, std::size_t count) {
  const auto tunnels = signal.value("tunnels", nlohmann::json::array());
  return signal.value("reason", "") == "changed" && tunnels.size() == count &&
         std::all_of(tunnels.begin(), tunnels.end(), [&](const auto& t) {
           return t.at("state") == state && t.at("namespace") == "ns-0000";
         });
}

}  // namespace

TEST_CASE("a real warrend answers captured translations: online, offline, moved, gone") {
  hooked h;
  const auto request = captured("request-0010-tunnel");
  CHECK(online(h.translate(request)) == 0);
  CHECK(refused(h.translate(request)) == 0);  // nobody's tunnels

  h.w.add_agent("there");
  h.w.add_agent("away", {.start = false});
  for (int i = 0; i < 10; ++i)
    h.w.create_tunnel(tunnel_name(i), tunnel_name(i) + ".example.test", i < 5 ? "there" : "away");
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 5 && refused(r) == 5; }));

  const auto answer = h.translate(request);
  CHECK(answer.clusters_size() == 11);
  for (const auto& c : answer.clusters())
    if (is_online(answer, c.name())) {
      const auto& e = c.load_assignment().endpoints(0).lb_endpoints(0);
      const auto& fields = e.metadata().filter_metadata().at("tunnel").fields();
      CHECK("http://" + fields.at("address").string_value() == h.w.demo_origin().url());
      CHECK(fields.at("endpoint_id").string_value() == h.w.find_agent("there").public_key());
    }
  // tunnel-00009's second rule is none of the tunnel's: it stays as it was.
  CHECK_FALSE(is_online(answer, "httproute/ns-0000/tunnel-00009/rule/1"));
  const auto again = h.client.translate(as_request(answer.SerializeAsString()));
  REQUIRE(again.status.ok());

  h.w.find_agent("there").stop();
  CHECK(h.await(request, [](const auto& r) { return online(r) == 0 && refused(r) == 10; }));
  h.w.find_agent("there").start();
  CHECK(h.await(request, [](const auto& r) { return online(r) == 5; }));
  h.w.must_ctl({"tunnel", "update", tunnel_name(0), "--disabled"});
  CHECK(h.await(request, [](const auto& r) { return online(r) == 4 && refused(r) == 6; }));

  for (const auto* other : {"request-0001-plain", "request-0100-mixed"}) {
    const auto all = captured(other);
    eg::PostTranslateModifyRequest before;
    REQUIRE(before.ParseFromString(all));
    const auto after = h.translate(all);
    CHECK(after.clusters_size() == before.clusters_size());
    CHECK(after.listeners_size() == before.listeners_size());
    CHECK(after.routes_size() == before.routes_size());
  }

  CHECK(h.healthz() == 200);
  CHECK(h.client.healthy());
  CHECK(h.w.metric("nso_extension_hook_calls_total", "success") > 0);
  CHECK(h.w.metric("nso_extension_connector_clusters_replaced_total") > 0);
  CHECK(h.w.metric("nso_extension_hook_calls_total", "error") == 0);
  const auto page = stack::visit(h.http, {.host = "127.0.0.1", .target = "/metrics"}).body;
  CHECK(page.find("nso_extension_hook_duration_seconds_bucket{") != std::string::npos);

  const auto log = h.w.at(0).log();
  const auto at = log.rfind("\"msg\":\"PostTranslateModify\"");
  REQUIRE(at != std::string::npos);
  const auto begin = log.rfind('\n', at) + 1;
  const auto line = nlohmann::json::parse(log.substr(begin, log.find('\n', at) - begin));
  for (const auto* key : {"clusters", "listeners", "route_configs", "clusters_replaced", "clusters_offline",
                          "vhosts_connector_applied", "connector_offline_routes"})
    CHECK(line.at(key).is_number_integer());
}

TEST_CASE("one tenant's poison makes that tenant's tunnel answer 503, and nothing else") {
  hooked h{"acme"};
  h.w.add_agent("there");
  h.w.add_agent("poisoned-key");
  eg::PostTranslateModifyRequest r;
  auto* config = r.add_routes();
  config->set_name("acme/eg/http");  // the fleet that is gateway acme-eg
  h.w.must_ctl({"gateway", "create", "acme-eg", "--class", "demo"});
  const auto add = [&](const std::string& tunnel, const std::string& connector) {
    h.w.create_tunnel(tunnel, tunnel + ".example.test", connector);
    const auto cluster = "httproute/acme/" + tunnel + "/rule/0";
    add_cluster(r, cluster);
    add_route(add_host(config, tunnel, tunnel + ".example.test"), tunnel, cluster);
  };
  for (int i = 0; i < 50; ++i) add("healthy-" + std::to_string(i), "there");
  add("bad-target", "there");
  add("bad-key", "poisoned-key");
  const auto request = r.SerializeAsString();
  REQUIRE(h.await(request, [](const auto& a) { return online(a) == 52; }, 60s));
  for (const auto* name : {"bad-target", "bad-key", "healthy-49"}) REQUIRE(h.w.await_ready(name));

  h.w.sql(R"(UPDATE tunnel SET rules = '[{"path_prefix":"/","connector":"there","target":"http://no\u0001host:99999"}]'
             WHERE name = 'bad-target';
             UPDATE connector SET public_key = E'\x01' || substr(public_key, 2) WHERE name = 'poisoned-key';)");
  REQUIRE(h.await(request, [](const auto& a) { return online(a) == 50 && refused(a) == 2; }));
  const auto answer = h.translate(request);
  CHECK_FALSE(is_online(answer, "httproute/acme/bad-target/rule/0"));
  CHECK_FALSE(is_online(answer, "httproute/acme/bad-key/rule/0"));
  CHECK(h.w.metric("nso_extension_hook_calls_total", "error") == 0);
  for (const auto& [name, field] : {std::pair{"bad-target", "rules[0].target: "}, std::pair{"bad-key", "public_key: "}}) {
    const auto said = h.w.await("tunnel", name, [field = field](const auto& t) {
      return condition(t, "Ready") == "False" && message(t, "Ready").find(field) != std::string::npos;
    });
    INFO(h.w.tunnel(name).dump());
    CHECK_FALSE(said.is_null());
  }
  for (int i = 0; i < 50; ++i) CHECK(h.w.await_ready("healthy-" + std::to_string(i)));
}

TEST_CASE("a fleet is a gateway: what it was handed is programmed, and what it was not asked about says so") {
  hooked h;
  const auto request = captured("request-0010-tunnel");  // of the fleet envoy-gateway-system/eg
  const auto gateway = [&] { return h.w.ctl({"gateway", "get", "envoy-gateway-system-eg", "-o", "json"}).json(); };
  const auto state = [&](const std::string& is) {
    return stack::poll_until([&] { return gateway().value("state", "") == is; }, 20s, 50ms);
  };
  auto& there = h.w.add_agent("there");
  h.w.create_tunnel(tunnel_name(0), "a.example.test", "there");
  h.w.create_tunnel("unrouted", "unrouted.example.test", "there");
  // Not registered, it is answered, and does not count.
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 1; }));
  const auto alone = h.w.await("tunnel", tunnel_name(0), [](const auto& t) { return message(t, "Programmed").find("no gateway") == 0; });
  REQUIRE_FALSE(alone.is_null());
  h.w.must_ctl({"gateway", "create", "envoy-gateway-system-eg", "--class", "demo"});
  REQUIRE(h.w.await_ready(tunnel_name(0)));
  CHECK_THAT(message(h.w.tunnel(tunnel_name(0)), "Programmed"), Catch::Contains("1/1 gateways") && Catch::Contains("handed over: envoy-gateway-system-eg"));
  CHECK(gateway().value("counts", false));
  CHECK(gateway().value("nodeId", gateway().value("node_id", "")) == "envoy-gateway-system/eg");
  const auto told = h.w.await("tunnel", "unrouted", [](const auto& t) { return message(t, "Programmed").find("ns-0000/unrouted") != std::string::npos; });
  REQUIRE_FALSE(told.is_null());
  CHECK(condition(told, "Programmed") == "False");
  CHECK(condition(told, "Ready") == "False");

  // Asked about before it was there: not handed over by that.
  h.w.create_tunnel(tunnel_name(1), "b.example.test", "there");
  const auto early = h.w.await("tunnel", tunnel_name(1), [](const auto& t) { return condition(t, "TargetReachable") == "True"; });
  REQUIRE_FALSE(early.is_null());
  CHECK(condition(early, "Programmed") != "True");
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 2; }));
  REQUIRE(h.w.await_ready(tunnel_name(1)));
  h.w.must_ctl({"tunnel", "delete", tunnel_name(1)});
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 1; }));
  h.w.must_ctl({"tunnel", "wait", tunnel_name(1), "--for", "deleted", "--timeout", "20s"});

  // What it runs is not true any more: nobody is told it is, until it asks again.
  there.stop();
  REQUIRE_FALSE(h.w.await("tunnel", tunnel_name(0), [](const auto& t) { return condition(t, "Ready") == "False"; }).is_null());
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 0 && refused(r) == 1; }));
  there.start();
  REQUIRE_FALSE(h.w.await("tunnel", tunnel_name(0), [](const auto& t) {
    return condition(t, "Ready") == "False" && message(t, "Ready").find("waiting for envoy-gateway-system-eg") != std::string::npos;
  }).is_null());
  REQUIRE(state("stalled"));
  CHECK(condition(h.w.tunnel(tunnel_name(0)), "Ready") != "True");
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 1; }));
  REQUIRE(h.w.await_ready(tunnel_name(0)));
  REQUIRE(state("caught_up"));

  // Deletions wait for whom they concern.
  h.w.must_ctl({"tunnel", "delete", "unrouted"});
  h.w.must_ctl({"tunnel", "wait", "unrouted", "--for", "deleted", "--timeout", "20s"});
  h.w.must_ctl({"tunnel", "delete", tunnel_name(0)});
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 0; }));
  h.w.must_ctl({"tunnel", "wait", tunnel_name(0), "--for", "deleted", "--timeout", "20s"});

  // An instance that has not answered it does not know what it runs.
  h.w.stop_warrend();
  h.w.start_warrend();
  REQUIRE(state("never_seen"));
  h.translate(request);
  REQUIRE(state("caught_up"));
}

TEST_CASE("the hook's page says 503, and its port is closed, until everything has been read") {
  hooked h{"acme", {}, false};
  // Somebody holds the table of tunnels: the replica cannot read it.
  auto holder = stack::process{{.name = "psql",
                                .path = "/usr/bin/psql",
                                .arguments = {"-X", "-d", h.w.database_url(), "-c",
                                              "BEGIN; LOCK TABLE tunnel IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(120);"}}};
  REQUIRE(stack::poll_until([&] {
    return h.w.sql("SELECT count(*) FROM pg_locks WHERE relation = 'tunnel'::regclass AND mode = 'AccessExclusiveLock' AND granted").starts_with("1");
  }, 20s, 50ms));
  h.w.launch_warrend();
  REQUIRE(stack::poll_until([&] { return h.healthz() == 503; }, 20s, 20ms));
  CHECK_FALSE(stack::listens(h.port));
  holder.kill();
  h.w.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)%' AND pid <> pg_backend_pid()");
  CHECK(h.client.translate("").status.ok());  // waits
  CHECK(stack::poll_until([&] { return h.healthz() == 200; }, 5s));
}

TEST_CASE("Envoy Gateway has to translate again: told once per burst, on NATS and by the webhook, also after a failed call") {
  receiver webhook;
  hooked h{"ns-0000", {{"hook.webhook", webhook.url()}}};
  inbox heard;
  bus::connection_options options;
  options.urls = {h.w.nats_url()};
  options.name = "test";
  options.user = "warren";
  options.password = h.w.nats_password();
  options.bulk_connection = false;
  const auto link = bus::connection::open(options);
  const auto listening = link->subscribe("warren.v1.retranslate", [&](auto, auto json, auto) { heard.put(std::string{json}); });
  REQUIRE(stack::poll_until([&] { return link->flush(1s); }, 10s));

  const auto request = captured("request-0010-tunnel");
  auto& there = h.w.add_agent("there");
  for (int i = 0; i < 5; ++i) h.w.create_tunnel(tunnel_name(i), tunnel_name(i) + ".example.test", "there");
  h.w.create_tunnel("not-routed", "not-routed.example.test", "there");
  REQUIRE(h.await(request, [](const auto& r) { return online(r) == 5; }));

  // The connector goes: one signal for all that Envoy Gateway routes.
  there.stop();
  const auto offline = heard.await([](const auto& s) { return tells(s, "offline", 5); });
  REQUIRE(!offline.is_null());
  const auto after_offline = heard.size();
  CHECK(online(h.translate(request)) == 0);
  there.start();
  std::set<std::string> back;
  REQUIRE_FALSE(heard.await([&](const auto& s) {
    for (const auto& t : s.value("tunnels", nlohmann::json::array()))
      if (t.at("state") == "online") back.insert(t.at("name"));
    return back.size() == 5;
  }, after_offline).is_null());
  CHECK(back.count("not-routed") == 0);
  // Whatever was told in between was told because somebody came back, not twice because somebody had gone.
  CHECK(heard.await([](const auto& s) { return tells(s, "offline", 5); }) == offline);
  CHECK(online(h.translate(request)) == 5);

  CHECK_FALSE(h.client.translate("\xff\xff").status.ok());
  CHECK_FALSE(heard.await([](const auto& s) { return s.value("reason", "") == "call-failed"; }).is_null());

  // The webhook refused each signal once, and got it all the same.
  CHECK_FALSE(webhook.taken.await([](const auto& s) { return s.value("reason", "") == "call-failed"; }).is_null());
  CHECK(webhook.refused > 0);
  CHECK(h.w.metric("warren_retranslate_signals_total", "changed") >= 2);
  CHECK(h.w.metric("warren_retranslate_webhook_total", "failed") > 0);
}

TEST_CASE("certificates that cannot be used: refused at the start, by name; beside a hook that serves, a word in /readyz") {
  const stack::scratch place{"warren-hook-tls"};
  const auto write = [&](const std::string& name, const std::string& content) {
    const auto path = place.path() / name;
    std::ofstream{path, std::ios::binary | std::ios::trunc} << content;
    std::filesystem::permissions(path, std::filesystem::perms::all);  // warrend may run as somebody else
    return path.string();
  };
  std::filesystem::permissions(place.path(), std::filesystem::perms::all);
  const authority ours{"ours"};
  const auto good = ours.issue("hook"), client_certificate = ours.issue("envoy-gateway");
  const auto cert = write("cert.pem", good.certificate), key = write("key.pem", good.key), ca = write("ca.pem", ours.certificate()),
             empty = write("empty.pem", ""), other = write("other.pem", ours.issue("hook").key), missing = (place.path() / "missing.pem").string();

  struct row { std::string cert, key, error; };
  for (const auto& r : {row{empty, key, "hook.tls_certificate " + empty + ": is empty"},
                        row{cert, empty, "hook.tls_key " + empty + ": is empty"},
                        row{key, key, "hook.tls_certificate " + key + ": has no PEM certificate"},
                        row{cert, other, "hook.tls_key " + other + ": is not the key of hook.tls_certificate " + cert},
                        row{cert, missing, "hook.tls_key " + missing + ": cannot be read: No such file or directory"}})
    for (const auto& command : {std::vector<std::string>{"config", "check"}, std::vector<std::string>{"serve"}}) {
      auto arguments = command;
      for (const auto& each : {std::string{"--hook-listen"}, std::string{"127.0.0.1:5005"}, std::string{"--hook-tls-certificate"}, r.cert,
                               std::string{"--hook-tls-key"}, r.key, std::string{"--hook-tls-client-ca"}, ca})
        arguments.push_back(each);
      const auto told = stack::run({.name = "warrend", .path = stack::bin_dir() / "warrend", .arguments = arguments});
      INFO(command.front() << ": " << r.error);
      CHECK(told.code == 2);
      CHECK(told.err == "warrend: " + r.error + "\n");
    }

  hooked h{"ns-0000", {{"hook.tls_certificate", cert}, {"hook.tls_key", key}, {"hook.tls_client_ca", ca}}};
  const auto admitted = [&] {
    return hook_client{"127.0.0.1:" + std::to_string(h.port), grpc::SslCredentials({ours.certificate(), client_certificate.key, client_certificate.certificate}), "localhost"}
        .translate(captured("request-0001-plain")).status.ok();
  };
  const auto note = [&] { return h.w.readyz().at("notes").value("hook_certificates", ""); };
  REQUIRE(admitted());
  CHECK(note().empty());
  write("cert.pem", "");
  const auto error = "hook.tls_certificate " + cert + ": is empty";
  REQUIRE(stack::poll_until([&] { return note() == "not taken: " + error; }, 20s, 50ms));
  CHECK(h.w.readyz().at("ready") == true);
  CHECK(h.healthz() == 200);
  CHECK(admitted());
  CHECK(h.w.metric("warren_hook_certificate_changes_total", "error") == 1);
  CHECK(h.w.at(0).log().find(error) != std::string::npos);
  write("cert.pem", good.certificate);
  CHECK(stack::poll_until([&] { return note().empty(); }, 20s, 50ms));
  CHECK(admitted());
  CHECK(h.w.at(0).running());
}
