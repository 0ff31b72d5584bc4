// test/machine/connector_attachments_test.cpp -- the tunnels that hang off a connector, step by step, and their targets.
#include "test/machine/connector_world.hpp"

using namespace warren;
using namespace warren::connector_world;

TEST_CASE_METHOD(world, "connector: attaching") {
  online();
  attach();
  CHECK(writes == std::vector<std::string>{"connector_attachments"});
  CHECK(row->attachment_generation() == 1);
  CHECK(attachments.at("t1/1").attachment_generation() == 1);
  REQUIRE(commands(busv1::AgentCommand::kAttach).size() == 1);
  const auto c = commands(busv1::AgentCommand::kAttach)[0];
  CHECK(c.attach().from_generation() == 0);
  CHECK(c.attach().generation() == 1);
  CHECK(c.attach().attachments(0).tunnel_uid() == "t1");
  REQUIRE(all<v1::AttachmentState>().size() == 1);
  CHECK(all<v1::AttachmentState>()[0].stored());
  CHECK_FALSE(all<v1::AttachmentState>()[0].attached());
  CHECK(all<v1::AttachmentState>()[0].online());

  SECTION("acknowledged by the reply: one write, and the tunnel hears of it") {
    forget();
    command_reply(c.command_id(), 1);
    CHECK(row->attached_generation() == 1);
    CHECK(writes.size() == 1);
    CHECK(routed[0]);
    REQUIRE(all<v1::AttachmentState>().size() == 1);
    CHECK(all<v1::AttachmentState>()[0].attached());
    CHECK(all<v1::AttachmentState>()[0].revision() == row->route_version());
    forget();
    command_reply(c.command_id(), 1);
    CHECK(writes.empty());
    pass(1500);
    CHECK(commands(busv1::AgentCommand::kAttach).empty());
  }
  SECTION("acknowledged by a heartbeat") {
    heartbeat(1);
    CHECK(row->attached_generation() == 1);
  }
  SECTION("repeated after 1 s until answered") {
    pass(999);
    CHECK(commands(busv1::AgentCommand::kAttach).size() == 1);
    pass(1);
    REQUIRE(commands(busv1::AgentCommand::kAttach).size() == 2);
    CHECK(commands(busv1::AgentCommand::kAttach)[1].command_id() > c.command_id());
  }
  SECTION("the same again writes nothing and is answered") {
    forget();
    attach();
    CHECK(writes.empty());
    CHECK(all<v1::AttachmentState>().size() == 1);
  }
  SECTION("steps follow each other without waiting") {
    attach("t2");
    attach("t3");
    const auto steps = commands(busv1::AgentCommand::kAttach);
    REQUIRE(steps.size() == 3);
    CHECK(steps[2].attach().from_generation() == 2);
    CHECK(steps[2].attach().generation() == 3);
  }
  SECTION("an agent that cannot follow gets the whole set") {
    attach("t2");
    forget();
    command_reply(s.set_command_id(), 0);
    pass(50);
    REQUIRE(commands(busv1::AgentCommand::kSet).size() == 1);
    CHECK(commands(busv1::AgentCommand::kSet)[0].set().generation() == 2);
    CHECK(commands(busv1::AgentCommand::kSet)[0].set().attachments_size() == 2);
  }
  SECTION("a restart whose set is unchanged writes only its session") {
    heartbeat(1);
    forget();
    hello({"10.0.0.1:7000"}, 1, row->uid());
    CHECK(writes == std::vector<std::string>{"connector_session"});
    CHECK_FALSE(routed[0]);
    CHECK(hello_reply()->attachments().attachments_size() == 1);
    CHECK(row->attached_generation() == 1);
  }
  SECTION("an agent that comes with nothing holds nothing") {
    heartbeat(1);
    hello({"10.0.0.1:7000"}, 0);
    CHECK(row->attached_generation() == 0);
    heartbeat(1);
    CHECK(row->attached_generation() == 1);
  }
  SECTION("an offline agent gets its command with the next heartbeat") {
    bye();
    forget();
    attach("t2");
    CHECK(commands(busv1::AgentCommand::kAttach).empty());
    heartbeat();
    CHECK(commands(busv1::AgentCommand::kAttach).size() >= 1);
  }
  SECTION("conflicts lose nothing") {
    forget();
    conflicts = 20;
    random = 1'000'003;
    const auto begin = now.steady_ms;
    attach("t2");
    while (!attachments.contains("t2/1") && now.steady_ms < begin + 10'000) pass(10);
    CHECK(now.steady_ms < begin + 5000);
    CHECK(row->attachment_generation() == 2);
    CHECK(row->online());
  }
}

TEST_CASE_METHOD(world, "connector: detaching") {
  online();
  attach("t1", 1);
  attach("t1", 2);
  heartbeat(2);
  forget();
  SECTION("what is below a generation") {
    detach("t1", 2);
    CHECK(attachments.size() == 1);
    CHECK(attachments.contains("t1/2"));
    CHECK(row->attachment_generation() == 3);
    REQUIRE(commands(busv1::AgentCommand::kDetach).size() == 1);
    CHECK(all<v1::AttachmentState>().empty());
    heartbeat(3);
    REQUIRE_FALSE(all<v1::AttachmentState>().empty());
    CHECK(all<v1::AttachmentState>().back().gone());
  }
  SECTION("an offline agent is not waited for") {
    bye();
    forget();
    detach("t1");
    CHECK(attachments.empty());
    REQUIRE(all<v1::AttachmentState>().size() == 1);
    CHECK(all<v1::AttachmentState>()[0].gone());
  }
  SECTION("what was never there is gone") {
    detach("t9");
    CHECK(writes.empty());
    REQUIRE(all<v1::AttachmentState>().size() == 1);
    CHECK(all<v1::AttachmentState>()[0].gone());
  }
}

TEST_CASE_METHOD(world, "connector: two detachments in one step both wait for the agent") {
  online();
  attach("t1", 1);
  attach("t1", 2);
  heartbeat(2);
  forget();
  v1::Failed away;
  away.set_code("unavailable");
  failure = away;
  detach("t1", 2);
  failure = away;
  detach("t1");
  pass(5000);
  CHECK(attachments.empty());
  CHECK(std::count(writes.begin(), writes.end(), "connector_attachments") == 1);
  CHECK(std::none_of(said.begin(), said.end(), [](const auto& a) {
    const auto* state = std::get_if<v1::AttachmentState>(&a);
    return state != nullptr && state->gone();
  }));
  heartbeat(3);
  CHECK(all<v1::AttachmentState>().size() == 2);
}

TEST_CASE_METHOD(world, "connector: a save that did not happen has changed nothing") {
  online();
  attach("t1", 1);
  attach("t2", 1);
  heartbeat(row->attachment_generation());
  const auto target = [&](const std::string& uid, const std::string& is) {
    busv1::AgentEvent e;
    e.mutable_report()->set_attached_generation(s.held_generation());
    auto* t = e.mutable_report()->add_targets();
    t->set_tunnel_uid(uid);
    t->set_tunnel_generation(1);
    t->set_state(is);
    agent_says(e);
  };
  target("t1", "Reachable");
  const auto before = s;
  const auto whole = [&] {
    REQUIRE(s.attachments_size() == before.attachments_size());
    for (const auto& [k, a] : before.attachments()) {
      REQUIRE(s.attachments().contains(k));
      CHECK(s.attachments().at(k).SerializeAsString() == a.SerializeAsString());
    }
    for (const auto& [k, t] : before.targets()) {
      REQUIRE(s.targets().contains(k));
      CHECK(s.targets().at(k).SerializeAsString() == t.SerializeAsString());
    }
  };
  v1::Failed away;
  away.set_code("unavailable");
  failure = away;
  SECTION("an attachment") {
    attach("t3", 1);
    whole();
    pass(5000);
    CHECK(attachments.size() == 3);
  }
  SECTION("one with other rules") {
    attach("t1", 1, "http://localhost:81");
    whole();
    pass(5000);
    CHECK(attachments.at("t1/1").rules(0).target() == "http://localhost:81");
  }
  SECTION("a detachment") {
    detach("t1");
    whole();
    pass(5000);
    CHECK(attachments.size() == 1);
  }
  SECTION("what is told of a target") {
    target("t2", "Unreachable");
    CHECK(s.attachments().at("t2/1").target_state() == "Unknown");
    CHECK(s.attachments_size() == 2);
    pass(5000);
    CHECK(attachments.at("t2/1").target_state() == "Unreachable");
  }
  SECTION("the end of the agent") {
    bye();
    whole();
    pass(5000);
    CHECK_FALSE(row->online());
    CHECK(s.attachments_size() == 2);
  }
}

TEST_CASE_METHOD(world, "connector: what was said of a target is forgotten with its attachment") {
  online();
  const auto reachable = [&](const std::string& uid) {
    busv1::AgentEvent e;
    e.mutable_report()->set_attached_generation(s.held_generation());
    auto* t = e.mutable_report()->add_targets();
    t->set_tunnel_uid(uid);
    t->set_tunnel_generation(1);
    t->set_state("Reachable");
    agent_says(e);
  };
  attach("t1", 1);
  attach("t2", 1);
  heartbeat(row->attachment_generation());
  reachable("t1");
  reachable("t2");
  REQUIRE(s.targets_size() == 2);
  SECTION("that its tunnel lets go of") { detach("t1"); }
  SECTION("that gets other rules") {
    attach("t1", 1, "http://localhost:81");
    CHECK(attachments.at("t1/1").target_state() == "Unknown");
  }
  SECTION("that somebody deleted around us") {
    attachments.erase("t1/1");
    conflicts = 1;
    attach("t3", 1);
    pass(1000);
    REQUIRE(attachments.size() == 2);
  }
  CHECK(s.targets_size() == 1);
  CHECK(s.targets().contains("t2/1/0"));
}

TEST_CASE_METHOD(world, "connector: targets") {
  online();
  attach();
  heartbeat(1);
  forget();
  busv1::AgentEvent a;
  a.mutable_report()->set_attached_generation(1);
  auto* t = a.mutable_report()->add_targets();
  t->set_tunnel_uid("t1");
  t->set_tunnel_generation(1);
  t->set_state("Unreachable");
  t->set_message("connection refused");
  agent_says(a);
  CHECK(attachments.at("t1/1").target_state() == "Unreachable");
  CHECK(attachments.at("t1/1").target_message() == "connection refused");
  CHECK(writes == std::vector<std::string>{"attachment_target"});
  CHECK_FALSE(routed[0]);
  agent_says(a);
  CHECK(writes.size() == 1);
  heartbeat();
  CHECK(commands(busv1::AgentCommand::kReport).empty());
}

TEST_CASE_METHOD(world, "connector: a push reaches an agent that has been silent for long") {
  online();
  command("update_connector { name: 'home' spec { lease_duration_ms: 1200000 } update_mask: 'lease_duration_ms' }");
  heartbeat();
  attach();
  pass(540'000);
  REQUIRE(row->online());
  forget();
  text("push { connector: 'home' tunnel: 'web-t1' tunnel_uid: 't1' tunnel_generation: 1 }");
  CHECK(commands(busv1::AgentCommand::kAttach).size() == 1);
  CHECK(commands(busv1::AgentCommand::kReport).size() == 1);
  REQUIRE(all<v1::AttachmentState>().size() == 1);
  CHECK(all<v1::AttachmentState>()[0].stored());
  report({"10.9.9.9:7000"});
  CHECK(row->addresses(0) == "10.9.9.9:7000");
  forget();
  heartbeat(1);
  forget();
  text("push { connector: 'home' tunnel: 'web-t1' tunnel_uid: 't1' tunnel_generation: 1 }");
  CHECK(all<connector::agent_command>().empty());  // all is well: nobody is asked
  CHECK(all<v1::AttachmentState>()[0].attached());
}

TEST_CASE_METHOD(world, "connector: without a row tunnels hear so") {
  start();
  attach();
  REQUIRE(all<v1::AttachmentState>().size() == 1);
  CHECK(all<v1::AttachmentState>()[0].unknown());
  detach();
  CHECK(all<v1::AttachmentState>().back().gone());
}

TEST_CASE_METHOD(world, "connector: an attachment that a rival deleted is let go, and its tunnel hears of it") {
  online();
  attach();
  command_reply(commands(busv1::AgentCommand::kAttach)[0].command_id(), 1);
  REQUIRE(row->attached_generation() == 1);
  forget();
  attachments.clear();
  auto r = rows();
  r.set_rival(true);
  say_reloaded(r);
  CHECK(row->attachment_generation() == 2);
  REQUIRE(commands(busv1::AgentCommand::kSet).size() == 1);  // no increment leads there
  CHECK(commands(busv1::AgentCommand::kSet)[0].set().generation() == 2);
  CHECK(commands(busv1::AgentCommand::kSet)[0].set().attachments_size() == 0);
  REQUIRE(all<v1::AttachmentState>().size() == 1);
  CHECK(all<v1::AttachmentState>()[0].tunnel_uid() == "t1");
  CHECK_FALSE(all<v1::AttachmentState>()[0].stored());  // so it asks again
  forget();
  attach();
  CHECK(attachments.contains("t1/1"));
  CHECK(row->attachment_generation() == 3);
}

TEST_CASE_METHOD(world, "connector: what a rival attaches is never attached, and goes") {
  online();
  attach();
  command_reply(commands(busv1::AgentCommand::kAttach)[0].command_id(), 1);
  REQUIRE(row->attached_generation() == 1);
  forget();
  auto theirs = attachments.at("t1/1");
  theirs.set_attachment_generation(never_attached);  // the trigger's doing
  theirs.set_version(++revision);
  auto r = rows();
  SECTION("another tunnel") {
    theirs.set_tunnel("theirs");
    theirs.set_tunnel_uid("t9");
    attachments["t9/1"] = theirs;
    r = rows();
    r.set_rival(true);
    say_reloaded(r);
    CHECK_FALSE(attachments.contains("t9/1"));
    CHECK(attachments.at("t1/1").attachment_generation() == 1);
    REQUIRE(all<v1::AttachmentState>().size() == 1);
    CHECK(all<v1::AttachmentState>()[0].tunnel_uid() == "t9");
    CHECK_FALSE(all<v1::AttachmentState>()[0].stored());
    REQUIRE(commands(busv1::AgentCommand::kSet).size() == 1);
    CHECK(commands(busv1::AgentCommand::kSet)[0].set().attachments_size() == 1);
  }
  SECTION("one of ours, with other targets: its tunnel asks again and gets what it asks for") {
    theirs.mutable_rules(0)->set_target("http://localhost:6666");
    attachments["t1/1"] = theirs;
    r = rows();
    r.set_rival(true);
    say_reloaded(r);
    CHECK_FALSE(attachments.contains("t1/1"));
    REQUIRE(all<v1::AttachmentState>().size() == 1);
    CHECK_FALSE(all<v1::AttachmentState>()[0].stored());
    forget();
    attach();
    CHECK(attachments.at("t1/1").attachment_generation() == row->attachment_generation());
    CHECK(attachments.at("t1/1").rules(0).target() != "http://localhost:6666");
    CHECK_FALSE(attachments.at("t1/1").attachment_generation() <= row->attached_generation());
  }
  SECTION("just what its tunnel asks for at the same moment: it gets a number of ours") {
    theirs.set_attachment_generation(never_attached);
    attachments["t1/1"] = theirs;
    s.mutable_attachments()->at("t1/1") = theirs;
    attach();
    CHECK(attachments.at("t1/1").attachment_generation() == row->attachment_generation());
  }
}

TEST_CASE_METHOD(world, "connector: a stored attachment that no agent takes is told to none, and goes; the set moves on without it") {
  online();
  attach("t1");
  attach("t2");
  for (const auto& c : commands(busv1::AgentCommand::kAttach)) command_reply(c.command_id(), c.attach().generation());
  REQUIRE(row->attached_generation() == 2);
  auto& spoilt = attachments.at("t2/1");  // past the trigger: a row of an older release, say
  std::string where = "t2/1";
  SECTION("a control character in its target") { spoilt.mutable_rules(0)->set_target("http://bad\x01host:80"); }
  SECTION("a target that is none") { spoilt.mutable_rules(0)->set_target("elsewhere"); }
  SECTION("a name with a control character") { spoilt.set_tunnel("web\n"); }
  SECTION("a rule that there cannot be") { spoilt.mutable_rules(0)->set_index(16); }
  SECTION("too many rules") {
    for (int i = 0; i < 16; ++i) *spoilt.add_rules() = spoilt.rules(0);
  }
  SECTION("a uid that is too long") {
    auto moved = spoilt;
    attachments.erase(where);
    moved.set_tunnel_uid(std::string(65, 'u'));
    where = moved.tunnel_uid() + "/1";
    attachments[where] = moved;
  }
  takeover();
  CHECK_FALSE(attachments.contains(where));
  hello({"10.0.0.1:7000"}, 0, "");  // an agent with an empty state folder
  REQUIRE(hello_reply());
  REQUIRE(hello_reply()->error().empty());
  REQUIRE(hello_reply()->attachments().attachments_size() == 1);
  CHECK(hello_reply()->attachments().attachments(0).tunnel_uid() == "t1");
  CHECK(hello_reply()->attachments().generation() == row->attachment_generation());
  heartbeat(hello_reply()->attachments().generation());
  CHECK(row->attached_generation() == row->attachment_generation());
  const auto told = all<v1::AttachmentState>();
  REQUIRE_FALSE(told.empty());
  for (const auto& each : told)
    if (connector::attachment_key(each.tunnel_uid(), each.tunnel_generation()) == where) CHECK_FALSE(each.stored());
  CHECK(std::any_of(told.begin(), told.end(), [](const auto& a) { return a.tunnel_uid() == "t1" && a.attached(); }));
}

TEST_CASE_METHOD(world, "connector: a wish that no agent takes is not stored") {
  online();
  attach("t1", 1, "http://bad\x01host:80");
  CHECK(attachments.empty());
  CHECK(row->attachment_generation() == 0);
  attach("t2");
  CHECK(attachments.size() == 1);
}

TEST_CASE_METHOD(world, "connector: an agent that holds a set which the database has lost gets the one there is, and serves meanwhile") {
  online();
  attach();
  command_reply(commands(busv1::AgentCommand::kAttach)[0].command_id(), 1);
  REQUIRE(row->attached_generation() == 1);
  forget();
  // The failover lost step 2 (it attached a second tunnel), and began the second incarnation.
  s.set_incarnation(2);
  heartbeat(2);
  const auto number = (std::int64_t{2} << 32) + 1;
  CHECK(row->attached_generation() == 1);  // what it had acknowledged holds
  CHECK(row->attachment_generation() == number);
  REQUIRE(commands(busv1::AgentCommand::kSet).size() == 1);
  CHECK(commands(busv1::AgentCommand::kSet)[0].set().generation() == number);
  CHECK(commands(busv1::AgentCommand::kSet)[0].set().attachments_size() == 1);
  heartbeat(2);
  CHECK(row->attachment_generation() == number);  // once is enough
  command_reply(commands(busv1::AgentCommand::kSet)[0].command_id(), number);
  CHECK(row->attached_generation() == number);
}

TEST_CASE_METHOD(world, "connector: an attachment that the store refuses does not hold up the others") {
  online();
  failure.emplace();
  failure->set_code("invalid");
  attach("gone");
  attach("t2");
  pass(2000);
  CHECK(attachments.contains("t2/1"));
}
