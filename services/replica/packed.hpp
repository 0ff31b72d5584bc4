// services/replica/packed.hpp -- how the read copy keeps what there is much of: as bytes, unpacked for whoever asks. A
// parsed row takes five times as much. No CAF, no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "actors/core/ids.hpp"
#include "actors/tunnel/status.hpp"
#include "warren/core/v1/rows.pb.h"

namespace warren::replica {

namespace v1 = warren::core::v1;

/// Parsed, shared and unchanging; nullptr: there is none.
template <class T> using row_ptr = std::shared_ptr<const T>;

/// Bytes that never change, in one piece of memory with the number of their owners. A handle is a pointer; copies
/// share. Thread-safe as a shared_ptr is.
class shared_bytes {
public:
  shared_bytes() = default;
  /// `fill` is given `size` bytes to write.
  template <class Fill> shared_bytes(std::size_t size, Fill&& fill) : at_{allocate(size)} { fill(at_->bytes()); }
  explicit shared_bytes(std::string_view text);
  shared_bytes(const shared_bytes& other) noexcept;
  shared_bytes(shared_bytes&& other) noexcept : at_{std::exchange(other.at_, nullptr)} {}
  shared_bytes& operator=(shared_bytes other) noexcept {
    std::swap(at_, other.at_);
    return *this;
  }
  ~shared_bytes();

  explicit operator bool() const { return at_ != nullptr; }
  std::string_view view() const;

private:
  struct block {
    std::uint32_t owners;  // through atomic_ref
    std::uint32_t size;
    char* bytes() { return reinterpret_cast<char*>(this + 1); }
  };
  static block* allocate(std::size_t size);

  block* at_ = nullptr;
};

/// What texts of one kind have in common, known beforehand: of each only the rest is kept (LZ4 with a dictionary).
/// Thread-safe. Outlives what it has packed.
class dictionary {
public:
  /// Such a text, or several behind each other; the last 64 KiB count.
  explicit dictionary(std::string sample);
  ~dictionary();
  dictionary(const dictionary&) = delete;
  dictionary& operator=(const dictionary&) = delete;

  /// Errors: std::length_error beyond 2 GB.
  shared_bytes pack(std::string_view text) const;
  /// Of one that it has packed; it stays as it is until the thread's next call. Of none: nothing.
  std::string_view unpack(const shared_bytes& packed) const;
  /// How long the text is.
  static std::size_t size_of(const shared_bytes& packed);

private:
  struct prepared;
  const std::string sample_;
  const std::unique_ptr<const prepared> prepared_;
};

/// A row as its bytes.
template <class T> class packed_row {
public:
  packed_row() = default;
  explicit packed_row(const T& row)
      : bytes_{row.ByteSizeLong(), [&](char* to) { row.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(to)); }} {}

  explicit operator bool() const { return static_cast<bool>(bytes_); }
  /// Parsed for the caller; nullptr: there is none.
  row_ptr<T> unpack() const {
    if (!bytes_) return nullptr;
    const auto bytes = content();
    auto row = std::make_shared<T>();
    row->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
    return row;
  }
  /// Whether it is worth unpacking for whoever looks for a row with this text in it.
  bool holds(std::string_view text) const { return content().find(text) != std::string_view::npos; }

private:
  std::string_view content() const { return bytes_.view(); }
  shared_bytes bytes_;
};

/// The conditions of a tunnel say much that those of every other say too.
const dictionary& tunnel_rows();
template <> inline packed_row<v1::TunnelRow>::packed_row(const v1::TunnelRow& row) : bytes_{tunnel_rows().pack(row.SerializeAsString())} {}
template <> inline std::string_view packed_row<v1::TunnelRow>::content() const { return tunnel_rows().unpack(bytes_); }

/// With what is asked of all of a connector's at once.
struct packed_attachment : packed_row<v1::AttachmentRow> {
  packed_attachment() = default;
  explicit packed_attachment(const v1::AttachmentRow& row) : packed_row{row}, attachment_generation{row.attachment_generation()} {}
  std::int64_t attachment_generation = 0;
};

/// With what is asked of all of them at once.
struct packed_claim : packed_row<v1::HostnameClaimRow> {
  packed_claim() = default;
  explicit packed_claim(const v1::HostnameClaimRow& row) : packed_row{row}, partition{row.partition()} {}
  partition_id partition = 0;
};

/// Conditions, and what is known of the gateways that they go by. The words that every tunnel has are kept as numbers.
class packed_status {
public:
  packed_status() = default;
  packed_status(const std::vector<v1::Condition>& conditions, const tunnel::gateway_knowledge& gateways);
  tunnel::status unpack() const;

private:
  shared_bytes bytes_;
};

}  // namespace warren::replica
