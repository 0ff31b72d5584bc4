// services/admin/forward.cpp -- brings a command to its partition's owner. No gRPC service, no CAF.
#include "services/admin/forward.hpp"

#include <algorithm>
#include <random>

#include <grpcpp/alarm.h>
#include <openssl/rand.h>

#include "actors/core/error.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/transition.hpp"
#include "actors/core/wire.hpp"

namespace warren::admin {

namespace {

using std::chrono::system_clock;

constexpr millis retry_first{20};
constexpr millis retry_max{200};
// An owner that stops answering has lost its partition by then (its lease is 3 s): ask the next one.
constexpr millis attempt_max{3000};

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

/// Lives until `done` was called: each pending callback holds it.
class attempt : public std::enable_shared_from_this<attempt> {
public:
  attempt(send_function send, partition_id partition, std::string payload, system_clock::time_point deadline,
          std::function<bool()> cancelled, std::function<void(forwarded)> done, counters* counts)
      : send_{std::move(send)}, partition_{partition}, payload_{std::move(payload)}, deadline_{deadline},
        cancelled_{std::move(cancelled)}, done_{std::move(done)}, counts_{counts} {}

  void go() {
    const auto left = remaining();
    if (left <= millis{0}) return give_up();
    if (cancelled_ && cancelled_()) return finish({failure(errc::unavailable, "the caller has gone"), maybe_});
    send_(partition_, payload_, std::min(left, attempt_max),
          [self = shared_from_this()](bus::request_error error, std::string_view payload) { self->heard(error, payload); });
  }

private:
  void heard(bus::request_error error, std::string_view payload) {
    switch (error) {
      case bus::request_error::none: return judge(payload);
      case bus::request_error::no_responders: why_ = "its partition has no owner at the moment"; break;
      case bus::request_error::overloaded: why_ = "this instance has too many requests under way"; break;
      case bus::request_error::timeout: maybe_ = true; why_ = "its partition's owner does not answer"; break;
      case bus::request_error::disconnected: maybe_ = true; why_ = "NATS is away"; break;
    }
    again();
  }

  void judge(std::string_view payload) {
    auto reply = wire::parse_api_reply(payload);
    if (!reply) return finish({failure(errc::internal, "the owner's answer cannot be read"), true});
    if (reply->code() == to_string(errc::not_owner)) {
      why_ = "its partition is changing hands";
      return again();
    }
    finish({std::move(*reply), false});
  }

  void again() {
    if (counts_ != nullptr) counts_->add("warren_admin_forward_retries_total");
    const millis wait{retry_first.count() / 2 + backoff_ms(retry_first, retry_max, ++tries_, random_number())};
    const auto at = std::min(system_clock::now() + wait, deadline_);
    // The alarm must live until its callback runs, which therefore owns it, and lets go of it: gRPC keeps the
    // callback as long as the alarm lives.
    auto alarm = std::make_shared<grpc::Alarm>();
    auto* raw = alarm.get();
    raw->Set(at, [self = shared_from_this(), alarm = std::move(alarm)](bool) mutable {
      const auto over = std::move(alarm);
      self->go();
    });
  }

  void give_up() {
    const auto what = maybe_ ? "it is not known whether the change was made: " : "the change was not made: ";
    auto reply = failure(errc::unavailable, what + (why_.empty() ? std::string{"the deadline has passed"} : why_));
    reply.set_retry_after_ms(retry_max.count());
    finish({std::move(reply), maybe_});
  }

  void finish(forwarded f) { std::exchange(done_, nullptr)(std::move(f)); }

  millis remaining() const { return std::chrono::duration_cast<millis>(deadline_ - system_clock::now()); }

  const send_function send_;
  const partition_id partition_;
  const std::string payload_;
  const system_clock::time_point deadline_;
  const std::function<bool()> cancelled_;
  std::function<void(forwarded)> done_;
  counters* const counts_;
  int tries_ = 0;
  bool maybe_ = false;  // some attempt may have been carried out
  std::string why_;
};

}  // namespace

void forward(const send_function& send, partition_id partition, corev1::Command command,
             system_clock::time_point deadline, std::function<bool()> cancelled, std::function<void(forwarded)> done,
             counters* counts) {
  command.set_deadline_ms(std::chrono::duration_cast<millis>(deadline.time_since_epoch()).count());
  auto payload = command.SerializeAsString();
  if (payload.size() > limits::api_request_bytes_max)
    return done({failure(errc::invalid, "the request is too large"), false});
  std::make_shared<attempt>(send, partition, std::move(payload), deadline, std::move(cancelled), std::move(done), counts)
      ->go();
}

std::string fresh_request_id() {
  std::string bytes(16, '\0');
  RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  return protocol::hex(bytes);
}

}  // namespace warren::admin
