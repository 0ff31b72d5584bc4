// bench/postgres.cpp -- PostgreSQL without Warren.
#include "bench/postgres.hpp"

#include <array>

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

struct rival::impl {
  explicit impl(const std::string& url) : db{url} {
    db.prepare("tunnel", "UPDATE tunnel SET updated_at = updated_at WHERE project = $1");
    db.prepare("connector", "UPDATE connector SET updated_at = updated_at WHERE project = $1");
    db.prepare("attachment", "UPDATE attachment SET rules = rules WHERE project = $1");
    db.prepare("hostname_claim", "UPDATE hostname_claim SET claim = claim WHERE project = $1");
  }
  pqxx::connection db;
};

rival::rival(const std::string& database_url) : impl_{new impl{database_url}} {}
rival::~rival() { delete impl_; }

int rival::bump(const std::string& project) {
  int rows = 0;
  for (const auto* table : {"tunnel", "connector", "attachment", "hostname_claim"}) {
    pqxx::work one{impl_->db};
    rows += static_cast<int>(one.exec_prepared(table, project).affected_rows());
    one.commit();
  }
  return rows;
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
