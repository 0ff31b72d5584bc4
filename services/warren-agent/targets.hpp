// services/warren-agent/targets.hpp -- which targets can be reached, and when each is dialled again. Pure: no
// sockets, no clock; services/warren-agent/dial.hpp dials.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "actors/core/time.hpp"
#include "services/warren-agent/attachments.hpp"

namespace warren::agent {

/// Where a rule leads. Equal ones are dialled once, whatever tunnel they are of.
struct target {
  bool tls = false;
  bool tls_verify = true;
  std::string host;  ///< name, IPv4, or IPv6 without brackets
  std::uint16_t port = 0;
  auto operator<=>(const target&) const = default;

  bool loopback() const;            ///< "localhost", *.localhost, 127/8, ::1
  std::string authority() const;    ///< "host:port", "[ip6]:port"
};

/// `http://host[:port]` or `https://host[:port]`, lower case. Nullopt: anything else.
std::optional<target> parse_target(std::string_view url, bool tls_verify);

enum class reach : std::uint8_t { unknown, reachable, unreachable };
std::string_view to_string(reach r);

inline constexpr auto redial_first = 200ms;
inline constexpr auto redial_max = 10s;
inline constexpr std::size_t probes_max = 64;  // dials of targets at a time that no visitor waits for

/// Not thread-safe. After each call, dial what `due` gives.
class target_table {
public:
  /// Keeps the states of targets that stay, dials those that are new, forgets the others.
  /// Costs as much as what may have changed, not as the whole set.
  void attach(const attachment_set& set, std::int64_t now_ms, const touched_keys& touched = {});

  /// Targets to be dialled, each handed out once until its `dialled`.
  std::vector<target> due(std::int64_t now_ms);
  std::optional<std::int64_t> deadline() const;  ///< when `due` is worth asking again

  /// A dial ended, a probe's or a visitor's. `words` empty: it worked. True: what is reported has changed.
  bool dialled(const target& t, std::string_view words, bool probe, std::int64_t now_ms);

  /// States of all rules, in order of tunnel, generation and rule.
  std::vector<busv1::TargetState> states() const;
  /// Those that have changed since the last `take_changed`.
  std::vector<busv1::TargetState> take_changed();
  bool has_changed() const { return !changed_.empty(); }
  void forget_changed() { changed_.clear(); }  ///< everything has just been reported
  std::uint64_t version() const { return version_; }  ///< moves whenever `states` may differ

  reach state_of(const target& t) const;

private:
  struct entry {
    reach state = reach::unknown;
    std::string words;
    std::int64_t delay_ms = 0;                // before the next dial; 0: none has failed
    std::optional<std::int64_t> next_dial_ms; // none: not wanted, or under way
    bool dialling = false;
    std::set<std::pair<attachment_key, int>> rules;  // who leads here
  };
  void schedule(const target& t, entry& e, std::optional<std::int64_t> at);
  void mark(const entry& e);
  bool follow(const attachment_key& key, const busv1::Attachment* attachment, std::int64_t now_ms);
  void lead_away(const std::pair<attachment_key, int>& where, const target& from);

  std::map<target, entry> entries_;
  std::set<std::pair<std::int64_t, target>> queue_;  // by time
  std::set<attachment_key> changed_;
  std::map<std::pair<attachment_key, int>, std::optional<target>> rules_;  // nullopt: no URL of ours
  std::size_t dialling_ = 0;
  std::uint64_t version_ = 1;
};

}  // namespace warren::agent
