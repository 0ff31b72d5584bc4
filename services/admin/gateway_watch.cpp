// services/admin/gateway_watch.cpp -- follows gateways. No gRPC, no CAF.
#include "services/admin/gateway_watch.hpp"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>

#include "services/replica/query.hpp"

namespace warren::admin {

namespace {

constexpr std::int64_t counts_every_ms = 1'000;  // how often what only counts is told of one gateway
constexpr std::int64_t look_every_ms = 20;       // a thousand acknowledgements a second are fifty looks

constexpr std::string_view token_head = "g1;";

api::Gateway without_counts(api::Gateway g) {
  g.clear_acknowledged();
  g.clear_revision();
  g.clear_lag();
  return g;
}

bool same(const api::Gateway& a, const api::Gateway& b) { return google::protobuf::util::MessageDifferencer::Equals(a, b); }

}  // namespace

std::string encode_gateway_token(revision_t revision) {
  const auto text = fmt::format("{}{};", token_head, revision);
  return replica::base64url(fmt::format("{:016x};{}", fnv1a_64(text), text));
}

std::optional<revision_t> decode_gateway_token(std::string_view text) {
  if (text.size() > 128) return std::nullopt;
  const auto bytes = replica::unbase64url(text);
  if (!bytes || bytes->size() < 21 || bytes->at(16) != ';') return std::nullopt;
  auto rest = std::string_view{*bytes}.substr(17);
  if (fmt::format("{:016x}", fnv1a_64(rest)) != bytes->substr(0, 16) || !rest.starts_with(token_head)) return std::nullopt;
  rest.remove_prefix(token_head.size());
  revision_t revision = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), revision);
  if (error != std::errc{} || std::string_view{end, static_cast<std::size_t>(rest.data() + rest.size() - end)} != ";" || revision < 0)
    return std::nullopt;
  return revision;
}

// ---- what is news ----

bool gateway_follower::start(const replica::tables& t, partition_id registry, std::vector<gateway_event>& out) {
  const auto at = t.partitions.find(registry);
  if (!t.warm || !t.gateways_settled || at == t.partitions.end()) return false;
  if (from_) {
    const auto now = at->second.revision;
    if (*from_ >> 32 < now >> 32) {
      closed_ = refused{errc::out_of_range, "resume_token: the database has been restored since; start anew"};
      return false;
    }
    if (*from_ > now) return false;  // it was given by an instance that is ahead of this one
    const auto gone = t.deleted.find(registry);
    if (gone != t.deleted.end() && *from_ < gone->second.complete_after) {
      closed_ = refused{errc::out_of_range, "resume_token: from too long ago; start anew"};
      return false;
    }
    if (gone != t.deleted.end())
      for (const auto& each : gone->second.all)
        if (each.revision > *from_ && each.gateway) out.push_back({{}, "gateways/" + each.gateway.unpack()->name()});
  }
  return true;
}

std::vector<gateway_event> gateway_follower::look(const replica::tables& t, partition_id registry, std::int64_t steady_ms) {
  std::vector<gateway_event> out;
  if (closed_ || (!started_ && !start(t, registry, out))) return out;
  due_ms_ = 0;
  for (auto it = all_.begin(); it != all_.end();) {
    const auto row = t.gateways.find(it->first);
    if (row != t.gateways.end() && row->second->uid() == it->second.told.uid()) {
      ++it;
      continue;
    }
    out.push_back({{}, it->second.told.name()});
    it = all_.erase(it);
  }
  for (const auto& [name, row] : t.gateways) {
    auto now = to_api(*row, t, false);
    const auto [at, fresh] = all_.try_emplace(name);
    auto& before = at->second;
    if (!fresh) {
      if (same(now, before.told)) continue;
      const bool counts_only = same(without_counts(now), without_counts(before.told));
      if (counts_only && steady_ms < before.told_at_ms + counts_every_ms) {
        const auto due = before.told_at_ms + counts_every_ms;
        due_ms_ = due_ms_ == 0 ? due : std::min(due_ms_, due);
        continue;
      }
    }
    before = {now, steady_ms};
    out.push_back({std::move(now), {}});
  }
  if (!std::exchange(started_, true)) out.emplace_back();
  revision_ = t.partitions.at(registry).revision;
  return out;
}

// ---- over a view ----

gateway_watcher::opened gateway_watcher::open(replica::view& v, gateway_watch_options options) {
  std::optional<revision_t> from;
  if (!options.resume_token.empty()) {
    from = decode_gateway_token(options.resume_token);
    if (!from) return refused{errc::invalid, "resume_token: is not one that a watch of gateways has given"};
  }
  return std::unique_ptr<gateway_watcher>{new gateway_watcher{v, std::move(options), from}};
}

gateway_watcher::gateway_watcher(replica::view& v, gateway_watch_options options, std::optional<revision_t> from)
    : view_{v}, options_{std::move(options)}, follower_{from} {
  // The writer's thread only leaves a mark: what is to be told is found out by whoever takes it.
  subscription_ = view_.subscribe([this](const replica::change_set& c) {
    const bool ours = c.acks || c.partition == options_.registry || c.rebuilt;
    if (ours && !news_.exchange(true)) options_.ready();
  });
}

gateway_watcher::~gateway_watcher() { view_.unsubscribe(subscription_); }

std::vector<gateway_event> gateway_watcher::take(std::size_t max, std::int64_t steady_ms) {
  std::lock_guard lock{mutex_};
  if (queue_.empty()) {
    const bool due = due_ms_ != 0 && steady_ms >= due_ms_;
    if (news_ || due) {
      if (looked_at_ms_ != 0 && steady_ms < looked_at_ms_ + look_every_ms) {
        due_ms_ = looked_at_ms_ + look_every_ms;
        return {};
      }
      news_ = false;
      looked_at_ms_ = steady_ms;
      auto found = view_.read([&](const replica::tables& t) { return follower_.look(t, options_.registry, steady_ms); });
      due_ms_ = follower_.due_ms();
      for (auto& each : found) queue_.push_back(std::move(each));
    }
  }
  std::vector<gateway_event> out;
  while (out.size() < max && !queue_.empty()) {
    out.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  if (queue_.empty()) taken_ = follower_.revision();
  return out;
}

std::string gateway_watcher::token() const {
  std::lock_guard lock{mutex_};
  return taken_ == 0 || !follower_.started() ? std::string{} : encode_gateway_token(taken_);
}

std::optional<gateway_watcher::refused> gateway_watcher::closed() const {
  std::lock_guard lock{mutex_};
  return queue_.empty() ? follower_.closed() : std::nullopt;
}

std::int64_t gateway_watcher::due_ms() const {
  std::lock_guard lock{mutex_};
  return due_ms_;
}

}  // namespace warren::admin
