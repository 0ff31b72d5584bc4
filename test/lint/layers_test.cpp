// test/lint/layers_test.cpp -- the project keeps its own rules, and the rules can tell when it does not.
#include <cstdlib>
#include <filesystem>

#include <catch2/catch.hpp>

#include "test/lint/rules.hpp"

using namespace warren::lint;

namespace {

const std::vector<source_file>& tree() {
  static const auto all = read_tree();
  return all;
}

/// Names of the rules that a text breaks at a path; its first line is right.
std::vector<std::string> broken(const std::string& path, const std::string& text) {
  std::vector<std::string> out;
  for (const auto& c : judge(source_file{path, "// " + path + " -- an example.\n" + text})) out.push_back(c.rule);
  return out;
}

using names = std::vector<std::string>;

}  // namespace

TEST_CASE("every file keeps the rules") {
  REQUIRE(tree().size() > 50);  // else the walk has missed the project, and nothing below means anything
  std::vector<complaint> all;
  for (const auto& file : tree())
    for (auto& c : judge(file)) all.push_back(std::move(c));
  INFO(render(all));
  CHECK(all.empty());
}

TEST_CASE("migrations are numbered without gaps") {
  names found;
  for (const auto& entry : std::filesystem::directory_iterator{root() + "/migrations"})
    found.push_back(entry.path().filename().string());
  REQUIRE_FALSE(found.empty());
  const auto all = judge_migrations(found);
  INFO(render(all));
  CHECK(all.empty());
}

TEST_CASE("shell scripts parse") {
  int scripts = 0;
  for (const auto& file : tree()) {
    const bool by_name = file.path.size() > 3 && file.path.compare(file.path.size() - 3, 3, ".sh") == 0;
    const bool by_first_line = file.text.rfind("#!/bin/bash", 0) == 0 || file.text.rfind("#!/usr/bin/env bash", 0) == 0;
    if (!by_name && !by_first_line) continue;
    ++scripts;
    INFO(file.path);
    CHECK(std::system(("bash -n '" + root() + "/" + file.path + "'").c_str()) == 0);
  }
  CHECK(scripts > 0);
}

TEST_CASE("each room's own library is refused elsewhere") {
  CHECK(broken("services/admin/call.cpp", "#include <pqxx/pqxx>\n") == names{"pqxx"});
  CHECK(broken("services/store/lane.cpp", "#include <pqxx/pqxx>\n").empty());
  CHECK(broken("services/replica/actor.cpp", "#include <nats/nats.h>\n") == names{"nats"});
  CHECK(broken("services/bus/connection.cpp", "#include <nats/nats.h>\n").empty());
  CHECK(broken("services/replica/actor.cpp", "#include <grpcpp/grpcpp.h>\n") == names{"grpc"});
  CHECK(broken("services/warrend/serve.cpp", "#include \"warren/admin/v1/admin.grpc.pb.h\"\n") == names{"grpc"});
  CHECK(broken("services/warrenctl/command.cpp", "#include <grpcpp/grpcpp.h>\n").empty());
}

TEST_CASE("decisions know no actors, no clock, no chance and no log") {
  CHECK(broken("actors/tunnel/machine.cpp", "#include \"actors/messages.hpp\"\n") == names{"caf-in-decisions"});
  CHECK(broken("actors/core/wire.hpp", "#include <caf/actor.hpp>\n") == names{"caf-in-decisions", "caf-outside-messages"});
  CHECK(broken("actors/tunnel/actor.cpp", "#include \"actors/messages.hpp\"\n").empty());
  CHECK(broken("actors/placement/plan.cpp", "auto t = std::chrono::steady_clock::now();\n") == names{"clock-in-decisions"});
  CHECK(broken("actors/placement/plan.cpp", "auto t = system_clock :: now();\n") == names{"clock-in-decisions"});
  CHECK(broken("actors/placement/actor.cpp", "auto t = std::chrono::steady_clock::now();\n").empty());
  CHECK(broken("actors/connector/spec.cpp", "std::random_device seed;\n") == names{"chance-in-decisions"});
  CHECK(broken("actors/connector/spec.cpp", "int n = rand();\n") == names{"chance-in-decisions"});
  CHECK(broken("actors/connector/spec.cpp", "int n = operand();\n").empty());
  CHECK(broken("actors/tunnel/status.cpp", "spdlog::info(\"x\");\n") == names{"log-in-decisions"});
  CHECK(broken("actors/partition/acks.hpp", "#include <thread>\n") == names{"io-in-decisions"});
}

TEST_CASE("rooms use those below them only") {
  CHECK(broken("actors/tunnel/actor.cpp", "#include \"services/store/store.hpp\"\n") == names{"actors-below-services"});
  CHECK(broken("services/bus/codec.hpp", "#include \"services/store/store.hpp\"\n") == names{"services-bus"});
  CHECK(broken("services/bus/codec.hpp", "#include \"services/bus/subjects.hpp\"\n").empty());
  CHECK(broken("services/gateway/xds.cpp", "#include \"services/admin/server.hpp\"\n") == names{"services-gateway"});
  CHECK(broken("services/warrend/serve.cpp", "#include \"services/admin/server.hpp\"\n").empty());
  CHECK(broken("services/store/rows.cpp", "#include \"test/support/rows.hpp\"\n") == names{"tests-in-product"});
}

TEST_CASE("tests wait for events and texts name no machine") {
  CHECK(broken("test/actors/x_test.cpp", "std::this_thread::sleep_for(1s);\n") == names{"sleep-in-tests"});
  CHECK(broken("test/actors/x_test.cpp", "// never sleep_for\n").empty());
  const std::string slash = "/";
  CHECK(broken("deploy/x.sh", "cd " + slash + "work/main\n") == names{"machine-path"});
  CHECK(broken("deploy/x.sh", "cd " + slash + "root\n") == names{"machine-path"});
  CHECK(broken("deploy/x.sh", "ls \"$dir/root\" /var/lib/warren/homework\n").empty());
  CHECK(broken("actors/core/x.cpp", "int x; \n") == names{"trailing-space"});
}

TEST_CASE("a complaint names file, line, rule and reason") {
  const auto found = judge(source_file{"actors/core/x.cpp", "// actors/core/x.cpp -- x.\n\n#include <pqxx/pqxx>\n"});
  REQUIRE(found.size() == 1);
  CHECK(found[0].line == 3);
  CHECK(render(found).rfind("actors/core/x.cpp:3: pqxx: only services/store speaks SQL", 0) == 0);
}

TEST_CASE("a file that does not begin with its own path is found") {
  CHECK(judge_first_line({"actors/core/x.cpp", "// actors/core/y.cpp -- moved.\n"}).size() == 1);
  CHECK(judge_first_line({"actors/core/x.cpp", "#include <map>\n"}).size() == 1);
  CHECK(judge_first_line({"actors/core/x.cpp", ""}).size() == 1);
  CHECK(judge_first_line({"actors/core/x.cpp", "// actors/core/x.cpp -- a thing.\n"}).empty());
  CHECK(judge_first_line({"README.md", "# Warren\n"}).empty());
}

TEST_CASE("gaps, twins and odd names of migrations are found") {
  CHECK(judge_migrations({"0001_init.sql", "0002_more.sql"}).empty());
  CHECK(judge_migrations({"0002_more.sql", "0001_init.sql"}).empty());
  CHECK(judge_migrations({"0001_init.sql", "0003_more.sql"}).size() == 1);
  CHECK(judge_migrations({"0001_init.sql", "0001_twin.sql"}).size() == 1);
  CHECK(judge_migrations({"0001_init.sql", "fix.sql"}).size() == 1);
}

TEST_CASE("comments and literals are no code") {
  CHECK(bare_code("a // rand()\nb") == "a \nb");
  CHECK(bare_code("a /* x\ny */ b") == "a \n b");
  CHECK(bare_code("f(\"rand()\\\" // no\", 'c');") == "f(\"\", '');");
  CHECK(bare_code("R\"(rand()\n)\" + x") == "R\"\n\" + x");
  CHECK(bare_code("1'000 + rand()") == "1'000 + rand()");
}
