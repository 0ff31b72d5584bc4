// test/machine/gateway_catalogue_test.cpp -- what the gateways of each class are told, and what a change of rows changes
// in it.
#include <catch2/catch.hpp>

#include <algorithm>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "services/gateway/bootstrap.hpp"
#include "services/gateway/catalogue.hpp"

namespace {

using namespace warren;
using gateway::kind;

struct fixture {
  replica::tables t;
  gateway::catalogue rows;
  replica::change_set change;
  revision_t revision = 100;

  fixture() {
    put_class("near", "direct");
    put_class("far", "tunnel-listener");
    t.partitions[0].revision = t.partitions[1].revision = revision;
    rows.rebuild(t);
    change = {};
  }
  void put_class(const std::string& name, const std::string& dial_mode) {
    auto c = std::make_shared<v1::GatewayClassRow>();
    c->set_partition(1);
    c->set_name(name);
    c->set_dial_mode(dial_mode);
    c->add_listen("127.0.0.1:8080");
    t.gateway_classes[name] = c;
    change.gateway_classes.insert(name);
  }
  void put_connector(const std::string& name, bool online = true, char key = 'a') {
    auto c = std::make_shared<v1::ConnectorRow>();
    c->set_project("p");
    c->set_name(name);
    c->set_public_key(std::string(64, key));
    c->add_addresses("192.0.2.7:7400");
    c->set_online(online);
    c->set_attached_generation(1);
    change.connectors_before.try_emplace({"p", name}, std::exchange(t.connectors[{"p", name}], c));
    change.connectors.insert({"p", name});
    for (const auto& tunnel : t.tunnels_by_connector[{"p", name}]) change.routes.insert({"p", tunnel});
  }
  /// Of these targets, all behind connector c.
  void put_tunnel(const std::string& name, const std::string& gateway_class, const std::vector<std::string>& targets) {
    auto row = std::make_shared<v1::TunnelRow>();
    row->set_project("p");
    row->set_name(name);
    row->set_uid("uid-" + name);
    row->set_generation(1);
    row->set_enabled(true);
    row->set_gateway_class(gateway_class);
    row->add_hostnames(name + ".example");
    for (std::size_t n = 0; n < targets.size(); ++n) {
      auto& rule = *row->add_rules();
      rule.set_path_prefix(n == 0 ? "/" : "/" + std::to_string(n));
      rule.set_connector("c");
      rule.set_target(targets[n]);
    }
    t.tunnels[{"p", name}] = replica::packed_row{*row};
    auto claim = std::make_shared<v1::HostnameClaimRow>();
    claim->set_hostname(name + ".example");
    claim->set_project("p");
    claim->set_tunnel(name);
    claim->set_tunnel_uid(row->uid());
    claim->set_claim(1);
    t.claims[name + ".example"] = replica::packed_claim{*claim};
    t.tunnels_by_connector[{"p", "c"}].insert(name);
    auto attachment = std::make_shared<v1::AttachmentRow>();
    attachment->set_attachment_generation(1);
    t.attachments[{"p", "c", row->uid(), 1}] = replica::packed_attachment{*attachment};
    change.tunnels.insert({"p", name});
    change.routes.insert({"p", name});
    change.hostnames.insert(name + ".example");
  }
  /// "far cds +rule/p/t/0", sorted.
  std::vector<std::string> commit() {
    change.revision = ++revision;
    t.partitions[0].revision = revision;
    std::vector<std::string> out;
    for (const auto& c : rows.apply(t, change)) {
      const auto shown = c.gateway_class.empty() ? std::string{"all"} : c.gateway_class;
      const bool there = rows.find(c.gateway_class.empty() ? "near" : c.gateway_class, c.type, c.name) != nullptr;
      out.push_back(shown + " " + std::string{gateway::short_name(c.type)} + (there ? " +" : " -") + c.name);
    }
    change = {};
    std::sort(out.begin(), out.end());
    return out;
  }
  envoy::config::cluster::v3::Cluster cluster(const std::string& gateway_class, const std::string& name) {
    const auto* e = rows.find(gateway_class, kind::cluster, name);
    REQUIRE(e != nullptr);
    envoy::config::cluster::v3::Cluster out;
    REQUIRE(out.ParseFromString(e->what->bytes()));
    return out;
  }
};

using lines = std::vector<std::string>;

}  // namespace

TEST_CASE("a class with a tunnel gateway has a cluster for each rule, and none of the connectors'") {
  fixture f;
  f.put_connector("c");
  f.put_tunnel("n", "near", {"http://one:80"});
  f.put_tunnel("t", "far", {"http://one:80", "https://two:443"});
  CHECK(f.commit() == lines{"all cds +connector/p/c", "far cds +rule/p/t/0", "far cds +rule/p/t/1", "far rds +tunnel/p/t", "far srds +t.example",
                            "near rds +tunnel/p/n", "near srds +n.example"});
  CHECK(f.rows.find("far", kind::cluster, "connector/p/c") == nullptr);
  CHECK(f.rows.find("near", kind::cluster, "rule/p/t/0") == nullptr);
  CHECK(f.rows.find("far", kind::listener, "connector-direct") == nullptr);
  CHECK(f.rows.find("near", kind::listener, "connector-direct") != nullptr);

  const auto c = f.cluster("far", "rule/p/t/1");
  const auto& endpoint = c.load_assignment().endpoints(0).lb_endpoints(0);
  CHECK(endpoint.endpoint().address().envoy_internal_address().server_listener_name() == "connector-tunnel");
  const auto& said = endpoint.metadata().filter_metadata().at("tunnel").fields();
  CHECK(said.at("address").string_value() == "two:443");
  CHECK(said.at("endpoint_id").string_value() == std::string(64, 'a'));

  envoy::config::route::v3::RouteConfiguration route;
  REQUIRE(route.ParseFromString(f.rows.find("far", kind::route, "tunnel/p/t")->what->bytes()));
  for (const auto& r : route.virtual_hosts(0).routes())
    CHECK((r.route().cluster() == "rule/p/t/0" || r.route().cluster() == "rule/p/t/1"));
}

TEST_CASE("rules' clusters follow target and key, stay while the connector is offline, and go with the rule") {
  fixture f;
  f.put_connector("c");
  f.put_tunnel("t", "far", {"http://one:80", "http://two:80"});
  f.commit();
  CHECK(f.cluster("far", "rule/p/t/1").alt_stat_name() == "connector/p/c");  // what the access log shows
  f.put_connector("c", false);
  CHECK(f.commit() == lines{"far rds +tunnel/p/t"});
  f.put_connector("c", true);
  CHECK(f.commit() == lines{"far rds +tunnel/p/t"});
  f.put_connector("c", true, 'b');
  CHECK(f.commit() == lines{"all cds +connector/p/c", "far cds +rule/p/t/0", "far cds +rule/p/t/1"});
  f.put_tunnel("t", "far", {"http://else:80"});
  CHECK(f.commit() == lines{"far cds +rule/p/t/0", "far cds -rule/p/t/1", "far rds +tunnel/p/t"});
  f.put_tunnel("t", "near", {"http://else:80"});
  CHECK(f.commit() == lines{"far cds -rule/p/t/0", "far rds -tunnel/p/t", "far srds -t.example", "near rds +tunnel/p/t", "near srds +t.example"});
}

TEST_CASE("a rule's own cluster follows its connector's key") {
  fixture f;
  f.put_connector("c");
  f.put_tunnel("t", "far", {"http://one:80"});
  f.commit();
  f.put_connector("c", true, 'b');
  f.change.routes.clear();  // its plan says nothing of keys
  CHECK(f.commit() == lines{"all cds +connector/p/c", "far cds +rule/p/t/0"});
  f.put_connector("c", true, 'b');
  f.change.routes.clear();
  CHECK(f.commit() == lines{});
}

TEST_CASE("a target or key that cannot be passed on makes no cluster, and a 503 of its own rule") {
  fixture f;
  f.put_connector("c");
  f.put_tunnel("t", "far", {"http://one:80", "http://a%b:80"});
  CHECK(f.commit() == lines{"all cds +connector/p/c", "far cds +rule/p/t/0", "far rds +tunnel/p/t", "far srds +t.example"});
  f.put_connector("c", true, '\n');
  CHECK(f.commit() == lines{"all cds -connector/p/c", "far cds -rule/p/t/0", "far rds +tunnel/p/t"});
  envoy::config::route::v3::RouteConfiguration route;
  REQUIRE(route.ParseFromString(f.rows.find("far", kind::route, "tunnel/p/t")->what->bytes()));
  for (const auto& r : route.virtual_hosts(0).routes()) CHECK(r.direct_response().status() == 503);
}

TEST_CASE("a class that changes how it dials gets other clusters and listeners") {
  fixture f;
  f.put_connector("c");
  f.put_tunnel("t", "far", {"http://one:80"});
  f.commit();
  f.put_class("far", "direct");
  CHECK(f.commit() == lines{"far cds -rule/p/t/0", "far lds +connector-direct", "far rds +tunnel/p/t"});
  CHECK(f.rows.find("far", kind::cluster, "connector/p/c") != nullptr);
  f.put_class("far", "tunnel-listener");
  CHECK(f.commit() == lines{"far cds +rule/p/t/0", "far lds -connector-direct", "far rds +tunnel/p/t"});
}

TEST_CASE("a change in parts comes to the same, and counts as processed with its last part") {
  fixture f;
  f.put_connector("c");
  for (int n = 0; n < 10; ++n) f.put_tunnel("t" + std::to_string(n), n % 2 == 0 ? "near" : "far", {"http://one:80", "http://two:80"});
  const auto added = f.change;
  const auto added_at_once = f.commit();

  fixture g;
  const auto count = [&](const replica::change_set& of, std::size_t parts) {
    std::size_t changed = 0;
    auto whole = of;
    whole.revision = ++g.revision;
    const auto all = gateway::parts_of(whole, 3);
    CHECK(all.size() == parts);
    for (const auto& part : all) {
      CHECK(part.routes.size() <= 3);
      const auto before = g.rows.processed(0);
      CHECK(before < whole.revision);
      for (const auto& one : g.rows.apply(g.t, part, &part == &all.back())) {
        CHECK(one.revision == before + 1);
        ++changed;
      }
    }
    CHECK(g.rows.processed(0) == whole.revision);
    return changed;
  };
  g.t = f.t;
  CHECK(count(added, 1) == added_at_once.size());  // their rows are new: all of them come with these

  f.put_connector("c", false);
  f.put_tunnel("t0", "near", {"http://three:80"});
  const auto gone = f.change;
  g.t = f.t;
  CHECK(count(gone, 3) == f.commit().size());
  for (const auto& of : {"near", "far"})
    for (const auto k : {kind::cluster, kind::route, kind::scope}) {
      REQUIRE(f.rows.entries(of, k).size() == g.rows.entries(of, k).size());
      for (const auto& [name, e] : f.rows.entries(of, k)) CHECK(g.rows.find(of, k, std::string{name})->what->version == e.what->version);
    }
}

TEST_CASE("a rebuild of the same rows changes nothing") {
  fixture f;
  f.put_connector("c");
  f.put_tunnel("n", "near", {"http://one:80"});
  f.put_tunnel("t", "far", {"http://one:80", "https://two:443"});
  f.commit();
  f.change.rebuilt = true;
  CHECK(f.commit().empty());
}

TEST_CASE("a bootstrap has what its dial mode needs, and nothing of the other") {
  const auto near = gateway::bootstrap_yaml("g", "near", "127.0.0.1", 7444, "127.0.0.1:0");
  const auto far = gateway::bootstrap_yaml("g", "far", "127.0.0.1", 7444, "127.0.0.1:0", gateway::dial_mode::tunnel_listener);
  CHECK_THAT(near, Catch::Contains("connector-direct") && !Catch::Contains("connector-tunnel") && !Catch::Contains("tunnel-gateway"));
  CHECK_THAT(far, Catch::Contains("connector-tunnel") && Catch::Contains("tunnel-gateway") && !Catch::Contains("connector-direct") &&
                      !Catch::Contains("agents-by-metadata"));
  CHECK_THAT(far, Catch::Contains("%DYNAMIC_METADATA(tunnel:address)%"));
}
