// services/replica/packed.cpp -- bytes with a count of owners, and conditions as bytes. No CAF, no I/O.
#include "services/replica/packed.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include <google/protobuf/io/coded_stream.h>
#include <lz4.h>

#include "actors/core/conditions.hpp"
#include "actors/core/time.hpp"

namespace warren::replica {

namespace {

using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

// What conditions say again and again, as numbers from 1 on. Of this process alone: nothing packed leaves it.
constexpr std::array<std::string_view, 22> words{
    "",
    "True",
    "False",
    "Unknown",
    "Accepted",
    "Programmed",
    "ConnectorMetadataProgrammed",
    "TargetReachable",
    "Ready",
    "Pending",
    "Disabled",
    "Deleting",
    "Rejected",
    "ConnectorNotReady",
    "ConnectorNotFound",
    "TargetUnreachable",
    "The agents reach every target.",
    "Visitors get through.",
    "The gateways have not been heard yet.",
    "The gateways have not acknowledged this generation yet.",
    "The tunnel is switched off; enable it to let visitors in.",
    "The routes do not lead to the targets yet.",
};

constexpr std::uint64_t zigzag(std::int64_t n) { return (static_cast<std::uint64_t>(n) << 1) ^ static_cast<std::uint64_t>(n >> 63); }
constexpr std::int64_t unzigzag(std::uint64_t n) { return static_cast<std::int64_t>(n >> 1) ^ -static_cast<std::int64_t>(n & 1); }

/// A text is a number: 0 and then its length and bytes, one of the words, or the n-th text that was written in full.
class writer {
public:
  void number(std::int64_t n) { plain(zigzag(n)); }
  void text(std::string_view t) {
    if (const auto word = std::find(words.begin(), words.end(), t); word != words.end())
      return plain(static_cast<std::uint64_t>(word - words.begin()) + 1);
    if (const auto again = std::find(written_.begin(), written_.end(), t); again != written_.end())
      return plain(words.size() + 1 + static_cast<std::uint64_t>(again - written_.begin()));
    plain(0);
    plain(t.size());
    bytes_ += t;
    written_.push_back(t);
  }
  std::string_view bytes() const { return bytes_; }

private:
  void plain(std::uint64_t n) {
    std::array<std::uint8_t, 10> to{};
    const auto* end = CodedOutputStream::WriteVarint64ToArray(n, to.data());
    bytes_.append(reinterpret_cast<const char*>(to.data()), static_cast<std::size_t>(end - to.data()));
  }
  std::string bytes_;
  std::vector<std::string_view> written_;
};

/// What the writer has written; anything else is a mistake in this file.
class reader {
public:
  explicit reader(std::string_view bytes)
      : bytes_{bytes}, in_{reinterpret_cast<const std::uint8_t*>(bytes.data()), static_cast<int>(bytes.size())} {}
  std::int64_t number() { return unzigzag(plain()); }
  std::string text() {
    const auto which = plain();
    if (which == 0) {
      const auto size = plain();
      const auto at = static_cast<std::size_t>(in_.CurrentPosition());
      if (size > bytes_.size() - at || !in_.Skip(static_cast<int>(size))) throw std::logic_error{"packed: a text without an end"};
      written_.push_back(bytes_.substr(at, size));
      return std::string{written_.back()};
    }
    if (which <= words.size()) return std::string{words.at(which - 1)};
    return std::string{written_.at(which - words.size() - 1)};
  }

private:
  std::uint64_t plain() {
    std::uint64_t n = 0;
    if (!in_.ReadVarint64(&n)) throw std::logic_error{"packed: a number without an end"};
    return n;
  }
  std::string_view bytes_;
  CodedInputStream in_;
  std::vector<std::string_view> written_;
};

}  // namespace

// ---- bytes ----

shared_bytes::block* shared_bytes::allocate(std::size_t size) {
  if (size > UINT32_MAX) throw std::length_error{"packed: a row beyond 4 GiB"};
  return new (::operator new(sizeof(block) + size)) block{1, static_cast<std::uint32_t>(size)};
}

shared_bytes::shared_bytes(std::string_view text)
    : shared_bytes{text.size(), [&](char* to) { std::memcpy(to, text.data(), text.size()); }} {}

shared_bytes::shared_bytes(const shared_bytes& other) noexcept : at_{other.at_} {
  if (at_ != nullptr) std::atomic_ref{at_->owners}.fetch_add(1, std::memory_order_relaxed);
}

shared_bytes::~shared_bytes() {
  if (at_ == nullptr || std::atomic_ref{at_->owners}.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  ::operator delete(at_);
}

std::string_view shared_bytes::view() const {
  return at_ == nullptr ? std::string_view{} : std::string_view{at_->bytes(), at_->size};
}

// ---- what texts have in common ----

/// A stream that has read the sample and nothing else: each text begins with a copy of it.
struct dictionary::prepared {
  LZ4_stream_t stream;
};

dictionary::dictionary(std::string sample) : sample_{std::move(sample)}, prepared_{[this] {
      auto out = std::make_unique<prepared>();
      LZ4_initStream(&out->stream, sizeof out->stream);
      LZ4_loadDict(&out->stream, sample_.data(), static_cast<int>(sample_.size()));
      return out;
    }()} {}

dictionary::~dictionary() = default;

shared_bytes dictionary::pack(std::string_view text) const {
  if (text.size() > LZ4_MAX_INPUT_SIZE) throw std::length_error{"packed: a text beyond 2 GB"};
  thread_local std::string packed;
  const auto size = static_cast<std::uint32_t>(text.size());
  packed.resize(sizeof size + static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(size))));
  std::memcpy(packed.data(), &size, sizeof size);
  auto stream = prepared_->stream;
  const auto written = LZ4_compress_fast_continue(&stream, text.data(), packed.data() + sizeof size, static_cast<int>(size),
                                                  static_cast<int>(packed.size() - sizeof size), 1);
  return shared_bytes{std::string_view{packed}.substr(0, sizeof size + static_cast<std::size_t>(written))};
}

std::size_t dictionary::size_of(const shared_bytes& packed) {
  std::uint32_t size = 0;
  if (packed) std::memcpy(&size, packed.view().data(), sizeof size);
  return size;
}

std::string_view dictionary::unpack(const shared_bytes& packed) const {
  thread_local std::string text;
  text.resize(size_of(packed));
  if (text.empty()) return {};
  const auto from = packed.view().substr(sizeof(std::uint32_t));
  const auto read = LZ4_decompress_safe_usingDict(from.data(), text.data(), static_cast<int>(from.size()), static_cast<int>(text.size()),
                                                  sample_.data(), static_cast<int>(sample_.size()));
  if (read != static_cast<int>(text.size())) throw std::logic_error{"packed: a text of another dictionary"};
  return text;
}

const dictionary& tunnel_rows() {
  static const dictionary all{[] {
    v1::TunnelRow row;
    constexpr std::int64_t at_ms = 1'767'225'600'123;
    row.set_project("default");
    row.set_name("home");
    row.add_hostnames("home.example.com");
    auto* rule = row.add_rules();
    rule->set_path_prefix("/");
    rule->set_connector("home");
    rule->set_target("http://127.0.0.1:8080");
    row.set_gateway_class("default");
    *row.mutable_created_at() = timestamp_from_ms(at_ms);
    *row.mutable_updated_at() = row.created_at();
    set_condition(*row.mutable_conditions(), "Accepted", status_true, "Accepted", "The tunnel is valid and its host names are claimed.", 1, at_ms);
    set_condition(*row.mutable_conditions(), "Programmed", status_true, "Programmed", "1/1 gateways, revision 4294967296", 1, at_ms);
    return row.SerializeAsString();
  }()};
  return all;
}

// ---- conditions ----

packed_status::packed_status(const std::vector<v1::Condition>& conditions, const tunnel::gateway_knowledge& gateways) {
  writer w;
  w.number(static_cast<std::int64_t>(gateways.what));
  w.number(gateways.revision);
  w.number(gateways.since_ms);
  w.text(gateways.words);
  w.number(static_cast<std::int64_t>(conditions.size()));
  for (const auto& c : conditions) {
    w.text(c.type());
    w.text(c.status());
    w.text(c.reason());
    w.text(c.message());
    w.number(c.observed_generation());
    w.number(c.has_last_transition_time());
    if (!c.has_last_transition_time()) continue;
    w.number(c.last_transition_time().seconds());
    w.number(c.last_transition_time().nanos());
  }
  bytes_ = shared_bytes{w.bytes()};
}

tunnel::status packed_status::unpack() const {
  tunnel::status out;
  if (!bytes_) return out;
  reader r{bytes_.view()};
  out.gateways.what = static_cast<tunnel::gateway_knowledge::verdict>(r.number());
  out.gateways.revision = r.number();
  out.gateways.since_ms = r.number();
  out.gateways.words = r.text();
  out.conditions.resize(static_cast<std::size_t>(r.number()));
  for (auto& c : out.conditions) {
    c.set_type(r.text());
    c.set_status(r.text());
    c.set_reason(r.text());
    c.set_message(r.text());
    c.set_observed_generation(r.number());
    if (r.number() == 0) continue;
    c.mutable_last_transition_time()->set_seconds(r.number());
    c.mutable_last_transition_time()->set_nanos(static_cast<std::int32_t>(r.number()));
  }
  return out;
}

}  // namespace warren::replica
