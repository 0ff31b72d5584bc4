// services/bus/actor.cpp -- the connection as an actor.
#include "services/bus/actor.hpp"

#include <atomic>
#include <chrono>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include <spdlog/spdlog.h>

namespace warren::bus {

namespace {

/// A request's answer, from the connection's thread back to the actor that owes it.
struct answered {
  std::uint64_t token = 0;
  bus_reply reply;
};

}  // namespace

}  // namespace warren::bus

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(warren::bus::answered)

namespace warren::bus {

namespace {

/// What of one subscription waits in its receiver's mailbox, or for what comes of it there.
class allowance : public std::enable_shared_from_this<allowance> {
public:
  allowance(std::size_t messages_max, std::size_t bytes_max) : messages_max_{messages_max}, bytes_max_{bytes_max} {}

  /// A place that is free again when its last holder lets it go; null: there is none. Called by one thread at a time.
  std::shared_ptr<const void> take(std::size_t bytes) {
    if (messages_ >= messages_max_ || bytes_ + bytes > bytes_max_) return nullptr;
    return std::make_shared<const place>(shared_from_this(), bytes);
  }

private:
  struct place {
    std::shared_ptr<allowance> of;
    std::size_t bytes;
    place(std::shared_ptr<allowance> a, std::size_t n) : of{std::move(a)}, bytes{n} {
      of->messages_ += 1;
      of->bytes_ += bytes;
    }
    ~place() {
      of->messages_ -= 1;
      of->bytes_ -= bytes;
    }
    place(const place&) = delete;
    place& operator=(const place&) = delete;
  };

  const std::size_t messages_max_, bytes_max_;
  std::atomic<std::size_t> messages_{0}, bytes_{0};
};

/// Counts what a receiver that is behind does not get, and says so once a second at most. One thread at a time.
struct behind {
  counters* counts;
  std::chrono::steady_clock::time_point said_at{};
  std::size_t unsaid = 0;

  void dropped(std::string_view subject) {
    if (counts != nullptr) counts->add("warren_bus_dropped_total", "behind");
    const auto now = std::chrono::steady_clock::now();
    if (now < said_at + 1s) {
      ++unsaid;
      return;
    }
    spdlog::warn("bus: dropped a message on {}: its receiver is behind; {} more since the last line", subject,
                 std::exchange(unsaid, 0));
    said_at = now;
  }
};

using shell_actor = bus_actor::extend<caf::reacts_to<answered>, caf::reacts_to<bus_state>>;

struct state {
  state() = default;
  static inline const char* name = "bus";

  std::shared_ptr<connection> to;
  counters* counts = nullptr;
  bool connected = false;
  std::uint64_t last_token = 0;
  std::unordered_map<std::uint64_t, caf::typed_response_promise<bus_reply>> owed;
  // Keyed by receiver first: all of one receiver's end with it.
  std::map<caf::actor_addr, std::map<std::string, subscription>> subscriptions;
  std::set<caf::actor_addr> watchers;
  std::set<caf::actor_addr> monitored;
};

using self_ptr = shell_actor::stateful_pointer<state>;

void watch_end_of(self_ptr self, const caf::actor& receiver) {
  if (self->state.monitored.insert(receiver.address()).second) self->monitor(receiver);
}

void forget(self_ptr self, const caf::actor_addr& gone) {
  self->state.subscriptions.erase(gone);
  self->state.watchers.erase(gone);
  self->state.monitored.erase(gone);
}

void subscribe(self_ptr self, const bus_subscribe& wanted) {
  auto& subjects = self->state.subscriptions[wanted.receiver.address()];
  if (subjects.count(wanted.subject) > 0) return;
  // Weak: a subscription must not keep its receiver alive.
  auto handle = self->state.to->subscribe(
      wanted.subject, [to = caf::actor_cast<caf::actor_addr>(wanted.receiver), late = behind{self->state.counts}, pattern = wanted.subject,
                       room = std::make_shared<allowance>(wanted.messages_max, wanted.bytes_max)](
                          std::string_view subject, std::string_view payload, std::string_view reply_to) mutable {
        const auto receiver = caf::actor_cast<caf::actor>(to);
        if (!receiver) return;
        auto place = room->take(subject.size() + payload.size() + reply_to.size());
        if (!place) return late.dropped(pattern);
        caf::anon_send(receiver, bus_message{std::string{subject}, std::string{payload}, std::string{reply_to}, std::move(place)});
      });
  if (!handle) {
    spdlog::error("bus: cannot subscribe to {}", wanted.subject);
    return;
  }
  subjects.emplace(wanted.subject, std::move(handle));
  watch_end_of(self, wanted.receiver);
}

caf::result<bus_reply> request(self_ptr self, const bus_request& asked) {
  auto promise = self->make_response_promise<bus_reply>();
  const auto token = ++self->state.last_token;
  self->state.owed.emplace(token, promise);
  self->state.to->request(asked.subject, asked.payload, asked.timeout,
                          [to = caf::actor_cast<shell_actor>(self), token](request_error error, std::string_view payload) {
                            caf::anon_send(to, answered{token, {std::string{to_string(error)}, std::string{payload}}});
                          });
  return promise;
}

shell_actor::behavior_type shell(self_ptr self, std::shared_ptr<connection> to, counters* counts) {
  self->state.to = std::move(to);
  self->state.counts = counts;
  self->set_down_handler([self](const caf::down_msg& down) { forget(self, down.source); });
  self->state.to->on_state([me = caf::actor_cast<caf::actor_addr>(self)](bool connected) {
    if (const auto alive = caf::actor_cast<shell_actor>(caf::actor_cast<caf::strong_actor_ptr>(me)))
      caf::anon_send(alive, bus_state{connected});
  });
  return {
      [self](const bus_publish& message) { self->state.to->publish(message.subject, message.payload, message.bulk); },
      [self](const bus_request& asked) { return request(self, asked); },
      [self](const bus_subscribe& wanted) { subscribe(self, wanted); },
      [self](const bus_unsubscribe& ended) {
        const auto at = self->state.subscriptions.find(ended.receiver.address());
        if (at != self->state.subscriptions.end()) at->second.erase(ended.subject);
      },
      [self](const bus_watch& watch) {
        self->state.watchers.insert(watch.receiver.address());
        watch_end_of(self, watch.receiver);
        caf::anon_send(watch.receiver, bus_state{self->state.connected});
      },
      [self](const answered& answer) {
        const auto at = self->state.owed.find(answer.token);
        if (at == self->state.owed.end()) return;
        at->second.deliver(answer.reply);
        self->state.owed.erase(at);
      },
      [self](const bus_state& now) {
        if (self->state.connected == now.connected) return;
        self->state.connected = now.connected;
        for (const auto& address : self->state.watchers)
          if (const auto watcher = caf::actor_cast<caf::actor>(address)) caf::anon_send(watcher, now);
      },
  };
}

}  // namespace

bus_actor spawn_bus(caf::actor_system& system, std::shared_ptr<connection> to, counters& counts) {
  return system.spawn(shell, std::move(to), &counts);
}

}  // namespace warren::bus
