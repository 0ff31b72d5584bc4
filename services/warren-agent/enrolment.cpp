// services/warren-agent/enrolment.cpp -- the enrolment file, the key, and how files are replaced. No network.
#include "services/warren-agent/enrolment.hpp"

#include <array>
#include <cerrno>
#include <fstream>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>

#include "actors/core/protocol.hpp"

namespace warren::agent {

namespace {

constexpr std::size_t enrolment_bytes_max = 64 * 1024;
constexpr std::size_t key_bytes_max = 16 * 1024;
constexpr std::size_t urls_max = 32;
constexpr std::size_t subject_chars_max = 256;
constexpr std::size_t text_chars_max = 4096;

using json = nlohmann::json;

/// Closes what it holds.
class descriptor {
public:
  explicit descriptor(int fd) : fd_(fd) {}
  descriptor(const descriptor&) = delete;
  descriptor& operator=(const descriptor&) = delete;
  ~descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

private:
  int fd_;
};

[[noreturn]] void fail_errno(const std::string& what) {
  throw std::system_error{errno, std::generic_category(), what};
}

void write_all(int fd, std::string_view bytes, const std::string& name) {
  while (!bytes.empty()) {
    const auto n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("cannot write " + name);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(fd) != 0) fail_errno("cannot sync " + name);
}

std::string text_field(const json& object, const char* field, bool required) {
  const auto at = object.find(field);
  if (at == object.end() || at->is_null()) {
    if (required) throw file_error{fmt::format("`{}` is missing", field)};
    return {};
  }
  if (!at->is_string()) throw file_error{fmt::format("`{}` is not a text", field)};
  auto text = at->get<std::string>();
  if (required && text.empty()) throw file_error{fmt::format("`{}` is empty", field)};
  if (text.size() > text_chars_max || !protocol::is_printable_utf8(text))
    throw file_error{fmt::format("`{}` is too long or has control characters", field)};
  return text;
}

const json& object_field(const json& object, const char* field) {
  const auto at = object.find(field);
  if (at == object.end() || !at->is_object()) throw file_error{fmt::format("`{}` is missing or no object", field)};
  return *at;
}

std::string subject_field(const json& subjects, const char* field) {
  auto text = text_field(subjects, field, true);
  const bool plain = text.size() <= subject_chars_max && text.find_first_of(" *>") == std::string::npos &&
                     text.front() != '.' && text.back() != '.' && text.find("..") == std::string::npos;
  if (!plain) throw file_error{fmt::format("`subjects.{}` is no subject", field)};
  return text;
}

std::string label_field(const json& object, const char* field) {
  auto text = text_field(object, field, true);
  if (!protocol::is_label(text)) throw file_error{fmt::format("`{}` is no DNS label", field)};
  return text;
}

std::string path_field(const json& object, const char* field, const std::filesystem::path& folder) {
  const auto text = text_field(object, field, false);
  return text.empty() ? std::string{} : (folder / text).string();  // an absolute one replaces the folder
}

EVP_PKEY* as_key(const std::shared_ptr<void>& key) { return static_cast<EVP_PKEY*>(key.get()); }

}  // namespace

enrolment parse_enrolment(std::string_view text, const std::filesystem::path& folder) {
  const auto root = json::parse(text, nullptr, false);
  if (!root.is_object()) throw file_error{"is not a JSON object"};
  const auto version = root.find("version");
  if (version == root.end() || !version->is_number_integer() || version->get<std::int64_t>() != 1)
    throw file_error{"`version` is not 1"};

  enrolment out;
  out.project = label_field(root, "project");
  out.connector = label_field(root, "connector");
  out.uid = text_field(root, "uid", true);
  if (const auto at = root.find("partition"); at != root.end()) {
    if (!at->is_number_unsigned() || at->get<std::uint64_t>() > 65'535) throw file_error{"`partition` is no partition"};
    out.partition = at->get<int>();
  }

  const auto& nats = object_field(root, "nats");
  const auto urls = nats.find("urls");
  if (urls == nats.end() || !urls->is_array() || urls->empty() || urls->size() > urls_max)
    throw file_error{"`nats.urls` is not a list of 1 to 32 URLs"};
  for (const auto& url : *urls) {
    if (!url.is_string() || url.get_ref<const std::string&>().empty()) throw file_error{"`nats.urls` has one that is no text"};
    out.nats_urls.push_back(url.get<std::string>());
  }
  out.nats_user = text_field(nats, "user", false);
  out.nats_password = text_field(nats, "password", false);
  out.nats_credentials_file = path_field(nats, "credentials", folder);
  out.nats_jwt = text_field(nats, "jwt", false);
  out.nats_seed = text_field(nats, "seed", false);
  if (out.nats_jwt.empty() != out.nats_seed.empty()) throw file_error{"`nats.jwt` and `nats.seed` go together"};
  out.nats_inbox_prefix = text_field(nats, "inbox_prefix", false);
  out.nats_ca_file = path_field(nats, "ca", folder);
  out.nats_certificate_file = path_field(nats, "certificate", folder);
  out.nats_key_file = path_field(nats, "key", folder);

  const auto& subjects = object_field(root, "subjects");
  out.hello_subject = subject_field(subjects, "hello");
  out.heartbeat_subject = subject_field(subjects, "heartbeat");
  out.event_subject = subject_field(subjects, "event");
  out.command_subject = subject_field(subjects, "command");
  return out;
}

enrolment read_enrolment(const std::filesystem::path& file) {
  const auto text = read_whole(file, enrolment_bytes_max);
  try {
    return parse_enrolment(text, std::filesystem::absolute(file).parent_path());
  } catch (const file_error& e) {
    throw file_error{fmt::format("{}: {}", file.string(), e.what())};
  }
}

unsigned others_may_read(const std::filesystem::path& file) {
  struct stat about {};
  if (::stat(file.c_str(), &about) != 0 || (about.st_mode & 077) == 0) return 0;
  return about.st_mode & 0777;
}

identity::identity(std::shared_ptr<void> key) : key_(std::move(key)) {
  std::array<unsigned char, 32> raw{};
  std::size_t length = raw.size();
  if (EVP_PKEY_get_raw_public_key(as_key(key_), raw.data(), &length) != 1 || length != raw.size())
    throw file_error{"the key has no public half"};
  public_key_hex_ = protocol::hex({reinterpret_cast<const char*>(raw.data()), raw.size()});
}

identity identity::from_file(const std::filesystem::path& file) {
  if (const auto mode = others_may_read(file); mode != 0)
    throw file_error{fmt::format("{}: others may read this key (mode {:o}); chmod 600 it", file.string(), mode)};
  auto text = read_whole(file, key_bytes_max);
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio{BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), &BIO_free};
  std::shared_ptr<void> key{bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr) : nullptr,
                            [](void* k) { EVP_PKEY_free(static_cast<EVP_PKEY*>(k)); }};
  OPENSSL_cleanse(text.data(), text.size());
  if (!key || EVP_PKEY_id(as_key(key)) != EVP_PKEY_ED25519)
    throw file_error{fmt::format("{}: is no Ed25519 key in PEM", file.string())};
  return identity{std::move(key)};
}

identity identity::generate(const std::filesystem::path& file) {
  EVP_PKEY* made = nullptr;
  const std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)> context{
      EVP_PKEY_CTX_new_id(EVP_PKEY_ED25519, nullptr), &EVP_PKEY_CTX_free};
  if (!context || EVP_PKEY_keygen_init(context.get()) != 1 || EVP_PKEY_keygen(context.get(), &made) != 1)
    throw file_error{"no key could be made"};
  identity out{std::shared_ptr<void>{made, [](void* k) { EVP_PKEY_free(static_cast<EVP_PKEY*>(k)); }}};

  const std::unique_ptr<BIO, decltype(&BIO_free)> bio{BIO_new(BIO_s_secmem()), &BIO_free};
  if (!bio || PEM_write_bio_PrivateKey(bio.get(), made, nullptr, nullptr, 0, nullptr, nullptr) != 1)
    throw file_error{"the key could not be encoded"};
  char* data = nullptr;
  const auto length = BIO_get_mem_data(bio.get(), &data);

  const descriptor fd{::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
  if (fd.get() < 0) {
    if (errno == EEXIST) throw file_error{fmt::format("{}: is there already; it is not overwritten", file.string())};
    throw file_error{fmt::format("{}: cannot be created: {}", file.string(), std::generic_category().message(errno))};
  }
  try {
    write_all(fd.get(), {data, static_cast<std::size_t>(length)}, file.string());
  } catch (const std::system_error& e) {
    ::unlink(file.c_str());
    throw file_error{e.what()};
  }
  return out;
}

std::string identity::sign(std::string_view message) const {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
  std::array<unsigned char, 64> out{};
  std::size_t length = out.size();
  if (!context || EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, as_key(key_)) != 1 ||
      EVP_DigestSign(context.get(), out.data(), &length, reinterpret_cast<const unsigned char*>(message.data()),
                     message.size()) != 1)
    throw std::runtime_error{"cannot sign"};
  return {reinterpret_cast<const char*>(out.data()), length};
}

std::string random_bytes(std::size_t bytes) {
  std::string out(bytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(out.data()), static_cast<int>(bytes)) != 1)
    throw std::runtime_error{"the system has no random numbers"};
  return out;
}

void write_whole(const std::filesystem::path& file, std::string_view bytes) {
  const auto temporary = file.string() + ".new";
  {
    const descriptor fd{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    if (fd.get() < 0) fail_errno("cannot create " + temporary);
    write_all(fd.get(), bytes, temporary);
  }
  if (::rename(temporary.c_str(), file.c_str()) != 0) fail_errno("cannot rename " + temporary);
  sync_folder(file.parent_path());
}

void sync_folder(const std::filesystem::path& path) {
  const descriptor folder{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (folder.get() < 0 || ::fsync(folder.get()) != 0) fail_errno("cannot sync " + path.string());
}

std::string read_whole(const std::filesystem::path& file, std::size_t bytes_max) {
  std::ifstream in{file, std::ios::binary};
  if (!in) throw file_error{fmt::format("{}: cannot be read", file.string())};
  std::string out;
  std::array<char, 16 * 1024> piece{};
  while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0) {
    out.append(piece.data(), static_cast<std::size_t>(in.gcount()));
    if (out.size() > bytes_max) throw file_error{fmt::format("{}: is larger than {} bytes", file.string(), bytes_max)};
  }
  if (in.bad()) throw file_error{fmt::format("{}: cannot be read", file.string())};
  return out;
}

}  // namespace warren::agent
