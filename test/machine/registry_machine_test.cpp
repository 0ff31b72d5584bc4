// test/machine/registry_machine_test.cpp -- gateways and classes: create, change, delete, and what goes wrong.
#include <catch2/catch.hpp>

#include "actors/core/limits.hpp"
#include "actors/registry/machine.hpp"

using namespace warren;

namespace {

struct play {
  registry::state s;
  moment now{1'000'000, 1'700'000'000'000};
  revision_t revision = 100;
  std::uint64_t tickets = 0;

  explicit play(std::string kind = "gateway_class", std::string name = "edge", bool known = true)
      : s(registry::initial(64, std::move(kind), std::move(name))) {
    s.set_known(known);
  }
  registry::transition step(registry::event e) {
    e.set_random(7);
    e.set_fresh_uid("u1");
    return registry::step(s, e, now);
  }
  registry::event event(v1::Command c) {
    registry::event e;
    e.set_ticket(++tickets);
    *e.mutable_command() = std::move(c);
    return e;
  }
  /// A command, and its save committed.
  registry::transition commit(v1::Command c) {
    auto t = step(event(std::move(c)));
    if (!t.save) {
      s = t.next;
      return t;
    }
    saved done{++revision, {}};
    for (auto& w : t.save->rows) {
      w.row.mutable_gateway_class()->set_version(revision);
      done.rows.push_back(w.row);
    }
    registry::adopt(t.next, done);
    s = t.next;
    registry::event e;
    e.mutable_saved()->set_revision(revision);
    auto after = step(e);
    s = after.next;
    t.gone = after.gone;
    return t;
  }
  registry::transition failed(const std::string& code) {
    registry::event e;
    e.mutable_failed()->set_code(code);
    e.mutable_failed()->set_field("f");
    e.mutable_failed()->set_message("m");
    auto t = step(e);
    s = t.next;
    return t;
  }
  registry::transition reloaded(std::optional<v1::Row> row, bool conflict = false) {
    registry::event e;
    e.mutable_reloaded()->set_conflict(conflict);
    if (row) *e.mutable_reloaded()->mutable_row() = *row;
    auto t = step(e);
    s = t.next;
    return t;
  }
  registry::transition wake() {
    registry::event e;
    e.mutable_wake();
    return step(e);
  }
};

v1::Command put(bool create, std::vector<std::string> mask = {}, std::string etag = "") {
  v1::Command c;
  c.mutable_caller()->set_method(create ? "CreateGatewayClass" : "UpdateGatewayClass");
  c.mutable_caller()->set_principal("ops");
  c.mutable_caller()->set_request_id("r1");
  c.mutable_caller()->set_digest("d1");
  auto& p = *c.mutable_put_gateway_class();
  p.set_name("edge");
  p.set_create(create);
  p.set_etag(std::move(etag));
  for (auto& m : mask) p.add_update_mask(std::move(m));
  p.mutable_spec()->set_dial_mode("direct");
  p.mutable_spec()->add_listen("0.0.0.0:80");
  p.mutable_spec()->set_stream_idle_timeout_ms(1000);
  return c;
}
v1::Command erase(std::string etag = "") {
  v1::Command c;
  c.mutable_caller()->set_method("DeleteGatewayClass");
  c.mutable_delete_gateway_class()->set_name("edge");
  c.mutable_delete_gateway_class()->set_etag(std::move(etag));
  return c;
}
std::string code(const registry::transition& t) {
  REQUIRE(t.replies.size() == 1);
  return t.replies[0].reply.code();
}

}  // namespace

TEST_CASE("a creation is one row, with audit and request id") {
  play p;
  const auto t = p.commit(put(true));
  REQUIRE(t.save);
  CHECK(t.save->write == "gateway_class");
  REQUIRE(t.save->rows.size() == 1);
  CHECK(t.save->rows[0].what == row_write::op::insert);
  CHECK(t.save->rows[0].routes);
  const auto& row = t.save->rows[0].row.gateway_class();
  CHECK(row.name() == "edge");
  CHECK(row.partition() == 64);
  CHECK(row.uid() == "u1");
  CHECK(row.generation() == 1);
  CHECK(row.dial_mode() == "direct");
  CHECK(row.listen_size() == 1);
  CHECK(row.stream_idle_timeout_ms() == 1000);
  CHECK(to_ms(row.created_at()) == p.now.wall_ms);
  REQUIRE(t.save->audit);
  CHECK(t.save->audit->principal == "ops");
  CHECK(t.save->audit->resource == "gatewayClasses/edge");
  CHECK(t.save->audit->before_json.empty());
  CHECK(t.save->audit->after_json.find("\"dial_mode\":\"direct\"") != std::string::npos);
  REQUIRE(t.save->request);
  CHECK(t.save->request->request_id == "r1");
  CHECK(t.save->request->digest == "d1");
  CHECK_FALSE(t.gone);
  CHECK(registry::etag_of(p.s.row()) == "u1-1");
  CHECK(p.s.row().gateway_class().version() == 101);

  CHECK(code(p.commit(put(true))) == "already_exists");
  auto anonymous = put(true);
  anonymous.mutable_caller()->clear_request_id();
  play q;
  CHECK_FALSE(q.step(q.event(anonymous)).save->request);
}

TEST_CASE("an update takes over what its mask names, and no more") {
  play p;
  p.commit(put(true));
  auto c = put(false, {"dial_mode"});
  c.mutable_put_gateway_class()->mutable_spec()->set_dial_mode("tunnel-listener");
  c.mutable_put_gateway_class()->mutable_spec()->clear_listen();
  const auto t = p.commit(c);
  REQUIRE(t.save);
  CHECK(t.save->rows[0].what == row_write::op::update);
  CHECK(t.save->rows[0].expected == 101);
  CHECK(p.s.row().gateway_class().dial_mode() == "tunnel-listener");
  CHECK(p.s.row().gateway_class().listen_size() == 1);
  CHECK(p.s.row().gateway_class().generation() == 2);
  CHECK(p.s.row().gateway_class().uid() == "u1");
  CHECK_FALSE(t.save->audit->before_json.empty());

  SECTION("the same again writes nothing and answers with the row") {
    const auto again = p.commit(c);
    CHECK_FALSE(again.save);
    CHECK(code(again).empty());
    CHECK(again.replies[0].reply.row().gateway_class().generation() == 2);
    CHECK(again.replies[0].reply.revision() == 102);
    CHECK(again.replies[0].reply.partition() == 64);
  }
  SECTION("an unknown field is refused and named, and nothing is half done") {
    const auto bad = p.commit(put(false, {"stream_idle_timeout_ms", "uid"}));
    CHECK_FALSE(bad.save);
    CHECK(code(bad) == "invalid");
    CHECK(bad.replies[0].reply.field() == "update_mask");
    CHECK(p.s.row().gateway_class().generation() == 2);
  }
  SECTION("another etag is refused with the current one") {
    const auto stale = p.commit(put(false, {"listen"}, "u1-1"));
    CHECK_FALSE(stale.save);
    CHECK(code(stale) == "aborted");
    CHECK(stale.replies[0].reply.etag() == "u1-2");
    CHECK(code(p.commit(erase("u0-2"))) == "aborted");
    CHECK(p.commit(put(false, {"dial_mode"}, "u1-2")).save);
  }
}

TEST_CASE("every kind has its fields and its names") {
  v1::Command gateway;
  gateway.mutable_create_gateway()->set_name("gw-a");
  gateway.mutable_create_gateway()->mutable_spec()->set_class_("edge");
  CHECK(registry::target_of(gateway) == std::pair<std::string, std::string>{"gateway", "gw-a"});
  play g{"gateway", "gw-a"};
  auto t = g.step(g.event(gateway));
  REQUIRE(t.save);
  CHECK(t.save->rows[0].row.gateway().class_() == "edge");
  g.s = t.next;
  v1::Command move;
  move.mutable_update_gateway()->set_name("gw-a");
  move.mutable_update_gateway()->mutable_spec()->set_class_("other");
  move.mutable_update_gateway()->add_update_mask("class");
  CHECK(g.step(g.event(move)).save->rows[0].row.gateway().class_() == "other");

  v1::Command networks;
  networks.mutable_put_connector_class()->set_name("lan");
  networks.mutable_put_connector_class()->set_create(true);
  networks.mutable_put_connector_class()->mutable_spec()->add_allowed_networks("10.0.0.0/8");
  CHECK(registry::target_of(networks) == std::pair<std::string, std::string>{"connector_class", "lan"});
  play n{"connector_class", "lan"};
  CHECK(n.step(n.event(networks)).save->rows[0].row.connector_class().allowed_networks(0) == "10.0.0.0/8");

  CHECK(registry::target_of(put(true)).first == "gateway_class");
  CHECK(registry::target_of(erase()).first == "gateway_class");
  v1::Command other;
  other.mutable_create_tunnel()->set_name("web");
  CHECK(registry::target_of(other).first.empty());
  CHECK(registry::target_of({}).first.empty());
}

TEST_CASE("a deletion ends the entity; what is not there cannot be changed") {
  play p;
  CHECK(code(p.commit(put(false, {"listen"}))) == "not_found");
  p.commit(put(true));
  const auto t = p.commit(erase("u1-1"));
  REQUIRE(t.save);
  CHECK(t.save->rows[0].what == row_write::op::erase);
  CHECK(t.save->rows[0].expected == 101);
  CHECK(t.save->audit->after_json.empty());
  CHECK_FALSE(p.s.has_row());
  CHECK(t.gone);
  CHECK(code(p.commit(erase())) == "not_found");

  play d{"gateway_class", "default"};
  d.commit(put(true));
  CHECK(code(d.commit(erase())) == "failed_precondition");
  CHECK(d.s.has_row());
}

TEST_CASE("after a conflict the row is read again and the command decided anew") {
  play p;
  p.commit(put(true));
  auto t = p.step(p.event(put(false, {"dial_mode", "stream_idle_timeout_ms"}, "u1-1")));
  CHECK_FALSE(t.save);  // nothing changes
  auto c = put(false, {"stream_idle_timeout_ms"}, "u1-1");
  c.mutable_put_gateway_class()->mutable_spec()->set_stream_idle_timeout_ms(2000);
  t = p.step(p.event(c));
  REQUIRE(t.save);
  CHECK(t.kept.pending_size() == 1);
  p.s = t.kept;
  auto row = p.s.row();

  SECTION("only the version moved: it is tried again, a moment later") {
    row.mutable_gateway_class()->set_version(200);
    const auto waiting = p.reloaded(row, true);
    CHECK_FALSE(waiting.save);
    CHECK(waiting.replies.empty());
    CHECK(waiting.wake_at_ms > p.now.steady_ms);
    CHECK(waiting.wake_at_ms <= p.now.steady_ms + limits::conflict_retry_max / 1ms);
    CHECK_FALSE(p.wake().save);  // too early
    p.now.steady_ms = waiting.wake_at_ms;
    const auto again = p.wake();
    REQUIRE(again.save);
    CHECK(again.save->rows[0].expected == 200);
  }
  SECTION("it was changed: the etag no longer fits") {
    row.mutable_gateway_class()->set_generation(2);
    const auto waiting = p.reloaded(row, true);
    p.now.steady_ms = waiting.wake_at_ms;
    CHECK(code(p.wake()) == "aborted");
  }
  SECTION("it is gone") {
    const auto waiting = p.reloaded(std::nullopt, true);
    p.now.steady_ms = waiting.wake_at_ms;
    const auto end = p.wake();
    CHECK(code(end) == "not_found");
    CHECK(end.gone);
  }
}

TEST_CASE("a replayed request is not answered twice; a refused one is, with the field") {
  play p;
  auto t = p.step(p.event(put(true)));
  p.s = t.kept;
  SECTION("replayed") {
    const auto end = p.failed("replayed");
    CHECK(end.replies.empty());
    CHECK(p.s.pending_size() == 0);
    CHECK(end.gone);
  }
  SECTION("refused") {
    const auto end = p.failed("invalid");
    CHECK(code(end) == "invalid");
    CHECK(end.replies[0].reply.field() == "f");
    CHECK(end.replies[0].reply.message() == "m");
    CHECK(p.s.pending_size() == 0);
  }
  SECTION("the database is away: the caller hears it, and the next try waits longer each time") {
    CHECK(code(p.failed("unavailable")) == "unavailable");
    CHECK(p.s.failures() == 1);
    CHECK(p.s.retry_at_ms() > p.now.steady_ms);
    p.failed("unavailable");
    CHECK(p.s.failures() == 2);
    CHECK(p.s.retry_at_ms() <= p.now.steady_ms + limits::unavailable_retry_max / 1ms);
    const auto wait = p.step(p.event(put(true)));
    CHECK_FALSE(wait.save);
    CHECK(wait.wake_at_ms == p.s.retry_at_ms());
    p.s = wait.next;
    p.now.steady_ms = wait.wake_at_ms;
    CHECK(p.wake().save);
  }
}

TEST_CASE("a change whose caller's deadline has passed when its turn comes is not carried out") {
  play p{"gateway_class", "edge", false};
  auto c = put(true);
  c.set_patience_ms(500);
  p.s = p.step(p.event(c)).next;
  p.now.steady_ms += 500;
  const auto t = p.reloaded(std::nullopt);
  CHECK_FALSE(t.save);
  CHECK(code(t) == "unavailable");
  CHECK(t.expired == 1);
  CHECK(t.gone);
}

TEST_CASE("commands wait in order until the row is read, and no more than fit") {
  play p{"gateway_class", "edge", false};
  for (std::size_t i = 0; i < limits::entity_pending_commands_max; ++i) {
    auto c = i == 0 ? put(false, {"listen"}) : put(true);
    c.mutable_caller()->set_request_id("r" + std::to_string(i));
    const auto t = p.step(p.event(std::move(c)));
    CHECK_FALSE(t.save);
    CHECK(t.replies.empty());
    p.s = t.next;
  }
  auto another = put(true);
  another.mutable_caller()->set_request_id("another");
  CHECK(code(p.step(p.event(another))) == "overloaded");
  const auto t = p.reloaded(std::nullopt);
  REQUIRE(t.save);  // the first is not found, the second creates
  REQUIRE(t.replies.size() == 2);
  CHECK(t.replies[0].ticket == 1);
  CHECK(t.replies[0].reply.code() == "not_found");
  CHECK(t.replies[1].ticket == 2);
  CHECK(t.kept.pending(0).ticket() == 2);
  CHECK(t.next.pending(0).ticket() == 3);
}

TEST_CASE("a spec that came around the API is judged by the same rules, and stored in its one spelling") {
  play p;
  auto c = put(true);
  c.mutable_put_gateway_class()->mutable_spec()->set_dial_mode("elsewhere");
  const auto bad = p.step(p.event(c));
  CHECK_FALSE(bad.save);
  CHECK(code(bad) == "invalid");
  CHECK(bad.replies[0].reply.field() == "dial_mode");
  CHECK(bad.gone);
  c = put(true);
  c.mutable_put_gateway_class()->mutable_spec()->clear_dial_mode();
  c.mutable_put_gateway_class()->mutable_spec()->set_listen(0, "[0:0::1]:80");
  c.mutable_put_gateway_class()->mutable_spec()->set_stream_idle_timeout_ms(0);
  const auto t = p.commit(c);
  REQUIRE(t.save);
  const auto& row = t.save->rows[0].row.gateway_class();
  CHECK(row.dial_mode() == "direct");
  CHECK(row.listen(0) == "[::1]:80");
  CHECK(row.stream_idle_timeout_ms() == 300'000);
  // Of an update only what the mask names counts.
  auto change = put(false, {"stream_idle_timeout_ms"});
  change.mutable_put_gateway_class()->mutable_spec()->set_dial_mode("elsewhere");
  change.mutable_put_gateway_class()->mutable_spec()->set_stream_idle_timeout_ms(999);
  CHECK(code(p.step(p.event(change))) == "invalid");
  change.mutable_put_gateway_class()->mutable_spec()->set_stream_idle_timeout_ms(2000);
  CHECK(p.commit(change).save);

  play n{"connector_class", "lan"};
  v1::Command networks;
  networks.mutable_put_connector_class()->set_name("lan");
  networks.mutable_put_connector_class()->set_create(true);
  networks.mutable_put_connector_class()->mutable_spec()->add_allowed_networks("10.0.0.1/8");
  const auto wrong = n.step(n.event(networks));
  CHECK(code(wrong) == "invalid");
  CHECK(wrong.replies[0].reply.field() == "allowed_networks[0]");

  play g{"gateway", "gw-a"};
  v1::Command gateway;
  gateway.mutable_create_gateway()->set_name("gw-a");
  CHECK(g.step(g.event(gateway)).save->rows[0].row.gateway().class_() == "default");
  gateway.mutable_create_gateway()->mutable_spec()->set_class_("NO CLASS");
  const auto refused = g.step(g.event(gateway));
  CHECK(code(refused) == "invalid");
  CHECK(refused.replies[0].reply.field() == "class");
}

TEST_CASE("the audit trail shows no revision: what is written gets its own from the store") {
  play p;
  p.commit(put(true));
  auto c = put(false, {"dial_mode"});
  c.mutable_put_gateway_class()->mutable_spec()->set_dial_mode("tunnel-listener");
  const auto t = p.commit(c);
  REQUIRE(t.save);
  REQUIRE(t.save->audit);
  CHECK(t.save->rows[0].expected == 101);
  CHECK(t.save->audit->before_json.find("\"dial_mode\":\"direct\"") != std::string::npos);
  CHECK(t.save->audit->after_json.find("\"dial_mode\":\"tunnel-listener\"") != std::string::npos);
  for (const auto& text : {t.save->audit->before_json, t.save->audit->after_json}) CHECK(text.find("version") == std::string::npos);
}
