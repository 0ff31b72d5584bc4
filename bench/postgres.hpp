// bench/postgres.hpp -- PostgreSQL without Warren: the limit that commits are compared with, and a rival.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bench/measure.hpp"

namespace warren::bench {

/// One-row updates, each in a transaction of its own, one after another on one connection.
sample commit_alone(const std::string& database_url, int count);

/// A tool that writes the tables with SQL, and has not said that it is Warren. It touches every row of a project that
/// there is, table by table, a transaction for each, over several connections, as fast as they can, until it is gone.
class rival {
public:
  rival(std::string database_url, std::string project, int connections);
  ~rival();
  rival(const rival&) = delete;
  rival& operator=(const rival&) = delete;
  /// What each of its connections has done since that tunnel could be seen, the slowest counting.
  int rounds_with(const std::string& tunnel) const;
  std::int64_t rows() const { return rows_; }

private:
  void fight(std::string database_url, std::string project, std::size_t number);

  std::atomic<bool> stopping_{false};
  std::atomic<std::int64_t> rows_{0};
  mutable std::mutex mutex_;
  /// Of each connection: how often it has met each tunnel.
  std::vector<std::map<std::string, int>> met_;
  std::vector<std::thread> threads_;
};

/// All rows that a tunnel has, its name replaced, without what differs from run to run (versions, times, uids, numbers
/// that count steps): two runs that ended alike have equal ones.
std::string final_rows(const std::string& database_url, const std::string& project, const std::string& tunnel);

}  // namespace warren::bench
