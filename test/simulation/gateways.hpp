// test/simulation/gateways.hpp -- a simulated Envoy: what it runs, and its delta stream to one instance after the other.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "envoy/service/discovery/v3/discovery.pb.h"
#include "test/simulation/timeline.hpp"

namespace warren::simulation {

namespace discovery = envoy::service::discovery::v3;

class gateway_host {
public:
  struct wiring {
    timeline& time;
    /// Opens a stream to an instance that answers; false: none does.
    std::function<bool(std::uint64_t stream, int not_this_one)> open;
    std::function<void(std::uint64_t stream, const discovery::DeltaDiscoveryRequest&)> send;
    std::function<void(std::uint64_t stream)> hang_up;
    std::function<std::uint64_t()> fresh_stream;
  };
  gateway_host(std::string name, std::string gateway_class, wiring w)
      : name_{std::move(name)}, class_{std::move(gateway_class)}, to_{std::move(w)} {}

  const std::string& name() const { return name_; }
  const std::string& gateway_class() const { return class_; }

  void connect();
  void received(std::uint64_t stream, const discovery::DeltaDiscoveryResponse& r);
  void closed(std::uint64_t stream);
  /// The process dies and starts anew: it runs nothing.
  void restart();
  void hang_up();
  /// Acknowledges nothing for that long.
  void freeze(std::int64_t ms);
  /// Does not take the resource of this name, as if there were something wrong with it: answers whatever it comes in
  /// with an error. Of clusters it takes the others all the same, as Envoy does; else nothing of that response.
  void dislike(const std::string& resource) { disliked_.insert(resource); }
  /// Takes everything again; what it has refused is offered to it in another stream.
  void like(const std::string& resource);
  void like_all();
  /// Whether it has ever refused one of these.
  bool has_refused(const std::string& resource) const { return refused_.count(resource) > 0; }
  std::uint64_t stream() const { return stream_; }
  bool connected() const { return stream_ != 0; }

  struct route {
    std::string version;
    std::set<std::string> clusters;  ///< that visitors are sent to
  };
  const std::map<std::string, std::string>& clusters() const { return clusters_; }
  const std::map<std::string, route>& routes() const { return routes_; }
  const std::map<std::string, std::string>& scopes() const { return scopes_; }  ///< host name → route configuration
  /// Where visitors of this host name are sent; nothing: a 404.
  const route* meets(const std::string& hostname) const;

private:
  void begin_stream();
  void apply(const discovery::DeltaDiscoveryResponse& r);
  /// What it does not like of it, taken out; empty: all is well.
  std::vector<std::string> take_out_disliked(discovery::DeltaDiscoveryResponse& r);
  void follow_scopes();
  void send_later(discovery::DeltaDiscoveryRequest r);

  std::string name_, class_;
  wiring to_;
  std::uint64_t stream_ = 0;  // 0: not connected
  int tries_ = 0;  // each at the next instance
  std::int64_t frozen_until_ms_ = 0;
  std::int64_t sent_until_ms_ = 0;
  std::map<std::string, std::string> clusters_, listeners_;  // name → version
  std::map<std::string, std::string> scope_versions_, scopes_;
  std::map<std::string, route> routes_;
  std::set<std::string> asked_routes_;  // in this stream
  std::set<std::string> disliked_, refused_;
};

}  // namespace warren::simulation
