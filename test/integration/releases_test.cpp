// test/integration/releases_test.cpp -- two releases side by side: what the former one says to the database goes on
// meaning the same on the newest schema.
//
// test/integration/releases/level-NNNN.json is what programs of that schema level said to PostgreSQL: every
// statement that they prepare, and one session of everything that they do, as the server logged it. Each is replayed
// on its own schema and on the newest: the same statements succeed, with as many rows of the same columns.
//
// Whoever adds migration N+1 records level N first, with the programs of the release before:
//   WARREN_BIN_DIR=<its programs> WARREN_MIGRATIONS_DIR=<its migrations> WARREN_RECORD_LEVEL=N
//   test_integration_releases "[record]"
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <map>
#include <regex>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "services/store/statements.hpp"
#include "test/integration/store_fixture.hpp"

using namespace warren;
using namespace warren::store_test;
using json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

fs::path recordings() { return fs::path{migrations()}.parent_path() / "test/integration/releases"; }
fs::path recording_of(int level) { return recordings() / fmt::format("level-{:04}.json", level); }

std::vector<fs::path> migration_files() {
  std::vector<fs::path> out;
  for (const auto& each : fs::directory_iterator{migrations()})
    if (each.path().extension() == ".sql") out.push_back(each.path());
  std::sort(out.begin(), out.end());
  return out;
}

// ---- replaying ----

/// A folder with the migrations up to a level.
class first_migrations {
public:
  explicit first_migrations(int level) {
    for (const auto& file : migration_files())
      if (std::stoi(file.filename().string().substr(0, 4)) <= level) fs::copy_file(file, place_.path() / file.filename());
  }
  std::string folder() const { return place_.path(); }

private:
  stack::scratch place_{"warren-migrations"};
};

std::string literal(const json& parameter) {
  if (parameter.is_null()) return "NULL";
  std::string out = "'";
  for (const char c : parameter.get<std::string>()) {
    if (c == '\'') out += c;
    out += c;
  }
  return out + "'";
}

/// What the server answered, as far as a program could tell the difference.
std::string outcome_of(pqxx::connection& c, const std::string& sql) {
  try {
    pqxx::nontransaction tx{c};
    const auto rows = tx.exec(sql);
    std::string out = fmt::format("{} rows, {} affected:", rows.size(), rows.affected_rows());
    for (pqxx::row::size_type i = 0; i < rows.columns(); ++i) out += fmt::format(" {}", rows.column_name(i));
    return out;
  } catch (const pqxx::sql_error& e) {
    const std::string words = e.what();
    return "error " + e.sqlstate() + ": " + words.substr(0, words.find('\n'));
  }
}

struct answered {
  std::string asked, outcome;
};

/// What was said in one breath, statement by statement, as each of them has an outcome.
std::vector<std::string> statements_in(const std::string& text) {
  if (text.find("EXECUTE \"") == std::string::npos) return {text};
  std::vector<std::string> out{""};
  char quote = 0;
  for (const char c : text) {
    if (quote == 0 && c == ';') {
      out.emplace_back();
      continue;
    }
    if (out.back().empty() && c == ' ') continue;
    if (quote == 0 && (c == '\'' || c == '"')) quote = c;
    else if (c == quote) quote = 0;  // one that is doubled ends and begins again
    out.back() += c;
  }
  if (out.back().empty()) out.pop_back();
  return out;
}

/// The prepared statement that is executed; empty: none is.
std::string executed_by(const std::string& sql) {
  static const std::regex execute{"EXECUTE \"([^\"]+)\""};
  std::smatch m;
  return std::regex_search(sql, m, execute, std::regex_constants::match_continuous) ? m[1].str() : std::string{};
}

/// Everything of a recording, in its order, but each transaction as a whole where it ended: a recording has many
/// sessions at a time, a replay has one, and would wait for itself.
std::vector<answered> replay(const json& recording, const std::string& conninfo) {
  std::vector<answered> out;
  std::map<int, std::unique_ptr<pqxx::connection>> sessions;
  std::map<int, std::set<std::string>> prepared;
  std::map<int, std::deque<json>> open;
  const auto say = [&](int session, const json& event) {
    auto& c = sessions[session];
    if (!c) c = std::make_unique<pqxx::connection>(conninfo);
    const auto prepare = [&](const std::string& name) {
      if (!prepared[session].insert(name).second) return;
      const auto text = recording.at("statements").at(name).get<std::string>();
      out.push_back({"PREPARE " + name, outcome_of(*c, fmt::format("PREPARE \"{}\" AS {}", name, text))});
    };
    if (event.contains("sql")) {
      const auto text = event.at("sql").get<std::string>();
      if (const auto name = executed_by(text); !name.empty()) prepare(name);
      out.push_back({text, outcome_of(*c, text)});
      return;
    }
    const auto name = event.at("execute").get<std::string>();
    prepare(name);
    std::string parameters;
    for (const auto& each : event.at("parameters")) parameters += (parameters.empty() ? "" : ", ") + literal(each);
    const auto text = fmt::format("EXECUTE \"{}\"{}", name, parameters.empty() ? "" : "(" + parameters + ")");
    out.push_back({text, outcome_of(*c, text)});
  };
  const auto is = [](const json& event, std::initializer_list<const char*> words) {
    if (!event.contains("sql")) return false;
    const auto text = event.at("sql").get<std::string>();
    return std::any_of(words.begin(), words.end(), [&](const char* w) { return text.rfind(w, 0) == 0; });
  };
  std::vector<json> events;
  for (const auto& event : recording.at("session")) {
    if (!event.contains("sql")) events.push_back(event);
    else for (const auto& each : statements_in(event.at("sql"))) events.push_back({{"of", event.at("of")}, {"sql", each}});
  }
  for (const auto& event : events) {
    const int session = event.at("of");
    auto& transaction = open[session];
    if (event.contains("end")) {
      transaction.clear();  // it was ended in the middle: nothing of it stayed
      sessions.erase(session);
      prepared.erase(session);
      continue;
    }
    if (transaction.empty() && !is(event, {"BEGIN"})) {
      say(session, event);
      continue;
    }
    transaction.push_back(event);
    if (!is(event, {"COMMIT", "ROLLBACK"})) continue;
    for (const auto& each : std::exchange(transaction, {})) say(session, each);
  }
  return out;
}

/// Every statement that was prepared, also those that the session had no use for.
std::vector<answered> prepare_all(const json& recording, const std::string& conninfo) {
  std::vector<answered> out;
  pqxx::connection c{conninfo};
  for (const auto& [name, text] : recording.at("statements").items())
    out.push_back({name, outcome_of(c, fmt::format("PREPARE \"{}\" AS {}", name, text.get<std::string>()))});
  return out;
}

json read_json(const fs::path& file) {
  std::ifstream in{file};
  return json::parse(in);
}

/// What differs between two runs of one recording, in words; empty: nothing.
std::vector<std::string> differences(const std::vector<answered>& before, const std::vector<answered>& after) {
  std::vector<std::string> out;
  REQUIRE(before.size() == after.size());
  for (std::size_t i = 0; i < before.size(); ++i)
    // The newest schema has more migrations behind it; everything else is as it was.
    if (before[i].outcome != after[i].outcome && before[i].asked != "SELECT level, checksum FROM schema_migration")
      out.push_back(fmt::format("{}\n  was: {}\n  is:  {}", before[i].asked, before[i].outcome, after[i].outcome));
  return out;
}

// ---- recording ----

constexpr int recorded_partitions = 2;  // each start of an instance reads them all

/// One entry of the server's log, without its prefix.
struct entry {
  int process = 0;
  std::string database, level, text;
};

std::vector<entry> entries_of(const std::string& log) {
  static const std::regex prefix{"@@([0-9]+) ([^ ]*) ([A-Z]+):  "};
  std::vector<entry> out;
  for (std::size_t at = log.find("@@"); at != std::string::npos;) {
    const auto next = log.find("\n@@", at);
    auto text = log.substr(at, next == std::string::npos ? next : next - at);
    at = next == std::string::npos ? next : next + 1;
    std::smatch m;
    if (!std::regex_search(text, m, prefix, std::regex_constants::match_continuous)) continue;
    entry e{std::stoi(m[1]), m[2], m[3], m.suffix()};
    for (std::size_t tab = e.text.find("\n\t"); tab != std::string::npos; tab = e.text.find("\n\t", tab + 1)) e.text.erase(tab + 1, 1);
    while (!e.text.empty() && e.text.back() == '\n') e.text.pop_back();
    out.push_back(std::move(e));
  }
  return out;
}

/// $1 = 'it''s', $2 = NULL
json parameters_of(const std::string& text) {
  json out = json::array();
  for (std::size_t at = text.find("= "); at != std::string::npos; at = text.find("= ", at)) {
    at += 2;
    if (text[at] != '\'') {
      out.push_back(nullptr);
      continue;
    }
    std::string value;
    for (++at; at < text.size(); ++at) {
      if (text[at] == '\'' && (at + 1 >= text.size() || text[at + 1] != '\'')) break;
      if (text[at] == '\'') ++at;
      value += text[at];
    }
    ++at;
    out.push_back(value);
  }
  return out;
}

json recording_from(const std::string& log, int level) {
  static const std::regex parsed{"duration: [0-9.]+ ms  parse ([^:]+): "};
  json recording{{"level", level}, {"partitions", recorded_partitions}, {"statements", json::object()}, {"session", json::array()}};
  auto& session = recording["session"];
  std::map<int, int> numbers;
  std::map<int, std::size_t> last;  // execute of each process: its parameters follow
  for (const auto& e : entries_of(log)) {
    if (e.database != "warren") continue;
    const int of = numbers.emplace(e.process, static_cast<int>(numbers.size()) + 1).first->second;
    std::smatch m;
    if (e.level == "LOG") last.erase(e.process);  // also how long it took to bind says its parameters
    if (e.level == "LOG" && e.text.rfind("statement: ", 0) == 0) {
      session.push_back({{"of", of}, {"sql", e.text.substr(11)}});
    } else if (e.level == "LOG" && e.text.rfind("execute ", 0) == 0) {
      const auto colon = e.text.find(": ");
      auto name = e.text.substr(8, colon - 8);
      const auto text = e.text.substr(colon + 2);
      if (name == "<unnamed>") name = "unnamed " + text;
      recording["statements"][name] = text;
      last[e.process] = session.size();
      session.push_back({{"of", of}, {"execute", name}, {"parameters", json::array()}});
    } else if (e.level == "DETAIL" && e.text.rfind("parameters: ", 0) == 0 && last.count(e.process) > 0) {
      session[last[e.process]]["parameters"] = parameters_of(e.text);
    } else if (e.level == "LOG" && std::regex_search(e.text, m, parsed, std::regex_constants::match_continuous)) {
      if (m[1] != "<unnamed>") recording["statements"][m[1].str()] = m.suffix();
    } else if (e.level == "LOG" && e.text.rfind("disconnection: ", 0) == 0) {
      session.push_back({{"of", of}, {"end", true}});
    }
  }
  return recording;
}

}  // namespace

TEST_CASE("what the release before says to the database means the same on the newest schema") {
  const auto files = migration_files();
  const auto newest = static_cast<int>(files.size());
  REQUIRE(newest == schema_level_known);
  for (int level = 1; level < newest; ++level) {
    INFO("level " << level << ": recorded as the head of this file says?");
    REQUIRE(fs::exists(recording_of(level)));
    const auto recording = read_json(recording_of(level));
    REQUIRE(recording.at("session").size() > 500);
    auto& server = own_server::get().cluster;
    const database then{server, false}, now{server, false};
    const migrate_options as_recorded{.partitions = recording.at("partitions")};
    migrate(then.conninfo, first_migrations{level}.folder(), as_recorded);
    migrate(now.conninfo, migrations(), as_recorded);
    REQUIRE(schema_level(then.conninfo) == level);

    for (const auto& each : differences(prepare_all(recording, then.conninfo), prepare_all(recording, now.conninfo))) FAIL_CHECK(each);
    const auto before = replay(recording, then.conninfo);
    for (const auto& each : before)
      if (each.outcome.rfind("error", 0) == 0) FAIL_CHECK("on its own schema: " << each.asked << "\n  " << each.outcome);
    for (const auto& each : differences(before, replay(recording, now.conninfo))) FAIL_CHECK(each);
    // It was not all for nothing: the session has left rows of every kind behind.
    CHECK(now.value<int>("SELECT count(*) FROM audit_event") > 5);
    CHECK(now.value<int>("SELECT count(*) FROM tunnel") > 0);
  }
}

TEST_CASE("a migration that breaks the release before is found") {
  const int level = schema_level_known - 1;
  const auto recording = read_json(recording_of(level));
  auto& server = own_server::get().cluster;
  const database then{server, false};
  const migrate_options as_recorded{.partitions = recording.at("partitions")};
  migrate(then.conninfo, first_migrations{level}.folder(), as_recorded);
  const auto before = replay(recording, then.conninfo);
  const auto breaking = GENERATE(as<std::string>{},
                                 "ALTER TABLE connector RENAME COLUMN dialable TO can_be_dialled",
                                 "ALTER TABLE tunnel DROP COLUMN retiring",
                                 "ALTER TABLE attachment ADD COLUMN must_be_said text NOT NULL",
                                 "ALTER TABLE connector ADD CONSTRAINT connector_lease CHECK (lease_duration_ms < 1000)",
                                 "ALTER TABLE gateway RENAME TO edge",
                                 "ALTER TABLE instance ALTER COLUMN name TYPE integer USING 0",
                                 "DROP FUNCTION warren_named_connectors CASCADE",
                                 "CREATE FUNCTION deaf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
                                 "CREATE TRIGGER deaf BEFORE UPDATE ON partition FOR EACH ROW EXECUTE FUNCTION deaf()");
  INFO(breaking);
  const database broken{server, false};
  migrate(broken.conninfo, migrations(), as_recorded);
  broken.exec(breaking);
  CHECK_FALSE(differences(before, replay(recording, broken.conninfo)).empty());
}

TEST_CASE("record what the programs of a level say", "[.][record]") {
  const char* wanted = std::getenv("WARREN_RECORD_LEVEL");
  REQUIRE(wanted != nullptr);
  const int level = std::atoi(wanted);
  stack::stack s{{.with_envoy = false,
                  .own_postgres = true,
                  .start = false,
                  .partitions = recorded_partitions,
                  .configuration = {{"database.lanes", "1"}, {"instance.lease_ms", "30000"}}}};
  const auto set = [&](const std::string& setting) { stack::run_sql(s.postgres().url("postgres"), "ALTER SYSTEM SET " + setting); };
  set("log_statement = 'all'");
  set("log_min_duration_statement = 0");
  set("log_line_prefix = '@@%p %d '");
  set("log_disconnections = on");
  stack::run_sql(s.postgres().url("postgres"), "SELECT pg_reload_conf()");
  const auto settled = [&](const std::string& question, const std::string& wanted_rows) {
    // Asked elsewhere than in the log.
    REQUIRE(stack::poll_until([&] { return s.sql("/* asked */ " + question) == wanted_rows + "\n"; }, stack::milliseconds{20'000}));
  };
  s.start_warrend();
  s.must_ctl({"gateway-class", "create", "edge", "--listen", "127.0.0.1:10081"});
  s.must_ctl({"gateway-class", "update", "edge", "--listen", "127.0.0.1:10082"});
  s.must_ctl({"gateway", "create", "gw-1", "--class", "edge"});
  s.must_ctl({"gateway", "update", "gw-1", "--class", "default"});
  s.add_agent("home").await_session();
  s.add_agent("other").await_session();
  for (const char* name : {"web", "shop", "gone"})
    s.must_ctl({"tunnel", "create", name, "--hostname", std::string{name} + ".example.com", "--connector", "home", "--target",
                s.demo_origin().url(), "--request-id", std::string{"create-"} + name});
  s.must_ctl({"tunnel", "create", "web", "--hostname", "web.example.com", "--connector", "home", "--target", s.demo_origin().url(),
              "--request-id", "create-web"});  // the same once more: the first answer
  CHECK_FALSE(s.ctl({"tunnel", "create", "late", "--hostname", "web.example.com", "--connector", "home", "--target", s.demo_origin().url()}).ok());
  settled("SELECT count(*) FROM attachment a JOIN connector c ON c.name = a.connector WHERE a.attachment_generation <= c.attached_generation", "3");
  s.must_ctl({"tunnel", "update", "shop", "--hostname", "shop.example.org", "--hostname", "shop.example.com", "--connector", "other",
              "--target", s.demo_origin().url()});
  s.must_ctl({"tunnel", "delete", "gone"});
  settled("SELECT count(*) FROM tunnel WHERE name = 'gone'", "0");
  s.must_ctl({"connector", "update", "other", "--lease-duration", "60s"});
  s.sql("UPDATE tunnel SET enabled = false WHERE name = 'web'");
  settled("SELECT observed_generation FROM tunnel WHERE name = 'web'", "2");
  s.sql("DELETE FROM attachment WHERE connector = 'home'");
  settled("SELECT count(*) FROM tombstone WHERE version = -1", "0");
  s.must_ctl({"audit", "list"});
  s.find_agent("home").stop();
  settled("SELECT online FROM connector WHERE name = 'home'", "f");
  s.kill_warrend();
  s.start_warrend();
  s.must_ctl({"tunnel", "update", "web", "--enabled"});
  s.must_ctl({"connector", "delete", "home"});
  s.must_ctl({"gateway", "delete", "gw-1"});
  s.must_ctl({"gateway-class", "delete", "edge"});
  s.find_agent("other").stop();
  s.stop_warrend();
  auto recording = recording_from(stack::read_file(s.directory() / "postgres" / "log"), level);
  auto& session = recording["session"];
  session.erase(std::remove_if(session.begin(), session.end(), [](const json& e) {
    return e.contains("sql") && e.at("sql").get<std::string>().rfind("/* asked */", 0) == 0;
  }), session.end());
  fs::create_directories(recordings());
  std::ofstream out{recording_of(level)};
  const auto lines = [&](const json& of, bool named) {
    std::string between = "\n";
    for (const auto& [key, value] : of.items()) out << std::exchange(between, ",\n") << (named ? json(key).dump() + ": " : "") << value.dump();
  };
  out << "{\"level\": " << level << ", \"partitions\": " << recorded_partitions << ",\n\"statements\": {";
  lines(recording.at("statements"), true);
  out << "},\n\"session\": [";
  lines(session, false);
  out << "]}\n";
  WARN(recording.at("statements").size() << " statements, " << session.size() << " steps in " << recording_of(level).string());
}
