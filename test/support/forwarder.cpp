// test/support/forwarder.cpp -- a TCP way to a server that a test can cut, swallow or lead elsewhere.
#include "test/support/forwarder.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "test/support/process.hpp"

namespace warren::stack {

namespace {

constexpr std::size_t chunk_bytes = 64 * 1024;

/// What was read and not yet written; nothing more is read before it is gone.
struct flow {
  int from = -1, to = -1;
  std::string waiting;
  bool ended = false;  // `from` has nothing more to say
};

struct connection {
  int client = -1, server = -1;
  flow up, down;
  bool over = false;
};

void no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on a unix socket, which needs none
}

int connect_to(const std::string& target) {
  int fd = -1;
  bool connected = false;
  if (target.starts_with("/")) {
    sockaddr_un a{};
    if (target.size() >= sizeof a.sun_path) return -1;
    a.sun_family = AF_UNIX;
    std::memcpy(a.sun_path, target.data(), target.size());
    fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0;
  } else {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons(static_cast<std::uint16_t>(std::stoi(target)));
    fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0;
  }
  if (connected) return fd;
  ::close(fd);
  return -1;
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

/// False: the connection is over.
bool move(flow& f) {
  while (true) {
    while (!f.waiting.empty()) {
      const auto n = ::send(f.to, f.waiting.data(), f.waiting.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0) return would_block();
      f.waiting.erase(0, static_cast<std::size_t>(n));
    }
    if (f.ended) return true;
    f.waiting.resize(chunk_bytes);
    const auto n = ::recv(f.from, f.waiting.data(), f.waiting.size(), MSG_DONTWAIT);
    f.waiting.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    if (n < 0) return would_block();
    if (n == 0) {
      f.ended = true;
      ::shutdown(f.to, SHUT_WR);
      return true;
    }
  }
}

}  // namespace

struct forwarder::impl {
  std::uint16_t port = free_port();
  int listener = -1, wake = -1;
  std::mutex mutex;
  std::vector<std::string> targets;
  bool stopping = false, is_cut = false, swallows = false, end_all = false;
  std::list<connection> open;  // of the thread
  std::thread thread;

  void poke() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto n = ::write(wake, &one, sizeof one);
  }

  template <class Change> void tell(Change change) {
    {
      const std::lock_guard lock{mutex};
      change();
    }
    poke();
  }

  static void end(const connection& c) {
    // A reset, as an orderly end would leave the port waiting, and the other side believing in an orderly end.
    const linger at_once{1, 0};
    ::setsockopt(c.client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    ::close(c.client);
    ::close(c.server);
  }

  void take(const std::vector<std::string>& to) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) return;
    no_delay(client);
    for (const auto& target : to) {
      const int server = connect_to(target);
      if (server < 0) continue;
      no_delay(server);
      open.push_back({client, server, {client, server, {}, false}, {server, client, {}, false}, false});
      return;
    }
    ::close(client);
  }

  void run() {
    while (true) {
      bool cut_now = false, still = false;
      std::vector<std::string> to;
      {
        const std::lock_guard lock{mutex};
        if (stopping) break;
        cut_now = is_cut || std::exchange(end_all, false);
        still = swallows;
        to = is_cut ? std::vector<std::string>{} : targets;
      }
      if (cut_now) {
        for (const auto& c : open) end(c);
        open.clear();
      }
      std::vector<pollfd> polled{{wake, POLLIN, 0}, {listener, POLLIN, 0}};
      if (!still)
        for (auto& c : open) {
          const auto wants = [](const flow& in, const flow& out) {
            int events = 0;
            if (!in.ended && in.waiting.empty()) events |= POLLIN;
            if (!out.waiting.empty()) events |= POLLOUT;
            return static_cast<short>(events);
          };
          polled.push_back({c.client, wants(c.up, c.down), 0});
          polled.push_back({c.server, wants(c.down, c.up), 0});
        }
      if (::poll(polled.data(), polled.size(), -1) < 0) continue;
      if (polled[0].revents != 0) {
        std::uint64_t ignored = 0;
        [[maybe_unused]] const auto n = ::read(wake, &ignored, sizeof ignored);
        continue;  // what was said comes before what passes
      }
      if (!still) {
        std::size_t at = 2;
        for (auto& c : open) {
          const bool client = polled[at].revents != 0, server = polled[at + 1].revents != 0;
          at += 2;
          if (!client && !server) continue;
          const int broken = (polled[at - 2].revents | polled[at - 1].revents) & (POLLERR | POLLNVAL);
          c.over = broken != 0 || !move(c.up) || !move(c.down) ||
                   (c.up.ended && c.down.ended && c.up.waiting.empty() && c.down.waiting.empty());
        }
        for (const auto& c : open)
          if (c.over) {
            ::close(c.client);
            ::close(c.server);
          }
        open.remove_if([](const connection& c) { return c.over; });
      }
      if (polled[1].revents != 0) take(to);
    }
    for (const auto& c : open) end(c);
  }
};

forwarder::forwarder(std::vector<std::string> targets) : impl_{std::make_unique<impl>()} {
  auto& my = *impl_;
  my.targets = std::move(targets);
  my.wake = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  my.listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(my.listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  a.sin_port = htons(my.port);
  if (my.wake < 0 || ::bind(my.listener, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0 ||
      ::listen(my.listener, 128) != 0)
    throw stack_error{"the forwarder cannot listen"};
  my.thread = std::thread{[&my] { my.run(); }};
}

forwarder::~forwarder() {
  impl_->tell([this] { impl_->stopping = true; });
  impl_->thread.join();
  ::close(impl_->listener);
  ::close(impl_->wake);
}

std::uint16_t forwarder::port() const { return impl_->port; }
void forwarder::cut() {
  impl_->tell([this] { impl_->is_cut = true; });
}
void forwarder::swallow() {
  impl_->tell([this] { impl_->swallows = true; });
}
void forwarder::mend() {
  impl_->tell([this] { impl_->is_cut = impl_->swallows = false; });
}
void forwarder::lead_to(std::vector<std::string> targets, bool now) {
  impl_->tell([&] {
    impl_->targets = std::move(targets);
    impl_->end_all = impl_->end_all || now;
  });
}

}  // namespace warren::stack
