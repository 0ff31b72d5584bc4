// services/warren-agent/agent.hpp -- the agent as a whole: one thread that runs the loop, one that writes to disk.
// Decides nothing; session, targets and proxy do.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "services/warren-agent/enrolment.hpp"
#include "services/warren-agent/proxy.hpp"
#include "services/warren-agent/session.hpp"

namespace warren::agent {

struct agent_options {
  enrolment enrolled;
  std::filesystem::path state_folder;
  std::vector<std::string> listen;     ///< "ip:port"; port 0: any free one
  std::vector<std::string> advertise;  ///< empty: what it listens on
  std::string home_relay;
  std::filesystem::path advertise_file;  ///< instead of the two above; read again by reload()
  std::string target_ca_file;          ///< empty: the system's authorities
  bool mute_heartbeats = false;
  std::size_t connections_max = 10'000;
};

enum class exit_code : int { stopped = 0, failed = 1, usage = 2, superseded = 3 };

/// A file of addresses, one a line; a line that is a URL is the home relay; '#' begins a comment.
/// Errors: file_error, naming the line.
busv1::Addressing read_advertise_file(const std::filesystem::path& file);

class agent {
public:
  /// Takes the state folder's lock, loads the set, listens. Nothing is said to the control plane before run().
  /// Errors: file_error, boost::system::system_error.
  agent(agent_options options, identity key);
  ~agent();
  agent(const agent&) = delete;
  agent& operator=(const agent&) = delete;

  /// Runs until stop(), or until superseded. Blocks.
  exit_code run();
  void stop();    ///< from any thread
  void reload();  ///< from any thread: reads the advertise file again
  /// SIGTERM, SIGINT and SIGHUP of this process are ours. Call before run().
  void handle_signals();
  std::vector<tcp::endpoint> listening() const;  ///< call before run()

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

/// What a running agent says of itself, JSON. Errors: file_error when none runs there.
std::string ask_status(const std::filesystem::path& state_folder);

}  // namespace warren::agent
