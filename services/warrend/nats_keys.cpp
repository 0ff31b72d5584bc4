// services/warrend/nats_keys.cpp -- the keys of an installation's bus, as files.
#include "services/warrend/nats_keys.hpp"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

#include <fcntl.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include "services/bus/user_jwt.hpp"

namespace warren {

namespace {

constexpr std::size_t key_bytes = 32, seed_file_bytes_max = 1024;

std::string entropy() {
  std::string out(key_bytes, '\0');
  if (RAND_priv_bytes(reinterpret_cast<unsigned char*>(out.data()), static_cast<int>(out.size())) != 1)
    throw std::runtime_error("the system has no randomness to give");
  return out;
}

/// A new file: what is there is somebody's key.
void write_new(const std::filesystem::path& file, std::string_view text, mode_t mode) {
  const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  if (fd < 0) throw std::runtime_error(file.string() + ": " + std::strerror(errno));
  bool good = true;
  while (good && !text.empty()) {
    const auto n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    good = n > 0;
    if (good) text.remove_prefix(static_cast<std::size_t>(n));
  }
  good = ::fsync(fd) == 0 && good;
  good = ::close(fd) == 0 && good;
  if (!good) throw std::runtime_error(file.string() + " cannot be written");
}

}  // namespace

std::vector<std::string> make_nats_keys(const std::string& folder) {
  using bus::nkey;
  const bus::issuers by{nkey{nkey::kind::operators, entropy()}, nkey{nkey::kind::account, entropy()},
                        nkey{nkey::kind::account, entropy()}};
  const auto now_s = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  const std::filesystem::path place{folder};
  std::filesystem::create_directories(place);
  const std::pair<const char*, std::string> secrets[] = {
      {"operator.seed", by.operators.seed() + "\n"},
      {"account.seed", by.account.seed() + "\n"},
      {"system.seed", by.system.seed() + "\n"},
      {"warrend.creds", bus::instance_credentials(by, entropy(), now_s)},
      {"watch.creds", bus::watch_credentials(by, entropy(), now_s)},
  };
  std::vector<std::string> names;
  for (const auto& [name, text] : secrets) {
    write_new(place / name, text, 0600);
    names.emplace_back(name);
  }
  write_new(place / "accounts.conf", bus::server_configuration(by, now_s), 0644);
  names.emplace_back("accounts.conf");
  return names;
}

bus::nkey read_account_seed(const std::string& file) {
  struct stat about {};
  if (::stat(file.c_str(), &about) != 0) throw std::runtime_error(file + ": " + std::strerror(errno));
  if ((about.st_mode & 077) != 0) throw std::runtime_error(file + ": others may read it; chmod 600 it");
  if (about.st_size > static_cast<off_t>(seed_file_bytes_max)) throw std::runtime_error(file + ": is no seed");
  std::ifstream in{file};
  std::string seed{std::istreambuf_iterator<char>{in}, {}};
  while (!seed.empty() && (seed.back() == '\n' || seed.back() == '\r' || seed.back() == ' ')) seed.pop_back();
  const auto key = bus::nkey::from_seed(seed);
  if (!key || key->what() != bus::nkey::kind::account) throw std::runtime_error(file + ": is no account's seed (SA...)");
  return *key;
}

}  // namespace warren
