// test/integration/admin_wire_test.cpp -- the admin API of a real warrend, from the wire: every field of every request
// wrong in every way, and what the rooms below make of those that are right.
#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <map>
#include <set>

#include "services/admin/status.hpp"
#include "test/integration/admin_requests.hpp"
#include "test/support/stack.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

using namespace warren;
using namespace std::chrono_literals;
namespace api = warren::admin::v1;
namespace st = warren::stack;

namespace {

constexpr auto patience = 20s;

/// A warrend with one of everything, in project "fields".
struct installation {
  st::stack s{{.with_envoy = false, .partitions = 4, .project = bad::project}};
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<api::TunnelService::Stub> tunnels;
  std::unique_ptr<api::ConnectorService::Stub> connectors;
  std::unique_ptr<api::GatewayService::Stub> gateways;
  std::unique_ptr<api::ClassService::Stub> classes;
  std::unique_ptr<api::OperationsService::Stub> operations;

  installation() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel = grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", s.admin_port()), grpc::InsecureChannelCredentials(), arguments);
    tunnels = api::TunnelService::NewStub(channel);
    connectors = api::ConnectorService::NewStub(channel);
    gateways = api::GatewayService::NewStub(channel);
    classes = api::ClassService::NewStub(channel);
    operations = api::OperationsService::NewStub(channel);
  }
  /// What the requests of the table are about.
  void furnish() {
    s.must_ctl({"connector", "create", "c"});
    s.must_ctl({"tunnel", "create", "t", "--hostname", "t.fields.example.com", "--connector", "c", "--target", "http://localhost:1"});
    s.must_ctl({"gateway-class", "create", "k", "--listen", "127.0.0.1:8081"});
    s.must_ctl({"connector-class", "create", "n", "--allow", "10.0.0.0/8"});
    s.must_ctl({"gateway", "create", "g", "--class", "k"});
    s.must_ctl({"-p", "other", "connector", "create", "c"});
    s.must_ctl({"-p", "other", "tunnel", "create", "t", "--hostname", "t.other.example.com", "--connector", "c", "--target", "http://localhost:1"});
  }
  /// Nothing follows any more once it is known that there is no gateway.
  void await_rest() {
    for (const auto* project : {"fields", "other"})
      REQUIRE(st::poll_until(
          [&] {
            return s.ctl({"-p", project, "tunnel", "get", "t", "-o", "json"}).out.find("NoGateway") != std::string::npos;
          },
          std::chrono::duration_cast<std::chrono::milliseconds>(patience), 100ms));
  }
  /// Everything that is stored, in words that change with it.
  std::string stored() const {
    std::string out;
    for (const auto* table : {"tunnel", "connector", "hostname_claim", "gateway", "gateway_class", "connector_class",
                              "tombstone", "audit_event", "admin_request"})
      out += fmt::format("{} {}\n", table, s.sql(fmt::format("SELECT count(*), md5(string_agg(x::text, '' ORDER BY x::text)) FROM {} x", table)));
    return out + s.sql("SELECT string_agg(revision::text, ',' ORDER BY id) FROM partition");
  }
};

/// One call, given up after a while.
template <class Stub, class Request, class Answer>
grpc::Status call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Answer*), const Request& q,
                  Answer* answer = nullptr) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  Answer unused;
  return (stub.*method)(&context, q, answer != nullptr ? answer : &unused);
}

using tunnels = api::TunnelService::Stub;
using connectors = api::ConnectorService::Stub;
using gateways = api::GatewayService::Stub;
using classes = api::ClassService::Stub;
using operations = api::OperationsService::Stub;

grpc::Status send(installation& i, const api::CreateTunnelRequest& q) { return call(*i.tunnels, &tunnels::CreateTunnel, q); }
grpc::Status send(installation& i, const api::UpdateTunnelRequest& q) { return call(*i.tunnels, &tunnels::UpdateTunnel, q); }
grpc::Status send(installation& i, const api::DeleteTunnelRequest& q) { return call(*i.tunnels, &tunnels::DeleteTunnel, q); }
grpc::Status send(installation& i, const api::CreateConnectorRequest& q) { return call(*i.connectors, &connectors::CreateConnector, q); }
grpc::Status send(installation& i, const api::UpdateConnectorRequest& q) { return call(*i.connectors, &connectors::UpdateConnector, q); }
grpc::Status send(installation& i, const api::DeleteConnectorRequest& q) { return call(*i.connectors, &connectors::DeleteConnector, q); }
grpc::Status send(installation& i, const api::EnrolConnectorRequest& q) { return call(*i.connectors, &connectors::EnrolConnector, q); }
grpc::Status send(installation& i, const api::RotateConnectorKeyRequest& q) { return call(*i.connectors, &connectors::RotateConnectorKey, q); }
grpc::Status send(installation& i, const api::CreateGatewayRequest& q) { return call(*i.gateways, &gateways::CreateGateway, q); }
grpc::Status send(installation& i, const api::UpdateGatewayRequest& q) { return call(*i.gateways, &gateways::UpdateGateway, q); }
grpc::Status send(installation& i, const api::DeleteGatewayRequest& q) { return call(*i.gateways, &gateways::DeleteGateway, q); }
grpc::Status send(installation& i, const api::CreateConnectorClassRequest& q) { return call(*i.classes, &classes::CreateConnectorClass, q); }
grpc::Status send(installation& i, const api::UpdateConnectorClassRequest& q) { return call(*i.classes, &classes::UpdateConnectorClass, q); }
grpc::Status send(installation& i, const api::DeleteConnectorClassRequest& q) { return call(*i.classes, &classes::DeleteConnectorClass, q); }
grpc::Status send(installation& i, const api::CreateGatewayClassRequest& q) { return call(*i.classes, &classes::CreateGatewayClass, q); }
grpc::Status send(installation& i, const api::UpdateGatewayClassRequest& q) { return call(*i.classes, &classes::UpdateGatewayClass, q); }
grpc::Status send(installation& i, const api::DeleteGatewayClassRequest& q) { return call(*i.classes, &classes::DeleteGatewayClass, q); }

std::vector<std::string> fields_of(const grpc::Status& s) {
  std::vector<std::string> all;
  for (const auto& v : admin::details_of(s).violations) all.push_back(v.field);
  return all;
}
using fields = std::vector<std::string>;

/// Refused as INVALID_ARGUMENT, naming this field alone.
void check_refused(const grpc::Status& s, const std::string& field) {
  CHECK(s.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(fields_of(s) == fields{field});
  CHECK(s.error_message().find(field + ": ") == 0);
}

std::string shown(const google::protobuf::Message& m) { return m.GetTypeName() + " " + m.ShortDebugString().substr(0, 300); }

bool can_run() {
  if (st::has_shared_postgres()) return true;
  WARN("SKIPPED: WARREN_TEST_PG names no PostgreSQL");
  return false;
}

}  // namespace

TEST_CASE("a spoiled request is refused with its field; nothing is stored, and nobody else notices") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  i.await_rest();
  const auto before = i.stored();
  const auto other = i.s.must_ctl({"-p", "other", "tunnel", "get", "t", "-o", "json"}).out;
  int requests = 0;
  bad::each_request([&](const auto& q, const std::string& field) {
    ++requests;
    INFO(shown(q));
    check_refused(send(i, q), field);
  });
  CHECK(requests > 700);
  CHECK(i.stored() == before);
  CHECK(i.s.must_ctl({"-p", "other", "tunnel", "get", "t", "-o", "json"}).out == other);
  // It serves as before.
  CHECK(send(i, bad::good<api::CreateTunnelRequest>()).ok());
  CHECK(i.stored() != before);
}

TEST_CASE("what is asked of a list is judged field by field") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  for (const auto* name : {"a1", "a2", "a3"}) {
    i.s.must_ctl({"connector", "create", name});
    i.s.must_ctl({"gateway", "create", name});
    i.s.must_ctl({"gateway-class", "create", name, "--listen", "127.0.0.1:9"});
    i.s.must_ctl({"connector-class", "create", name});
    i.s.must_ctl({"tunnel", "create", name, "--hostname", std::string{name} + ".example.com", "--connector", "c", "--target", "http://localhost"});
  }
  const auto judge = [&](auto list, auto blank, const std::string& of) {
    INFO(of);
    const auto refused = [&](const std::string& field, auto put) {
      auto q = blank;
      put(q);
      INFO(shown(q));
      std::string next;
      const auto s = list(q, next);
      CHECK(s.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
      CHECK(fields_of(s) == fields{field});
    };
    refused("page_size", [](auto& q) { q.set_page_size(-1); });
    refused("page_size", [](auto& q) { q.set_page_size(std::numeric_limits<std::int32_t>::min()); });
    for (const std::string& token : {std::string{"x"}, std::string{"!!!!"}, std::string{"AAAA"}, std::string(16, 'A'), std::string(17 * 1024, 'A'),
                                     std::string{"a\nb"}, std::string{"eyJhIjoxfQ"}})
      refused("page_token", [&](auto& q) { q.set_page_token(token); });
    for (const std::string& filter :
         {std::string{"nonsense = 1"}, std::string{"name"}, std::string{"name ="}, std::string{"= a"}, std::string{"name = a AND"},
          std::string{"name = a OR name = b"}, std::string{"name = \"a"}, std::string{"name ! a"}, std::string{"generation = many"},
          std::string{"create_time > yesterday"}, std::string{"name = a\nAND\x01"}, std::string(2049, 'x'),
          std::string{"name = a' OR '1'='1"}, [] {
            std::string many = "name = a";
            while (many.size() < 1000) many += " AND name = a";
            return many;
          }()})
      refused("filter", [&](auto& q) { q.set_filter(filter); });
    for (const std::string& order : {std::string{"nonsense"}, std::string{"name down"}, std::string{"name desc asc"}, std::string{"name,name"},
                                     std::string{",name"}, std::string{"name;drop"}, std::string(2049, 'x'), std::string{"name\n\x01"}})
      refused("order_by", [&](auto& q) { q.set_order_by(order); });

    // Tokens belong to what they were given for.
    auto q = blank;
    std::string token, next;
    q.set_page_size(1);
    q.set_filter("name != zzz");
    q.set_order_by("name desc");
    REQUIRE(list(q, token).ok());
    REQUIRE_FALSE(token.empty());
    q.set_page_token(token);
    CHECK(list(q, next).ok());
    refused("page_token", [&](auto& r) { r.set_page_token(token); });
    refused("page_token", [&](auto& r) {
      r.set_page_token(token);
      r.set_filter("name != zz");
      r.set_order_by("name desc");
    });
    refused("page_token", [&](auto& r) {
      r.set_page_token(token);
      r.set_filter("name != zzz");
      r.set_order_by("name");
    });
    for (const auto cut : {token.size() / 2, token.size() - 1, std::size_t{1}})
      refused("page_token", [&](auto& r) {
        r = q;
        r.set_page_token(token.substr(0, cut));
      });
    refused("page_token", [&](auto& r) {
      r = q;
      auto changed = token;
      changed[2] = changed[2] == 'A' ? 'B' : 'A';
      r.set_page_token(changed);
    });
    return token;
  };

  api::ListTunnelsRequest tunnels_of;
  tunnels_of.set_parent("projects/" + bad::project);
  const auto list_tunnels = [&](const api::ListTunnelsRequest& q, std::string& next) {
    api::ListTunnelsResponse a;
    const auto s = call(*i.tunnels, &tunnels::ListTunnels, q, &a);
    next = a.next_page_token();
    return s;
  };
  const auto token = judge(list_tunnels, tunnels_of, "tunnels");
  api::ListConnectorsRequest connectors_of;
  connectors_of.set_parent("projects/" + bad::project);
  const auto list_connectors = [&](const api::ListConnectorsRequest& q, std::string& next) {
    api::ListConnectorsResponse a;
    const auto s = call(*i.connectors, &connectors::ListConnectors, q, &a);
    next = a.next_page_token();
    return s;
  };
  judge(list_connectors, connectors_of, "connectors");
  const auto of_installation = [&](auto& stub, auto method, auto request, const std::string& of) {
    judge(
        [&](const auto& q, std::string& next) {
          auto a = [&]<class S, class Q, class A>(grpc::Status (S::*)(grpc::ClientContext*, const Q&, A*)) { return A{}; }(method);
          const auto s = call(stub, method, q, &a);
          next = a.next_page_token();
          return s;
        },
        request, of);
  };
  of_installation(*i.gateways, &gateways::ListGateways, api::ListGatewaysRequest{}, "gateways");
  of_installation(*i.classes, &classes::ListGatewayClasses, api::ListGatewayClassesRequest{}, "gateway classes");
  of_installation(*i.classes, &classes::ListConnectorClasses, api::ListConnectorClassesRequest{}, "connector classes");

  // Of another project, and of another kind of list.
  std::string next;
  auto foreign = tunnels_of;
  foreign.set_page_token(token);
  foreign.set_filter("name != zzz");
  foreign.set_order_by("name desc");
  foreign.set_parent("projects/other");
  CHECK(fields_of(list_tunnels(foreign, next)) == fields{"page_token"});
  foreign.set_parent("projects/-");
  CHECK(fields_of(list_tunnels(foreign, next)) == fields{"page_token"});
  auto kind = connectors_of;
  kind.set_page_token(token);
  kind.set_filter("name != zzz");
  kind.set_order_by("name desc");
  CHECK(fields_of(list_connectors(kind, next)) == fields{"page_token"});

  for (const auto& parent : bad::parents()) {
    if (parent == "projects/-") continue;  // all of them
    INFO(parent.substr(0, 80));
    auto q = tunnels_of;
    q.set_parent(parent);
    CHECK(fields_of(list_tunnels(q, next)) == fields{"parent"});
    auto c = connectors_of;
    c.set_parent(parent);
    CHECK(fields_of(list_connectors(c, next)) == fields{"parent"});
  }
}

TEST_CASE("names and numbers of what is read are judged, too") {
  if (!can_run()) return;
  installation i;
  const auto each = [&](const std::vector<std::string>& names, auto& stub, auto method) {
    for (const auto& name : names) {
      INFO(name.substr(0, 100));
      auto q = [&]<class S, class Q, class A>(grpc::Status (S::*)(grpc::ClientContext*, const Q&, A*)) { return Q{}; }(method);
      q.set_name(name);
      check_refused(call(stub, method, q), "name");
    }
  };
  each(bad::names("tunnels", true), *i.tunnels, &tunnels::GetTunnel);
  each(bad::names("tunnels", true), *i.tunnels, &tunnels::ExplainTunnel);
  each(bad::names("connectors", true), *i.connectors, &connectors::GetConnector);
  each(bad::names("gateways", false), *i.gateways, &gateways::GetGateway);
  each(bad::names("gateways", false), *i.gateways, &gateways::GetGatewayBootstrap);
  each(bad::names("connectorClasses", false), *i.classes, &classes::GetConnectorClass);
  each(bad::names("gatewayClasses", false), *i.classes, &classes::GetGatewayClass);
  for (const std::string collection : {"instances", "partitions"}) {
    std::vector<std::string> names{"", "1", collection, collection + "/", collection + "/-1", collection + "/x", collection + "/1x",
                                   collection + "/ 1", collection + "/1/2", collection + "/99999999999999999999999",
                                   collection + "/" + std::string(100'000, '1')};
    if (collection == "instances") {
      each(names, *i.operations, &operations::GetInstance);
      each(names, *i.operations, &operations::DrainInstance);
    } else {
      each(names, *i.operations, &operations::GetPartition);
    }
  }
  const auto numbered = [&](auto q, auto method) {
    auto negative = q;
    negative.set_page_size(-1);
    check_refused(call(*i.operations, method, negative), "page_size");
    for (const std::string& token : {std::string{"x"}, std::string{"-1"}, std::string{"1x"}, std::string{"1 "}, std::string{"99999999999999999999"}, std::string(100'000, '1')}) {
      auto wrong = q;
      wrong.set_page_token(token);
      INFO(token.substr(0, 60));
      check_refused(call(*i.operations, method, wrong), "page_token");
    }
  };
  numbered(api::ListInstancesRequest{}, &operations::ListInstances);
  numbered(api::ListPartitionsRequest{}, &operations::ListPartitions);
  numbered(api::ListAuditEventsRequest{}, &operations::ListAuditEvents);
  for (const auto& project : bad::labels()) {
    if (project.empty()) continue;  // all of them
    api::ListAuditEventsRequest q;
    q.set_project(project);
    check_refused(call(*i.operations, &operations::ListAuditEvents, q), "project");
  }
}

namespace {

template <class Stub, class Request, class Response>
grpc::Status end_of(Stub& stub, std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*, const Request&),
                    const std::string& parent, const std::string& token) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  Request q;
  q.set_parent(parent);
  q.set_resume_token(token);
  auto reader = (stub.*method)(&context, q);
  Response r;
  while (reader->Read(&r)) {}
  return reader->Finish();
}

/// What a watch tells, until `enough` says so.
template <class Response> class follower {
public:
  template <class Stub, class Request>
  follower(Stub& stub, std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*, const Request&),
           const std::string& parent) {
    context_.set_deadline(std::chrono::system_clock::now() + 60s);
    Request q;
    q.set_parent(parent);
    reader_ = (stub.*method)(&context_, q);
  }
  ~follower() { context_.TryCancel(); }
  template <class F> bool until(F enough) {
    while (reader_->Read(&last))
      if (enough(last)) return true;
    return false;
  }
  Response last;

private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<Response>> reader_;
};

}  // namespace

TEST_CASE("a watch's parent and token are judged") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  for (const auto& parent : bad::parents()) {
    if (parent == "projects/-") continue;
    INFO(parent.substr(0, 80));
    check_refused(end_of(*i.tunnels, &tunnels::WatchTunnels, parent, ""), "parent");
    check_refused(end_of(*i.connectors, &connectors::WatchConnectors, parent, ""), "parent");
  }
  follower<api::WatchTunnelsResponse> w{*i.tunnels, &tunnels::WatchTunnels, "projects/fields"};
  REQUIRE(w.until([](const auto& r) { return r.has_caught_up(); }));
  const auto token = w.last.resume_token();
  REQUIRE(token.size() > 20);
  auto changed = token;
  changed[10] = changed[10] == 'A' ? 'B' : 'A';
  for (const auto& wrong : {std::string{"x"}, std::string{"!"}, token.substr(0, token.size() / 2), token.substr(1), token + "AAAA", changed,
                            std::string(17 * 1024, 'A'), std::string{"a\nb"}}) {
    INFO(wrong.substr(0, 80));
    const auto s = end_of(*i.tunnels, &tunnels::WatchTunnels, "projects/fields", wrong);
    CHECK(s.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(fields_of(s) == fields{"resume_token"});
  }
  // Of another project, of all, and of another kind.
  CHECK(fields_of(end_of(*i.tunnels, &tunnels::WatchTunnels, "projects/other", token)) == fields{"resume_token"});
  CHECK(fields_of(end_of(*i.tunnels, &tunnels::WatchTunnels, "projects/-", token)) == fields{"resume_token"});
  CHECK(fields_of(end_of(*i.connectors, &connectors::WatchConnectors, "projects/fields", token)) == fields{"resume_token"});
}

TEST_CASE("connectors are watched: what there is, what comes, changes and goes, of one project only") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  follower<api::WatchConnectorsResponse> w{*i.connectors, &connectors::WatchConnectors, "projects/fields"};
  std::set<std::string> there;
  REQUIRE(w.until([&](const auto& r) {
    if (r.has_connector()) there.insert(r.connector().name());
    return r.has_caught_up();
  }));
  CHECK(there == std::set<std::string>{"projects/fields/connectors/c"});
  const auto token = w.last.resume_token();

  i.s.must_ctl({"-p", "other", "connector", "create", "unseen"});
  i.s.must_ctl({"connector", "create", "d"});
  REQUIRE(w.until([](const auto& r) { return r.connector().name() == "projects/fields/connectors/d"; }));
  i.s.must_ctl({"connector", "update", "d", "--lease-duration", "1m"});
  REQUIRE(w.until([](const auto& r) {
    CHECK(r.connector().name() != "projects/other/connectors/unseen");
    return r.connector().lease_duration().seconds() == 60;
  }));
  // An agent comes and goes.
  i.s.add_agent("live");
  REQUIRE(w.until([](const auto& r) { return r.connector().name() == "projects/fields/connectors/live" && r.connector().online(); }));
  i.s.find_agent("live").stop();
  REQUIRE(w.until([](const auto& r) { return r.connector().name() == "projects/fields/connectors/live" && !r.connector().online(); }));
  i.s.must_ctl({"connector", "delete", "d"});
  REQUIRE(w.until([](const auto& r) { return r.deleted() == "projects/fields/connectors/d"; }));

  // From the first token on: the same, at once.
  std::set<std::string> missed;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  api::WatchConnectorsRequest q;
  q.set_parent("projects/fields");
  q.set_resume_token(token);
  auto resumed = i.connectors->WatchConnectors(&context, q);
  api::WatchConnectorsResponse r;
  while (resumed->Read(&r) && !r.has_caught_up()) missed.insert(r.has_connector() ? r.connector().name() : "-" + r.deleted());
  CHECK(missed.count("-projects/fields/connectors/d") == 1);
  CHECK(missed.count("projects/fields/connectors/live") == 1);
  CHECK(missed.count("projects/other/connectors/unseen") == 0);
  context.TryCancel();
}

TEST_CASE("a gateway is of a class that there is, and a class in use stays") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  i.await_rest();
  const auto before = i.stored();
  api::CreateGatewayRequest create;
  create.set_gateway_id("new");
  create.mutable_gateway()->set_gateway_class("missing");
  auto s = send(i, create);
  check_refused(s, "gateway.gateway_class");
  CHECK(s.error_message().find("there is no gateway class missing") != std::string::npos);
  api::UpdateGatewayRequest move;
  move.mutable_gateway()->set_name("gateways/g");
  move.mutable_gateway()->set_gateway_class("missing");
  check_refused(send(i, move), "gateway.gateway_class");
  api::DeleteGatewayClassRequest gone;
  gone.set_name("gatewayClasses/k");
  s = send(i, gone);
  CHECK(s.error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  CHECK(s.error_message().find("gateway g is of this class") != std::string::npos);
  CHECK(i.stored() == before);

  move.mutable_gateway()->set_gateway_class("default");
  CHECK(send(i, move).ok());
  CHECK(send(i, gone).ok());
  CHECK(send(i, gone).error_code() == grpc::StatusCode::NOT_FOUND);
  for (const auto* name : {"gatewayClasses/default", "connectorClasses/default"}) {
    INFO(name);
    gone.set_name(name);
    api::DeleteConnectorClassRequest connector_class;
    connector_class.set_name(name);
    // "default" is what requests that name none mean. A gateway is of it, too.
    const auto refused = std::string{name}.starts_with("gateway") ? send(i, gone) : send(i, connector_class);
    CHECK(refused.error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  }
}

TEST_CASE("a connector class in use stays, and one that goes around the API is named") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  i.s.must_ctl({"connector", "create", "one", "--class", "n"});
  i.s.must_ctl({"-p", "other", "connector", "create", "two", "--class", "n"});
  i.await_rest();
  const auto before = i.stored();
  api::DeleteConnectorClassRequest gone;
  gone.set_name("connectorClasses/n");
  auto s = send(i, gone);
  CHECK(s.error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  CHECK(s.error_message() == "connector projects/fields/connectors/one and 1 more are of this class: delete them, or move them to another class, first");
  CHECK(i.stored() == before);
  i.s.must_ctl({"connector", "delete", "one"});
  s = send(i, gone);
  CHECK(s.error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  CHECK(s.error_message().starts_with("connector projects/other/connectors/two is of this class: delete it"));
  gone.set_name("connectorClasses/unused");
  i.s.must_ctl({"connector-class", "create", "unused"});
  CHECK(send(i, gone).ok());

  i.s.sql("DELETE FROM connector_class WHERE name = 'n'");  // a rival's word: the connector says what is missing
  const auto ready = [&] { return i.s.ctl({"-p", "other", "connector", "get", "two", "-o", "json"}).out; };
  CHECK(st::poll_until([&] { return ready().find("ConnectorClassNotFound") != std::string::npos; }, std::chrono::duration_cast<std::chrono::milliseconds>(patience), 100ms));
  const auto shown = i.s.ctl({"-p", "other", "connector", "get", "two", "-o", "json"}).json();
  CHECK(st::stack::condition(shown, "Ready") == "False");
  CHECK(st::stack::condition_message(shown, "Ready") == "There is no connector class \"n\".");
  i.s.must_ctl({"-p", "other", "connector", "update", "two", "--class", "default"});
  CHECK(st::poll_until([&] { return ready().find("ConnectorClassNotFound") == std::string::npos; }, std::chrono::duration_cast<std::chrono::milliseconds>(patience), 100ms));
}

TEST_CASE("a gateway class is changed field by field, under its etag") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  i.await_rest();
  const auto update = [&](const api::UpdateGatewayClassRequest& q, api::GatewayClass& a) {
    return call(*i.classes, &classes::UpdateGatewayClass, q, &a);
  };
  api::GatewayClass first, second, a;
  api::GetGatewayClassRequest get;
  get.set_name("gatewayClasses/k");
  REQUIRE(call(*i.classes, &classes::GetGatewayClass, get, &first).ok());
  CHECK(first.stream_idle_timeout().seconds() == 300);
  api::UpdateGatewayClassRequest q;
  q.mutable_gateway_class()->set_name("gatewayClasses/k");
  q.mutable_gateway_class()->set_etag(first.etag());
  q.mutable_gateway_class()->mutable_stream_idle_timeout()->set_seconds(7);
  REQUIRE(update(q, second).ok());
  CHECK(second.stream_idle_timeout().seconds() == 7);
  CHECK(second.listen(0) == "127.0.0.1:8081");
  CHECK(second.generation() == first.generation() + 1);
  CHECK(second.etag() != first.etag());
  CHECK(second.uid() == first.uid());
  // The same instance's reads show what was written.
  REQUIRE(call(*i.classes, &classes::GetGatewayClass, get, &a).ok());
  CHECK(a.SerializeAsString() == second.SerializeAsString());

  const auto before = i.stored();
  auto s = update(q, a);
  CHECK(s.error_code() == grpc::StatusCode::ABORTED);
  CHECK(admin::details_of(s).etag == second.etag());
  CHECK(fields_of(s) == fields{"gateway_class.etag"});
  CHECK(i.stored() == before);
  q.mutable_gateway_class()->set_etag(second.etag());
  CHECK(update(q, a).ok());  // nothing changes: nothing is written
  CHECK(a.generation() == second.generation());
  CHECK(i.stored() == before);
  q.mutable_gateway_class()->clear_etag();
  q.mutable_gateway_class()->set_name("gatewayClasses/nothing");
  s = update(q, a);
  CHECK(s.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(fields_of(s) == fields{"gateway_class.name"});
  api::CreateGatewayClassRequest again;
  again.set_gateway_class_id("k");
  again.mutable_gateway_class()->add_listen("127.0.0.1:1");
  s = send(i, again);
  CHECK(s.error_code() == grpc::StatusCode::ALREADY_EXISTS);
  CHECK(fields_of(s) == fields{"gateway_class_id"});
}

TEST_CASE("a tunnel is switched off and on; * changes all that can be changed") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  follower<api::WatchTunnelsResponse> w{*i.tunnels, &tunnels::WatchTunnels, "projects/fields"};
  REQUIRE(w.until([](const auto& r) { return r.has_caught_up(); }));
  const auto update = [&](const api::UpdateTunnelRequest& q) {
    api::Tunnel a;
    const auto s = call(*i.tunnels, &tunnels::UpdateTunnel, q, &a);
    INFO(s.error_message());
    CHECK(s.ok());
    return a;
  };
  api::UpdateTunnelRequest q;
  q.mutable_tunnel()->set_name("projects/fields/tunnels/t");
  q.mutable_tunnel()->set_enabled(false);
  const auto off = update(q);
  CHECK_FALSE(off.enabled());
  CHECK(off.hostnames(0) == "t.fields.example.com");
  REQUIRE(w.until([](const auto& r) { return r.has_tunnel() && !r.tunnel().enabled(); }));
  api::ExplainTunnelRequest why;
  why.set_name(q.tunnel().name());
  api::ExplainTunnelResponse words;
  REQUIRE(call(*i.tunnels, &tunnels::ExplainTunnel, why, &words).ok());
  CHECK_FALSE(words.ready());
  CHECK(words.summary().find("tunnel enabled") == 0);
  q.mutable_tunnel()->set_enabled(true);
  const auto on = update(q);
  CHECK(on.enabled());
  CHECK(on.generation() == off.generation() + 1);
  REQUIRE(w.until([](const auto& r) { return r.has_tunnel() && r.tunnel().enabled(); }));

  q = bad::good<api::UpdateTunnelRequest>();
  q.mutable_tunnel()->clear_enabled();
  q.mutable_update_mask()->add_paths("*");
  const auto all = update(q);
  CHECK(all.hostnames(0) == "good.fields.example.com");
  CHECK(all.rules(0).target() == "http://localhost:8080");
  CHECK(all.enabled());
  // The name that it gave back can be had at once.
  auto other = bad::good<api::CreateTunnelRequest>();
  other.set_parent("projects/other");
  CHECK(fields_of(send(i, other)) == fields{"tunnel.hostnames"});
  other.mutable_tunnel()->set_hostnames(0, "t.fields.example.com");
  CHECK(send(i, other).ok());
}

TEST_CASE("a request id gives the first answer again, for its method and project; with another content it is refused") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  auto q = bad::good<api::CreateTunnelRequest>();
  q.set_request_id("once");
  api::Tunnel first, again;
  REQUIRE(call(*i.tunnels, &tunnels::CreateTunnel, q, &first).ok());
  const auto before = i.s.sql("SELECT count(*) FROM audit_event");
  REQUIRE(call(*i.tunnels, &tunnels::CreateTunnel, q, &again).ok());
  CHECK(again.uid() == first.uid());
  CHECK(i.s.sql("SELECT count(*) FROM audit_event") == before);
  auto other = q;
  other.mutable_tunnel()->set_enabled(false);
  check_refused(send(i, other), "request_id");
  // Another method or another project has ids of its own.
  api::UpdateTunnelRequest update;
  update.mutable_tunnel()->set_name(first.name());
  update.mutable_tunnel()->set_enabled(false);
  update.set_request_id("once");
  CHECK(send(i, update).ok());
  other.set_parent("projects/other");
  other.mutable_tunnel()->set_hostnames(0, "good.other.example.com");
  CHECK(send(i, other).ok());
  // Also of a deletion: the first answer, though there is nothing any more.
  api::DeleteGatewayRequest gone;
  gone.set_name("gateways/g");
  gone.set_request_id("gone");
  CHECK(send(i, gone).ok());
  CHECK(send(i, gone).ok());
  gone.set_request_id("gone again");
  CHECK(send(i, gone).error_code() == grpc::StatusCode::NOT_FOUND);
}

TEST_CASE("a request that is repeated gives its own answer, whatever others have made of it since") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  api::UpdateTunnelRequest off, on;
  off.mutable_tunnel()->set_name("projects/fields/tunnels/t");
  off.mutable_tunnel()->set_enabled(false);
  off.set_request_id("off");
  on = off;
  on.mutable_tunnel()->set_enabled(true);
  on.set_request_id("on");
  api::Tunnel first, second, again, now;
  REQUIRE(call(*i.tunnels, &tunnels::UpdateTunnel, off, &first).ok());
  REQUIRE(call(*i.tunnels, &tunnels::UpdateTunnel, on, &second).ok());
  REQUIRE(call(*i.tunnels, &tunnels::UpdateTunnel, off, &again).ok());
  CHECK_FALSE(again.enabled());
  CHECK(again.etag() == first.etag());
  CHECK(again.generation() == first.generation());
  api::GetTunnelRequest get;
  get.set_name(first.name());
  REQUIRE(call(*i.tunnels, &tunnels::GetTunnel, get, &now).ok());
  CHECK(now.enabled());
  CHECK(now.etag() == second.etag());

  api::UpdateConnectorRequest short_lease, long_lease;
  short_lease.mutable_connector()->set_name("projects/fields/connectors/c");
  short_lease.mutable_connector()->mutable_lease_duration()->set_seconds(5);
  short_lease.set_request_id("short");
  long_lease = short_lease;
  long_lease.mutable_connector()->mutable_lease_duration()->set_seconds(500);
  long_lease.set_request_id("long");
  api::Connector c_first, c_again;
  REQUIRE(call(*i.connectors, &connectors::UpdateConnector, short_lease, &c_first).ok());
  REQUIRE(send(i, long_lease).ok());
  REQUIRE(call(*i.connectors, &connectors::UpdateConnector, short_lease, &c_again).ok());
  CHECK(c_again.lease_duration().seconds() == 5);
  CHECK(c_again.etag() == c_first.etag());

  api::UpdateGatewayRequest moved;
  moved.mutable_gateway()->set_name("gateways/g");
  moved.mutable_gateway()->set_gateway_class("default");
  moved.set_request_id("moved");
  api::Gateway g_first, g_again;
  REQUIRE(call(*i.gateways, &gateways::UpdateGateway, moved, &g_first).ok());
  i.s.must_ctl({"gateway", "update", "g", "--class", "k"});
  REQUIRE(call(*i.gateways, &gateways::UpdateGateway, moved, &g_again).ok());
  CHECK(g_again.gateway_class() == "default");
  CHECK(g_again.etag() == g_first.etag());

  // Its creation was no deletion, though there is one now.
  auto create = bad::good<api::CreateTunnelRequest>();
  create.set_request_id("created");
  api::Tunnel c1, c2;
  REQUIRE(call(*i.tunnels, &tunnels::CreateTunnel, create, &c1).ok());
  api::DeleteTunnelRequest gone;
  gone.set_name(c1.name());
  REQUIRE(send(i, gone).ok());
  REQUIRE(call(*i.tunnels, &tunnels::CreateTunnel, create, &c2).ok());
  CHECK(c2.uid() == c1.uid());
  CHECK_FALSE(c2.has_delete_time());
}

TEST_CASE("a key belongs to one connector, and a refusal says which field") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  i.await_rest();
  auto enrol = bad::good<api::EnrolConnectorRequest>();
  REQUIRE(send(i, enrol).ok());
  // It looks at its class before it is at rest.
  REQUIRE(st::poll_until([&] { return st::stack::condition(i.s.connector("c3"), "Accepted") == "True"; },
                         std::chrono::duration_cast<std::chrono::milliseconds>(patience), 50ms));
  const auto before = i.stored();
  enrol.set_parent("projects/other");
  auto s = send(i, enrol);
  CHECK(s.error_code() == grpc::StatusCode::ALREADY_EXISTS);
  CHECK(fields_of(s) == fields{"public_key"});
  CHECK(s.error_message().find("fields") == std::string::npos);  // names no other tenant
  auto rotate = bad::good<api::RotateConnectorKeyRequest>();
  s = send(i, rotate);
  CHECK(s.error_code() == grpc::StatusCode::FAILED_PRECONDITION);  // c is not enrolled
  CHECK(fields_of(s) == fields{"public_key"});
  rotate.set_name("projects/fields/connectors/c3");
  rotate.set_etag("another");
  s = send(i, rotate);
  CHECK(s.error_code() == grpc::StatusCode::ABORTED);
  CHECK(fields_of(s) == fields{"etag"});
  rotate.set_name("projects/fields/connectors/nothing");
  s = send(i, rotate);
  CHECK(s.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(fields_of(s) == fields{"name"});
  CHECK(i.stored() == before);
  rotate.set_name("projects/fields/connectors/c3");
  rotate.clear_etag();
  rotate.set_public_key(std::string(64, 'b'));
  CHECK(send(i, rotate).ok());
}

TEST_CASE("a deletion under another etag is refused and changes nothing") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  i.await_rest();
  const auto before = i.stored();
  const auto judge = [&](auto q) {
    INFO(shown(q));
    q.set_etag("another-1");
    const auto s = send(i, q);
    CHECK(s.error_code() == grpc::StatusCode::ABORTED);
    CHECK(fields_of(s) == fields{"etag"});
    CHECK_FALSE(admin::details_of(s).etag.empty());
    q.set_name(q.name() + "x");
    const auto missing = send(i, q);
    CHECK(missing.error_code() == grpc::StatusCode::NOT_FOUND);
    CHECK(fields_of(missing) == fields{"name"});
  };
  judge(bad::good<api::DeleteTunnelRequest>());
  judge(bad::good<api::DeleteConnectorRequest>());
  judge(bad::good<api::DeleteGatewayRequest>());
  judge(bad::good<api::DeleteConnectorClassRequest>());
  CHECK(i.stored() == before);
}

TEST_CASE("the audit trail's pages end by what is in them, and none is left out") {
  if (!can_run()) return;
  installation i;
  constexpr int many = 120;
  i.s.sql(fmt::format("INSERT INTO audit_event (project, method, resource, principal, remote, request_id, before, after) "
                      "SELECT 'fields', 'UpdateTunnel', 'r' || n, 'me', 'here', '', jsonb_build_object('x', repeat('b', 30000)), "
                      "jsonb_build_object('x', repeat('a', 30000)) FROM generate_series(1, {}) n", many));
  std::vector<std::string> seen;
  api::ListAuditEventsRequest q;
  q.set_project("fields");
  int pages = 0;
  do {
    api::ListAuditEventsResponse a;
    q.set_page_size(pages == 0 ? 10 : 1000);  // what is asked for, and what fits
    const auto status = call(*i.operations, &operations::ListAuditEvents, q, &a);
    INFO(status.error_message());
    REQUIRE(status.ok());
    REQUIRE(a.events_size() > 0);
    if (pages == 0) CHECK(a.events_size() == 10);
    for (const auto& e : a.events()) seen.push_back(e.resource());
    q.set_page_token(a.next_page_token());
    ++pages;
  } while (!q.page_token().empty());
  REQUIRE(seen.size() == many);
  for (int n = 0; n < many; ++n) CHECK(seen[static_cast<std::size_t>(n)] == fmt::format("r{}", many - n));
  CHECK(pages == 4);  // 110 of them are 6.6 MB
}

TEST_CASE("the audit trail says what was before and after, without numbers that are not known yet") {
  if (!can_run()) return;
  installation i;
  i.furnish();
  i.s.must_ctl({"gateway", "update", "g", "--class", "default"});
  i.s.must_ctl({"tunnel", "update", "t", "--disabled"});
  i.s.must_ctl({"connector", "update", "c", "--lease-duration", "1m"});
  i.s.must_ctl({"gateway", "delete", "g"});
  api::ListAuditEventsRequest q;
  api::ListAuditEventsResponse a;
  REQUIRE(call(*i.operations, &operations::ListAuditEvents, q, &a).ok());
  std::map<std::string, api::AuditEvent> newest;
  for (const auto& e : a.events()) newest.emplace(e.method(), e);
  const auto value = [](const std::string& text, const std::string& field) {
    const auto j = nlohmann::json::parse(text, nullptr, false);
    return j.is_object() && j.contains(field) ? j.at(field).dump() : std::string{};
  };
  const auto& tunnel = newest.at("UpdateTunnel");
  CHECK(value(tunnel.before(), "enabled") == "true");
  CHECK(value(tunnel.after(), "enabled") != "true");
  CHECK(tunnel.resource() == "projects/fields/tunnels/t");
  CHECK(tunnel.principal() == "local");
  const auto& gateway = newest.at("UpdateGateway");
  CHECK(value(gateway.before(), "class") == "\"k\"");
  CHECK(value(gateway.after(), "class") == "\"default\"");
  CHECK(newest.at("DeleteGateway").after().empty());
  CHECK(newest.at("CreateGateway").before().empty());
  CHECK(value(newest.at("UpdateConnector").after(), "lease_duration_ms") == "\"60000\"");
  for (const auto& e : a.events()) {
    INFO(e.method());
    CHECK(value(e.after(), "version").empty());
    CHECK(value(e.after(), "route_version").empty());
  }
}
