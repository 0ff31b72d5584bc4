// test/integration/admin_gateways_test.cpp -- gateways as operators see them: list, get and watch with what each says of
// itself; and what only a connector's owner knows.
#include "test/integration/admin_fixture.hpp"

#include <nlohmann/json.hpp>

#include "services/admin/gateway_watch.hpp"

using namespace warren;
using namespace warren::played;
using nlohmann::json;

namespace {

/// A replica that is told of gateways.
struct gateways : fixture {
  static constexpr partition_id registry = partitions;
  revision_t revision = 1;

  explicit gateways(const std::function<void(admin::server_config&)>& adjust = {}) : fixture{adjust} {}

  void apply(corev1::Row row) {
    busv1::Revision hint;
    hint.set_version(1);
    hint.set_partition(registry);
    hint.set_epoch(1);
    hint.set_revision(++revision);
    if (row.has_gateway()) row.mutable_gateway()->set_version(revision);
    if (row.has_tombstone()) row.mutable_tombstone()->set_version(revision);
    *hint.add_rows() = std::move(row);
    REQUIRE(view.apply(hint, steady_ms(), wall_ms()) == replica::view::applied::yes);
  }
  void add(const std::string& name, const std::string& uid = "u") {
    corev1::Row row;
    row.mutable_gateway()->set_partition(registry);
    row.mutable_gateway()->set_name(name);
    row.mutable_gateway()->set_uid(uid + "-" + name);
    row.mutable_gateway()->set_class_("default");
    row.mutable_gateway()->set_generation(1);
    apply(std::move(row));
  }
  void remove(const std::string& name) {
    corev1::Row row;
    row.mutable_tombstone()->set_partition(registry);
    row.mutable_tombstone()->set_kind("gateway");
    row.mutable_tombstone()->set_key(name);
    apply(std::move(row));
  }
  /// What its instance says of it, of one partition.
  busv1::GatewayAck report(const std::string& name, const std::string& state, revision_t acknowledged, partition_id partition = 0) {
    busv1::GatewayAck ack;
    ack.set_version(1);
    ack.set_instance(7);
    ack.set_gateway(name);
    ack.set_class_("default");
    ack.set_stream(1);
    ack.set_state(state);
    ack.set_partition(partition);
    ack.set_acknowledged(acknowledged);
    ack.set_node_id(name);
    ack.set_node_cluster("edge");
    ack.set_node_locality("eu/z1");
    ack.set_peer("192.0.2.1:5000");
    return ack;
  }
  void hear(const busv1::GatewayAck& ack) { view.apply_ack(ack, steady_ms(), wall_ms()); }

  json list(const std::string& filter) {
    const auto r = ctl({"gateway", "list", "-o", "json", "--filter", filter});
    INFO(r.err);
    REQUIRE(r.code == 0);
    return json::parse(r.out)["gateways"];
  }
};

/// A watch on a thread of its own; ends with this object.
struct following {
  grpc::ClientContext context;
  std::unique_ptr<api::GatewayService::Stub> stub;
  std::unique_ptr<grpc::ClientReader<api::WatchGatewaysResponse>> reader;
  std::string token;

  explicit following(const fixture& f, const std::string& resume = {}) : stub{api::GatewayService::NewStub(f.channel())} {
    api::WatchGatewaysRequest q;
    q.set_resume_token(resume);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{20});
    reader = stub->WatchGateways(&context, q);
  }
  ~following() {
    context.TryCancel();
    end();
  }
  grpc::Status end() {
    auto r = std::exchange(reader, nullptr);
    return r ? r->Finish() : grpc::Status::OK;
  }
  /// "gw-1 caught_up 2/3", "-gw-1" when it is gone, "." when that was all there was.
  std::string next() {
    api::WatchGatewaysResponse r;
    if (!reader->Read(&r)) return "ended";
    if (!r.resume_token().empty()) token = r.resume_token();
    if (r.has_caught_up()) return ".";
    if (!r.deleted().empty()) return "-" + r.deleted().substr(9);
    const auto& g = r.gateway();
    return g.name().substr(9) + " " + g.state() + " " + std::to_string(g.acknowledged()) + "/" + std::to_string(g.revision());
  }
};

}  // namespace

TEST_CASE_METHOD(gateways, "a list of gateways says what each runs, refuses and is, and is filtered by it") {
  add("gw-1");
  add("gw-2");
  add("gw-3");
  hear(report("gw-1", "caught_up", 1));
  hear(report("gw-1", "caught_up", 1, 1));
  auto stuck = report("gw-2", "stalled", 0);
  auto& no = *stuck.add_refused();
  no.set_connector("p/c");
  no.set_revision(1);
  no.set_message("no such port");
  no.set_at_ms(1'700'000'005'000);
  auto& earlier = *stuck.add_refused();
  earlier.set_connector("p/d");
  earlier.set_revision(1);
  earlier.set_message("said before");
  earlier.set_at_ms(1'700'000'004'000);
  hear(stuck);

  const auto all = list("");
  REQUIRE(all.size() == 3);
  CHECK(all[0]["node_id"] == "gw-1");
  CHECK(all[0]["node_cluster"] == "edge");
  CHECK(all[0]["node_locality"] == "eu/z1");
  CHECK(all[0]["peer"] == "192.0.2.1:5000");
  CHECK(all[0]["instance"] == "7");
  CHECK(all[0]["acknowledged"] == "2");
  CHECK(all[0]["revision"] == "2");
  CHECK(all[0]["counts"] == true);
  CHECK(all[1]["lag"] == "1");
  CHECK(all[1]["last_refusal"]["message"] == "no such port");
  CHECK(all[1]["last_refusal"]["resource"] == "projects/p/connectors/c");
  CHECK(all[1]["last_refusal"]["time"] == "2023-11-14T22:13:25Z");
  CHECK(all[1]["refusals"] == 2);
  CHECK(all[2]["state"] == "never_seen");

  const auto named = [&](const std::string& filter) {
    std::string names;
    for (const auto& g : list(filter)) names += g["name"].get<std::string>().substr(9) + " ";
    return names;
  };
  CHECK(named("state=stalled") == "gw-2 ");
  CHECK(named("state != caught_up") == "gw-2 gw-3 ");
  CHECK(named("counts=true") == "gw-1 ");
  CHECK(named("lag > 0") == "gw-2 ");
  CHECK(named("refusals >= 1 AND node_cluster = edge") == "gw-2 ");
  CHECK(ctl({"gateway", "list", "--filter", "mood=good"}).err.find("state, counts, lag") != std::string::npos);

  const auto table = ctl({"gateway", "list"}).out;
  INFO(table);
  CHECK(table.find("ACKNOWLEDGED") != std::string::npos);
  CHECK(table.find("2/2") != std::string::npos);
  CHECK(table.find("2: no such port") != std::string::npos);
  CHECK(table.find("eu/z1") != std::string::npos);
  CHECK(ctl({"gateway", "get", "gw-2", "-o", "json"}).out.find("\"partitions\"") != std::string::npos);
}

TEST_CASE_METHOD(gateways, "a watch of gateways tells what there is, that this was all, and each change") {
  add("gw-1");
  settle();
  hear(report("gw-1", "connecting", 0));
  following w{*this};
  CHECK(w.next() == "gw-1 connecting 0/1");
  CHECK(w.token.empty());
  CHECK(w.next() == ".");
  CHECK_FALSE(w.token.empty());
  hear(report("gw-1", "caught_up", 1));
  CHECK(w.next() == "gw-1 caught_up 1/1");
  hear(report("gw-1", "stalled", 1));
  CHECK(w.next() == "gw-1 stalled 1/1");
  // Deleted and created again: it never was the same.
  remove("gw-1");
  CHECK(w.next() == "-gw-1");
  add("gw-1", "another");
  CHECK(w.next() == "gw-1 stalled 1/1");
  add("gw-2");
  CHECK(w.next() == "gw-2 never_seen 0/0");
  remove("gw-2");
  CHECK(w.next() == "-gw-2");

  SECTION("and goes on where it was, on any instance") {
    const auto token = w.token;
    remove("gw-1");
    add("gw-3");
    following again{*this, token};
    CHECK(again.next() == "-gw-1");
    CHECK(again.next() == "gw-3 never_seen 0/0");
    CHECK(again.next() == ".");
  }
  SECTION("a token of another kind is refused") {
    following again{*this, w.token + "A"};
    CHECK(again.next() == "ended");
    CHECK(again.end().error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_CASE_METHOD(gateways, "a thousand acknowledgements are few answers, and the last one is among them") {
  add("gw-1");
  settle();
  hear(report("gw-1", "caught_up", 0));
  following w{*this};
  CHECK(w.next() == "gw-1 caught_up 0/1");
  CHECK(w.next() == ".");
  for (int i = 0; i < 1000; ++i) {
    auto ack = report("gw-1", "caught_up", i % 2, 0);
    ack.set_acknowledged(i % 2 == 0 ? 0 : 1);
    hear(ack);
  }
  hear(report("gw-1", "caught_up", 1, 1));
  int answers = 0;
  std::string last;
  while (last != "gw-1 caught_up 2/2" && answers < 1000) {
    last = w.next();
    REQUIRE(last != "ended");
    ++answers;
  }
  CHECK(answers <= 20);
}

TEST_CASE_METHOD(gateways, "what only counts is told of a gateway once a second, anything else at once") {
  add("gw-1");
  settle();
  hear(report("gw-1", "caught_up", 0));
  admin::gateway_follower f{{}};
  const auto look = [&](std::int64_t now) {
    return view.read([&](const replica::tables& t) { return f.look(t, registry, now).size(); });
  };
  CHECK(look(1000) == 2);  // it, and that this was all
  CHECK(look(1001) == 0);
  CHECK(f.due_ms() == 0);
  hear(report("gw-1", "caught_up", 1));
  CHECK(look(1500) == 0);
  CHECK(f.due_ms() == 2000);
  CHECK(look(2000) == 1);
  CHECK(f.due_ms() == 0);
  hear(report("gw-1", "stalled", 1));
  CHECK(look(2001) == 1);
}

TEST_CASE_METHOD(gateways, "warrenctl follows gateways, all of them or one") {
  add("gw-1");
  add("gw-2");
  settle();
  const auto one = ctl({"gateway", "watch", "gw-2", "-o", "name", "--timeout", "300ms"});
  CHECK(one.out == "gateways/gw-2\n");
  CHECK(one.code == 3);
  CHECK(ctl({"gateway", "list", "--watch", "-o", "name", "--timeout", "300ms"}).out == "gateways/gw-1\ngateways/gw-2\n");
  CHECK(ctl({"gateway", "watch", "--filter", "state=gone"}).code == 2);
  const auto waits = ctl({"gateway", "watch", "nope", "--timeout", "500ms"});
  CHECK(waits.out.empty());
  CHECK(waits.err == "(there is no gateways/nope: waiting for it)\n");
}

TEST_CASE("an instance without NATS says that it cannot know, and sends nobody to an agent") {
  fixture f{[](auto& c) { c.bus_away = [] { return "bus: not connected to NATS"; }; }};
  REQUIRE(f.ctl({"connector", "enrol", "c", "--public-key", std::string(64, 'a')}).code == 0);
  REQUIRE(f.create("t").code == 0);
  f.owner.refuse = 1'000'000;
  for (const auto* noun : {"connector", "tunnel"}) {
    const auto why = f.ctl({noun, "why", noun == std::string{"tunnel"} ? "t" : "c"});
    INFO(why.out);
    CHECK(why.out.find("When it was last heard is not known: this instance does not reach NATS.") != std::string::npos);
    CHECK(why.out.find("ask another instance (--server)") != std::string::npos);
    CHECK(why.out.find("start its agent") == std::string::npos);
  }
  f.owner.refuse = 0;
}

TEST_CASE_METHOD(fixture, "when an agent was last heard is asked of the owner, and shown") {
  REQUIRE(ctl({"connector", "enrol", "c", "--public-key", std::string(64, 'a')}).code == 0);
  REQUIRE(create("t").code == 0);
  const auto before = owner.heard();

  owner.heard_ms = wall_ms() - 4'000;
  const auto got = json::parse(ctl({"connector", "get", "c", "-o", "json"}).out);
  CHECK(got["hearing"]["last_heartbeat_time"].get<std::string>().starts_with("20"));
  CHECK(ctl({"connector", "get", "c"}).out.find("HEARD") != std::string::npos);
  const auto why = ctl({"connector", "why", "c"});
  INFO(why.out);
  CHECK(why.code == 0);
  CHECK(why.out.find("agent heard: Last heartbeat received 4.") != std::string::npos);
  CHECK(why.out.find("connector enrol") == std::string::npos);  // it has a key
  CHECK(ctl({"tunnel", "why", "t"}).out.find("Last heartbeat received 4.") != std::string::npos);
  CHECK(ctl({"tunnel", "why", "t"}).out.find("warrenctl connector why c -p p") != std::string::npos);
  CHECK(owner.heard() > before);

  owner.heard_ms = 0;
  owner.listening_ms = wall_ms() - 7'000;
  CHECK(ctl({"connector", "why", "c"}).out.find("No heartbeat since takeover 7.") != std::string::npos);
  CHECK(ctl({"connector", "get", "c"}).out.find("not since takeover") != std::string::npos);
  owner.listening_ms = 0;
  CHECK(ctl({"connector", "why", "c"}).out.find("No heartbeat yet.") != std::string::npos);

  // An owner that says nothing keeps nobody from the rest.
  owner.refuse = 1'000'000;
  const auto without = ctl({"connector", "get", "c", "-o", "json"});
  CHECK(without.code == 0);
  CHECK(json::parse(without.out)["hearing"].is_null());
  CHECK(ctl({"tunnel", "why", "t"}).out.find("its owner does not answer") != std::string::npos);
  owner.refuse = 0;

  for (const auto* noun : {"tunnel", "connector"}) {
    const auto names = ctl({noun, "why", noun == std::string{"tunnel"} ? "t" : "c", "-o", "name"});
    CHECK(names.code == 2);
    CHECK(names.err.find("why has no name to print") != std::string::npos);
  }
  CHECK(ctl({"connector", "why", "nobody"}).code == 1);
}
