// test/machine/connector_commands_test.cpp -- what operators ask of a connector, and who changes its rows beside them.
#include "test/machine/connector_world.hpp"

using namespace warren;
using namespace warren::connector_world;

TEST_CASE_METHOD(world, "connector: create, update, delete and their refusals") {
  start();
  CHECK(gone);
  CHECK(command("update_connector { name: 'home' }").code() == "not_found");
  CHECK(command("delete_connector { name: 'home' }").code() == "not_found");
  CHECK(command("create_connector { name: 'home' spec { lease_duration_ms: 2999 } }").field() == "lease_duration");
  CHECK(command("create_connector { name: 'home' spec { lease_duration_ms: 3600001 } }").field() == "lease_duration");
  CHECK(command("create_connector { name: 'home' spec { class: 'No' } }").field() == "class");
  CHECK(writes.empty());

  const auto created = command("create_connector { name: 'home' } caller { request_id: 'r' method: 'CreateConnector' }");
  CHECK(created.code().empty());
  CHECK(created.row().connector().uid() == "uid-1");
  CHECK(row->lease_duration_ms() == 30'000);
  CHECK(row->class_() == "default");
  CHECK(saves[0].audit);
  CHECK(saves[0].request);
  CHECK(all<connector::appeared>().size() == 1);
  REQUIRE(all<connector::class_asked>().size() == 1);
  class_is();
  CHECK(is_true(row->conditions(), "Accepted"));
  CHECK(ready() == "False/ConnectorNotReady/Connector lease has not been renewed yet.");
  CHECK(command("create_connector { name: 'home' }").code() == "already_exists");

  const auto stale = command("update_connector { name: 'home' etag: 'uid-1-9' spec { lease_duration_ms: 5000 } update_mask: 'lease_duration_ms' }");
  CHECK(stale.code() == "aborted");
  CHECK(stale.etag() == "uid-1-1");
  CHECK(command("update_connector { name: 'home' update_mask: 'uid' }").field() == "update_mask");
  forget();
  CHECK(command("update_connector { name: 'home' etag: 'uid-1-1' spec { lease_duration_ms: 5000 } update_mask: 'lease_duration_ms' }").code().empty());
  CHECK(row->generation() == 2);
  CHECK(row->observed_generation() == 2);
  CHECK(row->class_() == "default");
  CHECK(row->lease_duration_ms() == 5000);
  forget();
  CHECK(command("update_connector { name: 'home' spec { lease_duration_ms: 5000 } update_mask: 'lease_duration_ms' }").code().empty());
  CHECK(writes.empty());

  attach();
  forget();
  CHECK(command("delete_connector { name: 'home' etag: 'uid-1-1' }").code() == "aborted");
  CHECK(command("delete_connector { name: 'home' }").code().empty());
  CHECK_FALSE(row);
  CHECK(attachments.empty());
  CHECK(gone);
  REQUIRE(all<v1::AttachmentState>().size() == 1);
  CHECK(all<v1::AttachmentState>()[0].unknown());
}

TEST_CASE_METHOD(world, "connector: enrolment sets a key once, rotation changes it and ends the session") {
  start();
  const std::string other(64, 'b');
  CHECK(command("enrol_connector { name: 'home' public_key: 'ABC' }").field() == "public_key");
  CHECK(command("rotate_connector_key { name: 'home' public_key: '" + other + "' }").code() == "not_found");
  CHECK(command("enrol_connector { name: 'home' public_key: '" + key.public_hex() + "' }").code().empty());
  CHECK(row->public_key() == key.public_hex());
  class_is();
  forget();
  CHECK(command("enrol_connector { name: 'home' public_key: '" + key.public_hex() + "' }").code().empty());
  CHECK(writes.empty());
  CHECK(command("enrol_connector { name: 'home' public_key: '" + other + "' }").code() == "failed_precondition");
  hello();
  REQUIRE(row->online());
  forget();
  CHECK(command("rotate_connector_key { name: 'home' public_key: '" + other + "' }").code().empty());
  CHECK(row->public_key() == other);
  CHECK_FALSE(row->online());
  CHECK(routed[0]);
  CHECK(commands(busv1::AgentCommand::kSuperseded).size() == 1);
  forget();
  heartbeat();
  CHECK_FALSE(row->online());
  CHECK(commands(busv1::AgentCommand::kHelloAgain).size() == 1);
}

TEST_CASE_METHOD(world, "connector: what was deleted is not shown as ready") {
  online();
  const auto r = command("delete_connector { name: 'home' }");
  CHECK(r.code().empty());
  const auto& last = r.row().connector();
  CHECK_FALSE(last.online());
  CHECK(last.has_delete_time());
  CHECK(last.session_token_hash().empty());
  const auto* shown = find_condition(last.conditions(), "Ready");
  REQUIRE(shown != nullptr);
  CHECK(shown->status() == "False");
  CHECK(shown->reason() == "Deleting");
}

TEST_CASE_METHOD(world, "connector: a lease that a rival spoilt is named, and nobody is taken for silent by it") {
  online();
  heartbeat();
  row->set_lease_duration_ms(GENERATE(0, -5, 2'999, 3'600'001));
  row->set_version(++revision);
  start();
  CHECK_FALSE(row->online());
  CHECK(ready() == "False/InvalidAddressing/lease_duration: must be between 3 s and 1 h");
  forget();
  for (int n = 0; n < 10; ++n) {
    heartbeat();
    pass(2000);
  }
  CHECK(writes.empty());
  hello();
  REQUIRE(hello_reply());
  CHECK(hello_reply()->lease_duration_ms() == limits::lease_default / 1ms);
  row->set_lease_duration_ms(10'000);
  row->set_version(++revision);
  start();
  CHECK(row->online());
  CHECK(row->addressing_error().empty());
}

TEST_CASE_METHOD(world, "connector: a key that somebody has is refused by the store, to the caller") {
  start();
  failure.emplace();
  failure->set_code("already_exists");
  failure->set_field("public_key");
  const auto r = command("enrol_connector { name: 'home' public_key: '" + key.public_hex() + "' }");
  CHECK(r.code() == "already_exists");
  CHECK(r.field() == "public_key");
  CHECK_FALSE(row);
}

TEST_CASE_METHOD(world, "connector: an unknown class is said so, and mended when it appears") {
  start();
  command("enrol_connector { name: 'home' public_key: '" + key.public_hex() + "' spec { class: 'edge' } }");
  REQUIRE(all<connector::class_asked>().size() == 1);
  CHECK(all<connector::class_asked>()[0].name == "edge");
  pass(1000);
  CHECK(all<connector::class_asked>().size() == 2);
  class_is(false, {}, "edge");
  CHECK(find_condition(row->conditions(), "Accepted")->status() == "False");
  CHECK(find_condition(row->conditions(), "Accepted")->reason() == "ConnectorClassNotFound");
  const auto ready = [&] { return *find_condition(row->conditions(), "Ready"); };
  const auto without_class = [&] {
    CHECK_FALSE(row->online());
    CHECK(ready().status() == "False");
    CHECK(ready().reason() == "ConnectorNotReady");
    CHECK(ready().message() == "There is no connector class \"edge\".");
  };
  without_class();
  hello();
  without_class();
  class_is(true, {"10.0.0.0/8"}, "edge");
  CHECK(row->online());
  CHECK(ready().message() == connector::ready_message);
  class_is(false, {}, "edge");  // deleted around us
  without_class();
  takeover();
  without_class();
  class_is(true, {"10.0.0.0/8"}, "edge");
  CHECK(ready().message() == connector::lease_not_renewed);
  heartbeat();
  CHECK(row->online());
}

TEST_CASE_METHOD(world, "connector: a change that is refused holds up nobody behind it") {
  online();
  for (int i = 0; i < 3; ++i) {
    auto& p = *s.add_pending();
    p.set_ticket(static_cast<std::uint64_t>(i));
    REQUIRE(google::protobuf::TextFormat::ParseFromString(
        "project: 'acme' update_connector { name: 'home' spec { lease_duration_ms: " + std::to_string(20'000 + i) +
            " } update_mask: 'lease_duration_ms' }",
        p.mutable_command()));
  }
  random = 99;
  v1::Failed refused;
  refused.set_code("invalid");
  failure = refused;
  wake();  // until it comes to rest, with no time passing
  REQUIRE(replies.size() == 3);
  CHECK(replies[0].reply.code() == "invalid");
  CHECK(replies[1].reply.code().empty());
  CHECK(replies[2].reply.code().empty());
  CHECK(row->lease_duration_ms() == 20'002);
}

TEST_CASE_METHOD(world, "connector: a change whose caller's deadline has passed when its turn comes is not carried out") {
  event e;
  e.set_ticket(5);
  *e.mutable_command()->mutable_create_connector()->mutable_name() = "home";
  e.mutable_command()->set_patience_ms(500);
  say(e);  // it waits until the row is read
  at(now.steady_ms + 500);
  start();
  REQUIRE(replies.size() == 1);
  CHECK(replies[0].reply.code() == "unavailable");
  CHECK(writes.empty());
  CHECK(gone);
}

TEST_CASE_METHOD(world, "connector: conflicts lose no command, and are tried again within 200 ms each") {
  online();
  conflicts = 20;
  random = 12345;
  event e;
  e.set_ticket(5);
  REQUIRE(google::protobuf::TextFormat::ParseFromString(
      "update_connector { name: 'home' spec { lease_duration_ms: 9000 } update_mask: 'lease_duration_ms' }",
      e.mutable_command()));
  const auto begin = now.steady_ms;
  say(e);
  CHECK(replies.empty());
  CHECK(wake_at <= now.steady_ms + 20);
  while (replies.empty() && now.steady_ms < begin + 10'000) pass(10);
  CHECK(now.steady_ms - begin < 5000);
  CHECK(row->lease_duration_ms() == 9000);
  CHECK(row->generation() == 2);
}

TEST_CASE_METHOD(world, "connector: a rival's change is taken as a change, its lies are not") {
  online();
  v1::Reloaded r;
  row->set_lease_duration_ms(60'000);
  row->set_online(false);
  row->set_version(++revision);
  r = rows();
  r.set_rival(true);
  say_reloaded(r);
  CHECK(row->generation() == 2);
  CHECK(row->lease_duration_ms() == 60'000);
  CHECK(row->online());
}

TEST_CASE_METHOD(world, "connector: a key that a rival spoils takes it down and is named, until it is one again") {
  online();
  const auto sound = row->public_key();
  const auto rival_writes = [&](const std::string& text) {
    row->set_public_key(text);
    row->set_version(++revision);
    auto r = rows();
    r.set_rival(true);
    say_reloaded(r);
  };
  const auto spoilt = GENERATE(std::string{}, std::string(63, 'a') + "\n", std::string(64, '0'));
  rival_writes(spoilt);
  CHECK_FALSE(row->online());
  CHECK(row->addressing_error().starts_with("public_key: "));
  const auto* ready = find_condition(row->conditions(), "Ready");
  CHECK(ready->status() == "False");
  CHECK(ready->reason() == "InvalidAddressing");
  CHECK(ready->message() == row->addressing_error());
  rival_writes(sound);
  CHECK(row->online());
  CHECK(row->addressing_error().empty());
  CHECK(find_condition(row->conditions(), "Ready")->status() == "True");
}

TEST_CASE_METHOD(world, "connector: who asks hears when the agent was last heard, and nothing is written for it") {
  start();
  CHECK(command("observe_connector { name: 'home' }").code() == "not_found");
  enrolled();
  CHECK(command("observe_connector { name: 'home' }").observed().heard_ms() == 0);
  hello();
  pass(1500);
  heartbeat();
  pass(700);
  forget();
  const auto r = command("observe_connector { name: 'home' }");
  CHECK(r.code().empty());
  CHECK(r.row().connector().name() == "home");
  CHECK(r.observed().heard_ms() == now.wall_ms - 700);
  CHECK(writes.empty());

  // Another owner: it has heard nothing yet, and says since when it listens.
  const auto taken_over = now;
  const auto woken = [&](std::int64_t heard_before_ms) {
    s = connector::initial(3, 8, 0, 2000, "acme", "home");
    s.set_listening_ms(taken_over.steady_ms);
    s.set_heard_before_ms(heard_before_ms);
    start();
    class_is();
  };
  const auto observed = [&] { return command("observe_connector { name: 'home' }").observed(); };
  woken(0);
  pass(400);
  CHECK(observed().heard_ms() == 0);
  CHECK(observed().listening_ms() == taken_over.wall_ms);

  // It falls silent, is let go and is woken again: what this owner has heard, and since when it listens, is as it was.
  heartbeat();
  const auto heard = now;
  pass(31'000);
  REQUIRE_FALSE(row->online());
  pass(100'000);
  woken(heard.steady_ms);
  CHECK_FALSE(row->online());
  pass(400);
  CHECK(observed().heard_ms() == heard.wall_ms);
  CHECK(observed().listening_ms() == taken_over.wall_ms);

  // One that was deleted, and made again, while it slept has never been heard.
  row->set_uid("uid-9");
  *row->mutable_created_at() = timestamp_from_ms(heard.wall_ms + 1);
  woken(heard.steady_ms);
  CHECK(observed().heard_ms() == 0);

  // The end of a cut: before it nobody listened.
  text("bus { connected: false }");
  pass(1000);
  text("bus { connected: true }");
  CHECK(observed().listening_ms() == now.wall_ms);
}
