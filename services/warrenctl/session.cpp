// services/warrenctl/session.cpp -- see session.hpp.
#include "services/warrenctl/session.hpp"

#include <fstream>
#include <random>
#include <sstream>

#include "actors/core/limits.hpp"

namespace warren::ctl {

namespace {

// Of several: so long one may be silent before another is asked.
constexpr std::chrono::duration<int, std::milli> silence_max{2000};

}  // namespace

std::optional<milliseconds> parse_span(const std::string& text) {
  std::int64_t n = 0;
  const auto [unit, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  const std::string_view u{unit, static_cast<std::size_t>(text.data() + text.size() - unit)};
  if (error != std::errc{} || n < 0 || n > 1'000'000'000) return std::nullopt;
  if (u == "ms") return milliseconds{n};
  if (u == "s" || u.empty()) return milliseconds{n * 1000};
  if (u == "m") return milliseconds{n * 60'000};
  if (u == "h") return milliseconds{n * 3'600'000};
  return std::nullopt;
}
void put(google::protobuf::Duration& to, const std::string& text, const std::string& option) {
  const auto span = parse_span(text);
  if (!span) throw usage{option + " is a time such as 30s, 500ms or 5m"};
  to.set_seconds(span->count() / 1000);
  to.set_nanos(static_cast<std::int32_t>(span->count() % 1000) * 1'000'000);
}

std::string read_file(const std::string& path) {
  std::ifstream in{path == "-" ? "/dev/stdin" : path, std::ios::binary};
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) throw usage{"cannot read " + path};
  return text.str();
}

std::string project_words(const options& o) {
  const auto named = project_of(o.name);
  const auto& project = named.empty() ? o.project : named;
  return project == options{}.project ? std::string{} : " -p " + project;
}

std::string fresh_request_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

session::session(const options& given, surroundings& where) : o{given}, around{where} {
  if (o.output == "json") out_format = format::json;
  else if (o.output == "yaml") out_format = format::yaml;
  else if (o.output == "name") out_format = format::name;
  if (!o.timeout.empty()) {
    const auto span = parse_span(o.timeout);
    if (!span || span->count() == 0) throw usage{"--timeout is a time such as 30s, 500ms or 5m"};
    timeout = *span;
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // the admin API is local; a proxy cannot reach it
  arguments.SetMaxReceiveMessageSize(64 * 1024 * 1024);
  std::istringstream given_addresses{o.server};
  for (std::string each; std::getline(given_addresses, each, ',');)
    if (!each.empty()) addresses.push_back(each);
  if (addresses.empty()) throw usage{"--server names nobody"};
  if (addresses.size() > 1) {
    // A watch has no deadline that would tell that its instance is silent: the connection has to.
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, silence_max.count());  // how long connecting may take
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, silence_max.count());
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, silence_max.count());
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // as many as it takes
  }
  for (const auto& each : addresses)
    servers.push_back(grpc::CreateCustomChannel(each, grpc::InsecureChannelCredentials(), arguments));
  channel = servers.front();
}

std::vector<std::string> session::not_asked(std::size_t tries) const {
  std::vector<std::string> out;
  // The last of them is the one that is asked at the moment.
  for (auto n = tries; n < addresses.size(); ++n) out.push_back(addresses[(asked + 1 + n - tries) % addresses.size()]);
  return out;
}

void session::say_age(const grpc::ClientContext& context) {
  const auto& said = context.GetServerTrailingMetadata();
  const auto text = [&](const char* key) {
    const auto at = said.find(key);
    return at == said.end() ? std::string{} : std::string{at->second.data(), at->second.size()};
  };
  std::int64_t age_ms = 0;
  const auto number = text("warren-data-age-ms");
  std::from_chars(number.data(), number.data() + number.size(), age_ms);
  if (age_ms < limits::data_age_shown / 1ms || std::exchange(age_said, true)) return;
  const auto why = text("warren-data-age-reason");
  around.err << fmt::format("warrenctl: data is {} s old{}{}\n", age_ms / 1000, why.empty() ? "" : ": ", why);
}

}  // namespace warren::ctl
