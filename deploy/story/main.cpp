// deploy/story/main.cpp -- starts private servers, tells a tunnel's life on them, and leaves nothing behind.
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "deploy/story/chaos.hpp"
#include "deploy/story/story.hpp"

namespace fs = std::filesystem;
using namespace warren;

namespace {

constexpr std::uintmax_t room_needed_mb = 150;

struct wishes {
  bool once = false, json = false, keep = false, chaos = false;
  std::uint16_t port = 0;
};

/// One sentence for what a person can do something about.
std::string explained(const std::string& error) {
  if (error.find("No space left on device") != std::string::npos || error.find(std::strerror(ENOSPC)) != std::string::npos)
    return fmt::format("The disk is full: {} needs {} MB for the servers (TMPDIR names another place).",
                       fs::temp_directory_path().string(), room_needed_mb);
  return error;
}

void check_room() {
  struct statvfs of {};
  const auto place = fs::temp_directory_path();
  if (::statvfs(place.c_str(), &of) == 0 && std::uintmax_t{of.f_bavail} * of.f_frsize / (1u << 20) < room_needed_mb)
    throw stack::stack_error(fmt::format("The disk is full: {} needs {} MB for the servers (TMPDIR names another place).",
                                         place.string(), room_needed_mb));
}

/// Time zero is when ./run was typed, when that is who started us.
stack::clock::time_point beginning() {
  const auto now = stack::clock::now();
  const char* text = std::getenv("WARREN_RUN_STARTED_MS");
  if (text == nullptr)
    return now;
  const auto wall = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
  const auto ago = wall - std::chrono::milliseconds{std::strtoll(text, nullptr, 10)};
  return ago.count() < 0 || ago > std::chrono::hours{2} ? now : now - ago;
}

/// Waits for the signals that end us. While the story is being told the process ends on the spot: the kernel
/// ends its children, and the undertaker removes their files. Afterwards everything is stopped in order.
class stop_signals {
public:
  stop_signals() {
    sigemptyset(&set_);
    for (const int number : {SIGINT, SIGTERM, SIGHUP})
      sigaddset(&set_, number);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);  // every later thread inherits it
  }
  void start() {
    std::thread{[this] {
      for (;;) {
        int number = 0;
        if (sigwait(&set_, &number) != 0)
          continue;
        if (!orderly_.exchange(false)) {
          std::fputs("interrupted; cleaning up\n", stderr);
          ::_exit(128 + number);
        }
        stopped_.set_value();
      }
    }}.detach();
  }
  void await() {
    orderly_ = true;
    stopped_.get_future().wait();
  }

private:
  sigset_t set_{};
  std::atomic<bool> orderly_ = false;
  std::promise<void> stopped_;
};

void show(const wishes& w, story::teller& out, stop_signals& signals) {
  if (w.port != 0 && stack::listens(w.port))
    throw stack::stack_error(fmt::format("Port {} of 127.0.0.1 is taken: choose another with --port, or leave it out for a free one.", w.port));
  out.progress("starting a private PostgreSQL and a private NATS");
  stack::stack servers{{.own_postgres = true, .start = false, .instances = w.chaos ? 3 : 1, .with_ways = w.chaos, .agents_have_credentials = true, .instance_lease_ms = 3'000, .heartbeat_interval_ms = 2'000, .keep_logs = false, .visitor_port = w.port}};
  if (w.keep)
    servers.keep();
  out.progress(w.chaos ? "starting three instances of warrend" : "starting warrend");
  for (std::size_t n = 0; n < servers.instances(); ++n)
    servers.at(n).start();
  if (stack::has_envoy()) {
    out.progress("starting Envoy");
    servers.start_envoy();
  }
  if (w.chaos)
    return story::tell_chaos(servers, out);
  out.progress("starting a demo origin, and an agent beside it");
  servers.demo_origin();
  servers.add_agent("home").await_session();
  story::tell(servers, out);
  if (w.once)
    return;
  story::tell_what_next(servers, out);
  out.lines({"Ctrl-C ends it all."});
  signals.await();
  out.progress("stopping everything");
}

}  // namespace

int main(int argc, char** argv) {
  const auto begin = beginning();
  wishes w;
  CLI::App app{"Tells a tunnel's life on real servers, with measured times.", "./run"};
  app.add_flag("--once", w.once, "End after the story");
  app.add_flag("--json", w.json, "One JSON object a line: event, at_ms (since the command), after_ms (since its cause)");
  app.add_flag("--chaos", w.chaos, "Three instances under load, and faults one after the other; ends after it");
  app.add_flag("--keep", w.keep, "Keep the data, the logs and the configurations");
  app.add_option("--port", w.port, "Where visitors come in; default: a free port");
  CLI11_PARSE(app, argc, argv);

  const pid_t parent = ::getppid();
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent)
    return 0;
  stop_signals signals;
  try {
    check_room();
    // All files lie in one folder, so that one undertaker can remove them however we end.
    stack::scratch place{"warren-story"};
    if (w.keep)
      place.keep();
    else
      stack::remove_after_death(place.path());
    ::setenv("TMPDIR", place.path().c_str(), 1);
    signals.start();
    story::teller out{w.json, begin};
    show(w, out, signals);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", explained(e.what()).c_str());
    return 1;
  }
}
