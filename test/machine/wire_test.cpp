// test/machine/wire_test.cpp -- every message off the bus, with every field wrong in turn: what is dropped says
// why and which field, and no bytes whatever do harm.
#include <catch2/catch.hpp>

#include <functional>
#include <limits>
#include <random>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/wire.hpp"

using namespace warren;
namespace busv1 = warren::bus::v1;
namespace v1 = warren::core::v1;

namespace {

const std::string token(64, 'a');
const std::string digest(32, 'b');
const std::string control = "a\nb";
const std::string long_uid(65, 'u');

template <class T>
struct wrong {
  std::string what;                  ///< the expected field
  std::function<void(T&)> change;
};

/// Each entry makes one thing wrong in a message that is otherwise good.
template <class T>
void refuses(const T& good, wire::parsed<T> (*parse)(std::string_view), const std::vector<wrong<T>>& table) {
  {
    const auto fine = parse(good.SerializeAsString());
    INFO(fine.error.reason << " " << fine.error.field << " " << fine.error.message);
    REQUIRE(fine);
    CHECK(fine->SerializeAsString() == good.SerializeAsString());
  }
  for (const auto& each : table) {
    T bad = good;
    each.change(bad);
    INFO(T::descriptor()->name() << " " << each.what << ": " << bad.ShortDebugString().substr(0, 200));
    const auto read = parse(bad.SerializeAsString());
    CHECK_FALSE(read);
    CHECK(read.error.reason == "field");
    CHECK(read.error.field == each.what);
    CHECK_FALSE(read.error.message.empty());
    CHECK(protocol::is_printable_utf8(read.error.message));
  }
}

template <class T>
void refuses_whole(const T& good, wire::parsed<T> (*parse)(std::string_view), std::size_t bytes_max) {
  const auto bytes = good.SerializeAsString();
  CHECK(parse(std::string(bytes_max + 1, 'x')).error.reason == "oversized");
  CHECK(parse(std::string(bytes_max, '\xff')).error.reason == "garbage");
  CHECK(parse(bytes.substr(0, bytes.size() - 1)).error.reason == "garbage");
  CHECK(parse(std::string(100, '\0')).error.reason == "garbage");
  // An unknown field is another version's business; a length beyond the end is garbage.
  CHECK(parse(bytes + std::string{"\xfa\x7f\x01x", 4}));
  CHECK(parse(bytes + std::string{"\xfa\x7f\xff\xff\xff\xff\x07x", 8}).error.reason == "garbage");
}

template <class T>
void refuses_versions(const T& good, wire::parsed<T> (*parse)(std::string_view)) {
  for (const int version : {0, 2, -1, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
    T other = good;
    other.set_version(version);
    const auto read = parse(other.SerializeAsString());
    CHECK_FALSE(read);
    CHECK(read.error.reason == "version");
  }
  CHECK(parse("").error.reason == "version");
}

/// Random changes to good bytes: read or refused with a reason, never more than that.
template <class T>
void survives(const T& good, wire::parsed<T> (*parse)(std::string_view)) {
  std::mt19937 random{11};
  const auto bytes = good.SerializeAsString();
  int refused = 0;
  for (int i = 0; i < 4'000; ++i) {
    auto s = bytes;
    for (auto n = 1 + random() % 6; n > 0 && !s.empty(); --n) {
      const auto at = random() % s.size();
      switch (random() % 5) {
        case 0: s[at] = static_cast<char>(random()); break;
        case 1: s[at] = static_cast<char>(s[at] ^ (1 << (random() % 8))); break;
        case 2: s.insert(at, 1 + random() % 8, static_cast<char>(random())); break;
        case 3: s.erase(at, 1 + random() % 4); break;
        default: s += s.substr(at); break;
      }
    }
    const auto read = parse(s);
    if (read) continue;
    ++refused;
    if (read.error.reason != "garbage" && read.error.reason != "version" && read.error.reason != "field" &&
        read.error.reason != "oversized")
      FAIL(read.error.reason);
    if ((read.error.reason == "field") == read.error.field.empty()) FAIL(read.error.field);
    if (!protocol::is_printable_utf8(read.error.message)) FAIL("the message carries the sender's bytes");
  }
  CHECK(refused > 0);
}

busv1::TargetState target() {
  busv1::TargetState t;
  t.set_tunnel_uid("uid");
  t.set_tunnel_generation(3);
  t.set_rule(1);
  t.set_state("Reachable");
  t.set_message("fine");
  return t;
}
void fill(busv1::Addressing& a) {
  a.set_home_relay("https://relay.example");
  a.add_addresses("192.0.2.1:80");
}
template <class T>
void fill_session(T& m) {
  m.set_version(1);
  m.set_session(4);
  m.set_token(token);
}
busv1::Report report() {
  busv1::Report r;
  fill(*r.mutable_addressing());
  r.set_attached_generation(2);
  *r.add_targets() = target();
  r.set_full(true);
  return r;
}

template <class T>
void add(std::vector<wrong<T>>& to, std::string what, std::function<void(T&)> change) {
  to.push_back({std::move(what), std::move(change)});
}
/// What can be wrong with a session and its token.
template <class T>
std::vector<wrong<T>> session_faults() {
  return {
      {"session", [](T& m) { m.set_session(-1); }},
      {"session", [](T& m) { m.set_session(std::numeric_limits<std::int64_t>::min()); }},
      {"token", [](T& m) { m.clear_token(); }},
      {"token", [](T& m) { m.set_token(token.substr(1)); }},
      {"token", [](T& m) { m.set_token(token + "a"); }},
      {"token", [](T& m) { m.set_token(std::string(64, 'A')); }},
      {"token", [](T& m) { m.set_token(std::string(64, '\0')); }},
      {"token", [](T& m) { m.set_token(std::string(60'000, 'a')); }},
  };
}
/// What can be wrong with a list of target states.
template <class T>
void add_target_faults(std::vector<wrong<T>>& to, std::function<google::protobuf::RepeatedPtrField<busv1::TargetState>*(T&)> list) {
  const auto one = [&](std::string what, std::function<void(busv1::TargetState&)> change) {
    to.push_back({std::move(what), [list, change](T& m) { change(*list(m)->Mutable(0)); }});
    to.push_back({to.back().what, [list, change](T& m) {  // also when it is not the first
                    *list(m)->Add() = target();
                    change(*list(m)->Mutable(list(m)->size() - 1));
                  }});
  };
  for (const std::string state : {"", "reachable", "Reachable ", "Down"})
    one("targets.state", [state](auto& t) { t.set_state(state); });
  one("targets.state", [](auto& t) { t.set_state(std::string(1000, 'R')); });
  one("targets.tunnel_uid", [](auto& t) { t.clear_tunnel_uid(); });
  one("targets.tunnel_uid", [](auto& t) { t.set_tunnel_uid(long_uid); });
  one("targets.tunnel_uid", [](auto& t) { t.set_tunnel_uid(control); });
  one("targets.tunnel_generation", [](auto& t) { t.set_tunnel_generation(-1); });
  one("targets.rule", [](auto& t) { t.set_rule(-1); });
  one("targets.rule", [](auto& t) { t.set_rule(16); });
  one("targets.rule", [](auto& t) { t.set_rule(std::numeric_limits<std::int32_t>::max()); });
  to.push_back({"targets", [list](T& m) {
                  for (int i = 0; i < 4096; ++i) {
                    auto* t = list(m)->Add();
                    t->set_tunnel_uid("u");
                    t->set_state("Unknown");
                  }
                }});
}
void many(busv1::Addressing& a) {
  for (int i = 0; i < 256; ++i) a.add_addresses("a");
}

void fill(busv1::Attachment& a) {
  a.set_tunnel("web");
  a.set_tunnel_uid("uid");
  a.set_tunnel_generation(1);
  a.add_rules()->set_target("http://localhost:80");
}

/// Each thing that can be wrong with one attachment of a message takes that one out of it, and names it.
template <class T>
void omits_unsound(const T& good, wire::parsed<T> (*parse)(std::string_view),
                   google::protobuf::RepeatedPtrField<busv1::Attachment>* (*list)(T&)) {
  const std::vector<wrong<busv1::Attachment>> faults{
      {"attachments.tunnel", [](auto& a) { a.set_tunnel(std::string(64, 'a')); }},
      {"attachments.tunnel", [](auto& a) { a.set_tunnel(control); }},
      {"attachments.tunnel_uid", [](auto& a) { a.clear_tunnel_uid(); }},
      {"attachments.tunnel_uid", [](auto& a) { a.set_tunnel_uid(long_uid); }},
      {"attachments.tunnel_uid", [](auto& a) { a.set_tunnel_uid(control); }},
      {"attachments.tunnel_generation", [](auto& a) { a.set_tunnel_generation(-1); }},
      {"attachments.rules", [](auto& a) { for (int i = 0; i < 16; ++i) a.add_rules(); }},
      {"attachments.rules.target", [](auto& a) { a.mutable_rules(0)->set_target(std::string(301, 'a')); }},
      {"attachments.rules.target", [](auto& a) { a.mutable_rules(0)->set_target(control); }},
      {"attachments.rules.index", [](auto& a) { a.mutable_rules(0)->set_index(-1); }},
      {"attachments.rules.index", [](auto& a) { a.mutable_rules(0)->set_index(16); }},  // its state would be no report
  };
  for (const auto& fault : faults) {
    INFO(T::descriptor()->name() << " " << fault.what);
    T message = good;
    auto& all = *list(message);
    all.Clear();
    for (const auto* uid : {"before", "poisoned", "after"}) {
      fill(*all.Add());
      all.Mutable(all.size() - 1)->set_tunnel_uid(uid);
    }
    fault.change(*all.Mutable(1));
    REQUIRE(wire::check_attachment(all[1]));
    CHECK(wire::check_attachment(all[1])->field == fault.what);
    CHECK_FALSE(wire::check_attachment(all[0]));
    auto read = parse(message.SerializeAsString());
    REQUIRE(read);
    CHECK(read.omitted.tunnels == 1);
    CHECK(read.omitted.field == fault.what);
    CHECK_FALSE(read.omitted.message.empty());
    CHECK(protocol::is_printable_utf8(read.omitted.tunnel));
    CHECK(read.omitted.tunnel.size() <= 63);
    std::vector<std::string> led_to;
    for (const auto& one : *list(*read)) {
      CHECK_FALSE(wire::check_attachment(one));
      if (one.rules_size() > 0) led_to.push_back(one.tunnel_uid());
      else CHECK(one.tunnel_uid() == "poisoned");  // so that what was held of it goes
    }
    CHECK(led_to == std::vector<std::string>{"before", "after"});
  }
  CHECK(parse(good.SerializeAsString()).omitted.tunnels == 0);
}

}  // namespace

TEST_CASE("hello") {
  busv1::HelloRequest first;
  first.set_version(1);
  first.set_nonce(std::string(16, '\0'));
  refuses<busv1::HelloRequest>(first, wire::parse_hello,
                               {{"nonce", [](auto& h) { h.clear_nonce(); }},
                                {"nonce", [](auto& h) { h.set_nonce(std::string(15, 'n')); }},
                                {"nonce", [](auto& h) { h.set_nonce(std::string(17, 'n')); }},
                                {"challenge", [](auto& h) { h.set_signature(std::string(64, 's')); }},
                                {"signature", [](auto& h) { h.set_challenge(std::string(32, 'c')); }}});
  auto hello = first;
  hello.set_challenge(std::string(32, '\xff'));
  hello.set_signature(std::string(64, '\xff'));
  hello.set_agent_version("1.0 \xc3\xa4");
  hello.set_sent_at_ms(1'700'000'000'000);
  fill(*hello.mutable_addressing());
  hello.set_attached_generation(3);
  hello.set_connector_uid("uid");
  refuses<busv1::HelloRequest>(
      hello, wire::parse_hello,
      {{"nonce", [](auto& h) { h.set_nonce("n"); }},
       {"challenge", [](auto& h) { h.set_challenge(std::string(31, 'c')); }},
       {"challenge", [](auto& h) { h.set_challenge(std::string(60'000, 'c')); }},
       {"signature", [](auto& h) { h.set_signature(std::string(63, 's')); }},
       {"signature", [](auto& h) { h.set_signature(std::string(65, 's')); }},
       {"agent_version", [](auto& h) { h.set_agent_version(std::string(65, 'v')); }},
       {"agent_version", [](auto& h) { h.set_agent_version("\x1b[2J"); }},
       {"sent_at_ms", [](auto& h) { h.set_sent_at_ms(std::numeric_limits<std::int64_t>::min()); }},
       {"sent_at_ms", [](auto& h) { h.set_sent_at_ms(std::numeric_limits<std::int64_t>::max()); }},
       {"attached_generation", [](auto& h) { h.set_attached_generation(-1); }},
       {"connector_uid", [](auto& h) { h.set_connector_uid(long_uid); }},
       {"connector_uid", [](auto& h) { h.set_connector_uid(control); }},
       {"addressing.addresses", [](auto& h) { many(*h.mutable_addressing()); }}});
  // What is wrong with addresses is shown to the operator, so it gets through.
  auto odd = hello;
  odd.mutable_addressing()->add_addresses("nonsense");
  CHECK(wire::parse_hello(odd.SerializeAsString()));
  refuses_versions(hello, wire::parse_hello);
  refuses_whole(hello, wire::parse_hello, limits::agent_message_bytes_max);
  survives(hello, wire::parse_hello);
}

TEST_CASE("heartbeat") {
  busv1::Heartbeat beat;
  fill_session(beat);
  beat.set_sequence(1);
  beat.set_sent_at_ms(1);
  beat.set_attached_generation(2);
  beat.set_digest(digest);
  auto table = session_faults<busv1::Heartbeat>();
  add<busv1::Heartbeat>(table, "sequence", [](auto& b) { b.set_sequence(-1); });
  add<busv1::Heartbeat>(table, "interval_ms", [](auto& b) { b.set_interval_ms(-1); });
  add<busv1::Heartbeat>(table, "sent_at_ms", [](auto& b) { b.set_sent_at_ms(-1); });
  add<busv1::Heartbeat>(table, "attached_generation", [](auto& b) { b.set_attached_generation(-1); });
  add<busv1::Heartbeat>(table, "digest", [](auto& b) { b.clear_digest(); });
  add<busv1::Heartbeat>(table, "digest", [](auto& b) { b.set_digest(digest + "b"); });
  add<busv1::Heartbeat>(table, "digest", [](auto& b) { b.set_digest(std::string(32, 'B')); });
  refuses<busv1::Heartbeat>(beat, wire::parse_heartbeat, table);
  refuses_versions(beat, wire::parse_heartbeat);
  refuses_whole(beat, wire::parse_heartbeat, limits::agent_message_bytes_max);
  survives(beat, wire::parse_heartbeat);
}

TEST_CASE("event") {
  busv1::AgentEvent bye;
  fill_session(bye);
  bye.mutable_bye();
  refuses<busv1::AgentEvent>(bye, wire::parse_event, {{"event", [](auto& e) { e.clear_event(); }}});
  auto event = bye;
  event.set_sequence(1);
  event.set_sent_at_ms(1);
  *event.mutable_report() = report();
  auto table = session_faults<busv1::AgentEvent>();
  add<busv1::AgentEvent>(table, "sequence", [](auto& e) { e.set_sequence(-1); });
  add<busv1::AgentEvent>(table, "sent_at_ms", [](auto& e) { e.set_sent_at_ms(-1); });
  add<busv1::AgentEvent>(table, "report.attached_generation", [](auto& e) { e.mutable_report()->set_attached_generation(-1); });
  add<busv1::AgentEvent>(table, "addressing.addresses", [](auto& e) { many(*e.mutable_report()->mutable_addressing()); });
  add_target_faults<busv1::AgentEvent>(table, [](auto& e) { return e.mutable_report()->mutable_targets(); });
  refuses<busv1::AgentEvent>(event, wire::parse_event, table);
  refuses_versions(event, wire::parse_event);
  refuses_whole(event, wire::parse_event, limits::agent_message_bytes_max);
  survives(event, wire::parse_event);
}

TEST_CASE("the answer to a command") {
  busv1::CommandReply reply;
  fill_session(reply);
  reply.set_command_id(9);
  reply.set_error("stale");
  reply.set_attached_generation(2);
  *reply.add_targets() = target();
  *reply.mutable_report() = report();
  auto table = session_faults<busv1::CommandReply>();
  add<busv1::CommandReply>(table, "command_id", [](auto& r) { r.set_command_id(-1); });
  add<busv1::CommandReply>(table, "error", [](auto& r) { r.set_error(std::string(65, 'e')); });
  add<busv1::CommandReply>(table, "error", [](auto& r) { r.set_error(control); });
  add<busv1::CommandReply>(table, "attached_generation", [](auto& r) { r.set_attached_generation(-1); });
  add<busv1::CommandReply>(table, "report.attached_generation", [](auto& r) { r.mutable_report()->set_attached_generation(-1); });
  add<busv1::CommandReply>(table, "addressing.addresses", [](auto& r) { many(*r.mutable_report()->mutable_addressing()); });
  add_target_faults<busv1::CommandReply>(table, [](auto& r) { return r.mutable_targets(); });
  add_target_faults<busv1::CommandReply>(table, [](auto& r) { return r.mutable_report()->mutable_targets(); });
  refuses<busv1::CommandReply>(reply, wire::parse_command_reply, table);
  refuses_versions(reply, wire::parse_command_reply);
  refuses_whole(reply, wire::parse_command_reply, limits::agent_message_bytes_max);
  survives(reply, wire::parse_command_reply);
}

TEST_CASE("an agent's words are cut and cleaned, not refused") {
  busv1::AgentEvent event;
  fill_session(event);
  auto& t = *event.mutable_report()->add_targets();
  t = target();
  t.set_message("refused\x1b[2J\n" + std::string(1000, 'x'));
  const auto read = wire::parse_event(event.SerializeAsString());
  REQUIRE(read);
  const auto& message = read->report().targets(0).message();
  CHECK(message.size() == limits::target_message_bytes_max);
  CHECK(message.substr(0, 14) == "refused?[2J?xx");
}

TEST_CASE("the answer to a hello") {
  busv1::HelloReply welcome;
  welcome.set_version(1);
  welcome.set_message("hello");
  welcome.set_session(5);
  welcome.set_token(token);
  welcome.set_heartbeat_interval_ms(2000);
  welcome.set_connector_uid("uid");
  welcome.set_lease_duration_ms(30'000);
  welcome.mutable_attachments()->set_generation(4);
  fill(*welcome.mutable_attachments()->add_attachments());
  std::vector<wrong<busv1::HelloReply>> table{
      {"session", [](auto& r) { r.set_session(-1); }},
      {"error", [](auto& r) { r.set_error(std::string(65, 'e')); }},
      {"retry_after_ms", [](auto& r) { r.set_retry_after_ms(-1); }},
      {"heartbeat_interval_ms", [](auto& r) { r.set_heartbeat_interval_ms(-1); }},
      {"lease_duration_ms", [](auto& r) { r.set_lease_duration_ms(-1); }},
      {"connector_uid", [](auto& r) { r.set_connector_uid(long_uid); }},
      {"token", [](auto& r) { r.clear_token(); }},
      {"token", [](auto& r) { r.set_token(std::string(64, 'x')); }},
      {"challenge", [](auto& r) { r.set_challenge("short"); }},
      {"attachments.generation", [](auto& r) { r.mutable_attachments()->set_generation(-1); }},
  };
  refuses<busv1::HelloReply>(welcome, wire::parse_hello_reply, table);
  omits_unsound<busv1::HelloReply>(welcome, wire::parse_hello_reply, [](auto& r) { return r.mutable_attachments()->mutable_attachments(); });
  refuses_versions(welcome, wire::parse_hello_reply);
  refuses_whole(welcome, wire::parse_hello_reply, limits::bus_message_bytes_max);
  survives(welcome, wire::parse_hello_reply);
  busv1::HelloReply challenge;
  challenge.set_version(1);
  challenge.set_challenge(std::string(32, 'c'));
  CHECK(wire::parse_hello_reply(challenge.SerializeAsString()));
  busv1::HelloReply refusal;
  refusal.set_version(1);
  refusal.set_error("permission_denied");
  CHECK(wire::parse_hello_reply(refusal.SerializeAsString()));
}

TEST_CASE("a command to an agent") {
  busv1::AgentCommand command;
  command.set_version(1);
  command.set_incarnation(1);
  command.set_epoch(2);
  command.set_session(3);
  command.set_command_id(4);
  command.mutable_report();
  using wrongs = std::vector<wrong<busv1::AgentCommand>>;
  refuses<busv1::AgentCommand>(command, wire::parse_agent_command,
                               {{"incarnation", [](auto& c) { c.set_incarnation(-1); }},
                                {"epoch", [](auto& c) { c.set_epoch(-1); }},
                                {"session", [](auto& c) { c.set_session(-1); }},
                                {"command_id", [](auto& c) { c.set_command_id(-1); }},
                                {"command", [](auto& c) { c.clear_command(); }}});
  auto attach = command;
  fill(*attach.mutable_attach()->add_attachments());
  wrongs table{{"attach.generation", [](auto& c) { c.mutable_attach()->set_generation(-1); }},
               {"attach.from_generation", [](auto& c) { c.mutable_attach()->set_from_generation(-1); }}};
  refuses<busv1::AgentCommand>(attach, wire::parse_agent_command, table);
  omits_unsound<busv1::AgentCommand>(attach, wire::parse_agent_command, [](auto& c) { return c.mutable_attach()->mutable_attachments(); });
  auto set = command;
  fill(*set.mutable_set()->add_attachments());
  table = {{"set.generation", [](auto& c) { c.mutable_set()->set_generation(-1); }}};
  refuses<busv1::AgentCommand>(set, wire::parse_agent_command, table);
  omits_unsound<busv1::AgentCommand>(set, wire::parse_agent_command, [](auto& c) { return c.mutable_set()->mutable_attachments(); });
  auto detach = command;
  detach.mutable_detach()->add_tunnels()->set_tunnel_uid("uid");
  refuses<busv1::AgentCommand>(
      detach, wire::parse_agent_command,
      {{"detach.generation", [](auto& c) { c.mutable_detach()->set_generation(-1); }},
       {"detach.from_generation", [](auto& c) { c.mutable_detach()->set_from_generation(-1); }},
       {"detach.tunnels.tunnel_uid", [](auto& c) { c.mutable_detach()->mutable_tunnels(0)->set_tunnel_uid(long_uid); }},
       {"detach.tunnels.tunnel_generation", [](auto& c) { c.mutable_detach()->mutable_tunnels(0)->set_tunnel_generation(-1); }}});
  auto interval = command;
  interval.mutable_interval()->set_heartbeat_interval_ms(50);
  refuses<busv1::AgentCommand>(
      interval, wire::parse_agent_command,
      {{"interval.heartbeat_interval_ms", [](auto& c) { c.mutable_interval()->set_heartbeat_interval_ms(-1); }}});
  for (auto* each : {&command, &attach, &set, &detach, &interval}) {
    refuses_versions(*each, wire::parse_agent_command);
    refuses_whole(*each, wire::parse_agent_command, limits::bus_message_bytes_max);
    survives(*each, wire::parse_agent_command);
  }
  auto superseded = command;
  superseded.mutable_superseded()->set_message("stop\x1b" + std::string(2000, 'x'));
  const auto read = wire::parse_agent_command(superseded.SerializeAsString());
  REQUIRE(read);
  CHECK(read->superseded().message().size() == 1024);
  CHECK(read->superseded().message()[4] == '?');
}

TEST_CASE("a revision") {
  busv1::Revision revision;
  revision.set_version(1);
  revision.set_incarnation(1);
  revision.set_partition(2);
  revision.set_epoch(3);
  revision.set_revision(4);
  revision.add_rows()->mutable_tunnel()->set_name("web");
  refuses<busv1::Revision>(revision, wire::parse_revision,
                           {{"incarnation", [](auto& r) { r.set_incarnation(-1); }},
                            {"partition", [](auto& r) { r.set_partition(-1); }},
                            {"epoch", [](auto& r) { r.set_epoch(-1); }},
                            {"revision", [](auto& r) { r.set_revision(-1); }},
                            {"rows", [](auto& r) { r.add_rows(); }}});
  refuses_versions(revision, wire::parse_revision);
  refuses_whole(revision, wire::parse_revision, limits::bus_message_bytes_max);
  survives(revision, wire::parse_revision);
}

TEST_CASE("a gateway's report") {
  busv1::GatewayAck ack;
  ack.set_version(1);
  ack.set_incarnation(1);
  ack.set_instance(2);
  ack.set_gateway("gw-a");
  ack.set_class_("default");
  ack.set_stream(3);
  ack.set_state("caught_up");
  ack.set_partition(4);
  ack.set_acknowledged(5);
  auto& refused = *ack.add_refused();
  refused.set_tunnel_uid("uid");
  refused.set_connector(std::string(63, 'a') + "/" + std::string(63, 'b'));
  refused.set_revision(4);
  refused.set_message("no");
  std::vector<wrong<busv1::GatewayAck>> table{
      {"incarnation", [](auto& a) { a.set_incarnation(-1); }},
      {"instance", [](auto& a) { a.set_instance(-1); }},
      {"gateway", [](auto& a) { a.clear_gateway(); }},
      {"gateway", [](auto& a) { a.set_gateway("a/b"); }},
      {"gateway", [](auto& a) { a.set_gateway(std::string(64, 'a')); }},
      {"class", [](auto& a) { a.set_class_(std::string(64, 'a')); }},
      {"class", [](auto& a) { a.set_class_(control); }},
      {"stream", [](auto& a) { a.set_stream(-1); }},
      {"state", [](auto& a) { a.clear_state(); }},
      {"state", [](auto& a) { a.set_state("Caught_up"); }},
      {"partition", [](auto& a) { a.set_partition(-1); }},
      {"acknowledged", [](auto& a) { a.set_acknowledged(-1); }},
      {"refused.tunnel_uid", [](auto& a) { a.mutable_refused(0)->set_tunnel_uid(long_uid); }},
      {"refused.connector", [](auto& a) { a.mutable_refused(0)->set_connector(std::string(128, 'a')); }},
      {"refused.revision", [](auto& a) { a.add_refused()->set_revision(-1); }},
  };
  refuses<busv1::GatewayAck>(ack, wire::parse_gateway_ack, table);
  for (const auto* state : {"connecting", "caught_up", "stalled", "gone"}) {
    ack.set_state(state);
    CHECK(wire::parse_gateway_ack(ack.SerializeAsString()));
  }
  refuses_versions(ack, wire::parse_gateway_ack);
  refuses_whole(ack, wire::parse_gateway_ack, limits::bus_message_bytes_max);
  survives(ack, wire::parse_gateway_ack);
  ack.set_node_id("gw\n" + std::string(1000, 'x'));
  ack.mutable_refused(0)->set_message("a\x01" + std::string(10'000, 'x'));
  const auto read = wire::parse_gateway_ack(ack.SerializeAsString());
  REQUIRE(read);
  CHECK(read->node_id().size() == 256);
  CHECK(read->node_id().substr(0, 4) == "gw?x");
  CHECK(read->refused(0).message().size() == 4096);
}

TEST_CASE("a lease notice") {
  busv1::LeaseNotice notice;
  notice.set_version(1);
  notice.set_instance(1);
  notice.set_what("released");
  notice.set_partition(3);
  refuses<busv1::LeaseNotice>(notice, wire::parse_lease_notice,
                              {{"what", [](auto& n) { n.clear_what(); }},
                               {"what", [](auto& n) { n.set_what("dead"); }},
                               {"instance", [](auto& n) { n.set_instance(-1); }},
                               {"partition", [](auto& n) { n.set_partition(-1); }},
                               {"successor", [](auto& n) { n.set_successor(-1); }}});
  for (const auto* what : {"alive", "released", "taken", "leaving", "drain"}) {
    notice.set_what(what);
    CHECK(wire::parse_lease_notice(notice.SerializeAsString()));
  }
  refuses_versions(notice, wire::parse_lease_notice);
  refuses_whole(notice, wire::parse_lease_notice, limits::agent_message_bytes_max);
  survives(notice, wire::parse_lease_notice);
}

TEST_CASE("an administrator's command and its answer") {
  v1::Command command;
  command.set_project("acme");
  command.set_patience_ms(1);
  auto& caller = *command.mutable_caller();
  caller.set_principal("ops \xc3\xa4");
  caller.set_remote("ipv4:192.0.2.1:5");
  caller.set_method("DeleteTunnel");
  caller.set_request_id(std::string(128, 'r'));
  caller.set_digest(std::string(64, 'a'));
  command.mutable_delete_tunnel()->set_name("web");
  refuses<v1::Command>(command, wire::parse_api_command,
                       {{"project", [](auto& c) { c.set_project("a/b"); }},
                        {"project", [](auto& c) { c.set_project(std::string(64, 'a')); }},
                        {"project", [](auto& c) { c.set_project("*"); }},
                        {"command", [](auto& c) { c.clear_command(); }},
                        {"patience_ms", [](auto& c) { c.set_patience_ms(-1); }},
                        {"caller.principal", [](auto& c) { c.mutable_caller()->set_principal(std::string(257, 'p')); }},
                        {"caller.principal", [](auto& c) { c.mutable_caller()->set_principal(std::string(1, '\0')); }},
                        {"caller.remote", [](auto& c) { c.mutable_caller()->set_remote(control); }},
                        {"caller.method", [](auto& c) { c.mutable_caller()->set_method(std::string(65, 'm')); }},
                        {"caller.request_id", [](auto& c) { c.mutable_caller()->set_request_id(std::string(129, 'r')); }},
                        {"caller.request_id", [](auto& c) { c.mutable_caller()->set_request_id(control); }},
                        {"caller.digest", [](auto& c) { c.mutable_caller()->set_digest(std::string(65, 'd')); }}});
  refuses_whole(command, wire::parse_api_command, limits::api_request_bytes_max);
  survives(command, wire::parse_api_command);
  CHECK(wire::parse_api_command("").error.field == "command");

  v1::Reply reply;
  reply.set_code("aborted");
  reply.set_etag("uid-1");
  reply.set_revision(3);
  reply.set_partition(1);
  refuses<v1::Reply>(reply, wire::parse_api_reply, {{"code", [](auto& r) { r.set_code("fine"); }},
                                                    {"retry_after_ms", [](auto& r) { r.set_retry_after_ms(-1); }},
                                                    {"partition", [](auto& r) { r.set_partition(-1); }},
                                                    {"revision", [](auto& r) { r.set_revision(-1); }}});
  refuses_whole(reply, wire::parse_api_reply, limits::bus_message_bytes_max);
  survives(reply, wire::parse_api_reply);
}

TEST_CASE("random bytes are refused or read, never more") {
  std::mt19937 random{5};
  for (int i = 0; i < 20'000; ++i) {
    std::string s(random() % 200, '\0');
    for (auto& c : s) c = static_cast<char>(random());
    (void)wire::parse_hello(s);
    (void)wire::parse_heartbeat(s);
    (void)wire::parse_event(s);
    (void)wire::parse_command_reply(s);
    (void)wire::parse_hello_reply(s);
    (void)wire::parse_agent_command(s);
    (void)wire::parse_revision(s);
    (void)wire::parse_gateway_ack(s);
    (void)wire::parse_lease_notice(s);
    (void)wire::parse_api_command(s);
    (void)wire::parse_api_reply(s);
    const auto cleaned = wire::clean_text(s, 100);
    if (cleaned.size() > 100 || !protocol::is_printable_utf8(cleaned)) FAIL("clean_text let something through");
  }
}

TEST_CASE("text is cut between characters") {
  CHECK(wire::clean_text("", 10).empty());
  CHECK(wire::clean_text("abc", 0).empty());
  CHECK(wire::clean_text("abc", 2) == "ab");
  CHECK(wire::clean_text("\xc3\xa4\xc3\xa4", 3) == "\xc3\xa4");
  CHECK(wire::clean_text("a\xf0\x9f\x9a\x87", 4) == "a");
  CHECK(wire::clean_text("a\xf0\x9f\x9a", 10) == "a???");
  CHECK(wire::clean_text("\xff\xfe", 10) == "??");
  CHECK(wire::clean_text("a\r\nb\tc", 10) == "a??b?c");
}
