// services/warren-agent/proxy.cpp -- the HTTP/1.1 server that gateways open tunnels through.
#include "services/warren-agent/proxy.hpp"

#include <array>
#include <charconv>
#include <limits>
#include <optional>

#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "actors/core/protocol.hpp"

namespace warren::agent {

namespace beast = boost::beast;
namespace http = beast::http;

namespace {

constexpr std::size_t relay_buffer_bytes = 16 * 1024;  // per direction; one TLS record
constexpr auto accept_again_after = 50ms;              // out of descriptors: some connection has to end first
constexpr auto steady_now = [] { return std::chrono::steady_clock::now(); };

std::string answer(int status, std::string_view reason, std::string_view body, bool keep) {
  if (status == 204) return "HTTP/1.1 204 No Content\r\n\r\n";
  return fmt::format("HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{}\r\n{}", status, reason,
                     body.size(), keep ? "" : "connection: close\r\n", body);
}

struct tunnel_id {
  std::string_view project, uid;
  int rule = 0;
  std::int64_t generation = 0;
};

template <class Number>
bool read_number(std::string_view text, Number& out) {
  if (text.starts_with('-')) return false;  // "-0" is no index
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return !text.empty() && error == std::errc{} && end == text.data() + text.size();
}

/// `<project>/<tunnel uid>/<rule>/<generation>`
std::optional<tunnel_id> parse_tunnel_id(std::string_view text) {
  std::array<std::string_view, 4> part{};
  for (std::size_t i = 0; i < part.size(); ++i) {
    const auto slash = text.find('/');
    if ((slash == std::string_view::npos) != (i == 3)) return std::nullopt;
    part.at(i) = text.substr(0, slash);
    if (i < 3) text.remove_prefix(slash + 1);
  }
  tunnel_id out{part[0], part[1], 0, 0};
  if (out.project.empty() || out.uid.empty() || !read_number(part[2], out.rule) || !read_number(part[3], out.generation))
    return std::nullopt;
  return out;
}

}  // namespace

struct proxy::listener {
  explicit listener(asio::io_context& io) : acceptor(io), pause(io) {}
  tcp::acceptor acceptor;
  asio::steady_timer pause;
  std::chrono::steady_clock::time_point last_complaint{};
};

/// One connection of a gateway: requests until a CONNECT succeeds, then bytes both ways until both ends have finished.
class proxy::connection : public std::enable_shared_from_this<connection> {
public:
  connection(proxy& owner, tcp::socket socket)
      : owner_(&owner), gateway_(std::move(socket)), timer_(owner.io_), head_(owner.options_.head_bytes_max + relay_buffer_bytes) {}

  void start() {
    boost::system::error_code ignored;
    gateway_.set_option(tcp::no_delay{true}, ignored);
    gateway_.set_option(asio::socket_base::keep_alive{true}, ignored);
    read_head();
  }

  /// Nothing is called afterwards.
  void close() {
    if (owner_ == nullptr) return;
    auto& owner = *std::exchange(owner_, nullptr);
    boost::system::error_code ignored;
    timer_.cancel();
    gateway_.close(ignored);
    if (target_) target_->close();
    owner.ended(shared_from_this());
  }

  const std::optional<route>& where() const { return route_; }
  void move_to(const route& to) { route_ = to; }
  bool carries() const { return target_ != nullptr; }

private:
  // ---- requests ----

  void read_head() {
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(owner_->options_.head_bytes_max));
    parser_->skip(true);  // CONNECT and OPTIONS have no body that we would read
    timer_.expires_after(owner_->options_.head_timeout);
    timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (!ec && self->owner_ != nullptr) self->close();
    });
    http::async_read_header(gateway_, head_, *parser_, [self = shared_from_this()](boost::system::error_code ec, std::size_t) {
      if (self->owner_ == nullptr) return;
      if (!ec) return self->judge();
      if (ec == http::error::header_limit || ec == http::error::buffer_overflow)
        return self->refuse(431, "Request Header Fields Too Large", "the head is too large");
      if (ec.category() == http::make_error_code(http::error::bad_method).category() && ec != http::error::end_of_stream &&
          ec != http::error::partial_message)
        return self->refuse(400, "Bad Request", "this is no HTTP request");
      self->close();
    });
  }

  std::string_view only(beast::string_view name) const {
    const auto& fields = parser_->get();
    if (fields.count(name) != 1) return {};
    const auto value = fields.find(name)->value();
    return {value.data(), value.size()};
  }

  void judge() {
    const auto& request = parser_->get();
    const std::string_view asked{request.target().data(), request.target().size()};
    const auto id = only("x-warren-endpoint-id");
    const bool names_id = request.count("x-warren-endpoint-id") > 0;
    const bool ours = protocol::equal_constant_time(id, owner_->options_.public_key_hex);

    if (request.method() == http::verb::options) {
      if (asked != "*") return refuse(400, "Bad Request", "only OPTIONS * is answered");
      if (names_id && !ours) return refuse(421, "Misdirected Request", "another endpoint");
      return send(answer(204, {}, {}, true), parser_->get().keep_alive());
    }
    if (request.method() != http::verb::connect) return refuse(405, "Method Not Allowed", "CONNECT and OPTIONS * only");
    if (!ours) return refuse(403, "Forbidden", "another endpoint");

    const auto named = parse_tunnel_id(only("x-warren-tunnel"));
    if (!named) return refuse(403, "Forbidden", "no tunnel is named");
    if (named->project != owner_->options_.project) return refuse(403, "Forbidden", "not attached");
    const route wanted{{std::string{named->uid}, named->generation}, named->rule};
    const auto at = owner_->routes_.find(wanted);
    if (at == owner_->routes_.end()) return refuse(403, "Forbidden", "not attached");
    if (asked != at->second.authority()) return refuse(403, "Forbidden", "another target");

    route_ = wanted;
    owner_->by_route_[wanted].insert(shared_from_this());
    timer_.cancel();
    owner_->dialler_.dial(at->second, [self = shared_from_this(), to = at->second](std::shared_ptr<target_stream> stream, const std::string& words) {
      self->dialled(to, std::move(stream), words);
    });
  }

  void dialled(const target& to, std::shared_ptr<target_stream> stream, const std::string& words) {
    if (owner_ == nullptr) return;  // detached or stopped meanwhile
    if (!stream) {
      ++owner_->counts_.failed;
      owner_->on_dialled_(to, words);
      return send(answer(503, "Service Unavailable", words, false), false);
    }
    target_ = std::move(stream);
    ++owner_->counts_.established;
    auto& owner = *owner_;
    static constexpr std::string_view welcome = "HTTP/1.1 200 OK\r\n\r\n";
    asio::async_write(gateway_, asio::buffer(welcome), [self = shared_from_this()](boost::system::error_code ec, std::size_t) {
      if (self->owner_ == nullptr) return;
      if (ec) return self->close();
      self->relay();
    });
    owner.on_dialled_(to, {});
  }

  void refuse(int status, std::string_view reason, std::string_view body) {
    ++owner_->counts_.refused;
    send(answer(status, reason, body, false), false);
  }

  void send(std::string text, bool keep) {
    auto kept = std::make_shared<std::string>(std::move(text));
    asio::async_write(gateway_, asio::buffer(*kept), [self = shared_from_this(), kept, keep](boost::system::error_code ec, std::size_t) {
      if (self->owner_ == nullptr) return;
      if (ec || !keep) return self->linger(!ec);
      self->read_head();
    });
  }

  /// Closing with unread bytes would reset the connection and take the answer with it: the far end closes first,
  /// within a second.
  void linger(bool answered) {
    if (!answered) return close();
    boost::system::error_code ignored;
    gateway_.shutdown(tcp::socket::shutdown_send, ignored);
    timer_.expires_after(1s);
    timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (!ec && self->owner_ != nullptr) self->close();
    });
    drain();
  }
  void drain() {
    gateway_.async_read_some(asio::buffer(up_), [self = shared_from_this()](boost::system::error_code ec, std::size_t) {
      if (self->owner_ == nullptr) return;
      if (ec) return self->close();
      self->drain();
    });
  }

  // ---- bytes ----

  void relay() {
    parser_.reset();
    last_bytes_ = steady_now();
    watch_idleness();
    target_to_gateway();
    if (head_.size() == 0) return gateway_to_target();
    // what came in the same segment as the request
    target_->write_all(head_.data(), [self = shared_from_this()](boost::system::error_code ec, std::size_t) {
      if (self->owner_ == nullptr) return;
      if (ec) return self->close();
      self->head_.consume(self->head_.size());
      self->gateway_to_target();
    });
  }

  void watch_idleness() {
    timer_.expires_at(last_bytes_ + owner_->options_.idle_timeout);
    timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (ec || self->owner_ == nullptr) return;
      if (steady_now() - self->last_bytes_ >= self->owner_->options_.idle_timeout) return self->close();
      self->watch_idleness();
    });
  }

  void gateway_to_target() {
    gateway_.async_read_some(asio::buffer(up_), [self = shared_from_this()](boost::system::error_code ec, std::size_t n) {
      if (self->owner_ == nullptr) return;
      self->last_bytes_ = steady_now();
      if (ec == asio::error::eof) {
        self->target_->finish_writing();
        return self->one_way_done(self->up_done_);
      }
      if (ec) return self->close();
      self->target_->write_all(asio::buffer(self->up_.data(), n), [self](boost::system::error_code failed, std::size_t) {
        if (self->owner_ == nullptr) return;
        if (failed) return self->close();
        self->gateway_to_target();
      });
    });
  }

  void target_to_gateway() {
    target_->read_some(asio::buffer(down_), [self = shared_from_this()](boost::system::error_code ec, std::size_t n) {
      if (self->owner_ == nullptr) return;
      self->last_bytes_ = steady_now();
      if (ec == asio::error::eof) {
        boost::system::error_code ignored;
        self->gateway_.shutdown(tcp::socket::shutdown_send, ignored);
        return self->one_way_done(self->down_done_);
      }
      if (ec) return self->close();
      asio::async_write(self->gateway_, asio::buffer(self->down_.data(), n), [self](boost::system::error_code failed, std::size_t) {
        if (self->owner_ == nullptr) return;
        if (failed) return self->close();
        self->target_to_gateway();
      });
    });
  }

  void one_way_done(bool& done) {
    done = true;
    if (up_done_ && down_done_) close();
  }

  proxy* owner_;  // null: closed
  tcp::socket gateway_;
  std::shared_ptr<target_stream> target_;
  asio::steady_timer timer_;
  beast::flat_buffer head_;
  std::optional<http::request_parser<http::empty_body>> parser_;
  std::optional<route> route_;
  std::chrono::steady_clock::time_point last_bytes_{};
  bool up_done_ = false, down_done_ = false;
  std::array<char, relay_buffer_bytes> up_, down_;
};

proxy::proxy(asio::io_context& io, dialler& d, proxy_options options, dialled_callback on_dialled)
    : io_(io), dialler_(d), options_(std::move(options)), on_dialled_(std::move(on_dialled)) {
  for (const auto& at : options_.listen) {
    auto one = std::make_unique<listener>(io_);
    try {
      one->acceptor.open(at.protocol());
      one->acceptor.set_option(tcp::acceptor::reuse_address{true});
      if (at.address().is_v6()) one->acceptor.set_option(asio::ip::v6_only{true});
      one->acceptor.bind(at);
      one->acceptor.listen(1024);
    } catch (const boost::system::system_error& e) {
      throw boost::system::system_error{e.code(), fmt::format("cannot listen on {}:{}", at.address().to_string(), at.port())};
    }
    listeners_.push_back(std::move(one));
  }
  for (const auto& one : listeners_) accept(*one);
}

proxy::~proxy() {
  *alive_ = false;
  stop_accepting();
  close_all();
}

void proxy::accept(listener& on) {
  on.acceptor.async_accept([this, &on, alive = alive_](boost::system::error_code ec, tcp::socket socket) {
    if (!*alive || !on.acceptor.is_open()) return;
    if (ec) {
      // Out of descriptors or memory, or the far end has gone already: never a reason to stop.
      if (steady_now() - on.last_complaint > 1s) {
        on.last_complaint = steady_now();
        spdlog::warn("cannot accept: {}", ec.message());
      }
      on.pause.expires_after(accept_again_after);
      on.pause.async_wait([this, &on, alive](boost::system::error_code cancelled) {
        if (*alive && !cancelled && on.acceptor.is_open()) accept(on);
      });
      return;
    }
    ++counts_.accepted;
    if (connections_.size() >= options_.connections_max) {
      refuse_beyond_limit(std::move(socket));
    } else {
      auto one = std::make_shared<connection>(*this, std::move(socket));
      connections_.insert(one);
      one->start();
    }
    accept(on);
  });
}

void proxy::refuse_beyond_limit(tcp::socket socket) {
  ++counts_.refused;
  static const std::string text = answer(503, "Service Unavailable", "too many connections", false);
  boost::system::error_code ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(text), ignored);  // fits into an empty send buffer, or is not worth waiting for
}

void proxy::ended(const std::shared_ptr<connection>& one) {
  if (one->where()) {
    const auto at = by_route_.find(*one->where());
    if (at != by_route_.end()) {
      at->second.erase(one);
      if (at->second.empty()) by_route_.erase(at);
    }
  }
  connections_.erase(one);
}

void proxy::attach(const attachment_set& set, const touched_keys& touched) {
  std::set<attachment_key> keys;
  if (touched) {
    keys.insert(touched->begin(), touched->end());
  } else {
    for (const auto& [at, to] : routes_) keys.insert(at.key);
    for (const auto& [key, attachment] : set.all()) keys.insert(key);
  }

  std::vector<std::pair<route, target>> gone;  // with where it led
  for (const auto& key : keys) {
    std::map<route, target> next;
    if (const auto* attachment = set.find(key.tunnel_uid, key.tunnel_generation))
      for (const auto& rule : attachment->rules())
        if (auto to = parse_target(rule.target(), rule.tls_verify())) next.emplace(route{key, rule.index()}, std::move(*to));
    auto at = routes_.lower_bound({key, std::numeric_limits<int>::min()});
    while (at != routes_.end() && at->first.key == key) {
      const auto still = next.find(at->first);
      if ((still == next.end() || still->second != at->second) && by_route_.contains(at->first)) gone.emplace_back(*at);
      at = routes_.erase(at);
    }
    routes_.merge(next);
  }

  for (const auto& [at, led_to] : gone) {
    auto open = std::move(by_route_.extract(at).mapped());
    const route* heir = nullptr;
    for (auto other = routes_.lower_bound({{at.key.tunnel_uid, 0}, 0});
         other != routes_.end() && other->first.key.tunnel_uid == at.key.tunnel_uid; ++other)
      if (other->first.rule == at.rule && other->second == led_to) heir = &other->first;
    for (const auto& one : open) {
      if (heir != nullptr) {
        one->move_to(*heir);
        by_route_[*heir].insert(one);
      } else {
        ++counts_.ended_by_detach;
        one->close();
      }
    }
  }
}

void proxy::stop_accepting() {
  boost::system::error_code ignored;
  for (const auto& one : listeners_) {
    one->pause.cancel();
    one->acceptor.close(ignored);
  }
}

void proxy::close_all() {
  const auto open = connections_;
  for (const auto& one : open) one->close();
}

proxy_counts proxy::counts() const {
  auto out = counts_;
  out.open = connections_.size();
  for (const auto& [at, open] : by_route_)
    for (const auto& one : open)
      if (one->carries()) ++out.tunnels;
  return out;
}

std::vector<tcp::endpoint> proxy::listening() const {
  std::vector<tcp::endpoint> out;
  for (const auto& one : listeners_) {
    boost::system::error_code ec;
    const auto at = one->acceptor.local_endpoint(ec);
    if (!ec) out.push_back(at);
  }
  return out;
}

}  // namespace warren::agent
