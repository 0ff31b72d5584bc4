// test/e2e/visitors_edges_test.cpp -- visitors that speak HTTP as few do: what they send is written here byte by byte.
#include <array>
#include <functional>
#include <utility>

#include <boost/asio.hpp>

#include "test/e2e/expect.hpp"

using namespace warren::e2e;
using whole = warren::stack::stack;

namespace {

namespace asio = boost::asio;

/// Everything that comes back for these bytes until the other side is done, or falls silent.
std::string spoken(std::uint16_t port, const std::string& bytes) {
  asio::io_context io;
  asio::ip::tcp::socket socket{io};
  asio::steady_timer patience_ends{io, patience};
  std::string got;
  std::array<char, 4096> buffer{};
  std::function<void()> read = [&] {
    socket.async_read_some(asio::buffer(buffer), [&](boost::system::error_code error, std::size_t n) {
      got.append(buffer.data(), n);
      if (!error) return read();
      patience_ends.cancel();
    });
  };
  patience_ends.async_wait([&](boost::system::error_code error) {
    if (!error) socket.cancel();
  });
  socket.connect({asio::ip::address_v4::loopback(), port});
  asio::write(socket, asio::buffer(bytes));
  read();
  io.run();
  return got;
}

bool begins(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

}  // namespace

TEST_CASE("visitors of HTTP/1.0, and hosts in every spelling, are let in") {
  WARREN_NEEDS_SERVERS();
  whole s;
  s.add_agent("home").await_session();
  s.create_tunnel("web", "web.example.org", "home");
  s.create_tunnel("lost", "lost.example.org", "nowhere");
  REQUIRE(s.await_ready("web", patience));

  const auto old = spoken(s.visitor_port(), "GET / HTTP/1.0\r\nHost: web.example.org\r\n\r\n");
  INFO(old);
  CHECK(begins(old, "HTTP/1.0 200"));
  CHECK(old.find("x-origin: demo") != std::string::npos);
  const auto away = spoken(s.visitor_port(), "GET / HTTP/1.0\r\nHost: lost.example.org\r\n\r\n");
  INFO(away);
  CHECK(begins(away, "HTTP/1.0 503"));
  CHECK(away.find("Tunnel not online") != std::string::npos);
  CHECK(begins(spoken(s.visitor_port(), "GET / HTTP/1.0\r\nHost: nobody.example.org\r\n\r\n"), "HTTP/1.0 404"));

  for (const std::string host : {"web.example.org:", "WEB.example.org:", "web.example.org.:", "web.example.org.", "web.example.org:80"}) {
    const auto answered = spoken(s.visitor_port(), "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n");
    INFO(host << "\n" << answered);
    CHECK(begins(answered, "HTTP/1.1 200"));
  }
  for (const std::string host : {"nobody.example.org:", ":", "web.example.org::", "web.example.org:x"}) {
    const auto answered = spoken(s.visitor_port(), "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n");
    INFO(host << "\n" << answered);
    CHECK((begins(answered, "HTTP/1.1 404") || begins(answered, "HTTP/1.1 400")));
  }
}
