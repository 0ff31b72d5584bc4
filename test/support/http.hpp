// test/support/http.hpp -- both ends of a tunnel: the private service behind it, and its visitors.
// Knows nothing of Warren. Also used by deploy/story.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "test/support/process.hpp"

namespace warren::stack {

/// The private service: an HTTP server on 127.0.0.1 in this process.
///   /              200 and a greeting with the origin's name
///   /echo          200 and the request's body
///   /slow?ms=N     200 after N milliseconds
///   /drip?ms=N     200 at once, the body over N milliseconds
///   /close         reads the request and closes without an answer
///   upgrade        a WebSocket that says everything back
/// Every answer names the origin in `x-origin`. Thread-safe.
class origin {
public:
  /// `port` 0: a free one.
  explicit origin(std::string name = "demo", std::uint16_t port = 0);
  ~origin();
  std::uint16_t port() const;
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port()); }
  /// Refuses connections and ends those that are open; `up` listens on the same port again.
  void down();
  void up();
  /// Requests that arrived so far, by method (a WebSocket counts as GET).
  int count(const std::string& method) const;
  int open_connections() const;

private:
  struct impl;
  std::shared_ptr<impl> impl_;
};

struct answer {
  int status = 0;                              ///< 0: no head arrived
  std::string body;
  std::map<std::string, std::string> headers;  ///< lower-case names
  std::string error;                           ///< why there is no (whole) answer
  milliseconds took{0};
};

struct request {
  std::string host;             ///< the Host header, or the authority of CONNECT
  std::string method = "GET";
  std::string target = "/";
  std::string body = {};
  milliseconds timeout{5'000};
  std::map<std::string, std::string> headers = {};  ///< more of them
};

/// One request on a connection of its own to 127.0.0.1:`port`.
answer visit(std::uint16_t port, const request& r);

/// A connection that a visitor keeps: WebSocket, or bytes through CONNECT. Not thread-safe.
class open_visit {
public:
  enum class kind { websocket, connect };
  /// `head` of the result says how it was answered; the connection is open when open() says so.
  open_visit(kind k, std::uint16_t port, const std::string& host, const std::string& target = "/",
             milliseconds timeout = milliseconds{5'000});
  ~open_visit();
  open_visit(open_visit&&) noexcept;
  const answer& head() const;
  bool open() const;
  /// False: the connection has ended.
  bool send(const std::string& message);
  /// Empty: it ended, or nothing came in time.
  std::optional<std::string> receive(milliseconds timeout = milliseconds{5'000});
  /// Waits for the other side to end it; false: it is still open.
  bool await_end(milliseconds timeout);

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

struct seen_answer {
  clock::time_point at;
  answer what;
};

/// Visits again and again, one request after the other, each on a connection of its own, and records
/// every answer. Thread-safe.
class continuous_visitor {
public:
  continuous_visitor(std::uint16_t port, request r, milliseconds pause = milliseconds{1});
  ~continuous_visitor();
  /// All answers so far.
  std::vector<seen_answer> answers() const;
  /// The first answer from `since` on that satisfies; empty: none in time.
  std::optional<seen_answer> await(const std::function<bool(const answer&)>& satisfies,
                                   milliseconds timeout,
                                   clock::time_point since = clock::now());
  std::optional<seen_answer> await_status(int status, milliseconds timeout,
                                          clock::time_point since = clock::now());
  void stop();

private:
  struct impl;
  std::shared_ptr<impl> impl_;
};

}  // namespace warren::stack
