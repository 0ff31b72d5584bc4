// services/store/migrate.hpp -- applying migrations/ to a database. No CAF; blocks its caller.
#pragma once

#include <string>
#include <vector>

#include "actors/core/limits.hpp"

namespace warren {

struct migrate_options {
  int partitions = limits::partitions_default;  ///< read only when the database is initialised
  bool dry_run = false;                         ///< says what would be applied, and applies nothing
};

struct migration {
  int level = 0;
  std::string name;  ///< of the file
};

/// The newest level that this program knows how to work with, and the oldest that is enough for it.
inline constexpr int schema_level_known = 3;
inline constexpr int schema_level_needed = 2;

/// Applies what is missing of the files NNNN_name.sql in `folder`, each in a transaction, in order, while
/// holding an advisory lock: any number of instances may start at once.
/// Returns what was applied (or would be).
/// Errors: throws std::runtime_error, in words for an operator: a file that was edited after it landed, a gap
/// in the numbers, the server's refusal.
std::vector<migration> migrate(const std::string& conninfo, const std::string& folder, const migrate_options& options = {});

/// 0: an empty database. Throws when the database cannot be asked.
int schema_level(const std::string& conninfo);

/// What is wrong with serving from this database, in words for an operator; empty: nothing. Throws when the
/// database cannot be asked.
std::string schema_misfit(const std::string& conninfo);

/// Of an initialised database.
int partitions_of_database(const std::string& conninfo);

}  // namespace warren
