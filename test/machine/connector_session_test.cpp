// test/machine/connector_session_test.cpp -- how an agent comes, speaks and goes: hello, heartbeats, reports, bye.
#include "test/machine/connector_world.hpp"

using namespace warren;
using namespace warren::connector_world;

TEST_CASE_METHOD(world, "connector: hello in two steps") {
  enrolled();
  forget();
  challenge();
  REQUIRE(hello_reply());
  CHECK(hello_reply()->challenge() == std::string(32, 'c'));
  CHECK(writes.empty());

  SECTION("a good signature gets a session, once, in one write") {
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(writes == std::vector<std::string>{"connector_session"});
    CHECK(routed[0]);
    CHECK(row->session() == 1);
    CHECK(row->session_token_hash() == protocol::sha256_hex(token_a));
    CHECK(row->clock_skew_ms() == 30);
    CHECK(row->agent_version() == "1.0");
    CHECK(row->online());
    CHECK(ready() == "True/ConnectorReady/The connector is ready to tunnel traffic.");
    CHECK(hello_reply()->session() == 1);
    CHECK(hello_reply()->token() == token_a);
    CHECK(hello_reply()->heartbeat_interval_ms() == 2000);
    CHECK(hello_reply()->connector_uid() == row->uid());
    signed_hello(hello_request({"10.0.0.1:7000"}));  // the challenge is used up
    CHECK(hello_reply()->error() == "permission_denied");
    CHECK(row->session() == 1);
  }
  SECTION("the challenge is kept 10 s") {
    at(now.steady_ms + 10'001);
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(hello_reply()->error() == "permission_denied");
  }
  SECTION("at 10 s it still is") {
    at(now.steady_ms + 10'000);
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(hello_reply()->error().empty());
  }
  SECTION("another key is refused") {
    key = agent_key{'x'};
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(hello_reply()->error() == "permission_denied");
    CHECK(writes.empty());
  }
  SECTION("the newest wins, the older is told and ignored") {
    signed_hello(hello_request({"10.0.0.1:7000"}));
    forget();
    hello({"10.0.0.2:7000"}, 0, "", std::string(64, 'b'));
    CHECK(row->session() == 2);
    CHECK(row->addresses(0) == "10.0.0.2:7000");
    REQUIRE(commands(busv1::AgentCommand::kSuperseded).size() == 1);
    CHECK(commands(busv1::AgentCommand::kSuperseded)[0].session() == 1);
    forget();
    text("heartbeat { heartbeat { version: 1 session: 1 token: '" + token_a + "' sequence: 99 } }");
    CHECK(writes.empty());
    CHECK(commands(busv1::AgentCommand::kSuperseded).size() == 1);
  }
  SECTION("a conflict loses no hello") {
    conflicts = 5;
    signed_hello(hello_request({"10.0.0.1:7000"}));
    pass(2000);
    CHECK(row->session() == 1);
    CHECK(hello_reply()->session() == 1);
  }
}

TEST_CASE_METHOD(world, "connector: strangers") {
  start();
  challenge();
  CHECK(hello_reply()->error() == "not_found");
  command("create_connector { name: 'home' }");
  challenge();
  CHECK(hello_reply()->error() == "failed_precondition");
}

TEST_CASE_METHOD(world, "connector: a heartbeat that changes nothing writes nothing and says nothing") {
  online();
  for (int i = 0; i < 20; ++i) {
    pass(2000);
    heartbeat();
  }
  CHECK(writes.empty());
  CHECK(said.empty());
}

TEST_CASE_METHOD(world, "connector: sessions that are not known") {
  online();
  text("heartbeat { heartbeat { version: 1 session: 9 token: 'x' } reply_to: 'r' }");
  REQUIRE(all<connector::agent_reply>().size() == 1);
  CHECK(std::get<busv1::AgentCommand>(all<connector::agent_reply>()[0].payload).has_hello_again());
  text("heartbeat { heartbeat { version: 1 session: 9 token: 'x' } reply_to: 'r' }");
  CHECK(all<connector::agent_reply>().size() == 1);  // at most once a second
  CHECK(writes.empty());
  // A forged message of the current session does not keep it alive.
  for (int second = 0; second < 31; ++second) {
    pass(1000);
    text("heartbeat { heartbeat { version: 1 session: 1 token: '" + std::string(64, 'f') + "' } }");
  }
  CHECK_FALSE(row->online());
}

TEST_CASE_METHOD(world, "connector: another digest makes the agent report") {
  online();
  heartbeat({}, std::string(32, '0'));
  REQUIRE(commands(busv1::AgentCommand::kReport).size() == 1);
  CHECK(commands(busv1::AgentCommand::kReport)[0].epoch() == 7);
  CHECK(commands(busv1::AgentCommand::kReport)[0].session() == 1);
  pass(1000);
  CHECK(commands(busv1::AgentCommand::kReport).size() == 2);  // repeated until answered
  report({"10.0.0.1:7000"}, true);
  forget();
  pass(900);
  heartbeat({}, std::string(32, '0'));  // answered in full: that is what its digest is
  CHECK(said.empty());
  CHECK(writes.empty());
}

TEST_CASE_METHOD(world, "connector: under load its agent is told to report less often, several times in a lease all the same") {
  dialable();
  agent_interval = 2000;
  heartbeat();
  forget();
  const auto intervals = [&] { return commands(busv1::AgentCommand::kInterval); };
  load = 8000;
  SECTION("a default lease takes it down to a quarter") {
    heartbeat();
    REQUIRE(intervals().size() == 1);
    CHECK(intervals()[0].interval().heartbeat_interval_ms() == 7500);
    // It is overdue by the interval that it has, until it says that it has the other.
    forget();
    pass(3000);
    CHECK(all<connector::dial>().size() == 1);
    agent_interval = 7500;
    heartbeat();
    forget();
    pass(7500 * 3 / 2 - 1);
    CHECK(all<connector::silence_told>().empty());
    CHECK(all<connector::dial>().empty());
    CHECK(intervals().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
    CHECK(writes.empty());
  }
  SECTION("a short lease keeps what the settings say") {
    s.mutable_row()->set_lease_duration_ms(3000);
    heartbeat();
    CHECK(intervals().empty());
  }
  SECTION("a long one has all of it, and an agent that comes is told with its session") {
    s.mutable_row()->set_lease_duration_ms(60'000);
    hello();
    REQUIRE(hello_reply());
    CHECK(hello_reply()->heartbeat_interval_ms() == 8000);
  }
  SECTION("and back") {
    agent_interval = 7500;
    heartbeat();
    forget();
    load = 2000;
    heartbeat();
    REQUIRE(intervals().size() == 1);
    CHECK(intervals()[0].interval().heartbeat_interval_ms() == 2000);
  }
}

TEST_CASE_METHOD(world, "connector: an owner with another heartbeat interval says so, and judges by the agent's until it has it") {
  dialable();
  heartbeat();
  agent_interval = 2000;
  takeover(500);
  const auto intervals = [&] { return commands(busv1::AgentCommand::kInterval); };
  SECTION("before the agent has said it, nobody knows when it is due") {
    command_reply(1, s.held_generation());  // to the roll call
    forget();
    pass(4000);
    CHECK(all<connector::silence_told>().empty());
    CHECK(all<connector::dial>().empty());
  }
  SECTION("its own counts until it has ours") {
    heartbeat();
    REQUIRE(intervals().size() == 1);
    CHECK(intervals()[0].interval().heartbeat_interval_ms() == 500);
    forget();
    pass(999);
    CHECK(intervals().empty());
    pass(1);
    CHECK(intervals().size() == 1);  // lost, perhaps
    pass(1999);
    CHECK(all<connector::silence_told>().empty());
    CHECK(all<connector::dial>().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
    CHECK(writes.empty());
  }
  SECTION("then ours does") {
    heartbeat();
    agent_interval = 500;
    heartbeat();
    forget();
    pass(749);
    CHECK(all<connector::dial>().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
    CHECK(intervals().empty());
    CHECK(writes.empty());
  }
  SECTION("an absurd one frees nobody from its lease") {
    agent_interval = 1'000'000'000'000;
    heartbeat();
    pass(30'001);
    CHECK_FALSE(row->online());
  }
}

TEST_CASE_METHOD(world, "connector: what is heard before the row is read is no stranger's") {
  online();
  s = connector::initial(3, 8, 0, 2000, "acme", "home");
  text("failed { code: 'unavailable' message: 'the database is away' }");
  said.clear();
  heartbeat();
  bye();
  CHECK(said.empty());
  start();
  CHECK(row->online());
  heartbeat();
  CHECK(row->online());
  CHECK(commands(busv1::AgentCommand::kHelloAgain).empty());
}

TEST_CASE_METHOD(world, "connector: a bye is offline at once; what was sent before it does not bring it back") {
  online();
  heartbeat();
  const auto before = sequence;
  bye();
  CHECK_FALSE(row->online());
  CHECK(ready() == "False/ConnectorNotReady/Connector disconnected.");
  sequence = before - 1;
  heartbeat();
  CHECK_FALSE(row->online());
  sequence = before + 1;
  heartbeat();
  CHECK(row->online());
}

TEST_CASE_METHOD(world, "connector: whoever speaks on after its bye is asked for a hello, and is back by itself") {
  online();
  heartbeat();
  const auto before = sequence;
  sequence = 1'000'000'000;  // forged, or of an agent that has lost count
  bye();
  REQUIRE_FALSE(row->online());
  sequence = before;
  forget();
  heartbeat();
  CHECK_FALSE(row->online());
  REQUIRE(commands(busv1::AgentCommand::kHelloAgain).size() == 1);
  CHECK(commands(busv1::AgentCommand::kHelloAgain)[0].session() == row->session());
  heartbeat();
  report({"10.0.0.1:7000"});
  CHECK(commands(busv1::AgentCommand::kHelloAgain).size() == 1);  // once a second is enough
  hello();
  CHECK(row->online());
  CHECK(row->session() == 2);
  heartbeat();
  CHECK(row->online());
}

TEST_CASE_METHOD(world, "connector: addressing") {
  online();
  SECTION("a change is one write that gateways hear of; a reordered report is none") {
    report({"10.0.0.2:7000", "10.0.0.1:7000"});
    CHECK(row->addressing_generation() == 2);
    CHECK(routed[0]);
    forget();
    report({"10.0.0.1:7000", "10.0.0.2:7000"});
    CHECK(writes.empty());
  }
  SECTION("what is refused is shown, not used, and the last good is kept") {
    report({"127.0.0.1:7000"});
    CHECK_FALSE(row->online());
    CHECK(row->addresses(0) == "10.0.0.1:7000");
    CHECK(row->addressing_error().substr(0, 13) == "addresses[0]:");
    hello({"127.0.0.1:7000"});  // whoever says it in a hello hears why
    CHECK(hello_reply()->addressing_error() == row->addressing_error());
    CHECK(ready().substr(0, 28) == "False/InvalidAddressing/addr");
    CHECK(routed[0]);
    forget();
    class_is(true, {"127.0.0.0/8", "0.0.0.0/0"});  // now it is named
    CHECK(row->online());
    CHECK(row->addresses(0) == "127.0.0.1:7000");
  }
  SECTION("mended by the next report") {
    report({"nonsense"});
    CHECK_FALSE(row->online());
    report({"10.0.0.1:7000"});
    CHECK(row->online());
    CHECK(row->addressing_error().empty());
    CHECK(row->addressing_generation() == 1);
  }
  SECTION("a class that narrows refuses what is stored") {
    class_is(true, {"192.168.0.0/16"});
    CHECK_FALSE(row->online());
  }
}

TEST_CASE_METHOD(world, "connector: a rival that changes the session's number makes nobody newer than its agent") {
  online();
  const auto session = row->session();
  const auto beat = [&](const std::string& with) {
    event e;
    auto& b = *e.mutable_heartbeat()->mutable_heartbeat();
    b.set_version(1);
    b.set_session(session);
    b.set_token(with);
    b.set_sequence(++sequence);
    say(e);
  };
  row->set_session(session + GENERATE(5, 1));
  row->set_version(++revision);
  start();
  forget();
  beat(token);
  CHECK(commands(busv1::AgentCommand::kSuperseded).empty());
  REQUIRE(commands(busv1::AgentCommand::kHelloAgain).size() == 1);
  CHECK(commands(busv1::AgentCommand::kHelloAgain)[0].session() == session);
  const auto raised = row->session();
  hello({"10.0.0.1:7000"}, 0, "", std::string(64, 'b'));
  CHECK(row->session() == raised + 1);
  CHECK(row->online());
  // The holder of the former token is another agent's predecessor, whatever the numbers.
  pass(limits::repeat_after / 1ms);
  forget();
  beat(token_a);
  CHECK(commands(busv1::AgentCommand::kSuperseded).size() == 1);
}
