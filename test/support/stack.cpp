// test/support/stack.cpp -- starts and stops a whole Warren. Works through the programs only.
#include "test/support/stack.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <sstream>

#include <fmt/format.h>

namespace warren::stack {

namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

constexpr const char* gateway_name = "gw-1";
constexpr const char* class_name = "demo";
constexpr const char* connector_class_name = "local";

std::string from_environment(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

/// Debian keeps servers where a person's PATH does not lead.
fs::path find_program(const std::string& name) {
  std::istringstream folders{from_environment("PATH") + ":/usr/sbin:/usr/local/bin:/usr/local/sbin:/usr/bin"};
  for (std::string folder; std::getline(folders, folder, ':');)
    if (const auto path = fs::path{folder} / name; !folder.empty() && ::access(path.c_str(), X_OK) == 0)
      return path;
  throw stack_error(name + " is not installed");
}

fs::path postgres_program(const std::string& name) {
  fs::path newest;
  int newest_version = 0;
  std::error_code none;
  for (const auto& each : fs::directory_iterator{"/usr/lib/postgresql", none}) {
    const int version = std::atoi(each.path().filename().c_str());
    if (version > newest_version && fs::exists(each.path() / "bin" / name, none)) {
      newest_version = version;
      newest = each.path() / "bin" / name;
    }
  }
  return newest.empty() ? find_program(name) : newest;
}

/// WARREN_ENVOY may be the package's launcher, a script in a virtual environment that the unprivileged user
/// cannot enter; the program itself is what is started.
fs::path envoy_program() {
  const fs::path named = from_environment("WARREN_ENVOY");
  std::error_code error;
  if (named.empty() || !fs::is_regular_file(named, error))
    return {};
  constexpr std::uintmax_t smallest_program = 10u << 20;
  if (fs::file_size(named, error) >= smallest_program)
    return named;
  const auto around = fs::path{named}.parent_path().parent_path() / "lib";
  for (auto it = fs::recursive_directory_iterator{around, error}; !error && it != fs::recursive_directory_iterator{};
       it.increment(error))
    if (it->path().filename() == "envoy" && it->is_regular_file(error) && it->file_size(error) >= smallest_program)
      return it->path();
  return named;
}

std::string random_hex(std::size_t digits) {
  static thread_local std::mt19937_64 random{(std::uint64_t{std::random_device{}()} << 32) ^ std::random_device{}()};
  std::string out;
  while (out.size() < digits)
    out += fmt::format("{:016x}", random());
  out.resize(digits);
  return out;
}

std::uint64_t fnv1a(std::string_view text, std::uint64_t hash = 14695981039346656037u) {
  for (const char c : text)
    hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

/// postgresql://user:password@host:port/DATABASE?more with another database.
std::string with_database(const std::string& url, const std::string& database) {
  const auto scheme = url.find("://");
  if (scheme == std::string::npos)
    throw stack_error("WARREN_TEST_PG is no postgresql:// address");
  const auto query = url.find('?');
  const auto slash = std::min(url.find('/', scheme + 3), query);
  return url.substr(0, slash) + "/" + database + (query == std::string::npos ? "" : url.substr(query));
}

/// The same without its password, which has no place in the list of processes.
std::pair<std::string, std::string> split_password(const std::string& url) {
  const auto user = url.find("://") + 3;
  const auto at = url.find('@', user);
  const auto colon = url.find(':', user);
  if (at == std::string::npos || colon > at)
    return {url, ""};
  return {url.substr(0, colon) + url.substr(at), url.substr(colon + 1, at - colon - 1)};
}

/// Where the server of an address is, for a forwarder: a port of loopback or a unix socket.
std::string postgres_target(const std::string& url) {
  const auto parameter = [&](const std::string& name) -> std::string {
    for (const auto* before : {"?", "&"})
      if (const auto at = url.find(before + name + "="); at != std::string::npos) {
        const auto from = at + name.size() + 2;
        return url.substr(from, url.find('&', from) - from);
      }
    return {};
  };
  const auto host = parameter("host"), port = parameter("port");
  if (host.starts_with("/"))
    return host + "/.s.PGSQL." + (port.empty() ? "5432" : port);
  const auto user = url.find("://") + 3;
  const auto at = std::min(url.find('@', user), url.size());
  const auto authority = url.substr(at + 1, url.find_first_of("/?", at + 1) - at - 1);
  const auto colon = authority.find(':');
  return colon == std::string::npos ? "5432" : authority.substr(colon + 1);
}

/// The same database, reached by a port of loopback.
std::string by_way(const std::string& url, std::uint16_t port) {
  const auto user = url.find("://") + 3;
  const auto at = url.find('@', user);
  const auto who = at == std::string::npos ? std::string{} : url.substr(user, at - user) + "@";
  const auto slash = url.find('/', at == std::string::npos ? user : at);
  const auto name = url.substr(slash, url.find('?', slash) - slash);
  return url.substr(0, user) + who + "127.0.0.1:" + std::to_string(port) + name;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += '\\';
    out += c;
  }
  return out + "\"";
}

std::vector<fs::path> migration_files() {
  fs::path folder = from_environment("WARREN_MIGRATIONS_DIR");
  if (folder.empty())
    folder = WARREN_MIGRATIONS_DIR;
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& each : fs::directory_iterator{folder, error})
    if (each.path().extension() == ".sql")
      files.push_back(each.path());
  if (files.empty())
    throw stack_error("no migrations in " + folder.string());
  std::sort(files.begin(), files.end());
  return files;
}

/// Where the unprivileged user can read them.
fs::path copy_migrations(const scratch& place) {
  const auto folder = place.folder("migrations");
  for (const auto& file : migration_files())
    write_file(folder / file.filename(), read_file(file));
  return folder;
}

void migrate(const scratch& place, const std::string& url, int partitions) {
  const auto folder = copy_migrations(place);
  const auto config = place.path() / "migrate.toml";
  write_file(config, fmt::format("database.url = {}\ndatabase.migrations = {}\ndatabase.partitions = {}\n",
                                 quoted(url), quoted(folder.string()), partitions));
  const auto result = run({.name = "warrend migrate",
                           .path = bin_dir() / "warrend",
                           .arguments = {"migrate", "-c", config.string()}});
  if (result.code != 0)
    throw stack_error("warrend migrate: " + result.out + result.err);
}

/// Held by one process of this user at a time, and let go however that process ends.
class file_lock {
public:
  explicit file_lock(const fs::path& path) : fd_{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)} {
    if (fd_ < 0 || ::flock(fd_, LOCK_EX) != 0)
      throw stack_error("cannot lock " + path.string());
  }
  ~file_lock() { ::close(fd_); }
  file_lock(const file_lock&) = delete;
  file_lock& operator=(const file_lock&) = delete;

private:
  int fd_;
};

/// Of PostgreSQL as such: that of the environment, else one cluster for this process.
std::string server_url() {
  if (has_shared_postgres())
    return from_environment("WARREN_TEST_PG");
  static scratch place{"warren-pg"};
  static postgres_cluster cluster{place};
  return cluster.url("postgres");
}

/// Makes the template when there is none with this name.
std::string template_for(int partitions) {
  std::uint64_t hash = fnv1a(std::to_string(partitions));
  for (const auto& file : migration_files())
    hash = fnv1a(read_file(file), fnv1a(file.filename().string(), hash));
  const auto name = fmt::format("warren_template_{:016x}", hash);
  const auto server = server_url();
  static std::map<std::string, bool> made;
  if (made[server + name])
    return name;
  const file_lock lock{fs::temp_directory_path() / fmt::format("warren-template-{}.lock", ::geteuid())};
  if (run_sql(server, fmt::format("SELECT 1 FROM pg_database WHERE datname = '{}'", name)).empty()) {
    const auto draft = name + "_draft";  // whoever dies here leaves no half-made template
    run_sql(server, fmt::format("DROP DATABASE IF EXISTS {} WITH (FORCE)", draft));
    run_sql(server, "CREATE DATABASE " + draft);
    const scratch place{"warren-migrate"};
    migrate(place, with_database(server, draft), partitions);
    run_sql(server, fmt::format("ALTER DATABASE {} RENAME TO {}", draft, name));
  }
  made[server + name] = true;
  return name;
}

}  // namespace

fs::path bin_dir() {
  const auto named = from_environment("WARREN_BIN_DIR");
  return named.empty() ? fs::path{WARREN_BIN_DIR} : fs::absolute(named);
}

bool has_envoy() { return !envoy_program().empty(); }

bool has_shared_postgres() { return !from_environment("WARREN_TEST_PG").empty(); }

nlohmann::json told::json() const {
  auto parsed = nlohmann::json::parse(out, nullptr, false);
  return parsed.is_discarded() ? nlohmann::json{} : parsed;
}

std::string run_sql(const std::string& url, const std::string& statements) {
  const auto [address, password] = split_password(url);
  program psql{.name = "psql",
               .path = postgres_program("psql"),
               .arguments = {"-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", address, "-c", statements}};
  if (!password.empty())
    psql.environment.emplace_back("PGPASSWORD", password);
  const auto result = run(psql);
  if (result.code != 0)
    throw stack_error("psql: " + result.err);
  return result.out;
}

// ---- PostgreSQL ----------------------------------------------------------------------------------------

postgres_cluster::postgres_cluster(const scratch& place)
    : place_{place.folder("postgres")}, port_{free_port()}, password_{random_hex(32)} {
  const auto password_file = place_ / "password";
  write_file(password_file, password_);
  const auto made = run({.name = "initdb",
                         .path = postgres_program("initdb"),
                         .arguments = {"-D", (place_ / "data").string(), "-U", "warren", "--pwfile",
                                       password_file.string(), "--auth-local=trust", "--auth-host=scram-sha-256",
                                       "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"}});
  if (made.code != 0)
    throw stack_error("PostgreSQL cannot be initialised: " + made.err);
  start();
}

void postgres_cluster::start() {
  if (server_.running())
    return;
  const auto log = place_ / "log";
  const auto deadline = clock::now() + milliseconds{20'000};
  for (;;) {
    const auto offset = read_file(log).size();
    server_ = process{{.name = "postgres",
                       .path = postgres_program("postgres"),
                       .arguments = {"-D", (place_ / "data").string(), "-p", std::to_string(port_), "-k",
                                     place_.string(), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100",
                                     "-c", "shared_buffers=64MB"},
                       .log = log,
                       .death_signal = SIGQUIT,  // immediate: its children are gone as well
                       .stop_signal = SIGINT}};
    if (server_.await_log("database system is ready to accept connections", milliseconds{20'000}, offset))
      return;
    // After a kill its children hold the shared memory until they have noticed.
    const auto said = read_file(log).substr(offset);
    if (said.find("still in use") == std::string::npos || clock::now() > deadline)
      throw stack_error("PostgreSQL does not start: " + said);
  }
}

void postgres_cluster::stop() { server_.stop(); }
void postgres_cluster::kill() { server_.kill(); }

std::string postgres_cluster::url(const std::string& database) const {
  return fmt::format("postgresql://warren:{}@127.0.0.1:{}/{}", password_, port_, database);
}

test_database::test_database(int partitions) {
  const auto source = template_for(partitions);
  name_ = "warren_test_" + random_hex(16);
  run_sql(server_url(), fmt::format("CREATE DATABASE {} TEMPLATE {}", name_, source));
  url_ = with_database(server_url(), name_);
}

test_database::~test_database() {
  try {
    run_sql(server_url(), fmt::format("DROP DATABASE IF EXISTS {} WITH (FORCE)", name_));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "the database %s stays behind: %s\n", name_.c_str(), e.what());
  }
}

// ---- agents --------------------------------------------------------------------------------------------

void agent::start(const std::vector<std::string>& more) {
  if (process_.running())
    return;
  auto arguments = std::vector<std::string>{"run",     "--enrolment", enrolment_.string(), "--key", key_.string(),
                                            "--state", state_.string(), "--listen", "127.0.0.1:" + std::to_string(port_)};
  arguments.insert(arguments.end(), arguments_.begin(), arguments_.end());
  arguments.insert(arguments.end(), more.begin(), more.end());
  log_offset_ = read_file(log_).size();
  process_ = process{{.name = "warren-agent " + name_, .path = bin_dir() / "warren-agent", .arguments = arguments, .log = log_}};
}

void agent::await_session(milliseconds timeout) {
  if (!process_.await_log("\"msg\":\"session ", timeout, log_offset_))
    throw stack_error("the agent of " + name_ + " got no session: " + process_.log().substr(log_offset_));
}

void agent::move() { port_ = free_port(); }

// ---- the stack -----------------------------------------------------------------------------------------

struct stack::impl {
  explicit impl(stack_options o) : options{std::move(o)} {}

  stack_options options;
  scratch place{"warren"};
  int exceptions = std::uncaught_exceptions();
  bool kept = false;

  std::unique_ptr<postgres_cluster> cluster;
  std::unique_ptr<test_database> database;
  std::string database_url;
  process nats, envoy;
  std::vector<std::unique_ptr<instance>> instances;
  std::unique_ptr<forwarder> to_xds;
  std::uint16_t nats_port = free_port(),
                visitor_port = options.visitor_port != 0 ? options.visitor_port : free_port();
  std::string nats_password = random_hex(32);
  std::unique_ptr<origin> target;
  std::vector<std::unique_ptr<agent>> agents;
  bool has_connector_class = false, has_gateway = false;

  fs::path path(const std::string& name) const { return place.path() / name; }

  void make_database() {
    if (!options.own_postgres) {
      database = std::make_unique<test_database>(options.partitions);
      database_url = database->url();
      return;
    }
    cluster = std::make_unique<postgres_cluster>(place);
    database_url = cluster->url("warren");
    run_sql(cluster->url("postgres"), "CREATE DATABASE warren");
    migrate(place, database_url, options.partitions);
  }

  void write_nats_configuration() const {
    if (options.agents_have_credentials) {
      const auto keys = (place.path() / "keys").string();
      const auto made = run({.name = "warrend nats-keys", .path = bin_dir() / "warrend", .arguments = {"nats-keys", "--out", keys}});
      if (made.code != 0)
        throw stack_error("warrend nats-keys: " + made.err);
      write_file(path("nats.conf"), fmt::format("listen: \"127.0.0.1:{}\"\ninclude \"keys/accounts.conf\"\n", nats_port));
      return;
    }
    write_file(path("nats.conf"), fmt::format(R"(listen: "127.0.0.1:{0}"
accounts: {{
  WARREN: {{
    users: [
      {{user: warren, password: "{1}"}}
      {{user: agent, password: "{1}", permissions: {{
        publish: ["warren.v1.hello.>", "warren.v1.hb.>", "warren.v1.ev.>", "_INBOX.>"]
        subscribe: ["warren.v1.cmd.>", "_INBOX.>"]
      }}}}
    ]
  }}
  SYS: {{users: [{{user: sys, password: "{1}"}}]}}
}}
system_account: SYS
)",
                                              nats_port, nats_password));
  }

  void write_warrend_configuration(const instance& i, const fs::path& to) const {
    const auto local = [](std::uint16_t port) { return "127.0.0.1:" + std::to_string(port); };
    std::map<std::string, std::string> all{
        {"instance.name", i.name()},
        {"instance.lease_ms", std::to_string(options.instance_lease_ms)},
        {"database.url", database_url},
        {"database.migrations", path("migrations").string()},
        {"database.partitions", std::to_string(options.partitions)},
        {"nats.urls", "nats://" + local(nats_port)},
        {"nats.user", "warren"},
        {"nats.password", nats_password},
        {"nats.system_user", "sys"},
        {"nats.system_password", nats_password},
        {"agent.nats_user", "agent"},
        {"agent.nats_password", nats_password},
        {"agent.heartbeat_interval_ms", std::to_string(options.heartbeat_interval_ms)},
        {"admin.listen", local(i.admin_port())},
        {"xds.listen", local(i.xds_port())},
        {"http.listen", local(i.http_port())},
        {"log.format", "json"},
    };
    if (options.agents_have_credentials) {
      for (const auto* key : {"nats.user", "nats.password", "nats.system_user", "nats.system_password", "agent.nats_user", "agent.nats_password"})
        all.erase(key);
      all["nats.credentials_file"] = path("keys/warrend.creds").string();
      all["nats.system_credentials_file"] = path("keys/watch.creds").string();
      all["nats.account_seed_file"] = path("keys/account.seed").string();
    }
    if (options.with_ways) {
      all["database.url"] = by_way(database_url, i.to_postgres_->port());
      all["nats.urls"] = "nats://" + local(i.to_nats_->port());
      all["agent.nats_urls"] = "nats://" + local(nats_port);
      all["xds.advertise"] = local(to_xds->port());
    }
    for (const auto& [key, value] : options.configuration)
      all[key] = value;
    std::string text;
    for (const auto& [key, value] : all)
      text += key + " = " + quoted(value) + "\n";
    write_file(to, text);
  }

  /// All who may be led to, the first of them first.
  std::vector<std::string> xds_targets() const {
    std::vector<std::string> out;
    for (const auto& each : instances)
      out.push_back(std::to_string(each->xds_port()));
    return out;
  }
};

stack::stack(stack_options options) : impl_{std::make_unique<impl>(std::move(options))} {
  try {
    impl_->write_nats_configuration();
    start_nats();
    impl_->make_database();
    if (!fs::exists(impl_->path("migrations")))
      copy_migrations(impl_->place);
    if (impl_->options.with_ways)
      impl_->to_xds = std::make_unique<forwarder>(std::vector<std::string>{});
    for (int n = 0; n < impl_->options.instances; ++n)
      add_instance();
    if (!impl_->options.start)
      return;
    start_warrend(impl_->options.environment);
    for (std::size_t n = 1; n < instances(); ++n)
      at(n).launch();
    for (std::size_t n = 1; n < instances(); ++n)
      at(n).start();
    if (impl_->options.with_envoy && has_envoy())
      start_envoy();
  } catch (...) {
    if (impl_->options.keep_logs) {
      impl_->place.keep();
      std::fprintf(stderr, "the stack's files are kept in %s\n", impl_->place.path().c_str());
    }
    throw;
  }
}

stack::~stack() {
  if (impl_ == nullptr)
    return;
  const bool failed = impl_->options.keep_logs && std::uncaught_exceptions() > impl_->exceptions;
  const bool keep_logs = failed || !from_environment("WARREN_TEST_KEEP").empty();
  for (auto& each : impl_->agents)
    each->kill();
  impl_->envoy.kill();
  for (auto& each : impl_->instances)
    each->kill();
  impl_->nats.kill();
  if (impl_->cluster)
    impl_->cluster->stop();  // not killed: that leaves its shared memory behind
  if (keep_logs && !impl_->kept) {
    std::error_code ignored;
    fs::remove_all(impl_->path("postgres") / "data", ignored);
  }
  if (keep_logs || impl_->kept) {
    impl_->place.keep();
    std::fprintf(stderr, "the stack's files are kept in %s\n", impl_->place.path().c_str());
  }
}

const stack_options& stack::options() const { return impl_->options; }
const fs::path& stack::directory() const { return impl_->place.path(); }
void stack::keep() { impl_->kept = true; }

// -- warrend --

void stack::launch_warrend(const settings& environment) { at(0).launch(environment); }
bool stack::await_warrend(milliseconds timeout) { return at(0).await_ready(timeout); }
void stack::start_warrend(const settings& environment) { at(0).start(environment); }
void stack::stop_warrend() { at(0).stop(); }
void stack::kill_warrend() { at(0).kill(); }
void stack::freeze_warrend() { at(0).freeze(); }
void stack::thaw_warrend() { at(0).thaw(); }
process& stack::warrend() { return at(0).running_process(); }
std::uint16_t stack::admin_port() const { return impl_->instances.front()->admin_port(); }
std::uint16_t stack::xds_port() const { return impl_->instances.front()->xds_port(); }
std::uint16_t stack::http_port() const { return impl_->instances.front()->http_port(); }

// -- several of them --

instance& stack::at(std::size_t n) { return *impl_->instances.at(n); }
std::size_t stack::instances() const { return impl_->instances.size(); }

instance& stack::add_instance() {
  auto made = std::make_unique<instance>();
  const auto number = std::to_string(impl_->instances.size() + 1);
  made->name_ = "warren-" + number;
  made->config_ = impl_->path(number == "1" ? "warrend.toml" : "warrend-" + number + ".toml");
  made->log_ = impl_->path(number == "1" ? "warrend.log" : "warrend-" + number + ".log");
  if (impl_->options.with_ways) {
    made->to_postgres_ = std::make_unique<forwarder>(std::vector<std::string>{postgres_target(impl_->database_url)});
    made->to_nats_ = std::make_unique<forwarder>(std::vector<std::string>{std::to_string(impl_->nats_port)});
  }
  impl_->write_warrend_configuration(*made, made->config_);
  impl_->instances.push_back(std::move(made));
  if (impl_->to_xds)
    impl_->to_xds->lead_to(impl_->xds_targets(), false);
  return *impl_->instances.back();
}

forwarder& stack::to_xds() {
  if (!impl_->to_xds)
    throw stack_error("this stack has no ways");
  return *impl_->to_xds;
}

std::map<int, std::int64_t> stack::owners() const {
  std::map<int, std::int64_t> out;
  std::istringstream rows{sql("SELECT id, owner FROM partition ORDER BY id")};
  int id = 0;
  char bar = 0;
  std::int64_t owner = 0;
  while (rows >> id >> bar >> owner)
    out[id] = owner;
  return out;
}

std::int64_t stack::id_of(const instance& i) const {
  const auto found = sql("SELECT id FROM instance WHERE name = '" + i.name() + "' ORDER BY id DESC LIMIT 1");
  return found.empty() ? 0 : std::stoll(found);
}

bool stack::await_spread(const std::vector<const instance*>& over, milliseconds timeout) const {
  return poll_until(
      [&] {
        std::map<std::int64_t, int> held;
        for (const auto* each : over)
          held[id_of(*each)] = 0;
        const auto all = owners();
        for (const auto& [id, owner] : all)
          if (!held.contains(owner))
            return false;
          else
            ++held[owner];
        const auto share = static_cast<int>(all.size() / held.size());
        return held.size() == over.size() && std::all_of(held.begin(), held.end(), [&](const auto& each) {
                 return each.second == share || each.second == share + 1;
               });
      },
      timeout, milliseconds{20});
}

void instance::launch(const settings& environment) {
  if (process_.running())
    return;
  log_offset_ = read_file(log_).size();
  process_ = process{{.name = "warrend " + name_,
                      .path = bin_dir() / "warrend",
                      .arguments = {"serve", "-c", config_.string()},
                      .environment = environment,
                      .log = log_}};
}

bool instance::await_ready(milliseconds timeout) {
  return process_.await_log("\"msg\":\"ready: ", timeout, log_offset_);
}

void instance::start(const settings& environment) {
  launch(environment);
  if (!await_ready())
    throw stack_error(name_ + " does not become ready: " + log());
}

std::string instance::log() const { return read_file(log_).substr(log_offset_); }

forwarder& instance::to_postgres() {
  if (!to_postgres_)
    throw stack_error("this stack has no ways");
  return *to_postgres_;
}

forwarder& instance::to_nats() {
  if (!to_nats_)
    throw stack_error("this stack has no ways");
  return *to_nats_;
}

// -- NATS --

void stack::start_nats() {
  if (impl_->nats.running())
    return;
  const auto log = impl_->path("nats.log");
  const auto offset = read_file(log).size();
  impl_->nats = process{{.name = "nats-server",
                         .path = find_program("nats-server"),
                         .arguments = {"-c", impl_->path("nats.conf").string()},
                         .log = log}};
  if (!impl_->nats.await_log("Server is ready", milliseconds{10'000}, offset))
    throw stack_error("nats-server does not start: " + read_file(log).substr(offset));
}

void stack::stop_nats() { impl_->nats.stop(); }
void stack::kill_nats() { impl_->nats.kill(); }
void stack::freeze_nats() { impl_->nats.freeze(); }
void stack::thaw_nats() { impl_->nats.thaw(); }
process& stack::nats() { return impl_->nats; }
std::uint16_t stack::nats_port() const { return impl_->nats_port; }
std::string stack::nats_url() const { return "nats://127.0.0.1:" + std::to_string(impl_->nats_port); }
const std::string& stack::nats_password() const { return impl_->nats_password; }

// -- PostgreSQL --

std::string stack::database_url() const { return impl_->database_url; }

postgres_cluster& stack::postgres() {
  if (!impl_->cluster)
    throw stack_error("this stack has no PostgreSQL of its own");
  return *impl_->cluster;
}

std::string stack::sql(const std::string& statements) const { return run_sql(impl_->database_url, statements); }

// -- visitors' side --

void stack::start_envoy() {
  if (impl_->envoy.running())
    return;
  if (!has_envoy())
    throw stack_error("WARREN_ENVOY names no Envoy");
  if (!impl_->has_gateway) {
    must_ctl({"gateway-class", "create", class_name, "--listen", "127.0.0.1:" + std::to_string(impl_->visitor_port)});
    must_ctl({"gateway", "create", gateway_name, "--class", class_name});
    write_file(impl_->path("envoy.yaml"), must_ctl({"gateway", "bootstrap", gateway_name}).out);
    impl_->has_gateway = true;
  }
  impl_->envoy = process{{.name = "envoy",
                          .path = envoy_program(),
                          .arguments = {"-c", impl_->path("envoy.yaml").string(), "--disable-hot-restart",
                                        "--concurrency", "1", "-l", "warning", "--admin-address-path",
                                        impl_->path("envoy.admin").string()},
                          .log = impl_->path("envoy.log")}};
  const auto takes_visitors = [this] { return !impl_->envoy.running() || listens(impl_->visitor_port); };
  const auto counts = [this] {
    if (!impl_->envoy.running())
      return true;
    const auto gateway = ctl({"gateway", "get", gateway_name, "-o", "json"}).json();
    return gateway.is_object() && gateway.value("counts", false);
  };
  if (!poll_until(takes_visitors, milliseconds{20'000}) || !poll_until(counts, milliseconds{20'000}) ||
      !impl_->envoy.running())
    throw stack_error("Envoy does not take visitors: " + impl_->envoy.log());
}

void stack::stop_envoy() { impl_->envoy.stop(); }
void stack::kill_envoy() { impl_->envoy.kill(); }
bool stack::envoy_runs() { return impl_->envoy.running(); }
process& stack::envoy() { return impl_->envoy; }
std::uint16_t stack::visitor_port() const { return impl_->visitor_port; }
std::string stack::envoy_admin() const { return read_file(impl_->path("envoy.admin")); }

answer stack::visit(const request& r) const { return ::warren::stack::visit(impl_->visitor_port, r); }

answer stack::visit(const std::string& host, milliseconds timeout) const {
  return visit(request{.host = host, .timeout = timeout});
}

// -- agents and what is behind them --

origin& stack::demo_origin() {
  if (!impl_->target)
    impl_->target = std::make_unique<origin>();
  return *impl_->target;
}

agent& stack::add_agent(const std::string& name, const agent_options& options) {
  if (!impl_->has_connector_class) {
    must_ctl({"connector-class", "create", connector_class_name, "--allow", "127.0.0.0/8"});
    impl_->has_connector_class = true;
  }
  auto made = std::make_unique<agent>();
  made->name_ = name;
  made->project_ = options.project.empty() ? impl_->options.project : options.project;
  made->arguments_ = options.arguments;
  made->port_ = free_port();
  const auto folder = impl_->place.folder(fmt::format("agent-{}-{}", made->project_, name));
  made->key_ = folder / "key";
  made->enrolment_ = folder / "enrolment.json";
  made->log_ = folder / "log";
  made->state_ = impl_->place.folder((folder.filename() / "state").string());
  const auto key = run({.name = "warren-agent keygen",
                        .path = bin_dir() / "warren-agent",
                        .arguments = {"keygen", "--key", made->key_.string()}});
  if (key.code != 0)
    throw stack_error("warren-agent keygen: " + key.err);
  made->public_key_ = key.out.substr(0, key.out.find_last_not_of(" \r\n") + 1);
  std::vector<std::string> enrol{"connector", "enrol", name, "--class", connector_class_name, "--public-key",
                                 made->public_key_, "-p", made->project_};
  if (!options.lease_duration.empty())
    enrol.insert(enrol.end(), {"--lease-duration", options.lease_duration});
  write_file(made->enrolment_, must_ctl(enrol).out);
  if (options.start)
    made->start();
  impl_->agents.push_back(std::move(made));
  return *impl_->agents.back();
}

agent& stack::find_agent(const std::string& name) {
  for (auto& each : impl_->agents)
    if (each->name() == name)
      return *each;
  throw stack_error("there is no agent " + name);
}

// -- the admin API --

namespace {

program ctl_program(const stack& s, std::vector<std::string> arguments, std::uint16_t admin_port) {
  const auto names_project = [](const std::string& word) { return word == "-p" || word == "--project"; };
  std::vector<std::string> words{"--server", "127.0.0.1:" + std::to_string(admin_port)};
  if (std::none_of(arguments.begin(), arguments.end(), names_project))
    words.insert(words.end(), {"--project", s.options().project});
  words.insert(words.end(), arguments.begin(), arguments.end());
  return {.name = "warrenctl", .path = bin_dir() / "warrenctl", .arguments = std::move(words)};
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const auto& each : words)
    out += " " + each;
  return out;
}

}  // namespace

told stack::ctl(std::vector<std::string> arguments, milliseconds timeout) const {
  return ctl_at(*impl_->instances.front(), std::move(arguments), timeout);
}

told stack::ctl_at(const instance& i, std::vector<std::string> arguments, milliseconds timeout) const {
  auto result = run(ctl_program(*this, std::move(arguments), i.admin_port()), timeout);
  return {result.code, std::move(result.out), std::move(result.err)};
}

told stack::must_ctl(std::vector<std::string> arguments, milliseconds timeout) const {
  auto result = ctl(arguments, timeout);
  if (!result.ok())
    throw stack_error(fmt::format("warrenctl{} ended with {}: {}", joined(arguments), result.code, result.err));
  return result;
}

process stack::launch_ctl(std::vector<std::string> arguments, const std::string& log_name) const {
  auto p = ctl_program(*this, std::move(arguments), admin_port());
  p.log = impl_->path(log_name);
  return process{std::move(p)};
}

void stack::create_tunnel(const std::string& name, const std::string& hostname, const std::string& connector,
                          const std::string& target) {
  must_ctl({"tunnel", "create", name, "--hostname", hostname, "--connector", connector, "--target",
            target.empty() ? demo_origin().url() : target, "--gateway-class", class_name});
}

bool stack::await_ready(const std::string& tunnel, milliseconds timeout) const {
  return ctl({"tunnel", "wait", tunnel, "--for", "ready", "--timeout", fmt::format("{}ms", timeout.count())},
             timeout + milliseconds{5'000})
      .ok();
}

json stack::tunnel(const std::string& name) const { return ctl({"tunnel", "get", name, "-o", "json"}).json(); }
json stack::connector(const std::string& name) const { return ctl({"connector", "get", name, "-o", "json"}).json(); }

namespace {

std::string field_of_condition(const json& resource, const std::string& type, const char* field) {
  if (!resource.is_object() || !resource.contains("conditions"))
    return "";
  for (const auto& each : resource.at("conditions"))
    if (each.value("type", "") == type)
      return each.value(field, "");
  return "";
}

}  // namespace

std::string stack::condition(const json& resource, const std::string& type) {
  return field_of_condition(resource, type, "status");
}

std::string stack::condition_message(const json& resource, const std::string& type) {
  return field_of_condition(resource, type, "message");
}

json stack::await(const std::string& kind, const std::string& name,
                  const std::function<bool(const json&)>& satisfies, milliseconds timeout) const {
  const auto deadline = clock::now() + timeout;
  auto watch = launch_ctl({kind, "watch", name, "-o", "json"}, "watch-" + random_hex(12) + ".log");
  for (std::size_t offset = 0;;) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - clock::now());
    if (left.count() <= 0 || !watch.await_log("\n", left, offset))
      return {};
    const auto text = watch.log();
    for (auto end = text.find('\n', offset); end != std::string::npos; end = text.find('\n', offset)) {
      const auto line = json::parse(text.substr(offset, end - offset), nullptr, false);
      offset = end + 1;
      if (!line.is_object())
        continue;
      const auto& resource = line.contains(kind) ? line.at(kind) : line;
      if (satisfies(resource))
        return resource;
    }
  }
}

// -- telemetry --

std::string stack::metrics_text() const { return impl_->instances.front()->metrics_text(); }
double stack::metric(const std::string& name, const std::string& label) const {
  return impl_->instances.front()->metric(name, label);
}
json stack::readyz() const { return impl_->instances.front()->readyz(); }

std::string instance::metrics_text() const {
  return ::warren::stack::visit(http_port_, {.host = "127.0.0.1", .target = "/metrics"}).body;
}

double instance::metric(const std::string& name, const std::string& label) const {
  std::istringstream lines{metrics_text()};
  double sum = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name) || line.size() <= name.size())
      continue;
    const char next = line[name.size()];
    if ((next != '{' && next != ' ') || (!label.empty() && line.find("=\"" + label + "\"") == std::string::npos))
      continue;
    sum += std::strtod(line.c_str() + line.rfind(' '), nullptr);
  }
  return sum;
}

json instance::readyz() const {
  const auto body = ::warren::stack::visit(http_port_, {.host = "127.0.0.1", .target = "/readyz"}).body;
  const auto parsed = json::parse(body, nullptr, false);
  return parsed.is_discarded() ? json{} : parsed;
}

}  // namespace warren::stack
