// test/support/tls_front.hpp -- TLS in front of a plain server: what an `https` target is. Knows nothing of Warren.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <thread>

#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>

#include "test/support/certificates.hpp"

namespace warren::test {

/// Listens on a free port of loopback with a certificate for "localhost" until it is destroyed, and passes what comes on
/// to 127.0.0.1:`behind`.
class tls_front {
public:
  explicit tls_front(std::uint16_t behind) : behind_{behind}, acceptor_{io_, {boost::asio::ip::address_v4::loopback(), 0}} {
    const auto us = authority{"the target's authority"}.issue("localhost");
    context_.use_certificate_chain(boost::asio::buffer(us.certificate));
    context_.use_private_key(boost::asio::buffer(us.key), boost::asio::ssl::context::pem);
    accept();
    thread_ = std::thread{[this] { io_.run(); }};
  }
  ~tls_front() {
    io_.stop();
    thread_.join();
  }
  tls_front(const tls_front&) = delete;
  tls_front& operator=(const tls_front&) = delete;
  std::string url() const { return "https://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port()); }

private:
  using tcp = boost::asio::ip::tcp;
  struct passage : std::enable_shared_from_this<passage> {
    passage(tls_front& o, tcp::socket s) : owner(o), outer(std::move(s), o.context_), inner(o.io_) {}
    void begin() {
      outer.async_handshake(boost::asio::ssl::stream_base::server, [self = shared_from_this()](auto refused) {
        if (refused) return;
        self->inner.async_connect({boost::asio::ip::address_v4::loopback(), self->owner.behind_}, [self](auto failed) {
          if (failed) return self->end();
          self->pass(self->outer, self->inner, self->inwards);
          self->pass(self->inner, self->outer, self->outwards);
        });
      });
    }
    using block = std::array<char, 16 * 1024>;
    template <class From, class To> void pass(From& from, To& to, block& with) {
      from.async_read_some(boost::asio::buffer(with), [self = shared_from_this(), &from, &to, &with](auto over, std::size_t n) {
        if (over) return self->end();
        boost::asio::async_write(to, boost::asio::buffer(with.data(), n), [self, &from, &to, &with](auto failed, std::size_t) {
          if (failed) self->end();
          else self->pass(from, to, with);
        });
      });
    }
    void end() {
      boost::system::error_code ignored;
      inner.close(ignored);
      outer.lowest_layer().close(ignored);
    }
    tls_front& owner;
    boost::asio::ssl::stream<tcp::socket> outer;
    tcp::socket inner;
    block inwards{}, outwards{};
  };
  void accept() {
    acceptor_.async_accept([this](auto error, tcp::socket socket) {
      if (error) return;
      std::make_shared<passage>(*this, std::move(socket))->begin();
      accept();
    });
  }

  const std::uint16_t behind_;
  boost::asio::io_context io_{1};
  boost::asio::ssl::context context_{boost::asio::ssl::context::tls_server};
  tcp::acceptor acceptor_;
  std::thread thread_;
};

}  // namespace warren::test
