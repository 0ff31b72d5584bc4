// test/support/process.cpp -- child processes, loopback ports and directories. Knows nothing of Warren.
#include "test/support/process.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <linux/close_range.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

extern char** environ;

namespace warren::stack {

namespace fs = std::filesystem;

namespace {

/// Forks for everybody: its thread lives until the process ends, so the death signal means what it says.
class spawner {
public:
  static spawner& instance() {
    static spawner* const one = new spawner;  // never destroyed: children would get the death signal
    return *one;
  }

  pid_t run(std::function<pid_t()> fork_it) {
    std::packaged_task<pid_t()> task{std::move(fork_it)};
    auto result = task.get_future();
    {
      std::lock_guard lock{mutex_};
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
    return result.get();
  }

private:
  spawner() {
    std::thread{[this] {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, nullptr);
      for (;;) {
        std::unique_lock lock{mutex_};
        wake_.wait(lock, [this] { return !tasks_.empty(); });
        auto task = std::move(tasks_.front());
        tasks_.pop_front();
        lock.unlock();
        task();
      }
    }}.detach();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::packaged_task<pid_t()>> tasks_;
};

int open_output(const fs::path& path) {
  if (path.empty())
    return ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0)
    throw stack_error("cannot write " + path.string() + ": " + std::strerror(errno));
  return fd;
}

struct closing {
  int fd;
  ~closing() {
    if (fd >= 0)
      ::close(fd);
  }
};

exit_status from_wait(int status) {
  if (WIFSIGNALED(status))
    return {-1, WTERMSIG(status)};
  return {WEXITSTATUS(status), 0};
}

}  // namespace

std::optional<user_ids> unprivileged_user() {
  if (::geteuid() != 0)
    return std::nullopt;
  for (const char* name : {"postgres", "nobody"})
    if (const passwd* user = ::getpwnam(name))
      return user_ids{user->pw_uid, user->pw_gid};
  return user_ids{65534, 65534};
}

process::process(program p) : program_{std::move(p)} {
  // Opened before privileges are dropped: the program may lie in a home directory that the user cannot enter.
  const closing image{::open(program_.path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (image.fd < 0)
    throw stack_error("cannot start " + program_.name + ": " + program_.path.string() + ": " +
                      std::strerror(errno));
  const closing out{open_output(program_.log.empty() ? program_.out : program_.log)};
  const closing err{program_.log.empty() ? open_output(program_.err) : ::dup(out.fd)};
  const closing null{::open("/dev/null", O_RDONLY | O_CLOEXEC)};

  // Everything that allocates happens before the fork.
  std::vector<std::string> words{program_.path.filename().string()};
  words.insert(words.end(), program_.arguments.begin(), program_.arguments.end());
  std::map<std::string, std::string> merged;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view line{*entry};
    const auto equals = line.find('=');
    if (equals != std::string_view::npos)
      merged[std::string{line.substr(0, equals)}] = line.substr(equals + 1);
  }
  for (const auto& [key, value] : program_.environment)
    merged[key] = value;
  std::vector<std::string> settings;
  for (const auto& [key, value] : merged)
    settings.push_back(key + "=" + value);
  std::vector<char*> argv, envp;
  for (auto& word : words)
    argv.push_back(word.data());
  argv.push_back(nullptr);
  for (auto& setting : settings)
    envp.push_back(setting.data());
  envp.push_back(nullptr);

  const auto user = unprivileged_user();
  const pid_t parent = ::getpid();
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0)
    throw stack_error(std::string{"no pipe: "} + std::strerror(errno));
  const closing report_read{report[0]};
  {
    const closing report_write{report[1]};
    pid_ = spawner::instance().run([&] {
      const pid_t child = ::fork();
      if (child != 0)
        return child;
      ::setpgid(0, 0);
      bool ok = ::dup2(null.fd, 0) >= 0 && ::dup2(out.fd, 1) >= 0 && ::dup2(err.fd, 2) >= 0;
      if (ok && user)
        ok = ::setgroups(0, nullptr) == 0 && ::setgid(user->gid) == 0 && ::setuid(user->uid) == 0;
      // After the change of user, which clears it.
      ok = ok && ::prctl(PR_SET_PDEATHSIG, program_.death_signal) == 0 && ::getppid() == parent;
      struct sigaction plain {};
      plain.sa_handler = SIG_DFL;
      for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT, SIGCHLD})
        ::sigaction(number, &plain, nullptr);
      sigset_t none;
      sigemptyset(&none);
      ::sigprocmask(SIG_SETMASK, &none, nullptr);
      if (user && ::chdir("/") != 0)
        ok = false;
      // Sockets of libraries have no O_CLOEXEC: a child that inherits where we listen goes on listening.
      ok = ok && ::syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC) == 0;
      if (ok)
        ::execve(program_.path.c_str(), argv.data(), envp.data());
      if (ok && errno == EACCES)
        ::syscall(SYS_execveat, image.fd, "", argv.data(), envp.data(), AT_EMPTY_PATH);
      const int error = errno;
      [[maybe_unused]] const auto told = ::write(report[1], &error, sizeof error);
      ::_exit(127);
    });
  }
  if (pid_ < 0)
    throw stack_error("cannot fork for " + program_.name);
  int error = 0;
  if (::read(report_read.fd, &error, sizeof error) == sizeof error) {
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
    throw stack_error("cannot start " + program_.name + ": " + program_.path.string() + ": " +
                      std::strerror(error));
  }
  pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  if (pidfd_ >= 0)
    ::fcntl(pidfd_, F_SETFD, FD_CLOEXEC);
}

process::process(process&& other) noexcept { *this = std::move(other); }

process& process::operator=(process&& other) noexcept {
  if (this != &other) {
    if (pid_ > 0)
      stop();
    if (pidfd_ >= 0)
      ::close(pidfd_);
    program_ = std::move(other.program_);
    pid_ = std::exchange(other.pid_, -1);
    pidfd_ = std::exchange(other.pidfd_, -1);
    ended_ = std::exchange(other.ended_, std::nullopt);
  }
  return *this;
}

process::~process() {
  if (pid_ > 0)
    stop();
  if (pidfd_ >= 0)
    ::close(pidfd_);
}

bool process::running() { return pid_ > 0 && !wait(milliseconds{0}); }

std::optional<exit_status> process::wait(milliseconds timeout) {
  if (ended_ || pid_ <= 0)
    return ended_;
  const auto deadline = clock::now() + timeout;
  for (;;) {
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_)
      return ended_ = from_wait(status);
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - clock::now());
    if (left.count() <= 0)
      return std::nullopt;
    pollfd end{pidfd_, POLLIN, 0};
    ::poll(&end, 1, static_cast<int>(left.count()) + 1);
  }
}

void process::signal(int number) {
  if (running())
    ::kill(-pid_, number);
}

void process::kill() {
  if (pid_ <= 0)
    return;
  if (running()) {
    ::kill(-pid_, SIGKILL);
    wait(milliseconds{10'000});
  }
}

exit_status process::stop(milliseconds patience) {
  if (pid_ <= 0)
    return ended_.value_or(exit_status{});
  if (running()) {
    ::kill(-pid_, SIGCONT);  // a frozen child hears nothing else
    ::kill(pid_, program_.stop_signal);
    if (!wait(patience))
      kill();
  }
  ::kill(-pid_, SIGKILL);  // whatever it left in its group
  return ended_.value_or(exit_status{});
}

std::string process::log() const { return read_file(program_.log); }

bool process::await_log(const std::string& text, milliseconds timeout, std::size_t offset) {
  const closing watch{::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)};
  ::inotify_add_watch(watch.fd, program_.log.c_str(), IN_MODIFY);
  const auto deadline = clock::now() + timeout;
  for (;;) {
    const bool alive = running();  // before the look: what it wrote last is seen
    if (log().find(text, offset) != std::string::npos)
      return true;
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - clock::now());
    if (!alive || left.count() <= 0)
      return false;
    pollfd events[2] = {{watch.fd, POLLIN, 0}, {pidfd_, POLLIN, 0}};
    ::poll(events, 2, static_cast<int>(left.count()) + 1);
    char discard[4096];
    while (::read(watch.fd, discard, sizeof discard) > 0) {
    }
  }
}

outcome run(program p, milliseconds timeout) {
  const scratch place{"warren-run"};
  p.log.clear();
  p.out = place.path() / "out";
  p.err = place.path() / "err";
  process child{p};
  outcome result;
  const auto end = child.wait(timeout);
  if (!end)
    child.kill();
  else
    result.code = end->signal != 0 ? 128 + end->signal : end->code;
  result.out = read_file(p.out);
  result.err = read_file(p.err);
  if (!end)
    result.err += "\n(killed after " + std::to_string(timeout.count()) + " ms)";
  return result;
}

scratch::scratch(std::string_view prefix) {
  std::error_code none;
  fs::path base = fs::temp_directory_path(none);
  if (none)
    base = "/tmp";
  std::string name = (base / (std::string{prefix} + "-XXXXXX")).string();
  if (::mkdtemp(name.data()) == nullptr)
    throw stack_error("cannot make a directory in " + base.string() + ": " + std::strerror(errno));
  path_ = name;
  if (const auto user = unprivileged_user())
    if (::chown(path_.c_str(), user->uid, user->gid) != 0)
      throw stack_error("cannot hand " + name + " over to the unprivileged user");
}

scratch::~scratch() {
  std::error_code ignored;
  if (!keep_)
    fs::remove_all(path_, ignored);
}

fs::path scratch::folder(const std::string& name) const {
  const fs::path made = path_ / name;
  if (::mkdir(made.c_str(), 0700) != 0 && errno != EEXIST)
    throw stack_error("cannot make " + made.string() + ": " + std::strerror(errno));
  if (const auto user = unprivileged_user())
    if (::chown(made.c_str(), user->uid, user->gid) != 0)
      throw stack_error("cannot hand " + made.string() + " over to the unprivileged user");
  return made;
}

void write_file(const fs::path& path, std::string_view content) {
  const closing file{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
  if (file.fd < 0)
    throw stack_error("cannot write " + path.string() + ": " + std::strerror(errno));
  while (!content.empty()) {
    const auto wrote = ::write(file.fd, content.data(), content.size());
    if (wrote < 0)
      throw stack_error("cannot write " + path.string() + ": " + std::strerror(errno));
    content.remove_prefix(static_cast<std::size_t>(wrote));
  }
  if (const auto user = unprivileged_user())
    if (::fchown(file.fd, user->uid, user->gid) != 0)
      throw stack_error("cannot hand " + path.string() + " over to the unprivileged user");
}

std::string read_file(const fs::path& path) {
  std::ifstream in{path, std::ios::binary};
  std::ostringstream all;
  all << in.rdbuf();
  return all.str();
}

std::uint16_t free_port() {
  static std::mutex mutex;
  static std::mt19937 random{std::random_device{}()};
  static std::vector<int> reservations;  // held until the process ends
  const std::lock_guard lock{mutex};
  std::uniform_int_distribution<int> range{20'000, 32'000};
  for (int attempt = 0; attempt < 1'000; ++attempt) {
    const auto port = static_cast<std::uint16_t>(range(random));
    const int claim = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const std::string text = "warren-port-" + std::to_string(port);
    std::memcpy(name.sun_path + 1, text.data(), text.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
    if (::bind(claim, reinterpret_cast<sockaddr*>(&name), length) == 0) {
      const closing probe{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(port);
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      if (::bind(probe.fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
        reservations.push_back(claim);
        return port;
      }
    }
    ::close(claim);
  }
  throw stack_error("no free port on 127.0.0.1 between 20000 and 32000");
}

bool listens(std::uint16_t port) {
  const closing socket{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return ::connect(socket.fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

bool poll_until(const std::function<bool()>& ready, milliseconds timeout, milliseconds step) {
  const auto deadline = clock::now() + timeout;
  while (!ready()) {
    if (clock::now() >= deadline)
      return false;
    std::this_thread::sleep_for(step);
  }
  return true;
}

void remove_after_death(const fs::path& directory) {
  int alive[2];
  if (::pipe2(alive, O_CLOEXEC) != 0)
    return;
  const pid_t undertaker = ::fork();
  if (undertaker != 0) {
    ::close(alive[0]);  // alive[1] stays open until this process is gone
    return;
  }
  ::setsid();
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE})
    ::signal(number, SIG_IGN);
  ::close(alive[1]);
  for (int fd = 0; fd <= 2; ++fd)
    ::close(fd);
  char nothing = 0;
  while (::read(alive[0], &nothing, 1) < 0 && errno == EINTR) {
  }
  // The servers are dying of their death signal and may write for another moment.
  std::error_code error;
  for (int attempt = 0; attempt < 50 && fs::exists(directory, error); ++attempt) {
    fs::remove_all(directory, error);
    if (fs::exists(directory, error))
      ::usleep(100'000);
  }
  ::_exit(0);
}

}  // namespace warren::stack
