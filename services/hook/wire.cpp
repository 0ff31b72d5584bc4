// services/hook/wire.cpp -- protobuf's wire format, read and written as slices.
#include "services/hook/wire.hpp"

namespace warren::hook::wire {

namespace {

constexpr int group_depth_max = 100;  // as deep as protobuf's own parser goes
constexpr std::uint64_t field_number_max = (1u << 29) - 1;

bool read_varint(std::string_view& from, std::uint64_t& out) {
  out = 0;
  for (std::size_t i = 0; i < 10 && i < from.size(); ++i) {
    const auto byte = static_cast<unsigned char>(from[i]);
    out |= static_cast<std::uint64_t>(byte & 0x7f) << (7 * i);
    if ((byte & 0x80) == 0) {
      from.remove_prefix(i + 1);
      return true;
    }
  }
  return false;
}

bool skip(std::string_view& from, std::size_t bytes) {
  if (from.size() < bytes) return false;
  from.remove_prefix(bytes);
  return true;
}

}  // namespace

bool reader::read(field& out, int depth) {
  const auto begin = rest_;
  std::uint64_t tag = 0;
  if (!read_varint(rest_, tag)) return false;
  const auto number = tag >> 3;
  if (number == 0 || number > field_number_max) return false;
  out = {.number = static_cast<std::uint32_t>(number), .what = static_cast<type>(tag & 7)};
  switch (out.what) {
    case type::varint:
      if (!read_varint(rest_, out.value)) return false;
      break;
    case type::fixed64:
      if (!skip(rest_, 8)) return false;
      break;
    case type::bytes: {
      std::uint64_t size = 0;
      if (!read_varint(rest_, size) || size > rest_.size()) return false;
      out.payload = rest_.substr(0, size);
      rest_.remove_prefix(size);
      break;
    }
    case type::group:
      if (!skip_group(out.number, depth)) return false;
      break;
    case type::group_end: break;
    case type::fixed32:
      if (!skip(rest_, 4)) return false;
      break;
    default: return false;
  }
  out.whole = begin.substr(0, begin.size() - rest_.size());
  return true;
}

bool reader::skip_group(std::uint32_t number, int depth) {
  if (depth >= group_depth_max) return false;
  for (field inside; read(inside, depth + 1);)
    if (inside.what == type::group_end) return inside.number == number;
  return false;
}

bool reader::next(field& out) {
  if (rest_.empty() || failed_) return false;
  failed_ = !read(out, 0) || out.what == type::group_end;
  return !failed_;
}

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void put_value(std::string& out, std::uint32_t number, std::uint64_t value) {
  put_varint(out, std::uint64_t{number} << 3 | static_cast<std::uint64_t>(type::varint));
  put_varint(out, value);
}

void put_bytes(std::string& out, std::uint32_t number, std::string_view payload) {
  put_varint(out, std::uint64_t{number} << 3 | static_cast<std::uint64_t>(type::bytes));
  put_varint(out, payload.size());
  out.append(payload);
}

}  // namespace warren::hook::wire
