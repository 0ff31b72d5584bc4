// test/simulation/watches.hpp -- whoever follows tunnels or connectors: an instance's side of the streams with the real
// watches, as services/admin/watches keeps it without gRPC, and clients that go on at another instance with their token.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "services/replica/watch.hpp"
#include "test/simulation/bugs.hpp"
#include "test/simulation/timeline.hpp"

namespace warren::simulation {

/// One message of a stream.
struct watch_message {
  replica::watch_event event;
  std::string token;  ///< with the last of those that were taken together
};
struct watch_wish {
  replica::watched what = replica::watched::tunnels;
  std::string project;  ///< empty: all
  std::string token;    ///< empty: anew
};

class watch_side {
public:
  struct wiring {
    replica::view& view;
    std::function<std::int64_t()> wall_ms;
    const bugs* planted = nullptr;
    std::function<void(std::function<void()>)> soon;  ///< in a turn of its own, unless the process has ended by then
    std::function<void(std::uint64_t stream, const watch_message&)> send;
    std::function<void(std::uint64_t stream, const replica::watcher::refused& why)> close;  ///< the instance ends it
  };
  explicit watch_side(wiring w) : to_{std::move(w)} {}

  void open(std::uint64_t stream, const watch_wish& q);
  void ended(std::uint64_t stream) { streams_.erase(stream); }
  /// Sends everybody away.
  void stop();

private:
  struct connected {
    std::unique_ptr<replica::watcher> watch;
    bool swallows = false;  ///< a planted bug: what it begins with is not told
  };
  bool has(bug b) const { return to_.planted != nullptr && to_.planted->count(b) > 0; }
  void pump(std::uint64_t stream);
  void end(std::uint64_t stream, const replica::watcher::refused& why);

  wiring to_;
  std::map<std::uint64_t, connected> streams_;
};

/// A client. What it knows is what it was told up to its last token.
class watch_host {
public:
  struct wiring {
    timeline& time;
    /// Opens a stream to an instance that answers; false: none does.
    std::function<bool(std::uint64_t stream, int tries, const watch_wish& q)> open;
    std::function<void(std::uint64_t stream)> hang_up;
    std::function<std::uint64_t()> fresh_stream;
    /// Whether a row has ever been stored as it is.
    std::function<bool(const v1::Row&)> was_stored;
  };
  struct known {
    std::string uid;
    std::int64_t version = 0;
    std::vector<v1::Condition> conditions;
  };
  watch_host(std::string name, replica::watched what, std::string project, wiring w)
      : name_{std::move(name)}, what_{what}, project_{std::move(project)}, to_{std::move(w)} {}

  const std::string& name() const { return name_; }
  replica::watched what() const { return what_; }
  bool concerns(const std::string& project) const { return project_.empty() || project_ == project; }

  void connect();
  void received(std::uint64_t stream, const watch_message& m);
  /// `why` null: the connection broke.
  void closed(std::uint64_t stream, const replica::watcher::refused* why);
  void hang_up();
  /// What was told of the lost second may be told again otherwise.
  void failed_over();

  std::uint64_t stream() const { return stream_; }
  bool caught_up() const { return stream_ != 0 && caught_up_; }
  int resumed() const { return resumed_; }
  const std::map<replica::entity_key, known>& model() const { return model_; }

private:
  void apply(const replica::watch_event& e);
  void forget();
  void wrong(const std::string& what) const { to_.time.violate(name_ + ": " + what); }

  std::string name_;
  replica::watched what_;
  std::string project_;
  wiring to_;
  std::uint64_t stream_ = 0;
  int tries_ = 0;  // each at the next instance
  int resumed_ = 0;
  bool caught_up_ = false;  // in this stream
  bool anew_ = true;        // this stream began without a token
  std::int64_t lenient_until_ms_ = -1;
  std::string token_;
  std::vector<replica::watch_event> untold_;  // since the last token
  std::map<replica::entity_key, known> model_;
  std::map<std::string, std::int64_t> highest_;  ///< version by uid, since it began anew
  std::set<std::string> gone_;                   ///< uids
};

}  // namespace warren::simulation
