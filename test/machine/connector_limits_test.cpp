// test/machine/connector_limits_test.cpp -- what a connector keeps until it knows its row, at its most and one more.
#include <catch2/catch.hpp>

#include "actors/connector/machine.hpp"
#include "actors/core/limits.hpp"

using namespace warren;
using connector::event;

namespace {

struct unread {
  connector::state s = connector::initial(3, 7, 0, 2000, "acme", "home");
  connector::transition on(event e) {
    auto t = connector::step(std::move(s), e, {1000, 2000});
    s = t.next;
    return t;
  }
  connector::transition attach(int generation) {
    event e;
    e.mutable_attach()->set_tunnel_uid("t");
    e.mutable_attach()->set_tunnel_generation(generation);
    return on(std::move(e));
  }
  connector::transition detach(const std::string& uid, int below) {
    event e;
    e.mutable_detach()->set_tunnel_uid(uid);
    e.mutable_detach()->set_below_generation(below);
    return on(std::move(e));
  }
};

}  // namespace

TEST_CASE("a connector keeps so many commands and answers one more at once") {
  unread c;
  for (std::uint64_t i = 1; i <= limits::entity_pending_commands_max; ++i) {
    event e;
    e.set_ticket(i);
    e.set_fresh_uid("u");
    e.mutable_command()->mutable_create_connector();
    CHECK(c.on(std::move(e)).replies.empty());
  }
  CHECK(c.s.pending_size() == static_cast<int>(limits::entity_pending_commands_max));
  CHECK(c.s.pending(0).ticket() == 1);
  CHECK(c.s.pending(0).fresh_uid() == "u");
  event e;
  e.set_ticket(999);
  e.mutable_command()->mutable_create_connector();
  const auto t = c.on(std::move(e));
  REQUIRE(t.replies.size() == 1);
  CHECK(t.replies[0].ticket == 999);
  CHECK(t.replies[0].reply.code() == "overloaded");
  CHECK(t.replies[0].reply.message() == "too many changes at once");
  CHECK(c.s.pending_size() == static_cast<int>(limits::entity_pending_commands_max));
}

TEST_CASE("a connector keeps so many wishes, forgets one more, and takes one back for its room") {
  unread c;
  for (int i = 1; i <= limits::attachment_wishes_max; ++i) c.attach(i);
  CHECK(c.s.wishes_size() == limits::attachment_wishes_max);
  c.attach(limits::attachment_wishes_max + 1);
  CHECK(c.s.wishes_size() == limits::attachment_wishes_max);
  c.attach(7);  // said again: it has its place
  CHECK(c.s.wishes_size() == limits::attachment_wishes_max);
  c.detach("other", 0);
  CHECK(c.s.wishes_size() == limits::attachment_wishes_max);
  CHECK_FALSE(c.s.wishes(limits::attachment_wishes_max - 1).has_detach());
  c.detach("t", 11);  // ten of them need not be stored any more
  CHECK(c.s.wishes_size() == limits::attachment_wishes_max - 10 + 1);
  CHECK(c.s.wishes(0).attach().tunnel_generation() == 11);
  c.detach("t", 11);
  CHECK(c.s.wishes_size() == limits::attachment_wishes_max - 10 + 1);
  c.detach("t", 12);
  CHECK(c.s.wishes_size() == limits::attachment_wishes_max - 11 + 2);
  c.detach("t", 0);
  REQUIRE(c.s.wishes_size() == 3);
  CHECK(c.s.wishes(2).detach().below_generation() == 0);
}

TEST_CASE("an outstanding challenge is overtaken by the fifth, or by its own agent, or by time") {
  unread c;
  event row;
  auto& r = *row.mutable_reloaded()->mutable_row()->mutable_connector();
  r.set_public_key(std::string(64, 'a'));
  row.mutable_reloaded()->set_conflict(true);  // nothing is saved meanwhile
  c.on(std::move(row));
  const auto ask = [&](const std::string& nonce, std::int64_t at) {
    event e;
    e.mutable_hello()->mutable_hello()->set_nonce(nonce);
    e.set_fresh_challenge("c" + nonce);
    c.s.set_retry_at_ms(at + 1000);
    auto t = connector::step(std::move(c.s), e, {at, at});
    c.s = t.next;
  };
  const auto kept = [&] {
    std::string out;
    for (const auto& each : c.s.challenges()) out += each.nonce() + "=" + each.challenge() + "@" + std::to_string(each.until_ms()) + " ";
    return out;
  };
  for (const auto* n : {"1", "2", "3", "4"}) ask(n, 1000);
  CHECK(kept() == "1=c1@11000 2=c2@11000 3=c3@11000 4=c4@11000 ");
  ask("5", 2000);
  CHECK(kept() == "2=c2@11000 3=c3@11000 4=c4@11000 5=c5@12000 ");
  ask("3", 3000);
  CHECK(kept() == "2=c2@11000 4=c4@11000 5=c5@12000 3=c3@13000 ");
  ask("6", 11000);
  CHECK(kept() == "4=c4@11000 5=c5@12000 3=c3@13000 6=c6@21000 ");
  ask("7", 11001);
  CHECK(kept() == "5=c5@12000 3=c3@13000 6=c6@21000 7=c7@21001 ");
}
