// test/support/certificates.hpp -- authorities and certificates for tests of TLS, made on the spot.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

namespace warren::test {

struct identity {
  std::string certificate, key;  ///< PEM
};

/// Signs for "localhost" and 127.0.0.1.
class authority {
public:
  static constexpr long day = 24 * 3600;  // seconds
  explicit authority(const std::string& name, long valid = day)
      : name_(name), key_(fresh_key()), certificate_(make(name, key_.get(), nullptr, valid)) {}
  std::string certificate() const { return pem(certificate_.get()); }
  /// `valid`: for so many seconds from now; negative: not any more.
  identity issue(const std::string& name, long valid = day) const {
    const auto key = fresh_key();
    const auto made = make(name, key.get(), this, valid);
    return {pem(made.get()), pem(key.get())};
  }

private:
  template <auto Free> struct freed {
    template <class T> void operator()(T* p) const { Free(p); }
  };
  using key_ptr = std::unique_ptr<EVP_PKEY, freed<EVP_PKEY_free>>;
  using certificate_ptr = std::unique_ptr<X509, freed<X509_free>>;
  using bio_ptr = std::unique_ptr<BIO, freed<BIO_free_all>>;

  static void must(bool ok) {
    if (!ok) throw std::runtime_error("OpenSSL refuses to make a certificate");
  }
  static key_ptr fresh_key() {
    key_ptr key{EVP_EC_gen("P-256")};
    must(key != nullptr);
    return key;
  }
  static certificate_ptr make(const std::string& name, EVP_PKEY* key, const authority* by, long valid) {
    certificate_ptr c{X509_new()};
    must(X509_set_version(c.get(), 2) == 1);
    static long serial = 0;
    ASN1_INTEGER_set(X509_get_serialNumber(c.get()), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(c.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(c.get()), valid);
    X509_set_pubkey(c.get(), key);
    auto* subject = X509_get_subject_name(c.get());
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(c.get(), by ? X509_get_subject_name(by->certificate_.get()) : subject);
    const auto extend = [&](int what, const char* value) {
      auto* e = X509V3_EXT_conf_nid(nullptr, nullptr, what, value);
      must(e != nullptr && X509_add_ext(c.get(), e, -1) == 1);
      X509_EXTENSION_free(e);
    };
    extend(NID_basic_constraints, by ? "CA:FALSE" : "critical,CA:TRUE");
    if (by) extend(NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
    must(X509_sign(c.get(), by ? by->key_.get() : key, EVP_sha256()) > 0);
    return c;
  }
  static std::string text(BIO* b) {
    char* data = nullptr;
    const auto n = BIO_get_mem_data(b, &data);
    return {data, static_cast<std::size_t>(n)};
  }
  static std::string pem(X509* c) {
    bio_ptr b{BIO_new(BIO_s_mem())};
    must(PEM_write_bio_X509(b.get(), c) == 1);
    return text(b.get());
  }
  static std::string pem(EVP_PKEY* k) {
    bio_ptr b{BIO_new(BIO_s_mem())};
    must(PEM_write_bio_PrivateKey(b.get(), k, nullptr, nullptr, 0, nullptr, nullptr) == 1);
    return text(b.get());
  }

  std::string name_;
  key_ptr key_;
  certificate_ptr certificate_;
};

}  // namespace warren::test
