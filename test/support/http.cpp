// test/support/http.cpp -- both ends of a tunnel. Knows nothing of Warren.
#include "test/support/http.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/websocket.hpp>
#include <cctype>
#include <condition_variable>
#include <future>
#include <mutex>
#include <set>
#include <thread>

namespace warren::stack {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace ws = beast::websocket;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr std::size_t body_bytes_max = 16 * 1024 * 1024;  // of a request or an answer
constexpr std::uint32_t head_bytes_max = 64 * 1024;       // above what gateways let through

tcp::endpoint loopback(std::uint16_t port) { return {asio::ip::address_v4::loopback(), port}; }

std::string lower(std::string_view text) {
  std::string result{text};
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

template <class Fields> void take_head(answer& a, const Fields& message) {
  a.status = static_cast<int>(message.result_int());
  for (const auto& field : message)
    a.headers[lower({field.name_string().data(), field.name_string().size()})] =
        std::string{field.value()};
}

int milliseconds_of(std::string_view target) {
  const auto at = target.find("ms=");
  return at == std::string_view::npos ? 0 : std::atoi(std::string{target.substr(at + 3)}.c_str());
}

}  // namespace

// ---- origin ----

struct origin::impl : std::enable_shared_from_this<origin::impl> {
  using connection_stream = beast::tcp_stream;

  struct connection : std::enable_shared_from_this<connection> {
    connection(std::shared_ptr<impl> o, tcp::socket s) : owner{std::move(o)}, stream{std::move(s)} {}

    void read() {
      parser.emplace();
      parser->body_limit(body_bytes_max);
      parser->header_limit(head_bytes_max);
      http::async_read(stream, buffer, *parser, [self = shared_from_this()](error_code e, std::size_t) {
        if (e)
          self->end();
        else
          self->serve();
      });
    }

    void serve() {
      const auto& r = parser->get();
      {
        const std::lock_guard lock{owner->mutex};
        ++owner->counts[std::string{r.method_string()}];
      }
      if (ws::is_upgrade(r))
        return upgrade();
      const std::string target{r.target()};
      const std::string path = target.substr(0, target.find('?'));
      if (path == "/close")
        return end();
      const auto delay = std::chrono::milliseconds{milliseconds_of(target)};
      reply = {};
      reply.version(r.version());
      reply.keep_alive(r.keep_alive());
      reply.result(http::status::ok);
      reply.set("x-origin", owner->name);
      reply.set(http::field::content_type, "text/plain");
      if (path == "/drip") {
        reply.body() = "begin ";
        reply.chunked(true);
        return drip(delay);
      }
      reply.body() = path == "/echo" ? r.body() : "Hello from " + owner->name + ".\n";
      reply.prepare_payload();
      if (delay.count() == 0)
        return answer_now();
      timer.emplace(stream.get_executor());
      timer->expires_after(delay);
      timer->async_wait([self = shared_from_this()](error_code e) {
        if (e)
          self->end();
        else
          self->answer_now();
      });
    }

    void answer_now() {
      http::async_write(stream, reply, [self = shared_from_this()](error_code e, std::size_t) {
        if (e || !self->reply.keep_alive())
          self->end();
        else
          self->read();
      });
    }

    // The head and the first chunk at once, the last chunk after the delay.
    void drip(std::chrono::milliseconds delay) {
      auto head = std::make_shared<std::string>(
          "HTTP/1.1 200 OK\r\nx-origin: " + owner->name +
          "\r\ntransfer-encoding: chunked\r\n\r\n6\r\nbegin \r\n");
      asio::async_write(stream, asio::buffer(*head), [self = shared_from_this(), head, delay](
                                                         error_code e, std::size_t) {
        if (e)
          return self->end();
        self->timer.emplace(self->stream.get_executor());
        self->timer->expires_after(delay);
        self->timer->async_wait([self](error_code stopped) {
          if (stopped)
            return self->end();
          static const std::string rest = "3\r\nend\r\n0\r\n\r\n";
          asio::async_write(self->stream, asio::buffer(rest), [self](error_code failed, std::size_t) {
            if (failed)
              self->end();
            else
              self->read();
          });
        });
      });
    }

    void upgrade() {
      socket.emplace(stream.release_socket());
      socket->async_accept(parser->get(), [self = shared_from_this()](error_code e) {
        if (e)
          self->end();
        else
          self->echo();
      });
    }

    void echo() {
      socket->async_read(buffer, [self = shared_from_this()](error_code e, std::size_t) {
        if (e)
          return self->end();
        self->socket->text(self->socket->got_text());
        self->socket->async_write(self->buffer.data(), [self](error_code failed, std::size_t) {
          if (failed)
            return self->end();
          self->buffer.consume(self->buffer.size());
          self->echo();
        });
      });
    }

    void end() {
      error_code ignored;
      if (timer)
        timer->cancel(ignored);
      auto& s = socket ? socket->next_layer() : stream.socket();
      s.shutdown(tcp::socket::shutdown_both, ignored);
      s.close(ignored);
      const std::lock_guard lock{owner->mutex};
      owner->connections.erase(shared_from_this());
    }

    std::shared_ptr<impl> owner;
    connection_stream stream;
    std::optional<ws::stream<tcp::socket>> socket;
    beast::flat_buffer buffer;
    std::optional<http::request_parser<http::string_body>> parser;
    http::response<http::string_body> reply;
    std::optional<asio::steady_timer> timer;
  };

  void accept() {
    acceptor->async_accept([self = shared_from_this()](error_code e, tcp::socket s) {
      if (e)
        return;
      const auto c = std::make_shared<connection>(self, std::move(s));
      {
        const std::lock_guard lock{self->mutex};
        self->connections.insert(c);
      }
      c->read();
      self->accept();
    });
  }

  void listen() {
    acceptor.emplace(context);
    acceptor->open(tcp::v4());
    acceptor->set_option(tcp::acceptor::reuse_address(true));
    acceptor->bind(loopback(port));
    acceptor->listen();
    accept();
  }

  void silence() {
    error_code ignored;
    if (acceptor)
      acceptor->close(ignored);
    std::set<std::shared_ptr<connection>> all;
    {
      const std::lock_guard lock{mutex};
      all = connections;
    }
    for (const auto& c : all)
      c->end();
  }

  /// Runs `f` on the origin's own thread and waits for it.
  void on_thread(std::function<void()> f) {
    std::promise<void> done;
    asio::post(context, [&] {
      try {
        f();
        done.set_value();
      } catch (...) {
        done.set_exception(std::current_exception());
      }
    });
    done.get_future().get();
  }

  std::string name;
  std::uint16_t port = 0;
  asio::io_context context{1};
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work{
      asio::make_work_guard(context)};
  std::optional<tcp::acceptor> acceptor;
  std::set<std::shared_ptr<connection>> connections;
  std::map<std::string, int> counts;
  mutable std::mutex mutex;
  std::thread thread;
};

origin::origin(std::string name, std::uint16_t port) : impl_{std::make_shared<impl>()} {
  impl_->name = std::move(name);
  impl_->port = port == 0 ? free_port() : port;
  try {
    impl_->listen();
  } catch (const std::exception& e) {
    throw stack_error("the origin cannot listen on 127.0.0.1:" + std::to_string(impl_->port) + ": " +
                      e.what());
  }
  impl_->thread = std::thread{[i = impl_.get()] { i->context.run(); }};
}

origin::~origin() {
  impl_->on_thread([i = impl_.get()] {
    i->silence();
    i->acceptor.reset();
  });
  impl_->work.reset();
  impl_->context.stop();
  impl_->thread.join();
  // Handlers hold their connection and it holds us: whatever waits still has to hear that it is over.
  impl_->silence();
  impl_->context.restart();
  impl_->context.poll();
}

std::uint16_t origin::port() const { return impl_->port; }
void origin::down() {
  impl_->on_thread([i = impl_.get()] { i->silence(); });
}
void origin::up() {
  impl_->on_thread([i = impl_.get()] { i->listen(); });
}
int origin::count(const std::string& method) const {
  const std::lock_guard lock{impl_->mutex};
  const auto found = impl_->counts.find(method);
  return found == impl_->counts.end() ? 0 : found->second;
}
int origin::open_connections() const {
  const std::lock_guard lock{impl_->mutex};
  return static_cast<int>(impl_->connections.size());
}

// ---- visitors ----

namespace {

/// Runs `context` until `done`; false: the time is over.
bool drive(asio::io_context& context, const bool& done, clock::time_point deadline) {
  context.restart();
  while (!done && clock::now() < deadline)
    context.run_one_until(deadline);
  return done;
}

}  // namespace

answer visit(std::uint16_t port, const request& r) {
  const auto begun = clock::now();
  const auto deadline = begun + r.timeout;
  asio::io_context context{1};
  tcp::socket socket{context};
  beast::flat_buffer buffer;
  answer result;
  bool done = false;
  error_code failed;

  http::request<http::string_body> message{http::string_to_verb(r.method), r.target, 11};
  if (message.method() == http::verb::unknown)
    message.method_string(r.method);
  message.set(http::field::host, r.host);
  message.set(http::field::connection, "close");
  for (const auto& [name, value] : r.headers)
    message.set(name, value);
  message.body() = r.body;
  if (!r.body.empty() || message.method() == http::verb::post || message.method() == http::verb::put)
    message.prepare_payload();
  http::response_parser<http::string_body> parser;
  parser.body_limit(body_bytes_max);  // Beast 1.74 takes "none" for 0 when there is a Content-Length
  parser.skip(message.method() == http::verb::head);

  const auto end = [&](error_code e) {
    failed = e;
    done = true;
  };
  socket.async_connect(loopback(port), [&](error_code e) {
    if (e)
      return end(e);
    http::async_write(socket, message, [&](error_code written, std::size_t) {
      if (written)
        return end(written);
      http::async_read_header(socket, buffer, parser, [&](error_code head, std::size_t) {
        if (head)
          return end(head);
        take_head(result, parser.get());
        // A tunnel that was opened has no body.
        if (message.method() == http::verb::connect && result.status == 200)
          return end({});
        http::async_read(socket, buffer, parser, [&](error_code body, std::size_t) { end(body); });
      });
    });
  });
  if (!drive(context, done, deadline))
    result.error = "timeout";
  else if (failed)
    result.error = failed.message();
  if (parser.is_header_done())
    result.body = parser.get().body();
  error_code ignored;
  socket.close(ignored);
  context.restart();
  context.poll();  // the handlers refer to this frame
  result.took = std::chrono::duration_cast<milliseconds>(clock::now() - begun);
  return result;
}

struct open_visit::impl {
  asio::io_context context{1};
  ws::stream<tcp::socket> stream{context};
  beast::flat_buffer buffer;
  open_visit::kind what = open_visit::kind::websocket;
  answer head;
  bool open = false;

  // What the one reader has: it is started once and kept, so that a timeout loses nothing.
  bool reading = false;
  bool read_done = false;
  error_code read_error;
  std::array<char, 16 * 1024> raw{};
  std::size_t raw_bytes = 0;

  void start_read() {
    if (reading)
      return;
    reading = true;
    read_done = false;
    const auto took = [this](error_code e, std::size_t bytes) {
      read_error = e;
      raw_bytes = bytes;
      reading = false;
      read_done = true;
    };
    if (what == kind::websocket)
      stream.async_read(buffer, took);
    else
      stream.next_layer().async_read_some(asio::buffer(raw), took);
  }
};

open_visit::open_visit(kind k, std::uint16_t port, const std::string& host, const std::string& target,
                       milliseconds timeout)
    : impl_{std::make_unique<impl>()} {
  auto& i = *impl_;
  i.what = k;
  const auto deadline = clock::now() + timeout;
  bool done = false;
  error_code failed;
  const auto end = [&](error_code e) {
    failed = e;
    done = true;
  };
  ws::response_type handshake;
  http::response_parser<http::empty_body> parser;
  parser.skip(true);
  const std::string connect = "CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n";
  i.stream.next_layer().async_connect(loopback(port), [&](error_code e) {
    if (e)
      return end(e);
    if (k == kind::websocket)
      return i.stream.async_handshake(handshake, host, target, end);
    asio::async_write(i.stream.next_layer(), asio::buffer(connect), [&](error_code w, std::size_t) {
      if (w)
        return end(w);
      http::async_read_header(i.stream.next_layer(), i.buffer, parser,
                              [&](error_code head, std::size_t) { end(head); });
    });
  });
  const bool in_time = drive(i.context, done, deadline);
  if (!in_time) {
    i.head.error = "timeout";
    error_code ignored;
    i.stream.next_layer().close(ignored);
    i.context.restart();
    i.context.poll();
    return;
  }
  if (k == kind::websocket) {
    take_head(i.head, handshake);
    i.head.body = handshake.body();
  } else if (!failed) {
    take_head(i.head, parser.get());
  }
  if (failed)
    i.head.error = failed.message();
  i.open = !failed && i.head.status == (k == kind::websocket ? 101 : 200);
}

open_visit::~open_visit() {
  if (!impl_)
    return;
  error_code ignored;
  impl_->stream.next_layer().close(ignored);
  impl_->context.restart();
  impl_->context.poll();
}
open_visit::open_visit(open_visit&&) noexcept = default;

const answer& open_visit::head() const { return impl_->head; }
bool open_visit::open() const { return impl_->open; }

bool open_visit::send(const std::string& message) {
  auto& i = *impl_;
  if (!i.open)
    return false;
  error_code e;
  if (i.what == kind::websocket)
    i.stream.write(asio::buffer(message), e);
  else
    asio::write(i.stream.next_layer(), asio::buffer(message), e);
  i.open = !e;
  return i.open;
}

std::optional<std::string> open_visit::receive(milliseconds timeout) {
  auto& i = *impl_;
  if (!i.open)
    return std::nullopt;
  if (i.what == kind::connect && i.buffer.size() > 0) {  // came with the head
    std::string early = beast::buffers_to_string(i.buffer.data());
    i.buffer.consume(i.buffer.size());
    return early;
  }
  i.start_read();
  if (!drive(i.context, i.read_done, clock::now() + timeout))
    return std::nullopt;
  i.read_done = false;
  if (i.read_error) {
    i.open = false;
    return std::nullopt;
  }
  if (i.what == kind::connect)
    return std::string{i.raw.data(), i.raw_bytes};
  std::string message = beast::buffers_to_string(i.buffer.data());
  i.buffer.consume(i.buffer.size());
  return message;
}

bool open_visit::await_end(milliseconds timeout) {
  const auto deadline = clock::now() + timeout;
  while (impl_->open && clock::now() < deadline)
    receive(std::chrono::duration_cast<milliseconds>(deadline - clock::now()) + milliseconds{1});
  return !impl_->open;
}

struct continuous_visitor::impl {
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::vector<seen_answer> answers;
  bool stopping = false;
  std::thread thread;
};

continuous_visitor::continuous_visitor(std::uint16_t port, request r, milliseconds pause)
    : impl_{std::make_shared<impl>()} {
  impl_->thread = std::thread{[i = impl_.get(), port, r = std::move(r), pause] {
    std::unique_lock lock{i->mutex};
    while (!i->stopping) {
      lock.unlock();
      seen_answer one{clock::now(), visit(port, r)};
      lock.lock();
      i->answers.push_back(std::move(one));
      i->changed.notify_all();
      i->changed.wait_for(lock, pause, [i] { return i->stopping; });
    }
  }};
}

continuous_visitor::~continuous_visitor() { stop(); }

void continuous_visitor::stop() {
  {
    const std::lock_guard lock{impl_->mutex};
    impl_->stopping = true;
  }
  impl_->changed.notify_all();
  if (impl_->thread.joinable())
    impl_->thread.join();
}

std::vector<seen_answer> continuous_visitor::answers() const {
  const std::lock_guard lock{impl_->mutex};
  return impl_->answers;
}

std::optional<seen_answer> continuous_visitor::await(const std::function<bool(const answer&)>& satisfies,
                                                     milliseconds timeout, clock::time_point since) {
  const auto deadline = clock::now() + timeout;
  std::unique_lock lock{impl_->mutex};
  std::size_t next = 0;
  for (;;) {
    for (; next < impl_->answers.size(); ++next) {
      const auto& one = impl_->answers[next];
      if (one.at >= since && satisfies(one.what))
        return one;
    }
    if (impl_->changed.wait_until(lock, deadline) == std::cv_status::timeout)
      return std::nullopt;
  }
}

std::optional<seen_answer> continuous_visitor::await_status(int status, milliseconds timeout,
                                                            clock::time_point since) {
  return await([status](const answer& a) { return a.status == status; }, timeout, since);
}

}  // namespace warren::stack
