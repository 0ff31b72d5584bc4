// test/support/agent_key.hpp -- an agent's key, for tests that sign a hello.
#pragma once

#include <memory>
#include <string>

#include <openssl/evp.h>

#include "actors/core/protocol.hpp"

namespace warren {

/// Of each seed, always the same.
struct agent_key {
  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key{nullptr, &EVP_PKEY_free};
  explicit agent_key(char seed) {
    const std::string raw(32, seed);
    key.reset(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr,
                                           reinterpret_cast<const unsigned char*>(raw.data()), raw.size()));
  }
  std::string public_hex() const {
    std::string out(32, '\0');
    std::size_t n = out.size();
    EVP_PKEY_get_raw_public_key(key.get(), reinterpret_cast<unsigned char*>(out.data()), &n);
    return protocol::hex(out);
  }
  std::string sign(const std::string& text) const {
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> c{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
    EVP_DigestSignInit(c.get(), nullptr, nullptr, nullptr, key.get());
    std::string out(64, '\0');
    std::size_t n = out.size();
    EVP_DigestSign(c.get(), reinterpret_cast<unsigned char*>(out.data()), &n,
                   reinterpret_cast<const unsigned char*>(text.data()), text.size());
    return out;
  }
};

}  // namespace warren
