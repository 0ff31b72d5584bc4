// services/store/lane.cpp -- see lane.hpp.
#include "services/store/lane.hpp"

#include <algorithm>
#include <array>
#include <unordered_set>
#include <utility>

#include <sys/socket.h>

#include <spdlog/spdlog.h>

#include "actors/core/limits.hpp"
#include "actors/log.hpp"
#include "services/store/failpoint.hpp"
#include "services/store/rows.hpp"
#include "services/store/statements.hpp"

namespace warren::sql {
namespace {

constexpr auto idle_ping = 1s;          // an idle connection that ended is noticed within 2 s
constexpr auto server_silent = 2'500ms; // below the instance lease: longer than the statement timeout of a lane
constexpr auto reconnect_grace = 500ms; // what a lost connection interrupted gets one new connection before it is too old
constexpr auto settle_beyond = 2s;      // the instance lease: ownership is over then in any case
constexpr auto back_off_max = 500ms;

std::int64_t now_ms() { return std::chrono::duration_cast<millis>(clock::now().time_since_epoch()).count(); }

/// Marks the time inside calls to the server, for the watch: how long the server may be silent.
class busy {
public:
  busy(std::atomic<std::int64_t>& cut_at, millis patience)
      : cut_at_{cut_at}, patience_{patience}, within_another_{cut_at != 0} {
    cut_at_ = now_ms() + patience_.count();
  }
  ~busy() { cut_at_ = within_another_ ? now_ms() + patience_.count() : 0; }
  busy(const busy&) = delete;
  busy& operator=(const busy&) = delete;

private:
  std::atomic<std::int64_t>& cut_at_;
  const millis patience_;
  const bool within_another_;
};

/// "tunnel_rules" → "rules"; a primary key has no field.
std::string field_of(const std::string& constraint) {
  std::string field;
  for (const auto& t : tables())
    if (constraint.rfind(t.name + "_", 0) == 0 && constraint.size() > t.name.size() + 1)
      field = constraint.substr(t.name.size() + 1);
  if (field.empty() && constraint.rfind("admin_request_", 0) == 0) field = constraint.substr(14);
  return field == "pkey" ? "" : field.empty() ? constraint : field;
}

/// The first line is what the server said; the rest is its context, which names other people's data.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

save_result answer_to_failure(const sql_failure& f) {
  if (f.kind == sql_failure::what::contended) return save_conflict{"locked by another session"};
  if (f.state == "23505") {
    if (f.constraint == "connector_public_key")
      return save_refused{errc::already_exists, "public_key", "another connector has this public key"};
    return save_conflict{"exists: " + f.constraint};
  }
  if (f.state == wrote_otherwise) return save_refused{errc::internal, "", "other rows were written than were locked"};
  if (f.state == "23503") return save_refused{errc::not_found, "tunnel_uid", "there is no such tunnel"};
  if (f.kind == sql_failure::what::data) return save_refused{errc::invalid, field_of(f.constraint), first_line(f.message)};
  return save_refused{errc::internal, "", first_line(f.message)};
}

}  // namespace

// ---- worker ----

worker::worker(shared& common, int number, std::string application, session_options options)
    : common_{common}, number_{number}, options_{std::move(options)} {
  options_.application = std::move(application);
  options_.history = common_.history;
  options_.on_socket = [this](int socket) {
    std::lock_guard lock{socket_mutex_};
    socket_ = socket;
    cut_at_ms_ = now_ms() + millis{server_silent}.count();  // connecting has its own limit
  };
}

worker::~worker() { stop(); }

void worker::start() { thread_ = std::thread{[this] { loop(); }}; }

void worker::stop() {
  {
    std::lock_guard lock{mutex_};
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  expire(clock::time_point::max(), "the store is stopping");
}

bool worker::push(job j) {
  {
    std::lock_guard lock{mutex_};
    if (stopping_ || jobs_.size() >= limits::lane_queue_max) return false;
    jobs_.push_back(std::move(j));
  }
  wake_.notify_one();
  return true;
}

void worker::watch() {
  const auto cut_at = cut_at_ms_.load();
  if (cut_at != 0 && now_ms() > cut_at) {
    std::lock_guard lock{socket_mutex_};
    if (socket_ >= 0) ::shutdown(socket_, SHUT_RDWR);
  }
  if (!connected_ && now_ms() - lost_at_ms_ > millis{reconnect_grace}.count())
    expire(clock::now() - common_.give_up, down_reason());
}

/// Longer than the statement timeout, with which a server that is only slow answers.
millis worker::patience() const { return std::max<millis>(server_silent, options_.statement_timeout + 500ms); }

std::string worker::down_reason() const {
  std::lock_guard lock{mutex_};
  return down_reason_;
}

void worker::lost_connection(const std::string& reason) {
  if (connected_) lost_at_ms_ = now_ms();
  const bool was = connected_.exchange(false);
  {
    std::lock_guard lock{mutex_};
    down_reason_ = first_line(reason);
  }
  {
    std::lock_guard lock{socket_mutex_};
    socket_ = -1;
  }
  session_.reset();
  if (was || back_off_ == 0ms) common_.on_connection(number_, false, first_line(reason));
}

session* worker::connect() {
  if (outlived()) lost_connection("the database has another life");
  if (session_) return session_.get();
  try {
    busy in_call{cut_at_ms_, server_silent};
    auto opened = open_session(common_.conninfo, options_);
    common_.incarnation = opened->incarnation;
    common_.partitions = opened->partitions;
    session_ = std::move(opened);
    back_off_ = 0ms;
    connected_ = true;
    if (common_.count && std::exchange(opened_before_, true)) common_.count->add("warren_store_reconnects_total");
    common_.on_connection(number_, true, "");
    return session_.get();
  } catch (const std::exception& e) {
    lost_connection(e.what());
    back_off_ = std::min<millis>(back_off_max, back_off_ == 0ms ? 20ms : back_off_ * 2);
    return nullptr;
  }
}

void worker::loop() {
  while (!stopping_) {
    auto* s = connect();
    if (!s) {
      expire(clock::now() - common_.give_up, down_reason());
      std::unique_lock lock{mutex_};
      wake_.wait_for(lock, back_off_, [this] { return stopping_.load(); });
      continue;
    }
    bool idle = false;
    {
      std::unique_lock lock{mutex_};
      idle = !wake_.wait_for(lock, idle_ping, [this] { return stopping_ || has_work(); });
    }
    if (stopping_) return;
    try {
      if (idle) {
        busy in_call{cut_at_ms_, server_silent};
        pqxx::nontransaction{s->conn}.exec("SELECT 1");
      } else {
        while (session_ && !stopping_ && !outlived() && work()) {
        }
      }
    } catch (const std::exception& e) {
      lost_connection(e.what());
    }
  }
}

bool worker::work() {
  job j;
  {
    std::lock_guard lock{mutex_};
    if (jobs_.empty()) return false;
    j = std::move(jobs_.front());
    jobs_.pop_front();
  }
  try {
    busy in_call{cut_at_ms_, j.patience != 0ms ? j.patience : patience()};
    j.run(*session_);
  } catch (const std::exception& e) {
    const auto f = classify(e, open());
    const bool broken = f.kind == sql_failure::what::broken || f.kind == sql_failure::what::in_doubt;
    if (broken) lost_connection(f.message);
    if (!broken || clock::now() - j.since > common_.give_up) {
      const auto times = broken ? std::nullopt : common_.failures.failed(j.what, now_ms());
      if (times)
        log_line(spdlog::level::warn, "store: a statement has failed",
                 {{"doing", j.what}, {"partition", j.partition}, {"statement", f.statement}, {"table", f.table},
                  {"error", first_line(f.message)}},
                 *times - 1);
      j.fail(first_line(f.message));
    } else {
      std::lock_guard lock{mutex_};
      jobs_.push_front(std::move(j));
    }
  }
  return true;
}

void worker::expire(clock::time_point before, const std::string& reason) {
  std::vector<job> late;
  {
    std::lock_guard lock{mutex_};
    for (auto it = jobs_.begin(); it != jobs_.end();) {
      if (it->since < before) {
        late.push_back(std::move(*it));
        it = jobs_.erase(it);
      } else {
        ++it;
      }
    }
  }
  for (auto& j : late) j.fail(reason);
}

// ---- lane ----

bool lane::push_save(pending p) {
  {
    std::lock_guard lock{mutex_};
    if (stopping_ || saves_.size() >= limits::lane_queue_max) return false;
    saves_.push_back(std::move(p));
  }
  wake_.notify_one();
  return true;
}

void lane::expire(clock::time_point before, const std::string& reason) {
  worker::expire(before, reason);
  std::vector<pending> late;
  {
    std::lock_guard lock{mutex_};
    for (auto it = saves_.begin(); it != saves_.end();) {
      if (it->since < before) {
        late.push_back(std::move(*it));
        it = saves_.erase(it);
      } else {
        ++it;
      }
    }
  }
  for (auto& p : late) answer(p, save_unavailable{reason});
}

bool lane::work() {
  // One job between two groups: neither starves the other.
  const bool had_job = worker::work();
  if (!current()) return false;
  auto group = next_group();
  if (group.empty()) return had_job;
  commit(std::move(group));
  return current() != nullptr;
}

/// Takes whole transitions that touch nothing in common. One that is left behind keeps its place, and so does
/// whatever touches the same.
std::vector<pending> lane::next_group() {
  std::vector<pending> group;
  std::unordered_set<std::string> touched;
  std::lock_guard lock{mutex_};
  std::size_t looked_at = 0;
  for (auto it = saves_.begin(); it != saves_.end() && group.size() < limits::group_transitions_max &&
                                 looked_at < 2 * limits::group_transitions_max;
       ++looked_at) {
    const bool free = std::none_of(it->keys.begin(), it->keys.end(), [&](const auto& k) { return touched.count(k) > 0; });
    touched.insert(it->keys.begin(), it->keys.end());
    if (free) {
      group.push_back(std::move(*it));
      it = saves_.erase(it);
    } else {
      ++it;
    }
  }
  return group;
}

void lane::answer(pending& p, save_result r) {
  if (common_.count) {
    // In the order of save_result.
    static constexpr std::array<std::string_view, std::variant_size_v<save_result>> outcomes{
        "saved", "conflict", "lost_ownership", "refused", "replayed", "unavailable"};
    common_.count->add("warren_store_transitions_total", outcomes[r.index()]);
    if (std::holds_alternative<save_conflict>(r)) common_.count->add("warren_conflicts_total", p.request.write);
  }
  p.answer(std::move(r));
}

void lane::publish(std::vector<busv1::Revision>& revisions) {
  for (const auto& r : revisions) {
    common_.history->revision_seen(r.incarnation(), r.partition(), r.revision());
    if (common_.on_commit) common_.on_commit(r);
  }
}

void lane::refuse_repetition(const session& s, const std::vector<fenced>& raised) const {
  for (const auto& f : raised)
    if (common_.history->repeats(s.incarnation, f.partition, f.revision))
      throw pqxx::broken_connection{"the database has gone back in time"};
}

void lane::commit(std::vector<pending> group) {
  std::vector<const save_request*> requests;
  for (const auto& p : group) requests.push_back(&p.request);
  std::vector<fenced> raised;
  group_result result;
  bool judged = false;

  const auto deliver = [&] {
    if (common_.count && !raised.empty()) {
      common_.count->add("warren_store_transactions_total");
      common_.count->observe("warren_store_group_size", static_cast<double>(group.size()));
      for (const auto& [table_name, n] : result.rows_written)
        common_.count->add("warren_store_rows_written_total", table_name, n);
    }
    publish(result.revisions);
    for (std::size_t n = 0; n < group.size(); ++n) answer(group[n], std::move(result.answers[n]));
  };

  const auto started = clock::now();
  try {
    {
      busy in_call{cut_at_ms_, patience()};
      run_group(*current(), common_.me, requests, [&](std::vector<fenced> at, group_result r) {
        refuse_repetition(*current(), at);
        raised = std::move(at);
        result = std::move(r);
        judged = true;
      });
    }
    if (common_.count && !raised.empty())
      common_.count->observe("warren_store_commit_seconds", std::chrono::duration<double>(clock::now() - started).count());
    WARREN_FAILPOINT("after_commit");
    return deliver();
  } catch (const std::exception& e) {
    const auto f = classify(e, open());
    using what = sql_failure::what;
    if (f.kind == what::broken || f.kind == what::in_doubt) {
      lost_connection(f.message);
      if (f.kind == what::in_doubt && judged && !raised.empty()) {
        const auto fates = settle(raised);
        const auto fate_of = [&](partition_id id) {
          auto it = fates.find(id);
          return it == fates.end() ? fate::lost : it->second;
        };
        if (std::all_of(raised.begin(), raised.end(), [&](const fenced& r) { return fate_of(r.partition) == fate::committed; }))
          return deliver();
        std::vector<pending> again;
        for (auto& p : group) {
          if (fate_of(p.request.partition) == fate::rolled_back)
            again.push_back(std::move(p));
          else
            answer(p, save_lost{});
        }
        group = std::move(again);
      }
      // Nothing of it stays in the database: it goes first when there is a connection; expire() answers it
      // when that takes too long.
      std::lock_guard lock{mutex_};
      for (auto p = group.rbegin(); p != group.rend(); ++p) saves_.push_front(std::move(*p));
      return;
    }
    if (group.size() == 1) {
      auto r = answer_to_failure(f);
      if (const auto* refused = std::get_if<save_refused>(&r); refused && refused->code == errc::internal)
        spdlog::error("store: {} of partition {}: {}", group[0].request.write, group[0].request.partition, first_line(f.message));
      return answer(group[0], std::move(r));
    }
  }
  // One of them spoils it for the others: each by itself.
  for (std::size_t n = 0; n < group.size(); ++n) {
    if (!connect()) {
      std::lock_guard lock{mutex_};
      for (auto i = group.size(); i > n; --i) saves_.push_front(std::move(group[i - 1]));
      return;
    }
    std::vector<pending> alone;
    alone.push_back(std::move(group[n]));
    commit(std::move(alone));
  }
}

std::map<partition_id, fate> lane::settle(const std::vector<fenced>& raised) {
  const auto until = clock::now() + common_.lease + settle_beyond;
  while (clock::now() < until && !stopping_) {
    if (auto* s = connect()) {
      try {
        busy in_call{cut_at_ms_, server_silent};
        return look_up(*s, common_.me, raised);
      } catch (const std::exception& e) {
        // Contended: the transaction in question may still be under way, and holds these rows.
        const auto f = classify(e, open());
        if (f.kind != sql_failure::what::contended) lost_connection(f.message);
      }
    }
    std::unique_lock lock{mutex_};
    wake_.wait_for(lock, 50ms, [this] { return stopping_.load(); });
  }
  return {};
}

lane::adopted lane::adopt(session& s, partition_id partition, epoch_t epoch, const std::vector<v1::Row>* named) {
  adopted out;
  bool in_doubt_possible = false;
  try {
    auto done = run_adoption(s, common_.me, partition, epoch, named, [&](const adoption& a) {
      refuse_repetition(s, {a.at});
      out.what = a;
      in_doubt_possible = true;
    });
    if (!done) {
      out.lost = true;
      return out;
    }
    out.what = std::move(*done);
  } catch (const pqxx::in_doubt_error& e) {
    if (!in_doubt_possible) throw;
    lost_connection(e.what());
    const auto fates = settle({out.what.at});
    const auto found = fates.find(partition);
    if (found == fates.end() || found->second == fate::lost) {
      out.lost = true;
      return out;
    }
    if (found->second == fate::rolled_back) {
      auto* again = connect();
      if (!again) throw pqxx::broken_connection{"the connection was lost while adopting"};
      return adopt(*again, partition, epoch, named);
    }
  }
  if (out.what.revision.rows_size() > 0) {
    common_.history->revision_seen(out.what.revision.incarnation(), partition, out.what.revision.revision());
    if (common_.on_commit) common_.on_commit(out.what.revision);
  }
  return out;
}

}  // namespace warren::sql
