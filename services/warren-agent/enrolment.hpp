// services/warren-agent/enrolment.hpp -- who this agent is: its enrolment file and its key. Files only, no network.
#pragma once

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace warren::agent {

/// A file that a person has to put right; the text names the file and what is wrong.
struct file_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What `warrenctl connector enrol` writes; README.md beside this file says what each field is.
struct enrolment {
  std::string project, connector, uid;
  int partition = 0;
  std::vector<std::string> nats_urls;
  std::string nats_user, nats_password, nats_credentials_file;
  std::string nats_jwt, nats_seed;  ///< what would be in the credentials file
  std::string nats_inbox_prefix;    ///< empty: the client's own
  std::string nats_ca_file, nats_certificate_file, nats_key_file;
  std::string hello_subject, heartbeat_subject, event_subject, command_subject;

  bool holds_secret() const { return !nats_seed.empty() || !nats_password.empty(); }
};

/// Relative file names in `text` are taken from `folder`.
/// Errors: file_error, naming the field.
enrolment parse_enrolment(std::string_view text, const std::filesystem::path& folder);
enrolment read_enrolment(const std::filesystem::path& file);
/// The permissions of a file that is not its owner's alone; 0: it is, or it is not there.
unsigned others_may_read(const std::filesystem::path& file);

/// An Ed25519 key pair. Copies share it.
class identity {
public:
  /// Errors: file_error: not there, readable by others, no Ed25519 key in PEM.
  static identity from_file(const std::filesystem::path& file);
  /// Makes a key and writes it, mode 0600.
  /// Errors: file_error: the file is there already, or cannot be written.
  static identity generate(const std::filesystem::path& file);

  const std::string& public_key_hex() const { return public_key_hex_; }
  std::string sign(std::string_view message) const;  ///< 64 bytes, RFC 8032

private:
  explicit identity(std::shared_ptr<void> key);
  std::shared_ptr<void> key_;  // EVP_PKEY
  std::string public_key_hex_;
};

/// `bytes` random bytes from the system.
std::string random_bytes(std::size_t bytes);

/// Replaces `file` whole, mode 0600: a temporary one beside it, fsync, rename, fsync of the folder.
/// Errors: std::system_error; the old file is then as it was.
void write_whole(const std::filesystem::path& file, std::string_view bytes);

/// What was created or renamed in the folder is there after a crash of the machine. Errors: std::system_error.
void sync_folder(const std::filesystem::path& path);

/// Errors: file_error when it cannot be read or is larger than `bytes_max`.
std::string read_whole(const std::filesystem::path& file, std::size_t bytes_max);

}  // namespace warren::agent
