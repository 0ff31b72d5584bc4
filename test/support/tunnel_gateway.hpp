// test/support/tunnel_gateway.hpp -- stands in for the tunnel gateway that an Envoy's `connector-tunnel` listener dials:
// takes CONNECT, and passes bytes to the target by itself. Knows nothing of Warren.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

namespace warren::test {

/// Listens on a free port of loopback until it is destroyed. Thread-safe.
class tunnel_gateway {
public:
  struct seen {
    std::string endpoint_id, target;
  };

  tunnel_gateway() : acceptor_{io_, {boost::asio::ip::address_v4::loopback(), 0}}, port_{acceptor_.local_endpoint().port()} {
    accept();
    thread_ = std::thread{[this] { io_.run(); }};
  }
  ~tunnel_gateway() {
    io_.stop();
    thread_.join();
  }
  tunnel_gateway(const tunnel_gateway&) = delete;
  tunnel_gateway& operator=(const tunnel_gateway&) = delete;

  std::uint16_t port() const { return port_; }
  /// Every CONNECT so far.
  std::vector<seen> connects() const {
    const std::lock_guard lock{mutex_};
    return seen_;
  }

private:
  using tcp = boost::asio::ip::tcp;
  struct passage : std::enable_shared_from_this<passage> {
    passage(tunnel_gateway& o, tcp::socket s) : owner(o), visitor(std::move(s)), target(o.io_) {}
    void begin() {
      boost::beast::http::async_read_header(visitor, head_bytes, head, [self = shared_from_this()](auto error, std::size_t) {
        if (!error) self->dial();
      });
    }
    void dial() {
      const auto& request = head.get();
      const std::string to{request.target()};
      {
        const std::lock_guard lock{owner.mutex_};
        owner.seen_.push_back({std::string{request["x-iroh-endpoint-id"]}, to});
      }
      const auto colon = to.rfind(':');
      boost::system::error_code wrong;
      const auto ip = boost::asio::ip::make_address(to.substr(0, colon), wrong);
      if (wrong || colon == std::string::npos || request.method() != boost::beast::http::verb::connect)
        return say("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", false);
      target.async_connect({ip, static_cast<std::uint16_t>(std::stoi(to.substr(colon + 1)))},
                           [self = shared_from_this()](auto error) {
                             if (error) self->say("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", false);
                             else self->say("HTTP/1.1 200 OK\r\n\r\n", true);
                           });
    }
    void say(const char* answer, bool go_on) {
      said = answer;
      boost::asio::async_write(visitor, boost::asio::buffer(said), [self = shared_from_this(), go_on](auto error, std::size_t) {
        if (error || !go_on) return;
        // What came behind the head belongs to the target.
        const auto early = self->head_bytes.data();
        boost::asio::async_write(self->target, early, [self](auto failed, std::size_t) {
          if (failed) return;
          self->pass(self->visitor, self->target, self->to_target);
          self->pass(self->target, self->visitor, self->to_visitor);
        });
      });
    }
    using block = std::array<char, 16 * 1024>;
    void pass(tcp::socket& from, tcp::socket& to, block& with) {
      from.async_read_some(boost::asio::buffer(with), [self = shared_from_this(), &from, &to, &with](auto error, std::size_t n) {
        boost::system::error_code ignored;
        if (error) {
          to.shutdown(tcp::socket::shutdown_send, ignored);
          return;
        }
        boost::asio::async_write(to, boost::asio::buffer(with.data(), n), [self, &from, &to, &with](auto failed, std::size_t) {
          if (!failed) self->pass(from, to, with);
        });
      });
    }

    tunnel_gateway& owner;
    tcp::socket visitor, target;
    boost::beast::flat_buffer head_bytes{64 * 1024};
    boost::beast::http::request_parser<boost::beast::http::empty_body> head;
    std::string said;
    block to_target, to_visitor;
  };

  void accept() {
    acceptor_.async_accept([this](auto error, tcp::socket socket) {
      if (error) return;
      std::make_shared<passage>(*this, std::move(socket))->begin();
      accept();
    });
  }

  mutable std::mutex mutex_;
  std::vector<seen> seen_;
  boost::asio::io_context io_{1};
  tcp::acceptor acceptor_;
  const std::uint16_t port_;
  std::thread thread_;
};

}  // namespace warren::test
