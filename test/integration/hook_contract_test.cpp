// test/integration/hook_contract_test.cpp -- the extension hook asked by an independent client with Envoy's complete
// contract (test/contract, Node.js). Needs WARREN_NODE_MODULES, which ./check and test/contract/run set; without it, it says so.
#include <catch2/catch.hpp>

#include <cstdlib>

#include "services/hook/server.hpp"
#include "services/telemetry/metrics.hpp"
#include "test/support/process.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace std::chrono_literals;

TEST_CASE("configurations of the complete contract come back with everything preserved") {
  const char* modules = std::getenv("WARREN_NODE_MODULES");
  if (modules == nullptr) {
    WARN("SKIPPED: no WARREN_NODE_MODULES (./check, test/contract/run): the complete contract is not tried");
    return;
  }
  replica::view view;
  std::vector<v1::Row> all;
  const auto add = [&](const std::string& project, const std::string& name, bool online) {
    const std::string connector = online ? "there" : "gone";
    const auto t = rows::tunnel(project, name, connector, 1);
    all.push_back(rows::row(t));
    all.push_back(rows::row(rows::attachment(t, connector, 1)));
  };
  for (const auto* project : {"p", "ns-0000"}) {
    auto gone = rows::connector(project, "gone", 1);
    gone.set_online(false);
    all.push_back(rows::row(gone));
    all.push_back(rows::row(rows::connector(project, "there", 1)));
  }
  add("p", "on", true);
  add("p", "off", false);
  for (int i = 0; i < 100; ++i) add("ns-0000", "tunnel-" + std::string(i < 10 ? "0000" : "000") + std::to_string(i), i % 2 == 0);
  view.set_partitions(1, 0);
  view.apply_fetched(0, true, 1, 1, all, 0, 0);
  view.apply_fetched(1, true, 1, 1, {}, 0, 0);
  telemetry::metrics count;
  hook::server server{view, {.listen = "127.0.0.1:0"}, count};
  REQUIRE(stack::poll_until([&] { return server.port() != 0; }, 10s));

  const std::string source = WARREN_SOURCE_DIR;
  const auto said = stack::run({.name = "node",
                                .path = "/usr/bin/env",
                                .arguments = {"node", source + "/test/contract/hook.js", "127.0.0.1:" + std::to_string(server.port()),
                                              modules, source + "/schema", source + "/test/vectors/envoy-gateway"}},
                               120s);
  INFO(said.out << said.err);
  CHECK(said.code == 0);
  CHECK(said.out.find("all held") != std::string::npos);
}
