// test/machine/hook_property_test.cpp -- what holds of the extension hook's answer whatever comes in: captured requests,
// thousands of made-up ones, and bytes that are hardly messages.
#include <catch2/catch.hpp>

#include <algorithm>
#include <random>

#include "test/support/hook.hpp"

using namespace warren;
using namespace warren::test;

namespace {

using dice = std::mt19937_64;
std::size_t roll(dice& d, std::size_t below) { return below == 0 ? 0 : d() % below; }
template <class T> const T& any_of(dice& d, const std::vector<T>& all) { return all[roll(d, all.size())]; }

/// Names that collide, nearly match, or belong to somebody else.
const std::vector<std::string>& cluster_names() {
  static const std::vector<std::string> all{
      "httproute/p/on/rule/0", "httproute/p/on/rule/1", "httproute/p/off/rule/0", "httproute/p/off/rule/1",
      "httproute/p/mixed/rule/0", "httproute/p/mixed/rule/1", "httproute/p/on/rule/0/backend/0",
      "httproute/p/off/rule/0/backend/1", "httproute/p/nobody/rule/0", "httproute/p/on/rule/7",
      "httproute/p/on/rule/0-mirror-0", "invalid-backend-cluster", "grpcroute/p/on/rule/0", "", "elsewhere"};
  return all;
}
const truths& world() {
  static const truths all{{"p/on", truth({online_rule(0), online_rule(1)})},
                          {"p/off", truth({offline_rule(0), offline_rule(1)})},
                          {"p/mixed", truth({offline_rule(0), online_rule(1)})}};
  return all;
}

/// Bytes of fields that our schema does not know, in any message.
void make_strange(dice& d, google::protobuf::Message& m) {
  auto* unknown = m.GetReflection()->MutableUnknownFields(&m);
  for (auto n = roll(d, 3); n > 0; --n) {
    const int number = 500 + static_cast<int>(roll(d, 5));
    if (roll(d, 2) == 0) unknown->AddVarint(number, d());
    else unknown->AddLengthDelimited(number, std::string(roll(d, 9), static_cast<char>(d() % 128)));
  }
}

void fill(dice& d, routes::Route& r, const std::string& id) {
  r.set_name(any_of<std::string>(d, {"r", "", "connector-connect-" + id, "connector-offline-" + id, "connector-connect-x"}));
  switch (roll(d, 4)) {
    case 0: r.mutable_match()->mutable_connect_matcher(); break;
    case 1: r.mutable_match()->set_path("/x"); break;
    case 2: break;
    default: r.mutable_match()->set_prefix("/");
  }
  make_strange(d, *r.mutable_match());
  if (roll(d, 3) == 0) (*r.mutable_typed_per_filter_config())["f"].set_value("v");
  switch (roll(d, 6)) {
    case 0: r.mutable_direct_response()->set_status(404); break;
    case 1: break;
    case 2:
      for (auto n = roll(d, 4); n > 0; --n) add_member(&r, any_of(d, cluster_names()), static_cast<unsigned>(roll(d, 3)));
      if (r.has_route() && roll(d, 2) == 0) r.mutable_route()->mutable_weighted_clusters()->mutable_total_weight()->set_value(3);
      break;
    case 3: r.mutable_route()->set_cluster_header("x-cluster"); break;
    default: r.mutable_route()->set_cluster(any_of(d, cluster_names()));
  }
  if (r.has_route()) make_strange(d, *r.mutable_route());
  make_strange(d, r);
}

eg::PostTranslateModifyRequest made_up(dice& d) {
  static const std::vector<std::string> names{"a/b", "a:b", "a b", "a-b", "A/b", "", "x\ny", "t"};
  static const std::vector<std::string> domains{"a.test", "A.TEST", "b.test", "*", "a-b.connector.internal",
                                                "A-B.connector.internal", "t.connector.internal", "", "*.test"};
  eg::PostTranslateModifyRequest r;
  for (auto n = roll(d, 6); n > 0; --n) {
    add_cluster(r, any_of(d, cluster_names()));
    make_strange(d, *r.mutable_clusters(r.clusters_size() - 1));
  }
  for (auto n = roll(d, 3); n > 0; --n) {
    r.add_secrets()->set_name("s");
    make_strange(d, *r.mutable_secrets(r.secrets_size() - 1));
  }
  for (auto n = roll(d, 3); n > 0; --n) {
    auto* config = r.add_routes();
    config->set_name(any_of<std::string>(d, {"one", "two", ""}));
    for (auto h = roll(d, 5); h > 0; --h) {
      auto* host = config->add_virtual_hosts();
      host->set_name(any_of(d, names));
      std::string id = host->name();
      std::replace_if(id.begin(), id.end(), [](char c) { return c == '/' || c == ' ' || c == ':'; }, '-');
      for (auto k = roll(d, 4); k > 0; --k) host->add_domains(any_of(d, domains));
      for (auto k = roll(d, 5); k > 0; --k) fill(d, *host->add_routes(), id);
      make_strange(d, *host);
      host->GetReflection()->MutableUnknownFields(host)->AddVarint(600, h);  // tells it from its namesakes
    }
    make_strange(d, *config);
  }
  for (auto n = roll(d, 3); n > 0; --n)
    make_strange(d, *add_listener(r, "l", any_of<std::string>(d, {"one", "two", ""}), roll(d, 2) == 0));
  return r;
}

/// Payloads of a field, in order.
std::vector<std::string_view> parts(std::string_view message, std::uint32_t number) {
  std::vector<std::string_view> out;
  hook::wire::reader in{message};
  for (hook::wire::field f; in.next(f);)
    if (f.is_bytes(number)) out.push_back(f.payload);
  return out;
}
std::string all_but(std::string_view message, std::initializer_list<std::uint32_t> without) {
  std::string out;
  hook::wire::reader in{message};
  for (hook::wire::field f; in.next(f);)
    if (std::find(without.begin(), without.end(), f.number) == without.end()) out += f.whole;
  return out;
}
std::string first(std::string_view message, std::uint32_t number) {
  const auto all = parts(message, number);
  return all.empty() ? "" : std::string{all.front()};
}

void expect_unique_domains(const std::string& response) {
  for (const auto config : parts(response, 4)) {
    std::set<std::string> seen;
    for (const auto host : parts(config, 2))
      for (const auto domain : parts(host, 2)) {
        std::string small{domain};
        std::transform(small.begin(), small.end(), small.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
        if (!seen.insert(small).second) FAIL("twice in one route configuration: " << small);
      }
  }
}

/// Everything that is not ours to change is the same bytes in the same order; `request` and `response` are encoded.
void expect_preserved(const std::string& request, const std::string& response) {
  const auto before = parts(request, 5), after = parts(response, 4);
  REQUIRE(before.size() == after.size());
  REQUIRE(parts(request, 3) == parts(response, 2));
  REQUIRE(parts(request, 2).size() == parts(response, 1).size());
  REQUIRE(parts(request, 4).size() == parts(response, 3).size());
  for (std::size_t c = 0; c < before.size(); ++c) {
    if (all_but(before[c], {2}) != all_but(after[c], {2})) FAIL("a route configuration");
    const auto hosts_before = parts(before[c], 2), hosts_after = parts(after[c], 2);
    std::size_t at = 0;
    for (const auto host : hosts_after) {
      // Hosts that lost every domain to others are left out.
      while (at < hosts_before.size() && all_but(hosts_before[at], {2, 3}) != all_but(host, {2, 3})) ++at;
      if (at == hosts_before.size()) FAIL("a virtual host from nowhere");
      std::vector<std::string_view> was = parts(hosts_before[at++], 3), is = parts(host, 3);
      const auto own = [](std::string_view route) {
        const auto name = first(route, 14);
        return (name.rfind("connector-connect-", 0) == 0 || name.rfind("connector-offline-", 0) == 0) &&
               parts(first(route, 1), 12).size() == 1;
      };
      was.erase(std::remove_if(was.begin(), was.end(), own), was.end());
      is.erase(std::remove_if(is.begin(), is.end(), own), is.end());
      if (was.size() != is.size()) FAIL("a route is missing");
      for (std::size_t r = 0; r < was.size(); ++r)
        if (all_but(was[r], {2, 7}) != all_but(is[r], {2, 7})) FAIL("a route changed beside its action");
    }
  }
}

void expect_all(const std::string& request, const hook::find_tunnel& find) {
  const auto once = hook::transform(request, find, {});
  REQUIRE(once.error.empty());
  expect_unique_domains(once.response);
  expect_preserved(request, once.response);
  const auto twice = hook::transform(as_request(once.response), find, {});
  if (twice.response != once.response) FAIL("the answer to the answer is another one");
  eg::PostTranslateModifyResponse parsed;
  REQUIRE(parsed.ParseFromString(once.response));
  // Nothing leads to a connector that is offline.
  for (const auto& config : parsed.routes())
    for (const auto& host : config.virtual_hosts())
      for (const auto& r : host.routes()) {
        const auto offline = [&](const std::string& cluster) {
          const auto key = hook::parse_cluster_name(cluster);
          const auto tunnel = key ? find(key->route_namespace, key->tunnel) : nullptr;
          return tunnel && std::any_of(tunnel->rules.begin(), tunnel->rules.end(), [&](const auto& rule) {
                   return rule.index == key->rule && !rule.online();
                 });
        };
        const bool stale = r.match().has_connect_matcher() && r.name().rfind("connector-", 0) == 0;
        if (!stale && offline(r.route().cluster())) FAIL("a route leads to an offline connector");
        for (const auto& m : r.route().weighted_clusters().clusters())
          if (!stale && offline(m.name())) FAIL("a weighted route leads to an offline connector");
      }
}

}  // namespace

TEST_CASE("captured requests: every tunnel online, every one offline, and none known") {
  for (const auto* name : {"request-0001-plain", "request-0010-tunnel", "request-0100-mixed"}) {
    const auto request = captured(name);
    CAPTURE(name);
    expect_all(request, all_of_them(true));
    expect_all(request, all_of_them(false));
    const auto none = hook::transform(request, [](auto, auto) { return nullptr; }, {});
    CHECK(none.counts.vhosts_connector_applied == 0);
    CHECK(as_request(none.response) == request.substr(2));  // but for the (empty) context before all else
  }
  const auto tunnels = hook::transform(captured("request-0010-tunnel"), all_of_them(true), {});
  CHECK(tunnels.counts.clusters == 11);
  CHECK(tunnels.counts.clusters_replaced == 11);
  CHECK(tunnels.counts.vhosts_connector_applied == 10);
  CHECK(tunnels.counts.listeners == 2);
  CHECK(tunnels.answered.size() == 10);
}

TEST_CASE("made-up requests: idempotent, domains unique, everything else the same bytes") {
  dice d{20260711};
  for (int i = 0; i < 6'000; ++i) {
    const auto request = made_up(d).SerializeAsString();
    CAPTURE(i);
    expect_all(request, find_in(world()));
  }
}

namespace {

/// What is done to `bytes` is what a fuzzer does: flipped, cut out, put in, cut off.
std::string damaged(dice& d, std::string bytes) {
  for (auto n = 1 + roll(d, 4); n > 0 && !bytes.empty(); --n) {
    const auto at = roll(d, bytes.size());
    switch (roll(d, 4)) {
      case 0: bytes[at] = static_cast<char>(d()); break;
      case 1: bytes.erase(at, 1 + roll(d, 8)); break;
      case 2: bytes.insert(at, 1 + roll(d, 4), static_cast<char>(d())); break;
      default: bytes.resize(at);
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("fuzzing: half a million requests, made up and damaged over and over", "[long]") {
  dice d{20261121};
  std::vector<std::string> corpus{captured("request-0001-plain"), captured("request-0010-tunnel")};
  for (int i = 0; i < 500; ++i) corpus.push_back(made_up(d).SerializeAsString());
  constexpr std::size_t corpus_max = 5'000;
  int answered = 0;
  for (int i = 0; i < 500'000; ++i) {
    auto& from = corpus[roll(d, corpus.size())];
    auto bytes = damaged(d, from);
    const auto once = hook::transform(bytes, find_in(world()), {});
    if (!once.error.empty()) continue;
    ++answered;
    expect_unique_domains(once.response);
    if (hook::transform(as_request(once.response), find_in(world()), {}).response != once.response)
      FAIL("the answer to the answer is another one, case " << i);
    // What is still a message is damaged further: so it gets where one step does not.
    if (corpus.size() < corpus_max) corpus.push_back(std::move(bytes));
    else from = std::move(bytes);
  }
  CHECK(answered > 10'000);
}

TEST_CASE("damaged requests neither crash nor hang, and their answers are messages") {
  dice d{4711};
  std::vector<std::string> corpus{captured("request-0001-plain"), captured("request-0010-tunnel")};
  for (int i = 0; i < 200; ++i) corpus.push_back(made_up(d).SerializeAsString());
  int refused = 0, answered = 0;
  for (int i = 0; i < 6'000; ++i) {
    const auto bytes = damaged(d, any_of(d, corpus));
    const auto once = hook::transform(bytes, find_in(world()), {});
    if (!once.error.empty()) {
      ++refused;
      CHECK(once.response.empty());
      continue;
    }
    ++answered;
    expect_unique_domains(once.response);
    const auto twice = hook::transform(as_request(once.response), find_in(world()), {});
    if (twice.response != once.response) FAIL("the answer to the answer is another one, case " << i);
  }
  CHECK(refused > 300);
  CHECK(answered > 300);
}
