// test/machine/connector_machine_test.cpp -- every rule of a connector's life, one event at a time.
#include <catch2/catch.hpp>

#include <map>
#include <memory>

#include <google/protobuf/text_format.h>
#include <openssl/evp.h>

#include "actors/connector/machine.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

using namespace warren;
using connector::event;
namespace busv1 = warren::bus::v1;

namespace {

constexpr std::int64_t wall_offset = 1'700'000'000'000;
const std::string token_a(64, 'a');

/// An agent's key.
struct key_pair {
  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key{nullptr, &EVP_PKEY_free};
  explicit key_pair(char seed) {
    const std::string raw(32, seed);
    key.reset(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr,
                                           reinterpret_cast<const unsigned char*>(raw.data()), raw.size()));
  }
  std::string public_hex() const {
    std::string out(32, '\0');
    std::size_t n = out.size();
    EVP_PKEY_get_raw_public_key(key.get(), reinterpret_cast<unsigned char*>(out.data()), &n);
    return protocol::hex(out);
  }
  std::string sign(const std::string& text) const {
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> c{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
    EVP_DigestSignInit(c.get(), nullptr, nullptr, nullptr, key.get());
    std::string out(64, '\0');
    std::size_t n = out.size();
    EVP_DigestSign(c.get(), reinterpret_cast<unsigned char*>(out.data()), &n,
                   reinterpret_cast<const unsigned char*>(text.data()), text.size());
    return out;
  }
};

/// The machine with a store that does what it is told, and everything that the machine says.
struct world {
  connector::state s = connector::initial(3, 7, 0, 2000, "acme", "home");
  moment now{1'000'000, wall_offset + 1'000'000};
  revision_t revision = 0;
  std::map<std::string, v1::AttachmentRow> attachments;
  std::optional<v1::ConnectorRow> row;
  int conflicts = 0;                        // of the next saves
  std::optional<v1::Failed> failure;        // of the next save
  std::vector<std::string> writes;
  std::vector<bool> routed;                 // of each write: gateways have to know
  std::vector<save_request> saves;
  std::vector<connector::announcement> said;
  std::vector<answer> replies;
  std::int64_t wake_at = 0;
  bool gone = false;
  std::uint64_t random = 0;
  key_pair key{'k'};
  std::string token;
  std::int64_t sequence = 0;

  void take(const save_request& q, saved& done) {
    done.revision = ++revision;
    for (const auto& w : q.rows) {
      v1::Row r = w.row;
      if (r.has_connector()) {
        auto& c = *r.mutable_connector();
        if (w.what != row_write::op::insert) {
          REQUIRE(row);
          REQUIRE(w.expected == row->version());
        }
        c.set_version(revision);
        if (w.routes) c.set_route_version(revision);
        if (w.what == row_write::op::erase) row.reset();
        else row = c;
      } else {
        auto& a = *r.mutable_attachment();
        const auto k = connector::attachment_key(a.tunnel_uid(), a.tunnel_generation());
        REQUIRE(attachments.contains(k) == (w.what != row_write::op::insert));
        if (w.what != row_write::op::insert) REQUIRE(w.expected == attachments[k].version());
        a.set_version(revision);
        if (w.what == row_write::op::erase) attachments.erase(k);
        else attachments[k] = a;
      }
      done.rows.push_back(std::move(r));
    }
    writes.push_back(q.write);
    routed.push_back(std::any_of(q.rows.begin(), q.rows.end(), [](const auto& w) { return w.routes; }));
    saves.push_back(q);
  }
  v1::Reloaded rows() const {
    v1::Reloaded r;
    if (row) *r.mutable_row()->mutable_connector() = *row;
    for (const auto& [k, a] : attachments) *r.add_children()->mutable_attachment() = a;
    return r;
  }
  void say(event e) {
    e.set_random(random);
    e.set_fresh_uid("uid-1");
    for (int turns = 0; turns < 50; ++turns) {
      auto t = connector::step(s, e, now);
      e.Clear();
      e.set_random(random);
      e.set_fresh_uid("uid-2");
      if (t.save) {
        if (conflicts > 0) {
          --conflicts;
          s = t.fall_back();
          if (row) row->set_version(++revision);  // a rival was here
          *e.mutable_reloaded() = rows();
          e.mutable_reloaded()->set_conflict(true);
          continue;
        }
        if (failure) {
          s = t.fall_back();
          *e.mutable_failed() = *failure;
          failure.reset();
          continue;
        }
        saved done;
        take(*t.save, done);
        connector::adopt(t.next, done);
        for (auto& r : t.replies)
          if (!r.reply.has_row()) *r.reply.mutable_row() = done.rows.front();
        e.mutable_saved()->set_revision(done.revision);
      }
      s = std::move(t.next);
      said.insert(said.end(), t.announce.begin(), t.announce.end());
      replies.insert(replies.end(), t.replies.begin(), t.replies.end());
      wake_at = t.wake_at_ms;
      gone = t.gone;
      if (t.save && !t.gone) continue;
      if (t.save) continue;
      if (wake_at != 0 && wake_at <= now.steady_ms) {
        e.mutable_wake();
        continue;
      }
      return;
    }
    FAIL("the machine does not come to rest");
  }
  void at(std::int64_t steady) { now = {steady, wall_offset + steady}; }
  void wake() {
    event e;
    e.mutable_wake();
    say(e);
  }
  /// Lets time pass as the shell does: wake by wake.
  void pass(std::int64_t ms) {
    const auto end = now.steady_ms + ms;
    while (wake_at != 0 && wake_at <= end) {
      at(std::max(wake_at, now.steady_ms));
      wake();
    }
    at(end);
  }
  void forget() {
    said.clear();
    writes.clear();
    routed.clear();
    saves.clear();
    replies.clear();
  }
  void text(const std::string& t) {
    event e;
    REQUIRE(google::protobuf::TextFormat::ParseFromString(t, &e));
    say(e);
  }

  // ---- what is said ----
  template <class T> std::vector<T> all() const {
    std::vector<T> out;
    for (const auto& a : said)
      if (const auto* one = std::get_if<T>(&a)) out.push_back(*one);
    return out;
  }
  std::vector<busv1::AgentCommand> commands(busv1::AgentCommand::CommandCase c) const {
    std::vector<busv1::AgentCommand> out;
    for (const auto& each : all<connector::agent_command>())
      if (each.command.command_case() == c) out.push_back(each.command);
    return out;
  }
  std::optional<busv1::HelloReply> hello_reply() const {
    std::optional<busv1::HelloReply> out;
    for (const auto& each : all<connector::agent_reply>())
      if (const auto* h = std::get_if<busv1::HelloReply>(&each.payload)) out = *h;
    return out;
  }
  std::string ready() const {
    const auto* c = find_condition(row->conditions(), "Ready");
    return c == nullptr ? "" : c->status() + "/" + c->reason() + "/" + c->message();
  }

  // ---- usual events ----
  void start() { say_reloaded(rows()); }
  void say_reloaded(v1::Reloaded r) {
    event e;
    *e.mutable_reloaded() = std::move(r);
    say(e);
  }
  v1::Reply command(const std::string& t) {
    event e;
    e.set_ticket(42);
    v1::Command c;
    REQUIRE(google::protobuf::TextFormat::ParseFromString(t, &c));
    c.set_project("acme");
    *e.mutable_command() = c;
    const auto before = replies.size();
    say(e);
    REQUIRE(replies.size() == before + 1);
    return replies.back().reply;
  }
  void class_is(bool found = true, std::vector<std::string> networks = {"0.0.0.0/0", "::/0"},
                const std::string& name = "default") {
    event e;
    e.mutable_class_()->set_name(name);
    e.mutable_class_()->set_found(found);
    for (const auto& n : networks) e.mutable_class_()->add_allowed_networks(n);
    say(e);
  }
  void enrolled() {
    start();
    CHECK(command("enrol_connector { name: 'home' public_key: '" + key.public_hex() + "' }").code().empty());
    class_is();
  }
  busv1::HelloRequest hello_request(const std::vector<std::string>& addresses, std::int64_t held = 0,
                                    const std::string& uid = "") {
    busv1::HelloRequest h;
    h.set_version(1);
    h.set_nonce(std::string(16, 'n'));
    h.set_agent_version("1.0");
    h.set_sent_at_ms(now.wall_ms + 30);
    for (const auto& a : addresses) h.mutable_addressing()->add_addresses(a);
    h.set_attached_generation(held);
    h.set_connector_uid(uid);
    return h;
  }
  void send_hello(const busv1::HelloRequest& h, const std::string& fresh_token = token_a) {
    event e;
    *e.mutable_hello()->mutable_hello() = h;
    e.mutable_hello()->set_reply_to("inbox");
    e.set_loaded_interval_ms(load);
    e.set_fresh_challenge(std::string(32, 'c'));
    e.set_fresh_token(fresh_token);
    say(e);
  }
  void challenge() {
    busv1::HelloRequest h;
    h.set_version(1);
    h.set_nonce(std::string(16, 'n'));
    send_hello(h);
  }
  void signed_hello(busv1::HelloRequest h, const std::string& fresh_token = token_a) {
    h.set_challenge(std::string(32, 'c'));
    h.set_signature(key.sign(protocol::hello_to_sign("acme", "connector", "home", h)));
    token = fresh_token;
    send_hello(h, fresh_token);
  }
  void hello(std::vector<std::string> addresses = {"10.0.0.1:7000"}, std::int64_t held = 0, const std::string& uid = "",
             const std::string& fresh_token = token_a) {
    challenge();
    signed_hello(hello_request(addresses, held, uid), fresh_token);
  }
  void online() {
    enrolled();
    hello();
    REQUIRE(row->online());
    answer_dials("unanswered");
    forget();
  }
  void dialable() {
    enrolled();
    hello();
    answer_dials("answered");
    REQUIRE(row->dialable());
    forget();
  }
  int answered_dials = 0;
  void answer_dials(const std::string& outcome) {
    for (const auto& d : all<connector::dial>()) {
      if (static_cast<int>(d.serial) <= answered_dials) continue;
      answered_dials = static_cast<int>(d.serial);
      event e;
      e.mutable_dialed()->set_serial(d.serial);
      e.mutable_dialed()->set_outcome(outcome);
      say(e);
    }
  }
  std::string digest() const {
    busv1::Addressing a;
    a.set_home_relay(row->home_relay());
    *a.mutable_addresses() = row->addresses();
    std::vector<busv1::TargetState> targets;
    for (const auto& [k, each] : attachments) {
      busv1::TargetState t;
      t.set_tunnel_uid(each.tunnel_uid());
      t.set_tunnel_generation(each.tunnel_generation());
      t.set_state(each.target_state());
      targets.push_back(t);
    }
    return protocol::report_digest(a, targets);
  }
  std::int64_t load = 0;            // the interval that the instance's load asks for
  std::int64_t agent_interval = 0;  // as the agent says; 0: it does not
  void heartbeat(std::optional<std::int64_t> held = {}, const std::string& other_digest = "") {
    event e;
    auto& b = *e.mutable_heartbeat()->mutable_heartbeat();
    b.set_version(1);
    b.set_session(row->session());
    b.set_token(token);
    b.set_sequence(++sequence);
    b.set_interval_ms(agent_interval);
    e.set_loaded_interval_ms(load);
    b.set_attached_generation(held.value_or(s.held_generation()));
    b.set_digest(other_digest.empty() ? digest() : other_digest);
    say(e);
  }
  void agent_says(busv1::AgentEvent a) {
    event e;
    a.set_version(1);
    a.set_session(row->session());
    a.set_token(token);
    a.set_sequence(++sequence);
    *e.mutable_agent_event()->mutable_event() = a;
    say(e);
  }
  void bye() {
    busv1::AgentEvent a;
    a.mutable_bye();
    agent_says(a);
  }
  void report(const std::vector<std::string>& addresses, bool full = false) {
    busv1::AgentEvent a;
    a.mutable_report()->set_attached_generation(s.held_generation());
    a.mutable_report()->set_full(full);
    a.mutable_report()->mutable_addressing();
    for (const auto& each : addresses) a.mutable_report()->mutable_addressing()->add_addresses(each);
    agent_says(a);
  }
  void attach(const std::string& uid = "t1", std::int64_t generation = 1, const std::string& target = "http://localhost:80") {
    event e;
    auto& a = *e.mutable_attach();
    a.set_connector("home");
    a.set_tunnel("web-" + uid);
    a.set_tunnel_uid(uid);
    a.set_tunnel_generation(generation);
    auto* r = a.add_rules();
    r->set_target(target);
    say(e);
  }
  void detach(const std::string& uid = "t1", std::int64_t below = 0) {
    event e;
    e.mutable_detach()->set_connector("home");
    e.mutable_detach()->set_tunnel("web-" + uid);
    e.mutable_detach()->set_tunnel_uid(uid);
    e.mutable_detach()->set_below_generation(below);
    say(e);
  }
  void command_reply(std::int64_t id, std::int64_t held) {
    event e;
    auto& r = *e.mutable_command_reply();
    r.set_version(1);
    r.set_session(row->session());
    r.set_token(token);
    r.set_command_id(id);
    r.set_attached_generation(held);
    say(e);
  }
  /// Another owner takes the entity over: only the rows remain.
  void takeover(std::int64_t heartbeat_interval_ms = 2000) {
    s = connector::initial(3, 8, 0, heartbeat_interval_ms, "acme", "home");
    answered_dials = 0;
    said.clear();
    start();
    class_is();
  }
};

}  // namespace

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

TEST_CASE_METHOD(world, "connector: hello in two steps") {
  enrolled();
  forget();
  challenge();
  REQUIRE(hello_reply());
  CHECK(hello_reply()->challenge() == std::string(32, 'c'));
  CHECK(writes.empty());

  SECTION("a good signature gets a session, once, in one write") {
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(writes == std::vector<std::string>{"connector_session"});
    CHECK(routed[0]);
    CHECK(row->session() == 1);
    CHECK(row->session_token_hash() == protocol::sha256_hex(token_a));
    CHECK(row->clock_skew_ms() == 30);
    CHECK(row->agent_version() == "1.0");
    CHECK(row->online());
    CHECK(ready() == "True/ConnectorReady/The connector is ready to tunnel traffic.");
    CHECK(hello_reply()->session() == 1);
    CHECK(hello_reply()->token() == token_a);
    CHECK(hello_reply()->heartbeat_interval_ms() == 2000);
    CHECK(hello_reply()->connector_uid() == row->uid());
    signed_hello(hello_request({"10.0.0.1:7000"}));  // the challenge is used up
    CHECK(hello_reply()->error() == "permission_denied");
    CHECK(row->session() == 1);
  }
  SECTION("the challenge is kept 10 s") {
    at(now.steady_ms + 10'001);
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(hello_reply()->error() == "permission_denied");
  }
  SECTION("at 10 s it still is") {
    at(now.steady_ms + 10'000);
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(hello_reply()->error().empty());
  }
  SECTION("another key is refused") {
    key = key_pair{'x'};
    signed_hello(hello_request({"10.0.0.1:7000"}));
    CHECK(hello_reply()->error() == "permission_denied");
    CHECK(writes.empty());
  }
  SECTION("the newest wins, the older is told and ignored") {
    signed_hello(hello_request({"10.0.0.1:7000"}));
    forget();
    hello({"10.0.0.2:7000"}, 0, "", std::string(64, 'b'));
    CHECK(row->session() == 2);
    CHECK(row->addresses(0) == "10.0.0.2:7000");
    REQUIRE(commands(busv1::AgentCommand::kSuperseded).size() == 1);
    CHECK(commands(busv1::AgentCommand::kSuperseded)[0].session() == 1);
    forget();
    text("heartbeat { heartbeat { version: 1 session: 1 token: '" + token_a + "' sequence: 99 } }");
    CHECK(writes.empty());
    CHECK(commands(busv1::AgentCommand::kSuperseded).size() == 1);
  }
  SECTION("a conflict loses no hello") {
    conflicts = 5;
    signed_hello(hello_request({"10.0.0.1:7000"}));
    pass(2000);
    CHECK(row->session() == 1);
    CHECK(hello_reply()->session() == 1);
  }
}

TEST_CASE_METHOD(world, "connector: strangers") {
  start();
  challenge();
  CHECK(hello_reply()->error() == "not_found");
  command("create_connector { name: 'home' }");
  challenge();
  CHECK(hello_reply()->error() == "failed_precondition");
}

TEST_CASE_METHOD(world, "connector: a heartbeat that changes nothing writes nothing and says nothing") {
  online();
  for (int i = 0; i < 20; ++i) {
    pass(2000);
    heartbeat();
  }
  CHECK(writes.empty());
  CHECK(said.empty());
}

TEST_CASE_METHOD(world, "connector: sessions that are not known") {
  online();
  text("heartbeat { heartbeat { version: 1 session: 9 token: 'x' } reply_to: 'r' }");
  REQUIRE(all<connector::agent_reply>().size() == 1);
  CHECK(std::get<busv1::AgentCommand>(all<connector::agent_reply>()[0].payload).has_hello_again());
  text("heartbeat { heartbeat { version: 1 session: 9 token: 'x' } reply_to: 'r' }");
  CHECK(all<connector::agent_reply>().size() == 1);  // at most once a second
  CHECK(writes.empty());
  // A forged message of the current session does not keep it alive.
  for (int second = 0; second < 31; ++second) {
    pass(1000);
    text("heartbeat { heartbeat { version: 1 session: 1 token: '" + std::string(64, 'f') + "' } }");
  }
  CHECK_FALSE(row->online());
}

TEST_CASE_METHOD(world, "connector: another digest makes the agent report") {
  online();
  heartbeat({}, std::string(32, '0'));
  REQUIRE(commands(busv1::AgentCommand::kReport).size() == 1);
  CHECK(commands(busv1::AgentCommand::kReport)[0].epoch() == 7);
  CHECK(commands(busv1::AgentCommand::kReport)[0].session() == 1);
  pass(1000);
  CHECK(commands(busv1::AgentCommand::kReport).size() == 2);  // repeated until answered
  report({"10.0.0.1:7000"}, true);
  forget();
  pass(900);
  heartbeat({}, std::string(32, '0'));  // answered in full: that is what its digest is
  CHECK(said.empty());
  CHECK(writes.empty());
}

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

TEST_CASE_METHOD(world, "connector: under load its agent is told to report less often, several times in a lease all the same") {
  dialable();
  agent_interval = 2000;
  heartbeat();
  forget();
  const auto intervals = [&] { return commands(busv1::AgentCommand::kInterval); };
  load = 8000;
  SECTION("a default lease takes it down to a quarter") {
    heartbeat();
    REQUIRE(intervals().size() == 1);
    CHECK(intervals()[0].interval().heartbeat_interval_ms() == 7500);
    // It is overdue by the interval that it has, until it says that it has the other.
    forget();
    pass(3000);
    CHECK(all<connector::dial>().size() == 1);
    agent_interval = 7500;
    heartbeat();
    forget();
    pass(7500 * 3 / 2 - 1);
    CHECK(all<connector::silence_told>().empty());
    CHECK(all<connector::dial>().empty());
    CHECK(intervals().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
    CHECK(writes.empty());
  }
  SECTION("a short lease keeps what the settings say") {
    s.mutable_row()->set_lease_duration_ms(3000);
    heartbeat();
    CHECK(intervals().empty());
  }
  SECTION("a long one has all of it, and an agent that comes is told with its session") {
    s.mutable_row()->set_lease_duration_ms(60'000);
    hello();
    REQUIRE(hello_reply());
    CHECK(hello_reply()->heartbeat_interval_ms() == 8000);
  }
  SECTION("and back") {
    agent_interval = 7500;
    heartbeat();
    forget();
    load = 2000;
    heartbeat();
    REQUIRE(intervals().size() == 1);
    CHECK(intervals()[0].interval().heartbeat_interval_ms() == 2000);
  }
}

TEST_CASE_METHOD(world, "connector: an owner with another heartbeat interval says so, and judges by the agent's until it has it") {
  dialable();
  heartbeat();
  agent_interval = 2000;
  takeover(500);
  const auto intervals = [&] { return commands(busv1::AgentCommand::kInterval); };
  SECTION("before the agent has said it, nobody knows when it is due") {
    command_reply(1, s.held_generation());  // to the roll call
    forget();
    pass(4000);
    CHECK(all<connector::silence_told>().empty());
    CHECK(all<connector::dial>().empty());
  }
  SECTION("its own counts until it has ours") {
    heartbeat();
    REQUIRE(intervals().size() == 1);
    CHECK(intervals()[0].interval().heartbeat_interval_ms() == 500);
    forget();
    pass(999);
    CHECK(intervals().empty());
    pass(1);
    CHECK(intervals().size() == 1);  // lost, perhaps
    pass(1999);
    CHECK(all<connector::silence_told>().empty());
    CHECK(all<connector::dial>().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
    CHECK(writes.empty());
  }
  SECTION("then ours does") {
    heartbeat();
    agent_interval = 500;
    heartbeat();
    forget();
    pass(749);
    CHECK(all<connector::dial>().empty());
    pass(1);
    CHECK(all<connector::dial>().size() == 1);
    CHECK(intervals().empty());
    CHECK(writes.empty());
  }
  SECTION("an absurd one frees nobody from its lease") {
    agent_interval = 1'000'000'000'000;
    heartbeat();
    pass(30'001);
    CHECK_FALSE(row->online());
  }
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

TEST_CASE_METHOD(world, "connector: what is heard before the row is read is no stranger's") {
  online();
  s = connector::initial(3, 8, 0, 2000, "acme", "home");
  text("failed { code: 'unavailable' message: 'the database is away' }");
  said.clear();
  heartbeat();
  bye();
  CHECK(said.empty());
  start();
  CHECK(row->online());
  heartbeat();
  CHECK(row->online());
  CHECK(commands(busv1::AgentCommand::kHelloAgain).empty());
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

TEST_CASE_METHOD(world, "connector: a bye is offline at once; what was sent before it does not bring it back") {
  online();
  heartbeat();
  const auto before = sequence;
  bye();
  CHECK_FALSE(row->online());
  CHECK(ready() == "False/ConnectorNotReady/Connector disconnected.");
  sequence = before - 1;
  heartbeat();
  CHECK_FALSE(row->online());
  sequence = before + 1;
  heartbeat();
  CHECK(row->online());
}

TEST_CASE_METHOD(world, "connector: whoever speaks on after its bye is asked for a hello, and is back by itself") {
  online();
  heartbeat();
  const auto before = sequence;
  sequence = 1'000'000'000;  // forged, or of an agent that has lost count
  bye();
  REQUIRE_FALSE(row->online());
  sequence = before;
  forget();
  heartbeat();
  CHECK_FALSE(row->online());
  REQUIRE(commands(busv1::AgentCommand::kHelloAgain).size() == 1);
  CHECK(commands(busv1::AgentCommand::kHelloAgain)[0].session() == row->session());
  heartbeat();
  report({"10.0.0.1:7000"});
  CHECK(commands(busv1::AgentCommand::kHelloAgain).size() == 1);  // once a second is enough
  hello();
  CHECK(row->online());
  CHECK(row->session() == 2);
  heartbeat();
  CHECK(row->online());
}

TEST_CASE_METHOD(world, "connector: addressing") {
  online();
  SECTION("a change is one write that gateways hear of; a reordered report is none") {
    report({"10.0.0.2:7000", "10.0.0.1:7000"});
    CHECK(row->addressing_generation() == 2);
    CHECK(routed[0]);
    forget();
    report({"10.0.0.1:7000", "10.0.0.2:7000"});
    CHECK(writes.empty());
  }
  SECTION("what is refused is shown, not used, and the last good is kept") {
    report({"127.0.0.1:7000"});
    CHECK_FALSE(row->online());
    CHECK(row->addresses(0) == "10.0.0.1:7000");
    CHECK(row->addressing_error().substr(0, 13) == "addresses[0]:");
    hello({"127.0.0.1:7000"});  // whoever says it in a hello hears why
    CHECK(hello_reply()->addressing_error() == row->addressing_error());
    CHECK(ready().substr(0, 28) == "False/InvalidAddressing/addr");
    CHECK(routed[0]);
    forget();
    class_is(true, {"127.0.0.0/8", "0.0.0.0/0"});  // now it is named
    CHECK(row->online());
    CHECK(row->addresses(0) == "127.0.0.1:7000");
  }
  SECTION("mended by the next report") {
    report({"nonsense"});
    CHECK_FALSE(row->online());
    report({"10.0.0.1:7000"});
    CHECK(row->online());
    CHECK(row->addressing_error().empty());
    CHECK(row->addressing_generation() == 1);
  }
  SECTION("a class that narrows refuses what is stored") {
    class_is(true, {"192.168.0.0/16"});
    CHECK_FALSE(row->online());
  }
}

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

TEST_CASE_METHOD(world, "connector: a rival that changes the session's number makes nobody newer than its agent") {
  online();
  const auto session = row->session();
  const auto beat = [&](const std::string& with) {
    event e;
    auto& b = *e.mutable_heartbeat()->mutable_heartbeat();
    b.set_version(1);
    b.set_session(session);
    b.set_token(with);
    b.set_sequence(++sequence);
    say(e);
  };
  row->set_session(session + GENERATE(5, 1));
  row->set_version(++revision);
  start();
  forget();
  beat(token);
  CHECK(commands(busv1::AgentCommand::kSuperseded).empty());
  REQUIRE(commands(busv1::AgentCommand::kHelloAgain).size() == 1);
  CHECK(commands(busv1::AgentCommand::kHelloAgain)[0].session() == session);
  const auto raised = row->session();
  hello({"10.0.0.1:7000"}, 0, "", std::string(64, 'b'));
  CHECK(row->session() == raised + 1);
  CHECK(row->online());
  // The holder of the former token is another agent's predecessor, whatever the numbers.
  pass(limits::repeat_after / 1ms);
  forget();
  beat(token_a);
  CHECK(commands(busv1::AgentCommand::kSuperseded).size() == 1);
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
