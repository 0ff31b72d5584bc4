// test/machine/admin_spec_test.cpp -- what a tunnel's spec may say.
#include <catch2/catch.hpp>

#include "actors/tunnel/spec.hpp"

using namespace warren;
using tunnel::canonical_hostname;
using tunnel::canonical_path_prefix;
using tunnel::canonical_target;

TEST_CASE("host names are stored in one spelling") {
  CHECK(canonical_hostname("App.Example.COM.").value == "app.example.com");
  CHECK(canonical_hostname("xn--mnchen-3ya.de").value == "xn--mnchen-3ya.de");
  CHECK(canonical_hostname("a.b").value == "a.b");
  CHECK(canonical_hostname("1.example.com").value == "1.example.com");
  // However it is typed: composed or not, in capitals, with an ideographic full stop, as A-labels already.
  for (const std::string same : {"m\xc3\xbcnchen.de", "M\xc3\x9cNCHEN.DE.", "mu\xcc\x88nchen.de", "m\xc3\xbcnchen\xe3\x80\x82" "de",
                                 "XN--MNCHEN-3YA.de"}) {
    INFO(same);
    CHECK(canonical_hostname(same).value == "xn--mnchen-3ya.de");
  }
  CHECK(canonical_hostname("stra\xc3\x9f" "e.de").value == "xn--strae-oqa.de");  // not strasse.de: who owns that is another
}

TEST_CASE("what is no public host name is refused") {
  const std::string label(64, 'a');
  std::string longest;
  while (longest.size() < 250) longest += "abcd.";
  for (const std::string& bad :
       {std::string{}, std::string{"localhost"}, std::string{"*.example.com"}, std::string{"1.2.3.4"}, std::string{"127.1"},
        std::string{"x.0x7f"}, std::string{"[::1]"}, std::string{"::1"}, std::string{"a..b"}, std::string{".a.b"},
        std::string{"a.b.."}, std::string{"-a.b"}, std::string{"a-.b"}, std::string{"a_b.c"}, std::string{"a b.c"},
        std::string{"a.b:80"}, std::string{"http://a.b"}, std::string{"a.b/c"},
        std::string{"a\0.b", 4}, std::string{"a\n.b"}, std::string{"ab--c.d"}, std::string{"xn--.d"}, label + ".com",
        longest + "com.com", std::string(100'000, 'a'), std::string{"."}}) {
    INFO(bad.substr(0, 80));
    CHECK_FALSE(canonical_hostname(bad));
  }
}

TEST_CASE("targets are stored in one spelling") {
  CHECK(canonical_target("http://localhost").value == "http://localhost:80");
  CHECK(canonical_target("HTTPS://Example.com").value == "https://example.com:443");
  CHECK(canonical_target("http://127.0.0.1:8080/").value == "http://127.0.0.1:8080");
  CHECK(canonical_target("http://[0:0::1]:80").value == "http://[::1]:80");
  CHECK(canonical_target("http://my_service.ns:1").value == "http://my_service.ns:1");
}

TEST_CASE("what is no target is refused") {
  for (const std::string& bad :
       {std::string{}, std::string{"localhost:80"}, std::string{"ftp://a"}, std::string{"http://"}, std::string{"http:///x"},
        std::string{"http://a/x"}, std::string{"http://a?x"}, std::string{"http://a#x"}, std::string{"http://u@a"},
        std::string{"http://u:p@a"}, std::string{"http://a:0"}, std::string{"http://a:65536"}, std::string{"http://a:"},
        std::string{"http://a:080"}, std::string{"http://a:1:2"}, std::string{"http://::1"}, std::string{"http://[::1"},
        std::string{"http://[::1%25lo]"}, std::string{"http://1.2.3"}, std::string{"http://01.2.3.4"}, std::string{"http://a b"},
        std::string{"http://a\r\nx"}, std::string{"http://é"}, std::string{"http://a..b"}, "http://" + std::string(400, 'a')}) {
    INFO(bad.substr(0, 80));
    CHECK_FALSE(canonical_target(bad));
  }
}

TEST_CASE("path prefixes begin with a slash") {
  CHECK(canonical_path_prefix("").value == "/");
  CHECK(canonical_path_prefix("/a%20b").value == "/a%20b");
  for (const std::string& bad : {std::string{"a"}, std::string{"/a b"}, std::string{"/a?b"}, std::string{"/a#b"},
                                std::string{"/\x01"}, std::string{"/\x80"}, "/" + std::string(1024, 'a')}) {
    INFO(bad.substr(0, 80));
    CHECK_FALSE(canonical_path_prefix(bad));
  }
}

TEST_CASE("a stored spec in another spelling is named") {
  core::v1::TunnelSpec spec;
  spec.add_hostnames("A.example.com");
  auto& rule = *spec.add_rules();
  rule.set_path_prefix("/");
  rule.set_connector("c");
  rule.set_target("http://t:80");
  spec.set_gateway_class("default");
  REQUIRE(tunnel::check_spec(spec));
  CHECK(tunnel::check_spec(spec)->field == "hostnames[0]");
  spec.set_hostnames(0, "a.example.com");
  CHECK_FALSE(tunnel::check_spec(spec));
  *spec.add_rules() = rule;
  CHECK(tunnel::check_spec(spec)->field == "rules[1].path_prefix");
}
