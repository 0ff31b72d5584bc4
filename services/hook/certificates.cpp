// services/hook/certificates.cpp -- reads PEM files and puts them to the test that gRPC will put them to.
#include "services/hook/certificates.hpp"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <memory>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

namespace warren::hook {

namespace {

template <auto Free> struct freed {
  template <class T> void operator()(T* p) const { Free(p); }
};
using bio_ptr = std::unique_ptr<BIO, freed<BIO_free_all>>;
using key_ptr = std::unique_ptr<EVP_PKEY, freed<EVP_PKEY_free>>;
using certificate_ptr = std::unique_ptr<X509, freed<X509_free>>;
using context_ptr = std::unique_ptr<SSL_CTX, freed<SSL_CTX_free>>;
using std::chrono::sys_seconds;  // a certificate may be valid until 9999, which nanoseconds do not reach

/// OpenSSL's errors stay on the thread until somebody takes them for those of another call.
struct no_errors_left {
  no_errors_left() { ERR_clear_error(); }
  ~no_errors_left() { ERR_clear_error(); }
};

std::string reason() {
  const char* text = ERR_reason_error_string(ERR_peek_last_error());
  return text == nullptr ? "unknown" : text;
}

std::string system_error(int code) { return std::system_category().message(code); }

file_read read_file(const std::string& path) {
  // A pipe that nobody writes to would keep the thread.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return {"", "cannot be read: " + system_error(errno)};
  file_read out;
  struct stat about {};
  if (::fstat(fd, &about) != 0) out.error = "cannot be read: " + system_error(errno);
  else if (!S_ISREG(about.st_mode)) out.error = "is not a file";
  const auto too_large = [&] { out.error = fmt::format("is larger than {} bytes", certificate_file_bytes_max); };
  if (out.error.empty() && static_cast<std::uint64_t>(about.st_size) > certificate_file_bytes_max) too_large();
  char piece[16 * 1024];
  while (out.error.empty()) {
    const auto n = ::read(fd, piece, sizeof piece);
    if (n == 0) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) out.error = "cannot be read: " + system_error(errno);
    else out.bytes.append(piece, static_cast<std::size_t>(n));
    if (out.bytes.size() > certificate_file_bytes_max) too_large();  // it grew
  }
  ::close(fd);
  if (out.error.empty() && out.bytes.empty()) out.error = "is empty";
  // gRPC takes C strings.
  if (out.error.empty() && out.bytes.find('\0') != std::string::npos) out.error = "is not PEM";
  if (!out.error.empty()) out.bytes.clear();
  return out;
}

bio_ptr open(const std::string& bytes) { return bio_ptr{BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size()))}; }

/// An empty password, as gRPC's: without any OpenSSL asks the terminal.
void* no_password() {
  static char empty[] = "";
  return empty;
}

/// Nothing: there is no further one, or `error` says why it cannot be read.
certificate_ptr next_certificate(BIO* from, std::string& error) {
  certificate_ptr out{PEM_read_bio_X509_AUX(from, nullptr, nullptr, no_password())};
  if (out) return out;
  const auto why = ERR_peek_last_error();
  const bool end = ERR_GET_LIB(why) == ERR_LIB_PEM && ERR_GET_REASON(why) == PEM_R_NO_START_LINE;
  if (!end) error = "has a certificate that cannot be read: " + reason();
  ERR_clear_error();
  return nullptr;
}

sys_seconds until(const X509* c) {
  std::tm at{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(c), &at) != 1) return sys_seconds::max();
  return sys_seconds{std::chrono::seconds{::timegm(&at)}};
}

/// What is wrong with the file of certificates that we present; else they are in `context`.
std::string use_certificates(SSL_CTX* context, const std::string& pem, sys_seconds& ends) {
  const auto from = open(pem);
  std::string error;
  const auto own = next_certificate(from.get(), error);
  if (!own) return error.empty() ? "has no PEM certificate" : error;
  if (SSL_CTX_use_certificate(context, own.get()) != 1) return "is refused: " + reason();
  ends = until(own.get());
  while (auto issuer = next_certificate(from.get(), error))
    if (SSL_CTX_add_extra_chain_cert(context, issuer.get()) == 1) static_cast<void>(issuer.release());  // the context's
    else return "is refused: " + reason();
  return error;
}

std::string use_key(SSL_CTX* context, const std::string& pem, const std::string& certificate_file) {
  const key_ptr key{PEM_read_bio_PrivateKey(open(pem).get(), nullptr, nullptr, no_password())};
  if (!key) return "has no PEM key that can be read without a password";
  if (X509_check_private_key(SSL_CTX_get0_certificate(context), key.get()) != 1)
    return fmt::format("is not the key of hook.tls_certificate {}", certificate_file);
  return SSL_CTX_use_PrivateKey(context, key.get()) == 1 ? "" : "is refused: " + reason();
}

std::string check_authorities(const std::string& pem, sys_seconds& ends) {
  const auto from = open(pem);
  std::string error;
  std::optional<sys_seconds> last;
  while (const auto each = next_certificate(from.get(), error)) last = std::max(last.value_or(sys_seconds::min()), until(each.get()));
  if (!last) return error.empty() ? "has no PEM certificate" : error;
  ends = *last;
  return error;
}

}  // namespace

certificate_reads read_certificates(const certificate_files& files) {
  return {read_file(files.certificate), read_file(files.key), read_file(files.client_ca)};
}

checked_certificates check_certificates(const certificate_files& files, const certificate_reads& reads) {
  const no_errors_left none;
  checked_certificates out;
  const auto wrong = [&](const char* setting, const std::string& file, const std::string& what) {
    if (out.error.empty() && !what.empty()) out.error = fmt::format("{} {}: {}", setting, file, what);
    return !out.error.empty();
  };
  if (wrong("hook.tls_certificate", files.certificate, reads.certificate.error) || wrong("hook.tls_key", files.key, reads.key.error) ||
      wrong("hook.tls_client_ca", files.client_ca, reads.client_ca.error))
    return out;
  // A context of its own has the machine's rules (how short a key may be), as gRPC's will.
  const context_ptr context{SSL_CTX_new(TLS_server_method())};
  if (wrong("hook.tls_certificate", files.certificate, context ? "" : "OpenSSL: " + reason())) return out;
  auto& set = out.set;
  if (wrong("hook.tls_certificate", files.certificate, use_certificates(context.get(), reads.certificate.bytes, set.certificate_until)) ||
      wrong("hook.tls_key", files.key, use_key(context.get(), reads.key.bytes, files.certificate)) ||
      wrong("hook.tls_client_ca", files.client_ca, check_authorities(reads.client_ca.bytes, set.client_ca_until)))
    return out;
  set.certificate = reads.certificate.bytes;
  set.key = reads.key.bytes;
  set.client_ca = reads.client_ca.bytes;
  return out;
}

std::string expired(const certificate_files& files, const certificate_set& set, std::chrono::sys_seconds now) {
  const auto says = [](const char* setting, const std::string& file, sys_seconds at) {
    return fmt::format("{} {}: expired at {:%Y-%m-%dT%H:%M:%SZ}", setting, file, fmt::gmtime(static_cast<std::time_t>(at.time_since_epoch().count())));
  };
  if (set.certificate_until <= now) return says("hook.tls_certificate", files.certificate, set.certificate_until);
  if (set.client_ca_until <= now) return says("hook.tls_client_ca", files.client_ca, set.client_ca_until);
  return "";
}

certificate_watch::certificate_watch(certificate_files files, certificate_reads first)
    : files_(std::move(files)), judged_(std::move(first)), last_(judged_) {
  auto checked = check_certificates(files_, judged_);
  if (!checked.error.empty()) throw std::invalid_argument{checked.error};
  serving_ = std::move(checked.set);
}

certificate_watch::outcome certificate_watch::look(certificate_reads now) {
  const bool stands = now == last_;
  last_ = std::move(now);
  if (!stands || last_ == judged_) return outcome::same;
  judged_ = last_;
  auto checked = check_certificates(files_, judged_);
  refused_ = std::move(checked.error);
  if (!refused_.empty()) return outcome::refused;
  serving_ = std::move(checked.set);
  return outcome::taken;
}

}  // namespace warren::hook
