// services/warrenctl/completion.hpp -- what shells need to complete a command line.
#pragma once

#include <ostream>
#include <string>

#include <CLI/CLI.hpp>

namespace warren::ctl {

/// `shell`: bash, zsh or fish.
void print_completion(const CLI::App& app, const std::string& shell, std::ostream& out);

}  // namespace warren::ctl
