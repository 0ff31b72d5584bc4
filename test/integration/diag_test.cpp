// test/integration/diag_test.cpp -- warrenctl diag over a real connection: what arrives, who is refused, what is left.
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include "services/admin/server.hpp"
#include "services/telemetry/bundle.hpp"
#include "services/warrenctl/command.hpp"
#include "test/support/process.hpp"
#include "warren/admin/v1/diag.grpc.pb.h"

using namespace warren;
namespace api = warren::admin::v1;
namespace fs = std::filesystem;

namespace {

struct diag_world {
  replica::view view;
  std::vector<telemetry::bundle_part> parts{{"version.txt", [] { return std::string{"warrend 0.1.0\n"}; }}};
  std::unique_ptr<admin::server> server;
  fs::path folder = fs::temp_directory_path() / ("warren-diag-" + std::to_string(getpid()));
  std::string file = folder / "bundle.tar";

  diag_world() {
    fs::create_directories(folder);
    view.set_partitions(4, 0);
    admin::server_config c;
    c.listen = "127.0.0.1:0";
    c.partitions = 4;
    c.self = 7;
    c.send = [](partition_id, std::string, millis, auto) {};
    c.placement = [] {
      admin::placement_info p;
      p.instances.push_back({7, "warren-a", 1, 2, true, true, false});
      p.instances.push_back({8, "warren-b", 1, 2, true, true, false});
      p.partitions.push_back({0, 7, 3, 9});
      return p;
    };
    c.diagnose = [this] { return parts; };
    server = admin::server::start(std::move(c), view);
  }
  ~diag_world() {
    server->shutdown(millis{1000});
    fs::remove_all(folder);
  }

  std::string before;  // those that --server names before this one
  std::string address() const { return "127.0.0.1:" + std::to_string(server->port()); }
  struct result { int code; std::string out, err; };
  result ctl(std::vector<std::string> arguments) const {
    std::ostringstream out, err;
    ctl::surroundings around{out, err, false};
    arguments.insert(arguments.end(), {"--server", before + address()});
    const int code = ctl::run(std::move(arguments), around);
    return {code, out.str(), err.str()};
  }
  std::unique_ptr<api::DiagnosticsService::Stub> stub() const {
    return api::DiagnosticsService::NewStub(
        grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
  }
  std::string saved() const {
    std::ifstream in{file, std::ios::binary};
    return {std::istreambuf_iterator<char>{in}, {}};
  }
  bool nothing_left() const { return fs::is_empty(folder); }
};

}  // namespace

TEST_CASE_METHOD(diag_world, "a bundle arrives whole, for its owner's eyes only") {
  const std::string large(3'000'000, 'x');
  parts.push_back({"recording/00-00000001.pb", [&] { return large; }});
  const auto r = ctl({"diag", "-o", file});
  INFO(r.err);
  CHECK(r.code == 0);
  CHECK(r.out.find("bundle.tar") != std::string::npos);
  struct stat s {};
  REQUIRE(stat(file.c_str(), &s) == 0);
  CHECK((s.st_mode & 0777) == 0600);
  const auto b = telemetry::read_bundle(saved());
  CHECK(b.error.empty());
  CHECK(b.parts.at("version.txt") == "warrend 0.1.0\n");
  CHECK(b.parts.at("recording/00-00000001.pb") == large);
  CHECK(b.parts.at("instances.txt").find("7* warren-a") != std::string::npos);
  CHECK(b.parts.contains("partitions.txt"));
  CHECK_FALSE(fs::exists(file + ".part"));
}

TEST_CASE_METHOD(diag_world, "any tar reads a bundle, and sha256sum finds it as it was saved") {
  REQUIRE(ctl({"diag", "-o", file}).code == 0);
  const auto command = "cd " + folder.string() + " && tar xf bundle.tar && sha256sum --quiet -c MANIFEST && cat version.txt";
  const std::unique_ptr<FILE, decltype(&pclose)> shell{popen(command.c_str(), "r"), &pclose};
  REQUIRE(shell);
  std::string text(100, '\0');
  text.resize(fread(text.data(), 1, text.size(), shell.get()));
  CHECK(text == "warrend 0.1.0\n");
}

TEST_CASE_METHOD(diag_world, "the instance that is meant answers, and no other") {
  CHECK(ctl({"diag", "--instance", "warren-a", "-o", file}).code == 0);
  CHECK(ctl({"diag", "--instance", "instances/7", "-o", file}).code == 0);
  fs::remove(file);
  const auto r = ctl({"diag", "--instance", "warren-b", "-o", file});
  CHECK(r.code == 1);
  CHECK(r.err.find("this is instance warren-a (instances/7)") != std::string::npos);
  CHECK(nothing_left());
}

TEST_CASE_METHOD(diag_world, "of several servers the one that is there, or the one that is meant, gives the bundle") {
  before = "127.0.0.1:1,";  // nobody listens there
  CHECK(ctl({"diag", "-o", file}).code == 0);
  fs::remove(file);
  admin::server_config c;
  c.listen = "127.0.0.1:0";
  c.partitions = 4;
  c.self = 8;
  c.send = [](partition_id, std::string, millis, auto) {};
  c.diagnose = [this] { return parts; };
  const auto other = admin::server::start(std::move(c), view);
  before = "127.0.0.1:" + std::to_string(other->port()) + ",";
  const auto meant = ctl({"diag", "--instance", "warren-a", "-o", file});
  INFO(meant.err);
  CHECK(meant.code == 0);
  CHECK(telemetry::read_bundle(saved()).parts.at("instances.txt").find("7* warren-a") != std::string::npos);
  fs::remove(file);
  CHECK(ctl({"diag", "--instance", "warren-c", "-o", file}).code == 1);
  CHECK(nothing_left());
  other->shutdown(millis{1000});
}

TEST_CASE_METHOD(diag_world, "a file that cannot be written is named, and a file has to be") {
  const auto r = ctl({"diag", "-o", "/nowhere/at/all.tar"});
  CHECK(r.code == 2);
  CHECK(r.err.find("/nowhere/at/all.tar.part: No such file or directory") != std::string::npos);
  CHECK(ctl({"diag"}).code == 2);
}

TEST_CASE_METHOD(diag_world, "a bundle that cannot be made to its end leaves nothing behind, and its place is free again") {
  parts.push_back({"recording/00-00000001.pb", []() -> std::string { throw std::runtime_error{"the ring is broken"}; }});
  for (int i = 0; i < 5; ++i) {
    const auto r = ctl({"diag", "-o", file});
    CHECK(r.code == 1);
    CHECK(r.err.find("the ring is broken") != std::string::npos);
  }
  CHECK(nothing_left());
}

TEST_CASE_METHOD(diag_world, "two are made at a time, a third is refused, and one that is given up makes room") {
  std::promise<void> go_on;
  parts.push_back({"slow", [go = go_on.get_future().share()] {
                     go.wait();
                     return std::string{"slow"};
                   }});
  api::GetBundleRequest q;
  api::BundleChunk chunk;
  grpc::ClientContext first, second;
  const auto s = stub();
  auto a = s->GetBundle(&first, q);
  auto b = s->GetBundle(&second, q);
  REQUIRE(a->Read(&chunk));
  REQUIRE(b->Read(&chunk));
  const auto third = ctl({"diag", "-o", file});
  CHECK(third.code == 1);
  CHECK(third.err.find("other bundles are being taken") != std::string::npos);
  first.TryCancel();
  go_on.set_value();
  while (b->Read(&chunk)) {
  }
  CHECK(b->Finish().ok());
  CHECK_FALSE(a->Finish().ok());
  CHECK(stack::poll_until([&] { return ctl({"diag", "-o", file}).code == 0; }, std::chrono::seconds{10}));
}
