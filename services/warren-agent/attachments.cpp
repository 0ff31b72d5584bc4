// services/warren-agent/attachments.cpp -- the set of tunnels that this agent holds, and its form on disk.
#include "services/warren-agent/attachments.hpp"

#include <google/protobuf/util/message_differencer.h>
#include <nlohmann/json.hpp>

#include "actors/core/limits.hpp"
#include "services/warren-agent/enrolment.hpp"

namespace warren::agent {

namespace {

using json = nlohmann::json;
constexpr std::size_t file_bytes_max = 64 * 1024 * 1024;

bool same(const busv1::Attachment& a, const busv1::Attachment& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

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

applied attachment_set::apply(const busv1::Attach& attach) {
  const auto where = position(attach.from_generation(), attach.generation());
  if (where != applied::changed) return where;
  for (const auto& one : attach.attachments())
    held_.insert_or_assign({one.tunnel_uid(), one.tunnel_generation()}, one);
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
  for (const auto& one : set.attachments()) next.held_.insert_or_assign({one.tunnel_uid(), one.tunnel_generation()}, one);
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
  for (const auto& [key, one] : saved.set.all()) {
    json rules = json::array();
    for (const auto& rule : one.rules())
      rules.push_back({{"index", rule.index()}, {"target", rule.target()}, {"tls_verify", rule.tls_verify()}});
    list.push_back({{"tunnel", one.tunnel()},
                    {"tunnel_uid", key.tunnel_uid},
                    {"tunnel_generation", key.tunnel_generation},
                    {"rules", std::move(rules)}});
  }
  const json root{{"version", 1},
                  {"connector_uid", saved.connector_uid},
                  {"public_key", saved.public_key_hex},
                  {"generation", saved.set.generation()},
                  {"attachments", std::move(list)}};
  return root.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::optional<saved_set> parse_saved(std::string_view text) {
  const auto root = json::parse(text, nullptr, false);
  if (!root.is_object()) return std::nullopt;
  try {
    if (root.at("version").get<int>() != 1) return std::nullopt;
    saved_set out;
    out.connector_uid = root.at("connector_uid").get<std::string>();
    out.public_key_hex = root.at("public_key").get<std::string>();
    busv1::AttachmentSet set;
    set.set_generation(root.at("generation").get<std::int64_t>());
    for (const auto& one : root.at("attachments")) {
      auto& attachment = *set.add_attachments();
      attachment.set_tunnel(one.at("tunnel").get<std::string>());
      attachment.set_tunnel_uid(one.at("tunnel_uid").get<std::string>());
      attachment.set_tunnel_generation(one.at("tunnel_generation").get<std::int64_t>());
      for (const auto& rule : one.at("rules")) {
        auto& attached = *attachment.add_rules();
        attached.set_index(rule.at("index").get<std::int32_t>());
        attached.set_target(rule.at("target").get<std::string>());
        attached.set_tls_verify(rule.at("tls_verify").get<bool>());
      }
      if (attachment.rules_size() > static_cast<int>(limits::rules_max)) return std::nullopt;
    }
    if (set.generation() < 0) return std::nullopt;
    out.set.apply(set, true);
    return out;
  } catch (const json::exception&) {
    return std::nullopt;  // a field is missing or of another type
  }
}

attachment_file::attachment_file(std::filesystem::path folder) : path_(std::move(folder) / "attachments.json") {}

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
  return {outcome::loaded, std::move(saved->set)};
}

void attachment_file::save(std::string_view text) const { write_whole(path_, text); }

}  // namespace warren::agent
