// test/simulation/replay.hpp -- warren-sim --replay: runs what an instance remembered through the real machines again.
#pragma once

#include <ostream>
#include <string>
#include <string_view>

namespace warren::simulation {

struct replay_options {
  std::string entity;    ///< only what is printed is narrowed: "acme/web", or "tunnel acme/web"; empty: all
  bool print = false;    ///< each step, in the order in which they happened
  bool states = false;   ///< and the state after it
};

inline constexpr int replay_same = 0, replay_diverged = 1, replay_unreadable = 2;

/// `file` is the content of a bundle (warrenctl diag) or of one recording out of it. Prints what it found, the
/// first divergence in full. Returns one of the above.
int replay_bundle(std::string_view file, const replay_options& options, std::ostream& out, std::ostream& err);

/// Reads it first.
int replay_file(const std::string& path, const replay_options& options, std::ostream& out, std::ostream& err);

}  // namespace warren::simulation
