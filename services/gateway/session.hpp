// services/gateway/session.hpp -- one gateway's delta stream as a state machine: what it runs, what is under way,
// what it refused. No I/O, no clock, no thread: requests and changes in, responses out.
//
// Order on the wire: clusters, listeners, routes, scopes, and removed clusters after all of these, in one breath. A
// listener goes when those that take its place are there; while one of them is refused it stays.
// One response per type is unacknowledged at a time, but for routes: each travels alone, many at once, and only in a
// mass change some together. A refused response of several is halved until the culprit is alone. What changes
// meanwhile is a mark on a name, never a queue, so a slow gateway costs its names and no more.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "envoy/service/discovery/v3/discovery.pb.h"
#include "services/gateway/catalogue.hpp"

namespace warren::gateway {

namespace discovery = envoy::service::discovery::v3;

enum class stream_state : std::uint8_t { connecting, caught_up, stalled, gone };
std::string_view to_string(stream_state s);

struct refusal {
  kind type = kind::cluster;
  std::string name;
  partition_id partition = 0;
  std::string tunnel_uid, connector;
  revision_t revision = 0;  ///< the first that is not acknowledged because of it
  revision_t until = 0;     ///< the last that it stands for; what changed it since is on trial, and not acknowledged yet
  std::string message;
  std::int64_t at_ms = 0;  ///< the clock of whoever called
};

/// One name as it shall be, and as the gateway has acknowledged it.
struct programmed_name {
  std::string name;
  version_t intended = no_version, acknowledged = no_version;
  bool under_way = false;  ///< sent, and not answered yet
  bool refused = false;    ///< and withheld since
};

class session {
public:
  /// `c` outlives the session and changes only between calls, each change followed by changed().
  session(const catalogue& c, std::string gateway_class);

  // -- in --

  /// Returns an error for the stream's end: a request that no xDS client sends.
  std::string request(const discovery::DeltaDiscoveryRequest& r, std::int64_t now_ms);
  void changed(const change& c);
  void tick(std::int64_t now_ms);

  // -- out --

  /// The next response to write; call again after each write until there is none.
  std::optional<discovery::DeltaDiscoveryResponse> poll(std::int64_t now_ms);

  /// The route revision up to which this gateway runs a partition, `refusals` excepted.
  revision_t acknowledged(partition_id p) const;
  /// Whether there are any.
  bool refuses(partition_id p) const;
  std::vector<refusal> refusals(partition_id p) const;
  /// Why it lets no visitor in, whatever routes it runs: it refuses the class's listeners and runs none, or there are
  /// none. Empty: one is run, or not answered yet.
  std::string shut() const;
  const std::optional<refusal>& last_refusal() const { return last_refusal_; }
  stream_state state() const { return state_; }
  /// Names that wait for an acknowledgement.
  std::size_t pending() const { return pending_names_; }
  /// Partitions for which anything above may have changed since the last call.
  std::set<partition_id> take_touched();
  /// Names of a type that follow `after`, in order, at most `max`.
  std::vector<programmed_name> programmed(kind k, const std::string& after, std::size_t max) const;
  std::size_t bytes_sent() const { return bytes_sent_; }
  std::size_t responses_sent(kind k) const { return types_[index(k)].responses; }
  std::size_t nacks() const { return nacks_; }
  /// How long the last acknowledged response was under way.
  std::function<void(kind, std::int64_t elapsed_ms)> on_acknowledged;

private:
  static std::size_t index(kind k) { return static_cast<std::size_t>(k); }

  /// What a gateway does not take, until it changes.
  struct refused_as {
    refusal what;
    version_t version = no_version;  ///< none: it is tried all the same
  };
  /// One name of one type: there are as many as resources.
  struct name_state {
    version_t acked = no_version;  ///< what the gateway runs
    version_t sent = no_version;   ///< under way, if `in_flight`
    revision_t pending = 0;       ///< the first revision that is not acknowledged; 0: all are
    revision_t pending_next = 0;  ///< the same for what changed after `sent` was sent
    std::unique_ptr<refused_as> refused;
    partition_id partition = 0;
    bool subscribed = false;      ///< by its name
    bool in_flight = false;
    bool dirty = false;           ///< in the type's `dirty` set
    bool must_answer = false;     ///< subscribed (again): whatever it had does not count
    bool baseline = false;        ///< part of what it has to catch up with
  };
  struct flight {
    std::vector<std::string> names;
    std::int64_t sent_at_ms = 0;
  };
  struct type_state {
    bool known = false;     ///< the gateway has asked for this type
    bool wildcard = false;
    bool owes_answer = false;  ///< its first request is answered even if there is nothing
    bool answered = false;     ///< that answer is acknowledged, or there was nothing to say
    std::size_t subscriptions = 0;  ///< of single names
    std::unordered_map<std::string, name_state> names;  ///< each is looked up ten times for each change
    std::set<std::string> dirty;
    std::set<std::string> dirty_removals;  ///< of clusters and listeners: they go after what takes their place
    std::map<std::string, flight> flights;  ///< by nonce
    std::deque<std::vector<std::string>> suspects;  ///< parts of a refused response, each sent by itself
    std::size_t responses = 0;
  };

  static bool covers(const type_state& t, const name_state& n) { return t.known && (t.wildcard || n.subscribed); }
  static void set_subscribed(type_state& t, name_state& n, bool is);
  version_t target_version(kind k, const std::string& name) const;
  /// Decides anew whether `name` has to be sent.
  void weigh(kind k, const std::string& name, name_state& n, revision_t revision);
  static void mark(type_state& t, const std::string& name, name_state& n, bool removal);
  static void unmark(type_state& t, const std::string& name, name_state& n);
  void set_pending(name_state& n, revision_t revision);
  void set_partition(name_state& n, partition_id p);
  void settle_baseline(name_state& n);
  void first_request(kind k, const discovery::DeltaDiscoveryRequest& r);
  void subscribe(kind k, const std::string& name);
  void answer(kind k, const std::string& nonce, const discovery::DeltaDiscoveryRequest& r, std::int64_t now_ms);
  void accepted(kind k, const std::string& name);
  void refuse(kind k, const std::string& name, const std::string& message, std::int64_t now_ms);
  void forget_refusal(kind k, const std::string& name, name_state& n);
  /// What the gateway has of it does not count: it is told anew.
  void forget(kind k, const std::string& name, name_state& n);
  void forget_all(kind k);
  bool refuses_listener() const;
  bool runs_visitors_listener() const;
  /// What one listener has met may let another one go, or keep it.
  void weigh_listeners();
  /// Whether its clusters went before it; nullptr: it is removed.
  bool may_send_route(const entry* e) const;
  discovery::DeltaDiscoveryResponse respond(kind k, const std::vector<std::string>& names, std::int64_t now_ms);
  std::vector<std::string> take_batch(kind k, std::set<std::string>& from);
  std::vector<std::string> take_routes(const type_state& t) const;
  std::vector<std::string> take_suspects(type_state& t) const;
  void drop_if_idle(kind k, const std::string& name);
  void update_state(std::int64_t now_ms);

  const catalogue& catalogue_;
  std::string class_;
  std::array<type_state, kinds> types_;
  std::map<partition_id, std::map<revision_t, std::size_t>> pending_;  ///< how many names wait for each
  std::size_t pending_names_ = 0;
  std::size_t baseline_left_ = 0;
  bool visitors_listener_tried_ = false;  ///< on this stream: taken, or refused
  std::map<partition_id, std::set<std::pair<kind, std::string>>> refused_;
  std::set<std::string> unasked_;  ///< routes that nobody asks for, as their scope is refused: they hold nothing back
  std::optional<refusal> last_refusal_;
  std::set<partition_id> touched_;
  stream_state state_ = stream_state::connecting;
  std::uint64_t next_nonce_ = 1;
  std::size_t bytes_sent_ = 0;
  std::size_t nacks_ = 0;
};

}  // namespace warren::gateway
