// services/bus/disconnect_watch.cpp -- hears from the server's system account whose connection has ended.
#include "services/bus/disconnect_watch.hpp"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include "services/bus/subjects.hpp"

namespace warren::bus {

namespace {

constexpr std::size_t event_bytes_max = 64 * 1024;  // the server writes about 1 kB
constexpr std::string_view disconnect_subject = "$SYS.ACCOUNT.*.DISCONNECT";

}  // namespace

std::optional<std::string> disconnected_client(std::string_view event_json) {
  if (event_json.size() > event_bytes_max) return std::nullopt;
  google::protobuf::Struct event;
  if (!google::protobuf::util::JsonStringToMessage(std::string{event_json}, &event).ok()) return std::nullopt;
  const auto client = event.fields().find("client");
  if (client == event.fields().end() || !client->second.has_struct_value()) return std::nullopt;
  const auto& fields = client->second.struct_value().fields();
  const auto text = [&](const char* field) -> std::optional<std::string> {
    const auto at = fields.find(field);
    if (at == fields.end() || at->second.kind_case() != google::protobuf::Value::kStringValue) return std::nullopt;
    return at->second.string_value();
  };
  // With credentials of its own, an agent is who they say, whatever it calls its connection.
  const auto name = text("name"), issued_to = text("name_tag");
  if (!issued_to || issued_to->empty()) return name;
  if (parse_agent_connection_name(*issued_to)) return issued_to;
  return name && parse_agent_connection_name(*name) ? std::nullopt : name;
}

disconnect_watch::disconnect_watch(connection_options system_account, callback agent,
                                   std::function<void(std::string_view)> other, counters* counts) {
  system_account.bulk_connection = false;
  // The gauge of the connection is the main one's: two writers would overwrite each other.
  connection_ = connection::open(std::move(system_account), nullptr);
  subscription_ = connection_->subscribe(
      disconnect_subject, [agent = std::move(agent), other = std::move(other), counts](auto, auto payload, auto) {
        const auto name = disconnected_client(payload);
        if (!name) {
          if (counts != nullptr) counts->add("warren_bus_dropped_total", "garbage");
          return;
        }
        if (const auto who = parse_agent_connection_name(*name)) agent(who->project, who->kind, who->name);
        else if (other) other(*name);
      });
}

}  // namespace warren::bus
