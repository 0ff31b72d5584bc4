// test/simulation/process.cpp -- one start of one warrend on virtual time: wiring, as services/warrend/serve does it.
#include "test/simulation/process.hpp"

#include <type_traits>
#include <utility>

#include "actors/core/subjects.hpp"

namespace warren::simulation {

namespace {

constexpr std::int64_t xds_tick_ms = 500;
constexpr int turns_at_one_moment_max = 200'000;  // of the actors of one process
using partition::partition_context;

/// To the asker: hand everything over.
struct drain_now {};
/// To the edge: in your turn.
struct answer_now {
  std::function<void()> run;
};

}  // namespace
}  // namespace warren::simulation

WARREN_LOCAL_MESSAGE(warren::simulation::drain_now)
WARREN_LOCAL_MESSAGE(warren::simulation::answer_now)

namespace warren::simulation {

process::process(process_wiring w) : to_{std::move(w)} {
  follow_clock();
  view_.set_partitions(to_.partitions, steady_ms());
  store_ = std::make_shared<store_link>(store_link::wiring{
      .time = to_.time, .db = to_.db, .weather = to_.weather, .me = to_.me, .deliver = to_.deliver,
      .on_commit =
          [this](const busv1::Revision& r) {
            if (dead_) return;
            to_.on_announce(r);
            caf::anon_send(replica_, committed{r});
            to_.net.publish(link_, {bus::revision_subject(r.partition()), r.SerializeAsString(), ""});
          },
      .on_answer = to_.on_answer, .next_ticket = to_.next_ticket, .on_open = to_.on_open});
  leases_ = std::make_shared<lease_link>(
      lease_link::wiring{.time = to_.time, .db = to_.db, .weather = to_.weather, .way = *store_, .me = to_.me,
                         .ttl_ms = to_.lease.count(), .deliver = to_.deliver, .step_down = to_.step_down},
      to_.lock_session);
  connect_bus();
  spawn_edge();
  spawn_rooms();
  settle();
}

process::~process() {
  dead_ = true;
  life_.reset();
  to_.net.disconnect(link_);
  // An actor that awaits an answer hears nothing else, not even that it shall end.
  store_->abandon();
  leases_->abandon();
  for (auto& [id, then] : std::exchange(requests_, {})) then({"disconnected", ""});
  for (auto& [id, then] : std::exchange(dials_, {})) then({});
  settle();
  store_.reset();  // with the promises that wait in it
  leases_.reset();
  subscribers_.clear();
  bus_watchers_.clear();
  // As actors they end in order; as a process it is dead: nothing of what they say now is heard by anybody.
  caf::anon_send_exit(placement_, caf::exit_reason::user_shutdown);
  settle();
  for (const auto& a : {caf::actor_cast<caf::actor>(replica_), caf::actor_cast<caf::actor>(silence_), asker_, edge_})
    caf::anon_send_exit(a, caf::exit_reason::kill);
  settle();
  requests_.clear();
  dials_.clear();
  jobs_.clock().cancel_all();
}

// ---- time ----

void process::follow_clock() {
  jobs_.clock().current_time = caf::detail::test_actor_clock::time_point{} + std::chrono::milliseconds{steady_ms()};
}

void process::settle() {
  auto& jobs = jobs_.jobs;
  for (int turns = 0; !jobs.empty(); ++turns) {
    if (turns == turns_at_one_moment_max) return to_.time.violate("actors talk to each other without end");
    // Any order in which threads might have run them; the messages of one actor keep theirs.
    if (jobs.size() > 1)
      std::swap(jobs.front(), jobs[static_cast<std::size_t>(to_.time.schedule.roll() % jobs.size())]);
    jobs_.try_run_once();
  }
}

std::optional<std::int64_t> process::next_timer_ms() const {
  const auto& all = const_cast<process*>(this)->jobs_.clock().schedule();
  if (all.empty()) return std::nullopt;
  const auto due = std::chrono::duration_cast<millis>(all.begin()->first.time_since_epoch()).count();
  return std::max(due - to_.steady_offset_ms, to_.time.now_ms());
}

void process::fire_timer() {
  follow_clock();
  jobs_.clock().trigger_timeout();
  settle();
}

// ---- the edge: what leaves the system ----

/// An answer leaves from within the actor that was asked: outside of its turn it has no scheduler to wake others with.
template <class Answer> std::function<void(Answer)> process::answer_later(caf::typed_response_promise<Answer> promise) {
  return [this, promise](Answer a) {
    caf::anon_send(edge_, answer_now{[promise, a = std::move(a)]() mutable { promise.deliver(std::move(a)); }});
  };
}

/// What somebody hears who asks while the process dies.
template <class Answer> Answer gone() {
  Answer a{};
  if constexpr (std::is_same_v<Answer, save_result>) a = save_lost{};
  else if constexpr (std::is_same_v<Answer, loaded>) a.lost = true;
  else if constexpr (!std::is_same_v<Answer, dial_result>) a.error = "the process has ended";
  return a;
}

caf::behavior process::edge(caf::event_based_actor* self) {
  self->set_down_handler([this](const caf::down_msg& down) { forget_receiver(down.source); });
  // Where a promise waits goes before the system does.
  const auto asked = [self, this]<class Answer>(auto ask) {
    auto promise = self->make_response_promise<caf::typed_response_promise<Answer>>();
    if (dead_) promise.deliver(gone<Answer>());
    else ask(answer_later<Answer>(promise));
    return promise;
  };
  const auto store = [=, this]<class Answer>(const auto& q) {
    return asked.template operator()<Answer>([&](auto then) { ask_store(q, std::move(then)); });
  };
  const auto lease = [=](auto ask) { return asked.template operator()<placement_view>(std::move(ask)); };
  return {
      // What comes most often first: it is looked for in this order.
      [this](const bus_publish& p) {
        if (!dead_) to_.net.publish(link_, {p.subject, p.payload, ""});
      },
      [=](const save_request& q) { return store.template operator()<save_result>(q); },
      [=](const load_entity& q) { return store.template operator()<loaded>(q); },
      [=](const load_partition& q) { return store.template operator()<loaded>(q); },
      [=](const load_naming& q) { return store.template operator()<loaded>(q); },
      [=](const adopt_rivals& q) { return store.template operator()<loaded>(q); },
      [=](const find_answer& q) { return store.template operator()<save_result>(q); },
      [=](const fetch_changes& q) { return store.template operator()<changes>(q); },
      [=, this](const renew_lease& q) { return lease([&](auto then) { leases_->renew(q, std::move(then)); }); },
      [=, this](const take_partitions& q) { return lease([&](auto then) { leases_->take(q, std::move(then)); }); },
      [=, this](const release_partition& q) { return lease([&](auto then) { leases_->release(q, std::move(then)); }); },
      [=, this](const judge_instance& q) { return lease([&](auto then) { leases_->judge(q, std::move(then)); }); },
      [=, this](const bus_request& q) {
        return asked.template operator()<bus_reply>([&](auto then) { request(q, std::move(then)); });
      },
      [this, self](const bus_subscribe& s) {
        if (dead_) return;
        subscribers_[s.subject].push_back(s.receiver);
        self->monitor(s.receiver);
        to_.net.subscribe(link_, s.subject);
      },
      [this](const bus_unsubscribe& s) {
        auto& receivers = subscribers_[s.subject];
        std::erase(receivers, s.receiver);
        if (receivers.empty() && !dead_) to_.net.unsubscribe(link_, s.subject);
      },
      [this](const bus_watch& w) {
        if (dead_) return;
        bus_watchers_.push_back(w.receiver);
        caf::anon_send(w.receiver, bus_state{to_.net.connected(link_)});
      },
      [=, this](const dial_request& q) {
        return asked.template operator()<dial_result>([&](auto then) { dial(q, std::move(then)); });
      },
      [](answer_now& a) { a.run(); },
  };
}

void process::ask_store(const save_request& q, std::function<void(save_result)> then) { store_->save(q, std::move(then)); }
void process::ask_store(const find_answer& q, std::function<void(save_result)> then) { store_->find(q, std::move(then)); }
void process::ask_store(const adopt_rivals& q, std::function<void(loaded)> then) { store_->adopt(q, std::move(then)); }
void process::ask_store(const fetch_changes& q, std::function<void(changes)> then) { store_->fetch(q, std::move(then)); }
void process::ask_store(const auto& q, std::function<void(loaded)> then) { store_->load(q, std::move(then)); }

void process::request(const bus_request& q, std::function<void(bus_reply)> then) {
  const auto id = next_request_++;
  requests_[id] = std::move(then);
  to_.net.request(link_, {q.subject, q.payload, network::inbox(link_, id)});
  to_.time.after(q.timeout.count(), [this, id, life = std::weak_ptr<int>{life_}] {
    if (life.expired()) return;
    to_.deliver([this, id] { answer_request(id, {"timeout", ""}); });
  });
}

void process::answer_request(std::uint64_t id, bus_reply r) {
  auto it = requests_.find(id);
  if (it == requests_.end()) return;
  auto then = std::move(it->second);
  requests_.erase(it);
  then(std::move(r));
}

void process::dial(const dial_request& q, std::function<void(dial_result)> then) {
  const auto result = to_.dial(q);
  const auto ms = result.what == dial_result::outcome::unanswered ? q.timeout.count() : to_.time.network.between(1, 5);
  const auto id = next_request_++;
  dials_[id] = std::move(then);
  to_.time.after(ms, [this, id, result, life = std::weak_ptr<int>{life_}] {
    if (life.expired()) return;
    to_.deliver([this, id, result] {
      auto it = dials_.find(id);
      if (it == dials_.end()) return;
      auto done = std::move(it->second);
      dials_.erase(it);
      done(result);
    });
  });
}

/// A subscription ends with its receiver.
void process::forget_receiver(const caf::actor_addr& gone) {
  for (auto& [pattern, receivers] : subscribers_) {
    const auto before = receivers.size();
    std::erase_if(receivers, [&](const caf::actor& a) { return a.address() == gone; });
    if (before > 0 && receivers.empty() && !dead_) to_.net.unsubscribe(link_, pattern);
  }
}

void process::connect_bus() {
  const std::weak_ptr<int> life{life_};
  link_ = to_.net.connect(
      fmt::format("instance {}", to_.number),
      {.message =
           [this, life](const std::string& pattern, const heard_message& m) {
             // An answer's pattern is its subject, which goes with it.
             to_.deliver([this, life, by = &pattern == &m->subject ? nullptr : &pattern, m] {
               if (!life.expired()) heard(by == nullptr ? m->subject : *by, *m);
             });
           },
       .state =
           [this, life](bool connected) {
             to_.deliver([this, life, connected] {
               if (life.expired()) return;
               caf::anon_send(placement_, bus_state{connected});
               for (const auto& w : bus_watchers_) caf::anon_send(w, bus_state{connected});
             });
           }});
}

void process::heard(const std::string& pattern, const bus_message& m) {
  to_.time.record("heard", m.subject, m.payload);
  if (m.subject.rfind("_INBOX.", 0) == 0) {
    const bool nobody = m.reply_to == "no_responders";
    return answer_request(std::stoull(m.subject.substr(m.subject.rfind('.') + 1)),
                          nobody ? bus_reply{"no_responders", ""} : bus_reply{"", m.payload});
  }
  if (to_.db.planted != nullptr && to_.db.planted->count(bug::revision_gap_ignored) > 0 && ignore_gap(m)) return;
  auto it = subscribers_.find(pattern);
  if (it == subscribers_.end()) return;
  for (const auto& receiver : it->second) caf::anon_send(receiver, m);
}

/// A planted bug: whatever comes next is taken for all that has changed since.
bool process::ignore_gap(const bus_message& m) {
  const auto subject = bus::parse_subject(m.subject);
  busv1::Revision hint;
  if (!subject || subject->room != bus::subject_room::revision || !hint.ParseFromString(m.payload)) return false;
  const auto have = view_.revision(hint.partition());
  if (have < 0 || hint.revision() <= have + 1 || hint.revision() >> 32 != have >> 32) return false;
  if (hint.rows_size() > 0)
    view_.apply_fetched(hint.partition(), false, hint.revision(), hint.epoch(), {hint.rows().begin(), hint.rows().end()},
                        steady_ms(), wall_ms());
  return true;
}

// ---- rooms ----

void process::spawn_edge() {
  edge_ = system_.spawn([this](caf::event_based_actor* self) { return edge(self); });
}

void process::spawn_rooms() {
  const auto wall = [this] { return wall_ms(); };
  const auto random = [this] { return to_.time.secrets.roll(); };
  pace_ = std::make_shared<connector::heartbeat_pace>(to_.heartbeat_interval_ms, to_.heartbeats_per_second);
  silence_ = connector::spawn_silence(
      system_, [this](bool on) { caf::anon_send(placement_, mass_silence{on}); }, count, pace_);
  replica_ = replica::spawn_replica(system_, view_, caf::actor_cast<store_actor>(edge_),
                                    caf::actor_cast<bus_actor>(edge_),
                                    {.partitions = to_.partitions, .instance = to_.me, .wall_ms = wall, .random = random},
                                    count);
  placement::placement_context placing;
  placing.leases = caf::actor_cast<lease_store_actor>(edge_);
  placing.me = to_.me;
  placing.lease = to_.lease;
  auto& entity = placing.partition.entity;
  entity.store = caf::actor_cast<store_actor>(edge_);
  entity.bus = caf::actor_cast<bus_actor>(edge_);
  entity.dialer = caf::actor_cast<dialer_actor>(edge_);
  entity.silence = silence_;
  entity.count = &count;
  entity.heartbeat_interval_ms = to_.heartbeat_interval_ms;
  entity.loaded_interval_ms = [pace = pace_] { return pace->interval_ms.load(); };
  entity.wall_ms = wall;
  entity.random = random;
  entity.fresh_uid = [this] { return fmt::format("{:08x}{:08x}{:016x}", to_.me, uids_++, to_.time.secrets.roll()); };
  entity.secret = [this](std::size_t n) {
    std::string out(n, '\0');
    for (auto& c : out) c = static_cast<char>(to_.time.secrets.roll());
    return out;
  };
  placing.partition.partitions = to_.partitions;
  placing.partition.started_steady_ms = steady_ms();
  placing.partition.bus_connected = to_.net.connected(link_);
  placing.partition.find_class = [this](const std::string& wanted) {
    return view_.read([&](const replica::tables& t) {
      partition_context::class_answer a;
      auto reserved = t.partitions.find(to_.partitions);
      a.known = reserved != t.partitions.end() && reserved->second.warm;
      auto it = t.connector_classes.find(wanted);
      a.found = it != t.connector_classes.end();
      if (a.found) a.allowed_networks.assign(it->second->allowed_networks().begin(), it->second->allowed_networks().end());
      return a;
    });
  };
  placing.partition.registered_gateways = [this](const std::string& gateway_class) {
    return view_.read([&](const replica::tables& t) -> std::optional<std::set<std::string>> {
      auto reserved = t.partitions.find(to_.partitions);
      if (reserved == t.partitions.end() || !reserved->second.warm) return std::nullopt;
      std::set<std::string> names;
      for (const auto& [name, row] : t.gateways)
        if (row->class_() == gateway_class) names.insert(name);
      return names;
    });
  };
  placing.partition.seen_revision = [this](partition_id p) {
    return view_.read([&](const replica::tables& t) {
      auto it = t.partitions.find(p);
      return it == t.partitions.end() ? revision_t{0} : it->second.revision;
    });
  };
  placing.on_change = [this](const owned_partitions& o) {
    owned_ = o.epochs;
    held_ = o.lease;
    if (!dead_) to_.on_owned(o);
  };
  placement_ = system_.spawn(placement::actor, std::move(placing));
  asker_ = system_.spawn([this](caf::event_based_actor* self) -> caf::behavior {
    return {[this, self](const drain_now&) {
      self->request(placement_, caf::infinite, warren::drain{}).then([this](const drained&) {
        if (drained_) std::exchange(drained_, nullptr)();
      });
    }};
  });
  xds_ = std::make_unique<xds_side>(xds_side::wiring{
      .view = view_, .me = to_.me, .now_ms = [this] { return steady_ms(); },
      .next_stream = [this](auto then) { store_->next_stream(std::move(then)); },
      .on_ack =
          [this](const busv1::GatewayAck& ack) {
            if (dead_) return;
            caf::anon_send(replica_, ack);
            caf::anon_send(placement_, to_partition{ack.partition(), ack});
            to_.net.publish(link_, {bus::ack_subject(ack.partition()), ack.SerializeAsString(), ""});
          },
      .send = to_.send_to_gateway, .close = to_.close_gateway, .planted = to_.db.planted});
  watches_ = std::make_unique<watch_side>(watch_side::wiring{
      .view = view_, .wall_ms = wall, .planted = to_.db.planted,
      .soon =
          [this](std::function<void()> what) {
            to_.time.after(0, [this, what = std::move(what), life = std::weak_ptr<int>{life_}] {
              if (life.expired()) return;
              to_.deliver([what, life] {
                if (!life.expired()) what();
              });
            });
          },
      .send = to_.send_to_watch, .close = to_.close_watch});
  // The gateway server has a thread of its own: it hears of a change a moment after the replica has made it.
  view_.subscribe([this](const replica::change_set& c) {
    if (dead_) return;
    to_.time.after(0, [this, c, life = std::weak_ptr<int>{life_}] {
      if (life.expired()) return;
      to_.deliver([this, c] { xds_->changed(c); });
    });
    to_.on_view_change(c);
  });
  tick_gateways();
}

void process::tick_gateways() {
  to_.time.after(xds_tick_ms, [this, life = std::weak_ptr<int>{life_}] {
    if (life.expired()) return;
    to_.deliver([this, life] {
      if (life.expired()) return;
      xds_->tick();
      tick_gateways();
    });
  });
}

void process::drain(std::function<void()> done) {
  drained_ = std::move(done);
  watches_->stop();
  xds_->stop();
  caf::anon_send(asker_, drain_now{});
}

void process::peer_ended(instance_id peer) { caf::anon_send(placement_, peer_disconnected{peer}); }
void process::tell_placement(to_partition what) { caf::anon_send(placement_, std::move(what)); }
void process::rival_marked(partition_id p) { tell_placement({p, adopt_rivals{p, 0}}); }

}  // namespace warren::simulation
