// test/e2e/load.hpp -- a service in use: agents and tunnels in several partitions, visitors who never stop, and
// a caller who never stops changing something. Decides nothing.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "test/e2e/expect.hpp"

namespace warren::e2e {

/// A stack of several instances.
inline stack::stack_options several(int instances) {
  stack::stack_options o;
  o.instances = instances;
  o.with_ways = true;
  return o;
}

class load {
public:
  explicit load(stack::stack& s, int projects = 4) : s_{s} {
    for (int n = 0; n < projects; ++n) {
      projects_.push_back("p" + std::to_string(n));
      auto& home = s.add_agent("home-" + std::to_string(n), {.project = projects_.back()});
      home.await_session(patience);
      for (const auto* name : {"web", "spare"})
        s.must_ctl({"tunnel", "create", name, "--hostname", std::string{name} + "." + projects_.back() + ".example.org",
                    "--connector", home.name(), "--target", s.demo_origin().url(), "--gateway-class", "demo", "-p", projects_.back()});
    }
    for (const auto& project : projects_)
      s.must_ctl({"tunnel", "wait", "web", "--for", "ready", "--timeout", "30s", "-p", project});
    before_ = connectors();
    if (stack::has_envoy())
      for (const auto& project : projects_) {
        visitors_.push_back(std::make_unique<stack::continuous_visitor>(
            s.visitor_port(), stack::request{.host = "web." + project + ".example.org"}, milliseconds{10}));
        REQUIRE(visitors_.back()->await_status(200, patience));
      }
  }
  ~load() { stop_writing(); }
  load(const load&) = delete;
  load& operator=(const load&) = delete;

  const std::vector<std::string>& projects() const { return projects_; }

  /// Changes a tunnel of each project in turn, by way of `i`, without pause.
  void write_by(const stack::instance& i) {
    stop_writing();
    writing_ = true;
    writer_ = std::thread{[this, &i] {
      for (int n = 0; writing_; ++n) {
        const auto& project = projects_[static_cast<std::size_t>(n) % projects_.size()];
        const bool off = n / static_cast<int>(projects_.size()) % 2 == 0;
        const std::vector<std::string> change{"tunnel", "update", "spare", off ? "--disabled" : "--enabled", "--timeout", "30s",
                                              "-p", project, "--request-id", "write-" + std::to_string(++writes_)};
        const auto told = s_.ctl_at(i, change);
        const std::lock_guard lock{mutex_};
        ++written_;
        if (!told.ok() && failures_.size() < 5) failures_.push_back(project + ": " + told.err);
      }
    }};
  }
  void stop_writing() {
    writing_ = false;
    if (writer_.joinable()) writer_.join();
  }
  int written() const {
    const std::lock_guard lock{mutex_};
    return written_;
  }
  /// Until every project has been written to twice from now on.
  bool await_writes() const {
    const int enough = written() + 2 * static_cast<int>(projects_.size()) + 1;
    return stack::poll_until([&] { return written() >= enough; }, 2 * patience, milliseconds{20});
  }

  /// Nothing of what happened since the beginning was seen: by visitors, by callers, by agents. Empty: so it is.
  std::string noticed_by_anybody() {
    stop_writing();
    std::string out;
    for (const auto& f : failures_) out += "a caller was told: " + f + "; ";
    for (const auto& visitor : visitors_) {
      visitor->stop();
      if (const auto what = e2e::noticed(visitor->answers()); !what.empty()) out += "a visitor saw " + what + "; ";
    }
    if (const auto after = connectors(); after != before_) out += "connectors were\n" + before_ + "and are\n" + after;
    return out;
  }

  /// The partition of a project.
  int partition(const std::string& project) const {
    return std::stoi(s_.sql("SELECT partition FROM connector WHERE project = '" + project + "'"));
  }
  /// Whoever owns it.
  stack::instance& owner(const std::string& project) {
    const auto id = s_.owners().at(partition(project));
    for (std::size_t n = 0; n < s_.instances(); ++n)
      if (s_.id_of(s_.at(n)) == id) return s_.at(n);
    throw stack::stack_error{"partition " + std::to_string(partition(project)) + " has no owner"};
  }

private:
  /// Sessions, and when each was last found online or not: a flip leaves a mark in it.
  std::string connectors() const {
    return s_.sql("SELECT project, name, uid, session, online, conditions FROM connector ORDER BY 1, 2");
  }

  stack::stack& s_;
  std::vector<std::string> projects_;
  std::vector<std::unique_ptr<stack::continuous_visitor>> visitors_;
  std::string before_;
  std::atomic<bool> writing_{false};
  mutable std::mutex mutex_;
  int written_ = 0;
  int writes_ = 0;  // of the writer's thread
  std::vector<std::string> failures_;
  std::thread writer_;
};

/// All instances but one.
inline std::vector<const stack::instance*> others(stack::stack& s, const stack::instance& but) {
  std::vector<const stack::instance*> out;
  for (std::size_t n = 0; n < s.instances(); ++n)
    if (&s.at(n) != &but) out.push_back(&s.at(n));
  return out;
}
inline std::vector<const stack::instance*> everybody(stack::stack& s) {
  std::vector<const stack::instance*> out;
  for (std::size_t n = 0; n < s.instances(); ++n) out.push_back(&s.at(n));
  return out;
}

}  // namespace warren::e2e
