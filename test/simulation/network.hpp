// test/simulation/network.hpp -- a simulated NATS: subjects, subscriptions, requests; it loses, repeats, delays and
// reorders, and it can be cut off from anybody. Knows no message's meaning.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors/messages.hpp"
#include "test/simulation/timeline.hpp"

namespace warren::simulation {

/// How bad the network is. Without any of it a message takes a millisecond and order is kept.
struct noise {
  int lost_percent = 0, repeated_percent = 0, late_percent = 0;
  std::int64_t late_ms_max = 700;  ///< of those that are late
  std::int64_t delay_ms_max = 1;   ///< of the others
};

/// One connection to the bus.
using link_id = int;
/// Shared by all who hear it.
using heard_message = std::shared_ptr<const bus_message>;

class network {
public:
  explicit network(timeline& t) : time_{t} {}

  struct receiver {
    /// `pattern`: the subscription that it came by; the inbox's subject for an answer. It stays where it is.
    std::function<void(const std::string& pattern, const heard_message&)> message;
    /// The connection is there, or not. Told late: a cut is not noticed at once.
    std::function<void(bool)> state;
  };
  link_id connect(std::string name, receiver to);
  void disconnect(link_id link);

  void subscribe(link_id link, const std::string& pattern);
  void unsubscribe(link_id link, const std::string& pattern);
  void publish(link_id from, bus_message m);
  /// Like publish; says at once when nobody listens ("no_responders" comes with an empty message to `reply_to`).
  void request(link_id from, bus_message m);
  /// A subject on which `link` alone hears answers.
  static std::string inbox(link_id link, std::uint64_t number);

  /// Nothing passes any more, in either direction; the connection's owner learns of it after a while.
  void cut(link_id link);
  void mend(link_id link);
  bool connected(link_id link) const;  ///< as its owner sees it

  noise noise_now;
  std::uint64_t published = 0, delivered = 0, lost = 0;
  /// Looks at everything that is said, before anything happens to it.
  std::function<void(link_id from, const bus_message&)> overheard;
  /// May change a message on its way (planted bugs).
  std::function<void(bus_message&, const std::string& to)> tamper;

private:
  struct connection {
    std::string name;
    std::shared_ptr<const receiver> to;  // it may disconnect while it is called
    bool cut = false, seen_connected = true;
    std::uint64_t cuts = 0;
    std::set<const std::string*> patterns;
  };
  struct subscription {
    link_id link;
    const std::string* pattern;
  };
  const std::vector<subscription>& subscribers(const std::string& subject);
  /// `pattern` null: it is an answer.
  void carry(link_id from, link_id to, const std::string* pattern, const heard_message& m);
  void arrive(link_id to, std::uint64_t cuts, const std::string* pattern, const heard_message& m);
  void publish(link_id from, const heard_message& m);

  timeline& time_;
  std::map<link_id, connection> connections_;
  std::unordered_map<std::string, std::vector<subscription>> routes_;  // by subject; forgotten at each change
  std::set<std::string> patterns_;  // each once, for good
  link_id next_ = 1;
};

}  // namespace warren::simulation
