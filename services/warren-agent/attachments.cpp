// services/warren-agent/attachments.cpp -- the set of tunnels that this agent holds, and its form on disk.
#include "services/warren-agent/attachments.hpp"

#include <cerrno>
#include <system_error>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>
#include <nlohmann/json.hpp>

#include "actors/core/ids.hpp"
#include "actors/core/limits.hpp"
#include "services/warren-agent/enrolment.hpp"

namespace warren::agent {

namespace {

using json = nlohmann::json;
constexpr std::size_t file_bytes_max = 64 * 1024 * 1024;

bool same(const busv1::Attachment& a, const busv1::Attachment& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

json to_json(const busv1::Attachment& one) {
  json rules = json::array();
  for (const auto& rule : one.rules())
    rules.push_back({{"index", rule.index()}, {"target", rule.target()}, {"tls_verify", rule.tls_verify()}});
  return {{"tunnel", one.tunnel()},
          {"tunnel_uid", one.tunnel_uid()},
          {"tunnel_generation", one.tunnel_generation()},
          {"rules", std::move(rules)}};
}

/// Throws json::exception where a field is missing or of another type. False: more rules than there may be.
bool read_attachment(const json& from, busv1::Attachment& out) {
  out.set_tunnel(from.at("tunnel").get<std::string>());
  out.set_tunnel_uid(from.at("tunnel_uid").get<std::string>());
  out.set_tunnel_generation(from.at("tunnel_generation").get<std::int64_t>());
  for (const auto& rule : from.at("rules")) {
    auto& attached = *out.add_rules();
    attached.set_index(rule.at("index").get<std::int32_t>());
    attached.set_target(rule.at("target").get<std::string>());
    attached.set_tls_verify(rule.at("tls_verify").get<bool>());
  }
  return out.rules_size() <= static_cast<int>(limits::rules_max);
}

std::string text_of(const json& value, int indent) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

std::string hash_of(std::string_view text) { return fmt::format("{:016x}", fnv1a_64(text)); }

std::optional<set_step> parse_step(std::string_view text) {
  const auto root = json::parse(text, nullptr, false);
  if (!root.is_object()) return std::nullopt;
  try {
    const auto from = root.at("from").get<std::int64_t>(), generation = root.at("generation").get<std::int64_t>();
    if (root.contains("attached")) {
      busv1::Attach out;
      out.set_from_generation(from);
      out.set_generation(generation);
      for (const auto& one : root.at("attached"))
        if (!read_attachment(one, *out.add_attachments())) return std::nullopt;
      return out;
    }
    busv1::Detach out;
    out.set_from_generation(from);
    out.set_generation(generation);
    for (const auto& one : root.at("detached")) {
      auto& gone = *out.add_tunnels();
      gone.set_tunnel_uid(one.at("tunnel_uid").get<std::string>());
      gone.set_tunnel_generation(one.at("tunnel_generation").get<std::int64_t>());
    }
    return out;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

[[noreturn]] void fail_errno(const std::string& what) { throw std::system_error{errno, std::generic_category(), what}; }

}  // namespace

const busv1::Attachment* attachment_set::find(std::string_view tunnel_uid, std::int64_t tunnel_generation) const {
  const auto at = held_.find({std::string{tunnel_uid}, tunnel_generation});
  return at == held_.end() ? nullptr : &at->second;
}

applied attachment_set::position(std::int64_t from_generation, std::int64_t generation) const {
  if (generation == generation_) return applied::repeated;
  if (generation < generation_) return applied::overtaken;
  return from_generation == generation_ ? applied::changed : applied::gap;
}

void attachment_set::hold(const busv1::Attachment& one) {
  const attachment_key key{one.tunnel_uid(), one.tunnel_generation()};
  if (one.rules().empty()) held_.erase(key);
  else held_.insert_or_assign(key, one);
}

applied attachment_set::apply(const busv1::Attach& attach) {
  const auto where = position(attach.from_generation(), attach.generation());
  if (where != applied::changed) return where;
  for (const auto& one : attach.attachments()) hold(one);
  generation_ = attach.generation();
  return where;
}

applied attachment_set::apply(const busv1::Detach& detach) {
  const auto where = position(detach.from_generation(), detach.generation());
  if (where != applied::changed) return where;
  for (const auto& one : detach.tunnels()) held_.erase({one.tunnel_uid(), one.tunnel_generation()});
  generation_ = detach.generation();
  return where;
}

applied attachment_set::apply(const busv1::AttachmentSet& set, bool whatever_generation) {
  if (set.generation() < generation_ && !whatever_generation) return applied::overtaken;
  attachment_set next;
  next.generation_ = set.generation();
  for (const auto& one : set.attachments()) next.hold(one);
  if (next == *this) return applied::repeated;
  *this = std::move(next);
  return applied::changed;
}

bool attachment_set::operator==(const attachment_set& other) const {
  return generation_ == other.generation_ &&
         std::equal(held_.begin(), held_.end(), other.held_.begin(), other.held_.end(),
                    [](const auto& a, const auto& b) { return a.first == b.first && same(a.second, b.second); });
}

std::string print(const saved_set& saved) {
  json list = json::array();
  for (const auto& [key, one] : saved.set.all()) list.push_back(to_json(one));
  const json root{{"version", 1},
                  {"connector_uid", saved.connector_uid},
                  {"public_key", saved.public_key_hex},
                  {"generation", saved.set.generation()},
                  {"journal", saved.journal},
                  {"attachments", std::move(list)}};
  return text_of(root, 1) + "\n";
}

std::optional<saved_set> parse_saved(std::string_view text) {
  const auto root = json::parse(text, nullptr, false);
  if (!root.is_object()) return std::nullopt;
  try {
    if (root.at("version").get<int>() != 1) return std::nullopt;
    saved_set out;
    out.connector_uid = root.at("connector_uid").get<std::string>();
    out.public_key_hex = root.at("public_key").get<std::string>();
    if (root.contains("journal")) out.journal = root.at("journal").get<std::string>();
    busv1::AttachmentSet set;
    set.set_generation(root.at("generation").get<std::int64_t>());
    for (const auto& one : root.at("attachments"))
      if (!read_attachment(one, *set.add_attachments())) return std::nullopt;
    if (set.generation() < 0) return std::nullopt;
    out.set.apply(set, true);
    return out;
  } catch (const json::exception&) {
    return std::nullopt;  // a field is missing or of another type
  }
}

std::string print_step(std::string_view journal, const set_step& step) {
  json root;
  if (const auto* attach = std::get_if<busv1::Attach>(&step)) {
    json list = json::array();
    for (const auto& one : attach->attachments()) list.push_back(to_json(one));
    root = {{"from", attach->from_generation()}, {"generation", attach->generation()}, {"attached", std::move(list)}};
  } else {
    const auto& detach = std::get<busv1::Detach>(step);
    json list = json::array();
    for (const auto& one : detach.tunnels())
      list.push_back({{"tunnel_uid", one.tunnel_uid()}, {"tunnel_generation", one.tunnel_generation()}});
    root = {{"from", detach.from_generation()}, {"generation", detach.generation()}, {"detached", std::move(list)}};
  }
  const auto text = text_of(root, -1);  // on one line: JSON escapes line breaks
  return fmt::format("{} {} {}\n", journal, hash_of(text), text);
}

std::size_t replay(std::string_view lines, saved_set& saved) {
  std::size_t applied_lines = 0;
  if (saved.journal.empty()) return applied_lines;
  const auto text_at = saved.journal.size() + 1 + hash_of({}).size() + 1;
  for (;; ++applied_lines) {
    const auto end = lines.find('\n');
    if (end == std::string_view::npos) return applied_lines;  // torn, or nothing more
    const auto line = lines.substr(0, end);
    lines.remove_prefix(end + 1);
    if (line.size() <= text_at) return applied_lines;
    const auto text = line.substr(text_at);
    if (line.substr(0, text_at) != fmt::format("{} {} ", saved.journal, hash_of(text))) return applied_lines;
    const auto step = parse_step(text);
    if (!step) return applied_lines;
    if (std::visit([&](const auto& s) { return saved.set.apply(s); }, *step) != applied::changed) return applied_lines;
  }
}

attachment_file::attachment_file(std::filesystem::path folder)
    : path_(folder / "attachments.json"), journal_(std::move(folder) / "attachments.journal") {}

attachment_file::~attachment_file() {
  if (fd_ >= 0) ::close(fd_);
}

std::pair<attachment_file::outcome, attachment_set> attachment_file::load(std::string_view connector_uid,
                                                                          std::string_view public_key_hex) const {
  if (!std::filesystem::exists(path_)) return {outcome::absent, {}};
  std::optional<saved_set> saved;
  try {
    saved = parse_saved(read_whole(path_, file_bytes_max));
  } catch (const file_error&) {
    saved.reset();
  }
  if (!saved) {
    std::error_code ignored;  // evidence for a person; whether it can be kept changes nothing
    std::filesystem::rename(path_, path_.string() + ".corrupt", ignored);
    return {outcome::corrupt, {}};
  }
  if (saved->connector_uid != connector_uid || saved->public_key_hex != public_key_hex) return {outcome::foreign, {}};
  if (std::filesystem::exists(journal_)) try {
      replay(read_whole(journal_, file_bytes_max), *saved);
    } catch (const file_error&) {
      // The set without its last steps: the owner hears its generation and sends what is missing.
    }
  return {outcome::loaded, std::move(saved->set)};
}

void attachment_file::save(std::string_view text) {
  write_whole(path_, text);
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void attachment_file::append(std::string_view lines) {
  if (fd_ < 0) {
    fd_ = ::open(journal_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (fd_ < 0) fail_errno("cannot create " + journal_.string());
    sync_folder(journal_.parent_path());
  }
  while (!lines.empty()) {
    const auto n = ::write(fd_, lines.data(), lines.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("cannot write " + journal_.string());
    lines.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fdatasync(fd_) != 0) fail_errno("cannot sync " + journal_.string());
}

}  // namespace warren::agent
