// services/warren-agent/dial.hpp -- opens a connection to a target, with TLS where the target wants it. Runs on the
// agent's one thread; never blocks it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>

#include "services/warren-agent/targets.hpp"

namespace warren::agent {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

inline constexpr auto dial_timeout = 5s;

/// An open connection to a target: bytes in clear on this side. One read and one write at a time.
/// After `close` no handler gets data; those that wait are told of an error.
class target_stream {
public:
  using handler = std::function<void(boost::system::error_code, std::size_t)>;

  explicit target_stream(tcp::socket socket) : socket_(std::move(socket)) {}
  ~target_stream();
  target_stream(const target_stream&) = delete;
  target_stream& operator=(const target_stream&) = delete;

  void read_some(asio::mutable_buffer into, handler done);  ///< 0 bytes and asio::error::eof: the far end has finished
  void write_all(asio::const_buffer from, handler done);
  void finish_writing();  ///< half close; TLS says close_notify first
  void close();
  tcp::socket& socket() { return socket_; }

private:
  friend class dialler;
  struct tls_free {
    void operator()(void* ssl) const;
  };
  void tls_read(asio::mutable_buffer into, handler done);
  void tls_write(asio::const_buffer from, std::size_t written, handler done);

  tcp::socket socket_;
  std::unique_ptr<void, tls_free> tls_;  // SSL over the socket's descriptor; none: plain
};

/// `words` say why there is no stream.
using dial_callback = std::function<void(std::shared_ptr<target_stream> stream, std::string words)>;

class dialler {
public:
  /// `ca_file` empty: the system's authorities. SIGPIPE is ignored in the whole process from here on: TLS writes
  /// to a socket whose far end has gone.
  explicit dialler(asio::io_context& io, const std::string& ca_file = {});
  /// Calls back once, from the loop, within dial_timeout.
  void dial(const target& to, dial_callback done);

private:
  struct attempt;
  asio::io_context& io_;
  asio::ssl::context verified_, unverified_;
};

}  // namespace warren::agent
