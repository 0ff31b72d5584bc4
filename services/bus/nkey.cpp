// services/bus/nkey.cpp -- NATS' spelling of Ed25519 keys: prefix, key, CRC-16/XMODEM (low byte first), in base32.
#include "services/bus/nkey.hpp"

#include <array>
#include <stdexcept>

#include <openssl/evp.h>

namespace warren::bus {

namespace {

constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
constexpr std::size_t key_bytes = 32, signature_bytes = 64, checksum_bytes = 2;
constexpr unsigned seed_prefix = 18u << 3;  // 'S'

unsigned prefix_of(nkey::kind what) {
  switch (what) {
    case nkey::kind::operators: return 14u << 3;  // 'O'
    case nkey::kind::account: return 0;           // 'A'
    case nkey::kind::user: break;
  }
  return 20u << 3;  // 'U'
}

unsigned crc16(std::string_view bytes) {
  unsigned crc = 0;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned>(static_cast<unsigned char>(c)) << 8;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 0x8000u) != 0 ? ((crc << 1) ^ 0x1021u) & 0xffffu : (crc << 1) & 0xffffu;
  }
  return crc;
}

std::string spelled(std::string bytes) {
  const auto crc = crc16(bytes);
  bytes.push_back(static_cast<char>(crc & 0xffu));
  bytes.push_back(static_cast<char>(crc >> 8));
  return base32(bytes);
}

EVP_PKEY* as_key(const std::shared_ptr<void>& key) { return static_cast<EVP_PKEY*>(key.get()); }
const unsigned char* bytes_of(std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); }

}  // namespace

std::string base32(std::string_view bytes) {
  std::string out;
  unsigned buffer = 0, bits = 0;
  for (const char c : bytes) {
    buffer = (buffer << 8) | static_cast<unsigned char>(c);
    for (bits += 8; bits >= 5; bits -= 5) out.push_back(alphabet[(buffer >> (bits - 5)) & 31u]);
    buffer &= (1u << bits) - 1u;
  }
  if (bits > 0) out.push_back(alphabet[(buffer << (5 - bits)) & 31u]);
  return out;
}

std::optional<std::string> unbase32(std::string_view text) {
  std::string out;
  unsigned buffer = 0, bits = 0;
  for (const char c : text) {
    const auto at = alphabet.find(c);
    if (at == std::string_view::npos) return std::nullopt;
    buffer = (buffer << 5) | static_cast<unsigned>(at);
    bits += 5;
    if (bits >= 8) {
      bits -= 8;
      out.push_back(static_cast<char>((buffer >> bits) & 0xffu));
      buffer &= (1u << bits) - 1u;
    }
  }
  if (bits >= 5 || buffer != 0) return std::nullopt;  // one spelling each
  return out;
}

nkey::nkey(kind what, std::string_view entropy) : what_(what), entropy_(entropy) {
  if (entropy.size() != key_bytes) throw std::invalid_argument("a key is made of 32 bytes");
  key_ = {EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, bytes_of(entropy), entropy.size()),
          [](void* key) { EVP_PKEY_free(static_cast<EVP_PKEY*>(key)); }};
  std::array<unsigned char, key_bytes> raw{};
  auto length = raw.size();
  if (!key_ || EVP_PKEY_get_raw_public_key(as_key(key_), raw.data(), &length) != 1 || length != raw.size())
    throw std::runtime_error("no Ed25519 key can be made");
  public_.assign(reinterpret_cast<const char*>(raw.data()), raw.size());
}

std::optional<nkey> nkey::from_seed(std::string_view seed) {
  const auto bytes = unbase32(seed);
  if (!bytes || bytes->size() != 2 + key_bytes + checksum_bytes) return std::nullopt;
  const auto body = std::string_view{*bytes}.substr(0, 2 + key_bytes);
  const auto crc = crc16(body);
  const auto byte = [&](std::size_t at) { return static_cast<unsigned>(static_cast<unsigned char>((*bytes)[at])); };
  if (byte(body.size()) != (crc & 0xffu) || byte(body.size() + 1) != crc >> 8) return std::nullopt;
  if ((byte(0) & 0xf8u) != seed_prefix || (byte(1) & 7u) != 0) return std::nullopt;
  const auto prefix = ((byte(0) & 7u) << 5) | (byte(1) >> 3);
  for (const auto what : {kind::operators, kind::account, kind::user})
    if (prefix_of(what) == prefix) return nkey{what, body.substr(2)};
  return std::nullopt;
}

std::string nkey::seed() const {
  const auto prefix = prefix_of(what_);
  std::string bytes{static_cast<char>(seed_prefix | (prefix >> 5)), static_cast<char>((prefix & 31u) << 3)};
  return spelled(bytes + entropy_);
}

std::string nkey::public_key() const { return spelled(static_cast<char>(prefix_of(what_)) + public_); }

std::string nkey::sign(std::string_view message) const {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
  std::string out(signature_bytes, '\0');
  auto length = out.size();
  if (!context || EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, as_key(key_)) != 1 ||
      EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(out.data()), &length, bytes_of(message), message.size()) != 1 ||
      length != out.size())
    throw std::runtime_error("the key cannot sign");
  return out;
}

}  // namespace warren::bus
