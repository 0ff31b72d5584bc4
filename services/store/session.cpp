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

/// Sees whether this is the same life of the database as before; raises epochs and revisions when it is not.
void settle_incarnation(session& s) {
  pqxx::work tx{s.conn};
  const auto read = [&] { return tx.exec_prepared1("read_installation"); };
  auto row = read();
  std::optional<std::int64_t> identifier;
  if (row["identifier_readable"].as<bool>())
    identifier = tx.exec_prepared1("read_system_identifier")[0].as<std::int64_t>();

  enum class verdict { same, unknown, other };
  const auto compare = [&] {
    const auto& known_id = row["system_identifier"];
    const auto& known_timeline = row["timeline"];
    if (identifier && !known_id.is_null() && known_id.as<std::int64_t>() != *identifier) return verdict::other;
    if (!known_timeline.is_null() && known_timeline.as<int>() != row["timeline_now"].as<int>()) return verdict::other;
    return known_timeline.is_null() || (identifier && known_id.is_null()) ? verdict::unknown : verdict::same;
  };
  if (compare() != verdict::same) {
    tx.exec_prepared("lock_installation");
    row = read();
    const auto found = compare();
    if (found == verdict::other) {
      const auto incarnation = tx.exec_prepared1("raise_incarnation")[0].as<std::int64_t>();
      tx.exec_prepared("raise_partitions");
      spdlog::error("the database is another one than before (failover or restore): incarnation {}, every epoch "
                    "and revision raised", incarnation);
    }
    if (found != verdict::same) {
      tx.exec_prepared("record_installation", identifier ? std::to_string(*identifier).c_str() : nullptr,
                       row["timeline_now"].as<int>());
      row = read();
    }
  }
  s.partitions = row["partitions"].as<int>();
  s.incarnation = row["incarnation"].as<std::int64_t>();
  tx.commit();
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
  const auto ms = [](millis m) { return std::to_string(m.count()); };
  std::string settings = "SET application_name = " + quoted(options.application) +
                         "; SET timezone = 'UTC'; SET client_encoding = 'UTF8'; SET jit = off"
                         "; SET statement_timeout = " + ms(options.statement_timeout) +
                         "; SET lock_timeout = " + ms(options.lock_timeout) +
                         "; SET idle_in_transaction_session_timeout = " + ms(options.idle_timeout);
  if (options.writer)
    // Writers only look rows up by key. Without statistics of a JSON list's length the planner may hash a
    // whole table for three keys.
    settings += "; SET warren.writer = 'on'; SET enable_hashjoin = off; SET enable_mergejoin = off"
                "; SET enable_seqscan = off";
  {
    pqxx::nontransaction tx{s->conn};
    tx.exec(settings);
    if (tx.exec1("SELECT pg_is_in_recovery()")[0].as<bool>())
      throw std::runtime_error{"the database server is a standby: it takes no writes"};
    if (tx.exec1("SELECT to_regclass('installation') IS NULL")[0].as<bool>())
      throw std::runtime_error{"the database has no Warren schema: run warrend migrate"};
  }
  for (const auto& [name, text] : statements()) s->conn.prepare(name, text);
  settle_incarnation(*s);
  return s;
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
  if (sql) f.state = sql->sqlstate();
  if (dynamic_cast<const pqxx::broken_connection*>(&e) || !open || f.state.rfind("08", 0) == 0 ||
      f.state.rfind("57P", 0) == 0 || f.state.rfind("53", 0) == 0 || f.state == "25006" || f.state == "25P03") {
    f.kind = what::broken;
    return f;
  }
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
