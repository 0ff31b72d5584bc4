// services/warrenctl/command.cpp -- the whole command line: parses, runs one verb, and says how it ended.
#include "services/warrenctl/command.hpp"

#include <algorithm>

#include "services/warrenctl/command_line.hpp"
#include "services/warrenctl/completion.hpp"

#ifndef WARREN_VERSION
#define WARREN_VERSION "0.1.0"
#endif

namespace warren::ctl {

command_line::command_line() {
  app.name("warrenctl");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--server", o.server, "HOST:PORT or unix:PATH of a warrend; of several, A,B,C, the next one is asked when one does not answer")->envname("WARREN_SERVER")->capture_default_str();
  app.add_option("-p,--project", o.project, "Project")->envname("WARREN_PROJECT")->capture_default_str();
  app.add_flag("-A,--all-projects", o.all_projects, "list and watch: of all projects");
  app.add_option("-o,--output", o.output, "table, json, yaml or name")->check(CLI::IsMember({"table", "json", "yaml", "name"}));
  app.add_flag("-w,--watch", o.watch, "list and get of tunnels, connectors and gateways: go on with what changes");
  app.add_option("--filter", o.filter, "list: FIELD OP VALUE [AND ...]");
  app.add_option("--sort-by", o.sort_by, "list: FIELD [desc], ...");
  app.add_option("--timeout", o.timeout, "for example 30s (default: 10s; wait: 30s; watch: none)");
  app.add_option("--request-id", o.request_id, "makes a change safe to repeat");
  app.add_option("--etag", o.etag, "change only what still has this etag");
  add_tunnels(*this);
  add_connectors(*this);
  add_gateways(*this);
  add_classes(*this);
  add_operations(*this);
  add_trace(*this);
  completion = app.add_subcommand("completion", "Print the shell's completion script");
  completion->add_option("SHELL", o.shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  version = app.add_subcommand("version", "Versions of warrenctl and of the server, when one answers");
  version->fallthrough();
}

CLI::App* command_line::noun(const char* name, const char* words) {
  auto* n = app.add_subcommand(name, words);
  n->require_subcommand(1);
  n->fallthrough();
  return n;
}
CLI::App* command_line::add(CLI::App* of, const char* name, const char* words, std::function<void(session&)> run, bool named) {
  auto* v = of->add_subcommand(name, words);
  v->fallthrough();
  if (named) v->add_option("NAME", o.name, "its name")->required();
  verbs.push_back({v, std::move(run)});
  return v;
}
CLI::App* command_line::add(const char* name, const char* words, std::function<void(session&)> run) {
  auto* v = app.add_subcommand(name, words);
  v->fallthrough();
  verbs.push_back({v, std::move(run)});
  return v;
}

namespace {

void print_version(session& s) {
  s.refuse_names("version");
  if (s.o.timeout.empty()) s.timeout = milliseconds{1000} * s.servers.size();
  std::optional<api::ServerInfo> server;
  try {
    server = s.call<api::OperationsService>(&api::OperationsService::Stub::GetServerInfo, api::GetServerInfoRequest{});
  } catch (const refused&) {
  }
  print_versions(s.around, s.out_format, WARREN_VERSION, s.o.server, server ? &*server : nullptr);
}

/// A word that is no verb is what is wrong, not that one is missing; empty: it is something else.
std::string unknown_word(const CLI::App& app, std::string& hint) {
  const auto any = [](const CLI::App*) { return true; };
  const auto unknown = app.remaining(true);
  const CLI::App* at = &app;
  for (const auto* noun : app.get_subcommands())
    if (!noun->get_subcommands(any).empty() && noun->get_subcommands().empty()) at = noun;
  const auto known = at->get_subcommands(any);
  if (unknown.empty() || known.empty()) return {};
  std::vector<std::string> names;
  for (const auto* each : known) names.push_back(each->get_name());
  hint = fmt::format("there are: {}", fmt::join(names, ", "));
  return fmt::format("{} knows no {}", at->get_name(), unknown.front());
}

/// How to list what a verb is about one of; empty: not at all.
std::string listing_of(const command_line& line) {
  for (const auto& v : line.verbs) {
    if (!v.app->parsed()) continue;
    const auto* noun = v.app->get_parent();
    if (noun->get_subcommands([](const CLI::App* each) { return each->get_name() == "list"; }).empty()) continue;
    const bool of_project = noun->get_name() == "tunnel" || noun->get_name() == "connector";
    return fmt::format("warrenctl {} list", noun->get_name()) + (of_project ? project_words(line.o) + "; in all projects: -A" : "");
  }
  return {};
}

void run_verb(const verb& v, session& s) {
  const auto noun = v.app->get_parent()->get_name(), name = v.app->get_name();
  const bool of_project = noun == "tunnel" || noun == "connector";
  if (s.o.watch && ((!of_project && noun != "gateway") || (name != "list" && name != "get")))
    throw usage{"--watch is for list and get of tunnels, connectors and gateways"};
  const bool followed = name == "watch" || s.o.watch;
  if (followed && !(s.o.filter.empty() && s.o.sort_by.empty()))
    throw usage{"what is watched is not filtered and has no order: --filter and --sort-by are for list"};
  if (s.o.all_projects && of_project && ((name != "list" && name != "watch") || !s.o.name.empty()))
    throw usage{fmt::format("{} {} is about one project: name it with --project, without --all-projects", noun, name)};
  v.run(s);
}

}  // namespace

int run(std::vector<std::string> arguments, surroundings& around) {
  const auto say = [&](std::string_view code, const std::string& message, const std::string& hint) {
    around.err << fmt::format("warrenctl: {}: {}\nhint: {}\n", code, message, hint);
  };
  command_line line;
  try {
    std::reverse(arguments.begin(), arguments.end());
    line.app.parse(arguments);
  } catch (const CLI::Success& e) {
    line.app.exit(e, around.out, around.err);
    return done;
  } catch (const CLI::ParseError& e) {
    std::string message, hint = "--help says more";
    if (dynamic_cast<const CLI::RequiredError*>(&e) != nullptr) message = unknown_word(line.app, hint);
    say("USAGE", message.empty() ? e.what() : message, hint);
    return wrong_usage;
  }
  try {
    if (line.completion->parsed()) {
      print_completion(line.app, line.o.shell, around.out);
      return done;
    }
    session s{line.o, around};
    if (line.version->parsed()) print_version(s);
    for (const auto& v : line.verbs)
      if (v.app->parsed()) run_verb(v, s);
    return done;
  } catch (const usage& u) {
    say("USAGE", u.message, "--help says more");
    return wrong_usage;
  } catch (const said_no&) {
    return failed;
  } catch (const too_late& t) {
    say("TIMED_OUT", t.message, t.hint);
    return timed_out;
  } catch (const refused& r) {
    // A watch that was to last so long has done what it was told.
    const bool watched = std::any_of(line.verbs.begin(), line.verbs.end(),
                                     [](const verb& v) { return v.app->parsed() && v.app->get_name() == "watch"; });
    if ((line.o.watch || watched) && r.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return timed_out;
    auto made = r.made;
    made.listing = listing_of(line);
    print_error(around.err, r.status, line.o.server, made);
    return r.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ? timed_out : failed;
  } catch (const unprintable& u) {
    say("INTERNAL", u.what(), "-o table shows the rest of it");
    return failed;
  } catch (const std::exception& e) {
    say("INTERNAL", e.what(), "a fault of warrenctl: what it was told, and this line, say more");
    return failed;
  }
}

}  // namespace warren::ctl
