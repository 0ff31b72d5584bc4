// services/hook/announcer.cpp -- tells operators' automation that Envoy Gateway has to translate again.
#include "services/hook/announcer.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <google/protobuf/util/json_util.h>

#include "services/hook/retranslate.hpp"
#include "services/hook/webhook.hpp"
#include "services/telemetry/logging.hpp"

namespace warren::hook {

namespace {

constexpr std::int64_t pulse_every_ms = 1'000;
constexpr std::size_t heard_max = 256;               // not looked at yet; beyond: lost, as on the bus
constexpr std::size_t heard_bytes_max = 256 * 1024;  // a hundred tunnels with the longest names are 30 kB
constexpr int merged_tunnels_max = 1'000;            // in the webhook's body, while it is not taken

std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string json_of(const google::protobuf::Message& m) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string out;
  if (!google::protobuf::util::MessageToJsonString(m, &out, options).ok()) out.clear();
  return out;
}

bool parse(const std::string& json, google::protobuf::Message& to) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  return google::protobuf::util::JsonStringToMessage(json, &to, options).ok();
}

}  // namespace

struct announcer::impl {
  impl(replica::view& v, announcer_config c, counters& n) : view(v), config(std::move(c)), count(n), machine(config.instance) {
    if (!config.webhook.empty())
      hook = std::make_unique<webhook>(parse_webhook_url(config.webhook), [this](const std::string& error, const std::string& body) { tried(error, body); });
    subscription = view.subscribe([this](const replica::change_set& c2) { changed(c2); });
    thread = std::thread{[this] { run(); }};
  }
  ~impl() {
    view.unsubscribe(subscription);
    {
      const std::lock_guard lock{mutex};
      stopped = true;
      wake.notify_all();
    }
    thread.join();
  }

  // ---- on others' threads: only put down what came ----

  void changed(const replica::change_set& c) {
    auto touched = view.read([&](const replica::tables& t) { return touched_tunnels(t, c); });
    if (touched.empty() && !c.rebuilt && warm) return;
    const std::lock_guard lock{mutex};
    tunnels.merge(touched);
    everything = everything || c.rebuilt;
    wake.notify_all();
  }
  void tried(const std::string& error, const std::string& body) {
    count.add("warren_retranslate_webhook_total", error.empty() ? "delivered" : "failed");
    const std::lock_guard lock{mutex};
    if (error.empty() && body == owed_body) owed.Clear();
    if (!error.empty()) log.log(spdlog::level::warn, "the re-translation webhook did not take a signal; it is tried again", {{"error", error}});
  }

  // ---- on our own ----

  void run() {
    std::unique_lock lock{mutex};
    std::int64_t pulse_at = 0;
    while (!stopped) {
      auto tunnels_now = std::exchange(tunnels, {});
      auto answers_now = std::exchange(fleets, {});
      auto heard_now = std::exchange(bus, {});
      const bool all = std::exchange(everything, false), failure = std::exchange(failures, false);
      lock.unlock();
      const auto now = now_ms();
      if (!warm) begin(now);
      if (warm) {
        for (const auto& [subject, json] : heard_now) hear(subject, json, now);
        for (auto& [fleet, what] : answers_now) {
          for (const auto& [key, truth] : what)
            tunnels_now.insert({config.projects.project_of(key.first), key.second});
          machine.answered(fleet, std::move(what), now);
        }
        if (failure) machine.failed(now);
        if (all) view.read([&](const replica::tables& t) { for (const auto& [key, row] : t.tunnels) tunnels_now.insert(key); });
        for (const auto& key : tunnels_now) note(key, now);
        if (const auto signal = machine.take(now)) tell(*signal);
        if (machine.has_answered() && now >= pulse_at) {
          pulse_at = now + pulse_every_ms;
          busv1::RetranslatePulse pulse;
          pulse.set_version(1);
          pulse.set_instance(config.instance);
          config.publish(pulse_subject, json_of(pulse));
        }
      }
      lock.lock();
      if (stopped || !tunnels.empty() || !fleets.empty() || !bus.empty() || everything || failures) continue;
      auto until = now + 60'000;
      if (const auto at = machine.wake_at_ms()) until = std::min(until, *at);
      if (machine.has_answered()) until = std::min(until, pulse_at);
      wake.wait_for(lock, std::chrono::milliseconds{std::max<std::int64_t>(until - now_ms(), 1)});
    }
  }

  void begin(std::int64_t now) {
    answers all;
    view.read([&](const replica::tables& t) {
      warm = t.warm;
      if (!warm) return;
      for (const auto& [key, row] : t.tunnels)
        if (auto name = config.projects.namespace_of(key.first); !name.empty())
          all[{std::move(name), key.second}] = truth_of(t, key.first, key.second);
    });
    if (warm) machine.started(std::move(all), now);
  }

  void note(const replica::entity_key& key, std::int64_t now) {
    const auto name = config.projects.namespace_of(key.first);
    if (name.empty()) return;
    machine.noted({name, key.second}, view.read([&](const replica::tables& t) { return truth_of(t, key.first, key.second); }), now);
  }

  void hear(const std::string& subject, const std::string& json, std::int64_t now) {
    busv1::Retranslate signal;
    busv1::RetranslatePulse pulse;
    if (subject == retranslate_subject && parse(json, signal)) machine.heard(signal);
    if (subject == pulse_subject && parse(json, pulse)) machine.heard(pulse, now);
  }

  void tell(const busv1::Retranslate& signal) {
    count.add("warren_retranslate_signals_total", signal.reason());
    telemetry::log(spdlog::level::info, "re-translation is due",
                   {{"reason", signal.reason()}, {"tunnels", signal.tunnels_size() + signal.more()}});
    config.publish(retranslate_subject, json_of(signal));
    if (!hook) return;
    std::string body;
    {
      // What the receiver has not taken yet goes along.
      const std::lock_guard lock{mutex};
      const auto before = owed;
      owed = signal;
      for (const auto& t : before.tunnels()) {
        const bool newer = std::any_of(signal.tunnels().begin(), signal.tunnels().end(),
                                       [&](const auto& s) { return s.name() == t.name() && s.namespace_() == t.namespace_(); });
        if (newer) continue;
        if (owed.tunnels_size() < merged_tunnels_max) *owed.add_tunnels() = t;
        else owed.set_more(owed.more() + 1);
      }
      owed.set_more(owed.more() + before.more());
      body = owed_body = json_of(owed);
    }
    hook->deliver(std::move(body));
  }

  replica::view& view;
  const announcer_config config;
  counters& count;
  retranslation machine;  // of our own thread
  std::atomic<bool> warm{false};
  telemetry::once_a_second log;
  std::mutex mutex;  // guards what follows
  std::condition_variable wake;
  std::set<replica::entity_key> tunnels;                       // may have changed
  std::map<std::string, answers> fleets;                       // answered: the newest of each
  std::vector<std::pair<std::string, std::string>> bus;        // heard
  bool everything = false, failures = false, stopped = false;
  busv1::Retranslate owed;                                     // to the webhook: what it has not taken
  std::string owed_body;
  int subscription = 0;
  std::unique_ptr<webhook> hook;
  std::thread thread;
};

announcer::announcer(replica::view& v, announcer_config config, counters& count)
    : impl_(std::make_unique<impl>(v, std::move(config), count)) {}
announcer::~announcer() = default;

void announcer::answered(const answered_call& what) {
  const std::lock_guard lock{impl_->mutex};
  impl_->fleets[what.fleet] = what.answered;
  impl_->wake.notify_all();
}

void announcer::failed() {
  const std::lock_guard lock{impl_->mutex};
  impl_->failures = true;
  impl_->wake.notify_all();
}

void announcer::heard(std::string_view subject, std::string_view json) {
  const std::lock_guard lock{impl_->mutex};
  if (impl_->bus.size() >= heard_max || json.size() > heard_bytes_max) return;
  impl_->bus.emplace_back(subject, json);
  impl_->wake.notify_all();
}

}  // namespace warren::hook
