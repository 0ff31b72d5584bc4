// services/warrenctl/output.hpp -- resources as tables, JSON, YAML or names; errors with hints. No network.
#pragma once

#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <google/protobuf/message.h>
#include <grpcpp/support/status.h>

#include "services/warrenctl/command.hpp"
#include "services/warrenctl/trace.hpp"
#include "warren/admin/v1/admin.pb.h"

namespace warren::ctl {

namespace api = warren::admin::v1;

enum class format : std::uint8_t { table, json, yaml, name };

/// There is something in it that JSON cannot say: a time beyond the year 9999, a text that is no UTF-8.
struct unprintable : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// Both: Errors: unprintable, naming the message by its name or id where it has one.
std::string to_json(const google::protobuf::Message& m, bool one_line);
std::string to_yaml(const google::protobuf::Message& m);

/// "3m", "2h5m"; RFC 3339 when not relative; "-" for an unset time.
std::string age(const google::protobuf::Timestamp& t, bool relative);
std::string span(std::int64_t milliseconds);

using cells = std::vector<std::string>;
cells headers(const api::Tunnel*);
cells headers(const api::Connector*);
cells headers(const api::Gateway*);
cells headers(const api::ConnectorClass*);
cells headers(const api::GatewayClass*);
cells headers(const api::Instance*);
cells headers(const api::Partition*);
cells headers(const api::AuditEvent*);
cells row(const api::Tunnel& t, bool relative);
cells row(const api::Connector& c, bool relative);
cells row(const api::Gateway& g, bool relative);
cells row(const api::ConnectorClass& c, bool relative);
cells row(const api::GatewayClass& c, bool relative);
cells row(const api::Instance& i, bool relative);
cells row(const api::Partition& p, bool relative);
cells row(const api::AuditEvent& e, bool relative);

/// "projects/P/…" is of P; empty: of none.
std::string project_of(const std::string& name);

/// When its agent was last heard; "-" when its owner has not said.
std::string heard(const api::Connector& c, bool relative);

/// Columns as wide as they have to be; True in green and False in red when `colour`.
void print_table(std::ostream& out, const cells& head, const std::vector<cells>& rows, bool colour);

/// What is gone.
void print_deleted(surroundings& around, format how, const std::string& name);
/// This program's version, and the server's; null: none answers at `address`.
void print_versions(surroundings& around, format how, const std::string& own, const std::string& address, const api::ServerInfo* server);

/// What was asked, of whom, how long each took, and who says no.
void print_trace(surroundings& around, format how, const std::string& url, const trace_question& q, const trace_result& r);

/// What was done before it failed.
struct attempt {
  std::vector<std::string> not_asked = {};  ///< of the servers, for want of time
  std::string request_id = {};              ///< of a change
  std::string listing = {};                 ///< how what there is can be listed; empty: not at all
};
/// Code, message, each field, and what to do about it.
void print_error(std::ostream& err, const grpc::Status& status, const std::string& server, const attempt& made);

}  // namespace warren::ctl
