// services/hook/fleets.cpp -- reports to partitions how far the fleets behind the extension hook are.
#include "services/hook/fleets.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <spdlog/spdlog.h>

#include "services/hook/handover.hpp"

namespace warren::hook {

namespace {

constexpr std::size_t fleets_max = 256;           // beyond: a new one is not counted, and said so
constexpr int reported_pending_max = 1000;        // in one report: below half a MiB
constexpr std::int64_t reports_apart_ms = 10;     // each makes conditions be derived anew
constexpr std::int64_t number_again_after_ms = 500;
constexpr std::int64_t idle_ms = 60'000;

std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// "ipv4:192.0.2.7:4711", without what is only gRPC's.
std::string address_of(const std::string& peer) {
  const auto colon = peer.find(':');
  if (colon == std::string::npos || peer.compare(0, colon, "unix") == 0) return peer;
  auto out = peer.substr(colon + 1);
  for (const auto& [said, meant] : {std::pair{"%5B", "["}, std::pair{"%5D", "]"}})
    if (const auto at = out.find(said); at != std::string::npos) out.replace(at, 3, meant);
  return out;
}

/// What comes from others' threads, until ours looks.
struct inbox {
  std::mutex mutex;
  std::condition_variable wake;
  std::set<replica::entity_key> tunnels;        ///< may have changed
  std::map<partition_id, revision_t> revisions; ///< that the replica has
  std::map<std::string, answered_call> taken;   ///< by fleet, the newest
  std::map<std::string, std::int64_t> numbers;  ///< of streams, by fleet
  bool everything = false, registrations = false, stopped = false;
  bool has_news() const {
    return stopped || everything || registrations || !tunnels.empty() || !revisions.empty() || !taken.empty() || !numbers.empty();
  }
};

}  // namespace

struct fleets::impl {
  /// One fleet that has called this instance.
  struct fleet {
    handover is;
    std::string name, gateway, gateway_class;  ///< the class is empty: not registered, and so it does not count
    std::string peer;
    std::int64_t number = 0, asked_at_ms = 0;
    std::string state;                   ///< as last reported; empty: nothing was
  };

  impl(replica::view& v, fleets_config c) : view(v), config(std::move(c)) {
    subscription = view.subscribe([this](const replica::change_set& change) { changed(change); });
    thread = std::thread{[this] { run(); }};
  }

  void stop() {
    view.unsubscribe(subscription);
    {
      const std::lock_guard lock{in->mutex};
      in->stopped = true;
      in->wake.notify_all();
    }
    if (thread.joinable()) thread.join();
  }

  // ---- on others' threads ----

  void changed(const replica::change_set& c) {
    if (!called) return;
    auto touched = view.read([&](const replica::tables& t) { return touched_tunnels(t, c); });
    const std::lock_guard lock{in->mutex};
    in->tunnels.merge(touched);
    in->everything = in->everything || c.rebuilt;
    in->registrations = in->registrations || c.rebuilt || !c.gateways.empty();
    auto& revision = in->revisions[c.partition];
    revision = std::max(revision, c.revision);
    in->wake.notify_all();
  }

  // ---- on our own ----

  void run() {
    std::int64_t round_at = 0;
    std::unique_lock lock{in->mutex};
    while (!in->stopped) {
      const auto tunnels = std::exchange(in->tunnels, {});
      const auto revisions = std::exchange(in->revisions, {});
      auto taken = std::exchange(in->taken, {});
      const auto numbers = std::exchange(in->numbers, {});
      const bool all = std::exchange(in->everything, false), look = std::exchange(in->registrations, false);
      lock.unlock();
      const auto now = now_ms();
      for (auto& [name, f] : known) {
        if (f.gateway_class.empty()) continue;
        if (all) note_all(f, now);
        else
          for (const auto& key : tunnels) note(f, key, now);
        for (const auto& [partition, revision] : revisions) f.is.seen(partition, revision);
      }
      if (look)
        for (auto& [name, f] : known) look_up(f, now);
      if (!taken.empty()) forget_overtaken();  // whoever comes back from another instance has a new number here
      for (auto& [name, a] : taken) hear(name, std::move(a), now);
      for (const auto& [name, number] : numbers)
        if (const auto it = known.find(name); it != known.end()) it->second.number = number;
      const bool round = now >= round_at;
      if (round) {
        round_at = now + config.report_every.count();
        forget_overtaken();
      }
      for (auto& [name, f] : known) {
        ask_for_number(name, f, now);
        report(f, round, now);
      }
      lock.lock();
      // What comes meanwhile is reported together.
      in->wake.wait_for(lock, std::chrono::milliseconds{reports_apart_ms}, [this] { return in->stopped; });
      const auto until = known.empty() ? std::chrono::milliseconds{idle_ms} : std::chrono::milliseconds{std::max<std::int64_t>(round_at - now_ms(), 1)};
      in->wake.wait_for(lock, until, [this] { return in->has_news(); });
    }
    lock.unlock();
    for (auto& [name, f] : known) say_gone(f);
  }

  std::optional<carried_tunnel> carried(const replica::tables& t, const fleet& f, const replica::entity_key& key) const {
    const auto row = t.tunnel(key.first, key.second);
    if (!row || row->gateway_class() != f.gateway_class) return std::nullopt;
    return carried_tunnel{row->uid(), row->partition(), row->route_version(), truth_of(t, key.first, key.second)};
  }

  void note(fleet& f, const replica::entity_key& key, std::int64_t now) {
    const auto name = config.projects.namespace_of(key.first);
    if (name.empty()) return;
    f.is.noted({name, key.second}, view.read([&](const replica::tables& t) { return carried(t, f, key); }), now);
  }

  /// As everything is at this moment.
  void note_all(fleet& f, std::int64_t now) {
    view.read([&](const replica::tables& t) {
      for (const auto& [route_namespace, name] : f.is.tunnels())
        if (t.tunnel(config.projects.project_of(route_namespace), name) == nullptr) f.is.noted({route_namespace, name}, std::nullopt, now);
      for (const auto& [key, row] : t.tunnels)
        if (auto name = config.projects.namespace_of(key.first); !name.empty())
          f.is.noted({std::move(name), key.second}, carried(t, f, key), now);
      for (const auto& [id, p] : t.partitions) f.is.seen(id, p.revision);
    });
  }

  void look_up(fleet& f, std::int64_t now) {
    const auto is = view.read([&](const replica::tables& t) {
      const auto it = t.gateways.find(f.gateway);
      return it == t.gateways.end() ? std::string{} : it->second->class_();
    });
    if (is == f.gateway_class) return;
    if (is.empty()) say_gone(f);
    f.gateway_class = is;
    if (is.empty()) return;
    note_all(f, now);
    spdlog::info("the fleet that is gateway {} carries class {}", f.gateway, is);
  }

  void hear(const std::string& name, answered_call a, std::int64_t now) {
    auto it = known.find(name);
    if (it == known.end()) {
      const auto gateway = gateway_of(name);
      if (gateway.empty() || known.size() >= fleets_max) {
        spdlog::warn("a fleet behind the hook cannot be counted as a gateway: {}",
                     gateway.empty() ? "its route configurations are not named NAMESPACE/GATEWAY/LISTENER" : "there are too many");
        return;
      }
      it = known.emplace(name, fleet{}).first;
      it->second.name = name;
      it->second.gateway = gateway;
      look_up(it->second, now);
      if (it->second.gateway_class.empty())
        spdlog::warn("fleet {} is answered, and does not count: no gateway {} is registered (warrenctl gateway create)", name, gateway);
    }
    it->second.peer = address_of(a.peer);
    it->second.is.answered(std::move(a.answered), a.revisions, now);
  }

  /// Whoever was answered last knows; the highest number wins, as with streams.
  void forget_overtaken() {
    view.read([&](const replica::tables& t) {
      std::erase_if(known, [&](const auto& one) {
        const auto& f = one.second;
        return f.number != 0 && std::any_of(t.acks.begin(), t.acks.end(), [&](const auto& of_partition) {
                 const auto it = of_partition.second.find(f.gateway);
                 return it != of_partition.second.end() && it->second.report.stream() > f.number &&
                        it->second.report.instance() != config.instance && it->second.report.state() != "gone";
               });
      });
    });
  }

  void ask_for_number(const std::string& name, fleet& f, std::int64_t now) {
    if (f.number != 0 || f.gateway_class.empty() || (f.asked_at_ms != 0 && now < f.asked_at_ms + number_again_after_ms)) return;
    f.asked_at_ms = now;
    config.next_stream([in = in, name](std::optional<std::int64_t> number) {
      if (!number) return;
      const std::lock_guard lock{in->mutex};
      in->numbers[name] = *number;
      in->wake.notify_all();
    });
  }

  void report(fleet& f, bool round, std::int64_t now) {
    if (f.number == 0 || f.gateway_class.empty()) return;
    const std::string state = f.is.stalled(now) ? "stalled" : "caught_up";
    const bool all = std::exchange(f.state, state) != state || round;
    const auto touched = f.is.take_touched();
    for (const auto& [partition, incarnation] : incarnations()) {
      if (!all && touched.count(partition) == 0) continue;
      auto ack = about(f, partition, incarnation);
      ack.set_acknowledged(f.is.acknowledged(partition));
      for (auto& one : f.is.pending(partition)) {
        // What does not fit into a message counts as not acknowledged: nobody may take it for handed over.
        if (ack.refused_size() >= reported_pending_max)
          ack.set_acknowledged(std::min(ack.acknowledged(), std::max<revision_t>(one.revision() - 1, 0)));
        else
          *ack.add_refused() = std::move(one);
      }
      config.on_ack(ack);
    }
  }

  void say_gone(fleet& f) {
    if (f.number == 0 || f.gateway_class.empty() || f.state.empty()) return;
    f.state = "gone";
    for (const auto& [partition, incarnation] : incarnations()) {
      auto ack = about(f, partition, incarnation);
      ack.set_acknowledged(f.is.acknowledged(partition));
      config.on_ack(ack);
    }
  }

  std::map<partition_id, std::int64_t> incarnations() const {
    return view.read([](const replica::tables& t) {
      std::map<partition_id, std::int64_t> out;
      for (const auto& [id, p] : t.partitions) out[id] = p.incarnation;
      return out;
    });
  }

  busv1::GatewayAck about(const fleet& f, partition_id partition, std::int64_t incarnation) const {
    busv1::GatewayAck out;
    out.set_version(1);
    out.set_incarnation(incarnation);
    out.set_instance(config.instance);
    out.set_gateway(f.gateway);
    out.set_class_(f.gateway_class);
    out.set_stream(f.number);
    out.set_state(f.state);
    out.set_partition(partition);
    out.set_node_id(f.name);
    out.set_node_cluster("envoy-gateway");
    out.set_peer(f.peer);
    out.set_handed_over(true);
    return out;
  }

  replica::view& view;
  const fleets_config config;
  const std::shared_ptr<inbox> in = std::make_shared<inbox>();
  std::atomic<bool> called{false};      // by any fleet: before, nothing has to be followed
  std::map<std::string, fleet> known;   // of our own thread
  int subscription = 0;
  std::thread thread;
};

fleets::fleets(replica::view& v, fleets_config config) : impl_(std::make_unique<impl>(v, std::move(config))) {}
fleets::~fleets() { stop(); }
void fleets::stop() { impl_->stop(); }

void fleets::answered(const answered_call& what) {
  impl_->called = true;
  const std::lock_guard lock{impl_->in->mutex};
  impl_->in->taken[what.fleet] = what;
  impl_->in->wake.notify_all();
}

}  // namespace warren::hook
