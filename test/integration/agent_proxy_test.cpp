// test/integration/agent_proxy_test.cpp -- the agent's proxy over real sockets: whom it lets through, and to where.
#include <catch2/catch.hpp>

#include <future>
#include <thread>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include "services/warren-agent/proxy.hpp"

using namespace warren;
using namespace warren::agent;

namespace {

const std::string key(64, 'a');

/// Reads all until its peer has finished, then says how much that was, and finishes. Each connection on its thread.
class origin {
public:
  explicit origin(bool tls = false) : acceptor_(io_, {asio::ip::address_v4::loopback(), 0}), context_(asio::ssl::context::tls_server) {
    if (tls) make_certificate();
    thread_ = std::thread{[this, tls] {
      boost::system::error_code ec;
      while (true) {
        tcp::socket socket{io_};
        acceptor_.accept(socket, ec);
        if (ec || stopping_) return;
        workers_.emplace_back([this, tls, s = std::move(socket)]() mutable { tls ? serve_tls(std::move(s)) : serve(s); });
      }
    }};
  }
  ~origin() {
    stopping_ = true;
    boost::system::error_code ignored;
    tcp::socket poke{io_};
    poke.connect(acceptor_.local_endpoint(), ignored);
    thread_.join();
    poke.close(ignored);
    for (auto& one : workers_) one.join();
  }
  std::uint16_t port() const { return acceptor_.local_endpoint().port(); }

private:
  template <class Stream>
  static void serve(Stream& stream) {
    boost::system::error_code ec;
    std::string all;
    asio::read(stream, asio::dynamic_buffer(all), ec);
    asio::write(stream, asio::buffer("got " + std::to_string(all.size())), ec);
  }
  void serve_tls(tcp::socket socket) {
    asio::ssl::stream<tcp::socket> stream{std::move(socket), context_};
    boost::system::error_code ec;
    stream.handshake(asio::ssl::stream_base::server, ec);
    if (ec) return;
    serve(stream);
    stream.shutdown(ec);
  }
  void make_certificate() {
    EVP_PKEY* pair = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, pair);
    X509_sign(certificate, pair, EVP_sha256());
    SSL_CTX_use_certificate(context_.native_handle(), certificate);
    SSL_CTX_use_PrivateKey(context_.native_handle(), pair);
    X509_free(certificate);
    EVP_PKEY_free(pair);
  }
  asio::io_context io_;
  tcp::acceptor acceptor_;
  asio::ssl::context context_;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
  std::thread thread_;
};

attachment_set attached(std::vector<std::pair<attachment_key, std::string>> what, std::int64_t generation = 1) {
  busv1::AttachmentSet set;
  set.set_generation(generation);
  for (const auto& [of, to] : what) {
    auto& one = *set.add_attachments();
    one.set_tunnel("t");
    one.set_tunnel_uid(of.tunnel_uid);
    one.set_tunnel_generation(of.tunnel_generation);
    one.add_rules()->set_target(to);
  }
  attachment_set out;
  out.apply(set, true);
  return out;
}

/// A proxy on a loop of its own.
struct rig {
  asio::io_context io{1};
  dialler dials{io};
  std::vector<std::string> dialled;
  std::unique_ptr<proxy> server;
  tcp::endpoint at;
  std::thread loop;
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};

  template <class F>
  auto on_loop(F f) {
    std::packaged_task<decltype(f())()> task{std::move(f)};
    auto result = task.get_future();
    asio::post(io, [&task] { task(); });
    return result.get();
  }
  explicit rig(proxy_options options = {}) {
    options.project = "acme";
    options.public_key_hex = key;
    options.listen = {{asio::ip::address_v4::loopback(), 0}};
    server = std::make_unique<proxy>(io, dials, std::move(options), [this](const target&, std::string_view words) { dialled.emplace_back(words); });
    at = server->listening().at(0);
    loop = std::thread{[this] { io.run(); }};
  }
  ~rig() {
    on_loop([this] { server.reset(); return 0; });
    work.reset();
    io.stop();
    loop.join();
  }
  void attach(const attachment_set& set) {
    touched_keys touched;
    if (by_steps) {
      touched.emplace();
      for (const attachment_set* each : std::initializer_list<const attachment_set*>{&last, &set})
        for (const auto& [at_key, attachment] : each->all()) {
          const auto* other = (each == &last ? set : last).find(at_key.tunnel_uid, at_key.tunnel_generation);
          if (other == nullptr || other->SerializeAsString() != attachment.SerializeAsString()) touched->push_back(at_key);
        }
    }
    last = set;
    on_loop([&] { server->attach(set, touched); return 0; });
  }
  bool by_steps = false;  ///< says what has changed, as a command does; else the whole set, as a hello does
  attachment_set last;
};

struct visitor {
  asio::io_context io;
  tcp::socket socket{io};
  explicit visitor(const rig& r) { socket.connect(r.at); }
  void say(std::string_view text) { asio::write(socket, asio::buffer(text)); }
  std::string rest() {
    std::string out;
    boost::system::error_code ec;
    asio::read(socket, asio::dynamic_buffer(out), ec);
    return out;
  }
  std::string head() {
    std::string out;
    boost::system::error_code ec;
    const auto n = asio::read_until(socket, asio::dynamic_buffer(out), "\r\n\r\n", ec);
    return out.substr(0, n);
  }
  void finish() { socket.shutdown(tcp::socket::shutdown_send); }
};

std::string connect_to(const std::string& to, const std::string& tunnel, const std::string& id = key) {
  return "CONNECT " + to + " HTTP/1.1\r\nhost: " + to + "\r\nx-warren-endpoint-id: " + id + "\r\nx-warren-tunnel: " + tunnel + "\r\n\r\n";
}
std::string local(std::uint16_t port) { return "localhost:" + std::to_string(port); }

}  // namespace

TEST_CASE("bytes go both ways, also those that came with the request, and each way ends by itself") {
  const bool tls = GENERATE(false, true);
  origin o{tls};
  rig r;
  r.attach(attached({{{"u", 1}, (tls ? "https://" : "http://") + local(o.port())}}));
  visitor v{r};
  const auto bytes = GENERATE(0, 5, 3'000'000);
  v.say(connect_to(local(o.port()), "acme/u/0/1") + std::string(static_cast<std::size_t>(bytes), 'x'));
  v.finish();
  CHECK(v.rest() == "HTTP/1.1 200 OK\r\n\r\ngot " + std::to_string(bytes));
}

TEST_CASE("only our id and what is attached get through") {
  origin o;
  rig r;
  r.attach(attached({{{"u", 1}, "http://" + local(o.port())}}));
  const auto to = local(o.port());
  const auto [request, status] = GENERATE_COPY(table<std::string, std::string>({
      {connect_to(to, "acme/u/0/1", std::string(64, 'b')), "403"},
      {connect_to(to, "acme/u/0/1", ""), "403"},
      {connect_to(to, "acme/u/0/2"), "403"},
      {connect_to(to, "acme/u/1/1"), "403"},
      {connect_to(to, "other/u/0/1"), "403"},
      {connect_to(to, "acme/u/0"), "403"},
      {connect_to(to, "acme/u/0/1/1"), "403"},
      {connect_to(to, "acme/u/-0/1"), "403"},
      {connect_to("localhost:1", "acme/u/0/1"), "403"},
      {"CONNECT " + to + " HTTP/1.1\r\nx-warren-endpoint-id: " + key + "\r\n\r\n", "403"},
      {"CONNECT " + to + " HTTP/1.1\r\nx-warren-endpoint-id: " + key + "\r\nx-warren-endpoint-id: " + key + "\r\nx-warren-tunnel: acme/u/0/1\r\n\r\n", "403"},
      {"OPTIONS * HTTP/1.1\r\n\r\n", "204"},
      {"OPTIONS * HTTP/1.1\r\nx-warren-endpoint-id: " + key + "\r\n\r\n", "204"},
      {"OPTIONS * HTTP/1.1\r\nx-warren-endpoint-id: 00\r\n\r\n", "421"},
      {"OPTIONS /a HTTP/1.1\r\n\r\n", "400"},
      {"GET / HTTP/1.1\r\n\r\n", "405"},
      {"no request at all\r\n\r\n", "400"},
      {"GET / HTTP/1.1\r\na: " + std::string(20'000, 'x') + "\r\n\r\n", "431"},
  }));
  visitor v{r};
  v.say(request);
  CHECK(v.head().substr(0, 12) == "HTTP/1.1 " + status);
  CHECK(r.on_loop([&] { return r.dialled.size(); }) == 0);
}

TEST_CASE("a target that is down is a 503 with its words, and is told at once") {
  rig r;
  r.attach(attached({{{"u", 1}, "http://localhost:1"}}));
  visitor v{r};
  v.say(connect_to("localhost:1", "acme/u/0/1"));
  const auto text = v.rest();
  CHECK(text.substr(0, 12) == "HTTP/1.1 503");
  CHECK(text.find("refused") != std::string::npos);
  CHECK(r.on_loop([&] { return r.dialled; }).at(0).find("refused") != std::string::npos);
}

TEST_CASE("detaching ends the tunnel's connections and nobody else's, also with one target behind both") {
  origin o;
  rig r;
  r.by_steps = GENERATE(false, true);
  const auto to = "http://" + local(o.port());
  r.attach(attached({{{"a", 1}, to}, {{"b", 1}, to}}));
  visitor a{r}, b{r};
  a.say(connect_to(local(o.port()), "acme/a/0/1"));
  b.say(connect_to(local(o.port()), "acme/b/0/1"));
  CHECK(a.head().substr(9, 3) == "200");
  CHECK(b.head().substr(9, 3) == "200");
  r.attach(attached({{{"b", 1}, to}}, 2));
  CHECK(a.rest().empty());
  b.say("hello");
  b.finish();
  CHECK(b.rest() == "got 5");
}

TEST_CASE("a generation's connections go over to another one with the same target, and end with another target") {
  origin o;
  rig r;
  r.by_steps = GENERATE(false, true);
  const auto to = "http://" + local(o.port());
  r.attach(attached({{{"a", 1}, to}}));
  visitor a{r};
  a.say(connect_to(local(o.port()), "acme/a/0/1"));
  CHECK(a.head().substr(9, 3) == "200");
  r.attach(attached({{{"a", 1}, to}, {{"a", 2}, to}}, 2));
  r.attach(attached({{{"a", 2}, to}}, 3));
  CHECK(r.on_loop([&] { return r.server->counts().tunnels; }) == 1);
  r.attach(attached({{{"a", 2}, to}, {{"a", 3}, "http://localhost:1"}}, 4));
  CHECK(r.on_loop([&] { return r.server->counts().tunnels; }) == 1);
  r.attach(attached({{{"a", 3}, "http://localhost:1"}}, 5));
  CHECK(a.rest().empty());
  CHECK(r.on_loop([&] { return r.server->counts().open; }) == 0);
}

TEST_CASE("a head that does not come, and a tunnel that idles, end after their time") {
  proxy_options options;
  options.head_timeout = millis{100};
  options.idle_timeout = millis{100};
  origin o;
  rig r{options};
  r.attach(attached({{{"a", 1}, "http://" + local(o.port())}}));
  visitor slow{r};
  slow.say("CONNECT a");
  CHECK(slow.rest().empty());
  visitor idle{r};
  idle.say(connect_to(local(o.port()), "acme/a/0/1"));
  CHECK(idle.head().substr(9, 3) == "200");
  CHECK(idle.rest().empty());
}

TEST_CASE("beyond the limit of connections the answer is 503, and below it all is well again") {
  proxy_options options;
  options.connections_max = 1;
  rig r{options};
  auto first = std::make_unique<visitor>(r);
  first->say("OPTIONS * HTTP/1.1\r\n\r\n");
  CHECK(first->head().substr(9, 3) == "204");
  visitor second{r};
  CHECK(second.head().substr(9, 3) == "503");
  first.reset();
  while (r.on_loop([&] { return r.server->counts().open; }) != 0) std::this_thread::yield();
  visitor third{r};
  third.say("OPTIONS * HTTP/1.1\r\n\r\n");
  CHECK(third.head().substr(9, 3) == "204");
}

TEST_CASE("a connection that stays answers probe after probe") {
  rig r;
  visitor v{r};
  for (int i = 0; i < 3; ++i) {
    v.say("OPTIONS * HTTP/1.1\r\nx-warren-endpoint-id: " + key + "\r\n\r\n");
    CHECK(v.head().substr(9, 3) == "204");
  }
}
