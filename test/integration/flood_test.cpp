// test/integration/flood_test.cpp -- somebody on the bus says far more than anybody could mean: a real warrend goes on
// for everybody else. Counts only; nothing here is timed.
#include <catch2/catch.hpp>

#include <fstream>
#include <map>
#include <string>

#include "actors/core/ids.hpp"
#include "actors/core/subjects.hpp"
#include "services/bus/connection.hpp"
#include "test/support/stack.hpp"
#include "warren/bus/v1/bus.pb.h"

using namespace warren;
namespace busv1 = warren::bus::v1;

namespace {

constexpr long mib = 1024;  // in kB, as the kernel counts

long resident_kb(pid_t pid) {
  std::ifstream status{"/proc/" + std::to_string(pid) + "/status"};
  for (std::string word; status >> word;)
    if (word == "VmRSS:") {
      long kb = 0;
      status >> kb;
      return kb;
    }
  return 0;
}

std::string epochs(const stack::stack& s) { return s.sql("SELECT id, owner, epoch FROM partition ORDER BY id"); }

/// A project of another partition.
std::string elsewhere(const std::string& than, int partitions) {
  for (int n = 0;; ++n) {
    auto name = "quiet-" + std::to_string(n);
    if (partition_of(name, partitions) != partition_of(than, partitions)) return name;
  }
}

}  // namespace

TEST_CASE("a flood of hellos for names that nobody has is counted, and hurts nobody") {
  constexpr int hellos = 100'000, tunnels = 20;
  stack::stack s{{.with_envoy = false}};
  const auto& loud = s.options().project;
  const auto quiet = elsewhere(loud, s.options().partitions);
  const auto loud_partition = partition_of(loud, s.options().partitions);
  s.add_agent("home").await_session();

  bus::connection_options o;
  o.urls = {s.nats_url()};
  o.user = "warren";
  o.password = s.nats_password();
  o.name = "flood";
  const auto link = bus::connection::open(o);
  busv1::HelloRequest hello;
  hello.set_version(1);
  hello.set_nonce(std::string(16, 'n'));
  const auto payload = hello.SerializeAsString();

  const auto before = epochs(s);
  const auto memory_before = resident_kb(s.warrend().pid());
  REQUIRE(memory_before > 0);
  const auto dropped_before = s.metric("warren_bus_dropped_total");
  for (int n = 0; n < hellos; ++n) {
    link->publish(bus::hello_subject(loud_partition, loud, bus::kind_connector, "m" + std::to_string(n)), payload, false,
                  "_INBOX.flood." + std::to_string(n));
    if (n % 5000 == 0) REQUIRE(link->flush(stack::milliseconds{10'000}));
    if (n % (hellos / tunnels) != 0) continue;
    const auto name = "t" + std::to_string(n);
    const auto made = s.ctl({"tunnel", "create", name, "--hostname", name + ".example.com", "--connector", "home", "--target",
                             "http://127.0.0.1:1", "--gateway-class", "default", "--project", quiet});
    INFO(made.err);
    CHECK(made.code == 0);
  }
  REQUIRE(link->flush(stack::milliseconds{10'000}));
  // Each of them was counted: unknown, or more than may wait.
  CHECK(stack::poll_until([&] { return s.metric("warren_bus_dropped_total") - dropped_before >= hellos; },
                          stack::milliseconds{30'000}));
  CHECK(s.metric("warren_bus_dropped_total", "unknown") > 0);
  CHECK(resident_kb(s.warrend().pid()) - memory_before < 100 * mib);
  CHECK(epochs(s) == before);  // no partition was lost, not even for a moment
  CHECK(s.readyz().value("ready", false));
  CHECK(s.warrend().running());
  // The flooded project itself goes on as well.
  const auto made = s.ctl({"tunnel", "create", "after", "--hostname", "after.example.com", "--connector", "home", "--target",
                           "http://127.0.0.1:1", "--gateway-class", "default"});
  INFO(made.err);
  CHECK(made.code == 0);
  link->close();
}
