// services/hook/wire.hpp -- protobuf's wire format, read and written as slices. Knows no message; what a reader does
// not look at is handed on as the bytes that came in.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace warren::hook::wire {

enum class type : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, group = 3, group_end = 4, fixed32 = 5 };

/// One field as it stands in its message. The views point into the message.
struct field {
  std::uint32_t number = 0;
  type what = type::varint;
  std::uint64_t value = 0;    ///< of a varint
  std::string_view payload;   ///< of bytes: a text, or a message
  std::string_view whole;     ///< tag and all

  bool is_bytes(std::uint32_t n) const { return number == n && what == type::bytes; }
};

/// Walks over the fields of one message.
class reader {
public:
  explicit reader(std::string_view message) : rest_(message) {}
  /// False: that was all, or what follows is no field (failed()).
  bool next(field& out);
  bool failed() const { return failed_; }

private:
  bool skip_group(std::uint32_t number, int depth);
  bool read(field& out, int depth);

  std::string_view rest_;
  bool failed_ = false;
};

void put_varint(std::string& out, std::uint64_t value);
void put_value(std::string& out, std::uint32_t number, std::uint64_t value);
void put_bytes(std::string& out, std::uint32_t number, std::string_view payload);

}  // namespace warren::hook::wire
