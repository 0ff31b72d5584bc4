// services/warrend/config.hpp -- what warrend is told: file (TOML), environment (WARREN_…), flags, in rising
// order of strength. One table of settings is the documentation, the parser and `config print`.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace warren::config {

struct setting {
  std::string key;       ///< "database.url"; environment WARREN_DATABASE_URL, flag --database-url
  std::string fallback;  ///< the default
  std::string help;
  enum class kind : unsigned char { text, number, list, listen } what = kind::text;  ///< listen: see parse_listen; or empty, where the fallback is
  bool secret = false;   ///< never printed; of URLs and connection strings, their passwords and tokens
  long min = 0, max = 0; ///< of a number
  std::vector<std::string> choices = {};  ///< of a text: nothing else; empty: anything
};

/// Every setting there is.
const std::vector<setting>& settings();

struct value {
  std::string text;
  std::string source;  ///< "default", "warrend.toml:12", "environment WARREN_…", "flag --…"
};

/// The effective settings.
class effective {
public:
  std::string text(const std::string& key) const { return values_.at(key).text; }
  long number(const std::string& key) const;
  std::vector<std::string> list(const std::string& key) const;  ///< comma-separated
  const std::map<std::string, value>& all() const { return values_; }

private:
  friend struct loader;
  std::map<std::string, value> values_;
};

/// Errors name file and line, variable or flag; with any, the configuration must not be used.
struct loaded {
  effective config;
  std::vector<std::string> errors;
  std::vector<std::string> doubts;  ///< variables that look like ours and are none: `config check` fails on them
};

/// `flags`: key → text. `environment`: as of the process. `file` empty: none.
loaded load(const std::string& file, const std::map<std::string, std::string>& environment,
            const std::map<std::string, std::string>& flags);

std::string environment_name(const std::string& key);
std::string flag_name(const std::string& key);

/// "key = value  # where from", secrets as "(set)", passwords inside URLs removed.
std::string print(const effective& config);

}  // namespace warren::config
