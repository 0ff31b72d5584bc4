// bench/xds.cpp -- 10,000 tunnels on 1,000 connectors: how soon an Envoy runs what was committed, what is sent for it,
// what it costs, and what visitors meet meanwhile; beside it the same Envoy with a server that decides nothing.
#include <algorithm>
#include <array>
#include <atomic>
#include <fstream>
#include <thread>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fmt/format.h>

#include "actors/core/limits.hpp"
#include "bench/agents.hpp"
#include "bench/bare_ads.hpp"
#include "bench/visitor.hpp"
#include "bench/words.hpp"
#include "bench/world.hpp"
#include "services/gateway/bootstrap.hpp"

using namespace warren;
using namespace warren::bench;
using gateway::kind;
namespace v1 = warren::core::v1;

namespace {

constexpr auto patience = milliseconds{60'000};
constexpr auto gateway_name = "gw-1";

double resident_mb(pid_t pid) {
  std::ifstream in{fmt::format("/proc/{}/status", pid)};
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("VmRSS:")) return std::stod(line.substr(6)) / 1024;
  return 0;
}

double cpu_s(pid_t pid) {
  std::ifstream in{fmt::format("/proc/{}/stat", pid)};
  const std::string all{std::istreambuf_iterator<char>{in}, {}};
  std::istringstream rest{all.substr(all.rfind(')') + 2)};
  std::string skipped;
  double user = 0, system = 0;
  for (int i = 0; i < 11; ++i) rest >> skipped;
  rest >> user >> system;
  return (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

/// What a Prometheus does: reads all statistics of an Envoy at once and then every 15 s.
class scrapes {
public:
  explicit scrapes(std::function<std::string()> admin) {
    thread_ = std::thread{[this, admin = std::move(admin)] {
      std::unique_lock lock{mutex_};
      while (!stopping_) {
        const auto at = admin();
        lock.unlock();
        if (const auto colon = at.rfind(':'); colon != std::string::npos) {
          const auto begun = clock::now();
          const auto got = stack::visit(static_cast<std::uint16_t>(std::stoi(at.substr(colon + 1))), {.host = "envoy", .target = "/stats/prometheus"});
          lock.lock();
          if (got.status == 200) taken_.add(ms_between(begun, clock::now()));
        } else {
          lock.lock();
        }
        changed_.wait_for(lock, std::chrono::seconds{15}, [this] { return stopping_; });
      }
    }};
  }
  ~scrapes() {
    {
      const std::lock_guard lock{mutex_};
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  sample taken() const {
    const std::lock_guard lock{mutex_};
    return taken_;
  }

private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  sample taken_;
  std::thread thread_;
};

// ---- many hosts, few connections ----

struct head {
  int status = 0;
  std::string door, reason;
};

/// GETs on one connection that is kept; a new one when it ends.
class keen_visitor {
public:
  explicit keen_visitor(std::uint16_t port) : port_{port} {}
  ~keen_visitor() { hang_up(); }
  keen_visitor(const keen_visitor&) = delete;
  keen_visitor& operator=(const keen_visitor&) = delete;
  head get(const std::string& host) {
    if (fd_ < 0 && !dial()) return {};
    const auto question = fmt::format("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host);
    if (::send(fd_, question.data(), question.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(question.size())) return hang_up(), head{};
    std::string got;
    std::size_t end = std::string::npos, whole = 0;
    while (end == std::string::npos || got.size() < whole) {
      char piece[4096];
      const auto n = ::recv(fd_, piece, sizeof piece, 0);
      if (n <= 0) return hang_up(), head{};
      got.append(piece, static_cast<std::size_t>(n));
      if (end != std::string::npos || (end = got.find("\r\n\r\n")) == std::string::npos) continue;
      const auto length = value(got, "content-length: ");
      whole = end + 4 + (length.empty() ? 0 : std::stoul(length));
    }
    head out{std::atoi(got.c_str() + 9), value(got, "x-door: "), value(got, "x-warren-reason: ")};
    if (got.find("connection: close") != std::string::npos) hang_up();
    return out;
  }

private:
  static std::string value(const std::string& in, std::string_view name) {
    const auto at = in.find(name);
    if (at == std::string::npos) return {};
    return in.substr(at + name.size(), in.find('\r', at) - at - name.size());
  }
  bool dial() {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    timeval limit{5, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    int yes = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port_);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return true;
    hang_up();
    return false;
  }
  void hang_up() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  std::uint16_t port_;
  int fd_ = -1;
};

struct swept {
  clock::time_point last;       ///< when the last host satisfied
  std::size_t missing = 0;      ///< hosts that did not in time
  std::size_t foreign = 0;      ///< answers that were neither 200 nor 503
  std::size_t visits = 0;
};

/// Goes round all hosts until each has satisfied once.
swept sweep(std::uint16_t port, const std::vector<std::string>& hosts, const std::function<bool(const head&)>& satisfies, milliseconds timeout) {
  constexpr std::size_t width = 2;
  std::vector<swept> parts(width);
  std::vector<std::thread> visitors;
  const auto deadline = clock::now() + timeout;
  for (std::size_t n = 0; n < width; ++n)
    visitors.emplace_back([&, n] {
      keen_visitor v{port};
      std::vector<std::string> left;
      for (auto i = n; i < hosts.size(); i += width) left.push_back(hosts[i]);
      while (!left.empty() && clock::now() < deadline) {
        std::erase_if(left, [&](const std::string& host) {
          const auto got = v.get(host);
          ++parts[n].visits;
          if (got.status != 200 && got.status != 503) ++parts[n].foreign;
          return satisfies(got);
        });
        parts[n].last = clock::now();
      }
      parts[n].missing = left.size();
    });
  for (auto& each : visitors) each.join();
  swept out;
  for (const auto& p : parts) {
    out.last = std::max(out.last, p.last);
    out.missing += p.missing;
    out.foreign += p.foreign;
    out.visits += p.visits;
  }
  return out;
}

/// Asks each host once: how many answers do not satisfy.
std::size_t disagreeing(std::uint16_t port, const std::vector<std::string>& hosts, const std::function<bool(const head&)>& satisfies) {
  keen_visitor v{port};
  return static_cast<std::size_t>(std::count_if(hosts.begin(), hosts.end(), [&](const std::string& host) { return !satisfies(v.get(host)); }));
}

// ---- Envoy alone ----

gateway::resource_ptr played_route(const std::string& project, const std::string& name, const std::string& connector, tunnel::outcome what) {
  v1::TunnelRow row;
  row.set_project(project);
  row.set_name(name);
  row.set_uid("01890a5d-ac96-774b-bcce-b302099a8057");
  row.set_generation(1);
  tunnel::rule_plan rule;
  rule.what = what;
  rule.rule.set_path_prefix("/");
  rule.rule.set_connector(connector);
  rule.rule.set_target("http://127.0.0.1:8080");
  return gateway::compile_route(row, {.generation = 1, .rules = {rule}}, [](const std::string&) { return true; }, {});
}
gateway::resource_ptr played_scope(const std::string& project, const std::string& name) {
  v1::HostnameClaimRow claim;
  claim.set_hostname(name + ".bench.example");
  claim.set_project(project);
  claim.set_tunnel(name);
  return gateway::compile_scope(claim);
}

struct limits_of_envoy {
  sample flip, fresh;
  sample gone, back;  ///< many at once, each in a response of its own
  double cold_s = 0, cold_mb = 0, burst_ms = 0, gone_cpu_s = 0, back_cpu_s = 0;
};

/// The same resources, and nobody who decides anything. `many` of the tunnels change at once, `rounds` times.
limits_of_envoy envoy_alone(const std::filesystem::path& envoy, int connectors, int tunnels, int measured, int many, int rounds) {
  bare_ads ads;
  for (int n = 0; n < connectors; ++n) {
    v1::ConnectorRow row;
    row.set_project("p");
    row.set_name(fmt::format("c-{}", n));
    row.set_public_key(fmt::format("{:08x}{}", n, std::string(56, 'a')));
    row.add_addresses("127.0.0.1:7400");
    row.set_addressing_generation(1);
    row.set_online(true);
    ads.put(kind::cluster, gateway::compile_cluster(row));
  }
  ads.put(kind::cluster, gateway::compile_agents_cluster());
  gateway::class_settings settings;
  settings.listen = {fmt::format("127.0.0.1:{}", stack::free_port())};
  for (const auto& l : gateway::compile_listeners(settings)) ads.put(kind::listener, l);
  const auto connector = [&](int n) { return fmt::format("c-{}", n % connectors); };
  for (int n = 0; n < tunnels; ++n) {
    const auto name = fmt::format("t-{}", n);
    ads.put(kind::route, played_route("p", name, connector(n), tunnel::outcome::live));
    ads.put(kind::scope, played_scope("p", name));
  }
  const stack::scratch place{"warren-bare"};
  const auto folder = place.folder("envoy");
  stack::write_file(folder / "envoy.yaml", gateway::bootstrap_yaml("bare", "bare", "127.0.0.1", ads.port(), "127.0.0.1:0"));
  const auto begun = clock::now();
  stack::process running{{.name = "envoy alone", .path = envoy,
                          .arguments = {"-c", (folder / "envoy.yaml").string(), "--disable-hot-restart", "--concurrency", "1", "-l", "warning",
                                        "--admin-address-path", (folder / "admin").string()},
                          .log = folder / "log"}};
  if (!ads.await_count(kind::route, static_cast<std::size_t>(tunnels), patience)) throw stack::stack_error("Envoy alone does not load: " + running.log());
  limits_of_envoy out;
  out.cold_s = ms_between(begun, clock::now()) / 1000;
  out.cold_mb = resident_mb(running.pid());
  const scrapes read{[&] { return stack::read_file(folder / "admin"); }};
  const auto acked = [&](kind k, const gateway::resource_ptr& r, clock::time_point since) {
    const auto at = ads.await(k, r->name, r->version, patience);
    if (!at) throw stack::stack_error("Envoy alone acknowledges nothing");
    return ms_between(since, *at);
  };
  for (int n = 0; n < measured; ++n) {
    const auto r = played_route("p", fmt::format("t-{}", n * 7 % tunnels), connector(n * 7 % tunnels), n % 2 == 0 ? tunnel::outcome::offline : tunnel::outcome::disabled);
    ads.put(kind::route, r);
    out.flip.add(acked(kind::route, r, ads.push(kind::route, r->name)));
    std::this_thread::sleep_for(milliseconds{5});
  }
  for (int n = 0; n < measured; ++n) {
    const auto name = fmt::format("fresh-{}", n);
    const auto route = played_route("p", name, connector(n), tunnel::outcome::offline);
    const auto scope = played_scope("p", name);
    ads.put(kind::route, route);
    ads.put(kind::scope, scope);
    out.fresh.add(acked(kind::route, route, ads.push(kind::scope, scope->name)));
    std::this_thread::sleep_for(milliseconds{5});
  }
  const auto at_once = [&](int count, tunnel::outcome what, double* cpu) {
    std::vector<gateway::resource_ptr> all;
    std::vector<std::string> names;
    for (int n = 0; n < count; ++n) {
      all.push_back(played_route("p", fmt::format("t-{}", n), connector(n), what));
      names.push_back(all.back()->name);
      ads.put(kind::route, all.back());
    }
    const auto before = cpu_s(running.pid());
    const auto at = ads.push_all(kind::route, names);
    double last = 0;
    for (const auto& r : all) last = std::max(last, acked(kind::route, r, at));
    if (cpu != nullptr) *cpu = cpu_s(running.pid()) - before;
    return last;
  };
  out.burst_ms = at_once(std::min(1'000, tunnels), tunnel::outcome::invalid_addressing, nullptr);
  for (int n = 0; n < rounds; ++n) {
    at_once(many, tunnel::outcome::live, nullptr);
    out.gone.add(at_once(many, tunnel::outcome::offline, &out.gone_cpu_s));
    out.back.add(at_once(many, tunnel::outcome::live, &out.back_cpu_s));
  }
  return out;
}

// ---- Warren ----

struct town {
  stack::stack& world;
  const api& server;
  simulated_agents& agents;
  instance_words& words;
  int connectors, projects, tunnels;

  std::string project(int connector) const { return fmt::format("project-{}", connector % projects); }
  std::string connector(int c) const { return fmt::format("home-{}", c); }
  std::string full(int c) const { return project(c) + "/" + connector(c); }
  int connector_of(int t) const { return t % connectors; }
  static std::string host(int t) { return fmt::format("t-{}.bench.example", t); }

  void create(const std::string& in, const std::string& name, const std::string& behind, const std::string& request_id = {}) const {
    adminv1::CreateTunnelRequest q;
    q.set_parent("projects/" + in);
    q.set_tunnel_id(name);
    q.set_request_id(request_id);
    q.mutable_tunnel()->add_hostnames(name + ".bench.example");
    q.mutable_tunnel()->set_gateway_class("demo");
    auto* rule = q.mutable_tunnel()->add_rules();
    rule->set_connector(behind);
    rule->set_target("http://127.0.0.1:8080");
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{30});
    adminv1::Tunnel answer;
    must(server.tunnels->CreateTunnel(&context, q, &answer), name);
  }
  void enable(int t, bool is, const std::string& request_id) const {
    adminv1::UpdateTunnelRequest q;
    q.mutable_tunnel()->set_name(fmt::format("projects/{}/tunnels/t-{}", project(connector_of(t)), t));
    q.mutable_tunnel()->set_enabled(is);
    q.mutable_update_mask()->add_paths("enabled");
    q.set_request_id(request_id);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{30});
    adminv1::Tunnel answer;
    must(server.tunnels->UpdateTunnel(&context, q, &answer), q.tunnel().name());
  }
  void remove(const std::string& in, const std::string& name) const {
    adminv1::DeleteTunnelRequest q;
    q.set_name(fmt::format("projects/{}/tunnels/{}", in, name));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{30});
    adminv1::Tunnel answer;
    must(server.tunnels->DeleteTunnel(&context, q, &answer), q.name());
  }
  void in_parallel(int from, int to, const std::function<void(int)>& what) const {
    std::atomic<int> next{from};
    std::mutex mutex;
    std::string wrong;
    std::vector<std::thread> callers;
    for (int i = 0; i < 16; ++i)
      callers.emplace_back([&] {
        try {
          for (int n = next++; n < to; n = next++) what(n);
        } catch (const std::exception& e) {
          next = to;
          const std::lock_guard lock{mutex};
          wrong = e.what();
        }
      });
    for (auto& each : callers) each.join();
    if (!wrong.empty()) throw stack::stack_error(wrong);
  }
  void settle(const std::string& gateway = gateway_name) const {
    if (!words.await_caught_up(gateway, patience)) throw stack::stack_error(gateway + " does not catch up");
  }
  /// Milliseconds from the commits of these requests, as PostgreSQL has them, to when each was acknowledged.
  sample since_commits(const std::map<std::string, clock::time_point>& acknowledged) const {
    // PostgreSQL's clock is the wall's: the distance between the two clocks is the same for all of them.
    const auto wall_us = std::chrono::duration<double, std::micro>(std::chrono::system_clock::now().time_since_epoch()).count();
    const auto steady = clock::now();
    sample out;
    std::istringstream rows{world.sql("SELECT request_id, (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM admin_request")};
    for (std::string line; std::getline(rows, line);) {
      const auto bar = line.find('|');
      const auto it = acknowledged.find(line.substr(0, bar));
      if (bar == std::string::npos || it == acknowledged.end()) continue;
      const auto committed_us_ago = wall_us - std::stod(line.substr(bar + 1));
      out.add(committed_us_ago / 1000 - ms_between(it->second, steady));
    }
    return out;
  }
};

struct flips {
  sample committed, called;
  double bytes_each = 0, responses_each = 0;
};

/// One tunnel after the other is switched off.
flips flip_one_by_one(const town& t, const std::string& label, int count) {
  flips out;
  t.settle();
  std::this_thread::sleep_for(milliseconds{1'200});  // counters are read once a second
  const auto bytes = t.world.metric("warren_gateway_push_bytes_total"), responses = t.world.metric("warren_gateway_pushes_total");
  std::map<std::string, clock::time_point> acknowledged;
  t.words.forget();
  for (int n = 0; n < count; ++n) {
    const auto which = n * 7 % t.tunnels;
    const auto id = fmt::format("{}-{}", label, n);
    const auto begun = clock::now();
    t.enable(which, false, id);
    const auto commit = t.words.await_tunnel(fmt::format("{}/t-{}", t.project(t.connector_of(which)), which), false, patience);
    const auto ack = commit ? t.words.await_ack(gateway_name, *commit, patience) : std::nullopt;
    if (!ack) throw stack::stack_error(id + " is not acknowledged");
    acknowledged[id] = *ack;
    out.called.add(ms_between(begun, *ack));
    std::this_thread::sleep_for(milliseconds{15});
  }
  out.committed = t.since_commits(acknowledged);
  t.settle();
  std::this_thread::sleep_for(milliseconds{1'200});
  out.bytes_each = (t.world.metric("warren_gateway_push_bytes_total") - bytes) / count;
  out.responses_each = (t.world.metric("warren_gateway_pushes_total") - responses) / count;
  t.in_parallel(0, count, [&](int n) { t.enable(n * 7 % t.tunnels, true, {}); });
  t.settle();
  return out;
}

std::vector<std::string> connectors_from(const town& t, int from, int count) {
  std::vector<std::string> out;
  for (int c = from; c < from + count; ++c) out.push_back(t.full(c));
  return out;
}
std::vector<std::string> hosts_of(const town& t, int connectors_from_, int count) {
  std::vector<std::string> out;
  for (int n = 0; n < t.tunnels; ++n)
    if (const auto c = t.connector_of(n); c >= connectors_from_ && c < connectors_from_ + count) out.push_back(town::host(n));
  return out;
}

/// From `begun` to the last acknowledgement of what these connectors' change is.
double all_acknowledged(const town& t, const std::vector<std::string>& which, bool online, clock::time_point begun,
                        double* committed = nullptr) {
  auto last = begun;
  for (const auto& c : which) {
    const auto commit = t.words.await_connector(c, online, patience);
    const auto ack = commit ? t.words.await_ack(gateway_name, *commit, patience) : std::nullopt;
    if (!ack) throw stack::stack_error(c + (online ? " online" : " offline") + " is not acknowledged");
    last = std::max(last, *ack);
    if (committed != nullptr) *committed = std::max(*committed, ms_between(begun, commit->heard));
  }
  return ms_between(begun, last);
}

struct growth {
  double half_way_mb = 0;
  double kb_each = 0;  ///< for each change of the second half, by least squares
};
growth growth_of(const std::vector<std::pair<double, double>>& mb_by_changes) {
  const auto half = mb_by_changes.size() / 2;
  if (mb_by_changes.size() < 8) throw stack::stack_error("the churn was too short to say anything");
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (auto i = half; i < mb_by_changes.size(); ++i) {
    const auto [changes, mb] = mb_by_changes[i];
    n += 1;
    x += changes;
    y += mb;
    xx += changes * changes;
    xy += changes * mb;
  }
  return {mb_by_changes[half].second, (n * xy - x * y) / (n * xx - x * x) * 1024};
}

struct churned {
  double changes = 0;
  growth warren, envoy;
};

/// Everything that happens in a day, without a pause: tunnels are created, switched and deleted, agents leave and come
/// back, connectors move. What is kept of anything that ever was would show.
churned churn(const town& t, std::chrono::seconds how_long, const std::function<void(const std::string&)>& say) {
  constexpr int batch = 200, leaving = 10, moving = 20;
  churned out;
  std::vector<std::pair<double, double>> warren, envoy;
  const auto end = clock::now() + how_long;
  auto said = clock::now();
  for (int round = 0; clock::now() < end; ++round) {
    const auto name = [&](int n) { return fmt::format("churn-{}-{}", round, n); };
    t.in_parallel(0, batch, [&](int n) { t.create(t.project(n % t.connectors), name(n), t.connector(n % t.connectors)); });
    t.in_parallel(0, batch, [&](int n) { t.enable((round * batch + n) % t.tunnels, false, {}); });
    t.in_parallel(0, batch, [&](int n) { t.enable((round * batch + n) % t.tunnels, true, {}); });
    const auto who = connectors_from(t, 5 + round * leaving % (t.connectors - 5 - leaving), leaving);
    t.words.forget();
    auto at = t.agents.stop(who);
    all_acknowledged(t, who, false, at);
    at = t.agents.start(who);
    all_acknowledged(t, who, true, at);
    t.agents.move(connectors_from(t, 5 + round * moving % (t.connectors - 5 - moving), moving));
    t.in_parallel(0, batch, [&](int n) { t.remove(t.project(n % t.connectors), name(n)); });
    t.settle();
    out.changes += 4 * batch + 2 * leaving + moving;
    warren.emplace_back(out.changes, resident_mb(t.world.warrend().pid()));
    envoy.emplace_back(out.changes, resident_mb(t.world.envoy().pid()));
    if (clock::now() < said + std::chrono::seconds{10}) continue;
    said = clock::now();
    say(fmt::format("{:.0f} changes: Warren {:.1f} MB, Envoy {:.1f} MB", out.changes, warren.back().second, envoy.back().second));
  }
  out.warren = growth_of(warren);
  out.envoy = growth_of(envoy);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  command_line line{"xds", "10,000 tunnels on 1,000 connectors behind an Envoy."};
  int tunnels = 10'000, connectors = 1'000, projects = 20, measured = 300, lives = 100, leases = 15, rounds = 3, soak_s = 0;
  std::vector<std::string> skipped;
  line.app.add_option("--tunnels", tunnels, "Spread over the connectors")->check(CLI::Range(100, 1'000'000));
  line.app.add_option("--connectors", connectors, "Simulated agents")->check(CLI::Range(100, 100'000));
  line.app.add_option("--projects", projects, "They are spread over")->check(CLI::Range(1, 1'000));
  line.app.add_option("--measured", measured, "Changes one after another, of each sort")->check(CLI::Range(1, 100'000));
  line.app.add_option("--lives", lives, "Tunnels created with a visitor waiting")->check(CLI::Range(0, 100'000));
  line.app.add_option("--leases", leases, "Leases that end, 5 at a time")->check(CLI::Range(0, 1'000));
  line.app.add_option("--rounds", rounds, "Of each burst")->check(CLI::Range(1, 1'000));
  line.app.add_option("--soak-s", soak_s, "Churn for so long; 0: none")->check(CLI::Range(0, 86'400));
  line.app.add_option("--skip", skipped, "alone, life, move, lease, burst, bye, cold")->delimiter(',');
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    const auto wanted = [&](const std::string& part) { return std::find(skipped.begin(), skipped.end(), part) == skipped.end(); };
    line.say("starting PostgreSQL, NATS, warrend, Envoy");
    auto options = as_by_default();
    options.own_postgres = true;
    options.start = false;
    options.configuration = {{"recorder.mib", "0"}};  // a ring of fixed size: no part of what a tunnel costs
    stack::stack world{options};
    // So that "committed" is PostgreSQL's own word.
    stack::run_sql(world.database_url(), "ALTER SYSTEM SET track_commit_timestamp = on");
    world.postgres().stop();
    world.postgres().start();
    world.start_warrend();
    world.start_envoy();
    world.must_ctl({"connector-class", "create", "local", "--allow", "127.0.0.0/8"});
    const auto empty_mb = resident_mb(world.warrend().pid());
    const api server{world.admin_port()};
    simulated_agents agents{{world.nats_url(), "agent", world.nats_password()}};
    instance_words words{world};
    town t{world, server, agents, words, connectors, projects, tunnels};
    const scrapes read{[&] { return world.envoy_admin(); }};
    report out{"xds"};

    // Ten tunnels.
    for (int c = 0; c < 10; ++c) agents.add(server, t.project(c), t.connector(c), std::chrono::seconds{c < 5 ? 3 : 30});
    if (!agents.await_sessions(patience)) throw stack::stack_error("the agents got no sessions");
    for (int n = 0; n < 10; ++n) t.create(t.project(n), fmt::format("t-{}", n), t.connector(n));
    auto few = t;
    few.connectors = few.tunnels = 10;
    const auto all_200 = [](const head& h) { return h.status == 200; };
    if (sweep(world.visitor_port(), hosts_of(few, 0, 10), all_200, patience).missing != 0) throw stack::stack_error("the first tunnels do not work");
    line.say("10 tunnels: flips");
    const auto at_few = flip_one_by_one(few, "few", 10);

    limits_of_envoy alone;
    if (wanted("alone")) {
      line.say("Envoy alone");
      alone = envoy_alone(world.envoy().what().path, connectors, tunnels, measured, (connectors - 5) * (tunnels / connectors), rounds);
    }

    line.say(fmt::format("loading {} connectors and {} tunnels", connectors, tunnels));
    const auto loading = clock::now();
    t.in_parallel(10, connectors, [&](int c) { agents.add(server, t.project(c), t.connector(c)); });
    if (!agents.await_sessions(patience)) throw stack::stack_error("the agents got no sessions");
    t.in_parallel(10, tunnels, [&](int n) { t.create(t.project(t.connector_of(n)), fmt::format("t-{}", n), t.connector(t.connector_of(n))); });
    t.settle();
    const auto first = sweep(world.visitor_port(), hosts_of(t, 0, connectors), all_200, patience);
    if (first.missing != 0) throw stack::stack_error(fmt::format("{} tunnels do not work", first.missing));
    out.figure("loaded: tunnels created and working", (tunnels - 10) / (ms_between(loading, clock::now()) / 1000), "/s");
    const auto loaded_mb = resident_mb(world.warrend().pid());
    std::this_thread::sleep_for(limits::tunnel_passivate_after + std::chrono::seconds{2});
    const auto at_rest_mb = resident_mb(world.warrend().pid());

    line.say("flips, one after the other");
    const auto flipped = flip_one_by_one(t, "flip", measured);
    line.say("new tunnels, one after the other");
    sample fresh_called;
    std::map<std::string, clock::time_point> fresh;
    words.forget();
    for (int n = 0; n < measured; ++n) {
      const auto name = fmt::format("fresh-{}", n), in = t.project(n % connectors);
      const auto begun = clock::now();
      t.create(in, name, t.connector(n % connectors), name);
      const auto commit = words.await_tunnel(in + "/" + name, true, patience);
      const auto ack = commit ? words.await_ack(gateway_name, *commit, patience) : std::nullopt;
      if (!ack) throw stack::stack_error(name + " is not acknowledged");
      fresh[name] = *ack;
      fresh_called.add(ms_between(begun, *ack));
      std::this_thread::sleep_for(milliseconds{15});
    }
    const auto fresh_committed = t.since_commits(fresh);
    const auto or_twice = [&](double bound, double limit) { return std::max(bound, 2 * limit); };
    out.leg("flip: committed → acknowledged", flipped.committed, {or_twice(5, alone.flip.percentile(50)), or_twice(25, alone.flip.percentile(99)), {}});
    out.leg("flip: called → acknowledged", flipped.called);
    out.leg("new tunnel: committed → acknowledged", fresh_committed, {or_twice(15, alone.fresh.percentile(50)), or_twice(50, alone.fresh.percentile(99)), {}});
    out.leg("new tunnel: called → acknowledged", fresh_called);
    if (wanted("alone")) {
      out.leg("limit: Envoy alone, flip", alone.flip);
      out.leg("limit: Envoy alone, new tunnel", alone.fresh);
    }

    if (wanted("life") && lives > 0) {
      line.say("created → Ready, created → 200");
      sample ready, served;
      tunnel_watch watch{server, t.project(0)};
      for (int n = 0; n < lives; ++n) {
        const auto name = fmt::format("life-{}", n);
        gaze visitor{world.visitor_port(), name + ".bench.example", std::chrono::microseconds{1'000}};
        visitor.await_status(404, clock::time_point{}, patience);
        const auto begun = clock::now();
        t.create(t.project(0), name, t.connector(0));
        const auto life = watch.await_ready(name, patience);
        const auto seen = visitor.await_status(200, begun, patience);
        if (!life || !seen) throw stack::stack_error(name + " does not become Ready");
        ready.add(ms_between(begun, *life->ready));
        served.add(ms_between(begun, seen->answered));
      }
      const goal bound{or_twice(15, alone.fresh.percentile(50)), or_twice(50, alone.fresh.percentile(99)), {}};
      out.leg("created → Ready, a visitor polling", ready, bound);
      out.leg("created → first 200", served, bound);
    }

    if (wanted("move")) {
      line.say("a connector with 100 tunnels moves");
      agents.add(server, t.project(0), "wide");
      t.in_parallel(0, 100, [&](int n) { t.create(t.project(0), fmt::format("wide-{}", n), "wide"); });
      std::vector<std::string> hosts;
      for (int n = 0; n < 100; ++n) hosts.push_back(fmt::format("wide-{}.bench.example", n));
      if (sweep(world.visitor_port(), hosts, all_200, patience).missing != 0) throw stack::stack_error("the wide connector does not work");
      sample live;
      double pushes = 0;
      std::size_t late = 0, failed = 0, asked = 0;
      const auto place = [&] { return world.metric("warren_gateway_pushes_total"); };
      for (int n = 0; n < 20; ++n) {
        t.settle();
        std::this_thread::sleep_for(milliseconds{1'200});
        const auto before = place();
        const auto door = n % 2 == 0 ? "back" : "front";
        std::vector<std::unique_ptr<gaze>> visitors;
        for (const std::size_t v : {0, 33, 66, 99}) visitors.push_back(std::make_unique<gaze>(world.visitor_port(), hosts[v], std::chrono::microseconds{2'000}));
        words.forget();
        const auto begun = agents.move({t.project(0) + "/wide"});
        live.add(all_acknowledged(t, {t.project(0) + "/wide"}, true, begun));
        late += disagreeing(world.visitor_port(), hosts, [&](const head& h) { return h.door == door; });
        for (const auto& v : visitors) failed += v->total() - v->count(200), asked += v->total();
        std::this_thread::sleep_for(milliseconds{1'200});
        pushes = std::max(pushes, place() - before);
      }
      out.leg("100 tunnels' connector reports an address → all live", live, {{}, {}, 50});
      out.figure("visits after that which met the old address", static_cast<double>(late), "", 0);
      out.figure("responses to the gateway for it, most", pushes, "", 1);
      out.figure("requests meanwhile", static_cast<double>(asked), "");
      out.figure("of these failed", static_cast<double>(failed), "", 0);
    }

    if (wanted("lease") && leases > 0) {
      line.say("leases end, and heartbeats come again");
      sample ended, back;
      for (int done = 0; done < leases;) {
        const int many = std::min(5, leases - done);
        std::vector<std::unique_ptr<gaze>> visitors;
        for (int c = 0; c < many; ++c) visitors.push_back(std::make_unique<gaze>(world.visitor_port(), town::host(c), std::chrono::microseconds{2'000}));
        const auto who = connectors_from(t, 0, many);
        const auto muted = agents.mute(who, true);
        for (int c = 0; c < many; ++c) {
          const auto seen = visitors[static_cast<std::size_t>(c)]->await_status(503, muted, patience);
          const auto last = agents.last_word(who[static_cast<std::size_t>(c)]);
          if (!seen || !last) throw stack::stack_error("a lease does not end");
          ended.add(ms_between(*last + std::chrono::seconds{3}, seen->answered));
        }
        const auto from = agents.mute(who, false);
        for (int c = 0; c < many; ++c) {
          const auto& name = who[static_cast<std::size_t>(c)];
          std::optional<clock::time_point> said;
          stack::poll_until([&] { return (said = agents.first_heartbeat(name, from)).has_value(); }, patience);
          const auto seen = said ? visitors[static_cast<std::size_t>(c)]->await_status(200, *said, patience) : std::nullopt;
          if (!seen) throw stack::stack_error("a connector does not come back");
          back.add(ms_between(*said, seen->answered));
        }
        done += many;
      }
      out.leg("lease end → 503", ended, {{}, {}, 100});
      out.leg("first heartbeat → 200", back, {{}, 50, {}});
    }

    const auto burst = [&](const std::string& what, int many, double bound) {
      const auto who = connectors_from(t, 5, many);  // not those whose leases are short
      const auto hosts = hosts_of(t, 5, many);
      sample down, up;
      std::size_t late = 0, foreign = 0;
      for (int n = 0; n < rounds; ++n) {
        std::vector<std::unique_ptr<gaze>> visitors;
        for (std::size_t v = 0; v < 4; ++v) visitors.push_back(std::make_unique<gaze>(world.visitor_port(), hosts[v * hosts.size() / 4], std::chrono::microseconds{20'000}));
        for (const bool online : {false, true}) {
          t.settle();
          words.forget();
          const auto warren_before = cpu_s(world.warrend().pid()), envoy_before = cpu_s(world.envoy().pid());
          const auto begun = online ? agents.start(who) : agents.stop(who);
          double committed = 0;
          const auto acknowledged = all_acknowledged(t, who, online, begun, &committed);
          (online ? up : down).add(acknowledged);
          line.say(fmt::format("{} {}: committed after {:.0f} ms, acknowledged after {:.0f} ms; CPU of warrend {:.2f} s, of Envoy {:.2f} s", what,
                               online ? "back" : "gone", committed, acknowledged,
                               cpu_s(world.warrend().pid()) - warren_before, cpu_s(world.envoy().pid()) - envoy_before));
          late += disagreeing(world.visitor_port(), hosts, [&](const head& h) { return online ? h.status == 200 : h.reason == "connector-offline"; });
        }
        for (const auto& v : visitors) foreign += v->total() - v->count(200) - v->count(503);
      }
      // The same as visitors have it, whatever the reason that a 503 gives: in a round of its own, as to ask everywhere costs.
      std::array<sample, 2> seen;
      for (const bool online : {false, true}) {
        t.settle();
        const auto begun = online ? agents.start(who) : agents.stop(who);
        const auto found = sweep(world.visitor_port(), hosts, [&](const head& h) { return h.status == (online ? 200 : 503); }, patience);
        if (found.missing != 0) throw stack::stack_error(fmt::format("{}: {} host names are not answered as they should", what, found.missing));
        foreign += found.foreign;
        seen.at(online ? 1 : 0).add(ms_between(begun, found.last));
      }
      out.leg(what + " say bye → each host name, visited one by one, has answered 503", seen[0]);
      out.leg(what + " say hello → each has answered 200", seen[1]);
      out.leg(what + " say bye → 503 everywhere", down, {{}, {}, bound});
      out.leg(what + " say hello → 200 everywhere", up, {{}, {}, bound});
      out.figure(what + ": visits after that which met something else", static_cast<double>(late), "", 0);
      out.figure(what + ": answers meanwhile that were neither 200 nor 503", static_cast<double>(foreign), "", 0);
    };
    const int tenth = std::clamp(1'000 * connectors / tunnels, 1, connectors - 5);
    if (wanted("burst")) {
      line.say("1,000 flips at once");
      burst(fmt::format("{} connectors, {} tunnels,", tenth, tenth * tunnels / connectors), tenth, 1'000);
    }
    if (wanted("bye")) {
      line.say("all connectors at once");
      burst(fmt::format("{} connectors, {} tunnels,", connectors - 5, (connectors - 5) * (tunnels / connectors)), connectors - 5, 1'000);
    }

    if (wanted("cold")) {
      line.say("an empty Envoy");
      t.settle();
      // Its visitors are the same; the kernel spreads them over both from here on.
      world.must_ctl({"gateway", "create", "gw-2", "--class", "demo"});
      const stack::scratch place{"warren-cold"};
      const auto folder = place.folder("envoy");
      stack::write_file(folder / "envoy.yaml", world.must_ctl({"gateway", "bootstrap", "gw-2"}).out);
      const auto before = cpu_s(world.warrend().pid());
      const auto begun = clock::now();
      stack::process cold{{.name = "gw-2", .path = world.envoy().what().path,
                           .arguments = {"-c", (folder / "envoy.yaml").string(), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"},
                           .log = folder / "log"}};
      const auto done = words.await_caught_up("gw-2", patience);
      if (!done) throw stack::stack_error("an empty Envoy does not catch up");
      out.figure(fmt::format("{} tunnels into an empty Envoy", tunnels), ms_between(begun, *done) / 1000, "s", 10);
      out.figure("its memory then", resident_mb(cold.pid()), "MB", 400);
      out.figure("CPU of warrend for it", cpu_s(world.warrend().pid()) - before, "s");
    }

    if (soak_s > 0) {
      line.say(fmt::format("{} s of churn", soak_s));
      // What a day's changes would add, if it went on as in the second half of the run.
      constexpr double day = 10;  // changes of each tunnel
      const auto run = churn(t, std::chrono::seconds{soak_s}, [&](const std::string& sentence) { line.say(sentence); });
      out.figure("churn: changes", run.changes, "");
      out.figure("churn: days at ten changes of each tunnel", run.changes / (day * tunnels), "");
      out.figure("churn: deleted ones that warrend remembers for an hour", world.metric("warren_replica_rows", "deleted"), "");
      for (const auto& [who, grown] : {std::pair{"Warren", run.warren}, std::pair{"Envoy", run.envoy}}) {
        out.figure(fmt::format("churn: {}'s memory half-way", who), grown.half_way_mb, "MB");
        out.figure(fmt::format("churn: {}'s memory, for each 1,000 changes since", who), grown.kb_each * 1'000, "kB");
        out.figure(fmt::format("churn: {}'s memory, a day more", who), grown.kb_each * day * tunnels / 1024 / grown.half_way_mb * 100, "%", 5);
      }
    }

    if (wanted("alone")) {
      out.figure("limit: Envoy alone, all tunnels into an empty one", alone.cold_s, "s");
      out.figure("limit: its memory then", alone.cold_mb, "MB");
      out.figure("limit: Envoy alone, 1,000 flips at once", alone.burst_ms, "ms");
      const auto many = (connectors - 5) * (tunnels / connectors);
      out.leg(fmt::format("limit: Envoy alone, {} tunnels gone at once", many), alone.gone);
      out.leg(fmt::format("limit: Envoy alone, {} tunnels back at once", many), alone.back);
      out.figure("limit: Envoy's CPU for that, gone", alone.gone_cpu_s, "s");
      out.figure("limit: Envoy's CPU for that, back", alone.back_cpu_s, "s");
    }
    out.figure("bytes for each flip at 10 tunnels", at_few.bytes_each, "B", 1'000);
    out.figure(fmt::format("bytes for each flip at {} tunnels", tunnels), flipped.bytes_each, "B", std::min(1'000.0, at_few.bytes_each * 1.1));
    out.figure("responses for each flip", flipped.responses_each, "", 1);
    out.figure("warrend's memory for each tunnel, connectors included: right after loading", (loaded_mb - empty_mb) * 1024 / tunnels, "kB", 6);
    out.figure("the same once nobody asks for them any more", (at_rest_mb - empty_mb) * 1024 / tunnels, "kB", 6);
    out.figure("warrend's memory at the end", resident_mb(world.warrend().pid()), "MB");
    out.leg("Prometheus reads Envoy's statistics (every 15 s)", read.taken());
    out.note(fmt::format("{} tunnels on {} connectors in {} projects; {} changes of each sort", tunnels, connectors, projects, measured));
    return out;
  });
}
