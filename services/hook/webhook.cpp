// services/hook/webhook.cpp -- an HTTP POST that is tried until it is taken.
#include "services/hook/webhook.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>

namespace warren::hook {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr auto attempt_max = std::chrono::seconds{10};        // from the connection to the answer's head
constexpr auto again_first = std::chrono::milliseconds{200};  // doubling
constexpr auto again_max = std::chrono::seconds{30};
constexpr std::uint32_t answer_bytes_max = 64 * 1024;

}  // namespace

webhook_url parse_webhook_url(const std::string& text) {
  constexpr std::string_view scheme = "http://";
  if (text.rfind(scheme, 0) != 0) throw std::invalid_argument{"a webhook is http://HOST[:PORT][/PATH], not " + text};
  const auto slash = text.find('/', scheme.size());
  const auto authority = text.substr(scheme.size(), slash == std::string::npos ? slash : slash - scheme.size());
  webhook_url out;
  out.target = slash == std::string::npos ? "/" : text.substr(slash);
  const auto colon = authority.rfind(':');
  out.host = authority.substr(0, colon);
  out.port = colon == std::string::npos ? "80" : authority.substr(colon + 1);
  const bool digits = !out.port.empty() && out.port.size() <= 5 &&
                      std::all_of(out.port.begin(), out.port.end(), [](char c) { return c >= '0' && c <= '9'; });
  const bool printable = std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (out.host.empty() || !digits || !printable || authority.find('@') != std::string::npos)
    throw std::invalid_argument{"a webhook is http://HOST[:PORT][/PATH], not " + text};
  return out;
}

webhook::webhook(webhook_url to, std::function<void(const std::string&, const std::string&)> tried)
    : to_(std::move(to)), tried_(std::move(tried)), thread_([this] { run(); }) {}

webhook::~webhook() {
  {
    const std::lock_guard lock{mutex_};
    stopped_ = true;
    if (trying_ != nullptr) trying_->stop();
    wake_.notify_all();
  }
  thread_.join();
}

void webhook::deliver(std::string json) {
  const std::lock_guard lock{mutex_};
  next_ = std::move(json);
  wake_.notify_all();
}

void webhook::run() {
  std::unique_lock lock{mutex_};
  std::chrono::milliseconds pause = again_first;
  while (true) {
    wake_.wait(lock, [this] { return stopped_ || next_; });
    if (stopped_) return;
    const auto body = *next_;
    lock.unlock();
    const auto error = post(body);
    tried_(error, body);
    lock.lock();
    if (error.empty()) {
      if (next_ == body) next_.reset();
      pause = again_first;
      continue;
    }
    wake_.wait_for(lock, pause, [this] { return stopped_; });
    pause = std::min<std::chrono::milliseconds>(pause * 2, again_max);
  }
}

std::string webhook::post(const std::string& body) {
  asio::io_context io{1};
  {
    const std::lock_guard lock{mutex_};
    if (stopped_) return "stopped";
    trying_ = &io;
  }
  asio::ip::tcp::resolver resolver{io};
  beast::tcp_stream stream{io};
  beast::flat_buffer buffer{answer_bytes_max};
  http::request<http::string_body> request{http::verb::post, to_.target, 11};
  request.set(http::field::host, to_.port == "80" ? to_.host : to_.host + ":" + to_.port);
  request.set(http::field::content_type, "application/json");
  request.set(http::field::connection, "close");
  request.body() = body;
  request.prepare_payload();
  http::response_parser<http::empty_body> response;
  std::string error = "no answer in time";
  const auto failed = [&](beast::error_code e) {
    if (e) error = e.message();
    return e.failed();
  };
  stream.expires_after(attempt_max);
  resolver.async_resolve(to_.host, to_.port, [&](beast::error_code e, const auto& found) {
    if (failed(e)) return;
    stream.async_connect(found, [&](beast::error_code not_connected, const auto&) {
      if (failed(not_connected)) return;
      http::async_write(stream, request, [&](beast::error_code not_written, std::size_t) {
        if (failed(not_written)) return;
        http::async_read_header(stream, buffer, response, [&](beast::error_code not_read, std::size_t) {
          if (failed(not_read)) return;
          const auto status = response.get().result_int();
          error = status >= 200 && status < 300 ? "" : "the answer is " + std::to_string(status);
        });
      });
    });
  });
  io.run_for(attempt_max + std::chrono::seconds{1});  // a name that does not resolve is not the stream's timeout
  const std::lock_guard lock{mutex_};
  trying_ = nullptr;
  return error;
}

}  // namespace warren::hook
