// services/bus/disconnect_watch.hpp -- hears from the server's system account whose connection has ended.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "services/bus/connection.hpp"

namespace warren::bus {

/// Whose connection has ended, by a DISCONNECT event (JSON): whom its credentials were issued to where they say so of
/// an agent, else the name that the client has given it. nullopt: not such an event, or an agent's name that the
/// credentials do not bear out. Pure.
std::optional<std::string> disconnected_client(std::string_view event_json);

/// Calls back for each agent connection that ended (the name is the client's own word: a hint). Needs
/// credentials of the system account; without them there is no watch, and suspicion rests on the rest.
class disconnect_watch {
public:
  using callback = std::function<void(std::string_view project, std::string_view kind, std::string_view name)>;
  /// Also told: connections that are no agent's, by their name, to `other` when it is set (other instances).
  disconnect_watch(connection_options system_account, callback agent, std::function<void(std::string_view name)> other = {},
                   counters* counts = nullptr);
  void close() { connection_->close(); }
  connection& link() { return *connection_; }

private:
  std::shared_ptr<connection> connection_;
  subscription subscription_;
};

}  // namespace warren::bus
