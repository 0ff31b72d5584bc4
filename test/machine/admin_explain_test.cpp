// test/machine/admin_explain_test.cpp -- what `connector why` says is missing, and what it advises.
#include <catch2/catch.hpp>

#include "services/admin/explain.hpp"
#include "test/support/rows.hpp"

using namespace warren;
using namespace warren::admin;

namespace {

constexpr std::int64_t now = 100'000;

struct situation {
  corev1::ConnectorRow row = rows::connector("p", "edge", 1);
  corev1::Observed observed;
  connector_surroundings around;

  situation() {
    row.set_lease_duration_ms(30'000);
    observed.set_heard_ms(now - 400);
    around.observed = &observed;
  }
  api::Link link(const std::string& what) const {
    for (auto& each : explain_connector(row, around, now))
      if (each.what() == what) return each;
    FAIL("there is no link " << what);
    return {};
  }
  /// The first that is not ok; empty: all are.
  std::string missing() const {
    for (auto& each : explain_connector(row, around, now))
      if (!each.ok()) return each.what();
    return {};
  }
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("of a connector that is as it should be nothing is missing, and nothing is advised") {
  situation s;
  CHECK(s.missing().empty());
  for (const auto& each : explain_connector(s.row, s.around, now)) CHECK(each.hint().empty());
}

TEST_CASE("an agent that its owner does not hear is to be started") {
  situation s;
  s.observed.set_heard_ms(now - 31'000);
  s.row.set_online(false);
  CHECK(s.missing() == "agent heard");
  CHECK(has(s.link("agent heard").hint(), "start its agent"));
  CHECK(has(s.link("online").hint(), "start its agent"));
}

TEST_CASE("a lease that a rival has spoilt is to be corrected, and its agent is not blamed") {
  situation s;
  s.row.set_lease_duration_ms(0);
  s.row.set_addressing_error("lease_duration: must be between 3 s and 1 h");
  CHECK(s.missing() == "addressing valid");
  CHECK(has(s.link("addressing valid").hint(), "correct its row"));
}

TEST_CASE("an instance that does not reach NATS says so, and blames no agent") {
  situation s;
  s.around.observed = nullptr;
  s.around.deaf = true;
  for (const bool online : {true, false}) {
    s.row.set_online(online);
    CHECK(s.missing() == "agent heard");
    const auto heard = s.link("agent heard");
    CHECK(heard.state() == "unknown");
    CHECK(heard.message() == "When it was last heard is not known: this instance does not reach NATS.");
    CHECK(has(heard.hint(), "/readyz"));
    for (const auto& each : explain_connector(s.row, s.around, now)) CHECK_FALSE(has(each.hint(), "start its agent"));
  }
  s.row.clear_addresses();
  CHECK(has(s.link("addressing valid").hint(), "/readyz"));  // it could not report one either
  // An owner that does not answer is another matter, and no agent's fault either.
  s.around.deaf = false;
  CHECK(has(s.link("agent heard").message(), "its owner does not answer"));
  CHECK_FALSE(has(s.link("agent heard").hint(), "start its agent"));
}

TEST_CASE("a connector of a class that does not exist waits for it, and not for its agent") {
  situation s;
  s.row.set_class_("edges");
  s.row.set_online(false);
  rows::condition(s.row, "Accepted", "False", "ConnectorClassNotFound", "There is no connector class \"edges\".");
  rows::condition(s.row, "Ready", "False", "ConnectorNotReady", "There is no connector class \"edges\".");
  CHECK(s.missing() == "class accepted");
  for (const auto* what : {"class accepted", "online"}) CHECK(has(s.link(what).hint(), "warrenctl connector-class create edges;"));
}

TEST_CASE("after a takeover its next heartbeat is waited for") {
  situation s;
  s.observed.set_heard_ms(0);
  s.observed.set_listening_ms(now - 1000);
  CHECK(s.link("agent heard").state() == "unknown");
  CHECK(has(s.link("agent heard").hint(), "wait for its next heartbeat"));
}

TEST_CASE("a home relay is enough, unless gateways dial agents themselves") {
  situation s;
  s.row.clear_addresses();
  s.row.set_home_relay("https://relay.example.com");
  CHECK(s.missing().empty());
  s.around.dialled_for = "web";
  s.around.dialling_class = "edges";
  CHECK(s.missing() == "addressing valid");
  const auto link = s.link("addressing valid");
  CHECK(has(link.message(), "the gateways of class edges, which carry tunnel web, dial agents themselves"));
  CHECK(has(link.hint(), "let its agent advertise an address"));
  s.row.add_addresses("192.0.2.1:7000");
  CHECK(s.missing().empty());
  // Neither is what an agent says before it has said anything.
  s.row.clear_addresses();
  s.row.clear_home_relay();
  CHECK(has(s.link("addressing valid").message(), "no address yet"));
}
