// test/integration/telemetry_test.cpp -- metrics, readiness over HTTP, and lines of the log.
#include <catch2/catch.hpp>

#include <sstream>
#include <string>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <spdlog/sinks/ostream_sink.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "services/telemetry/health.hpp"
#include "services/telemetry/logging.hpp"
#include "services/telemetry/metrics.hpp"

using namespace warren;

namespace {
std::string exchange(std::uint16_t port, const std::string& request);
google::protobuf::Struct json(const std::string& text);
}  // namespace

TEST_CASE("counts appear under their name and label") {
  telemetry::metrics metrics;
  metrics.add("warren_conflicts_total", "tunnel_spec");
  metrics.add("warren_conflicts_total", "tunnel_spec", 2);
  metrics.set("warren_bus_connected", 1);
  metrics.observe("warren_conflict_retry_seconds", 0.02);
  const auto text = metrics.text();
  CHECK(text.find("warren_conflicts_total{write=\"tunnel_spec\"} 3") != std::string::npos);
  CHECK(text.find("warren_bus_connected 1") != std::string::npos);
  CHECK(text.find("warren_conflict_retry_seconds_count 1") != std::string::npos);
  CHECK(text.find("warren_reconcile_errors_total 0") != std::string::npos);
}

TEST_CASE("readiness says what is missing and why") {
  telemetry::health health;
  telemetry::metrics metrics;
  telemetry::http_server server{{}, health, [&] { return metrics.text(); }};
  CHECK(exchange(server.port(), "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").find("HTTP/1.1 200") == 0);
  CHECK(exchange(server.port(), "GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n").find("HTTP/1.1 503") == 0);
  health.set("database", true);
  health.set("bus", false, "no \"server\"\n");
  const auto bad = exchange(server.port(), "GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n");
  CHECK(bad.find("HTTP/1.1 503") == 0);
  const auto body = json(bad.substr(bad.find("\r\n\r\n") + 4));
  CHECK(body.fields().at("dependencies").struct_value().fields().at("bus").struct_value().fields().at("reason").string_value() ==
        "no \"server\"\n");
  health.set("bus", true);
  CHECK(exchange(server.port(), "GET /readyz?x=1 HTTP/1.1\r\nConnection: close\r\n\r\n").find("HTTP/1.1 200") == 0);
  CHECK(exchange(server.port(), "GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").find("warren_bus_connected") != std::string::npos);
}

TEST_CASE("the health server answers only what it knows, and reads only so much") {
  telemetry::health health;
  telemetry::http_server server{{}, health, [] { return std::string{}; }};
  CHECK(exchange(server.port(), "GET /etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n").find("HTTP/1.1 404") == 0);
  CHECK(exchange(server.port(), "POST /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").find("HTTP/1.1 405") == 0);
  CHECK(exchange(server.port(), "garbage\r\n\r\n").empty());
  CHECK(exchange(server.port(), "GET /healthz HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n").empty());
  CHECK_THROWS_AS(telemetry::http_server({"127.0.0.1", server.port()}, health, [] { return std::string{}; }), std::runtime_error);
}

TEST_CASE("a line of the log is one JSON object whatever is in it") {
  std::ostringstream lines;
  REQUIRE(telemetry::set_up_logging("one", "info", telemetry::log_format::json,
                                    std::make_shared<spdlog::sinks::ostream_sink_mt>(lines)));
  telemetry::log(spdlog::level::warn, "quo\"te", {{"tunnel", "a\nb"}, {"epoch", 7}});
  const auto line = json(lines.str());
  CHECK(line.fields().at("msg").string_value() == "quo\"te");
  CHECK(line.fields().at("level").string_value() == "warn");
  CHECK(line.fields().at("instance").string_value() == "one");
  CHECK(line.fields().at("tunnel").string_value() == "a\nb");
  CHECK(line.fields().at("epoch").number_value() == 7);
  CHECK(line.fields().at("ts").string_value().size() == std::string{"2026-01-01T00:00:00.000Z"}.size());

  lines.str("");
  telemetry::log(spdlog::level::debug, "quiet");
  CHECK(lines.str().empty());
  CHECK(telemetry::set_log_level("debug"));
  CHECK_FALSE(telemetry::set_log_level("loud"));
  telemetry::log(spdlog::level::debug, "heard");
  CHECK(lines.str().find("heard") != std::string::npos);
}

TEST_CASE("a repeated line comes once a second, with how many were left out") {
  using namespace std::chrono_literals;
  telemetry::once_a_second limit;
  const std::chrono::steady_clock::time_point start{1h};
  CHECK(limit.allow(start) == 0);
  CHECK(limit.allow(start + 1ms) == -1);
  CHECK(limit.allow(start + 999ms) == -1);
  CHECK(limit.allow(start + 1s) == 2);
}

namespace {

std::string exchange(std::uint16_t port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
  CHECK(send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size()));
  std::string out;
  char buffer[4096];
  for (ssize_t n = 0; (n = recv(fd, buffer, sizeof buffer, 0)) > 0;) out.append(buffer, static_cast<std::size_t>(n));
  close(fd);
  return out;
}

google::protobuf::Struct json(const std::string& text) {
  google::protobuf::Struct out;
  REQUIRE(google::protobuf::util::JsonStringToMessage(text, &out).ok());
  return out;
}

}  // namespace
