// test/integration/store_hang_test.cpp -- servers that say nothing, holders that are paused, poolers in between:
// whoever asks the store is answered, and nobody is kept waiting by somebody who sleeps.
#include <catch2/catch.hpp>

#include <atomic>
#include <csignal>
#include <fstream>
#include <mutex>
#include <thread>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test/integration/store_fixture.hpp"

using namespace warren;
using namespace warren::store_test;

namespace {

// ---- silence ----

/// Processes that are stopped, and go on when this ends.
class silenced {
public:
  explicit silenced(std::vector<int> processes) : processes_{std::move(processes)} {
    for (const auto pid : processes_) REQUIRE(::kill(pid, SIGSTOP) == 0);
  }
  ~silenced() {
    for (const auto pid : processes_) ::kill(pid, SIGCONT);
  }
  silenced(const silenced&) = delete;
  silenced& operator=(const silenced&) = delete;

private:
  std::vector<int> processes_;
};

/// One of everything that actors ask for with no limit of their own. Each future is an answer, whatever it says.
std::vector<std::pair<std::string, std::future<void>>> ask_everything(instance& a, epoch_t epoch) {
  std::vector<std::pair<std::string, std::future<void>>> out;
  const auto promised = [&](std::string what) {
    auto done = std::make_shared<std::promise<void>>();
    out.emplace_back(std::move(what), done->get_future());
    return done;
  };
  const auto answered = [&](std::string what) {
    return [done = promised(std::move(what))](const auto&) { done->set_value(); };
  };
  a.s->save(inserting(epoch, tunnel_row("asked")), answered("save"));
  a.s->load(load_entity{"tunnel", project, "t", home, epoch}, answered("load_entity"));
  a.s->load(load_partition{home, epoch}, answered("load_partition"));
  a.s->load(load_naming{project, "box"}, answered("load_naming"));
  a.s->find({answered_request{project, "CreateTunnel", "id", "digest"}}, answered("find_answer"));
  a.s->adopt({home, epoch}, answered("adopt_rivals"));
  for (const auto p : {home, home, partition_id{0}}) a.s->fetch({p, 0}, answered("fetch_changes"));
  a.s->list_audit(project, 0, 10, [done = promised("list_audit")](const auto&, const auto&) { done->set_value(); });
  a.s->next_gateway_stream(answered("next_gateway_stream"));
  a.s->purge(answered("purge"));
  a.lease.renew({}, answered("renew_lease"));
  a.lease.take({{home}}, answered("take_partitions"));
  a.lease.judge({a.lease.id()}, answered("judge_instance"));
  a.lease.release({home, epoch}, answered("release_partition"));
  return out;
}

void all_are_answered(std::vector<std::pair<std::string, std::future<void>>> all) {
  const auto until = std::chrono::steady_clock::now() + limits::store_answer_max;
  for (auto& [what, answer] : all) {
    INFO(what);
    CHECK(answer.wait_until(until) == std::future_status::ready);
  }
}

// ---- a pooler ----

void write_all(int fd, const std::string& bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    const auto n = ::send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (n <= 0) throw std::runtime_error{"closed"};
    at += static_cast<std::size_t>(n);
  }
}
std::string read_exactly(int fd, std::size_t size) {
  std::string out(size, '\0');
  for (std::size_t at = 0; at < size;) {
    const auto n = ::recv(fd, out.data() + at, size - at, 0);
    if (n <= 0) throw std::runtime_error{"closed"};
    at += static_cast<std::size_t>(n);
  }
  return out;
}
std::uint32_t number_at(const std::string& bytes, std::size_t at) {
  std::uint32_t n = 0;
  for (std::size_t i = 0; i < 4; ++i) n = n << 8 | static_cast<unsigned char>(bytes[at + i]);
  return n;
}
/// One message of PostgreSQL's protocol, as it is on the wire; the first of a connection has no type.
std::string read_message(int fd, bool typed = true) {
  auto head = read_exactly(fd, typed ? 5 : 4);
  return head + read_exactly(fd, number_at(head, typed ? 1 : 0) - 4);
}

/// Hands the transactions of all its clients to the server processes that it has, in turn. Each of the first
/// clients logs one of them in; whoever comes later is let in with what they were told.
class pooler {
public:
  pooler(std::uint16_t server, std::size_t processes) : server_{server}, wanted_{processes} {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at = address(0);
    REQUIRE(::bind(listener_, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
    REQUIRE(::listen(listener_, 16) == 0);
    socklen_t size = sizeof at;
    REQUIRE(::getsockname(listener_, reinterpret_cast<sockaddr*>(&at), &size) == 0);
    port_ = ntohs(at.sin_port);
    threads_.emplace_back([this] { accept_clients(); });
  }
  ~pooler() {
    ::shutdown(listener_, SHUT_RDWR);
    {
      std::lock_guard lock{mutex_};
      for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    }
    threads_.front().join();  // no client comes after it
    for (std::size_t i = 1; i < threads_.size(); ++i) threads_[i].join();
    for (const int fd : open_) ::close(fd);
    ::close(listener_);
  }
  pooler(const pooler&) = delete;
  pooler& operator=(const pooler&) = delete;
  std::uint16_t port() const { return port_; }

private:
  static sockaddr_in address(std::uint16_t port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
  }

  void accept_clients() {
    for (;;) {
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      std::lock_guard lock{mutex_};
      open_.push_back(fd);
      threads_.emplace_back([this, fd] {
        try {
          serve(fd);
        } catch (const std::exception&) {
        }
        ::shutdown(fd, SHUT_RDWR);
      });
    }
  }

  void serve(int client) {
    const auto startup = read_message(client, false);
    {
      std::lock_guard lock{pool_mutex_};
      if (servers_.size() < wanted_) log_in(client, startup);
      else write_all(client, welcome_);
    }
    for (;;) {
      auto message = read_message(client);
      if (message[0] == 'X') return;
      std::lock_guard lock{pool_mutex_};
      const int server = servers_[next_++ % servers_.size()];
      for (char transaction = 'T'; transaction != 'I'; ) {
        write_all(server, message);
        if (message[0] == 'Q' || message[0] == 'S') transaction = answer(server, client);
        if (transaction != 'I') message = read_message(client);
      }
    }
  }

  void log_in(int client, const std::string& startup) {
    const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    {
      std::lock_guard lock{mutex_};
      open_.push_back(server);
    }
    auto at = address(server_);
    if (::connect(server, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) throw std::runtime_error{"no server"};
    write_all(server, startup);
    welcome_ = std::string{"R\0\0\0\x08\0\0\0\0", 9};
    for (char type = 0; type != 'Z';) {
      const auto message = read_message(server);
      type = message[0];
      write_all(client, message);
      if (type == 'R') {
        const auto asked = number_at(message, 5);  // 0: done, 12: SASL's last word, all others want an answer
        if (asked != 0 && asked != 12) write_all(server, read_message(client));
      } else {
        welcome_ += message;
      }
    }
    servers_.push_back(server);
  }

  /// Everything up to ReadyForQuery; returns its transaction status.
  static char answer(int server, int client) {
    for (;;) {
      const auto message = read_message(server);
      write_all(client, message);
      if (message[0] == 'Z') return message[5];
    }
  }

  std::uint16_t server_, port_ = 0;
  std::size_t wanted_;
  int listener_ = -1;
  std::mutex mutex_, pool_mutex_;
  std::vector<std::thread> threads_;
  std::vector<int> open_, servers_;
  std::size_t next_ = 0;
  std::string welcome_;
};

char process_state(int pid) {
  std::ifstream in{"/proc/" + std::to_string(pid) + "/stat"};
  std::string text{std::istreambuf_iterator<char>{in}, {}};
  const auto end = text.rfind(") ");
  return end == std::string::npos ? '?' : text[end + 2];
}

}  // namespace

TEST_CASE("whatever is asked of the store is answered, also when the server processes say nothing") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, tunnel_row("t"))));
  SECTION("its own processes hang, new ones do not") {
    silenced none{db.processes("warrend/" + std::to_string(a.lease.id()) + "/%")};
    all_are_answered(ask_everything(a, epoch));
  }
  SECTION("the connection that holds the instance's lock alone") {
    silenced none{db.processes("warrend/%/lock")};
    all_are_answered(ask_everything(a, epoch));
    CHECK_THAT(a.lost, Catch::Contains("holds this instance's lock"));  // it can neither be ended nor replaced
  }
  CHECK(a.wait([&] { return a.up; }));
  REQUIRE(a.renew().renewed);
  CHECK(db.advisory_locks() == 1);
  const auto again = a.own(home);
  must_save(a.save(inserting(again, tunnel_row("after"))));
}

TEST_CASE("whatever is asked of the store is answered, also when the whole server hangs") {
  auto& server = own_server::get().cluster;
  database db{server};
  instance a{db};
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, tunnel_row("t"))));
  {
    auto all = db.processes("warrend/%");
    all.push_back(server.server().pid());  // the postmaster: nobody is let in
    silenced none{all};
    all_are_answered(ask_everything(a, epoch));
    all_are_answered(ask_everything(a, epoch));  // with nothing connected any more
    CHECK(a.lost.empty());
  }
  CHECK(a.wait([&] { return a.up; }));
  CHECK(a.renew().renewed);
  const auto again = a.own(home);
  must_save(a.save(inserting(again, tunnel_row("after"))));
}

TEST_CASE("a holder that is paused inside a transaction blocks nobody beyond its lease, and writes nothing when it wakes") {
  stack::stack s{{.with_envoy = false,
                  .own_postgres = true,
                  .instance_lease_ms = 1'000,
                  .environment = {{"WARREN_FAILPOINT", "after_fence=stop"}}}};
  constexpr partition_id reserved = 64;
  // The first transaction of all: it holds the partition's row when the process stops.
  auto asker = s.launch_ctl({"connector-class", "create", "theirs", "--allow", "127.0.0.0/8"}, "create.log");
  REQUIRE(stack::poll_until([&] { return process_state(s.warrend().pid()) == 'T'; }, 20s));
  const auto holds = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'warrend/1/lane%' AND "
                     "state LIKE 'idle in transaction%'";
  REQUIRE(s.sql(holds) == "1\n");

  instance b{s.database_url(), "b", nullptr, 60s};  // it outlives the test
  epoch_t epoch = 0;
  REQUIRE(stack::poll_until(
      [&] {
        b.renew();
        const auto v = b.take(reserved);
        if (!v.taken.empty()) epoch = v.partitions.at(reserved).epoch;
        return !v.taken.empty();
      },
      20s));
  // It is the takeover that ended the session, and not the server's patience with it, which is longer.
  const auto log = stack::read_file(s.directory() / "postgres" / "log");
  CHECK(log.find("terminating connection due to administrator command") != std::string::npos);
  CHECK(log.find("idle-in-transaction timeout") == std::string::npos);
  CHECK(s.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'warrend/1/lane%'") == "0\n");
  v1::Row ours;
  ours.mutable_connector_class()->set_name("ours");
  ours.mutable_connector_class()->set_uid("uid-ours");
  const auto done = must_save(b.save(inserting(epoch, ours, reserved)));

  s.thaw_warrend();
  REQUIRE(stack::poll_until([&] { return s.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'warrend/1/lane%'") == "4\n"; }, 20s));
  asker.kill();
  CHECK(s.sql("SELECT string_agg(name, ' ' ORDER BY name) FROM connector_class") == "default ours\n");
  CHECK(s.sql("SELECT owner, epoch, revision FROM partition WHERE id = 64") ==
        std::to_string(b.lease.id()) + "|" + std::to_string(epoch) + "|" + std::to_string(done.revision) + "\n");
}

TEST_CASE("a connection pooler between an instance and the server is refused") {
  auto& server = own_server::get().cluster;
  database db{server};
  const auto processes = GENERATE(1u, 2u);
  INFO(processes << " server processes for all");
  pooler in_between{server.port(), processes};
  auto conninfo = db.conninfo;
  const auto port = ":" + std::to_string(server.port()) + "/";
  conninfo.replace(conninfo.find(port), port.size(), ":" + std::to_string(in_between.port()) + "/");
  conninfo += "?sslmode=disable&gssencmode=disable";
  {
    pqxx::connection through{conninfo};  // it does what poolers do: a single client notices nothing
    pqxx::work tx{through};
    CHECK(tx.exec1("SELECT count(*) FROM partition")[0].as<int>() == 65);
  }
  lease_store l{{.conninfo = conninfo, .name = "a"}};
  CHECK_THAT(l.start(), Catch::Contains("connection pooler"));
  CHECK(db.value<int>("SELECT count(*) FROM instance") == 0);
}
