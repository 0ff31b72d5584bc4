// bench/visitor.cpp -- a visitor of plain sockets.
#include "bench/visitor.hpp"

#include <algorithm>
#include <charconv>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

namespace warren::bench {

glimpse look(std::uint16_t port, const std::string& host, milliseconds timeout) {
  glimpse out;
  out.asked = clock::now();
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    out.answered = clock::now();
    return out;
  }
  timeval limit{};
  limit.tv_sec = static_cast<time_t>(timeout.count() / 1000);
  limit.tv_usec = static_cast<suseconds_t>(timeout.count() % 1000 * 1000);
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  // Closed by a reset: thousands of visits must not use up the ports.
  const linger reset{1, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const std::string question = "GET / HTTP/1.1\r\nhost: " + host + "\r\nconnection: close\r\n\r\n";
  std::string head;
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 &&
      ::send(fd, question.data(), question.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(question.size())) {
    char piece[4096];
    while (head.find("\r\n\r\n") == std::string::npos && head.size() < 64 * 1024) {
      const auto n = ::recv(fd, piece, sizeof piece, 0);
      if (n <= 0) break;
      head.append(piece, static_cast<std::size_t>(n));
    }
  }
  out.answered = clock::now();
  if (head.starts_with("HTTP/1.1 ") && head.size() > 12) std::from_chars(head.data() + 9, head.data() + 12, out.status);
  constexpr std::string_view name = "x-warren-reason: ";
  if (const auto at = head.find(name); at != std::string::npos) {
    const auto begin = at + name.size();
    out.reason = head.substr(begin, head.find('\r', begin) - begin);
  }
  ::close(fd);
  return out;
}

gaze::gaze(std::uint16_t port, std::string host, std::chrono::microseconds pause, milliseconds timeout) {
  thread_ = std::thread{[this, port, host = std::move(host), pause, timeout] {
    std::unique_lock lock{mutex_};
    while (!stopping_) {
      lock.unlock();
      auto one = look(port, host, timeout);
      lock.lock();
      seen_.push_back(std::move(one));
      changed_.notify_all();
      changed_.wait_for(lock, pause, [this] { return stopping_; });
    }
  }};
}

gaze::~gaze() {
  {
    const std::lock_guard lock{mutex_};
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::optional<glimpse> gaze::await(const std::function<bool(const glimpse&)>& satisfies, clock::time_point since,
                                   milliseconds timeout) {
  const auto deadline = clock::now() + timeout;
  std::unique_lock lock{mutex_};
  auto next = static_cast<std::size_t>(
      std::lower_bound(seen_.begin(), seen_.end(), since,
                       [](const glimpse& g, clock::time_point t) { return g.answered < t; }) -
      seen_.begin());
  for (;;) {
    for (; next < seen_.size(); ++next)
      if (satisfies(seen_[next])) return seen_[next];
    if (changed_.wait_until(lock, deadline) == std::cv_status::timeout) return std::nullopt;
  }
}

std::vector<glimpse> gaze::since(clock::time_point from) const {
  const std::lock_guard lock{mutex_};
  return {std::lower_bound(seen_.begin(), seen_.end(), from,
                           [](const glimpse& g, clock::time_point t) { return g.answered < t; }),
          seen_.end()};
}

std::size_t gaze::count(int status) const {
  const std::lock_guard lock{mutex_};
  return static_cast<std::size_t>(
      std::count_if(seen_.begin(), seen_.end(), [status](const glimpse& g) { return g.status == status; }));
}

std::size_t gaze::total() const {
  const std::lock_guard lock{mutex_};
  return seen_.size();
}

}  // namespace warren::bench
