// services/bus/connection.hpp -- NATS without actors: publish, request, subscribe, and know whether it is
// there. The only room that includes the NATS library's header; never blocks its callers on the network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/limits.hpp"
#include "actors/core/time.hpp"

namespace warren::bus {

struct connection_options {
  std::vector<std::string> urls;   ///< "nats://host:port"; any of them
  std::string name;                ///< shown by the server; agents: agent_connection_name() of subjects.hpp
  std::string user, password;      ///< either these, or
  std::string credentials_file;    ///< a .creds file, or
  std::string user_jwt, user_seed; ///< what would be in it, or none of them
  std::string tls_ca_file, tls_certificate_file, tls_key_file;  ///< any of them set: TLS
  /// Inboxes are `<prefix>.<random>.*`; permissions of an agent may demand one of its own.
  std::string inbox_prefix = "_INBOX";
  /// A second NATS connection whose small messages travel together (for `bulk`); without it, all use one.
  bool bulk_connection = true;
  millis reconnect_wait_min{50}, reconnect_wait_max{500};
  millis connect_timeout{2000};
  millis ping_interval{2000};      ///< two pings unanswered when a third is due: disconnected
  std::size_t reconnect_buffer_bytes = 8 * 1024 * 1024;  ///< what waits while disconnected; beyond: dropped
  std::size_t requests_max = limits::bus_requests_max;
  std::size_t pending_messages_max = limits::bus_pending_messages_max;  ///< per subscription
  std::size_t pending_bytes_max = limits::bus_pending_bytes_max;        ///< per subscription
};

enum class request_error : std::uint8_t {
  none,
  no_responders,  ///< nobody subscribes to the subject
  timeout,
  disconnected,   ///< not connected, or the connection ended while waiting: it may have been received
  overloaded,     ///< too many are waiting, or the payload is too large; nothing was sent
};
std::string_view to_string(request_error error);  ///< "" for none; the words of bus_reply

/// Arguments are valid during the call only. `reply_to` empty: nobody waits.
using message_callback =
    std::function<void(std::string_view subject, std::string_view payload, std::string_view reply_to)>;
/// Called exactly once.
using reply_callback = std::function<void(request_error error, std::string_view payload)>;
using state_callback = std::function<void(bool connected)>;

/// Keeps a subscription. After its destruction no callback runs: it waits for one that is under way, except
/// when that very callback destroys it. Messages that have arrived meanwhile are dropped.
class subscription {
public:
  subscription() = default;
  subscription(subscription&&) noexcept = default;
  subscription& operator=(subscription&& other) noexcept;
  ~subscription();
  void reset();  ///< as destruction
  explicit operator bool() const { return shared_ != nullptr; }

  struct shared;
  explicit subscription(std::shared_ptr<shared> s) : shared_(std::move(s)) {}

private:
  std::shared_ptr<shared> shared_;
};

/// Thread-safe. Callbacks run on any thread (also on the caller's, for what fails at once) and must not
/// block; those of one subscription run one after another, in the order of arrival.
class connection {
public:
  /// Tries once before it returns (connect_timeout for each URL at most), then in the background, for ever:
  /// a server that is away, refuses us or closes the connection is tried again. `counts` may be null and must
  /// outlive the connection.
  /// Errors: std::invalid_argument for options that can never work (no URL, malformed URL, unreadable file).
  static std::shared_ptr<connection> open(connection_options options, counters* counts = nullptr);
  ~connection();
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;

  /// False: dropped and counted (buffer full while disconnected, too large, closed).
  /// Order: kept among those of the same `bulk`.
  bool publish(std::string_view subject, std::string_view payload, bool bulk = false,
               std::string_view reply_to = {});
  void request(std::string_view subject, std::string_view payload, millis timeout, reply_callback callback);
  /// Survives reconnects. Empty handle: the subject is malformed, or the connection is closed.
  [[nodiscard]] subscription subscribe(std::string_view subject, message_callback callback);
  /// Called with the present state before it returns, and then at each change, until close().
  void on_state(state_callback callback);
  bool connected() const;
  /// Blocks until the server has all that was published before, or `timeout`. Never in a callback or an actor.
  bool flush(millis timeout);
  /// Sends what is buffered if that can be done at once; answers all requests with `disconnected`; ends
  /// every subscription. Blocks for them; not in a callback.
  void close();

  struct impl;
  explicit connection(std::shared_ptr<impl> i);

private:
  std::shared_ptr<impl> impl_;
};

}  // namespace warren::bus
