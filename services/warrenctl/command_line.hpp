// services/warrenctl/command_line.hpp -- the words that warrenctl knows: nouns, their verbs, and what each may be given.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "services/warrenctl/session.hpp"

namespace warren::ctl {

struct verb {
  CLI::App* app;
  std::function<void(session&)> run;
};

class command_line {
public:
  command_line();
  command_line(const command_line&) = delete;
  command_line& operator=(const command_line&) = delete;

  CLI::App* noun(const char* name, const char* words);
  /// `named`: it is given a NAME.
  CLI::App* add(CLI::App* of, const char* name, const char* words, std::function<void(session&)> run, bool named);
  /// One without a noun.
  CLI::App* add(const char* name, const char* words, std::function<void(session&)> run);

  CLI::App app{"Operates Warren, the control plane of a tunnel service."};
  options o;
  std::vector<verb> verbs;
  CLI::App *completion = nullptr, *version = nullptr;
};

// Each adds its nouns, from the file of the same name.
void add_tunnels(command_line& line);
void add_connectors(command_line& line);
void add_gateways(command_line& line);
void add_classes(command_line& line);
void add_operations(command_line& line);
void add_trace(command_line& line);

}  // namespace warren::ctl
