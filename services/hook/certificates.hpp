// services/hook/certificates.hpp -- what the hook proves itself with and whom it admits: PEM files that are read whole and
// checked before gRPC sees any of them, as it aborts on an empty one and says nothing of a wrong one. Knows no gRPC.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace warren::hook {

inline constexpr std::size_t certificate_file_bytes_max = 1024 * 1024;  // a bundle of every public authority has 220 KB

/// Paths of PEM files.
struct certificate_files {
  std::string certificate, key, client_ca;
};

/// One file as it was found.
struct file_read {
  std::string bytes;
  std::string error;  ///< "is empty"; empty: read
  bool operator==(const file_read&) const = default;
};
struct certificate_reads {
  file_read certificate, key, client_ca;
  bool operator==(const certificate_reads&) const = default;
};
/// Never waits: a pipe is no file.
certificate_reads read_certificates(const certificate_files& files);

/// PEM that gRPC takes as it is.
struct certificate_set {
  std::string certificate, key, client_ca;
  std::chrono::sys_seconds certificate_until{}, client_ca_until{};  ///< client_ca_until: of the last to expire
};
struct checked_certificates {
  certificate_set set;
  std::string error;  ///< "hook.tls_key /etc/warren/key.pem: is empty"; empty: usable
};
/// Pure.
checked_certificates check_certificates(const certificate_files& files, const certificate_reads& reads);

/// What of it every peer refuses by now: "hook.tls_certificate FILE: expired at …"; empty: nothing. Pure.
std::string expired(const certificate_files& files, const certificate_set& set, std::chrono::sys_seconds now);

/// Which set is served: the last that was usable. Pure.
class certificate_watch {
public:
  /// Errors: std::invalid_argument where the first set cannot be used.
  certificate_watch(certificate_files files, certificate_reads first);

  enum class outcome : std::uint8_t { same, taken, refused };
  /// What the files are at this moment. A change counts when two looks in a row find it: writing three files takes time.
  outcome look(certificate_reads now);

  const certificate_files& files() const { return files_; }
  const certificate_set& serving() const { return serving_; }
  const std::string& refused() const { return refused_; }  ///< why the files are not what is served; empty: they are

private:
  certificate_files files_;
  certificate_set serving_;
  certificate_reads judged_, last_;
  std::string refused_;
};

}  // namespace warren::hook
