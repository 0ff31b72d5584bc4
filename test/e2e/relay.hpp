// test/e2e/relay.hpp -- a TCP relay that a test can cut: one client's way to a server, and nobody else's.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "test/support/process.hpp"

namespace warren::e2e {

/// Listens on loopback and passes bytes to 127.0.0.1:`to`; not for a client that begins with `turned_away`, whose
/// connection just ends. Thread-safe.
class relay {
public:
  explicit relay(std::uint16_t to, std::string turned_away = {})
      : to_{to}, turned_away_{std::move(turned_away)}, port_{stack::free_port()} {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const auto at = address(port_);
    if (::bind(listener_, reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0 || ::listen(listener_, 16) != 0)
      throw stack::stack_error{"the relay cannot listen"};
    thread_ = std::thread{[this] { run(); }};
  }
  ~relay() {
    stopping_ = true;
    thread_.join();
    ::close(listener_);
  }
  relay(const relay&) = delete;
  relay& operator=(const relay&) = delete;

  std::uint16_t port() const { return port_; }
  /// Ends what is open, and ends at once whatever comes, until mend().
  void cut() { is_cut_ = true; }
  void mend() { is_cut_ = false; }

private:
  using pair = std::pair<int, int>;

  static sockaddr_in address(std::uint16_t port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons(port);
    return a;
  }
  static bool pass(int from, int to) {
    char buffer[16384];
    const auto n = ::recv(from, buffer, sizeof buffer, 0);
    for (ssize_t sent = 0; sent < n;) {
      const auto m = ::send(to, buffer + sent, static_cast<std::size_t>(n - sent), MSG_NOSIGNAL);
      if (m <= 0) return false;
      sent += m;
    }
    return n > 0;
  }
  bool welcome(int client) const {
    if (turned_away_.empty()) return true;
    std::string first(turned_away_.size(), '\0');
    const auto n = ::recv(client, first.data(), first.size(), MSG_PEEK);
    return n <= 0 || first.substr(0, static_cast<std::size_t>(n)) != turned_away_;
  }
  static void end(const pair& p) {
    ::close(p.first);
    ::close(p.second);
  }

  void take() {
    const int client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) return;
    const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const auto at = address(to_);
    if (is_cut_ || ::connect(server, reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0) return end({client, server});
    pairs_.emplace_back(client, server);
  }

  void run() {
    while (!stopping_) {
      if (is_cut_) {
        for (const auto& p : pairs_) end(p);
        pairs_.clear();
      }
      std::vector<pollfd> waiting{{listener_, POLLIN, 0}};
      for (const auto& [client, server] : pairs_) {
        waiting.push_back({client, POLLIN, 0});
        waiting.push_back({server, POLLIN, 0});
      }
      if (::poll(waiting.data(), waiting.size(), 10) <= 0) continue;
      std::vector<pair> open;
      for (std::size_t n = 0; n < pairs_.size(); ++n) {
        const auto [client, server] = pairs_[n];
        const bool alive = (waiting[1 + 2 * n].revents == 0 || (welcome(client) && pass(client, server))) &&
                           (waiting[2 + 2 * n].revents == 0 || pass(server, client));
        if (alive) open.push_back(pairs_[n]);
        else end(pairs_[n]);
      }
      pairs_ = std::move(open);
      if (waiting[0].revents != 0) take();
    }
    for (const auto& p : pairs_) end(p);
  }

  std::uint16_t to_;
  std::string turned_away_;
  std::uint16_t port_;
  int listener_ = -1;
  std::atomic<bool> stopping_{false}, is_cut_{false};
  std::vector<pair> pairs_;  // of the thread
  std::thread thread_;
};

}  // namespace warren::e2e
