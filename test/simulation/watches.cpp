// test/simulation/watches.cpp -- whoever follows tunnels or connectors, and what they must be told.
#include "test/simulation/watches.hpp"

namespace warren::simulation {

namespace {
constexpr std::size_t taken_at_once = 64;
constexpr std::int64_t connect_ms_min = 20, connect_ms_max = 500;  // a client's back-off, jittered
constexpr std::int64_t lenient_ms = 60'000;  // after a failover, until every instance has read the new lineage
}  // namespace

// ---- an instance's side ----

void watch_side::open(std::uint64_t stream, const watch_wish& q) {
  auto token = q.token;
  bool swallows = false;
  if (!token.empty() && has(bug::watch_resumed_from_now)) {
    token.clear();
    swallows = true;
  }
  if (auto from = replica::decode_watch_token(token); from && has(bug::watch_does_not_wait)) {
    for (auto& [p, revision] : from->revisions) revision = std::max<revision_t>(0, revision >> 32 << 32);
    token = replica::encode(*from);
  }
  replica::watch_options options{.what = q.what, .project = q.project, .resume_token = token, .wall_ms = to_.wall_ms()};
  options.ready = [this, stream] { to_.soon([this, stream] { pump(stream); }); };
  auto opened = replica::watcher::open(to_.view, std::move(options));
  if (auto* refused = std::get_if<replica::watcher::refused>(&opened)) return to_.close(stream, *refused);
  streams_[stream] = {std::move(std::get<std::unique_ptr<replica::watcher>>(opened)), swallows};
  pump(stream);
}

void watch_side::pump(std::uint64_t stream) {
  while (true) {
    auto it = streams_.find(stream);
    if (it == streams_.end()) return;
    auto& s = it->second;
    const auto events = s.watch->take(taken_at_once);
    if (events.empty()) {
      if (const auto why = s.watch->closed()) end(stream, *why);
      return;
    }
    for (std::size_t i = 0; i < events.size(); ++i) {
      if (s.swallows && events[i].what != replica::watch_event::kind::caught_up) continue;
      s.swallows = false;
      to_.send(stream, {events[i], i + 1 == events.size() ? s.watch->token(to_.wall_ms()) : ""});
    }
  }
}

void watch_side::end(std::uint64_t stream, const replica::watcher::refused& why) {
  streams_.erase(stream);
  to_.close(stream, why);
}

void watch_side::stop() {
  while (!streams_.empty())
    end(streams_.begin()->first, {errc::unavailable, "this instance is going away: go on elsewhere with the resume token"});
}

// ---- a client ----

void watch_host::connect() {
  if (stream_ != 0) return;
  const auto fresh = to_.fresh_stream();
  stream_ = fresh;
  anew_ = token_.empty();
  caught_up_ = false;
  untold_.clear();
  if (anew_) forget();
  if (to_.open(fresh, tries_, {what_, project_, token_})) {
    to_.time.record("watch", name_, token_);
    if (!anew_) ++resumed_;
    return;
  }
  stream_ = 0;
  ++tries_;
  to_.time.after(to_.time.readers.between(connect_ms_min, connect_ms_max), [this] { connect(); });
}

void watch_host::forget() {
  model_.clear();
  highest_.clear();
  gone_.clear();
}

void watch_host::received(std::uint64_t stream, const watch_message& m) {
  if (stream != stream_ || stream_ == 0) return;
  // What came after the last token comes again when the stream breaks: it is believed with the next one.
  untold_.push_back(m.event);
  if (m.token.empty()) return;
  token_ = m.token;
  for (const auto& e : std::exchange(untold_, {})) apply(e);
}

void watch_host::closed(std::uint64_t stream, const replica::watcher::refused* why) {
  if (stream != stream_ || stream_ == 0) return;
  stream_ = 0;
  ++tries_;
  if (why != nullptr) {
    to_.time.record("watch closed", name_, why->message);
    if (why->code == errc::out_of_range) token_.clear();
    else if (why->code == errc::invalid) wrong("its token was refused: " + why->message);
  }
  to_.time.after(to_.time.readers.between(connect_ms_min, connect_ms_max), [this] { connect(); });
}

void watch_host::hang_up() {
  if (stream_ == 0) return;
  const auto ended = stream_;
  to_.hang_up(ended);
  closed(ended, nullptr);
}

void watch_host::failed_over() { lenient_until_ms_ = to_.time.now_ms() + lenient_ms; }

void watch_host::apply(const replica::watch_event& e) {
  using kind = replica::watch_event::kind;
  if (e.what == kind::caught_up) {
    if (caught_up_) wrong("caught up twice in one stream");
    caught_up_ = true;
    return;
  }
  v1::Row row;
  if (e.tunnel) *row.mutable_tunnel() = *e.tunnel;
  else if (e.connector) *row.mutable_connector() = *e.connector;
  else return wrong("an event is about nothing");
  if (e.tunnel != nullptr && what_ != replica::watched::tunnels) return wrong("a tunnel is not what it follows");
  const auto read = [&](const auto& r) {
    return std::tuple{replica::entity_key{r.project(), r.name()}, r.uid(), static_cast<std::int64_t>(r.version())};
  };
  const auto [key, uid, version] = e.tunnel ? read(*e.tunnel) : read(*e.connector);
  const auto name = key.first + "/" + key.second;
  if (!concerns(key.first)) wrong(name + " is of another project");
  const bool lenient = to_.time.now_ms() < lenient_until_ms_;
  const bool live = caught_up_ && !lenient;
  auto have = model_.find(key);
  if (e.what == kind::deleted) {
    if (live && have == model_.end()) wrong(name + " is deleted, and was not there");
    if (live && have != model_.end() && have->second.uid != uid) wrong(name + " is deleted, and another of that name was there");
    if (have != model_.end() && have->second.uid == uid) model_.erase(have);
    gone_.insert(uid);
    return;
  }
  // A rival's mark is on a row that is what it was in all else.
  if (version != rival_version && !to_.was_stored(row)) wrong(fmt::format("{} at {} was never stored", name, version));
  auto& highest = highest_[uid];
  if (!lenient) {
    if (version != rival_version && version < highest) wrong(fmt::format("{} goes back from {} to {}", name, highest, version));
    if (gone_.count(uid) > 0) wrong(name + " was deleted, and lives again");
    if (e.what == kind::created && have != model_.end()) wrong(name + " is created, and was there");
    if (e.what == kind::updated && live && have == model_.end()) wrong(name + " is updated, and was not there");
    if (e.what == kind::updated && live && have != model_.end() && have->second.uid != uid) wrong(name + " is updated, and is another one");
    if (e.what == kind::updated && !live && anew_) wrong(name + " is updated in a snapshot");
  }
  gone_.erase(uid);
  highest = lenient ? version : std::max(highest, version);
  model_[key] = {uid, version, e.conditions};
}

}  // namespace warren::simulation
