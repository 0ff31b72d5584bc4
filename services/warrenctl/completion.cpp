// services/warrenctl/completion.cpp -- see completion.hpp. Made from the commands themselves, so that it forgets none.
#include "services/warrenctl/completion.hpp"

#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace warren::ctl {

namespace {

const auto any_app = [](const CLI::App*) { return true; };

std::string words_of(const CLI::App& of) {
  std::vector<std::string> all;
  for (const auto* each : of.get_subcommands(any_app)) all.push_back(each->get_name());
  return fmt::format("{}", fmt::join(all, " "));
}
/// "--name -n" of each option.
std::string flags_of(const CLI::App& of) {
  std::string all;
  for (const auto* option : of.get_options()) {
    for (const auto& name : option->get_lnames()) all += " --" + name;
    for (const auto& name : option->get_snames()) all += " -" + name;
  }
  return all;
}
/// Those that a value follows, of this application and all below it, as a pattern of the shell's case.
void add_valued(const CLI::App& of, std::set<std::string>& all) {
  for (const auto* option : of.get_options()) {
    if (option->get_expected_max() == 0) continue;
    for (const auto& name : option->get_lnames()) all.insert("--" + name);
    for (const auto& name : option->get_snames()) all.insert("-" + name);
  }
  for (const auto* each : of.get_subcommands(any_app)) add_valued(*each, all);
}

/// What may follow an option, where that is known.
const std::vector<std::pair<std::string, std::string>> option_values{
    {"output", "table json yaml name"}, {"for", "ready programmed accepted deleted"}, {"dial-mode", "direct tunnel-listener"}};  // but of diag, whose output is a file
const std::string shells = "bash zsh fish";

void print_bash(const CLI::App& app, std::ostream& out) {
  std::set<std::string> valued;
  add_valued(app, valued);
  out << "_warrenctl() {\n"
         "  local cur=\"${COMP_WORDS[COMP_CWORD]}\" prev=\"${COMP_WORDS[COMP_CWORD-1]}\" noun= verb= i\n"
         "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
         "    case \"${COMP_WORDS[i]}\" in\n"
         "      "
      << fmt::format("{}", fmt::join(valued, "|"))
      << "|:|=) i=$((i + 1));;\n"
         "      -*) ;;\n"
         "      *) if [ -z \"$noun\" ]; then noun=\"${COMP_WORDS[i]}\"; elif [ -z \"$verb\" ]; then verb=\"${COMP_WORDS[i]}\"; fi;;\n"
         "    esac\n"
         "  done\n"
         "  [ \"$noun\" = diag ] && prev=${prev/#-o/--file} && prev=${prev/#--output/--file}\n"
         "  case \"$prev\" in\n";
  for (const auto& [option, values] : option_values)
    out << "    --" << option << (option == "output" ? "|-o" : "") << ") COMPREPLY=($(compgen -W '" << values << "' -- \"$cur\")); return;;\n";
  out << "    --file|-f|--key-file) COMPREPLY=($(compgen -f -- \"$cur\")); return;;\n"
      << "    " << fmt::format("{}", fmt::join(valued, "|")) << ") COMPREPLY=(); return;;\n"
      << "  esac\n"
         "  local words=''\n"
         "  case \"$noun $verb\" in\n"
      << "    ' ') words='" << words_of(app) << "';;\n";
  for (const auto* noun : app.get_subcommands(any_app)) {
    const auto verbs = noun->get_name() == "completion" ? shells : words_of(*noun);
    out << "    '" << noun->get_name() << " ') words='" << (verbs.empty() ? flags_of(*noun) : verbs) << "';;\n";
    for (const auto* verb : noun->get_subcommands(any_app))
      out << "    '" << noun->get_name() << ' ' << verb->get_name() << "') words='" << flags_of(*verb) << "';;\n";
  }
  out << "  esac\n"
      << "  case \"$cur\" in -*) words=\"$words " << flags_of(app) << "\";; esac\n"
      << "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -F _warrenctl warrenctl\n";
}

std::string quoted(std::string text) {
  for (std::size_t at = 0; (at = text.find_first_of("'\\", at)) != std::string::npos; at += 2) text.insert(at, "\\");
  return "'" + text + "'";
}
void print_fish_options(const CLI::App& of, const std::string& when, std::ostream& out) {
  for (const auto* option : of.get_options()) {
    if (option->get_lnames().empty()) continue;
    out << "complete -c warrenctl" << (when.empty() ? "" : " -n " + quoted(when)) << " -l " << option->get_lnames().front();
    if (!option->get_snames().empty()) out << " -s " << option->get_snames().front();
    if (option->get_expected_max() > 0) out << " -r";
    for (const auto& [name, values] : option_values)
      if (name == option->get_lnames().front() && of.get_name() != "diag") out << " -f -a " << quoted(values);
    out << " -d " << quoted(option->get_description()) << '\n';
  }
}
void print_fish(const CLI::App& app, std::ostream& out) {
  const std::string seen = "__fish_seen_subcommand_from ";
  out << "complete -c warrenctl -f\n";
  print_fish_options(app, "", out);
  for (const auto* noun : app.get_subcommands(any_app)) {
    const auto verbs = noun->get_name() == "completion" ? shells : words_of(*noun);
    out << "complete -c warrenctl -n __fish_use_subcommand -a " << noun->get_name() << " -d " << quoted(noun->get_description()) << '\n';
    const auto before = seen + noun->get_name() + "; and not " + seen + verbs;
    if (noun->get_name() == "completion") out << "complete -c warrenctl -n " << quoted(before) << " -a " << quoted(verbs) << '\n';
    if (verbs.empty()) print_fish_options(*noun, seen + noun->get_name(), out);
    for (const auto* verb : noun->get_subcommands(any_app)) {
      out << "complete -c warrenctl -n " << quoted(before) << " -a " << verb->get_name() << " -d " << quoted(verb->get_description()) << '\n';
      print_fish_options(*verb, seen + noun->get_name() + "; and " + seen + verb->get_name(), out);
    }
  }
}

}  // namespace

void print_completion(const CLI::App& app, const std::string& shell, std::ostream& out) {
  if (shell == "fish") return print_fish(app, out);
  if (shell == "zsh") out << "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n";
  print_bash(app, out);
}

}  // namespace warren::ctl
