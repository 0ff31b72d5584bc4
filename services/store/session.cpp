// services/store/session.cpp -- opening connections, the incarnation, and reading exceptions.
#include "services/store/session.hpp"

#include <optional>
#include <regex>

#include <spdlog/spdlog.h>

#include "services/store/statements.hpp"

namespace warren::sql {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) {
    if (c == '\'') out += '\'';
    out += c;
  }
  return out += "'";
}

constexpr const char* pooler_refused =
    "there is a connection pooler between this program and PostgreSQL: session locks do not work through it, connect "
    "to the server itself";

template <class T> std::optional<T> optional_of(const pqxx::field& f) {
  return f.is_null() ? std::nullopt : std::optional<T>{f.as<T>()};
}

database_life life_of(pqxx::transaction_base& tx) {
  const auto row = tx.exec_prepared1("read_installation");
  database_life now;
  now.recorded_identifier = optional_of<std::int64_t>(row["system_identifier"]);
  now.recorded_timeline = optional_of<int>(row["timeline"]);
  now.timeline = row["timeline_now"].as<int>();
  now.incarnation = row["incarnation"].as<std::int64_t>();
  now.partitions = row["partitions"].as<int>();
  if (row["identifier_readable"].as<bool>())
    now.identifier = tx.exec_prepared1("read_system_identifier")[0].as<std::int64_t>();
  for (const auto& each : tx.exec_prepared("read_revisions")) now.revisions[each[0].as<int>()] = each[1].as<std::int64_t>();
  return now;
}

/// Sees whether this is the same life of the database as before; raises epochs and revisions when it is not.
void settle_incarnation(session& s, lineage* history) {
  using what = life_verdict::what;
  // Looked at before the database is: what is remembered then was committed then.
  const auto memory = history ? history->look() : remembered_life{};
  pqxx::work tx{s.conn};
  auto now = life_of(tx);
  auto verdict = judge_life(now, memory);
  if (verdict.is == what::first || verdict.is == what::another) {
    tx.exec_prepared("lock_installation");
    now = life_of(tx);
    verdict = judge_life(now, memory);
  }
  if (verdict.is == what::former)
    throw std::runtime_error{"this server is a former primary: its timeline is " + std::to_string(now.timeline) +
                             ", timeline " + std::to_string(memory.timeline) + " was seen already"};
  if (verdict.is == what::another) {
    tx.exec_prepared("raise_partitions", verdict.incarnation - now.incarnation);
    tx.exec_prepared("raise_sequences", verdict.incarnation);
    tx.exec_prepared("raise_incarnation", verdict.incarnation);
    spdlog::error("the database is another one than before (failover or restore, now timeline {}): incarnation {}, "
                  "every epoch and revision raised", now.timeline, verdict.incarnation);
    now.incarnation = verdict.incarnation;
  }
  if (verdict.is != what::same)
    tx.exec_prepared("record_installation", now.identifier ? std::to_string(*now.identifier).c_str() : nullptr, now.timeline);
  s.partitions = now.partitions;
  s.incarnation = now.incarnation;
  tx.commit();
  if (history) history->settled(now.incarnation, now.identifier, now.timeline);
}

}  // namespace

void never_reactivate(pqxx::connection_base& conn) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // pqxx 7 never reactivates, so 6 deprecates the switch
  conn.inhibit_reactivation(true);
#pragma GCC diagnostic pop
}

std::string with_setting(std::string conninfo, const std::string& name, const std::string& value) {
  if (conninfo.rfind("postgres://", 0) == 0 || conninfo.rfind("postgresql://", 0) == 0) {
    conninfo += conninfo.find('?') == std::string::npos ? '?' : '&';
    return conninfo + name + "=" + value;
  }
  return conninfo + " " + name + "='" + value + "'";
}

std::unique_ptr<session> open_session(const std::string& conninfo, const session_options& options) {
  auto info = conninfo;
  // What the operator has set himself stays.
  const auto set = [&](const std::string& name, const std::string& value) {
    if (conninfo.find(name) == std::string::npos) info = with_setting(info, name, value);
  };
  set("connect_timeout", "2");     // seconds; libpq takes nothing shorter
  set("tcp_user_timeout", "2500"); // ms: a peer that is cut off is noticed within the instance lease
  set("keepalives_idle", "5");
  auto s = std::make_unique<session>(info);
  never_reactivate(s->conn);
  if (options.on_socket) options.on_socket(s->conn.sock());
  const auto ms = [](millis m) { return std::to_string(m.count()); };
  std::string settings = "SET application_name = " + quoted(options.application) +
                         "; SET timezone = 'UTC'; SET client_encoding = 'UTF8'; SET jit = off"
                         "; SET statement_timeout = " + ms(options.statement_timeout) +
                         "; SET lock_timeout = " + ms(options.lock_timeout) +
                         "; SET idle_in_transaction_session_timeout = " + ms(options.idle_timeout);
  if (options.writer)
    // Writers only look rows up by key. Without statistics of a JSON list's length the planner may hash a
    // whole table for three keys. What a plan would learn from a list's content is nothing: planned once.
    settings += "; SET warren.writer = 'on'; SET enable_hashjoin = off; SET enable_mergejoin = off"
                "; SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan";
  {
    pqxx::nontransaction tx{s->conn};
    tx.exec(settings);
    const auto server = tx.exec1("SELECT pg_is_in_recovery(), pg_backend_pid()");
    // The key that came with the connection is the server process's own only when nothing is in between.
    if (server[1].as<int>() != s->conn.backendpid()) throw std::runtime_error{pooler_refused};
    if (server[0].as<bool>())
      throw std::runtime_error{"the database server is a standby: it takes no writes"};
    if (tx.exec1("SELECT to_regclass('installation') IS NULL")[0].as<bool>())
      throw std::runtime_error{"the database has no Warren schema: run warrend migrate"};
  }
  for (const auto& [name, text] : statements()) s->conn.prepare(name, text);
  settle_incarnation(*s, options.history.get());
  return s;
}

std::string pooler_between(const std::string& conninfo) {
  const auto info = conninfo.find("connect_timeout") == std::string::npos ? with_setting(conninfo, "connect_timeout", "2") : conninfo;
  pqxx::connection one{info}, other{info};
  const auto process_of = [](pqxx::connection& c) {
    never_reactivate(c);
    pqxx::work tx{c};
    const auto pid = tx.exec1("SELECT pg_backend_pid()")[0].as<int>();
    tx.commit();
    return pid;
  };
  for (int i = 0; i < 4; ++i) {
    if (i % 2 == 1) process_of(one);  // out of step with a pool that hands its connections out in turn
    const auto first = process_of(one), second = process_of(other);
    if (first == second || first != one.backendpid() || second != other.backendpid()) return pooler_refused;
  }
  return {};
}

sql_failure classify(const std::exception& e, bool open) {
  using what = sql_failure::what;
  sql_failure f;
  f.message = e.what();
  if (dynamic_cast<const pqxx::in_doubt_error*>(&e)) {
    f.kind = what::in_doubt;
    return f;
  }
  const auto* sql = dynamic_cast<const pqxx::sql_error*>(&e);
  if (sql) {
    f.state = sql->sqlstate();
    // The name of a prepared statement; any other is text that holds people's data.
    static const std::regex prepared{"(?:\\[PREPARE )?(\\w+)\\]?"};
    std::smatch name;
    if (std::regex_match(sql->query(), name, prepared)) f.statement = name[1];
  }
  if (dynamic_cast<const pqxx::broken_connection*>(&e) || !open || f.state.rfind("08", 0) == 0 ||
      f.state.rfind("57P", 0) == 0 || f.state.rfind("53", 0) == 0 || f.state == "25006" || f.state == "25P03") {
    f.kind = what::broken;
    return f;
  }
  static const std::regex of_table{"relation \"([^\"]+)\""};
  std::smatch found;
  if (std::regex_search(f.message, found, of_table)) f.table = found[1];
  if (dynamic_cast<const pqxx::transaction_rollback*>(&e) || f.state.rfind("40", 0) == 0 || f.state == "55P03" ||
      f.state == "57014") {
    f.kind = what::contended;
    return f;
  }
  static const std::regex named{"(?:constraint|column) \"([^\"]+)\"(?! of relation \"[^\"]+\" does not exist)"};
  std::smatch m;
  if (std::regex_search(f.message, m, named)) f.constraint = m[1];
  // 21: the statement is ours; 22, 23: the values are theirs; 54: a value beyond what the database can hold.
  if (f.state.rfind("22", 0) == 0 || f.state.rfind("23", 0) == 0 || f.state.rfind("54", 0) == 0) f.kind = what::data;
  return f;
}

}  // namespace warren::sql
