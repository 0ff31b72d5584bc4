// actors/replay/redact.cpp -- takes the secrets out of a recording so that it can still be replayed. Pure.
#include "actors/replay/redact.hpp"

#include <memory>
#include <set>

#include <openssl/evp.h>

#include "actors/core/protocol.hpp"

namespace warren::replay {

namespace {

using key_pointer = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

const unsigned char* bytes(std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); }

key_pointer private_key(const std::string& raw) {
  return {EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, bytes(raw), raw.size()), &EVP_PKEY_free};
}

std::string public_hex_of(const std::string& private_raw) {
  std::string raw(32, '\0');
  auto size = raw.size();
  const auto key = private_key(private_raw);
  EVP_PKEY_get_raw_public_key(key.get(), reinterpret_cast<unsigned char*>(raw.data()), &size);
  return protocol::hex(raw);
}

std::string sign(const std::string& private_raw, std::string_view text) {
  std::string out(64, '\0');
  auto size = out.size();
  const auto key = private_key(private_raw);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
  EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key.get());
  EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(out.data()), &size, bytes(text), text.size());
  return out;
}

/// Every public key that the run mentions: the row's at each of its hellos is among them.
std::set<std::string> keys_in(v1::Run& run) {
  std::set<std::string> keys;
  const auto collect = [&](secret what, const std::string& text) {
    if (what == secret::public_key && protocol::is_public_key_hex(text)) keys.insert(text);
  };
  visit_secrets(*run.mutable_connector(), collect);
  for (auto& step : *run.mutable_steps()) {
    if (step.has_connector()) visit_secrets(*step.mutable_connector(), collect);
    for (auto& row : *step.mutable_rows()) visit_secrets(row, collect);
  }
  return keys;
}

}  // namespace

std::string redaction::stand_in(std::string_view what, std::string_view of) const {
  std::string text = key_;
  text.append(what).append(of);
  return protocol::sha256(text);
}

const redaction::pair& redaction::key_for(const std::string& public_key) {
  auto [it, fresh] = keys_.try_emplace(public_key);
  if (fresh) {
    it->second.private_raw = stand_in("key", public_key);
    it->second.public_hex = public_hex_of(it->second.private_raw);
  }
  return it->second;
}

void redaction::replace(secret what, std::string& text) {
  if (text.empty()) return;
  switch (what) {
    // By way of its hash: a row has only that, and its stand-in has to be the hash of the token's.
    case secret::token: text = protocol::hex(stand_in("token", protocol::sha256_hex(text))); return;
    case secret::token_hash: text = protocol::sha256_hex(protocol::hex(stand_in("token", text))); return;
    case secret::challenge: text = stand_in("challenge", text); return;
    case secret::public_key:
      if (protocol::is_public_key_hex(text)) text = key_for(text).public_hex;
      return;
  }
}

void redaction::apply(v1::Run& run) {
  if (!run.has_connector()) return;  // nobody else holds a secret
  const auto keys = keys_in(run);
  const auto redact = [this](secret what, std::string& text) { replace(what, text); };
  visit_secrets(*run.mutable_connector(), redact);
  for (auto& step : *run.mutable_steps()) {
    if (!step.has_connector()) continue;
    auto& event = *step.mutable_connector();
    std::string signer;
    if (event.has_hello() && !event.hello().hello().signature().empty()) {
      const auto& hello = event.hello().hello();
      const auto signed_text = protocol::hello_to_sign(run.project(), run.kind(), run.name(), hello);
      for (const auto& key : keys)
        if (protocol::ed25519_verify(key, signed_text, hello.signature())) signer = key;
    }
    visit_secrets(event, redact);
    if (event.has_hello() && !event.hello().hello().signature().empty()) {
      auto& hello = *event.mutable_hello()->mutable_hello();
      // One that nobody has signed stays one that nobody has signed.
      hello.set_signature(signer.empty()
                              ? std::string(64, '\0')
                              : sign(key_for(signer).private_raw,
                                     protocol::hello_to_sign(run.project(), run.kind(), run.name(), hello)));
    }
    for (auto& row : *step.mutable_rows()) visit_secrets(row, redact);
  }
}

void redaction::apply(v1::Recording& recording) {
  for (auto& run : *recording.mutable_runs()) apply(run);
}

}  // namespace warren::replay
