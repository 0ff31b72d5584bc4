// bench/postgres.cpp -- PostgreSQL without Warren.
#include "bench/postgres.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include <fmt/format.h>
#include <pqxx/pqxx>

namespace warren::bench {

sample commit_alone(const std::string& database_url, int count) {
  pqxx::connection db{database_url};
  {
    pqxx::nontransaction make{db};
    make.exec("DROP TABLE IF EXISTS bench_commit");
    make.exec("CREATE TABLE bench_commit (id integer PRIMARY KEY, n bigint NOT NULL)");
    make.exec("INSERT INTO bench_commit VALUES (1, 0)");
  }
  db.prepare("bump", "UPDATE bench_commit SET n = n + 1 WHERE id = 1");
  sample out;
  for (int i = 0; i < count; ++i) {
    const auto begun = clock::now();
    pqxx::work one{db};
    one.exec_prepared("bump");
    one.commit();
    out.add(ms_between(begun, clock::now()));
  }
  pqxx::nontransaction{db}.exec("DROP TABLE bench_commit");
  return out;
}

rival::rival(std::string database_url, std::string project, int connections)
    : met_(static_cast<std::size_t>(connections)) {
  for (std::size_t n = 0; n < met_.size(); ++n)
    threads_.emplace_back([this, database_url, project, n] { fight(database_url, project, n); });
}

rival::~rival() {
  stopping_ = true;
  for (auto& each : threads_) each.join();
}

int rival::rounds_with(const std::string& tunnel) const {
  const std::lock_guard lock{mutex_};
  int fewest = std::numeric_limits<int>::max();
  for (const auto& met : met_) {
    const auto it = met.find(tunnel);
    fewest = std::min(fewest, it == met.end() ? 0 : it->second);
  }
  return fewest;
}

void rival::fight(std::string database_url, std::string project, std::size_t number) {
  pthread_setname_np(pthread_self(), "rival");
  try {
    pqxx::connection db{database_url};
    // In one order, or its own connections would end each other's by deadlocks.
    constexpr std::array statements{
        std::pair{"tunnel", "WITH seen AS (SELECT project, name FROM tunnel WHERE project = $1 ORDER BY name FOR NO KEY UPDATE) "
                            "UPDATE tunnel t SET updated_at = updated_at FROM seen WHERE (t.project, t.name) = (seen.project, seen.name) "
                            "RETURNING t.name"},
        std::pair{"connector", "WITH seen AS (SELECT project, name FROM connector WHERE project = $1 ORDER BY name FOR NO KEY UPDATE) "
                               "UPDATE connector c SET updated_at = updated_at FROM seen WHERE (c.project, c.name) = (seen.project, seen.name)"},
        std::pair{"attachment", "WITH seen AS (SELECT ctid FROM attachment WHERE project = $1 ORDER BY tunnel, tunnel_generation FOR NO KEY UPDATE) "
                                "UPDATE attachment a SET rules = rules FROM seen WHERE a.ctid = seen.ctid"},
        std::pair{"hostname_claim", "WITH seen AS (SELECT hostname FROM hostname_claim WHERE project = $1 ORDER BY hostname FOR NO KEY UPDATE) "
                                    "UPDATE hostname_claim h SET claim = claim FROM seen WHERE h.hostname = seen.hostname"}};
    for (const auto& [name, text] : statements) db.prepare(name, text);
    while (!stopping_)
      for (std::size_t i = 0; i < statements.size(); ++i) {
        const std::string table = statements.at((i + number) % statements.size()).first;
        try {
          pqxx::work one{db};
          const auto touched = one.exec_prepared(table, project);
          one.commit();
          rows_ += touched.affected_rows();
          if (table != "tunnel") continue;
          const std::lock_guard lock{mutex_};
          for (const auto& row : touched) ++met_[number][row[0].c_str()];
        } catch (const pqxx::transaction_rollback&) {  // a deadlock that it lost; so be it
        }
      }
  } catch (const std::exception& e) {
    fmt::print(stderr, "the rival gives up: {}\n", e.what());
  }
}

std::string final_rows(const std::string& database_url, const std::string& project, const std::string& tunnel) {
  pqxx::connection db{database_url};
  pqxx::read_transaction read{db};
  const auto rows = read.exec_params(
      R"(SELECT 'tunnel', jsonb_build_array(generation, observed_generation, programmed_generation, previous_generation,
                hostnames, rules, enabled, gateway_class, delete_time,
                (SELECT jsonb_agg(jsonb_build_array(c->'type', c->'status', c->'reason') ORDER BY c->>'type')
                   FROM jsonb_array_elements(conditions) c))::text
           FROM tunnel WHERE project = $1 AND name = $2
         UNION ALL
         SELECT 'attachment', jsonb_build_array(a.connector, a.tunnel_generation, a.rules, a.target_state,
                a.attachment_generation <= c.attached_generation)::text
           FROM attachment a JOIN connector c ON c.project = a.project AND c.name = a.connector
          WHERE a.project = $1 AND a.tunnel = $2
         UNION ALL
         SELECT 'claim', jsonb_build_array(hostname)::text FROM hostname_claim WHERE project = $1 AND tunnel = $2
         ORDER BY 1, 2)",
      project, tunnel);
  std::string all;
  for (const auto& row : rows) all += fmt::format("{} {}\n", row[0].c_str(), row[1].c_str());
  std::string out;  // by pieces: what lies between one mention of the name and the next
  std::size_t from = 0;
  for (auto at = all.find(tunnel); at != std::string::npos; at = all.find(tunnel, from)) {
    out.append(all, from, at - from).push_back('*');
    from = at + tunnel.size();
  }
  return out.append(all, from);
}

}  // namespace warren::bench
