// services/warrend/supervisor.hpp -- tells systemd how this process is. Without systemd, or when the process was
// not started by it, everything here does nothing.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace warren::supervisor {

/// The instance serves; `status` is what `systemctl status` shows.
void ready(const std::string& status);
/// The instance is draining.
void stopping();
/// How often systemd wants to hear from this process; zero: not at all.
std::chrono::microseconds watchdog_period();

/// Tells the watchdog, three times in its period, that this process is well, whenever `well` says so. `well` is
/// called on a thread of its own and may block, for at most `patience`, which it is given.
class watchdog {
public:
  explicit watchdog(std::function<bool(std::chrono::milliseconds patience)> well);
  ~watchdog() { stop(); }
  watchdog(const watchdog&) = delete;
  watchdog& operator=(const watchdog&) = delete;
  void stop();

private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace warren::supervisor
