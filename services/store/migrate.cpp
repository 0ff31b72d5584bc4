// services/store/migrate.cpp -- see migrate.hpp.
#include "services/store/migrate.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <stdexcept>

#include <fmt/format.h>
#include <openssl/sha.h>
#include <pqxx/pqxx>

#include "services/store/session.hpp"

namespace warren {
namespace {

struct file {
  int level = 0;
  std::string name, text, checksum;
};

std::string sha256_hex(const std::string& text) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  std::string out;
  for (auto byte : digest) out += fmt::format("{:02x}", byte);
  return out;
}

std::vector<file> files_in(const std::string& folder) {
  static const std::regex pattern{"([0-9]{4})_[a-z0-9_]+\\.sql"};
  std::error_code error;
  std::vector<file> out;
  for (const auto& entry : std::filesystem::directory_iterator{folder, error}) {
    const auto name = entry.path().filename().string();
    std::smatch m;
    if (!std::regex_match(name, m, pattern)) continue;
    std::ifstream in{entry.path(), std::ios::binary};
    std::ostringstream text;
    text << in.rdbuf();
    if (!in) throw std::runtime_error{"cannot read " + entry.path().string()};
    out.push_back({std::stoi(m[1]), name, text.str(), sha256_hex(text.str())});
  }
  if (error) throw std::runtime_error{"cannot read the migrations in " + folder + ": " + error.message()};
  std::sort(out.begin(), out.end(), [](const file& a, const file& b) { return a.level < b.level; });
  for (std::size_t i = 0; i < out.size(); ++i)
    if (out[i].level != static_cast<int>(i) + 1)
      throw std::runtime_error{fmt::format("migrations in {}: {:04} is missing or there twice", folder, i + 1)};
  if (out.empty()) throw std::runtime_error{"there are no migrations in " + folder};
  return out;
}

std::unique_ptr<pqxx::connection> open(const std::string& conninfo) {
  const auto limited =
      conninfo.find("connect_timeout") == std::string::npos ? sql::with_setting(conninfo, "connect_timeout", "5") : conninfo;
  auto conn = std::make_unique<pqxx::connection>(limited);
  sql::never_reactivate(*conn);
  pqxx::nontransaction{*conn}.exec("SET application_name = 'warrend migrate'");
  return conn;
}

std::map<int, std::string> landed(pqxx::transaction_base& tx) {
  std::map<int, std::string> out;
  if (tx.exec1("SELECT to_regclass('schema_migration') IS NULL")[0].as<bool>()) return out;
  for (const auto& row : tx.exec("SELECT level, checksum FROM schema_migration")) out[row[0].as<int>()] = row[1].as<std::string>();
  return out;
}

}  // namespace

std::vector<migration> migrate(const std::string& conninfo, const std::string& folder, const migrate_options& options) {
  const auto files = files_in(folder);
  auto conn = open(conninfo);
  {
    // 1463898709 ("WARU") is the class of this lock; of the session, so that it spans the transactions.
    pqxx::nontransaction tx{*conn};
    tx.exec("SELECT pg_advisory_lock(1463898709, 1)");
  }
  std::map<int, std::string> there;
  {
    pqxx::work tx{*conn};
    there = landed(tx);
  }
  for (const auto& f : files) {
    auto found = there.find(f.level);
    if (found != there.end() && found->second != f.checksum)
      throw std::runtime_error{f.name + " was edited after it landed in this database: a migration is never edited, "
                                        "add another one"};
  }
  std::vector<migration> applied;
  for (const auto& f : files) {
    if (there.count(f.level)) continue;
    applied.push_back({f.level, f.name});
    if (options.dry_run) continue;
    pqxx::work tx{*conn};
    tx.exec("SET LOCAL warren.partitions = '" + std::to_string(options.partitions) + "'");
    try {
      tx.exec(f.text);
    } catch (const pqxx::sql_error& e) {
      throw std::runtime_error{f.name + ": " + e.what()};
    }
    tx.exec_params("INSERT INTO schema_migration (level, name, checksum) VALUES ($1, $2, $3)", f.level, f.name, f.checksum);
    tx.commit();
  }
  return applied;
}

int schema_level(const std::string& conninfo) {
  auto conn = open(conninfo);
  pqxx::work tx{*conn};
  const auto there = landed(tx);
  return there.empty() ? 0 : there.rbegin()->first;
}

std::string schema_misfit(const std::string& conninfo) {
  const auto level = schema_level(conninfo);
  if (level == 0) return "the database is empty: run warrend migrate";
  if (level < schema_level_needed)
    return fmt::format("the schema is at level {}, this program needs {}: run warrend migrate", level, schema_level_needed);
  auto conn = open(conninfo);
  pqxx::work tx{*conn};
  const auto fits_from = tx.exec1("SELECT fits_from FROM installation")[0].as<int>();
  if (schema_level_known < fits_from)
    return fmt::format("the schema (level {}) no longer fits programs that know less than level {}; this one knows {}",
                       level, fits_from, schema_level_known);
  return {};
}

int partitions_of_database(const std::string& conninfo) {
  auto conn = open(conninfo);
  pqxx::work tx{*conn};
  return tx.exec1("SELECT partitions FROM installation")[0].as<int>();
}

}  // namespace warren
