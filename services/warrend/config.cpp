// services/warrend/config.cpp -- what warrend is told, from file, environment and flags.
#include "services/warrend/config.hpp"

#include <algorithm>
#include <charconv>
#include <regex>
#include <sstream>

#include <fmt/format.h>
#include <toml++/toml.h>

#include "actors/core/listen.hpp"

namespace warren::config {

const std::vector<setting>& settings() {
  using kind = setting::kind;
  static const std::vector<setting> all{
      {"instance.name", "warren-1", "Unique among the instances that are alive; a restart keeps it."},
      {"instance.lease_ms", "3000", "How long the others wait before they take over.", kind::number, false, 200, 60'000},
      {"database.url", "postgresql:///warren", "libpq connection string; no pooler in between.", kind::text, true},
      {"database.migrations", "migrations", "Folder of the numbered migrations."},
      {"database.partitions", "64", "Fixed when the database is initialised.", kind::number, false, 1, 1024},
      {"database.lanes", "4", "Connections that commit.", kind::number, false, 1, 64},
      {"nats.urls", "nats://127.0.0.1:4222", "Servers of the bus.", kind::list, true},
      {"nats.user", "", "User of the instances' account."},
      {"nats.password", "", "Its password.", kind::text, true},
      {"nats.credentials_file", "", "Instead of user and password: .creds of the instances (warrend nats-keys makes it)."},
      {"nats.account_seed_file", "", "Seed of their account, mode 0600: each agent gets credentials of its own. Empty: agents share agent.nats_user and can impersonate each other."},
      {"nats.system_credentials_file", "", "Instead of system_user and system_password: .creds of the system account."},
      {"nats.system_user", "", "User of the system account, for DISCONNECT events; empty: not used."},
      {"nats.system_password", "", "Its password.", kind::text, true},
      {"agent.nats_urls", "", "What enrolment files tell agents; empty: nats.urls.", kind::list, true},
      {"agent.nats_user", "", "User that enrolment files tell agents."},
      {"agent.nats_password", "", "Its password.", kind::text, true},
      {"agent.heartbeat_interval_ms", "2000", "How often agents report; longer where an instance has more than 10,000 of them.", kind::number, false, 50, 600'000},
      {"admin.listen", "127.0.0.1:7443", "gRPC admin API; plaintext, so on loopback or a unix socket only.", kind::listen},
      {"xds.listen", "127.0.0.1:7444", "Gateways' configuration (delta ADS); plaintext, for trusted networks.", kind::listen},
      {"xds.advertise", "", "What gateways' bootstraps tell; empty: xds.listen."},
      {"hook.listen", "", "Envoy Gateway's extension hook (gRPC): ip:port or unix:PATH; empty: none. Plaintext on these only where local.", kind::listen},
      {"hook.http_listen", "", "/healthz (503 until the hook can answer) and /metrics of the hook's own; empty: only http.listen.", kind::listen},
      {"hook.tls_certificate", "", "PEM file; read again when it changes. All three, or none."},
      {"hook.tls_key", "", "PEM file of its key."},
      {"hook.tls_client_ca", "", "PEM file of who signs Envoy Gateway's client certificate."},
      {"hook.listener", "connector-tunnel", "The internal listener of the Envoys that reaches connectors."},
      {"hook.namespaces", "", "PROJECT=NAMESPACE where a project's HTTPRoutes are in a namespace of another name.", kind::list},
      {"hook.webhook", "", "http URL that is told when Envoy Gateway has to translate again; empty: only NATS, warren.v1.retranslate.", kind::text, true},
      {"hook.websocket_upgrade", "auto", "Offline tunnels answer WebSockets 503, not Envoy's 403: connection managers get that upgrade. auto: unless it would open somebody else's route to WebSockets.", kind::text, false, 0, 0, {"auto", "on", "off"}},
      {"hook.reason_headers", "off", "retry-after and x-warren-reason on 503s.", kind::text, false, 0, 0, {"on", "off"}},
      {"http.listen", "127.0.0.1:7445", "/healthz, /readyz, /metrics.", kind::listen},
      {"log.level", "info", "trace, debug, info, warn, error, off.", kind::text, false, 0, 0, {"trace", "debug", "info", "warn", "error", "off"}},
      {"log.format", "auto", "json, text; auto: text on a terminal.", kind::text, false, 0, 0, {"auto", "json", "text"}},
      {"recorder.mib", "48", "Memory for the last events, which warrenctl diag saves; 0: none.", kind::number, false, 0, 4096},
      {"threads", "2", "Scheduler threads.", kind::number, false, 1, 256},
  };
  return all;
}

std::string environment_name(const std::string& key) {
  std::string out = "WARREN_";
  for (char c : key) out += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

std::string flag_name(const std::string& key) {
  std::string out = "--";
  for (char c : key) out += c == '.' || c == '_' ? '-' : c;
  return out;
}

namespace {

const setting* find_setting(const std::string& key) {
  for (const auto& s : settings())
    if (s.key == key) return &s;
  return nullptr;
}

std::vector<std::string> items_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in{text};
  for (std::string item; std::getline(in, item, ',');)
    if (!item.empty()) out.push_back(item);
  return out;
}

bool parse_number(const std::string& text, long& out) {
  const auto* end = text.data() + text.size();
  const auto r = std::from_chars(text.data(), end, out);
  return r.ec == std::errc{} && r.ptr == end;
}

/// What NATS connections, metrics and the log can all say: letters, digits and "._-".
bool is_instance_name(std::string_view text) {
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  });
}

/// nats:// or tls://, perhaps a user, a host, perhaps a port. The rest is the library's to judge.
bool is_nats_url(std::string_view text) {
  const auto scheme = text.find("://");
  if (scheme == std::string_view::npos || (text.substr(0, scheme) != "nats" && text.substr(0, scheme) != "tls")) return false;
  auto host = text.substr(scheme + 3);
  if (const auto user = host.rfind('@'); user != std::string_view::npos) host.remove_prefix(user + 1);
  if (host.ends_with('/')) host.remove_suffix(1);
  if (host.find_first_of(" \t/?#") != std::string_view::npos) return false;
  const auto bracket = host.rfind(']');  // of an IPv6 address, which has colons of its own
  const auto colon = host.rfind(':');
  if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    long port = 0;
    if (!parse_number(std::string{host.substr(colon + 1)}, port) || port < 1 || port > 65'535) return false;
    host = host.substr(0, colon);
  }
  return !host.empty();
}

/// As services/hook/webhook reads it; what proves who calls is in its path or query.
bool is_webhook(std::string_view text) {
  constexpr std::string_view scheme = "http://";
  if (!text.starts_with(scheme) || text.find(' ') != std::string_view::npos) return false;
  const auto authority = text.substr(scheme.size(), text.find('/', scheme.size()) - scheme.size());
  const auto colon = authority.rfind(':');
  long port = 80;
  const bool numeric = colon == std::string_view::npos || parse_number(std::string{authority.substr(colon + 1)}, port);
  return !authority.substr(0, colon).empty() && numeric && port > 0 && port <= 65'535 && authority.find_first_of("@?#") == std::string_view::npos;
}

std::string check(const setting& s, const std::string& text) {
  if (text.size() > 4096) return "is longer than 4096 bytes";
  if (s.key == "instance.name" && !is_instance_name(text)) return "is not 1 to 128 letters, digits, '.', '_' or '-'";
  if (s.key == "hook.webhook" && !text.empty() && !is_webhook(text)) return "is not http://HOST[:PORT][/PATH], without a user";
  if (s.key == "nats.urls" || s.key == "agent.nats_urls") {
    // Which one it is, and not what it is: there may be a password in it.
    const auto urls = items_of(text);
    if (urls.empty() && s.key == "nats.urls") return "names no server";
    for (std::size_t n = 0; n < urls.size(); ++n)
      if (!is_nats_url(urls[n])) return fmt::format("is not nats://host:port or tls://host:port{}", urls.size() > 1 ? fmt::format(" at number {}", n + 1) : "");
  }
  if (!s.choices.empty() && std::find(s.choices.begin(), s.choices.end(), text) == s.choices.end())
    return fmt::format("is none of {}", fmt::join(s.choices, ", "));
  if (s.what == setting::kind::listen && !(text.empty() && s.fallback.empty())) {
    const auto at = parse_listen(text);
    const bool http = s.key == "http.listen" || s.key == "hook.http_listen";
    if (!at || (http && !at->numeric)) return fmt::format("is not ip:port{}", http ? "" : " or unix:/path");
    if (s.key == "admin.listen" && !is_local(*at))
      return "must be on loopback or a unix socket: beyond it the admin API needs TLS, which it does not have yet";
  }
  if (s.what != setting::kind::number) return "";
  long n = 0;
  if (!parse_number(text, n)) return "is not a number";
  if (n < s.min || n > s.max) return fmt::format("is not within {} … {}", s.min, s.max);
  return "";
}

}  // namespace

/// Variables beside the settings that somebody of ours reads, and what a container platform adds for a service called
/// "warren": none of them is a setting, and none is a mistake.
bool is_no_setting(std::string_view name) {
  for (const std::string_view known : {"WARREN_SERVER", "WARREN_PROJECT", "WARREN_ENVOY", "WARREN_NODE_MODULES", "WARREN_BIN_DIR",
                                       "WARREN_PRESET", "WARREN_SEED", "WARREN_REWRITE", "WARREN_NEEDS_SERVERS", "WARREN_PORT"})
    if (name == known) return true;
  for (const std::string_view begin : {"WARREN_TEST_", "WARREN_FAILPOINT", "WARREN_RUN_", "WARREN_SIM_", "WARREN_MUTA",
                                       "WARREN_SERVICE_", "WARREN_PORT_"})
    if (name.starts_with(begin)) return true;
  return false;
}

/// How many letters make one of the other; for names as short as those of variables.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    auto corner = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j)
      corner = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, corner + (a[i - 1] == b[j - 1] ? 0 : 1)}));
  }
  return row.back();
}

struct loader {
  loaded out;

  void doubt(const std::string& variable) {
    if (!variable.starts_with("WARREN_") || is_no_setting(variable)) return;
    std::string nearest;
    std::size_t best = 3;  // beyond two letters it is no slip
    for (const auto& s : settings()) {
      const auto name = environment_name(s.key);
      if (name == variable) return;
      if (variable.size() <= 64)
        if (const auto d = distance(variable, name); d < best) best = d, nearest = name;
    }
    out.doubts.push_back(fmt::format("environment {}: no setting has this name{}", variable.substr(0, 64),
                                     nearest.empty() ? "" : "; did you mean " + nearest + "?"));
  }

  /// What is wrong between settings that are right by themselves.
  void check_all() {
    if (!out.errors.empty()) return;
    const auto& c = out.config;
    const auto wrong = [this](const std::string& key, const std::string& why) {
      out.errors.push_back(fmt::format("{}: {} {}", out.config.values_.at(key).source, key, why));
    };
    int given = 0;
    for (const auto* key : {"hook.tls_certificate", "hook.tls_key", "hook.tls_client_ca"}) given += c.text(key).empty() ? 0 : 1;
    const auto hook = parse_listen(c.text("hook.listen"));
    if (hook && given == 0 && !is_local(*hook))
      wrong("hook.listen", "must be on loopback or a unix socket: beyond it the hook needs hook.tls_certificate, hook.tls_key and hook.tls_client_ca");
    if (given != 0 && given != 3)
      wrong("hook.tls_certificate", "goes with hook.tls_key and hook.tls_client_ca: all three, or none");
  }

  void put(const std::string& key, std::string text, std::string source) {
    const auto* s = find_setting(key);
    if (s == nullptr) {
      out.errors.push_back(fmt::format("{}: unknown key {}", source, key));
      return;
    }
    if (auto wrong = check(*s, text); !wrong.empty()) {
      out.errors.push_back(fmt::format("{}: {} {}", source, key, wrong));
      return;
    }
    out.config.values_[key] = {std::move(text), std::move(source)};
  }

  void walk(const toml::table& table, const std::string& prefix, const std::string& file) {
    for (const auto& [k, node] : table) {
      const auto key = prefix + std::string{k.str()};
      const auto source = fmt::format("{}:{}", file, node.source().begin.line);
      if (const auto* t = node.as_table()) walk(*t, key + ".", file);
      else if (const auto* text = node.as_string()) put(key, text->get(), source);
      else if (const auto* n = node.as_integer()) put(key, std::to_string(n->get()), source);
      else if (const auto* list = node.as_array()) {
        std::string joined;
        bool texts = true;
        for (const auto& each : *list) {
          const auto* item = each.as_string();
          if (item == nullptr) {
            texts = false;
            break;
          }
          if (!joined.empty()) joined += ',';
          joined += item->get();
        }
        const auto* s = find_setting(key);
        if (s != nullptr && s->what != setting::kind::list)
          out.errors.push_back(fmt::format("{}: {} is one value, not a list", source, key));
        else if (texts) put(key, joined, source);
        else out.errors.push_back(fmt::format("{}: {} is not a list of texts", source, key));
      } else {
        out.errors.push_back(fmt::format("{}: {} is neither a text, a number nor a list", source, key));
      }
    }
  }
};

long effective::number(const std::string& key) const {
  long n = 0;
  parse_number(text(key), n);
  return n;
}

std::vector<std::string> effective::list(const std::string& key) const { return items_of(text(key)); }

loaded load(const std::string& file, const std::map<std::string, std::string>& environment,
            const std::map<std::string, std::string>& flags) {
  loader l;
  for (const auto& s : settings()) l.put(s.key, s.fallback, "default");
  if (!file.empty()) {
    try {
      l.walk(toml::parse_file(file), "", file);
    } catch (const toml::parse_error& e) {
      l.out.errors.push_back(fmt::format("{}:{}: {}", file, e.source().begin.line, e.description()));
    }
  }
  for (const auto& s : settings()) {
    auto it = environment.find(environment_name(s.key));
    if (it != environment.end()) l.put(s.key, it->second, "environment " + it->first);
  }
  for (const auto& [name, text] : environment) l.doubt(name);
  for (const auto& [key, text] : flags) l.put(key, text, "flag " + flag_name(key));
  l.check_all();
  return std::move(l.out);
}

namespace {

std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned byte = 0;
    const bool escape = text[i] == '%' && i + 2 < text.size() &&
                        std::from_chars(text.data() + i + 1, text.data() + i + 3, byte, 16).ptr == text.data() + i + 3;
    out += escape ? static_cast<char>(byte) : text[i];
    if (escape) i += 2;
  }
  return out;
}

/// What follows the first '?', parameter by parameter. `all`: whatever their names are.
std::string parameters_without_secrets(std::string_view url, bool all) {
  static const std::regex password{"[a-z_]*password", std::regex::icase};
  const auto part_end = [&](std::size_t from) { return std::min(url.find_first_of("?&", from), url.size()); };
  auto at = std::min(url.find('?'), url.size());
  std::string out{url.substr(0, at)};
  for (; at < url.size(); at = part_end(at + 1)) {
    const auto part = url.substr(at, part_end(at + 1) - at);
    const auto equals = part.find('=');
    const bool named = equals != std::string_view::npos;
    if (named && (all || std::regex_match(unescaped(part.substr(1, equals - 1)), password))) out.append(part.substr(0, equals)).append("=(set)");
    else if (all) out.append(part.substr(0, 1)).append("(set)");
    else out.append(part);
  }
  return out;
}

/// One URL without what its user name proves itself with. Everything between the first ':' and the last '@'
/// counts: a password that is not escaped as it should be must not show either.
std::string url_without_secrets(const std::string& url) {
  const auto begin = url.find("://");
  if (begin == std::string::npos) return url;
  const bool database = url.starts_with("postgres");
  const auto shown = database ? parameters_without_secrets(url, false) : url;
  const auto at = shown.rfind('@');
  if (at == std::string::npos || at < begin + 3) return database ? shown : parameters_without_secrets(shown, true);
  const auto user = shown.substr(begin + 3, at - begin - 3);
  const auto colon = user.find(':');
  // Without a password the user of a NATS server is a token.
  const bool token = colon == std::string::npos && !database;
  const auto kept = token ? "(set)" : colon == std::string::npos ? user : user.substr(0, colon) + ":(set)";
  if (database) return shown.substr(0, begin + 3) + kept + shown.substr(at);
  // An '@' behind a '?' may be of a password or of a parameter: nothing behind either is shown.
  const auto rest = shown.find('?') < at ? "@(set)" : parameters_without_secrets(shown.substr(at), true);
  return shown.substr(0, begin + 3) + kept + rest;
}

std::string without_secrets(const std::string& key, const value& v) {
  if (v.text.empty()) return "";
  if (v.text.find("://") == std::string::npos && key == "database.url") {
    // libpq's keywords: spaces around '=', values in quotes with backslashes.
    static const std::regex keyword{R"(([a-z_]*password)\s*=\s*('(\\.|[^'\\])*'?|(\\.|[^\s\\])*))", std::regex::icase};
    return std::regex_replace(v.text, keyword, "$1=(set)");
  }
  if (key == "database.url" || key == "hook.webhook") return url_without_secrets(v.text);
  if (find_setting(key)->what != setting::kind::list) return "(set)";
  std::string out;
  std::istringstream in{v.text};
  for (std::string item; std::getline(in, item, ',');) out += (out.empty() ? "" : ",") + url_without_secrets(item);
  return out;
}

}  // namespace

std::string print(const effective& config) {
  std::string out;
  for (const auto& s : settings()) {
    const auto& v = config.all().at(s.key);
    out += fmt::format("{:<32} = {:<40} # {}\n", s.key, s.secret ? without_secrets(s.key, v) : v.text, v.source);
  }
  return out;
}

}  // namespace warren::config
