// test/machine/pending_test.cpp -- commands that wait: the same one said again, those that nobody waits for any more,
// and what becomes of them when a save fails.
#include <catch2/catch.hpp>

#include <fmt/format.h>

#include "actors/core/pending.hpp"
#include "actors/registry/machine.hpp"

using namespace warren;

namespace {

using waiting = transition<v1::RegistryState, int>;
constexpr moment now{1'000'000, 1'700'000'000'000};

v1::RegistryEvent command(std::uint64_t ticket, const std::string& request_id, std::int64_t patience_ms = 0) {
  v1::RegistryEvent e;
  e.set_ticket(ticket);
  e.set_fresh_uid(fmt::format("u{}", ticket));
  auto& caller = *e.mutable_command()->mutable_caller();
  caller.set_method("UpdateGateway");
  caller.set_request_id(request_id);
  caller.set_digest("d");
  e.mutable_command()->set_patience_ms(patience_ms);
  return e;
}
std::vector<std::uint64_t> answered(const waiting& t, std::string_view code) {
  std::vector<std::uint64_t> out;
  for (const auto& a : t.replies)
    if (a.reply.code() == code) out.push_back(a.ticket);
  return out;
}
using tickets = std::vector<std::uint64_t>;

}  // namespace

TEST_CASE("a request that is said again while it waits takes no second place, and all who said it are answered") {
  waiting t;
  queue_command(t, command(1, "a"), now);
  queue_command(t, command(2, "b"), now);
  queue_command(t, command(3, "a"), now);
  queue_command(t, command(4, "a"), now);
  CHECK(t.replies.empty());
  REQUIRE(t.next.pending_size() == 2);
  CHECK(t.next.pending(0).fresh_uid() == "u1");
  v1::Failed f;
  f.set_code("invalid");
  refuse_pending(t, f);
  CHECK(answered(t, "invalid") == tickets{1, 3, 4});
  CHECK(t.next.pending_size() == 1);
}

TEST_CASE("only the same request is a repetition") {
  const auto first = command(1, "a");
  v1::PendingCommand p;
  *p.mutable_command() = first.command();
  CHECK(repeats(first.command(), p));
  auto other = first.command();
  SECTION("another id") { other.mutable_caller()->set_request_id("b"); }
  SECTION("another content") { other.mutable_caller()->set_digest("e"); }
  SECTION("another method") { other.mutable_caller()->set_method("DeleteGateway"); }
  SECTION("another project") { other.set_project("acme"); }
  SECTION("none has an id: nobody can tell") {
    other.mutable_caller()->clear_request_id();
    p.mutable_command()->mutable_caller()->clear_request_id();
  }
  CHECK_FALSE(repeats(other, p));
}

TEST_CASE("repetitions are bounded, and leave room for other commands") {
  waiting t;
  for (std::uint64_t i = 0; i < 1 + limits::command_repetitions_max + 2; ++i) queue_command(t, command(i, "a"), now);
  CHECK(t.next.pending_size() == 1);
  CHECK(answered(t, "overloaded").size() == 2);
  queue_command(t, command(900, "b"), now);
  CHECK(t.next.pending_size() == 2);
}

TEST_CASE("a command whose deadline comes before its turn is dropped, answered and counted") {
  waiting t;
  queue_command(t, command(1, "a", 100), now);
  queue_command(t, command(2, "b", 101), now);
  queue_command(t, command(3, "c"), now);
  queue_command(t, command(4, "a", 90), now);
  moment later{now.steady_ms + 100, now.wall_ms - 3'600'000};  // wall clocks are set, and differ
  drop_expired(t, later);
  CHECK(answered(t, "unavailable") == tickets{1, 4});
  CHECK(t.expired == 1);
  REQUIRE(t.next.pending_size() == 2);
  CHECK(t.next.pending(0).ticket() == 2);
  CHECK(t.next.pending(1).ticket() == 3);
}

TEST_CASE("who repeats a request with more time has it") {
  waiting t;
  queue_command(t, command(1, "a", 100), now);
  SECTION("a later deadline") {
    queue_command(t, command(2, "a", 200), now);
    CHECK(t.next.pending(0).deadline_ms() == now.steady_ms + 200);
  }
  SECTION("none at all") {
    queue_command(t, command(2, "a"), now);
    CHECK(t.next.pending(0).deadline_ms() == 0);
  }
}

TEST_CASE("those that nobody waits for any more make room for others") {
  waiting t;
  for (std::uint64_t i = 0; i < limits::entity_pending_commands_max; ++i)
    queue_command(t, command(i, fmt::format("r{}", i), 10), now);
  queue_command(t, command(100, "x"), now);
  CHECK(answered(t, "overloaded") == tickets{100});
  moment later{now.steady_ms + 10, now.wall_ms + 10};
  queue_command(t, command(101, "y"), later);
  CHECK(t.next.pending_size() == 1);
  CHECK(t.expired == static_cast<int>(limits::entity_pending_commands_max));
}

TEST_CASE("with the database away nobody waits behind the one that learnt it") {
  waiting t;
  queue_command(t, command(1, "a"), now);
  queue_command(t, command(2, "b"), now);
  queue_command(t, command(3, "b"), now);
  v1::Failed f;
  f.set_code("unavailable");
  refuse_pending(t, f);
  CHECK(answered(t, "unavailable") == tickets{1, 2, 3});
  CHECK(t.next.pending_size() == 0);
}

TEST_CASE("a save that failed is answered with what became of it, also after its caller's deadline") {
  auto s = registry::initial(64, "gateway", "gw");
  s.set_known(true);
  registry::event e = command(1, "a", 10);
  e.mutable_command()->mutable_create_gateway()->set_name("gw");
  e.mutable_command()->mutable_create_gateway()->mutable_spec()->set_class_("default");
  auto t = registry::step(s, e, now);
  REQUIRE(t.save);
  registry::event failed;
  failed.mutable_failed()->set_code("unavailable");
  failed.mutable_failed()->set_message("it is not known whether it was stored");
  t = registry::step(t.kept, failed, {now.steady_ms + 20, now.wall_ms + 20});
  REQUIRE(t.replies.size() == 1);
  CHECK(t.replies[0].reply.message() == "it is not known whether it was stored");
  CHECK(t.expired == 0);
}
