// services/store/lane.hpp -- threads with one connection each: lanes, which commit, and readers.
// They decide when, group.hpp decides what.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/line_limits.hpp"
#include "services/store/group.hpp"
#include "services/store/session.hpp"

namespace warren::sql {

using clock = std::chrono::steady_clock;

/// What is said of jobs that fail again and again: of each kind a line when it begins, then one now and then.
/// Thread-safe.
class failure_lines {
public:
  /// How often it has failed since the last line, this time included, when there is something to say.
  std::optional<std::int64_t> failed(const std::string& what, std::int64_t now_ms) {
    std::lock_guard lock{mutex_};
    return of_[what].failed(now_ms);
  }

private:
  std::mutex mutex_;
  std::map<std::string, outage> of_;  // as many as there are kinds of jobs
};

/// What the threads of one store share. Set before they start.
struct shared {
  std::string conninfo;
  instance_id me = 0;
  millis give_up{2'000};
  millis lease{3'000};
  counters* count = nullptr;
  std::function<void(const busv1::Revision&)> on_commit;
  /// A thread's connection came or went.
  std::function<void(int thread, bool up, const std::string& reason)> on_connection;
  std::shared_ptr<lineage> history;  ///< never null
  std::atomic<std::int64_t> incarnation{0};
  std::atomic<int> partitions{0};
  failure_lines failures;
};

/// Work that needs the connection for itself. `run` may be called again after a broken connection; `fail` is
/// called instead when there is no connection for too long. Exactly one of them is the last.
struct job {
  std::string what;              ///< for the log: which kind of job
  partition_id partition = -1;   ///< for the log; -1: of none
  std::function<void(session&)> run;
  std::function<void(const std::string& error)> fail;
  millis patience{0};  ///< with a silent server; 0: as long as a statement may take
  clock::time_point since = clock::now();
};

/// A thread with a connection that it opens, watches and opens again, and a bounded queue of jobs.
class worker {
public:
  worker(shared& common, int number, std::string application, session_options options);
  virtual ~worker();

  void start();
  void stop();
  /// False: full.
  bool push(job j);
  /// Called about five times a second from another thread: answers what waited too long for a connection, and
  /// ends the connection of a server that does not answer at all.
  void watch();
  bool connected() const { return connected_; }

protected:
  /// With a connection and without the lock; returns whether there was something to do.
  virtual bool work();
  virtual bool has_work() const { return !jobs_.empty(); }     // with the lock
  virtual void expire(clock::time_point before, const std::string& reason);  // without the lock
  std::string down_reason() const;                             // without the lock
  millis patience() const;
  void lost_connection(const std::string& reason);
  /// Opens the connection when there is none; returns null when that fails.
  session* connect();
  /// The connection as it is after what was done last: null when that ended it.
  session* current() { return session_.get(); }
  bool open() const { return session_ && session_->conn.is_open(); }
  /// Whether somebody has seen a newer life of the database than this connection was opened in.
  bool outlived() const { return session_ && session_->incarnation < common_.history->incarnation(); }

  shared& common_;
  const int number_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<job> jobs_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::int64_t> cut_at_ms_{0};  ///< when a silent server is given up; 0: not inside a call to it

private:
  void loop();

  session_options options_;
  std::unique_ptr<session> session_;
  std::mutex socket_mutex_;
  int socket_ = -1;
  std::atomic<std::int64_t> lost_at_ms_{0};  ///< when the connection was lost, on the steady clock
  std::atomic<bool> connected_{false};
  std::string down_reason_ = "not connected yet";
  millis back_off_{0};
  bool opened_before_ = false;
  std::thread thread_;
};

/// A transition that waits for its group.
struct pending {
  save_request request;
  std::function<void(save_result)> answer;
  std::vector<std::string> keys;
  clock::time_point since = clock::now();
};

/// Commits the transitions of its partitions, what arrived meanwhile together, in the order of arrival.
class lane : public worker {
public:
  using worker::worker;
  bool push_save(pending p);

  /// Adopts what rivals marked; see run_adoption. On this lane's thread, from a job.
  struct adopted {
    bool lost = false;
    adoption what;
  };
  adopted adopt(session& s, partition_id partition, epoch_t epoch, const std::vector<v1::Row>* named);

  /// Transitions that wait.
  std::size_t queued() const {
    std::lock_guard lock{mutex_};
    return saves_.size();
  }

protected:
  bool work() override;
  bool has_work() const override { return !saves_.empty() || worker::has_work(); }
  void expire(clock::time_point before, const std::string& reason) override;

private:
  std::vector<pending> next_group();
  void commit(std::vector<pending> group);
  void answer(pending& p, save_result r);
  void publish(std::vector<busv1::Revision>& revisions);
  /// A revision that was seen committed does not come again, unless an older copy of the data was put in place
  /// under our connection: a new one finds that out (settle_incarnation).
  void refuse_repetition(const session& s, const std::vector<fenced>& raised) const;
  /// Connects again and finds out; gives up as lost when the instance's lease must be over.
  std::map<partition_id, fate> settle(const std::vector<fenced>& raised);

  std::deque<pending> saves_;
};

}  // namespace warren::sql
