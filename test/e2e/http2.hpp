// test/e2e/http2.hpp -- a visitor that speaks HTTP/2 in clear text, without asking first. Knows nothing of Warren.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <curl/curl.h>

#include "test/support/http.hpp"

namespace warren::e2e {

/// Requests to 127.0.0.1:`port`, each on a connection of its own: libcurl 7.88 cannot use one of these twice. Not
/// thread-safe.
class http2_visitor {
public:
  explicit http2_visitor(std::uint16_t port) : port_{port}, curl_{curl_easy_init()} {}
  ~http2_visitor() { curl_easy_cleanup(curl_); }
  http2_visitor(const http2_visitor&) = delete;
  http2_visitor& operator=(const http2_visitor&) = delete;

  stack::answer visit(const stack::request& r) {
    stack::answer out;
    curl_easy_reset(curl_);
    const auto url = "http://127.0.0.1:" + std::to_string(port_) + r.target;
    const auto host = "host: " + r.host;
    auto* headers = curl_slist_append(nullptr, host.c_str());
    curl_easy_setopt(curl_, CURLOPT_URL, url.c_str());
    curl_easy_setopt(curl_, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl_, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE));
    curl_easy_setopt(curl_, CURLOPT_TIMEOUT_MS, static_cast<long>(r.timeout.count()));
    curl_easy_setopt(curl_, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl_, CURLOPT_FORBID_REUSE, 1L);
    if (r.method == "HEAD") {
      curl_easy_setopt(curl_, CURLOPT_NOBODY, 1L);
    } else {
      if (!r.body.empty()) {
        curl_easy_setopt(curl_, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(r.body.size()));
        curl_easy_setopt(curl_, CURLOPT_POSTFIELDS, r.body.data());
      }
      curl_easy_setopt(curl_, CURLOPT_CUSTOMREQUEST, r.method.c_str());
    }
    curl_easy_setopt(curl_, CURLOPT_WRITEFUNCTION, &append);
    curl_easy_setopt(curl_, CURLOPT_WRITEDATA, &out.body);
    curl_easy_setopt(curl_, CURLOPT_HEADERFUNCTION, &take_header);
    curl_easy_setopt(curl_, CURLOPT_HEADERDATA, &out);
    const auto begun = stack::clock::now();
    const auto result = curl_easy_perform(curl_);
    out.took = std::chrono::duration_cast<stack::milliseconds>(stack::clock::now() - begun);
    long status = 0, version = 0;
    curl_easy_getinfo(curl_, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(curl_, CURLINFO_HTTP_VERSION, &version);
    curl_slist_free_all(headers);
    if (result != CURLE_OK) out.error = curl_easy_strerror(result);
    else if (version != CURL_HTTP_VERSION_2_0) out.error = "the answer is not HTTP/2";
    out.status = static_cast<int>(status);
    return out;
  }

private:
  static std::size_t append(char* data, std::size_t size, std::size_t count, void* into) {
    static_cast<std::string*>(into)->append(data, size * count);
    return size * count;
  }
  static std::size_t take_header(char* data, std::size_t size, std::size_t count, void* into) {
    const std::string_view line{data, size * count};
    if (const auto colon = line.find(':'); colon != std::string_view::npos) {
      std::string name{line.substr(0, colon)};
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      auto value = line.substr(colon + 1);
      value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
      value = value.substr(0, value.find_first_of("\r\n"));
      static_cast<stack::answer*>(into)->headers[name] = value;
    }
    return line.size();
  }

  std::uint16_t port_;
  CURL* curl_;
};

/// One connection, frame by frame, and streams on it one after another, each to a host of its own. Knows as much of
/// HTTP/2 as that takes. Blocks for 5 s at most.
class http2_connection {
public:
  explicit http2_connection(std::uint16_t port) : fd_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
    timeval limit{5, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) return;
    write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0, ""));
  }
  ~http2_connection() { ::close(fd_); }
  http2_connection(const http2_connection&) = delete;
  http2_connection& operator=(const http2_connection&) = delete;

  /// GET / of a host: the answer's body, after "200 " or "404 ", the two that the static table has; "" if none came.
  std::string get(const std::string& host) {
    stream_ = static_cast<char>(stream_ + 2);
    // :method GET, :scheme http, :path /; :authority literal and never indexed.
    write(frame(headers, end_headers | end_stream, stream_, "\x82\x86\x84" + literal('\x11', host)));
    auto out = head();
    while (!ended_) {
      const auto more = receive();
      if (!more) return "";
      out += *more;
    }
    return out;
  }
  /// Whether the stream is answered with 200; send() and receive() go through it from then on.
  bool connect(const std::string& authority) {
    stream_ = static_cast<char>(stream_ + 2);
    write(frame(headers, end_headers, stream_, literal('\x12', "CONNECT") + literal('\x11', authority)));
    return head() == "200 ";
  }
  void send(const std::string& bytes) { write(frame(data, 0, stream_, bytes)); }
  /// The next bytes from the other side; empty: none came, or it ended.
  std::optional<std::string> receive() { return next(data); }

private:
  static constexpr char data = 0, headers = 1, reset = 3, settings = 4, go_away = 7;
  static constexpr char end_stream = 1, end_headers = 4, acknowledges = 1;

  static std::string literal(char name, const std::string& value) {
    return std::string{name} + static_cast<char>(value.size()) + value;
  }
  static std::string frame(char type, char flags, char stream, const std::string& payload) {
    std::string out;
    for (const int shift : {16, 8, 0}) out += static_cast<char>(payload.size() >> shift & 0xff);
    return out + type + flags + std::string(3, '\0') + stream + payload;
  }
  std::string head() {
    ended_ = false;
    const auto fields = next(headers);
    if (!fields || fields->empty()) return "";
    return (*fields)[0] == '\x88' ? "200 " : (*fields)[0] == '\x8d' ? "404 " : "";
  }
  void write(const std::string& bytes) { (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  bool read(std::string& into, std::size_t n) {
    into.resize(n);
    for (std::size_t have = 0; have < n;) {
      const auto got = ::recv(fd_, into.data() + have, n - have, 0);
      if (got <= 0) return false;
      have += static_cast<std::size_t>(got);
    }
    return true;
  }
  std::optional<std::string> next(char wanted) {
    std::string head, payload;
    while (read(head, 9)) {
      const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(head[i])); };
      if (!read(payload, byte(0) << 16 | byte(1) << 8 | byte(2))) return {};
      if (head[3] == go_away) return {};
      if (head[3] == settings && (head[4] & acknowledges) == 0) write(frame(settings, acknowledges, 0, ""));
      if (head[8] != stream_) continue;  // the connection's, or the rest of an earlier stream's
      if ((head[3] == data || head[3] == headers) && (head[4] & end_stream) != 0) ended_ = true;
      if (head[3] == wanted) return payload;
      if (head[3] == reset) return {};
    }
    return {};
  }

  int fd_;
  char stream_ = -1;
  bool ended_ = false;
};

}  // namespace warren::e2e
