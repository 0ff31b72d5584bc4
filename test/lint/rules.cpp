// test/lint/rules.cpp -- the rules that the compiler cannot check, each with its reason.
#include "test/lint/rules.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>

namespace warren::lint {

namespace {

namespace fs = std::filesystem;

const std::string cpp = "\\.(cpp|hpp)$";
/// Decisions: the same input gives the same answer, so that a recorded event can be played again.
const std::string pure =
    "(actors/(core|replay)/|actors/[a-z_]+/(machine[a-z_]*|spec|status|plan|routing|acks|mass_silence"
    "|facts|session|liveness|attachments|commands|rows)\\."
    "|services/gateway/(compile|catalogue|session|bootstrap)\\.|services/hook/(wire|transform|truth|retranslate|handover)\\.|services/replica/(derivation|query|rows|tables|watch)\\.).*";

/// A room of services/ and the rooms that its files may include.
rule room(const std::string& name, const std::string& may, const std::string& why) {
  return {"services-" + name, rule::of::include, "services/(?!(" + name + (may.empty() ? "" : "|" + may) + ")/).*",
          "services/" + name + "/.*" + cpp, "", why};
}

std::vector<rule> make_rules() {
  using of = rule::of;
  const std::string own = "(actors|services|test|bench)/.*" + cpp;
  return {
      // ---- libraries that stay in one room ----
      {"pqxx", of::include, "pqxx/.*", own, "(services/store|test|bench)/.*",
       "only services/store speaks SQL: it holds the fence, and a write beside it would not be fenced"},
      {"nats", of::include, "nats(/nats)?\\.h", own, "(services/bus|test|bench)/.*",
       "only services/bus speaks NATS: limits and reconnection are kept there, once"},
      {"grpc", of::include, "(grpc|grpcpp|grpc\\+\\+)/.*|.*\\.grpc\\.pb\\.h", own,
       "(services/admin|services/gateway|services/hook|services/warrenctl|test|bench)/.*",
       "gRPC is an edge: what decides must not know who asked"},
      {"toml", of::include, "toml\\+\\+/.*", own, "(services/warrend|services/warren-agent|services/warrenctl|test)/.*",
       "settings arrive as arguments; only programs read files of settings"},
      {"cli", of::include, "CLI/.*", own, "(services/warrend|services/warren-agent|services/warrenctl|test|bench)/.*",
       "only programs have a command line"},
      {"prometheus", of::include, "prometheus/.*", own, "(services/telemetry|test)/.*",
       "rooms count through actors/core/counters.hpp, so that tests can count too"},
      {"beast", of::include, "boost/beast.*", own, "(services/dialer|services/hook|services/telemetry|services/warren-agent|services/warrenctl/trace|test|bench)[./].*",
       "HTTP by hand belongs to those who serve or dial it"},
      // ---- who decides ----
      {"caf-in-decisions", of::include, "caf/.*|actors/messages\\.hpp|actors/shell\\.hpp|actors/.*actor\\.hpp", pure, "",
       "decisions know no actors: they are tested as tables, and played again from records"},
      {"caf-outside-messages", of::include, "caf/.*", "(actors|services)/.*" + cpp, "actors/messages\\.hpp",
       "one file includes CAF (it is precompiled); all others get it from actors/messages.hpp"},
      {"actors-below-services", of::include, "services/.*", "actors/.*" + cpp, "",
       "services are built upon actors; what an actor needs of the world is a message or a function it was given"},
      {"tests-in-product", of::include, "test/.*|catch2/.*", "(actors|services)/.*" + cpp, "",
       "the product does not depend on its tests"},
      {"io-in-decisions", of::include,
       "spdlog/.*|fstream|iostream|thread|mutex|condition_variable|future|random|unistd\\.h|sys/.*|boost/asio.*",
       pure, "services/replica/watch\\..*",
       "decisions do no I/O, log nothing and know no threads: what they find goes into the transition"},
      {"clock-in-decisions", of::code, "\\b(system_clock|steady_clock|high_resolution_clock)\\s*::\\s*now\\b", pure, "",
       "now comes in with the event, so that time can be virtual"},
      {"chance-in-decisions", of::code, "\\b(random_device|mt19937(_64)?)\\b|\\bs?rand\\s*\\(|\\bRAND_bytes\\b", pure, "",
       "fresh ids and jitter come in with the event, so that a run can be repeated"},
      {"log-in-decisions", of::code, "\\bspdlog\\b", pure, "", "what is worth saying is in the transition; the shell says it"},
      {"wait-in-actors", of::code, "\\bsleep_for\\b|\\bsleep_until\\b|\\busleep\\b|\\bscoped_actor\\b|\\.get_future\\b",
       "actors/.*" + cpp, "", "actors never block: a blocked one holds a scheduler thread that hundreds share"},
      // ---- rooms among each other ----
      room("telemetry", "", "measures everybody, so it knows nobody"),
      room("store", "telemetry", "the store knows rows, not who reads or sends them"),
      room("bus", "telemetry", "the bus carries bytes; what they mean is for others"),
      room("dialer", "telemetry", "the dialer knocks at an address and knows no rows"),
      room("replica", "store|bus|telemetry", "the replica is below those that read it"),
      room("gateway", "replica|telemetry", "gateways see what the replica holds, and nothing that is not committed"),
      room("hook", "gateway|replica|telemetry", "the hook says what gateways are told by the other way in, and decides nothing about it"),
      room("admin", "replica|bus|telemetry", "the API sends commands and reads the replica; it never writes by itself"),
      room("warrenctl", "admin", "an operator's tool speaks the admin API, as any other client would"),
      room("warren-agent", "bus|telemetry", "the agent runs on others' machines and knows the bus alone"),
      // ---- texts ----
      {"sleep-in-tests", of::code, "\\bsleep_for\\b|\\bsleep_until\\b|\\busleep\\s*\\(|::sleep\\s*\\(", "test/.*" + cpp,
       "test/support/process\\.cpp",  // poll_until: ends as soon as what it waits for is there
       "a test that sleeps is slow on a fast machine and wrong on a slow one: wait for the event (poll_until)"},
      // Spelt in pieces, so that this file keeps its own rule.
      {"machine-path", of::line, std::string{"(^|[^A-Za-z0-9_.}/-])/("} + "work|root|home)(/|\\b)", ".*", "",
       "a path of somebody's machine works on no other"},
      {"trailing-space", of::line, "[ \\t]+$", own, "", "spaces that nobody sees show up in every later change"},
      {"tab", of::line, "\\t", own, "", "two spaces; a tab is as wide as the reader's editor says"},
  };
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in{text};
  for (std::string line; std::getline(in, line);) out.push_back(std::move(line));
  return out;
}

const std::regex& compiled(const std::string& pattern) {
  static std::map<std::string, std::regex> cache;
  auto it = cache.find(pattern);
  if (it == cache.end()) it = cache.emplace(pattern, std::regex{pattern, std::regex::ECMAScript | std::regex::optimize}).first;
  return it->second;
}

bool begins_with(const std::string& text, const std::string& pattern) {
  return std::regex_search(text, compiled(pattern), std::regex_constants::match_continuous);
}

bool is_cpp(const std::string& path) { return std::regex_search(path, compiled(cpp)); }

}  // namespace

const std::vector<rule>& rules() {
  static const auto all = make_rules();
  return all;
}

std::string bare_code(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  enum class in : unsigned char { code, line_comment, block_comment, literal, raw } state = in::code;
  char quote = 0;
  std::string raw_end;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i], next = i + 1 < text.size() ? text[i + 1] : '\0';
    switch (state) {
      case in::code:
        if (c == '/' && next == '/') {
          state = in::line_comment;
        } else if (c == '/' && next == '*') {
          state = in::block_comment;
          ++i;
        } else if (c == '"' && i > 0 && text[i - 1] == 'R') {
          const auto open = text.find('(', i);
          if (open == std::string::npos) return out;
          raw_end = ")" + text.substr(i + 1, open - i - 1) + "\"";
          state = in::raw;
          out += '"';
          i = open;
        } else {
          // An apostrophe between digits separates them; elsewhere it opens a character.
          const bool separates = c == '\'' && i > 0 && std::isalnum(static_cast<unsigned char>(text[i - 1])) != 0;
          if ((c == '"' || c == '\'') && !separates) {
            state = in::literal;
            quote = c;
          }
          out += c;
        }
        break;
      case in::line_comment:
        if (c == '\n') {
          state = in::code;
          out += c;
        }
        break;
      case in::block_comment:
        if (c == '\n') out += c;
        if (c == '*' && next == '/') {
          state = in::code;
          ++i;
        }
        break;
      case in::literal:
        if (c == '\\') {
          ++i;
          if (next == '\n') out += next;
        } else if (c == quote || c == '\n') {
          state = in::code;
          out += c;
        }
        break;
      case in::raw:
        if (c == '\n') out += c;
        if (text.compare(i, raw_end.size(), raw_end) == 0) {
          state = in::code;
          i += raw_end.size() - 1;
          out += '"';
        }
        break;
    }
  }
  return out;
}

std::vector<complaint> judge(const rule& r, const source_file& file) {
  std::vector<complaint> out;
  if (!begins_with(file.path, r.where)) return out;
  if (!r.except.empty() && begins_with(file.path, r.except)) return out;
  const auto lines = lines_of(r.what == rule::of::code ? bare_code(file.text) : file.text);
  static const std::regex include{"^\\s*#\\s*include\\s*[<\"]([^>\"]+)[>\"]"};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    bool found = false;
    if (r.what == rule::of::include) {
      std::smatch m;
      found = lines[i].find('#') != std::string::npos && std::regex_search(lines[i], m, include) &&
              std::regex_match(m[1].str(), compiled(r.forbidden));
    } else {
      found = std::regex_search(lines[i], compiled(r.forbidden));
    }
    if (found) out.push_back({file.path, static_cast<int>(i + 1), r.name, r.why});
  }
  return out;
}

std::vector<complaint> judge_first_line(const source_file& file) {
  if (!is_cpp(file.path)) return {};
  const auto wanted = "// " + file.path + " -- ";
  if (file.text.compare(0, wanted.size(), wanted) == 0) return {};
  return {{file.path, 1, "first-line", "a file begins by saying where it lives and what it is: " + wanted + "…"}};
}

std::vector<complaint> judge(const source_file& file) {
  auto out = judge_first_line(file);
  for (const auto& r : rules())
    for (auto& c : judge(r, file)) out.push_back(std::move(c));
  return out;
}

std::vector<complaint> judge_migrations(const std::vector<std::string>& names) {
  std::vector<complaint> out;
  auto sorted = names;
  std::sort(sorted.begin(), sorted.end());
  int expected = 1;
  for (const auto& name : sorted) {
    const auto path = "migrations/" + name;
    if (!std::regex_match(name, compiled("[0-9]{4}_[a-z0-9_]+\\.sql"))) {
      out.push_back({path, 0, "migration-name", "a migration is called 0001_what_it_does.sql: its number is its order"});
      continue;
    }
    const int number = std::stoi(name.substr(0, 4));
    if (number != expected)
      out.push_back({path, 0, "migration-gap",
                     "migration " + std::to_string(expected) +
                         " is expected here: with a gap or a twin two databases could disagree about what was applied"});
    expected = number + 1;
  }
  return out;
}

std::vector<source_file> read_tree() {
  static const std::regex text_file{
      ".*\\.(cpp|hpp|proto|sql|md|txt|cmake|json|sh|toml|yml|yaml|conf|service|lua|py)|([^.]*/)?[a-zA-Z_-]+|.*/\\.?[a-zA-Z_-]+"};
  std::vector<source_file> out;
  auto walk = fs::recursive_directory_iterator{root()};
  for (const auto& entry : walk) {
    const auto path = fs::relative(entry.path(), root()).generic_string();
    const auto name = entry.path().filename().string();
    if (entry.is_directory()) {
      // build* is what CMake makes; hidden folders are the tools' own.
      if ((name.front() == '.' && path != ".ci") || path.rfind("build", 0) == 0) walk.disable_recursion_pending();
      continue;
    }
    if (!entry.is_regular_file() || !std::regex_match(path, text_file)) continue;
    std::ifstream in{entry.path(), std::ios::binary};
    std::ostringstream text;
    text << in.rdbuf();
    out.push_back({path, text.str()});
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return out;
}

std::string root() { return WARREN_SOURCE_DIR; }

std::string render(const std::vector<complaint>& all) {
  std::string out;
  for (const auto& c : all)
    out += c.path + ":" + std::to_string(c.line) + ": " + c.rule + ": " + c.why + "\n";
  return out;
}

}  // namespace warren::lint
