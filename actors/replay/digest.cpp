// actors/replay/digest.cpp -- a number by which two states are known to be equal. Pure.
#include "actors/replay/digest.hpp"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream.h>

namespace warren::replay {

namespace {

/// Swallows bytes and keeps their FNV-1a, in constant space.
class hashing_stream final : public google::protobuf::io::ZeroCopyOutputStream {
public:
  bool Next(void** data, int* size) override {
    swallow();
    *data = buffer_.data();
    *size = static_cast<int>(buffer_.size());
    pending_ = buffer_.size();
    return true;
  }
  void BackUp(int count) override { pending_ -= static_cast<std::size_t>(count); }
  std::int64_t ByteCount() const override { return static_cast<std::int64_t>(seen_ + pending_); }

  state_digest take() {
    swallow();
    return {hash_, seen_};
  }

private:
  void swallow() {
    for (std::size_t i = 0; i < pending_; ++i) {
      hash_ ^= static_cast<unsigned char>(buffer_[i]);
      hash_ *= 1099511628211ull;
    }
    seen_ += pending_;
    pending_ = 0;
  }

  std::array<char, 4096> buffer_;
  std::size_t pending_ = 0, seen_ = 0;
  std::uint64_t hash_ = 14695981039346656037ull;
};

template <class State> state_digest digest(State& state) {
  std::vector<std::string> kept;
  visit_secrets(state, [&](secret, std::string& text) { kept.push_back(std::exchange(text, {})); });
  hashing_stream bytes;
  {
    google::protobuf::io::CodedOutputStream out{&bytes};
    out.SetSerializationDeterministic(true);  // maps by their keys
    state.SerializePartialToCodedStream(&out);
  }
  auto next = kept.begin();
  visit_secrets(state, [&](secret, std::string& text) { text = std::move(*next++); });
  return bytes.take();
}

}  // namespace

state_digest digest_of(v1::TunnelState& state) { return digest(state); }
state_digest digest_of(v1::ConnectorState& state) { return digest(state); }
state_digest digest_of(v1::RegistryState& state) { return digest(state); }

}  // namespace warren::replay
