// test/machine/scripts_test.cpp -- whole steps of machines, as text: scripts/*.txt tell what happens, and beside it
// everything that each event leads to: saves, announcements, answers, wakes, and each line of the state that changed.
//
//   connector acme/home | tunnel acme/web | gateway gw-a    begins a script
//   at MS                              the time, on both clocks, from the script's beginning
//   row TEXTPROTO                      a row that the store has from the start
//   next saved|conflict|refused CODE FIELD|unavailable|replayed     what becomes of the next save; else saved
//   hello                              both halves of a hello of the agent, with the right signature
//   on TEXTPROTO                       an event
//   ----                               what it led to follows, up to an empty line
//
// After a change that is meant to be one, WARREN_REWRITE=1 writes down what happens now: the difference is for review.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include "actors/connector/machine.hpp"
#include "actors/core/protocol.hpp"
#include "actors/registry/machine.hpp"
#include "actors/tunnel/machine.hpp"
#include "test/support/agent_key.hpp"

using namespace warren;
namespace busv1 = warren::bus::v1;
namespace fs = std::filesystem;

namespace {

constexpr std::int64_t wall_begin = 1'700'000'000'000, steady_begin = 1'000'000;

std::string text_of(const google::protobuf::Message& m) {
  std::string out;
  google::protobuf::TextFormat::Printer{}.PrintToString(m, &out);
  return out;
}
std::string line_of(const google::protobuf::Message& m) { return "{ " + m.ShortDebugString() + " }"; }

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in{text};
  for (std::string line; std::getline(in, line);) out.push_back(std::move(line));
  return out;
}

/// The lines that went and came, each with the field that it is in.
std::string difference(const std::string& before, const std::string& after) {
  const auto a = lines_of(before), b = lines_of(after);
  std::vector<std::vector<int>> common(a.size() + 1, std::vector<int>(b.size() + 1));
  for (auto i = a.size(); i-- > 0;)
    for (auto k = b.size(); k-- > 0;)
      common[i][k] = a[i] == b[k] ? common[i + 1][k + 1] + 1 : std::max(common[i + 1][k], common[i][k + 1]);
  std::string out;
  for (std::size_t i = 0, k = 0; i < a.size() || k < b.size();) {
    if (i < a.size() && k < b.size() && a[i] == b[k]) ++i, ++k;
    else if (k == b.size() || (i < a.size() && common[i + 1][k] >= common[i][k + 1])) out += "  - " + a[i++] + '\n';
    else out += "  + " + b[k++] + '\n';
  }
  return out;
}

std::string said(const connector::announcement& a) {
  struct {
    std::string operator()(const connector::agent_command& c) const { return (c.answered ? "command " : "command, no answer ") + line_of(c.command); }
    std::string operator()(const connector::agent_reply& r) const {
      return "reply to " + r.reply_to + " " + std::visit([](const auto& m) { return line_of(m); }, r.payload);
    }
    std::string operator()(const v1::AttachmentState& s) const { return "to the tunnel " + line_of(s); }
    std::string operator()(const connector::dial& d) const { return fmt::format("dial {} {} {}", d.serial, d.endpoint_id.substr(0, 8), fmt::join(d.addresses, ",")); }
    std::string operator()(const connector::silence_told& t) const { return fmt::format("silence online={} silent={}", t.online, t.silent); }
    std::string operator()(const connector::appeared&) const { return "appeared"; }
    std::string operator()(const connector::class_asked& c) const { return "ask for class " + c.name; }
    std::string operator()(const connector::load_asked&) const { return "read the rows"; }
  } const print;
  return std::visit(print, a);
}
std::string said(const tunnel::announcement& a) {
  return std::visit([](const auto& m) { return std::string{m.GetDescriptor()->name()} + " " + line_of(m); }, a);
}
std::string said(const registry::announcement&) { return ""; }

std::string told(const save_request& q) {
  std::string out = fmt::format("  save {}\n", q.write);
  for (const auto& w : q.rows)
    out += fmt::format("    {}{} at {} {}\n",
                       w.what == row_write::op::insert ? "insert" : w.what == row_write::op::update ? "update" : "erase",
                       w.routes ? ", routes" : "", w.expected, line_of(w.row));
  if (q.claims) out += fmt::format("    claim [{}] drop [{}] for {}\n", fmt::join(q.claims->claim, " "), fmt::join(q.claims->drop, " "), q.claims->tunnel_uid);
  if (q.audit)
    out += fmt::format("    audit {} {} {} before {} after {}\n", q.audit->method, q.audit->resource, q.audit->principal,
                       q.audit->before_json, q.audit->after_json);
  if (q.request) out += fmt::format("    request {} {} {}\n", q.request->method, q.request->request_id, q.request->digest);
  return out;
}

class script {
public:
  virtual ~script() = default;
  virtual std::string on(const std::string& textproto) = 0;
  virtual std::string hello() { return "there is no hello\n"; }
  moment now{steady_begin, wall_begin};
  std::vector<std::string> outcomes;  ///< of the next saves
  std::vector<v1::Row> rows;          ///< what the store has
};

template <class State, class Event> class script_of : public script {
public:
  std::string on(const std::string& textproto) override {
    Event e;
    if (!google::protobuf::TextFormat::ParseFromString(textproto, &e)) return "no event\n";
    return on_event(std::move(e));
  }

protected:
  State s;
  revision_t revision = 100;
  int uids = 0;

  std::string on_event(Event e) {
    std::string out;
    for (int turns = 0; turns < 20; ++turns) {
      e.set_random(12345);
      if (e.has_command() && e.fresh_uid().empty()) e.set_fresh_uid(fmt::format("uid{}", ++uids));
      Event next;
      again = false;
      out += step(e, next);
      if (!again) return out;
      out += "  then " + line_of(next) + '\n';
      e = std::move(next);
    }
    return out + "  and so on\n";
  }

  bool again = false;

  template <class Transition, class Adopt> std::string carry_out(Transition t, const std::string& before, Event& next, Adopt adopt) {
    std::string out;
    if (t.save) {
      out += told(*t.save);
      auto outcome = outcomes.empty() ? std::string{"saved"} : outcomes.front();
      if (!outcomes.empty()) outcomes.erase(outcomes.begin());
      if (outcome == "saved") {
        saved done{++revision, {}};
        for (const auto& w : t.save->rows) {
          auto row = w.row;
          stamp(row, w.routes);
          if (w.what != row_write::op::erase) keep(row);
          else drop(row);
          done.rows.push_back(std::move(row));
        }
        adopt(t.next, done);
        s = std::move(t.next);
        next.mutable_saved()->set_revision(revision);
        again = !t.gone;
      } else {
        s = t.fall_back();
        std::istringstream words{outcome};
        std::string what, code, field;
        words >> what >> code >> field;
        if (what == "conflict") {
          ++revision;
          for (auto& row : rows) stamp(row, false);  // a rival was here
          auto& r = *next.mutable_reloaded();
          r.set_conflict(true);
          for (const auto& row : rows)
            if (!r.has_row() && (row.has_tunnel() || row.has_connector() || row.has_gateway())) *r.mutable_row() = row;
            else *r.add_children() = row;
        } else {
          next.mutable_failed()->set_code(what == "refused" ? code : what);
          next.mutable_failed()->set_field(field);
          if (what != "replayed") next.mutable_failed()->set_message("the store says so");
        }
        again = true;
      }
    } else {
      s = std::move(t.next);
    }
    for (const auto& a : t.announce) out += "  say " + said(a) + '\n';
    for (const auto& r : t.replies) out += fmt::format("  answer {} {}\n", r.ticket, line_of(r.reply));
    if (t.wake_at_ms != 0) out += fmt::format("  wake in {} ms\n", t.wake_at_ms - now.steady_ms);
    if (t.gone) out += "  gone\n";
    return out + difference(before, text_of(s));
  }
  virtual std::string step(const Event& e, Event& next) = 0;

private:
  void stamp(v1::Row& row, bool routes) const {
    const auto put = [&](auto& r) {
      r.set_version(revision);
      if constexpr (requires { r.set_route_version(1); })
        if (routes) r.set_route_version(revision);
    };
    if (row.has_tunnel()) put(*row.mutable_tunnel());
    if (row.has_connector()) put(*row.mutable_connector());
    if (row.has_attachment()) put(*row.mutable_attachment());
    if (row.has_gateway()) put(*row.mutable_gateway());
  }
  static std::string key_of(const v1::Row& row) {
    if (row.has_attachment()) return fmt::format("{}/{}", row.attachment().tunnel_uid(), row.attachment().tunnel_generation());
    return "entity";
  }
  void keep(const v1::Row& row) {
    for (auto& each : rows)
      if (key_of(each) == key_of(row)) return void(each = row);
    rows.push_back(row);
  }
  void drop(const v1::Row& row) {
    std::erase_if(rows, [&](const auto& each) { return key_of(each) == key_of(row); });
  }
};

class connector_script final : public script_of<connector::state, connector::event> {
public:
  explicit connector_script(const std::string& name) { s = connector::initial(3, 7, 0, 2000, "acme", name); }
  std::string hello() override {
    connector::event first;
    auto& q = *first.mutable_hello()->mutable_hello();
    q.set_version(1);
    q.set_nonce("nonce");
    first.mutable_hello()->set_reply_to("inbox1");
    first.set_fresh_challenge(std::string(32, 'c'));
    auto second = first;
    auto out = on_event(std::move(first));
    auto& signed_one = *second.mutable_hello()->mutable_hello();
    signed_one.set_challenge(std::string(32, 'c'));
    signed_one.set_agent_version("1.2.3");
    signed_one.set_sent_at_ms(now.wall_ms - 40);
    signed_one.set_connector_uid(s.row().uid());
    signed_one.set_attached_generation(s.row().attached_generation());
    signed_one.mutable_addressing()->add_addresses("192.0.2.7:7000");
    signed_one.set_signature(key.sign(protocol::hello_to_sign("acme", "connector", s.name(), signed_one)));
    second.mutable_hello()->set_reply_to("inbox2");
    second.clear_fresh_challenge();
    second.set_fresh_token(std::string(64, 't'));
    return out + "  and\n" + on_event(std::move(second));
  }

private:
  agent_key key{'k'};
  std::string step(const connector::event& e, connector::event& next) override {
    const auto before = text_of(s);
    return carry_out(connector::step(std::move(s), e, now), before, next, [](auto& n, const saved& w) { connector::adopt(n, w); });
  }
};

class tunnel_script final : public script_of<tunnel::state, tunnel::event> {
public:
  explicit tunnel_script(const std::string& name) { s = tunnel::initial(3, 7, "acme", name); }

private:
  std::string step(const tunnel::event& e, tunnel::event& next) override {
    const auto before = text_of(s);
    return carry_out(tunnel::step(s, e, now), before, next, [](auto& n, const saved& w) { tunnel::adopt(n, w); });
  }
};

class registry_script final : public script_of<registry::state, registry::event> {
public:
  explicit registry_script(const std::string& name) { s = registry::initial(64, "gateway", name); }

private:
  std::string step(const registry::event& e, registry::event& next) override {
    const auto before = text_of(s);
    return carry_out(registry::step(s, e, now), before, next, [](auto& n, const saved& w) { registry::adopt(n, w); });
  }
};

std::unique_ptr<script> script_for(const std::string& kind, const std::string& name) {
  if (kind == "connector") return std::make_unique<connector_script>(name);
  if (kind == "tunnel") return std::make_unique<tunnel_script>(name);
  return std::make_unique<registry_script>(name);
}

/// `$key` is the agent's public key, `$token` its token, `$hash` the token's hash.
std::string filled_in(std::string line) {
  static const agent_key key{'k'};
  const auto put = [&](const std::string& name, const std::string& value) {
    for (auto at = line.find(name); at != std::string::npos; at = line.find(name, at)) line.replace(at, name.size(), value);
  };
  put("$key", key.public_hex());
  put("$token", std::string(64, 't'));
  put("$hash", protocol::sha256_hex(std::string(64, 't')));
  return line;
}

/// The script with what happens now after each `----`.
std::string replayed(const std::string& file) {
  std::string out, pending;
  std::unique_ptr<script> s;
  bool skipping = false;
  for (const auto& line : lines_of(file)) {
    if (skipping) {
      skipping = !line.empty();
      if (skipping) continue;
    }
    out += line + '\n';
    const auto space = line.find(' ');
    const auto word = line.substr(0, space), rest = space == std::string::npos ? "" : filled_in(line.substr(space + 1));
    if (word == "connector" || word == "tunnel" || word == "gateway") s = script_for(word, rest.substr(rest.find('/') + 1));
    if (!s) continue;
    if (word == "at") s->now = {steady_begin + std::stoll(rest), wall_begin + std::stoll(rest)};
    if (word == "next") s->outcomes.push_back(rest);
    if (word == "row") {
      v1::Row row;
      if (!google::protobuf::TextFormat::ParseFromString(rest, &row)) out += "no row\n";
      s->rows.push_back(row);
    }
    if (word == "on") pending += s->on(rest);
    if (word == "hello") pending += s->hello();
    if (word == "----") {
      out += std::exchange(pending, {});
      skipping = true;
    }
  }
  return out;
}

std::string content_of(const fs::path& path) {
  std::ifstream in{path};
  return {std::istreambuf_iterator<char>{in}, {}};
}

}  // namespace

TEST_CASE("scripts: each event leads to what is written beside it, and to nothing else") {
  int scripts = 0;
  for (const auto& entry : fs::directory_iterator{WARREN_SCRIPTS}) {
    if (entry.path().extension() != ".txt") continue;
    ++scripts;
    const auto expected = content_of(entry.path());
    const auto got = replayed(expected);
    if (got != expected && std::getenv("WARREN_REWRITE") != nullptr) {
      std::ofstream{entry.path()} << got;
      continue;
    }
    INFO(entry.path().filename().string());
    INFO(difference(expected, got));
    CHECK(got == expected);
  }
  CHECK(scripts >= 3);
}
