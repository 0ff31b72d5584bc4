// test/simulation/scenario.cpp -- the grammar of scenarios.
#include "test/simulation/scenario.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <sstream>

#include <fmt/format.h>

namespace warren::simulation {

namespace {

enum class naming : std::uint8_t { none, number, text };

struct form {
  std::string_view verb, noun;
  naming named;
  std::string_view options;  ///< allowed, each followed by one value
  std::string_view words;
};

/// Every statement that there is.
constexpr std::array forms{
    // ---- administrators ----
    form{"create", "tunnel", naming::text, "connector target host", "one rule per connector: connector a,b"},
    form{"update", "tunnel", naming::text, "connector target", "other rules"},
    form{"disable", "tunnel", naming::text, "", ""},
    form{"enable", "tunnel", naming::text, "", ""},
    form{"delete", "tunnel", naming::text, "", ""},
    form{"enrol", "connector", naming::text, "lease", "and its agent exists, not started yet"},
    form{"delete", "connector", naming::text, "", ""},
    form{"touch", "tunnel", naming::text, "", "a rival writes the row"},
    form{"touch", "connector", naming::text, "", ""},
    // ---- agents ----
    form{"start", "agent", naming::text, "", "enrols it, when nobody has"},
    form{"kill", "agent", naming::text, "for disk", "with `for`: started again after that time; disk lost: its state is gone"},
    form{"stop", "agent", naming::text, "for", "says bye"},
    form{"cut", "agent", naming::text, "for", "from the bus, and from whoever dials it"},
    form{"move", "agent", naming::text, "", "another address"},
    // ---- instances ----
    form{"start", "instance", naming::number, "", "all are started before the first statement"},
    form{"kill", "instance", naming::number, "for", "kill -9"},
    form{"vanish", "instance", naming::number, "for", "no packet any more; its connections are noticed to be dead later"},
    form{"stop", "instance", naming::number, "for", "SIGTERM: hands over"},
    form{"pause", "instance", naming::number, "inside for", "SIGSTOP, and SIGCONT after that time; inside transaction: when it next has one open"},
    form{"cut", "instance", naming::number, "from for", "from bus, or from store"},
    // ---- gateways ----
    form{"restart", "gateway", naming::number, "", "it has forgotten everything"},
    form{"disconnect", "gateway", naming::number, "", "its stream ends; it connects elsewhere"},
    form{"freeze", "gateway", naming::number, "for", "acknowledges nothing"},
    form{"refuse", "tunnel", naming::text, "its gateway for", "gateways (or gateway N) do not take its route (or: its scope)"},
    form{"refuse", "connector", naming::text, "gateway for", "they do not take its cluster"},
    // ---- whoever follows ----
    form{"disconnect", "watch", naming::number, "", "its stream ends; it goes on elsewhere with its token"},
    // ---- what all depend on ----
    form{"lose", "bus", naming::none, "for", "nobody is connected"},
    form{"lose", "store", naming::none, "for", "the database is away"},
    form{"fail-over", "store", naming::none, "losing", "to a replica that lacks the last so much"},
    form{"leave", "commits", naming::none, "undecided contended for", "so many percent of them"},
    form{"disturb", "bus", naming::none, "lost repeated late by for", "so many percent of the messages; late by at most"},
    form{"disturb", "store", naming::none, "late by for", "so many percent of what is said to it and by it; late by at most"},
    form{"end", "faults", naming::none, "", "everything is mended; what was killed is started"},
    // ---- what must hold ----
    form{"expect", "ready", naming::text, "within", "a visitor gets through, and every instance says so"},
    form{"expect", "unready", naming::text, "within", "no instance says that a visitor gets through"},
    form{"expect", "rejected", naming::text, "within", "every instance says that a gateway refuses the tunnel"},
    form{"expect", "offline", naming::text, "within", "the connector's row says so"},
    form{"expect", "online", naming::text, "within", ""},
    form{"expect", "gone", naming::text, "within", "the tunnel's row, its claims and its routes"},
    form{"expect", "owned", naming::none, "within", "every partition has an owner that is alive, spread evenly"},
    form{"expect", "converged", naming::none, "within", "everything agrees with everything"},
};

const form* find_form(std::string_view verb, std::string_view noun) {
  const auto it = std::find_if(forms.begin(), forms.end(), [&](const form& f) { return f.verb == verb && f.noun == noun; });
  return it == forms.end() ? nullptr : &*it;
}

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream in{line.substr(0, line.find('#'))};
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(std::move(word));
  return out;
}

template <class Number> std::optional<Number> number(std::string_view text) {
  Number n{};
  const auto [end, err] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (err != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return n;
}

bool allows(const form& f, const std::string& option) {
  const auto all = words_of(std::string{f.options});
  return std::find(all.begin(), all.end(), option) != all.end();
}

bool is_duration(std::string_view option) {
  return option == "for" || option == "within" || option == "losing" || option == "by" || option == "lease";
}
bool is_percentage(std::string_view option) {
  return option == "lost" || option == "repeated" || option == "late" || option == "undecided" || option == "contended";
}

/// After "at TIME".
std::string parse_statement(const std::vector<std::string>& words, statement& out) {
  if (words.size() < 2) return "a verb and a noun are missing";
  out.verb = words[0];
  out.noun = words[1];
  const auto* f = find_form(out.verb, out.noun);
  if (f == nullptr) return fmt::format("there is no \"{} {}\"; --grammar prints what there is", out.verb, out.noun);
  std::size_t next = 2;
  if (f->named != naming::none) {
    if (words.size() <= next) return "a name is missing";
    out.name = words[next++];
    if (f->named == naming::number && !number<int>(out.name)) return fmt::format("\"{}\" is no number", out.name);
  }
  for (; next < words.size(); next += 2) {
    const auto& option = words[next];
    if (!allows(*f, option)) return fmt::format("\"{} {}\" has no \"{}\"", out.verb, out.noun, option);
    if (next + 1 >= words.size()) return fmt::format("the value of \"{}\" is missing", option);
    auto value = words[next + 1];
    if (is_duration(option) && !parse_duration(value)) return fmt::format("\"{}\" is no duration such as 1.5s", value);
    if (is_percentage(option)) {
      if (!value.empty() && value.back() == '%') value.pop_back();
      const auto n = number<int>(value);
      if (!n || *n < 0 || *n > 100) return fmt::format("\"{}\" is no percentage", words[next + 1]);
    }
    out.options[option] = value;
  }
  return {};
}

}  // namespace

const std::string& statement::option(const std::string& key, const std::string& otherwise) const {
  auto it = options.find(key);
  return it == options.end() ? otherwise : it->second;
}
std::int64_t statement::option_ms(const std::string& key, std::int64_t otherwise) const {
  auto it = options.find(key);
  return it == options.end() ? otherwise : parse_duration(it->second).value_or(otherwise);
}
int statement::option_number(const std::string& key, int otherwise) const {
  auto it = options.find(key);
  return it == options.end() ? otherwise : number<int>(it->second).value_or(otherwise);
}

std::optional<std::int64_t> parse_duration(std::string_view text) {
  std::size_t digits = 0;
  while (digits < text.size() && ((text[digits] >= '0' && text[digits] <= '9') || text[digits] == '.')) ++digits;
  const auto unit = text.substr(digits);
  const double factor = unit == "ms" ? 1 : unit == "s" ? 1'000 : unit == "m" ? 60'000 : unit == "h" ? 3'600'000 : 0;
  if (digits == 0 || digits > 12 || factor == 0) return std::nullopt;
  double n = 0;
  const auto [end, err] = std::from_chars(text.data(), text.data() + digits, n);
  if (err != std::errc{} || end != text.data() + digits) return std::nullopt;
  return static_cast<std::int64_t>(n * factor + 0.5);
}

std::string print_duration(std::int64_t ms) {
  if (ms != 0 && ms % 3'600'000 == 0) return fmt::format("{}h", ms / 3'600'000);
  if (ms != 0 && ms % 60'000 == 0) return fmt::format("{}m", ms / 60'000);
  if (ms % 1'000 == 0) return fmt::format("{}s", ms / 1'000);
  return fmt::format("{}ms", ms);
}

std::variant<scenario, scenario_error> parse_scenario(std::string_view text) {
  scenario out;
  std::istringstream in{std::string{text}};
  int line_number = 0;
  for (std::string line; std::getline(in, line);) {
    ++line_number;
    const auto wrong = [&](std::string why) { return scenario_error{line_number, std::move(why)}; };
    if (out.title.empty() && line.rfind("# ", 0) == 0) out.title = line.substr(2);
    const auto words = words_of(line);
    if (words.empty()) continue;
    if (words[0] == "at") {
      if (words.size() < 2) return wrong("a time is missing");
      statement s;
      const auto at = parse_duration(words[1]);
      if (!at) return wrong(fmt::format("\"{}\" is no time such as 1.5s", words[1]));
      s.at_ms = *at;
      if (auto error = parse_statement({words.begin() + 2, words.end()}, s); !error.empty()) return wrong(error);
      out.what.push_back(std::move(s));
      continue;
    }
    if (words.size() != 2) return wrong("a line begins with \"at\", or is a setting and its value");
    if (words[0] == "bug") {
      const auto b = bug_from(words[1]);
      if (!b) return wrong(fmt::format("there is no bug \"{}\"", words[1]));
      out.planted.insert(*b);
      continue;
    }
    if (words[0] == "lease" || words[0] == "heartbeat") {
      const bool lease = words[0] == "lease";
      const auto ms = parse_duration(words[1]);
      if (!ms) return wrong(fmt::format("\"{}\" is no time such as 1.5s", words[1]));
      // What services/warrend/config allows.
      const std::int64_t least = lease ? 200 : 50, most = lease ? 60'000 : 600'000;
      if (*ms < least || *ms > most)
        return wrong(fmt::format("{} is from {} to {}", words[0], print_duration(least), print_duration(most)));
      (lease ? out.lease_ms : out.heartbeat_ms) = *ms;
      continue;
    }
    const auto n = number<std::uint64_t>(words[1]);
    if (!n) return wrong(fmt::format("\"{}\" is no number", words[1]));
    if (words[0] == "seed") out.seed = *n;
    else if (*n > 100) return wrong("more than 100 of anything is not simulated");
    else if (words[0] == "instances") out.instances = static_cast<int>(*n);
    else if (words[0] == "partitions") out.partitions = static_cast<int>(*n);
    else if (words[0] == "gateways") out.gateways = static_cast<int>(*n);
    else if (words[0] == "heartbeats") out.heartbeats = static_cast<int>(*n);
    else if (words[0] == "watches") out.watches = static_cast<int>(*n);
    else return wrong(fmt::format("there is no setting \"{}\"", words[0]));
  }
  std::stable_sort(out.what.begin(), out.what.end(),
                   [](const statement& a, const statement& b) { return a.at_ms < b.at_ms; });
  return out;
}

std::string print(const statement& s) {
  auto out = fmt::format("at {} {} {}", print_duration(s.at_ms), s.verb, s.noun);
  if (!s.name.empty()) out += " " + s.name;
  for (const auto& [option, value] : s.options)
    out += fmt::format(" {} {}{}", option, value, is_percentage(option) ? "%" : "");
  return out;
}

std::string print(const scenario& s) {
  std::string out;
  if (!s.title.empty()) out += "# " + s.title + "\n";
  out += fmt::format("instances {}\npartitions {}\ngateways {}\nwatches {}\nlease {}\nheartbeat {}\nseed {}\n", s.instances, s.partitions,
                     s.gateways, s.watches, print_duration(s.lease_ms), print_duration(s.heartbeat_ms), s.seed);
  if (s.heartbeats > 0) out += fmt::format("heartbeats {}\n", s.heartbeats);
  for (const auto& b : bug_names)
    if (s.planted.count(b.what) > 0) out += fmt::format("bug {}\n", b.name);
  for (const auto& one : s.what) out += print(one) + "\n";
  return out;
}

std::string grammar() {
  std::string out = "at TIME …\n";
  for (const auto& f : forms) {
    std::string line = fmt::format("  {} {}", f.verb, f.noun);
    if (f.named == naming::number) line += " N";
    if (f.named == naming::text) line += " NAME";
    for (const auto& option : words_of(std::string{f.options}))
      line += fmt::format(" [{} {}]", option, is_duration(option) ? "TIME" : is_percentage(option) ? "N%" : "…");
    out += fmt::format("{:<64} {}\n", line, f.words);
  }
  return out;
}

}  // namespace warren::simulation
