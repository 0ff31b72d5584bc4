// services/warrend/supervisor.cpp -- tells systemd how this process is. Decides nothing.
#include "services/warrend/supervisor.hpp"

#include <cstdint>

#include <spdlog/spdlog.h>

#if defined(WARREN_SYSTEMD)
#include <systemd/sd-daemon.h>
#endif

namespace warren::supervisor {

namespace {

void notify([[maybe_unused]] const std::string& lines) {
#if defined(WARREN_SYSTEMD)
  if (const int r = sd_notify(0, lines.c_str()); r < 0) spdlog::warn("systemd cannot be told: error {}", -r);
#endif
}

}  // namespace

void ready(const std::string& status) { notify("READY=1\nSTATUS=" + status); }

void stopping() { notify("STOPPING=1\nSTATUS=draining"); }

std::chrono::microseconds watchdog_period() {
#if defined(WARREN_SYSTEMD)
  std::uint64_t period = 0;
  if (sd_watchdog_enabled(0, &period) > 0) return std::chrono::microseconds{period};
#endif
  return {};
}

watchdog::watchdog(std::function<bool(std::chrono::milliseconds)> well) {
  const auto period = std::chrono::duration_cast<std::chrono::milliseconds>(watchdog_period());
  if (period.count() <= 0) return;
  thread_ = std::thread{[this, period, well = std::move(well)] {
    // A pause and an unlucky wait are two thirds of the period: one late answer does not end the process.
    const auto pause = period / 3;
    std::unique_lock lock{mutex_};
    while (!stopped_) {
      lock.unlock();
      if (well(pause)) notify("WATCHDOG=1");
      else spdlog::error("placement does not answer: the watchdog is not told that all is well");
      lock.lock();
      wake_.wait_for(lock, pause, [this] { return stopped_; });
    }
  }};
}

void watchdog::stop() {
  {
    std::lock_guard lock{mutex_};
    stopped_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

}  // namespace warren::supervisor
