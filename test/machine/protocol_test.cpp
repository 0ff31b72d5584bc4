// test/machine/protocol_test.cpp -- signatures, digests, spellings: what agents and owners compute alike.
#include <catch2/catch.hpp>

#include <set>

#include "actors/core/protocol.hpp"

using namespace warren;
namespace busv1 = warren::bus::v1;

namespace {

busv1::Addressing addressing(std::vector<std::string> addresses, std::string relay = "https://relay.example") {
  busv1::Addressing out;
  out.set_home_relay(std::move(relay));
  for (auto& each : addresses) out.add_addresses(std::move(each));
  return out;
}
busv1::TargetState target(std::string uid, std::int64_t generation, int rule, std::string state, std::string message = "") {
  busv1::TargetState out;
  out.set_tunnel_uid(std::move(uid));
  out.set_tunnel_generation(generation);
  out.set_rule(rule);
  out.set_state(std::move(state));
  out.set_message(std::move(message));
  return out;
}
std::string digest(const busv1::Addressing& a, const std::vector<busv1::TargetState>& t = {}) {
  return protocol::report_digest(a, t);
}

struct vector_of_rfc8032 {
  const char *key, *message, *signature;
};
// RFC 8032 7.1: TEST 1, 2, 3 and SHA(abc).
const std::vector<vector_of_rfc8032> vectors{
    {"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bb"
     "e24655141438e7a100b"},
    {"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302"
     "aeeb00d291612bb0c00"},
    {"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed"
     "28dc027beceea1ec40a"},
    {"ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
     "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce8"
     "0e2a9ac94fa54ca49f",
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac1"
     "7ad9bef1177331a704"},
};

}  // namespace

TEST_CASE("signatures of RFC 8032 are good, and nothing near them is") {
  for (const auto& v : vectors) {
    const auto message = *protocol::unhex(v.message);
    const auto signature = *protocol::unhex(v.signature);
    CHECK(protocol::ed25519_verify(v.key, message, signature));
    CHECK_FALSE(protocol::ed25519_verify(v.key, message + "x", signature));
    CHECK_FALSE(protocol::ed25519_verify(v.key, message + '\0', signature));
    for (std::size_t bit = 0; bit < signature.size() * 8; bit += 7) {
      auto other = signature;
      other[bit / 8] = static_cast<char>(other[bit / 8] ^ (1 << (bit % 8)));
      CHECK_FALSE(protocol::ed25519_verify(v.key, message, other));
    }
    for (const auto& other : vectors)
      if (&other != &v) CHECK_FALSE(protocol::ed25519_verify(other.key, message, signature));
  }
}

TEST_CASE("malformed keys and signatures are refused, never read beyond") {
  const auto& v = vectors.at(1);
  const auto message = *protocol::unhex(v.message);
  const auto signature = *protocol::unhex(v.signature);
  const std::string key = v.key;
  auto upper = key;
  upper[1] = 'D';
  for (const auto& bad : {std::string{}, key.substr(1), key.substr(2), key + "00", upper, std::string(64, 'g'),
                          std::string(64, '\0'), key.substr(0, 63) + " ", " " + key.substr(1), "0x" + key.substr(2),
                          std::string(64, 'f'), std::string(1 << 20, 'a')}) {
    CHECK_FALSE(protocol::ed25519_verify(bad, message, signature));
  }
  CHECK_FALSE(protocol::ed25519_verify(key, message, ""));
  CHECK_FALSE(protocol::ed25519_verify(key, message, signature.substr(1)));
  CHECK_FALSE(protocol::ed25519_verify(key, message, signature + '\0'));
  CHECK_FALSE(protocol::ed25519_verify(key, message, std::string(64, '\0')));
  CHECK_FALSE(protocol::ed25519_verify(key, message, std::string(64, '\xff')));
  // S + L is the same scalar: RFC 8032 5.1.7 refuses it, else a signature could be respelled.
  const auto order = *protocol::unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
  auto respelled = signature;
  int carry = 0;
  for (std::size_t i = 0; i < 32; ++i) {
    const int sum = static_cast<unsigned char>(respelled[32 + i]) + static_cast<unsigned char>(order[i]) + carry;
    respelled[32 + i] = static_cast<char>(sum & 0xff);
    carry = sum >> 8;
  }
  CHECK_FALSE(protocol::ed25519_verify(key, message, respelled));
}

TEST_CASE("every field of a hello is signed, and no two hellos sign the same bytes") {
  busv1::HelloRequest hello;
  hello.set_version(1);
  hello.set_nonce(std::string(16, 'n'));
  hello.set_challenge(std::string(32, 'c'));
  hello.set_agent_version("1.2");
  hello.set_sent_at_ms(7);
  *hello.mutable_addressing() = addressing({"192.0.2.1:1", "192.0.2.2:1"});
  hello.set_attached_generation(3);
  hello.set_connector_uid("uid");
  const auto bytes = [](const busv1::HelloRequest& h, std::string_view project = "acme", std::string_view kind = "connector",
                        std::string_view name = "home") { return protocol::hello_to_sign(project, kind, name, h); };
  std::set<std::string> seen{bytes(hello)};
  const auto differs = [&](std::string each) { CHECK(seen.insert(std::move(each)).second); };
  differs(bytes(hello, "acm", "econnector"));
  differs(bytes(hello, "other"));
  differs(bytes(hello, "acme", "peer"));
  differs(bytes(hello, "acme", "connector", "away"));
  const auto with = [&](auto change) {
    auto h = hello;
    change(h);
    differs(bytes(h));
  };
  with([](auto& h) { h.set_version(2); });
  with([](auto& h) { h.set_nonce(std::string(16, 'm')); });
  with([](auto& h) { h.set_challenge(std::string(32, 'd')); });
  with([](auto& h) { h.set_nonce(std::string(17, 'n')); });
  with([](auto& h) { h.set_agent_version("1.3"); });
  with([](auto& h) { h.set_sent_at_ms(-7); });
  with([](auto& h) { h.mutable_addressing()->set_home_relay(""); });
  with([](auto& h) { h.mutable_addressing()->mutable_addresses()->SwapElements(0, 1); });
  with([](auto& h) { h.mutable_addressing()->mutable_addresses()->RemoveLast(); });
  with([](auto& h) {
    h.mutable_addressing()->clear_addresses();
    h.mutable_addressing()->add_addresses("192.0.2.1:1192.0.2.2:1");
  });
  with([](auto& h) { h.set_attached_generation(4); });
  with([](auto& h) { h.set_connector_uid("uie"); });
  auto bare = hello;
  bare.clear_addressing();
  differs(bytes(bare));
  bare.mutable_addressing();
  differs(bytes(bare));
  auto signed_hello = hello;
  signed_hello.set_signature("anything");
  CHECK(bytes(signed_hello) == bytes(hello));
}

TEST_CASE("a digest does not depend on order, spelling or repetition of addresses") {
  const auto of = digest(addressing({"192.0.2.1:80", "[2001:db8::1]:443"}));
  CHECK(of.size() == 32);
  CHECK(protocol::unhex(of));
  CHECK(of == digest(addressing({"[2001:db8::1]:443", "192.0.2.1:80"})));
  CHECK(of == digest(addressing({"[2001:0DB8:0:0::0001]:443", "192.0.2.1:80"})));
  CHECK(of == digest(addressing({"192.0.2.1:80", "192.0.2.1:80", "[2001:db8::1]:443", "[2001:DB8::1]:443"})));
  CHECK(of != digest(addressing({"192.0.2.1:81", "[2001:db8::1]:443"})));
  CHECK(of != digest(addressing({"192.0.2.1:80"})));
  CHECK(of != digest(addressing({"192.0.2.1:80", "[2001:db8::1]:443"}, "https://other.example")));
  CHECK(of != digest(addressing({"192.0.2.1:80", "[2001:db8::1]:443", "nonsense"})));
  CHECK(digest(addressing({"x"}, "")) != digest(addressing({}, "x")));
  CHECK(digest({}) == digest(addressing({}, "")));
}

TEST_CASE("of a generation's rules the worst state counts in a digest") {
  const auto a = addressing({"192.0.2.1:80"});
  const auto up = target("u", 1, 0, "Reachable"), down = target("u", 1, 1, "Unreachable", "refused");
  CHECK(digest(a, {up, down}) == digest(a, {down, up}));
  CHECK(digest(a, {up, down}) == digest(a, {target("u", 1, 5, "Unreachable")}));
  CHECK(digest(a, {up, down}) != digest(a, {up}));
  CHECK(digest(a, {down}) == digest(a, {target("u", 1, 1, "Unreachable", "another message")}));
  CHECK(digest(a, {target("u", 1, 0, "Unknown")}) == digest(a));
  CHECK(digest(a, {up, target("u", 1, 1, "Unknown")}) == digest(a));  // Unknown is worse than Reachable
  CHECK(digest(a, {down, target("u", 1, 1, "Unknown")}) == digest(a, {down}));
  CHECK(digest(a, {up}) != digest(a, {target("u", 2, 0, "Reachable")}));
  CHECK(digest(a, {up}) != digest(a, {target("v", 1, 0, "Reachable")}));
  CHECK(digest(a, {up}) != digest(a));
  google::protobuf::RepeatedPtrField<busv1::TargetState> repeated;
  *repeated.Add() = down;
  *repeated.Add() = up;
  CHECK(protocol::report_digest(a, repeated) == digest(a, {up, down}));

  CHECK(protocol::worse_target_state("Reachable", "Unknown") == "Unknown");
  CHECK(protocol::worse_target_state("Unknown", "Unreachable") == "Unreachable");
  CHECK(protocol::worse_target_state("Unreachable", "Reachable") == "Unreachable");
}

TEST_CASE("an address has one spelling or none") {
  using protocol::canonical_address;
  CHECK(canonical_address("192.0.2.1:80") == "192.0.2.1:80");
  CHECK(canonical_address("192.0.2.1:65535") == "192.0.2.1:65535");
  CHECK(canonical_address("192.0.2.1:00080") == "192.0.2.1:80");
  CHECK(canonical_address("[2001:DB8:0:0:0:0:0:1]:80") == "[2001:db8::1]:80");
  CHECK(canonical_address("[::]:1") == "[::]:1");
  for (const std::string bad :
       {"", ":", ":80", "192.0.2.1", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:99999999999999999999",
        "192.0.2.1:-1", "192.0.2.1:+1", "192.0.2.1: 80", "192.0.2.1:80 ", " 192.0.2.1:80", "192.0.2:80", "192.0.2.256:80",
        "192.0.2.01:80", "0xc0000201:80", "3221225985:80", "localhost:80", "host.example:80", "2001:db8::1:80",
        "[2001:db8::1]", "[2001:db8::1]80", "[fe80::1%eth0]:80", "[192.0.2.1]:80", "[]:80", "[:80", "[::1:80", "::1]:80",
        "[2001:db8::1::2]:80", "http://192.0.2.1:80", "192.0.2.1:80/"})
    CHECK_FALSE(canonical_address(bad));
  using namespace std::string_literals;
  CHECK_FALSE(canonical_address("192.0.2.1\0evil:80"s));
  CHECK_FALSE(canonical_address("[::1\0evil]:80"s));
  CHECK_FALSE(canonical_address("192.0.2.1:80\0"s));
  CHECK_FALSE(canonical_address(std::string(1 << 20, '1') + ":80"));
  CHECK_FALSE(canonical_address("[" + std::string(60, '0') + "::1]:80"));
}

TEST_CASE("labels are those of DNS-1123") {
  for (const std::string good : {"a", "0", "a-b", "web-1", "a--b", "xn--nxasmq6b"}) CHECK(protocol::is_label(good));
  CHECK(protocol::is_label(std::string(63, 'a')));
  CHECK_FALSE(protocol::is_label(std::string(64, 'a')));
  for (const std::string bad : {"", "-", "-a", "a-", "A", "a.b", "a_b", "a b", " a", "a\n", "*", ">", "a/b", "\xc3\xa4", "$SYS"})
    CHECK_FALSE(protocol::is_label(bad));
  CHECK_FALSE(protocol::is_label(std::string_view{"a\0b", 3}));
}

TEST_CASE("UTF-8 is well formed and without control characters") {
  for (const std::string good : {"", "plain", "\xc2\xa0", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x9a\x87", "\xf4\x8f\xbf\xbf", "\xef\xbf\xbd", "\xed\x9f\xbf", "\xee\x80\x80"})
    CHECK(protocol::is_printable_utf8(good));
  for (const std::string bad :
       {"\n", "\t", "\x1b[2J", "\x7f", "\xc2\x80", "\xc2\x9f", "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf",
        "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf8\x88\x80\x80\x80",
        "\xfe", "\xff", "\xc3", "\xe2\x82", "\xf0\x9f\x9a", "a\xc3" "a", "\xe2\x82" "a"})
    CHECK_FALSE(protocol::is_printable_utf8(bad));
  CHECK_FALSE(protocol::is_printable_utf8(std::string_view{"a\0b", 3}));
}

TEST_CASE("hex and hashes") {
  CHECK(protocol::hex(std::string_view{"\x00\x7f\xff", 3}) == "007fff");
  CHECK(protocol::unhex("007fff") == std::string("\x00\x7f\xff", 3));
  CHECK(protocol::unhex("") == "");
  for (const std::string bad : {"0", "0g", "0G", "FF", "0x", " 0", "0\n"}) CHECK_FALSE(protocol::unhex(bad));
  CHECK(protocol::is_public_key_hex(std::string(64, '0')));
  const char* low_order[] = {
      "0000000000000000000000000000000000000000000000000000000000000000", "0000000000000000000000000000000000000000000000000000000000000080",
      "0100000000000000000000000000000000000000000000000000000000000000", "0100000000000000000000000000000000000000000000000000000000000080",
      "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
      "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
      "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
      "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
      "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"};
  for (const auto* key : low_order) CHECK(protocol::is_low_order_key_hex(key));
  for (const auto& key : {std::string(64, 'f'), std::string(64, 'a'), std::string(62, '0'), std::string(64, 'z'),
                          std::string{"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"}})  // RFC 8032 7.1
    CHECK_FALSE(protocol::is_low_order_key_hex(key));
  CHECK_FALSE(protocol::is_public_key_hex(std::string(63, '0')));
  CHECK_FALSE(protocol::is_public_key_hex(std::string(66, '0')));
  // FIPS 180-2, B.1 and the empty message.
  CHECK(protocol::sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(protocol::sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(protocol::equal_constant_time("", ""));
  CHECK(protocol::equal_constant_time("abc", "abc"));
  CHECK_FALSE(protocol::equal_constant_time("abc", "abd"));
  CHECK_FALSE(protocol::equal_constant_time("abc", "ab"));
}
