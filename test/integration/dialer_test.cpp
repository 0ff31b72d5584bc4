// test/integration/dialer_test.cpp -- the dialer against real sockets: who answers, refuses, keeps silent.
#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "services/dialer/dialer.hpp"

using namespace warren;
using outcome = dial_result::outcome;

namespace {

const std::string key(64, 'a');

struct no_counters : counters {
  void add(std::string_view, std::string_view, double) override {}
  void set(std::string_view, double, std::string_view) override {}
  void observe(std::string_view, double, std::string_view) override {}
};

/// Listens on loopback; answers each connection with `answer` (empty: nothing) and keeps what it was asked.
class listener {
public:
  explicit listener(std::string answer) : answer_(std::move(answer)) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    REQUIRE(bind(fd_, reinterpret_cast<sockaddr*>(&at), size) == 0);
    REQUIRE(listen(fd_, 256) == 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size);
    address = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
    if (!answer_.empty()) thread_ = std::thread{[this] { serve(); }};
  }
  ~listener() {
    shutdown(fd_, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    close(fd_);
  }
  std::string address, asked;

private:
  void serve() {
    for (int peer = 0; (peer = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0; close(peer)) {
      char buffer[2048];
      const auto n = recv(peer, buffer, sizeof buffer, 0);
      if (n > 0) asked.assign(buffer, static_cast<std::size_t>(n));
      send(peer, answer_.data(), answer_.size(), MSG_NOSIGNAL);
    }
  }
  std::string answer_;
  int fd_ = -1;
  std::thread thread_;
};

std::string nobody() { return listener{""}.address; }  // its port is closed again

struct fixture {
  no_counters counts;
  caf::actor_system_config config;
  caf::actor_system system{config};
  dialer_actor dialer = dialer::spawn_dialer(system, counts);
  caf::scoped_actor self{system};
  ~fixture() { self->send_exit(dialer, caf::exit_reason::user_shutdown); }

  outcome dial(std::vector<std::string> addresses, millis timeout = millis{300}) {
    outcome out = outcome::unanswered;
    self->request(dialer, std::chrono::seconds{10}, dial_request{key, std::move(addresses), timeout})
        .receive([&](const dial_result& result) { out = result.what; }, [](const caf::error&) { FAIL("no answer"); });
    return out;
  }
};

const std::string yes = "HTTP/1.1 204 No Content\r\n\r\n";
const std::string no = "HTTP/1.1 421 Misdirected Request\r\ncontent-length: 0\r\n\r\n";

}  // namespace

TEST_CASE_METHOD(fixture, "one address that answers is enough") {
  listener right{yes}, wrong{no}, mute{""};
  CHECK(dial({nobody(), wrong.address, mute.address, right.address}) == outcome::answered);
}

TEST_CASE_METHOD(fixture, "the agent is asked by its endpoint id") {
  listener right{yes};
  REQUIRE(dial({right.address}) == outcome::answered);
  CHECK(right.asked.find("OPTIONS * HTTP/1.1\r\n") == 0);
  CHECK(right.asked.find("x-warren-endpoint-id: " + key) != std::string::npos);
}

TEST_CASE_METHOD(fixture, "refused only if every address says so") {
  listener wrong{no}, mute{""};
  CHECK(dial({nobody(), wrong.address}) == outcome::refused);
  CHECK(dial({nobody(), mute.address}) == outcome::unanswered);
}

TEST_CASE_METHOD(fixture, "garbage, nonsense and no address at all are no answer and no refusal") {
  listener garbage{"SSH-2.0-OpenSSH\r\n\r\n"}, endless{"HTTP/1.1 204 " + std::string(100'000, 'x')};
  CHECK(dial({garbage.address}) == outcome::unanswered);
  CHECK(dial({endless.address}) == outcome::unanswered);
  CHECK(dial({"localhost:80"}) == outcome::unanswered);
  CHECK(dial({"127.0.0.1:0", "[::1", ""}) == outcome::unanswered);
  CHECK(dial({}) == outcome::unanswered);
}

TEST_CASE_METHOD(fixture, "more dials than there are places are all answered within their timeout") {
  listener mute{""};
  constexpr int dials = 200;
  const auto started = std::chrono::steady_clock::now();
  std::atomic<int> told{0};
  for (int i = 0; i < dials; ++i)
    system.spawn([&, target = dialer](caf::event_based_actor* each) {
      each->request(target, std::chrono::seconds{10}, dial_request{key, {mute.address}, millis{300}})
          .then([&](const dial_result&) { ++told; }, [](const caf::error&) {});
    });
  while (told < dials && std::chrono::steady_clock::now() - started < std::chrono::seconds{3}) std::this_thread::yield();
  CHECK(told == dials);
}
