// services/bus/nkey.hpp -- NATS' spelling of Ed25519 keys. Pure: randomness comes in. No NATS, no I/O.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace warren::bus {

/// RFC 4648, upper case, without padding.
std::string base32(std::string_view bytes);
std::optional<std::string> unbase32(std::string_view text);

/// A key pair of NATS. Its seed is a secret: neither logged nor printed by anything here. Copies share it.
class nkey {
public:
  enum class kind : std::uint8_t { operators, account, user };  ///< public keys begin with O, A, U; seeds with SO, SA, SU

  /// `entropy`: 32 random bytes. Errors: std::invalid_argument for another length.
  nkey(kind what, std::string_view entropy);
  /// nullopt: no seed of one of these kinds, or its checksum is wrong.
  static std::optional<nkey> from_seed(std::string_view seed);

  kind what() const { return what_; }
  std::string seed() const;
  std::string public_key() const;
  std::string sign(std::string_view message) const;  ///< 64 bytes

private:
  kind what_;
  std::string entropy_, public_;
  std::shared_ptr<void> key_;  // EVP_PKEY
};

}  // namespace warren::bus
