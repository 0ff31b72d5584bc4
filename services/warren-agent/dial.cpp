// services/warren-agent/dial.cpp -- opens a connection to a target. OpenSSL works on the socket's descriptor and
// the loop only waits for readiness: that gives a one-sided close_notify, which a half close needs.
#include "services/warren-agent/dial.hpp"

#include <csignal>
#include <vector>

#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

namespace warren::agent {

namespace {

SSL* as_ssl(void* p) { return static_cast<SSL*>(p); }

boost::system::error_code tls_error() { return asio::error::make_error_code(asio::error::connection_aborted); }

bool is_address(const std::string& host) {
  boost::system::error_code ec;
  asio::ip::make_address(host, ec);
  return !ec;
}

}  // namespace

void target_stream::tls_free::operator()(void* ssl) const { SSL_free(as_ssl(ssl)); }

target_stream::~target_stream() { close(); }

void target_stream::close() {
  boost::system::error_code ignored;
  socket_.close(ignored);
}

void target_stream::read_some(asio::mutable_buffer into, handler done) {
  if (tls_) return tls_read(into, std::move(done));
  socket_.async_read_some(into, std::move(done));
}

void target_stream::write_all(asio::const_buffer from, handler done) {
  if (tls_) return tls_write(from, 0, std::move(done));
  asio::async_write(socket_, from, std::move(done));
}

void target_stream::finish_writing() {
  if (tls_) {
    ERR_clear_error();
    SSL_shutdown(as_ssl(tls_.get()));  // writes close_notify and does not wait for the other one
  }
  boost::system::error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
}

void target_stream::tls_read(asio::mutable_buffer into, handler done) {
  if (!socket_.is_open()) return asio::post(socket_.get_executor(), [done] { done(asio::error::operation_aborted, 0); });
  ERR_clear_error();
  std::size_t n = 0;
  const int result = SSL_read_ex(as_ssl(tls_.get()), into.data(), into.size(), &n);
  if (result == 1) return asio::post(socket_.get_executor(), [done, n] { done({}, n); });
  auto wait = tcp::socket::wait_read;
  switch (SSL_get_error(as_ssl(tls_.get()), result)) {
    case SSL_ERROR_WANT_READ: break;
    case SSL_ERROR_WANT_WRITE: wait = tcp::socket::wait_write; break;
    case SSL_ERROR_ZERO_RETURN:
      return asio::post(socket_.get_executor(), [done] { done(asio::error::eof, 0); });
    default: return asio::post(socket_.get_executor(), [done] { done(tls_error(), 0); });
  }
  socket_.async_wait(wait, [this, into, done = std::move(done)](boost::system::error_code ec) mutable {
    if (ec) return done(ec, 0);
    tls_read(into, std::move(done));
  });
}

void target_stream::tls_write(asio::const_buffer from, std::size_t written, handler done) {
  if (!socket_.is_open()) return asio::post(socket_.get_executor(), [done] { done(asio::error::operation_aborted, 0); });
  auto wait = tcp::socket::wait_write;
  while (from.size() > 0) {
    ERR_clear_error();
    std::size_t n = 0;
    const int result = SSL_write_ex(as_ssl(tls_.get()), from.data(), from.size(), &n);
    if (result == 1) {
      from += n;
      written += n;
      continue;
    }
    const int why = SSL_get_error(as_ssl(tls_.get()), result);
    if (why == SSL_ERROR_WANT_READ) wait = tcp::socket::wait_read;
    else if (why != SSL_ERROR_WANT_WRITE)
      return asio::post(socket_.get_executor(), [done, written] { done(tls_error(), written); });
    break;
  }
  if (from.size() == 0) return asio::post(socket_.get_executor(), [done, written] { done({}, written); });
  socket_.async_wait(wait, [this, from, written, done = std::move(done)](boost::system::error_code ec) mutable {
    if (ec) return done(ec, written);
    tls_write(from, written, std::move(done));
  });
}

dialler::dialler(asio::io_context& io, const std::string& ca_file)
    : io_(io), verified_(asio::ssl::context::tls_client), unverified_(asio::ssl::context::tls_client) {
  std::signal(SIGPIPE, SIG_IGN);
  if (ca_file.empty()) verified_.set_default_verify_paths();
  else verified_.load_verify_file(ca_file);
  for (auto* context : {&verified_, &unverified_}) {
    SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
    SSL_CTX_set_mode(context->native_handle(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  }
  verified_.set_verify_mode(asio::ssl::verify_peer);
  unverified_.set_verify_mode(asio::ssl::verify_none);
}

/// One dial: name, then each address in turn, then TLS; one deadline over all.
struct dialler::attempt : std::enable_shared_from_this<attempt> {
  attempt(dialler& owner, target where, dial_callback callback)
      : to(std::move(where)), done(std::move(callback)), resolver(owner.io_), socket(owner.io_), timer(owner.io_),
        context(to.tls_verify && !to.loopback() ? &owner.verified_ : &owner.unverified_) {}

  void start() {
    timer.expires_after(dial_timeout);
    timer.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (!ec) self->finish(nullptr, "timed out");
    });
    boost::system::error_code ec;
    if (const auto address = asio::ip::make_address(to.host, ec); !ec) {
      endpoints = {tcp::endpoint{address, to.port}};
      return connect();
    }
    if (to.host == "localhost" || to.host.ends_with(".localhost")) {  // RFC 6761 6.3: needs no resolver
      endpoints = {tcp::endpoint{asio::ip::address_v4::loopback(), to.port}, tcp::endpoint{asio::ip::address_v6::loopback(), to.port}};
      return connect();
    }
    resolver.async_resolve(to.host, std::to_string(to.port), tcp::resolver::numeric_service,
                           [self = shared_from_this()](boost::system::error_code failed, const tcp::resolver::results_type& found) {
                             if (failed) return self->finish(nullptr, "the name cannot be resolved: " + failed.message());
                             for (const auto& one : found) self->endpoints.push_back(one.endpoint());
                             self->connect();
                           });
  }

  void connect() {
    if (!done) return;
    if (next == endpoints.size()) return finish(nullptr, first_failure.empty() ? "the name has no address" : first_failure);
    boost::system::error_code ec;
    socket.close(ec);
    socket.async_connect(endpoints[next++], [self = shared_from_this()](boost::system::error_code failed) {
      if (!self->done) return;
      if (failed) {
        if (self->first_failure.empty()) self->first_failure = failed.message();
        return self->connect();
      }
      self->connected();
    });
  }

  void connected() {
    boost::system::error_code ignored;
    socket.set_option(tcp::no_delay{true}, ignored);
    socket.set_option(asio::socket_base::keep_alive{true}, ignored);
    auto stream = std::make_shared<target_stream>(std::move(socket));
    if (!to.tls) return finish(std::move(stream), {});

    stream->socket_.native_non_blocking(true, ignored);
    auto* ssl = SSL_new(context->native_handle());
    stream->tls_.reset(ssl);
    if (ssl == nullptr || SSL_set_fd(ssl, stream->socket_.native_handle()) != 1) return finish(nullptr, "TLS cannot start");
    if (!is_address(to.host)) {
      SSL_set_tlsext_host_name(ssl, to.host.c_str());
      SSL_set1_host(ssl, to.host.c_str());
    } else {
      X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), to.host.c_str());
    }
    handshaking = stream;
    handshake();
  }

  void handshake() {
    if (!done || !handshaking) return;
    auto* ssl = as_ssl(handshaking->tls_.get());
    ERR_clear_error();
    const int result = SSL_connect(ssl);
    if (result == 1) return finish(std::move(handshaking), {});
    auto wait = tcp::socket::wait_read;
    switch (SSL_get_error(ssl, result)) {
      case SSL_ERROR_WANT_READ: break;
      case SSL_ERROR_WANT_WRITE: wait = tcp::socket::wait_write; break;
      default: return finish(nullptr, tls_words(ssl));
    }
    handshaking->socket_.async_wait(wait, [self = shared_from_this()](boost::system::error_code ec) {
      if (ec) return self->finish(nullptr, ec.message());
      self->handshake();
    });
  }

  static std::string tls_words(SSL* ssl) {
    if (const auto verdict = SSL_get_verify_result(ssl); verdict != X509_V_OK)
      return fmt::format("TLS: {}", X509_verify_cert_error_string(verdict));
    const char* why = ERR_reason_error_string(ERR_peek_error());
    return fmt::format("TLS: {}", why == nullptr ? "the far end closed the connection" : why);
  }

  void finish(std::shared_ptr<target_stream> stream, const std::string& words) {
    if (!done) return;
    auto callback = std::exchange(done, nullptr);
    timer.cancel();
    resolver.cancel();
    if (handshaking) handshaking->close();
    boost::system::error_code ignored;
    socket.close(ignored);
    callback(std::move(stream), words.empty() ? words : fmt::format("dial {}: {}", to.authority(), words));
  }

  target to;
  dial_callback done;  // empty: it has been called
  tcp::resolver resolver;
  tcp::socket socket;
  asio::steady_timer timer;
  asio::ssl::context* context;
  std::vector<tcp::endpoint> endpoints;
  std::size_t next = 0;
  std::string first_failure;
  std::shared_ptr<target_stream> handshaking;
};

void dialler::dial(const target& to, dial_callback done) {
  const auto one = std::make_shared<attempt>(*this, to, std::move(done));
  asio::post(io_, [one] { one->start(); });
}

}  // namespace warren::agent
