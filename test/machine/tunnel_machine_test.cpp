// test/machine/tunnel_machine_test.cpp -- a tunnel's life as a table of events and what each must lead to.
#include <catch2/catch.hpp>

#include <fmt/format.h>

#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"
#include "actors/tunnel/machine.hpp"

using namespace warren;
using tunnel::announcement;

namespace {

/// Plays shell and store: a save is committed at the next revision unless the test says otherwise.
struct play {
  tunnel::state s = tunnel::initial(7, 1, "acme", "web");
  moment now{1'000'000, 1'700'000'000'000};
  revision_t revision = 100;
  tunnel::transition last;
  std::vector<announcement> said;
  std::vector<answer> answers;
  std::vector<std::string> writes;
  std::optional<claim_change> claimed;

  void after(std::int64_t ms) {
    now.steady_ms += ms;
    now.wall_ms += ms;
  }

  /// One event, and its saves committed.
  void on(tunnel::event e, std::uint64_t random = 9) {
    e.set_random(random);
    if (e.fresh_uid().empty()) e.set_fresh_uid("u1");
    take(tunnel::step(s, e, now));
  }
  void take(tunnel::transition t) {
    last = t;
    if (!t.save) {
      REQUIRE_FALSE((t.gone && !t.announce.empty()));
      finish(std::move(t));
      return;
    }
    writes.push_back(t.save->write);
    claimed = t.save->claims;
    saved done{++revision, {}};
    for (auto& w : t.save->rows) {
      w.row.mutable_tunnel()->set_version(revision);
      if (w.routes) w.row.mutable_tunnel()->set_route_version(revision);
      done.rows.push_back(w.row);
    }
    tunnel::adopt(t.next, done);
    auto after_save = t;
    finish(std::move(t));
    tunnel::event e;
    e.mutable_saved()->set_revision(revision);
    e.set_random(9);
    last = tunnel::step(s, e, now);
    if (last.save) take(last);
    else finish(last);
  }
  void finish(tunnel::transition t) {
    s = t.next;
    said.insert(said.end(), t.announce.begin(), t.announce.end());
    answers.insert(answers.end(), t.replies.begin(), t.replies.end());
  }
  /// An event whose save meets another version; `fresh` is what the row is then (unset: gone).
  void conflict(tunnel::event e, std::optional<v1::TunnelRow> fresh, std::uint64_t random = 9) {
    e.set_random(random);
    if (e.fresh_uid().empty()) e.set_fresh_uid("u1");
    auto t = tunnel::step(s, e, now);
    REQUIRE(t.save);
    s = t.kept;
    on(reloaded(std::move(fresh), true), random);
  }

  static tunnel::event reloaded(std::optional<v1::TunnelRow> row, bool conflict = false) {
    tunnel::event e;
    e.mutable_reloaded()->set_conflict(conflict);
    if (row) {
      *e.mutable_reloaded()->mutable_row()->mutable_tunnel() = *row;
      auto* claim = e.mutable_reloaded()->add_children()->mutable_hostname_claim();
      claim->set_hostname("web.example.com");
      claim->set_tunnel_uid(row->uid());
    }
    return e;
  }
  static tunnel::event wake() {
    tunnel::event e;
    e.mutable_wake();
    return e;
  }
  static tunnel::event create(std::vector<std::string> connectors = {"home"}) {
    tunnel::event e;
    e.set_ticket(1);
    auto& c = *e.mutable_command();
    c.set_project("acme");
    c.mutable_caller()->set_method("CreateTunnel");
    c.mutable_caller()->set_request_id("r1");
    auto& t = *c.mutable_create_tunnel();
    t.set_name("web");
    auto& spec = *t.mutable_spec();
    spec.add_hostnames("web.example.com");
    spec.set_enabled(true);
    spec.set_gateway_class("default");
    for (std::size_t i = 0; i < connectors.size(); ++i) {
      auto* r = spec.add_rules();
      r->set_path_prefix(i == 0 ? "/" : fmt::format("/{}", i));
      r->set_connector(connectors[i]);
      r->set_target("http://localhost:8080");
    }
    return e;
  }
  static tunnel::event update_target(const std::string& target, std::string etag = "") {
    tunnel::event e;
    e.set_ticket(2);
    auto& u = *e.mutable_command()->mutable_update_tunnel();
    u.set_name("web");
    u.set_etag(std::move(etag));
    u.add_update_mask("rules");
    auto* r = u.mutable_spec()->add_rules();
    r->set_path_prefix("/");
    r->set_connector("home");
    r->set_target(target);
    return e;
  }
  static tunnel::event switched(bool on) {
    tunnel::event e;
    e.set_ticket(4);
    auto& u = *e.mutable_command()->mutable_update_tunnel();
    u.set_name("web");
    u.add_update_mask("enabled");
    u.mutable_spec()->set_enabled(on);
    return e;
  }
  static tunnel::event erase(std::string etag = "") {
    tunnel::event e;
    e.set_ticket(3);
    e.mutable_command()->mutable_delete_tunnel()->set_name("web");
    e.mutable_command()->mutable_delete_tunnel()->set_etag(std::move(etag));
    return e;
  }
  tunnel::event attachment(bool stored, bool attached, std::int64_t generation = 0,
                           const std::string& connector = "home") {
    tunnel::event e;
    auto& a = *e.mutable_attachment();
    a.set_connector(connector);
    a.set_tunnel("web");
    a.set_tunnel_uid(s.row().uid());
    a.set_tunnel_generation(generation == 0 ? s.row().generation() : generation);
    a.set_stored(stored);
    a.set_attached(attached);
    a.set_online(true);
    a.set_revision(revision);
    return e;
  }
  tunnel::event let_go(const std::string& connector = "home") {
    tunnel::event e;
    auto& a = *e.mutable_attachment();
    a.set_connector(connector);
    a.set_tunnel_uid(s.row().uid());
    a.set_gone(true);
    return e;
  }
  struct gw {
    std::string name;
    revision_t acknowledged = 0;
    bool counts = true;
    std::string refused = "";
    bool stalled = false;
  };
  tunnel::event gateways(std::vector<gw> all, bool settled = true) {
    tunnel::event e;
    e.mutable_gateways()->set_settled(settled);
    for (auto& g : all) {
      auto* out = e.mutable_gateways()->add_gateways();
      out->set_gateway(g.name);
      out->set_class_("default");
      out->set_counts(g.counts);
      out->set_connected(g.counts || g.stalled);
      out->set_stalled(g.stalled);
      out->set_acknowledged(g.acknowledged);
      if (!g.refused.empty()) {
        auto* r = out->add_refused();
        r->set_tunnel_uid(s.row().uid());
        r->set_revision(revision);
        r->set_message(g.refused);
      }
    }
    return e;
  }
  template <class T> int count() const {
    return static_cast<int>(std::count_if(said.begin(), said.end(), [](const announcement& a) {
      return std::holds_alternative<T>(a);
    }));
  }
  const v1::Condition& programmed() const { return *find_condition(s.row().conditions(), "Programmed"); }

  void begin() { on(reloaded(std::nullopt)); }
  void live() {
    on(create());
    on(attachment(true, true));
    on(gateways({{"gw-a", revision}}));
    on(attachment(true, true));
    said.clear();
    answers.clear();
    writes.clear();
  }
};

play fresh() {
  play p;
  // An actor that is activated by a command learns of the command first, then of its row.
  return p;
}

}  // namespace

TEST_CASE("a created tunnel is stored, answered, attached, programmed and pushed, in that order") {
  auto p = fresh();
  p.on(play::create());
  REQUIRE(p.writes.empty());  // nothing is decided before the row (its absence) is known
  p.begin();
  REQUIRE(p.writes == std::vector<std::string>{"tunnel_spec"});
  REQUIRE(p.answers.size() == 1);
  CHECK(p.answers[0].reply.code().empty());
  REQUIRE(p.count<v1::AttachTunnel>() == 1);
  CHECK(std::get<v1::AttachTunnel>(p.said[0]).tunnel_generation() == 1);
  CHECK(std::get<v1::AttachTunnel>(p.said[0]).rules(0).tls_verify());
  CHECK(p.count<v1::PushAddressing>() == 0);

  p.on(p.attachment(true, false));
  p.on(p.gateways({{"gw-a", p.revision}}));
  CHECK(p.writes.back() == "tunnel_status");
  CHECK(p.programmed().status() == "True");
  CHECK(p.s.row().programmed_generation() == 1);
  REQUIRE(p.count<v1::PushAddressing>() == 1);  // without waiting for any heartbeat
  p.on(p.attachment(true, true));
  p.after(10'000);
  p.on(play::wake());
  CHECK(p.count<v1::PushAddressing>() == 1);
  CHECK(p.count<v1::AttachTunnel>() == 1);
  CHECK(p.last.wake_at_ms == 0);  // nothing is owed
}

TEST_CASE("what is announced is said again after 1 s until its effect is seen") {
  auto p = fresh();
  p.begin();
  p.on(play::create());
  for (int i = 1; i <= 3; ++i) {
    CHECK(p.count<v1::AttachTunnel>() == i);
    CHECK(p.last.wake_at_ms == p.now.steady_ms + 1000);
    p.after(999);
    p.on(play::wake());
    CHECK(p.count<v1::AttachTunnel>() == i);
    p.after(1);
    p.on(play::wake());
  }
  p.on(p.attachment(true, false));
  p.after(5000);
  p.on(play::wake());
  CHECK(p.count<v1::AttachTunnel>() == 4);
}

TEST_CASE("Programmed waits for every gateway that counts, and for no other") {
  auto p = fresh();
  p.begin();
  p.on(play::create());
  SECTION("one is behind") {
    p.on(p.gateways({{"gw-a", p.revision}, {"gw-b", p.revision - 1}}));
    CHECK(p.programmed().status() == "Unknown");
    p.on(p.gateways({{"gw-a", p.revision}, {"gw-b", p.revision}}));
    CHECK(p.programmed().status() == "True");
    CHECK(p.programmed().message() == "2/2 gateways, revision 101");
  }
  SECTION("a stalled one does not count") {
    p.on(p.gateways({{"gw-a", p.revision}, {"gw-b", 0, false, "", true}}));
    CHECK(p.programmed().status() == "True");
  }
  SECTION("of another class") {
    auto e = p.gateways({{"gw-a", p.revision}, {"gw-x", 0}});
    e.mutable_gateways()->mutable_gateways(1)->set_class_("internal");
    p.on(e);
    CHECK(p.programmed().status() == "True");
  }
  SECTION("none counts: nothing new becomes programmed, and it says so") {
    p.on(p.gateways({}));
    CHECK(p.programmed().status() == "False");
    CHECK(p.programmed().reason() == "NoGateway");
  }
  SECTION("those that are there and do not count are named") {
    p.on(p.gateways({{"gw-a", 7, false, "", true}, {"gw-b", 0, false, "", true}}));
    CHECK(p.programmed().status() == "False");
    CHECK(p.programmed().reason() == "Pending");
    CHECK(p.programmed().message() == "waiting for gateways: gw-a is stalled, gw-b is stalled");
  }
  SECTION("also when none of them has ever acknowledged") {
    p.on(p.gateways({{"gw-b", 0, false, "", true}}));
    CHECK(p.programmed().reason() == "NoGateway");
    CHECK(p.programmed().message() == "no gateway of this class has acknowledged: gw-b is stalled");
  }
  SECTION("the instance has not heard its gateways yet: nothing is said") {
    p.on(p.gateways({}, false));
    CHECK(p.programmed().status() == "Unknown");
  }
  SECTION("a fleet behind the extension hook that was not asked about it is named, and so is what it was handed") {
    auto e = p.gateways({{"gw-a", p.revision}, {"gw-b", p.revision, true, "it was not asked about HTTPRoute p/web"}});
    e.mutable_gateways()->mutable_gateways(1)->set_handed_over(true);
    e.mutable_gateways()->mutable_gateways(1)->mutable_refused(0)->set_pending(true);
    p.on(e);
    CHECK(p.programmed().status() == "False");
    CHECK(p.programmed().reason() == "Pending");
    CHECK(p.programmed().message() == "1/2 gateways; waiting for gw-b (it was not asked about HTTPRoute p/web)");
    e = p.gateways({{"gw-a", p.revision}, {"gw-b", p.revision}});
    e.mutable_gateways()->mutable_gateways(1)->set_handed_over(true);
    p.on(e);
    CHECK(p.programmed().status() == "True");
    CHECK_THAT(p.programmed().message(), Catch::Contains("2/2 gateways") && Catch::Contains("handed over: gw-b"));
  }
  SECTION("a refusal is the tunnel's own, in the gateway's words, and is mended by an acknowledgement") {
    p.on(p.gateways({{"gw-a", p.revision, true, "route: invalid path"}}));
    CHECK(p.programmed().reason() == "Rejected");
    CHECK(p.programmed().message() == "gw-a: route: invalid path");
    const auto writes = p.writes.size();
    p.on(p.gateways({{"gw-a", p.revision, true, "route: invalid path"}}));
    CHECK(p.writes.size() == writes);  // said once
    p.on(p.gateways({{"gw-a", p.revision}}));
    CHECK(p.programmed().status() == "True");
  }
}

TEST_CASE("Programmed is latched: a gateway that disconnects or falls behind does not lower it") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(p.gateways({}));
  p.on(p.gateways({{"gw-b", 0}}));
  CHECK(p.programmed().status() == "True");
  CHECK(p.writes.empty());
}

TEST_CASE("a live tunnel keeps its previous rules until agents and gateways have the new ones") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(play::update_target("http://localhost:9090"));
  CHECK(p.s.row().generation() == 2);
  CHECK(p.s.row().previous_generation() == 1);
  CHECK(p.count<v1::AttachTunnel>() == 1);
  CHECK(p.count<v1::DetachTunnel>() == 0);
  p.on(p.gateways({{"gw-a", p.revision}}));  // they run the old generation still
  CHECK(p.s.row().programmed_generation() == 1);
  p.on(p.attachment(true, false));
  p.on(p.gateways({{"gw-a", p.revision}}));
  CHECK(p.s.row().programmed_generation() == 1);
  ++p.revision;  // the connector's write
  p.on(p.attachment(true, true));
  p.on(p.gateways({{"gw-a", p.revision - 1}}));
  CHECK(p.s.row().programmed_generation() == 1);  // acknowledged before it knew
  p.on(p.gateways({{"gw-a", p.revision}}));
  CHECK(p.s.row().programmed_generation() == 2);
  REQUIRE(p.count<v1::DetachTunnel>() == 1);
  CHECK(p.s.row().previous_generation() == 1);  // until the agent has let go
  p.on(p.let_go());
  CHECK(p.s.row().previous_generation() == 0);
  CHECK(p.s.row().previous_rules_size() == 0);
}

TEST_CASE("a tunnel that is switched off is detached once no gateway routes to it, and attached anew when it is switched on") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(play::switched(false));
  CHECK(p.s.row().generation() == 2);
  CHECK(p.count<v1::AttachTunnel>() == 0);
  CHECK(p.count<v1::DetachTunnel>() == 0);  // gateways still route to it
  p.on(p.gateways({{"gw-a", p.revision - 1}}));
  CHECK(p.count<v1::DetachTunnel>() == 0);
  p.on(p.gateways({{"gw-a", p.revision}}));
  CHECK(p.programmed().status() == "True");
  REQUIRE(p.count<v1::DetachTunnel>() == 1);
  const auto detach = [&] {
    for (const auto& a : p.said)
      if (const auto* d = std::get_if<v1::DetachTunnel>(&a)) return *d;
    return v1::DetachTunnel{};
  }();
  CHECK(detach.connector() == "home");
  CHECK(detach.below_generation() == 2);  // all that there is: nothing of generation 2 is ever attached
  p.after(1000);
  p.on(play::wake());
  CHECK(p.count<v1::DetachTunnel>() == 2);  // until the agent has let go
  p.on(p.let_go());
  CHECK(p.s.row().previous_generation() == 0);
  CHECK(p.s.row().retiring_size() == 0);
  p.after(10'000);
  p.on(play::wake());
  CHECK(p.count<v1::AttachTunnel>() == 0);
  CHECK(p.count<v1::DetachTunnel>() == 2);
  CHECK(p.last.wake_at_ms == 0);  // nothing is owed

  SECTION("switched on") {
    p.on(play::switched(true));
    REQUIRE(p.count<v1::AttachTunnel>() == 1);
    p.on(p.gateways({{"gw-a", p.revision}}));
    CHECK(p.s.row().programmed_generation() == 2);  // a visitor would meet a 503 still
    p.on(p.attachment(true, true));
    p.on(p.gateways({{"gw-a", p.revision}}));
    CHECK(p.s.row().programmed_generation() == 3);
  }
  SECTION("owned by somebody else meanwhile") {
    const auto row = p.s.row();
    p.s = tunnel::initial(3, 8, "acme", "web");
    p.said.clear();
    p.on(play::reloaded(row));
    p.on(p.gateways({{"gw-a", p.revision}}));
    CHECK(p.count<v1::AttachTunnel>() == 0);
    CHECK(p.last.wake_at_ms == 0);
  }
}

TEST_CASE("an update with another etag is aborted and changes nothing") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(play::update_target("http://localhost:9090", "u1-7"));
  REQUIRE(p.answers.size() == 1);
  CHECK(p.answers[0].reply.code() == "aborted");
  CHECK(p.answers[0].reply.etag() == "u1-1");
  CHECK(p.writes.empty());
}

TEST_CASE("a status change does not move the etag") {
  auto p = fresh();
  p.begin();
  p.on(play::create());
  const auto before = tunnel::etag_of(p.s.row());
  p.on(p.gateways({{"gw-a", p.revision}}));
  CHECK(tunnel::etag_of(p.s.row()) == before);
}

TEST_CASE("deletion: gateways, then agents, then the row") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(play::erase());
  REQUIRE(p.answers.size() == 1);
  CHECK(p.s.row().has_delete_time());
  CHECK(p.count<v1::DetachTunnel>() == 0);
  p.on(p.gateways({{"gw-a", p.revision - 1}}));
  CHECK(p.count<v1::DetachTunnel>() == 0);  // it still routes
  p.on(p.gateways({{"gw-a", p.revision}}));
  REQUIRE(p.count<v1::DetachTunnel>() == 1);
  CHECK(p.s.has_row());
  p.on(p.let_go());
  CHECK_FALSE(p.s.has_row());
  CHECK(p.writes.back() == "tunnel_erase");
  CHECK(p.last.gone);
}

TEST_CASE("deletion waits 60 s for a gateway that is away, 10 s for an agent that does not answer") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(play::erase());
  p.on(p.gateways({{"gw-a", p.revision}, {"gw-b", 0, false}}));
  CHECK(p.count<v1::DetachTunnel>() == 0);
  p.after(59'999);
  p.on(play::wake());
  CHECK(p.count<v1::DetachTunnel>() == 0);
  p.after(1);
  p.on(play::wake());
  CHECK(p.count<v1::DetachTunnel>() == 1);
  for (int i = 0; i < 9; ++i) {
    p.after(1000);
    p.on(play::wake());
    CHECK(p.s.has_row());
  }
  p.after(1000);
  p.on(play::wake());
  CHECK_FALSE(p.s.has_row());
}

TEST_CASE("a deletion that was under way goes on after a restart") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(play::erase());
  auto row = p.s.row();
  play q;
  q.revision = p.revision;
  q.on(play::reloaded(row));
  CHECK(q.last.wake_at_ms != 0);
  q.on(q.gateways({{"gw-a", q.revision}}));
  CHECK(q.count<v1::DetachTunnel>() == 1);
  q.on(q.let_go());
  CHECK_FALSE(q.s.has_row());
}

TEST_CASE("deleting twice answers the same; deleting what is not there is not_found") {
  auto p = fresh();
  p.begin();
  p.on(play::erase());
  REQUIRE(p.answers.size() == 1);
  CHECK(p.answers[0].reply.code() == "not_found");
  p.answers.clear();
  p.s = tunnel::initial(7, 1, "acme", "web");
  p.begin();
  p.live();
  p.on(play::erase());
  p.on(play::erase());
  REQUIRE(p.answers.size() == 2);
  CHECK(p.answers[1].reply.code().empty());
  CHECK(p.answers[1].reply.row().tunnel().has_delete_time());
}

TEST_CASE("a name is taken until its row is gone") {
  auto p = fresh();
  p.begin();
  p.live();
  p.on(play::erase());
  p.answers.clear();
  p.on(play::create());
  REQUIRE(p.answers.size() == 1);
  CHECK(p.answers[0].reply.code() == "already_exists");
}

TEST_CASE("a conflict is retried by a wake within 200 ms, with a fresh read, as long as it lasts") {
  auto p = fresh();
  p.begin();
  p.live();
  auto row = p.s.row();
  p.conflict(play::update_target("http://localhost:9090"), row, 0xffff'ffff'ffffull);
  std::vector<std::int64_t> delays;
  for (int round = 1; round <= 20; ++round) {
    CHECK(p.answers.empty());  // the caller is not told: it is no error
    const auto delay = p.s.retry_at_ms() - p.now.steady_ms;
    CHECK(delay >= 1);
    CHECK(delay <= std::min(20 << std::min(round - 1, 4), 200));
    CHECK(p.last.wake_at_ms == p.s.retry_at_ms());
    p.after(delay - 1);
    p.on(play::wake());
    CHECK(p.writes.empty());
    p.after(1);
    row.set_version(row.version() + 1);
    if (round < 20) p.conflict(play::wake(), row, 0xffff'ffff'ffffull);
  }
  p.on(play::wake());
  CHECK(p.writes == std::vector<std::string>{"tunnel_spec"});
  REQUIRE(p.answers.size() == 1);
  CHECK(p.answers[0].reply.code().empty());
  CHECK(p.s.row().generation() == 2);
}

TEST_CASE("a rival that only touches the row leaves the generation alone") {
  auto p = fresh();
  p.begin();
  p.live();
  auto row = p.s.row();
  row.set_version(++p.revision);
  *row.mutable_updated_at() = timestamp_from_ms(p.now.wall_ms + 5);
  p.on(play::reloaded(row));
  CHECK(p.writes.empty());
  CHECK(p.s.row().generation() == 1);
}

TEST_CASE("what is said of a tunnel is said again when it is gone from the row") {
  auto p = fresh();
  p.begin();
  p.live();
  auto row = p.s.row();
  row.set_version(++p.revision);
  row.clear_conditions();
  p.on(play::reloaded(row));
  CHECK(is_true(p.s.row().conditions(), "Accepted"));
  CHECK(is_true(p.s.row().conditions(), "Programmed"));
  CHECK(p.s.row().generation() == 1);
  CHECK(p.s.row().programmed_generation() == 1);
}

TEST_CASE("a rival that changes the spec makes a generation, checked and claimed like any other") {
  auto p = fresh();
  p.begin();
  p.live();
  auto row = p.s.row();
  row.set_version(++p.revision);
  row.set_generation(2);  // the trigger's doing
  SECTION("valid") {
    row.set_hostnames(0, "other.example.com");
    p.on(play::reloaded(row));
    CHECK(p.writes == std::vector<std::string>{"tunnel_spec"});
    REQUIRE(p.claimed);
    CHECK(p.claimed->claim == std::vector<std::string>{"other.example.com"});
    CHECK(p.claimed->drop == std::vector<std::string>{"web.example.com"});
    CHECK(p.s.row().previous_generation() == 1);
    CHECK(p.s.row().generation() == 2);
    CHECK(is_true(p.s.row().conditions(), "Accepted"));
  }
  SECTION("invalid") {
    row.set_hostnames(0, "*.example.com");
    p.on(play::reloaded(row));
    const auto* accepted = find_condition(p.s.row().conditions(), "Accepted");
    CHECK(accepted->status() == "False");
    CHECK(accepted->reason() == "Invalid");
    CHECK(accepted->message().find("hostnames") != std::string::npos);
  }
  SECTION("without rules: no gateway is waited for, and the field is named") {
    row.clear_rules();
    p.on(play::reloaded(row));
    CHECK(find_condition(p.s.row().conditions(), "Accepted")->message().find("rules: ") == 0);
    CHECK(p.programmed().status() == "False");
    CHECK(p.programmed().reason() == "Pending");
    CHECK(p.programmed().message().find("rules: ") != std::string::npos);
    CHECK(p.programmed().message().find("gateway") == std::string::npos);
    row = p.s.row();
    row.set_generation(3);
    *row.add_rules() = p.s.row().previous_rules(0);
    p.on(play::reloaded(row));
    CHECK(is_true(p.s.row().conditions(), "Accepted"));
    CHECK(p.programmed().message() == "waiting for gateways");
  }
  SECTION("that no agent can be told: none is, its field is named, and mended it is attached") {
    std::string field;
    SECTION("a target") {
      row.mutable_rules(0)->set_target("http://bad\x01host:80");
      field = "rules[0].target: ";
    }
    SECTION("a path prefix") {
      row.mutable_rules(0)->set_path_prefix("no-slash\n");
      field = "rules[0].path_prefix: ";
    }
    SECTION("a connector") {
      row.mutable_rules(0)->set_connector(std::string(64, 'a'));
      field = "rules[0].connector: ";
    }
    SECTION("too many rules") {
      for (int i = 0; i < 16; ++i) *row.add_rules() = row.rules(0);
      field = "rules: ";
    }
    SECTION("a uid") {
      row.set_uid("a/b");
      field = "uid: ";
    }
    p.on(play::reloaded(row));
    for (int i = 0; i < 5; ++i) {
      p.after(limits::repeat_after / 1ms);
      p.on(play::wake());
    }
    CHECK(p.count<v1::AttachTunnel>() == 0);
    CHECK(find_condition(p.s.row().conditions(), "Accepted")->status() == "False");
    CHECK(find_condition(p.s.row().conditions(), "Accepted")->message().find(field) == 0);
    CHECK(p.programmed().message().find(field) != std::string::npos);
    CHECK(p.s.row().observed_generation() == 2);
    if (field == "uid: ") return;  // no API mends that
    p.on(play::update_target("http://localhost:9090"));
    CHECK(is_true(p.s.row().conditions(), "Accepted"));
    CHECK(p.s.row().generation() == 3);
    CHECK(p.count<v1::AttachTunnel>() == 1);
  }
  SECTION("whose host names alone are refused: its agents hold it all the same") {
    row.set_hostnames(0, "*.example.com");
    p.on(play::reloaded(row));
    CHECK(p.count<v1::AttachTunnel>() == 1);
  }
  SECTION("met as a conflict") {
    row.set_enabled(false);
    p.conflict(play::update_target("http://localhost:9090"), row);
    p.after(200);
    p.on(play::wake());
    CHECK(p.s.row().generation() == 3);  // the rival's, then the caller's on top of it
    CHECK_FALSE(p.s.row().enabled());
    CHECK(p.s.row().rules(0).target() == "http://localhost:9090");
  }
  SECTION("deleted by it") {
    p.on(play::reloaded(std::nullopt));
    CHECK(p.last.gone);
  }
}

TEST_CASE("a claim that a rival deleted is claimed again, one that it added goes") {
  auto p = fresh();
  p.begin();
  p.live();
  auto e = play::reloaded(p.s.row());
  e.mutable_reloaded()->set_rival(true);
  SECTION("deleted") {
    e.mutable_reloaded()->clear_children();
    p.on(e);
    CHECK(p.writes == std::vector<std::string>{"tunnel_claims"});
    REQUIRE(p.claimed);
    CHECK(p.claimed->claim == std::vector<std::string>{"web.example.com"});
    CHECK(p.claimed->drop.empty());
    CHECK(p.s.row().generation() == 1);
    CHECK(p.programmed().status() == "True");
    CHECK(p.s.row().route_version() == p.revision);
  }
  SECTION("added") {
    auto* claim = e.mutable_reloaded()->add_children()->mutable_hostname_claim();
    claim->set_hostname("theirs.example.com");
    claim->set_tunnel_uid(p.s.row().uid());
    p.on(e);
    REQUIRE(p.claimed);
    CHECK(p.claimed->claim.empty());
    CHECK(p.claimed->drop == std::vector<std::string>{"theirs.example.com"});
  }
  SECTION("at activation") {
    auto again = fresh();
    auto row = play::reloaded(p.s.row());
    row.mutable_reloaded()->clear_children();
    again.on(row);
    REQUIRE(again.claimed);
    CHECK(again.claimed->claim == std::vector<std::string>{"web.example.com"});
  }
  SECTION("taken by somebody else meanwhile: the spec no longer holds, and no command hears of it") {
    e.mutable_reloaded()->clear_children();
    e.set_random(9);
    auto t = tunnel::step(p.s, e, p.now);
    REQUIRE(t.save);
    p.s = t.kept;
    p.s.set_retry_at_ms(p.now.steady_ms + 1);
    p.on(play::update_target("http://localhost:9090"));
    tunnel::event failed;
    failed.mutable_failed()->set_code("already_exists");
    failed.mutable_failed()->set_message("the host name web.example.com belongs to another tunnel");
    p.on(failed);
    CHECK(p.answers.empty());
    p.after(50);
    p.on(play::wake());
    CHECK(p.writes.at(0) == "tunnel_claims");
    CHECK(p.writes.at(1) == "tunnel_spec");  // the command, on top of it
    REQUIRE(p.answers.size() == 1);
  }
  SECTION("nothing to claim while it is being deleted") {
    p.on(play::erase());
    p.writes.clear();
    auto gone = play::reloaded(p.s.row());
    gone.mutable_reloaded()->clear_children();
    p.on(gone);
    CHECK(p.writes.empty());
  }
}

TEST_CASE("what a rival touched below the row is asked for anew") {
  auto p = fresh();
  p.begin();
  p.live();
  p.after(10'000);
  auto e = play::reloaded(p.s.row());
  p.on(e);
  CHECK(p.count<v1::AttachTunnel>() == 0);
  e.mutable_reloaded()->set_rival(true);
  p.on(e);
  CHECK(p.count<v1::AttachTunnel>() == 1);
  p.on(p.attachment(true, true));
  p.after(10'000);
  p.on(play::wake());
  CHECK(p.count<v1::AttachTunnel>() == 1);
  CHECK(p.writes.empty());
}

TEST_CASE("with the database away a caller is told at once, and what we owe is tried again") {
  auto p = fresh();
  p.begin();
  p.on(play::create());
  auto e = p.gateways({{"gw-a", p.revision}});
  e.set_random(5);
  auto t = tunnel::step(p.s, e, p.now);
  REQUIRE(t.save);
  p.s = t.kept;
  tunnel::event failed;
  failed.mutable_failed()->set_code("unavailable");
  p.on(failed);
  CHECK(p.programmed().status() == "Unknown");
  CHECK(p.last.wake_at_ms > p.now.steady_ms);
  CHECK(p.last.wake_at_ms <= p.now.steady_ms + 50);
  p.after(50);
  p.on(play::wake());
  CHECK(p.programmed().status() == "True");
}

TEST_CASE("a connector that appears later gets the attachment then, and is not asked for before") {
  auto p = fresh();
  p.begin();
  p.on(play::create());
  tunnel::event unknown;
  unknown.mutable_attachment()->set_connector("home");
  unknown.mutable_attachment()->set_unknown(true);
  p.on(unknown);
  p.after(60'000);
  p.on(play::wake());
  CHECK(p.count<v1::AttachTunnel>() == 1);
  p.on(p.gateways({{"gw-a", p.revision}}));
  CHECK(p.programmed().status() == "True");  // they run its 503
  tunnel::event appeared;
  appeared.mutable_connector_appeared()->set_connector("home");
  p.on(appeared);
  CHECK(p.count<v1::AttachTunnel>() == 2);
}

TEST_CASE("a connector that was not there for one generation is asked again for the next") {
  auto p = fresh();
  p.begin();
  p.on(play::create());
  tunnel::event unknown;
  unknown.mutable_attachment()->set_connector("home");
  unknown.mutable_attachment()->set_unknown(true);
  p.on(unknown);
  p.on(p.gateways({{"gw-a", p.revision}}));
  p.on(play::update_target("http://localhost:9090"));
  CHECK(p.count<v1::AttachTunnel>() == 2);
}

TEST_CASE("too many changes at once are refused, one by one, and the others go on") {
  auto p = fresh();
  for (std::size_t i = 0; i < limits::entity_pending_commands_max + 3; ++i) {
    auto e = play::create();
    e.mutable_command()->mutable_caller()->set_request_id(fmt::format("r{}", i));
    p.on(e);
  }
  CHECK(p.answers.size() == 3);
  for (const auto& a : p.answers) CHECK(a.reply.code() == "overloaded");
}

TEST_CASE("a change that is refused holds up nobody behind it") {
  auto p = fresh();
  p.begin();
  p.live();
  constexpr std::uint64_t n = 12;
  for (std::uint64_t i = 1; i <= n; ++i) {
    auto e = play::update_target(fmt::format("http://localhost:{}", 9000 + i));
    auto& waits = *p.s.add_pending();
    waits.set_ticket(i);
    *waits.mutable_command() = e.command();
  }
  tunnel::event refused;
  refused.mutable_failed()->set_code("already_exists");
  refused.mutable_failed()->set_field("hostnames");
  refused.set_random(99);
  auto t = tunnel::step(p.s, play::wake(), p.now);
  for (std::uint64_t i = 1; i < n; ++i) {  // no time passes
    REQUIRE(t.save);
    p.s = t.kept;
    t = tunnel::step(p.s, refused, p.now);
    REQUIRE(t.replies.size() == 2);
    CHECK(t.replies[0].ticket == i);
    CHECK(t.replies[0].reply.code() == "already_exists");
  }
  REQUIRE(t.save);
  p.take(t);
  CHECK(p.answers.back().ticket == n);
  CHECK(p.answers.back().reply.code().empty());
  CHECK(p.s.row().rules(0).target() == fmt::format("http://localhost:{}", 9000 + n));
}

TEST_CASE("a change whose caller's deadline has passed when its turn comes is not carried out") {
  auto p = fresh();
  auto e = play::create();
  e.mutable_command()->set_patience_ms(500);
  p.on(e);
  p.after(500);
  p.begin();
  REQUIRE(p.answers.size() == 1);
  CHECK(p.answers[0].reply.code() == "unavailable");
  CHECK(p.writes.empty());
  CHECK(p.last.expired == 1);
  CHECK(p.last.gone);
}

TEST_CASE("states and events print and parse") {
  auto p = fresh();
  p.begin();
  p.live();
  tunnel::state back;
  REQUIRE(back.ParseFromString(p.s.SerializeAsString()));
  CHECK(back.DebugString() == p.s.DebugString());
}
