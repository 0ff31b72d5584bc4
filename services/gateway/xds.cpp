// services/gateway/xds.cpp -- the delta ADS server: streams, the event loop and the reports.
#include "services/gateway/xds.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include "envoy/service/discovery/v3/discovery.grpc.pb.h"
#include "services/gateway/report_pace.hpp"

namespace warren::gateway {

namespace {

constexpr auto tick_every = std::chrono::milliseconds{100};
constexpr auto number_again_after = std::chrono::milliseconds{200};
constexpr int reported_refusals_max = 1000;  // in one report: below half a MiB
constexpr std::size_t routes_at_once = 64;   // compiled between two looks at the streams: about 2 ms
constexpr std::size_t responses_in_hand = 8;
constexpr std::int64_t refusals_repeated_ms = 60'000, refusals_apart_ms = 1'000;  // of streams, in the log
constexpr auto words_leaving = "this instance is going away";
constexpr auto words_deaf = "this instance does not hear the others at the moment";
constexpr std::size_t shown_bytes_max = 256;  // of what a node says about itself

std::int64_t steady_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
std::int64_t wall_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

/// What a gateway says about itself is shown to people: printable, and not long.
std::string shown(const std::string& text) {
  std::string out = text.substr(0, shown_bytes_max);
  for (auto& c : out)
    if (c < ' ' || c > '~') c = '?';
  return out;
}

/// "ipv4:192.0.2.7:4711" and "ipv6:%5B::1%5D:4711", as gRPC says it, without what is only gRPC's.
std::string peer_address(std::string_view peer) {
  const auto colon = peer.find(':');
  std::string out{colon == std::string_view::npos ? peer : peer.substr(colon + 1)};
  for (const auto& [said, meant] : {std::pair{"%5B", "["}, std::pair{"%5D", "]"}})
    if (const auto at = out.find(said); at != std::string::npos) out.replace(at, 3, meant);
  return shown(out);
}

/// What of a change can be news to gateways: conditions, and what tunnels were before, are not.
replica::change_set routing_part(const replica::change_set& c) {
  replica::change_set out{.partition = c.partition, .revision = c.revision, .rebuilt = c.rebuilt};
  out.tunnels = c.tunnels;
  out.connectors = c.connectors;
  out.connectors_before = c.connectors_before;
  out.routes = c.routes;
  out.hostnames = c.hostnames;
  out.gateways = c.gateways;
  out.gateway_classes = c.gateway_classes;
  return out;
}

using event = std::function<void()>;

/// What the server's thread has to do: events of streams in their order, changes of rows in theirs. Streams come
/// first: in a mass change gateways would be told nothing before all of it has been compiled.
class event_queue {
public:
  void push(event e) { push(events_, std::move(e)); }
  void push_change(event e) { push(changes_, std::move(e)); }
  /// What has arrived until `deadline`, at once when there is something: all events, and one change after them.
  std::deque<event> take(std::chrono::steady_clock::time_point deadline) {
    std::unique_lock lock{mutex_};
    wakes_.wait_until(lock, deadline, [&] { return !events_.empty() || !changes_.empty(); });
    auto out = std::exchange(events_, {});
    if (!changes_.empty()) {
      out.push_back(std::move(changes_.front()));
      changes_.pop_front();
    }
    return out;
  }
  void close() {
    std::lock_guard lock{mutex_};
    closed_ = true;
    events_.clear();
    changes_.clear();
  }

private:
  void push(std::deque<event>& to, event e) {
    {
      std::lock_guard lock{mutex_};
      if (closed_) return;
      to.push_back(std::move(e));
    }
    wakes_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable wakes_;
  std::deque<event> events_, changes_;
  bool closed_ = false;
};

}  // namespace

struct gateway_server::impl {
  class stream;
  class service;
  struct connected;

  impl(replica::view& v, xds_config config, counters& count);

  // Called from gRPC's threads.
  void arrived(stream* s, std::string peer);
  void request(std::uint64_t id, std::shared_ptr<discovery::DeltaDiscoveryRequest> r);
  void ended(std::uint64_t id);
  void written(std::uint64_t id);

  // On the server's thread.
  void run();
  void on_request(connected& c, const discovery::DeltaDiscoveryRequest& r);
  void admit(connected& c, const discovery::DeltaDiscoveryRequest& first);
  void refuse(connected& c, grpc::StatusCode code, const std::string& why);
  void finish(connected& c, grpc::Status status, bool say_gone);
  /// `last`: of its parts.
  void on_change(const replica::change_set& change, bool last);
  void warm_up();
  void check_registrations();
  void check_other_instances();
  void send_away(millis over);
  void pump(connected& c);
  void report(connected& c, partition_id p, stream_state state);
  /// Returns when something is left to report at the latest.
  std::optional<std::int64_t> report_owed();
  void tick();
  gateway_status describe(const connected& c) const;

  replica::view& view;
  xds_config config;
  counters& count;
  event_queue queue;
  std::thread thread;
  std::unique_ptr<service> grpc_service;
  std::unique_ptr<grpc::Server> server;
  int subscription = -1;
  bool started = false;
  std::atomic<bool> stopping{false};
  std::atomic<std::uint64_t> next_id{1};

  catalogue rows;
  bool warm = false;
  bool turning_away = false;
  std::string refused_said;  ///< the last line in the log of a stream that was refused
  std::int64_t refused_said_ms = -refusals_repeated_ms;
  std::map<std::uint64_t, std::unique_ptr<connected>> streams;
  std::int64_t reported_at_ms = 0;
  const std::int64_t wall_ahead_ms = wall_ms() - steady_ms();  ///< said once: a report is the same until something changes

  // Numbers come from the database, which may be slow or away.
  std::thread numbering;
  std::mutex numbering_mutex;
  std::condition_variable numbering_wakes;
  std::deque<std::uint64_t> unnumbered;
  void number_streams();
};

// ---- one gRPC stream: no decisions, one read and one write under way, and a few responses that wait for it ----

class gateway_server::impl::stream final
    : public grpc::ServerBidiReactor<discovery::DeltaDiscoveryRequest, discovery::DeltaDiscoveryResponse> {
public:
  stream(impl& owner, grpc::CallbackServerContext& context) : owner_{owner}, id_{owner.next_id++} {
    owner_.arrived(this, context.peer());
  }
  std::uint64_t id() const { return id_; }

  // On the server's thread, never after finish().
  void read() {
    incoming_ = std::make_shared<discovery::DeltaDiscoveryRequest>();
    StartRead(incoming_.get());
  }
  /// In the order of the calls. One goes after the other without the server's thread, which may be busy compiling.
  void write(discovery::DeltaDiscoveryResponse r) {
    {
      std::lock_guard lock{mutex_};
      waiting_.push_back(std::move(r));
      if (std::exchange(writing_, true)) return;
      take_next();
    }
    StartWrite(&outgoing_, how_);
  }
  /// After the write that is under way; those that wait are dropped.
  void finish(const grpc::Status& status) {
    {
      std::lock_guard lock{mutex_};
      waiting_.clear();
      if (writing_) {
        last_words_ = status;
        return;
      }
    }
    Finish(status);
  }

  void OnReadDone(bool ok) override {
    if (ok) owner_.request(id_, std::exchange(incoming_, nullptr));
    else owner_.ended(id_);
  }
  void OnWriteDone(bool ok) override {
    auto& owner = owner_;  // `this` may go with Finish()
    const auto id = id_;
    std::optional<grpc::Status> last_words;
    bool goes_on = false;
    {
      std::lock_guard lock{mutex_};
      if (!ok) waiting_.clear();
      goes_on = !waiting_.empty();
      writing_ = goes_on;
      if (goes_on) take_next();
      else last_words = last_words_;
    }
    if (goes_on) StartWrite(&outgoing_, how_);
    else if (last_words) Finish(*last_words);
    if (ok) owner.written(id);
    else owner.ended(id);
  }
  void OnDone() override { delete this; }

private:
  void take_next() {
    outgoing_ = std::move(waiting_.front());
    waiting_.pop_front();
    how_ = {};
    // One that another follows waits in the transport for it: each tunnel has a response of its own, but not a packet.
    // None waits behind the first, which carries the headers: held back, it would be done only after a ping.
    if (!waiting_.empty()) how_.set_buffer_hint();
  }

  impl& owner_;
  const std::uint64_t id_;
  std::shared_ptr<discovery::DeltaDiscoveryRequest> incoming_;

  std::mutex mutex_;
  bool writing_ = false;  ///< else nothing waits
  std::deque<discovery::DeltaDiscoveryResponse> waiting_;
  std::optional<grpc::Status> last_words_;
  // Of whoever starts the write that is under way:
  discovery::DeltaDiscoveryResponse outgoing_;
  grpc::WriteOptions how_;
};

class gateway_server::impl::service final : public discovery::AggregatedDiscoveryService::CallbackService {
public:
  explicit service(impl& owner) : owner_{owner} {}
  grpc::ServerBidiReactor<discovery::DeltaDiscoveryRequest, discovery::DeltaDiscoveryResponse>*
  DeltaAggregatedResources(grpc::CallbackServerContext* context) override {
    return new stream{owner_, *context};
  }

private:
  impl& owner_;
};

/// A stream and what is known of the gateway behind it.
struct gateway_server::impl::connected {
  stream* wire = nullptr;
  std::uint64_t id = 0;
  std::string peer;
  std::string gateway, gateway_class;            ///< empty until the first request
  dial_mode dial = dial_mode::none;
  std::string node_id, node_cluster, node_locality;
  std::int64_t number = 0;
  std::shared_ptr<discovery::DeltaDiscoveryRequest> held;  ///< its first request, until the view is warm
  std::unique_ptr<session> talk;
  std::size_t in_hand = 0;                       ///< responses that are not written yet
  std::set<partition_id> owed;                   ///< to be reported when this round of events is over
  /// What was last told of a partition, to tell no more than is new.
  struct told {
    report_pace pace;
    revision_t acknowledged = -1;
    bool refused = false;
  };
  std::map<partition_id, told> reports;
  stream_state shown_state = stream_state::connecting;
  std::int64_t since_ms = wall_ms();
  std::int64_t leaves_at_ms = 0;                 ///< 0: stays
};

gateway_server::impl::impl(replica::view& v, xds_config c, counters& n) : view{v}, config{std::move(c)}, count{n} {}

void gateway_server::impl::arrived(stream* s, std::string peer) {
  const auto id = s->id();
  queue.push([this, s, id, peer = std::move(peer)] {
    auto c = std::make_unique<connected>();
    c->wire = s;
    c->id = id;
    c->peer = peer;
    auto& there = *(streams[id] = std::move(c));
    if (stopping) return finish(there, {grpc::StatusCode::UNAVAILABLE, words_leaving}, false);
    if (turning_away)
      return refuse(there, grpc::StatusCode::UNAVAILABLE, words_deaf);
    if (streams.size() > config.streams_max)
      return refuse(there, grpc::StatusCode::RESOURCE_EXHAUSTED, "this instance has as many gateways as it takes");
    there.wire->read();
  });
}

void gateway_server::impl::request(std::uint64_t id, std::shared_ptr<discovery::DeltaDiscoveryRequest> r) {
  queue.push([this, id, r = std::move(r)] {
    const auto it = streams.find(id);
    if (it == streams.end()) return;
    auto& c = *it->second;
    if (c.gateway.empty()) {
      admit(c, *r);
      if (streams.count(id) == 0) return;
      // The next read waits with it: a gateway that is not served yet costs one request.
      if (!warm) {
        count.add("warren_gateway_held_streams_total");
        c.held = r;
        return;
      }
      c.talk = std::make_unique<session>(rows, c.gateway_class);
      c.talk->on_acknowledged = [this](kind k, std::int64_t ms) {
        count.add("warren_gateway_acks_total", short_name(k));
        count.observe("warren_gateway_ack_seconds", static_cast<double>(ms) / 1000);
      };
    }
    on_request(c, *r);
  });
}

void gateway_server::impl::ended(std::uint64_t id) {
  queue.push([this, id] {
    const auto it = streams.find(id);
    if (it != streams.end()) finish(*it->second, grpc::Status::OK, true);
  });
}

void gateway_server::impl::written(std::uint64_t id) {
  queue.push([this, id] {
    const auto it = streams.find(id);
    if (it == streams.end()) return;
    --it->second->in_hand;
    pump(*it->second);
  });
}

// ---- the server's thread ----

void gateway_server::impl::run() {
  auto next_tick = std::chrono::steady_clock::now();
  auto next_wake = next_tick;
  while (true) {
    auto events = queue.take(next_wake);
    for (auto& e : events) e();
    if (stopping && streams.empty()) return;
    if (std::chrono::steady_clock::now() >= next_tick) {
      tick();
      next_tick = std::chrono::steady_clock::now() + tick_every;
    }
    // Once for all events: under a burst many acknowledgements arrive in one round.
    next_wake = next_tick;
    if (const auto owed_at = report_owed())
      next_wake = std::min(next_wake, std::chrono::steady_clock::time_point{std::chrono::milliseconds{*owed_at}});
  }
}

void gateway_server::impl::admit(connected& c, const discovery::DeltaDiscoveryRequest& first) {
  const auto& node = first.node();
  c.node_id = shown(node.id());
  c.node_cluster = shown(node.cluster());
  for (const auto* part : {&node.locality().region(), &node.locality().zone(), &node.locality().sub_zone()})
    if (!part->empty()) c.node_locality += (c.node_locality.empty() ? "" : "/") + shown(*part);
  if (node.id().empty())
    return refuse(c, grpc::StatusCode::INVALID_ARGUMENT, "the first request of a stream has to name its node");
  if (!warm) {  // who is registered is not known yet
    c.held = nullptr;
    c.gateway = node.id();
    const auto& fields = node.metadata().fields();
    const auto it = fields.find("warren_class");
    c.gateway_class = it == fields.end() ? "" : it->second.string_value();
    return;
  }
  const auto registered = view.read([&](const replica::tables& t) -> std::optional<std::string> {
    const auto it = t.gateways.find(node.id());
    if (it == t.gateways.end()) return {};
    return it->second->class_();
  });
  if (!registered)
    return refuse(c, grpc::StatusCode::NOT_FOUND, "no gateway of this name is registered: warrenctl gateway create");
  const auto& fields = node.metadata().fields();
  const auto claimed = fields.find("warren_class");
  if (claimed == fields.end() || claimed->second.string_value() != *registered)
    return refuse(c, grpc::StatusCode::PERMISSION_DENIED,
                  "node.metadata.warren_class is not the class of this gateway's registration");
  const auto* cls = rows.find_class(*registered);
  if (cls == nullptr || !cls->served)
    return refuse(c, grpc::StatusCode::FAILED_PRECONDITION,
                  "the gateway's class does not exist, or its dial mode is not one that is known");
  // Nothing that it would take leads anywhere, and it would acknowledge all of it: the listener is the bootstrap's.
  const auto made_for = fields.find("warren_dial_mode");
  if (cls->settings.dial == dial_mode::tunnel_listener && made_for != fields.end() && dial_mode_of(made_for->second.string_value()) != cls->settings.dial)
    return refuse(c, grpc::StatusCode::FAILED_PRECONDITION,
                  "its class dials by tunnel-listener, and its bootstrap was made for " + shown(made_for->second.string_value()) +
                      ": make it anew with warrenctl gateway bootstrap");
  // One stream per gateway: the one that came last.
  for (auto it = streams.begin(); it != streams.end();) {
    auto& other = *(it++)->second;
    if (&other != &c && other.talk && other.gateway == node.id())
      finish(other, {grpc::StatusCode::ABORTED, "a newer stream of this gateway took over"}, false);
  }
  c.gateway = node.id();
  c.gateway_class = *registered;
  c.dial = cls->settings.dial;
  spdlog::info("gateway {} connected from {} as {}", shown(c.gateway), c.peer, shown(c.gateway_class));
  {
    std::lock_guard lock{numbering_mutex};
    unnumbered.push_back(c.id);
  }
  numbering_wakes.notify_one();
}

void gateway_server::impl::refuse(connected& c, grpc::StatusCode code, const std::string& why) {
  count.add("warren_gateway_refused_streams_total");
  // Whoever is refused comes again in a moment.
  const auto words = fmt::format("{} is refused: {}", c.node_id.empty() ? "a gateway" : "gateway " + c.node_id, why);
  const auto now = steady_ms();
  if (now >= refused_said_ms + (words == refused_said ? refusals_repeated_ms : refusals_apart_ms)) {
    spdlog::warn("{}", words);
    refused_said = words;
    refused_said_ms = now;
  }
  finish(c, {code, why}, false);
}

void gateway_server::impl::finish(connected& c, grpc::Status status, bool say_gone) {
  if (c.talk && say_gone)
    for (const auto& [p, revision] : rows.processed()) report(c, p, stream_state::gone);
  if (c.talk) spdlog::info("gateway {} disconnected: {}", shown(c.gateway), status.ok() ? "it left" : status.error_message());
  c.wire->finish(status);
  streams.erase(c.id);
}

void gateway_server::impl::on_request(connected& c, const discovery::DeltaDiscoveryRequest& r) {
  const auto nacks = c.talk->nacks();
  const auto error = c.talk->request(r, steady_ms());
  if (!error.empty()) return refuse(c, grpc::StatusCode::INVALID_ARGUMENT, error);
  if (c.talk->nacks() != nacks) {
    const auto k = kind_from(r.type_url());
    count.add("warren_gateway_nacks_total", k ? short_name(*k) : "other");
    spdlog::warn("gateway {} refused {}: {}", shown(c.gateway), k ? short_name(*k) : "other",
                 shown(r.error_detail().message()));
  }
  c.wire->read();
  pump(c);
}

/// Keeps a few responses in hand, so that a gateway has work while others are compiled; what changes meanwhile waits.
void gateway_server::impl::pump(connected& c) {
  if (!c.talk) return;
  while (c.in_hand < responses_in_hand) {
    auto response = c.talk->poll(steady_ms());
    if (!response) return;
    if (const auto k = kind_from(response->type_url())) {
      count.add("warren_gateway_pushes_total", short_name(*k));
      count.add("warren_gateway_push_bytes_total", short_name(*k), static_cast<double>(response->ByteSizeLong()));
    }
    ++c.in_hand;
    c.wire->write(std::move(*response));
  }
}

void gateway_server::impl::on_change(const replica::change_set& change, bool last) {
  if (!warm) return warm_up();
  const auto before = rows.processed(change.partition);
  // Only what decides about routes is looked at: conditions and acknowledgements push nothing.
  const auto changes = view.read([&](const replica::tables& t) { return rows.apply(t, change, last); });
  if (change.rebuilt || !change.gateways.empty() || !change.gateway_classes.empty()) check_registrations();
  const bool moved = rows.processed(change.partition) != before;
  for (auto& [id, c] : streams) {
    if (!c->talk) continue;
    for (const auto& one : changes) c->talk->changed(one);
    pump(*c);
    if (moved) c->owed.insert(change.partition);
  }
}

/// Nothing is served from an incomplete copy: a gateway would take what is missing for deleted.
void gateway_server::impl::warm_up() {
  warm = view.read([&](const replica::tables& t) {
    if (!t.warm) return false;
    rows.rebuild(t);
    return true;
  });
  if (!warm) return;
  std::vector<std::pair<std::uint64_t, std::shared_ptr<discovery::DeltaDiscoveryRequest>>> waiting;
  for (auto& [id, c] : streams)
    if (c->held) {
      waiting.emplace_back(id, std::exchange(c->held, nullptr));
      c->gateway.clear();
      c->node_locality.clear();
    }
  for (auto& [id, r] : waiting) request(id, std::move(r));
}

void gateway_server::impl::check_registrations() {
  std::vector<connected*> unwanted;
  view.read([&](const replica::tables& t) {
    for (auto& [id, c] : streams) {
      if (!c->talk) continue;
      const auto it = t.gateways.find(c->gateway);
      const auto* cls = rows.find_class(c->gateway_class);
      if (it == t.gateways.end() || it->second->class_() != c->gateway_class || cls == nullptr || !cls->served ||
          cls->settings.dial != c->dial)
        unwanted.push_back(c.get());
    }
    return 0;
  });
  for (auto* c : unwanted)
    finish(*c, {grpc::StatusCode::PERMISSION_DENIED, "the gateway's registration or class changed"}, true);
}

/// A stream that looks alive here while its gateway is connected elsewhere is a dead one.
void gateway_server::impl::check_other_instances() {
  std::vector<connected*> overtaken;
  view.read([&](const replica::tables& t) {
    for (auto& [id, c] : streams) {
      if (!c->talk || c->number == 0) continue;
      const bool newer = std::any_of(t.acks.begin(), t.acks.end(), [&](const auto& of_partition) {
        const auto it = of_partition.second.find(c->gateway);
        return it != of_partition.second.end() && it->second.report.stream() > c->number &&
               it->second.report.instance() != config.instance && it->second.report.state() != "gone";
      });
      if (newer) overtaken.push_back(c.get());
    }
    return 0;
  });
  for (auto* c : overtaken)
    finish(*c, {grpc::StatusCode::ABORTED, "a newer stream of this gateway took over on another instance"}, false);
}

void gateway_server::impl::report(connected& c, partition_id p, stream_state state) {
  if (c.number == 0 || !config.on_ack) return;
  busv1::GatewayAck out;
  out.set_version(1);
  out.set_incarnation(view.read([p](const replica::tables& t) {
    const auto it = t.partitions.find(p);
    return it == t.partitions.end() ? std::int64_t{0} : it->second.incarnation;
  }));
  out.set_instance(config.instance);
  out.set_gateway(c.gateway);
  out.set_class_(c.gateway_class);
  out.set_stream(c.number);
  out.set_state(std::string{to_string(state)});
  out.set_partition(p);
  out.set_acknowledged(c.talk->acknowledged(p));
  out.set_node_id(c.node_id);
  out.set_node_cluster(c.node_cluster);
  out.set_node_locality(c.node_locality);
  out.set_peer(peer_address(c.peer));
  if (auto shut = c.talk->shut(); !shut.empty()) {
    auto* every = out.add_refused();
    every->set_every(true);
    every->set_revision(out.acknowledged());
    every->set_message(shown(shut));
  }
  for (const auto& r : c.talk->refusals(p)) {
    // What does not fit into a message counts as not acknowledged: nobody may take it for accepted.
    if (out.refused_size() >= reported_refusals_max) {
      out.set_acknowledged(std::min(out.acknowledged(), std::max<revision_t>(r.revision - 1, 0)));
      continue;
    }
    auto* refused = out.add_refused();
    refused->set_tunnel_uid(r.tunnel_uid);
    refused->set_connector(r.connector);
    refused->set_revision(r.until);
    refused->set_message(shown(r.message));
    refused->set_at_ms(r.at_ms + wall_ahead_ms);
  }
  config.on_ack(out);
}

std::optional<std::int64_t> gateway_server::impl::report_owed() {
  std::optional<std::int64_t> next;
  const auto now = steady_ms();
  for (auto& [id, c] : streams) {
    if (!c->talk) continue;
    const bool news = c->talk->state() != c->shown_state;
    if (news) {
      c->shown_state = c->talk->state();
      c->since_ms = wall_ms();
      spdlog::info("gateway {} is {}", shown(c->gateway), to_string(c->shown_state));
    }
    c->owed.merge(c->talk->take_touched());
    const bool shut = !c->talk->shut().empty();
    std::erase_if(c->owed, [&, &of = *c](partition_id p) {
      auto& last = of.reports[p];
      const auto acknowledged = of.talk->acknowledged(p);
      const bool refused = of.talk->refuses(p) || shut;
      if (!news && !refused && !last.refused && acknowledged == last.acknowledged) return true;
      if (!news && now < last.pace.next_ms()) {
        next = std::min(next.value_or(last.pace.next_ms()), last.pace.next_ms());
        return false;
      }
      last.pace.told(now);
      last.acknowledged = acknowledged;
      last.refused = refused;
      report(of, p, of.talk->state());
      return true;
    });
  }
  return next;
}

void gateway_server::impl::tick() {
  if (!warm) warm_up();
  const auto now = steady_ms();
  std::vector<connected*> leaving;
  std::array<int, 4> by_state{};
  for (auto& [id, c] : streams) {
    if (c->leaves_at_ms != 0 && now >= c->leaves_at_ms) leaving.push_back(c.get());
    if (!c->talk) continue;
    c->talk->tick(now);
    ++by_state.at(static_cast<std::size_t>(c->talk->state()));
  }
  for (auto* c : leaving)
    finish(*c, {grpc::StatusCode::UNAVAILABLE, turning_away ? words_deaf : words_leaving}, true);
  if (now - reported_at_ms < config.report_every.count()) return;
  reported_at_ms = now;
  const auto in = [&](stream_state s) { return by_state.at(static_cast<std::size_t>(s)); };
  count.set("warren_gateway_streams", in(stream_state::connecting) + in(stream_state::caught_up) + in(stream_state::stalled));
  count.set("warren_gateway_stalled", in(stream_state::stalled));
  check_other_instances();
  for (auto& [id, c] : streams)
    if (c->talk)
      for (const auto& [p, revision] : rows.processed()) report(*c, p, c->talk->state());
}

void gateway_server::impl::number_streams() {
  std::unique_lock lock{numbering_mutex};
  while (!stopping) {
    if (unnumbered.empty()) {
      numbering_wakes.wait(lock);
      continue;
    }
    const auto id = unnumbered.front();
    lock.unlock();
    std::int64_t number = 0;
    try {
      number = config.next_stream();
    } catch (const std::exception& e) {
      spdlog::debug("no stream number yet: {}", e.what());
    }
    lock.lock();
    if (number <= 0) {
      numbering_wakes.wait_for(lock, number_again_after, [&] { return stopping.load(); });
      continue;
    }
    unnumbered.pop_front();
    queue.push([this, id, number] {
      const auto it = streams.find(id);
      if (it == streams.end() || !it->second->talk) return;
      it->second->number = number;
      for (const auto& [p, revision] : rows.processed()) report(*it->second, p, it->second->talk->state());
    });
  }
}

gateway_status gateway_server::impl::describe(const connected& c) const {
  gateway_status out{.gateway = c.gateway, .gateway_class = c.gateway_class, .peer = c.peer, .node_id = c.node_id,
                     .node_cluster = c.node_cluster, .node_locality = c.node_locality, .stream = c.number,
                     .state = c.talk->state(), .since_ms = c.since_ms, .pending = c.talk->pending(),
                     .last_refusal = c.talk->last_refusal(), .bytes_sent = c.talk->bytes_sent(),
                     .nacks = c.talk->nacks()};
  for (auto k : {kind::cluster, kind::listener, kind::route, kind::scope})
    out.responses.at(static_cast<std::size_t>(k)) = c.talk->responses_sent(k);
  for (const auto& [p, revision] : rows.processed()) {
    const auto acknowledged = c.talk->acknowledged(p);
    out.acknowledged[p] = acknowledged;
    out.lag = std::max(out.lag, revision - acknowledged);
  }
  if (out.last_refusal) out.last_refusal->at_ms += wall_ahead_ms;
  return out;
}

// ---- from outside ----

namespace {

/// Nothing: the server's thread is busy, or has ended and let go of the question.
template <class T> std::optional<T> answer_within_a_second(std::future<T>& answer) {
  if (answer.wait_for(std::chrono::seconds{1}) != std::future_status::ready) return std::nullopt;
  try {
    return answer.get();
  } catch (const std::future_error&) {
    return std::nullopt;
  }
}

}  // namespace

gateway_server::gateway_server(replica::view& v, xds_config config, counters& count)
    : impl_{std::make_unique<impl>(v, std::move(config), count)} {}

gateway_server::~gateway_server() { stop(); }

int gateway_server::start(const std::string& address) {
  auto& my = *impl_;
  my.grpc_service = std::make_unique<impl::service>(my);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(my.grpc_service.get());
  builder.SetMaxReceiveMessageSize(my.config.request_bytes_max);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // two instances on one port are a mistake
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Whoever is sent away keeps its connection otherwise, and comes back by it.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 200);
  // Gateways ping every second; gRPC's default takes that for abuse.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  my.server = builder.BuildAndStart();
  if (!my.server) return 0;
  my.started = true;
  my.subscription = my.view.subscribe([&my](const replica::change_set& c) {
    if (c.acks || c.owner) return;  // that moves no route
    auto parts = parts_of(routing_part(c), routes_at_once);
    for (auto& part : parts) my.queue.push_change([&my, last = &part == &parts.back(), part = std::move(part)] { my.on_change(part, last); });
  });
  my.thread = std::thread{[&my] { my.run(); }};
  my.numbering = std::thread{[&my] { my.number_streams(); }};
  return port;
}

void gateway_server::impl::send_away(millis over) {
  std::mt19937_64 random{std::random_device{}()};
  std::uniform_int_distribution<std::int64_t> when{0, over.count()};
  const auto now = steady_ms();
  for (auto& [id, c] : streams) c->leaves_at_ms = now + when(random);
}

void gateway_server::turn_away(bool on, millis over) {
  auto& my = *impl_;
  my.queue.push([&my, on, over] {
    my.turning_away = on;
    if (my.stopping) return;
    if (on) my.send_away(over);
    else
      for (auto& [id, c] : my.streams) c->leaves_at_ms = 0;
  });
}

void gateway_server::stop(millis over) {
  auto& my = *impl_;
  if (!my.started) return;
  my.started = false;
  my.view.unsubscribe(my.subscription);
  my.queue.push([&my, over] {
    my.send_away(over);
    my.stopping = true;
    my.numbering_wakes.notify_all();
  });
  my.thread.join();
  {
    std::lock_guard lock{my.numbering_mutex};
    my.stopping = true;
  }
  my.numbering_wakes.notify_all();
  my.numbering.join();
  // A stream that arrives this late is cancelled by the shutdown; its reactor still has to be finished.
  std::atomic<bool> down{false};
  std::thread late{[&] {
    while (!down)
      for (auto& e : my.queue.take(std::chrono::steady_clock::now() + std::chrono::milliseconds{10})) e();
  }};
  my.server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds{1});
  my.server->Wait();
  down = true;
  late.join();
  my.queue.close();
}

std::optional<programmed_page> gateway_server::programmed(const std::string& gateway, kind k, const std::string& after,
                                                          std::size_t max) const {
  auto& my = *impl_;
  auto promise = std::make_shared<std::promise<programmed_page>>();
  auto answer = promise->get_future();
  my.queue.push([&my, promise, gateway, k, after, max] {
    programmed_page out;
    for (const auto& [id, c] : my.streams)
      if (c->talk && c->gateway == gateway) out = {true, c->talk->state(), c->talk->programmed(k, after, max)};
    promise->set_value(std::move(out));
  });
  return answer_within_a_second(answer);
}

std::vector<gateway_status> gateway_server::status() const {
  auto& my = *impl_;
  auto promise = std::make_shared<std::promise<std::vector<gateway_status>>>();
  auto answer = promise->get_future();
  my.queue.push([&my, promise] {
    std::vector<gateway_status> out;
    for (const auto& [id, c] : my.streams)
      if (c->talk) out.push_back(my.describe(*c));
    promise->set_value(std::move(out));
  });
  return answer_within_a_second(answer).value_or(std::vector<gateway_status>{});
}

}  // namespace warren::gateway
