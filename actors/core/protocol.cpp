// actors/core/protocol.cpp -- what agents and owners compute alike. Pure: no CAF, no NATS, no I/O.
#include "actors/core/protocol.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

namespace warren::protocol {

namespace {

// Every field is preceded by its length, so no two different lists of fields give the same bytes.
class canonical_bytes {
public:
  explicit canonical_bytes(std::string_view domain) { text(domain); }
  canonical_bytes& text(std::string_view value) {
    number(static_cast<std::int64_t>(value.size()));
    out_.append(value);
    return *this;
  }
  canonical_bytes& number(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    for (int shift = 56; shift >= 0; shift -= 8) out_.push_back(static_cast<char>((bits >> shift) & 0xff));
    return *this;
  }
  std::string take() { return std::move(out_); }

private:
  std::string out_;
};

constexpr int badness(std::string_view state) {
  if (state == "Reachable") return 0;
  if (state == "Unreachable") return 2;
  return 1;
}

template <class Targets>
std::string digest_of(const busv1::Addressing& addressing, const Targets& targets) {
  std::vector<std::string> addresses;
  for (const auto& address : addressing.addresses())
    addresses.push_back(canonical_address(address).value_or(address));
  std::sort(addresses.begin(), addresses.end());
  addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());

  std::map<std::pair<std::string_view, std::int64_t>, std::string_view> states;
  for (const busv1::TargetState& target : targets) {
    auto [at, fresh] = states.try_emplace({target.tunnel_uid(), target.tunnel_generation()}, target.state());
    if (!fresh) at->second = worse_target_state(at->second, target.state());
  }
  std::erase_if(states, [](const auto& entry) { return badness(entry.second) == 1; });

  canonical_bytes bytes{"warren-report-v1"};
  bytes.text(addressing.home_relay()).number(static_cast<std::int64_t>(addresses.size()));
  for (const auto& address : addresses) bytes.text(address);
  bytes.number(static_cast<std::int64_t>(states.size()));
  for (const auto& [key, state] : states) bytes.text(key.first).number(key.second).text(state);
  return hex(sha256(bytes.take()).substr(0, 16));
}

}  // namespace

std::string hello_to_sign(std::string_view project, std::string_view kind, std::string_view name,
                          const busv1::HelloRequest& hello) {
  canonical_bytes bytes{"warren-hello-v1"};
  bytes.text(project).text(kind).text(name);
  bytes.number(hello.version()).text(hello.nonce()).text(hello.challenge());
  bytes.text(hello.agent_version()).number(hello.sent_at_ms());
  bytes.number(hello.has_addressing() ? 1 : 0).text(hello.addressing().home_relay());
  bytes.number(hello.addressing().addresses_size());
  for (const auto& address : hello.addressing().addresses()) bytes.text(address);
  bytes.number(hello.attached_generation()).text(hello.connector_uid());
  return bytes.take();
}

std::string report_digest(const busv1::Addressing& addressing, const std::vector<busv1::TargetState>& targets) {
  return digest_of(addressing, targets);
}

std::string report_digest(const busv1::Addressing& addressing,
                          const google::protobuf::RepeatedPtrField<busv1::TargetState>& targets) {
  return digest_of(addressing, targets);
}

std::string_view worse_target_state(std::string_view a, std::string_view b) {
  return badness(a) >= badness(b) ? a : b;
}

std::optional<std::string> canonical_address(std::string_view address) {
  const auto colon = address.rfind(':');
  if (colon == std::string_view::npos || address.size() > 64) return std::nullopt;
  const auto port_text = address.substr(colon + 1);
  unsigned port = 0;
  const auto [end, error] = std::from_chars(port_text.data(), port_text.data() + port_text.size(), port);
  if (error != std::errc{} || end != port_text.data() + port_text.size() || port == 0 || port > 65535)
    return std::nullopt;

  const auto host = address.substr(0, colon);
  if (host.find('\0') != std::string_view::npos) return std::nullopt;  // inet_pton would stop there
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    in6_addr ip{};
    if (inet_pton(AF_INET6, std::string{host.substr(1, host.size() - 2)}.c_str(), &ip) != 1) return std::nullopt;
    inet_ntop(AF_INET6, &ip, text.data(), text.size());
    return "[" + std::string{text.data()} + "]:" + std::to_string(port);
  }
  in_addr ip{};
  if (inet_pton(AF_INET, std::string{host}.c_str(), &ip) != 1) return std::nullopt;
  inet_ntop(AF_INET, &ip, text.data(), text.size());
  return std::string{text.data()} + ":" + std::to_string(port);
}

bool is_label(std::string_view text) {
  if (text.empty() || text.size() > 63 || text.front() == '-' || text.back() == '-') return false;
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
}

bool is_printable_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    std::size_t length = 0;
    std::uint32_t point = 0;
    if (lead < 0x80) { length = 1; point = lead; }
    else if ((lead & 0xe0) == 0xc0) { length = 2; point = lead & 0x1fu; }
    else if ((lead & 0xf0) == 0xe0) { length = 3; point = lead & 0x0fu; }
    else if ((lead & 0xf8) == 0xf0) { length = 4; point = lead & 0x07u; }
    else return false;
    if (i + length > text.size()) return false;
    for (std::size_t k = 1; k < length; ++k) {
      const auto byte = static_cast<unsigned char>(text[i + k]);
      if ((byte & 0xc0) != 0x80) return false;
      point = (point << 6) | (byte & 0x3fu);
    }
    constexpr std::array<std::uint32_t, 5> least{0, 0, 0x80, 0x800, 0x10000};
    if (point < least.at(length) || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) return false;
    if (point < 0x20 || (point >= 0x7f && point < 0xa0)) return false;
    i += length;
  }
  return true;
}

std::string hex(std::string_view bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out.push_back(digits[byte >> 4]);
    out.push_back(digits[byte & 0xf]);
  }
  return out;
}

std::optional<std::string> unhex(std::string_view lower_case_hex) {
  if (lower_case_hex.size() % 2 != 0) return std::nullopt;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  std::string out;
  out.reserve(lower_case_hex.size() / 2);
  for (std::size_t i = 0; i < lower_case_hex.size(); i += 2) {
    const int high = digit(lower_case_hex[i]), low = digit(lower_case_hex[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    out.push_back(static_cast<char>(high * 16 + low));
  }
  return out;
}

bool is_public_key_hex(std::string_view text) {
  return text.size() == 64 &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_low_order_key_hex(std::string_view text) {
  // The y of the eight points of small order (RFC 8032 5.1), little endian and without the sign of x; 0 and 1 also as p
  // and p + 1, which decoders take for the same.
  static constexpr std::string_view table[] = {
      "0000000000000000000000000000000000000000000000000000000000000000", "0100000000000000000000000000000000000000000000000000000000000000",
      "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
      "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
      "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"};
  if (!is_public_key_hex(text)) return false;
  constexpr std::size_t sign = 62;  // the digit whose highest bit is the sign of x
  const char high = text[sign];
  const char unsigned_high = high < '8' ? high : high <= '9' ? static_cast<char>(high - 8) : static_cast<char>('2' + (high - 'a'));
  return std::any_of(std::begin(table), std::end(table), [&](std::string_view y) {
    return text.substr(0, sign) == y.substr(0, sign) && unsigned_high == y[sign] && text[sign + 1] == y[sign + 1];
  });
}

std::string sha256(std::string_view bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned length = 0;
  EVP_Digest(bytes.data(), bytes.size(), out.data(), &length, EVP_sha256(), nullptr);
  return {reinterpret_cast<const char*>(out.data()), length};
}

std::string sha256_hex(std::string_view bytes) { return hex(sha256(bytes)); }

bool ed25519_verify(std::string_view public_key_hex, std::string_view message, std::string_view signature) {
  if (!is_public_key_hex(public_key_hex) || signature.size() != 64 || is_low_order_key_hex(public_key_hex)) return false;
  const std::string raw = *unhex(public_key_hex);
  const auto bytes = [](std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); };
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key{
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, bytes(raw), raw.size()), &EVP_PKEY_free};
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
  if (!key || !context || EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) != 1) return false;
  return EVP_DigestVerify(context.get(), bytes(signature), signature.size(), bytes(message), message.size()) == 1;
}

bool equal_constant_time(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace warren::protocol
