// services/warren-agent/main.cpp -- the agent's command line. No decisions.
#include <cstdio>
#include <iostream>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include "services/telemetry/logging.hpp"
#include "services/warren-agent/agent.hpp"

namespace {

using warren::agent::exit_code;

void print_table(const nlohmann::json& s) {
  fmt::print("agent        {}/{} ({})\n", s.at("project").get<std::string>(), s.at("connector").get<std::string>(), s.at("public_key").get<std::string>());
  fmt::print("session      {} ({}), NATS {}\n", s.at("session").get<std::int64_t>(), s.at("phase").get<std::string>(),
             s.at("connected").get<bool>() ? "connected" : "away");
  if (const auto trouble = s.at("trouble").get<std::string>(); !trouble.empty()) fmt::print("trouble      {}\n", trouble);
  for (const auto& at : s.at("listening")) fmt::print("listening    {}\n", at.get<std::string>());
  const auto& c = s.at("connections");
  fmt::print("connections  {} open, {} tunnels\n", c.at("open").get<std::int64_t>(), c.at("tunnels").get<std::int64_t>());
  fmt::print("attachments  generation {}\n", s.at("generation").get<std::int64_t>());
  for (const auto& one : s.at("attachments"))
    for (const auto& rule : one.at("rules"))
      fmt::print("  {:<24} {:>6} {:>3}  {:<40} {} {}\n", one.at("tunnel").get<std::string>(), one.at("tunnel_generation").get<std::int64_t>(),
                 rule.at("rule").get<int>(), rule.at("target").get<std::string>(), rule.at("state").get<std::string>(), rule.at("message").get<std::string>());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"The agent beside a private service: lets gateways reach it, and nobody else.", "warren-agent"};
  app.require_subcommand(1);

  std::string key_file, enrolment_file, output = "table", log_level = "info";
  warren::agent::agent_options options;

  auto* keygen = app.add_subcommand("keygen", "Make a key and print its public half");
  keygen->add_option("--key", key_file, "File to write, mode 0600; never overwritten")->required();

  auto* run = app.add_subcommand("run", "Serve until stopped");
  run->add_option("--enrolment", enrolment_file, "File from `warrenctl connector enrol`")->required();
  run->add_option("--key", key_file, "File from `warren-agent keygen`")->required();
  run->add_option("--state", options.state_folder, "Folder for what has to outlive the process")->required();
  run->add_option("--listen", options.listen, "IP:PORT where gateways come in")->required();
  auto* advertise = run->add_option("--advertise", options.advertise, "IP:PORT where gateways find us; default: --listen");
  auto* relay = run->add_option("--home-relay", options.home_relay, "URL of the home relay");
  run->add_option("--advertise-file", options.advertise_file, "File of addresses, one a line; read again on SIGHUP")
      ->excludes(advertise)->excludes(relay);
  run->add_option("--target-ca", options.target_ca_file, "Authorities for https targets; default: the system's");
  run->add_option("--connections-max", options.connections_max, "Connections of gateways at a time")->check(CLI::Range(1, 1'000'000));
  run->add_option("--log-level", log_level)->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}));
  run->add_flag("--mute-heartbeats", options.mute_heartbeats, "For tests: answers, but sends no heartbeat");

  auto* status = app.add_subcommand("status", "Say how a running agent is");
  status->add_option("--state", options.state_folder, "Its --state")->required();
  status->add_option("-o,--output", output)->check(CLI::IsMember({"table", "json"}));

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : static_cast<int>(exit_code::usage);
  }

  try {
    if (*keygen) {
      fmt::print("{}\n", warren::agent::identity::generate(key_file).public_key_hex());
      return 0;
    }
    if (*status) {
      const auto text = warren::agent::ask_status(options.state_folder);
      if (output == "json") std::cout << text;
      else print_table(nlohmann::json::parse(text));
      return 0;
    }
    // Keys and spelling as in warrend's log, so that one query reads both.
    warren::telemetry::set_up_logging("", log_level);
    options.enrolled = warren::agent::read_enrolment(enrolment_file);
    if (const auto mode = warren::agent::others_may_read(enrolment_file); mode != 0 && options.enrolled.holds_secret())
      spdlog::warn("others may read the enrolment file {}, which holds a secret (mode {:o}): chmod 600 it", enrolment_file, mode);
    warren::agent::agent agent{std::move(options), warren::agent::identity::from_file(key_file)};
    agent.handle_signals();
    return static_cast<int>(agent.run());
  } catch (const std::exception& e) {
    fmt::print(stderr, "warren-agent: {}\n", e.what());
    return static_cast<int>(exit_code::failed);
  }
}
