// test/e2e/ways_in_test.cpp -- a tunnel goes offline and online at a real Envoy while visitors keep coming in by every way
// there is, to targets that speak plain HTTP and TLS; Envoy's own counters say whom it tried to reach meanwhile.
#include <atomic>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>

#include "test/e2e/expect.hpp"
#include "test/e2e/http2.hpp"
#include "test/support/tls_front.hpp"

using namespace warren::e2e;
using warren::stack::open_visit;
using warren::stack::poll_until;
using whole = warren::stack::stack;

namespace {

enum class way { http1, http2, websocket, connect };
constexpr way every_way[] = {way::http1, way::http2, way::websocket, way::connect};
const char* name_of(way w) {
  switch (w) {
    case way::http1: return "HTTP/1.1";
    case way::http2: return "HTTP/2";
    case way::websocket: return "WebSocket";
    case way::connect: return "CONNECT";
  }
  return "";
}

/// Comes in again and again, each time on a connection of its own, and notes what it met: each run of equal ones once.
class caller {
public:
  caller(way by, std::uint16_t port, std::string host)
      : by_{by}, port_{port}, host_{std::move(host)}, thread_{[this] {
          http2_visitor h2{port_};
          while (!stopped_) {
            auto met = meet(h2);
            const std::lock_guard lock{mutex_};
            ++visits_;
            if (story_.empty() || story_.back() != met) story_.push_back(std::move(met));
          }
        }} {}
  ~caller() {
    stopped_ = true;
    thread_.join();
  }
  way by() const { return by_; }
  const std::string& host() const { return host_; }
  /// "503, 200, 503"
  std::string story() const {
    const std::lock_guard lock{mutex_};
    std::string out;
    for (const auto& one : story_) out += (out.empty() ? "" : ", ") + one;
    return out;
  }
  /// Until it has met this, as often from now on as shows that it lasts.
  bool await(const std::string& met) const {
    int from = -1;
    return poll_until([&] {
      const std::lock_guard lock{mutex_};
      if (story_.empty() || story_.back() != met) return false;
      if (from < 0) from = visits_;
      return visits_ >= from + 3;
    }, patience, 5ms);
  }
  /// Went to the target and back at least once.
  bool whole() const { return whole_; }

private:
  std::string meet(http2_visitor& h2) {
    if (by_ == way::http1 || by_ == way::http2) {
      const auto a = by_ == way::http1 ? warren::stack::visit(port_, {.host = host_}) : h2.visit({.host = host_});
      whole_ = whole_ || is_the_targets(a);
      return is_ours(a) ? "503" : is_the_targets(a) ? "200" : describe(a);
    }
    const bool socket = by_ == way::websocket;
    open_visit v{socket ? open_visit::kind::websocket : open_visit::kind::connect, port_, socket ? host_ : host_ + ":443"};
    if (!v.open()) return v.head().status == 503 ? "503" : describe(v.head());
    // What happens to it once it is let in is the agent's: it may end when the tunnel does.
    if (v.send(socket ? "hello" : "GET / HTTP/1.1\r\nHost: inside\r\n\r\n"))
      if (const auto got = v.receive()) whole_ = whole_ || (socket ? *got == "hello" : got->rfind("HTTP/1.1 200", 0) == 0);
    return "200";
  }

  const way by_;
  const std::uint16_t port_;
  const std::string host_;
  std::atomic<bool> stopped_{false}, whole_{false};
  mutable std::mutex mutex_;
  std::vector<std::string> story_;
  int visits_ = 0;
  std::thread thread_;
};

/// One of Envoy's counters; -1: it has none of this name.
long counter(const whole& s, const std::string& name) {
  const auto at = s.envoy_admin();
  const auto page = warren::stack::visit(static_cast<std::uint16_t>(std::stoi(at.substr(at.rfind(':') + 1))), {.host = "admin", .target = "/stats?filter=" + name}).body;
  std::istringstream in{page};
  for (std::string line; std::getline(in, line);)
    if (line.rfind(name + ": ", 0) == 0) return std::atol(line.c_str() + name.size() + 2);
  return -1;
}

}  // namespace

TEST_CASE("offline, online, offline, by every way in and for either kind of target, and nobody is dialled while offline") {
  WARREN_NEEDS_SERVERS();
  whole s;
  warren::test::tls_front secure{s.demo_origin().port()};
  auto& home = s.add_agent("home", {.start = false});
  s.create_tunnel("plain", "plain.example.org", "home");
  s.create_tunnel("secure", "secure.example.org", "home", secure.url());
  for (const auto* host : {"plain.example.org", "secure.example.org"}) REQUIRE(is_ours(visit_until(s, {.host = host}, is_ours)));

  std::vector<std::unique_ptr<caller>> callers;
  for (const auto* host : {"plain.example.org", "secure.example.org"})
    for (const auto w : every_way) callers.push_back(std::make_unique<caller>(w, s.visitor_port(), host));
  const auto all_meet = [&](const std::string& what) {
    for (const auto& c : callers) {
      INFO(name_of(c->by()) << " " << c->host() << ": " << c->story());
      CHECK(c->await(what));
    }
  };
  all_meet("503");
  CHECK(counter(s, "tcp.connector-direct.downstream_cx_total") == 0);
  CHECK(counter(s, "cluster.agents-by-metadata.upstream_cx_total") == 0);

  home.start();
  for (const auto* name : {"plain", "secure"}) REQUIRE(s.await_ready(name, patience));
  all_meet("200");
  CHECK(counter(s, "cluster.agents-by-metadata.upstream_cx_total") > 0);

  home.stop();
  all_meet("503");
  // What was under way is over by now; from here on nobody is tried.
  const auto dialled = counter(s, "tcp.connector-direct.downstream_cx_total"), reached = counter(s, "cluster.agents-by-metadata.upstream_cx_total");
  const auto requests = counter(s, "http.visitors.rq_direct_response");
  all_meet("503");
  CHECK(counter(s, "tcp.connector-direct.downstream_cx_total") == dialled);
  CHECK(counter(s, "cluster.agents-by-metadata.upstream_cx_total") == reached);
  CHECK(counter(s, "http.visitors.rq_direct_response") > requests);
  for (const auto& c : callers) {
    INFO(name_of(c->by()) << " " << c->host());
    CHECK(c->story() == "503, 200, 503");
    CHECK(c->whole());
  }
}
