// test/integration/admin_ctl_test.cpp -- warrenctl as a person and a shell meet it: what it says of mistakes, its exit
// codes, its completion.
#include "test/integration/admin_fixture.hpp"
#include "test/support/process.hpp"

using namespace warren;
using namespace warren::played;
namespace st = warren::stack;

namespace {

/// Code, message and hint, each on its line.
void check_told(const fixture::outcome& r, int code, const std::string& word, const std::string& message) {
  INFO(r.err);
  CHECK(r.code == code);
  CHECK(r.out.empty());
  CHECK(r.err.find("warrenctl: " + word + ": ") == 0);
  CHECK(r.err.find(message) != std::string::npos);
  CHECK(r.err.find("\nhint: ") != std::string::npos);
}

/// What a script in that shell prints; empty: there is no such shell here.
std::optional<std::string> in_shell(const std::string& shell, const std::vector<std::string>& arguments) {
  for (const auto* folder : {"/usr/bin", "/bin"}) {
    const auto path = std::filesystem::path{folder} / shell;
    if (!std::filesystem::exists(path)) continue;
    const auto r = st::run({.name = shell, .path = path, .arguments = arguments});
    INFO(r.err);
    CHECK(r.code == 0);
    return r.out;
  }
  WARN("SKIPPED: there is no " << shell);
  return std::nullopt;
}

std::set<std::string> words_of(const std::string& text) {
  std::istringstream in{text};
  return {std::istream_iterator<std::string>{in}, {}};
}

}  // namespace

TEST_CASE_METHOD(fixture, "a word that is no verb is named, with those that there are") {
  check_told(ctl({"tunnel", "remove", "t"}), 2, "USAGE", "tunnel knows no remove");
  CHECK(ctl({"tunnel", "remove", "t"}).err.find("list, get, create, update, delete, watch, why, wait") != std::string::npos);
  check_told(ctl({"tunel", "list"}), 2, "USAGE", "warrenctl knows no tunel");
  CHECK(ctl({"tunel"}).err.find("connector-class") != std::string::npos);
  check_told(ctl({"audit", "show"}), 2, "USAGE", "audit knows no show");
  // The words of options are not taken for verbs.
  check_told(ctl({"tunnel", "--filter", "x"}), 2, "USAGE", "A subcommand is required");
  check_told(ctl({}), 2, "USAGE", "A subcommand is required");
}

TEST_CASE_METHOD(fixture, "every mistake has a code, a message, a hint, and its exit code") {
  check_told(ctl({"tunnel", "create"}), 2, "USAGE", "NAME");
  check_told(ctl({"tunnel", "list", "-o", "xml"}), 2, "USAGE", "xml");
  check_told(ctl({"tunnel", "list", "--nonsense"}), 2, "USAGE", "--nonsense");
  check_told(ctl({"tunnel", "list", "--timeout", "soon"}), 2, "USAGE", "--timeout is a time");
  check_told(ctl({"tunnel", "create", "t", "--connector", "c"}), 2, "USAGE", "--connector and --target go together");
  check_told(ctl({"tunnel", "create", "t", "--rule", "x"}), 2, "USAGE", "--rule is PATH=CONNECTOR,TARGET");
  check_told(ctl({"tunnel", "update", "t", "--enabled", "--disabled"}), 2, "USAGE", "contradict");
  check_told(ctl({"tunnel", "create", "t", "-f", "/nowhere/at/all"}), 2, "USAGE", "cannot read /nowhere/at/all");
  check_told(ctl({"connector", "enrol", "c"}), 2, "USAGE", "exactly one of --public-key and --key-file");
  check_told(ctl({"partition", "list", "--watch"}), 2, "USAGE", "--watch is for");
  check_told(ctl({"tunnel", "delete", "t", "--watch"}), 2, "USAGE", "--watch is for");
  check_told(ctl({"completion", "tcsh"}), 2, "USAGE", "tcsh");
  check_told(ctl({"tunnel", "get", "Not a label"}), 1, "INVALID_ARGUMENT", "name: ");
  check_told(ctl({"tunnel", "get", "nothing"}), 1, "NOT_FOUND", "projects/p/tunnels/nothing");
  check_told(ctl({"instance", "get", "nobody"}), 1, "UNAVAILABLE", "not known yet");
  REQUIRE(create("t").code == 0);
  check_told(ctl({"tunnel", "wait", "nothing", "--timeout", "100ms"}), 3, "TIMED_OUT", "nothing is not ready");
  settle();
  check_told(ctl({"tunnel", "wait", "nothing"}), 1, "NOT_FOUND", "there is no projects/p/tunnels/nothing");
  check_told(ctl({"tunnel", "wait", "t", "--timeout", "100ms"}), 3, "TIMED_OUT", "t is not ready");
  const auto port = st::free_port();
  std::ostringstream out, err;
  ctl::surroundings around{out, err, false};
  CHECK(ctl::run({"--server", "127.0.0.1:" + std::to_string(port), "tunnel", "list", "--timeout", "2s"}, around) == 1);
  CHECK(err.str().find("warrenctl: UNAVAILABLE: ") == 0);
  CHECK(err.str().find("is warrend running at 127.0.0.1:" + std::to_string(port)) != std::string::npos);
}

TEST_CASE_METHOD(fixture, "--all-projects is for what lists") {
  REQUIRE(create("t").code == 0);
  for (const auto& words : std::vector<std::vector<std::string>>{{"tunnel", "get", "t"}, {"tunnel", "delete", "t"}, {"tunnel", "watch", "t"},
                                                                 {"tunnel", "why", "t"}, {"connector", "enrol", "c", "--public-key", "x"}}) {
    auto all = words;
    all.insert(all.begin(), "-A");
    check_told(ctl(all), 2, "USAGE", words[0] + " " + words[1] + " is about one project");
  }
  CHECK(ctl({"-A", "tunnel", "list", "-o", "name"}).out == "projects/p/tunnels/t\n");
  CHECK(ctl({"tunnel", "list", "-A", "-o", "name"}).code == 0);
}

TEST_CASE_METHOD(fixture, "help goes to the output, and is no mistake") {
  for (const auto& words : std::vector<std::vector<std::string>>{{"--help"}, {"tunnel", "--help"}, {"tunnel", "create", "--help"}}) {
    const auto r = ctl(words);
    CHECK(r.code == 0);
    CHECK(r.err.empty());
    CHECK(r.out.find("Usage: ") != std::string::npos);
  }
}

TEST_CASE_METHOD(fixture, "bash completes nouns, verbs, options and their values, wherever options stand") {
  const auto script = ctl({"completion", "bash"}).out;
  const auto complete = [&](const std::vector<std::string>& words) {
    std::string line = "COMP_WORDS=(";
    for (const auto& w : words) line += "'" + w + "' ";
    line += "); COMP_CWORD=" + std::to_string(words.size() - 1) + "; _warrenctl; printf '%s\\n' \"${COMPREPLY[@]}\"";
    return words_of(in_shell("bash", {"--norc", "-c", script + line}).value_or(""));
  };
  using set = std::set<std::string>;
  CHECK(complete({"warrenctl", ""}) == set{"tunnel", "connector", "gateway", "connector-class", "gateway-class", "instance",
                                           "partition", "audit", "trace", "diag", "completion", "version"});
  CHECK(complete({"warrenctl", "diag", "--inst"}) == set{"--instance"});
  CHECK(complete({"warrenctl", "tu"}) == set{"tunnel"});
  CHECK(complete({"warrenctl", "tunnel", "w"}) == set{"watch", "why", "wait"});
  CHECK(complete({"warrenctl", "--server", "127.0.0.1", ":", "7443", "-A", "instance", ""}) == set{"list", "get", "drain"});
  CHECK(complete({"warrenctl", "tunnel", "create", "t", "--host"}) == set{"--hostname"});
  CHECK(complete({"warrenctl", "tunnel", "create", "t", "--hostname", ""}).empty());
  CHECK(complete({"warrenctl", "tunnel", "list", "-o", ""}) == set{"table", "json", "yaml", "name"});
  CHECK(complete({"warrenctl", "tunnel", "wait", "t", "--for", "re"}) == set{"ready"});
  CHECK(complete({"warrenctl", "completion", ""}) == set{"bash", "zsh", "fish"});
  CHECK(complete({"warrenctl", "--ou"}) == set{"--output"});
}

TEST_CASE_METHOD(fixture, "zsh completes through the same words") {
  const auto script = ctl({"completion", "zsh"}).out;
  const auto said = in_shell("zsh", {"-fc", script + "COMP_WORDS=(warrenctl tunnel w); COMP_CWORD=2\n"
                                                     "emulate ksh -c _warrenctl; print -l -- \"${COMPREPLY[@]}\""});
  if (!said) return;
  // zsh itself leaves out what does not fit.
  const auto words = words_of(*said);
  for (const auto* verb : {"watch", "why", "wait"}) CHECK(words.count(verb) == 1);
  CHECK(words.count("tunnel") == 0);
}

TEST_CASE_METHOD(fixture, "fish completes nouns, verbs, options and their values") {
  const auto script = ctl({"completion", "fish"}).out;
  const auto complete = [&](const std::string& line) -> std::optional<std::set<std::string>> {
    const auto said = in_shell("fish", {"--no-config", "-c", script + "complete -C '" + line + "'"});
    if (!said) return std::nullopt;
    std::set<std::string> words;
    std::istringstream in{*said};
    for (std::string each; std::getline(in, each);) words.insert(each.substr(0, each.find('\t')));
    return words;
  };
  using set = std::set<std::string>;
  const auto verbs = complete("warrenctl tunnel w");
  if (!verbs) return;
  CHECK(*verbs == set{"watch", "why", "wait"});
  CHECK(*complete("warrenctl instance ") == set{"list", "get", "drain"});
  CHECK(*complete("warrenctl tunnel create t --hostn") == set{"--hostname"});
  CHECK(*complete("warrenctl tunnel list --output ") == set{"table", "json", "yaml", "name"});
  CHECK(*complete("warrenctl completion ") == set{"bash", "zsh", "fish"});
  CHECK(complete("warrenctl ")->count("gateway-class") == 1);
}
