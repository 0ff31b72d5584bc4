// services/warren-agent/proxy.hpp -- the HTTP/1.1 server that gateways open tunnels through: CONNECT to the target
// of an attached rule, and nothing else. Runs on the agent's one thread.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "services/warren-agent/attachments.hpp"
#include "services/warren-agent/dial.hpp"

namespace warren::agent {

struct proxy_options {
  std::string project;
  std::string public_key_hex;
  std::vector<tcp::endpoint> listen;
  std::size_t connections_max = 10'000;
  std::size_t head_bytes_max = 16 * 1024;
  millis head_timeout{10s};     // also between requests of a kept connection
  millis idle_timeout{2h};      // above Envoy's hour for WebSockets: the gateway decides, not we
};

struct proxy_counts {
  std::size_t open = 0;         ///< connections now
  std::size_t tunnels = 0;      ///< of them, those that carry bytes
  std::uint64_t accepted = 0, established = 0, refused = 0, failed = 0, ended_by_detach = 0;
};

/// Not thread-safe.
class proxy {
public:
  /// Called after each dial for a visitor; `words` empty: it worked.
  using dialled_callback = std::function<void(const target& to, std::string_view words)>;

  /// Listens at once. Errors: boost::system::system_error, naming the address.
  proxy(asio::io_context& io, dialler& d, proxy_options options, dialled_callback on_dialled);
  ~proxy();
  proxy(const proxy&) = delete;
  proxy& operator=(const proxy&) = delete;

  /// Connections of what is attached no longer end at once, unless another generation of the same tunnel has the
  /// same rule with the same target: that one takes them over.
  /// Costs as much as what may have changed, not as the whole set.
  void attach(const attachment_set& set, const touched_keys& touched = {});
  void stop_accepting();
  void close_all();
  proxy_counts counts() const;
  std::vector<tcp::endpoint> listening() const;  ///< with the real ports

private:
  struct listener;
  class connection;
  struct route {
    attachment_key key;
    int rule = 0;
    auto operator<=>(const route&) const = default;
  };
  void accept(listener& on);
  void refuse_beyond_limit(tcp::socket socket);
  void ended(const std::shared_ptr<connection>& one);

  asio::io_context& io_;
  dialler& dialler_;
  proxy_options options_;
  dialled_callback on_dialled_;
  std::map<route, target> routes_;
  std::map<route, std::set<std::shared_ptr<connection>>> by_route_;
  std::set<std::shared_ptr<connection>> connections_;
  std::vector<std::unique_ptr<listener>> listeners_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // handlers outlive us by one turn of the loop
  proxy_counts counts_;
};

}  // namespace warren::agent
