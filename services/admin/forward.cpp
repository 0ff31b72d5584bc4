// services/admin/forward.cpp -- brings a command to its partition's owner. No gRPC service, no CAF.
#include "services/admin/forward.hpp"

#include <algorithm>
#include <optional>
#include <random>

#include <grpcpp/alarm.h>
#include <openssl/rand.h>

#include "actors/core/error.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"
#include "actors/core/transition.hpp"
#include "actors/core/wire.hpp"

namespace warren::admin {

namespace {

using std::chrono::steady_clock;
using std::chrono::system_clock;

constexpr millis retry_first{20};
constexpr millis retry_max{200};
// Of an owner that has died nothing may be heard: another one answers the same request id the same way.
constexpr millis attempt_max{1000};
// A link to NATS that is cut is mended within moments, or not soon: then another instance may have one.
constexpr millis deaf_patience{1000};
constexpr millis deaf_retry{250};  // as long as the link itself waits between two tries, on average

std::uint64_t random_number() {
  thread_local std::mt19937_64 engine{std::random_device{}()};
  return engine();
}

corev1::Reply failure(errc code, std::string message) {
  corev1::Reply r;
  r.set_code(std::string{to_string(code)});
  r.set_message(std::move(message));
  return r;
}

/// Lives until `done` was called: each pending callback holds it, and so do the news.
class attempt final : public hand_overs::asker, public std::enable_shared_from_this<attempt> {
public:
  attempt(const forwarding& over, partition_id partition, corev1::Command command, system_clock::time_point deadline,
          std::function<bool()> cancelled, std::function<void(forwarded)> done)
      : over_{over}, partition_{partition}, command_{std::move(command)}, deadline_{deadline},
        cancelled_{std::move(cancelled)}, done_{std::move(done)} {}

  void start() {
    over_.news.join(partition_, shared_from_this());
    go();
  }

  void ask_now() override {
    std::shared_ptr<grpc::Alarm> waiting;
    {
      const std::lock_guard lock{mutex_};
      if (done_ == nullptr) return;
      waiting = alarm_;
    }
    if (waiting) waiting->Cancel();  // its callback goes on
    else go();
  }

private:
  void go() {
    std::uint64_t serial = 0;
    bool gone = false;
    {
      const std::lock_guard lock{mutex_};
      if (done_ == nullptr) return;
      alarm_.reset();
      serial = ++sent_;
      gone = cancelled_ && cancelled_();
    }
    const auto left = remaining();
    if (left <= millis{0}) return give_up();
    if (gone) return finish({failure(errc::unavailable, "the caller has gone"), true});
    auto command = command_;
    command.set_patience_ms(left.count());  // of the caller, whatever becomes of this attempt
    over_.send(partition_, command.SerializeAsString(), std::min(left, attempt_max),
               [self = shared_from_this(), serial](bus::request_error error, std::string_view payload) {
                 self->heard(serial, error, payload);
               });
  }

  void heard(std::uint64_t serial, bus::request_error error, std::string_view payload) {
    std::string why;
    bool maybe = false, deaf = false;
    switch (error) {
      case bus::request_error::none: {
        auto reply = wire::parse_api_reply(payload);
        if (!reply) return finish({failure(errc::internal, "the owner's answer cannot be read"), true});
        if (reply->code() == to_string(errc::not_owner)) {
          why = "its partition is changing hands";
          break;
        }
        // Only its owner has lost the database: soon there is another one.
        if (reply->code() == to_string(errc::unavailable) && over_.database_reached && over_.database_reached()) {
          why = reply->message();
          break;
        }
        // Whichever owner decided it: the request id makes their answers one.
        return finish({std::move(*reply), false});
      }
      case bus::request_error::no_responders: why = "its partition has no owner at the moment"; break;
      case bus::request_error::overloaded: why = "this instance has too many requests under way"; break;
      case bus::request_error::timeout: maybe = true; why = "its partition's owner does not answer"; break;
      case bus::request_error::disconnected: maybe = deaf = true; why = "this instance does not reach NATS, another one may"; break;
    }
    if (!again(serial, std::move(why), maybe, deaf)) give_up(deaf_retry);
  }

  /// False: not by this instance.
  bool again(std::uint64_t serial, std::string why, bool maybe, bool deaf) {
    const std::lock_guard lock{mutex_};
    maybe_ |= maybe;
    if (done_ == nullptr || serial != sent_) return true;  // a newer one is under way
    why_ = std::move(why);
    const auto now = steady_clock::now();
    if (!deaf) deaf_since_.reset();
    else if (!deaf_since_) deaf_since_ = now;
    if (deaf_since_ && now - *deaf_since_ >= deaf_patience) return false;
    if (over_.counts != nullptr) over_.counts->add("warren_admin_forward_retries_total");
    const millis wait{retry_first.count() / 2 + backoff_ms(retry_first, retry_max, ++tries_, random_number())};
    // The alarm must live until its callback runs, which therefore owns it, and lets go of it: gRPC keeps the
    // callback as long as the alarm lives.
    alarm_ = std::make_shared<grpc::Alarm>();
    alarm_->Set(std::min(system_clock::now() + wait, deadline_),
                [self = shared_from_this(), alarm = alarm_](bool) mutable {
                  const auto over = std::move(alarm);
                  self->go();
                });
    return true;
  }

  void give_up(millis retry_after = retry_max) {
    bool maybe = false;
    std::string why;
    {
      const std::lock_guard lock{mutex_};
      maybe = maybe_;
      why = why_;
    }
    const auto what = maybe ? "it is not known whether the change was made: " : "the change was not made: ";
    auto reply = failure(errc::unavailable, what + (why.empty() ? std::string{"the deadline has passed"} : why));
    reply.set_retry_after_ms(retry_after.count());
    finish({std::move(reply), maybe});
  }

  void finish(forwarded f) {
    std::function<void(forwarded)> done;
    {
      const std::lock_guard lock{mutex_};
      done = std::exchange(done_, nullptr);
    }
    if (done == nullptr) return;
    over_.news.leave(partition_, shared_from_this());
    done(std::move(f));
  }

  millis remaining() const { return std::chrono::duration_cast<millis>(deadline_ - system_clock::now()); }

  const forwarding over_;
  const partition_id partition_;
  const corev1::Command command_;
  const system_clock::time_point deadline_;
  const std::function<bool()> cancelled_;  // asked only while `done` is owed

  std::mutex mutex_;
  std::function<void(forwarded)> done_;
  std::shared_ptr<grpc::Alarm> alarm_;  // of the next try; null: one is under way
  std::uint64_t sent_ = 0;
  int tries_ = 0;
  bool maybe_ = false;  // some attempt may have been carried out
  std::string why_;
  std::optional<steady_clock::time_point> deaf_since_;  // every answer since then was that NATS is not reached
};

}  // namespace

void hand_overs::taken(partition_id partition) {
  std::set<std::shared_ptr<asker>> all;
  {
    const std::lock_guard lock{mutex_};
    const auto at = askers_.find(partition);
    if (at != askers_.end()) all = at->second;
  }
  for (const auto& each : all) each->ask_now();
}

void hand_overs::join(partition_id partition, std::shared_ptr<asker> who) {
  const std::lock_guard lock{mutex_};
  askers_[partition].insert(std::move(who));
}

void hand_overs::leave(partition_id partition, const std::shared_ptr<asker>& who) {
  const std::lock_guard lock{mutex_};
  const auto at = askers_.find(partition);
  if (at == askers_.end()) return;
  at->second.erase(who);
  if (at->second.empty()) askers_.erase(at);
}

void forward(const forwarding& over, partition_id partition, corev1::Command command, system_clock::time_point deadline,
             std::function<bool()> cancelled, std::function<void(forwarded)> done) {
  constexpr std::size_t patience_bytes = 16;
  if (command.ByteSizeLong() + patience_bytes > limits::api_request_bytes_max)
    return done({failure(errc::invalid, "the request is too large"), false});
  std::make_shared<attempt>(over, partition, std::move(command), deadline, std::move(cancelled), std::move(done))->start();
}

drain_function drain_over(std::shared_ptr<bus::connection> link) {
  return [link = std::move(link)](instance_id instance, const drain_caller& by, millis timeout, std::function<void(bool)> done) {
    warren::bus::v1::LeaseNotice ask;
    ask.set_version(1);
    ask.set_instance(instance);
    ask.set_what("drain");
    ask.set_principal(by.principal);
    ask.set_remote(by.remote);
    // Only the named one answers; that there are others who hear it says nothing.
    link->request(warren::bus::lease_subject, ask.SerializeAsString(), timeout,
                  [instance, done = std::move(done)](bus::request_error error, std::string_view payload) {
                    const auto said = wire::parse_lease_notice(payload);
                    done(error == bus::request_error::none && said && said->what() == "leaving" && said->instance() == instance);
                  });
  };
}

std::string fresh_request_id() {
  std::string bytes(16, '\0');
  RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  return protocol::hex(bytes);
}

}  // namespace warren::admin
