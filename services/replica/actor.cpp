// services/replica/actor.cpp -- feeds the view: applies hints in order, asks the store for what is missing.
#include "services/replica/actor.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include <spdlog/spdlog.h>

#include "actors/core/limits.hpp"
#include "actors/core/line_limits.hpp"
#include "actors/core/subjects.hpp"
#include "actors/core/transition.hpp"
#include "actors/log.hpp"

namespace warren::replica {

namespace {

constexpr int fetches_max = 4;       // at a time: a start must not starve the store of its lanes
constexpr auto tick_every = 100ms;   // reports and waits expire on this grid
constexpr std::int64_t unheard_ms = 5'000;  // a partition of which nobody speaks is asked after in the store
constexpr std::int64_t unheard_deaf_ms = 250;  // of nobody anything is heard: the store is all that we have
constexpr int gauges_every = 10;            // ticks

struct replica_state {
  replica_state() = default;
  static inline const char* name = "replica";

  view* copy = nullptr;
  counters* count = nullptr;
  store_actor store;
  replica_config config;

  struct partition {
    bool wanted = false;         ///< something is missing
    bool outstanding = false;
    int failures = 0;
    revision_t target = 0;       ///< the highest that was heard of
    std::int64_t not_before_ms = 0;
  };
  std::map<partition_id, partition> partitions;
  outage reads;                  ///< what was said of those that failed
  int outstanding = 0;
  int ticks = 0;
  bool deaf = false;             ///< the bus is away
  bool direct_acks = false;      ///< our gateways speak to us: their echo from the bus is older
};
using self_ptr = replica_actor::stateful_pointer<replica_state>;

std::int64_t steady_of(self_ptr self) {
  return std::chrono::duration_cast<millis>(self->clock().now().time_since_epoch()).count();
}

void pump(self_ptr self);

void take_changes(self_ptr self, partition_id id, const changes& got) {
  auto& s = self->state;
  auto& p = s.partitions[id];
  p.outstanding = false;
  --s.outstanding;
  if (!got.error.empty()) {
    ++p.failures;
    p.not_before_ms = steady_of(self) + backoff_ms(limits::unavailable_retry_first, limits::unavailable_retry_max,
                                                   p.failures, s.config.random());
    if (const auto times = s.reads.failed(steady_of(self)))
      log_line(spdlog::level::warn, "partitions cannot be read for the lists", {{"partition", id}, {"error", got.error}, {"times", *times}});
    return pump(self);
  }
  if (const auto away_ms = s.reads.over(steady_of(self)))
    log_line(spdlog::level::info, "partitions are read again for the lists", {{"partition", id}, {"was_away_ms", *away_ms}});
  s.copy->apply_fetched(id, got.complete, got.revision, got.epoch, got.rows, steady_of(self), s.config.wall_ms(),
                        got.tombstones_from, got.incarnation);
  // A hint that came meanwhile may be of a later commit than the store's snapshot.
  p.wanted = s.copy->revision(id) < p.target;
  p.failures = p.wanted ? p.failures + 1 : 0;
  if (p.wanted)
    p.not_before_ms = steady_of(self) + backoff_ms(limits::unavailable_retry_first, limits::unavailable_retry_max,
                                                   p.failures, s.config.random());
  pump(self);
}

// Asks for what is missing, as far as the bound allows; what has to wait is looked at with each tick.
void pump(self_ptr self) {
  auto& s = self->state;
  const auto now = steady_of(self);
  for (auto& [id, p] : s.partitions) {
    if (s.outstanding >= fetches_max) return;
    if (!p.wanted || p.outstanding || now < p.not_before_ms) continue;
    p.outstanding = true;
    ++s.outstanding;
    const auto partition = id;
    self->request(s.store, caf::infinite, fetch_changes{partition, s.copy->fetch_after(partition)})
        .then([self, partition](const changes& got) { take_changes(self, partition, got); },
              [self, partition](const caf::error&) {
                changes none;
                none.error = "the store does not answer";
                take_changes(self, partition, none);
              });
  }
}

void want(self_ptr self, partition_id id) {
  auto found = self->state.partitions.find(id);
  if (found == self->state.partitions.end()) return;
  found->second.wanted = true;
  pump(self);
}

void hear(self_ptr self, const busv1::Revision& hint) {
  auto& s = self->state;
  if (s.copy->apply(hint, steady_of(self), s.config.wall_ms()) != view::applied::gap) return;
  auto known = s.partitions.find(hint.partition());
  if (known == s.partitions.end()) return;
  known->second.target = std::max(known->second.target, hint.revision());
  // Before the first load everything is missing; that is no gap. One that is being fetched is counted once.
  if (s.copy->revision(hint.partition()) >= 0 && !known->second.wanted) s.count->add("warren_replica_gaps_total");
  want(self, hint.partition());
}

void hear(self_ptr self, const bus_message& m) {
  auto& s = self->state;
  if (m.payload.size() > limits::bus_message_bytes_max) return;
  const auto subject = bus::parse_subject(m.subject);
  if (!subject) return;
  if (subject->room == bus::subject_room::revision) {
    busv1::Revision hint;
    if (hint.ParseFromString(m.payload) && hint.version() == 1 && hint.partition() == subject->partition)
      hear(self, hint);
  } else if (subject->room == bus::subject_room::ack) {
    busv1::GatewayAck ack;
    if (!ack.ParseFromString(m.payload) || ack.version() != 1 || ack.partition() != subject->partition) return;
    if (s.direct_acks && ack.instance() == s.config.instance) return;
    s.copy->apply_ack(ack, steady_of(self), s.config.wall_ms());
  }
}

void set_gauges(self_ptr self) {
  auto& s = self->state;
  revision_t lag = 0;
  for (const auto& [id, p] : s.partitions) {
    const auto have = s.copy->revision(id);
    // Another lineage is not a distance.
    if (have >= 0 && have >> 32 == p.target >> 32) lag += std::max<revision_t>(p.target - have, 0);
  }
  s.count->set("warren_replica_revision_lag", static_cast<double>(lag));
  s.copy->read([&](const tables& t) {
    const auto rows = [&](std::string_view table, std::size_t n) {
      s.count->set("warren_replica_rows", static_cast<double>(n), table);
    };
    rows("tunnel", t.tunnels.size());
    rows("connector", t.connectors.size());
    rows("attachment", t.attachments.size());
    rows("hostname_claim", t.claims.size());
    rows("gateway", t.gateways.size());
    std::size_t deleted = 0;  // remembered for watches that resume
    for (const auto& [id, d] : t.deleted) deleted += d.all.size();
    rows("deleted", deleted);
  });
}

void tick(self_ptr self) {
  auto& s = self->state;
  const auto now = steady_of(self);
  s.copy->tick(now, s.config.wall_ms());
  std::vector<partition_id> unheard;
  const auto too_long = s.deaf ? unheard_deaf_ms : unheard_ms;
  s.copy->read([&](const tables& t) {
    for (const auto& [id, p] : t.partitions)
      if (p.warm && now >= p.heard_at_ms + too_long) unheard.push_back(id);
  });
  for (auto id : unheard) s.partitions[id].wanted = true;
  pump(self);
  if (++s.ticks % gauges_every == 0) set_gauges(self);
  self->delayed_send(self, tick_every, wake_up{});
}

replica_actor::behavior_type replica(self_ptr self, view* copy, store_actor store, bus_actor nats,
                                     replica_config config, counters* count) {
  auto& s = self->state;
  s.copy = copy;
  s.count = count;
  s.store = std::move(store);
  s.config = std::move(config);
  copy->set_partitions(s.config.partitions, steady_of(self));
  // First listen, then read: what is committed in between is heard as a gap or brought by the read.
  const auto me = caf::actor_cast<caf::actor>(caf::strong_actor_ptr{self->ctrl()});
  self->send(nats, bus_subscribe{std::string{bus::revision_wildcard}, me});
  self->send(nats, bus_subscribe{std::string{bus::ack_wildcard}, me});
  self->send(nats, bus_watch{me});
  for (partition_id p = 0; p <= s.config.partitions; ++p) s.partitions[p].wanted = true;
  pump(self);
  self->delayed_send(self, tick_every, wake_up{});
  return {
      [self](const committed& c) { hear(self, c.revision); },
      [self](const busv1::GatewayAck& ack) {
        auto& st = self->state;
        if (ack.instance() == st.config.instance) st.direct_acks = true;
        st.copy->apply_ack(ack, steady_of(self), st.config.wall_ms());
      },
      [self](const bus_message& m) { hear(self, m); },
      [self](const bus_state& b) {
        // Whatever was said while we were cut off and was not read is found by the revision that each owner repeats.
        self->state.deaf = !b.connected;
      },
      [self](const wake_up&) { tick(self); },
  };
}

}  // namespace

replica_actor spawn_replica(caf::actor_system& system, view& copy, store_actor store, bus_actor bus,
                            replica_config config, counters& count) {
  return system.spawn(replica, &copy, std::move(store), std::move(bus), std::move(config), &count);
}

}  // namespace warren::replica
