// actors/core/log_fields.cpp -- what varies in a line of the log. Logs nothing.
#include "actors/core/log_fields.hpp"

namespace warren {

void append_json_escaped(std::string& out, std::string_view text) {
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') { out.push_back('\\'); out.push_back(c); }
    else if (c == '\n') out.append("\\n");
    else if (byte < 0x20 || byte == 0x7f) out.append(fmt::format("\\u{:04x}", byte));
    else out.push_back(c);
  }
}

std::string with_fields(std::string_view sentence, std::initializer_list<log_field> fields, std::int64_t suppressed) {
  std::string out{sentence};
  if (fields.size() == 0 && suppressed == 0) return out;
  out.push_back(log_fields_begin);
  const auto key = [&out](std::string_view name) {
    out.append(",\"");
    append_json_escaped(out, name);
    out.append("\":");
  };
  for (const auto& each : fields) {
    key(each.key);
    if (each.number && each.value.find_first_not_of("0123456789+-.e") == std::string::npos) {
      out.append(each.value);
      continue;
    }
    out.push_back('"');
    append_json_escaped(out, each.value);
    out.push_back('"');
  }
  if (suppressed > 0) {
    key("suppressed");
    out.append(std::to_string(suppressed));
  }
  return out;
}

}  // namespace warren
