// test/machine/admin_fields_test.cpp -- requests of the admin API, judged before anybody else sees them.
#include <catch2/catch.hpp>

#include <google/protobuf/util/json_util.h>

#include "actors/core/protocol.hpp"
#include "services/admin/convert.hpp"
#include "services/admin/validate.hpp"
#include "test/integration/admin_requests.hpp"

using namespace warren;
namespace api = warren::admin::v1;

namespace {

std::vector<std::string> fields_of(const admin::checked_command& c) {
  std::vector<std::string> all;
  for (const auto& v : c.violations) all.push_back(v.field);
  return all;
}

std::string shown(const google::protobuf::Message& m) { return m.GetTypeName() + " " + m.ShortDebugString().substr(0, 400); }

std::vector<std::string> mask_of(const google::protobuf::RepeatedPtrField<std::string>& paths) { return {paths.begin(), paths.end()}; }

}  // namespace

TEST_CASE("of a spoiled request exactly the spoiled field is named, in words that do not repeat it") {
  int requests = 0;
  bad::each_request([&](const auto& r, const std::string& field) {
    ++requests;
    INFO(shown(r));
    const auto c = admin::check(r);
    CHECK(fields_of(c) == std::vector<std::string>{field});
    for (const auto& v : c.violations) {
      CHECK_FALSE(v.message.empty());
      CHECK(v.message.size() < 300);
      CHECK(protocol::is_printable_utf8(v.message));
    }
  });
  CHECK(requests > 700);
}

TEST_CASE("a request with nothing wrong is a command of its method") {
  std::set<std::string> methods;
  bad::each_good_request([&](const auto& r) {
    INFO(shown(r));
    const auto c = admin::check(r);
    CHECK(fields_of(c).empty());
    CHECK(c.command.command_case() != core::v1::Command::COMMAND_NOT_SET);
    CHECK(r.GetTypeName() == "warren.admin.v1." + c.command.caller().method() + "Request");
    methods.insert(c.command.caller().method());
  });
  CHECK(methods.size() == 17);
}

TEST_CASE("text that is no UTF-8 is refused where it is") {
  auto r = bad::good<api::DeleteTunnelRequest>();
  r.set_etag("\xff\xfe");
  r.set_request_id("\xc0\xaf");
  CHECK(fields_of(admin::check(r)) == std::vector<std::string>{"request_id", "etag"});
}

TEST_CASE("all that is wrong is told at once") {
  api::UpdateGatewayClassRequest r;
  r.set_request_id("\n");
  r.mutable_gateway_class()->set_etag("\n");
  r.mutable_gateway_class()->set_dial_mode("x");
  r.mutable_gateway_class()->add_listen("x");
  r.mutable_gateway_class()->mutable_stream_idle_timeout()->set_seconds(-1);
  CHECK(fields_of(admin::check(r)) ==
        std::vector<std::string>{"request_id", "gateway_class.name", "gateway_class.etag", "gateway_class.dial_mode",
                                 "gateway_class.listen[0]", "gateway_class.stream_idle_timeout"});
}

TEST_CASE("an update takes over what its mask names, and defaults for what is named but not set") {
  SECTION("no mask: what is set") {
    api::UpdateConnectorRequest r;
    r.mutable_connector()->set_name("projects/p/connectors/c");
    r.mutable_connector()->mutable_lease_duration()->set_seconds(60);
    const auto c = admin::check(r);
    CHECK(mask_of(c.command.update_connector().update_mask()) == std::vector<std::string>{"lease_duration_ms"});
    CHECK(c.command.update_connector().spec().lease_duration_ms() == 60'000);
  }
  SECTION("*: all that can be changed") {
    api::UpdateTunnelRequest r = bad::good<api::UpdateTunnelRequest>();
    r.mutable_update_mask()->add_paths("*");
    r.mutable_tunnel()->clear_gateway_class();
    r.mutable_tunnel()->clear_enabled();
    const auto c = admin::check(r);
    CHECK(fields_of(c).empty());
    CHECK(mask_of(c.command.update_tunnel().update_mask()) ==
          std::vector<std::string>{"enabled", "gateway_class", "hostnames", "rules"});
    CHECK(c.command.update_tunnel().spec().gateway_class() == "default");
    CHECK(c.command.update_tunnel().spec().enabled());
  }
  SECTION("a field that is set but not named is not looked at") {
    api::UpdateConnectorRequest r = bad::good<api::UpdateConnectorRequest>();
    r.mutable_update_mask()->add_paths("lease_duration");
    r.mutable_connector()->set_connector_class("NO CLASS");
    const auto c = admin::check(r);
    CHECK(fields_of(c).empty());
    CHECK(mask_of(c.command.update_connector().update_mask()) == std::vector<std::string>{"lease_duration_ms"});
  }
  SECTION("named twice counts once; named but not set is the default") {
    api::UpdateGatewayClassRequest r = bad::good<api::UpdateGatewayClassRequest>();
    for (int i = 0; i < 2; ++i) r.mutable_update_mask()->add_paths("stream_idle_timeout");
    r.mutable_update_mask()->add_paths("dial_mode");
    r.mutable_gateway_class()->clear_stream_idle_timeout();
    r.mutable_gateway_class()->clear_dial_mode();
    r.mutable_gateway_class()->clear_listen();
    const auto c = admin::check(r);
    CHECK(fields_of(c).empty());
    CHECK(mask_of(c.command.put_gateway_class().update_mask()) ==
          std::vector<std::string>{"dial_mode", "stream_idle_timeout_ms"});
    CHECK(c.command.put_gateway_class().spec().stream_idle_timeout_ms() == 300'000);
    CHECK(c.command.put_gateway_class().spec().dial_mode() == "direct");
  }
}

TEST_CASE("what can be written in several ways has one spelling") {
  api::CreateConnectorClassRequest c;
  c.set_connector_class_id("n");
  for (const auto* v : {"10.0.0.0/8", "FD00:0:0::/8", "0.0.0.0/0", "::1/128"}) c.mutable_connector_class()->add_allowed_networks(v);
  const auto networks = admin::check(c).command.put_connector_class().spec().allowed_networks();
  CHECK(mask_of(networks) == std::vector<std::string>{"10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "::1/128"});
  api::CreateGatewayClassRequest g;
  g.set_gateway_class_id("k");
  g.mutable_gateway_class()->add_listen("[0:0::1]:80");
  CHECK(admin::check(g).command.put_gateway_class().spec().listen(0) == "[::1]:80");
}

TEST_CASE("what an owner refuses is named as the request names it") {
  const auto create = admin::check(bad::good<api::CreateGatewayRequest>()).names;
  CHECK(admin::request_field(create, "name") == "gateway_id");
  CHECK(admin::request_field(create, "class") == "gateway.gateway_class");
  const auto update = admin::check(bad::good<api::UpdateGatewayClassRequest>()).names;
  CHECK(admin::request_field(update, "name") == "gateway_class.name");
  CHECK(admin::request_field(update, "etag") == "gateway_class.etag");
  CHECK(admin::request_field(update, "stream_idle_timeout_ms") == "gateway_class.stream_idle_timeout");
  CHECK(admin::request_field(update, "listen[3]") == "gateway_class.listen[3]");
  const auto rotate = admin::check(bad::good<api::RotateConnectorKeyRequest>()).names;
  CHECK(admin::request_field(rotate, "name") == "name");
  CHECK(admin::request_field(rotate, "public_key") == "public_key");
  CHECK(admin::request_field(rotate, "etag") == "etag");
  const auto enrol = admin::check(bad::good<api::EnrolConnectorRequest>()).names;
  CHECK(admin::request_field(enrol, "connector_id") == "connector_id");
  CHECK(admin::request_field(enrol, "class") == "connector.connector_class");
  CHECK(admin::request_field(enrol, "lease_duration") == "connector.lease_duration");
  const auto tunnel = admin::check(bad::good<api::CreateTunnelRequest>()).names;
  CHECK(admin::request_field(tunnel, "tunnel_id") == "tunnel_id");
  CHECK(admin::request_field(tunnel, "rules[2].target") == "tunnel.rules[2].target");
  CHECK(admin::request_field(tunnel, "request_id") == "request_id");
}

TEST_CASE("a page's size is cut to the greatest, never below zero") {
  std::vector<violation> out;
  CHECK(admin::page_size(0, out) == 100);
  CHECK(admin::page_size(1, out) == 1);
  CHECK(admin::page_size(1'000'000, out) == 1000);
  CHECK(out.empty());
  CHECK(admin::page_size(-1, out) == 100);
  REQUIRE(out.size() == 1);
  CHECK(out[0].field == "page_size");
}

TEST_CASE("requests are equal by what they ask, whoever asks") {
  auto a = admin::check(bad::good<api::CreateTunnelRequest>()).command;
  auto b = a;
  b.mutable_caller()->set_principal("somebody else");
  b.mutable_caller()->set_request_id("another");
  b.set_patience_ms(1);
  CHECK(admin::digest_of(a) == admin::digest_of(b));
  b.mutable_create_tunnel()->mutable_spec()->set_enabled(false);
  CHECK(admin::digest_of(a) != admin::digest_of(b));
}

TEST_CASE("whatever an agent says of its clock, the connector can be shown") {
  for (const std::int64_t ms : {INT64_MAX, INT64_MIN, std::int64_t{315'576'000'000'001}, std::int64_t{-1}, std::int64_t{0}, std::int64_t{1'500}}) {
    admin::corev1::ConnectorRow row;
    row.set_project("p");
    row.set_name("c");
    row.set_session(1);
    row.set_clock_skew_ms(ms);
    const auto c = admin::to_api(row);
    std::string json;
    INFO(ms);
    CHECK(google::protobuf::util::MessageToJsonString(c, &json).ok());
    const auto said = c.clock_skew().seconds() * 1000 + c.clock_skew().nanos() / 1'000'000;
    CHECK(said == std::clamp<std::int64_t>(ms, -315'576'000'000'000, 315'576'000'000'000));
  }
}
