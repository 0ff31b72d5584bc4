// services/admin/watches.cpp -- server streams over the replica's watches. No SQL, no CAF.
#include "services/admin/watches.hpp"

#include <deque>

#include <grpcpp/alarm.h>

#include "services/admin/gateway_watch.hpp"
#include "services/replica/watch.hpp"

namespace warren::admin {

namespace {

constexpr std::size_t taken_at_once = 64;

void put(const replica::watch_event& e, api::WatchTunnelsResponse& out) {
  if (e.what == replica::watch_event::kind::caught_up)
    out.mutable_caught_up();
  else if (e.what == replica::watch_event::kind::deleted)
    out.set_deleted(tunnel_name(e.tunnel->project(), e.tunnel->name()));
  else
    *out.mutable_tunnel() = to_api(*e.tunnel, &*e.conditions);
}
void put(const replica::watch_event& e, api::WatchConnectorsResponse& out) {
  if (e.what == replica::watch_event::kind::caught_up)
    out.mutable_caught_up();
  else if (e.what == replica::watch_event::kind::deleted)
    out.set_deleted(connector_name(e.connector->project(), e.connector->name()));
  else
    *out.mutable_connector() = to_api(*e.connector);
}

void put(const gateway_event& e, api::WatchGatewaysResponse& out) {
  if (e.gateway) *out.mutable_gateway() = *e.gateway;
  else if (!e.deleted.empty()) out.set_deleted(e.deleted);
  else out.mutable_caught_up();
}

/// What a stream follows: rows with a queue of their own, or gateways.
struct rows_followed {
  using watcher = replica::watcher;
  using options = replica::watch_options;
  static watcher::opened open(context& shared, options o) {
    o.wall_ms = wall_ms();
    o.queue_max = shared.config.watch_queue_max;
    return watcher::open(shared.view, std::move(o));
  }
  static auto take(watcher& w, std::size_t max) { return w.take(max); }
  static std::string token(const watcher& w) { return w.token(wall_ms()); }
  static std::int64_t due_ms(const watcher&) { return 0; }
};
struct gateways_followed {
  using watcher = gateway_watcher;
  using options = gateway_watch_options;
  static watcher::opened open(context& shared, options o) { return watcher::open(shared.view, std::move(o)); }
  static auto take(watcher& w, std::size_t max) { return w.take(max, steady_ms()); }
  static std::string token(const watcher& w) { return w.token(); }
  static std::int64_t due_ms(const watcher& w) { return w.due_ms(); }
};

/// One stream. Lives in context.watches until gRPC is done with it. The replica's thread only rings (an
/// alarm); everything else happens on gRPC's threads.
template <class Response, class Followed>
class stream final : public grpc::ServerWriteReactor<Response>,
                     public endable,
                     public std::enable_shared_from_this<stream<Response, Followed>> {
public:
  stream(context& shared, grpc::CallbackServerContext& of) : shared_{shared}, of_{of} {}

  void start(typename Followed::options options) {
    {
      std::lock_guard lock{shared_.watches_mutex};
      if (shared_.ending)
        end_ = error_status(errc::unavailable, "this instance is going away");
      else if (shared_.watches.size() >= shared_.config.watches_max)
        end_ = error_status(errc::overloaded, "this instance has too many watches");
      // Also one that is refused: gRPC calls it until OnDone.
      shared_.watches.insert(this->shared_from_this());
      count_watches();
    }
    if (!end_) open(std::move(options));
    ring();
  }
  void refuse(grpc::Status why) {
    {
      std::lock_guard lock{shared_.watches_mutex};
      shared_.watches.insert(this->shared_from_this());
    }
    end(std::move(why));
  }

  void end(grpc::Status why) override {
    {
      std::lock_guard lock{mutex_};
      if (!end_) end_ = std::move(why);
    }
    ring();
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock{mutex_};
      writing_ = false;
      pending_.pop_front();
      if (!ok && !end_) end_ = grpc::Status::CANCELLED;
    }
    pump();
  }
  void OnCancel() override { end(grpc::Status::CANCELLED); }
  void OnDone() override {
    std::unique_ptr<typename Followed::watcher> gone;
    {
      std::lock_guard lock{mutex_};
      gone = std::move(watcher_);
    }
    gone.reset();  // waits for the replica's thread to be out of it: never with a lock held
    const auto self = this->shared_from_this();
    std::lock_guard lock{shared_.watches_mutex};
    shared_.watches.erase(self);
    count_watches();
    shared_.watches_gone.notify_all();
  }

private:
  /// With the watches' lock held.
  void count_watches() const {
    if (shared_.config.counts != nullptr)
      shared_.config.counts->set("warren_watch_streams", static_cast<double>(shared_.watches.size()));
  }
  void open(typename Followed::options options) {
    options.ready = [weak = this->weak_from_this()] {
      if (const auto self = weak.lock()) self->ring();
    };
    auto opened = Followed::open(shared_, std::move(options));
    std::lock_guard lock{mutex_};
    if (auto* refused = std::get_if<typename Followed::watcher::refused>(&opened)) {
      // The replica's words begin with the field's name, as a message's do.
      error_details details;
      const auto words = refused->message.find(": ");
      details.violations.push_back({"resume_token", refused->message.substr(words == std::string::npos ? 0 : words + 2)});
      end_ = error_status(refused->code, refused->message, details);
    } else {
      watcher_ = std::move(std::get<std::unique_ptr<typename Followed::watcher>>(opened));
    }
  }

  /// Has pump() run on a thread of gRPC's, soon.
  void ring() {
    if (rung_.exchange(true)) return;
    call_at(std::chrono::system_clock::now(), [self = this->shared_from_this()]() mutable {
      const auto alive = std::move(self);
      alive->rung_ = false;
      alive->pump();
    });
  }
  /// Looks at a write again that has been under way for too long by then.
  void look_later() {
    if (looking_.exchange(true)) return;
    call_at(std::chrono::system_clock::now() + shared_.config.watch_patience, [weak = this->weak_from_this()] {
      const auto alive = weak.lock();
      if (!alive) return;
      alive->looking_ = false;
      alive->pump();
    });
  }
  /// Looks again at what is not to be told before then.
  void look_at(std::int64_t due_ms) {
    if (due_ms == 0 || waiting_for_due_.exchange(true)) return;
    const auto in = millis{std::max<std::int64_t>(due_ms - steady_ms(), 1)};
    call_at(std::chrono::system_clock::now() + in, [weak = this->weak_from_this()] {
      const auto alive = weak.lock();
      if (!alive) return;
      alive->waiting_for_due_ = false;
      alive->pump();
    });
  }
  template <class F> static void call_at(std::chrono::system_clock::time_point at, F then) {
    auto alarm = std::make_shared<grpc::Alarm>();
    auto* raw = alarm.get();
    raw->Set(at, [then = std::move(then), alarm = std::move(alarm)](bool) mutable {
      const auto over = std::move(alarm);  // gRPC keeps this callback as long as the alarm lives
      then();
    });
  }

  void pump() {
    std::optional<grpc::Status> finish;
    const Response* write = nullptr;
    bool too_long = false;
    {
      std::lock_guard lock{mutex_};
      if (finished_ || cutting_) return;
      if (writing_) {
        // A reader that is slow is told so in its turn; one that takes nothing at all only holds a place.
        too_long = !end_ && steady_ms() - writing_since_ms_ >= shared_.config.watch_patience.count();
        cutting_ = too_long;
        if (!end_ && !too_long) look_later();
      } else {
        if (!end_ && pending_.empty()) fill();
        if (end_) {
          finished_ = true;
          finish = end_;
        } else if (!pending_.empty()) {
          writing_ = true;
          writing_since_ms_ = steady_ms();
          write = &pending_.front();
        }
      }
    }
    if (too_long)
      cut();
    else if (finish)
      this->Finish(*finish);
    else if (write != nullptr)
      this->StartWrite(write);
  }

  /// Nobody finishes the call while it is cancelled: it would be gone.
  void cut() {
    of_.TryCancel();
    {
      std::lock_guard lock{mutex_};
      cutting_ = false;
    }
    ring();
  }

  void fill() {
    if (!watcher_) return;
    const auto events = Followed::take(*watcher_, taken_at_once);
    for (const auto& e : events) put(e, pending_.emplace_back());
    if (!events.empty()) {
      pending_.back().set_resume_token(Followed::token(*watcher_));
    } else if (const auto closed = watcher_->closed()) {
      end_ = error_status(closed->code, closed->message);
    } else {
      look_at(Followed::due_ms(*watcher_));
    }
  }

  context& shared_;
  grpc::CallbackServerContext& of_;  // lives until OnDone
  std::atomic<bool> rung_{false}, looking_{false}, waiting_for_due_{false};
  std::mutex mutex_;
  std::unique_ptr<typename Followed::watcher> watcher_;
  std::deque<Response> pending_;  // at most taken_at_once
  bool writing_ = false, finished_ = false, cutting_ = false;
  std::int64_t writing_since_ms_ = 0;
  std::optional<grpc::Status> end_;
};

template <class Response, class Request>
grpc::ServerWriteReactor<Response>* watch(context& shared, grpc::CallbackServerContext& of, const Request& q,
                                          replica::watched what) {
  auto s = std::make_shared<stream<Response, rows_followed>>(shared, of);
  auto* reactor = s.get();
  std::vector<violation> violations;
  replica::watch_options options;
  options.what = what;
  options.project = parse_parent(q.parent(), true, violations).value_or("");
  check_text(q.resume_token(), token_bytes_max, "resume_token", violations);
  options.resume_token = q.resume_token();
  if (violations.empty())
    s->start(std::move(options));
  else
    s->refuse(invalid_status(std::move(violations)));
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<api::WatchTunnelsResponse>* watch_tunnels(context& shared, grpc::CallbackServerContext& of,
                                                                   const api::WatchTunnelsRequest& q) {
  return watch<api::WatchTunnelsResponse>(shared, of, q, replica::watched::tunnels);
}
grpc::ServerWriteReactor<api::WatchConnectorsResponse>* watch_connectors(context& shared,
                                                                         grpc::CallbackServerContext& of,
                                                                         const api::WatchConnectorsRequest& q) {
  return watch<api::WatchConnectorsResponse>(shared, of, q, replica::watched::connectors);
}
grpc::ServerWriteReactor<api::WatchGatewaysResponse>* watch_gateways(context& shared, grpc::CallbackServerContext& of,
                                                                     const api::WatchGatewaysRequest& q) {
  auto s = std::make_shared<stream<api::WatchGatewaysResponse, gateways_followed>>(shared, of);
  auto* reactor = s.get();
  std::vector<violation> violations;
  check_text(q.resume_token(), token_bytes_max, "resume_token", violations);
  if (violations.empty())
    s->start({.resume_token = q.resume_token(), .registry = shared.partition_of(""), .ready = {}});
  else
    s->refuse(invalid_status(std::move(violations)));
  return reactor;
}

}  // namespace warren::admin
