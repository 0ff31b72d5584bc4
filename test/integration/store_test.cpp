// test/integration/store_test.cpp -- the store against a real PostgreSQL: group commits, rivals, fences, lost
// connections.
#include <catch2/catch.hpp>

#include <atomic>
#include <csignal>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "services/store/actor.hpp"
#include "services/store/failpoint.hpp"
#include "test/integration/store_fixture.hpp"

using namespace warren;
using namespace warren::store_test;

TEST_CASE("SQL and C++ agree on a project's partition") {
  database db;
  for (const std::string p : {"", "a", "acme", "a-rather-long-project-name-with-63-characters-aaaaaaaaaaaaaaaaaaa",
                              "p0", "p1", "p2", "x9", "zzz"}) {
    INFO(p);
    CHECK(db.value<int>("SELECT warren_partition('" + p + "')") == partition_of(p, 64));
  }
}

TEST_CASE("a migration is applied once and never edited") {
  database db;
  CHECK(migrate(db.conninfo, migrations()).empty());
  CHECK(schema_level(db.conninfo) == schema_level_known);
  CHECK(schema_misfit(db.conninfo).empty());
  CHECK(partitions_of_database(db.conninfo) == 64);
  CHECK(db.value<int>("SELECT count(*) FROM partition") == 65);

  const auto folder = std::filesystem::temp_directory_path() / ("warren-migrations-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream{folder / "0001_init.sql"} << "SELECT 1;";
  CHECK_THROWS_WITH(migrate(db.conninfo, folder), Catch::Contains("edited"));
  std::filesystem::remove_all(folder);

  db.exec("UPDATE installation SET fits_from = 7");
  CHECK_THAT(schema_misfit(db.conninfo), Catch::Contains("no longer fits"));
}

TEST_CASE("a row comes back as it was written") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto done = must_save(a.save(inserting(epoch, tunnel_row("t", {"a.example.com"}))));
  REQUIRE(done.rows.size() == 1);
  CHECK(done.rows[0].tunnel().version() == done.revision);
  CHECK(done.rows[0].tunnel().route_version() == done.revision);
  CHECK(done.rows[0].tunnel().has_created_at());

  const auto found = a.load(load_entity{"tunnel", project, "t", home, epoch});
  REQUIRE(found.error == "");
  REQUIRE(found.rows.size() == 2);
  CHECK(found.rows[0].SerializeAsString() == done.rows[0].SerializeAsString());
  CHECK(found.rows[1].hostname_claim().hostname() == "a.example.com");
  CHECK(found.rows[1].hostname_claim().claim() > 0);
  CHECK_FALSE(found.rows[0].tunnel().rules(0).tls_verify());
  CHECK(db.value<int>("SELECT (conditions->0->'observed_generation')::int FROM tunnel") == 1);

  const auto said = a.announced(home);
  REQUIRE(said.size() == 1);
  CHECK(said[0].revision() == done.revision);
  CHECK(said[0].incarnation() == 1);
  CHECK(said[0].rows_size() == 2);

  const auto all = a.fetch(home, 0);
  CHECK(all.complete);
  CHECK(all.rows.size() == 2);
  CHECK(a.fetch(home, all.revision).rows.empty());
  CHECK(a.load(load_naming{project, "box"}).rows.size() == 1);
  CHECK(a.load(load_naming{"other", "box"}).rows.empty());
  CHECK(a.load(load_partition{home, epoch}).rows.size() == 2);
  CHECK(a.load(load_partition{home, epoch + 1}).lost);
}

TEST_CASE("a write that finds another version writes nothing") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto first = must_save(a.save(inserting(epoch, tunnel_row("t")))).revision;
  must_be<save_conflict>(a.save(inserting(epoch, tunnel_row("t"))));
  auto row = tunnel_row("t");
  row.mutable_tunnel()->set_enabled(false);
  const auto second = must_save(a.save(updating(epoch, row, first))).revision;
  CHECK(second == first + 1);
  must_be<save_conflict>(a.save(updating(epoch, row, first)));
  must_be<save_conflict>(a.save(updating(epoch, row, rival_version)));
  must_be<save_conflict>(a.save(erasing(epoch, row, first)));
  must_be<save_conflict>(a.save(updating(epoch, tunnel_row("missing"), 1)));
  CHECK(db.value<std::int64_t>("SELECT version FROM tunnel") == second);
}

TEST_CASE("the store counts what it does") {
  struct : counters {
    void add(std::string_view name, std::string_view label, double n) override {
      std::lock_guard lock{mutex};
      seen[std::string{name} + "/" + std::string{label}] += n;
    }
    void set(std::string_view name, double value, std::string_view label) override {
      std::lock_guard lock{mutex};
      seen[std::string{name} + "/" + std::string{label}] = value;
    }
    void observe(std::string_view name, double, std::string_view label) override { add(name, label, 1); }
    std::mutex mutex;
    std::map<std::string, double> seen;
  } count;
  database db;
  instance a{db, "a", &count};
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, tunnel_row("t", {"a.example.com"}))));
  must_be<save_conflict>(a.save(updating(epoch, tunnel_row("t"), 77)));
  a.s->stop();
  CHECK(count.seen["warren_store_transactions_total/"] == 1);
  CHECK(count.seen["warren_store_commit_seconds/"] == 1);
  CHECK(count.seen["warren_store_transitions_total/saved"] == 1);
  CHECK(count.seen["warren_store_transitions_total/conflict"] == 1);
  CHECK(count.seen["warren_store_rows_written_total/tunnel"] == 1);
  CHECK(count.seen["warren_store_rows_written_total/hostname_claim"] == 1);
  CHECK(count.seen["warren_conflicts_total/test"] == 1);
  CHECK(count.seen["warren_store_up/"] == 1);
}

TEST_CASE("a row that a rival holds is a conflict, at once") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto first = must_save(a.save(inserting(epoch, tunnel_row("t")))).revision;
  {
    pqxx::connection rival{db.conninfo};
    pqxx::work tx{rival};
    tx.exec("SELECT 1 FROM tunnel FOR UPDATE");
    const auto begun = std::chrono::steady_clock::now();
    must_be<save_conflict>(a.save(updating(epoch, tunnel_row("t"), first)));
    CHECK(std::chrono::steady_clock::now() - begun < 400ms);
  }
  must_save(a.save(updating(epoch, tunnel_row("t"), first)));
}

TEST_CASE("a table that a rival locks is said once in a while, with what was tried and on which statement") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  {
    pqxx::connection rival{db.conninfo};
    pqxx::work tx{rival};
    tx.exec("LOCK TABLE tunnel IN ACCESS EXCLUSIVE MODE");
    for (int i = 0; i < 3; ++i) CHECK(a.load(load_entity{"tunnel", project, "t", home, epoch}).error.find("lock timeout") != std::string::npos);
  }
  spdlog::set_default_logger(before);
  const auto text = log.str();
  INFO(text);
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
  CHECK(text.find("\"doing\":\"load_entity\"") != std::string::npos);
  CHECK(text.find("\"partition\":" + std::to_string(home)) != std::string::npos);
  CHECK(text.find("\"statement\":\"load_tunnel") != std::string::npos);
  CHECK(text.find("lock timeout") != std::string::npos);
  CHECK(a.load(load_entity{"tunnel", project, "t", home, epoch}).error == "");
}

TEST_CASE("how many partitions there are is what was fixed, not how many rows a rival has left") {
  database db;
  db.exec("DELETE FROM partition WHERE id = " + std::to_string(home == 3 ? 4 : 3));
  instance a{db};
  CHECK(a.s->partitions() == 64);
  db.exec("INSERT INTO partition (id) SELECT generate_series(0, 64) ON CONFLICT DO NOTHING");
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, tunnel_row("t"))));
}

TEST_CASE("one bad transition of a group fails alone") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto other = partition_of("beta", 64);
  const auto other_epoch = a.own(other);
  must_save(a.save(inserting(epoch, tunnel_row("taken"))));

  // All of them wait behind a transaction that a rival's lock on the partition's row holds up.
  std::vector<std::future<save_result>> good;
  std::future<save_result> nul, exists, label, elsewhere, stale;
  {
    pqxx::connection rival{db.conninfo};
    pqxx::work tx{rival};
    tx.exec("SELECT 1 FROM partition WHERE id = " + std::to_string(home) + " FOR UPDATE");
    auto held = a.begin(inserting(epoch, tunnel_row("first")));
    for (int i = 0; i < 20; ++i) good.push_back(a.begin(inserting(epoch, tunnel_row("good" + std::to_string(i)))));
    auto bad = tunnel_row("bad");
    bad.mutable_tunnel()->set_gateway_class(std::string("a\0b", 3));
    nul = a.begin(inserting(epoch, bad));
    exists = a.begin(inserting(epoch, tunnel_row("taken")));
    label = a.begin(inserting(epoch, tunnel_row("Not_A_Label")));
    elsewhere = a.begin(inserting(epoch, tunnel_row("t", {}, "beta"), other));
    stale = a.begin(inserting(epoch - 1, tunnel_row("stale")));
    good.push_back(std::move(held));
  }
  for (auto& f : good) must_save(get(std::move(f)));
  CHECK(must_be<save_refused>(get(std::move(nul))).code == errc::invalid);
  must_be<save_conflict>(get(std::move(exists)));
  const auto refused = must_be<save_refused>(get(std::move(label)));
  CHECK(refused.code == errc::invalid);
  CHECK(refused.field == "name");
  must_be<save_lost>(get(std::move(stale)));
  if (other % limits::store_lanes != home % limits::store_lanes)
    must_be<save_lost>(get(std::move(elsewhere)));  // epoch of the other partition
  CHECK(db.value<int>("SELECT count(*) FROM tunnel WHERE name LIKE 'good%'") == 20);
  CHECK(other_epoch > 0);

  // No gap: each revision was announced exactly once.
  revision_t next = 1;
  for (const auto& r : a.announced(home)) CHECK(r.revision() == next++);
}

TEST_CASE("a host name belongs to one tunnel") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto other = partition_of("beta", 64);
  const auto other_epoch = a.own(other);

  SECTION("whoever comes first") {
    must_save(a.save(inserting(epoch, tunnel_row("t", {"a.example.com"}))));
    const auto r = must_be<save_refused>(
        a.save(inserting(other_epoch, tunnel_row("u", {"b.example.com", "a.example.com"}, "beta"), other)));
    CHECK(r.code == errc::already_exists);
    CHECK(r.field == "hostnames");
    CHECK_THAT(r.message, Catch::Contains("a.example.com") && !Catch::Contains("acme"));
    CHECK(db.value<int>("SELECT count(*) FROM hostname_claim") == 1);
    CHECK(db.value<int>("SELECT count(*) FROM tunnel") == 1);
  }
  SECTION("of many that race, one wins each time, and never half") {
    for (int round = 0; round < 30; ++round) {
      const auto n = std::to_string(round);
      auto one = a.begin(inserting(epoch, tunnel_row("t" + n, {"x" + n + ".example.com", "y" + n + ".example.com"})));
      auto two = a.begin(inserting(other_epoch, tunnel_row("t" + n, {"y" + n + ".example.com", "x" + n + ".example.com"}, "beta"), other));
      const auto r1 = get(std::move(one)), r2 = get(std::move(two));
      const bool first = std::holds_alternative<saved>(r1), second = std::holds_alternative<saved>(r2);
      CHECK_FALSE((first && second));
      const auto tunnels = db.value<int>("SELECT count(*) FROM tunnel WHERE name = 't" + n + "'");
      CHECK(tunnels == (first ? 1 : 0) + (second ? 1 : 0));
      CHECK(db.value<int>("SELECT count(*) FROM hostname_claim WHERE tunnel = 't" + n + "'") == 2 * tunnels);
    }
  }
  SECTION("and can be given back in the transaction that takes another") {
    const auto rev = must_save(a.save(inserting(epoch, tunnel_row("t", {"a.example.com", "b.example.com"})))).revision;
    auto change = updating(epoch, tunnel_row("t", {"b.example.com", "c.example.com"}), rev);
    change.claims = claim_change{project, "t", "uid-acme-t", {"b.example.com", "c.example.com"}, {"a.example.com"}};
    const auto done = must_save(a.save(change));
    CHECK(db.value<std::string>("SELECT string_agg(hostname, ' ' ORDER BY hostname) FROM hostname_claim") ==
          "b.example.com c.example.com");
    const auto said = a.announced(home).back();
    CHECK(said.revision() == done.revision);
    CHECK(said.rows_size() == 3);  // the tunnel, the new claim, the tombstone of the old one
    const auto missed = a.fetch(home, rev);
    CHECK_FALSE(missed.complete);
    CHECK(missed.rows.size() == 3);
  }
}

TEST_CASE("a public key belongs to one connector") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const std::string key(64, 'a');
  const auto rev = must_save(a.save(inserting(epoch, connector_row("one", key)))).revision;
  const auto r = must_be<save_refused>(a.save(inserting(epoch, connector_row("two", key))));
  CHECK(r.code == errc::already_exists);
  CHECK(r.field == "public_key");
  must_save(a.save(updating(epoch, connector_row("one", key), rev)));
  must_save(a.save(inserting(epoch, connector_row("three"))));
  must_save(a.save(inserting(epoch, connector_row("four"))));
}

TEST_CASE("the same request id gives the first answer") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  auto r = inserting(epoch, tunnel_row("t"));
  r.request = answered_request{project, "CreateTunnel", "id-1", "digest"};
  r.audit = audit_entry{project, "CreateTunnel", "projects/acme/tunnels/t", "me", "::1", "id-1", "", R"({"name": "t"})"};
  const auto done = must_save(a.save(r));
  const auto again = must_be<save_replayed>(a.save(r));
  CHECK(again.reply.revision() == done.revision);
  CHECK(again.reply.partition() == home);
  CHECK(again.reply.row().SerializeAsString() == done.rows[0].SerializeAsString());
  r.request->digest = "other";
  const auto refused = must_be<save_refused>(a.save(r));
  CHECK(refused.code == errc::invalid);
  CHECK(refused.field == "request_id");
  CHECK(db.value<int>("SELECT count(*) FROM audit_event") == 1);

  std::promise<std::vector<audit_event>> page;
  a.s->list_audit(project, 0, 10, [&](std::string, std::vector<audit_event> e) { page.set_value(std::move(e)); });
  const auto events = get(page.get_future());
  REQUIRE(events.size() == 1);
  CHECK(events[0].after_json == R"({"name": "t"})");
  CHECK(events[0].before_json.empty());
}

TEST_CASE("what a rival touches is adopted, and never mistaken for what it was") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto rev = must_save(a.save(inserting(epoch, tunnel_row("t", {"a.example.com"})))).revision;

  db.exec("UPDATE tunnel SET enabled = false");
  REQUIRE(a.wait([&] { return std::count(a.rivals.begin(), a.rivals.end(), home) > 0; }));
  must_be<save_conflict>(a.save(updating(epoch, tunnel_row("t"), rev)));
  // The same content again: another version all the same.
  db.exec("UPDATE tunnel SET enabled = true");
  must_be<save_conflict>(a.save(updating(epoch, tunnel_row("t"), rev)));

  const auto taken = a.adopt(home, epoch);
  REQUIRE(taken.error == "");
  REQUIRE(taken.rows.size() == 1);
  const auto& t = taken.rows[0].tunnel();
  CHECK(t.version() > rev);
  CHECK(t.route_version() == t.version());
  CHECK(t.generation() == 3);
  CHECK(a.announced(home).back().revision() == t.version());
  CHECK(a.adopt(home, epoch).rows.empty());
  must_save(a.save(updating(epoch, taken.rows[0], t.version())));

  SECTION("a row of a rival's own lands in its partition") {
    db.exec("INSERT INTO tunnel (project, name) VALUES ('acme', 'theirs'), ('beta', 'elsewhere')");
    CHECK(db.value<int>("SELECT partition FROM tunnel WHERE name = 'elsewhere'") == partition_of("beta", 64));
    const auto found = a.load(load_entity{"tunnel", project, "theirs", home, epoch});
    REQUIRE(found.rows.size() == 1);
    CHECK(found.rows[0].tunnel().version() > t.version());
  }
  SECTION("a rival's DELETE leaves a tombstone that replicas see") {
    const auto before = a.fetch(home, 0).revision;
    db.exec("DELETE FROM tunnel");
    const auto gone = a.adopt(home, epoch);
    std::set<std::string> kinds;
    for (const auto& row : gone.rows) kinds.insert(row.tombstone().kind() + " " + row.tombstone().key());
    CHECK(kinds == std::set<std::string>{"tunnel acme/t", "hostname_claim a.example.com"});
    CHECK(a.fetch(home, before).rows.size() == 2);
  }
  SECTION("a marked row that somebody holds is tried again") {
    db.exec("UPDATE tunnel SET enabled = false");
    {
      pqxx::connection rival{db.conninfo};
      pqxx::work tx{rival};
      tx.exec("SELECT 1 FROM tunnel FOR UPDATE");
      CHECK(a.adopt(home, epoch).rows.empty());
      CHECK(a.load(load_entity{"tunnel", project, "t", home, epoch}).error != "");
    }
    {
      std::lock_guard lock{a.mutex};
      a.rivals.clear();
    }
    CHECK(a.wait([&] { return !a.rivals.empty(); }));
    CHECK(a.adopt(home, epoch).rows.size() == 1);
  }
  SECTION("a rival can neither rename nor truncate") {
    CHECK_THROWS(db.exec("UPDATE tunnel SET name = 'other'"));
    CHECK_THROWS(db.exec("TRUNCATE tunnel CASCADE"));
  }
}

TEST_CASE("whoever adopts what a rival deleted below a tunnel hears which tunnel it was") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, connector_row("box"))));
  must_save(a.save(inserting(epoch, tunnel_row("t", {"a.example.com"}))));
  must_save(a.save(inserting(epoch, attachment_row("box", tunnel_row("t")))));
  const std::string table = GENERATE(as<std::string>{}, "hostname_claim", "attachment");
  db.exec("DELETE FROM " + table);
  const auto taken = a.adopt(home, epoch);
  REQUIRE(taken.error == "");
  REQUIRE(taken.rows.size() == 2);
  CHECK(taken.rows[0].tombstone().kind() == table);
  CHECK(taken.rows[1].tunnel().name() == "t");
  CHECK(a.announced(home).back().rows_size() == 1);  // the tunnel itself has not changed
  CHECK(a.adopt(home, epoch).rows.empty());
}

TEST_CASE("a partition that starts finds the tunnels that a claim is missing of") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  for (const char* name : {"whole", "bereft"}) {
    auto row = tunnel_row(name, {std::string{name} + ".example.com"});
    row.mutable_tunnel()->set_programmed_generation(1);
    row.mutable_tunnel()->set_observed_generation(1);
    must_save(a.save(inserting(epoch, row)));
  }
  CHECK(a.load(load_partition{home, epoch}).rows.empty());
  db.exec("DELETE FROM hostname_claim WHERE hostname = 'bereft.example.com'");
  const auto found = a.load(load_partition{home, epoch});
  REQUIRE(found.rows.size() == 1);
  CHECK(found.rows[0].tunnel().name() == "bereft");
}

TEST_CASE("what a rival writes promises nothing that only an owner can know") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  auto box = connector_row("box");
  box.mutable_connector()->set_online(true);
  box.mutable_connector()->set_attachment_generation(5);
  box.mutable_connector()->set_attached_generation(5);
  must_save(a.save(inserting(epoch, box)));
  auto row = tunnel_row("t", {"a.example.com"});
  row.mutable_tunnel()->set_observed_generation(1);
  row.mutable_tunnel()->set_programmed_generation(1);
  must_save(a.save(inserting(epoch, row)));
  auto held = attachment_row("box", row);
  held.mutable_attachment()->set_attachment_generation(5);
  must_save(a.save(inserting(epoch, held)));

  SECTION("an attachment is held by no agent, not even before it is adopted") {
    db.exec("INSERT INTO attachment (project, connector, tunnel_uid, tunnel_generation) SELECT project, 'box', uid, 2 FROM tunnel");
    const auto before = a.fetch(home, 0);
    const auto theirs = std::find_if(before.rows.begin(), before.rows.end(), [](const auto& r) { return r.attachment().tunnel_generation() == 2; });
    REQUIRE(theirs != before.rows.end());
    CHECK(theirs->attachment().version() == rival_version);
    CHECK(theirs->attachment().attachment_generation() == never_attached);
    const auto taken = a.adopt(home, epoch);
    REQUIRE(taken.rows.size() == 1);
    CHECK(taken.rows[0].attachment().attachment_generation() == never_attached);
  }
  SECTION("nor is one whose content it changes; one that it only touches is") {
    db.exec("UPDATE attachment SET target_message = 'x'");
    CHECK(db.value<std::int64_t>("SELECT attachment_generation FROM attachment") == 5);
    db.exec("UPDATE attachment SET rules = '[{\"index\": 0, \"target\": \"http://localhost:1\"}]'");
    CHECK(db.value<std::int64_t>("SELECT attachment_generation FROM attachment") == never_attached);
  }
  SECTION("a connector is not online and holds nothing because it says so") {
    db.exec("UPDATE connector SET attached_generation = 99, dialable = true");
    CHECK(db.exec("SELECT attached_generation, dialable, online FROM connector")[0][0].as<int>() == 5);
    CHECK_FALSE(db.value<bool>("SELECT dialable FROM connector"));
    CHECK(db.value<bool>("SELECT online FROM connector"));
    db.exec("INSERT INTO connector (project, name, online, attached_generation) VALUES ('acme', 'theirs', true, 7)");
    CHECK_FALSE(db.value<bool>("SELECT online OR attached_generation > 0 FROM connector WHERE name = 'theirs'"));
  }
  SECTION("a tunnel is neither judged nor programmed") {
    db.exec("INSERT INTO tunnel (project, name, observed_generation, programmed_generation) VALUES ('acme', 'theirs', 1, 1)");
    CHECK(db.value<int>("SELECT observed_generation + programmed_generation FROM tunnel WHERE name = 'theirs'") == 0);
    db.exec("UPDATE tunnel SET programmed_generation = 9 WHERE name = 't'");
    CHECK(db.value<int>("SELECT programmed_generation FROM tunnel WHERE name = 't'") == 1);
  }
  SECTION("a spec that it changes keeps what was live, however often it does") {
    for (const char* connector : {"second", "third"})
      db.exec("UPDATE tunnel SET rules = '[{\"path_prefix\": \"/\", \"connector\": \"" + std::string{connector} + "\"}]'");
    const auto r = db.exec("SELECT generation, previous_generation, previous_rules -> 0 ->> 'connector', array_to_string(retiring, ' ') FROM tunnel")[0];
    CHECK(r[0].as<int>() == 3);
    CHECK(r[1].as<int>() == 1);
    CHECK(r[2].as<std::string>() == "box");
    CHECK(r[3].as<std::string>() == "box second");
  }
  SECTION("what counts goes on from what it was") {
    const auto number = [&](const char* of, const char* table) { return db.value<std::int64_t>(std::string{"SELECT "} + of + " FROM " + table); };
    for (const char* wild : {"-5", "0", "9223372036854775807", "generation + 1000001"}) {
      const auto was = number("generation", "tunnel");
      db.exec(std::string{"UPDATE tunnel SET generation = "} + wild);
      CHECK(number("generation", "tunnel") == was + 1);
    }
    db.exec("UPDATE tunnel SET generation = generation + 7, conditions = '[]', previous_generation = 99, previous_rules = '[5]'");
    CHECK(number("generation", "tunnel") == 12);
    CHECK(number("previous_generation", "tunnel") == 0);
    CHECK(number("jsonb_array_length(previous_rules)", "tunnel") == 0);
    db.exec("UPDATE connector SET generation = -1, session = -3, addressing_generation = -1, attachment_generation = -7");
    CHECK(number("generation", "connector") == 2);
    for (const char* counted : {"session", "addressing_generation", "attachment_generation"}) CHECK(number(counted, "connector") >= 0);
    CHECK_THROWS(db.exec("INSERT INTO attachment (project, connector, tunnel_uid, tunnel_generation) SELECT project, 'box', uid, -2 FROM tunnel"));
    db.exec("INSERT INTO tunnel (project, name, generation) VALUES ('acme', 'theirs', -3)");
    CHECK(number("generation", "tunnel WHERE name = 'theirs'") == 1);
  }
  SECTION("a claim is of the tunnel that its uid means, and stays it") {
    db.exec("INSERT INTO hostname_claim (hostname, project, tunnel, tunnel_uid) VALUES ('b.example.com', 'other', 'x', 'uid-acme-t')");
    CHECK(db.value<std::string>("SELECT project || '/' || tunnel FROM hostname_claim WHERE hostname = 'b.example.com'") == "acme/t");
    db.exec("INSERT INTO tunnel (project, name, uid) VALUES ('acme', 'u', 'uid-u')");
    CHECK_THROWS(db.exec("UPDATE hostname_claim SET tunnel_uid = 'uid-u'"));
  }
}

TEST_CASE("deletion leaves tombstones, for a while") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto box = must_save(a.save(inserting(epoch, connector_row("box")))).revision;
  const auto rev = must_save(a.save(inserting(epoch, tunnel_row("t", {"a.example.com"})))).revision;
  must_save(a.save(inserting(epoch, attachment_row("box", tunnel_row("t")))));
  CHECK(must_be<save_refused>(a.save(inserting(epoch, attachment_row("box", tunnel_row("gone"))))).field == "tunnel_uid");
  const auto found = a.load(load_entity{"connector", project, "box", home, epoch});
  CHECK(found.rows.size() == 2);

  auto last = tunnel_row("t");
  last.mutable_tunnel()->set_enabled(false);
  const auto done = must_save(a.save(erasing(epoch, last, rev)));
  REQUIRE(done.rows.size() == 1);
  CHECK(done.rows[0].tunnel().rules_size() == 1);
  CHECK_FALSE(done.rows[0].tunnel().enabled());  // as it is to be shown, not as it was
  const auto missed = a.fetch(home, rev + 1);
  CHECK(missed.rows.size() == 3);
  const auto everything = a.fetch(home, 0);  // also brings what is remembered of deletions: watches resume on it
  CHECK(everything.complete);
  CHECK(everything.tombstones_from == 0);
  CHECK(std::count_if(everything.rows.begin(), everything.rows.end(), [](const auto& r) { return r.has_tombstone(); }) == 3);
  CHECK(a.announced(home).back().rows_size() == 3);
  CHECK(db.value<int>("SELECT count(*) FROM attachment") == 0);

  db.exec("UPDATE tombstone SET deleted_at = now() - interval '2 hours'");
  // Of instances that died, operators see for an hour that they did.
  db.exec("INSERT INTO instance (id, name, expires_at) VALUES (900, 'long dead', now() - interval '61 minutes'), "
          "(901, 'dead', now() - interval '59 minutes')");
  std::promise<std::string> purged;
  a.s->purge([&](std::string e) { purged.set_value(e); });
  CHECK(get(purged.get_future()) == "");
  CHECK(db.value<std::string>("SELECT string_agg(name, ' ') FROM instance WHERE id >= 900") == "dead");
  CHECK(db.value<int>("SELECT count(*) FROM tombstone") == 0);
  CHECK(a.fetch(home, rev).complete);
  CHECK(a.fetch(home, rev).tombstones_from == done.revision);
  CHECK_FALSE(a.fetch(home, done.revision).complete);
  CHECK(box > 0);
}

TEST_CASE("a superseded holder writes nothing") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto rev = must_save(a.save(inserting(epoch, tunnel_row("t")))).revision;

  SECTION("after its lease has ended") {
    instance b{db, "b"};
    CHECK(b.take(home).taken.empty());
    db.exec("UPDATE instance SET expires_at = now() - interval '1 second' WHERE name = 'a'");
    const auto later = b.own(home);
    CHECK(later == epoch + 1);
    must_be<save_lost>(a.save(updating(epoch, tunnel_row("t"), rev)));
    CHECK(a.load(load_entity{"tunnel", project, "t", home, epoch}).lost);
    CHECK(a.adopt(home, epoch).lost);
    must_save(b.save(updating(later, tunnel_row("t"), rev)));
  }
  SECTION("after it has released the partition") {
    std::promise<placement_view> done;
    a.lease.release({home, epoch}, [&](placement_view v) { done.set_value(v); });
    get(done.get_future());
    instance b{db, "b"};
    b.own(home);
    must_be<save_lost>(a.save(updating(epoch, tunnel_row("t"), rev)));
  }
  SECTION("a paused one cannot keep its locks") {
    pqxx::connection paused{db.conninfo};
    pqxx::work tx{paused};
    tx.exec("SET application_name = 'warrend/" + std::to_string(a.lease.id()) + "/lane0'");
    tx.exec("UPDATE partition SET revision = revision + 1 WHERE id = " + std::to_string(home));
    instance b{db, "b"};
    db.exec("UPDATE instance SET expires_at = now() - interval '1 second' WHERE name = 'a'");
    // The ended session lets go a moment later.
    for (int i = 0; i < 10 && b.take(home).taken.empty(); ++i) {
    }
    CHECK(db.value<std::int64_t>("SELECT owner FROM partition WHERE id = " + std::to_string(home)) == b.lease.id());
  }
}

TEST_CASE("of many partitions those are taken that may be, and one that is locked keeps none of the others") {
  database db;
  instance a{db, "a"}, b{db, "b"};
  const std::vector<partition_id> wanted{1, 2, 3, 4, 5};
  db.exec("INSERT INTO instance (id, name, expires_at) VALUES (900, 'dead', now() - interval '1 second')");
  db.exec("UPDATE partition SET owner = 900, epoch = 4 WHERE id IN (1, 2)");
  b.own(3);  // alive: its own
  pqxx::connection rival{db.conninfo};
  {
    pqxx::work tx{rival};
    tx.exec("SELECT FROM partition WHERE id = 1 FOR UPDATE");
    const auto view = a.take_all(wanted);
    CHECK(view.taken == std::vector<partition_id>{2, 4, 5});
    CHECK(view.partitions.at(2).epoch == 5);
    CHECK(view.partitions.at(2).owner == a.lease.id());
    CHECK(view.partitions.at(3).owner == b.lease.id());
    CHECK(view.partitions.at(1).owner == 900);
  }
  CHECK(a.take_all(wanted).taken == std::vector<partition_id>{1, 2, 4, 5});  // what is ours gets a new epoch, as when taken alone
}

TEST_CASE("who asks an instance to drain is in the audit trail, once, with the lease that says it") {
  database db;
  instance a{db, "a"};
  const auto name = "instances/" + std::to_string(a.lease.id());
  const renew_lease asked{true, true, audit_entry{"", "DrainInstance", name, "alice", "ipv4:127.0.0.1:1", "", R"({"draining": false})", R"({"draining": true})"}};
  for (int i = 0; i < 2; ++i) {  // its answer may have been lost
    std::promise<placement_view> answer;
    a.lease.renew(asked, [&](placement_view v) { answer.set_value(std::move(v)); });
    const auto view = get(answer.get_future());
    CHECK(view.renewed);
    REQUIRE(view.instances.size() == 1);
  }
  CHECK(db.value<bool>("SELECT draining FROM instance"));
  CHECK(db.value<std::string>("SELECT string_agg(concat_ws(' ', method, resource, principal, remote, before ->> 'draining', after ->> 'draining'), ';') "
                              "FROM audit_event") == "DrainInstance " + name + " alice ipv4:127.0.0.1:1 false true");
}

TEST_CASE("a dead instance is succeeded at once, a live name is refused") {
  database db;
  auto b = std::make_unique<instance>(db, "b");
  lease_store twin{{.conninfo = db.conninfo, .name = "b"}};
  CHECK_THAT(twin.start(), Catch::Contains("alive"));

  // Killed: row and lease are there, the advisory lock is not.
  db.exec("INSERT INTO instance (id, name, expires_at) VALUES (900, 'dead', now() + interval '1 hour')");
  db.exec("UPDATE partition SET owner = 900, epoch = 4 WHERE id = 3");
  CHECK(b->own(3) == 5);

  db.exec("UPDATE partition SET owner = 900, epoch = 4 WHERE id = 4");
  instance again{db, "dead"};
  CHECK(again.own(4) == 5);

  const auto view = again.renew();
  CHECK(view.renewed);
  CHECK(view.incarnation == 1);
  CHECK(view.partitions.size() == 65);
  CHECK(view.instances.size() == 2);
}

TEST_CASE("an instance whose lock connection was ended takes the lock again") {
  database db;
  instance a{db};
  db.end_sessions("%/lock");
  CHECK(a.renew().renewed);
  CHECK(db.advisory_locks() == 1);
}

TEST_CASE("an instance steps down when its place is lost, and not because the database is away") {
  auto& server = own_server::get().cluster;
  database db{server};
  std::atomic<int> lost{0};
  lease_store l{{.conninfo = db.conninfo, .name = "c", .on_lost = [&](const std::string&) { ++lost; }}};
  REQUIRE(l.start() == "");
  const auto renewed = [&] {
    std::promise<placement_view> done;
    l.renew({}, [&](placement_view v) { done.set_value(std::move(v)); });
    return get(done.get_future());
  };
  SECTION("away, and back") {
    server.stop();
    CHECK(renewed().error != "");
    CHECK(renewed().error != "");
    server.start();
    CHECK(renewed().renewed);
    CHECK(lost == 0);
    CHECK(db.advisory_locks() == 1);
  }
  SECTION("its row is gone") {
    db.exec("DELETE FROM instance");
    CHECK(renewed().error != "");
    CHECK(lost == 1);
  }
  SECTION("its lock is somebody else's, or its own former session's") {
    // The server has not noticed yet that the connection is gone.
    const bool former = GENERATE(false, true);
    pqxx::connection other{db.conninfo};
    if (former) pqxx::nontransaction{other}.exec("SET application_name = 'warrend/" + std::to_string(l.id()) + "/lock'");
    for (const auto pid : db.processes("%/lock"))
      if (pid != other.backendpid()) db.exec("SELECT pg_terminate_backend(" + std::to_string(pid) + ")");
    pqxx::nontransaction holder{other};
    for (bool held = false; !held;)
      held = holder.exec1("SELECT pg_try_advisory_lock(1463898707, " + std::to_string(l.id()) + ")")[0].as<bool>();
    const auto view = renewed();
    CHECK(view.renewed == former);
    CHECK(lost == (former ? 0 : 1));
  }
}

TEST_CASE("an instance whose row the database has lost with its last second registers again") {
  database db;
  instance a{db};
  const auto number = a.lease.id();
  a.own(home);
  db.exec("DELETE FROM instance; SELECT warren_restored()");
  const auto view = a.renew();
  CHECK(view.error == "");
  CHECK(view.renewed);
  CHECK(view.incarnation == 2);
  CHECK(a.lost.empty());
  CHECK(db.value<std::int64_t>("SELECT id FROM instance") == number);
  a.own(home);

  instance other{db, "b"};
  db.exec("DELETE FROM instance WHERE name = 'a'; UPDATE instance SET name = 'a'; SELECT warren_restored()");
  CHECK_THAT(a.renew().error, Catch::Contains("held by"));  // somebody who lives has the name now
  CHECK_THAT(a.lost, Catch::Contains("held by"));
}

TEST_CASE("a number that was given out in a lost time, and is still in use, is not given out again") {
  database db;
  instance a{db};
  db.exec("SELECT setval('instance_id', " + std::to_string(a.lease.id()) + ", false)");
  instance b{db, "b"};
  CHECK(b.lease.id() == a.lease.id() + 1);
}

TEST_CASE("whoever takes a partition over says its revision, and finds the tunnels that no agent holds") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  must_save(a.save(inserting(epoch, connector_row("box"))));
  auto live = tunnel_row("live", {"live.example.com"}), lonely = tunnel_row("lonely", {"lonely.example.com"});
  for (auto* row : {&live, &lonely}) {
    row->mutable_tunnel()->set_programmed_generation(1);
    row->mutable_tunnel()->set_observed_generation(1);
  }
  auto stranger = tunnel_row("stranger");  // its connector does not exist: nobody can hold it
  *stranger.mutable_tunnel() = live.tunnel();
  stranger.mutable_tunnel()->set_name("stranger");
  stranger.mutable_tunnel()->set_uid("uid-stranger");
  stranger.mutable_tunnel()->clear_hostnames();
  stranger.mutable_tunnel()->mutable_rules(0)->set_connector("nobody");
  for (const auto& row : {live, lonely, stranger}) must_save(a.save(inserting(epoch, row)));
  const auto last = must_save(a.save(inserting(epoch, attachment_row("box", live)))).revision;

  const auto said = a.announced(home).size();
  const auto found = a.load(load_partition{home, epoch});
  std::vector<std::string> tunnels;
  for (const auto& row : found.rows)
    if (row.has_tunnel()) tunnels.push_back(row.tunnel().name());
  CHECK(tunnels == std::vector<std::string>{"lonely"});
  CHECK(std::count_if(found.rows.begin(), found.rows.end(), [](const auto& r) { return r.has_hostname_claim(); }) == 1);
  REQUIRE(a.announced(home).size() == said + 1);
  CHECK(a.announced(home).back().revision() == last);
  CHECK(a.announced(home).back().rows_size() == 0);
}

TEST_CASE("sessions that are ended are replaced and nothing is lost") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  for (int round = 0; round < 5; ++round) {
    std::vector<std::future<save_result>> all;
    for (int i = 0; i < 50; ++i)
      all.push_back(a.begin(inserting(epoch, tunnel_row("t" + std::to_string(round) + "-" + std::to_string(i)))));
    db.end_sessions("warrend/%/lane%");
    for (auto& f : all) must_save(get(std::move(f)));
  }
  CHECK(db.value<int>("SELECT count(*) FROM tunnel") == 250);
  revision_t next = 1;
  for (const auto& r : a.announced(home)) CHECK(r.revision() == next++);
}

TEST_CASE("a database that is away is said so, and comes back by itself") {
  auto& server = own_server::get().cluster;
  database db{server};
  instance a{db};
  const auto epoch = a.own(home);
  server.stop();
  CHECK(a.wait([&] { return !a.up; }, 3s));
  must_be<save_unavailable>(a.save(inserting(epoch, tunnel_row("t"))));  // with the server still away
  CHECK(a.load(load_entity{"tunnel", project, "t", home, epoch}).error != "");
  CHECK(a.renew().error != "");
  server.start();
  CHECK(a.wait([&] { return a.up; }));
  must_save(a.save(inserting(epoch, tunnel_row("t"))));
  CHECK(a.renew().renewed);
}

TEST_CASE("a server process that does not answer is given up") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto rev = must_save(a.save(inserting(epoch, tunnel_row("t")))).revision;
  const auto lane = db.processes("%/lane" + std::to_string(home % limits::store_lanes));
  REQUIRE(lane.size() == 1);
  const auto pid = lane[0];
  REQUIRE(::kill(pid, SIGSTOP) == 0);
  const auto answer = a.save(updating(epoch, tunnel_row("t"), rev));  // with the process still stopped
  ::kill(pid, SIGCONT);
  must_save(answer);
}

TEST_CASE("another database raises the incarnation before anything is written") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto rev = must_save(a.save(inserting(epoch, tunnel_row("t")))).revision;
  db.exec("UPDATE installation SET timeline = timeline + 1");
  db.end_sessions("warrend/%");
  must_be<save_lost>(a.save(updating(epoch, tunnel_row("t"), rev)));
  const auto later = a.own(home);
  CHECK(later > (std::int64_t{1} << 32));
  const auto done = must_save(a.save(updating(later, tunnel_row("t"), rev)));
  CHECK(done.revision > (std::int64_t{1} << 32));
  CHECK(a.announced(home).back().incarnation() == 2);
  CHECK(a.fetch(home, rev).complete);
}

#ifdef WARREN_FAILPOINTS
TEST_CASE("an undecided commit is neither lost nor repeated") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  const auto rev = must_save(a.save(inserting(epoch, tunnel_row("t")))).revision;
  set_failpoint("after_commit=undecided");
  const auto done = must_save(a.save(updating(epoch, tunnel_row("t"), rev)));
  CHECK(done.revision == rev + 1);
  CHECK(db.value<std::int64_t>("SELECT revision FROM partition WHERE id = " + std::to_string(home)) == rev + 1);
  CHECK(a.announced(home).back().revision() == rev + 1);
  must_save(a.save(updating(epoch, tunnel_row("t"), done.revision)));
}
#endif

TEST_CASE("the actors answer what the classes answer") {
  database db;
  instance a{db};
  const auto epoch = a.own(home);
  caf::actor_system_config config;
  caf::actor_system system{config};
  {
    auto handle = spawn_store(system, std::shared_ptr<store>{a.s.get(), [](store*) {}});
    auto lease = spawn_lease_store(system, std::shared_ptr<lease_store>{&a.lease, [](lease_store*) {}});
    caf::scoped_actor self{system};
    self->request(handle, 5s, inserting(epoch, tunnel_row("t")))
        .receive([&](const save_result& r) { must_save(r); }, [](const caf::error&) { FAIL("no answer"); });
    self->request(handle, 5s, fetch_changes{home, 0})
        .receive([&](const changes& c) { CHECK(c.rows.size() == 1); }, [](const caf::error&) { FAIL("no answer"); });
    self->request(lease, 5s, renew_lease{})
        .receive([&](const placement_view& v) { CHECK(v.renewed); }, [](const caf::error&) { FAIL("no answer"); });
  }
}
