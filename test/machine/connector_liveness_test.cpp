// test/machine/connector_liveness_test.cpp -- when a connector counts as there: lease, takeover, dials, mass silence.
#include "test/machine/connector_world.hpp"

using namespace warren;
using namespace warren::connector_world;

TEST_CASE_METHOD(world, "connector: the lease ends exactly") {
  online();
  heartbeat();
  const auto last = now.steady_ms;
  const auto lease = row->lease_duration_ms();
  SECTION("1 ms before") { pass(lease - 1); wake(); CHECK(row->online()); }
  SECTION("at it") {
    pass(lease);
    wake();
    CHECK(row->online());
    CHECK(wake_at == last + lease + 1);
  }
  SECTION("after it") {
    pass(lease + 1);
    CHECK_FALSE(row->online());
    CHECK(ready() == "False/ConnectorNotReady/Connector lease has expired. Agent may be offline.");
    CHECK(writes == std::vector<std::string>{"connector_status"});
    CHECK(routed[0]);
    forget();
    heartbeat();  // and back
    CHECK(row->online());
    CHECK(routed[0]);
  }
}

TEST_CASE_METHOD(world, "connector: a takeover gives a full lease and calls the roll") {
  online();
  pass(20'000);
  takeover();
  const auto begin = now.steady_ms;
  CHECK(writes.empty());
  CHECK(commands(busv1::AgentCommand::kReport).size() == 1);
  SECTION("silence until the lease ends") {
    pass(30'000);
    CHECK(row->online());
    pass(1);
    CHECK(now.steady_ms == begin + 30'001);
    CHECK_FALSE(row->online());
  }
  SECTION("whoever has been heard needs no call") {
    heartbeat();
    forget();
    pass(1500);
    CHECK(commands(busv1::AgentCommand::kReport).empty());
  }
  SECTION("also the offline ones are called, when the partition does") {
    bye();
    takeover();
    CHECK(commands(busv1::AgentCommand::kReport).empty());
    text("roll_call {}");
    CHECK(commands(busv1::AgentCommand::kReport).size() == 1);
    CHECK_FALSE(row->online());
    heartbeat();
    CHECK(row->online());
  }
}

TEST_CASE_METHOD(world, "connector: after a takeover nothing is written that the rows say already") {
  dialable();
  attach("t1");
  attach("t2");
  heartbeat(row->attachment_generation());
  busv1::AgentEvent reached;
  reached.mutable_report()->set_attached_generation(s.held_generation());
  for (const auto* uid : {"t1", "t2"}) {
    auto* target = reached.mutable_report()->add_targets();
    target->set_tunnel_uid(uid);
    target->set_tunnel_generation(1);
    target->set_state("Reachable");
  }
  agent_says(reached);
  REQUIRE(attachments.at("t2/1").target_state() == "Reachable");
  forget();

  const auto held = s.held_generation();
  takeover(GENERATE(500, 2000, 5000));
  pass(700);
  const auto calls = commands(busv1::AgentCommand::kReport);
  REQUIRE(calls.size() == 1);
  event e;
  auto& r = *e.mutable_command_reply();
  r.set_version(1);
  r.set_session(row->session());
  r.set_token(token);
  r.set_command_id(calls[0].command_id());
  r.set_attached_generation(held);
  *r.mutable_report() = reached.report();
  r.mutable_report()->set_full(true);
  *r.mutable_report()->mutable_addressing()->mutable_addresses() = row->addresses();
  say(e);
  attach("t1");  // its tunnel asks again
  agent_interval = 2000;
  for (int beats = 0; beats < 20; ++beats) {
    heartbeat(held);
    pass(2000);
  }
  text("mass_silence { on: true }");
  heartbeat(held);
  text("mass_silence { on: false }");
  CHECK(writes.empty());
  CHECK(all<connector::dial>().empty());
  CHECK(row->online());
}

TEST_CASE_METHOD(world, "connector: our own delay is not the agent's silence") {
  dialable();
  heartbeat();
  const auto last = now.steady_ms;
  const auto look_at = [&](std::int64_t steady) {
    at(steady);
    wake();
  };
  SECTION("what it said while we were stopped is waited for") {
    look_at(last + 5000);
    CHECK(all<connector::silence_told>().empty());
    CHECK(all<connector::dial>().empty());
    heartbeat();
    pass(2999);
    CHECK(all<connector::dial>().empty());
  }
  SECTION("when it has said nothing, silence counts after that") {
    look_at(last + 5000);
    pass(499);
    CHECK(all<connector::dial>().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
  }
  SECTION("neither does its lease end unheard") {
    look_at(last + 32'000);
    CHECK(row->online());
    heartbeat();
    pass(2000);
    CHECK(row->online());
    CHECK(writes.empty());
  }
  SECTION("but it ends") {
    look_at(last + 32'000);
    pass(500);
    CHECK_FALSE(row->online());
  }
  SECTION("a wake a little late is none") {
    look_at(last + 3000 + limits::own_delay_max / 1ms);
    CHECK(all<connector::dial>().size() == 1);
  }
  SECTION("an owner that is always late decides in the end") {
    for (int n = 0; n < limits::own_delays_max; ++n) {
      look_at(wake_at + 200);
      CHECK(all<connector::dial>().empty());
    }
    look_at(wake_at + 200);
    CHECK(all<connector::dial>().size() == 1);
  }
}

TEST_CASE_METHOD(world, "connector: NATS away is nobody's silence") {
  dialable();
  heartbeat();
  text("bus { connected: false }");
  pass(120'000);
  CHECK(row->online());
  CHECK(said.empty());
  CHECK(wake_at != 0);  // whoever is let go would not hear that it is over
  text("bus { connected: true }");
  CHECK(commands(busv1::AgentCommand::kReport).size() == 1);
  const auto begin = now.steady_ms;
  SECTION("a full lease from then on, when the dials are answered") {
    while (now.steady_ms < begin + 30'000) {
      pass(10);
      answer_dials("answered");
    }
    CHECK(row->online());
    pass(1);
    CHECK_FALSE(row->online());
  }
  SECTION("a roll call unanswered for 5 s is suspicious") {
    pass(4999);
    CHECK(all<connector::dial>().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
  }
}

TEST_CASE_METHOD(world, "connector: suspicion") {
  dialable();
  heartbeat();
  const auto overdue = now.steady_ms + 3000;
  SECTION("a heartbeat overdue by half its interval: two rounds of dials, then offline") {
    pass(2999);
    CHECK(all<connector::dial>().empty());
    pass(1);
    REQUIRE(all<connector::dial>().size() == 1);
    CHECK(all<connector::dial>()[0].endpoint_id == key.public_hex());
    CHECK(all<connector::dial>()[0].addresses == std::vector<std::string>{"10.0.0.1:7000"});
    REQUIRE(all<connector::silence_told>().size() == 1);
    CHECK(all<connector::silence_told>()[0].silent);
    pass(750);
    answer_dials("unanswered");
    CHECK(row->online());
    pass(49);
    CHECK(all<connector::dial>().size() == 1);
    pass(1);
    CHECK(all<connector::dial>().size() == 2);
    answer_dials("refused");
    CHECK_FALSE(row->online());
    CHECK(ready() == "False/ConnectorNotReady/Connector disconnected.");
    CHECK(routed.back());
  }
  SECTION("the end of its NATS connection is enough to dial") {
    text("disconnected {}");
    CHECK(all<connector::dial>().size() == 1);
    answer_dials("refused");
    pass(50);
    answer_dials("refused");
    CHECK_FALSE(row->online());
  }
  SECTION("an answered dial: nothing happened; silence is dialled once per interval") {
    pass(3000);
    answer_dials("answered");
    CHECK(writes.empty());
    pass(1999);
    CHECK(all<connector::dial>().size() == 1);
    pass(1);
    CHECK(all<connector::dial>().size() == 2);
  }
  SECTION("an answer proves nothing about a connection that ends after it") {
    text("disconnected {}");
    answer_dials("answered");
    pass(50);
    text("disconnected {}");
    REQUIRE(all<connector::dial>().size() == 2);
    answer_dials("refused");
    pass(50);
    answer_dials("refused");
    CHECK_FALSE(row->online());
  }
  SECTION("nor about one that ends while it is on its way") {
    text("disconnected {}");
    text("disconnected {}");
    CHECK(all<connector::dial>().size() == 1);
    answer_dials("answered");
    pass(49);
    CHECK(all<connector::dial>().size() == 1);
    pass(1);
    CHECK(all<connector::dial>().size() == 2);
  }
  SECTION("a new session is suspected anew, also within the interval") {
    text("disconnected {}");
    answer_dials("refused");
    pass(50);
    answer_dials("refused");
    REQUIRE_FALSE(row->online());
    hello({"10.0.0.1:7000"});
    REQUIRE(row->online());
    forget();
    text("disconnected {}");
    CHECK(all<connector::dial>().size() == 1);
  }
  SECTION("connections that end in a loop make a dial every 50 ms, no more") {
    for (int i = 0; i < 1000; ++i) {
      text("disconnected {}");
      answer_dials("answered");
      pass(1);
    }
    CHECK(all<connector::dial>().size() == 1 + 1000 / 50);
    CHECK(writes.empty());
  }
  SECTION("a heartbeat in between cancels") {
    text("disconnected {}");
    answer_dials("refused");
    heartbeat();
    pass(60);
    CHECK(all<connector::dial>().size() == 1);
    CHECK(row->online());
  }
  SECTION("an answer to the second dial cancels") {
    text("disconnected {}");
    answer_dials("refused");
    pass(50);
    answer_dials("answered");
    CHECK(row->online());
  }
  (void)overdue;
}

TEST_CASE_METHOD(world, "connector: one that was never dialable has its lease") {
  online();
  REQUIRE_FALSE(row->dialable());
  heartbeat();
  text("disconnected {}");
  pass(30'000);
  CHECK(all<connector::dial>().empty());
  CHECK(row->online());
  pass(1);
  CHECK_FALSE(row->online());
}

TEST_CASE_METHOD(world, "connector: dialable is proved when it comes online or moves") {
  enrolled();
  hello();
  REQUIRE(all<connector::dial>().size() == 1);
  answer_dials("answered");
  CHECK(row->dialable());
  CHECK_FALSE(routed.back());
  forget();
  report({"10.0.0.9:7000"});
  CHECK_FALSE(row->dialable());
  REQUIRE(all<connector::dial>().size() == 1);
  CHECK(all<connector::dial>()[0].addresses[0] == "10.0.0.9:7000");
  answer_dials("unanswered");
  CHECK_FALSE(row->dialable());
  bye();
  forget();
  hello({"10.0.0.9:7000"});
  CHECK(all<connector::dial>().size() == 1);
}

TEST_CASE_METHOD(world, "connector: mass silence") {
  dialable();
  heartbeat();
  text("mass_silence { on: true }");
  SECTION("silence and unanswered dials do not count, and it is shown") {
    pass(3000);
    CHECK(ready().substr(0, 19) == "Unknown/MassSilence");
    CHECK(row->online());
    for (int i = 0; i < 600; ++i) {
      pass(100);
      answer_dials("unanswered");
    }
    CHECK(row->online());
    forget();
    text("mass_silence { on: false }");
    CHECK(commands(busv1::AgentCommand::kReport).size() == 1);
    CHECK(ready().substr(0, 4) == "True");
    pass(30'000);
    pass(1);
    CHECK_FALSE(row->online());
  }
  SECTION("a refused dial counts") {
    pass(3000);
    answer_dials("refused");
    pass(50);
    answer_dials("refused");
    CHECK_FALSE(row->online());
  }
  SECTION("a bye counts") {
    bye();
    CHECK_FALSE(row->online());
  }
  SECTION("whoever is heard is ready again") {
    pass(3000);
    heartbeat();
    CHECK(ready().substr(0, 4) == "True");
  }
}

TEST_CASE_METHOD(world, "connector: who is online is never let go, whatever is switched off") {
  online();  // not dialable: no suspicion is due either
  heartbeat();
  text("mass_silence { on: true }");
  pass(200'000);
  CHECK(row->online());
  CHECK(wake_at != 0);
  text("mass_silence { on: false }");
  pass(31'000);
  CHECK_FALSE(row->online());
}
