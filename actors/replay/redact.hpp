// actors/replay/redact.hpp -- takes the secrets out of a recording so that it can still be replayed. Pure.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "actors/replay/secrets.hpp"

namespace warren::replay {

/// Every secret is replaced by a stand-in that depends on it and on `key` alone: what was equal stays equal, a
/// token still has its hash, and a hello whose signature was good is signed anew by the stand-in of its key. One
/// object for all recordings of a bundle; whoever has forgotten `key` cannot go back.
class redaction {
public:
  explicit redaction(std::string key) : key_{std::move(key)} {}
  void apply(v1::Recording& recording);

private:
  struct pair { std::string private_raw, public_hex; };
  const pair& key_for(const std::string& public_key);
  std::string stand_in(std::string_view what, std::string_view of) const;
  void replace(secret what, std::string& text);
  void apply(v1::Run& run);

  std::string key_;
  std::map<std::string, pair> keys_;  ///< by the original public key
};

}  // namespace warren::replay
