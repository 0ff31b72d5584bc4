// services/bus/user_jwt.cpp -- JWTs as nats-server 2 reads them.
#include "services/bus/user_jwt.hpp"

#include <array>
#include <stdexcept>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <openssl/evp.h>

#include "actors/core/protocol.hpp"
#include "services/bus/subjects.hpp"

namespace warren::bus {

namespace {

using json = nlohmann::json;

constexpr int claims_version = 2;
constexpr std::int64_t answer_within_ns = 120'000'000'000;  // two minutes: far longer than any command waits
constexpr std::size_t inbox_chars = 16;

/// RFC 4648 5, without padding.
std::string base64url(std::string_view bytes) {
  constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::string out;
  unsigned buffer = 0, bits = 0;
  for (const char c : bytes) {
    buffer = (buffer << 8) | static_cast<unsigned char>(c);
    for (bits += 8; bits >= 6; bits -= 6) out.push_back(alphabet[(buffer >> (bits - 6)) & 63u]);
    buffer &= (1u << bits) - 1u;
  }
  if (bits > 0) out.push_back(alphabet[(buffer << (6 - bits)) & 63u]);
  return out;
}

std::string sha512_256(std::string_view bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha512_256(), nullptr) != 1)
    throw std::runtime_error("no SHA-512/256");
  return {reinterpret_cast<const char*>(digest.data()), size};
}

std::string issue(const nkey& by, std::string_view subject, std::string_view name, json nats, std::int64_t issued_at_s) {
  nats["version"] = claims_version;
  json claims{{"iat", issued_at_s}, {"iss", by.public_key()}, {"name", name}, {"sub", subject}, {"nats", std::move(nats)}};
  claims["jti"] = base32(sha512_256(claims.dump()));
  const auto text = base64url(R"({"typ":"JWT","alg":"ed25519-nkey"})") + "." + base64url(claims.dump());
  return text + "." + base64url(by.sign(text));
}

}  // namespace

std::string operator_jwt(const nkey& operators, std::string_view name, std::string_view system_account_public,
                         std::int64_t issued_at_s) {
  return issue(operators, operators.public_key(), name, {{"type", "operator"}, {"system_account", system_account_public}}, issued_at_s);
}

std::string account_jwt(const nkey& operators, std::string_view account_public, std::string_view name,
                        std::int64_t issued_at_s) {
  const json unlimited{{"subs", -1}, {"data", -1}, {"payload", -1}, {"imports", -1}, {"exports", -1},
                       {"wildcards", true}, {"conn", -1}, {"leaf", -1}};
  return issue(operators, account_public, name,
               {{"type", "account"}, {"limits", unlimited}, {"default_permissions", {{"pub", json::object()}, {"sub", json::object()}}}},
               issued_at_s);
}

std::string user_jwt(const nkey& account, std::string_view user_public, std::string_view name, const permissions& may,
                     std::int64_t issued_at_s) {
  json nats{{"type", "user"}, {"subs", -1}, {"data", -1}, {"payload", -1}, {"pub", json::object()}, {"sub", json::object()}};
  if (!may.publish.empty()) nats["pub"]["allow"] = may.publish;
  if (!may.subscribe.empty()) nats["sub"]["allow"] = may.subscribe;
  if (may.answers) nats["resp"] = {{"max", 1}, {"ttl", answer_within_ns}};
  return issue(account, user_public, name, std::move(nats), issued_at_s);
}

std::string credentials_text(std::string_view user_jwt, std::string_view user_seed) {
  return fmt::format(
      "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n"
      "-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
      user_jwt, user_seed);
}

std::string server_configuration(const issuers& by, std::int64_t issued_at_s) {
  const auto account = by.account.public_key(), system = by.system.public_key();
  return fmt::format(
      "# Made by warrend nats-keys. Holds no secret.\noperator: {}\nsystem_account: {}\nresolver: MEMORY\n"
      "resolver_preload: {{\n  {}: {}\n  {}: {}\n}}\n",
      operator_jwt(by.operators, "warren", system, issued_at_s), system, account,
      account_jwt(by.operators, account, "WARREN", issued_at_s), system, account_jwt(by.operators, system, "SYS", issued_at_s));
}

std::string instance_credentials(const issuers& by, std::string_view entropy, std::int64_t issued_at_s) {
  const nkey user{nkey::kind::user, entropy};
  return credentials_text(user_jwt(by.account, user.public_key(), "warrend", {}, issued_at_s), user.seed());
}

std::string watch_credentials(const issuers& by, std::string_view entropy, std::int64_t issued_at_s) {
  const nkey user{nkey::kind::user, entropy};
  permissions may;
  may.publish = {"_INBOX.warrend-watch"};  // an empty list would be everything; it says nothing
  may.subscribe = {"$SYS.ACCOUNT.*.DISCONNECT", "_INBOX.>"};
  return credentials_text(user_jwt(by.system, user.public_key(), "warrend-watch", may, issued_at_s), user.seed());
}

agent_credentials issue_agent_credentials(const nkey& account, int partition, std::string_view project, std::string_view kind,
                                          std::string_view name, std::string_view entropy, std::int64_t issued_at_s) {
  const nkey user{nkey::kind::user, entropy};
  agent_credentials out;
  out.seed = user.seed();
  // Known to the owner alone as well: it is no secret, but nobody else may listen there.
  out.inbox_prefix = "_INBOX_" + protocol::sha256_hex(user.public_key()).substr(0, 2 * inbox_chars);
  permissions may;
  may.publish = {hello_subject(partition, project, kind, name), heartbeat_subject(partition, project, kind, name),
                 event_subject(partition, project, kind, name)};
  may.subscribe = {command_subject(project, kind, name), out.inbox_prefix + ".>"};
  may.answers = true;
  out.jwt = user_jwt(account, user.public_key(), agent_connection_name(project, kind, name), may, issued_at_s);
  return out;
}

}  // namespace warren::bus
