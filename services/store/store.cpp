// services/store/store.cpp -- the store's threads: lanes, readers, the listener, housekeeping.
#include "services/store/store.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include <spdlog/spdlog.h>

#include "actors/core/protocol.hpp"
#include "services/store/lane.hpp"
#include "services/store/rows.hpp"
#include "services/store/session.hpp"
#include "services/store/statements.hpp"

namespace warren {
namespace {

using namespace sql;

constexpr auto lane_statement_timeout = 2s;      // below the instance lease: whoever waits longer has lost it
constexpr auto quick_read = 5s;                  // of a server that does not answer: one entity, one page
constexpr auto watch_every = 200ms;
constexpr auto adopt_again_after = 200ms;        // rows that a rival's transaction still holds
constexpr auto listener_idle = 1s;
constexpr std::int64_t audit_newest = INT64_MAX;

using snapshot = pqxx::transaction<pqxx::repeatable_read, pqxx::read_only>;

/// Appends a parsed row; one that cannot be read is left out and said.
void append(std::vector<v1::Row>& out, const std::string& kind, const std::string& json) {
  if (auto parsed = parse_row(kind, json))
    out.push_back(std::move(*parsed));
  else
    spdlog::error("store: a row of {} cannot be read: {}", kind, json.substr(0, 500));
}
/// Rows of (kind, row, …); no kind: there is no row.
void append(std::vector<v1::Row>& out, const pqxx::result& rows) {
  for (const auto& row : rows)
    if (!row[0].is_null()) append(out, row[0].as<std::string>(), row[1].as<std::string>());
}

bool marked(const v1::Row& row) { return number_field(row, "version") == rival_version; }

template <class T> auto owned(T value) { return std::make_shared<T>(std::move(value)); }

}  // namespace

class store::impl {
public:
  explicit impl(store_config config) : config_{std::move(config)} {
    common_.conninfo = config_.conninfo;
    common_.me = config_.instance;
    common_.lease = config_.lease;
    common_.give_up = config_.give_up;
    common_.count = config_.count;
    common_.history = config_.history ? config_.history : std::make_shared<lineage>();
    common_.on_commit = config_.on_commit;
    common_.on_connection = [this](int number, bool is_up, const std::string& reason) { connection(number, is_up, reason); };
    const auto base = "warrend/" + std::to_string(config_.instance) + "/";
    int number = 0;
    for (int n = 0; n < std::max(1, config_.lanes); ++n)
      lanes_.push_back(std::make_unique<lane>(common_, number++, base + "lane" + std::to_string(n),
                                              session_options{.writer = true, .statement_timeout = lane_statement_timeout}));
    for (int n = 0; n < std::max(1, config_.readers); ++n)
      readers_.push_back(std::make_unique<worker>(common_, number++, base + "reader" + std::to_string(n),
                                                  session_options{.statement_timeout = config_.whole_read}));
    listener_number_ = number++;
    threads_ = number;
  }
  ~impl() { stop(); }

  void start() {
    for (auto& l : lanes_) l->start();
    for (auto& r : readers_) r->start();
    listener_ = std::thread{[this] { listen(); }};
    housekeeper_ = std::thread{[this] { keep_house(); }};
  }

  void stop() {
    if (stopping_.exchange(true)) return;
    {
      std::lock_guard lock{house_mutex_};
    }
    house_wake_.notify_all();
    if (housekeeper_.joinable()) housekeeper_.join();
    if (listener_.joinable()) listener_.join();
    for (auto& l : lanes_) l->stop();
    for (auto& r : readers_) r->stop();
  }

  lane& lane_of(partition_id p) { return *lanes_[static_cast<std::size_t>(std::max(0, p)) % lanes_.size()]; }

  void save(save_request request, std::function<void(save_result)> then) {
    pending p;
    p.keys = touched_keys(request);
    p.request = std::move(request);
    auto& l = lane_of(p.request.partition);
    auto refused = then;
    p.answer = std::move(then);
    if (!l.push_save(std::move(p)))
      refused(stopping_ ? save_result{save_unavailable{"the store is stopping"}}
                        : save_result{save_refused{errc::overloaded, "", "too many writes are waiting"}});
  }

  /// On the reader that has the fewest calls behind it, roughly: in turn.
  template <class Answer, class F>
  void read(const char* what, partition_id partition, std::shared_ptr<std::function<void(Answer)>> then, F f,
            millis patience = quick_read) {
    job j;
    j.what = what;
    j.partition = partition;
    j.patience = patience;
    j.run = [then, f](session& s) { (*then)(f(s)); };
    j.fail = [then](const std::string& error) {
      Answer a;
      a.error = error;
      (*then)(std::move(a));
    };
    auto fail = j.fail;
    if (!readers_[next_reader_++ % readers_.size()]->push(std::move(j))) fail("too many reads are waiting");
  }

  /// Adopts on the partition's lane, then goes on with `next`; `then` is told when that is not possible.
  void adopt_first(partition_id partition, epoch_t epoch, std::shared_ptr<std::vector<v1::Row>> named,
                   std::shared_ptr<std::function<void(loaded)>> then, std::function<void(lane::adopted)> next) {
    auto& l = lane_of(partition);
    job j;
    j.what = "adopt";
    j.partition = partition;
    j.run = [this, &l, partition, epoch, named, then, next](session& s) {
      const auto lost = [&] {
        loaded answer;
        answer.lost = true;
        (*then)(std::move(answer));
      };
      if (!named) {
        // Most often there is nothing; what is marked after this look is announced by whoever marks it.
        const auto marks = pqxx::nontransaction{s.conn}.exec_prepared("marked_any", partition, common_.me, epoch);
        if (marks.empty()) return lost();
        if (!marks[0][0].as<bool>()) return next({});
      }
      auto done = l.adopt(s, partition, epoch, named.get());
      if (done.lost) return lost();
      if (done.what.skipped > 0 && !named) again_later(partition);
      next(std::move(done));
    };
    j.fail = [then](const std::string& error) {
      loaded answer;
      answer.error = error;
      (*then)(std::move(answer));
    };
    auto fail = j.fail;
    if (!l.push(std::move(j))) fail("too many writes are waiting");
  }

  void load_one(std::shared_ptr<load_entity> what, std::shared_ptr<std::function<void(loaded)>> then, bool adopted) {
    // While a lane finds out whether a transaction was committed, what is read may be about to change.
    if (!lane_of(what->partition).connected()) {
      loaded answer;
      answer.error = "the database is away";
      return (*then)(std::move(answer));
    }
    job j;
    j.what = "load_entity";
    j.partition = what->partition;
    j.patience = quick_read;
    j.run = [this, what, then, adopted](session& s) {
      loaded answer;
      {
        // One statement is one snapshot, and one round trip: a creation waits for it.
        pqxx::nontransaction tx{s.conn};
        const auto found = tx.exec_prepared(load_entity_of(*find_table(what->kind)), what->project, what->name,
                                            what->partition, common_.me, what->epoch);
        answer.lost = found.empty();
        append(answer.rows, found);
      }
      auto to_adopt = std::make_shared<std::vector<v1::Row>>();
      std::copy_if(answer.rows.begin(), answer.rows.end(), std::back_inserter(*to_adopt), marked);
      if (to_adopt->empty()) return (*then)(std::move(answer));
      if (adopted) {
        answer = {};
        answer.error = "another session holds the row";
        return (*then)(std::move(answer));
      }
      adopt_first(what->partition, what->epoch, to_adopt, then,
                  [this, what, then](const lane::adopted&) { load_one(what, then, true); });
    };
    j.fail = [then](const std::string& error) {
      loaded answer;
      answer.error = error;
      (*then)(std::move(answer));
    };
    auto fail = j.fail;
    if (!readers_[next_reader_++ % readers_.size()]->push(std::move(j))) fail("too many reads are waiting");
  }

  void load_all(load_partition what, std::shared_ptr<std::function<void(loaded)>> then) {
    adopt_first(what.partition, what.epoch, nullptr, then, [this, what, then](const lane::adopted&) {
      read("load_partition", what.partition, then, [this, what](session& s) {
        loaded answer;
        pqxx::nontransaction tx{s.conn};
        const auto found = tx.exec_prepared("owing_of", what.partition, common_.me, what.epoch);
        if (found.empty()) {
          answer.lost = true;
          return answer;
        }
        append(answer.rows, found);
        // The former owner may have died between its last commit and saying so: replicas that lack it fetch it.
        busv1::Revision now;
        now.set_version(1);
        now.set_incarnation(s.incarnation);
        now.set_partition(what.partition);
        now.set_epoch(what.epoch);
        now.set_revision(found[0][2].as<std::int64_t>());
        now.set_truncated(true);
        if (common_.on_commit) common_.on_commit(now);
        return answer;
      }, config_.whole_read + 500ms);
    });
  }

  void fetch(const fetch_changes& what, std::shared_ptr<std::function<void(changes)>> then) {
    read("fetch_changes", what.partition, std::move(then), [this, what](session& s) { return read_changes(s, what); }, config_.whole_read + 500ms);
  }

  changes read_changes(session& s, const fetch_changes& what) {
    changes out;
    pqxx::nontransaction tx{s.conn};
    const auto found = tx.exec_prepared("changes_of", what.partition, what.after);
    if (found.empty()) {
      out.error = "there is no such partition";
      return out;
    }
    out.epoch = found[0][2].as<std::int64_t>();
    out.revision = found[0][3].as<std::int64_t>();
    out.incarnation = s.incarnation;
    common_.history->revision_seen(s.incarnation, what.partition, out.revision);
    // Ahead of the database: it is not the one that was read before.
    out.complete = found[0][5].as<bool>();
    // A complete read brings what is remembered of deletions: watches resume on an instance that has just started.
    if (out.complete) out.tombstones_from = found[0][4].as<std::int64_t>();
    append(out.rows, found);
    return out;
  }

  void purge(std::function<void(std::string)> then) {
    auto done = owned(std::move(then));
    job j;
    j.what = "purge";
    j.run = [this, done](session& s) {
      std::vector<partition_id> mine;
      {
        pqxx::work tx{s.conn};
        for (const auto& row : tx.exec_prepared("owned_partitions", common_.me)) mine.push_back(row[0].as<int>());
        tx.commit();
      }
      const auto in_bites = [&](const char* statement, millis kept) {
        for (bool more = true; more && !stopping_;) {
          pqxx::work tx{s.conn};
          more = tx.exec_prepared(statement, kept.count()).affected_rows() >= 5000;
          tx.commit();
        }
      };
      in_bites("purge_requests", limits::request_id_kept);
      in_bites("purge_audit", limits::audit_kept);
      {
        pqxx::work tx{s.conn};
        tx.exec_prepared("purge_instances");
        tx.commit();
      }
      // Tombstones on each partition's own lane: the fence's rows have one order.
      auto left = std::make_shared<std::atomic<int>>(static_cast<int>(mine.size()) + 1);
      auto finish = [left, done](const std::string& error) {
        if (--*left == 0 && *done) (*done)(error);
      };
      for (auto id : mine) {
        job one;
        one.what = "purge_tombstones";
        one.partition = id;
        one.run = [id, finish](session& lane_session) {
          {
            pqxx::work tx{lane_session.conn};
            tx.exec_prepared("purge_tombstones", id, millis{limits::tombstone_kept}.count());
            tx.commit();
          }
          finish("");
        };
        one.fail = finish;
        if (!lane_of(id).push(std::move(one))) finish("too many writes are waiting");
      }
      finish("");
    };
    j.fail = [done](const std::string& error) {
      if (*done) (*done)(error);
    };
    auto fail = j.fail;
    if (!readers_[0]->push(std::move(j))) fail("too many reads are waiting");
  }

  void connection(int number, bool is_up, const std::string& reason) {
    // The lock is held while telling: two changes must not overtake each other.
    std::lock_guard lock{state_mutex_};
    if (is_up)
      connected_.insert(number);
    else
      connected_.erase(number);
    const bool all = static_cast<int>(connected_.size()) == threads_;
    if (all == up_ && (all || told_)) return;
    if (!all && is_up) return;  // on its way up
    up_ = all;
    told_ = true;
    if (all)
      spdlog::info("store: the database is there");
    else
      spdlog::warn("store: the database is away: {}", reason);
    if (config_.count) config_.count->set("warren_store_up", all ? 1 : 0);
    if (config_.on_state) config_.on_state(all, reason);
  }

  void again_later(partition_id p) {
    {
      std::lock_guard lock{house_mutex_};
      again_.emplace(p, sql::clock::now() + adopt_again_after);
    }
  }

  void keep_house() {
    auto next_purge = sql::clock::now() + config_.purge_every;
    while (!stopping_) {
      std::vector<partition_id> again;
      {
        std::unique_lock lock{house_mutex_};
        house_wake_.wait_for(lock, watch_every, [this] { return stopping_.load(); });
        for (auto it = again_.begin(); it != again_.end();)
          if (it->second <= sql::clock::now()) {
            again.push_back(it->first);
            it = again_.erase(it);
          } else {
            ++it;
          }
      }
      if (stopping_) return;
      for (auto p : again)
        if (config_.on_rival) config_.on_rival(p);
      for (std::size_t n = 0; n < lanes_.size(); ++n) {
        lanes_[n]->watch();
        if (config_.count)
          config_.count->set("warren_store_queue", static_cast<double>(lanes_[n]->queued()), std::to_string(n));
      }
      for (auto& r : readers_) r->watch();
      if (sql::clock::now() >= next_purge) {
        next_purge = sql::clock::now() + config_.purge_every;
        purge({});
      }
    }
  }

  struct rival_receiver : pqxx::notification_receiver {
    rival_receiver(pqxx::connection_base& c, std::function<void(partition_id)> f)
        : notification_receiver{c, "warren_rival"}, told{std::move(f)} {}
    void operator()(const std::string& payload, int) override {
      try {
        told(std::stoi(payload));
      } catch (const std::exception&) {
        told(-1);  // somebody else's NOTIFY: look everywhere
      }
    }
    std::function<void(partition_id)> told;
  };

  void listen() {
    const auto application = "warrend/" + std::to_string(config_.instance) + "/listener";
    auto back_off = 20ms;
    while (!stopping_) {
      try {
        auto s = open_session(config_.conninfo, session_options{.application = application, .history = common_.history});
        rival_receiver receiver{s->conn, [this](partition_id p) {
                                  if (config_.on_rival) config_.on_rival(p);
                                }};
        connection(listener_number_, true, "");
        back_off = 20ms;
        // What was said before LISTEN was heard by nobody.
        if (config_.on_rival) config_.on_rival(-1);
        auto checked = sql::clock::now();
        while (!stopping_) {
          if (s->incarnation < common_.history->incarnation()) throw std::runtime_error{"the database has another life"};
          s->conn.await_notification(0, 200'000);
          if (sql::clock::now() - checked < listener_idle) continue;
          checked = sql::clock::now();
          pqxx::nontransaction{s->conn}.exec("SELECT 1");
        }
      } catch (const std::exception& e) {
        connection(listener_number_, false, e.what());
        std::unique_lock lock{house_mutex_};
        house_wake_.wait_for(lock, back_off, [this] { return stopping_.load(); });
        back_off = std::min<millis>(500ms, back_off * 2);
      }
    }
  }

  store_config config_;
  shared common_;
  std::vector<std::unique_ptr<lane>> lanes_;
  std::vector<std::unique_ptr<worker>> readers_;
  std::atomic<std::size_t> next_reader_{0};
  std::atomic<bool> stopping_{false};
  std::thread listener_, housekeeper_;
  int listener_number_ = 0, threads_ = 0;

  std::mutex house_mutex_;
  std::condition_variable house_wake_;
  std::map<partition_id, sql::clock::time_point> again_;

  std::mutex state_mutex_;
  std::set<int> connected_;
  std::atomic<bool> up_{false};
  bool told_ = false;
};

store::store(store_config config) : impl_{std::make_unique<impl>(std::move(config))} {}
store::~store() = default;
void store::start() { impl_->start(); }
void store::stop() { impl_->stop(); }

void store::save(save_request request, std::function<void(save_result)> then) {
  impl_->save(std::move(request), std::move(then));
}

void store::load(load_entity what, std::function<void(loaded)> then) {
  impl_->load_one(owned(std::move(what)), owned(std::move(then)), false);
}

void store::load(load_partition what, std::function<void(loaded)> then) {
  impl_->load_all(what, owned(std::move(then)));
}

void store::load(load_naming what, std::function<void(loaded)> then) {
  impl_->read("load_naming", -1, owned(std::move(then)), [what = std::move(what)](session& s) {
    loaded answer;
    append(answer.rows, pqxx::nontransaction{s.conn}.exec_prepared("tunnels_naming", what.project, what.connector));
    return answer;
  });
}

void store::adopt(adopt_rivals what, std::function<void(loaded)> then) {
  auto shared_then = owned(std::move(then));
  impl_->adopt_first(what.partition, what.epoch, nullptr, shared_then, [shared_then](const lane::adopted& done) {
    loaded answer;
    answer.rows.assign(done.what.revision.rows().begin(), done.what.revision.rows().end());
    answer.rows.insert(answer.rows.end(), done.what.bereft.begin(), done.what.bereft.end());
    (*shared_then)(std::move(answer));
  });
}

void store::fetch(fetch_changes what, std::function<void(changes)> then) {
  impl_->fetch(what, owned(std::move(then)));
}

void store::find(find_answer what, std::function<void(save_result)> then) {
  struct found {
    std::string error;
    save_result answer = saved{};
  };
  std::function<void(found)> unpack = [then = std::move(then)](found f) {
    then(f.error.empty() ? std::move(f.answer) : save_result{save_unavailable{f.error}});
  };
  impl_->read("find_answer", -1, owned(std::move(unpack)), [what = std::move(what)](session& s) {
    found f;
    snapshot tx{s.conn};
    const auto& r = what.request;
    for (const auto& row : tx.exec_prepared("find_answer", r.project, r.method, r.request_id)) {
      save_replayed replayed;
      if (row[0].as<std::string>() != r.digest)
        f.answer = save_refused{errc::invalid, "request_id", "this request id was used for a request with another content"};
      else if (!replayed.reply.ParseFromString(protocol::unhex(row[1].as<std::string>()).value_or("\xff")))
        f.answer = save_refused{errc::internal, "request_id", "the stored answer cannot be read"};
      else
        f.answer = std::move(replayed);
    }
    return f;
  });
}

void store::list_audit(std::string project, std::int64_t before_id, int limit,
                       std::function<void(std::string, std::vector<audit_event>)> then) {
  struct page {
    std::string error;
    std::vector<audit_event> events;
  };
  std::function<void(page)> unpack = [then = std::move(then)](page p) { then(std::move(p.error), std::move(p.events)); };
  limit = std::clamp(limit, 1, limits::page_size_max);
  impl_->read("list_audit", -1, owned(std::move(unpack)), [project = std::move(project), before_id, limit](session& s) {
    page p;
    snapshot tx{s.conn};
    for (const auto& row : tx.exec_prepared("list_audit", project, before_id > 0 ? before_id : audit_newest, limit,
                                           static_cast<std::int64_t>(limits::page_bytes_max)))
      p.events.push_back({.id = row[0].as<std::int64_t>(),
                          .at_ms = row[1].as<std::int64_t>(),
                          .project = row[2].as<std::string>(),
                          .method = row[3].as<std::string>(),
                          .resource = row[4].as<std::string>(),
                          .principal = row[5].as<std::string>(),
                          .remote = row[6].as<std::string>(),
                          .request_id = row[7].as<std::string>(),
                          .before_json = row[8].as<std::string>(),
                          .after_json = row[9].as<std::string>()});
    return p;
  });
}

void store::next_gateway_stream(std::function<void(std::optional<std::int64_t>)> then) {
  struct number {
    std::string error;
    std::int64_t value = 0;
  };
  std::function<void(number)> unpack = [then = std::move(then)](const number& n) {
    then(n.error.empty() ? std::optional{n.value} : std::nullopt);
  };
  impl_->read("next_gateway_stream", -1, owned(std::move(unpack)), [](session& s) {
    pqxx::work tx{s.conn};
    number n;
    n.value = tx.exec_prepared1("next_gateway_stream")[0].as<std::int64_t>();
    tx.commit();
    return n;
  });
}

void store::purge(std::function<void(std::string)> then) { impl_->purge(std::move(then)); }
bool store::up() const { return impl_->up_; }
std::int64_t store::incarnation() const { return impl_->common_.incarnation; }
int store::partitions() const { return impl_->common_.partitions; }

}  // namespace warren
