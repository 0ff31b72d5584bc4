// test/integration/gateway_xds_test.cpp -- a real Envoy, told by gateway_server, asked by visitors, answered by a
// stand-in agent. Needs WARREN_ENVOY or an `envoy` in PATH; without one it says so and passes.
#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <fmt/format.h>

#include "services/gateway/bootstrap.hpp"
#include "services/gateway/xds.hpp"
#include "test/support/forwarder.hpp"

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using namespace warren;
using namespace std::chrono_literals;

constexpr partition_id tenants = 0, registry = 1;
const std::string agent_key(64, 'a');

std::string envoy_path() {
  if (const char* given = std::getenv("WARREN_ENVOY")) return given;
  const char* path = std::getenv("PATH");
  std::string rest = path ? path : "";
  while (!rest.empty()) {
    const auto colon = rest.find(':');
    const auto file = rest.substr(0, colon) + "/envoy";
    if (access(file.c_str(), X_OK) == 0) return file;
    rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
  }
  return {};
}

std::uint16_t free_port() {
  asio::io_context io;
  tcp::acceptor a{io, {asio::ip::address_v4::loopback(), 0}};
  return a.local_endpoint().port();
}

std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class no_counters final : public counters {
public:
  void add(std::string_view name, std::string_view label, double n) override {
    std::lock_guard lock{mutex_};
    values_[std::string{name} + "/" + std::string{label}] += n;
    counted_.notify_all();
  }
  void set(std::string_view, double, std::string_view) override {}
  void observe(std::string_view, double, std::string_view) override {}
  bool await(const std::string& name, double n, std::chrono::milliseconds limit = 20s) {
    std::unique_lock lock{mutex_};
    return counted_.wait_for(lock, limit, [&] { return values_[name] >= n; });
  }

private:
  std::mutex mutex_;
  std::condition_variable counted_;
  std::map<std::string, double> values_;
};

// ---- the agent ----

/// Takes CONNECT as warren-agent does and answers as a target would, on the same connection.
class stand_in_agent {
public:
  struct seen {
    int connection;
    std::string endpoint_id, tunnel, target, method, path;
  };

  stand_in_agent() : acceptor_{io_, {asio::ip::address_v4::loopback(), 0}}, thread_{[this] { accept(); }} {}
  ~stand_in_agent() {
    stopping_ = true;
    asio::io_context io;
    tcp::socket knock{io};
    boost::system::error_code ignored;
    knock.connect(acceptor_.local_endpoint(), ignored);
    thread_.join();
    {
      std::lock_guard lock{mutex_};
      for (auto& s : sockets_) s->shutdown(tcp::socket::shutdown_both, ignored);
    }
    for (auto& t : serving_) t.join();
  }
  std::string address() const { return fmt::format("127.0.0.1:{}", acceptor_.local_endpoint().port()); }
  std::vector<seen> requests() const {
    std::lock_guard lock{mutex_};
    return requests_;
  }
  std::size_t connections() const { return connections_; }

private:
  void accept() {
    while (true) {
      auto socket = std::make_shared<tcp::socket>(io_);
      boost::system::error_code error;
      acceptor_.accept(*socket, error);
      if (stopping_ || error) return;
      {
        std::lock_guard lock{mutex_};
        sockets_.push_back(socket);
      }
      const int id = static_cast<int>(connections_++);
      serving_.emplace_back([this, socket, id] { serve(*socket, id); });
    }
  }

  void serve(tcp::socket& socket, int id) {
    try {
      beast::flat_buffer buffer;
      http::request_parser<http::empty_body> connect;
      http::read_header(socket, buffer, connect);
      const auto head = connect.get();
      if (head.method() != http::verb::connect) return;
      const std::string welcome = "HTTP/1.1 200 OK\r\n\r\n";
      asio::write(socket, asio::buffer(welcome));
      while (true) {
        if (buffer.size() == 0) buffer.commit(socket.read_some(buffer.prepare(4096)));
        if (static_cast<const char*>(buffer.data().data())[0] == 'r') return echo(socket, buffer);  // "raw…"
        http::request<http::string_body> request;
        http::read(socket, buffer, request);
        {
          std::lock_guard lock{mutex_};
          requests_.push_back({id, std::string{head["x-warren-endpoint-id"]}, std::string{head["x-warren-tunnel"]},
                               std::string{head.target()}, std::string{request.method_string()},
                               std::string{request.target()}});
        }
        if (request.target() == "/reset") return socket.close();
        if (request.find(http::field::upgrade) != request.end()) {
          const std::string switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
          asio::write(socket, asio::buffer(switched));
          return echo(socket, buffer);
        }
        http::response<http::string_body> response{http::status::ok, 11};
        response.body() = "hello from the target";
        response.prepare_payload();
        http::write(socket, response);
      }
    } catch (const std::exception&) {
      // The gateway closed, or the test ends.
    }
  }

  static void echo(tcp::socket& socket, beast::flat_buffer& buffer) {
    while (true) {
      if (buffer.size() == 0) buffer.commit(socket.read_some(buffer.prepare(4096)));
      asio::write(socket, buffer.data());
      buffer.consume(buffer.size());
    }
  }

  asio::io_context io_;
  tcp::acceptor acceptor_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::size_t> connections_{0};
  mutable std::mutex mutex_;
  std::vector<seen> requests_;
  std::vector<std::shared_ptr<tcp::socket>> sockets_;
  std::vector<std::thread> serving_;
  std::thread thread_;
};

// ---- Envoy ----

class envoy_process {
public:
  envoy_process(const std::string& name, int xds_port) {
    directory_ = std::filesystem::temp_directory_path() / fmt::format("warren-gateway-test-{}-{}", getpid(), name);
    std::filesystem::create_directories(directory_);
    std::ofstream{directory_ / "envoy.yaml"} << gateway::bootstrap_yaml(
        name, "default", "127.0.0.1", xds_port, fmt::format("127.0.0.1:{}", free_port()));
    const auto binary = envoy_path(), config = (directory_ / "envoy.yaml").string(),
               log = (directory_ / "log").string();
    pid_ = fork();
    if (pid_ == 0) {
      const int fd = open(log.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
      dup2(fd, 1);
      dup2(fd, 2);
      execl(binary.c_str(), "envoy", "-c", config.c_str(), "--use-dynamic-base-id", "--concurrency", "1",
            "--log-level", "warn", static_cast<char*>(nullptr));
      _exit(127);
    }
  }
  ~envoy_process() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    std::filesystem::remove_all(directory_);
  }
  std::string log() const {
    std::ifstream in{directory_ / "log"};
    return {std::istreambuf_iterator<char>{in}, {}};
  }

private:
  std::filesystem::path directory_;
  pid_t pid_ = -1;
};

// ---- visitors ----

struct answer {
  unsigned status = 0;
  std::string body;
  http::fields headers;
  std::string header(const std::string& name) const { return std::string{headers[name]}; }
};

class visitor {
public:
  explicit visitor(std::uint16_t port) : socket_{io_} { socket_.connect({asio::ip::address_v4::loopback(), port}); }
  answer ask(const std::string& method, const std::string& host, const std::string& path = "/",
             const std::string& more = "") {
    asio::write(socket_, asio::buffer(fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\n{}\r\n", method, path, host, more)));
    http::response_parser<http::string_body> response;
    if (method == "CONNECT" || method == "HEAD") {
      http::read_header(socket_, buffer_, response);
      if (response.get().result_int() == 503) http::read(socket_, buffer_, response);
    } else {
      http::read(socket_, buffer_, response);
    }
    const auto& got = response.get();
    return {got.result_int(), got.body(), got.base()};
  }
  /// Sends bytes on an upgraded connection and reads as many.
  std::string echo(const std::string& text) {
    asio::write(socket_, asio::buffer(text));
    std::string out{beast::buffers_to_string(buffer_.data())};
    buffer_.consume(buffer_.size());
    const auto had = out.size();
    out.resize(text.size());
    asio::read(socket_, asio::buffer(out.data() + had, text.size() - had));
    return out;
  }

private:
  asio::io_context io_;
  tcp::socket socket_;
  beast::flat_buffer buffer_;
};

answer ask(std::uint16_t port, const std::string& method, const std::string& host, const std::string& path = "/",
           const std::string& more = "") {
  return visitor{port}.ask(method, host, path, more);
}

// ---- everything together ----

struct world {
  no_counters counts;
  replica::view view;
  std::uint16_t port;
  std::int64_t incarnation = 7;
  std::map<partition_id, revision_t> revisions{{tenants, incarnation << 32}, {registry, incarnation << 32}};
  std::int64_t next_claim = 1;
  std::atomic<std::int64_t> streams{0};

  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<std::string, partition_id>, busv1::GatewayAck> acks;
  std::set<std::string> states;  ///< that were ever reported

  std::unique_ptr<gateway::gateway_server> server;
  int xds_port = 0;

  /// `listen`: where visitors come in; `complete` false: tenants' rows have not been read yet, see load().
  explicit world(std::vector<v1::Row> rows = {}, std::uint16_t listen = free_port(), bool complete = true) : port{listen} {
    view.set_partitions(1, now_ms());
    std::vector<v1::Row> registered;
    {
      auto& c = *registered.emplace_back().mutable_gateway_class();
      c.set_partition(registry);
      c.set_name("default");
      c.set_version(++revisions[registry]);
      c.set_dial_mode("direct");
      c.add_listen(fmt::format("127.0.0.1:{}", port));
    }
    for (const auto* name : {"gw-a", "gw-b"}) {
      auto& g = *registered.emplace_back().mutable_gateway();
      g.set_partition(registry);
      g.set_name(name);
      g.set_version(++revisions[registry]);
      g.set_class_("default");
    }
    view.apply_fetched(registry, true, revisions[registry], 1, registered, now_ms(), now_ms());
    if (complete) load(std::move(rows));
    start_server(0);
  }
  void load(std::vector<v1::Row> rows) {
    for (auto& r : rows) stamp(r, ++revisions[tenants]);
    view.apply_fetched(tenants, true, revisions[tenants], 1, rows, now_ms(), now_ms());
  }
  ~world() { server->stop(); }

  void start_server(int at) {
    gateway::xds_config config{.instance = 1};
    config.next_stream = [this] { return ++streams; };
    config.on_ack = [this](const busv1::GatewayAck& a) {
      std::lock_guard lock{mutex};
      acks[{a.gateway(), a.partition()}] = a;
      states.insert(a.state());
      changed.notify_all();
    };
    server = std::make_unique<gateway::gateway_server>(view, config, counts);
    xds_port = server->start(fmt::format("127.0.0.1:{}", at));
    REQUIRE(xds_port != 0);
  }

  static void stamp(v1::Row& r, revision_t revision) {
    if (r.has_tunnel()) r.mutable_tunnel()->set_version(revision);
    if (r.has_connector()) r.mutable_connector()->set_version(revision);
    if (r.has_attachment()) r.mutable_attachment()->set_version(revision);
    if (r.has_hostname_claim()) r.mutable_hostname_claim()->set_version(revision);
    if (r.has_tombstone()) r.mutable_tombstone()->set_version(revision);
  }
  revision_t commit(std::vector<v1::Row> rows, partition_id p = tenants) {
    busv1::Revision hint;
    hint.set_version(1);
    hint.set_incarnation(incarnation);
    hint.set_partition(p);
    hint.set_epoch(1);
    hint.set_revision(++revisions[p]);
    for (auto& r : rows) {
      stamp(r, revisions[p]);
      *hint.add_rows() = r;
    }
    REQUIRE(view.apply(hint, now_ms(), now_ms()) == replica::view::applied::yes);
    return revisions[p];
  }

  template <class F> bool wait(F&& f, std::chrono::milliseconds limit = 20s) {
    std::unique_lock lock{mutex};
    return changed.wait_for(lock, limit, f);
  }
  bool acknowledged(revision_t revision, const std::string& gw = "gw-a", partition_id p = tenants) {
    return wait([&] {
      const auto it = acks.find({gw, p});
      return it != acks.end() && it->second.state() == "caught_up" && it->second.acknowledged() >= revision;
    });
  }
  void await_caught_up() {
    REQUIRE(acknowledged(revisions[tenants]));
    REQUIRE(acknowledged(revisions[registry], "gw-a", registry));
  }

  v1::Row claim(const std::string& host, const std::string& tunnel) {
    v1::Row r;
    auto& c = *r.mutable_hostname_claim();
    c.set_hostname(host);
    c.set_project("p");
    c.set_tunnel(tunnel);
    c.set_tunnel_uid("uid-" + tunnel);
    c.set_claim(next_claim++);
    return r;
  }
};

v1::Row a_tunnel(const std::string& name, const std::string& host, const std::string& connector = "c",
               const std::string& target = "http://localhost:8080") {
  v1::Row r;
  auto& t = *r.mutable_tunnel();
  t.set_project("p");
  t.set_name(name);
  t.set_uid("uid-" + name);
  t.set_generation(1);
  t.add_hostnames(host);
  auto& rule = *t.add_rules();
  rule.set_path_prefix("/");
  rule.set_connector(connector);
  rule.set_target(target);
  t.set_enabled(true);
  t.set_gateway_class("default");
  return r;
}

v1::Row an_attachment(const std::string& tunnel, const std::string& connector = "c") {
  v1::Row r;
  auto& a = *r.mutable_attachment();
  a.set_project("p");
  a.set_connector(connector);
  a.set_tunnel(tunnel);
  a.set_tunnel_uid("uid-" + tunnel);
  a.set_tunnel_generation(1);
  a.set_attachment_generation(1);
  return r;
}

v1::Row a_connector(std::vector<std::string> addresses, bool online = true, int generation = 1) {
  v1::Row r;
  auto& c = *r.mutable_connector();
  c.set_project("p");
  c.set_name("c");
  c.set_uid("uid-c");
  c.set_public_key(agent_key);
  for (auto& a : addresses) c.add_addresses(a);
  c.set_addressing_generation(generation);
  c.set_online(online);
  c.set_attachment_generation(1);
  c.set_attached_generation(1);
  return r;
}

void require_offline(const answer& a, const std::string& reason) {
  CHECK(a.status == 503);
  CHECK(a.body == "Tunnel not online");
  CHECK(a.header("x-warren-reason") == reason);
  CHECK(a.header("retry-after") == "5");
}

bool no_envoy() {
  if (!envoy_path().empty()) return false;
  WARN("no Envoy: set WARREN_ENVOY; nothing is shown about gateways");
  return true;
}

}  // namespace

TEST_CASE("a visitor meets what the rows say, at every step of a tunnel's life") {
  if (no_envoy()) return;
  stand_in_agent agent;
  world w;
  envoy_process envoy{"gw-a", w.xds_port};
  w.await_caught_up();
  CHECK(ask(w.port, "GET", "nobody.example").status == 404);

  // Created: a 503 as long as there is no connector.
  auto before = w.server->status().at(0).bytes_sent;
  REQUIRE(w.acknowledged(w.commit({a_tunnel("t", "a.example"), w.claim("a.example", "t")})));
  CHECK(w.server->status().at(0).bytes_sent - before <= 1500);
  for (const auto* method : {"GET", "POST"})
    require_offline(ask(w.port, method, "a.example", "/", "Content-Length: 0\r\n"), "connector-unknown");
  require_offline(ask(w.port, "CONNECT", "a.example:443", "a.example:443"), "connector-unknown");

  REQUIRE(w.acknowledged(w.commit({a_connector({agent.address()}, false)})));
  require_offline(ask(w.port, "GET", "a.example"), "connector-offline");

  // Online and attached: the target.
  before = w.server->status().at(0).bytes_sent;
  REQUIRE(w.acknowledged(w.commit({a_connector({agent.address()}), an_attachment("t")})));
  WARN("bytes for a connector and its route: " << w.server->status().at(0).bytes_sent - before);
  const auto reply = ask(w.port, "GET", "a.example");
  CHECK(reply.status == 200);
  CHECK(reply.body == "hello from the target");
  REQUIRE(agent.requests().size() == 1);
  CHECK(agent.requests()[0].endpoint_id == agent_key);
  CHECK(agent.requests()[0].tunnel == "p/uid-t/0/1");
  CHECK(agent.requests()[0].target == "localhost:8080");

  for (const auto* host : {"A.Example", "a.example:8443", "a.example.", "a.EXAMPLE.:80"})
    CHECK(ask(w.port, "GET", host).status == 200);

  visitor socket{w.port};
  CHECK(socket.ask("GET", "a.example", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").status == 101);
  CHECK(socket.echo("ping") == "ping");
  visitor tunnelled{w.port};
  CHECK(tunnelled.ask("CONNECT", "a.example:443", "a.example:443").status == 200);
  CHECK(tunnelled.echo("raw bytes") == "raw bytes");

  // A POST whose connection ends is not repeated; a GET is, twice.
  auto count = [&](const std::string& method) {
    const auto all = agent.requests();
    return std::count_if(all.begin(), all.end(), [&](const auto& r) { return r.path == "/reset" && r.method == method; });
  };
  require_offline(ask(w.port, "POST", "a.example", "/reset", "Content-Length: 2\r\n\r\nhi"), "connector-unreachable");
  CHECK(count("POST") == 1);
  // A visitor cannot ask for it either.
  require_offline(ask(w.port, "POST", "a.example", "/reset",
                      "x-envoy-retry-on: reset,connect-failure,5xx\r\nx-envoy-max-retries: 3\r\nContent-Length: 0\r\n"),
                  "connector-unreachable");
  CHECK(count("POST") == 2);
  require_offline(ask(w.port, "GET", "a.example", "/reset"), "connector-unreachable");
  CHECK(count("GET") == 3);

  // Disabled, then deleted.
  auto off = a_tunnel("t", "a.example");
  off.mutable_tunnel()->set_enabled(false);
  REQUIRE(w.acknowledged(w.commit({off})));
  require_offline(ask(w.port, "GET", "a.example"), "disabled");
  auto leaving = a_tunnel("t", "a.example");
  leaving.mutable_tunnel()->mutable_delete_time()->set_seconds(1);
  REQUIRE(w.acknowledged(w.commit({leaving})));
  CHECK(ask(w.port, "GET", "a.example").status == 404);
}

TEST_CASE("two tunnels with one target share no connection, and an address change is one push") {
  if (no_envoy()) return;
  stand_in_agent agent, elsewhere;
  world w;
  w.commit({a_tunnel("one", "one.example"), w.claim("one.example", "one"), a_tunnel("two", "two.example"),
            w.claim("two.example", "two"), a_connector({agent.address()}), an_attachment("one"), an_attachment("two")});
  envoy_process envoy{"gw-a", w.xds_port};
  w.await_caught_up();
  visitor v{w.port};
  for (int i = 0; i < 3; ++i) {
    CHECK(v.ask("GET", "one.example").status == 200);
    CHECK(v.ask("GET", "two.example").status == 200);
  }
  std::map<std::string, std::set<int>> by_tunnel;
  for (const auto& r : agent.requests()) by_tunnel[r.tunnel].insert(r.connection);
  REQUIRE(by_tunnel.size() == 2);
  CHECK(by_tunnel["p/uid-one/0/1"].size() < 3);  // pooled
  for (int id : by_tunnel["p/uid-one/0/1"]) CHECK(by_tunnel["p/uid-two/0/1"].count(id) == 0);

  const auto before = w.server->status().at(0);
  REQUIRE(w.acknowledged(w.commit({a_connector({elsewhere.address()}, true, 2)})));
  const auto after = w.server->status().at(0);
  CHECK(after.responses[0] - before.responses[0] == 1);
  CHECK(after.responses[2] == before.responses[2]);
  CHECK(after.responses[3] == before.responses[3]);
  CHECK(v.ask("GET", "one.example").status == 200);
  CHECK(v.ask("GET", "two.example").status == 200);
  CHECK(elsewhere.requests().size() == 2);

  // Of a dead address and a living one no GET fails.
  REQUIRE(w.acknowledged(w.commit({a_connector({elsewhere.address(), fmt::format("127.0.0.1:{}", free_port())}, true, 3)})));
  for (int i = 0; i < 6; ++i) CHECK(ask(w.port, "GET", "one.example").status == 200);
}

TEST_CASE("what gateways need not know is not sent, and a gateway that returns unchanged is sent nothing") {
  if (no_envoy()) return;
  stand_in_agent agent;
  world w;
  w.commit({a_tunnel("t", "a.example"), w.claim("a.example", "t"), a_connector({agent.address()}), an_attachment("t")});
  envoy_process envoy{"gw-a", w.xds_port};
  w.await_caught_up();
  const auto before = w.server->status().at(0);

  auto heard = a_connector({agent.address()});
  heard.mutable_connector()->set_agent_version("1.2.3");
  auto programmed = a_tunnel("t", "a.example");
  programmed.mutable_tunnel()->set_programmed_generation(1);
  w.commit({heard});
  REQUIRE(w.acknowledged(w.commit({programmed})));
  CHECK(w.server->status().at(0).bytes_sent == before.bytes_sent);

  const auto port = w.xds_port;
  w.server->stop();
  { std::lock_guard lock{w.mutex}; w.acks.clear(); }
  CHECK(ask(w.port, "GET", "a.example").status == 200);  // nobody notices
  w.start_server(port);
  w.await_caught_up();
  CHECK(w.server->status().at(0).bytes_sent == 0);
  CHECK(w.server->status().at(0).stream == 2);

  // And it follows again.
  REQUIRE(w.acknowledged(w.commit({a_connector({agent.address()}, false)})));
  require_offline(ask(w.port, "GET", "a.example"), "connector-offline");
}

TEST_CASE("a gateway that moves to another instance is sent only what differs") {
  if (no_envoy()) return;
  stand_in_agent agent;
  world here;
  std::vector<v1::Row> rows{a_tunnel("one", "one.example"), here.claim("one.example", "one"), a_tunnel("two", "two.example"),
                                  here.claim("two.example", "two"), a_connector({agent.address()}), an_attachment("one"), an_attachment("two")};
  for (const std::string name : {"five", "six"})
    for (const auto& r : {a_tunnel(name, name + ".example"), here.claim(name + ".example", name), an_attachment(name)}) rows.push_back(r);
  for (const auto& r : rows) here.commit({r});
  // The other one has read the same rows at once, at other revisions; its streams are numbered later.
  world there{rows, here.port};
  there.streams = 100;
  stack::forwarder wire{{std::to_string(here.xds_port)}};
  envoy_process envoy{"gw-a", wire.port()};
  here.await_caught_up();
  const auto sent = [](const world& w) { return w.server->status().at(0); };
  REQUIRE(sent(here).bytes_sent > 0);
  std::atomic<bool> done{false};
  std::atomic<int> others{0}, served{0};
  std::thread visits{[&] {
    while (!done) ++(ask(here.port, "GET", "one.example").status == 200 ? served : others);
  }};
  const auto move = [&](const world& to) { wire.lead_to({std::to_string(to.xds_port)}, true); };

  SECTION("nothing, when nothing differs") {
    move(there);
    there.await_caught_up();
    CHECK(sent(there).bytes_sent == 0);
    CHECK(sent(there).responses == std::array<std::size_t, gateway::kinds>{});
  }
  SECTION("one route, when one tunnel has changed meanwhile, and nothing on the way back") {
    auto off = a_tunnel("two", "two.example");
    off.mutable_tunnel()->set_enabled(false);
    there.commit({off});
    move(there);
    there.await_caught_up();
    CHECK(sent(there).responses == std::array<std::size_t, gateway::kinds>{0, 0, 1, 0});
    CHECK(sent(there).bytes_sent <= 1000);
    require_offline(ask(here.port, "GET", "two.example"), "disabled");
    here.commit({off});
    here.streams = 200;
    { std::lock_guard lock{here.mutex}; here.acks.clear(); }
    move(here);
    here.await_caught_up();
    CHECK(sent(here).bytes_sent == 0);
  }
  SECTION("what is gone goes, and what is new comes") {
    auto leaving = a_tunnel("two", "two.example");
    leaving.mutable_tunnel()->mutable_delete_time()->set_seconds(1);
    there.commit({leaving});
    there.commit({a_tunnel("three", "three.example"), there.claim("three.example", "three"), an_attachment("three")});
    move(there);
    there.await_caught_up();
    CHECK(ask(here.port, "GET", "two.example").status == 404);
    CHECK(ask(here.port, "GET", "three.example").status == 200);
    CHECK(sent(there).responses[0] == 0);
    CHECK(sent(there).responses[1] == 0);
    CHECK(sent(there).bytes_sent <= 2000);
  }
  SECTION("several at once, without waiting for anything") {
    for (const std::string name : {"two", "five", "six"}) {
      auto off = a_tunnel(name, name + ".example");
      off.mutable_tunnel()->set_enabled(false);
      there.commit({off});
    }
    move(there);
    there.await_caught_up();
    require_offline(ask(here.port, "GET", "two.example"), "disabled");
    std::lock_guard lock{there.mutex};
    CHECK(there.states.count("stalled") == 0);
  }
  SECTION("nothing at all, as long as that instance has not read everything") {
    world cold{{}, here.port, false};
    cold.streams = 100;
    move(cold);
    // Its stream is held: what comes in the end is everything, never an empty answer before.
    CHECK(cold.counts.await("warren_gateway_held_streams_total/", 1));
    CHECK(cold.server->status().empty());
    CHECK(ask(here.port, "GET", "two.example").status == 200);
    cold.load(rows);
    cold.await_caught_up();
    CHECK(sent(cold).bytes_sent == 0);
    wire.cut();
  }
  done = true;
  visits.join();
  CHECK(others == 0);
  CHECK(served > 0);
}

TEST_CASE("an unregistered gateway is refused and counted") {
  if (no_envoy()) return;
  world w;
  envoy_process envoy{"gw-stranger", w.xds_port};
  CHECK(w.counts.await("warren_gateway_refused_streams_total/", 1));
  CHECK(w.server->status().empty());
}

TEST_CASE("what a gateway refuses is laid at its door, and everything else goes on") {
  if (no_envoy()) return;
  stand_in_agent agent;
  world w;
  envoy_process envoy{"gw-a", w.xds_port};
  w.await_caught_up();
  v1::Row c;
  auto& cls = *c.mutable_gateway_class();
  cls.set_partition(registry);
  cls.set_name("default");
  cls.set_dial_mode("direct");
  cls.add_listen(fmt::format("127.0.0.1:{}", w.port));
  cls.add_listen("192.0.2.1:81");  // not an address of this machine
  cls.set_version(w.revisions[registry] + 1);
  w.commit({c}, registry);
  REQUIRE(w.wait([&] { return w.acks[{"gw-a", registry}].refused_size() == 1; }));
  {
    std::lock_guard lock{w.mutex};
    CHECK(w.acks[{"gw-a", registry}].refused(0).message().find("192.0.2.1") != std::string::npos);
    CHECK(w.acks[{"gw-a", registry}].state() == "caught_up");
  }
  CHECK(w.server->status().at(0).last_refusal.value().name == "visitors/192.0.2.1:81");
  REQUIRE(w.acknowledged(w.commit({a_tunnel("t", "a.example"), w.claim("a.example", "t"), a_connector({agent.address()}),
                                   an_attachment("t")})));
  CHECK(ask(w.port, "GET", "a.example").status == 200);
}

TEST_CASE("from change to acknowledgement, with 1,000 tunnels loaded", "[.measure]") {
  if (no_envoy()) return;
  stand_in_agent agent;
  world w;
  std::vector<v1::Row> rows{a_connector({agent.address()})};
  for (int i = 0; i < 1000; ++i) {
    const auto name = fmt::format("t{}", i);
    rows.push_back(a_tunnel(name, name + ".example"));
    rows.push_back(w.claim(name + ".example", name));
    rows.push_back(an_attachment(name));
  }
  w.commit(rows);
  const auto started = std::chrono::steady_clock::now();
  envoy_process envoy{"gw-a", w.xds_port};
  w.await_caught_up();
  auto since = [](auto at) { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - at).count(); };
  std::string text = fmt::format("cold start {:.0f} ms", since(started));
  auto measure = [&](const std::string& what, auto&& change) {
    std::vector<double> ms;
    const auto bytes = w.server->status().at(0).bytes_sent;
    for (int i = 0; i < 200; ++i) {
      const auto at = std::chrono::steady_clock::now();
      REQUIRE(w.acknowledged(change(i)));
      ms.push_back(since(at));
    }
    std::sort(ms.begin(), ms.end());
    text += fmt::format("\n{}: p50 {:.2f} ms, p90 {:.2f}, p99 {:.2f}, {} bytes", what, ms[100], ms[180], ms[198],
                        (w.server->status().at(0).bytes_sent - bytes) / 200);
  };
  measure("flip", [&](int i) {
    auto t = a_tunnel(fmt::format("t{}", i), fmt::format("t{}.example", i));
    t.mutable_tunnel()->set_enabled(false);
    return w.commit({t});
  });
  measure("new tunnel", [&](int i) {
    const auto name = fmt::format("n{}", i);
    return w.commit({a_tunnel(name, name + ".example"), w.claim(name + ".example", name), an_attachment(name)});
  });
  const auto at = std::chrono::steady_clock::now();
  revision_t last = 0;
  for (int i = 0; i < 1000; ++i) {
    auto t = a_tunnel(fmt::format("t{}", i), fmt::format("t{}.example", i));
    t.mutable_tunnel()->set_enabled(i < 200);
    last = w.commit({t});
  }
  REQUIRE(w.acknowledged(last));
  text += fmt::format("\n1,000 flips: {:.0f} ms", since(at));
  WARN(text);
}
