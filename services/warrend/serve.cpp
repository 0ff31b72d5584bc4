// services/warrend/serve.cpp -- wires the rooms together and takes them down in order. Decides nothing.
#include "services/warrend/serve.hpp"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <future>
#include <iostream>
#include <random>
#include <thread>

#include <fmt/format.h>
#include <openssl/rand.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "actors/connector/silence_actor.hpp"
#include "actors/core/listen.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"
#include "actors/core/wire.hpp"
#include "actors/placement/actor.hpp"
#include "actors/replay/redact.hpp"
#include "actors/replay/replay.hpp"
#include "services/admin/server.hpp"
#include "services/bus/actor.hpp"
#include "services/bus/connection.hpp"
#include "services/bus/disconnect_watch.hpp"
#include "services/bus/user_jwt.hpp"
#include "services/dialer/dialer.hpp"
#include "services/gateway/bootstrap.hpp"
#include "services/gateway/programmed.hpp"
#include "services/gateway/xds.hpp"
#include "services/hook/announcer.hpp"
#include "services/hook/fleets.hpp"
#include "services/hook/server.hpp"
#include "services/replica/actor.hpp"
#include "services/replica/view.hpp"
#include "services/store/actor.hpp"
#include "services/store/migrate.hpp"
#include "services/telemetry/health.hpp"
#include "services/telemetry/logging.hpp"
#include "services/telemetry/metrics.hpp"
#include "services/telemetry/recorder.hpp"
#include "services/warrend/ports.hpp"
#include "services/warrend/nats_keys.hpp"
#include "services/warrend/supervisor.hpp"

namespace warren {

namespace {

std::int64_t wall_ms() {
  return std::chrono::duration_cast<millis>(std::chrono::system_clock::now().time_since_epoch()).count();
}
std::int64_t steady_ms() {
  return std::chrono::duration_cast<millis>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string secret(std::size_t bytes) {
  std::string out(bytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(out.data()), static_cast<int>(bytes)) != 1)
    throw std::runtime_error("the system has no randomness to give");
  return out;
}

std::uint64_t random_number() {
  thread_local std::mt19937_64 engine{std::random_device{}()};
  return engine();
}

constexpr millis go_away_over{500};       // gateways and watchers do not all arrive elsewhere at once
constexpr millis bus_ping{600};           // three without an answer, 1.8 s at most: NATS is away, also without a word
constexpr millis drain_patience{15'000};  // of the 30 s that a stop may take

/// Blocks until SIGTERM or SIGINT; SIGHUP reads the log level again, SIGUSR1 drains and goes on.
class signals {
public:
  signals() {
    sigemptyset(&set_);
    for (int s : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&set_, s);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);  // before any thread starts, so that all inherit it
    std::signal(SIGPIPE, SIG_IGN);
  }
  int wait() const {
    int got = 0;
    sigwait(&set_, &got);
    return got;
  }

private:
  sigset_t set_{};
};

int fail(const std::string& sentence) {
  std::cerr << "warrend: " << sentence << '\n';
  return 1;
}

/// What gateways' bootstraps name: the address that they reach this instance by.
listen_address advertised_endpoint(const config::effective& c, int xds_port) {
  const auto text = c.text("xds.advertise").empty() ? c.text("xds.listen") : c.text("xds.advertise");
  auto at = parse_listen(text).value_or(listen_address{text, false, 0, ""});
  if (at.port == 0) at.port = xds_port;
  return at;
}

void reload_log_level(const config::loaded& again) {
  for (const auto& e : again.errors) spdlog::warn("settings are kept as they are: {}", e);
  if (!again.errors.empty()) return;
  const auto level = again.config.text("log.level");
  if (telemetry::set_log_level(level)) spdlog::info("log.level is {}", level);
  else spdlog::warn("log.level is kept as it is: there is no level {}", level);
}

hook::server_config hook_options(const config::effective& c) {
  hook::server_config o;
  o.listen = c.text("hook.listen");
  o.tls_certificate = c.text("hook.tls_certificate");
  o.tls_key = c.text("hook.tls_key");
  o.tls_client_ca = c.text("hook.tls_client_ca");
  o.projects = hook::namespaces{c.list("hook.namespaces")};
  o.settings.listener = c.text("hook.listener");
  o.settings.reason_headers = c.text("hook.reason_headers") == "on";
  const auto websockets = c.text("hook.websocket_upgrade");
  o.settings.websockets = websockets == "on"    ? hook::websocket_upgrade::always
                          : websockets == "off" ? hook::websocket_upgrade::never
                                                : hook::websocket_upgrade::harmless;
  return o;
}

bus::connection_options bus_options(const config::effective& c, const std::string& user_key, std::string connection) {
  bus::connection_options o;
  o.urls = c.list("nats.urls");
  o.name = std::move(connection);
  o.ping_interval = bus_ping;
  o.user = c.text("nats." + user_key + "user");
  o.password = c.text("nats." + user_key + "password");
  o.credentials_file = c.text("nats." + user_key + "credentials_file");
  return o;
}

/// One recording for each stretch that the flight recorder has at this moment; those that are dropped before their
/// turn comes are left out. Secrets are replaced with the help of a key that nobody keeps.
std::vector<telemetry::bundle_part> diagnostic_parts(const config::effective& c, instance_id me, const std::string& version,
                                                     const telemetry::flight_recorder& record,
                                                     const telemetry::health& health, const telemetry::metrics& count) {
  const auto name = c.text("instance.name");
  std::vector<telemetry::bundle_part> parts{
      {"version.txt",
       [=] {
         return fmt::format("warrend {}\ninstance {} ({})\nsaved_at_ms {}\nsteady_ms {}\nrecording format {}\n", version, name,
                            me, wall_ms(), steady_ms(), replay::format_known);
       }},
      {"config.txt", [&c] { return config::print(c); }},
      {"health.json", [&health] { return health.json() + '\n'; }},
      {"metrics.txt", [&count] { return count.text(); }},
  };
  const auto secretless = std::make_shared<replay::redaction>(secret(32));
  for (const auto& which : record.stretches())
    parts.push_back({fmt::format("recording/{:02}-{:08}.pb", which.shard, which.segment), [=, &record] {
                       auto r = record.unpack(which);
                       if (!r) return std::string{};
                       r->set_format(replay::format_known);
                       r->set_version(version);
                       r->set_instance(name);
                       secretless->apply(*r);
                       return r->SerializeAsString();
                     }});
  return parts;
}

}  // namespace

int serve(const config::effective& c, const std::function<config::loaded()>& reload) {
  const signals stop_signals;
  const auto started_ms = steady_ms();
  const auto name = c.text("instance.name");
  const auto format = c.text("log.format");
  if (!telemetry::set_up_logging(name, c.text("log.level"),
                                 format == "json"   ? telemetry::log_format::json
                                 : format == "text" ? telemetry::log_format::text
                                                    : telemetry::log_format::automatic))
    return fail("log.level: there is no level " + c.text("log.level"));
  telemetry::metrics count{name};
  telemetry::flight_recorder record{static_cast<std::size_t>(c.number("recorder.mib")) * 1024 * 1024, &count};
  telemetry::health health;
  for (const auto* dependency : {"database", "bus", "cache", "placement"}) health.set(dependency, false, "starting");

  // An instance that cannot be reached must not take anything upon itself.
  if (const auto misfit = unavailable_port(c); !misfit.empty()) return fail(misfit);

  // ---- what the database says first ----
  const auto url = c.text("database.url");
  int partitions = 0;
  try {
    if (auto misfit = schema_misfit(url); !misfit.empty()) return fail(misfit);
    partitions = partitions_of_database(url);
  } catch (const std::exception& e) {
    return fail(std::string{"the database cannot be asked: "} + e.what());
  }
  std::atomic<bool> stepping_down{false};
  const auto history = std::make_shared<lineage>();  // what any connection finds out about the database's life
  auto leases = std::make_shared<lease_store>(lease_store_config{
      .conninfo = url,
      .name = name,
      .ttl = millis{c.number("instance.lease_ms")},
      .history = history,
      .on_lost =
          [&](const std::string& reason) {
            spdlog::error("stepping down: {}", reason);
            if (!stepping_down.exchange(true)) kill(getpid(), SIGTERM);
          }});
  if (auto error = leases->start(); !error.empty()) return fail(error);
  const auto me = leases->id();

  // ---- NATS ----
  std::optional<bus::nkey> account;
  if (const auto file = c.text("nats.account_seed_file"); !file.empty()) {
    try {
      account = read_account_seed(file);
    } catch (const std::exception& e) {
      return fail(std::string{"nats.account_seed_file: "} + e.what());
    }
  }
  std::shared_ptr<bus::connection> link;
  try {
    link = bus::connection::open(bus_options(c, "", bus::instance_connection_name(name, me)), &count);
  } catch (const std::invalid_argument& e) {
    return fail(std::string{"nats: "} + e.what());
  }

  // ---- actors ----
  caf::actor_system_config caf_config;
  caf_config.set("scheduler.policy", caf::atom("sharing"));  // work stealing collapses under foreign threads
  caf_config.set("scheduler.max-threads", static_cast<std::size_t>(c.number("threads")));
  caf_config.set("scheduler.max-throughput", limits::actor_turn_messages);
  caf::actor_system system{caf_config};
  replica::view view;
  view.set_partitions(partitions, started_ms);

  // Callbacks of the store and of the gateways run before their receivers exist; they find them here.
  struct receivers {
    replica::replica_actor replica;
    placement_actor placement;
  };
  auto to = std::make_shared<receivers>();
  std::atomic<bool> wired{false};

  const auto publish_revision = [link](const busv1::Revision& r) {
    auto bytes = r.SerializeAsString();
    if (bytes.size() > limits::bus_message_bytes_max) {
      busv1::Revision small = r;
      small.clear_rows();
      small.set_truncated(true);  // the others fetch it
      bytes = small.SerializeAsString();
    }
    link->publish(bus::revision_subject(r.partition()), bytes);
  };
  auto db = std::make_shared<store>(store_config{
      .conninfo = url,
      .instance = me,
      .lanes = static_cast<int>(c.number("database.lanes")),
      .lease = millis{c.number("instance.lease_ms")},
      .count = &count,
      .history = history,
      .on_commit =
          [&, to, publish_revision](const busv1::Revision& r) {
            if (wired) caf::anon_send(to->replica, committed{r});
            publish_revision(r);
          },
      .on_rival =
          [&, to](partition_id p) {
            if (wired) caf::anon_send(to->placement, to_partition{p, adopt_rivals{p, 0}});
          },
      .on_state =
          [&](bool up, const std::string& reason) {
            health.set("database", up, reason);
            count.set("warren_store_up", up ? 1 : 0);
          }});
  const auto store_handle = spawn_store(system, db);
  const auto lease_handle = spawn_lease_store(system, leases);
  const auto bus_handle = bus::spawn_bus(system, link, count);
  const auto dialer_handle = dialer::spawn_dialer(system, count);
  to->replica = replica::spawn_replica(
      system, view, store_handle, bus_handle,
      {.partitions = partitions, .instance = me, .wall_ms = wall_ms, .random = random_number}, count);
  const auto pace = std::make_shared<connector::heartbeat_pace>(c.number("agent.heartbeat_interval_ms"));
  const auto silence_handle = connector::spawn_silence(
      system,
      [&, to](bool on) {
        if (wired) caf::anon_send(to->placement, mass_silence{on});
        health.note("mass_silence", on ? "many agents fell silent at once: none of them is declared offline" : "");
      },
      count, pace);

  std::mutex placement_mutex;
  admin::placement_info last_placement;
  last_placement.error = "nothing is known yet";
  placement::placement_context placing;
  placing.leases = lease_handle;
  placing.me = me;
  placing.lease = millis{c.number("instance.lease_ms")};
  auto& entity = placing.partition.entity;
  entity.store = store_handle;
  entity.bus = bus_handle;
  entity.dialer = dialer_handle;
  entity.silence = silence_handle;
  entity.count = &count;
  entity.record = &record;
  entity.heartbeat_interval_ms = pace->asked_ms;
  entity.loaded_interval_ms = [pace] { return pace->interval_ms.load(); };
  entity.wall_ms = wall_ms;
  entity.random = random_number;
  entity.fresh_uid = [] { return protocol::hex(secret(16)); };
  entity.secret = secret;
  placing.partition.partitions = partitions;
  placing.partition.started_steady_ms = started_ms;
  placing.partition.bus_connected = link->connected();
  placing.partition.find_class = [&view, partitions](const std::string& wanted) {
    return view.read([&](const replica::tables& t) {
      partition::partition_context::class_answer a;
      auto reserved = t.partitions.find(partitions);
      a.known = reserved != t.partitions.end() && reserved->second.warm;
      auto it = t.connector_classes.find(wanted);
      a.found = it != t.connector_classes.end();
      if (a.found)
        a.allowed_networks.assign(it->second->allowed_networks().begin(), it->second->allowed_networks().end());
      return a;
    });
  };
  placing.partition.registered_gateways = [&view, partitions](const std::string& gateway_class) {
    return view.read([&](const replica::tables& t) -> std::optional<std::set<std::string>> {
      auto reserved = t.partitions.find(partitions);
      if (reserved == t.partitions.end() || !reserved->second.warm) return std::nullopt;
      std::set<std::string> names;
      for (const auto& [gateway_name, row] : t.gateways)
        if (row->class_() == gateway_class) names.insert(gateway_name);
      return names;
    });
  };
  placing.partition.offline_connectors = [&view](partition_id p, const std::pair<std::string, std::string>& after, std::size_t limit) {
    using names = partition::partition_context::names;
    return view.read([&](const replica::tables& t) -> std::optional<names> {
      const auto at = t.partitions.find(p);
      if (at == t.partitions.end() || !at->second.warm) return std::nullopt;
      names out;
      for (auto it = t.connectors.upper_bound(after); it != t.connectors.end() && out.size() < limit; ++it)
        if (const auto& row = *it->second; row.partition() == p && !row.online() && row.session() > 0) out.push_back(it->first);
      return out;
    });
  };
  placing.partition.knows_connector = [&view](partition_id p, revision_t at_least, const std::pair<std::string, std::string>& connector) {
    return view.read([&](const replica::tables& t) -> std::optional<bool> {
      const auto at = t.partitions.find(p);
      if (at == t.partitions.end() || !at->second.warm || at->second.revision < at_least) return std::nullopt;
      return t.connectors.contains(connector);
    });
  };
  placing.partition.seen_revision = [&view](partition_id p) {
    return view.read([&](const replica::tables& t) {
      auto it = t.partitions.find(p);
      return it == t.partitions.end() ? revision_t{0} : it->second.revision;
    });
  };
  placing.on_drain_asked = [] { kill(getpid(), SIGUSR1); };  // the main thread drains, as by hand
  placing.on_change = [&](const owned_partitions& o) {
    health.set("placement", o.lease, o.lease ? "" : "the instance lease is not held");
    health.note("partitions", o.behind.empty() ? "" : fmt::format("behind, and so not answering: {}", fmt::join(o.behind, ", ")));
  };
  placing.on_view = [&, lease_ms = c.number("instance.lease_ms")](const placement_view& v) {
    admin::placement_info info;
    for (const auto& i : v.instances)
      info.instances.push_back({i.id, i.name, i.started_at_ms, i.expires_at_ms, i.alive, i.bus_ok, i.draining});
    for (const auto& p : v.partitions) info.partitions.push_back({p.id, p.owner, p.epoch, p.revision});
    info.known_at_ms = steady_ms();
    info.lease_ms = lease_ms;
    std::lock_guard lock{placement_mutex};
    for (auto& each : info.instances)
      for (const auto& before : last_placement.instances)
        if (before.id == each.id) each.heard_at_ms = before.heard_at_ms;
    last_placement = std::move(info);
  };
  // ---- how it ends ----
  std::unique_ptr<bus::disconnect_watch> disconnects;
  std::unique_ptr<hook::announcer> hook_announcer;
  std::unique_ptr<hook::fleets> hook_fleets;
  std::vector<bus::subscription> hook_hears;
  std::unique_ptr<hook::server> hook_server;
  std::unique_ptr<telemetry::http_server> http, hook_http;
  std::unique_ptr<admin::server> admin_server;
  // The only way out from here on: threads of several libraries use each other, and an order of destruction that suits
  // them all does not exist.
  const auto leave = [&](int code) {
    if (admin_server) admin_server->shutdown(millis{2000});
    hook_http.reset();
    http.reset();
    if (disconnects) disconnects->close();
    leases->stop();
    db->stop();
    for (const auto& a : {caf::actor_cast<caf::actor>(to->placement), caf::actor_cast<caf::actor>(to->replica),
                          caf::actor_cast<caf::actor>(silence_handle), caf::actor_cast<caf::actor>(store_handle),
                          caf::actor_cast<caf::actor>(lease_handle), caf::actor_cast<caf::actor>(dialer_handle),
                          caf::actor_cast<caf::actor>(bus_handle)})
      if (a) caf::anon_send_exit(a, caf::exit_reason::kill);
    link->flush(millis{200});
    link->close();
    if (wired) spdlog::info("stopped");
    spdlog::shutdown();
    std::fflush(nullptr);
    _exit(code);  // nothing of value is left; CAF would wait for timers that nobody needs
  };
  const auto give_up = [&](const std::string& sentence) {
    hook_server.reset();
    leave(fail(sentence));
  };

  // ---- gateways ----
  const auto tell_ack = [&wired, to, link](const busv1::GatewayAck& ack) {
    if (!wired) return;  // nothing is served before
    caf::anon_send(to->replica, ack);
    caf::anon_send(to->placement, to_partition{ack.partition(), ack});
    link->publish(bus::ack_subject(ack.partition()), ack.SerializeAsString());
  };
  gateway::gateway_server gateways{
      view,
      {.instance = me,
       .next_stream =
           [db] {
             auto promise = std::make_shared<std::promise<std::optional<std::int64_t>>>();
             auto number = promise->get_future();
             db->next_gateway_stream([promise](std::optional<std::int64_t> n) { promise->set_value(n); });
             auto n = number.get();
             if (!n) throw std::runtime_error("the database is away");
             return *n;
           },
       .on_ack = tell_ack},
      count};
  const int xds_port = gateways.start(c.text("xds.listen"));
  if (xds_port == 0) give_up(fmt::format("xds.listen {} cannot be listened on", c.text("xds.listen")));
  const auto advertised = advertised_endpoint(c, xds_port);

  placing.on_gateways_away = [&](bool away) {
    gateways.turn_away(away, go_away_over);
    health.note("gateways", away ? "sent to other instances: this one does not hear NATS, and they do" : "");
    if (away) spdlog::warn("gateways are sent to other instances, which hear NATS");
    else spdlog::info("gateways are served again");
  };

  // ---- the extension hook ----
  telemetry::health hook_health;
  if (!c.text("hook.listen").empty()) {
    try {
      auto options = hook_options(c);
      hook_announcer = std::make_unique<hook::announcer>(
          view,
          hook::announcer_config{
              .instance = fmt::format("{}/{}", name, me),
              .webhook = c.text("hook.webhook"),
              .projects = options.projects,
              .publish = [link](std::string_view subject, std::string_view json) { link->publish(subject, json); }},
          count);
      for (const auto subject : {hook::retranslate_subject, hook::pulse_subject})
        hook_hears.push_back(link->subscribe(subject, [&a = *hook_announcer](auto on, auto payload, auto) { a.heard(on, payload); }));
      hook_fleets = std::make_unique<hook::fleets>(
          view, hook::fleets_config{.instance = me,
                                    .projects = options.projects,
                                    .next_stream = [db](auto then) { db->next_gateway_stream(std::move(then)); },
                                    .on_ack = tell_ack});
      options.on_answered = [&a = *hook_announcer, &f = *hook_fleets](const hook::answered_call& what) {
        a.answered(what);
        f.answered(what);
      };
      options.on_failed = [&a = *hook_announcer] { a.failed(); };
      options.on_state = [&](bool open, const std::string& reason) {
        health.set("hook", open, reason);
        hook_health.set("hook", open, reason);
        if (open) spdlog::info("the extension hook is open at {}", c.text("hook.listen"));
      };
      options.on_certificates = [&](const std::string& trouble) {
        health.note("hook_certificates", trouble);
        hook_health.note("hook_certificates", trouble);
      };
      health.set("hook", false, "starting");
      hook_health.set("hook", false, "starting");
      hook_server = std::make_unique<hook::server>(view, std::move(options), count);
      if (const auto at = parse_listen(c.text("hook.http_listen")))
        hook_http = std::make_unique<telemetry::http_server>(
            telemetry::http_options{.address = at->host, .port = static_cast<std::uint16_t>(at->port), .healthz_when_ready = true},
            hook_health, [&count] { return count.text(); });
    } catch (const std::exception& e) {
      give_up(fmt::format("hook.listen and hook.http_listen: {}", e.what()));
    }
  }

  // ---- the admin API ----
  admin::server_config api;
  api.listen = c.text("admin.listen");
  api.partitions = partitions;
  api.self = me;
  api.version = "0.1.0";
  api.agents.urls = c.list(c.text("agent.nats_urls").empty() ? "nats.urls" : "agent.nats_urls");
  api.agents.user = c.text("agent.nats_user");
  api.agents.password = c.text("agent.nats_password");
  if (account)
    api.agents.issue = [account = *account](const v1::ConnectorRow& row) {
      return bus::issue_agent_credentials(account, row.partition(), row.project(), bus::kind_connector, row.name(), secret(32),
                                          wall_ms() / 1000);
    };
  else
    spdlog::warn("agents share a user of the bus and can impersonate each other: nats.account_seed_file is not set");
  api.counts = &count;
  api.send = [link](partition_id partition, std::string payload, millis timeout, bus::reply_callback done) {
    link->request(bus::api_subject(partition), payload, timeout, std::move(done));
  };
  // Whoever says that it is alive has renewed its lease, and so reaches the database.
  std::atomic<std::int64_t> alive_heard_ms{0};
  const auto hears_alive = link->subscribe(bus::lease_subject, [&](auto, auto payload, auto) {
    const auto n = wire::parse_lease_notice(payload);
    if (!n || n->what() != "alive") return;
    alive_heard_ms = steady_ms();
    std::lock_guard lock{placement_mutex};
    for (auto& each : last_placement.instances)
      if (each.id == n->instance()) each.heard_at_ms = alive_heard_ms;
  });
  api.database_reached = [&alive_heard_ms, patience_ms = 3 * placement::pulse_of(millis{c.number("instance.lease_ms")}).count()] {
    return steady_ms() - alive_heard_ms <= patience_ms;
  };
  api.drain = admin::drain_over(link);
  api.away = [&health] { return health.wrong_with({"database", "bus", "cache", "placement"}); };
  api.bus_away = [&health] { return health.wrong_with({"bus"}); };
  api.database_away = [&health] { return health.wrong_with({"database"}); };
  api.audit = [db](admin::audit_query q, std::function<void(admin::audit_page)> then) {
    db->list_audit(q.project, q.before_id, q.limit, [then](std::string error, std::vector<audit_event> events) {
      admin::audit_page page;
      page.error = std::move(error);
      for (auto& e : events)
        page.events.push_back({e.id, e.at_ms, e.project, e.principal, e.remote, e.method, e.resource,
                               e.request_id, e.before_json, e.after_json});
      then(std::move(page));
    });
  };
  api.placement = [&] {
    std::lock_guard lock{placement_mutex};
    return last_placement;
  };
  api.bootstrap = [advertised](const v1::GatewayRow& row, const v1::GatewayClassRow* of_class) {
    return gateway::bootstrap_yaml(row.name(), row.class_(), advertised.host, advertised.port, "127.0.0.1:0",
                                   gateway::dial_mode_of(of_class ? of_class->dial_mode() : ""));
  };
  api.diagnose = [&, version = api.version] { return diagnostic_parts(c, me, version, record, health, count); };
  try {
    admin_server = admin::server::start(std::move(api), view);
  } catch (const std::exception& e) {
    give_up(fmt::format("admin.listen: {}", e.what()));
  }
  try {
    const auto at = parse_listen(c.text("http.listen"));
    http = std::make_unique<telemetry::http_server>(
        telemetry::http_options{.address = at->host,
                                .port = static_cast<std::uint16_t>(at->port),
                                .debug =
                                    [&gateways](std::string_view path, std::string_view query) -> std::optional<telemetry::http_page> {
                                      if (path != "/debug/programmed") return std::nullopt;
                                      auto page = gateway::programmed_json(gateways, query);
                                      return telemetry::http_page{static_cast<unsigned>(page.status), "application/json", std::move(page.json)};
                                    }},
        health,
        [&count] { return count.text(); });
  } catch (const std::exception& e) {
    give_up(fmt::format("http.listen: {}", e.what()));
  }

  const auto watch_warmth = view.subscribe([&, said = false](const replica::change_set&) mutable {
    if (said) return;
    const bool warm = view.read([](const replica::tables& t) { return t.warm; });
    if (!warm) return;
    said = true;
    health.set("cache", true, "");
    admin_server->set_ready(true);
    supervisor::ready("serving");
    spdlog::info("ready: admin {}, xds port {}, http {}", c.text("admin.listen"), xds_port, c.text("http.listen"));
  });
  // ---- from here on the instance takes partitions ----
  // On a thread of its own, as the lease store's actor is: a lease must be renewed however busy everybody else is.
  to->placement = system.spawn<caf::detached>(placement::actor, std::move(placing));
  wired = true;
  db->start();
  link->on_state([&, to](bool connected) {
    health.set("bus", connected, connected ? "" : "not connected to NATS");
    count.set("warren_bus_connected", connected ? 1 : 0);
    caf::anon_send(to->placement, bus_state{connected});
    caf::anon_send(to->replica, bus_state{connected});
  });

  if (!c.text("nats.system_user").empty() || !c.text("nats.system_credentials_file").empty()) {
    auto options = bus_options(c, "system_", "warrend-watch/" + name);
    options.bulk_connection = false;
    disconnects = std::make_unique<bus::disconnect_watch>(
        options,
        [to, partitions](std::string_view project, std::string_view kind, std::string_view agent) {
          if (kind != bus::kind_connector) return;
          caf::anon_send(to->placement, to_partition{partition_of(project, partitions),
                                                     agent_disconnected{std::string{project}, std::string{agent}}});
        },
        [to](std::string_view connection) {
          if (const auto peer = bus::parse_instance_connection_name(connection))
            caf::anon_send(to->placement, peer_disconnected{*peer});
        },
        &count);
  }

  spdlog::info("instance {} ({}) has started with {} partitions", name, me, partitions);

  // An instance whose placement is stuck neither takes nor gives partitions: better that it starts anew.
  supervisor::watchdog alive{[&system, to](std::chrono::milliseconds patience) {
    bool answered = false;
    caf::scoped_actor asker{system};
    asker->request(to->placement, patience, owned_query{})
        .receive([&](const owned_partitions&) { answered = true; }, [](const caf::error&) {});
    return answered;
  }};

  // ---- until told to stop ----
  // Visitors' side and watchers first, so that they are elsewhere when the partitions go there.
  auto drain_all = [&, done = false]() mutable {
    if (std::exchange(done, true)) return;
    health.set("draining", false, "the instance is draining");
    admin_server->set_ready(false);
    admin_server->send_watches_away(go_away_over);
    gateways.stop(go_away_over);
    if (hook_server) hook_server->close();
    if (hook_fleets) hook_fleets->stop();
    caf::scoped_actor asker{system};
    asker->request(to->placement, drain_patience, drain{})
        .receive([](const drained& d) { spdlog::info("{} partitions released", d.released); },
                 [&](const caf::error& e) { spdlog::warn("draining: {}", system.render(e)); });
  };
  for (int signal = stop_signals.wait(); signal != SIGTERM && signal != SIGINT; signal = stop_signals.wait()) {
    if (signal == SIGHUP) reload_log_level(reload());
    if (signal == SIGUSR1) drain_all();
  }

  spdlog::info("stopping");
  supervisor::stopping();
  // Whatever hangs below must not keep the process longer than its supervisor is patient (30 s).
  std::thread{[] {
    std::this_thread::sleep_for(std::chrono::seconds{25});
    std::fputs("warrend: shutdown took too long, leaving\n", stderr);
    _exit(1);
  }}.detach();
  drain_all();
  alive.stop();
  view.unsubscribe(watch_warmth);
  leave(stepping_down ? 1 : 0);
  return 1;  // not reached
}

}  // namespace warren
