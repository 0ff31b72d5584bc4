// services/telemetry/logging.hpp -- one JSON object a line, or text on a terminal. Never logs secrets by itself.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include <spdlog/spdlog.h>

#include "actors/core/log_fields.hpp"

namespace warren::telemetry {

enum class log_format : std::uint8_t { automatic, json, text };  ///< automatic: text on a terminal

/// Sets the default logger, on standard error. Errors: false for a level that is none of
/// trace, debug, info, warn, error, off.
bool set_up_logging(std::string_view instance, std::string_view level = "info", log_format format = log_format::automatic);
/// The same with lines that go elsewhere, for tests.
bool set_up_logging(std::string_view instance, std::string_view level, log_format format, spdlog::sink_ptr to);
/// At run time, from any thread. False: no such level, nothing changed.
bool set_log_level(std::string_view level);

using field = log_field;

/// `message` is a constant sentence; what varies goes into fields.
void log(spdlog::level::level_enum level, std::string_view message, std::initializer_list<field> fields = {});

/// Lets one line a second through. One per call site, static or a member. Thread-safe.
class once_a_second {
public:
  /// How many were suppressed since the last line, or -1: say nothing.
  std::int64_t allow(std::chrono::steady_clock::time_point now = std::chrono::steady_clock::now());
  void log(spdlog::level::level_enum level, std::string_view message, std::initializer_list<field> fields = {});

private:
  std::atomic<std::int64_t> next_ns_{INT64_MIN};
  std::atomic<std::int64_t> suppressed_{0};
};

}  // namespace warren::telemetry
