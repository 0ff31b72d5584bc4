// services/telemetry/bundle.cpp -- a diagnostic bundle as a tar file (POSIX ustar). Pure.
#include "services/telemetry/bundle.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>

#include <fmt/format.h>

#include "actors/core/protocol.hpp"

namespace warren::telemetry {

namespace {

constexpr std::size_t block = 512;  // what everything in a tar file is a multiple of
constexpr std::string_view manifest_name = "MANIFEST";

// A header's fields: where they are, and how long.
struct field { std::size_t at, size; };
constexpr field f_name{0, 100}, f_mode{100, 8}, f_owner{108, 8}, f_group{116, 8}, f_size{124, 12}, f_time{136, 12},
    f_checksum{148, 8}, f_type{156, 1}, f_magic{257, 6}, f_version{263, 2};

void put(std::string& header, field f, std::string_view text) { header.replace(f.at, text.size(), text); }
std::string_view get(std::string_view header, field f) {
  const auto text = header.substr(f.at, f.size);
  return text.substr(0, std::min(text.find('\0'), text.size()));
}

unsigned checksum_of(std::string_view header) {
  unsigned sum = 0;
  for (std::size_t i = 0; i < block; ++i) {
    const bool own = i >= f_checksum.at && i < f_checksum.at + f_checksum.size;
    sum += own ? static_cast<unsigned char>(' ') : static_cast<unsigned char>(header[i]);
  }
  return sum;
}

std::size_t padded(std::size_t size) { return (size + block - 1) / block * block; }

}  // namespace

void bundle_writer::add(const std::string& name, const std::string& content) {
  std::string header(block, '\0');
  put(header, f_name, name.substr(0, f_name.size - 1));
  put(header, f_mode, "0000600");
  put(header, f_owner, "0000000");
  put(header, f_group, "0000000");
  put(header, f_size, fmt::format("{:011o}", content.size()));
  put(header, f_time, fmt::format("{:011o}", std::max<std::int64_t>(wall_ms_, 0) / 1000));
  put(header, f_type, "0");
  put(header, f_magic, std::string_view{"ustar\0", 6});
  put(header, f_version, "00");
  put(header, f_checksum, fmt::format("{:06o}", checksum_of(header)));
  ready_ += header;
  ready_ += content;
  ready_.append(padded(content.size()) - content.size(), '\0');
}

std::string bundle_writer::next(std::size_t bytes_max) {
  while (taken_ == ready_.size() && !ended_) {
    ready_.clear();
    taken_ = 0;
    if (next_part_ < parts_.size()) {
      const auto& part = parts_[next_part_++];
      const auto content = part.content();
      if (content.empty()) continue;
      manifest_ += fmt::format("{}  {}\n", protocol::sha256_hex(content), part.name);
      add(part.name, content);
    } else {
      add(std::string{manifest_name}, manifest_);
      ready_.append(2 * block, '\0');
      ended_ = true;
    }
  }
  auto out = ready_.substr(taken_, bytes_max);
  taken_ += out.size();
  return out;
}

bundle read_bundle(std::string_view file) {
  bundle out;
  const auto fail = [&](std::string why) {
    out.error = std::move(why);
    return out;
  };
  std::map<std::string, std::string> parts;
  std::string manifest, last = "its beginning";
  for (;;) {
    if (file.size() < block) return fail(fmt::format("the bundle is cut off after {}", last));
    const auto header = file.substr(0, block);
    if (header.find_first_not_of('\0') == std::string_view::npos) break;
    std::size_t size = 0;
    unsigned checksum = 0;
    const auto read = [&](field f, auto& number) {
      const auto text = get(header, f);
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 8);
      return error == std::errc{} && (end == text.data() + text.size() || *end == ' ');
    };
    if (get(header, f_magic) != "ustar" || !read(f_checksum, checksum) || checksum != checksum_of(header) ||
        !read(f_size, size))
      return fail(parts.empty() ? "this is no bundle: it does not begin like a tar file"
                                : fmt::format("the bundle is damaged after {}", last));
    const std::string name{get(header, f_name)};
    file.remove_prefix(block);
    if (size > file.size() || padded(size) > file.size()) return fail(fmt::format("the bundle is cut off in {}", name));
    if (name == manifest_name) manifest = file.substr(0, size);
    else parts[name] = file.substr(0, size);
    file.remove_prefix(padded(size));
    last = name;
  }
  if (last != manifest_name) return fail("the bundle is cut off: it has no MANIFEST");
  std::size_t known = 0;
  for (std::string_view left = manifest; !left.empty();) {
    const auto line = left.substr(0, left.find('\n'));
    left.remove_prefix(std::min(line.size() + 1, left.size()));
    const auto gap = line.find("  ");
    if (gap == std::string_view::npos) return fail("the bundle's MANIFEST cannot be read");
    const auto it = parts.find(std::string{line.substr(gap + 2)});
    if (it == parts.end()) return fail(fmt::format("the bundle lacks {}", line.substr(gap + 2)));
    if (protocol::sha256_hex(it->second) != line.substr(0, gap))
      return fail(fmt::format("{} is not as it was saved: its SHA-256 is another one than MANIFEST says", it->first));
    ++known;
  }
  if (known != parts.size()) return fail("the bundle has parts that its MANIFEST does not know");
  out.parts = std::move(parts);
  return out;
}

}  // namespace warren::telemetry
