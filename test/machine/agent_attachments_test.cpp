// test/machine/agent_attachments_test.cpp -- what the agent keeps on disk, and which targets it dials when.
#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include <sys/stat.h>

#include "actors/core/protocol.hpp"
#include "services/warren-agent/attachments.hpp"
#include "services/warren-agent/enrolment.hpp"
#include "services/warren-agent/targets.hpp"

using namespace warren::agent;
namespace busv1 = warren::bus::v1;

namespace {

struct folder {
  folder() {
    std::string name = (std::filesystem::temp_directory_path() / "warren-agent-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

attachment_set set_of(std::int64_t generation, const std::string& to = "https://example.test") {
  busv1::AttachmentSet set;
  set.set_generation(generation);
  auto& one = *set.add_attachments();
  one.set_tunnel("t");
  one.set_tunnel_uid("u");
  one.set_tunnel_generation(2);
  auto& rule = *one.add_rules();
  rule.set_target(to);
  attachment_set out;
  out.apply(set, true);
  return out;
}

void write(const std::filesystem::path& file, std::string_view text) { std::ofstream{file} << text; }

busv1::Attach attach_step(std::int64_t from, std::int64_t generation, const std::string& uid, const std::string& target = "http://a.test") {
  busv1::Attach out;
  out.set_from_generation(from);
  out.set_generation(generation);
  auto& one = *out.add_attachments();
  one.set_tunnel("t-" + uid);
  one.set_tunnel_uid(uid);
  one.set_tunnel_generation(1);
  auto& rule = *one.add_rules();
  rule.set_index(3);
  rule.set_target(target);
  rule.set_tls_verify(true);
  return out;
}

busv1::Detach detach_step(std::int64_t from, std::int64_t generation, const std::string& uid) {
  busv1::Detach out;
  out.set_from_generation(from);
  out.set_generation(generation);
  auto& one = *out.add_tunnels();
  one.set_tunnel_uid(uid);
  one.set_tunnel_generation(1);
  return out;
}

}  // namespace

TEST_CASE("the set comes back from disk as it was, for its connector and key only") {
  folder f;
  attachment_file file{f.path};
  CHECK(file.load("c", "k").first == attachment_file::outcome::absent);
  file.save(print({"c", "k", set_of(4)}));
  struct stat about {};
  REQUIRE(::stat(file.path().c_str(), &about) == 0);
  CHECK((about.st_mode & 0777) == 0600);
  const auto [how, set] = file.load("c", "k");
  CHECK(how == attachment_file::outcome::loaded);
  CHECK(set == set_of(4));
  CHECK(file.load("other", "k").first == attachment_file::outcome::foreign);
  CHECK(file.load("c", "other").first == attachment_file::outcome::foreign);
  CHECK(file.load("other", "k").second.all().empty());
}

TEST_CASE("a process that dies between writing and renaming leaves the old set") {
  folder f;
  attachment_file file{f.path};
  file.save(print({"c", "k", set_of(4)}));
  write(file.path().string() + ".new", print({"c", "k", set_of(5)}).substr(0, 40));
  CHECK(file.load("c", "k").second.generation() == 4);
  file.save(print({"c", "k", set_of(6)}));
  CHECK(file.load("c", "k").second.generation() == 6);
}

TEST_CASE("a corrupt file serves nothing and is kept for a person") {
  folder f;
  attachment_file file{f.path};
  const auto whole = print({"c", "k", set_of(4)});
  const auto text = GENERATE_COPY(std::string{}, std::string{"{"}, whole.substr(0, whole.size() / 2), std::string{"[]"},
                                  std::string{R"({"version":2})"}, std::string{R"({"version":1,"connector_uid":7})"},
                                  std::string(100'000, '['));
  write(file.path(), text);
  CHECK(file.load("c", "k").first == attachment_file::outcome::corrupt);
  CHECK(std::filesystem::exists(file.path().string() + ".corrupt"));
}

TEST_CASE("steps go behind the set on disk, and what is torn of the last is as if it had never been written") {
  folder f;
  attachment_file file{f.path};
  auto expected = set_of(4);
  file.save(print({"c", "k", expected, "aa"}));
  const std::vector<set_step> steps{attach_step(4, 5, "x", "http://odd\n\"name\".test"), attach_step(5, 6, "y"), detach_step(6, 7, "x")};
  std::vector<attachment_set> after{expected};
  std::string lines;
  std::vector<std::size_t> ends{0};
  for (const auto& step : steps) {
    lines += print_step("aa", step);
    ends.push_back(lines.size());
    REQUIRE(std::visit([&](const auto& s) { return expected.apply(s); }, step) == applied::changed);
    after.push_back(expected);
    file.append(std::string_view{lines}.substr(ends[ends.size() - 2]));
    CHECK(file.load("c", "k").second == expected);
  }
  SECTION("wherever it ends") {
    for (std::size_t length = 0; length <= lines.size(); ++length) {
      write(file.journal(), lines.substr(0, length));
      const auto whole = std::count_if(ends.begin(), ends.end(), [&](auto end) { return end <= length; }) - 1;
      const auto [how, set] = file.load("c", "k");
      REQUIRE(how == attachment_file::outcome::loaded);
      REQUIRE(set == after[static_cast<std::size_t>(whole)]);
    }
  }
  SECTION("whichever byte is another") {
    for (std::size_t at = 0; at < lines.size(); ++at) {
      auto damaged = lines;
      damaged[at] = static_cast<char>(damaged[at] ^ 1);
      write(file.journal(), damaged);
      const auto line = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), at) - ends.begin()) - 1;
      REQUIRE(file.load("c", "k").second == after[line]);
    }
  }
  SECTION("a new whole set ends the journal before it") {
    file.save(print({"c", "k", set_of(6), "bb"}));
    CHECK(file.load("c", "k").second == set_of(6));
    file.append(print_step("bb", attach_step(6, 7, "z")));
    CHECK(file.load("c", "k").second.generation() == 7);
    CHECK(std::filesystem::file_size(file.journal()) == print_step("bb", attach_step(6, 7, "z")).size());
  }
  SECTION("a step from another generation does not follow") {
    file.append(print_step("aa", attach_step(9, 10, "z")));
    CHECK(file.load("c", "k").second == expected);
  }
  SECTION("nobody else's set") { CHECK(file.load("c", "other").second.all().empty()); }
}

TEST_CASE("keys are made once, read by their owner only, and sign") {
  folder f;
  const auto made = identity::generate(f.path / "key");
  CHECK_THROWS_AS(identity::generate(f.path / "key"), file_error);
  const auto read = identity::from_file(f.path / "key");
  CHECK(read.public_key_hex() == made.public_key_hex());
  CHECK(warren::protocol::ed25519_verify(read.public_key_hex(), "words", read.sign("words")));
  CHECK_FALSE(warren::protocol::ed25519_verify(read.public_key_hex(), "other words", read.sign("words")));
  ::chmod((f.path / "key").c_str(), 0640);
  CHECK_THROWS_WITH(identity::from_file(f.path / "key"), Catch::Contains("chmod 600"));
}

TEST_CASE("an enrolment file that others may read is known, and whether it matters") {
  const folder f;
  const auto file = f.path / "enrolment.json";
  const auto write = [&](const std::string& nats) {
    std::ofstream{file} << R"({"version":1,"project":"acme","connector":"office","uid":"u","nats":{"urls":["nats://127.0.0.1:4222"])" << nats
                        << R"(},"subjects":{"hello":"a.b","heartbeat":"a.c","event":"a.d","command":"a.e"}})";
  };
  CHECK(others_may_read(file) == 0);
  write("");
  for (const unsigned mode : {0600U, 0400U}) {
    ::chmod(file.c_str(), mode);
    CHECK(others_may_read(file) == 0);
  }
  for (const unsigned mode : {0644U, 0640U, 0604U, 0660U}) {
    ::chmod(file.c_str(), mode);
    CHECK(others_may_read(file) == mode);
  }
  CHECK_FALSE(read_enrolment(file).holds_secret());
  write(R"(,"jwt":"j","seed":"s")");
  CHECK(read_enrolment(file).holds_secret());
  write(R"(,"user":"u","password":"p")");
  CHECK(read_enrolment(file).holds_secret());
  write(R"(,"credentials":"a.creds")");
  CHECK_FALSE(read_enrolment(file).holds_secret());
}

TEST_CASE("an enrolment file that is wrong names its field") {
  const std::string good = R"({"version":1,"project":"acme","connector":"office","uid":"u","partition":3,
    "nats":{"urls":["nats://127.0.0.1:4222"],"credentials":"a.creds"},
    "subjects":{"hello":"a.b","heartbeat":"a.c","event":"a.d","command":"a.e"}})";
  const auto e = parse_enrolment(good, "/etc/warren");
  CHECK(e.connector == "office");
  CHECK(e.nats_credentials_file == "/etc/warren/a.creds");
  const auto [from, to, field] = GENERATE(table<std::string, std::string, std::string>({
      {R"("version":1)", R"("version":2)", "version"}, {"acme", "Acme", "project"}, {R"("u")", "5", "uid"},
      {"3", "-3", "partition"}, {R"(["nats://127.0.0.1:4222"])", "[]", "nats.urls"}, {"a.b", "a.*", "subjects.hello"},
      {R"("event":"a.d",)", "", "event"}, {R"("nats")", R"("gnats")", "nats"}}));
  auto bad = good;
  bad.replace(bad.find(from), from.size(), to);
  CHECK_THROWS_WITH(parse_enrolment(bad, "/"), Catch::Contains(field));
}

TEST_CASE("targets are http or https with a host and a port") {
  CHECK(parse_target("http://localhost:8080", true)->authority() == "localhost:8080");
  CHECK(parse_target("https://example.test", true)->port == 443);
  CHECK(parse_target("http://[::1]:81", true)->authority() == "[::1]:81");
  CHECK(parse_target("http://[::1]", true)->loopback());
  CHECK(parse_target("http://127.3.2.1", true)->loopback());
  CHECK_FALSE(parse_target("http://192.0.2.1", true)->loopback());
  for (const auto* bad : {"", "ftp://a", "http://", "http://a:0", "http://a:65536", "http://a:", "http://a/b", "http://u@a", "http://[::1", "http://[x]", "http://a b"})
    CHECK_FALSE(parse_target(bad, true));
}

TEST_CASE("a target is dialled at once, and after failures with delays that double up to ten seconds") {
  target_table table;
  table.attach(set_of(1), 1'000);
  auto due = table.due(1'000);
  REQUIRE(due.size() == 1);
  CHECK(table.due(1'000).empty());
  CHECK(table.dialled(due[0], "refused", true, 1'000));
  std::int64_t now = 1'000;
  for (const std::int64_t wait : {200, 400, 800, 1'600, 3'200, 6'400, 10'000, 10'000}) {
    CHECK(*table.deadline() - now == wait);
    CHECK(table.due(*table.deadline() - 1).empty());
    now = *table.deadline();
    REQUIRE(table.due(now).size() == 1);
    CHECK_FALSE(table.dialled(due[0], "refused", true, now));
  }
  now = *table.deadline();
  REQUIRE(table.due(now).size() == 1);
  const auto version = table.version();
  CHECK(table.dialled(due[0], "timed out", true, now));
  CHECK(table.version() != version);
  CHECK(table.take_changed().at(0).message() == "timed out");
  CHECK_FALSE(table.dialled(due[0], "no route", false, now));  // a visitor's, who may come a thousand times a second
  CHECK(table.states().at(0).message() == "timed out");
  now = *table.deadline();
  REQUIRE(table.due(now).size() == 1);
  CHECK(table.dialled(due[0], "", true, now));
  CHECK_FALSE(table.deadline());
  CHECK(table.take_changed().at(0).state() == "Reachable");
  CHECK(table.dialled(due[0], "refused", false, now));
  CHECK(*table.deadline() - now == 200);
  table.attach({}, now);
  CHECK_FALSE(table.deadline());
  CHECK(table.states().empty());
}

TEST_CASE("a table that is told what changed is what it would be if it were told everything") {
  std::mt19937 random{GENERATE(1u, 2u, 3u)};
  const auto any = [&](int below) { return static_cast<int>(random() % static_cast<unsigned>(below)); };
  target_table by_steps, whole;
  std::map<attachment_key, busv1::Attachment> held;
  std::int64_t now = 1'000;
  for (std::int64_t generation = 1; generation <= 400; ++generation) {
    touched_keys touched{std::in_place};
    for (int n = 1 + any(3); n > 0; --n) {
      const attachment_key key{"u" + std::to_string(any(4)), 1 + any(3)};
      touched->push_back(key);
      if (any(3) == 0) {
        held.erase(key);
        continue;
      }
      busv1::Attachment one;
      one.set_tunnel_uid(key.tunnel_uid);
      one.set_tunnel_generation(key.tunnel_generation);
      for (int index = 0; index <= any(3); ++index) {
        auto& rule = *one.add_rules();
        rule.set_index(index);
        rule.set_target(any(5) == 0 ? "no URL" : "http://host-" + std::to_string(any(4)));
      }
      held[key] = one;
    }
    busv1::AttachmentSet said;
    said.set_generation(generation);
    for (const auto& [key, one] : held) *said.add_attachments() = one;
    attachment_set set;
    set.apply(said, true);
    by_steps.attach(set, now, touched);
    whole.attach(set, now);

    const auto due = by_steps.due(now);
    REQUIRE(due == whole.due(now));
    for (const auto& to : due) {
      const std::string words = std::array{"", "", "refused", "timed out"}[any(4)];
      REQUIRE(by_steps.dialled(to, words, true, now) == whole.dialled(to, words, true, now));
    }
    const auto text = [](const std::vector<busv1::TargetState>& all) {
      std::string out;
      for (const auto& each : all) out += each.ShortDebugString() + "\n";
      return out;
    };
    REQUIRE(text(by_steps.states()) == text(whole.states()));
    if (any(4) == 0) REQUIRE(text(by_steps.take_changed()) == text(whole.take_changed()));
    REQUIRE(by_steps.deadline() == whole.deadline());
    now += any(500);
  }
}
