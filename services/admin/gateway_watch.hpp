// services/admin/gateway_watch.hpp -- follows gateways: a snapshot, then what changes, resumable on any instance.
// There are few of them and their state changes with every acknowledgement: so a watch is no queue of events, but
// compares what it last told with what is. A slow reader misses steps, never the outcome, and costs nothing.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "actors/core/error.hpp"
#include "services/admin/convert.hpp"
#include "services/replica/view.hpp"

namespace warren::admin {

/// Where a watch is: the registry's revision. Opaque to clients.
std::string encode_gateway_token(revision_t revision);
std::optional<revision_t> decode_gateway_token(std::string_view text);

/// Either a gateway as it is, one that is gone, or (neither) "that was all there was".
struct gateway_event {
  std::optional<api::Gateway> gateway;
  std::string deleted;
};

/// What one watch has told, and what is news to it. No I/O, no clock, no thread.
class gateway_follower {
public:
  struct refused { errc code = errc::invalid; std::string message; };

  explicit gateway_follower(std::optional<revision_t> from) : from_{from} {}

  /// The news, each gateway once. Nothing before the tables are warm, the gateways have been heard, and they are as
  /// new as the token. What only counts (acknowledged, revision, lag) is told of each gateway once a second.
  std::vector<gateway_event> look(const replica::tables& t, partition_id registry, std::int64_t steady_ms);
  /// When to look again though nothing happens, on the same clock; 0: no need.
  std::int64_t due_ms() const { return due_ms_; }
  /// The registry's revision that the last look was of.
  revision_t revision() const { return revision_; }
  bool started() const { return started_; }
  const std::optional<refused>& closed() const { return closed_; }

private:
  struct known {
    api::Gateway told;
    std::int64_t told_at_ms = 0;
  };
  bool start(const replica::tables& t, partition_id registry, std::vector<gateway_event>& out);

  std::optional<revision_t> from_;
  std::map<std::string, known> all_;
  std::int64_t due_ms_ = 0;
  revision_t revision_ = 0;
  bool started_ = false;
  std::optional<refused> closed_;
};

struct gateway_watch_options {
  std::string resume_token;
  partition_id registry = 0;    ///< the partition that gateways are in
  std::function<void()> ready;  ///< there may be something to take; called on the view's writer's thread, must not block
};

/// One watch over a view, with the functions that a stream wants (services/replica/watch.hpp has those of the others).
/// Thread-safe; destroy it on any thread but the view's writer's.
class gateway_watcher {
public:
  using refused = gateway_follower::refused;
  using opened = std::variant<std::unique_ptr<gateway_watcher>, refused>;
  /// Errors: invalid, when the token is none of ours.
  static opened open(replica::view& v, gateway_watch_options options);
  ~gateway_watcher();
  gateway_watcher(const gateway_watcher&) = delete;
  gateway_watcher& operator=(const gateway_watcher&) = delete;

  std::vector<gateway_event> take(std::size_t max, std::int64_t steady_ms);
  /// Resumes after everything that was taken; empty before the snapshot was.
  std::string token() const;
  std::optional<refused> closed() const;
  /// When to take again though `ready` is not called; 0: no need.
  std::int64_t due_ms() const;

private:
  gateway_watcher(replica::view& v, gateway_watch_options options, std::optional<revision_t> from);

  replica::view& view_;
  const gateway_watch_options options_;
  int subscription_ = 0;
  std::atomic<bool> news_{true};
  mutable std::mutex mutex_;
  gateway_follower follower_;
  std::deque<gateway_event> queue_;  // at most each gateway once
  std::int64_t looked_at_ms_ = 0;
  std::int64_t due_ms_ = 0;
  revision_t taken_ = 0;
};

}  // namespace warren::admin
