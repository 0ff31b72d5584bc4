// services/telemetry/logging.cpp -- one JSON object a line, or text on a terminal.
#include "services/telemetry/logging.hpp"

#include <ctime>
#include <optional>
#include <vector>

#include <spdlog/details/log_msg.h>
#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <unistd.h>

namespace warren::telemetry {

namespace {

std::optional<spdlog::level::level_enum> parse_level(std::string_view text) {
  using namespace spdlog::level;
  if (text == "trace") return trace;
  if (text == "debug") return debug;
  if (text == "info") return info;
  if (text == "warn") return warn;
  if (text == "error") return err;
  if (text == "off") return off;
  return std::nullopt;
}

std::string_view level_name(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace: return "trace";
    case spdlog::level::debug: return "debug";
    case spdlog::level::info: return "info";
    case spdlog::level::warn: return "warn";
    default: return "error";
  }
}

std::string rfc3339_ms(std::chrono::system_clock::time_point at) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(at.time_since_epoch()).count();
  const std::time_t seconds = ms / 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                     parts.tm_hour, parts.tm_min, parts.tm_sec, ms % 1000);
}

class line_formatter final : public spdlog::formatter {
public:
  line_formatter(std::string instance, bool json) : instance_(std::move(instance)), json_(json) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& to) override {
    const std::string_view payload{message.payload.data(), message.payload.size()};
    const auto at = payload.find(log_fields_begin);
    const auto sentence = payload.substr(0, at);
    const auto fields = at == std::string_view::npos ? std::string_view{} : payload.substr(at + 1);
    std::string line;
    if (json_) {
      line = fmt::format(R"({{"ts":"{}","level":"{}","msg":")", rfc3339_ms(message.time), level_name(message.level));
      append_json_escaped(line, sentence);
      line.append("\"");
      if (!instance_.empty()) {
        line.append(R"(,"instance":")");
        append_json_escaped(line, instance_);
        line.append("\"");
      }
      line.append(fields).append("}\n");
    } else {
      line = fmt::format("{} {:5} ", rfc3339_ms(message.time), level_name(message.level));
      append_json_escaped(line, sentence);
      if (!fields.empty()) line.append("  {").append(fields.substr(1)).append("}");
      line.append("\n");
    }
    to.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<line_formatter>(instance_, json_); }

private:
  std::string instance_;
  bool json_;
};

}  // namespace

bool set_up_logging(std::string_view instance, std::string_view level, log_format format) {
  if (format == log_format::automatic) format = isatty(STDERR_FILENO) != 0 ? log_format::text : log_format::json;
  return set_up_logging(instance, level, format, std::make_shared<spdlog::sinks::stderr_sink_mt>());
}

bool set_up_logging(std::string_view instance, std::string_view level, log_format format, spdlog::sink_ptr to) {
  const auto parsed = parse_level(level);
  if (!parsed) return false;
  auto logger = std::make_shared<spdlog::logger>("warren", std::move(to));
  logger->set_formatter(std::make_unique<line_formatter>(std::string{instance}, format != log_format::text));
  logger->set_level(*parsed);
  logger->flush_on(spdlog::level::warn);
  spdlog::set_default_logger(std::move(logger));
  return true;
}

bool set_log_level(std::string_view level) {
  const auto parsed = parse_level(level);
  if (parsed) spdlog::default_logger_raw()->set_level(*parsed);
  return parsed.has_value();
}

void log(spdlog::level::level_enum level, std::string_view message, std::initializer_list<field> fields) {
  auto* logger = spdlog::default_logger_raw();
  if (logger->should_log(level)) logger->log(level, spdlog::string_view_t{with_fields(message, fields, 0)});
}

std::int64_t once_a_second::allow(std::chrono::steady_clock::time_point now) {
  const auto now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now.time_since_epoch()).count();
  auto next = next_ns_.load();
  if (now_ns < next || !next_ns_.compare_exchange_strong(next, now_ns + 1'000'000'000)) {
    ++suppressed_;
    return -1;
  }
  return suppressed_.exchange(0);
}

void once_a_second::log(spdlog::level::level_enum level, std::string_view message, std::initializer_list<field> fields) {
  auto* logger = spdlog::default_logger_raw();
  if (!logger->should_log(level)) return;
  const auto suppressed = allow();
  if (suppressed >= 0) logger->log(level, spdlog::string_view_t{with_fields(message, fields, suppressed)});
}

}  // namespace warren::telemetry
