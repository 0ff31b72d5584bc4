// services/telemetry/health.cpp -- readiness, and the HTTP server that shows it.
#include "services/telemetry/health.hpp"

#include <chrono>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <fmt/format.h>

namespace warren::telemetry {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;

constexpr std::uint32_t header_bytes_max = 8 * 1024;
constexpr std::uint64_t body_bytes_max = 0;                  // nothing here takes a body
constexpr std::size_t connections_max = 64;                  // beyond: closed at once
constexpr auto request_timeout = std::chrono::seconds{10};   // also how long an idle connection is kept

std::string quoted(std::string_view text) {
  std::string out{"\""};
  for (char c : text) {
    if (c == '"' || c == '\\') { out.push_back('\\'); out.push_back(c); }
    else if (static_cast<unsigned char>(c) < 0x20) out.append(fmt::format("\\u{:04x}", static_cast<unsigned char>(c)));
    else out.push_back(c);
  }
  return out + "\"";
}

std::string_view query_of(std::string_view target) {
  const auto at = target.find('?');
  return at == std::string_view::npos ? std::string_view{} : target.substr(at + 1);
}

}  // namespace

void health::set(std::string_view name, bool ok, std::string_view reason) {
  const std::lock_guard lock{mutex_};
  dependencies_[std::string{name}] = {ok, std::string{reason}};
}

void health::note(std::string_view name, std::string_view text) {
  const std::lock_guard lock{mutex_};
  if (text.empty()) notes_.erase(std::string{name});
  else notes_[std::string{name}] = text;
}

std::string health::wrong_with(std::initializer_list<std::string_view> names) const {
  const std::lock_guard lock{mutex_};
  std::string out;
  for (const auto name : names) {
    const auto at = dependencies_.find(name);
    if (at == dependencies_.end() || at->second.ok) continue;
    out += fmt::format("{}{}: {}", out.empty() ? "" : "; ", name, at->second.reason);
  }
  return out;
}

bool health::ready() const {
  const std::lock_guard lock{mutex_};
  for (const auto& [name, each] : dependencies_)
    if (!each.ok) return false;
  return !dependencies_.empty();
}

std::string health::json() const {
  const bool is_ready = ready();
  const std::lock_guard lock{mutex_};
  std::string out = fmt::format("{{\"ready\":{},\"dependencies\":{{", is_ready);
  const char* comma = "";
  for (const auto& [name, each] : dependencies_) {
    out += fmt::format("{}{}:{{\"ok\":{},\"reason\":{}}}", comma, quoted(name), each.ok, quoted(each.reason));
    comma = ",";
  }
  out += "},\"notes\":{";
  comma = "";
  for (const auto& [name, text] : notes_) {
    out += fmt::format("{}{}:{}", comma, quoted(name), quoted(text));
    comma = ",";
  }
  return out + "}}\n";
}

// ---- HTTP ----

struct http_server::impl {
  impl(const health& h, std::function<std::string()> text, const http_options& options)
      : of(h), metrics_text(std::move(text)), healthz_when_ready(options.healthz_when_ready), debug(options.debug) {}

  const health& of;
  std::function<std::string()> metrics_text;
  const bool healthz_when_ready;
  const std::function<std::optional<http_page>(std::string_view, std::string_view)> debug;
  std::size_t connections = 0;
  std::uint16_t port = 0;
  asio::io_context io{1};  // after what its sessions touch when they end with it
  tcp::acceptor acceptor{io};
  asio::steady_timer retry{io};
  std::thread thread;

  using response = http::response<http::string_body>;

  response answer(const http::request<http::empty_body>& request, bool local) {
    response out{http::status::ok, request.version()};
    out.keep_alive(request.keep_alive());
    out.set(http::field::content_type, "text/plain; charset=utf-8");
    out.set(http::field::cache_control, "no-store");
    const bool head = request.method() == http::verb::head;
    const auto target = request.target().substr(0, request.target().find('?'));
    if (!head && request.method() != http::verb::get) {
      out.result(http::status::method_not_allowed);
      out.set(http::field::allow, "GET, HEAD");
    } else if (target == "/healthz") {
      const bool ok = !healthz_when_ready || of.ready();
      if (!ok) out.result(http::status::service_unavailable);
      out.body() = ok ? "ok\n" : "not ready\n";
    } else if (target == "/readyz") {
      if (!of.ready()) out.result(http::status::service_unavailable);
      out.set(http::field::content_type, "application/json");
      out.body() = of.json();
    } else if (target == "/metrics") {
      out.set(http::field::content_type, "text/plain; version=0.0.4; charset=utf-8");
      out.body() = metrics_text();
    } else if (target.starts_with("/debug/") && debug && !local) {
      out.result(http::status::forbidden);
      out.body() = "only from this machine\n";
    } else if (auto page = target.starts_with("/debug/") && debug
                               ? debug({target.data(), target.size()}, query_of({request.target().data(), request.target().size()}))
                               : std::nullopt) {
      out.result(page->status);
      out.set(http::field::content_type, page->content_type);
      out.body() = std::move(page->body);
    } else {
      out.result(http::status::not_found);
      out.body() = "not found\n";
    }
    const auto length = out.body().size();
    if (head) out.body().clear();
    out.content_length(length);
    return out;
  }

  struct session : std::enable_shared_from_this<session> {
    session(impl& s, tcp::socket socket) : server(&s), stream(std::move(socket)) { ++server->connections; }
    ~session() { --server->connections; }
    impl* server;  // outlives it: sessions live in its io context
    beast::tcp_stream stream;
    beast::flat_buffer buffer{header_bytes_max};
    std::optional<http::request_parser<http::empty_body>> parser;
    response out;

    void read() {
      parser.emplace();
      parser->header_limit(header_bytes_max);
      parser->body_limit(body_bytes_max);
      stream.expires_after(request_timeout);
      http::async_read(stream, buffer, *parser, [self = shared_from_this()](beast::error_code error, std::size_t) {
        if (!error) self->write();
      });
    }
    void write() {
      beast::error_code unknown;
      const auto peer = stream.socket().remote_endpoint(unknown);
      out = server->answer(parser->get(), !unknown && peer.address().is_loopback());
      stream.expires_after(request_timeout);
      http::async_write(stream, out, [self = shared_from_this()](beast::error_code error, std::size_t) {
        if (error || self->out.need_eof() || !self->out.keep_alive()) return self->finish();
        self->read();
      });
    }
    void finish() {
      beast::error_code ignored;
      stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
    }
  };

  void accept() {
    acceptor.async_accept([this](beast::error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (!error && connections < connections_max) std::make_shared<session>(*this, std::move(socket))->read();
      if (!error) return accept();
      // Out of descriptors, most likely: a loop without a pause would eat a core.
      retry.expires_after(std::chrono::milliseconds{100});
      retry.async_wait([this](beast::error_code cancelled) { if (!cancelled) accept(); });
    });
  }
};

http_server::http_server(http_options options, const health& of, std::function<std::string()> metrics_text)
    : impl_(std::make_unique<impl>(of, std::move(metrics_text), options)) {
  beast::error_code error;
  const auto address = asio::ip::make_address(options.address, error);
  const tcp::endpoint at{address, options.port};
  const auto check = [&](const char* what) {
    if (error) throw std::runtime_error(fmt::format("{}:{}: {}: {}", options.address, options.port, what, error.message()));
  };
  check("address");
  impl_->acceptor.open(at.protocol(), error);
  check("open");
  impl_->acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  impl_->acceptor.bind(at, error);
  check("bind");
  impl_->acceptor.listen(asio::socket_base::max_listen_connections, error);
  check("listen");
  impl_->port = impl_->acceptor.local_endpoint().port();
  impl_->accept();
  impl_->thread = std::thread{[raw = impl_.get()] { raw->io.run(); }};
}

http_server::~http_server() {
  impl_->io.stop();
  impl_->thread.join();
}

std::uint16_t http_server::port() const { return impl_->port; }

}  // namespace warren::telemetry
