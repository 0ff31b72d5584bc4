// services/warrenctl/output.cpp -- resources as tables, JSON, YAML or names; errors with hints. No network.
#include "services/warrenctl/output.hpp"

#include <algorithm>
#include <chrono>
#include <map>

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>
#include <nlohmann/json.hpp>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace warren::ctl {

namespace {

using nlohmann::ordered_json;

template <class Resource>
const api::Condition* condition(const Resource& r, std::string_view type) {
  for (const auto& c : r.conditions())
    if (c.type() == type) return &c;
  return nullptr;
}
std::string last_part(const std::string& name) { return name.substr(name.rfind('/') + 1); }
std::string yes(bool b) { return b ? "True" : "False"; }
std::string or_dash(std::string text) { return text.empty() ? "-" : text; }
template <class Texts>
std::string several(const Texts& all) {
  if (all.empty()) return "-";
  return all.size() == 1 ? all.Get(0) : fmt::format("{} +{}", all.Get(0), all.size() - 1);
}
std::string cut(std::string text, std::size_t max) {
  return text.size() <= max ? text : text.substr(0, max - 3) + "...";
}

void yaml(std::string& out, const ordered_json& j, std::size_t indent, bool in_list) {
  const std::string pad(indent, ' ');
  if (j.is_object() && !j.empty()) {
    bool first = in_list;
    for (const auto& [key, value] : j.items()) {
      if (!first) out += pad;
      first = false;
      out += key + ":";
      if ((value.is_object() || value.is_array()) && !value.empty()) {
        out += "\n";
        yaml(out, value, indent + 2, false);
      } else {
        out += " " + value.dump() + "\n";
      }
    }
  } else if (j.is_array() && !j.empty()) {
    for (const auto& value : j) {
      out += pad + "- ";
      if (value.is_object() && !value.empty())
        yaml(out, value, indent + 2, true);
      else
        out += value.dump() + "\n";
    }
  } else {
    out += pad + j.dump() + "\n";
  }
}

/// Not a table, and not names.
void print_object(std::ostream& out, format how, const ordered_json& all) {
  if (how == format::json) {
    out << all.dump(2) << '\n';
    return;
  }
  std::string text;
  yaml(text, all, 0, false);
  out << text;
}

/// The resource that it is.
std::string called(const google::protobuf::Message& m) {
  const auto* type = m.GetDescriptor();
  for (const auto* key : {"name", "id"}) {
    const auto* field = type->FindFieldByName(key);
    if (field == nullptr || field->is_repeated()) continue;
    if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_STRING) return m.GetReflection()->GetString(m, field);
    if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_INT64)
      return fmt::format("{} {}", type->name(), m.GetReflection()->GetInt64(m, field));
  }
  return "the answer (" + type->name() + ")";
}

std::string_view code_name(grpc::StatusCode code) {
  static const std::map<grpc::StatusCode, std::string_view> names{
      {grpc::StatusCode::CANCELLED, "CANCELLED"},
      {grpc::StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT"},
      {grpc::StatusCode::DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"},
      {grpc::StatusCode::NOT_FOUND, "NOT_FOUND"},
      {grpc::StatusCode::ALREADY_EXISTS, "ALREADY_EXISTS"},
      {grpc::StatusCode::PERMISSION_DENIED, "PERMISSION_DENIED"},
      {grpc::StatusCode::RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"},
      {grpc::StatusCode::FAILED_PRECONDITION, "FAILED_PRECONDITION"},
      {grpc::StatusCode::ABORTED, "ABORTED"},
      {grpc::StatusCode::OUT_OF_RANGE, "OUT_OF_RANGE"},
      {grpc::StatusCode::UNIMPLEMENTED, "UNIMPLEMENTED"},
      {grpc::StatusCode::INTERNAL, "INTERNAL"},
      {grpc::StatusCode::UNAVAILABLE, "UNAVAILABLE"},
  };
  const auto at = names.find(code);
  return at == names.end() ? "UNKNOWN" : at->second;
}

std::string hint(grpc::StatusCode code, const std::string& server, bool from_warrend, const std::string& listing) {
  switch (code) {
    case grpc::StatusCode::UNAVAILABLE:
      return from_warrend ? "try again in a moment"
                          : fmt::format("is warrend running at {}? Another one: --server HOST:PORT or WARREN_SERVER", server);
    case grpc::StatusCode::NOT_FOUND: return "see what there is" + (listing.empty() ? " with the verb list" : ": " + listing);
    case grpc::StatusCode::ALREADY_EXISTS: return "choose another name, or change it with the verb update";
    case grpc::StatusCode::ABORTED: return "it has changed since you read it: read it again and decide anew";
    case grpc::StatusCode::DEADLINE_EXCEEDED: return "give it longer with --timeout";
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return "wait a little and try again";
    case grpc::StatusCode::INVALID_ARGUMENT: return "correct what is named; --help says what is expected";
    case grpc::StatusCode::FAILED_PRECONDITION: return "change what is named first, then try again";
    case grpc::StatusCode::PERMISSION_DENIED: return "ask whoever may, or call as somebody else";
    case grpc::StatusCode::OUT_OF_RANGE: return "start anew: what it refers to is too long ago";
    case grpc::StatusCode::INTERNAL: return "a fault of Warren: the log of warrend says more";
    case grpc::StatusCode::UNIMPLEMENTED: return "the server is of another release: see warrenctl version";
    default: return {};
  }
}

}  // namespace

std::string to_json(const google::protobuf::Message& m, bool one_line) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = !one_line;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string out;
  if (const auto said = google::protobuf::util::MessageToJsonString(m, &out, options); !said.ok())
    throw unprintable{fmt::format("{} cannot be shown as JSON: {}", called(m), std::string{said.message()})};
  if (out.empty() || out.back() != '\n') out += '\n';
  return out;
}

std::string to_yaml(const google::protobuf::Message& m) {
  std::string out;
  yaml(out, ordered_json::parse(to_json(m, true)), 0, false);
  return out;
}

std::string project_of(const std::string& name) {
  constexpr std::string_view before = "projects/";
  if (!name.starts_with(before)) return {};
  return name.substr(before.size(), name.find('/', before.size()) - before.size());
}

std::string span(std::int64_t milliseconds) {
  const auto s = milliseconds / 1000;
  if (milliseconds < 1000) return fmt::format("{}ms", std::max<std::int64_t>(0, milliseconds));
  if (s < 120) return fmt::format("{}s", s);
  if (s < 7200) return s % 60 == 0 || s > 600 ? fmt::format("{}m", s / 60) : fmt::format("{}m{}s", s / 60, s % 60);
  if (s < 172800) return fmt::format("{}h", s / 3600);
  return fmt::format("{}d", s / 86400);
}

std::string age(const google::protobuf::Timestamp& t, bool relative) {
  if (t.seconds() == 0) return "-";
  if (!relative) return google::protobuf::util::TimeUtil::ToString(t);
  const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(
                       std::chrono::system_clock::now().time_since_epoch()).count();
  return span(now - t.seconds() * 1000 - t.nanos() / 1'000'000);
}

cells headers(const api::Tunnel*) { return {"NAME", "HOSTNAMES", "CONNECTOR", "READY", "REASON", "AGE"}; }
cells row(const api::Tunnel& t, bool relative) {
  const auto* ready = condition(t, "Ready");
  return {last_part(t.name()),
          several(t.hostnames()),
          t.rules().empty() ? "-" : t.rules_size() == 1 ? t.rules(0).connector()
                                                        : fmt::format("{} +{}", t.rules(0).connector(), t.rules_size() - 1),
          ready == nullptr ? "Unknown" : ready->status(),
          t.has_delete_time() ? "Deleting" : ready == nullptr ? "-" : ready->reason(),
          age(t.create_time(), relative)};
}

cells headers(const api::Connector*) { return {"NAME", "CLASS", "READY", "REASON", "ADDRESSES", "VERSION", "AGE"}; }
cells row(const api::Connector& c, bool relative) {
  const auto* ready = condition(c, "Ready");
  return {last_part(c.name()),
          c.connector_class(),
          ready == nullptr ? "Unknown" : ready->status(),
          c.has_delete_time() ? "Deleting" : ready == nullptr ? "-" : ready->reason(),
          several(c.addresses()),
          or_dash(c.agent_version()),
          age(c.create_time(), relative)};
}

std::string heard(const api::Connector& c, bool relative) {
  if (!c.has_hearing()) return "-";
  const auto& h = c.hearing();
  if (h.has_last_heartbeat_time()) return age(h.last_heartbeat_time(), relative) + (relative ? " ago" : "");
  return h.has_listening_since() ? fmt::format("not since takeover {}{}", age(h.listening_since(), relative), relative ? " ago" : "")
                                 : "never";
}

cells headers(const api::Gateway*) {
  return {"NAME", "CLASS", "STATE", "SINCE", "ACKNOWLEDGED", "LAG", "REFUSED", "NODE", "CLUSTER", "LOCALITY", "AGE"};
}
cells row(const api::Gateway& g, bool relative) {
  return {last_part(g.name()),
          g.gateway_class(),
          g.state(),
          age(g.state_since(), relative),
          fmt::format("{}/{}", g.acknowledged(), g.revision()),
          std::to_string(g.lag()),
          g.refusals() == 0 ? "-" : fmt::format("{}: {}", g.refusals(), cut(g.last_refusal().message(), 60)),
          or_dash(g.node_id()),
          or_dash(g.node_cluster()),
          or_dash(g.node_locality()),
          age(g.create_time(), relative)};
}

cells headers(const api::ConnectorClass*) { return {"NAME", "ALLOWED-NETWORKS", "AGE"}; }
cells row(const api::ConnectorClass& c, bool relative) {
  return {last_part(c.name()), several(c.allowed_networks()), age(c.create_time(), relative)};
}
cells headers(const api::GatewayClass*) { return {"NAME", "DIAL-MODE", "LISTEN", "IDLE-TIMEOUT", "AGE"}; }
cells row(const api::GatewayClass& c, bool relative) {
  return {last_part(c.name()), c.dial_mode(), several(c.listen()), span(c.stream_idle_timeout().seconds() * 1000),
          age(c.create_time(), relative)};
}

cells headers(const api::Instance*) { return {"ID", "NAME", "ALIVE", "BUS", "DRAINING", "PARTITIONS", "AGE"}; }
cells row(const api::Instance& i, bool relative) {
  return {last_part(i.name()) + (i.self() ? "*" : ""), i.display_name(), yes(i.alive()), yes(i.bus_ok()),
          i.draining() ? "yes" : "no", std::to_string(i.partitions()), age(i.start_time(), relative)};
}
cells headers(const api::Partition*) { return {"ID", "OWNER", "EPOCH", "REVISION", "REPLICA", "WARM", "HEARD"}; }
cells row(const api::Partition& p, bool) {
  return {last_part(p.name()), p.owner().empty() ? "-" : last_part(p.owner()), std::to_string(p.epoch()),
          std::to_string(p.revision()), std::to_string(p.replica_revision()), yes(p.warm()),
          p.has_heard() ? span(p.heard().seconds() * 1000 + p.heard().nanos() / 1'000'000) : "-"};
}
cells headers(const api::AuditEvent*) { return {"ID", "TIME", "WHO", "METHOD", "RESOURCE", "REQUEST"}; }
cells row(const api::AuditEvent& e, bool relative) {
  return {std::to_string(e.id()), age(e.time(), relative), e.principal(), e.method(), e.resource(),
          or_dash(cut(e.request_id(), 40))};
}

void print_table(std::ostream& out, const cells& head, const std::vector<cells>& rows, bool colour) {
  std::vector<std::size_t> width;
  for (const auto& h : head) width.push_back(h.size());
  for (const auto& r : rows)
    for (std::size_t i = 0; i < r.size(); ++i) width[i] = std::max(width[i], r[i].size());
  const auto line = [&](const cells& r, bool paint) {
    for (std::size_t i = 0; i < r.size(); ++i) {
      const auto* tint = !paint ? "" : r[i] == "True" || r[i] == "caught_up" ? "\033[32m" : r[i] == "False" || r[i] == "stalled" || r[i] == "gone" ? "\033[31m" : "";
      out << tint << r[i] << (*tint != 0 ? "\033[0m" : "");
      if (i + 1 < r.size()) out << std::string(width[i] - r[i].size() + 2, ' ');
    }
    out << '\n';
  };
  line(head, false);
  for (const auto& r : rows) line(r, colour);
}

void print_deleted(surroundings& around, format how, const std::string& name) {
  if (how == format::json || how == format::yaml) return print_object(around.out, how, {{"deleted", name}});
  around.out << name << (how == format::name ? "" : " deleted") << '\n';
}

void print_versions(surroundings& around, format how, const std::string& own, const std::string& address, const api::ServerInfo* server) {
  if (how == format::json || how == format::yaml) {
    ordered_json all{{"warrenctl", own}, {"address", address}, {"warrend", nullptr}};
    if (server != nullptr)
      all["warrend"] = {{"version", server->version()}, {"instance", server->instance()}, {"partitions", server->partitions()}, {"ready", server->ready()}};
    return print_object(around.out, how, all);
  }
  around.out << "warrenctl " << own << '\n';
  if (server == nullptr) around.out << fmt::format("no warrend answers at {}\n", address);
  else around.out << fmt::format("warrend {} at {} (instance {}, {})\n", server->version(), address, server->instance(), server->ready() ? "ready" : "not ready");
}

void print_trace(surroundings& around, format how, const std::string& url, const trace_question& q, const trace_result& r) {
  if (how == format::json || how == format::yaml) {
    ordered_json all{{"url", url}, {"ok", r.ok}, {"who_says_no", r.who_says_no}, {"summary", r.summary}};
    if (q.tunnel) all["tunnel"] = q.tunnel->name();
    if (q.rule >= 0) {
      const auto& rule = q.tunnel->rules(q.rule);
      all["rule"] = {{"path_prefix", rule.path_prefix()}, {"connector", rule.connector()}, {"target", rule.target()}};
    }
    all["steps"] = ordered_json::array();
    for (const auto& s : r.steps) {
      ordered_json step{{"who", s.who}, {"name", s.name}, {"where", s.where}, {"known_by", s.known_by}, {"ok", s.ok},
                        {"status", s.status}, {"reason", s.reason}, {"says", s.says}};
      if (s.connect_ms) step["connect_ms"] = *s.connect_ms;
      if (s.first_byte_ms) step["first_byte_ms"] = *s.first_byte_ms;
      if (s.total_ms) step["total_ms"] = *s.total_ms;
      all["steps"].push_back(std::move(step));
    }
    return print_object(around.out, how, all);
  }
  around.out << url << ": " << r.summary << '\n';
  if (q.rule >= 0) {
    const auto& rule = q.tunnel->rules(q.rule);
    around.out << fmt::format("{}, rule {} -> connector {} -> {}\n", q.tunnel->name(), rule.path_prefix(), rule.connector(), rule.target());
  } else if (q.tunnel) {
    around.out << q.tunnel->name() << '\n';
  }
  const auto ms = [](const std::optional<double>& n) { return n ? fmt::format("{:.1f}ms", *n) : std::string{"-"}; };
  std::vector<cells> rows;
  for (const auto& s : r.steps)
    rows.push_back({s.who, or_dash(s.name), s.where.empty() ? "-" : s.where + " (" + s.known_by + ")", ms(s.connect_ms), ms(s.first_byte_ms),
                    ms(s.total_ms), s.status == 0 ? "-" : std::to_string(s.status), s.says});
  print_table(around.out, {"WHO", "NAME", "WHERE", "CONNECT", "FIRST-BYTE", "TOTAL", "STATUS", "SAYS"}, rows, around.terminal);
}

void print_error(std::ostream& err, const grpc::Status& status, const std::string& server, const attempt& made) {
  err << "warrenctl: " << code_name(status.error_code()) << ": " << status.error_message() << '\n';
  google::rpc::Status details;
  const bool from_warrend = !status.error_details().empty() && details.ParseFromString(status.error_details());
  const bool late = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
  std::string request_id = late ? made.request_id : std::string{};
  for (const auto& any : details.details()) {
    google::rpc::BadRequest bad;
    google::rpc::ErrorInfo info;
    google::rpc::RequestInfo request;
    if (any.UnpackTo(&bad))
      for (const auto& v : bad.field_violations())
        if (const auto line = v.field() + ": " + v.description(); line != status.error_message()) err << "  " << line << '\n';
    if (any.UnpackTo(&info))
      if (const auto at = info.metadata().find("etag"); at != info.metadata().end())
        err << "  its etag is " << at->second << '\n';
    if (any.UnpackTo(&request)) request_id = request.request_id();
  }
  const auto said = late && !made.not_asked.empty()
                        ? fmt::format("there was no time to ask {}: name another one first in --server", fmt::join(made.not_asked, ", "))
                        : hint(status.error_code(), server, from_warrend, made.listing);
  if (!said.empty()) err << "hint: " << said << '\n';
  if ((late || status.error_code() == grpc::StatusCode::UNAVAILABLE) && !request_id.empty())
    err << "hint: safe to repeat with --request-id " << request_id << '\n';
}

}  // namespace warren::ctl
