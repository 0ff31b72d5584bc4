// bench/postgres.hpp -- PostgreSQL without Warren: the limit that commits are compared with, and a rival.
#pragma once

#include <string>

#include "bench/measure.hpp"

namespace warren::bench {

/// One-row updates, each in a transaction of its own, one after another on one connection.
sample commit_alone(const std::string& database_url, int count);

/// A tool that writes the tables with SQL, and has not said that it is Warren.
class rival {
public:
  explicit rival(const std::string& database_url);
  ~rival();
  rival(const rival&) = delete;
  rival& operator=(const rival&) = delete;
  /// Touches every row of the project that there is, table by table, a transaction for each. Returns how many.
  int bump(const std::string& project);

private:
  struct impl;
  impl* impl_;
};

/// All rows that a tunnel has, its name replaced, without what differs from run to run (versions, times, uids, numbers
/// that count steps): two runs that ended alike have equal ones.
std::string final_rows(const std::string& database_url, const std::string& project, const std::string& tunnel);

}  // namespace warren::bench
