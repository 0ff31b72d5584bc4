// services/store/group.cpp -- one group commit. See group.hpp.
#include "services/store/group.hpp"

#include <algorithm>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include <sys/socket.h>

#include "actors/core/limits.hpp"
#include "actors/core/time.hpp"
#include "services/store/failpoint.hpp"
#include "services/store/rows.hpp"
#include "services/store/statements.hpp"

namespace warren::sql {
namespace {

using op = row_write::op;

/// A JSON array, built element by element.
class list {
public:
  std::string& next() {
    if (text_.size() > 1) text_ += ',';
    ++count_;
    return text_;
  }
  bool empty() const { return count_ == 0; }
  std::size_t size() const { return count_; }
  std::string close() const { return text_ + "]"; }

private:
  std::string text_ = "[";
  std::size_t count_ = 0;
};

template <class Names> list list_of(const Names& names) {
  list out;
  for (const auto& n : names) append_json(out.next(), std::string_view{n});
  return out;
}

void member(std::string& out, const char* name, std::string_view text) {
  out += out.back() == '{' ? "\"" : ",\"";
  out += name;
  out += "\":";
  append_json(out, text);
}
void member(std::string& out, const char* name, std::int64_t number) {
  out += out.back() == '{' ? "\"" : ",\"";
  out += name;
  out += "\":";
  out += std::to_string(number);
}

std::string hex(const std::string& bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (char c : bytes) {
    out += digits[static_cast<unsigned char>(c) >> 4];
    out += digits[static_cast<unsigned char>(c) & 15];
  }
  return out;
}
std::string unhex(std::string_view text) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  std::string out;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2)
    out += static_cast<char>(digit(text[i]) * 16 + digit(text[i + 1]));
  return out;
}

std::string request_key(const answered_request& r) { return r.project + '\n' + r.method + '\n' + r.request_id; }

std::string public_key_of(const v1::Row& row) {
  return row.has_connector() ? row.connector().public_key() : std::string{};
}

/// One transition on its way through the transaction.
struct item {
  const save_request* request = nullptr;
  revision_t revision = 0;
  std::optional<save_result> verdict;             ///< set: it is left out
  std::vector<v1::Row> images;                    ///< as written, one for each row
  std::vector<std::string> claim, drop;           ///< host names that really change hands

  void refuse(errc code, std::string field, std::string message) {
    if (!verdict) verdict = save_refused{code, std::move(field), std::move(message)};
  }
  void conflict(std::string what) {
    if (!verdict) verdict = save_conflict{std::move(what)};
  }
};

/// A transaction whose BEGIN and COMMIT travel with its first and its last statement, which pqxx::work does not
/// offer: a round trip costs as much as most of what it carries. What a broken connection means is the same: in doubt
/// while committing, rolled back before.
class open_transaction {
public:
  explicit open_transaction(pqxx::connection& conn) : conn_{conn}, tx_{conn} {}
  ~open_transaction() {
    try {
      rollback();
    } catch (const std::exception&) {
      // The connection has ended, and the transaction with it.
    }
  }
  open_transaction(const open_transaction&) = delete;
  open_transaction& operator=(const open_transaction&) = delete;

  /// "EXECUTE name(…)": a prepared statement that can travel with others. The server knows it afterwards.
  std::string call(const std::string& name, const std::vector<std::string>& arguments) {
    conn_.prepare_now(name);
    std::string out = "EXECUTE \"" + name + "\"(";
    for (std::size_t n = 0; n < arguments.size(); ++n) out += (n > 0 ? ", " : "") + conn_.quote(arguments[n]);
    return out + ")";
  }
  /// The rows of the last of them.
  pqxx::result begin_with(const std::string& statements) {
    begun_ = true;
    return tx_.exec("BEGIN; " + statements);
  }
  pqxx::result exec(const std::string& statements) { return tx_.exec(statements); }
  template <class... Arguments> pqxx::result exec_prepared(const std::string& name, Arguments&&... arguments) {
    return tx_.exec_prepared(name, std::forward<Arguments>(arguments)...);
  }
  void rollback() {
    if (std::exchange(begun_, false) && conn_.is_open()) tx_.exec("ROLLBACK");
  }
  /// The first error among the statements keeps the COMMIT from happening.
  void commit_with(const std::string& statements) {
    try {
      tx_.exec(statements.empty() ? "COMMIT" : statements + "; COMMIT");
      begun_ = false;
    } catch (const std::exception& e) {
      if (conn_.is_open() && !dynamic_cast<const pqxx::statement_completion_unknown*>(&e)) throw;
      begun_ = false;
      throw pqxx::in_doubt_error{std::string{"the connection ended while committing: "} + e.what()};
    }
  }

private:
  pqxx::connection& conn_;
  pqxx::nontransaction tx_;
  bool begun_ = false;
};

/// Lists for the parts of one composed statement.
class parts {
public:
  using composer = const std::pair<std::string, std::string>& (*)(const std::vector<std::string>&);
  void add(std::string part, const list& rows) {
    if (rows.empty()) return;
    names_.push_back(std::move(part));
    lists_.push_back(rows.close());
  }
  /// Empty when there are none.
  std::string call(session& s, open_transaction& tx, composer compose) const {
    if (names_.empty()) return {};
    const auto& [name, text] = compose(names_);
    s.conn.prepare(name, text);  // the same text again is nothing new
    return tx.call(name, lists_);
  }

private:
  std::vector<std::string> names_, lists_;
};

class transaction {
public:
  transaction(session& s, instance_id me, const std::vector<const save_request*>& group)
      : session_{s}, me_{me}, tx_{s.conn} {
    for (const auto* r : group) {
      items_.emplace_back();
      items_.back().request = r;
    }
  }

  void run(const std::function<void(std::vector<fenced>, group_result)>& before_commit) {
    check_shape();
    WARREN_FAILPOINT("before_fence");
    fence_and_look();
    WARREN_FAILPOINT("after_fence");
    judge_requests();
    judge_rows();
    judge_public_keys();
    judge_attachments();
    judge_hostnames();
    if (std::none_of(items_.begin(), items_.end(), [](const item& i) { return !i.verdict; })) {
      tx_.rollback();
      raised_.clear();
      before_commit({}, result());
      return;
    }
    prepare_images();
    erase();
    auto writing = write();
    if (erased_) {
      if (!writing.empty()) tx_.exec(writing);
      writing.clear();
      collect_tombstones();
    }
    before_commit(raised_, result());
    WARREN_FAILPOINT("before_commit");
    tx_.commit_with(writing);
    if (WARREN_FAILPOINT_ACTION("after_commit", "undecided")) {
      ::shutdown(session_.conn.sock(), SHUT_RDWR);
      throw pqxx::in_doubt_error{"failpoint: the connection ended while committing"};
    }
  }

private:
  template <class F> void each(F&& f) {
    for (auto& i : items_)
      if (!i.verdict) f(i);
  }

  void check_shape() {
    each([&](item& i) {
      const auto& r = *i.request;
      const auto wrong = [&](const std::string& project) {
        return partition_of(project, session_.partitions) != r.partition;
      };
      for (const auto& w : r.rows) {
        const auto* t = table_of(w.row);
        if (!t || t->name == "hostname_claim") return i.refuse(errc::internal, "row", "not a row that is written so");
        if (wrong(text_field(w.row, "project"))) return i.refuse(errc::internal, "partition", "not the project's partition");
        if (w.what == op::insert && t->uid && text_field(w.row, "uid").empty())
          return i.refuse(errc::internal, "uid", "a new row needs a uid");
        // A row at the rival's version has to be adopted before it is written.
        if (w.what != op::insert && w.expected == rival_version) return i.conflict(t->name + " " + key_of(*t, w.row));
      }
      if (r.claims && wrong(r.claims->project)) i.refuse(errc::internal, "partition", "not the project's partition");
    });
  }

  /// Raises the fence, then locks what there is to lock, without waiting, and reads what decides. Whoever is not the
  /// owner has locked rows for nothing, until the transaction ends.
  void fence_and_look() {
    std::set<std::pair<partition_id, epoch_t>> wanted;
    std::set<std::string> ids;
    each([&](item& i) {
      wanted.emplace(i.request->partition, i.request->epoch);
      ids.insert(std::to_string(i.request->partition));
    });
    if (wanted.empty()) return;
    std::string statements;
    if (ids.size() > 1) {
      std::string array = "{";
      for (const auto& id : ids) array += (array.size() > 1 ? "," : "") + id;
      statements = tx_.call("lock_partitions", {array + "}"}) + "; ";
    }
    list pairs;
    for (const auto& [id, epoch] : wanted) {
      auto& out = pairs.next();
      out += '{';
      member(out, "id", std::int64_t{id});
      member(out, "epoch", epoch);
      out += '}';
    }
    statements += tx_.call("fence", {pairs.close(), std::to_string(me_)}) + "; ";

    parts asked;
    std::vector<std::function<void(const pqxx::row&)>> readers;
    const auto ask = [&](std::string part, const list& rows, std::function<void(const pqxx::row&)> read) {
      if (rows.empty()) return;
      asked.add(std::move(part), rows);
      readers.push_back(std::move(read));
    };
    std::map<std::pair<partition_id, epoch_t>, revision_t> ours;
    ask("find_fenced", list_of(ids), [&](const pqxx::row& row) {
      const fenced f{row[1].as<int>(), row[2].as<std::int64_t>(), row[3].as<std::int64_t>()};
      ours[{f.partition, f.epoch}] = f.revision;
      raised_.push_back(f);
    });
    look(ask);
    for (const auto& row : tx_.begin_with(statements + asked.call(session_, tx_, judgement_of)))
      readers[row[0].as<std::size_t>()](row);
    each([&](item& i) {
      auto found = ours.find({i.request->partition, i.request->epoch});
      if (found == ours.end())
        i.verdict = save_lost{};
      else
        i.revision = found->second;
    });
  }

  template <class Ask> void look(const Ask& ask) {
    list requests;
    each([&](item& i) {
      if (!i.request->request || i.request->request->request_id.empty()) return;
      const auto& r = *i.request->request;
      auto& out = requests.next();
      out += '{';
      member(out, "project", r.project);
      member(out, "method", r.method);
      member(out, "request_id", r.request_id);
      out += '}';
    });
    ask("find_requests", requests, [this](const pqxx::row& row) {
      known_requests_[row[1].as<std::string>()] = {row[2].as<std::string>(), row[3].as<std::string>()};
    });
    for (const auto& t : tables()) {
      list update, erase, insert;
      each([&](item& i) {
        for (const auto& w : i.request->rows)
          if (table_of(w.row) == &t)
            (w.what == op::insert ? insert : w.what == op::update ? update : erase).next() += key_json(t, w.row);
      });
      const auto locked = [this, &t](const pqxx::row& row) {
        versions_[t.name + ' ' + row[1].as<std::string>()] = row[2].as<std::int64_t>();
      };
      ask(lock_rows(t), update, locked);
      ask(lock_rows_to_erase(t), erase, locked);
      ask(find_rows(t), insert, [this, &t](const pqxx::row& row) { existing_.insert(t.name + ' ' + row[1].as<std::string>()); });
    }
    std::set<std::string> keys, uids, hostnames;
    each([&](item& i) {
      for (const auto& w : i.request->rows) {
        if (w.what != op::erase && !public_key_of(w.row).empty()) keys.insert(public_key_of(w.row));
        if (w.what == op::insert && w.row.has_attachment()) uids.insert(w.row.attachment().tunnel_uid());
      }
      if (!i.request->claims) return;
      hostnames.insert(i.request->claims->claim.begin(), i.request->claims->claim.end());
      hostnames.insert(i.request->claims->drop.begin(), i.request->claims->drop.end());
    });
    ask("find_public_keys", list_of(keys), [this](const pqxx::row& row) {
      key_holders_[row[1].as<std::string>()] = row[2].as<std::string>();
    });
    ask("find_tunnel_uids", list_of(uids), [this](const pqxx::row& row) { tunnels_.insert(row[1].as<std::string>()); });
    ask("lock_tunnel_uids", list_of(uids), [this](const pqxx::row& row) { tunnels_locked_.insert(row[1].as<std::string>()); });
    ask("lock_hostnames", list_of(hostnames), [this](const pqxx::row& row) {
      if (!row[3].is_null()) claim_numbers_[row[1].as<std::string>()] = row[3].as<std::int64_t>();
    });
    ask("find_claims", list_of(hostnames), [this](const pqxx::row& row) {
      claim_holders_[row[1].as<std::string>()] = row[2].as<std::string>();
    });
  }

  void judge_requests() {
    each([&](item& i) {
      if (!i.request->request) return;
      auto found = known_requests_.find(request_key(*i.request->request));
      if (found == known_requests_.end()) return;
      if (found->second.first != i.request->request->digest)
        return i.refuse(errc::invalid, "request_id", "this request id was used for a request with another content");
      save_replayed answer;
      if (!answer.reply.ParseFromString(unhex(found->second.second)))
        return i.refuse(errc::internal, "request_id", "the stored answer cannot be read");
      i.verdict = std::move(answer);
    });
  }

  void judge_rows() {
    for (const auto& t : tables())
      each([&](item& i) {
        for (const auto& w : i.request->rows) {
          if (table_of(w.row) != &t) continue;
          const auto key = t.name + ' ' + key_of(t, w.row);
          if (w.what == op::insert) {
            if (existing_.count(key)) return i.conflict("exists: " + key);
            continue;
          }
          auto found = versions_.find(key);
          if (found == versions_.end() || found->second != w.expected) return i.conflict(key);
        }
      });
  }

  void judge_public_keys() {
    each([&](item& i) {
      for (const auto& w : i.request->rows) {
        if (w.what == op::erase) continue;
        auto found = key_holders_.find(public_key_of(w.row));
        if (found != key_holders_.end() && found->second != key_of(*table_of(w.row), w.row))
          return i.refuse(errc::already_exists, "public_key", "another connector has this public key");
      }
    });
  }

  void judge_attachments() {
    each([&](item& i) {
      for (const auto& w : i.request->rows) {
        if (w.what != op::insert || !w.row.has_attachment()) continue;
        const auto& uid = w.row.attachment().tunnel_uid();
        if (tunnels_locked_.count(uid)) continue;
        if (tunnels_.count(uid)) return i.conflict("tunnel " + uid);
        return i.refuse(errc::not_found, "tunnel_uid", "there is no such tunnel");
      }
    });
  }

  void judge_hostnames() {
    std::set<std::string> to_drop;
    each([&](item& i) {
      if (!i.request->claims) return;
      const auto& c = *i.request->claims;
      for (const auto* part : {&c.claim, &c.drop})
        for (const auto& name : *part)
          if (!claim_numbers_.count(name)) return i.conflict("host name " + name);
      std::set<std::string> seen;
      for (const auto& name : c.claim) {
        auto found = claim_holders_.find(name);
        if (found != claim_holders_.end() && found->second != c.tunnel_uid)
          return i.refuse(errc::already_exists, "hostnames", "the host name " + name + " belongs to another tunnel");
        if (found == claim_holders_.end() && seen.insert(name).second) i.claim.push_back(name);
      }
      for (const auto& name : c.drop) {
        auto found = claim_holders_.find(name);
        const bool kept = std::find(c.claim.begin(), c.claim.end(), name) != c.claim.end();
        if (!kept && found != claim_holders_.end() && found->second == c.tunnel_uid && seen.insert(name).second) {
          i.drop.push_back(name);
          to_drop.insert(name);
        }
      }
    });
    if (to_drop.empty()) return;
    std::unordered_set<std::string> locked;
    for (const auto& row : tx_.exec_prepared("lock_claims", list_of(to_drop).close())) locked.insert(row[0].as<std::string>());
    each([&](item& i) {
      for (const auto& name : i.drop)
        if (!locked.count(name)) return i.conflict("host name " + name);
    });
  }

  void prepare_images() {
    const auto now = timestamp_from_ms(
        std::chrono::duration_cast<millis>(std::chrono::system_clock::now().time_since_epoch()).count());
    each([&](item& i) {
      for (const auto& w : i.request->rows) {
        const auto& t = *table_of(w.row);
        if (w.what == op::erase) {
          i.images.push_back(w.row);
          continue;
        }
        auto& image = i.images.emplace_back(w.row);
        set_number_field(image, "partition", i.request->partition);
        set_number_field(image, "version", i.revision);
        if (w.routes) set_number_field(image, "route_version", i.revision);
        auto* m = mutable_message_of(t, image);
        if (t.timestamps)
          for (const char* name : {"created_at", "updated_at"}) {
            const auto* f = t.descriptor->FindFieldByName(name);
            if (!m->GetReflection()->HasField(*m, f)) m->GetReflection()->MutableMessage(m, f)->CopyFrom(now);
          }
        truncate_timestamps(*m);
      }
    });
  }

  void executed(const std::string& statement, const std::string& table_name, const list& rows) {
    const auto done = tx_.exec_prepared(statement, rows.close()).affected_rows();
    if (done != rows.size()) throw std::logic_error{statement + " touched another number of rows than were locked"};
    written_[table_name] += static_cast<int>(rows.size());
  }

  /// Rows that refer to others go first.
  void erase() {
    for (auto t = tables().rbegin(); t != tables().rend(); ++t) {
      list rows;
      each([&](item& i) {
        for (const auto& w : i.request->rows)
          if (w.what == op::erase && table_of(w.row) == &*t) rows.next() += key_json(*t, w.row);
        if (t->name == "hostname_claim")
          for (const auto& name : i.drop) {
            auto& out = rows.next();
            out += '{';
            member(out, "hostname", name);
            out += '}';
          }
      });
      if (rows.empty()) continue;
      executed(erase_rows(*t), t->name, rows);
      erased_ = true;
    }
  }

  /// Everything but deletions: one statement, empty when there is nothing.
  std::string write() {
    parts written;
    for (const auto& t : tables()) {
      list insert, update;
      each([&](item& i) {
        for (std::size_t n = 0; n < i.request->rows.size(); ++n) {
          const auto what = i.request->rows[n].what;
          if (what == op::erase || table_of(i.images[n]) != &t) continue;
          append_json((what == op::insert ? insert : update).next(), message_of(i.images[n]));
        }
      });
      written.add(update_rows(t), update);
      written.add(insert_rows(t), insert);
      if (insert.size() + update.size() > 0) written_[t.name] += static_cast<int>(insert.size() + update.size());
    }
    const auto claims = claims_to_write();
    written.add("insert_claims", claims);
    if (!claims.empty()) written_["hostname_claim"] += static_cast<int>(claims.size());
    written.add("insert_audit", audit_to_write());
    written.add("insert_requests", requests_to_write());
    return written.call(session_, tx_, writing_of);
  }

  list claims_to_write() {
    list rows;
    each([&](item& i) {
      for (const auto& name : i.claim) {
        const auto& c = *i.request->claims;
        auto& image = *extra_.emplace_back().mutable_hostname_claim();
        image.set_partition(i.request->partition);
        image.set_hostname(name);
        image.set_version(i.revision);
        image.set_project(c.project);
        image.set_tunnel(c.tunnel);
        image.set_tunnel_uid(c.tunnel_uid);
        image.set_claim(claim_numbers_.at(name));
        append_json(rows.next(), image);
      }
    });
    return rows;
  }

  list audit_to_write() {
    list audit;
    each([&](item& i) {
      const auto& a = i.request->audit;
      if (!a) return;
      auto& out = audit.next();
      out += '{';
      member(out, "project", a->project);
      member(out, "method", a->method);
      member(out, "resource", a->resource);
      member(out, "principal", a->principal);
      member(out, "remote", a->remote);
      member(out, "request_id", a->request_id);
      member(out, "before", a->before_json);
      member(out, "after", a->after_json);
      out += '}';
    });
    return audit;
  }

  list requests_to_write() {
    list requests;
    each([&](item& i) {
      if (!i.request->request || i.request->request->request_id.empty()) return;
      const auto& r = *i.request->request;
      v1::Reply reply;
      if (!i.images.empty()) *reply.mutable_row() = i.images.front();
      reply.set_partition(i.request->partition);
      reply.set_revision(i.revision);
      auto& out = requests.next();
      out += '{';
      member(out, "project", r.project);
      member(out, "method", r.method);
      member(out, "request_id", r.request_id);
      member(out, "digest", r.digest);
      member(out, "response", hex(reply.SerializeAsString()));
      out += '}';
    });
    return requests;
  }

  void collect_tombstones() {
    if (!erased_) return;
    list at;
    for (const auto& f : raised_) {
      auto& out = at.next();
      out += '{';
      member(out, "partition", std::int64_t{f.partition});
      member(out, "version", f.revision);
      out += '}';
    }
    for (const auto& row : tx_.exec_prepared("tombstones_of", at.close()))
      if (auto image = parse_row("tombstone", row[0].as<std::string>())) extra_.push_back(std::move(*image));
  }

  group_result result() {
    group_result out;
    std::map<partition_id, busv1::Revision> revisions;
    for (const auto& f : raised_) {
      auto& r = revisions[f.partition];
      r.set_version(1);
      r.set_incarnation(session_.incarnation);
      r.set_partition(f.partition);
      r.set_epoch(f.epoch);
      r.set_revision(f.revision);
    }
    for (auto& i : items_) {
      if (i.verdict) {
        out.answers.push_back(std::move(*i.verdict));
        continue;
      }
      for (std::size_t n = 0; n < i.images.size(); ++n)
        if (i.request->rows[n].what != op::erase) *revisions[i.request->partition].add_rows() = i.images[n];
      out.answers.push_back(saved{i.revision, std::move(i.images)});
    }
    for (auto& row : extra_)
      *revisions[static_cast<partition_id>(number_field(row, "partition"))].add_rows() = std::move(row);
    for (auto& [id, r] : revisions) out.revisions.push_back(std::move(r));
    out.rows_written = written_;
    return out;
  }

  session& session_;
  instance_id me_;
  open_transaction tx_;
  std::vector<item> items_;
  std::vector<fenced> raised_;
  // What look() saw; rows by "table key".
  std::unordered_map<std::string, std::pair<std::string, std::string>> known_requests_;  ///< digest, answer
  std::unordered_map<std::string, std::int64_t> versions_;                               ///< of the rows that we hold
  std::unordered_set<std::string> existing_;
  std::unordered_map<std::string, std::string> key_holders_, claim_holders_;  ///< by public key, by host name
  std::unordered_map<std::string, std::int64_t> claim_numbers_;             ///< of the host names that we hold
  std::unordered_set<std::string> tunnels_, tunnels_locked_;
  std::vector<v1::Row> extra_;                     ///< claims and tombstones
  std::map<std::string, int> written_;
  bool erased_ = false;
};

}  // namespace

std::vector<std::string> touched_keys(const save_request& r) {
  std::vector<std::string> out;
  for (const auto& w : r.rows) {
    const auto* t = table_of(w.row);
    if (!t) continue;
    out.push_back(t->name + ' ' + key_of(*t, w.row));
    if (!public_key_of(w.row).empty()) out.push_back("public_key " + public_key_of(w.row));
  }
  if (r.claims)
    for (const auto* part : {&r.claims->claim, &r.claims->drop})
      for (const auto& name : *part) out.push_back("hostname " + name);
  if (r.request && !r.request->request_id.empty()) out.push_back("request " + request_key(*r.request));
  return out;
}

void run_group(session& s, instance_id me, const std::vector<const save_request*>& group,
               const std::function<void(std::vector<fenced>, group_result)>& before_commit) {
  transaction{s, me, group}.run(before_commit);
}

std::optional<adoption> run_adoption(session& s, instance_id me, partition_id partition, epoch_t epoch,
                                     const std::vector<v1::Row>* named,
                                     const std::function<void(const adoption&)>& before_commit) {
  pqxx::work tx{s.conn};
  list pair;
  auto& out = pair.next();
  out += '{';
  member(out, "id", std::int64_t{partition});
  member(out, "epoch", epoch);
  out += '}';
  const auto fence = tx.exec_prepared("fence", pair.close(), me);
  if (fence.empty()) return std::nullopt;

  adoption a;
  a.at = fenced{partition, epoch, fence[0][2].as<std::int64_t>()};
  a.revision.set_version(1);
  a.revision.set_incarnation(s.incarnation);
  a.revision.set_partition(partition);
  a.revision.set_epoch(epoch);
  a.revision.set_revision(a.at.revision);
  int left = 0;
  for (const auto& t : tables()) {
    pqxx::result marked;
    list keys;
    if (named) {
      for (const auto& row : *named)
        if (table_of(row) == &t) keys.next() += key_json(t, row);
      if (keys.empty()) continue;
      marked = tx.exec_prepared(marked_rows_named(t), keys.close(), partition);
      left += static_cast<int>(keys.size() - marked.size());
    } else {
      left += tx.exec_prepared1(count_marked(t), partition)[0].as<int>();
      marked = tx.exec_prepared(marked_rows(t), partition);
      left -= static_cast<int>(marked.size());
    }
    list adopted;
    for (const auto& row : marked) {
      auto image = parse_row(t.name, row[0].as<std::string>());
      if (!image) continue;
      set_number_field(*image, "version", a.at.revision);
      if (t.route_version) set_number_field(*image, "route_version", a.at.revision);
      adopted.next() += key_json(t, *image);
      *a.revision.add_rows() = std::move(*image);
    }
    if (!adopted.empty()) tx.exec_prepared(adopt_rows(t), adopted.close(), a.at.revision);
  }
  if (!named) {
    list ids;
    for (const auto& row : tx.exec_prepared("marked_tombstones", partition)) append_json(ids.next(), row[0].as<std::string>());
    if (!ids.empty())
      for (const auto& row : tx.exec_prepared("adopt_tombstones", ids.close(), a.at.revision))
        if (auto image = parse_row("tombstone", row[0].as<std::string>())) *a.revision.add_rows() = std::move(*image);
  }
  list bereft;  // whom the tombstone of a child means, it says by uid alone
  for (const auto& row : a.revision.rows())
    if (row.has_tombstone() && (row.tombstone().kind() == "hostname_claim" || row.tombstone().kind() == "attachment"))
      append_json(bereft.next(), std::string_view{row.tombstone().uid()});
  if (!bereft.empty())
    for (const auto& row : tx.exec_prepared("tunnels_by_uid", bereft.close()))
      if (auto image = parse_row("tunnel", row[0].as<std::string>())) a.bereft.push_back(std::move(*image));
  a.skipped = std::max(left, 0);
  if (a.revision.rows_size() == 0) {
    tx.abort();
    return a;
  }
  before_commit(a);
  tx.commit();
  return a;
}

std::map<partition_id, fate> look_up(session& s, instance_id me, const std::vector<fenced>& raised) {
  pqxx::work tx{s.conn};
  std::string array = "{";
  for (const auto& f : raised) array += (array.size() > 1 ? "," : "") + std::to_string(f.partition);
  std::map<partition_id, std::pair<epoch_t, revision_t>> found;
  for (const auto& row : tx.exec_prepared("lock_partitions", array + "}"))
    if (row[1].as<std::int64_t>() == me) found[row[0].as<int>()] = {row[2].as<std::int64_t>(), row[3].as<std::int64_t>()};
  std::map<partition_id, fate> out;
  std::optional<fate> common;  // one transaction: what is known of one partition holds for all
  for (const auto& f : raised) {
    auto it = found.find(f.partition);
    auto& verdict = out[f.partition] = fate::lost;
    if (it == found.end() || it->second.first != f.epoch) continue;
    if (it->second.second == f.revision) verdict = fate::committed;
    if (it->second.second == f.revision - 1) verdict = fate::rolled_back;
    if (verdict != fate::lost) common = verdict;
  }
  if (common == fate::committed)
    for (auto& [id, verdict] : out) verdict = fate::committed;
  return out;
}

}  // namespace warren::sql
