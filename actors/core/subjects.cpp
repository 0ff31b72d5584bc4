// actors/core/subjects.cpp -- every NATS subject of ours, built and parsed. Pure: no NATS, no CAF.
#include "actors/core/subjects.hpp"

#include <array>
#include <charconv>
#include <cstddef>

namespace warren::bus {

namespace {

constexpr std::string_view root = "warren.v1.";
constexpr std::string_view instance_prefix = "warrend/";
constexpr std::size_t tokens_max = 8;
constexpr partition_id partition_max = 65'535;  // far beyond any installation; keeps the parser's numbers small

template <class... Tokens>
std::string joined(std::string_view room, Tokens... tokens) {
  std::string out{root};
  out.append(room);
  ((out.push_back('.'), out.append(tokens)), ...);
  return out;
}

bool is_kind(std::string_view text) { return text == kind_connector || text == kind_peer; }

std::optional<partition_id> parse_partition(std::string_view text) {
  if (text.empty() || text.size() > 5 || (text.size() > 1 && text.front() == '0') || text.front() == '-') return std::nullopt;
  partition_id out = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc{} || end != text.data() + text.size() || out > partition_max) return std::nullopt;
  return out;
}

/// Tokens between dots; 0 when there are more than fit.
std::size_t split(std::string_view text, char by, std::array<std::string_view, tokens_max>& out) {
  std::size_t count = 0;
  while (true) {
    if (count == tokens_max) return 0;
    const auto at = text.find(by);
    out.at(count++) = text.substr(0, at);
    if (at == std::string_view::npos) return count;
    text.remove_prefix(at + 1);
  }
}

}  // namespace

std::string hello_subject(partition_id partition, std::string_view project, std::string_view kind, std::string_view name) {
  return joined("hello", std::to_string(partition), project, kind, name);
}
std::string heartbeat_subject(partition_id partition, std::string_view project, std::string_view kind, std::string_view name) {
  return joined("hb", std::to_string(partition), project, kind, name);
}
std::string event_subject(partition_id partition, std::string_view project, std::string_view kind, std::string_view name) {
  return joined("ev", std::to_string(partition), project, kind, name);
}
std::string command_subject(std::string_view project, std::string_view kind, std::string_view name) {
  return joined("cmd", project, kind, name);
}
std::string api_subject(partition_id partition) { return joined("api", std::to_string(partition)); }
std::string revision_subject(partition_id partition) { return joined("rev", std::to_string(partition)); }
std::string ack_subject(partition_id partition) { return joined("ack", std::to_string(partition)); }
std::string hello_wildcard(partition_id partition) { return joined("hello", std::to_string(partition), ">"); }
std::string heartbeat_wildcard(partition_id partition) { return joined("hb", std::to_string(partition), ">"); }
std::string event_wildcard(partition_id partition) { return joined("ev", std::to_string(partition), ">"); }

std::optional<parsed_subject> parse_subject(std::string_view subject) {
  if (subject == lease_subject) return parsed_subject{};
  if (subject.substr(0, root.size()) != root) return std::nullopt;
  std::array<std::string_view, tokens_max> token{};
  const auto count = split(subject.substr(root.size()), '.', token);

  parsed_subject out;
  const auto named = [&](std::size_t from) {
    out.project = token.at(from);
    out.kind = token.at(from + 1);
    out.name = token.at(from + 2);
    return protocol::is_label(out.project) && is_kind(out.kind) && protocol::is_label(out.name);
  };
  if (token[0] == "cmd") {
    out.room = subject_room::command;
    if (count != 4 || !named(1)) return std::nullopt;
    return out;
  }
  const auto partition = count >= 2 ? parse_partition(token[1]) : std::nullopt;
  if (!partition) return std::nullopt;
  out.partition = *partition;

  if (token[0] == "hello") out.room = subject_room::hello;
  else if (token[0] == "hb") out.room = subject_room::heartbeat;
  else if (token[0] == "ev") out.room = subject_room::event;
  else {
    if (token[0] == "api") out.room = subject_room::api;
    else if (token[0] == "rev") out.room = subject_room::revision;
    else if (token[0] == "ack") out.room = subject_room::ack;
    else return std::nullopt;
    if (count != 2) return std::nullopt;
    return out;
  }
  if (count != 5 || !named(2)) return std::nullopt;
  return out;
}

std::string agent_connection_name(std::string_view project, std::string_view kind, std::string_view name) {
  std::string out{"warren-agent/"};
  out.append(project).append("/").append(kind).append("/").append(name);
  return out;
}

std::string instance_connection_name(std::string_view name, instance_id id) {
  std::string out{instance_prefix};
  out.append(name).append("/").append(std::to_string(id));
  return out;
}

std::optional<instance_id> parse_instance_connection_name(std::string_view connection_name) {
  if (!connection_name.starts_with(instance_prefix)) return std::nullopt;
  const auto digits = connection_name.substr(connection_name.rfind('/') + 1);
  instance_id out = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
  if (error != std::errc{} || end != digits.data() + digits.size() || out <= 0) return std::nullopt;
  return out;
}

std::optional<parsed_agent> parse_agent_connection_name(std::string_view connection_name) {
  std::array<std::string_view, tokens_max> token{};
  if (split(connection_name, '/', token) != 4 || token[0] != "warren-agent") return std::nullopt;
  if (!protocol::is_label(token[1]) || !is_kind(token[2]) || !protocol::is_label(token[3])) return std::nullopt;
  return parsed_agent{token[1], token[2], token[3]};
}

}  // namespace warren::bus
