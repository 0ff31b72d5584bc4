// test/machine/hook_certificates_test.cpp -- which files the hook's port takes for certificates, and what it says of others.
#include <catch2/catch.hpp>

#include <memory>
#include <stdexcept>

#include <openssl/err.h>

#include "services/hook/certificates.hpp"
#include "test/support/certificates.hpp"

using namespace warren;
using namespace warren::hook;
using test::authority;
using test::identity;

namespace {

const certificate_files files{"/c", "/k", "/a"};

certificate_reads reads(const identity& who, const std::string& client_ca) { return {{who.certificate, ""}, {who.key, ""}, {client_ca, ""}}; }
std::string error_of(const certificate_reads& r) { return check_certificates(files, r).error; }
std::chrono::sys_seconds now() { return std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now()); }

std::string key_pem(EVP_PKEY* key, const EVP_CIPHER* cipher, const char* password) {
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> out{BIO_new(BIO_s_mem()), BIO_free_all};
  const std::string word{password};
  REQUIRE(PEM_write_bio_PrivateKey(out.get(), key, cipher, reinterpret_cast<const unsigned char*>(word.data()), static_cast<int>(word.size()), nullptr, nullptr) == 1);
  char* data = nullptr;
  const auto n = BIO_get_mem_data(out.get(), &data);
  return {data, static_cast<std::size_t>(n)};
}

}  // namespace

TEST_CASE("a certificate with its key and its issuers is usable, and handed on as it was read") {
  const authority ours{"ours"}, theirs{"theirs"};
  auto r = reads(ours.issue("hook"), theirs.certificate() + "a comment\n" + ours.certificate());
  r.certificate.bytes = "leaf:\n" + r.certificate.bytes + ours.certificate();
  const auto c = check_certificates(files, r);
  REQUIRE(c.error.empty());
  CHECK(c.set.certificate == r.certificate.bytes);
  CHECK(c.set.key == r.key.bytes);
  CHECK(c.set.client_ca == r.client_ca.bytes);
  CHECK(expired(files, c.set, now()).empty());
  CHECK(ERR_peek_error() == 0);
}

TEST_CASE("what is wrong is said with its setting and its file") {
  const authority ours{"ours"};
  const auto good = ours.issue("hook"), other = ours.issue("hook");
  const auto ca = ours.certificate();
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> rsa{EVP_RSA_gen(2048), EVP_PKEY_free};
  const auto cut = [](const std::string& pem) { return pem.substr(0, pem.size() / 2); };
  const auto spoilt = [](std::string pem) { return pem.replace(pem.find('\n') + 1, 8, "////////"); };
  struct row { identity who; std::string ca, error; };
  const row rows[] = {
      {{"", good.key}, ca, "hook.tls_certificate /c: has no PEM certificate"},
      {{"garbage", good.key}, ca, "hook.tls_certificate /c: has no PEM certificate"},
      {{good.key, good.key}, ca, "hook.tls_certificate /c: has no PEM certificate"},
      {{cut(good.certificate), good.key}, ca, "hook.tls_certificate /c: has a certificate that cannot be read: "},
      {{spoilt(good.certificate), good.key}, ca, "hook.tls_certificate /c: has a certificate that cannot be read: "},
      {{good.certificate + cut(ca), good.key}, ca, "hook.tls_certificate /c: has a certificate that cannot be read: "},
      {{good.certificate, ""}, ca, "hook.tls_key /k: has no PEM key that can be read without a password"},
      {{good.certificate, "garbage"}, ca, "hook.tls_key /k: has no PEM key that can be read without a password"},
      {{good.certificate, good.certificate}, ca, "hook.tls_key /k: has no PEM key that can be read without a password"},
      {{good.certificate, cut(good.key)}, ca, "hook.tls_key /k: has no PEM key that can be read without a password"},
      {{good.certificate, key_pem(rsa.get(), EVP_aes_128_cbc(), "word")}, ca, "hook.tls_key /k: has no PEM key that can be read without a password"},
      {{good.certificate, other.key}, ca, "hook.tls_key /k: is not the key of hook.tls_certificate /c"},
      {{good.certificate, key_pem(rsa.get(), nullptr, "")}, ca, "hook.tls_key /k: is not the key of hook.tls_certificate /c"},
      {good, "", "hook.tls_client_ca /a: has no PEM certificate"},
      {good, "garbage", "hook.tls_client_ca /a: has no PEM certificate"},
      {good, ca + cut(ca), "hook.tls_client_ca /a: has a certificate that cannot be read: "},
  };
  for (const auto& r : rows) {
    const auto said = error_of(reads(r.who, r.ca));
    INFO(said);
    CHECK(said.substr(0, r.error.size()) == r.error);
    CHECK((r.error.ends_with(": ") ? said.size() > r.error.size() : said == r.error));
    CHECK(ERR_peek_error() == 0);
  }
  auto r = reads(good, ca);
  r.key = {"", "is empty"};
  r.client_ca = {"", "is no file"};
  CHECK(error_of(r) == "hook.tls_key /k: is empty");
}

TEST_CASE("what has expired is named; a certificate may be for ever") {
  const authority ours{"ours"}, past{"past", -60};
  const auto word = [&](const identity& who, const std::string& ca) {
    const auto c = check_certificates(files, reads(who, ca));
    REQUIRE(c.error.empty());
    return expired(files, c.set, now());
  };
  CHECK(word(ours.issue("hook", -60), past.certificate()).find("hook.tls_certificate /c: expired at 20") == 0);
  CHECK(word(ours.issue("hook"), past.certificate()).find("hook.tls_client_ca /a: expired at 20") == 0);
  CHECK(word(ours.issue("hook"), past.certificate() + ours.certificate()).empty());
  constexpr long to_9999 = 7'950l * 365 * authority::day;
  CHECK(word(ours.issue("hook", to_9999), ours.certificate()).empty());
}

TEST_CASE("a change counts when it is found twice, and what cannot be used leaves what is served") {
  const authority ours{"ours"};
  const auto a = reads(ours.issue("hook"), ours.certificate()), b = reads(ours.issue("hook"), ours.certificate());
  auto half = a;
  half.key = b.key;
  CHECK_THROWS_AS((certificate_watch{files, half}), std::invalid_argument);

  using enum certificate_watch::outcome;
  certificate_watch w{files, a};
  const auto serves = [&](const certificate_reads& r) { return w.serving().certificate == r.certificate.bytes && w.serving().key == r.key.bytes; };
  CHECK(w.look(a) == same);
  CHECK(w.look(half) == same);  // being written
  CHECK(w.look(b) == same);
  CHECK(serves(a));
  CHECK(w.look(b) == taken);
  CHECK(serves(b));
  CHECK(w.look(b) == same);

  CHECK(w.look(half) == same);
  CHECK(w.look(half) == refused);
  CHECK(w.look(half) == same);  // said once
  CHECK(w.refused() == "hook.tls_key /k: is not the key of hook.tls_certificate /c");
  CHECK(serves(b));
  auto empty = a;
  empty.certificate = {"", "is empty"};
  CHECK(w.look(empty) == same);
  CHECK(w.look(empty) == refused);
  CHECK(w.refused() == "hook.tls_certificate /c: is empty");
  CHECK(w.look(half) == same);
  CHECK(w.look(half) == refused);
  CHECK(w.look(b) == same);
  CHECK(w.look(b) == taken);  // as it was
  CHECK(w.refused().empty());
  CHECK(w.look(a) == same);
  CHECK(w.look(b) == same);
  CHECK(w.look(a) == same);
  CHECK(w.look(a) == taken);
  CHECK(serves(a));
}
