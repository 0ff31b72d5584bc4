// services/warrenctl/tunnels.cpp -- the verbs of tunnels.
#include "services/warrenctl/command_line.hpp"

namespace warren::ctl {

namespace {

/// What the options say about a tunnel; `mask` gets the fields that they say something about.
api::Tunnel tunnel_from(const options& o, google::protobuf::FieldMask* mask) {
  api::Tunnel t;
  if (!o.file.empty()) t = message_of<api::Tunnel>(o.file);
  const auto touched = [&](const char* field) {
    if (mask != nullptr) mask->add_paths(field);
  };
  if (!o.hostnames.empty()) {
    t.clear_hostnames();
    for (const auto& h : o.hostnames) t.add_hostnames(h);
    touched("hostnames");
  }
  if (!o.connector.empty() != !o.target.empty()) throw usage{"--connector and --target go together"};
  if (!o.connector.empty() || !o.rules.empty()) {
    t.clear_rules();
    touched("rules");
  }
  if (!o.connector.empty()) {
    auto& r = *t.add_rules();
    r.set_path_prefix(o.path_prefix);
    r.set_connector(o.connector);
    r.set_target(o.target);
  }
  for (const auto& text : o.rules) {
    const auto equals = text.find('=');
    const auto comma = text.find(',', equals == std::string::npos ? 0 : equals);
    if (equals == std::string::npos || comma == std::string::npos)
      throw usage{"--rule is PATH=CONNECTOR,TARGET, for example /api=backend,http://localhost:8080"};
    auto& r = *t.add_rules();
    r.set_path_prefix(text.substr(0, equals));
    r.set_connector(text.substr(equals + 1, comma - equals - 1));
    r.set_target(text.substr(comma + 1));
  }
  if (o.insecure)
    for (auto& r : *t.mutable_rules()) r.set_tls_verify(false);
  if (!o.gateway_class.empty()) {
    t.set_gateway_class(o.gateway_class);
    touched("gateway_class");
  }
  if (o.disabled && o.enabled) throw usage{"--enabled and --disabled contradict each other"};
  if (o.disabled || o.enabled) {
    t.set_enabled(o.enabled);
    touched("enabled");
  }
  return t;
}

void create_tunnel(session& s) {
  api::CreateTunnelRequest q;
  q.set_parent(s.parent());
  q.set_tunnel_id(s.o.name);
  *q.mutable_tunnel() = tunnel_from(s.o, nullptr);
  q.set_request_id(s.o.request_id);
  s.show(s.call<tunnels>(&tunnels::Stub::CreateTunnel, q));
}
void update_tunnel(session& s) {
  api::UpdateTunnelRequest q;
  google::protobuf::FieldMask mask;
  *q.mutable_tunnel() = tunnel_from(s.o, &mask);
  if (s.o.file.empty()) *q.mutable_update_mask() = mask;  // of a file, what it says counts
  q.mutable_tunnel()->set_name(s.full("tunnels"));
  if (!s.o.etag.empty()) q.mutable_tunnel()->set_etag(s.o.etag);
  q.set_request_id(s.o.request_id);
  s.show(s.call<tunnels>(&tunnels::Stub::UpdateTunnel, q));
}
void watch_tunnels(session& s) {
  api::WatchTunnelsRequest q;
  q.set_parent(s.parent());
  s.watch<tunnels>(&tunnels::Stub::WatchTunnels, q, s.o.name.empty() ? "" : s.full("tunnels"),
                   [](const api::WatchTunnelsResponse& r) { return r.tunnel(); });
}

void explain_tunnel(session& s) {
  s.refuse_names("why");
  show_chain(s, s.call<tunnels>(&tunnels::Stub::ExplainTunnel, s.named<api::ExplainTunnelRequest>("tunnels")));
}

void wait_for_tunnel(session& s) {
  const auto name = s.full("tunnels");
  const auto patience = s.o.timeout.empty() ? milliseconds{30'000} : s.timeout;
  const std::string type = s.o.wait_for == "ready" ? "Ready" : s.o.wait_for == "programmed" ? "Programmed" : "Accepted";
  const bool deleted = s.o.wait_for == "deleted";
  api::WatchTunnelsRequest q;
  q.set_parent(name.substr(0, name.find("/tunnels/")));
  std::optional<api::Tunnel> last;
  bool reached = false;
  try {
    s.follow<tunnels>(&tunnels::Stub::WatchTunnels, q, system_clock::now() + patience,
                      [&](const api::WatchTunnelsResponse& r) {
                        if (r.tunnel().name() == name) last = r.tunnel();
                        if (r.deleted() == name) last.reset();
                        if (deleted) return reached = r.deleted() == name || (r.has_caught_up() && !last);
                        if (r.has_caught_up() && !last)
                          throw refused{grpc::Status{grpc::StatusCode::NOT_FOUND, "there is no " + name}};
                        if (r.tunnel().name() != name) return false;
                        for (const auto& c : last->conditions())
                          if (c.type() == type && c.status() == "True" && c.observed_generation() == last->generation())
                            reached = true;
                        return reached;
                      });
  } catch (const refused& r) {
    if (r.status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) throw;
    std::string why;
    if (last)
      for (const auto& c : last->conditions())
        if (c.type() == type) why = fmt::format(": {} {} {}", c.status(), c.reason(), c.message());
    throw too_late{fmt::format("{} is not {} after {}{}", name, s.o.wait_for, span(patience.count()), why),
                   fmt::format("warrenctl tunnel why {}{}", name.substr(name.rfind('/') + 1), project_words(s.o))};
  }
  if (last && !deleted) s.show(*last);
  else print_deleted(s.around, s.out_format, name);
}

void spec_of_tunnel(command_line& line, CLI::App* v) {
  v->add_option("--hostname", line.o.hostnames, "public host name; repeatable")->allow_extra_args(false);
  v->add_option("--connector", line.o.connector, "of a tunnel with one rule");
  v->add_option("--target", line.o.target, "http://HOST:PORT or https://HOST:PORT, seen from the agent");
  v->add_option("--path-prefix", line.o.path_prefix, "of that rule")->capture_default_str();
  v->add_option("--rule", line.o.rules, "PATH=CONNECTOR,TARGET; repeatable")->allow_extra_args(false);
  v->add_flag("--insecure-target", line.o.insecure, "do not verify the certificate of an https target");
  v->add_option("--gateway-class", line.o.gateway_class, "which gateways carry it");
  v->add_flag("--disabled", line.o.disabled, "visitors get 503, and the tunnel's open connections end");
  v->add_flag("--enabled", line.o.enabled, "the opposite");
  v->add_option("-f,--file", line.o.file, "a tunnel as JSON; - reads standard input");
}

}  // namespace

void add_tunnels(command_line& line) {
  auto* n = line.noun("tunnel", "Public host names that lead to targets behind connectors");
  line.add(n, "list", "List tunnels", [](session& s) {
    if (s.o.watch) return watch_tunnels(s);
    s.list<tunnels>(&tunnels::Stub::ListTunnels, s.listing<api::ListTunnelsRequest>(), [](auto& r) { return r.mutable_tunnels(); });
  }, false);
  line.add(n, "get", "Show a tunnel", [](session& s) {
    if (s.o.watch) return watch_tunnels(s);
    s.show(s.call<tunnels>(&tunnels::Stub::GetTunnel, s.named<api::GetTunnelRequest>("tunnels")));
  }, true);
  spec_of_tunnel(line, line.add(n, "create", "Create a tunnel", create_tunnel, true));
  spec_of_tunnel(line, line.add(n, "update", "Change what is named on the command line", update_tunnel, true));
  line.add(n, "delete", "Delete a tunnel", [](session& s) {
    s.show(s.call<tunnels>(&tunnels::Stub::DeleteTunnel, s.named<api::DeleteTunnelRequest>("tunnels")));
  }, true);
  line.add(n, "watch", "Follow tunnels", watch_tunnels, false)->add_option("NAME", line.o.name, "only this one");
  line.add(n, "why", "Which link between a visitor and the target is missing", explain_tunnel, true);
  line.add(n, "wait", "Wait until a tunnel is what it shall be", wait_for_tunnel, true)
      ->add_option("--for", line.o.wait_for, "ready, programmed, accepted or deleted")
      ->check(CLI::IsMember({"ready", "programmed", "accepted", "deleted"}));
}

}  // namespace warren::ctl
