// test/integration/admin_limits_test.cpp -- what one caller can cost the others: too many calls, too many watches, a
// watcher that does not read, callers that go away, owners that do.
#include <fmt/format.h>

#include "services/admin/status.hpp"
#include "test/integration/admin_fixture.hpp"
#include "test/support/process.hpp"

using namespace warren;
using namespace warren::played;
using stack::poll_until;

namespace {

/// What the server counts.
class counted final : public counters {
public:
  void add(std::string_view name, std::string_view, double n) override {
    std::lock_guard lock{mutex_};
    values_[std::string{name}] += n;
  }
  void set(std::string_view name, double value, std::string_view) override {
    std::lock_guard lock{mutex_};
    values_[std::string{name}] = value;
  }
  void observe(std::string_view, double, std::string_view) override {}
  double of(const std::string& name) {
    std::lock_guard lock{mutex_};
    return values_[name];
  }

private:
  std::mutex mutex_;
  std::map<std::string, double> values_;
};

constexpr auto patience = 10s;

/// A call that is under way.
struct pending_create {
  grpc::ClientContext context;
  api::Tunnel answer;
  grpc::Status status;
  std::promise<void> over;
  std::future<void> done = over.get_future();

  pending_create(api::TunnelService::Stub& stub, const std::string& name, millis timeout) {
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    request.set_parent("projects/p");
    request.set_tunnel_id(name);
    request.mutable_tunnel()->add_hostnames(name + ".example.com");
    auto& rule = *request.mutable_tunnel()->add_rules();
    rule.set_connector("c");
    rule.set_target("http://localhost");
    stub.async()->CreateTunnel(&context, &request, &answer, [this](grpc::Status s) {
      status = std::move(s);
      over.set_value();
    });
  }
  grpc::Status await() {
    REQUIRE(done.wait_for(patience) == std::future_status::ready);
    return status;
  }
  api::CreateTunnelRequest request;
};

struct watching {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<api::WatchTunnelsResponse>> reader;
  api::WatchTunnelsResponse last;

  explicit watching(api::TunnelService::Stub& stub) {
    context.set_deadline(std::chrono::system_clock::now() + 60s);
    api::WatchTunnelsRequest q;
    q.set_parent("projects/p");
    reader = stub.WatchTunnels(&context, q);
  }
  bool await_caught_up() {
    while (reader->Read(&last))
      if (last.has_caught_up()) return true;
    return false;
  }
};

api::GetTunnelRequest of_name(const std::string& name) {
  api::GetTunnelRequest q;
  q.set_name("projects/p/tunnels/" + name);
  return q;
}
grpc::Status get(api::TunnelService::Stub& stub, const std::string& name) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  api::Tunnel answer;
  return stub.GetTunnel(&context, of_name(name), &answer);
}

}  // namespace

TEST_CASE("beyond the greatest number of calls at a time a call is refused at once, and later it is not") {
  fixture f{[](auto& c) { c.calls_max = 2; }};
  auto stub = api::TunnelService::NewStub(f.channel());
  f.owner.silent = true;
  pending_create a{*stub, "a", patience}, b{*stub, "b", patience};
  REQUIRE(poll_until([&] { return f.owner.heard() == 2; }, patience));
  const auto third = get(*stub, "a");
  CHECK(third.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(third.error_message().find("too many requests") != std::string::npos);
  CHECK(admin::details_of(third).retry_after > 0ms);
  f.owner.silent = false;
  f.owner.answer_held(bus::request_error::no_responders);
  CHECK(a.await().ok());
  CHECK(b.await().ok());
  CHECK(get(*stub, "a").ok());
}

TEST_CASE("beyond the greatest number of watches one is refused; a place that is given up is taken") {
  counted counts;
  fixture f{[&](auto& c) {
    c.watches_max = 1;
    c.counts = &counts;
  }};
  f.settle();
  auto stub = api::TunnelService::NewStub(f.channel());
  watching first{*stub};
  REQUIRE(first.await_caught_up());
  watching second{*stub};
  CHECK_FALSE(second.await_caught_up());
  const auto refused = second.reader->Finish();
  CHECK(refused.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(refused.error_message().find("too many watches") != std::string::npos);
  CHECK(get(*stub, "nothing").error_code() == grpc::StatusCode::NOT_FOUND);  // calls are not watches
  first.context.TryCancel();
  CHECK(first.reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
  REQUIRE(poll_until([&] { return counts.of("warren_watch_streams") == 0; }, patience));
  watching third{*stub};
  CHECK(third.await_caught_up());
  third.context.TryCancel();
}

TEST_CASE("a watcher that does not read is ended with a clear code, and holds up nobody") {
  constexpr int changes = 3000;  // far more than the queue and what fits into a connection
  fixture f{[](auto& c) { c.watch_queue_max = 100; }};
  f.settle();
  REQUIRE(f.create("t").code == 0);
  auto lazy_stub = api::TunnelService::NewStub(f.channel()), stub = api::TunnelService::NewStub(f.channel());
  watching lazy{*lazy_stub}, eager{*stub};
  REQUIRE(lazy.await_caught_up());
  const auto token = lazy.last.resume_token();
  REQUIRE(eager.await_caught_up());
  int seen = 0;
  for (int i = 0; i < changes; ++i) {
    f.owner.touch("p", "t");
    REQUIRE(eager.reader->Read(&eager.last));
    CHECK(eager.last.has_tunnel());
    ++seen;
  }
  CHECK(seen == changes);
  CHECK(f.create("u", "u.example.com").code == 0);  // whoever writes does not wait for it
  int read = 0;
  std::string newest = token;
  while (lazy.reader->Read(&lazy.last)) {
    ++read;
    if (!lazy.last.resume_token().empty()) newest = lazy.last.resume_token();
  }
  const auto why = lazy.reader->Finish();
  CHECK(why.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(why.error_message().find("too slowly") != std::string::npos);
  CHECK(read < changes);

  // What it was told last is where it can go on.
  grpc::ClientContext again;
  again.set_deadline(std::chrono::system_clock::now() + patience);
  api::WatchTunnelsRequest q;
  q.set_parent("projects/p");
  q.set_resume_token(newest);
  auto resumed = lazy_stub->WatchTunnels(&again, q);
  std::set<std::string> names;
  api::WatchTunnelsResponse r;
  while (resumed->Read(&r) && !r.has_caught_up()) names.insert(r.tunnel().name());
  CHECK(r.has_caught_up());
  CHECK(names == std::set<std::string>{"projects/p/tunnels/t", "projects/p/tunnels/u"});
  again.TryCancel();
  eager.context.TryCancel();
}

TEST_CASE("a watcher that never reads again loses its place") {
  counted counts;
  fixture f{[&](auto& c) {
    c.watch_queue_max = 10;
    c.watch_patience = 20ms;
    c.counts = &counts;
  }};
  f.settle();
  REQUIRE(f.create("t").code == 0);
  auto stub = api::TunnelService::NewStub(f.channel());
  watching dead{*stub};
  REQUIRE(dead.await_caught_up());
  CHECK(counts.of("warren_watch_streams") == 1);
  REQUIRE(poll_until(
      [&] {
        for (int i = 0; i < 100; ++i) f.owner.touch("p", "t");
        return counts.of("warren_watch_streams") == 0;
      },
      patience));
  while (dead.reader->Read(&dead.last)) {}
  CHECK(dead.reader->Finish().error_code() != grpc::StatusCode::OK);
}

TEST_CASE("for a caller that has gone nobody asks again, and its place is free") {
  fixture f{[](auto& c) { c.calls_max = 1; }};
  auto stub = api::TunnelService::NewStub(f.channel());
  f.owner.silent = true;
  pending_create gone{*stub, "a", patience};
  REQUIRE(poll_until([&] { return f.owner.heard() == 1; }, patience));
  gone.context.TryCancel();
  CHECK(gone.await().error_code() == grpc::StatusCode::CANCELLED);
  f.owner.answer_held(bus::request_error::no_responders);
  REQUIRE(poll_until([&] { return get(*stub, "a").error_code() == grpc::StatusCode::NOT_FOUND; }, patience));
  CHECK(f.owner.heard() == 1);
}

TEST_CASE("a deadline that is too short is answered, and says what may have happened") {
  fixture f;
  auto stub = api::TunnelService::NewStub(f.channel());
  SECTION("over before it begins") {
    pending_create late{*stub, "a", -1ms};
    CHECK(late.await().error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  SECTION("nobody owns the partition") {
    f.owner.refuse = 1'000'000'000;
    pending_create late{*stub, "a", 1000ms};
    const auto s = late.await();
    CHECK(s.error_code() == grpc::StatusCode::UNAVAILABLE);
    CHECK_FALSE(admin::details_of(s).request_id.empty());
    CHECK(f.owner.heard() == 0);
  }
  SECTION("the owner has it and does not answer") {
    f.owner.silent = true;
    pending_create late{*stub, "a", 1000ms};
    REQUIRE(poll_until([&] { return f.owner.heard() == 1; }, patience));
    REQUIRE(poll_until(
        [&] {
          f.owner.answer_held(bus::request_error::timeout);
          return late.done.wait_for(0s) == std::future_status::ready;
        },
        patience));
    CHECK(late.status.error_code() == grpc::StatusCode::UNAVAILABLE);
    CHECK(late.status.error_message().find("not known whether the change was made") != std::string::npos);
    CHECK(admin::details_of(late.status).request_id.size() == 32);
  }
  f.owner.refuse = 0;
  f.owner.silent = false;
  CHECK(f.create("b").code == 0);
}

TEST_CASE("an owner that has died with a request is not waited for once another one is there") {
  fixture f;
  auto stub = api::TunnelService::NewStub(f.channel());
  f.owner.silent = true;
  // Shorter than one attempt: only the news can save it.
  pending_create orphan{*stub, "a", 900ms};
  REQUIRE(poll_until([&] { return f.owner.heard() == 1; }, patience));
  f.owner.silent = false;
  f.owner.move();
  CHECK(orphan.await().ok());
  REQUIRE(f.owner.heard() == 2);
  CHECK(f.owner.seen[0].caller().request_id() == f.owner.seen[1].caller().request_id());
  CHECK(f.owner.seen[0].caller().digest() == f.owner.seen[1].caller().digest());
  // What the dead one's connection says afterwards changes nothing.
  f.owner.answer_held(bus::request_error::disconnected);
  CHECK(get(*stub, "a").ok());
}

TEST_CASE("many requests that wait for an owner go on when there is one, each once") {
  fixture f;
  auto stub = api::TunnelService::NewStub(f.channel());
  f.owner.refuse = 1'000'000'000;
  std::vector<std::unique_ptr<pending_create>> all;
  for (int i = 0; i < 50; ++i) all.push_back(std::make_unique<pending_create>(*stub, "t" + std::to_string(i), patience));
  REQUIRE(poll_until([&] { return f.owner.refuse <= 1'000'000'000 - 50; }, patience));
  f.owner.refuse = 0;
  f.owner.move();
  for (auto& each : all) CHECK(each->await().ok());
  std::set<std::string> ids;
  for (const auto& c : f.owner.seen) ids.insert(c.caller().request_id());
  CHECK(ids.size() == 50);
}

TEST_CASE("a request that is too large is refused before anybody looks at it") {
  fixture f;
  auto stub = api::TunnelService::NewStub(f.channel());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  api::CreateTunnelRequest q;
  q.set_parent(std::string(limits::api_request_bytes_max + 1, 'x'));
  api::Tunnel a;
  CHECK(stub->CreateTunnel(&context, q, &a).error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(f.create("t").code == 0);
}

TEST_CASE("a page ends before it is more than clients take, and the next one goes on there") {
  constexpr int many = 250;
  constexpr auto kib = 1024;
  constexpr std::size_t client_takes = 4 * kib * kib;  // gRPC's default, which this test's clients have
  fixture f{[](auto& c) {
    // An audit trail of events with 60 KiB each, as of the largest tunnels that there can be.
    c.audit = [](admin::audit_query q, auto then) {
      admin::audit_page page;
      for (auto id = q.before_id == 0 ? many : q.before_id - 1; id > 0 && std::ssize(page.events) < q.limit; --id)
        page.events.push_back({id, 1'900'000'000'000, "p", "local", "here", "UpdateTunnel", "projects/p/tunnels/t", "r",
                               std::string(30 * kib, 'b'), std::string(30 * kib, 'a')});
      then(std::move(page));
    };
  }};
  const auto in_time = [](grpc::ClientContext& context) { context.set_deadline(std::chrono::system_clock::now() + patience); };
  const auto padded = [](int i, char with) { return fmt::format("{}{:03}", std::string(57, with), i); };
  auto stub = api::TunnelService::NewStub(f.channel());
  for (int i = 0; i < many; ++i) {
    grpc::ClientContext context;
    in_time(context);
    api::CreateTunnelRequest q;
    q.set_parent("projects/p");
    q.set_tunnel_id(fmt::format("t{:03}", i));
    for (int j = 0; j < 16; ++j)
      q.mutable_tunnel()->add_hostnames(fmt::format("{}.{}.{}.test", padded(i, 'h'), padded(j, 'n'), padded(0, 'x')));
    for (int j = 0; j < 16; ++j) {
      auto& rule = *q.mutable_tunnel()->add_rules();
      rule.set_path_prefix(fmt::format("/{}{}", std::string(1020, 'p'), j));
      rule.set_connector("c");
      rule.set_target("http://localhost");
    }
    api::Tunnel a;
    const auto status = stub->CreateTunnel(&context, q, &a);
    INFO(status.error_message());
    REQUIRE(status.ok());
  }
  for (const auto* order : {"", "name desc", "create_time"}) {
    CAPTURE(order);
    api::ListTunnelsRequest q;
    q.set_parent("projects/-");
    q.set_page_size(1000);
    q.set_order_by(order);
    std::set<std::string> seen;
    int pages = 0;
    for (;; ++pages) {
      grpc::ClientContext context;
      in_time(context);
      api::ListTunnelsResponse a;
      const auto status = stub->ListTunnels(&context, q, &a);
      INFO(status.error_message());
      REQUIRE(status.ok());
      REQUIRE(a.tunnels_size() > 0);
      CHECK(a.ByteSizeLong() < client_takes);
      for (const auto& t : a.tunnels()) CHECK(seen.insert(t.name()).second);
      if (a.next_page_token().empty()) break;
      CHECK(a.ByteSizeLong() > client_takes / 2);  // as many as fit
      q.set_page_token(a.next_page_token());
    }
    CHECK(seen.size() == many);
    CHECK(pages > 0);
  }
  auto trail = api::OperationsService::NewStub(f.channel());
  api::ListAuditEventsRequest q;
  q.set_page_size(150);
  std::int64_t expected = many;
  for (int pages = 0; expected > 0; ++pages) {
    REQUIRE(pages < many);
    grpc::ClientContext context;
    in_time(context);
    api::ListAuditEventsResponse a;
    const auto status = trail->ListAuditEvents(&context, q, &a);
    INFO(status.error_message());
    REQUIRE(status.ok());
    CHECK(a.ByteSizeLong() < client_takes);
    for (const auto& e : a.events()) CHECK(e.id() == expected--);
    CHECK(a.next_page_token().empty() == (expected == 0));
    q.set_page_token(a.next_page_token());
  }
  CHECK(expected == 0);
  // warrenctl shows all of it, and no more than it is asked for.
  const auto listed = f.ctl({"tunnel", "list", "-o", "name"});
  CHECK(std::count(listed.out.begin(), listed.out.end(), '\n') == many);
  const auto newest = f.ctl({"audit", "list", "--limit", "130", "-o", "name"});
  CHECK(std::count(newest.out.begin(), newest.out.end(), '\n') == 130);
  CHECK(newest.out.starts_with(fmt::format("{}\n{}\n", many, many - 1)));
}

TEST_CASE("however much is wrong with a request, the answer fits into what clients take") {
  fixture f;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  SECTION("a tunnel") {
    auto stub = api::TunnelService::NewStub(f.channel());
    api::CreateTunnelRequest q;
    api::Tunnel a;
    for (int i = 0; i < 16; ++i) {
      q.mutable_tunnel()->add_hostnames("not a host");
      q.mutable_tunnel()->add_rules()->set_path_prefix("?");
    }
    const auto s = stub->CreateTunnel(&context, q, &a);
    CHECK(s.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(admin::details_of(s).violations.size() > 10);
    CHECK(s.error_message().find("more)") != std::string::npos);
  }
  SECTION("a class") {
    auto stub = api::ClassService::NewStub(f.channel());
    api::CreateConnectorClassRequest q;
    api::ConnectorClass a;
    q.set_connector_class_id("n");
    for (int i = 0; i < 64; ++i) q.mutable_connector_class()->add_allowed_networks("x");
    const auto s = stub->CreateConnectorClass(&context, q, &a);
    CHECK(s.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(admin::details_of(s).violations.size() > 10);
  }
}
