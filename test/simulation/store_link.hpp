// test/simulation/store_link.hpp -- one instance's way to the simulated database: what services/store does there, with
// every answer late, and some never. Decides as lanes do: group, look up what is undecided, give up in time.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>

#include "test/simulation/database.hpp"
#include "test/simulation/timeline.hpp"

namespace warren::simulation {

/// How bad the database and the way to it are; the same for all instances.
struct store_weather {
  bool away = false;           ///< nobody reaches it
  int undecided_percent = 0;   ///< of the commits: carried out or not, and nobody hears which
  int contended_percent = 0;   ///< of the commits: refused, because somebody else holds a row
  std::int64_t delay_ms_max = 2;
  int late_percent = 0;        ///< of the messages to and from it, each of which may take up to …
  std::int64_t late_ms_max = 0;

  /// How long one message takes.
  std::int64_t way(dice& d) const {
    if (late_percent > 0 && d.chance(late_percent)) return d.between(1, late_ms_max);
    return d.between(0, delay_ms_max);
  }
};

class store_link : public std::enable_shared_from_this<store_link> {
public:
  struct wiring {
    timeline& time;
    database& db;
    const store_weather& weather;
    instance_id me = 0;
    /// Hands something to the process: at once, or when it runs again.
    std::function<void(std::function<void()>)> deliver;
    std::function<void(const busv1::Revision&)> on_commit;
    /// A transition is given to the store, and what its writer is told; for whoever checks.
    std::function<void(std::uint64_t ticket, const save_result&)> on_answer;
    std::function<std::uint64_t()> next_ticket;
    /// A transaction has begun, at the database; the instance does not know yet.
    std::function<void()> on_open;
  };
  explicit store_link(wiring w) : to_{std::move(w)} {}

  void save(save_request q, std::function<void(save_result)> then);
  void load(const load_entity& q, std::function<void(loaded)> then);
  void load(const load_partition& q, std::function<void(loaded)> then);
  void load(const load_naming& q, std::function<void(loaded)> then);
  void find(const find_answer& q, std::function<void(save_result)> then);
  void fetch(const fetch_changes& q, std::function<void(changes)> then);
  void adopt(const adopt_rivals& q, std::function<void(loaded)> then);
  void next_stream(std::function<void(std::optional<std::int64_t>)> then);

  /// The process has died: whoever waits hears that its partition is lost, so that its actors can end.
  void abandon();

  bool cut = false;  ///< this instance alone does not reach the database
  bool reachable() const { return !cut && !to_.weather.away; }
  /// All connections end now, as at a failover.
  void break_connections() { ++connection_; }

private:
  struct waiting {
    std::uint64_t ticket = 0;
    save_request request;
    std::function<void(save_result)> then;
    std::int64_t since_ms = 0;
  };
  struct lane {
    std::deque<waiting> queue;
    std::vector<waiting> group;   ///< in the transaction that is under way
    std::uint64_t turn = 0;       ///< counts transactions: what belongs to an earlier one is ignored
    std::uint64_t connection = 0;
    epoch_t epoch = 0;
    bool busy = false;
    std::vector<save_result> results;
    busv1::Revision hint;
    revision_t revision = 0;      ///< that it makes
    std::int64_t doubt_since_ms = 0;
  };
  struct reading {
    std::int64_t since_ms = 0;
    std::function<bool()> run;    ///< false: a row is locked, to be asked again
    std::function<void()> answer;
    std::function<void(const std::string&)> fail;
    bool once = false;            ///< it writes: what it has done is not done again
    bool ran = false;
  };

  bool has(bug b) const { return to_.db.planted != nullptr && to_.db.planted->count(b) > 0; }
  std::int64_t way();  ///< how long one message takes
  /// Later, unless this instance is gone by then.
  void later(std::int64_t ms, std::function<void(store_link&)> what);
  void pump(partition_id p);
  void begin(partition_id p);
  void begun(partition_id p, database::begun how);
  void commit(partition_id p);
  void committed(partition_id p);
  void settle(partition_id p);
  void again(partition_id p, std::int64_t ms);
  void finish(partition_id p, std::vector<save_result> results);
  void give_up(partition_id p);
  void answer(waiting& w, save_result r);
  template <class Answer>
  void read(std::function<std::optional<Answer>()> query, std::function<Answer(std::string)> failure,
            std::function<void(Answer)> then, bool once = false);
  /// Rows that rivals marked, and what is announced of them; nothing: the partition's row is locked.
  std::optional<loaded> adopt_now(partition_id p, epoch_t epoch);
  void try_read(std::uint64_t id);

  wiring to_;
  std::map<partition_id, lane> lanes_;
  std::map<std::uint64_t, reading> reads_;
  std::uint64_t next_read_ = 1, connection_ = 1;
};

}  // namespace warren::simulation
