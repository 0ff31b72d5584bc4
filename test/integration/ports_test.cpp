// test/integration/ports_test.cpp -- warrend whose addresses cannot be had: it says so and takes nothing.
#include <catch2/catch.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test/support/stack.hpp"

using namespace warren;
using namespace std::chrono_literals;
using whole = stack::stack;

namespace {

/// Somebody else's program, as far as warrend knows.
class other_listener {
public:
  explicit other_listener(std::uint16_t port) : fd_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
    const int on = 1;
    ::setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
    REQUIRE(::listen(fd_, 8) == 0);
  }
  ~other_listener() { ::close(fd_); }
  other_listener(const other_listener&) = delete;
  other_listener& operator=(const other_listener&) = delete;

private:
  int fd_;
};

struct ending {
  stack::exit_status how;
  std::string said;
};
ending start_with(whole& s, const stack::settings& environment) {
  s.launch_warrend(environment);
  const auto how = s.warrend().wait(20s);
  REQUIRE(how);
  return {*how, s.at(0).log()};
}

}  // namespace

TEST_CASE("an instance whose address cannot be had says which one, and takes nothing upon itself") {
  if (!stack::has_shared_postgres()) {
    WARN("skipped: WARREN_TEST_PG names no PostgreSQL");
    return;
  }
  whole s{{.with_envoy = false, .start = false}};
  const auto port = stack::free_port();
  const auto there = "127.0.0.1:" + std::to_string(port);
  const auto taken = there + " cannot be listened on: Address already in use";
  {
    const other_listener other{port};
    struct row { const char* variable; const char* key; };
    for (const auto& r : {row{"WARREN_ADMIN_LISTEN", "admin.listen"}, row{"WARREN_XDS_LISTEN", "xds.listen"},
                          row{"WARREN_HTTP_LISTEN", "http.listen"}, row{"WARREN_HOOK_LISTEN", "hook.listen"}}) {
      INFO(r.key);
      const auto e = start_with(s, {{r.variable, there}});
      CHECK(e.how.signal == 0);
      CHECK(e.how.code == 1);
      CHECK(e.said == std::string{"warrend: "} + r.key + " " + taken + "\n");
    }
  }
  SECTION("one address for two") {
    const auto e = start_with(s, {{"WARREN_ADMIN_LISTEN", there}, {"WARREN_HTTP_LISTEN", there}});
    CHECK(e.how.code == 1);
    CHECK(e.said == "warrend: http.listen " + there + " cannot be listened on: admin.listen has it already\n");
  }
  SECTION("an address of another machine") {
    const auto e = start_with(s, {{"WARREN_HTTP_LISTEN", "192.0.2.1:" + std::to_string(port)}});
    CHECK(e.how.code == 1);
    CHECK(e.said.find("http.listen 192.0.2.1:") != std::string::npos);
    CHECK(e.said.find("Cannot assign requested address") != std::string::npos);
  }
  SECTION("plaintext beyond this machine") {
    const auto e = start_with(s, {{"WARREN_ADMIN_LISTEN", "0.0.0.0:" + std::to_string(port)}});
    CHECK(e.how.code == 2);
    CHECK(e.said.find("admin.listen must be on loopback or a unix socket") != std::string::npos);
  }
  SECTION("taken only when the servers themselves come: everybody's address and one's own, with one port") {
    const auto e = start_with(s, {{"WARREN_XDS_LISTEN", "0.0.0.0:" + std::to_string(port)}, {"WARREN_HTTP_LISTEN", there}});
    CHECK(e.how.signal == 0);
    CHECK(e.how.code == 1);
    CHECK(e.said.find("warrend: http.listen: " + there + ": bind: Address already in use") != std::string::npos);
  }
  SECTION("a unix socket where there is no folder") {
    const auto e = start_with(s, {{"WARREN_ADMIN_LISTEN", "unix:" + (s.directory() / "nowhere" / "admin").string()}});
    CHECK(e.how.signal == 0);
    CHECK(e.how.code == 1);
    CHECK(e.said.find("warrend: admin.listen: cannot listen on unix:") != std::string::npos);
  }
  CHECK(s.sql("SELECT count(*) FROM instance") == "0\n");
  CHECK(s.sql("SELECT count(*) FROM partition WHERE owner IS NOT NULL AND owner <> 0") == "0\n");
  CHECK(s.sql("SELECT coalesce(max(epoch % 4294967296), 0) FROM partition") == "0\n");  // nobody ever took one

  s.start_warrend();  // and with addresses that can be had, it serves
  CHECK(s.ctl({"instance", "list", "-o", "name"}).ok());
}
