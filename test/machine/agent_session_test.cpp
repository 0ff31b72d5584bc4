// test/machine/agent_session_test.cpp -- the agent's session: hello, heartbeats, commands, on a clock of its own.
#include <catch2/catch.hpp>

#include "actors/core/protocol.hpp"
#include "actors/core/wire.hpp"
#include "services/warren-agent/session.hpp"

using namespace warren;
using namespace warren::agent;

namespace {

constexpr auto owner_token = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

busv1::Attachment tunnel(const std::string& uid, std::int64_t generation, const std::string& to = "http://127.0.0.1:80") {
  busv1::Attachment out;
  out.set_tunnel("t-" + uid);
  out.set_tunnel_uid(uid);
  out.set_tunnel_generation(generation);
  auto& rule = *out.add_rules();
  rule.set_target(to);
  rule.set_tls_verify(true);
  return out;
}

/// An agent without a world: the test is its owner, its clock and its disk.
struct world {
  target_table targets;
  double luck = 0.5;
  session agent;
  moment now{1'000, 1'700'000'000'000};
  actions last;

  explicit world(attachment_set on_disk = {}, bool mute = false)
      : agent({"acme", "office", "uid-1", std::string(64, 'a'), "test", mute},
              {[](std::size_t n) { return std::string(n, 'n'); }, [this] { return luck; }, [](std::string_view) { return std::string(64, 's'); }},
              targets, addressing("192.0.2.1:7400"), std::move(on_disk)) {}

  static busv1::Addressing addressing(const std::string& at) {
    busv1::Addressing out;
    out.add_addresses(at);
    return out;
  }
  template <class T>
  std::vector<T> all() const {
    std::vector<T> out;
    for (const auto& one : last)
      if (const auto* it = std::get_if<T>(&one)) out.push_back(*it);
    return out;
  }
  template <class T>
  T only() const {
    const auto found = all<T>();
    REQUIRE(found.size() == 1);
    return found.front();
  }
  void advance(std::int64_t ms) {
    now.steady_ms += ms;
    now.wall_ms += ms;
    last = agent.wake(now);
  }
  void answer_hello(const busv1::HelloReply& reply) {
    const auto asked = only<ask_hello>();
    REQUIRE(wire::parse_hello(asked.payload));
    last = agent.hello_answered(now, asked.number, reply.SerializeAsString());
  }
  static busv1::HelloReply challenge() {
    busv1::HelloReply out;
    out.set_version(1);
    out.set_challenge(std::string(32, 'c'));
    return out;
  }
  static busv1::HelloReply hello_reply(std::int64_t number, std::int64_t generation, std::vector<busv1::Attachment> set = {}) {
    busv1::HelloReply out;
    out.set_version(1);
    out.set_session(number);
    out.set_token(owner_token);
    out.set_heartbeat_interval_ms(2000);
    out.set_connector_uid("uid-1");
    out.mutable_attachments()->set_generation(generation);
    for (auto& one : set) *out.mutable_attachments()->add_attachments() = one;
    return out;
  }
  static busv1::HelloReply refusal(const std::string& error, std::int64_t retry_after_ms = 0) {
    busv1::HelloReply out;
    out.set_version(1);
    out.set_error(error);
    out.set_message("in words");
    out.set_retry_after_ms(retry_after_ms);
    return out;
  }
  void greet(std::int64_t number = 7, std::int64_t generation = 0, std::vector<busv1::Attachment> set = {}) {
    last = agent.connected(now, true);
    answer_hello(challenge());
    answer_hello(hello_reply(number, generation, std::move(set)));
  }
  static busv1::AgentCommand command(std::int64_t id, std::int64_t number = 7, std::int64_t epoch = 1, std::int64_t incarnation = 1) {
    busv1::AgentCommand out;
    out.set_version(1);
    out.set_incarnation(incarnation);
    out.set_epoch(epoch);
    out.set_session(number);
    out.set_command_id(id);
    return out;
  }
  static busv1::AgentCommand attach(std::int64_t id, std::int64_t from, std::int64_t to, const busv1::Attachment& what) {
    auto out = command(id);
    out.mutable_attach()->set_from_generation(from);
    out.mutable_attach()->set_generation(to);
    *out.mutable_attach()->add_attachments() = what;
    return out;
  }
  void tell(const busv1::AgentCommand& c, const std::string& reply_to = "inbox") { last = agent.commanded(now, c.SerializeAsString(), reply_to); }
  busv1::CommandReply reply() const {
    const auto parsed = wire::parse_command_reply(only<send_reply>().payload);
    REQUIRE(parsed);
    return *parsed;
  }
  busv1::Heartbeat beat() const {
    const auto parsed = wire::parse_heartbeat(only<send_heartbeat>().payload);
    REQUIRE(parsed);
    return *parsed;
  }
  busv1::AgentEvent event() const {
    const auto parsed = wire::parse_event(only<send_event>().payload);
    REQUIRE(parsed);
    return *parsed;
  }
  void disk_done(std::string error = {}) {
    const auto generation = only<save_set>().generation;
    last = agent.saved(now, generation, error);
  }
};

}  // namespace

TEST_CASE("hello is a challenge and a signed answer, and the first heartbeat follows at once") {
  world w;
  w.last = w.agent.connected(w.now, true);
  auto first = wire::parse_hello(w.only<ask_hello>().payload);
  REQUIRE(first);
  CHECK(first->challenge().empty());
  w.answer_hello(world::challenge());
  auto second = wire::parse_hello(w.only<ask_hello>().payload);
  REQUIRE(second);
  CHECK(second->nonce() == first->nonce());
  CHECK(second->connector_uid() == "uid-1");
  CHECK(second->addressing().addresses(0) == "192.0.2.1:7400");
  w.answer_hello(world::hello_reply(7, 0));
  CHECK(w.agent.where() == phase::established);
  CHECK(w.beat().session() == 7);
  CHECK(w.all<save_set>().empty());
}

TEST_CASE("an agent whose addressing is refused says so, with the owner's words") {
  world w;
  w.last = w.agent.connected(w.now, true);
  w.answer_hello(world::challenge());
  auto reply = world::hello_reply(7, 0);
  reply.set_addressing_error("addresses[0]: a loopback address\x07");
  w.answer_hello(reply);
  CHECK(w.agent.where() == phase::established);
  const auto words = w.all<say>();
  REQUIRE(words.size() == 2);
  CHECK(words[1].important);
  CHECK(words[1].text.find("addresses[0]: a loopback address") != std::string::npos);
  CHECK(words[1].text.find('\x07') == std::string::npos);
}

TEST_CASE("a hello that nobody answers is repeated with growing, jittered delays") {
  world w;
  w.luck = 0.999;
  w.last = w.agent.connected(w.now, true);
  std::int64_t before = 0;
  for (int i = 0; i < 12; ++i) {
    const auto asked = w.only<ask_hello>();
    w.last = w.agent.hello_failed(w.now, asked.number, "no_responders");
    const auto wait = *w.agent.deadline() - w.now.steady_ms;
    CHECK(wait >= before);
    CHECK(wait <= millis{hello_retry_max}.count());
    before = wait;
    w.advance(wait);
  }
  CHECK(before > 4'900);
  w.luck = 0;
  w.last = w.agent.hello_failed(w.now, w.only<ask_hello>().number, "no_responders");
  CHECK(*w.agent.deadline() == w.now.steady_ms);
}

TEST_CASE("a hello request that is lost is given up after its time, and its late answer does not count") {
  world w;
  w.last = w.agent.connected(w.now, true);
  const auto lost = w.only<ask_hello>();
  w.advance(4'999);
  CHECK(w.last.empty());
  w.advance(1);
  CHECK(w.agent.where() == phase::waiting);
  w.last = w.agent.hello_answered(w.now, lost.number, world::challenge().SerializeAsString());
  CHECK(w.last.empty());
}

TEST_CASE("the owner's retry hint is a lower bound, and garbage for an answer is a failure") {
  world w;
  w.last = w.agent.connected(w.now, true);
  w.answer_hello(world::refusal("overloaded", 3'000));
  CHECK(*w.agent.deadline() >= w.now.steady_ms + 3'000);
  w.advance(*w.agent.deadline() - w.now.steady_ms);
  w.last = w.agent.hello_answered(w.now, w.only<ask_hello>().number, "\xff\xff garbage");
  CHECK(w.agent.where() == phase::waiting);
  CHECK(w.agent.bad_messages() == 1);
}

TEST_CASE("superseded, at hello or by command, ends the agent with the owner's words") {
  SECTION("at hello") {
    world w;
    w.last = w.agent.connected(w.now, true);
    w.answer_hello(world::refusal("superseded"));
    CHECK_FALSE(w.only<end_agent>().clean);
    CHECK(w.only<end_agent>().why == "in words");
  }
  SECTION("by command") {
    world w;
    w.greet();
    auto c = world::command(1);
    c.mutable_superseded()->set_message("session 8 took over");
    w.tell(c);
    CHECK(w.only<end_agent>().why == "session 8 took over");
    CHECK_FALSE(w.agent.deadline());
  }
  SECTION("not while our own next hello is on its way") {
    world w;
    w.greet();
    auto again = world::command(1);
    again.mutable_hello_again();
    w.tell(again, "");
    auto c = world::command(2);
    c.mutable_superseded();
    const auto asked = w.last;
    w.tell(c, "");
    CHECK(w.last.empty());
    w.last = asked;
    w.answer_hello(world::challenge());
    w.answer_hello(world::hello_reply(8, 0));
    CHECK(w.agent.number() == 8);
  }
}

TEST_CASE("heartbeats come at the interval told, give or take a tenth, whatever the wall clock says") {
  const auto wrong = GENERATE(std::int64_t{0}, std::int64_t{3'600'000}, std::int64_t{-3'600'000});
  world w;
  w.now.wall_ms += wrong;
  w.luck = GENERATE(0.0, 0.999);
  w.greet();
  auto sequence = w.beat().sequence();
  for (int i = 0; i < 5; ++i) {
    const auto wait = *w.agent.deadline() - w.now.steady_ms;
    CHECK(wait >= 1'800);
    CHECK(wait <= 2'200);
    w.advance(wait);
    CHECK(w.beat().sequence() > sequence);
    CHECK(w.beat().sent_at_ms() == w.now.wall_ms);
    CHECK(w.beat().interval_ms() == 2'000);
    sequence = w.beat().sequence();
  }
}

TEST_CASE("an owner with another interval is obeyed at once, and the heartbeat says so") {
  world w;
  w.greet();
  auto c = world::command(1);
  c.mutable_interval()->set_heartbeat_interval_ms(500);
  w.tell(c);
  CHECK(w.reply().error().empty());
  CHECK(w.beat().interval_ms() == 500);
  CHECK(*w.agent.deadline() - w.now.steady_ms <= 550);
}

TEST_CASE("a muted agent sends no heartbeat and obeys") {
  world w{{}, true};
  w.greet();
  CHECK(w.all<send_heartbeat>().empty());
  w.advance(10'000);
  CHECK(w.all<send_heartbeat>().empty());
  w.tell(world::attach(1, 0, 1, tunnel("a", 1)));
  w.disk_done();
  CHECK(w.reply().attached_generation() == 1);
}

TEST_CASE("an attachment is acknowledged when it is on disk, not before") {
  world w;
  w.greet();
  w.tell(world::attach(1, 0, 1, tunnel("a", 1)));
  CHECK(w.all<send_reply>().empty());
  CHECK(w.all<set_changed>().size() == 1);
  CHECK(w.agent.durable_generation() == 0);
  w.disk_done();
  CHECK(w.reply().attached_generation() == 1);
  CHECK(w.reply().error().empty());
}

TEST_CASE("commands that come while the disk works share the next write") {
  world w;
  w.greet();
  w.tell(world::attach(1, 0, 1, tunnel("a", 1)), "r1");
  const auto first = w.last;
  w.tell(world::attach(2, 1, 2, tunnel("b", 1)), "r2");
  CHECK(w.all<save_set>().empty());
  w.tell(world::attach(3, 2, 3, tunnel("c", 1)), "r3");
  w.last = first;
  w.disk_done();
  CHECK(w.reply().attached_generation() == 1);
  CHECK(w.only<save_set>().generation == 3);
  w.disk_done();
  CHECK(w.all<send_reply>().size() == 2);
  CHECK(w.agent.durable_generation() == 3);
}

TEST_CASE("repeated, overtaken and foreign commands") {
  world w;
  w.greet();
  w.tell(world::attach(1, 0, 5, tunnel("a", 1)));
  w.disk_done();
  SECTION("repeated: acknowledged again, nothing written") {
    w.tell(world::attach(1, 0, 5, tunnel("a", 1)));
    CHECK(w.reply().error().empty());
    CHECK(w.reply().attached_generation() == 5);
    CHECK(w.all<save_set>().empty());
  }
  SECTION("an older generation is stale") {
    w.tell(world::attach(1, 0, 4, tunnel("b", 1)));
    CHECK(w.reply().error() == "stale");
    CHECK(w.agent.held().all().size() == 1);
  }
  SECTION("a gap is answered with what is held, and the whole set fills it") {
    w.tell(world::attach(2, 7, 8, tunnel("b", 1)));
    CHECK(w.reply().error().empty());
    CHECK(w.reply().attached_generation() == 5);
    auto set = world::command(3);
    set.mutable_set()->set_generation(8);
    *set.mutable_set()->add_attachments() = tunnel("b", 1);
    w.tell(set);
    w.disk_done();
    CHECK(w.reply().attached_generation() == 8);
    CHECK(w.agent.held().find("b", 1) != nullptr);
    CHECK(w.agent.held().find("a", 1) == nullptr);
  }
  SECTION("an older epoch, incarnation or session is stale; a newer session gets no answer") {
    auto newer = world::command(2, 7, 3, 2);
    newer.mutable_report();
    w.tell(newer);
    for (auto c : {world::command(3, 7, 2, 2), world::command(4, 7, 9, 1), world::command(5, 6, 9, 9)}) {
      c.mutable_detach()->set_from_generation(5);
      c.mutable_detach()->set_generation(6);
      w.tell(c);
      CHECK(w.reply().error() == "stale");
      CHECK(w.agent.held().generation() == 5);
    }
    auto foreign = world::command(6, 8, 9, 9);
    foreign.mutable_superseded();
    w.tell(foreign);
    CHECK(w.all<send_reply>().empty());
    CHECK(w.all<end_agent>().empty());
    CHECK(w.all<send_heartbeat>().size() == 1);
  }
  SECTION("detach") {
    auto c = world::command(9);
    c.mutable_detach()->set_from_generation(5);
    c.mutable_detach()->set_generation(6);
    auto& gone = *c.mutable_detach()->add_tunnels();
    gone.set_tunnel_uid("a");
    gone.set_tunnel_generation(1);
    w.tell(c);
    w.disk_done();
    CHECK(w.reply().attached_generation() == 6);
    CHECK(w.agent.held().all().empty());
  }
  SECTION("garbage is counted and dropped") {
    w.last = w.agent.commanded(w.now, "\x08\x09garbage", "inbox");
    CHECK(w.last.empty());
    CHECK(w.agent.bad_messages() == 1);
  }
}

TEST_CASE("a disk that refuses is said to be unavailable, and tried again") {
  world w;
  w.greet();
  w.tell(world::attach(1, 0, 1, tunnel("a", 1)));
  w.disk_done("no space left");
  CHECK(w.reply().error() == "unavailable");
  CHECK(w.reply().attached_generation() == 0);
  w.advance(millis{save_retry}.count());
  w.disk_done();
  CHECK(w.agent.durable_generation() == 1);
}

TEST_CASE("a target's state travels with the acknowledgement, or as an event of its own") {
  world w;
  w.greet();
  const auto attachment = tunnel("a", 1);
  w.tell(world::attach(1, 0, 1, attachment));
  const auto todo = w.last;
  w.targets.attach(w.agent.held(), w.now.steady_ms);
  const auto to = w.targets.due(w.now.steady_ms).at(0);
  SECTION("known before the disk is done") {
    REQUIRE(w.targets.dialled(to, "", true, w.now.steady_ms));
    w.last = w.agent.targets_changed(w.now);
    CHECK(w.last.empty());
    w.last = todo;
    w.disk_done();
    REQUIRE(w.reply().targets_size() == 1);
    CHECK(w.reply().targets(0).state() == "Reachable");
  }
  SECTION("known before the disk is done, and the disk is slow") {
    REQUIRE(w.targets.dialled(to, "", true, w.now.steady_ms));
    w.last = w.agent.targets_changed(w.now);
    w.advance(millis{target_change_held}.count());
    CHECK(w.event().report().targets(0).state() == "Reachable");
  }
  SECTION("known later, and only on change") {
    w.last = todo;
    w.disk_done();
    REQUIRE(w.targets.dialled(to, "refused", true, w.now.steady_ms));
    w.last = w.agent.targets_changed(w.now);
    CHECK(w.event().report().targets(0).message() == "refused");
    CHECK_FALSE(w.targets.dialled(to, "refused", true, w.now.steady_ms));
    w.last = w.agent.targets_changed(w.now);
    CHECK(w.last.empty());
  }
}

TEST_CASE("a lost connection keeps the session, and what was missed is told") {
  world w;
  w.greet();
  w.last = w.agent.connected(w.now, false);
  w.advance(60'000);
  CHECK(w.last.empty());
  w.last = w.agent.addressing_is(w.now, world::addressing("192.0.2.2:7400"));
  CHECK(w.last.empty());
  w.last = w.agent.connected(w.now, true);
  CHECK(w.event().report().full());
  CHECK(w.event().report().addressing().addresses(0) == "192.0.2.2:7400");
  CHECK(w.beat().session() == 7);
}

TEST_CASE("addressing is reported when it changes, not when it is reordered or the same") {
  world w;
  w.greet();
  w.last = w.agent.addressing_is(w.now, world::addressing("192.0.2.1:7400"));
  CHECK(w.last.empty());
  w.last = w.agent.addressing_is(w.now, world::addressing("192.0.2.9:7400"));
  CHECK(w.event().report().addressing().addresses(0) == "192.0.2.9:7400");
  CHECK(w.event().report().targets_size() == 0);
}

TEST_CASE("a roll call is answered in full") {
  world w;
  w.greet(7, 3, {tunnel("a", 1)});
  w.targets.attach(w.agent.held(), w.now.steady_ms);
  auto c = world::command(1);
  c.mutable_report();
  w.tell(c);
  CHECK(w.reply().report().full());
  CHECK(w.reply().report().addressing().addresses_size() == 1);
  CHECK(w.reply().report().targets_size() == 1);
}

TEST_CASE("the set of a hello is taken as it is, saved when it differs, and reported") {
  attachment_set on_disk;
  busv1::AttachmentSet set;
  set.set_generation(9);
  *set.add_attachments() = tunnel("old", 1);
  on_disk.apply(set, true);
  world w{on_disk};
  SECTION("unchanged: nothing is written") {
    w.greet(7, 9, {tunnel("old", 1)});
    CHECK(w.all<save_set>().empty());
    CHECK(w.beat().attached_generation() == 9);
  }
  SECTION("another, even of a lower generation: after a restore") {
    w.greet(7, 4, {tunnel("new", 1)});
    CHECK(w.all<set_changed>().size() == 1);
    w.disk_done();
    CHECK(w.event().report().attached_generation() == 4);
  }
}

TEST_CASE("a tunnel that is malformed is left out and named once; the set is taken and acknowledged without it") {
  world w;
  auto poisoned = tunnel("b", 1, "http://bad\x01host:80");
  SECTION("in the answer to hello") {
    w.greet(7, 5, {tunnel("a", 1), poisoned, tunnel("c", 1)});
    CHECK(w.agent.where() == phase::established);
    std::vector<std::string> warned;
    for (const auto& each : w.all<say>())
      if (each.important) warned.push_back(each.text);
    REQUIRE(warned.size() == 1);
    CHECK_THAT(warned[0], Catch::Contains("1 tunnel(s)") && Catch::Contains("\"t-b\"") && Catch::Contains("attachments.rules.target"));
    w.disk_done();
    CHECK(w.event().report().attached_generation() == 5);
    CHECK(w.agent.held().all().size() == 2);
    CHECK(w.agent.held().find("b", 1) == nullptr);
    CHECK(w.agent.bad_messages() == 0);
    CHECK(w.agent.omitted_tunnels() == 1);

    // The same words are not said again, however often they are sent; others are.
    auto again = world::command(1);
    again.mutable_set()->set_generation(6);
    for (const auto& each : {tunnel("a", 1), poisoned}) *again.mutable_set()->add_attachments() = each;
    w.tell(again);
    CHECK(w.all<say>().empty());
    CHECK(w.agent.omitted_tunnels() == 2);
    w.disk_done();
    CHECK(w.reply().attached_generation() == 6);
    again.set_command_id(2);
    again.mutable_set()->set_generation(7);
    again.mutable_set()->mutable_attachments(1)->set_tunnel("other");
    w.tell(again);
    CHECK(w.only<say>().important);
  }
  SECTION("in a step: what was held of it goes, on disk as well") {
    w.greet(7, 5, {tunnel("a", 1), tunnel("b", 1)});
    w.disk_done();
    REQUIRE(w.agent.held().all().size() == 2);
    w.tell(world::attach(1, 5, 6, poisoned));
    const auto lines = w.only<save_set>().text;
    w.disk_done();
    CHECK(w.reply().attached_generation() == 6);
    CHECK(w.reply().error().empty());
    CHECK(w.agent.held().find("a", 1) != nullptr);
    CHECK(w.agent.held().find("b", 1) == nullptr);
    CHECK_THAT(lines, !Catch::Contains("host:80"));
  }
}

TEST_CASE("a command that overtakes the hello's answer is obeyed after it") {
  world w;
  w.last = w.agent.connected(w.now, true);
  w.answer_hello(world::challenge());
  const auto asked = w.last;
  w.tell(world::attach(1, 0, 1, tunnel("a", 1)));
  CHECK(w.last.empty());
  w.last = asked;
  w.answer_hello(world::hello_reply(7, 0));
  CHECK(w.agent.held().generation() == 1);
  w.disk_done();
  CHECK(w.reply().attached_generation() == 1);
}

TEST_CASE("a clean stop says bye, and only a session has one to say") {
  world w;
  w.last = w.agent.stop(w.now);
  CHECK(w.all<send_event>().empty());
  CHECK(w.only<end_agent>().clean);
  world greeted;
  greeted.greet();
  greeted.last = greeted.agent.stop(greeted.now);
  CHECK(greeted.event().has_bye());
}

TEST_CASE("a large report goes out in pieces that the bus takes") {
  world w;
  std::vector<busv1::Attachment> many;
  for (int i = 0; i < 3'000; ++i) many.push_back(tunnel("00000000-0000-0000-0000-" + std::to_string(100'000 + i), 1));
  w.greet(7, 1, many);
  w.targets.attach(w.agent.held(), w.now.steady_ms);
  w.disk_done();
  const auto pieces = w.all<send_event>();
  CHECK(pieces.size() > 1);
  int told = 0;
  for (const auto& piece : pieces) {
    const auto parsed = wire::parse_event(piece.payload);
    REQUIRE(parsed);
    CHECK_FALSE(parsed->report().full());
    told += parsed->report().targets_size();
  }
  CHECK(told == 3'000);
}

TEST_CASE("the disk is given the whole set first, then steps, and the whole set again when steps do not do") {
  world w;
  w.greet();
  std::optional<saved_set> disk;
  const auto written = [&](bool whole) {
    const auto what = w.only<save_set>();
    CHECK(what.whole == whole);
    if (what.whole) {
      disk = parse_saved(what.text);
      REQUIRE(disk);
    } else {
      CHECK(replay(what.text, *disk) > 0);
    }
    CHECK(disk->set.generation() == what.generation);
    w.last = w.agent.saved(w.now, what.generation, "");
  };
  w.tell(w.attach(1, 0, 1, tunnel("a", 1)));
  written(true);
  w.tell(w.attach(2, 1, 2, tunnel("b", 1)));
  written(false);
  CHECK(disk->set == w.agent.held());
  SECTION("what comes while the disk is busy follows in one piece") {
    w.tell(w.attach(3, 2, 3, tunnel("c", 1)));
    const auto first = w.only<save_set>();
    w.tell(w.attach(4, 3, 4, tunnel("d", 1)));
    CHECK(w.all<save_set>().empty());
    auto gone = w.command(5);
    gone.mutable_detach()->set_from_generation(4);
    gone.mutable_detach()->set_generation(5);
    gone.mutable_detach()->add_tunnels()->set_tunnel_uid("a");
    gone.mutable_detach()->mutable_tunnels(0)->set_tunnel_generation(1);
    w.tell(gone);
    CHECK(replay(first.text, *disk) == 1);
    w.last = w.agent.saved(w.now, first.generation, "");
    written(false);
    CHECK(disk->set == w.agent.held());
  }
  SECTION("a step that failed") {
    w.tell(w.attach(3, 2, 3, tunnel("c", 1)));
    CHECK_FALSE(w.only<save_set>().whole);
    w.disk_done("full");
    w.tell(w.attach(4, 3, 4, tunnel("d", 1)));
    written(true);
    CHECK(disk->set == w.agent.held());
  }
  SECTION("a set from the owner") {
    auto set = w.command(3);
    set.mutable_set()->set_generation(9);
    *set.mutable_set()->add_attachments() = tunnel("z", 1);
    w.tell(set);
    written(true);
    CHECK(disk->set == w.agent.held());
  }
  SECTION("a journal that is longer than what it saves") {
    std::size_t bytes = 0, steps = 0;
    for (std::int64_t n = 2;; ++n, ++steps) {
      w.tell(w.attach(n + 1, n, n + 1, tunnel("b", n, "http://" + std::string(200, 'h'))));
      const auto what = w.only<save_set>();
      if (what.whole) break;
      bytes += what.text.size();
      REQUIRE(bytes <= 2 * journal_bytes_min);
      w.disk_done();
    }
    CHECK(steps > 50);
    written(true);
    CHECK(disk->set == w.agent.held());
  }
}
