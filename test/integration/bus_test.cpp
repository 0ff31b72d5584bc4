// test/integration/bus_test.cpp -- the bus room against a real nats-server that each test starts and stops.
#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "services/bus/actor.hpp"
#include "services/bus/connection.hpp"
#include "services/bus/disconnect_watch.hpp"
#include "services/bus/subjects.hpp"
#include "services/bus/user_jwt.hpp"

using namespace warren;
using namespace std::chrono_literals;

namespace {

int free_port();
struct counted : counters {
  std::mutex mutex;
  std::map<std::string, double> values;
  void add(std::string_view name, std::string_view label, double n) override {
    const std::lock_guard lock{mutex};
    values[std::string{name} + "{" + std::string{label} + "}"] += n;
  }
  void set(std::string_view name, double value, std::string_view label) override {
    const std::lock_guard lock{mutex};
    values[std::string{name} + "{" + std::string{label} + "}"] = value;
  }
  void observe(std::string_view, double, std::string_view) override {}
  double operator[](const std::string& key) {
    const std::lock_guard lock{mutex};
    return values[key];
  }
};

/// Waits for conditions that callbacks on other threads bring about.
struct watched {
  std::mutex mutex;
  std::condition_variable changed;
  template <class F>
  void update(F change) {
    {
      const std::lock_guard lock{mutex};
      change();
    }
    changed.notify_all();
  }
  template <class F>
  bool wait(F holds, std::chrono::milliseconds at_most = 10s) {
    std::unique_lock lock{mutex};
    return changed.wait_for(lock, at_most, holds);
  }
};

/// A nats-server of its own; started anew on the same port after kill().
class server {
public:
  explicit server(std::string extra_config = {}) : port_(free_port()) {
    directory_ = std::filesystem::temp_directory_path() / ("warren-bus-test-" + std::to_string(getpid()) + "-" + std::to_string(port_));
    std::filesystem::create_directories(directory_);
    configure(extra_config);
    start();
  }
  void configure(const std::string& extra) {
    std::ofstream{directory_ / "nats.conf"} << "host: 127.0.0.1\nport: " << port_ << "\n" << extra;
  }
  ~server() {
    kill();
    std::filesystem::remove_all(directory_);
  }
  void start() {
    const std::string config = (directory_ / "nats.conf").string(), log = (directory_ / "log").string();
    const char* argv[] = {"nats-server", "-c", config.c_str(), "-l", log.c_str(), nullptr};
    REQUIRE(posix_spawnp(&pid_, argv[0], nullptr, nullptr, const_cast<char**>(argv), environ) == 0);
    while (!answers()) {
      int status = 0;
      REQUIRE(waitpid(pid_, &status, WNOHANG) == 0);
      std::this_thread::yield();
    }
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
  }
  std::string url() const { return "nats://127.0.0.1:" + std::to_string(port_); }

private:
  bool answers() const;
  int port_ = 0;
  pid_t pid_ = -1;
  std::filesystem::path directory_;
};

bus::connection_options to(const server& at) {
  bus::connection_options out;
  out.urls = {at.url()};
  out.name = "test";
  return out;
}

}  // namespace

TEST_CASE("what is published arrives in order, with its reply subject") {
  server nats;
  counted counts;
  const auto connection = bus::connection::open(to(nats), &counts);
  REQUIRE(connection->connected());
  watched heard;
  std::vector<std::string> payloads;
  std::string reply_seen;
  const auto subscription = connection->subscribe("a.*", [&](auto subject, auto payload, auto reply_to) {
    heard.update([&] {
      CHECK(subject == "a.b");
      payloads.emplace_back(payload);
      reply_seen = reply_to;
    });
  });
  for (int i = 0; i < 1000; ++i) CHECK(connection->publish("a.b", std::to_string(i), false, "back.here"));
  REQUIRE(heard.wait([&] { return payloads.size() == 1000; }));
  for (int i = 0; i < 1000; ++i) CHECK(payloads.at(static_cast<std::size_t>(i)) == std::to_string(i));
  CHECK(reply_seen == "back.here");
}

TEST_CASE("bulk messages arrive too, and flush waits for both connections") {
  server nats;
  const auto connection = bus::connection::open(to(nats));
  watched heard;
  int count = 0;
  const auto subscription = connection->subscribe("bulk", [&](auto, auto, auto) { heard.update([&] { ++count; }); });
  REQUIRE(connection->flush(2s));
  for (int i = 0; i < 500; ++i) CHECK(connection->publish("bulk", "x", true));
  CHECK(connection->flush(2s));
  CHECK(heard.wait([&] { return count == 500; }));
}

TEST_CASE("requests are answered: by a responder, by nobody, by the clock") {
  server nats;
  const auto connection = bus::connection::open(to(nats));
  const auto echo = connection->subscribe("echo", [&](auto, auto payload, auto reply_to) {
    connection->publish(reply_to, std::string{"re: "} + std::string{payload});
  });
  const auto mute = connection->subscribe("mute", [](auto, auto, auto) {});
  REQUIRE(connection->flush(2s));

  watched done;
  std::map<std::string, std::string> answers;
  const auto ask = [&](std::string subject, std::chrono::milliseconds timeout) {
    connection->request(subject, "hi", timeout, [&, subject](bus::request_error error, std::string_view payload) {
      done.update([&] { answers[subject] = std::string{bus::to_string(error)} + "|" + std::string{payload}; });
    });
  };
  ask("echo", 5s);
  ask("nobody", 5s);
  const auto asked_at = std::chrono::steady_clock::now();
  ask("mute", 50ms);
  REQUIRE(done.wait([&] { return answers.size() == 3; }));
  CHECK(std::chrono::steady_clock::now() - asked_at < 500ms);  // its own deadline, not that of the first request
  CHECK(answers["echo"] == "|re: hi");
  CHECK(answers["nobody"] == "no_responders|");
  CHECK(answers["mute"] == "timeout|");
}

TEST_CASE("more requests than the limit are refused at once") {
  server nats;
  auto options = to(nats);
  options.requests_max = 2;
  const auto connection = bus::connection::open(options);
  const auto mute = connection->subscribe("mute", [](auto, auto, auto) {});
  REQUIRE(connection->flush(2s));
  std::atomic<int> others{0};
  const auto ignore = [&](bus::request_error, std::string_view) { ++others; };
  connection->request("mute", "", 5s, ignore);
  connection->request("mute", "", 5s, ignore);
  auto seen = bus::request_error::none;
  connection->request("mute", "", 5s, [&](bus::request_error error, std::string_view) { seen = error; });
  CHECK(seen == bus::request_error::overloaded);
  connection->close();
  CHECK(others == 2);  // answered with `disconnected`
}

TEST_CASE("a server that is killed and comes back: told, requests answered, subscriptions alive") {
  server nats;
  counted counts;
  const auto connection = bus::connection::open(to(nats), &counts);
  watched w;
  std::vector<bool> states;
  connection->on_state([&](bool on) { w.update([&] { states.push_back(on); }); });
  int heard = 0;
  const auto subscription = connection->subscribe("s", [&](auto, auto, auto) { w.update([&] { ++heard; }); });
  const auto mute = connection->subscribe("mute", [](auto, auto, auto) {});
  REQUIRE(connection->flush(2s));

  std::vector<bus::request_error> errors;
  const auto note = [&](bus::request_error error, std::string_view) { w.update([&] { errors.push_back(error); }); };
  connection->request("mute", "", 30s, note);
  nats.kill();
  REQUIRE(w.wait([&] { return states == std::vector<bool>{true, false} && errors.size() == 1; }));
  CHECK(errors.at(0) == bus::request_error::disconnected);
  connection->request("mute", "", 30s, note);
  REQUIRE(errors.size() == 2);
  CHECK(errors.at(1) == bus::request_error::disconnected);
  CHECK(counts["warren_bus_connected{}"] == 0);
  CHECK(connection->publish("s", "waits in the buffer"));

  nats.start();
  REQUIRE(w.wait([&] { return states.size() == 3 && states.back(); }));
  CHECK(w.wait([&] { return heard == 1; }));
  CHECK(connection->publish("s", "again"));
  CHECK(w.wait([&] { return heard == 2; }));
  CHECK(counts["warren_bus_connected{}"] == 1);
}

TEST_CASE("a server that is not there yet is waited for, with what was subscribed and published") {
  server nats;
  nats.kill();
  const auto connection = bus::connection::open(to(nats));
  CHECK_FALSE(connection->connected());
  watched w;
  int heard = 0;
  bool on = false;
  connection->on_state([&](bool now) { w.update([&] { on = now; }); });
  const auto subscription = connection->subscribe("s", [&](auto, auto, auto) { w.update([&] { ++heard; }); });
  nats.start();
  REQUIRE(w.wait([&] { return on; }));
  CHECK(connection->publish("s", "x"));
  CHECK(w.wait([&] { return heard == 1; }));
}

TEST_CASE("what does not fit into the buffer while disconnected is dropped and counted") {
  server nats;
  counted counts;
  auto options = to(nats);
  options.reconnect_buffer_bytes = 64 * 1024;
  const auto connection = bus::connection::open(options, &counts);
  watched w;
  bool on = true;
  connection->on_state([&](bool now) { w.update([&] { on = now; }); });
  nats.kill();
  REQUIRE(w.wait([&] { return !on; }));
  const std::string payload(8 * 1024, 'x');
  int sent = 0;
  while (connection->publish("s", payload)) REQUIRE(++sent < 100);
  CHECK(counts["warren_bus_dropped_total{publish_buffer_full}"] == 1);
  CHECK_FALSE(connection->publish("s", std::string(limits::bus_message_bytes_max + 1, 'x')));
  CHECK(counts["warren_bus_dropped_total{publish_oversized}"] == 1);
}

TEST_CASE("a server that refuses us is asked until it lets us in") {
  server nats{"authorization { user: warren, password: right }\n"};
  auto options = to(nats);
  options.user = "warren";
  options.password = "wrong";
  const auto connection = bus::connection::open(options);
  watched w;
  bool on = false;
  int heard = 0;
  connection->on_state([&](bool now) { w.update([&] { on = now; }); });
  const auto subscription = connection->subscribe("s", [&](auto, auto, auto) { w.update([&] { ++heard; }); });
  // The library gives a server up after two refusals, so the connection has to be opened anew by then.
  CHECK_FALSE(w.wait([&] { return on; }, 1500ms));
  nats.kill();
  nats.configure("authorization { user: warren, password: wrong }\n");
  nats.start();
  REQUIRE(w.wait([&] { return on; }));
  CHECK(connection->publish("s", "x"));
  CHECK(w.wait([&] { return heard == 1; }));
}

TEST_CASE("subscriptions end under load without a callback after their end") {
  server nats;
  const auto connection = bus::connection::open(to(nats));
  std::atomic<bool> stop{false};
  std::thread publisher{[&] {
    while (!stop) {
      for (int i = 0; i < 100; ++i) connection->publish("load." + std::to_string(i % 10), "payload", true);
      std::this_thread::yield();
    }
  }};
  std::atomic<int> after_end{0}, heard{0};
  for (int round = 0; round < 50; ++round) {
    std::vector<bus::subscription> subscriptions;
    auto ended = std::make_shared<std::atomic<bool>>(false);
    const int before = heard;
    for (int i = 0; i < 10; ++i)
      subscriptions.push_back(connection->subscribe("load." + std::to_string(i), [&, ended](auto, auto, auto) {
        if (*ended) ++after_end;
        ++heard;
      }));
    while (heard < before + 10) std::this_thread::yield();
    subscriptions.clear();
    *ended = true;
  }
  stop = true;
  publisher.join();
  CHECK(after_end == 0);
}

TEST_CASE("a callback may end its own subscription") {
  server nats;
  const auto connection = bus::connection::open(to(nats));
  watched w;
  int heard = 0;
  bus::subscription self;
  {
    self = connection->subscribe("s", [&](auto, auto, auto) {
      self.reset();
      w.update([&] { ++heard; });
    });
  }
  REQUIRE(connection->flush(2s));
  for (int i = 0; i < 10; ++i) connection->publish("s", "x");
  REQUIRE(w.wait([&] { return heard == 1; }));
  REQUIRE(connection->flush(2s));
  CHECK(heard == 1);
}

TEST_CASE("a subscriber that is too slow loses messages, and they are counted") {
  server nats;
  counted counts;
  auto options = to(nats);
  options.pending_messages_max = 10;
  const auto connection = bus::connection::open(options, &counts);
  watched w;
  bool release = false;
  const auto subscription = connection->subscribe("s", [&](auto, auto, auto) { w.wait([&] { return release; }); });
  for (int i = 0; i < 200; ++i) connection->publish("s", "x", true);
  REQUIRE(connection->flush(2s));
  REQUIRE(connection->flush(2s));
  const auto deadline = std::chrono::steady_clock::now() + 5s;
  while (counts["warren_bus_dropped_total{slow_consumer}"] < 100 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  CHECK(counts["warren_bus_dropped_total{slow_consumer}"] >= 100);
  w.update([&] { release = true; });
}

TEST_CASE("options that can never work are refused at once") {
  CHECK_THROWS_AS(bus::connection::open({}), std::invalid_argument);
  bus::connection_options options;
  options.urls = {"http://example"};
  CHECK_THROWS_AS(bus::connection::open(options), std::invalid_argument);
  options.urls = {"nats://127.0.0.1:1"};
  options.credentials_file = "/nowhere/there.creds";
  CHECK_THROWS_AS(bus::connection::open(options), std::invalid_argument);
}

TEST_CASE("the system account tells whose connection has ended") {
  server nats{R"(
accounts {
  SYS { users: [ { user: "sys", password: "s" } ] }
  WARREN { users: [ { user: "agent", password: "a" } ] }
}
system_account: SYS
)"};
  watched w;
  std::vector<std::string> agents, others;
  auto system = to(nats);
  system.user = "sys";
  system.password = "s";
  bus::disconnect_watch watch{system,
                              [&](auto project, auto kind, auto name) {
                                w.update([&] { agents.push_back(std::string{project} + "/" + std::string{kind} + "/" + std::string{name}); });
                              },
                              [&](auto name) { w.update([&] { others.emplace_back(name); }); }};
  REQUIRE(watch.link().flush(2s));
  for (const auto& name : {bus::agent_connection_name("p", "connector", "c"), std::string{"warrend-1"}}) {
    auto agent = to(nats);
    agent.user = "agent";
    agent.password = "a";
    agent.name = name;
    agent.bulk_connection = false;
    const auto connection = bus::connection::open(agent);
    REQUIRE(connection->connected());
  }
  CHECK(w.wait([&] { return agents.size() == 1 && others.size() == 1; }));
  CHECK(agents == std::vector<std::string>{"p/connector/c"});
  CHECK(others == std::vector<std::string>{"warrend-1"});
  watch.close();
}

TEST_CASE("an agent's credentials let it speak for itself only, and hear what is its own only") {
  const bus::issuers by{bus::nkey{bus::nkey::kind::operators, std::string(32, 'o')},
                        bus::nkey{bus::nkey::kind::account, std::string(32, 'a')},
                        bus::nkey{bus::nkey::kind::account, std::string(32, 's')}};
  server nats{bus::server_configuration(by, 1'700'000'000)};
  const auto folder = std::filesystem::temp_directory_path() / ("warren-creds-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  const auto with_file = [&](const std::string& name, const std::string& text) {
    std::ofstream{folder / name} << text;
    auto o = to(nats);
    o.credentials_file = (folder / name).string();
    return o;
  };
  const auto agent = [&](const std::string& project, const std::string& name, char entropy, const std::string& called) {
    const auto own = bus::issue_agent_credentials(by.account, 5, project, "connector", name, std::string(32, entropy), 1'700'000'000);
    auto o = to(nats);
    o.name = called;
    o.user_jwt = own.jwt;
    o.user_seed = own.seed;
    o.inbox_prefix = own.inbox_prefix;
    o.bulk_connection = false;
    return o;
  };
  const auto home_name = bus::agent_connection_name("demo", "connector", "home");
  const auto home_options = agent("demo", "home", 'h', home_name);

  watched w;
  std::vector<std::string> ended;
  bus::disconnect_watch watch{with_file("watch.creds", bus::watch_credentials(by, std::string(32, 'w'), 1'700'000'000)),
                              [&](auto project, auto, auto name) {
                                w.update([&] { ended.push_back(std::string{project} + "/" + std::string{name}); });
                              }};
  REQUIRE(watch.link().flush(5s));
  const auto owner = bus::connection::open(with_file("warrend.creds", bus::instance_credentials(by, std::string(32, 'i'), 1'700'000'000)));
  const auto home = bus::connection::open(home_options);
  auto evil = bus::connection::open(agent("other", "evil", 'e', home_name));  // it may call itself what it likes
  REQUIRE(owner->connected());
  REQUIRE(home->connected());
  REQUIRE(evil->connected());

  // The owner hears each of them on its own subjects, and nobody on another's.
  std::vector<std::string> heard;
  const auto note = [&](auto subject, auto payload, auto reply_to) {
    if (!reply_to.empty()) owner->publish(reply_to, "welcome");
    w.update([&] { heard.push_back(std::string{subject} + " " + std::string{payload}); });
  };
  std::vector<bus::subscription> owner_hears;
  for (const auto* room : {"warren.v1.hb.>", "warren.v1.ev.>", "warren.v1.hello.>", "warren.v1.api.>"}) owner_hears.push_back(owner->subscribe(room, note));
  REQUIRE(owner->flush(5s));
  for (const auto& subject : {bus::heartbeat_subject(5, "demo", "connector", "home"), bus::event_subject(5, "demo", "connector", "home"),
                              bus::hello_subject(5, "demo", "connector", "home"), bus::api_subject(5)})
    evil->publish(subject, "forged");
  const auto own_beat = bus::heartbeat_subject(5, "other", "connector", "evil");
  evil->publish(own_beat, "honest");  // after the others, on the same connection
  REQUIRE(w.wait([&] { return !heard.empty(); }));
  CHECK(heard == std::vector{own_beat + " honest"});

  // What is for one of them is heard by that one only, also its inbox and what it is commanded.
  std::vector<std::string> stolen;
  std::vector<bus::subscription> evil_hears;
  const auto steal = [&](auto subject, auto payload, auto) {
    w.update([&] { stolen.push_back(std::string{subject} + " " + std::string{payload}); });
  };
  for (const auto& subject : {std::string{"_INBOX.>"}, std::string{"_INBOX.*.*"}, home_options.inbox_prefix + ".>", std::string{">"},
                              bus::command_subject("demo", "connector", "home"), std::string{"warren.v1.cmd.>"},
                              std::string{"warren.v1.rev.>"}, bus::command_subject("other", "connector", "evil")})
    evil_hears.push_back(evil->subscribe(subject, steal));
  const auto commands = home->subscribe(bus::command_subject("demo", "connector", "home"),
                                        [&](auto, auto, auto reply_to) { home->publish(reply_to, "done"); });
  REQUIRE(evil->flush(5s));
  REQUIRE(home->flush(5s));
  std::string answered, welcomed;
  owner->request(bus::command_subject("demo", "connector", "home"), "attach", 5s, [&](bus::request_error error, std::string_view payload) {
    w.update([&] { answered = std::string{bus::to_string(error)} + "|" + std::string{payload}; });
  });
  home->request(bus::hello_subject(5, "demo", "connector", "home"), "hello", 5s, [&](bus::request_error error, std::string_view payload) {
    w.update([&] { welcomed = std::string{bus::to_string(error)} + "|" + std::string{payload}; });
  });
  REQUIRE(w.wait([&] { return !answered.empty() && !welcomed.empty(); }));
  CHECK(answered == "|done");
  CHECK(welcomed == "|welcome");
  const auto own_command = bus::command_subject("other", "connector", "evil");
  owner->publish(own_command, "for evil");  // behind all that it could have overheard
  REQUIRE(w.wait([&] { return !stolen.empty(); }));
  CHECK(stolen == std::vector{own_command + " for evil"});

  // Whose connection has ended is told by the credentials, not by the name.
  evil_hears.clear();
  evil->close();
  REQUIRE(w.wait([&] { return !ended.empty(); }));
  CHECK(ended == std::vector<std::string>{"other/evil"});

  auto nobody = to(nats);
  nobody.connect_timeout = 500ms;
  CHECK_FALSE(bus::connection::open(nobody)->connected());
  watch.close();
  home->close();
  owner->close();
  std::filesystem::remove_all(folder);
}

TEST_CASE("what is no DISCONNECT event names nobody") {
  CHECK(bus::disconnected_client(R"({"client":{"name":"x","name_tag":"warrend"}})") == "x");
  CHECK(bus::disconnected_client(R"({"client":{"name":"x","name_tag":"warren-agent/p/connector/c"}})") == "warren-agent/p/connector/c");
  CHECK_FALSE(bus::disconnected_client(R"({"client":{"name":"warren-agent/p/connector/c","name_tag":"warrend"}})"));
  CHECK(bus::disconnected_client(R"({"client":{"name":"x"}})") == "x");
  for (const char* bad : {"", "{", "[]", "{}", R"({"client":1})", R"({"client":{}})", R"({"client":{"name":1}})"})
    CHECK_FALSE(bus::disconnected_client(bad));
  CHECK_FALSE(bus::disconnected_client(std::string(1'000'000, '{')));
}

TEST_CASE("the bus actor: requests answered, subscriptions until the receiver ends, state told") {
  server nats;
  counted counts;
  const auto connection = bus::connection::open(to(nats), &counts);
  caf::actor_system_config config;
  caf::actor_system system{config};
  auto actor = bus::spawn_bus(system, connection, counts);
  caf::scoped_actor self{system};
  caf::actor me{self};

  bool connected = false;
  self->send(actor, bus_watch{me});
  while (!connected) self->receive([&](const bus_state& now) { connected = now.connected; });

  const auto ask = [&](std::string subject, millis timeout) {
    std::string out = "none";
    self->request(actor, caf::infinite, bus_request{std::move(subject), "hi", timeout})
        .receive([&](const bus_reply& reply) { out = reply.error + "|" + reply.payload; }, [](const caf::error&) {});
    return out;
  };
  CHECK(ask("nobody", 2s) == "no_responders|");
  const auto mute = connection->subscribe("mute", [](auto, auto, auto) {});
  const auto echo = connection->subscribe("echo", [&](auto, auto payload, auto to) { connection->publish(to, payload); });
  CHECK(ask("mute", 20ms) == "timeout|");
  CHECK(ask("echo", 2s) == "|hi");

  self->send(actor, bus_subscribe{"here.*", me});
  CHECK(ask("nobody", 2s) == "no_responders|");  // answered after the subscription was made
  self->send(actor, bus_publish{"here.now", "hello"});
  self->receive([&](const bus_message& message) {
    CHECK(message.subject == "here.now");
    CHECK(message.payload == "hello");
  });
  self->send(actor, bus_unsubscribe{"here.*", me});
  // The server hears of it a moment later.
  const auto nobody_left = [&](const std::string& subject) {
    const auto deadline = std::chrono::steady_clock::now() + 5s;
    while (std::chrono::steady_clock::now() < deadline)
      if (ask(subject, 50ms) == "no_responders|") return true;
    return false;
  };
  CHECK(nobody_left("here.x"));
  const auto counts_to = [&](const std::string& what, double n) {
    const auto deadline = std::chrono::steady_clock::now() + 5s;
    while (counts[what] != n && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    return counts[what] == n;
  };

  // Whoever is behind gets no more than may wait; when it lets go of a message, there is room for another.
  self->send(actor, bus_subscribe{"many", me, 10, 1 << 20});
  self->send(actor, bus_subscribe{"large", me, 10, 1000});
  CHECK(ask("nobody", 2s) == "no_responders|");
  for (int n = 0; n < 25; ++n) self->send(actor, bus_publish{"many", std::to_string(n)});
  for (int n = 0; n < 4; ++n) self->send(actor, bus_publish{"large", std::string(400, 'x')});
  CHECK(counts_to("warren_bus_dropped_total{behind}", 15 + 2));
  std::vector<bus_message> kept;
  const auto take = [&] { self->receive([&](const bus_message& message) { kept.push_back(message); }); };
  for (int n = 0; n < 12; ++n) take();
  self->send(actor, bus_publish{"many", "too early"});
  CHECK(counts_to("warren_bus_dropped_total{behind}", 15 + 2 + 1));
  kept.clear();
  self->send(actor, bus_publish{"many", "in time"});
  take();
  CHECK(kept.back().payload == "in time");
  kept.clear();

  {
    auto receiver = system.spawn([](caf::event_based_actor*) -> caf::behavior { return {[](const bus_message&) {}}; });
    self->send(actor, bus_subscribe{"gone", receiver});
    CHECK(ask("gone", 50ms) == "timeout|");
    caf::anon_send_exit(receiver, caf::exit_reason::user_shutdown);
    self->wait_for(receiver);
  }
  CHECK(nobody_left("gone"));

  nats.kill();
  while (connected) self->receive([&](const bus_state& now) { connected = now.connected; });
  CHECK(ask("echo", 2s) == "disconnected|");
  nats.start();
  while (!connected) self->receive([&](const bus_state& now) { connected = now.connected; });
  CHECK(ask("echo", 2s) == "|hi");
  caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
  self->wait_for(actor);
  connection->close();
}

namespace {

sockaddr_in loopback(int port) {
  sockaddr_in out{};
  out.sin_family = AF_INET;
  out.sin_port = htons(static_cast<std::uint16_t>(port));
  out.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return out;
}

int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  auto at = loopback(0);
  socklen_t size = sizeof at;
  bind(fd, reinterpret_cast<sockaddr*>(&at), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size);
  close(fd);
  return ntohs(at.sin_port);
}

bool server::answers() const {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const auto at = loopback(port_);
  const bool ok = connect(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0;
  close(fd);
  return ok;
}

}  // namespace
