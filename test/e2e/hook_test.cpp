// test/e2e/hook_test.cpp -- what the extension hook answers to a captured translation of Envoy Gateway, given to a real
// Envoy as files: accepted, and right for visitors, while the connector comes and goes.
#include <fmt/format.h>

#include "test/e2e/expect.hpp"
#include "test/e2e/http2.hpp"
#include "test/support/hook.hpp"
#include "test/support/hook_client.hpp"
#include "test/support/tunnel_gateway.hpp"

using namespace warren::e2e;
using namespace warren::test;
namespace hook = warren::hook;
namespace stack = warren::stack;
using stack::open_visit;

namespace {

constexpr auto online_host = "tunnel-00000.example.test", offline_host = "tunnel-00005.example.test";
constexpr auto offline_cluster = "httproute/ns-0000/tunnel-00005/rule/0";
constexpr auto envoy_type = "type.googleapis.com/envoy.config.";

/// An Envoy that reads its resources from files, as Envoy Gateway would have sent them.
class file_envoy {
public:
  explicit file_envoy(std::uint16_t tunnel_gateway_port) {
    const auto bootstrap = fmt::format(R"(
node: {{id: file-envoy, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {0}}}}}}}
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}}
dynamic_resources:
  cds_config: {{path_config_source: {{path: {1}/cds.pb}}, resource_api_version: V3}}
  lds_config: {{path_config_source: {{path: {1}/lds.pb}}, resource_api_version: V3}}
static_resources:
  listeners:
  - name: connector-tunnel
    internal_listener: {{}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: connector-tunnel
          cluster: tunnel-gateway
          tunneling_config:
            hostname: "%DYNAMIC_METADATA(tunnel:address)%"
            headers_to_add:
            - header: {{key: x-iroh-endpoint-id, value: "%DYNAMIC_METADATA(tunnel:endpoint_id)%"}}
              append_action: OVERWRITE_IF_EXISTS_OR_ADD
  clusters:
  - name: tunnel-gateway
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: tunnel-gateway
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {2}}}}}}}}}]}}]
)",
                                       admin_, place_.path().string(), tunnel_gateway_port);
    stack::write_file(place_.path() / "envoy.yaml", bootstrap);
  }

  /// The captured request as it would be for this Envoy: routes from a file, a port of ours.
  std::string request() const {
    eg::PostTranslateModifyRequest r;
    auto bytes = captured("request-0010-tunnel");
    // An unprivileged Envoy may not open /dev/stdout; another path of the same length keeps all lengths right.
    const std::string log = "/dev/stdout", nowhere = "//dev//null";
    for (auto at = bytes.find(log); at != std::string::npos; at = bytes.find(log, at)) bytes.replace(at, log.size(), nowhere);
    REQUIRE(r.ParseFromString(bytes));
    auto* listeners = r.mutable_listeners();
    for (int i = listeners->size(); i-- > 0;)
      if (listeners->Get(i).name() != "envoy-gateway-system/eg/http") listeners->DeleteSubrange(i, 1);
    REQUIRE(listeners->size() == 1);
    auto* l = listeners->Mutable(0);
    l->mutable_address()->mutable_socket_address()->set_address("127.0.0.1");
    l->mutable_address()->mutable_socket_address()->set_port_value(port_);
    auto m = manager_of(*l);
    REQUIRE(m.rds().route_config_name() == "envoy-gateway-system/eg/http");
    auto* source = m.mutable_rds()->mutable_config_source();
    source->Clear();
    source->set_resource_api_version(envoy::config::core::v3::V3);
    std::string path;  // PathConfigSource
    hook::wire::put_bytes(path, 1, (place_.path() / "rds.pb").string());
    source->GetReflection()->MutableUnknownFields(source)->AddLengthDelimited(8, path);
    l->mutable_default_filter_chain()->mutable_filters(0)->mutable_typed_config()->PackFrom(m);
    return r.SerializeAsString();
  }

  /// Hands the hook's answer over, byte for byte. Routes go before the clusters that lose their endpoints, and after
  /// those that get them: the other way round Envoy answers by itself for a moment.
  void take(const std::string& answer, bool routes_first) {
    if (routes_first) put("rds.pb", answer, 4, "route.v3.RouteConfiguration");
    put("cds.pb", answer, 1, "cluster.v3.Cluster");
    if (!routes_first) put("rds.pb", answer, 4, "route.v3.RouteConfiguration");
    put("lds.pb", answer, 3, "listener.v3.Listener");
    if (!envoy_.running())
      envoy_ = stack::process{{.name = "envoy",
                               .path = std::getenv("WARREN_ENVOY"),
                               .arguments = {"-c", (place_.path() / "envoy.yaml").string(), "--use-dynamic-base-id",
                                             "--concurrency", "1", "-l", "warning"},
                               .log = place_.path() / "envoy.log"}};
  }
  std::uint16_t port() const { return port_; }
  std::string log() const { return envoy_.log(); }
  /// Lines of its statistics whose name contains `part`: name → value.
  std::map<std::string, long> statistics(const std::string& part) const {
    const auto page = stack::visit(admin_, {.host = "admin", .target = "/stats"}).body;
    std::map<std::string, long> out;
    std::istringstream in{page};
    for (std::string line; std::getline(in, line);)
      if (const auto colon = line.rfind(": "); colon != std::string::npos && line.find(part) < colon)
        out[line.substr(0, colon)] = std::atol(line.c_str() + colon + 2);
    return out;
  }

private:
  void put(const std::string& file, const std::string& answer, std::uint32_t field, const std::string& type) {
    std::string response;  // DiscoveryResponse
    hook::wire::put_bytes(response, 1, std::to_string(++version_));
    hook::wire::reader in{answer};
    for (hook::wire::field f; in.next(f);) {
      if (!f.is_bytes(field)) continue;
      std::string any;
      hook::wire::put_bytes(any, 1, envoy_type + type);
      hook::wire::put_bytes(any, 2, f.payload);
      hook::wire::put_bytes(response, 2, any);
    }
    hook::wire::put_bytes(response, 4, envoy_type + type);
    // Envoy looks at a file again when it is moved into place.
    stack::write_file(place_.path() / (file + ".new"), response);
    std::filesystem::rename(place_.path() / (file + ".new"), place_.path() / file);
  }

  stack::scratch place_{"warren-file-envoy"};
  std::uint16_t port_ = stack::free_port(), admin_ = stack::free_port();
  int version_ = 0;
  mutable stack::process envoy_;
};

int online(const std::string& answer) {
  eg::PostTranslateModifyResponse r;
  REQUIRE(r.ParseFromString(answer));
  int n = 0;
  for (const auto& c : r.clusters()) n += c.transport_socket().name() == "envoy.transport_sockets.internal_upstream";
  return n;
}

struct hooked_envoy {
  std::uint16_t hook_port = stack::free_port();
  tunnel_gateway behind;
  stack::stack w{{.with_envoy = false, .partitions = 4, .project = "ns-0000",
                  .configuration = {{"hook.listen", "127.0.0.1:" + std::to_string(hook_port)}}}};
  hook_client client{"127.0.0.1:" + std::to_string(hook_port)};
  file_envoy envoy{behind.port()};
  const std::string request = envoy.request();

  /// Hands over the answer in which so many clusters lead to connectors.
  void translate_until(int wanted) {
    std::string answer;
    REQUIRE(stack::poll_until([&] {
      const auto a = client.translate(request);
      answer = a.bytes;
      return a.status.ok() && online(answer) == wanted;
    }, patience, 20ms));
    envoy.take(answer, wanted == 0);
  }
  answer visit(const std::string& host) const { return stack::visit(envoy.port(), {.host = host}); }
  bool await(const std::string& host, bool (*satisfies)(const answer&)) const {
    if (stack::poll_until([&] { return satisfies(visit(host)); }, patience, 20ms)) return true;
    UNSCOPED_INFO(envoy.log());
    return false;
  }
  void expect_nothing_rejected() const {
    const auto rejected = envoy.statistics("update_rejected");
    CHECK(rejected.size() >= 3);
    for (const auto& [name, n] : rejected) {
      INFO(name << "\n" << envoy.log());
      CHECK(n == 0);
    }
  }
};

}  // namespace

TEST_CASE("a real Envoy takes the hook's answers: 503, the target, 503 again, over every way in") {
  WARREN_NEEDS_SERVERS();
  hooked_envoy h;
  h.w.must_ctl({"gateway-class", "create", "demo", "--listen", "127.0.0.1:" + std::to_string(stack::free_port())});
  auto& there = h.w.add_agent("there", {.start = false});
  h.w.add_agent("away", {.start = false});
  for (int i = 0; i < 10; ++i) {
    const auto name = "tunnel-0000" + std::to_string(i);
    h.w.create_tunnel(name, name + ".example.test", i < 5 ? "there" : "away");
  }

  // Nobody is there yet: the deliberate answer, and no attempt to reach anybody.
  h.translate_until(0);
  REQUIRE(h.await(online_host, is_ours));
  http2_visitor h2{h.envoy.port()};
  for (const auto* host : {online_host, offline_host}) {
    CHECK(is_ours(h.visit(host)));
    CHECK(is_ours(stack::visit(h.envoy.port(), {.host = host, .method = "POST", .body = "x"})));
    CHECK(is_ours(h2.visit({.host = host})));
    CHECK(open_visit(open_visit::kind::connect, h.envoy.port(), std::string{host} + ":443").head().status == 503);
    CHECK(open_visit(open_visit::kind::websocket, h.envoy.port(), host).head().status == 503);
  }
  CHECK(h.behind.connects().empty());
  h.expect_nothing_rejected();

  // Online, while somebody keeps asking.
  stack::continuous_visitor visitor{h.envoy.port(), {.host = online_host}, 5ms};
  there.start();
  h.translate_until(5);
  REQUIRE(visitor.await([](const answer& a) { return is_the_targets(a); }, patience));
  CHECK(is_the_targets(h.visit(online_host)));
  CHECK(is_the_targets(h2.visit({.host = online_host})));
  const auto target = h.w.demo_origin().url().substr(7);
  for (const auto& one : h.behind.connects()) {
    CHECK(one.endpoint_id == there.public_key());
    CHECK(one.target == target);
  }
  {
    open_visit websocket{open_visit::kind::websocket, h.envoy.port(), online_host};
    CHECK(websocket.head().status == 101);
    CHECK(websocket.send("hello"));
    CHECK(websocket.receive() == "hello");
    open_visit connect{open_visit::kind::connect, h.envoy.port(), std::string{online_host} + ":443"};
    CHECK(connect.head().status == 200);
    CHECK(connect.send(fmt::format("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", target)));
    const auto got = connect.receive();
    REQUIRE(got);
    CHECK(got->rfind("HTTP/1.1 200", 0) == 0);
  }
  CHECK(is_ours(h.visit(offline_host)));
  h.expect_nothing_rejected();

  // Offline again: nobody met anything but the target and the deliberate answer.
  there.stop();
  h.translate_until(0);
  REQUIRE(visitor.await(is_ours, patience));
  REQUIRE(h.await(online_host, is_ours));
  visitor.stop();
  for (const auto& seen : visitor.answers())
    if (!is_ours(seen.what) && !is_the_targets(seen.what)) FAIL_CHECK(describe(seen.what));
  CHECK(open_visit(open_visit::kind::connect, h.envoy.port(), std::string{online_host} + ":443").head().status == 503);
  h.expect_nothing_rejected();

  const auto attempts = h.envoy.statistics(std::string{"cluster."} + offline_cluster + ".upstream_rq_total");
  REQUIRE(attempts.size() == 1);
  CHECK(attempts.begin()->second == 0);
  const auto connections = h.envoy.statistics(std::string{"cluster."} + offline_cluster + ".upstream_cx_total");
  REQUIRE(connections.size() == 1);
  CHECK(connections.begin()->second == 0);
}
