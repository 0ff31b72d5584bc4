// services/telemetry/bundle.hpp -- a diagnostic bundle: named texts in one tar file, which any tar opens. Pure: no
// files, no sockets, no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace warren::telemetry {

/// One member; its content is made when its turn comes, so that only one is in memory. Empty content: left out.
struct bundle_part {
  std::string name;  ///< at most 99 bytes, relative
  std::function<std::string()> content;
};

/// The last member, MANIFEST, has the SHA-256 of each (as sha256sum prints and checks them): who cuts the bundle off or
/// changes it is found out.
class bundle_writer {
public:
  bundle_writer(std::vector<bundle_part> parts, std::int64_t wall_ms) : parts_{std::move(parts)}, wall_ms_{wall_ms} {}
  /// The next piece of the file, at most so long; empty: that was all.
  std::string next(std::size_t bytes_max);

private:
  void add(const std::string& name, const std::string& content);

  std::vector<bundle_part> parts_;
  std::int64_t wall_ms_;
  std::size_t next_part_ = 0;
  std::string manifest_, ready_;
  std::size_t taken_ = 0;  ///< of `ready_`
  bool ended_ = false;
};

struct bundle {
  std::string error;                         ///< not empty: why it is none, or not whole, as one sentence
  std::map<std::string, std::string> parts;  ///< those that were read, and are as they were saved
};
bundle read_bundle(std::string_view file);

}  // namespace warren::telemetry
