// test/integration/admin_api_test.cpp -- the admin API and warrenctl over a real connection, with an owner and a
// replica that are played here.
#include "test/integration/admin_fixture.hpp"
#include "services/admin/status.hpp"
#include "services/admin/validate.hpp"

using namespace warren;
using namespace warren::played;

TEST_CASE_METHOD(fixture, "a tunnel that is created is in the same instance's lists") {
  const auto created = create("t", "A.Example.com.");
  INFO(created.err);
  CHECK(created.code == 0);
  CHECK(ctl({"tunnel", "list", "-o", "name"}).out == "projects/p/tunnels/t\n");
  CHECK(ctl({"tunnel", "get", "t", "-o", "json"}).out.find("\"a.example.com\"") != std::string::npos);
  CHECK(ctl({"tunnel", "get", "t"}).out.find("NAME") == 0);
  REQUIRE(owner.seen.size() == 1);
  CHECK(owner.seen[0].caller().principal() == "local");
  CHECK(owner.seen[0].caller().request_id().size() == 32);
  CHECK(owner.seen[0].caller().digest().size() == 64);
  CHECK(owner.seen[0].create_tunnel().spec().rules(0).target() == "http://localhost:8080");
}

TEST_CASE_METHOD(fixture, "lists have pages, filters and orders") {
  for (const auto* name : {"a", "b", "c"}) REQUIRE(create(name, std::string{name} + ".example.com").code == 0);
  CHECK(ctl({"tunnel", "list", "-o", "name", "--sort-by", "name desc"}).out ==
        "projects/p/tunnels/c\nprojects/p/tunnels/b\nprojects/p/tunnels/a\n");
  CHECK(ctl({"tunnel", "list", "-o", "name", "--filter", "name = b"}).out == "projects/p/tunnels/b\n");
  const auto bad = ctl({"tunnel", "list", "--filter", "nonsense = b"});
  CHECK(bad.code == 1);
  CHECK(bad.err.find("filter") != std::string::npos);
}

TEST_CASE_METHOD(fixture, "an owner that cannot be found is looked for again with the same request id") {
  owner.refuse = 3;
  CHECK(create("t").code == 0);
  REQUIRE(owner.seen.size() == 1);
}

TEST_CASE_METHOD(fixture, "without an owner the caller's deadline ends it, saying whether it may have happened") {
  owner.refuse = 1'000'000;
  const auto r = ctl({"connector", "delete", "c", "--timeout", "300ms", "--request-id", "mine"});
  CHECK(r.code == 1);
  CHECK(r.err.find("UNAVAILABLE") != std::string::npos);
  CHECK(r.err.find("--request-id mine") != std::string::npos);
}

TEST_CASE_METHOD(fixture, "refusals have a code, the field and a hint") {
  const auto bad = ctl({"tunnel", "create", "t", "--hostname", "localhost", "--connector", "c", "--target", "ftp://x"});
  CHECK(bad.code == 1);
  CHECK(bad.err.find("tunnel.hostnames[0]: ") != std::string::npos);
  CHECK(bad.err.find("tunnel.rules[0].target: ") != std::string::npos);
  CHECK(owner.seen.empty());
  const auto taken = create("t", "taken.example.com");
  CHECK(taken.code == 1);
  CHECK(taken.err.find("ALREADY_EXISTS") != std::string::npos);
  CHECK(taken.err.find("tunnel.hostnames[0]") != std::string::npos);
  const auto aborted = ctl({"tunnel", "update", "t", "--disabled", "--etag", "old"});
  CHECK(aborted.code == 1);
  CHECK(aborted.err.find("its etag is u-1") != std::string::npos);
  CHECK(ctl({"tunnel", "get", "nothing"}).err.find("NOT_FOUND") != std::string::npos);
}

TEST_CASE_METHOD(fixture, "exit codes tell wrong usage from a timeout") {
  CHECK(ctl({"tunnel"}).code == 2);
  CHECK(ctl({"tunnel", "create"}).code == 2);
  CHECK(ctl({"tunnel", "list", "-o", "xml"}).code == 2);
  CHECK(ctl({"tunnel", "list", "--timeout", "soon"}).code == 2);
  CHECK(ctl({"partition", "list", "--watch"}).code == 2);
  CHECK(ctl({"--help"}).code == 0);
  REQUIRE(create("t").code == 0);
  const auto late = ctl({"tunnel", "wait", "t", "--for", "ready", "--timeout", "300ms"});
  INFO(late.err);
  CHECK(late.code == 3);
}

TEST_CASE_METHOD(fixture, "enrolment prints what an agent needs") {
  const std::string key(64, 'a');
  const auto r = ctl({"connector", "enrol", "c", "--public-key", key});
  INFO(r.err);
  CHECK(r.code == 0);
  CHECK(r.out.find("warren.v1.hello.") != std::string::npos);
  CHECK(r.out.find("nats://127.0.0.1:4222") != std::string::npos);
  CHECK(ctl({"connector", "enrol", "c", "--public-key", "xyz"}).err.find("public_key") != std::string::npos);
  CHECK(ctl({"connector", "enrol", "c"}).code == 2);
}

TEST_CASE_METHOD(fixture, "a watch tells what there is, that it has caught up, and what changes") {
  REQUIRE(create("a").code == 0);
  settle();
  auto stub = api::TunnelService::NewStub(channel());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + 10s);
  api::WatchTunnelsRequest q;
  q.set_parent("projects/p");
  auto reader = stub->WatchTunnels(&context, q);
  api::WatchTunnelsResponse r;
  REQUIRE(reader->Read(&r));
  CHECK(r.tunnel().name() == "projects/p/tunnels/a");
  REQUIRE(reader->Read(&r));
  CHECK(r.has_caught_up());
  CHECK_FALSE(r.resume_token().empty());
  q.set_resume_token(r.resume_token());
  REQUIRE(create("b", "b.example.com").code == 0);
  REQUIRE(reader->Read(&r));
  CHECK(r.tunnel().name() == "projects/p/tunnels/b");
  context.TryCancel();

  grpc::ClientContext again;
  again.set_deadline(std::chrono::system_clock::now() + 10s);
  auto resumed = stub->WatchTunnels(&again, q);
  REQUIRE(resumed->Read(&r));
  CHECK(r.tunnel().name() == "projects/p/tunnels/b");
  server->shutdown(5s);
  while (resumed->Read(&r)) {}
  CHECK(resumed->Finish().error_code() == grpc::StatusCode::UNAVAILABLE);
}

TEST_CASE_METHOD(fixture, "audit, operations and completion") {
  CHECK(ctl({"audit", "list", "-o", "json"}).out.find("CreateTunnel") != std::string::npos);
  CHECK(ctl({"partition", "list", "-o", "name"}).out == "partitions/0\npartitions/1\npartitions/2\n");
  CHECK(ctl({"version"}).out.find("warrend test") != std::string::npos);
  CHECK(ctl({"completion", "bash"}).out.find("'tunnel why')") != std::string::npos);
  CHECK(ctl({"gateway", "get", "g"}).code == 1);
}

TEST_CASE("only this machine may listen and call without TLS") {
  replica::view view;
  admin::server_config config;
  config.listen = "0.0.0.0:0";
  config.send = [](auto, auto, auto, auto) {};
  CHECK_THROWS_AS(admin::server::start(config, view), std::invalid_argument);
  CHECK(admin::is_local_peer("ipv4:127.0.0.1:1"));
  CHECK(admin::is_local_peer("ipv6:%5B::1%5D:1"));
  CHECK_FALSE(admin::is_local_peer("ipv4:10.127.0.1:1"));
}

TEST_CASE("every error has its row") {
  for (std::size_t i = 0; i < errc_names.size(); ++i) {
    const auto code = static_cast<errc>(i);
    CHECK((admin::grpc_code(code) == grpc::StatusCode::OK) == (code == errc::none));
  }
}

TEST_CASE("every field of a request is judged by name") {
  const auto names = [](const admin::checked_command& c) {
    std::string all;
    for (const auto& v : c.violations) all += v.field + " ";
    return all;
  };
  api::CreateTunnelRequest create;
  CHECK(names(admin::check(create)) == "parent tunnel_id tunnel.hostnames tunnel.rules ");
  create.set_parent("projects/-");
  create.set_tunnel_id("Bad");
  create.set_request_id(std::string(129, 'x'));
  create.mutable_tunnel()->add_hostnames("a.b");
  create.mutable_tunnel()->add_hostnames("A.b.");
  create.mutable_tunnel()->add_rules();
  create.mutable_tunnel()->set_gateway_class("x y");
  CHECK(names(admin::check(create)) ==
        "request_id parent tunnel_id tunnel.hostnames[1] tunnel.rules[0].connector tunnel.rules[0].target "
        "tunnel.gateway_class ");
  api::UpdateTunnelRequest update;
  update.mutable_tunnel()->set_name("projects/p/connectors/c");
  update.mutable_update_mask()->add_paths("uid");
  update.mutable_update_mask()->add_paths("nonsense");
  CHECK(names(admin::check(update)) == "tunnel.name update_mask.paths[0] update_mask.paths[1] ");
  api::CreateConnectorRequest connector;
  connector.set_parent("projects/p");
  connector.set_connector_id("c");
  connector.mutable_connector()->mutable_lease_duration()->set_seconds(2);
  CHECK(names(admin::check(connector)) == "connector.lease_duration ");
  api::CreateGatewayClassRequest gateway_class;
  gateway_class.mutable_gateway_class()->set_dial_mode("x");
  gateway_class.mutable_gateway_class()->add_listen("nowhere");
  CHECK(names(admin::check(gateway_class)) == "gateway_class_id gateway_class.dial_mode gateway_class.listen[0] ");
  api::CreateConnectorClassRequest connector_class;
  connector_class.set_connector_class_id("k");
  connector_class.mutable_connector_class()->add_allowed_networks("10.0.0.1/8");
  connector_class.mutable_connector_class()->add_allowed_networks("fd00::/8");
  CHECK(names(admin::check(connector_class)) == "connector_class.allowed_networks[0] ");
}
