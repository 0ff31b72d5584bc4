// test/simulation/bugs.hpp -- the bugs that can be planted, to see whether the invariants find them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>

namespace warren::simulation {

enum class bug : std::uint8_t {
  announce_before_save,     ///< a commit's rows are said before it is carried out
  answer_before_save,       ///< a writer hears "saved" before it is
  no_fence,                 ///< whoever held a partition once may write it
  fence_by_reading,         ///< the epoch is read, and written under later without looking again
  released_still_written,   ///< the fence asks for the epoch and not for the owner
  blind_repetition,         ///< an undecided commit is carried out again without looking it up
  dead_epoch_obeyed,        ///< agents obey owners that were superseded
  old_silence_trusted,      ///< a takeover counts the silence that the one before it heard
  older_session_counted,    ///< what an agent's former life acknowledged counts for the present one
  attachments_gap_ignored,  ///< an increment is applied to a set that it does not start from
  tombstone_forgotten,      ///< deletions are not told
  revision_gap_ignored,     ///< a replica takes the next hint that it hears for the next that there is
  older_stream_counted,     ///< what a gateway's former stream acknowledged counts for the present one
  incarnation_ignored,      ///< a database that went back in time goes on with its old numbers
  lease_outlived,           ///< an instance that cannot renew goes on
  rows_before_revision,     ///< a fetch reads the revision after the rows, outside of their snapshot
  watch_resumed_from_now,   ///< a watch that goes on elsewhere hears what is new, and not what it missed
  watch_does_not_wait,      ///< a watch goes on at an instance that is behind of it
  refusal_taken_for_acknowledgement,  ///< a gateway that refuses something is believed to run it
  refusal_laid_at_another_door,       ///< what a gateway refuses is said to be its neighbour's
};

struct bug_name {
  bug what;
  std::string_view name;
};
inline constexpr std::array<bug_name, 20> bug_names{{
    {bug::announce_before_save, "announce-before-save"},
    {bug::answer_before_save, "answer-before-save"},
    {bug::no_fence, "no-fence"},
    {bug::fence_by_reading, "fence-by-reading"},
    {bug::released_still_written, "released-still-written"},
    {bug::blind_repetition, "blind-repetition"},
    {bug::dead_epoch_obeyed, "dead-epoch-obeyed"},
    {bug::old_silence_trusted, "old-silence-trusted"},
    {bug::older_session_counted, "older-session-counted"},
    {bug::attachments_gap_ignored, "attachments-gap-ignored"},
    {bug::tombstone_forgotten, "tombstone-forgotten"},
    {bug::revision_gap_ignored, "revision-gap-ignored"},
    {bug::older_stream_counted, "older-stream-counted"},
    {bug::incarnation_ignored, "incarnation-ignored"},
    {bug::lease_outlived, "lease-outlived"},
    {bug::rows_before_revision, "rows-before-revision"},
    {bug::watch_resumed_from_now, "watch-resumed-from-now"},
    {bug::watch_does_not_wait, "watch-does-not-wait"},
    {bug::refusal_taken_for_acknowledgement, "refusal-taken-for-acknowledgement"},
    {bug::refusal_laid_at_another_door, "refusal-laid-at-another-door"},
}};

using bugs = std::set<bug>;

inline std::optional<bug> bug_from(std::string_view name) {
  for (const auto& b : bug_names)
    if (b.name == name) return b.what;
  return std::nullopt;
}

}  // namespace warren::simulation
