// services/warrenctl/tries.cpp -- see tries.hpp.
#include "services/warrenctl/tries.hpp"

#include <algorithm>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace warren::ctl {

namespace {

constexpr milliseconds share_min{1000};     // an instance that is there answers within some milliseconds, a moving partition within a second
constexpr milliseconds share_max{2000};     // of the first round: so long one may be silent before the next is asked
constexpr milliseconds round_pause{200};    // nobody can do it at the moment: they are not asked in a tight loop
constexpr milliseconds wait_max{5000};      // whatever a server asks for

/// How much somebody who reads it learns.
int weight(const grpc::Status& status) {
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return 1;
  if (unanswered(status)) return 2;
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ? 3 : 4;
}

}  // namespace

bool unanswered(const grpc::Status& status) {
  return status.error_details().empty() &&
         (status.error_code() == grpc::StatusCode::UNAVAILABLE || status.error_code() == grpc::StatusCode::CANCELLED);
}

std::optional<milliseconds> retry_delay(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& any : details.details()) {
    google::rpc::RetryInfo retry;
    if (!any.UnpackTo(&retry)) continue;
    const auto& d = retry.retry_delay();
    const auto seconds = std::clamp<std::int64_t>(d.seconds(), 0, wait_max / std::chrono::seconds{1});
    return std::min(wait_max, milliseconds{seconds * 1000 + std::max(0, d.nanos()) / 1'000'000});
  }
  return std::nullopt;
}

system_clock::time_point tries::next(system_clock::time_point now) {
  ++made_;
  shared_ = false;
  if (servers_ == 1) return until_;
  if ((made_ - 1) % servers_ == 0) {
    hope_ = false;
    wait_ = round_pause;
  }
  const auto left = std::chrono::duration_cast<milliseconds>(until_ - now);
  const auto waiting = static_cast<milliseconds::rep>(servers_ - (made_ - 1) % servers_);  // of this round
  const auto longer = 1 << std::min<std::size_t>(round(), 10);
  const auto end = now + std::clamp(left / waiting, share_min, share_max * longer);
  shared_ = end < until_;
  return std::min(end, until_);
}

std::optional<tries::repetition> tries::after(const grpc::Status& status, system_clock::time_point now) {
  hear(status);
  if (servers_ == 1) return after_the_only(status, now);
  const bool silent = unanswered(status) || (shared_ && status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  if (!silent && status.error_code() != grpc::StatusCode::UNAVAILABLE) return std::nullopt;
  const auto asks = retry_delay(status);
  hope_ |= silent || asks;
  wait_ = std::max(wait_, asks.value_or(milliseconds{0}));
  const bool round_over = made_ % servers_ == 0;
  if (round_over && !hope_) return std::nullopt;  // everybody has answered, and nobody expects it to change soon
  const auto pause = round_over ? wait_ : milliseconds{0};
  if (now + pause >= until_) return std::nullopt;
  return repetition{true, pause};
}

std::optional<tries::repetition> tries::after_the_only(const grpc::Status& status, system_clock::time_point now) const {
  if (unanswered(status) && made_ == 1) return repetition{};
  const auto asks = status.error_code() == grpc::StatusCode::UNAVAILABLE ? retry_delay(status) : std::nullopt;
  if (!asks || now + *asks >= until_) return std::nullopt;
  return repetition{false, std::max(*asks, milliseconds{10})};
}

void tries::hear(const grpc::Status& status) {
  if (made_ <= 1 || weight(status) >= weight(told_)) told_ = status;
}

}  // namespace warren::ctl
