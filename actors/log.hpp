// actors/log.hpp -- lines of the log that are about one thing, with their fields. For shells: what decides logs nothing.
#pragma once

#include <initializer_list>
#include <string_view>

#include <spdlog/spdlog.h>

#include "actors/core/log_fields.hpp"

namespace warren {

/// `sentence` is constant; what varies goes into fields.
inline void log_line(spdlog::level::level_enum level, std::string_view sentence, std::initializer_list<log_field> fields,
                     std::int64_t suppressed = 0) {
  auto* logger = spdlog::default_logger_raw();
  if (logger->should_log(level)) logger->log(level, spdlog::string_view_t{with_fields(sentence, fields, suppressed)});
}

}  // namespace warren
