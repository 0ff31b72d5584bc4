// test/lint/rules.hpp -- the rules that the compiler cannot check, each with its reason. Judges texts; what is
// on disk comes in through read_tree alone.
#pragma once

#include <string>
#include <vector>

namespace warren::lint {

struct source_file {
  std::string path;  ///< from the project's folder, with slashes
  std::string text;
};

struct complaint {
  std::string path;
  int line = 0;      ///< 0: the file as a whole
  std::string rule;  ///< its name
  std::string why;

  bool operator==(const complaint&) const = default;
};

/// A pattern that must not occur in some files. All patterns are ECMAScript regular expressions.
struct rule {
  std::string name;
  enum class of : unsigned char {
    include,  ///< the text between the quotes or brackets of an #include
    code,     ///< a line without its comments and without the content of its literals
    line,     ///< a line as it is
  } what = of::include;
  std::string forbidden;
  std::string where;   ///< paths that the rule speaks of; matched from their beginning
  std::string except;  ///< paths among them that may; empty: none
  std::string why;
};

/// The rules of this project.
const std::vector<rule>& rules();

/// One C++ text without comments and without the content of literals; lines stay where they are.
std::string bare_code(const std::string& text);

/// What `r` finds in `file`.
std::vector<complaint> judge(const rule& r, const source_file& file);

/// All that is wrong with one file: every rule, and its first line.
std::vector<complaint> judge(const source_file& file);

/// Line 1 of a C++ file is `// <path> -- what it is`.
std::vector<complaint> judge_first_line(const source_file& file);

/// Migrations are 0001_name.sql, 0002_name.sql, … without gaps and without twins.
std::vector<complaint> judge_migrations(const std::vector<std::string>& names);

/// The project's own texts: no build folders, nothing hidden but .ci, nothing that is not text.
std::vector<source_file> read_tree();

/// The project's folder.
std::string root();

/// "path:line: rule: why", one a line.
std::string render(const std::vector<complaint>& all);

}  // namespace warren::lint
