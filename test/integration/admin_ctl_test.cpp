// test/integration/admin_ctl_test.cpp -- warrenctl as a person and a shell meet it: what it says of mistakes, its exit
// codes, its completion.
#include <thread>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "services/admin/status.hpp"
#include "test/integration/admin_fixture.hpp"
#include "test/support/process.hpp"

using namespace warren;
using namespace warren::played;
namespace st = warren::stack;
using nlohmann::json;

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

/// Takes connections and says nothing, as a process that is stopped.
class silent_server {
public:
  silent_server() : fd_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    REQUIRE(fd_ >= 0);
    REQUIRE(::bind(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
    REQUIRE(::listen(fd_, 16) == 0);
    REQUIRE(::getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size) == 0);
    address = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
  }
  ~silent_server() { ::close(fd_); }
  silent_server(const silent_server&) = delete;
  silent_server& operator=(const silent_server&) = delete;

  std::string address;

private:
  int fd_;
};

fixture::outcome ctl_of(const std::string& servers, std::vector<std::string> arguments) {
  std::ostringstream out, err;
  ctl::surroundings around{out, err, false};
  arguments.insert(arguments.begin(), {"--server", servers, "-p", "p"});
  const int code = ctl::run(arguments, around);
  return {code, out.str(), err.str()};
}
const std::vector<std::string> create_t{"tunnel", "create", "t", "--hostname", "a.example.com", "--connector", "c", "--target", "http://localhost"};
std::vector<std::string> with(std::vector<std::string> words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

/// How many calls a server has refused as UNAVAILABLE.
struct refusals final : counters {
  std::atomic<int> unavailable{0};
  void add(std::string_view name, std::string_view label, double) override {
    if (name == "warren_admin_requests_total" && label == "UNAVAILABLE") ++unavailable;
  }
  void set(std::string_view, double, std::string_view) override {}
  void observe(std::string_view, double, std::string_view) override {}
};

}  // namespace

TEST_CASE_METHOD(fixture, "an instance that is silent does not use up the time of the others") {
  const silent_server silent;
  const auto servers = silent.address + "," + address;
  const auto made = ctl_of(servers, with(create_t, {"--request-id", "mine"}));
  INFO(made.err);
  CHECK(made.code == 0);
  CHECK(owner.seen.size() == 1);
  CHECK(ctl_of(servers, {"tunnel", "list", "-o", "name"}).out == "projects/p/tunnels/t\n");
  settle();
  const auto waited = ctl_of(servers, {"tunnel", "wait", "nothing"});
  CHECK(waited.err.find("there is no projects/p/tunnels/nothing") != std::string::npos);
  CHECK(ctl_of(servers, {"version"}).out.find("warrend test") != std::string::npos);
  // When there was no time to ask the other one, longer is not the only way.
  const auto late = ctl_of(servers, with(create_t, {"--request-id", "mine", "--timeout", "300ms"}));
  CHECK(late.code == 3);
  CHECK(late.err.find("give it longer") == std::string::npos);
  CHECK(late.err.find("there was no time to ask " + address) != std::string::npos);
  CHECK(late.err.find("--request-id mine") != std::string::npos);
  CHECK(ctl_of(silent.address, {"tunnel", "list", "--timeout", "300ms"}).err.find("give it longer") != std::string::npos);
}

TEST_CASE("a change that one instance does not answer is asked of the next under the same request id") {
  fixture first, second;
  first.owner.silent = true;
  const auto made = ctl_of(first.address + "," + second.address, create_t);
  INFO(made.err);
  CHECK(made.code == 0);
  first.owner.answer_held(bus::request_error::timeout);
  REQUIRE(first.owner.heard() >= 1);
  REQUIRE(second.owner.heard() == 1);
  CHECK(first.owner.seen[0].caller().request_id() == second.owner.seen[0].caller().request_id());
}

TEST_CASE("while an instance does not reach NATS its callers are told soon, and go elsewhere or wait") {
  std::atomic<bool> deaf{true};
  refusals told;
  fixture healthy;
  fixture cut_off{[&](auto& c) {
    c.counts = &told;
    c.send = [&, usual = c.send](partition_id p, std::string payload, millis timeout, bus::reply_callback done) {
      if (!deaf) return usual(p, std::move(payload), timeout, std::move(done));
      done(bus::request_error::disconnected, {});
    };
  }};
  SECTION("somebody who knows no other instance hears why, and when to ask again") {
    auto stub = api::TunnelService::NewStub(cut_off.channel());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + 60s);
    api::DeleteTunnelRequest q;
    q.set_name("projects/p/tunnels/t");
    api::Tunnel a;
    const auto status = stub->DeleteTunnel(&context, q, &a);
    CHECK(status.error_code() == grpc::StatusCode::UNAVAILABLE);
    CHECK(status.error_message().find("this instance does not reach NATS") != std::string::npos);
    CHECK(admin::details_of(status).retry_after > 0ms);
    CHECK_FALSE(admin::details_of(status).request_id.empty());
  }
  SECTION("warrenctl asks another one") {
    const auto made = ctl_of(cut_off.address + "," + healthy.address, create_t);
    INFO(made.err);
    CHECK(made.code == 0);
    CHECK(told.unavailable == 1);
    CHECK(healthy.owner.seen.size() == 1);
  }
  SECTION("warrenctl that knows no other one goes on until NATS is back") {
    std::thread back{[&] {
      // The instance has answered at least once that it cannot.
      (void)st::poll_until([&] { return told.unavailable > 0; }, 30s, 5ms);
      deaf = false;
    }};
    const auto made = ctl_of(cut_off.address, with(create_t, {"--timeout", "60s"}));
    back.join();
    INFO(made.err);
    CHECK(made.code == 0);
    CHECK(cut_off.owner.seen.size() == 1);
  }
}

TEST_CASE("what cannot be shown is named, and hides nothing else") {
  fixture f{[](auto& c) {
    c.audit = [](admin::audit_query, auto then) {
      admin::audit_page page;
      for (const std::int64_t at_ms : {std::int64_t{1'900'000'000'000}, INT64_MAX, std::int64_t{1'900'000'000'001}})
        page.events.push_back({static_cast<std::int64_t>(page.events.size()) + 7, at_ms, "p", "local", "ipv4:127.0.0.1:1", "CreateTunnel", "projects/p/tunnels/t", "r", "", "{}"});
      then(std::move(page));
    };
  }};
  for (const std::string form : {"json", "yaml"}) {
    const auto r = f.ctl({"audit", "list", "-o", form});
    INFO(r.out << r.err);
    CHECK(r.code == 1);
    CHECK(r.err.find("warrenctl: INTERNAL: AuditEvent 8 cannot be shown as JSON") == 0);
    CHECK(r.out.find("\"7\"") != std::string::npos);
    CHECK(r.out.find("\"8\"") == std::string::npos);
    CHECK(r.out.find("\"9\"") != std::string::npos);
  }
}

TEST_CASE("the audit trail is not waited for while the database is away") {
  std::atomic<bool> away{true};
  fixture f{[&](auto& c) {
    c.database_away = [&] { return away ? std::string{"database: no connection"} : std::string{}; };
    c.audit = [held = std::make_shared<std::function<void(admin::audit_page)>>()](admin::audit_query, auto then) { *held = then; };
  }};
  const auto known = f.ctl({"audit", "list", "--timeout", "60s"});
  check_told(known, 1, "UNAVAILABLE", "which is away: database: no connection");
  // It goes away under the question.
  away = false;
  check_told(f.ctl({"audit", "list", "--timeout", "60s"}), 1, "UNAVAILABLE", "does not answer");
  check_told(f.ctl({"audit", "list", "--timeout", "500ms"}), 1, "UNAVAILABLE", "does not answer");
}

TEST_CASE_METHOD(fixture, "an enrolment that goes to a file that others may read is warned of") {
  const std::vector<std::string> enrol{"--server", address, "-p", "p", "connector", "enrol", "c", "--public-key", std::string(64, 'a')};
  fixture secret{[](auto& c) { c.agents.password = "p"; }};
  auto of_secret = enrol;
  of_secret[1] = secret.address;
  struct row { std::vector<std::string> words; bool open; bool warned; };
  for (const auto& r : {row{of_secret, true, true}, row{of_secret, false, false}, row{enrol, true, false}, row{with(of_secret, {"-o", "name"}), true, false}}) {
    std::ostringstream out, err;
    ctl::surroundings around{out, err, false, r.open};
    CHECK(ctl::run(r.words, around) == 0);
    CHECK((err.str().find("chmod 600") != std::string::npos) == r.warned);
  }
}

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

TEST_CASE_METHOD(fixture, "of all projects each line says which, and a hint names the project that it is about") {
  const auto in = [&](const std::string& project, std::vector<std::string> words) {
    words.insert(words.begin(), {"--server", address, "-p", project});
    std::ostringstream out, err;
    ctl::surroundings around{out, err, false};
    const int code = ctl::run(words, around);
    return outcome{code, out.str(), err.str()};
  };
  for (const std::string project : {"p", "q"}) {
    REQUIRE(in(project, {"tunnel", "create", "web", "--hostname", project + ".example.com", "--connector", "c", "--target", "http://localhost"}).code == 0);
    REQUIRE(in(project, {"connector", "enrol", "home", "--public-key", std::string(64, 'a')}).code == 0);
  }
  settle();
  for (const auto* noun : {"tunnel", "connector"}) {
    for (const auto* verb : {"list", "watch"}) {
      INFO(noun << ' ' << verb);
      const auto all = ctl({noun, verb, "-A", "--timeout", verb == std::string{"watch"} ? "1s" : "10s"});
      std::istringstream lines{all.out};
      std::vector<std::string> first;
      for (std::string line; std::getline(lines, line);) first.push_back(line.substr(0, line.find_first_of(" \t")));
      CHECK(first == std::vector<std::string>{"PROJECT", "p", "q"});
      const auto one = ctl({noun, verb, "--timeout", verb == std::string{"watch"} ? "1s" : "10s"});
      CHECK(one.out.starts_with("NAME"));
    }
  }
  CHECK(ctl({"gateway", "list", "-A"}).out.starts_with("NAME"));
  // A hint is about the project that the command was about, and may be typed in any shell.
  const auto hint = [&](std::vector<std::string> words) { return ctl(std::move(words)).err; };
  CHECK(hint({"tunnel", "get", "nothing"}).find("hint: see what there is: warrenctl tunnel list -p p; in all projects: -A\n") != std::string::npos);
  CHECK(hint({"connector", "get", "projects/q/connectors/nothing"}).find("warrenctl connector list -p q;") != std::string::npos);
  CHECK(in("default", {"tunnel", "get", "nothing"}).err.find("warrenctl tunnel list; in all projects") != std::string::npos);
  CHECK(hint({"gateway", "get", "nothing"}).find("hint: see what there is: warrenctl gateway list\n") != std::string::npos);
  CHECK(hint({"tunnel", "wait", "web", "--timeout", "100ms"}).find("hint: warrenctl tunnel why web -p p\n") != std::string::npos);
  CHECK(hint({"tunnel", "wait", "projects/q/tunnels/web", "--timeout", "100ms"}).find("hint: warrenctl tunnel why web -p q\n") != std::string::npos);
}

TEST_CASE_METHOD(fixture, "what has no resource to show is an object in JSON and YAML") {
  const auto there = json::parse(ctl({"version", "-o", "json"}).out);
  CHECK(there["warrend"]["version"] == "test");
  CHECK(there["warrend"]["ready"] == true);
  CHECK(there["address"] == address);
  CHECK_FALSE(there["warrenctl"].get<std::string>().empty());
  CHECK(ctl({"version"}).out.find("warrend test at " + address) != std::string::npos);
  CHECK(ctl({"version", "-o", "yaml"}).out.find("warrend:\n  version: \"test\"\n") != std::string::npos);
  check_told(ctl({"version", "-o", "name"}), 2, "USAGE", "version has no name to print");
  const auto nobody = "127.0.0.1:" + std::to_string(st::free_port());
  std::ostringstream out, err;
  ctl::surroundings around{out, err, false};
  CHECK(ctl::run({"--server", nobody, "version", "-o", "json", "--timeout", "1s"}, around) == 0);
  CHECK(json::parse(out.str())["warrend"].is_null());
  settle();
  CHECK(json::parse(ctl({"tunnel", "wait", "gone", "--for", "deleted", "-o", "json"}).out) == json{{"deleted", "projects/p/tunnels/gone"}});
  CHECK(ctl({"tunnel", "wait", "gone", "--for", "deleted", "-o", "name"}).out == "projects/p/tunnels/gone\n");
  CHECK(ctl({"tunnel", "wait", "gone", "--for", "deleted", "-o", "yaml"}).out == "deleted: \"projects/p/tunnels/gone\"\n");
  CHECK(ctl({"tunnel", "wait", "gone", "--for", "deleted"}).out == "projects/p/tunnels/gone deleted\n");
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
