// services/bus/connection.cpp -- NATS without actors. Two threads of its own: one for deadlines and counts,
// one that drains ended subscriptions and opens links that the library has given up.
#include "services/bus/connection.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <fstream>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <unordered_map>
#include <utility>

#include <nats/nats.h>
#include <spdlog/spdlog.h>

#include "services/telemetry/logging.hpp"

namespace warren::bus {

namespace {

using steady = std::chrono::steady_clock;

constexpr int delivery_threads = 2;           // for all subscriptions of the process: there are hundreds
constexpr std::size_t drains_at_a_time = 16;  // the library spends a thread on each
constexpr std::int64_t drain_timeout_ms = 2000;
constexpr std::int64_t write_deadline_ms = 2000;  // a server that takes nothing for so long is as good as away
constexpr auto housekeeping_interval = 1s;
constexpr std::int64_t close_flush_ms = 500;

void open_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    nats_Open(-1);
    nats_SetMessageDeliveryPoolSize(delivery_threads);
  });
}

void check(natsStatus status, const char* what) {
  if (status != NATS_OK) throw std::invalid_argument(std::string{what} + ": " + natsStatus_GetText(status));
}

std::string_view view_of(const char* text) { return text == nullptr ? std::string_view{} : std::string_view{text}; }

}  // namespace

std::string_view to_string(request_error error) {
  switch (error) {
    case request_error::none: return "";
    case request_error::no_responders: return "no_responders";
    case request_error::timeout: return "timeout";
    case request_error::disconnected: return "disconnected";
    case request_error::overloaded: return "overloaded";
  }
  return "overloaded";
}

/// What handle, registry and the library's closure share.
struct subscription::shared {
  std::weak_ptr<connection::impl> owner;
  std::string subject;
  message_callback callback;

  std::mutex running;                  // held while the callback runs
  std::atomic<std::thread::id> runner{};
  std::atomic<bool> cancelled{false};

  natsSubscription* handle = nullptr;  // guarded by the owner's registry mutex
  std::int64_t drops_counted = 0;      // as above

  void deliver(std::string_view subject_seen, std::string_view payload, std::string_view reply_to) {
    const std::lock_guard lock{running};
    if (cancelled) return;
    runner = std::this_thread::get_id();
    try {
      callback(subject_seen, payload, reply_to);
    } catch (const std::exception& e) {
      spdlog::error("bus: a callback of {} failed: {}", subject, e.what());
    }
    runner = std::thread::id{};
  }
  void cancel() {
    cancelled = true;
    if (runner.load() != std::this_thread::get_id()) const std::lock_guard wait{running};
  }
};

struct connection::impl : std::enable_shared_from_this<connection::impl> {
  // ---- links: the library's connections, replaced when it closes one for good ----

  struct link {
    std::weak_ptr<impl> owner;
    bool bulk = false;
    std::atomic<bool> retired{false};  // replaced or closing: its events no longer matter
  };
  using nats_ptr = std::shared_ptr<natsConnection>;

  connection_options options;
  counters* counts = nullptr;
  std::string inbox;

  mutable std::mutex links_mutex;
  nats_ptr prompt, bulk;                     // null: being opened
  std::shared_ptr<link> prompt_link, bulk_link;

  std::mutex registry_mutex;
  std::set<std::shared_ptr<subscription::shared>> registry;
  std::shared_ptr<subscription::shared> inbox_subscription;

  steady::time_point changed_at = steady::now();  // of `connected`; under state_mutex, as is the next
  bool was_connected = false;
  std::recursive_mutex state_mutex;  // held while state callbacks run, so that changes arrive in order
  std::deque<state_callback> state_callbacks;
  std::atomic<bool> connected{false};
  std::atomic<bool> closed{false};

  struct waiting {
    reply_callback callback;
    steady::time_point deadline;
  };
  std::mutex requests_mutex;
  std::condition_variable requests_changed;
  std::unordered_map<std::uint64_t, waiting> requests;
  std::set<std::pair<steady::time_point, std::uint64_t>> deadlines;
  std::uint64_t last_token = 0;
  bool timer_stops = false;
  std::thread timer;

  std::mutex reaper_mutex;
  std::condition_variable reaper_wakes;
  std::deque<natsSubscription*> ended;
  bool reopen_prompt = false, reopen_bulk = false, reaper_stops = false;
  int reopen_attempts = 0;
  std::thread reaper;

  std::atomic<std::uint64_t> messages_in{0}, messages_out{0};

  // ---- opening ----

  void start() {
    open_library();
    natsInbox* fresh = nullptr;
    check(natsInbox_Create(&fresh), "inbox");
    const std::string_view text{fresh};
    inbox = options.inbox_prefix + std::string{text.substr(text.rfind('.'))};
    natsInbox_Destroy(fresh);
    (void)make_options(nullptr, true);  // throws for options that can never work
    inbox_subscription = register_subscription(inbox + ".*", [this](std::string_view subject, std::string_view payload, std::string_view) {
      answered(subject, payload, request_error::none);
    });
    open_link(false);
    if (options.bulk_connection) open_link(true);
    timer = std::thread{[this] { run_timer(); nats_ReleaseThreadMemory(); }};
    reaper = std::thread{[this] { run_reaper(); nats_ReleaseThreadMemory(); }};
  }

  static std::int64_t reconnect_delay(natsConnection*, int attempts, void* closure) {
    const auto owner = (*static_cast<std::shared_ptr<link>*>(closure))->owner.lock();
    return owner ? owner->backoff(attempts) : 1;
  }

  std::int64_t backoff(int attempts) const {
    thread_local std::minstd_rand random{std::random_device{}()};
    const std::int64_t least = std::max<std::int64_t>(1, options.reconnect_wait_min.count());
    const std::int64_t most = std::max<std::int64_t>(least, options.reconnect_wait_max.count());
    const std::int64_t bound = std::min(most, least << std::clamp(attempts, 0, 16));
    return std::uniform_int_distribution<std::int64_t>{least, bound}(random);
  }

  static natsStatus tell_jwt(char** jwt, char**, void* closure) {
    *jwt = ::strdup(static_cast<const connection_options*>(closure)->user_jwt.c_str());  // the library frees it
    return *jwt == nullptr ? NATS_NO_MEMORY : NATS_OK;
  }
  static natsStatus sign_nonce(char**, unsigned char** signature, int* length, const char* nonce, void* closure) {
    return nats_Sign(static_cast<const connection_options*>(closure)->user_seed.c_str(), nonce, signature, length);
  }

  using options_ptr = std::unique_ptr<natsOptions, decltype(&natsOptions_Destroy)>;

  options_ptr make_options(void* closure, bool for_prompt) const {
    natsOptions* raw = nullptr;
    check(natsOptions_Create(&raw), "options");
    options_ptr out{raw, &natsOptions_Destroy};
    std::vector<const char*> urls;
    for (const auto& url : options.urls) urls.push_back(url.c_str());
    check(natsOptions_SetServers(raw, urls.data(), static_cast<int>(urls.size())), "urls");
    if (!options.name.empty()) check(natsOptions_SetName(raw, options.name.c_str()), "name");
    if (!options.user.empty())
      check(natsOptions_SetUserInfo(raw, options.user.c_str(), options.password.c_str()), "user");
    if (!options.credentials_file.empty())
      check(natsOptions_SetUserCredentialsFromFiles(raw, options.credentials_file.c_str(), nullptr), "credentials_file");
    if (!options.user_jwt.empty()) {
      // The library asks again at each reconnect; the options live as long as its connections.
      auto* closure_of_user = const_cast<connection_options*>(&options);
      check(natsOptions_SetUserCredentialsCallbacks(raw, &impl::tell_jwt, closure_of_user, &impl::sign_nonce, closure_of_user),
            "user_jwt");
    }
    if (!options.tls_ca_file.empty() || !options.tls_certificate_file.empty()) check(natsOptions_SetSecure(raw, true), "tls");
    if (!options.tls_ca_file.empty())
      check(natsOptions_LoadCATrustedCertificates(raw, options.tls_ca_file.c_str()), "tls_ca_file");
    if (!options.tls_certificate_file.empty())
      check(natsOptions_LoadCertificatesChain(raw, options.tls_certificate_file.c_str(), options.tls_key_file.c_str()),
            "tls_certificate_file");
    check(natsOptions_SetTimeout(raw, options.connect_timeout.count()), "connect_timeout");
    check(natsOptions_SetPingInterval(raw, options.ping_interval.count()), "ping_interval");
    check(natsOptions_SetMaxPingsOut(raw, 2), "pings");
    check(natsOptions_SetAllowReconnect(raw, true), "reconnect");
    check(natsOptions_SetMaxReconnect(raw, -1), "reconnect");
    check(natsOptions_SetReconnectBufSize(raw, static_cast<int>(options.reconnect_buffer_bytes)), "reconnect_buffer_bytes");
    check(natsOptions_SetWriteDeadline(raw, write_deadline_ms), "write deadline");
    check(natsOptions_UseGlobalMessageDelivery(raw, true), "delivery");
    check(natsOptions_SetNoRandomize(raw, false), "randomize");
    // The library holds back small writes for about a millisecond; what somebody waits for must not be.
    check(natsOptions_SetSendAsap(raw, for_prompt), "send asap");
    if (closure != nullptr) {
      check(natsOptions_SetCustomReconnectDelay(raw, &impl::reconnect_delay, closure), "delay");
      check(natsOptions_SetDisconnectedCB(raw, &impl::on_disconnected, closure), "disconnected");
      check(natsOptions_SetReconnectedCB(raw, &impl::on_connected, closure), "reconnected");
      check(natsOptions_SetRetryOnFailedConnect(raw, true, &impl::on_connected, closure), "retry");
      check(natsOptions_SetClosedCB(raw, &impl::on_closed, closure), "closed");
      check(natsOptions_SetErrorHandler(raw, &impl::on_error, closure), "errors");
    }
    return out;
  }

  /// Opens or replaces a link and moves the subscriptions to it. False: the library refused at once.
  bool open_link(bool is_bulk) {
    auto fresh = std::make_shared<link>();
    fresh->owner = weak_from_this();
    fresh->bulk = is_bulk;
    auto closure = std::make_unique<std::shared_ptr<link>>(fresh);  // freed by on_closed, the library's last word
    natsConnection* raw = nullptr;
    const auto status = natsConnection_Connect(&raw, make_options(closure.get(), !is_bulk).get());
    if (status != NATS_OK && status != NATS_NOT_YET_CONNECTED) {
      if (raw != nullptr) (void)closure.release();
      natsConnection_Destroy(raw);
      spdlog::warn("bus: cannot connect: {}", natsStatus_GetText(status));
      return false;
    }
    (void)closure.release();
    const nats_ptr nats{raw, &natsConnection_Destroy};
    {
      const std::lock_guard lock{links_mutex};
      (is_bulk ? bulk : prompt) = nats;
      (is_bulk ? bulk_link : prompt_link) = fresh;
    }
    if (!is_bulk) {
      const std::lock_guard lock{registry_mutex};
      for (const auto& each : registry) attach(*each, each, nats);
    }
    if (!is_bulk) {
      // Connect tells a success at once by its result only; a disconnect that follows waits for this mutex.
      const std::lock_guard lock{state_mutex};
      if (natsConnection_Status(raw) == NATS_CONN_STATUS_CONNECTED) announce(true);
    }
    return true;
  }

  nats_ptr link_for(bool want_bulk) const {
    const std::lock_guard lock{links_mutex};
    return want_bulk && options.bulk_connection ? bulk : prompt;
  }

  // ---- what the library tells; all of it on one thread of its own ----

  static void on_connected(natsConnection*, void* closure) {
    const auto from = *static_cast<std::shared_ptr<link>*>(closure);
    const auto owner = from->owner.lock();
    if (!owner || from->retired || from->bulk) return;
    owner->announce(true);
  }
  static void on_disconnected(natsConnection*, void* closure) {
    const auto from = *static_cast<std::shared_ptr<link>*>(closure);
    const auto owner = from->owner.lock();
    if (!owner || from->retired || from->bulk) return;
    owner->announce(false);
  }
  static void on_closed(natsConnection*, void* closure) {
    const std::unique_ptr<std::shared_ptr<link>> held{static_cast<std::shared_ptr<link>*>(closure)};
    const auto from = *held;
    const auto owner = from->owner.lock();
    const bool expected = from->retired.exchange(true);
    if (!owner || expected || owner->closed) return;
    if (!from->bulk) owner->announce(false);
    owner->wake_reaper(from->bulk);
  }
  static void on_error(natsConnection* nats, natsSubscription*, natsStatus status, void* closure) {
    const auto from = *static_cast<std::shared_ptr<link>*>(closure);
    const auto owner = from->owner.lock();
    if (!owner || status == NATS_SLOW_CONSUMER) return;  // drops are counted by the second
    const char* text = nullptr;
    natsConnection_GetLastError(nats, &text);
    spdlog::warn("bus: {}: {}", natsStatus_GetText(status), view_of(text));
  }

  void announce(bool now_connected) {
    const std::lock_guard lock{state_mutex};
    if (closed || connected.exchange(now_connected) == now_connected) return;
    if (counts != nullptr) counts->set("warren_bus_connected", now_connected ? 1 : 0);
    const auto now = steady::now();
    const auto for_ms = std::chrono::duration_cast<millis>(now - std::exchange(changed_at, now)).count();
    if (!now_connected)
      telemetry::log(spdlog::level::warn, "NATS is lost", {{"connection", options.name}, {"was_there_ms", for_ms}});
    else
      telemetry::log(spdlog::level::info, std::exchange(was_connected, true) ? "NATS is back" : "NATS is there",
                     {{"connection", options.name}, {"was_away_ms", for_ms}});
    if (!now_connected) fail_requests(request_error::disconnected);
    for (std::size_t i = 0; i < state_callbacks.size(); ++i) state_callbacks[i](now_connected);
  }

  // ---- subscriptions ----

  static void on_message(natsConnection*, natsSubscription*, natsMsg* message, void* closure) {
    const auto& to = *static_cast<std::shared_ptr<subscription::shared>*>(closure);
    if (const auto owner = to->owner.lock()) {
      owner->messages_in.fetch_add(1, std::memory_order_relaxed);
      const auto subject = view_of(natsMsg_GetSubject(message));
      if (natsMsg_IsNoResponders(message)) {
        if (to == owner->inbox_subscription) owner->answered(subject, {}, request_error::no_responders);
      } else {
        to->deliver(subject, {natsMsg_GetData(message), static_cast<std::size_t>(natsMsg_GetDataLength(message))},
                    view_of(natsMsg_GetReply(message)));
      }
    }
    natsMsg_Destroy(message);
  }
  static void on_complete(void* closure) { delete static_cast<std::shared_ptr<subscription::shared>*>(closure); }

  std::shared_ptr<subscription::shared> register_subscription(std::string_view subject, message_callback callback) {
    auto out = std::make_shared<subscription::shared>();
    out->owner = weak_from_this();
    out->subject = subject;
    out->callback = std::move(callback);
    const std::lock_guard lock{registry_mutex};
    // Read under the lock: a link that appears after this attaches everything that is registered.
    const auto nats = link_for(false);
    if (nats && !attach(*out, out, nats)) return nullptr;
    registry.insert(out);
    return out;
  }

  /// Under registry_mutex.
  bool attach(subscription::shared& to, const std::shared_ptr<subscription::shared>& shared, const nats_ptr& nats) {
    if (to.handle != nullptr) retire_handle(to);
    auto closure = std::make_unique<std::shared_ptr<subscription::shared>>(shared);
    const auto status = natsConnection_Subscribe(&to.handle, nats.get(), to.subject.c_str(), &impl::on_message, closure.get());
    if (status != NATS_OK) {
      to.handle = nullptr;
      // A closed link is replaced, and the new one attaches whatever is registered.
      if (status == NATS_CONNECTION_CLOSED) return true;
      spdlog::warn("bus: cannot subscribe to {}: {}", to.subject, natsStatus_GetText(status));
      return false;
    }
    to.drops_counted = 0;
    natsSubscription_SetOnCompleteCB(to.handle, &impl::on_complete, closure.get());
    (void)closure.release();  // on_complete frees it; a link that was closed in between never calls it, which leaks 16 bytes
    const auto bounded = [](std::size_t value) { return static_cast<int>(std::min<std::size_t>(value, 0x7fffffff)); };
    natsSubscription_SetPendingLimits(to.handle, bounded(options.pending_messages_max), bounded(options.pending_bytes_max));
    return true;
  }

  /// Under registry_mutex.
  void retire_handle(subscription::shared& of) {
    count_drops(of);
    {
      const std::lock_guard lock{reaper_mutex};
      ended.push_back(std::exchange(of.handle, nullptr));
    }
    reaper_wakes.notify_one();
  }

  /// Under registry_mutex.
  void count_drops(subscription::shared& of) {
    std::int64_t dropped = 0;
    if (of.handle == nullptr || natsSubscription_GetDropped(of.handle, &dropped) != NATS_OK) return;
    if (dropped <= of.drops_counted) return;
    count_dropped("slow_consumer", static_cast<double>(dropped - of.drops_counted));
    spdlog::warn("bus: {} messages on {} were dropped: its subscriber is too slow", dropped - of.drops_counted, of.subject);
    of.drops_counted = dropped;
  }

  void unregister(const std::shared_ptr<subscription::shared>& gone) {
    const std::lock_guard lock{registry_mutex};
    registry.erase(gone);
    if (gone->handle != nullptr) retire_handle(*gone);
  }

  // ---- publishing and requests ----

  void count_dropped(std::string_view reason, double n = 1) {
    if (counts != nullptr) counts->add("warren_bus_dropped_total", reason, n);
  }

  natsStatus send(const nats_ptr& nats, std::string_view subject, std::string_view payload, std::string_view reply_to) {
    auto status = NATS_CONNECTION_CLOSED;
    if (payload.size() > limits::bus_message_bytes_max) {
      status = NATS_MAX_PAYLOAD;
    } else if (nats && !closed) {
      const std::string to{subject}, reply{reply_to};
      const auto size = static_cast<int>(payload.size());
      status = reply.empty()
          ? natsConnection_Publish(nats.get(), to.c_str(), payload.data(), size)
          : natsConnection_PublishRequest(nats.get(), to.c_str(), reply.c_str(), payload.data(), size);
    }
    if (status == NATS_OK) {
      messages_out.fetch_add(1, std::memory_order_relaxed);
      return status;
    }
    count_dropped(status == NATS_MAX_PAYLOAD ? "publish_oversized"
                  : status == NATS_INSUFFICIENT_BUFFER ? "publish_buffer_full" : "publish_failed");
    return status;
  }

  void request(std::string_view subject, std::string_view payload, millis timeout, reply_callback callback) {
    if (!connected || closed) return callback(request_error::disconnected, {});
    const auto deadline = steady::now() + std::max(timeout, millis{0});
    std::uint64_t token = 0;
    bool wake = false;
    {
      std::unique_lock lock{requests_mutex};
      if (requests.size() >= options.requests_max || timer_stops) {
        const auto error = timer_stops ? request_error::disconnected : request_error::overloaded;
        lock.unlock();
        return callback(error, {});
      }
      token = ++last_token;
      requests.emplace(token, waiting{std::move(callback), deadline});
      deadlines.insert({deadline, token});
      wake = deadlines.begin()->second == token;
    }
    if (wake) requests_changed.notify_one();
    const auto status = send(link_for(false), subject, payload, inbox + "." + std::to_string(token));
    if (status == NATS_OK) return;
    finish(token, status == NATS_CONNECTION_CLOSED ? request_error::disconnected : request_error::overloaded, {});
  }

  void answered(std::string_view subject, std::string_view payload, request_error error) {
    const auto text = subject.substr(subject.rfind('.') + 1);
    std::uint64_t token = 0;
    if (text.empty() || text.size() > 20) return;
    for (char c : text) {
      if (c < '0' || c > '9') return;
      token = token * 10 + static_cast<std::uint64_t>(c - '0');
    }
    finish(token, error, payload);
  }

  void finish(std::uint64_t token, request_error error, std::string_view payload) {
    reply_callback callback;
    {
      const std::lock_guard lock{requests_mutex};
      const auto at = requests.find(token);
      if (at == requests.end()) return;  // answered twice, or after its timeout
      callback = std::move(at->second.callback);
      deadlines.erase({at->second.deadline, token});
      requests.erase(at);
    }
    call(callback, error, payload);
  }

  static void call(const reply_callback& callback, request_error error, std::string_view payload) {
    try {
      callback(error, payload);
    } catch (const std::exception& e) {
      spdlog::error("bus: a reply's callback failed: {}", e.what());
    }
  }

  void fail_requests(request_error error) {
    std::unordered_map<std::uint64_t, waiting> all;
    {
      const std::lock_guard lock{requests_mutex};
      all.swap(requests);
      deadlines.clear();
    }
    for (auto& [token, each] : all) call(each.callback, error, {});
  }

  // ---- the two threads ----

  void run_timer() {
    auto housekeeping_at = steady::now() + housekeeping_interval;
    std::unique_lock lock{requests_mutex};
    while (!timer_stops) {
      const auto now = steady::now();
      if (!deadlines.empty() && deadlines.begin()->first <= now) {
        const auto token = deadlines.begin()->second;
        lock.unlock();
        finish(token, request_error::timeout, {});
        lock.lock();
        continue;
      }
      if (housekeeping_at <= now) {
        lock.unlock();
        keep_house();
        lock.lock();
        housekeeping_at = now + housekeeping_interval;
        continue;
      }
      auto until = housekeeping_at;
      if (!deadlines.empty()) until = std::min(until, deadlines.begin()->first);
      requests_changed.wait_until(lock, until);
    }
  }

  void keep_house() {
    {
      const std::lock_guard lock{registry_mutex};
      for (const auto& each : registry) count_drops(*each);
    }
    flush_counts();
  }

  void flush_counts() {
    const auto in = messages_in.exchange(0), out = messages_out.exchange(0);
    if (counts == nullptr) return;
    if (in > 0) counts->add("warren_bus_messages_total", "in", static_cast<double>(in));
    if (out > 0) counts->add("warren_bus_messages_total", "out", static_cast<double>(out));
  }

  void wake_reaper(bool reopen_is_bulk) {
    {
      const std::lock_guard lock{reaper_mutex};
      (reopen_is_bulk ? reopen_bulk : reopen_prompt) = true;
    }
    reaper_wakes.notify_one();
  }

  void run_reaper() {
    std::unique_lock lock{reaper_mutex};
    {
      // What could not be opened at the start.
      const std::lock_guard links{links_mutex};
      reopen_prompt = reopen_prompt || !prompt;
      reopen_bulk = reopen_bulk || (options.bulk_connection && !bulk);
    }
    while (true) {
      reaper_wakes.wait(lock, [this] { return reaper_stops || !ended.empty() || reopen_prompt || reopen_bulk; });
      if (reaper_stops) return;
      std::vector<natsSubscription*> batch;
      while (!ended.empty() && batch.size() < drains_at_a_time) {
        batch.push_back(ended.front());
        ended.pop_front();
      }
      const bool want_prompt = std::exchange(reopen_prompt, false), want_bulk = std::exchange(reopen_bulk, false);
      lock.unlock();
      drain(batch);
      bool opened = true;
      if (want_prompt) opened = reopen(false);
      if (want_bulk) opened = reopen(true) && opened;
      lock.lock();
      if (opened) {
        reopen_attempts = 0;
        continue;
      }
      const auto wait = millis{backoff(reopen_attempts++)};
      reaper_wakes.wait_for(lock, wait, [this] { return reaper_stops; });
    }
  }

  bool reopen(bool is_bulk) {
    if (closed) return true;
    nats_ptr old;
    {
      const std::lock_guard lock{links_mutex};
      old = std::exchange(is_bulk ? bulk : prompt, nullptr);
      if (const auto& gone = is_bulk ? bulk_link : prompt_link) gone->retired = true;
    }
    old.reset();
    if (open_link(is_bulk)) return true;
    const std::lock_guard lock{reaper_mutex};
    (is_bulk ? reopen_bulk : reopen_prompt) = true;
    return false;
  }

  // Destroying a subscription while messages arrive is a use after free in the library (nats.c #637).
  static void drain(const std::vector<natsSubscription*>& batch) {
    for (auto* each : batch) natsSubscription_DrainTimeout(each, drain_timeout_ms);
    for (auto* each : batch) {
      natsSubscription_WaitForDrainCompletion(each, 2 * drain_timeout_ms);
      natsSubscription_Destroy(each);
    }
  }

  // ---- the end ----

  void close() {
    {
      const std::lock_guard lock{state_mutex};
      if (closed.exchange(true)) return;
      connected = false;
      state_callbacks.clear();
      if (counts != nullptr) counts->set("warren_bus_connected", 0);
    }
    {
      const std::lock_guard lock{requests_mutex};
      timer_stops = true;
    }
    requests_changed.notify_one();
    if (timer.joinable()) timer.join();
    fail_requests(request_error::disconnected);

    std::set<std::shared_ptr<subscription::shared>> all;
    {
      const std::lock_guard lock{registry_mutex};
      all.swap(registry);
    }
    for (const auto& each : all) each->cancel();

    nats_ptr last_prompt, last_bulk;
    {
      const std::lock_guard lock{links_mutex};
      last_prompt = std::move(prompt);
      last_bulk = std::move(bulk);
      prompt = bulk = nullptr;
      for (const auto& each : {prompt_link, bulk_link})
        if (each) each->retired = true;
    }
    for (const auto& each : {last_prompt, last_bulk}) {
      if (!each) continue;
      if (natsConnection_Status(each.get()) == NATS_CONN_STATUS_CONNECTED) natsConnection_FlushTimeout(each.get(), close_flush_ms);
      natsConnection_Close(each.get());  // ends all subscriptions: nothing arrives at them from here on
    }
    {
      const std::lock_guard lock{reaper_mutex};
      reaper_stops = true;
    }
    reaper_wakes.notify_all();
    if (reaper.joinable()) reaper.join();
    {
      const std::lock_guard lock{registry_mutex};
      for (const auto& each : all)
        if (each->handle != nullptr) natsSubscription_Destroy(std::exchange(each->handle, nullptr));
      for (auto* each : ended) natsSubscription_Destroy(each);
      ended.clear();
    }
    flush_counts();
  }
};

// ---- subscription ----

subscription& subscription::operator=(subscription&& other) noexcept {
  if (this != &other) {
    reset();
    shared_ = std::move(other.shared_);
  }
  return *this;
}

subscription::~subscription() { reset(); }

void subscription::reset() {
  const auto gone = std::exchange(shared_, nullptr);
  if (!gone) return;
  gone->cancel();
  if (const auto owner = gone->owner.lock()) owner->unregister(gone);
}

// ---- connection ----

std::shared_ptr<connection> connection::open(connection_options options, counters* counts) {
  if (options.urls.empty()) throw std::invalid_argument("urls: is empty");
  for (const auto& url : options.urls)
    if (!(url.starts_with("nats://") || url.starts_with("tls://")) || url.find_first_of(" \t\r\n") != std::string::npos)
      throw std::invalid_argument("urls: " + url + " is not nats://host:port");
  auto made = std::make_shared<impl>();
  for (const auto* file : {&options.credentials_file, &options.tls_ca_file, &options.tls_certificate_file, &options.tls_key_file})
    if (!file->empty() && !std::ifstream{*file}) throw std::invalid_argument(*file + ": cannot be read");
  made->options = std::move(options);
  made->counts = counts;
  made->start();
  return std::make_shared<connection>(std::move(made));
}

connection::connection(std::shared_ptr<impl> i) : impl_(std::move(i)) {}
connection::~connection() { impl_->close(); }

bool connection::publish(std::string_view subject, std::string_view payload, bool bulk, std::string_view reply_to) {
  return impl_->send(impl_->link_for(bulk), subject, payload, reply_to) == NATS_OK;
}

void connection::request(std::string_view subject, std::string_view payload, millis timeout, reply_callback callback) {
  impl_->request(subject, payload, timeout, std::move(callback));
}

subscription connection::subscribe(std::string_view subject, message_callback callback) {
  if (impl_->closed) return {};
  return subscription{impl_->register_subscription(subject, std::move(callback))};
}

void connection::on_state(state_callback callback) {
  const std::lock_guard lock{impl_->state_mutex};
  if (impl_->closed) return;
  callback(impl_->connected);
  impl_->state_callbacks.push_back(std::move(callback));
}

bool connection::connected() const { return impl_->connected; }

bool connection::flush(millis timeout) {
  const auto deadline = steady::now() + timeout;
  for (const bool bulk : {false, true}) {
    const auto nats = impl_->link_for(bulk);
    const auto left = std::chrono::duration_cast<millis>(deadline - steady::now()).count();
    if (!nats || natsConnection_FlushTimeout(nats.get(), std::max<std::int64_t>(1, left)) != NATS_OK) return false;
  }
  return true;
}

void connection::close() { impl_->close(); }

}  // namespace warren::bus
