// services/bus/user_jwt.hpp -- what NATS servers are shown of operators, accounts and users: JWTs (version 2) that say
// who may do what. Pure: time and randomness come in.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "services/bus/nkey.hpp"

namespace warren::bus {

/// Empty lists: everything.
struct permissions {
  std::vector<std::string> publish, subscribe;
  bool answers = false;  ///< may publish one answer to whatever it is asked
};

std::string operator_jwt(const nkey& operators, std::string_view name, std::string_view system_account_public,
                         std::int64_t issued_at_s);
std::string account_jwt(const nkey& operators, std::string_view account_public, std::string_view name,
                        std::int64_t issued_at_s);
/// `name` is what the server tells of the user's connections, whatever they call themselves.
std::string user_jwt(const nkey& account, std::string_view user_public, std::string_view name, const permissions& may,
                     std::int64_t issued_at_s);
/// The text of a .creds file: NATS' clients read it.
std::string credentials_text(std::string_view user_jwt, std::string_view user_seed);

/// Who issues credentials of one installation: the operator for the server's accounts, the account for those who
/// work in it, the system account for those who hear whose connection has ended.
struct issuers {
  nkey operators, account, system;
};
/// What a nats-server's configuration includes so that it lets in whom these issue credentials to. No secret.
std::string server_configuration(const issuers& by, std::int64_t issued_at_s);
/// .creds files: of the instances, who may do everything in the account; and of their watch on connections that end.
std::string instance_credentials(const issuers& by, std::string_view entropy, std::int64_t issued_at_s);
std::string watch_credentials(const issuers& by, std::string_view entropy, std::int64_t issued_at_s);

/// What an agent needs on the bus, and nothing else: its own subjects, and inboxes that are nobody else's.
struct agent_credentials {
  std::string jwt, seed, inbox_prefix;
};
/// `partition` is of the project. `entropy`: 32 random bytes, for the user's key; the inbox follows from it.
agent_credentials issue_agent_credentials(const nkey& account, int partition, std::string_view project, std::string_view kind,
                                          std::string_view name, std::string_view entropy, std::int64_t issued_at_s);

}  // namespace warren::bus
