// services/warrenctl/trace.hpp -- asks for a URL as a visitor would, through each gateway, and then the agent and the
// target behind it; and judges who says no. Knows the admin API's resources and HTTP; calls no API.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "warren/admin/v1/admin.pb.h"

namespace warren::ctl {

namespace api = warren::admin::v1;

/// http://HOST[:PORT][/PATH], the scheme may be left out.
struct trace_url {
  std::string host;           ///< lower case, without port and final dot: what tunnels are found by
  std::string authority;      ///< as a visitor sends it
  std::string target = "/";   ///< path and query
};
/// Nothing: it is none; `why` says so.
std::optional<trace_url> parse_trace_url(const std::string& text, std::string& why);

/// The rule that covers a path, as gateways choose it: the longest prefix, by segments; -1: none.
int rule_for(const api::Tunnel& tunnel, const std::string& target);

/// Where a gateway takes visitors, and how that is known.
struct gateway_at {
  std::string name;
  std::string host;  ///< empty: not known
  std::string port;
  std::string known_by;
};
/// From what is given ("HOST:PORT", empty: nothing), else the class's first address; where that is every address of
/// its machine, the one that the gateway's stream comes from.
gateway_at locate(const api::Gateway& gateway, const api::GatewayClass* of_class, const std::string& given);

/// One thing that was asked.
struct trace_step {
  std::string who;    ///< "gateway", "agent", "target"
  std::string name, where, known_by;
  std::optional<double> connect_ms, first_byte_ms, total_ms;
  int status = 0;     ///< of HTTP; 0: no answer
  std::string reason; ///< x-warren-reason
  bool ok = false;
  std::string says;
};

struct trace_question {
  trace_url url;
  std::optional<api::Tunnel> tunnel;
  std::optional<api::Connector> connector;  ///< of the rule that covers the path
  int rule = -1;
  bool through_tunnel_gateway = false;      ///< its gateways dial no agent themselves
  std::vector<gateway_at> gateways;
  std::chrono::milliseconds timeout{5'000};  ///< for each answer
};

struct trace_result {
  std::vector<trace_step> steps;
  bool ok = false;            ///< every gateway lets visitors through to the target
  std::string who_says_no;    ///< "", "gateway", "tunnel", "connector", "agent", "target"
  std::string summary;
};
/// Dials, one after the other.
trace_result trace(const trace_question& q);
/// Who says no, by what the steps say. Pure.
void judge(const trace_question& q, trace_result& r);

}  // namespace warren::ctl
