// services/warrend/main.cpp -- the command line of warrend.
#include <chrono>
#include <iostream>
#include <map>
#include <string>

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "services/hook/certificates.hpp"
#include "services/store/migrate.hpp"
#include "services/warrend/config.hpp"
#include "services/warrend/nats_keys.hpp"
#include "services/warrend/serve.hpp"

namespace {

using namespace warren;

/// The settings as flags of one subcommand.
struct flags {
  std::string file;
  std::map<std::string, std::string> given;

  void add_to(CLI::App& app) {
    app.add_option("-c,--config", file, "TOML file")->check(CLI::ExistingFile);
    for (const auto& s : config::settings()) {
      auto help = s.help + fmt::format(" [{}, {}]", s.secret ? "" : s.fallback, config::environment_name(s.key));
      app.add_option_function<std::string>(
          config::flag_name(s.key), [this, key = s.key](const std::string& text) { given[key] = text; }, help);
    }
  }

  std::map<std::string, std::string> environment() const {
    std::map<std::string, std::string> out;
    for (char** each = environ; *each != nullptr; ++each) {
      const std::string_view text{*each};
      if (const auto equals = text.find('='); equals != std::string_view::npos && text.starts_with("WARREN_"))
        out.emplace(text.substr(0, equals), text.substr(equals + 1));
    }
    return out;
  }

  /// False: what is wrong is on stderr.
  bool load(config::effective& out, bool strict) const {
    auto loaded = config::load(file, environment(), given);
    for (const auto& e : loaded.errors) std::cerr << "warrend: " << e << '\n';
    for (const auto& d : loaded.doubts) std::cerr << "warrend: " << (strict ? "" : "warning: ") << d << '\n';
    out = std::move(loaded.config);
    return loaded.errors.empty() && (!strict || loaded.doubts.empty());
  }
};

/// Of an instance with a hook that proves itself. False: what is wrong is on stderr.
bool has_usable_certificates(const config::effective& c) {
  const hook::certificate_files files{c.text("hook.tls_certificate"), c.text("hook.tls_key"), c.text("hook.tls_client_ca")};
  if (c.text("hook.listen").empty() || files.certificate.empty()) return true;
  const auto checked = hook::check_certificates(files, hook::read_certificates(files));
  if (!checked.error.empty()) {
    std::cerr << "warrend: " << checked.error << '\n';
    return false;
  }
  if (const auto late = hook::expired(files, checked.set, std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now())); !late.empty())
    std::cerr << "warrend: warning: " << late << '\n';
  return true;
}

int migrate_command(const config::effective& c, bool dry_run) {
  try {
    migrate_options options;
    options.partitions = static_cast<int>(c.number("database.partitions"));
    options.dry_run = dry_run;
    const auto applied = migrate(c.text("database.url"), c.text("database.migrations"), options);
    for (const auto& m : applied)
      std::cout << fmt::format("{} {:04} {}\n", dry_run ? "would apply" : "applied", m.level, m.name);
    if (applied.empty()) std::cout << "nothing to do\n";
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "warrend: " << e.what() << '\n';
    return 1;
  }
}

int nats_keys_command(const std::string& folder) {
  try {
    for (const auto& name : make_nats_keys(folder)) std::cout << "wrote " << name << '\n';
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "warrend: " << e.what() << '\n';
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"The control plane of a tunnel service."};
  app.require_subcommand(1);
  app.set_version_flag("--version", "warrend 0.1.0");
  flags f;
  bool dry_run = false, effective_only = false;

  auto* serve_app = app.add_subcommand("serve", "Run one instance until SIGTERM");
  auto* migrate_app = app.add_subcommand("migrate", "Bring the database's schema up to date");
  migrate_app->add_flag("--dry-run", dry_run, "Say what would be applied");
  auto* keys_app = app.add_subcommand("nats-keys", "Make the keys of a bus on which each agent has credentials of its own");
  std::string keys_folder;
  keys_app->add_option("--out", keys_folder, "Folder; nothing in it is overwritten")->required();
  auto* config_app = app.add_subcommand("config", "Look at the configuration");
  config_app->require_subcommand(1);
  auto* print_app = config_app->add_subcommand("print", "Each value, and where it came from");
  print_app->add_flag("--effective", effective_only, "What an instance would run with (the default)");
  auto* check_app = config_app->add_subcommand("check", "Fail on what is unknown or wrong, with its line");
  for (auto* a : {serve_app, migrate_app, print_app, check_app}) f.add_to(*a);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (keys_app->parsed()) return nats_keys_command(keys_folder);
  config::effective c;
  if (!f.load(c, check_app->parsed())) return 2;
  if ((check_app->parsed() || serve_app->parsed()) && !has_usable_certificates(c)) return 2;
  if (check_app->parsed()) {
    std::cout << "the configuration is fine\n";
    return 0;
  }
  if (print_app->parsed()) {
    std::cout << config::print(c);
    return 0;
  }
  if (migrate_app->parsed()) return migrate_command(c, dry_run);
  return serve(c, [&f] { return config::load(f.file, f.environment(), f.given); });
}
