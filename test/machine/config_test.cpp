// test/machine/config_test.cpp -- warrend's settings: where each comes from, what is refused, what is not shown.
#include <catch2/catch.hpp>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include <unistd.h>

#include "actors/core/listen.hpp"
#include "services/warrend/config.hpp"

using namespace warren;
using config::load;

namespace {

struct file {
  std::string path = (std::filesystem::temp_directory_path() / ("warrend-config-" + std::to_string(::getpid()) + ".toml")).string();
  explicit file(const std::string& text) { std::ofstream{path} << text; }
  ~file() { std::remove(path.c_str()); }
  file(const file&) = delete;
  file& operator=(const file&) = delete;
};
std::vector<std::string> errors_of(const std::string& text) {
  const file f{text};
  auto errors = load(f.path, {}, {}).errors;
  for (auto& e : errors)
    if (e.starts_with(f.path)) e = "F" + e.substr(f.path.size());
  return errors;
}
using errors = std::vector<std::string>;

}  // namespace

TEST_CASE("a setting with few values takes no other") {
  CHECK(errors_of("[log]\nlevel = 'loud'\nformat = 'xml'\n") ==
        errors{"F:3: log.format is none of auto, json, text", "F:2: log.level is none of trace, debug, info, warn, error, off"});
  CHECK(load("", {{"WARREN_LOG_LEVEL", "INFO"}}, {{"log.format", ""}}).errors.size() == 2);
  CHECK(errors_of("[log]\nlevel = 'debug'\nformat = 'json'\n").empty());
}

TEST_CASE("without file, environment and flags there are the defaults, and they are valid") {
  const auto c = load("", {}, {});
  CHECK(c.errors.empty());
  CHECK(c.config.all().size() == config::settings().size());
  for (const auto& s : config::settings()) {
    CHECK(c.config.text(s.key) == s.fallback);
    CHECK(c.config.all().at(s.key).source == "default");
    CHECK_FALSE(s.help.empty());
  }
  CHECK(c.config.number("database.partitions") == 64);
  CHECK(c.config.list("nats.urls") == std::vector<std::string>{"nats://127.0.0.1:4222"});
  CHECK(c.config.list("agent.nats_urls").empty());
}

TEST_CASE("no two settings share a key, a variable or a flag") {
  std::set<std::string> seen;
  for (const auto& s : config::settings()) {
    CHECK(seen.insert(s.key).second);
    CHECK(seen.insert(config::environment_name(s.key)).second);
    CHECK(seen.insert(config::flag_name(s.key)).second);
  }
  CHECK(config::environment_name("database.url") == "WARREN_DATABASE_URL");
  CHECK(config::flag_name("agent.heartbeat_interval_ms") == "--agent-heartbeat-interval-ms");
}

TEST_CASE("flags are stronger than the environment, and that than the file") {
  const file f{"threads = 3\n[instance]\nname = 'from-file'\nlease_ms = 4000\n[nats]\nurls = ['nats://a:1', 'nats://b:2']\n"};
  const auto only_file = load(f.path, {}, {});
  REQUIRE(only_file.errors.empty());
  CHECK(only_file.config.text("instance.name") == "from-file");
  CHECK(only_file.config.number("instance.lease_ms") == 4000);
  CHECK(only_file.config.number("threads") == 3);
  CHECK(only_file.config.list("nats.urls") == std::vector<std::string>{"nats://a:1", "nats://b:2"});
  CHECK(only_file.config.all().at("instance.name").source == f.path + ":3");

  const auto with_environment = load(f.path, {{"WARREN_INSTANCE_NAME", "from-env"}, {"HOME", "/"}, {"WARREN_OTHER", "x"}}, {});
  REQUIRE(with_environment.errors.empty());
  CHECK(with_environment.config.text("instance.name") == "from-env");
  CHECK(with_environment.config.number("instance.lease_ms") == 4000);
  CHECK(with_environment.config.all().at("instance.name").source == "environment WARREN_INSTANCE_NAME");

  const auto all = load(f.path, {{"WARREN_INSTANCE_NAME", "from-env"}}, {{"instance.name", "from-flag"}});
  REQUIRE(all.errors.empty());
  CHECK(all.config.text("instance.name") == "from-flag");
  CHECK(all.config.all().at("instance.name").source == "flag --instance-name");
}

TEST_CASE("what is wrong is named with file and line, and nothing wrong is taken over") {
  CHECK(errors_of("threads = 1\n\n[databse]\nurl = 'x'\n") == errors{"F:4: unknown key databse.url"});
  CHECK(errors_of("[database]\nurll = 'x'\n") == errors{"F:2: unknown key database.urll"});
  CHECK(errors_of("database = 'x'\n") == errors{"F:1: unknown key database"});
  CHECK(errors_of("[database.url]\nhost = 'x'\n") == errors{"F:2: unknown key database.url.host"});
  CHECK(errors_of("threads = 0\n") == errors{"F:1: threads is not within 1 … 256"});
  CHECK(errors_of("threads = 257\n") == errors{"F:1: threads is not within 1 … 256"});
  CHECK(errors_of("threads = 'two'\n") == errors{"F:1: threads is not a number"});
  CHECK(errors_of("threads = '2x'\n") == errors{"F:1: threads is not a number"});
  CHECK(errors_of("threads = ''\n") == errors{"F:1: threads is not a number"});
  CHECK(errors_of("threads = 2.5\n") == errors{"F:1: threads is neither a text, a number nor a list"});
  CHECK(errors_of("threads = true\n") == errors{"F:1: threads is neither a text, a number nor a list"});
  CHECK(errors_of("threads = [2]\n") == errors{"F:1: threads is one value, not a list"});
  CHECK(errors_of("[nats]\nurls = ['a', 2]\n") == errors{"F:2: nats.urls is not a list of texts"});
  CHECK(errors_of("[instance]\nname = ['a', 'b']\n") == errors{"F:2: instance.name is one value, not a list"});
  CHECK(errors_of("[instance]\nname = '" + std::string(4097, 'x') + "'\n") == errors{"F:2: instance.name is longer than 4096 bytes"});
  CHECK(errors_of("threads = 0\nunknown = 1\n").size() == 2);
  const auto broken = errors_of("threads = 1\n[database\n");
  REQUIRE(broken.size() == 1);
  CHECK(broken[0].starts_with("F:2: "));
  CHECK(load("/nowhere/at/all.toml", {}, {}).errors.size() == 1);

  const auto environment = load("", {{"WARREN_THREADS", "many"}}, {});
  CHECK(environment.errors == errors{"environment WARREN_THREADS: threads is not a number"});
  CHECK(environment.config.number("threads") == 2);
  CHECK(load("", {}, {{"thread", "1"}}).errors == errors{"flag --thread: unknown key thread"});
  CHECK(load("", {}, {{"threads", "99999999999999999999"}}).errors == errors{"flag --threads: threads is not a number"});
}

TEST_CASE("an address to listen on is an address, and plaintext stays on this machine") {
  struct row { const char* key; const char* text; const char* wrong; };
  const std::string local = "must be on loopback or a unix socket: beyond it the admin API needs TLS, which it does not have yet";
  const std::string hook = "must be on loopback or a unix socket: beyond it the hook needs hook.tls_certificate, hook.tls_key and hook.tls_client_ca";
  const std::vector<row> table{
      {"admin.listen", "0.0.0.0:7443", local.c_str()},
      {"admin.listen", "10.0.0.1:7443", local.c_str()},
      {"admin.listen", "[::]:7443", local.c_str()},
      {"admin.listen", "127.example.org:7443", local.c_str()},
      {"admin.listen", "", "is not ip:port or unix:/path"},
      {"admin.listen", "7443", "is not ip:port or unix:/path"},
      {"admin.listen", ":7443", "is not ip:port or unix:/path"},
      {"admin.listen", "127.0.0.1:", "is not ip:port or unix:/path"},
      {"admin.listen", "127.0.0.1:65536", "is not ip:port or unix:/path"},
      {"admin.listen", "127.0.0.1:-1", "is not ip:port or unix:/path"},
      {"admin.listen", "127.0.0.1:7443x", "is not ip:port or unix:/path"},
      {"admin.listen", "::1:7443", "is not ip:port or unix:/path"},
      {"admin.listen", "[::1:7443", "is not ip:port or unix:/path"},
      {"admin.listen", "[127.0.0.1]:7443", "is not ip:port or unix:/path"},
      {"admin.listen", "unix:", "is not ip:port or unix:/path"},
      {"xds.listen", "gateways", "is not ip:port or unix:/path"},
      {"http.listen", "unix:/tmp/x", "is not ip:port"},
      {"http.listen", "localhost:1", "is not ip:port"},
      {"http.listen", "", "is not ip:port"},
      {"hook.http_listen", "localhost:1", "is not ip:port"},
      {"hook.listen", "0.0.0.0:1", hook.c_str()},
      {"hook.tls_key", "/some/key", nullptr},
      {"admin.listen", "127.8.0.1:0", ""},
      {"admin.listen", "localhost:7443", ""},
      {"admin.listen", "[::1]:7443", ""},
      {"admin.listen", "unix:/run/warren/admin", ""},
      {"xds.listen", "0.0.0.0:7444", ""},
      {"http.listen", "[::]:7445", ""},
      {"hook.listen", "", ""},
      {"hook.listen", "127.0.0.1:1", ""},
  };
  for (const auto& r : table) {
    INFO(r.key << " = " << r.text);
    const auto wrong = load("", {}, {{r.key, r.text}}).errors;
    const auto flag = "flag " + config::flag_name(r.key) + ": " + r.key + " ";
    if (r.wrong == nullptr)
      CHECK(wrong == errors{"default: hook.tls_certificate goes with hook.tls_key and hook.tls_client_ca: all three, or none"});
    else if (*r.wrong == '\0')
      CHECK(wrong.empty());
    else
      CHECK(wrong == errors{flag + r.wrong});
  }
  CHECK(load("", {}, {{"hook.listen", "0.0.0.0:1"}, {"hook.tls_certificate", "c"}, {"hook.tls_key", "k"}, {"hook.tls_client_ca", "a"}})
            .errors.empty());
  CHECK_FALSE(parse_listen(std::string_view{"127.0.0.1\0:1", 12}));
}

TEST_CASE("what cannot work is refused with the name of its setting") {
  struct row { const char* key; std::string text; std::string wrong; };
  const std::string name = "is not 1 to 128 letters, digits, '.', '_' or '-'", url = "is not nats://host:port or tls://host:port";
  const std::string webhook = "is not http://HOST[:PORT][/PATH], without a user";
  const std::vector<row> table{
      {"instance.name", "A B", name}, {"instance.name", "", name}, {"instance.name", "a/b", name}, {"instance.name", "a\n", name},
      {"instance.name", "\xc3\xa4", name}, {"instance.name", std::string(129, 'a'), name},
      {"instance.name", "Host-1.example_org", ""}, {"instance.name", std::string(128, 'a'), ""},
      {"nats.urls", "x", url}, {"nats.urls", "", "names no server"}, {"nats.urls", ",", "names no server"},
      {"nats.urls", "nats://", url}, {"nats.urls", "nats://:4222", url}, {"nats.urls", "nats://a:", url}, {"nats.urls", "nats://a:0", url},
      {"nats.urls", "nats://a:65536", url}, {"nats.urls", "nats://a:4222x", url}, {"nats.urls", "http://a:1", url}, {"nats.urls", "nats://a b", url},
      {"nats.urls", "nats://u:s3cr3t@", url}, {"nats.urls", "nats://a:1,x,nats://b", url + " at number 2"}, {"nats.urls", "nats://[::1]:x", url},
      {"agent.nats_urls", "x", url}, {"agent.nats_urls", "", ""},
      {"nats.urls", "nats://a", ""}, {"nats.urls", "tls://u:p@a.example.org:4222,nats://[::1]:4222,nats://[::1]", ""}, {"nats.urls", "nats://token@a:1/", ""},
      {"hook.webhook", "hooks.example.org", webhook}, {"hook.webhook", "http://", webhook}, {"hook.webhook", "http://u:p@a/", webhook},
      {"hook.webhook", "https://a/", webhook}, {"hook.webhook", "http://a:b/", webhook}, {"hook.webhook", "http://a:80/b?c=d@e", ""}, {"hook.webhook", "", ""},
  };
  for (const auto& r : table) {
    INFO(r.key << " = " << r.text);
    const auto wrong = load("", {}, {{r.key, r.text}}).errors;
    if (r.wrong.empty()) CHECK(wrong.empty());
    else CHECK(wrong == errors{"flag " + config::flag_name(r.key) + ": " + r.key + " " + r.wrong});
  }
}

TEST_CASE("secrets are never printed, however they are spelled") {
  const std::string secret = "s3cr3t";
  for (const std::string url :
       {"postgresql://warren:s3cr3t@db:5432/warren", "postgres://:s3cr3t@db/", "postgresql://warren:s3cr3t@@s3cr3t@db/warren",
        "postgresql://warren:a/s3cr3t@db/warren", "postgresql://db/warren?user=warren&password=s3cr3t&sslmode=disable",
        "postgresql://db/warren?sslpassword=s3cr3t", "host=db password=s3cr3t user=warren", "host=db password = s3cr3t",
        "password='a s3cr3t' host=db", "password='it\\'s s3cr3t' host=db", "password='a s3cr3t", "password=a\\ s3cr3t host=db",
        "PASSWORD=s3cr3t", "password=a&s3cr3t host=db", "postgresql://db/warren?pass%77ord=s3cr3t", "postgresql://db/warren?x=1&%50ASSWORD=s3cr3t",
        "postgresql://w:a?s3cr3t@db/warren?password=s3@cr3t:s3cr3t"}) {
    const auto shown = print(load("", {{"WARREN_DATABASE_URL", url}}, {}).config);
    INFO(url << "\n" << shown);
    CHECK(shown.find(secret) == std::string::npos);
    CHECK(shown.find("(set)") != std::string::npos);
  }
  for (const std::string key : {"nats.password", "nats.system_password", "agent.nats_password"}) {
    const auto shown = print(load("", {}, {{key, secret}}).config);
    CHECK(shown.find(secret) == std::string::npos);
    CHECK(shown.find("(set)") != std::string::npos);
    CHECK(print(load("", {}, {}).config).find("(set)") == std::string::npos);
  }
  for (const std::string key : {"nats.urls", "agent.nats_urls"})
    for (const std::string urls : {"nats://u:s3cr3t@a:4222,nats://b:4222", "nats://a:4222,tls://s3cr3t@b:4222", "nats://u:s3@cr3t:s3cr3t@a"}) {
      const auto shown = print(load("", {}, {{key, urls}}).config);
      INFO(shown);
      CHECK(shown.find(secret) == std::string::npos);
      CHECK(shown.find("(set)") != std::string::npos);
    }
  for (const std::string url : {"http://hooks.example.org/a?token=s3cr3t", "http://hooks.example.org:8080/a?s3cr3t&b=s3cr3t",
                                "http://hooks.example.org/a?x=b@c&token=s3cr3t", "http://u:s3cr3t@hooks.example.org/a"}) {
    const auto told = load("", {}, {{"hook.webhook", url}});
    const auto shown = print(told.config);
    INFO(shown);
    CHECK(shown.find(secret) == std::string::npos);
    CHECK((shown.find("(set)") != std::string::npos || told.errors.size() == 1));
    for (const auto& e : told.errors) CHECK(e.find(secret) == std::string::npos);
  }
  CHECK(print(load("", {}, {{"hook.webhook", "http://hooks.example.org/a"}}).config).find("http://hooks.example.org/a") != std::string::npos);
  const auto plain = print(load("", {}, {{"database.url", "postgresql://warren@db/warren"}, {"nats.urls", "nats://a:1,nats://b:2"}}).config);
  CHECK(plain.find("postgresql://warren@db/warren") != std::string::npos);
  CHECK(plain.find("nats://a:1,nats://b:2") != std::string::npos);
  CHECK(plain.find("# flag --nats-urls") != std::string::npos);
  // A value that is refused may be a secret in the wrong place.
  for (const auto& e : load("", {{"WARREN_THREADS", secret}}, {{"nats.password", std::string(5000, 'x') + secret}}).errors)
    CHECK(e.find(secret) == std::string::npos);
}

TEST_CASE("a variable that looks like ours and is none is told, with the one that was meant") {
  CHECK(load("", {{"WARREN_NATS_URL", "nats://a:1"}}, {}).doubts ==
        errors{"environment WARREN_NATS_URL: no setting has this name; did you mean WARREN_NATS_URLS?"});
  CHECK(load("", {{"WARREN_NATS_URL", "nats://a:1"}}, {}).errors.empty());  // what runs goes on running
  CHECK(load("", {{"WARREN_SOMETHING", "x"}}, {}).doubts == errors{"environment WARREN_SOMETHING: no setting has this name"});
  CHECK(load("", {{"WARREN_" + std::string(500, 'X'), ""}}, {}).doubts.at(0).size() < 200);
  CHECK(load("",
             {{"HOME", "/"},
              {"WARREN_THREADS", "2"},
              {"WARREN_FAILPOINT", "after_commit"},
              {"WARREN_TEST_PG", "x"},
              {"WARREN_SERVER", "127.0.0.1:7443"},
              {"WARREN_PORT_7443_TCP_ADDR", "10.0.0.1"},
              {"WARREN_SERVICE_HOST", "10.0.0.1"}},
             {})
            .doubts.empty());
}
