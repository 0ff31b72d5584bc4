// test/machine/subjects_test.cpp -- NATS subjects: what is built is parsed, and nothing else is.
#include <catch2/catch.hpp>

#include <random>

#include "actors/core/subjects.hpp"

using namespace warren;
using namespace warren::bus;

TEST_CASE("every built subject parses to what it was built from") {
  const std::string longest(63, 'x');
  struct entry {
    std::string subject;
    subject_room room;
    partition_id partition;
    bool named;
  };
  for (const partition_id p : {0, 7, 10, 64, 65'535})
    for (const auto kind : {kind_connector, kind_peer})
      for (const auto& name : {std::string{"home"}, longest}) {
        for (const auto& e : {entry{hello_subject(p, "acme", kind, name), subject_room::hello, p, true},
                              entry{heartbeat_subject(p, "acme", kind, name), subject_room::heartbeat, p, true},
                              entry{event_subject(p, "acme", kind, name), subject_room::event, p, true},
                              entry{command_subject("acme", kind, name), subject_room::command, -1, true},
                              entry{api_subject(p), subject_room::api, p, false},
                              entry{revision_subject(p), subject_room::revision, p, false},
                              entry{ack_subject(p), subject_room::ack, p, false},
                              entry{std::string{lease_subject}, subject_room::lease, -1, false}}) {
          INFO(e.subject);
          const auto parsed = parse_subject(e.subject);
          REQUIRE(parsed);
          CHECK(parsed->room == e.room);
          CHECK(parsed->partition == e.partition);
          CHECK(parsed->project == (e.named ? "acme" : ""));
          CHECK(parsed->kind == (e.named ? kind : std::string_view{}));
          CHECK(parsed->name == (e.named ? name : std::string{}));
        }
      }
  CHECK(hello_subject(3, "acme", kind_connector, "home") == "warren.v1.hello.3.acme.connector.home");
  CHECK(heartbeat_subject(3, "acme", kind_connector, "home") == "warren.v1.hb.3.acme.connector.home");
  CHECK(event_subject(3, "acme", kind_connector, "home") == "warren.v1.ev.3.acme.connector.home");
  CHECK(command_subject("acme", kind_connector, "home") == "warren.v1.cmd.acme.connector.home");
  CHECK(hello_wildcard(3) == "warren.v1.hello.3.>");
  CHECK(heartbeat_wildcard(3) == "warren.v1.hb.3.>");
  CHECK(event_wildcard(3) == "warren.v1.ev.3.>");
}

TEST_CASE("no other subject is read") {
  const std::string too_long(64, 'x');
  for (const auto& subject : std::vector<std::string>{
           "", ".", "warren", "warren.v1", "warren.v1.", "warren.v1..", "warren.v2.api.3", "Warren.v1.api.3", "xwarren.v1.api.3",
           "warren.v1.api", "warren.v1.api.", "warren.v1.api.x", "warren.v1.api.-1", "warren.v1.api.+1", "warren.v1.api.03",
           "warren.v1.api.00", "warren.v1.api.65536", "warren.v1.api.99999999999999999999", "warren.v1.api.3 ", "warren.v1.api. 3",
           "warren.v1.api.3.", "warren.v1.api.3.x", "warren.v1.api.*", "warren.v1.api.>", "warren.v1.rev.*", "warren.v1.ack.*",
           "warren.v1.rev.3.acme.connector.home", "warren.v1.lease.3", "warren.v1.lease.", "warren.v1.nothing.3",
           "warren.v1.hello.3", "warren.v1.hello.3.>", "warren.v1.hello.3.acme", "warren.v1.hello.3.acme.connector",
           "warren.v1.hello.3.acme.connector.", "warren.v1.hello.3.acme.connector.*", "warren.v1.hello.3..connector.home",
           "warren.v1.hello.3.acme.gateway.home", "warren.v1.hello.3.ACME.connector.home", "warren.v1.hello.3.acme.connector.home.x",
           "warren.v1.hello.3.acme.connector.-home", "warren.v1.hello.3.acme.connector.ho me", "warren.v1.hello..acme.connector.home",
           "warren.v1.hello.x.acme.connector.home", "warren.v1.hello.acme.connector.home", "warren.v1.hb.3.acme.connector." + too_long,
           "warren.v1.ev.3." + too_long + ".connector.home", "warren.v1.cmd.3.acme.connector.home", "warren.v1.cmd.acme.connector",
           "warren.v1.cmd.acme.connector.home.x", "warren.v1.cmd.acme.x.home", "warren.v1.a.b.c.d.e.f.g.h.i.j.k",
           std::string("warren.v1.api.3\0", 16), std::string("warren.v1.hello.3.ac\0e.connector.home", 37), std::string(1 << 20, '.'),
           "warren.v1.hello.3.acme.connector.home" + std::string(100'000, '.')}) {
    INFO(subject.substr(0, 80));
    CHECK_FALSE(parse_subject(subject));
  }
}

TEST_CASE("whatever parses is what a builder would have made") {
  std::mt19937 random{7};
  const std::string seed = heartbeat_subject(12, "acme", kind_connector, "home");
  const std::string alphabet = ".>*-0123456789abcvehlorwn\0\n A";
  int read = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string s = seed;
    for (auto n = random() % 4; n > 0; --n) {
      const auto at = random() % s.size();
      const char c = alphabet[random() % alphabet.size()];
      switch (random() % 3) {
        case 0: s[at] = c; break;
        case 1: s.insert(at, 1, c); break;
        default: s.erase(at, 1);
      }
    }
    const auto p = parse_subject(s);
    if (!p) continue;
    ++read;
    const std::string again = p->room == subject_room::hello       ? hello_subject(p->partition, p->project, p->kind, p->name)
                              : p->room == subject_room::heartbeat ? heartbeat_subject(p->partition, p->project, p->kind, p->name)
                              : p->room == subject_room::event     ? event_subject(p->partition, p->project, p->kind, p->name)
                                                                   : "?";
    if (again != s) FAIL(s);
  }
  CHECK(read > 1000);
}

TEST_CASE("an instance's connection name tells its id, whatever it is called") {
  CHECK(instance_connection_name("warren-1", 7) == "warrend/warren-1/7");
  for (const auto* name : {"warren-1", "a/b", "", "warrend/3/4"})
    CHECK(parse_instance_connection_name(instance_connection_name(name, 12)) == 12);
  for (const auto* bad : {"", "warrend", "warrend/", "warrend/a/", "warrend/a/b", "warrend/a/0", "warrend/a/-1",
                          "warrend/a/1x", "warrend/a/99999999999999999999", "warren-agent/acme/connector/7", "x/1"})
    CHECK_FALSE(parse_instance_connection_name(bad));
}

TEST_CASE("an agent's connection is named after it") {
  const auto name = agent_connection_name("acme", kind_connector, "home");
  CHECK(name == "warren-agent/acme/connector/home");
  const auto parsed = parse_agent_connection_name(name);
  REQUIRE(parsed);
  CHECK(parsed->project == "acme");
  CHECK(parsed->kind == kind_connector);
  CHECK(parsed->name == "home");
  for (const std::string bad : {"", "/", "warren-agent", "warren-agent/acme/connector", "warren-agent/acme/connector/", "warren-agent//connector/home",
                                "warren-agent/acme/connector/home/", "warren-agent/acme/connector/home/x", "warren-agent/acme/x/home", "warrend/acme/connector/home",
                                "warren-agent/ACME/connector/home", "warren-agent/a.b/connector/home", "warren-agent/acme/connector/*", "////////////"})
    CHECK_FALSE(parse_agent_connection_name(bad));
}

TEST_CASE("a project has one partition, and the installation's own things the reserved one") {
  CHECK(partition_of("", 64) == 64);
  // FNV-1a's published test vectors: the same partition in every build, forever.
  CHECK(fnv1a_64("") == 0xcbf29ce484222325ull);
  CHECK(fnv1a_64("a") == 0xaf63dc4c8601ec8cull);
  CHECK(fnv1a_64("foobar") == 0x85944171f73967e8ull);
  for (int partitions : {1, 2, 64, 1024})
    for (const auto* project : {"acme", "a", "zz-9"}) {
      CHECK(partition_of(project, partitions) >= 0);
      CHECK(partition_of(project, partitions) < partitions);
    }
}
