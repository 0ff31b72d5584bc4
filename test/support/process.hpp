// test/support/process.hpp -- child processes, loopback ports and directories that never outlive whoever
// made them. Knows nothing of Warren. Also used by deploy/story.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace warren::stack {

using std::chrono::milliseconds;
using clock = std::chrono::steady_clock;

/// Something of the stack could not be had; what() is one sentence for a person.
struct stack_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Whom servers run as when we are root: PostgreSQL refuses root, and nothing here needs it.
struct user_ids {
  uid_t uid = 0;
  gid_t gid = 0;
};

/// The user `postgres`, else `nobody`. Empty when we are not root: then children run as we do.
std::optional<user_ids> unprivileged_user();

struct program {
  std::string name;                                         ///< in messages
  std::filesystem::path path;                               ///< absolute
  std::vector<std::string> arguments;                       ///< without the program's own name
  std::vector<std::pair<std::string, std::string>> environment = {};  ///< added to ours
  std::filesystem::path log = {};                           ///< both outputs; empty: the streams below
  std::filesystem::path out = {}, err = {};                 ///< one file each, when `log` is empty
  int death_signal = SIGKILL;                               ///< what it gets when we die
  int stop_signal = SIGTERM;                                ///< a clean stop
};

/// How a child ended.
struct exit_status {
  int code = -1;   ///< -1: killed
  int signal = 0;  ///< 0: exited
};

/// A child in its own process group. Ends with this object (stop_signal, then SIGKILL), and when this
/// process dies. Not thread-safe. The child is started by a thread that lives as long as the process,
/// because Linux ties the death signal to the thread that forked.
class process {
public:
  process() = default;
  explicit process(program p);
  process(process&& other) noexcept;
  process& operator=(process&& other) noexcept;
  ~process();

  bool running();
  pid_t pid() const { return pid_; }
  const program& what() const { return program_; }

  /// Waits for the end; empty: still running after `timeout`.
  std::optional<exit_status> wait(milliseconds timeout);
  void signal(int number);
  void freeze() { signal(SIGSTOP); }
  void thaw() { signal(SIGCONT); }
  /// SIGKILL to the whole group, and waits for it.
  void kill();
  /// A clean stop; SIGKILL after `patience`.
  exit_status stop(milliseconds patience = milliseconds{5'000});

  std::string log() const;
  /// Waits until the log holds `text` after `offset`; false: it ended or took longer.
  bool await_log(const std::string& text, milliseconds timeout, std::size_t offset = 0);

private:
  program program_;
  pid_t pid_ = -1;
  int pidfd_ = -1;
  std::optional<exit_status> ended_;
};

struct outcome {
  int code = -1;
  std::string out;
  std::string err;
};

/// Runs to the end; killed after `timeout` (code -1, and err says so).
outcome run(program p, milliseconds timeout = milliseconds{60'000});

/// A directory of our own, mode 0711, gone with this object unless kept. Belongs to the unprivileged user.
class scratch {
public:
  explicit scratch(std::string_view prefix = "warren");
  ~scratch();
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  const std::filesystem::path& path() const { return path_; }
  void keep() { keep_ = true; }
  /// A directory in it that belongs to the unprivileged user, 0700.
  std::filesystem::path folder(const std::string& name) const;

private:
  std::filesystem::path path_;
  bool keep_ = false;
};

/// Writes a file that the unprivileged user owns, 0600.
void write_file(const std::filesystem::path& path, std::string_view content);
std::string read_file(const std::filesystem::path& path);

/// A free TCP port of 127.0.0.1, reserved among all processes that ask here (by an abstract socket that
/// the kernel frees with us), below the range that outgoing connections take.
std::uint16_t free_port();

/// Whether something accepts connections there.
bool listens(std::uint16_t port);

/// Asks in short steps until `ready` or the deadline: for servers that are not ours and tell no one.
bool poll_until(const std::function<bool()>& ready, milliseconds timeout,
                milliseconds step = milliseconds{5});

/// Removes `directory` when this process is gone, however it went. Call before any thread is started.
void remove_after_death(const std::filesystem::path& directory);

}  // namespace warren::stack
