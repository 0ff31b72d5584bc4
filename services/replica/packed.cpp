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
