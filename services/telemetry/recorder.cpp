// services/telemetry/recorder.cpp -- the flight recorder's ring: packs steps, drops the oldest, unpacks.
#include "services/telemetry/recorder.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

namespace warren::telemetry {

namespace {

namespace v1 = core::v1;

// Of a begin record.
constexpr unsigned char flag_conclude = 1, flag_new_run = 2, flag_noted = 4, flag_like_base = 8;
// Of a conclude record: the outcome in bits 1 to 3.
constexpr unsigned char flag_digest = 16, flag_rows = 32;

constexpr std::size_t header_bytes_max = 96;      // all numbers of a record, at their largest
constexpr std::size_t conclude_bytes = 32;        // kept free for the conclusion of a step without rows
constexpr std::size_t alike_bytes_min = 16;       // in common with the base, or it is not worth it
constexpr std::size_t base_bytes_min = 32;        // a tiny event is no base: the next heartbeat would be written in full
constexpr std::size_t scratch_bytes_kept = 64 * 1024;  // per thread; a larger one is given back

std::uint64_t zigzag(std::int64_t n) { return (static_cast<std::uint64_t>(n) << 1) ^ static_cast<std::uint64_t>(n >> 63); }
std::int64_t unzigzag(std::uint64_t n) { return static_cast<std::int64_t>(n >> 1) ^ -static_cast<std::int64_t>(n & 1); }

/// Into memory whose size has been checked.
struct writer {
  char* at;
  void byte(unsigned char b) { *at++ = static_cast<char>(b); }
  void number(std::uint64_t n) {
    for (; n >= 0x80; n >>= 7) byte(static_cast<unsigned char>(n) | 0x80);
    byte(static_cast<unsigned char>(n));
  }
  void fixed(std::uint64_t n) {
    std::memcpy(at, &n, sizeof n);
    at += sizeof n;
  }
  void bytes(std::string_view text) {
    std::memcpy(at, text.data(), text.size());
    at += text.size();
  }
  void text(std::string_view t) {
    number(t.size());
    bytes(t);
  }
  /// `size` is its ByteSizeLong() of this moment.
  void message(const google::protobuf::MessageLite& m, std::size_t size) {
    number(size);
    at = reinterpret_cast<char*>(m.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(at)));
  }
};

/// What the writer has written; anything else is a mistake in this file.
struct reader {
  std::string_view left;
  unsigned char byte() {
    need(1);
    const auto b = static_cast<unsigned char>(left.front());
    left.remove_prefix(1);
    return b;
  }
  std::uint64_t number() {
    std::uint64_t n = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto b = byte();
      n |= static_cast<std::uint64_t>(b & 0x7f) << shift;
      if (b < 0x80) return n;
    }
    throw std::logic_error{"the recorder's ring: a number without an end"};
  }
  std::uint64_t fixed() {
    std::uint64_t n = 0;
    std::memcpy(&n, bytes(sizeof n).data(), sizeof n);
    return n;
  }
  std::string_view bytes(std::size_t n) {
    need(n);
    const auto out = left.substr(0, n);
    left.remove_prefix(n);
    return out;
  }
  std::string_view text() { return bytes(number()); }
  template <class Message> void message(Message& m) {
    const auto packed = text();
    if (!m.ParsePartialFromArray(packed.data(), static_cast<int>(packed.size())))
      throw std::logic_error{"the recorder's ring: a message that cannot be read"};
  }
  void need(std::size_t n) const {
    if (left.size() < n) throw std::logic_error{"the recorder's ring: a record without an end"};
  }
};

std::string_view name_of(step_outcome o) {
  switch (o) {
    case step_outcome::unknown: return "";
    case step_outcome::done: return "done";
    case step_outcome::saved: return "saved";
    case step_outcome::conflict: return "conflict";
    case step_outcome::refused: return "refused";
    case step_outcome::replayed: return "replayed";
    case step_outcome::unavailable: return "unavailable";
    case step_outcome::lost: return "lost";
  }
  return "";
}

// Eight bytes at a time: this is done for every event.
bool same_eight(const char* a, const char* b) {
  std::uint64_t x = 0, y = 0;
  std::memcpy(&x, a, sizeof x);
  std::memcpy(&y, b, sizeof y);
  return x == y;
}
std::size_t same_prefix(std::string_view a, std::string_view b) {
  const auto most = std::min(a.size(), b.size());
  std::size_t n = 0;
  while (n + 8 <= most && same_eight(a.data() + n, b.data() + n)) n += 8;
  while (n < most && a[n] == b[n]) ++n;
  return n;
}
std::size_t same_suffix(std::string_view a, std::string_view b) {
  const auto most = std::min(a.size(), b.size());
  const auto *a_end = a.data() + a.size(), *b_end = b.data() + b.size();
  std::size_t n = 0;
  while (n + 8 <= most && same_eight(a_end - n - 8, b_end - n - 8)) n += 8;
  while (n < most && a_end[-1 - static_cast<std::ptrdiff_t>(n)] == b_end[-1 - static_cast<std::ptrdiff_t>(n)]) ++n;
  return n;
}

std::string& scratch() {
  thread_local std::string bytes;
  if (bytes.capacity() > scratch_bytes_kept) bytes = {};
  bytes.clear();
  return bytes;
}

}  // namespace

struct flight_recorder::segment {
  std::uint64_t number = 0;  ///< 0: not used yet
  std::unique_ptr<char[]> bytes;
  std::size_t used = 0, steps = 0;
  std::uint32_t runs = 0;
  std::uint64_t first_sequence = 0;
  std::int64_t first_steady_ms = 0, first_wall_ms = 0;
};

struct flight_recorder::shard {
  mutable std::mutex mutex;
  std::array<segment, limits::recorder_segments> ring;
  std::size_t newest = 0;
};

flight_recorder::flight_recorder(std::size_t bytes, counters* count) : count_{count} {
  segment_bytes_ = bytes / limits::recorder_shards / limits::recorder_segments;
  if (segment_bytes_ < 4 * header_bytes_max) segment_bytes_ = 0;  // nothing would fit
  for (std::size_t i = 0; i < limits::recorder_shards; ++i) shards_.push_back(std::make_unique<shard>());
}
flight_recorder::~flight_recorder() = default;

void flight_recorder::left_out(record_track& track) {
  track.segment = 0;  // its next step begins with its state again
  if (count_ != nullptr) count_->add("warren_recorder_left_out_total");
}

void flight_recorder::begin(record_track& track, const recorded_entity& entity,
                            const google::protobuf::MessageLite& state, const google::protobuf::MessageLite& event,
                            bool noted, std::uint64_t random, moment now) {
  if (segment_bytes_ == 0) return;
  if (track.life == 0) track.life = ++lives_;
  const auto number = track.steps++;
  track.open = false;
  auto& packed = scratch();
  event.AppendPartialToString(&packed);

  auto& s = *shards_[track.life % shards_.size()];
  const std::lock_guard lock{s.mutex};
  auto* to = &s.ring[s.newest];
  bool fresh = track.segment != to->number || to->number == 0;
  std::size_t state_bytes = fresh ? state.ByteSizeLong() : 0;
  const auto names = entity.kind.size() + entity.project.size() + entity.name.size();
  const auto needed = [&] { return header_bytes_max + packed.size() + (fresh ? state_bytes + names : 0) + conclude_bytes; };
  if (to->number == 0 || to->used + needed() > segment_bytes_ || to->steps >= limits::recorder_segment_steps_max) {
    if (!fresh) state_bytes = state.ByteSizeLong();
    fresh = true;
    if (needed() > segment_bytes_ / limits::recorder_record_share) return left_out(track);
    if (to->number != 0) s.newest = (s.newest + 1) % s.ring.size();
    to = &s.ring[s.newest];
    if (!to->bytes) to->bytes = std::make_unique_for_overwrite<char[]>(segment_bytes_);
    to->number = ++segments_;
    to->used = to->steps = 0;
    to->runs = 0;
    to->first_sequence = sequences_.load(std::memory_order_relaxed);
    to->first_steady_ms = now.steady_ms;
    to->first_wall_ms = now.wall_ms;
  }
  if (fresh && needed() > segment_bytes_ / limits::recorder_record_share) return left_out(track);
  if (fresh) {
    track.segment = to->number;
    track.index = to->runs++;
    track.base_at = track.base_bytes = 0;
  }

  // Most events resemble the one before.
  const std::string_view base{to->bytes.get() + track.base_at, track.base_bytes}, whole{packed};
  const auto prefix = same_prefix(whole, base);
  const auto suffix = same_suffix(whole.substr(prefix), base.substr(prefix));
  const bool like_base = prefix + suffix >= alike_bytes_min;

  writer w{to->bytes.get() + to->used};
  w.byte(static_cast<unsigned char>((fresh ? flag_new_run : 0) | (noted ? flag_noted : 0) | (like_base ? flag_like_base : 0)));
  w.number(track.index);
  w.number(zigzag(static_cast<std::int64_t>(sequences_.fetch_add(1, std::memory_order_relaxed) - to->first_sequence)));
  w.number(zigzag(now.steady_ms - to->first_steady_ms));
  w.number(zigzag((now.wall_ms - to->first_wall_ms) - (now.steady_ms - to->first_steady_ms)));
  if (fresh) {
    w.text(entity.kind);
    w.text(entity.project);
    w.text(entity.name);
    w.number(zigzag(entity.partition));
    w.number(zigzag(entity.epoch));
    w.number(track.life);
    w.number(number);
    w.message(state, state_bytes);
  }
  w.fixed(random);
  if (like_base) {
    w.number(prefix);
    w.number(suffix);
    w.text(whole.substr(prefix, whole.size() - prefix - suffix));
  } else {
    w.number(whole.size());
    if (whole.size() >= base_bytes_min) {
      track.base_at = static_cast<std::uint32_t>(w.at - to->bytes.get());
      track.base_bytes = static_cast<std::uint32_t>(whole.size());
    }
    w.bytes(whole);
  }
  to->used = static_cast<std::size_t>(w.at - to->bytes.get());
  ++to->steps;
  track.open = true;
}

void flight_recorder::conclude(record_track& track, step_outcome outcome, revision_t revision,
                               const std::vector<core::v1::Row>* rows, std::optional<std::uint64_t> digest) {
  if (!track.open) return;
  track.open = false;
  std::size_t needed = header_bytes_max;
  if (rows != nullptr)
    for (const auto& row : *rows) needed += row.ByteSizeLong() + 10;

  auto& s = *shards_[track.life % shards_.size()];
  const std::lock_guard lock{s.mutex};
  auto& to = s.ring[s.newest];
  if (to.number != track.segment) return;  // its step is in an older one, and stays without an end
  if (rows == nullptr) needed = conclude_bytes;
  if (to.used + needed > segment_bytes_) {
    track.segment = 0;
    return;
  }
  writer w{to.bytes.get() + to.used};
  w.byte(static_cast<unsigned char>(flag_conclude | (static_cast<unsigned>(outcome) << 1) | (digest ? flag_digest : 0) |
                                    (rows != nullptr ? flag_rows : 0)));
  w.number(track.index);
  if (rows != nullptr) {
    w.number(zigzag(revision));
    w.number(rows->size());
    for (const auto& row : *rows) w.message(row, static_cast<std::size_t>(row.GetCachedSize()));
  }
  if (digest) w.fixed(*digest);
  to.used = static_cast<std::size_t>(w.at - to.bytes.get());
}

std::vector<flight_recorder::stretch> flight_recorder::stretches() const {
  std::vector<stretch> out;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    const auto& s = *shards_[i];
    const std::lock_guard lock{s.mutex};
    for (std::size_t k = 1; k <= s.ring.size(); ++k)
      if (const auto& each = s.ring[(s.newest + k) % s.ring.size()]; each.number != 0) out.push_back({i, each.number});
  }
  return out;
}

std::size_t flight_recorder::bytes_used() const {
  std::size_t out = 0;
  for (const auto& s : shards_) {
    const std::lock_guard lock{s->mutex};
    for (const auto& each : s->ring) out += each.used;
  }
  return out;
}

std::optional<v1::Recording> flight_recorder::unpack(const stretch& which) const {
  if (which.shard >= shards_.size()) return std::nullopt;
  segment copy;
  std::string bytes;
  {
    const auto& s = *shards_[which.shard];
    const std::lock_guard lock{s.mutex};
    const auto found = std::find_if(s.ring.begin(), s.ring.end(), [&](const auto& each) { return each.number == which.segment; });
    if (found == s.ring.end() || which.segment == 0) return std::nullopt;
    bytes.assign(found->bytes.get(), found->used);
    copy.first_sequence = found->first_sequence;
    copy.first_steady_ms = found->first_steady_ms;
    copy.first_wall_ms = found->first_wall_ms;
  }

  v1::Recording out;
  std::vector<std::string> bases;
  reader r{bytes};
  while (!r.left.empty()) {
    const auto flags = r.byte();
    const auto index = r.number();
    if ((flags & flag_conclude) != 0) {
      auto& run = *out.mutable_runs(static_cast<int>(index));
      auto& step = *run.mutable_steps(run.steps_size() - 1);
      step.set_outcome(std::string{name_of(static_cast<step_outcome>((flags >> 1) & 7))});
      if ((flags & flag_rows) != 0) {
        step.set_revision(unzigzag(r.number()));
        for (auto n = r.number(); n > 0; --n) r.message(*step.add_rows());
      }
      if ((flags & flag_digest) != 0) {
        step.set_has_digest(true);
        step.set_digest(r.fixed());
      }
      continue;
    }
    const auto sequence = static_cast<std::int64_t>(copy.first_sequence) + unzigzag(r.number());
    const auto since_ms = unzigzag(r.number());
    const auto wall_ms = copy.first_wall_ms + since_ms + unzigzag(r.number());
    if ((flags & flag_new_run) != 0) {
      bases.emplace_back();
      auto& run = *out.add_runs();
      run.set_kind(std::string{r.text()});
      run.set_project(std::string{r.text()});
      run.set_name(std::string{r.text()});
      run.set_partition(static_cast<partition_id>(unzigzag(r.number())));
      run.set_epoch(unzigzag(r.number()));
      run.set_life(r.number());
      run.set_first_step(r.number());
      if (run.kind() == "tunnel") r.message(*run.mutable_tunnel());
      else if (run.kind() == "connector") r.message(*run.mutable_connector());
      else r.message(*run.mutable_registry());
    }
    auto& run = *out.mutable_runs(static_cast<int>(index));
    auto& base = bases.at(index);
    auto& step = *run.add_steps();
    step.set_sequence(static_cast<std::uint64_t>(sequence));
    step.set_steady_ms(copy.first_steady_ms + since_ms);
    step.set_wall_ms(wall_ms);
    step.set_noted((flags & flag_noted) != 0);
    const auto random = r.fixed();
    std::string event;
    if ((flags & flag_like_base) != 0) {
      const auto prefix = r.number(), suffix = r.number();
      event = base.substr(0, prefix);
      event += r.text();
      event += base.substr(base.size() - suffix);
    } else {
      event = r.text();
      if (event.size() >= base_bytes_min) base = event;
    }
    const auto put = [&](auto& e) {
      if (!e.ParsePartialFromString(event)) throw std::logic_error{"the recorder's ring: an event that cannot be read"};
      if (random != 0) e.set_random(random);
    };
    if (run.has_tunnel()) put(*step.mutable_tunnel());
    else if (run.has_connector()) put(*step.mutable_connector());
    else put(*step.mutable_registry());
  }
  return out;
}

}  // namespace warren::telemetry
