// services/replica/watch.cpp -- follows tunnels or connectors. No CAF, no I/O.
#include "services/replica/watch.hpp"

#include <charconv>

#include <fmt/format.h>

#include "services/replica/query.hpp"

namespace warren::replica {

namespace {

constexpr std::size_t token_bytes_max = 64 * 1024;
// Conditions follow from what gateways say, too, and another instance may have heard it at an earlier
// revision: reports are repeated each second and end after three, clocks differ by less than the rest.
constexpr std::int64_t resume_margin_ms = 10'000;

constexpr revision_t lineage_of(revision_t r) { return r >> 32; }

bool take_number(std::string_view& in, std::int64_t& out, char end_with) {
  const auto [end, err] = std::from_chars(in.data(), in.data() + in.size(), out);
  if (err != std::errc{} || end == in.data() + in.size() || *end != end_with) return false;
  in.remove_prefix(static_cast<std::size_t>(end - in.data()) + 1);
  return true;
}

}  // namespace

std::string encode(const watch_token& t) {
  auto text = fmt::format("w1;{};{};{};{};", t.what == watched::tunnels ? 't' : 'c', t.project, t.lineage, t.wall_ms);
  for (const auto& [partition, revision] : t.revisions) text += fmt::format("{}:{};", partition, revision);
  return base64url(fmt::format("{:016x};{}", fnv1a_64(text), text));
}

std::optional<watch_token> decode_watch_token(std::string_view text) {
  if (text.size() > token_bytes_max) return std::nullopt;
  const auto bytes = unbase64url(text);
  if (!bytes || bytes->size() < 22 || bytes->at(16) != ';') return std::nullopt;
  std::string_view rest = std::string_view{*bytes}.substr(17);
  if (fmt::format("{:016x}", fnv1a_64(rest)) != bytes->substr(0, 16)) return std::nullopt;
  watch_token out;
  if (rest.substr(0, 3) != "w1;" || rest.size() < 5 || (rest[3] != 't' && rest[3] != 'c') || rest[4] != ';') return std::nullopt;
  out.what = rest[3] == 't' ? watched::tunnels : watched::connectors;
  rest.remove_prefix(5);
  const auto end = rest.find(';');
  if (end == std::string_view::npos) return std::nullopt;
  out.project = rest.substr(0, end);
  rest.remove_prefix(end + 1);
  if (!take_number(rest, out.lineage, ';') || !take_number(rest, out.wall_ms, ';')) return std::nullopt;
  while (!rest.empty()) {
    std::int64_t partition = 0, revision = 0;
    if (!take_number(rest, partition, ':') || !take_number(rest, revision, ';') || partition < 0 || partition > 65'536)
      return std::nullopt;
    out.revisions[static_cast<partition_id>(partition)] = revision;
  }
  return out;
}

watcher::opened watcher::open(view& v, watch_options options) {
  std::optional<watch_token> from;
  if (!options.resume_token.empty()) {
    from = decode_watch_token(options.resume_token);
    if (!from) return refused{errc::invalid, "resume_token: is not one that a watch has given"};
    if (from->what != options.what || from->project != options.project)
      return refused{errc::invalid, "resume_token: belongs to another watch"};
  }
  std::unique_ptr<watcher> w{new watcher{v, std::move(options), std::move(from)}};
  auto* raw = w.get();
  w->subscription_ = v.subscribe([raw](const change_set& c) { raw->on_change(c); });
  // What is applied from here on is heard; the serial tells what is in the snapshot already.
  v.read([&](const tables& t) { std::lock_guard lock{raw->mutex_}; return raw->try_start(t); });
  std::lock_guard lock{w->mutex_};
  if (w->closed_) {
    auto why = *w->closed_;
    if (why.code == errc::out_of_range) return why;
  }
  return w;
}

watcher::watcher(view& v, watch_options options, std::optional<watch_token> from)
    : view_(v), options_(std::move(options)), from_(std::move(from)) {}

watcher::~watcher() { view_.unsubscribe(subscription_); }

void watcher::on_change(const change_set& c) {
  bool news = false;
  view_.read([&](const tables& t) {
    std::lock_guard lock{mutex_};
    const auto before = queue_.size();
    if (closed_) return;
    if (!started_) try_start(t);
    else if (c.serial > serial_) follow(t, c);
    news = queue_.size() != before || closed_;
  });
  if (news && options_.ready) options_.ready();
}

bool watcher::try_start(const tables& t) {
  if (started_ || closed_ || !t.warm || !t.gateways_settled) return started_;
  for (const auto& [id, p] : t.partitions) lineage_ = std::max(lineage_, lineage_of(p.revision));
  if (from_) {
    if (from_->lineage != lineage_) {
      // A token of a later lineage: this instance has not read it yet.
      if (from_->lineage > lineage_) return false;
      closed_ = refused{errc::out_of_range, "resume_token: the database has been restored since; start anew"};
      return false;
    }
    for (const auto& [id, revision] : from_->revisions) {
      auto p = t.partitions.find(id);
      if (p == t.partitions.end()) {
        closed_ = refused{errc::out_of_range, "resume_token: of another installation; start anew"};
        return false;
      }
      if (p->second.revision < revision) return false;  // it was given by an instance that is ahead of this one
      auto d = t.deleted.find(id);
      if (d != t.deleted.end() && revision < d->second.complete_after) {
        closed_ = refused{errc::out_of_range, "resume_token: from too long ago; start anew"};
        return false;
      }
    }
  }
  started_ = true;
  serial_ = t.serial;
  const auto home = partition_of(options_.project, static_cast<int>(t.partitions.size()) - 1);
  for (const auto& [id, p] : t.partitions)
    if (options_.project.empty() || id == home) start_[id] = p.revision;
  seen_ = start_;
  if (from_) missed(t);
  else snapshot(t);
  queue_.push_back({.event = {.what = watch_event::kind::caught_up}});
  initial_ = queue_.size();
  return true;
}

void watcher::snapshot(const tables& t) {
  const auto each = [&](const auto& map, auto&& add) {
    auto it = options_.project.empty() ? map.begin() : map.lower_bound({options_.project, ""});
    for (; it != map.end() && concerns(it->first.first); ++it) add(*it);
  };
  if (options_.what == watched::tunnels)
    each(t.tunnels, [&](const auto& row) {
      const auto d = t.derived.find(row.first);
      queue_.push_back({.event = {.what = watch_event::kind::created},
                        .tunnel = row.second,
                        .status = d == t.derived.end() ? packed_status{} : d->second.status});
    });
  else
    each(t.connectors, [&](const auto& row) {
      queue_.push_back({.event = {.what = watch_event::kind::created, .connector = row.second}});
    });
}

// Everything that has changed since the token: deletions first, so that a name that lives again ends up alive.
void watcher::missed(const tables& t) {
  const auto since = [&](partition_id p) {
    auto found = from_->revisions.find(p);
    return found == from_->revisions.end() ? revision_t{0} : found->second;
  };
  for (const auto& [id, d] : t.deleted)
    for (const auto& gone : d.all) {
      if (gone.revision <= since(id)) continue;
      if (options_.what == watched::tunnels && gone.tunnel && concerns(gone.tunnel.unpack()->project()))
        queue_.push_back({.event = {.what = watch_event::kind::deleted}, .tunnel = gone.tunnel});
      if (const auto row = gone.connector.unpack(); options_.what == watched::connectors && row && concerns(row->project()))
        queue_.push_back({.event = {.what = watch_event::kind::deleted, .connector = row}});
    }
  if (options_.what == watched::tunnels) {
    for (const auto& [key, packed] : t.tunnels) {
      if (!concerns(key.first)) continue;
      const auto row = packed.unpack();
      const auto d = t.derived.find(key);
      const auto after = since(row->partition());
      const bool row_moved = row->version() > after || row->version() == rival_version;
      const bool conditions_moved =
          d != t.derived.end() && (d->second.changed_revision > after ||
                                   d->second.changed_wall_ms + resume_margin_ms >= from_->wall_ms);
      if (!row_moved && !conditions_moved) continue;
      queue_.push_back({.event = {.what = watch_event::kind::updated},
                        .tunnel = packed,
                        .status = d == t.derived.end() ? packed_status{} : d->second.status});
    }
    return;
  }
  for (const auto& [key, row] : t.connectors)
    if (concerns(key.first) && (row->version() > since(row->partition()) || row->version() == rival_version))
      queue_.push_back({.event = {.what = watch_event::kind::updated, .connector = row}});
}

void watcher::follow(const tables& t, const change_set& c) {
  serial_ = c.serial;
  lineage_ = std::max(lineage_, lineage_of(c.revision));
  const auto push_at = [&](queued q) {
    q.partition = c.partition;
    q.revision = c.revision;
    push(std::move(q));
  };
  const auto tell = [&](const auto& before, const auto& now, bool replaced, auto&& out) {
    if (before && (!now || replaced)) out(watch_event::kind::deleted, before);
    if (now) out(!before || replaced ? watch_event::kind::created : watch_event::kind::updated, now);
  };
  if (options_.what == watched::tunnels) {
    std::set<entity_key> keys = c.tunnels;
    keys.insert(c.derived.begin(), c.derived.end());
    for (const auto& key : keys) {
      if (!concerns(key.first)) continue;
      const auto row = t.tunnels.find(key);
      const auto now = row == t.tunnels.end() ? packed_row<v1::TunnelRow>{} : row->second;
      const auto was = c.tunnels_before.find(key);
      const bool row_moved = was != c.tunnels_before.end();
      const auto before = row_moved ? was->second : now;
      const bool replaced = row_moved && before && now && before.unpack()->uid() != now.unpack()->uid();
      const auto d = t.derived.find(key);
      tell(before, now, replaced, [&](watch_event::kind what, const packed_row<v1::TunnelRow>& r) {
        const bool current = what != watch_event::kind::deleted && d != t.derived.end();
        push_at({.event = {.what = what}, .tunnel = r, .status = current ? d->second.status : packed_status{}});
      });
    }
  } else {
    for (const auto& key : c.connectors) {
      if (!concerns(key.first)) continue;
      const auto row = t.connectors.find(key);
      const auto now = row == t.connectors.end() ? nullptr : row->second;
      const auto was = c.connectors_before.find(key);
      const auto before = was == c.connectors_before.end() ? now : was->second;
      const bool replaced = before && now && before->uid() != now->uid();
      tell(before, now, replaced, [&](watch_event::kind what, const row_ptr<v1::ConnectorRow>& r) {
        push_at({.event = {.what = what, .connector = r}});
      });
    }
  }
  if (auto seen = seen_.find(c.partition); seen != seen_.end() && !closed_) seen->second = c.revision;
}

void watcher::push(queued q) {
  if (closed_) return;
  if (queue_.size() - initial_ >= options_.queue_max) {
    closed_ = refused{errc::overloaded, "the watch was read too slowly; resume it"};
    return;
  }
  queue_.push_back(std::move(q));
}

std::vector<watch_event> watcher::take(std::size_t max) {
  std::lock_guard lock{mutex_};
  std::vector<watch_event> out;
  while (out.size() < max && !queue_.empty()) {
    auto q = std::move(queue_.front());
    queue_.pop_front();
    if (initial_ > 0) {
      // Behind caught_up lies the state in which the watch started.
      if (--initial_ == 0) {
        caught_up_taken_ = true;
        taken_ = start_;
      }
    } else {
      // A revision is taken when its last event is.
      const bool last = queue_.empty() ? !closed_
                                       : queue_.front().partition != q.partition || queue_.front().revision != q.revision;
      taken_[q.partition] = last ? q.revision : q.revision - 1;
    }
    if (q.tunnel) {
      q.event.tunnel = q.tunnel.unpack();
      q.event.conditions = q.status.unpack().conditions;
    }
    out.push_back(std::move(q.event));
  }
  if (queue_.empty() && !closed_ && caught_up_taken_) taken_ = seen_;
  return out;
}

std::string watcher::token(std::int64_t wall_ms) const {
  std::lock_guard lock{mutex_};
  if (!caught_up_taken_) return {};
  watch_token t{.lineage = lineage_, .what = options_.what, .project = options_.project, .wall_ms = wall_ms, .revisions = taken_};
  return encode(t);
}

std::optional<watcher::refused> watcher::closed() const {
  std::lock_guard lock{mutex_};
  if (!queue_.empty()) return std::nullopt;
  return closed_;
}

}  // namespace warren::replica
