// services/hook/webhook.hpp -- an HTTP POST that is tried until it is taken. Knows nothing of what it carries.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include <boost/asio/io_context.hpp>

namespace warren::hook {

/// Where to: plain HTTP, for a receiver beside us.
struct webhook_url {
  std::string host, port, target;
};
/// Errors: std::invalid_argument, in a sentence.
webhook_url parse_webhook_url(const std::string& text);

/// Delivers one body at a time. A newer one takes the place of one that was not taken yet, so whoever hands them over
/// puts into each what the receiver has to know. Thread-safe.
class webhook {
public:
  /// `tried` hears how each attempt went: no error, or why not. On the thread of its own.
  webhook(webhook_url to, std::function<void(const std::string& error, const std::string& body)> tried);
  ~webhook();
  webhook(const webhook&) = delete;
  webhook& operator=(const webhook&) = delete;
  void deliver(std::string json);

private:
  void run();
  /// Returns why it was not taken; empty: it was.
  std::string post(const std::string& body);

  const webhook_url to_;
  const std::function<void(const std::string&, const std::string&)> tried_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<std::string> next_;
  bool stopped_ = false;
  boost::asio::io_context* trying_ = nullptr;  // of the attempt under way
  std::thread thread_;
};

}  // namespace warren::hook
