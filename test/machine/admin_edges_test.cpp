// test/machine/admin_edges_test.cpp -- the edges of every limit and each way to be wrong: in specs, networks and names.
// What is refused says why; one step inside the limit nothing is.
#include <catch2/catch.hpp>

#include <google/protobuf/util/message_differencer.h>

#include "actors/connector/spec.hpp"
#include "actors/core/limits.hpp"
#include "actors/registry/spec.hpp"
#include "actors/tunnel/spec.hpp"

using namespace warren;
namespace v1 = core::v1;

namespace {

std::string labels_of(std::size_t chars) {  // "aaaa.aaaa. … .aa", so long
  std::string out;
  while (out.size() < chars) out += out.size() % 5 == 4 ? '.' : 'a';
  if (out.back() == '.') out.back() = 'a';
  return out;
}
template <class Violations> std::vector<std::string> fields_of(const Violations& all) {
  std::vector<std::string> out;
  for (const auto& v : all) {
    CHECK_FALSE(v.message.empty());
    out.push_back(v.field);
  }
  return out;
}
using strings = std::vector<std::string>;

v1::TunnelSpec tunnel_spec() {
  v1::TunnelSpec s;
  s.add_hostnames("a.example.com");
  auto& r = *s.add_rules();
  r.set_path_prefix("/");
  r.set_connector("c");
  r.set_target("http://t:80");
  s.set_gateway_class("default");
  return s;
}

}  // namespace

TEST_CASE("host names at their longest, and one more") {
  CHECK(tunnel::canonical_hostname(labels_of(253)).value.size() == 253);
  CHECK(tunnel::canonical_hostname(labels_of(253) + ".").value.size() == 253);
  CHECK(tunnel::canonical_hostname(labels_of(254)).error == "must have at most 253 characters");
  CHECK(tunnel::canonical_hostname(labels_of(254) + ".").error == "must have at most 253 characters");
  CHECK(tunnel::canonical_hostname(std::string(63, 'a') + ".b").value.size() == 65);
  CHECK(tunnel::canonical_hostname(std::string(64, 'a') + ".b").error.starts_with("has a label that is none"));
}

TEST_CASE("host names are refused for the reason that is theirs") {
  const std::vector<std::pair<std::string, std::string>> all{
      {"", "must not be empty"},
      {"*.a.b", "must not be a wildcard"},
      {"a.b:80", "must be a host name alone: no address, no port"},
      {"[a.b", "must be a host name alone: no address, no port"},
      {"a..b", "has an empty label"},
      {".", "has an empty label"},
      {"ab--c.d", "has a label with '--' in third place, which is reserved (RFC 5891)"},
      {"xn--.d", "has a label that is none"},
      {"localhost", "must be fully qualified: two labels or more"},
      {"a.0x1f", "must be a host name, not an address"},
      {"a.12", "must be a host name, not an address"},
      {"a.0x", "must be a host name, not an address"},
      {"xn--a.b", "has an A-label that stands for nothing"},
      {"xn--n3h.net", "has an A-label that stands for nothing"},              // a snowman: IDNA2008 has none
      {"\xe2\x98\x83.net", "has characters outside ASCII that no A-label"},   // itself
      {"-\xc3\xa9.fr", "has characters outside ASCII that no A-label"},
      {"\xff.fr", "must be UTF-8"},
      {"*.\xc3\xa9.fr", "must not be a wildcard"},
      {"\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1", "must be a host name, not an address"},  // 127 in wide digits
      {"\xc3\xa9", "must be fully qualified: two labels or more"}};
  for (const auto& [text, why] : all) {
    CAPTURE(text);
    CHECK(tunnel::canonical_hostname(text).error.starts_with(why));
  }
  for (const auto* good : {"a.0xg", "a.b0", "a.1b", "a.z9", "a--b.c", "xn--9ca.b", "AZ.az", "a.0xz"}) {
    CAPTURE(good);
    CHECK(tunnel::canonical_hostname(good));
  }
  std::string wide;  // 63 letters of two bytes each: too long as an A-label, whatever it is in letters
  for (int i = 0; i < 63; ++i) wide += "\xc3\xa9";
  CHECK_FALSE(tunnel::canonical_hostname(wide + ".fr"));
  CHECK(tunnel::canonical_hostname(std::string(1'017, '\xc3')).error == "must have at most 253 characters");
  CHECK(tunnel::canonical_hostname("AZ@.b").error.starts_with("has a label"));
  CHECK(tunnel::canonical_hostname("AZ[.b").error.starts_with("must be a host name alone"));
}

TEST_CASE("targets at their edges, each refused for the reason that is its own") {
  const std::string start = "http://";
  // As long as a host name may be: the name's limit is nearer than that of the target.
  CHECK(tunnel::canonical_target(start + labels_of(253)).value == start + labels_of(253) + ":80");
  CHECK(tunnel::canonical_target(start + labels_of(253) + ".").value == start + labels_of(253) + ":80");
  CHECK(tunnel::canonical_target(start + labels_of(254)).error == "has a host name of more than 253 characters");
  CHECK(tunnel::canonical_target(start + std::string(limits::target_bytes_max - start.size(), 'a')).error ==
        "has a host name of more than 253 characters");
  CHECK(tunnel::canonical_target(start + std::string(limits::target_bytes_max - start.size() + 1, 'a')).error ==
        "must have at most 300 bytes");
  CHECK(tunnel::canonical_target(start + std::string(63, 'a')));
  CHECK(tunnel::canonical_target(start + std::string(64, 'a')).error == "has a host that is no host name");
  const std::vector<std::pair<std::string, std::string>> all{
      {"", "must not be empty"},
      {"http://a b", "must have printable ASCII characters only, without spaces"},
      {"http://a\x7f", "must have printable ASCII characters only, without spaces"},
      {"a", "must begin with http:// or https://"},
      {"ftp://a", "must begin with http:// or https://"},
      {"http://u@a", "must not have user info"},
      {"http://a?b", "must not have a query"},
      {"http://a#b", "must not have a fragment"},
      {"http://a/b", "must not have a path"},
      {"http://a//", "must not have a path"},
      {"http://", "has no host"},
      {"http://:80", "has no host"},
      {"http://.", "has no host"},
      {"http://a:", "has a port that is not a number from 1 to 65535"},
      {"http://a:0", "has a port that is not a number from 1 to 65535"},
      {"http://a:01", "has a port that is not a number from 1 to 65535"},
      {"http://a:65536", "has a port that is not a number from 1 to 65535"},
      {"http://a:100000", "has a port that is not a number from 1 to 65535"},
      {"http://a:8x", "has a port that is not a number from 1 to 65535"},
      {"http://[x", "has a bracket that is not closed"},
      {"http://[1.2.3.4]", "has no valid IPv6 address in its brackets"},
      {"http://1.2.3", "has a host that is neither a name nor an IPv4 address"},
      {"http://1.2.3.256", "has a host that is neither a name nor an IPv4 address"},
      {"http://a.-b", "has a host that is no host name"},
      {"http://b-.a", "has a host that is no host name"},
      {"http://a..b", "has a host that is no host name"},
      {"http://a%b", "has a host that is no host name"}};
  for (const auto& [text, why] : all) {
    CAPTURE(text);
    CHECK(tunnel::canonical_target(text).error == why);
  }
  CHECK(tunnel::canonical_target("https://A.B.:65535").value == "https://a.b:65535");
  CHECK(tunnel::canonical_target("http://a:1/").value == "http://a:1");
  CHECK(tunnel::canonical_target("https://[2001:DB8:0:0::1]").value == "https://[2001:db8::1]:443");
  CHECK(tunnel::canonical_target("http://_-_").error == "");
  CHECK(tunnel::canonical_target("http://az09_a-b").value == "http://az09_a-b:80");
  CHECK(tunnel::canonical_target("http://1.2.3.4:5").value == "http://1.2.3.4:5");
}

TEST_CASE("path prefixes at their edges") {
  CHECK(tunnel::canonical_path_prefix("/" + std::string(1023, 'a')));
  CHECK(tunnel::canonical_path_prefix("/" + std::string(1024, 'a')).error == "must have at most 1024 bytes");
  CHECK(tunnel::canonical_path_prefix("/!~").value == "/!~");
  CHECK(tunnel::canonical_path_prefix("a").error == "must begin with '/'");
  CHECK(tunnel::canonical_path_prefix("/ ").error.starts_with("must have printable ASCII"));
  CHECK(tunnel::canonical_path_prefix("/\x7f").error.starts_with("must have printable ASCII"));
  CHECK(tunnel::canonical_path_prefix("/?").error == "must be a path: no '?' and no '#'");
  CHECK(tunnel::canonical_path_prefix("/#").error == "must be a path: no '?' and no '#'");
}

TEST_CASE("a tunnel's lists at their longest, and one more; what is there twice is named") {
  auto s = tunnel_spec();
  for (int i = 1; i < 16; ++i) s.add_hostnames("h" + std::to_string(i) + ".example.com");
  CHECK(tunnel::canonicalise(s).empty());
  s.add_hostnames("one.more.com");
  CHECK(tunnel::canonicalise(s).front().message == "must have at most 16 host names");
  s = tunnel_spec();
  const auto rule = s.rules(0);
  for (int i = 1; i < 16; ++i) {
    *s.add_rules() = rule;
    s.mutable_rules(i)->set_path_prefix("/" + std::to_string(i));
  }
  CHECK(tunnel::canonicalise(s).empty());
  *s.add_rules() = rule;
  CHECK(tunnel::canonicalise(s).front().message == "must have at most 16 rules");

  s = tunnel_spec();
  s.add_hostnames("b.example.com");
  s.add_hostnames("A.example.com.");
  *s.add_rules() = rule;
  s.mutable_rules(1)->set_connector("No");
  s.mutable_rules(1)->set_target("x");
  s.set_gateway_class("No");
  const auto wrong = tunnel::canonicalise(s);
  CHECK(fields_of(wrong) == strings{"hostnames[2]", "rules[1].path_prefix", "rules[1].connector", "rules[1].target", "gateway_class"});
  CHECK(wrong[0].message == "is the same host name as hostnames[0]");
  CHECK(wrong[1].message == "is the same path prefix as that of rules[0]");
  s.clear_hostnames();
  s.clear_rules();
  CHECK(fields_of(tunnel::canonicalise(s)) == strings{"hostnames", "rules", "gateway_class"});
  CHECK(fields_of(tunnel::canonicalise(s, {"rules"})) == strings{"rules"});
  CHECK(fields_of(tunnel::canonicalise(s, {"hostnames"})) == strings{"hostnames"});
  s.clear_gateway_class();
  CHECK(tunnel::canonicalise(s, {"gateway_class"}).empty());
  CHECK(s.gateway_class() == "default");
}

TEST_CASE("a stored spec in another spelling is named, with the right one") {
  const auto wrong = [](auto change) {
    auto s = tunnel_spec();
    s.add_hostnames("b.example.com");
    *s.add_rules() = s.rules(0);
    s.mutable_rules(1)->set_path_prefix("/b");
    change(s);
    const auto v = tunnel::check_spec(s);
    return v ? v->field + ": " + v->message : "";
  };
  CHECK(wrong([](auto&) {}).empty());
  CHECK(wrong([](auto& s) { s.set_hostnames(1, "B.example.com"); }) == "hostnames[1]: must be written b.example.com");
  CHECK(wrong([](auto& s) { s.mutable_rules(0)->set_path_prefix(""); }) == "rules[0].path_prefix: must be written /");
  CHECK(wrong([](auto& s) { s.mutable_rules(1)->set_target("http://t"); }) == "rules[1].target: must be written http://t:80");
  CHECK(wrong([](auto& s) { s.clear_gateway_class(); }) == "gateway_class: must be written default");
  CHECK(wrong([](auto& s) { s.clear_hostnames(); }) == "hostnames: must have at least one host name");
}

TEST_CASE("a connector's spec: defaults, edges, and fields that nobody named") {
  v1::ConnectorSpec s;
  CHECK(connector::canonicalise(s).empty());
  CHECK(s.class_() == "default");
  CHECK(s.lease_duration_ms() == 30'000);
  CHECK_FALSE(connector::check_spec(s));
  for (const auto& [ms, good] : std::vector<std::pair<std::int64_t, bool>>{
           {2'999, false}, {3'000, true}, {3'600'000, true}, {3'600'001, false}, {-1, false}}) {
    CAPTURE(ms);
    s.set_lease_duration_ms(ms);
    CHECK(connector::canonicalise(s).empty() == good);
    CHECK(fields_of(connector::canonicalise(s, {"class"})).empty());
    for (const auto* field : {"lease_duration_ms", "lease_duration"})
      CHECK(fields_of(connector::canonicalise(s, {field})) == (good ? strings{} : strings{"lease_duration"}));
  }
  s.set_class_("-");
  CHECK(fields_of(connector::canonicalise(s, {"class"})) == strings{"class"});
  CHECK(connector::canonicalise(s, {"class"}).front().message == "must be 1 to 63 of a-z, 0-9 and '-', neither first nor last");
  CHECK(fields_of(connector::canonicalise(s, {"nonsense"})) == strings{"update_mask"});
  s.Clear();
  CHECK(connector::check_spec(s)->field == "class");
  s.set_class_("default");
  CHECK(connector::check_spec(s)->field == "lease_duration");
  s.set_lease_duration_ms(1);
  CHECK(connector::check_spec(s)->field == "lease_duration");
  CHECK(connector::check_public_key(std::string(63, 'a'))->field == "public_key");
  CHECK(connector::check_public_key(std::string(65, 'a')));
  CHECK(connector::check_public_key(std::string(64, 'A')));
  CHECK(connector::check_public_key(std::string(64, '0'))->field == "public_key");  // of low order
  CHECK_FALSE(connector::check_public_key(std::string(64, 'f')));
}

TEST_CASE("networks: every bit counts, and there is one spelling") {
  CHECK(connector::canonical_network("10.0.0.0/8") == "10.0.0.0/8");
  CHECK(connector::canonical_network("FD00:0::/8") == "fd00::/8");
  CHECK(connector::canonical_network("10.1.2.3/32") == "10.1.2.3/32");
  CHECK(connector::canonical_network("0.0.0.0/0") == "0.0.0.0/0");
  CHECK(connector::canonical_network("128.0.0.0/1") == "128.0.0.0/1");
  CHECK(connector::canonical_network("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"));
  CHECK(connector::canonical_network("10.0.0.128/25") == "10.0.0.128/25");
  for (const auto* bad : {"128.0.0.0/0", "10.0.0.128/24", "10.0.0.1/31", "::1/127", "8000::/0", "10.0.0.0/33", "::/129", "10.0.0.0/8x",
                          "10.0.0.0/ 8", "10.0.0/8", "", "0000:0000:0000:0000:0000:0000:0000:0000:0000:0000/0"}) {
    CAPTURE(bad);
    CHECK_FALSE(connector::canonical_network(bad));
  }
  CHECK(connector::parse_network("10.0.0.0/8")->prefix == 8);
  CHECK(connector::parse_network("fd00::/8")->v6);
}

TEST_CASE("addresses lie in a network or do not, to the bit") {
  const auto judged = [](const std::string& address, strings networks) {
    bus::v1::Addressing a;
    a.add_addresses(address);
    google::protobuf::RepeatedPtrField<std::string> allowed{networks.begin(), networks.end()};
    const auto j = connector::judge_addressing(a, allowed);
    return j.error ? j.error->message : "";
  };
  CHECK(judged("10.0.0.127:1", {"10.0.0.0/25"}).empty());
  CHECK(judged("10.0.0.128:1", {"10.0.0.0/25"}) == "not in a network that the connector class allows");
  CHECK(judged("10.0.0.128:1", {"10.0.0.128/25"}).empty());
  CHECK(judged("10.0.0.1:1", {"10.0.0.0/32"}) == "not in a network that the connector class allows");
  CHECK(judged("10.0.0.1:1", {"::/0"}) == "not in a network that the connector class allows");
  CHECK(judged("[2001:db8::1]:1", {"2001:db8::/32"}).empty());
  CHECK(judged("[2001:db9::1]:1", {"2001:db8::/32"}) == "not in a network that the connector class allows");
  CHECK(judged("[::ffff:10.0.0.1]:1", {"10.0.0.0/8"}).empty());
  for (const auto& [address, name] : std::vector<std::pair<std::string, std::string>>{{"0.1.2.3:1", "unspecified"},
                                                                                       {"127.9.9.9:1", "loopback"},
                                                                                       {"169.254.9.9:1", "link-local"},
                                                                                       {"239.9.9.9:1", "multicast"},
                                                                                       {"255.255.255.255:1", "broadcast"},
                                                                                       {"[::]:1", "unspecified"},
                                                                                       {"[::1]:1", "loopback"},
                                                                                       {"[febf::1]:1", "link-local"},
                                                                                       {"[ff00::1]:1", "multicast"}}) {
    CAPTURE(address);
    CHECK(judged(address, {"0.0.0.0/0", "::/0"}) == "a " + name + " address, which the connector class does not name");
  }
  CHECK(judged("240.0.0.1:1", {"0.0.0.0/0"}).empty());
  CHECK(judged("[fec0::1]:1", {"::/0"}).empty());
  CHECK(judged("169.254.1.1:1", {"169.254.1.0/24"}).empty());
  CHECK(judged("169.254.1.1:1", {"169.0.0.0/8"}) == "a link-local address, which the connector class does not name");
}

TEST_CASE("relays are refused for the reason that is theirs") {
  const auto judged = [](const std::string& relay) {
    bus::v1::Addressing a;
    a.set_home_relay(relay);
    const auto j = connector::judge_addressing(a, {});
    return j.error ? j.error->field + ": " + j.error->message : j.home_relay;
  };
  const std::string start = "http://r/";
  const auto longest = start + std::string(2048 - start.size(), 'x');
  CHECK(judged(longest) == longest);
  CHECK(judged(longest + 'x') == "home_relay: longer than 2048 bytes");
  CHECK(judged("https://r?x") == "https://r?x");
  CHECK(judged("https://r#x") == "https://r#x");
  CHECK(judged("https://!~") == "https://!~");
  CHECK(judged("https:// ").starts_with("home_relay: has spaces"));
  CHECK(judged("https://\x7f").starts_with("home_relay: has spaces"));
  CHECK(judged("ws://r") == "home_relay: is no http:// or https:// URL");
  CHECK(judged("r") == "home_relay: is no http:// or https:// URL");
  CHECK(judged("https://") == "home_relay: has no host");
  CHECK(judged("https://:80") == "home_relay: has no host");
  CHECK(judged("https:///x") == "home_relay: has no host");
  CHECK(judged("https://u@r") == "home_relay: has user info");
  CHECK(judged("https://r/@") == "https://r/@");
}

TEST_CASE("gateways and classes: defaults, edges, what is there twice") {
  v1::GatewaySpec g;
  CHECK(registry::canonicalise(g).empty());
  CHECK(g.class_() == "default");
  g.set_class_("No");
  CHECK(fields_of(registry::canonicalise(g)) == strings{"class"});
  CHECK(fields_of(registry::canonicalise(g, {"other"})).empty());

  v1::GatewayClassSpec c;
  CHECK(fields_of(registry::canonicalise(c)) == strings{"listen"});
  CHECK(c.dial_mode() == "direct");
  CHECK(c.stream_idle_timeout_ms() == 300'000);
  c.add_listen("0.0.0.0:80");
  c.add_listen("[0::1]:443");
  CHECK(registry::canonicalise(c).empty());
  CHECK(c.listen(1) == "[::1]:443");
  c.add_listen("0.0.0.0:80");
  c.add_listen("nothing");
  CHECK(fields_of(registry::canonicalise(c, {"listen"})) == strings{"listen[2]", "listen[3]"});
  c.clear_listen();
  for (int i = 1; i <= 16; ++i) c.add_listen("10.0.0." + std::to_string(i) + ":80");
  CHECK(registry::canonicalise(c).empty());
  CHECK(c.listen_size() == 16);
  c.add_listen("10.0.0.17:80");
  CHECK(fields_of(registry::canonicalise(c)) == strings{"listen"});
  for (const auto& [ms, good] :
       std::vector<std::pair<std::int64_t, bool>>{{999, false}, {1000, true}, {86'400'000, true}, {86'400'001, false}}) {
    CAPTURE(ms);
    c.set_stream_idle_timeout_ms(ms);
    CHECK(registry::canonicalise(c, {"stream_idle_timeout_ms"}).empty() == good);
  }
  for (const auto& [mode, good] : std::vector<std::pair<std::string, bool>>{{"direct", true}, {"tunnel-listener", true}, {"x", false}}) {
    c.set_dial_mode(mode);
    CHECK(registry::canonicalise(c, {"dial_mode"}).empty() == good);
  }

  v1::ConnectorClassSpec n;
  for (int i = 0; i < 64; ++i) n.add_allowed_networks("10." + std::to_string(i) + ".0.0/16");
  CHECK(registry::canonicalise(n).empty());
  CHECK(n.allowed_networks_size() == 64);
  n.add_allowed_networks("11.0.0.0/8");
  CHECK(fields_of(registry::canonicalise(n)) == strings{"allowed_networks"});
  n.clear_allowed_networks();
  n.add_allowed_networks("FD00::/8");
  n.add_allowed_networks("10.0.0.1/8");
  CHECK(fields_of(registry::canonicalise(n)) == strings{"allowed_networks[1]"});
  CHECK(n.allowed_networks(0) == "fd00::/8");
  n.clear_allowed_networks();
  for (const auto* twice : {"10.0.0.0/8", "FD00::/8", "10.0.0.0/8", "fd00:0::/8"}) n.add_allowed_networks(twice);
  CHECK(fields_of(registry::canonicalise(n)) == strings{"allowed_networks[2]", "allowed_networks[3]"});
  CHECK(registry::canonicalise(n, {"other"}).empty());
}
