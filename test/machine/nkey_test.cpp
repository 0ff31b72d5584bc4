// test/machine/nkey_test.cpp -- NATS' keys and JWTs: their spelling, and what an agent's allows.
#include <catch2/catch.hpp>

#include <nlohmann/json.hpp>

#include "services/bus/nkey.hpp"
#include "services/bus/user_jwt.hpp"

using namespace warren;
using bus::nkey;
using json = nlohmann::json;

namespace {

std::string unbase64url(std::string_view text) {
  constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::string out;
  unsigned buffer = 0, bits = 0;
  for (const char c : text) {
    buffer = ((buffer << 6) | static_cast<unsigned>(alphabet.find(c))) & 0xffffu;
    if ((bits += 6) >= 8) out.push_back(static_cast<char>((buffer >> (bits -= 8)) & 0xffu));
  }
  return out;
}

json part_of(const std::string& jwt, int n) {
  std::size_t from = 0;
  for (; n > 0; --n) from = jwt.find('.', from) + 1;
  return json::parse(unbase64url(std::string_view{jwt}.substr(from, jwt.find('.', from) - from)));
}

}  // namespace

TEST_CASE("base32 is RFC 4648's, and each text is one spelling") {
  const std::pair<const char*, const char*> table[] = {{"", ""},           {"f", "MY"},        {"fo", "MZXQ"},       {"foo", "MZXW6"},
                                                       {"foob", "MZXW6YQ"}, {"fooba", "MZXW6YTB"}, {"foobar", "MZXW6YTBOI"}};
  for (const auto& [bytes, text] : table) {
    CHECK(bus::base32(bytes) == text);
    CHECK(bus::unbase32(text) == bytes);
  }
  for (const auto* bad : {"M", "MZ", "MZXW6Y", "mzxw6", "MZXW6=", "MZXW1"}) CHECK_FALSE(bus::unbase32(bad));
}

TEST_CASE("a seed of NATS' own tools is read, and spelled the same again") {
  // The pair of the key that NATS' documentation shows.
  const auto key = nkey::from_seed("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY");
  REQUIRE(key);
  CHECK(key->what() == nkey::kind::user);
  CHECK(key->public_key() == "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4");
  CHECK(key->seed() == "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY");
  CHECK(key->sign("message").size() == 64);
}

TEST_CASE("each kind has its letter, and what is no seed is refused") {
  const std::string entropy(32, 'e');
  const std::pair<nkey::kind, char> table[] = {{nkey::kind::operators, 'O'}, {nkey::kind::account, 'A'}, {nkey::kind::user, 'U'}};
  for (const auto& [what, letter] : table) {
    const nkey key{what, entropy};
    CHECK(key.public_key().front() == letter);
    CHECK(key.public_key().size() == 56);
    CHECK(key.seed().substr(0, 2) == std::string{'S', letter});
    CHECK(key.seed().size() == 58);
    CHECK(nkey::from_seed(key.seed())->public_key() == key.public_key());
    CHECK_FALSE(nkey::from_seed(key.public_key()));
    auto changed = key.seed();
    changed[20] = changed[20] == 'A' ? 'B' : 'A';
    CHECK_FALSE(nkey::from_seed(changed));
    CHECK_FALSE(nkey::from_seed(key.seed().substr(0, 57)));
  }
  CHECK_FALSE(nkey::from_seed(""));
  CHECK_THROWS_AS((nkey{nkey::kind::user, "short"}), std::invalid_argument);
}

TEST_CASE("an agent may speak on its own subjects, hear its own, and answer once") {
  const nkey account{nkey::kind::account, std::string(32, 'a')};
  const auto issued = bus::issue_agent_credentials(account, 21, "acme", "connector", "home", std::string(32, 'u'), 1'700'000'000);
  const auto user = nkey::from_seed(issued.seed);
  REQUIRE(user);
  CHECK(user->what() == nkey::kind::user);
  CHECK(part_of(issued.jwt, 0) == json{{"typ", "JWT"}, {"alg", "ed25519-nkey"}});
  const auto claims = part_of(issued.jwt, 1);
  CHECK(claims["iss"] == account.public_key());
  CHECK(claims["sub"] == user->public_key());
  CHECK(claims["iat"] == 1'700'000'000);
  CHECK(claims["name"] == "warren-agent/acme/connector/home");
  CHECK(claims["jti"].get<std::string>().size() == 52);
  CHECK(claims["nats"]["pub"]["allow"] == json{"warren.v1.hello.21.acme.connector.home", "warren.v1.hb.21.acme.connector.home",
                                               "warren.v1.ev.21.acme.connector.home"});
  CHECK(claims["nats"]["sub"]["allow"] == json{"warren.v1.cmd.acme.connector.home", issued.inbox_prefix + ".>"});
  CHECK(claims["nats"]["resp"]["max"] == 1);
  CHECK(claims["nats"]["type"] == "user");
  CHECK(issued.inbox_prefix.starts_with("_INBOX_"));
  CHECK(issued.inbox_prefix.find_first_of(".*> ") == std::string::npos);
  const auto signature_at = issued.jwt.rfind('.');
  CHECK(unbase64url(std::string_view{issued.jwt}.substr(signature_at + 1)) == account.sign(issued.jwt.substr(0, signature_at)));

  const auto other = bus::issue_agent_credentials(account, 21, "acme", "connector", "home", std::string(32, 'v'), 1'700'000'000);
  CHECK(other.seed != issued.seed);  // issued anew each time
  CHECK(other.inbox_prefix != issued.inbox_prefix);
}
