// services/warrenctl/trace.cpp -- asks for a URL as a visitor would, and judges who says no.
#include "services/warrenctl/trace.hpp"

#include <algorithm>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <fmt/format.h>

namespace warren::ctl {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using steady = std::chrono::steady_clock;

constexpr std::uint64_t body_bytes_max = 1024 * 1024;  // of an answer; what follows is not waited for
constexpr std::uint32_t header_bytes_max = 64 * 1024;
constexpr std::string_view offline_body = "Tunnel not online";

double ms_since(steady::time_point from) { return std::chrono::duration<double, std::milli>(steady::now() - from).count(); }

struct answered {
  std::string error;  ///< no answer: why
  int status = 0;
  std::string reason, body;
  double first_byte_ms = 0, total_ms = 0;
};

/// A connection of its own; one operation at a time, each with its own patience.
class wire {
public:
  explicit wire(std::chrono::milliseconds timeout) : timeout_{timeout} {}

  /// Empty: connected.
  std::string connect(const std::string& host, const std::string& port) {
    tcp::resolver resolver{io_};
    beast::error_code error;
    const auto found = resolver.resolve(host, port, error);
    if (error) return error.message();
    stream_.expires_after(timeout_);
    run([&](auto done) { stream_.async_connect(found, [done](beast::error_code e, const tcp::endpoint&) { done(e); }); }, error);
    return error ? error.message() : std::string{};
  }

  /// `bodiless`: what follows the head is no body (CONNECT).
  answered ask(const http::request<http::empty_body>& q, bool bodiless) {
    answered out;
    const auto began = steady::now();
    beast::error_code error;
    stream_.expires_after(timeout_);
    run([&](auto done) { http::async_write(stream_, q, [done](beast::error_code e, std::size_t) { done(e); }); }, error);
    http::response_parser<http::string_body> parser;
    parser.header_limit(header_bytes_max);
    parser.body_limit(body_bytes_max);
    if (!error)
      run([&](auto done) { http::async_read_header(stream_, buffer_, parser, [done](beast::error_code e, std::size_t) { done(e); }); }, error);
    out.first_byte_ms = ms_since(began);
    if (error) {
      out.error = error == http::error::end_of_stream ? "it closes without an answer" : error.message();
      return out;
    }
    const bool tunnelled = bodiless && parser.get().result() == http::status::ok;
    if (!tunnelled)
      run([&](auto done) { http::async_read(stream_, buffer_, parser, [done](beast::error_code e, std::size_t) { done(e); }); }, error);
    out.total_ms = ms_since(began);
    out.status = parser.get().result_int();
    const auto reason = parser.get()["x-warren-reason"];
    out.reason.assign(reason.data(), reason.size());
    out.body = parser.get().body();
    if (error && error != http::error::body_limit) out.error = "its answer breaks off: " + error.message();
    return out;
  }

private:
  template <class Start> void run(Start start, beast::error_code& out) {
    io_.restart();
    start([&out](beast::error_code e) { out = e; });
    io_.run();
  }

  const std::chrono::milliseconds timeout_;
  asio::io_context io_;
  beast::tcp_stream stream_{io_};
  beast::flat_buffer buffer_{2 * header_bytes_max};
};

http::request<http::empty_body> visit(const trace_question& q) {
  http::request<http::empty_body> r{http::verb::get, q.url.target, 11};
  r.set(http::field::host, q.url.authority);
  r.set(http::field::user_agent, "warrenctl-trace");
  r.set(http::field::connection, "close");
  return r;
}

std::string words_of_reason(const std::string& reason) {
  if (reason == "connector-offline") return "the connector is offline";
  if (reason == "connector-unknown") return "the connector does not exist";
  if (reason == "disabled") return "the tunnel is switched off";
  if (reason == "invalid-addressing") return "the connector's addressing is not valid";
  if (reason == "connector-unreachable") return "the agent, or the target behind it, cannot be reached";
  return reason;
}

std::string host_part(std::string_view at) { return std::string{at.substr(0, at.rfind(':'))}; }
std::string port_part(std::string_view at) {
  const auto colon = at.rfind(':');
  return colon == std::string_view::npos ? std::string{} : std::string{at.substr(colon + 1)};
}
std::string without_brackets(std::string host) {
  return host.size() > 2 && host.front() == '[' ? host.substr(1, host.size() - 2) : host;
}
bool is_unspecified(const std::string& host) { return host == "0.0.0.0" || host == "[::]" || host == "::"; }

trace_step ask_gateway(const trace_question& q, const gateway_at& g) {
  trace_step s{.who = "gateway", .name = g.name, .where = g.host + ":" + g.port, .known_by = g.known_by};
  if (g.host.empty()) {
    s.where.clear();
    s.says = "where it takes visitors is not known: say so with --gateway " + g.name + "=HOST:PORT";
    return s;
  }
  wire w{q.timeout};
  const auto began = steady::now();
  if (const auto error = w.connect(without_brackets(g.host), g.port); !error.empty()) {
    s.says = "cannot be reached: " + error;
    return s;
  }
  s.connect_ms = ms_since(began);
  const auto a = w.ask(visit(q), false);
  s.first_byte_ms = a.first_byte_ms;
  s.status = a.status;
  s.reason = a.reason;
  if (a.status == 0) {
    s.says = "gives no answer: " + a.error;
    return s;
  }
  s.total_ms = a.total_ms;
  // A target may say anything that a gateway says, but for this.
  if (a.status == 503 && !a.reason.empty() && a.body == offline_body) {
    s.says = words_of_reason(a.reason);
  } else if (a.status == 404 && (!q.tunnel || q.rule < 0)) {
    s.says = q.tunnel ? "no rule covers this path" : "it knows no such host";
  } else {
    s.ok = a.error.empty();
    s.says = s.ok ? "the target answers" : "the target's " + a.error;
  }
  return s;
}

std::string authority_of(const std::string& target) {
  const auto scheme = target.find("://");
  return scheme == std::string::npos ? target : target.substr(scheme + 3);
}

/// The agent's word, and the target's through it, at one of the connector's addresses.
void ask_agent(const trace_question& q, const std::string& address, std::vector<trace_step>& out) {
  const auto& rule = q.tunnel->rules(q.rule);
  const auto name = q.connector->name().substr(q.connector->name().rfind('/') + 1);
  trace_step s{.who = "agent", .name = name, .where = address, .known_by = "as it has reported"};
  wire w{q.timeout};
  const auto began = steady::now();
  if (const auto error = w.connect(without_brackets(host_part(address)), port_part(address)); !error.empty()) {
    s.says = "cannot be reached from here: " + error;
    out.push_back(std::move(s));
    return;
  }
  s.connect_ms = ms_since(began);
  http::request<http::empty_body> connect{http::verb::connect, authority_of(rule.target()), 11};
  connect.set(http::field::host, authority_of(rule.target()));
  connect.set("x-warren-endpoint-id", q.connector->public_key());
  const auto project = q.tunnel->name().substr(9, q.tunnel->name().find('/', 9) - 9);
  connect.set("x-warren-tunnel", fmt::format("{}/{}/{}/{}", project, q.tunnel->uid(), q.rule, q.tunnel->generation()));
  const auto taken = w.ask(connect, true);
  s.status = taken.status;
  s.first_byte_ms = taken.first_byte_ms;
  s.ok = taken.status == 200;
  switch (taken.status) {
    case 0: s.says = "gives no answer: " + taken.error; break;
    case 200: s.says = "takes the tunnel and reaches the target"; break;
    case 403: s.says = "refuses: it is another agent, or does not hold this tunnel"; break;
    case 503: s.says = "holds the tunnel and cannot reach the target"; break;
    default: s.says = "refuses";
  }
  const bool through = s.ok;
  out.push_back(std::move(s));
  if (!through) return;
  trace_step t{.who = "target", .name = {}, .where = rule.target(), .known_by = "through the agent"};
  const auto a = w.ask(visit(q), false);
  t.first_byte_ms = a.first_byte_ms;
  t.status = a.status;
  t.ok = a.status != 0 && a.error.empty();
  if (a.status != 0) t.total_ms = a.total_ms;
  t.says = a.status == 0 ? "gives no answer: " + a.error : t.ok ? "answers" : a.error;
  out.push_back(std::move(t));
}

const trace_step* first_of(const trace_result& r, std::string_view who, bool ok) {
  for (const auto& s : r.steps)
    if (s.who == who && s.ok == ok) return &s;
  return nullptr;
}

}  // namespace

std::optional<trace_url> parse_trace_url(const std::string& text, std::string& why) {
  std::string rest = text;
  const auto scheme = rest.find("://");
  if (scheme != std::string::npos) {
    if (rest.substr(0, scheme) != "http") {
      why = "gateways take visitors over plain HTTP: trace http://HOST/PATH, also where something in front ends TLS";
      return std::nullopt;
    }
    rest.erase(0, scheme + 3);
  }
  trace_url out;
  const auto slash = rest.find_first_of("/?");
  out.authority = rest.substr(0, slash);
  if (slash != std::string::npos) out.target = (rest[slash] == '/' ? "" : "/") + rest.substr(slash);
  if (const auto hash = out.target.find('#'); hash != std::string::npos) out.target.erase(hash);
  const auto printable = [](const std::string& t) { return std::all_of(t.begin(), t.end(), [](char c) { return c > ' ' && c < 0x7f; }); };
  if (out.authority.empty() || !printable(out.authority) || !printable(out.target) || out.authority.find('@') != std::string::npos) {
    why = "a URL is needed, such as http://app.example.com/path (host names outside ASCII as A-labels)";
    return std::nullopt;
  }
  out.host = out.authority.substr(0, out.authority.rfind(':'));
  for (char& c : out.host)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  if (!out.host.empty() && out.host.back() == '.') out.host.pop_back();
  return out;
}

int rule_for(const api::Tunnel& tunnel, const std::string& target) {
  const auto path = target.substr(0, target.find('?'));
  int best = -1;
  for (int i = 0; i < tunnel.rules_size(); ++i) {
    const auto& prefix = tunnel.rules(i).path_prefix();
    const bool covers = path.compare(0, prefix.size(), prefix) == 0 &&
                        (prefix.empty() || prefix.back() == '/' || path.size() == prefix.size() || path[prefix.size()] == '/');
    if (covers && (best < 0 || prefix.size() > tunnel.rules(best).path_prefix().size())) best = i;
  }
  return best;
}

gateway_at locate(const api::Gateway& gateway, const api::GatewayClass* of_class, const std::string& given) {
  gateway_at out;
  out.name = gateway.name().substr(gateway.name().rfind('/') + 1);
  if (!given.empty()) {
    out.host = host_part(given);
    out.port = port_part(given);
    out.known_by = "given";
    return out;
  }
  if (of_class == nullptr || of_class->listen().empty()) return out;
  const auto& listen = of_class->listen(0);
  out.port = port_part(listen);
  if (const auto host = host_part(listen); !is_unspecified(host)) {
    out.host = host;
    out.known_by = "its class listens there";
  } else if (!gateway.peer().empty()) {
    out.host = host_part(gateway.peer());
    out.known_by = "its stream comes from there";
  }
  return out;
}

void judge(const trace_question& q, trace_result& r) {
  const auto no = [&](std::string who, std::string words) {
    r.ok = false;
    r.who_says_no = std::move(who);
    r.summary = std::move(words);
  };
  r.ok = first_of(r, "gateway", true) != nullptr && first_of(r, "gateway", false) == nullptr;
  if (r.ok) {
    // The same status from a gateway as from the target: then it is the target's, also when it is a refusal.
    const auto* target = first_of(r, "target", true);
    for (const auto& s : r.steps)
      if (s.who == "gateway" && s.status == 404 && target != nullptr && target->status != 404)
        return no("gateway", fmt::format("gateway {} has no route for it, though there is a tunnel: see warrenctl gateway get {}", s.name, s.name));
    r.summary = "nobody says no: visitors get through to the target";
    return;
  }
  if (!q.tunnel) return no("gateway", fmt::format("no tunnel has the host name {}", q.url.host));
  if (!q.tunnel->enabled()) return no("tunnel", fmt::format("{} is switched off", q.tunnel->name()));
  if (q.rule < 0) return no("tunnel", fmt::format("no rule of {} covers this path", q.tunnel->name()));
  const auto& rule = q.tunnel->rules(q.rule);
  if (!q.connector) return no("connector", fmt::format("connector {} does not exist", rule.connector()));
  if (!q.connector->online()) {
    std::string words;
    for (const auto& c : q.connector->conditions())
      if (c.type() == "Ready" && c.status() != "True") words = ": " + c.message();
    return no("connector", fmt::format("connector {} is offline{}", rule.connector(), words));
  }
  const trace_step* gateway = nullptr;
  for (const auto& s : r.steps)
    if (s.who == "gateway" && !s.ok && gateway == nullptr) gateway = &s;
  if (gateway == nullptr) return no("gateway", fmt::format("no gateway of class {} is connected: see warrenctl gateway list", q.tunnel->gateway_class()));
  if (gateway->status == 0) return no("gateway", fmt::format("gateway {} {}", gateway->name, gateway->says));
  if (gateway->reason != "connector-unreachable" && !gateway->reason.empty())
    return no("gateway", fmt::format("gateway {} says that {}, which the control plane does not: see warrenctl tunnel why", gateway->name, gateway->says));

  const auto* target = first_of(r, "target", false);
  if (target != nullptr) return no("target", fmt::format("target {} {}", target->where, target->says));
  const auto* good = first_of(r, "agent", true);
  const auto* bad = first_of(r, "agent", false);
  if (good != nullptr && q.through_tunnel_gateway)
    return no("gateway", fmt::format("gateway {} cannot reach the agent through its tunnel gateway; the agent answers here at {}: look at the tunnel "
                                     "gateway that the bootstrap of {} names, and whether that is a bootstrap for tunnel-listener",
                                     gateway->name, good->where, gateway->name));
  if (good != nullptr)
    return no("gateway", fmt::format("gateway {} cannot reach the agent, which answers here: look at the network between {} and {}",
                                     gateway->name, gateway->name, good->where));
  if (bad != nullptr && bad->status == 503) return no("target", fmt::format("the agent cannot reach target {}", rule.target()));
  if (bad != nullptr) return no("agent", fmt::format("agent {} at {} {}", bad->name, bad->where, bad->says));
  no("agent", fmt::format("agent {} has reported no address to ask it at", rule.connector()));
}

trace_result trace(const trace_question& q) {
  trace_result r;
  for (const auto& g : q.gateways) r.steps.push_back(ask_gateway(q, g));
  if (q.tunnel && q.connector && q.rule >= 0)
    for (const auto& address : q.connector->addresses()) ask_agent(q, address, r.steps);
  judge(q, r);
  return r;
}

}  // namespace warren::ctl
