// test/machine/connector_world.hpp -- a connector's machine with a store that does what it is told, and
// everything that the machine says.
#pragma once

#include <catch2/catch.hpp>

#include <map>

#include <google/protobuf/text_format.h>

#include "actors/connector/machine.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "test/support/agent_key.hpp"

namespace warren::connector_world {

using connector::event;
namespace busv1 = warren::bus::v1;

inline constexpr std::int64_t wall_offset = 1'700'000'000'000;
inline const std::string token_a(64, 'a');

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
  agent_key key{'k'};
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

}  // namespace warren::connector_world
