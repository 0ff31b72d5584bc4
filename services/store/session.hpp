// services/store/session.hpp -- a database connection as every part of the store wants it. Decides nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include <pqxx/pqxx>

#include "actors/core/time.hpp"
#include "services/store/lineage.hpp"

namespace warren::sql {

struct session_options {
  std::string application;          ///< application_name: a takeover finds a superseded instance's sessions by it
  bool writer = false;              ///< its rows are not a rival's
  millis statement_timeout{10'000};
  millis lock_timeout{500};
  millis idle_timeout{2'000};       ///< inside a transaction; below the instance lease
  std::shared_ptr<lineage> history; ///< null: nothing is remembered
  /// The new connection's socket, before anything is said on it: whoever watches may shut it down.
  std::function<void(int socket)> on_socket;
};

/// Knows all statements. Does not reconnect by itself: a session that ended took its settings with it.
struct session {
  explicit session(const std::string& conninfo) : conn{conninfo} {}
  pqxx::connection conn;
  int partitions = 0;
  std::int64_t incarnation = 0;
};

/// Opens a connection and settles the incarnation. Throws what pqxx throws; std::runtime_error for a server
/// that does not take writes, for a former primary, and for a connection pooler.
/// Runs on: the caller's thread, for up to 2 s where the server answers.
std::unique_ptr<session> open_session(const std::string& conninfo, const session_options& options);

/// What a connection pooler between us and the server is refused with; empty: there is none. A pooler hands the
/// statements of one client to several server processes, or several clients to one: session locks mean nothing.
/// Throws what pqxx throws.
std::string pooler_between(const std::string& conninfo);

/// Stops pqxx from connecting again behind our back: such a connection has none of our settings.
void never_reactivate(pqxx::connection_base& conn);

/// Adds one setting to a connection string of either form.
std::string with_setting(std::string conninfo, const std::string& name, const std::string& value);

/// What an exception says about the statement or connection it came from.
struct sql_failure {
  enum class what : std::uint8_t {
    broken,     ///< the connection, or a server that is going down: nothing of an unfinished transaction stays
    in_doubt,   ///< the connection, while committing
    contended,  ///< deadlock, lock or statement timeout: another session was in the way
    data,       ///< the values
    other,      ///< a bug
  };
  what kind = what::other;
  std::string state;       ///< SQLSTATE, where there is one
  std::string constraint;  ///< the violated constraint or column
  std::string statement;   ///< its name, where it has one
  std::string table;       ///< that the server says it was about; empty: it does not say
  std::string message;
};
/// `open`: whether the connection still is, after the exception.
sql_failure classify(const std::exception& e, bool open);

}  // namespace warren::sql
