// bench/words.cpp -- two subscriptions and what was heard on them.
#include "bench/words.hpp"

#include <algorithm>

#include "warren/bus/v1/bus.pb.h"

namespace warren::bench {

namespace busv1 = warren::bus::v1;

instance_words::instance_words(const stack::stack& world) {
  bus::connection_options to;
  to.urls = {world.nats_url()};
  to.user = "warren";
  to.password = world.nats_password();
  to.bulk_connection = false;
  to.name = "bench/words";
  nats_ = bus::connection::open(to);
  commits_heard_ = nats_->subscribe("warren.v1.rev.*", [this](std::string_view, std::string_view payload, std::string_view) {
    const auto now = clock::now();
    busv1::Revision r;
    if (!r.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) return;
    const std::lock_guard lock{mutex_};
    auto& newest = revisions_[r.partition()];
    newest = std::max(newest, r.revision());
    const revision_of at{r.partition(), r.revision(), now};
    for (const auto& row : r.rows()) {
      if (row.has_tunnel()) tunnels_.try_emplace({row.tunnel().project() + "/" + row.tunnel().name(), row.tunnel().enabled()}, at);
      if (row.has_connector())
        connectors_.try_emplace({row.connector().project() + "/" + row.connector().name(), row.connector().online()}, at);
    }
    changed_.notify_all();
  });
  acks_heard_ = nats_->subscribe("warren.v1.ack.*", [this](std::string_view, std::string_view payload, std::string_view) {
    const auto now = clock::now();
    busv1::GatewayAck a;
    if (!a.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) return;
    const std::lock_guard lock{mutex_};
    auto& known = acks_[{a.gateway(), a.partition()}];
    known.state = a.state();
    if (known.steps.empty() || known.steps.back().first < a.acknowledged()) known.steps.emplace_back(a.acknowledged(), now);
    changed_.notify_all();
  });
  nats_->flush(milliseconds{2'000});
}

instance_words::~instance_words() {
  commits_heard_.reset();
  acks_heard_.reset();
  nats_->close();
}

void instance_words::forget() {
  const std::lock_guard lock{mutex_};
  tunnels_.clear();
  connectors_.clear();
}

std::optional<revision_of> instance_words::await_commit(const commits& in, const std::string& which, bool is, milliseconds timeout) {
  std::unique_lock lock{mutex_};
  if (!changed_.wait_for(lock, timeout, [&] { return in.contains({which, is}); })) return std::nullopt;
  return in.at({which, is});
}

std::optional<revision_of> instance_words::await_tunnel(const std::string& which, bool enabled, milliseconds timeout) {
  return await_commit(tunnels_, which, enabled, timeout);
}
std::optional<revision_of> instance_words::await_connector(const std::string& which, bool online, milliseconds timeout) {
  return await_commit(connectors_, which, online, timeout);
}

std::optional<clock::time_point> instance_words::await_ack(const std::string& gateway, const revision_of& of, milliseconds timeout) {
  std::unique_lock lock{mutex_};
  std::optional<clock::time_point> out;
  changed_.wait_for(lock, timeout, [&] {
    const auto& steps = acks_[{gateway, of.partition}].steps;
    const auto it = std::lower_bound(steps.begin(), steps.end(), of.revision, [](const auto& s, std::int64_t r) { return s.first < r; });
    if (it != steps.end()) out = it->second;
    return out.has_value();
  });
  return out;
}

std::optional<clock::time_point> instance_words::await_caught_up(const std::string& gateway, milliseconds timeout) {
  std::unique_lock lock{mutex_};
  std::optional<clock::time_point> out;
  changed_.wait_for(lock, timeout, [&] {
    clock::time_point last{};
    for (const auto& [partition, revision] : revisions_) {
      const auto it = acks_.find({gateway, partition});
      if (it == acks_.end() || it->second.state != "caught_up" || it->second.steps.empty() || it->second.steps.back().first < revision)
        return false;
      const auto& steps = it->second.steps;
      const auto step = std::lower_bound(steps.begin(), steps.end(), revision, [](const auto& s, std::int64_t r) { return s.first < r; });
      last = std::max(last, step->second);
    }
    out = last;
    return true;
  });
  return out;
}

}  // namespace warren::bench
