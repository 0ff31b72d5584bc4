// test/integration/rival_test.cpp -- somebody else writes the tables, through a real connection: a running Warren
// notices, puts right what only it may say, and promises nothing that is not so.
#include <catch2/catch.hpp>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "actors/core/ids.hpp"
#include "actors/core/subjects.hpp"
#include "services/bus/connection.hpp"
#include "test/support/stack.hpp"
#include "warren/bus/v1/bus.pb.h"

using namespace warren;
namespace busv1 = warren::bus::v1;

namespace {

/// A gateway of class default that runs whatever there is, as far as anybody hears.
class played_gateway {
public:
  explicit played_gateway(const stack::stack& s) {
    bus::connection_options o;
    o.urls = {s.nats_url()};
    o.user = "warren";
    o.password = s.nats_password();
    o.name = "played gateway";
    link_ = bus::connection::open(o);
    partition_ = partition_of(s.options().project, s.options().partitions);
    thread_ = std::thread{[this] {
      std::unique_lock lock{mutex_};
      // As gateways' servers do each second.
      for (; !stopping_; stop_.wait_for(lock, std::chrono::milliseconds{100})) {
        busv1::GatewayAck a;
        a.set_version(1);
        a.set_incarnation(1);
        a.set_instance(99);
        a.set_gateway("gw-played");
        a.set_class_("default");
        a.set_stream(1);
        a.set_state("caught_up");
        a.set_partition(partition_);
        a.set_acknowledged(1'000'000'000);
        link_->publish(bus::ack_subject(partition_), a.SerializeAsString());
      }
    }};
  }
  ~played_gateway() {
    {
      const std::lock_guard lock{mutex_};
      stopping_ = true;
    }
    stop_.notify_all();
    thread_.join();
    link_->close();
  }
  played_gateway(const played_gateway&) = delete;
  played_gateway& operator=(const played_gateway&) = delete;

private:
  std::shared_ptr<bus::connection> link_;
  partition_id partition_ = 0;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;
};

struct world {
  world() : s{{.with_envoy = false}}, gateway{s} {
    s.add_agent("home").await_session();
    s.add_agent("other").await_session();
    s.demo_origin();
  }
  void create(const std::string& name, const std::string& connector) {
    s.must_ctl({"tunnel", "create", name, "--hostname", name + ".example.com", "--connector", connector, "--target",
                s.demo_origin().url()});
  }
  bool becomes(const std::string& query, const std::string& wanted) {
    const bool so = stack::poll_until([&] { return s.sql(query) == wanted + "\n"; }, stack::milliseconds{15'000},
                                      stack::milliseconds{20});
    if (!so) UNSCOPED_INFO(query << " gives " << s.sql(query));
    return so;
  }
  std::string rules_to(const std::string& connector) {
    return R"([{"path_prefix": "/", "connector": ")" + connector + R"(", "target": ")" + s.demo_origin().url() +
           R"(", "tls_verify": true}])";
  }
  bool is_ready(const std::string& name) const { return stack::stack::condition(s.tunnel(name), "Ready") == "True"; }

  stack::stack s;
  played_gateway gateway;
};

constexpr const char* claims_of_web =
    "SELECT count(*) FROM hostname_claim h JOIN tunnel t ON t.uid = h.tunnel_uid WHERE h.hostname = 'web.example.com' "
    "AND t.name = 'web' AND h.version > 0";

}  // namespace

TEST_CASE("a claim that a rival deletes is its tunnel's again, whoever was awake") {
  world w;
  w.create("web", "home");
  REQUIRE(w.s.await_ready("web"));
  SECTION("noticed at once") {
    w.s.sql("DELETE FROM hostname_claim");
    CHECK(w.becomes(claims_of_web, "1"));
  }
  SECTION("while nobody was there") {
    w.s.kill_warrend();
    w.s.sql("DELETE FROM hostname_claim");
    w.s.start_warrend();
    CHECK(w.becomes(claims_of_web, "1"));
  }
  SECTION("one that it adds goes") {
    w.s.sql("INSERT INTO hostname_claim (hostname, tunnel_uid) SELECT 'theirs.example.com', uid FROM tunnel");
    CHECK(w.becomes("SELECT string_agg(hostname, ' ') FROM hostname_claim", "web.example.com"));
  }
  SECTION("one that it gives to another tunnel, which wants it: whoever lost it says so") {
    w.create("next", "home");
    CHECK_THROWS(w.s.sql("UPDATE hostname_claim SET tunnel_uid = (SELECT uid FROM tunnel WHERE name = 'next')"));
    w.s.sql("DELETE FROM hostname_claim WHERE hostname = 'web.example.com'; "
            "UPDATE tunnel SET hostnames = '{next.example.com,web.example.com}' WHERE name = 'next'; "
            "INSERT INTO hostname_claim (hostname, tunnel_uid) SELECT 'web.example.com', uid FROM tunnel WHERE name = 'next'");
    CHECK(stack::poll_until([&] { return stack::stack::condition(w.s.tunnel("web"), "Accepted") == "False"; }, stack::milliseconds{15'000}));
    CHECK(stack::stack::condition_message(w.s.tunnel("web"), "Accepted").find("web.example.com") != std::string::npos);
    CHECK(w.s.await_ready("next"));
    return;
  }
  CHECK(w.s.await_ready("web"));
  CHECK(w.s.metric("warren_reconcile_errors_total") == 0);
}

TEST_CASE("an attachment that a rival inserts makes no tunnel ready before an agent holds it") {
  world w;
  w.create("web", "home");
  REQUIRE(w.s.await_ready("web"));
  auto& other = w.s.find_agent("other");
  other.freeze();  // it can acknowledge nothing
  // The whole of a change that Warren itself would make, in one breath; number 0 is below whatever an agent has.
  w.s.sql("BEGIN; UPDATE tunnel SET rules = '" + w.rules_to("other") + "'; "
          "INSERT INTO attachment (project, connector, tunnel_uid, tunnel_generation, tunnel, rules, target_state) "
          "SELECT project, 'other', uid, generation, name, '[{\"index\": 0, \"target\": \"" + w.s.demo_origin().url() +
          "\", \"tls_verify\": true}]', 'Reachable' FROM tunnel; "
          "UPDATE connector SET online = true, attached_generation = 1000000 WHERE name = 'other'; COMMIT");
  // Its owner has looked at it, and has a number of its own for it that the agent does not have.
  CHECK(w.becomes("SELECT a.attachment_generation <= c.attachment_generation AND a.version > 0 AND "
                  "a.attachment_generation > c.attached_generation FROM attachment a JOIN connector c ON c.name = a.connector "
                  "WHERE a.connector = 'other' AND a.tunnel_generation = 2", "t"));
  CHECK(w.becomes("SELECT observed_generation FROM tunnel", "2"));
  CHECK(stack::poll_until([&] { return !w.is_ready("web"); }, stack::milliseconds{15'000}));
  CHECK(stack::stack::condition(w.s.tunnel("web"), "ConnectorMetadataProgrammed") != "True");
  other.thaw();
  CHECK(w.s.await_ready("web", stack::milliseconds{20'000}));
  CHECK(w.becomes("SELECT a.attachment_generation <= c.attached_generation FROM attachment a JOIN connector c ON c.name = a.connector", "t"));
}

TEST_CASE("an attachment that a rival inserts for nobody goes, one that it changes is put right") {
  world w;
  w.create("web", "home");
  REQUIRE(w.s.await_ready("web"));
  w.s.sql("INSERT INTO attachment (project, connector, tunnel_uid, tunnel_generation, tunnel) "
          "SELECT project, 'other', uid, generation, name FROM tunnel");
  CHECK(w.becomes("SELECT string_agg(connector, ' ') FROM attachment", "home"));
  w.s.sql("UPDATE attachment SET rules = '[{\"index\": 0, \"target\": \"http://localhost:1\", \"tls_verify\": true}]'");
  CHECK(w.becomes("SELECT rules -> 0 ->> 'target' = '" + w.s.demo_origin().url() +
                  "' FROM attachment a JOIN connector c ON c.name = a.connector WHERE a.attachment_generation <= c.attached_generation", "t"));
  w.s.sql("DELETE FROM attachment");
  CHECK(w.becomes("SELECT count(*) FROM attachment a JOIN connector c ON c.name = a.connector WHERE a.attachment_generation <= c.attached_generation", "1"));
  CHECK(w.s.await_ready("web"));
}

TEST_CASE("a spec that a rival changes while nobody is awake leaves no attachment behind") {
  world w;
  w.create("web", "home");
  REQUIRE(w.s.await_ready("web"));
  w.s.kill_warrend();
  w.s.sql("UPDATE tunnel SET rules = '" + w.rules_to("other") + "'");
  CHECK(w.s.sql("SELECT generation, previous_generation, previous_rules -> 0 ->> 'connector', retiring FROM tunnel") ==
        "2|1|home|{home}\n");
  w.s.start_warrend();
  CHECK(w.becomes("SELECT string_agg(connector || ' ' || tunnel_generation, ', ') FROM attachment", "other 2"));
  CHECK(w.s.await_ready("web"));
  CHECK(w.becomes("SELECT generation, programmed_generation, previous_generation, retiring FROM tunnel", "2|2|0|{}"));
  // The agent that had it has let go.
  CHECK(w.becomes("SELECT attached_generation = attachment_generation FROM connector WHERE name = 'home'", "t"));
}

TEST_CASE("numbers and words that a rival makes up harm neither its tunnel nor those beside it") {
  world w;
  w.create("web", "home");
  REQUIRE(w.s.await_ready("web"));
  w.s.sql("UPDATE tunnel SET generation = -5, conditions = '[]', previous_rules = '[5]'; "
          "UPDATE connector SET session = -3, attachment_generation = -7");
  CHECK(w.becomes("SELECT generation = 2 AND observed_generation = 2 AND programmed_generation = 2 FROM tunnel", "t"));
  CHECK(w.s.await_ready("web"));
  w.create("next", "home");
  CHECK(w.s.await_ready("next"));
}

TEST_CASE("a tunnel of a rival's own is judged, claimed, attached and told, whatever it says of itself") {
  world w;
  w.s.sql("INSERT INTO tunnel (project, name, hostnames, rules, observed_generation, programmed_generation, conditions) VALUES ('demo', 'web', "
          "'{web.example.com}', '" + w.rules_to("home") + "', 1, 1, "
          "'[{\"type\": \"Accepted\", \"status\": \"True\"}, {\"type\": \"Programmed\", \"status\": \"True\"}]')");
  CHECK(w.becomes(claims_of_web, "1"));
  CHECK(w.s.await_ready("web"));
}
