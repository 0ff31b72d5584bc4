// services/warren-agent/attachments.hpp -- the set of tunnels that this agent holds, and its form on disk: a whole
// set, and a journal of the steps since. The set is pure; only attachment_file touches the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "warren/bus/v1/bus.pb.h"

namespace warren::agent {

namespace busv1 = warren::bus::v1;

/// One generation of one tunnel.
struct attachment_key {
  std::string tunnel_uid;
  std::int64_t tunnel_generation = 0;
  auto operator<=>(const attachment_key&) const = default;
};

/// Which attachments a change of the set may have touched. None said: perhaps all.
using touched_keys = std::optional<std::vector<attachment_key>>;

/// What a command did to the set.
enum class applied : std::uint8_t {
  changed,
  repeated,   ///< the set is of that generation already
  overtaken,  ///< the set is of a later generation
  gap,        ///< the set is of an earlier generation than the command starts from
};

/// Not thread-safe. An attachment without rules is not held: it leads nowhere.
class attachment_set {
public:
  using map = std::map<attachment_key, busv1::Attachment>;

  std::int64_t generation() const { return generation_; }
  const map& all() const { return held_; }
  /// Null: not attached.
  const busv1::Attachment* find(std::string_view tunnel_uid, std::int64_t tunnel_generation) const;

  applied apply(const busv1::Attach& attach);
  applied apply(const busv1::Detach& detach);
  /// An older set is overtaken, unless `whatever_generation`: the owner's word at hello, or after a restore.
  applied apply(const busv1::AttachmentSet& set, bool whatever_generation);

  bool operator==(const attachment_set& other) const;

private:
  void hold(const busv1::Attachment& one);
  applied position(std::int64_t from_generation, std::int64_t generation) const;
  std::int64_t generation_ = 0;
  map held_;
};

/// What is on disk: the set, and whose it is.
struct saved_set {
  std::string connector_uid;
  std::string public_key_hex;
  attachment_set set;
  std::string journal = {};  ///< steps of this journal come after it; empty: none do
};

std::string print(const saved_set& saved);
/// Nullopt: corrupt, or of another version.
std::optional<saved_set> parse_saved(std::string_view text);

/// From one generation of the set to the next.
using set_step = std::variant<busv1::Attach, busv1::Detach>;

/// A step as a line of that journal: `JOURNAL HASH JSON`, the hash over what follows it.
std::string print_step(std::string_view journal, const set_step& step);
/// Applies the lines of `saved.journal` in order, up to the first that is torn, another journal's, or does not
/// follow. Returns how many were applied.
std::size_t replay(std::string_view lines, saved_set& saved);

/// `attachments.json` in the state folder, and `attachments.journal` beside it. One thread at a time.
class attachment_file {
public:
  explicit attachment_file(std::filesystem::path folder);
  ~attachment_file();
  attachment_file(const attachment_file&) = delete;
  attachment_file& operator=(const attachment_file&) = delete;

  enum class outcome : std::uint8_t { loaded, absent, corrupt, foreign };
  /// Everything but `loaded` gives an empty set. A corrupt file is kept beside, as `attachments.json.corrupt`; one
  /// of another connector or key is left until the next save.
  std::pair<outcome, attachment_set> load(std::string_view connector_uid, std::string_view public_key_hex) const;
  /// A whole set; the journal of the one before it counts no more.
  /// Blocks for the disk. Errors: std::system_error, and the old file is as it was.
  void save(std::string_view text);
  /// Lines of the journal that the last save() named.
  /// Blocks for the disk. Errors: std::system_error; nothing may be appended before the next save().
  void append(std::string_view lines);
  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& journal() const { return journal_; }

private:
  std::filesystem::path path_, journal_;
  int fd_ = -1;  ///< of the journal; -1: the first append() empties it
};

}  // namespace warren::agent
