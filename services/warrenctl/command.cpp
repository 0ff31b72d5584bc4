// services/warrenctl/command.cpp -- the whole command line: parses, calls, prints. Knows the admin API only.
#include "services/warrenctl/command.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include "actors/core/limits.hpp"
#include "services/warrenctl/diag.hpp"
#include "services/warrenctl/output.hpp"
#include "services/warrenctl/trace.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

#ifndef WARREN_VERSION
#define WARREN_VERSION "0.1.0"
#endif

namespace warren::ctl {

namespace {

using std::chrono::milliseconds;
using std::chrono::system_clock;

struct refused { grpc::Status status; };      // the server, or nobody, said no
struct usage { std::string message; };        // the command line makes no sense
struct too_late { std::string message, hint; };  // what was waited for has not come
struct said_no {};                            // it has been told; the exit code says it too

std::optional<milliseconds> parse_span(const std::string& text) {
  std::int64_t n = 0;
  const auto [unit, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  const std::string_view u{unit, static_cast<std::size_t>(text.data() + text.size() - unit)};
  if (error != std::errc{} || n < 0 || n > 1'000'000'000) return std::nullopt;
  if (u == "ms") return milliseconds{n};
  if (u == "s" || u.empty()) return milliseconds{n * 1000};
  if (u == "m") return milliseconds{n * 60'000};
  if (u == "h") return milliseconds{n * 3'600'000};
  return std::nullopt;
}
void put(google::protobuf::Duration& to, const std::string& text, const std::string& option) {
  const auto span = parse_span(text);
  if (!span) throw usage{option + " is a time such as 30s, 500ms or 5m"};
  to.set_seconds(span->count() / 1000);
  to.set_nanos(static_cast<std::int32_t>(span->count() % 1000) * 1'000'000);
}

std::string read_file(const std::string& path) {
  std::ifstream in{path == "-" ? "/dev/stdin" : path, std::ios::binary};
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) throw usage{"cannot read " + path};
  return text.str();
}
template <class Message>
Message message_of(const std::string& path) {
  Message m;
  const auto status = google::protobuf::util::JsonStringToMessage(read_file(path), &m);
  if (!status.ok()) throw usage{fmt::format("{}: {}", path, std::string{status.message()})};
  return m;
}

/// It was no warrend that said so, or one on its way out: its refusals have details.
bool unanswered(const grpc::Status& status) {
  return status.error_details().empty() &&
         (status.error_code() == grpc::StatusCode::UNAVAILABLE || status.error_code() == grpc::StatusCode::CANCELLED);
}
std::string fresh_request_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

/// What every command may be given, and what it says of its resource.
struct options {
  std::string server = "127.0.0.1:7443", project = "default", output = "table", filter, sort_by, timeout, request_id,
              etag;
  bool watch = false;
  // of the verbs
  std::string name, file, connector, target, path_prefix = "/", gateway_class, connector_class, lease, public_key,
      key_file, instance, bundle, wait_for = "ready", dial_mode, idle_timeout, shell;
  std::vector<std::string> hostnames, rules, networks, listen, gateway_addresses;
  bool disabled = false, enabled = false, insecure = false, all_projects = false, wait = false;
  int limit = 100;
};

class session {
public:
  session(const options& given, surroundings& where) : o{given}, around{where} {
    if (o.output == "json") out_format = format::json;
    else if (o.output == "yaml") out_format = format::yaml;
    else if (o.output == "name") out_format = format::name;
    if (!o.timeout.empty()) {
      const auto span = parse_span(o.timeout);
      if (!span || span->count() == 0) throw usage{"--timeout is a time such as 30s, 500ms or 5m"};
      timeout = *span;
    }
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // the admin API is local; a proxy cannot reach it
    arguments.SetMaxReceiveMessageSize(64 * 1024 * 1024);
    std::istringstream addresses{o.server};
    for (std::string each; std::getline(addresses, each, ',');)
      if (!each.empty()) servers.push_back(grpc::CreateCustomChannel(each, grpc::InsecureChannelCredentials(), arguments));
    if (servers.empty()) throw usage{"--server names nobody"};
    channel = servers.front();
  }

  /// Another one is asked from now on, if there is another one.
  void ask_next() { channel = servers[++asked % servers.size()]; }

  template <class Service, class Request, class Response>
  Response call(grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
    auto asks = request;
    if constexpr (requires { asks.set_request_id(""); })
      if (asks.request_id().empty()) asks.set_request_id(fresh_request_id());
    const auto until = system_clock::now() + timeout;
    // Whoever is asked may die under the call: the next one is asked the same, and the request id makes it one change.
    for (std::size_t tries = 1;; ++tries) {
      grpc::ClientContext context;
      context.set_deadline(until);
      Response response;
      auto stub = Service::NewStub(channel);
      const auto status = (stub.get()->*method)(&context, asks, &response);
      if (status.ok()) {
        say_age(context);
        return response;
      }
      if (!unanswered(status) || tries >= 2 * servers.size()) throw refused{status};
      ask_next();
    }
  }

  /// What is shown may be old: said once, beside it.
  void say_age(const grpc::ClientContext& context) {
    const auto& said = context.GetServerTrailingMetadata();
    const auto text = [&](const char* key) {
      const auto at = said.find(key);
      return at == said.end() ? std::string{} : std::string{at->second.data(), at->second.size()};
    };
    std::int64_t age_ms = 0;
    const auto number = text("warren-data-age-ms");
    std::from_chars(number.data(), number.data() + number.size(), age_ms);
    if (age_ms < limits::data_age_shown / 1ms || std::exchange(age_said, true)) return;
    const auto why = text("warren-data-age-reason");
    around.err << fmt::format("warrenctl: data is {} s old{}{}\n", age_ms / 1000, why.empty() ? "" : ": ", why);
  }

  template <class Resource>
  void show(const Resource& r) {
    switch (out_format) {
      case format::json: around.out << to_json(r, false); break;
      case format::yaml: around.out << to_yaml(r); break;
      case format::name: around.out << r.name() << '\n'; break;
      case format::table:
        print_table(around.out, titles<Resource>(), {row(r, around.terminal)}, around.terminal);
    }
  }

  /// Ages are for people who look now; what is kept says when.
  template <class Resource> cells titles() const {
    auto all = headers(static_cast<const Resource*>(nullptr));
    if (!around.terminal) std::replace(all.begin(), all.end(), std::string{"AGE"}, std::string{"CREATED"});
    return all;
  }

  /// All pages as one list. `items(response)` is the mutable repeated field.
  template <class Service, class Request, class Response, class Items>
  void list(grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*), Request request,
            Items items, int most = 0) {
    Response all;
    for (;;) {
      auto page = call<Service>(method, request);
      items(all)->MergeFrom(*items(page));
      if (page.next_page_token().empty() || (most > 0 && items(all)->size() >= most)) break;
      request.set_page_token(page.next_page_token());
    }
    using Resource = std::remove_cvref_t<decltype(*items(all)->begin())>;
    switch (out_format) {
      case format::json: around.out << to_json(all, false); return;
      case format::yaml: around.out << to_yaml(all); return;
      case format::name:
        for (const auto& r : *items(all)) {
          if constexpr (requires { r.name(); }) around.out << r.name() << '\n';
          else around.out << r.id() << '\n';
        }
        return;
      case format::table: break;
    }
    std::vector<cells> rows;
    for (const auto& r : *items(all)) rows.push_back(row(r, around.terminal));
    print_table(around.out, titles<Resource>(), rows, around.terminal);
  }

  /// Follows until `seen` returns true; goes on with its token when the server goes away.
  /// `until`: when to give up; nothing: never.
  template <class Service, class Request, class Response, class Seen>
  void follow(std::unique_ptr<grpc::ClientReader<Response>> (Service::Stub::*method)(grpc::ClientContext*, const Request&),
              Request request, std::optional<system_clock::time_point> until, Seen seen) {
    for (std::size_t tries = 1;; ++tries) {
      auto stub = Service::NewStub(channel);
      grpc::ClientContext context;
      context.set_wait_for_ready(!request.resume_token().empty() && servers.size() == 1);
      if (until) context.set_deadline(*until);
      auto reader = (stub.get()->*method)(&context, request);
      Response response;
      const auto from = request.resume_token();
      while (reader->Read(&response)) {
        if (!response.resume_token().empty()) request.set_resume_token(response.resume_token());
        if (seen(response)) {
          context.TryCancel();
          return;
        }
      }
      const auto status = reader->Finish();
      if (status.error_code() == grpc::StatusCode::OUT_OF_RANGE && !request.resume_token().empty()) {
        request.clear_resume_token();
        continue;
      }
      const bool moved = request.resume_token() != from;
      const bool too_slow = status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && moved;
      // CANCELLED, and not by us: the server went down with the call.
      const bool gone = status.error_code() == grpc::StatusCode::UNAVAILABLE || status.error_code() == grpc::StatusCode::CANCELLED;
      if ((!gone && !too_slow) || (request.resume_token().empty() && (!unanswered(status) || tries >= 2 * servers.size())))
        throw refused{status};
      if (gone) ask_next();
      if (!moved) std::this_thread::sleep_for(milliseconds{100});  // a server on its way out refuses at once
    }
  }

  /// Prints each change as it comes, for ever (or for --timeout).
  template <class Service, class Request, class Response, class Get>
  void watch(std::unique_ptr<grpc::ClientReader<Response>> (Service::Stub::*method)(grpc::ClientContext*, const Request&),
             const Request& request, const std::string& only, Get get) {
    using Resource = std::remove_cvref_t<decltype(get(std::declval<const Response&>()))>;
    std::optional<system_clock::time_point> until;
    if (!o.timeout.empty()) until = system_clock::now() + timeout;
    bool head = false;
    follow<Service>(method, request, until, [&](const Response& r) {
      const bool about = only.empty() || get(r).name() == only || r.deleted() == only || r.has_caught_up();
      if (!about) return false;
      if (out_format == format::json) {
        around.out << to_json(r, true);
      } else if (out_format == format::yaml) {
        around.out << "---\n" << to_yaml(r);
      } else if (!r.deleted().empty()) {
        around.out << (out_format == format::name ? r.deleted() : r.deleted() + " deleted") << '\n';
      } else if (!r.has_caught_up()) {
        if (out_format == format::name) {
          around.out << get(r).name() << '\n';
        } else {
          const auto cols = row(get(r), around.terminal);
          if (!std::exchange(head, true))
            around.out << fmt::format("{}\n", fmt::join(titles<Resource>(), "\t"));
          around.out << fmt::format("{}\n", fmt::join(cols, "\t"));
        }
      }
      around.out.flush();
      return false;
    });
  }

  /// For what answers with no resource.
  void refuse_names(const char* verb) const {
    if (out_format == format::name) throw usage{fmt::format("{} has no name to print: -o table, json or yaml", verb)};
  }

  std::string parent() const { return o.all_projects ? "projects/-" : "projects/" + o.project; }
  /// A short name in the project, or a full one as it is.
  std::string full(const std::string& collection) const {
    if (o.name.find('/') != std::string::npos) return o.name;
    return collection == "tunnels" || collection == "connectors" ? fmt::format("{}/{}/{}", parent(), collection, o.name)
                                                                  : fmt::format("{}/{}", collection, o.name);
  }
  template <class Request>
  Request listing() const {
    Request q;
    if constexpr (requires { q.set_parent(""); }) q.set_parent(parent());
    if constexpr (requires { q.set_filter(""); }) {
      q.set_filter(o.filter);
      q.set_order_by(o.sort_by);
    }
    q.set_page_size(1000);
    return q;
  }
  template <class Request>
  Request named(const std::string& collection) const {
    Request q;
    q.set_name(full(collection));
    if constexpr (requires { q.set_etag(""); }) q.set_etag(o.etag);
    if constexpr (requires { q.set_request_id(""); }) q.set_request_id(o.request_id);
    return q;
  }

  const options& o;
  surroundings& around;
  format out_format = format::table;
  milliseconds timeout{10'000};
  std::vector<std::shared_ptr<grpc::Channel>> servers;  // of --server
  std::shared_ptr<grpc::Channel> channel;               // to the one that is asked
  std::size_t asked = 0;
  bool age_said = false;
};

// ---- tunnels ----

using tunnels = api::TunnelService;

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

/// The answer of `why`: a sentence, and each link with what it needs.
template <class Explanation> void show_chain(session& s, const Explanation& a) {
  if (s.out_format == format::json) return void(s.around.out << to_json(a, false));
  if (s.out_format == format::yaml) return void(s.around.out << to_yaml(a));
  s.around.out << a.name() << ": " << a.summary() << '\n';
  for (const auto& link : a.links()) {
    const auto* tint = !s.around.terminal ? "" : link.ok() ? "\033[32m" : "\033[31m";
    s.around.out << "  " << tint << fmt::format("{:8}", link.state()) << (s.around.terminal ? "\033[0m" : "")
                 << link.what();
    if (!link.message().empty()) s.around.out << ": " << link.message();
    if (link.has_since()) s.around.out << (s.around.terminal ? " (for " : " (since ") << age(link.since(), s.around.terminal) << ")";
    s.around.out << '\n';
    if (!link.hint().empty()) s.around.out << "          " << link.hint() << '\n';
  }
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
                   "warrenctl tunnel why " + s.o.name};
  }
  if (last && !deleted) s.show(*last);
  else s.around.out << name << " " << s.o.wait_for << '\n';
}

// ---- connectors ----

using connectors = api::ConnectorService;

api::Connector connector_from(const options& o, google::protobuf::FieldMask* mask) {
  api::Connector c;
  if (!o.file.empty()) c = message_of<api::Connector>(o.file);
  if (!o.connector_class.empty()) {
    c.set_connector_class(o.connector_class);
    if (mask != nullptr) mask->add_paths("connector_class");
  }
  if (!o.lease.empty()) {
    put(*c.mutable_lease_duration(), o.lease, "--lease-duration");
    if (mask != nullptr) mask->add_paths("lease_duration");
  }
  return c;
}
std::string public_key(const options& o) {
  if (o.public_key.empty() == o.key_file.empty()) throw usage{"exactly one of --public-key and --key-file is needed"};
  if (!o.public_key.empty()) return o.public_key;
  // PEM, as the agent keeps it; only its public half leaves this function.
  const auto text = read_file(o.key_file);
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio{BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free};
  EVP_PKEY* read = bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr) : nullptr;
  if (read == nullptr && bio && BIO_reset(bio.get()) == 1) read = PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr);
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key{read, EVP_PKEY_free};
  std::array<unsigned char, 32> raw{};
  auto size = raw.size();
  if (!key || EVP_PKEY_base_id(key.get()) != EVP_PKEY_ED25519 ||
      EVP_PKEY_get_raw_public_key(key.get(), raw.data(), &size) != 1)
    throw usage{o.key_file + " is no Ed25519 key in PEM (warren-agent keygen makes one)"};
  std::string hex;
  for (const auto byte : raw) hex += fmt::format("{:02x}", byte);
  return hex;
}
void create_connector(session& s) {
  api::CreateConnectorRequest q;
  q.set_parent(s.parent());
  q.set_connector_id(s.o.name);
  *q.mutable_connector() = connector_from(s.o, nullptr);
  q.set_request_id(s.o.request_id);
  s.show(s.call<connectors>(&connectors::Stub::CreateConnector, q));
}
void update_connector(session& s) {
  api::UpdateConnectorRequest q;
  google::protobuf::FieldMask mask;
  *q.mutable_connector() = connector_from(s.o, &mask);
  if (s.o.file.empty()) *q.mutable_update_mask() = mask;
  q.mutable_connector()->set_name(s.full("connectors"));
  if (!s.o.etag.empty()) q.mutable_connector()->set_etag(s.o.etag);
  q.set_request_id(s.o.request_id);
  s.show(s.call<connectors>(&connectors::Stub::UpdateConnector, q));
}
void enrol_connector(session& s) {
  api::EnrolConnectorRequest q;
  q.set_parent(s.parent());
  q.set_connector_id(s.o.name);
  q.set_public_key(public_key(s.o));
  *q.mutable_connector() = connector_from(s.o, nullptr);
  q.set_request_id(s.o.request_id);
  const auto a = s.call<connectors>(&connectors::Stub::EnrolConnector, q);
  if (s.out_format == format::name) s.around.out << a.connector().name() << '\n';
  else if (s.out_format == format::yaml) s.around.out << to_yaml(a.enrolment());
  else s.around.out << a.enrolment_json();
}
void rotate_key(session& s) {
  auto q = s.named<api::RotateConnectorKeyRequest>("connectors");
  q.set_public_key(public_key(s.o));
  s.show(s.call<connectors>(&connectors::Stub::RotateConnectorKey, q));
}
void watch_connectors(session& s) {
  api::WatchConnectorsRequest q;
  q.set_parent(s.parent());
  s.watch<connectors>(&connectors::Stub::WatchConnectors, q, s.o.name.empty() ? "" : s.full("connectors"),
                      [](const api::WatchConnectorsResponse& r) { return r.connector(); });
}

/// With when its agent was last heard, which only its owner knows.
void get_connector(session& s) {
  const auto c = s.call<connectors>(&connectors::Stub::GetConnector, s.named<api::GetConnectorRequest>("connectors"));
  if (s.out_format != format::table) return s.show(c);
  auto head = s.titles<api::Connector>();
  auto cols = row(c, s.around.terminal);
  head.emplace_back("HEARD");
  cols.push_back(heard(c, s.around.terminal));
  print_table(s.around.out, head, {cols}, s.around.terminal);
}
void explain_connector(session& s) {
  s.refuse_names("why");
  show_chain(s, s.call<connectors>(&connectors::Stub::ExplainConnector, s.named<api::ExplainConnectorRequest>("connectors")));
}

// ---- gateways and classes ----

using gateways = api::GatewayService;
using classes = api::ClassService;

void create_gateway(session& s) {
  api::CreateGatewayRequest q;
  q.set_gateway_id(s.o.name);
  q.mutable_gateway()->set_gateway_class(s.o.gateway_class);
  q.set_request_id(s.o.request_id);
  s.show(s.call<gateways>(&gateways::Stub::CreateGateway, q));
}
void update_gateway(session& s) {
  api::UpdateGatewayRequest q;
  q.mutable_gateway()->set_name(s.full("gateways"));
  q.mutable_gateway()->set_gateway_class(s.o.gateway_class);
  q.mutable_gateway()->set_etag(s.o.etag);
  q.set_request_id(s.o.request_id);
  s.show(s.call<gateways>(&gateways::Stub::UpdateGateway, q));
}
void watch_gateways(session& s) {
  s.watch<gateways>(&gateways::Stub::WatchGateways, api::WatchGatewaysRequest{}, s.o.name.empty() ? "" : s.full("gateways"),
                    [](const api::WatchGatewaysResponse& r) { return r.gateway(); });
}
api::ConnectorClass connector_class_from(const options& o) {
  api::ConnectorClass c;
  for (const auto& n : o.networks) c.add_allowed_networks(n);
  return c;
}
api::GatewayClass gateway_class_from(const options& o) {
  api::GatewayClass c;
  c.set_dial_mode(o.dial_mode);
  for (const auto& l : o.listen) c.add_listen(l);
  if (!o.idle_timeout.empty()) put(*c.mutable_stream_idle_timeout(), o.idle_timeout, "--stream-idle-timeout");
  return c;
}

// ---- instances ----

using operations = api::OperationsService;

std::vector<api::Instance> all_instances(session& s) {
  std::vector<api::Instance> all;
  api::ListInstancesRequest q;
  q.set_page_size(1000);
  for (;;) {
    const auto page = s.call<operations>(&operations::Stub::ListInstances, q);
    all.insert(all.end(), page.instances().begin(), page.instances().end());
    if (page.next_page_token().empty()) return all;
    q.set_page_token(page.next_page_token());
  }
}
/// Of the id, or of the name that it was configured with: then the one that is alive.
std::string instance_name(session& s) {
  const auto& given = s.o.name;
  if (given.find_first_not_of("0123456789") == std::string::npos || given.find('/') != std::string::npos)
    return s.full("instances");
  std::string found;
  for (const auto& each : all_instances(s))
    if (each.display_name() == given && (found.empty() || each.alive())) found = each.name();
  if (found.empty()) throw refused{grpc::Status{grpc::StatusCode::NOT_FOUND, "there is no instance " + given}};
  return found;
}
api::Instance get_instance(session& s, const std::string& name) {
  api::GetInstanceRequest q;
  q.set_name(name);
  return s.call<operations>(&operations::Stub::GetInstance, q);
}
void drain_instance(session& s) {
  api::DrainInstanceRequest q;
  q.set_name(instance_name(s));
  auto now = s.call<operations>(&operations::Stub::DrainInstance, q);
  const auto patience = s.o.timeout.empty() ? milliseconds{30'000} : s.timeout;
  const auto until = system_clock::now() + patience;
  while (s.o.wait && now.alive() && now.partitions() > 0) {
    if (system_clock::now() >= until)
      throw too_late{fmt::format("{} still has {} partitions after {}", q.name(), now.partitions(), span(patience.count())),
                     "warrenctl instance list shows who could take them"};
    std::this_thread::sleep_for(milliseconds{100});  // nobody tells when a partition moves
    now = get_instance(s, q.name());
  }
  s.show(now);
}

// ---- trace ----

/// All of a list, page by page.
template <class Service, class Request, class Response, class Items>
auto all_of(session& s, grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*), Request q, Items items) {
  std::vector<std::remove_cvref_t<decltype(*items(std::declval<const Response&>()).begin())>> all;
  q.set_page_size(1000);
  for (;;) {
    const auto page = s.call<Service>(method, q);
    for (const auto& each : items(page)) all.push_back(each);
    if (page.next_page_token().empty()) return all;
    q.set_page_token(page.next_page_token());
  }
}

void trace_url_of(session& s) {
  s.refuse_names("trace");
  trace_question q;
  std::string why;
  const auto url = parse_trace_url(s.o.name, why);
  if (!url) throw usage{why};
  q.url = *url;
  if (!s.o.timeout.empty()) q.timeout = s.timeout;
  std::map<std::string, std::string> given;
  for (const auto& text : s.o.gateway_addresses) {
    const auto equals = text.find('=');
    if (equals == std::string::npos || text.find(':', equals) == std::string::npos)
      throw usage{"--gateway is NAME=HOST:PORT, where visitors reach that gateway"};
    given[text.substr(0, equals)] = text.substr(equals + 1);
  }

  api::ListTunnelsRequest by_host;
  by_host.set_parent("projects/-");
  by_host.set_filter(fmt::format("hostname = \"{}\"", q.url.host));
  const auto found = s.call<tunnels>(&tunnels::Stub::ListTunnels, by_host);
  if (!found.tunnels().empty()) q.tunnel = found.tunnels(0);
  if (q.tunnel) q.rule = rule_for(*q.tunnel, q.url.target);
  if (q.rule >= 0) {
    api::GetConnectorRequest behind;
    behind.set_name(q.tunnel->name().substr(0, q.tunnel->name().find("/tunnels/")) + "/connectors/" + q.tunnel->rules(q.rule).connector());
    try {
      q.connector = s.call<connectors>(&connectors::Stub::GetConnector, behind);
    } catch (const refused& r) {
      if (r.status.error_code() != grpc::StatusCode::NOT_FOUND) throw;
    }
  }
  const auto all_classes = all_of<classes>(s, &classes::Stub::ListGatewayClasses, api::ListGatewayClassesRequest{},
                                           [](const auto& page) -> const auto& { return page.gateway_classes(); });
  for (const auto& g : all_of<gateways>(s, &gateways::Stub::ListGateways, api::ListGatewaysRequest{},
                                        [](const auto& page) -> const auto& { return page.gateways(); })) {
    const auto name = g.name().substr(g.name().rfind('/') + 1);
    const bool asked = s.o.gateway_addresses.empty() ? (!q.tunnel || q.tunnel->gateway_class() == g.gateway_class()) && g.state() != "never_seen" && g.state() != "gone"
                                     : given.contains(name);
    if (!asked) continue;
    const api::GatewayClass* of_class = nullptr;
    for (const auto& each : all_classes)
      if (each.name() == "gatewayClasses/" + g.gateway_class()) of_class = &each;
    q.gateways.push_back(locate(g, of_class, given.contains(name) ? given[name] : ""));
    given.erase(name);
  }
  if (!given.empty())
    throw refused{grpc::Status{grpc::StatusCode::NOT_FOUND, "there is no gateways/" + given.begin()->first}};

  const auto result = trace(q);
  print_trace(s.around, s.out_format, s.o.name, q, result);
  if (!result.ok) throw said_no{};
}

// ---- diagnostics ----

void take_bundle(session& s) {
  const auto patience = s.o.timeout.empty() ? milliseconds{120'000} : s.timeout;
  const auto taken = save_bundle(s.channel, s.o.instance, s.o.bundle, patience);
  if (!taken.file_error.empty()) throw usage{"cannot write " + taken.file_error};
  if (!taken.status.ok()) throw refused{taken.status};
  s.around.out << fmt::format("{} ({} KiB): tar tf shows what is in it, warren-sim --replay runs it again\n", s.o.bundle,
                              (taken.bytes + 1023) / 1024);
}

// ---- the command line ----

struct verb {
  CLI::App* app;
  std::function<void(session&)> run;
};

class command_line {
public:
  command_line() {
    app.name("warrenctl");
    app.require_subcommand(1);
    app.fallthrough();
    app.add_option("--server", o.server, "HOST:PORT or unix:PATH of a warrend; of several, A,B,C, the next one is asked when one does not answer")->envname("WARREN_SERVER")->capture_default_str();
    app.add_option("-p,--project", o.project, "Project")->envname("WARREN_PROJECT")->capture_default_str();
    app.add_flag("-A,--all-projects", o.all_projects, "list and watch: of all projects");
    app.add_option("-o,--output", o.output, "table, json, yaml or name")->check(CLI::IsMember({"table", "json", "yaml", "name"}));
    app.add_flag("-w,--watch", o.watch, "list and get of tunnels, connectors and gateways: go on with what changes");
    app.add_option("--filter", o.filter, "list: FIELD OP VALUE [AND ...]");
    app.add_option("--sort-by", o.sort_by, "list: FIELD [desc], ...");
    app.add_option("--timeout", o.timeout, "for example 30s (default: 10s; wait: 30s; watch: none)");
    app.add_option("--request-id", o.request_id, "makes a change safe to repeat");
    app.add_option("--etag", o.etag, "change only what still has this etag");
    add_tunnel();
    add_connector();
    add_gateway();
    add_classes();
    add_operations();
  }

  CLI::App app{"Operates Warren, the control plane of a tunnel service."};
  options o;
  std::vector<verb> verbs;
  CLI::App *completion = nullptr, *version = nullptr;

private:
  CLI::App* noun(const char* name, const char* words) {
    auto* n = app.add_subcommand(name, words);
    n->require_subcommand(1);
    n->fallthrough();
    return n;
  }
  CLI::App* add(CLI::App* of, const char* name, const char* words, std::function<void(session&)> run, bool named) {
    auto* v = of->add_subcommand(name, words);
    v->fallthrough();
    if (named) v->add_option("NAME", o.name, "its name")->required();
    verbs.push_back({v, std::move(run)});
    return v;
  }
  void spec_of_tunnel(CLI::App* v) {
    v->add_option("--hostname", o.hostnames, "public host name; repeatable")->allow_extra_args(false);
    v->add_option("--connector", o.connector, "of a tunnel with one rule");
    v->add_option("--target", o.target, "http://HOST:PORT or https://HOST:PORT, seen from the agent");
    v->add_option("--path-prefix", o.path_prefix, "of that rule")->capture_default_str();
    v->add_option("--rule", o.rules, "PATH=CONNECTOR,TARGET; repeatable")->allow_extra_args(false);
    v->add_flag("--insecure-target", o.insecure, "do not verify the certificate of an https target");
    v->add_option("--gateway-class", o.gateway_class, "which gateways carry it");
    v->add_flag("--disabled", o.disabled, "visitors get 503, and the tunnel's open connections end");
    v->add_flag("--enabled", o.enabled, "the opposite");
    v->add_option("-f,--file", o.file, "a tunnel as JSON; - reads standard input");
  }
  void add_tunnel() {
    auto* n = noun("tunnel", "Public host names that lead to targets behind connectors");
    add(n, "list", "List tunnels", [](session& s) {
      if (s.o.watch) return watch_tunnels(s);
      s.list<tunnels>(&tunnels::Stub::ListTunnels, s.listing<api::ListTunnelsRequest>(), [](auto& r) { return r.mutable_tunnels(); });
    }, false);
    add(n, "get", "Show a tunnel", [](session& s) {
      if (s.o.watch) return watch_tunnels(s);
      s.show(s.call<tunnels>(&tunnels::Stub::GetTunnel, s.named<api::GetTunnelRequest>("tunnels")));
    }, true);
    spec_of_tunnel(add(n, "create", "Create a tunnel", create_tunnel, true));
    spec_of_tunnel(add(n, "update", "Change what is named on the command line", update_tunnel, true));
    add(n, "delete", "Delete a tunnel", [](session& s) {
      s.show(s.call<tunnels>(&tunnels::Stub::DeleteTunnel, s.named<api::DeleteTunnelRequest>("tunnels")));
    }, true);
    add(n, "watch", "Follow tunnels", watch_tunnels, false)->add_option("NAME", o.name, "only this one");
    add(n, "why", "Which link between a visitor and the target is missing", explain_tunnel, true);
    add(n, "wait", "Wait until a tunnel is what it shall be", wait_for_tunnel, true)
        ->add_option("--for", o.wait_for, "ready, programmed, accepted or deleted")
        ->check(CLI::IsMember({"ready", "programmed", "accepted", "deleted"}));
  }
  void spec_of_connector(CLI::App* v) {
    v->add_option("--class", o.connector_class, "its connector class");
    v->add_option("--lease-duration", o.lease, "how long silence is tolerated, for example 30s");
  }
  void add_connector() {
    auto* n = noun("connector", "Agents beside private services");
    add(n, "list", "List connectors", [](session& s) {
      if (s.o.watch) return watch_connectors(s);
      s.list<connectors>(&connectors::Stub::ListConnectors, s.listing<api::ListConnectorsRequest>(), [](auto& r) { return r.mutable_connectors(); });
    }, false);
    add(n, "get", "Show a connector", [](session& s) {
      if (s.o.watch) return watch_connectors(s);
      get_connector(s);
    }, true);
    spec_of_connector(add(n, "create", "Create a connector", create_connector, true));
    spec_of_connector(add(n, "update", "Change what is named on the command line", update_connector, true));
    add(n, "delete", "Delete a connector", [](session& s) {
      s.show(s.call<connectors>(&connectors::Stub::DeleteConnector, s.named<api::DeleteConnectorRequest>("connectors")));
    }, true);
    add(n, "watch", "Follow connectors", watch_connectors, false)->add_option("NAME", o.name, "only this one");
    add(n, "why", "Which link between its agent and the gateways is missing", explain_connector, true);
    auto* enrol = add(n, "enrol", "Give a connector its key, and print what its agent needs", enrol_connector, true);
    auto* rotate = add(n, "rotate-key", "Replace a connector's key", rotate_key, true);
    spec_of_connector(enrol);
    for (auto* v : {enrol, rotate}) {
      v->add_option("--public-key", o.public_key, "64 hex digits");
      v->add_option("--key-file", o.key_file, "made by warren-agent keygen");
    }
  }
  void add_gateway() {
    auto* n = noun("gateway", "Envoys that take visitors");
    add(n, "list", "List gateways", [](session& s) {
      if (s.o.watch) return watch_gateways(s);
      s.list<gateways>(&gateways::Stub::ListGateways, s.listing<api::ListGatewaysRequest>(), [](auto& r) { return r.mutable_gateways(); });
    }, false);
    add(n, "watch", "Follow gateways", watch_gateways, false)->add_option("NAME", o.name, "only this one");
    add(n, "get", "Show a gateway", [](session& s) {
      if (s.o.watch) return watch_gateways(s);
      s.show(s.call<gateways>(&gateways::Stub::GetGateway, s.named<api::GetGatewayRequest>("gateways")));
    }, true);
    add(n, "create", "Register a gateway", create_gateway, true)->add_option("--class", o.gateway_class, "its gateway class");
    add(n, "update", "Change its class", update_gateway, true)->add_option("--class", o.gateway_class, "its gateway class")->required();
    add(n, "delete", "Remove a gateway", [](session& s) {
      s.call<gateways>(&gateways::Stub::DeleteGateway, s.named<api::DeleteGatewayRequest>("gateways"));
      s.around.out << s.full("gateways") << (s.out_format == format::name ? "" : " deleted") << '\n';
    }, true);
    add(n, "bootstrap", "Print the configuration that its Envoy starts with", [](session& s) {
      s.around.out << s.call<gateways>(&gateways::Stub::GetGatewayBootstrap, s.named<api::GetGatewayBootstrapRequest>("gateways")).text();
    }, true);
  }
  void add_classes() {
    auto* c = noun("connector-class", "Which addresses connectors may have");
    add(c, "list", "List connector classes", [](session& s) {
      s.list<classes>(&classes::Stub::ListConnectorClasses, s.listing<api::ListConnectorClassesRequest>(), [](auto& r) { return r.mutable_connector_classes(); });
    }, false);
    add(c, "get", "Show a connector class", [](session& s) {
      s.show(s.call<classes>(&classes::Stub::GetConnectorClass, s.named<api::GetConnectorClassRequest>("connectorClasses")));
    }, true);
    add(c, "create", "Create a connector class", [](session& s) {
      api::CreateConnectorClassRequest q;
      q.set_connector_class_id(s.o.name);
      *q.mutable_connector_class() = connector_class_from(s.o);
      q.set_request_id(s.o.request_id);
      s.show(s.call<classes>(&classes::Stub::CreateConnectorClass, q));
    }, true)->add_option("--allow", o.networks, "network, for example 10.0.0.0/8; repeatable")->allow_extra_args(false);
    add(c, "update", "Replace its networks", [](session& s) {
      api::UpdateConnectorClassRequest q;
      *q.mutable_connector_class() = connector_class_from(s.o);
      q.mutable_connector_class()->set_name(s.full("connectorClasses"));
      q.mutable_connector_class()->set_etag(s.o.etag);
      q.mutable_update_mask()->add_paths("allowed_networks");
      q.set_request_id(s.o.request_id);
      s.show(s.call<classes>(&classes::Stub::UpdateConnectorClass, q));
    }, true)->add_option("--allow", o.networks, "network; repeatable; none: the default")->allow_extra_args(false);
    add(c, "delete", "Delete a connector class", [](session& s) {
      s.call<classes>(&classes::Stub::DeleteConnectorClass, s.named<api::DeleteConnectorClassRequest>("connectorClasses"));
      s.around.out << s.full("connectorClasses") << (s.out_format == format::name ? "" : " deleted") << '\n';
    }, true);

    auto* g = noun("gateway-class", "How a kind of gateways is configured");
    const auto spec = [&](CLI::App* v) {
      v->add_option("--dial-mode", o.dial_mode, "direct or tunnel-listener");
      v->add_option("--listen", o.listen, "IP:PORT; repeatable")->allow_extra_args(false);
      v->add_option("--stream-idle-timeout", o.idle_timeout, "for example 5m");
    };
    add(g, "list", "List gateway classes", [](session& s) {
      s.list<classes>(&classes::Stub::ListGatewayClasses, s.listing<api::ListGatewayClassesRequest>(), [](auto& r) { return r.mutable_gateway_classes(); });
    }, false);
    add(g, "get", "Show a gateway class", [](session& s) {
      s.show(s.call<classes>(&classes::Stub::GetGatewayClass, s.named<api::GetGatewayClassRequest>("gatewayClasses")));
    }, true);
    spec(add(g, "create", "Create a gateway class", [](session& s) {
      api::CreateGatewayClassRequest q;
      q.set_gateway_class_id(s.o.name);
      *q.mutable_gateway_class() = gateway_class_from(s.o);
      q.set_request_id(s.o.request_id);
      s.show(s.call<classes>(&classes::Stub::CreateGatewayClass, q));
    }, true));
    spec(add(g, "update", "Change what is named on the command line", [](session& s) {
      api::UpdateGatewayClassRequest q;
      *q.mutable_gateway_class() = gateway_class_from(s.o);
      q.mutable_gateway_class()->set_name(s.full("gatewayClasses"));
      q.mutable_gateway_class()->set_etag(s.o.etag);
      q.set_request_id(s.o.request_id);
      s.show(s.call<classes>(&classes::Stub::UpdateGatewayClass, q));
    }, true));
    add(g, "delete", "Delete a gateway class", [](session& s) {
      s.call<classes>(&classes::Stub::DeleteGatewayClass, s.named<api::DeleteGatewayClassRequest>("gatewayClasses"));
      s.around.out << s.full("gatewayClasses") << (s.out_format == format::name ? "" : " deleted") << '\n';
    }, true);
  }
  void add_operations() {
    using ops = api::OperationsService;
    auto* i = noun("instance", "Running warrends");
    add(i, "list", "List instances", [](session& s) {
      s.list<ops>(&ops::Stub::ListInstances, s.listing<api::ListInstancesRequest>(), [](auto& r) { return r.mutable_instances(); });
    }, false);
    add(i, "get", "Show an instance, by its id or its name", [](session& s) { s.show(get_instance(s, instance_name(s))); }, true);
    add(i, "drain", "Have an instance give its partitions to the others", drain_instance, true)
        ->add_flag("--wait", o.wait, "until it has none");
    auto* p = noun("partition", "Units of ownership");
    add(p, "list", "List partitions", [](session& s) {
      s.list<ops>(&ops::Stub::ListPartitions, s.listing<api::ListPartitionsRequest>(), [](auto& r) { return r.mutable_partitions(); });
    }, false);
    add(p, "get", "Show a partition", [](session& s) {
      s.show(s.call<ops>(&ops::Stub::GetPartition, s.named<api::GetPartitionRequest>("partitions")));
    }, true);
    auto* a = noun("audit", "Who changed what");
    auto* list = add(a, "list", "The newest changes of the project first", [](session& s) {
      api::ListAuditEventsRequest q;
      if (!s.o.all_projects) q.set_project(s.o.project);
      q.set_page_size(std::min(s.o.limit, 1000));
      s.list<ops>(&ops::Stub::ListAuditEvents, q, [](auto& r) { return r.mutable_events(); }, s.o.limit);
    }, false);
    list->add_option("--limit", o.limit, "how many")->capture_default_str()->check(CLI::Range(1, 100'000));
    auto* trace = app.add_subcommand("trace", "Ask for a URL through each gateway, the agent and the target, and say who says no");
    trace->fallthrough();
    trace->add_option("URL", o.name, "http://HOST/PATH, as a visitor would ask")->required();
    trace->add_option("--gateway", o.gateway_addresses, "NAME=HOST:PORT, where visitors reach it: only these are asked; repeatable")
        ->allow_extra_args(false);
    verbs.push_back({trace, trace_url_of});
    auto* diag = app.add_subcommand("diag", "Save what an instance remembers, without secrets");
    diag->fallthrough();
    diag->add_option("--instance", o.instance, "make sure that it is this one that --server leads to");
    diag->add_option("-o,--output", o.bundle, "the file, a tar")->required();
    verbs.push_back({diag, take_bundle});
    completion = app.add_subcommand("completion", "Print the shell's completion script");
    completion->add_option("SHELL", o.shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
    version = app.add_subcommand("version", "Versions of warrenctl and of the server, when one answers");
    version->fallthrough();
  }
};

// ---- completion ----

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

void print_completion(const CLI::App& app, const std::string& shell, std::ostream& out) {
  if (shell == "fish") return print_fish(app, out);
  if (shell == "zsh") out << "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n";
  print_bash(app, out);
}

void print_version(session& s) {
  s.around.out << "warrenctl " << WARREN_VERSION << '\n';
  if (s.o.timeout.empty()) s.timeout = milliseconds{1000};
  try {
    const auto a = s.call<api::OperationsService>(&api::OperationsService::Stub::GetServerInfo, api::GetServerInfoRequest{});
    s.around.out << fmt::format("warrend {} at {} (instance {}, {})\n", a.version(), s.o.server, a.instance(), a.ready() ? "ready" : "not ready");
  } catch (const refused&) {
    s.around.out << fmt::format("no warrend answers at {}\n", s.o.server);
  }
}

/// A word that is no verb is what is wrong, not that one is missing; empty: it is something else.
std::string unknown_word(const CLI::App& app, std::string& hint) {
  const auto any = [](const CLI::App*) { return true; };
  const auto unknown = app.remaining(true);
  const CLI::App* at = &app;
  for (const auto* noun : app.get_subcommands())
    if (!noun->get_subcommands(any).empty() && noun->get_subcommands().empty()) at = noun;
  const auto known = at->get_subcommands(any);
  if (unknown.empty() || known.empty()) return {};
  std::vector<std::string> names;
  for (const auto* each : known) names.push_back(each->get_name());
  hint = fmt::format("there are: {}", fmt::join(names, ", "));
  return fmt::format("{} knows no {}", at->get_name(), unknown.front());
}

void run_verb(const verb& v, session& s) {
  const auto noun = v.app->get_parent()->get_name(), name = v.app->get_name();
  const bool of_project = noun == "tunnel" || noun == "connector";
  if (s.o.watch && ((!of_project && noun != "gateway") || (name != "list" && name != "get")))
    throw usage{"--watch is for list and get of tunnels, connectors and gateways"};
  const bool followed = name == "watch" || s.o.watch;
  if (followed && !(s.o.filter.empty() && s.o.sort_by.empty()))
    throw usage{"what is watched is not filtered and has no order: --filter and --sort-by are for list"};
  if (s.o.all_projects && of_project && ((name != "list" && name != "watch") || !s.o.name.empty()))
    throw usage{fmt::format("{} {} is about one project: name it with --project, without --all-projects", noun, name)};
  v.run(s);
}

}  // namespace

int run(std::vector<std::string> arguments, surroundings& around) {
  const auto say = [&](std::string_view code, const std::string& message, const std::string& hint) {
    around.err << fmt::format("warrenctl: {}: {}\nhint: {}\n", code, message, hint);
  };
  command_line line;
  try {
    std::reverse(arguments.begin(), arguments.end());
    line.app.parse(arguments);
  } catch (const CLI::Success& e) {
    line.app.exit(e, around.out, around.err);
    return done;
  } catch (const CLI::ParseError& e) {
    std::string message, hint = "--help says more";
    if (dynamic_cast<const CLI::RequiredError*>(&e) != nullptr) message = unknown_word(line.app, hint);
    say("USAGE", message.empty() ? e.what() : message, hint);
    return wrong_usage;
  }
  try {
    if (line.completion->parsed()) {
      print_completion(line.app, line.o.shell, around.out);
      return done;
    }
    session s{line.o, around};
    if (line.version->parsed()) print_version(s);
    for (const auto& v : line.verbs)
      if (v.app->parsed()) run_verb(v, s);
    return done;
  } catch (const usage& u) {
    say("USAGE", u.message, "--help says more");
    return wrong_usage;
  } catch (const said_no&) {
    return failed;
  } catch (const too_late& t) {
    say("TIMED_OUT", t.message, t.hint);
    return timed_out;
  } catch (const refused& r) {
    // A watch that was to last so long has done what it was told.
    const bool watched = std::any_of(line.verbs.begin(), line.verbs.end(),
                                     [](const verb& v) { return v.app->parsed() && v.app->get_name() == "watch"; });
    if ((line.o.watch || watched) && r.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return timed_out;
    print_error(around.err, r.status, line.o.server);
    return r.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ? timed_out : failed;
  }
}

}  // namespace warren::ctl
