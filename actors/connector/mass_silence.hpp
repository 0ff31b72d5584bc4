// actors/connector/mass_silence.hpp -- weighs how many online connectors of an instance fall silent at once. Pure:
// no CAF, no I/O, no clock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "actors/core/time.hpp"

namespace warren::connector {

/// More than 5 % of the online connectors, and at least 20, that fall silent within 10 s are more likely our
/// own fault than theirs: silence then does not count until they are heard again, for 5 minutes at most.
class silence_watch {
public:
  /// What one connector says of itself. `key` names it.
  void report(const std::string& key, bool online, bool silent, moment now);
  /// To be called at wake_at_ms().
  void pass_time(moment now);

  bool on() const { return since_ms_ != 0; }
  std::int64_t wake_at_ms() const;  ///< 0: nothing is due
  std::size_t online() const { return members_.size(); }
  std::size_t silent() const { return silent_; }

private:
  struct member {
    bool silent = false;
    std::optional<std::int64_t> fallen_ms;  ///< when it fell silent, as long as that is in `fallen_`
    std::int64_t spent_until_ms = 0;  ///< it had its five minutes: until then its silence is no news
  };
  bool too_many(std::size_t fallen) const;
  void forget_fall(member& m);
  void judge(moment now);

  std::map<std::string, member> members_;                          ///< the online ones
  std::map<std::int64_t, std::size_t> fallen_;                     ///< how many fell silent at which moment of the window
  std::size_t fallen_count_ = 0;
  std::size_t silent_ = 0;
  std::int64_t since_ms_ = 0;                                      ///< 0: off
};

}  // namespace warren::connector
