// services/replica/watch.hpp -- follows tunnels or connectors: a snapshot, then what changes, resumable on any
// instance. Pulled by its reader, fed by the view; bounded. No CAF, no I/O.
#pragma once

#include <cstdint>
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
#include "actors/core/limits.hpp"
#include "services/replica/view.hpp"

namespace warren::replica {

enum class watched : std::uint8_t { tunnels, connectors };

struct watch_options {
  watched what = watched::tunnels;
  std::string project;       ///< empty: all
  std::string resume_token;  ///< empty: begin with a snapshot
  std::int64_t wall_ms = 0;
  std::size_t queue_max = limits::watch_queue_max;
  /// There is something to take. Called on the view's writer's thread; must not block.
  std::function<void()> ready;
};

struct watch_event {
  enum class kind : std::uint8_t {
    created,
    updated,    ///< the row or, of a tunnel, a condition. After a resume also what was created meanwhile
    deleted,    ///< `tunnel` or `connector` is its last state; of one that a resumed watch has missed only its key and uid
    caught_up,  ///< the snapshot, or what was missed, is complete; once
  };
  kind what = kind::updated;
  row_ptr<v1::TunnelRow> tunnel;        ///< either
  row_ptr<v1::ConnectorRow> connector;
  condition_list conditions;            ///< of a tunnel: all five
};

/// Where a watch is. Opaque to clients.
struct watch_token {
  revision_t lineage = 0;             ///< of the database: revisions of another one mean nothing
  watched what = watched::tunnels;
  std::string project;
  std::int64_t wall_ms = 0;           ///< when it was given
  std::map<partition_id, revision_t> revisions;
};
std::string encode(const watch_token& t);
std::optional<watch_token> decode_watch_token(std::string_view text);

/// One watch. Nothing comes before the view is warm, its gateways have been heard (conditions are known),
/// and it has caught up with the token. Events of one row come in order; deleted and created again under one
/// name are two events. Thread-safe; destroy it on any thread but the writer's.
class watcher {
public:
  struct refused { errc code = errc::invalid; std::string message; };
  using opened = std::variant<std::unique_ptr<watcher>, refused>;
  /// Errors: invalid (no token of ours, or of another watch), out_of_range (too old, or from before the database was restored).
  static opened open(view& v, watch_options options);
  ~watcher();
  watcher(const watcher&) = delete;
  watcher& operator=(const watcher&) = delete;

  /// Up to `max` events; none: wait for `ready`.
  std::vector<watch_event> take(std::size_t max);
  /// Resumes after everything that was taken. Empty before caught_up was taken.
  std::string token(std::int64_t wall_ms) const;
  /// Why no more comes, once everything has been taken; empty while it goes on. overloaded: the reader is
  /// too slow; out_of_range: the token turned out to be too old. Resume with the last token, or anew.
  std::optional<refused> closed() const;

private:
  struct queued {
    watch_event event;                 // what a tunnel's row and conditions are packed in below is filled in when it is taken
    packed_row<v1::TunnelRow> tunnel;
    packed_status status;
    partition_id partition = 0;
    revision_t revision = 0;
  };
  explicit watcher(view& v, watch_options options, std::optional<watch_token> from);
  void on_change(const change_set& c);
  bool try_start(const tables& t);
  void snapshot(const tables& t);
  void missed(const tables& t);
  void follow(const tables& t, const change_set& c);
  void push(queued q);
  bool concerns(const std::string& project) const { return options_.project.empty() || options_.project == project; }

  view& view_;
  const watch_options options_;
  std::optional<watch_token> from_;
  int subscription_ = 0;

  mutable std::mutex mutex_;
  bool started_ = false;
  std::optional<refused> closed_;
  std::deque<queued> queue_;                    // the snapshot may be larger than queue_max: it is not news
  std::size_t initial_ = 0;                     // of queue_: snapshot or missed, and caught_up
  bool caught_up_taken_ = false;
  std::uint64_t serial_ = 0;                    // of the last change that is in
  revision_t lineage_ = 0;
  std::map<partition_id, revision_t> start_;    // of the snapshot
  std::map<partition_id, revision_t> seen_;     // queued up to
  std::map<partition_id, revision_t> taken_;    // taken up to
};

}  // namespace warren::replica
