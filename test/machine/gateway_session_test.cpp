// test/machine/gateway_session_test.cpp -- what one gateway is sent, and what its answers prove: a scripted gateway
// against the session, no sockets.
#include <catch2/catch.hpp>

#include <set>

#include <fmt/format.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "services/gateway/session.hpp"

namespace {

using namespace warren;
using gateway::kind;

constexpr revision_t base = 100;

/// Rows, the catalogue made of them, and one session.
struct fixture {
  replica::tables t;
  gateway::catalogue rows;
  std::unique_ptr<gateway::session> talk;
  revision_t revision = base;
  std::int64_t now = 0;
  std::int64_t claims = 0;
  replica::change_set change;

  fixture() {
    auto c = std::make_shared<v1::GatewayClassRow>();
    c->set_partition(1);
    c->set_name("default");
    c->set_dial_mode("direct");
    c->add_listen("127.0.0.1:8080");
    t.gateway_classes["default"] = c;
    t.partitions[0].revision = t.partitions[1].revision = base;
    rows.rebuild(t);
    connect();
  }
  void connect() { talk = std::make_unique<gateway::session>(rows, "default"); }

  void put_tunnel(const std::string& name, const std::string& connector = "c") {
    auto row = std::make_shared<v1::TunnelRow>();
    row->set_project("p");
    row->set_name(name);
    row->set_uid("uid-" + name);
    row->set_generation(1);
    row->set_enabled(true);
    row->set_gateway_class("default");
    row->add_hostnames(name + ".example");
    auto& rule = *row->add_rules();
    rule.set_path_prefix("/");
    rule.set_connector(connector);
    rule.set_target("http://localhost:8080");
    t.tunnels[{"p", name}] = replica::packed_row{*row};
    auto claim = std::make_shared<v1::HostnameClaimRow>();
    claim->set_hostname(name + ".example");
    claim->set_project("p");
    claim->set_tunnel(name);
    claim->set_tunnel_uid("uid-" + name);
    claim->set_claim(++claims);
    t.claims[name + ".example"] = replica::packed_claim{*claim};
    t.tunnels_by_connector[{"p", connector}].insert(name);
    auto attachment = std::make_shared<v1::AttachmentRow>();
    attachment->set_attachment_generation(1);
    t.attachments[{"p", connector, "uid-" + name, 1}] = replica::packed_attachment{*attachment};
    change.routes.insert({"p", name});
    change.hostnames.insert(name + ".example");
  }
  void remove_tunnel(const std::string& name) {
    t.tunnels.erase({"p", name});
    t.claims.erase(name + ".example");
    change.routes.insert({"p", name});
    change.hostnames.insert(name + ".example");
  }
  void remove_connector(const std::string& name) {
    t.connectors.erase({"p", name});
    change.connectors.insert({"p", name});
    for (const auto& tunnel : t.tunnels_by_connector[{"p", name}]) change.routes.insert({"p", tunnel});
  }
  void put_connector(const std::string& name, bool online = true, int addressing = 1) {
    auto row = std::make_shared<v1::ConnectorRow>();
    row->set_project("p");
    row->set_name(name);
    row->set_public_key(std::string(64, 'a'));
    row->add_addresses("192.0.2.7:7400");
    row->set_addressing_generation(addressing);
    row->set_online(online);
    row->set_attached_generation(1);
    t.connectors[{"p", name}] = row;
    change.connectors.insert({"p", name});
    for (const auto& tunnel : t.tunnels_by_connector[{"p", name}]) change.routes.insert({"p", tunnel});
  }
  revision_t commit() {
    change.revision = ++revision;
    t.partitions[0].revision = revision;
    for (const auto& c : rows.apply(t, change)) talk->changed(c);
    change = {};
    return revision;
  }

  gateway::discovery::DeltaDiscoveryRequest request(kind k) {
    gateway::discovery::DeltaDiscoveryRequest r;
    r.set_type_url(std::string{gateway::type_url(k)});
    return r;
  }
  void ack(const gateway::discovery::DeltaDiscoveryResponse& response) {
    gateway::discovery::DeltaDiscoveryRequest r;
    r.set_type_url(response.type_url());
    r.set_response_nonce(response.nonce());
    REQUIRE(talk->request(r, now).empty());
  }
  void nack(const gateway::discovery::DeltaDiscoveryResponse& response, const std::string& words) {
    gateway::discovery::DeltaDiscoveryRequest r;
    r.set_type_url(response.type_url());
    r.set_response_nonce(response.nonce());
    r.mutable_error_detail()->set_message(words);
    REQUIRE(talk->request(r, now).empty());
  }
  void subscribe(kind k, std::vector<std::string> names = {}) {
    auto r = request(k);
    for (auto& n : names) r.add_resource_names_subscribe(n);
    REQUIRE(talk->request(r, now).empty());
  }
  /// Everything that the session has to say, as "rds +tunnel/p/t", in order.
  std::vector<std::string> say(std::vector<gateway::discovery::DeltaDiscoveryResponse>* responses = nullptr) {
    std::vector<std::string> out;
    while (auto r = talk->poll(now)) {
      std::string line{gateway::short_name(*gateway::kind_from(r->type_url()))};
      for (const auto& resource : r->resources()) line += " +" + resource.name();
      for (const auto& name : r->removed_resources()) line += " -" + name;
      out.push_back(line);
      if (responses) responses->push_back(*r);
    }
    return out;
  }
  /// A gateway that acknowledges all and subscribes to the routes that its scopes name.
  void settle(const std::string& poison = "") {
    for (int rounds = 0; rounds < 100; ++rounds) {
      std::vector<gateway::discovery::DeltaDiscoveryResponse> responses;
      if (say(&responses).empty()) return;
      for (const auto& r : responses) {
        const auto bad = std::any_of(r.resources().begin(), r.resources().end(),
                                     [&](const auto& one) { return one.name() == poison; });
        if (bad) nack(r, "cannot take it");
        else ack(r);
        if (bad || gateway::kind_from(r.type_url()) != kind::scope) continue;
        std::vector<std::string> names;
        for (const auto& one : r.resources()) {
          envoy::config::route::v3::ScopedRouteConfiguration scope;
          REQUIRE(scope.ParseFromString(one.resource().value()));
          names.push_back(scope.route_configuration_name());
        }
        if (!names.empty()) subscribe(kind::route, names);
      }
    }
    FAIL("it never ends");
  }
  void start() {
    subscribe(kind::cluster);
    subscribe(kind::listener);
    subscribe(kind::scope);
    settle();
    REQUIRE(talk->state() == gateway::stream_state::caught_up);
  }
};

using lines = std::vector<std::string>;

}  // namespace

TEST_CASE("a new tunnel is acknowledged when its route is, not when its scope is") {
  fixture f;
  f.put_connector("c");
  f.commit();
  f.start();
  CHECK(f.talk->acknowledged(0) == f.revision);

  f.put_tunnel("t");
  const auto r = f.commit();
  CHECK(f.talk->acknowledged(0) == r - 1);
  std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
  CHECK(f.say(&sent) == lines{"srds +t.example"});
  f.ack(sent[0]);
  CHECK(f.talk->acknowledged(0) == r - 1);
  f.subscribe(kind::route, {"tunnel/p/t"});
  sent.clear();
  CHECK(f.say(&sent) == lines{"rds +tunnel/p/t"});
  CHECK(f.talk->acknowledged(0) == r - 1);
  f.ack(sent[0]);
  CHECK(f.talk->acknowledged(0) == r);
}

TEST_CASE("clusters go before routes, and leave after them") {
  fixture f;
  f.put_tunnel("t");
  f.commit();
  f.start();
  f.put_connector("c", true);
  f.commit();
  CHECK(f.say() == lines{"cds +connector/p/c", "rds +tunnel/p/t"});
  f.connect();
  f.start();
  f.remove_connector("c");
  f.commit();
  CHECK(f.say() == lines{"rds +tunnel/p/t", "cds -connector/p/c"});
}

TEST_CASE("a connector that goes and comes costs one route each time, and its cluster stays") {
  fixture f;
  f.put_tunnel("t");
  f.put_connector("c");
  f.commit();
  f.start();
  for (const bool online : {false, true, false}) {
    f.put_connector("c", online);
    const auto r = f.commit();
    std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
    CHECK(f.say(&sent) == lines{"rds +tunnel/p/t"});
    f.ack(sent[0]);
    CHECK(f.talk->acknowledged(0) == r);
  }
}

TEST_CASE("revisions that push nothing are acknowledged at once") {
  fixture f;
  f.put_tunnel("t");
  f.commit();
  f.start();
  f.put_tunnel("t");
  const auto r = f.commit();
  CHECK(f.say().empty());
  CHECK(f.talk->acknowledged(0) == r);
}

TEST_CASE("changes are coalesced while a response is under way, and only the newest state goes out") {
  fixture f;
  f.put_connector("c");
  f.commit();
  f.start();
  f.put_connector("c", true, 2);
  const auto first = f.commit();
  std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
  CHECK(f.say(&sent) == lines{"cds +connector/p/c"});
  revision_t last = 0;
  for (int i = 3; i < 50; ++i) {
    f.put_connector("c", true, i);
    last = f.commit();
  }
  CHECK(f.say().empty());
  CHECK(f.talk->acknowledged(0) == first - 1);
  f.ack(sent[0]);
  CHECK(f.talk->acknowledged(0) == first);  // the next change is not there yet
  CHECK(f.say(&sent) == lines{"cds +connector/p/c"});
  CHECK(f.say().empty());
  f.ack(sent[1]);
  CHECK(f.talk->acknowledged(0) == last);
}

TEST_CASE("a removal is acknowledged with its scope") {
  fixture f;
  f.put_tunnel("t");
  f.commit();
  f.start();
  f.remove_tunnel("t");
  const auto r = f.commit();
  std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
  CHECK(f.say(&sent) == lines{"srds -t.example"});
  CHECK(f.talk->acknowledged(0) == r - 1);
  f.ack(sent[0]);
  CHECK(f.talk->acknowledged(0) == r);
}

TEST_CASE("a refused route is laid at its tunnel's door and withheld until it changes") {
  fixture f;
  f.put_connector("c");
  f.commit();
  f.start();
  for (const auto* name : {"a", "b", "x"}) f.put_tunnel(name);
  const auto r = f.commit();
  f.settle("tunnel/p/b");
  CHECK(f.talk->acknowledged(0) == r);
  const auto refused = f.talk->refusals(0);
  REQUIRE(refused.size() == 1);
  CHECK(refused[0].tunnel_uid == "uid-b");
  CHECK(refused[0].message == "cannot take it");
  CHECK(refused[0].revision == r);
  CHECK(f.say().empty());

  // What has changed it is tried, and the refusal stands for what was before until that is acknowledged: otherwise
  // the refused revision would count as acknowledged for a moment.
  f.put_connector("c", false);
  const auto changed = f.commit();
  REQUIRE(f.talk->refusals(0).size() == 1);
  CHECK(f.talk->refusals(0)[0].until == changed - 1);
  CHECK(f.talk->acknowledged(0) == changed - 1);
  f.settle();
  CHECK(f.talk->refusals(0).empty());
  CHECK(f.talk->acknowledged(0) == changed);
}

TEST_CASE("a refusal that comes when its resource has changed already stands until the newer one is answered") {
  const bool mended = GENERATE(false, true);
  fixture f;
  f.put_connector("c");
  f.commit();
  f.start();
  f.put_tunnel("t");
  const auto first = f.commit();
  std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
  f.say(&sent);
  f.ack(sent[0]);
  f.subscribe(kind::route, {"tunnel/p/t"});
  sent.clear();
  f.say(&sent);
  f.put_connector("c", false);
  const auto second = f.commit();
  f.nack(sent[0], "cannot take it");
  REQUIRE(f.talk->refusals(0).size() == 1);
  CHECK(f.talk->refusals(0)[0].revision == first);
  CHECK(f.talk->refusals(0)[0].until == second - 1);
  CHECK(f.talk->acknowledged(0) == second - 1);
  sent.clear();
  CHECK(f.say(&sent) == lines{"rds +tunnel/p/t"});
  if (mended) f.ack(sent[0]);
  else f.nack(sent[0], "nor this");
  CHECK(f.say().empty());
  CHECK(f.talk->acknowledged(0) == second);
  REQUIRE(f.talk->refusals(0).size() == (mended ? 0 : 1));
  if (!mended) CHECK(f.talk->refusals(0)[0].message == "nor this");
}

TEST_CASE("a refused resource that goes takes its refusal along") {
  fixture f;
  f.start();
  f.put_tunnel("t");
  f.commit();
  const auto what = GENERATE(as<std::string>{}, "t.example", "tunnel/p/t");
  f.settle(what);
  REQUIRE(f.talk->refusals(0).size() == 1);
  f.remove_tunnel("t");
  const auto r = f.commit();
  f.settle();
  CHECK(f.talk->refusals(0).empty());
  CHECK(f.talk->acknowledged(0) == r);
}

TEST_CASE("of a refused batch the culprit is found, and the others go out") {
  const auto culprit = GENERATE(range(0, 9));
  fixture f;
  f.start();
  for (int i = 0; i < 9; ++i) f.put_connector(fmt::format("c{}", i));
  const auto r = f.commit();
  f.settle(fmt::format("connector/p/c{}", culprit));
  const auto refused = f.talk->refusals(0);
  REQUIRE(refused.size() == 1);
  CHECK(refused[0].connector == fmt::format("p/c{}", culprit));
  CHECK(f.talk->acknowledged(0) == r);
  CHECK(f.talk->nacks() <= 5);
}

TEST_CASE("culprits of a batch are found whichever and however many they are, each told to its own") {
  // What Envoy applies of a refused response differs by type and form; the outcome may not.
  const auto culprits = GENERATE(values<std::set<int>>({{0}, {8}, {0, 8}, {3, 4}, {0, 1, 2, 3, 4, 5, 6, 7, 8}}));
  const auto type = GENERATE(kind::cluster, kind::scope);
  fixture f;
  f.start();
  std::set<std::string> poisoned;
  for (int i = 0; i < 9; ++i) {
    const auto name = fmt::format("n{}", i);
    if (type == kind::cluster) f.put_connector(name);
    else f.put_tunnel(name);
    if (culprits.count(i)) poisoned.insert(type == kind::cluster ? "connector/p/" + name : name + ".example");
  }
  const auto r = f.commit();
  for (int rounds = 0; rounds < 100; ++rounds) {
    std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
    if (f.say(&sent).empty()) break;
    for (const auto& one : sent) {
      const bool bad = std::any_of(one.resources().begin(), one.resources().end(), [&](const auto& x) { return poisoned.count(x.name()) != 0; });
      if (bad) f.nack(one, "no words that help");
      else f.ack(one);
      if (bad || gateway::kind_from(one.type_url()) != kind::scope) continue;
      for (const auto& x : one.resources()) f.subscribe(kind::route, {"tunnel/p/" + x.name().substr(0, 2)});
    }
  }
  std::set<std::string> refused;
  for (const auto& x : f.talk->refusals(0)) {
    refused.insert(x.name);
    CHECK(x.message == "no words that help");
    if (type == kind::cluster) CHECK(x.connector == "p/" + x.name.substr(x.name.rfind('/') + 1));
    else CHECK(x.tunnel_uid == "uid-" + x.name.substr(0, 2));
  }
  CHECK(refused == poisoned);
  CHECK(f.talk->acknowledged(0) == r);
  CHECK(f.talk->state() == gateway::stream_state::caught_up);
}

TEST_CASE("a few routes travel alone, and of a mass change some together") {
  for (const int many : {8, 24, 32, 100}) {
    CAPTURE(many);
    fixture f;
    f.put_connector("c");
    for (int n = 0; n < many; ++n) f.put_tunnel(fmt::format("t{}", n));
    f.commit();
    f.start();
    f.put_connector("c", false);
    const auto gone = f.commit();
    std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
    f.say(&sent);
    std::set<std::string> seen;
    int most = 0;
    for (const auto& r : sent) {
      most = std::max(most, r.resources_size());
      for (const auto& each : r.resources()) CHECK(seen.insert(each.name()).second);
    }
    CHECK(seen.size() == static_cast<std::size_t>(many));
    CHECK(most == (many == 8 ? 1 : 16));
    for (const auto& r : sent) {
      CHECK(f.talk->acknowledged(0) < gone);
      f.ack(r);
    }
    CHECK(f.talk->acknowledged(0) == gone);
  }
}

TEST_CASE("of routes that travelled together each culprit is found, and goes alone from then on") {
  const auto culprits = GENERATE(std::set<std::string>{"t7"}, std::set<std::string>{"t0", "t99"}, std::set<std::string>{"t10", "t11", "t12", "t30"});
  fixture f;
  f.put_connector("c");
  for (int n = 0; n < 100; ++n) f.put_tunnel(fmt::format("t{}", n));
  f.commit();
  f.start();
  f.put_connector("c", false);
  const auto gone = f.commit();
  const auto is_culprit = [&](const gateway::discovery::Resource& r) { return culprits.count(r.name().substr(r.name().rfind('/') + 1)) > 0; };
  // Envoy refuses a response for one bad resource, whatever of the others it has taken.
  const auto answer_all = [&] {
    int responses = 0;
    while (auto r = f.talk->poll(f.now)) {
      ++responses;
      const auto& all = r->resources();
      if (std::any_of(all.begin(), all.end(), is_culprit)) f.nack(*r, "no");
      else f.ack(*r);
    }
    return responses;
  };
  CHECK(answer_all() < 100);
  std::set<std::string> refused;
  for (const auto& r : f.talk->refusals(0)) refused.insert(r.tunnel_uid.substr(4));
  CHECK(refused == culprits);
  CHECK(f.talk->pending() == 0);
  CHECK(f.talk->acknowledged(0) == gone);

  f.put_connector("c", true);
  f.commit();
  bool alone = true;
  while (auto r = f.talk->poll(f.now)) {
    const auto& all = r->resources();
    if (std::any_of(all.begin(), all.end(), is_culprit)) alone = alone && all.size() == 1;
    f.ack(*r);
  }
  CHECK(alone);
  CHECK(f.talk->refusals(0).empty());
}

TEST_CASE("a tunnel whose scope is refused does not hold the others back") {
  fixture f;
  f.start();
  for (const auto* name : {"a", "b", "x"}) f.put_tunnel(name);
  const auto r = f.commit();
  f.settle("b.example");
  CHECK(f.talk->acknowledged(0) == r);
  REQUIRE(f.talk->refusals(0).size() == 1);
  CHECK(f.talk->refusals(0)[0].tunnel_uid == "uid-b");
}

TEST_CASE("a route whose scope is refused changes and changes, and holds nobody else back") {
  fixture f;
  f.put_connector("c");
  f.commit();
  f.start();
  f.put_tunnel("x");
  f.commit();
  f.settle("x.example");
  REQUIRE(f.talk->refusals(0).size() == 1);
  for (const bool online : {false, true}) {
    f.put_connector("c", online);
    const auto r = f.commit();
    f.settle("x.example");
    CHECK(f.talk->acknowledged(0) == r);
  }
  f.put_tunnel("beside");
  const auto r = f.commit();
  f.settle("x.example");
  CHECK(f.talk->acknowledged(0) == r);
  // Gone and made again, and sound: it counts like any other.
  f.remove_tunnel("x");
  f.commit();
  f.settle();
  f.put_tunnel("x");
  const auto again = f.commit();
  CHECK(f.talk->acknowledged(0) == again - 1);
  f.settle();
  CHECK(f.talk->acknowledged(0) == again);
  CHECK(f.talk->refusals(0).empty());
}

TEST_CASE("a gateway that returns is sent what differs, and nothing else") {
  fixture f;
  f.put_connector("c");
  f.put_tunnel("t");
  f.put_tunnel("u");
  f.commit();
  f.start();
  // What it has, as it lists it; one cluster is not ours any more.
  f.connect();
  CHECK(f.talk->acknowledged(0) == 0);
  for (auto k : {kind::cluster, kind::listener, kind::scope, kind::route}) {
    auto r = f.request(k);
    for (const auto& [name, e] : f.rows.entries("default", k)) {
      (*r.mutable_initial_resource_versions())[name] = name == "tunnel/p/u" ? "older" : gateway::text_of(e.what->version);
      if (k == kind::route) r.add_resource_names_subscribe(std::string{name});
    }
    if (k == kind::cluster) (*r.mutable_initial_resource_versions())["connector/p/gone"] = "1";
    REQUIRE(f.talk->request(r, 0).empty());
  }
  CHECK(f.talk->state() == gateway::stream_state::connecting);
  std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
  CHECK(f.say(&sent) == lines{"rds +tunnel/p/u", "cds -connector/p/gone"});
  for (auto& r : sent) f.ack(r);
  CHECK(f.talk->state() == gateway::stream_state::caught_up);
  CHECK(f.talk->acknowledged(0) == f.revision);
}

TEST_CASE("every subscription is answered, also of a name it once had and of one that does not exist") {
  fixture f;
  f.put_tunnel("t");
  f.commit();
  f.start();
  auto r = f.request(kind::route);
  r.add_resource_names_unsubscribe("tunnel/p/t");
  REQUIRE(f.talk->request(r, 0).empty());
  f.subscribe(kind::route, {"tunnel/p/t"});
  CHECK(f.say() == lines{"rds +tunnel/p/t"});
  f.subscribe(kind::route, {"tunnel/p/none"});
  CHECK(f.say() == lines{"rds -tunnel/p/none"});
}

TEST_CASE("a listener goes when those that take its place are there, and stays while one of them is refused") {
  fixture f;
  f.start();
  const auto listen = [&](const std::string& at) {
    auto c = std::make_shared<v1::GatewayClassRow>(*f.t.gateway_classes["default"]);
    c->clear_listen();
    if (!at.empty()) c->add_listen(at);
    f.t.gateway_classes["default"] = c;
    f.change.gateway_classes.insert("default");
    f.commit();
  };
  const std::string first = "visitors/127.0.0.1:8080", second = "visitors/127.0.0.1:9090";
  std::vector<gateway::discovery::DeltaDiscoveryResponse> said;

  listen("127.0.0.1:9090");
  CHECK(f.say(&said) == lines{"lds +" + second});
  SECTION("taken") {
    f.ack(said.front());
    CHECK(f.say(&said) == lines{"lds -" + first});
    f.ack(said.back());
    CHECK(f.talk->shut().empty());
    CHECK(f.talk->acknowledged(0) == f.revision);
  }
  SECTION("refused: the old one stays, whatever else happens, and nothing waits for its end") {
    f.nack(said.front(), "cannot bind");
    CHECK(f.say().empty());
    CHECK(f.talk->shut().empty());
    CHECK(f.talk->pending() == 0);
    CHECK(f.talk->refuses(1));
    f.put_connector("c");
    f.put_tunnel("t");
    f.commit();
    f.settle();
    CHECK(f.talk->acknowledged(0) == f.revision);

    SECTION("back to the old one") {
      listen("127.0.0.1:8080");
      CHECK(f.say() == lines{});
      CHECK_FALSE(f.talk->refuses(1));
    }
    SECTION("on to a third one, which is taken") {
      said.clear();
      listen("127.0.0.1:7070");
      CHECK(f.say(&said) == lines{"lds +visitors/127.0.0.1:7070"});
      f.ack(said.front());
      CHECK(f.say(&said) == lines{"lds -" + first});
    }
    SECTION("a gateway that comes back with the old one alone keeps it") {
      auto r = f.request(kind::listener);
      for (const auto& [name, version] : {std::pair{first, std::string{"12345678901234"}}})
        (*r.mutable_initial_resource_versions())[name] = version;
      f.connect();
      f.subscribe(kind::cluster);
      REQUIRE(f.talk->request(r, f.now).empty());
      f.subscribe(kind::scope);
      f.settle(second);
      CHECK(f.talk->state() == gateway::stream_state::caught_up);
      CHECK(f.talk->shut().empty());
    }
    SECTION("one that comes back with none lets nobody in, and says why") {
      f.connect();
      f.subscribe(kind::cluster);
      f.subscribe(kind::listener);
      f.subscribe(kind::scope);
      CHECK(f.talk->shut().empty());  // it has not answered yet
      f.talk->take_touched();
      f.settle(second);
      CHECK(f.talk->shut() == second + ": cannot take it");
      CHECK(f.talk->take_touched().count(0) == 1);
      // What it was told of scopes went with the refused listener, and it does not ask again.
      listen("127.0.0.1:8080");
      said.clear();
      CHECK(f.say(&said) == lines{"lds +" + first});
      f.ack(said.front());
      CHECK(f.say() == lines{"srds +t.example"});
      CHECK(f.talk->shut().empty());
    }
  }
  SECTION("a class that listens nowhere lets nobody in") {
    f.ack(said.front());
    f.settle();
    listen("");
    f.settle();
    CHECK(f.talk->shut() == "its class listens nowhere");
    listen("127.0.0.1:8080");
    f.settle();
    CHECK(f.talk->shut().empty());
  }
}

TEST_CASE("a gateway that acknowledges nothing for 5 s is stalled until it has caught up") {
  fixture f;
  f.put_connector("c");
  f.commit();
  f.start();
  f.put_connector("c", true, 2);
  f.commit();
  std::vector<gateway::discovery::DeltaDiscoveryResponse> sent;
  f.say(&sent);
  f.now = 4999;
  f.talk->tick(f.now);
  CHECK(f.talk->state() == gateway::stream_state::caught_up);
  f.now = 5000;
  f.talk->tick(f.now);
  CHECK(f.talk->state() == gateway::stream_state::stalled);
  f.ack(sent[0]);
  CHECK(f.talk->state() == gateway::stream_state::caught_up);
}
