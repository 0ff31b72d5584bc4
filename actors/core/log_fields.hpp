// actors/core/log_fields.hpp -- what varies in a line of the log, beside its constant sentence. Pure: logs nothing.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>

namespace warren {

struct log_field {
  std::string_view key;
  std::string value;
  bool number = false;  ///< shown without quotes

  log_field(std::string_view k, std::string_view v) : key(k), value(v) {}
  log_field(std::string_view k, const char* v) : key(k), value(v) {}
  log_field(std::string_view k, const std::string& v) : key(k), value(v) {}
  template <class N>
    requires std::is_arithmetic_v<N>
  log_field(std::string_view k, N v) : key(k), value(fmt::format("{}", v)), number(true) {}
};

/// Fields ride in the message behind this byte, which no text of ours contains: "sentence\x1f,\"key\":value".
inline constexpr char log_fields_begin = '\x1f';

/// The sentence with its fields, as a line's formatter (services/telemetry) takes them apart again. `suppressed`: lines
/// that were left out since the last one; 0: no field.
std::string with_fields(std::string_view sentence, std::initializer_list<log_field> fields, std::int64_t suppressed = 0);

/// As JSON wants it between quotes.
void append_json_escaped(std::string& out, std::string_view text);

}  // namespace warren
