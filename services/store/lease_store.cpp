// services/store/lease_store.cpp -- see lease_store.hpp.
#include "services/store/lease_store.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <pqxx/pqxx>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include "services/store/session.hpp"

namespace warren {
namespace {

using namespace sql;
namespace pb = google::protobuf;
using steady = std::chrono::steady_clock;

constexpr std::size_t queue_max = 4096;     // a take and a release of every partition, many times over
constexpr auto statement_timeout = 1500ms;  // half of the lease: a renewal that takes longer is repeated
constexpr std::int64_t end_again_ms = 500;  // a taker has many partitions of one owner to take
constexpr auto take_lock_timeout = 300ms;   // a holder's row lock lasts for one group commit
constexpr std::int64_t never_ms = 1'000LL * 60 * 60 * 24 * 365 * 100;  // older no server is
constexpr int numbers_tried = 100;          // beyond: the sequence is not what is wrong

std::int64_t number(const pb::Value& v) { return static_cast<std::int64_t>(v.number_value()); }

/// jsonb numbers pass through double in google.protobuf.Value: epochs and revisions must not.
std::vector<std::int64_t> numbers(const std::string& text) {
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < text.size();) {
    if ((text[i] >= '0' && text[i] <= '9') || text[i] == '-') {
      std::size_t used = 0;
      out.push_back(std::stoll(text.substr(i, 24), &used));
      i += used;
    } else {
      ++i;
    }
  }
  return out;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

template <class T> std::string sql_array(const std::vector<T>& values) { return fmt::format("{{{}}}", fmt::join(values, ",")); }

}  // namespace

class lease_store::impl {
public:
  explicit impl(lease_store_config config) : config_{std::move(config)} {
    if (!config_.history) config_.history = std::make_shared<lineage>();
  }
  ~impl() { stop(); }

  std::string start() {
    try {
      if (auto error = pooler_between(config_.conninfo); !error.empty()) return error;
      open_lock_connection();
      {
        pqxx::nontransaction tx{lock_->conn};
        // A number may have been given out before in a time that the database has lost, to somebody who still runs.
        bool held = false;
        for (int attempt = 0; !held && attempt < numbers_tried; ++attempt) {
          id_ = tx.exec_prepared1("next_instance_id")[0].as<std::int64_t>();
          held = tx.exec_prepared1("hold_instance_lock", id_.load())[0].as<bool>();
        }
        if (!held) return "the advisory lock of instance " + std::to_string(id_) + " is held by somebody else";
        tx.exec("SET application_name = 'warrend/" + std::to_string(id_) + "/lock'");
      }
      open_work_connection();
      if (auto error = register_instance(); !error.empty()) return error;
    } catch (const std::exception& e) {
      return first_line(e.what());
    }
    thread_ = std::thread{[this] { loop(); }};
    watch_ = std::thread{[this] { watch(); }};
    return {};
  }

  void stop() {
    {
      std::lock_guard lock{mutex_};
      if (stopping_) return;
      stopping_ = true;
    }
    wake_.notify_all();
    wake_watch_.notify_all();
    if (thread_.joinable()) thread_.join();
    if (watch_.joinable()) watch_.join();
    try {
      if (work_ && id_ != 0) {
        pqxx::work tx{work_->conn};
        tx.exec_prepared("remove_instance", id_.load());
        tx.commit();
      }
    } catch (const std::exception& e) {
      spdlog::warn("lease: the instance's row stays until it expires: {}", first_line(e.what()));
    }
    work_.reset();
    lock_.reset();
    for (auto& t : std::exchange(tasks_, {})) t.fail("the instance is stopping");
  }

  struct task {
    std::function<placement_view(session&)> run;
    std::function<void(placement_view)> then;
    void fail(const std::string& error) {
      placement_view v;
      v.error = error;
      then(std::move(v));
    }
  };

  void push(task t) {
    {
      std::lock_guard lock{mutex_};
      if (!stopping_ && tasks_.size() < queue_max) {
        tasks_.push_back(std::move(t));
        wake_.notify_one();
        return;
      }
    }
    t.fail("too many requests are waiting");
  }

  placement_view renewed(session& s, const renew_lease& what) {
    check_lock();
    const auto prolong = [&] {
      // No transaction around it: whoever is paused between two statements would keep the row locked.
      pqxx::nontransaction tx{s.conn};
      const auto ttl_ms = millis{config_.ttl}.count();
      if (const auto& by = what.drain_asked)
        return view_of(tx.exec_prepared1("renew_drained", id_.load(), ttl_ms, what.bus_ok, by->method, by->resource, by->principal,
                                         by->remote, by->before_json, by->after_json));
      return view_of(tx.exec_prepared1("renew", id_.load(), ttl_ms, what.bus_ok, what.draining));
    };
    auto view = prolong();
    view.reconnected = std::exchange(lock_taken_again_, false);
    if (!view.renewed && view.incarnation != registered_in_) {
      // The database has lost the time in which this instance began. Nobody else has its number: it holds the lock.
      if (auto error = register_instance(); !error.empty()) step_down(error);
      view = prolong();
    }
    // Somebody took it for dead long ago: only a new start gets a number that nobody else has.
    if (!view.renewed) step_down("this instance's row is gone from the database");
    registered_in_ = view.incarnation;
    return view;
  }

  placement_view take(session& s, const std::vector<partition_id>& wanted) {
    auto takeable = judged(s, wanted);
    for (const auto& p : takeable) end_sessions_of_superseded(s, p.owner);
    auto taken = take_unlocked(s, takeable);
    if (!takeable.empty()) {
      // A session that was just ended holds its locks for a moment yet. What one of them is worth waiting for is
      // over for all of them then; what is locked still is asked for again, and judged anew.
      const auto first = std::move(takeable.front());
      takeable.erase(takeable.begin());
      try {
        if (!pqxx::nontransaction{s.conn}.exec_prepared("take", first.id, id_.load(), first.owner, first.epoch).empty())
          taken.push_back(first.id);
      } catch (const std::exception& e) {
        if (classify(e, s.conn.is_open()).kind != sql_failure::what::contended) throw;
      }
      for (auto id : take_unlocked(s, takeable)) taken.push_back(id);
    }
    auto view = placement(s);
    view.taken = std::move(taken);
    std::sort(view.taken.begin(), view.taken.end());
    if (!view.taken.empty()) spdlog::info("lease: took {} of {} partitions: {}", view.taken.size(), wanted.size(), fmt::join(view.taken, ", "));
    return view;
  }

  placement_view release(session& s, const release_partition& what) {
    pqxx::nontransaction{s.conn}.exec_prepared("release", what.partition, id_.load(), what.epoch);
    return placement(s);
  }

  placement_view judge(session& s, instance_id suspect) {
    if (suspect != 0 && suspect != id_) {
      const bool dead =
          locks_tell() && !pqxx::nontransaction{s.conn}.exec_prepared("end_lease_of_dead", suspect, millis{config_.ttl}.count()).empty();
      if (dead) {
        spdlog::warn("lease: instance {} is dead: nobody holds its lock", suspect);
        end_sessions(s, suspect);
      }
    }
    return placement(s);
  }

  std::atomic<std::int64_t> id_{0};

private:
  session_options options(const char* purpose) const {
    session_options o;
    o.application = "warrend/" + (id_ == 0 ? std::string{"start"} : std::to_string(id_)) + "/" + purpose;
    o.writer = false;
    o.history = config_.history;
    o.statement_timeout = statement_timeout;
    o.lock_timeout = take_lock_timeout;
    o.idle_timeout = 1000ms;
    return o;
  }

  void open_lock_connection() { open(lock_, "lock", lock_socket_); }
  void open_work_connection() { open(work_, "lease", socket_); }
  void open(std::unique_ptr<session>& to, const char* purpose, int& socket) {
    auto o = options(purpose);
    o.on_socket = [&](int s) {
      std::lock_guard lock{socket_mutex_};
      socket = s;
      if (busy_since_ms_ != 0) busy_since_ms_ = now_ms();  // connecting has its own limit
    };
    try {
      to = open_session(config_.conninfo, o);
    } catch (...) {
      close(to, socket);
      throw;
    }
  }
  void close(std::unique_ptr<session>& which, int& socket) {
    {
      std::lock_guard lock{socket_mutex_};
      socket = -1;
    }
    which.reset();
  }

  std::string register_instance() {
    pqxx::work tx{work_->conn};
    tx.exec_prepared("lock_instance_name", config_.name);
    std::vector<std::int64_t> former;
    for (const auto& row : tx.exec_prepared("instances_named", config_.name)) {
      if (row[0].as<std::int64_t>() == id_) continue;
      if (!row[2].as<bool>())
        return "the name " + config_.name + " is held by instance " + row[0].as<std::string>() +
               ", which is alive: give this one another name";
      former.push_back(row[0].as<std::int64_t>());
    }
    for (auto id : former) tx.exec_prepared("remove_instance", id);
    tx.exec_prepared("insert_instance", id_.load(), config_.name, millis{config_.ttl}.count());
    tx.commit();
    registered_in_ = work_->incarnation;
    for (auto id : former) end_sessions(*work_, id);
    return {};
  }

  /// Whether a lock that can be had says that its holder is dead. A server that ends our session, by a crash of another
  /// session's process or by a failover, has ended everybody's, and others need as long as a lease to find it again.
  /// That the server itself has started anew the statements see.
  bool locks_tell() const { return opened_again_ms_ == 0 || now_ms() - opened_again_ms_ > millis{config_.ttl}.count(); }

  /// Those that may be taken, by the database's clock and locks, as they are now.
  std::vector<partition_row> judged(session& s, const std::vector<partition_id>& wanted) {
    std::vector<partition_row> may;
    const auto restart_ms = locks_tell() ? millis{config_.ttl}.count() : never_ms;
    for (const auto& row : pqxx::nontransaction{s.conn}.exec_prepared("judge_owners", sql_array(wanted), id_.load(), restart_ms))
      may.push_back({row[0].as<partition_id>(), row[1].as<instance_id>(), row[2].as<epoch_t>(), 0});
    return may;
  }

  /// Takes those whose rows nobody has locked, and leaves the others in `takeable`.
  std::vector<partition_id> take_unlocked(session& s, std::vector<partition_row>& takeable) {
    if (takeable.empty()) return {};
    std::vector<std::int64_t> ids, owners, epochs;
    for (const auto& p : takeable) {
      ids.push_back(p.id);
      owners.push_back(p.owner);
      epochs.push_back(p.epoch);
    }
    std::vector<partition_id> taken;
    for (const auto& row : pqxx::nontransaction{s.conn}.exec_prepared("take_unlocked", id_.load(), sql_array(ids),
                                                                      sql_array(owners), sql_array(epochs)))
      taken.push_back(row[0].as<partition_id>());
    std::erase_if(takeable, [&](const partition_row& p) { return std::find(taken.begin(), taken.end(), p.id) != taken.end(); });
    return taken;
  }

  /// A superseded holder that is paused keeps its row locks for as long as its sessions live.
  void end_sessions_of_superseded(session& s, instance_id owner) {
    if (owner == 0 || owner == id_ || (owner == sessions_ended_of_ && now_ms() - sessions_ended_ms_ <= end_again_ms)) return;
    end_sessions(s, owner);
    sessions_ended_of_ = owner;
    sessions_ended_ms_ = now_ms();
  }

  void end_sessions(session& s, std::int64_t of) {
    const auto ended = pqxx::nontransaction{s.conn}.exec_prepared1("end_sessions", of)[0].as<int>();
    if (ended > 0) spdlog::info("lease: ended {} sessions of superseded instance {}", ended, of);
  }

  /// Takes the lock again when its connection was lost. Throws when that does not work.
  void check_lock() {
    try {
      if (lock_) {
        const auto row = pqxx::nontransaction{lock_->conn}.exec1("SELECT incarnation FROM installation");
        if (row[0].as<std::int64_t>() >= config_.history->incarnation()) return;
        throw std::runtime_error{"the database has another life"};
      }
    } catch (const std::exception& e) {
      spdlog::warn("lease: the connection that holds the instance's lock was lost: {}", first_line(e.what()));
      close(lock_, lock_socket_);
    }
    busy_since_ms_ = now_ms();
    // A database that is away is no reason to step down: nothing is renewed, so the lease ends by itself, and
    // the instance goes on when it is back.
    open_lock_connection();
    try {
      // The server may not have noticed yet that our former connection is gone; and whoever probes the lock holds
      // it, shared, for the length of a statement.
      {
        pqxx::nontransaction tx{lock_->conn};
        tx.exec_prepared("end_former_lock_session", id_.load());
      }
      for (int attempt = 0; attempt < 10; ++attempt) {
        if (pqxx::nontransaction{lock_->conn}.exec_prepared1("hold_instance_lock", id_.load())[0].as<bool>()) {
          lock_taken_again_ = true;
          return;
        }
        std::this_thread::sleep_for(20ms);
      }
    } catch (...) {
      close(lock_, lock_socket_);  // without the lock it must not pass for the one that holds it
      throw;
    }
    close(lock_, lock_socket_);
    step_down("another session holds this instance's lock");
  }

  [[noreturn]] void step_down(const std::string& reason) {
    if (config_.on_lost) config_.on_lost(reason);
    throw std::runtime_error{reason};
  }

  placement_view placement(session& s) {
    return view_of(pqxx::nontransaction{s.conn}.exec_prepared1("view_placement"));
  }

  placement_view view_of(const pqxx::row& row) {
    placement_view v;
    v.renewed = !row[0].is_null();
    v.incarnation = row[1].as<std::int64_t>();
    if (v.incarnation < config_.history->incarnation())
      throw pqxx::broken_connection{"the database has another life than the one that is being asked"};
    config_.history->incarnation_seen(v.incarnation);
    pb::ListValue instances;
    if (!pb::util::JsonStringToMessage(row[2].as<std::string>(), &instances).ok())
      throw std::runtime_error{"the instances cannot be read"};
    for (const auto& i : instances.values()) {
      const auto& f = i.list_value();
      v.instances.push_back({.id = number(f.values(0)),
                             .name = f.values(1).string_value(),
                             .started_at_ms = number(f.values(2)),
                             .expires_at_ms = number(f.values(3)),
                             .bus_ok = f.values(4).bool_value(),
                             .draining = f.values(5).bool_value(),
                             .alive = f.values(6).bool_value()});
      // The statement's snapshot has the row as it was before the renewal.
      if (v.renewed && v.instances.back().id == id_) {
        v.instances.back().expires_at_ms = row[0].as<std::int64_t>();
        v.instances.back().alive = true;
      }
    }
    const auto flat = numbers(row[3].as<std::string>());
    for (std::size_t i = 0; i + 3 < flat.size(); i += 4)
      v.partitions.push_back({static_cast<partition_id>(flat[i]), flat[i + 1], flat[i + 2], flat[i + 3]});
    return v;
  }

  void loop() {
    for (;;) {
      task t;
      {
        std::unique_lock lock{mutex_};
        wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
        if (stopping_) return;
        t = std::move(tasks_.front());
        tasks_.pop_front();
      }
      // A connection that ended between two requests is no reason to answer with an error, and what a lost one
      // may have done is judged anew: each request may be run twice.
      for (int attempt = 1;; ++attempt) {
        try {
          busy_since_ms_ = now_ms();
          if (!work_) {
            open_work_connection();
            opened_again_ms_ = now_ms();
          }
          auto view = t.run(*work_);
          busy_since_ms_ = 0;
          t.then(std::move(view));
          break;
        } catch (const std::exception& e) {
          busy_since_ms_ = 0;
          using what = sql_failure::what;
          const auto kind = classify(e, work_ && work_->conn.is_open()).kind;
          const bool had_connection = work_ != nullptr;
          close(work_, socket_);
          if (attempt == 1 && had_connection && (kind == what::broken || kind == what::in_doubt)) continue;
          t.fail(first_line(e.what()));
          break;
        }
      }
    }
  }

  /// Ends the connection of a server that does not answer, so that the thread learns that nothing is known.
  void watch() {
    std::unique_lock lock{mutex_};
    while (!wake_watch_.wait_for(lock, 200ms, [this] { return stopping_; })) {
      const auto since = busy_since_ms_.load();
      if (since == 0 || now_ms() - since < millis{statement_timeout + 500ms}.count()) continue;
      std::lock_guard socket_lock{socket_mutex_};
      for (const int each : {socket_, lock_socket_})
        if (each >= 0) ::shutdown(each, SHUT_RDWR);
    }
  }

  static std::int64_t now_ms() {
    return std::chrono::duration_cast<millis>(steady::now().time_since_epoch()).count();
  }

  lease_store_config config_;
  std::unique_ptr<session> lock_, work_;
  std::mutex mutex_, socket_mutex_;
  std::condition_variable wake_, wake_watch_;
  std::deque<task> tasks_;
  bool stopping_ = false;
  bool lock_taken_again_ = false;  // of the thread; since the last renewal
  std::int64_t opened_again_ms_ = 0;  // of the thread: when a lost session was last replaced; 0: never
  std::int64_t sessions_ended_of_ = 0, sessions_ended_ms_ = 0;  // of the thread: the last owner that was superseded
  std::int64_t registered_in_ = 0;  // of the thread: the incarnation that has our row
  int socket_ = -1, lock_socket_ = -1;
  std::atomic<std::int64_t> busy_since_ms_{0};
  std::thread thread_, watch_;
};

lease_store::lease_store(lease_store_config config) : impl_{std::make_unique<impl>(std::move(config))} {}
lease_store::~lease_store() = default;
std::string lease_store::start() { return impl_->start(); }
void lease_store::stop() { impl_->stop(); }
instance_id lease_store::id() const { return impl_->id_; }

void lease_store::renew(renew_lease what, std::function<void(placement_view)> then) {
  impl_->push({[this, what](sql::session& s) { return impl_->renewed(s, what); }, std::move(then)});
}
void lease_store::take(take_partitions what, std::function<void(placement_view)> then) {
  impl_->push({[this, what = std::move(what)](sql::session& s) { return impl_->take(s, what.partitions); }, std::move(then)});
}
void lease_store::release(release_partition what, std::function<void(placement_view)> then) {
  impl_->push({[this, what](sql::session& s) { return impl_->release(s, what); }, std::move(then)});
}

void lease_store::judge(judge_instance what, std::function<void(placement_view)> then) {
  impl_->push({[this, what](sql::session& s) { return impl_->judge(s, what.instance); }, std::move(then)});
}

}  // namespace warren
