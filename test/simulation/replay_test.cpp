// test/simulation/replay_test.cpp -- bundles as they come from an instance, and as they come from somewhere else.
#include <catch2/catch.hpp>

#include <sstream>

#include "actors/replay/digest.hpp"
#include "actors/replay/replay.hpp"
#include "actors/tunnel/machine.hpp"
#include "services/telemetry/bundle.hpp"
#include "test/simulation/replay.hpp"

using namespace warren;

namespace {

/// A tunnel that is read, asked to be created, and stored.
core::v1::Recording recorded() {
  core::v1::Recording out;
  out.set_format(replay::format_known);
  out.set_version("0.1.0");
  auto& run = *out.add_runs();
  run.set_kind("tunnel");
  run.set_project("acme");
  run.set_name("web");
  run.set_life(1);
  auto state = tunnel::initial(0, 1, "acme", "web");
  *run.mutable_tunnel() = state;
  moment now{1000, 1'700'000'000'000};
  const auto add = [&](core::v1::TunnelEvent e, bool save) {
    auto& step = *run.add_steps();
    step.set_sequence(static_cast<std::uint64_t>(run.steps_size()));
    step.set_steady_ms(now.steady_ms += 10);
    step.set_wall_ms(now.wall_ms += 10);
    auto t = tunnel::step(state, e, now);
    REQUIRE(t.save.has_value() == save);
    *step.mutable_tunnel() = std::move(e);
    if (save) {
      saved written{7, {t.save->rows.front().row}};
      written.rows.front().mutable_tunnel()->set_version(7);
      *step.add_rows() = written.rows.front();
      step.set_revision(7);
      tunnel::adopt(t.next, written);
    }
    state = std::move(t.next);
    step.set_outcome(save ? "saved" : "done");
    step.set_has_digest(true);
    step.set_digest(replay::digest_of(state).value);
  };
  core::v1::TunnelEvent read;
  read.mutable_reloaded();
  add(read, false);
  core::v1::TunnelEvent create;
  create.set_fresh_uid("uid1");
  auto& spec = *create.mutable_command()->mutable_create_tunnel()->mutable_spec();
  spec.add_hostnames("web.example.com");
  spec.set_enabled(true);
  spec.set_gateway_class("default");
  add(create, true);
  core::v1::TunnelEvent stored;
  stored.mutable_saved()->set_revision(7);
  add(stored, false);
  return out;
}

std::string whole(telemetry::bundle_writer w) {
  std::string out;
  for (;;) {
    const auto piece = w.next(700);
    REQUIRE(piece.size() <= 700);
    if (piece.empty()) return out;
    out += piece;
  }
}
std::string bundle_of(const core::v1::Recording& r) {
  return whole({{{"version.txt", [] { return std::string{"warrend 0.1.0\n"}; }},
                 {"recording/00-00000001.pb", [&r] { return r.SerializeAsString(); }},
                 {"recording/00-00000002.pb", [] { return std::string{}; }}},
                1'700'000'000'000});
}

struct answered { int code; std::string out, err; };
answered replayed(const std::string& file, simulation::replay_options o = {}) {
  std::ostringstream out, err;
  const int code = simulation::replay_bundle(file, o, out, err);
  return {code, out.str(), err.str()};
}

}  // namespace

TEST_CASE("a bundle is replayed to the same states") {
  const auto a = replayed(bundle_of(recorded()));
  CHECK(a.code == simulation::replay_same);
  CHECK(a.err.empty());
  CHECK(a.out == "recorded by warrend 0.1.0\n1 recordings, 1 runs, 3 steps, 1 saves, 3 digests compared, 0 runs continued, "
                 "0 steps not over\nthe same states\n");
}

TEST_CASE("a single recording out of a bundle is replayed as well") {
  CHECK(replayed(recorded().SerializeAsString()).code == simulation::replay_same);
}

TEST_CASE("steps are printed as they happened, with what became of them, of whom one asks for") {
  const auto file = bundle_of(recorded());
  const auto a = replayed(file, {.entity = "acme/web", .print = true});
  CHECK(a.out.find("2 22:13:20.020 tunnel acme/web command {") != std::string::npos);
  CHECK(a.out.find("-> saved 7") != std::string::npos);
  CHECK(a.out.find("    row {") == std::string::npos);
  CHECK(replayed(file, {.print = true, .states = true}).out.find("    row {") != std::string::npos);
  CHECK(replayed(file, {.entity = "acme/other", .print = true}).out.find("command {") == std::string::npos);
}

TEST_CASE("the first step that comes to something else is shown with what was before and what came") {
  auto r = recorded();
  r.mutable_runs(0)->mutable_steps(1)->set_digest(1);
  const auto a = replayed(bundle_of(r));
  CHECK(a.code == simulation::replay_diverged);
  CHECK(a.out.find("tunnel acme/web, step 1 of its life (event 2 of the instance):\n  the state after it has digest ") !=
        std::string::npos);
  CHECK(a.out.find("; recorded was 0000000000000001") != std::string::npos);
  CHECK(a.out.find("the event:\n    command {") != std::string::npos);
  CHECK(a.out.find("hostnames: \"web.example.com\"") != std::string::npos);
}

TEST_CASE("a later state that was recorded says what was expected") {
  auto first = recorded();
  auto second = first;
  auto& later = *second.mutable_runs(0);
  later.set_first_step(3);
  later.clear_steps();
  auto& state = *later.mutable_tunnel();
  state.set_known(true);
  state.set_conflicts(4);
  first.mutable_runs(0)->mutable_steps(2)->set_digest(1);
  replay::replayer again;
  REQUIRE(again.add(first) == "");
  REQUIRE(again.add(second) == "");
  REQUIRE(again.diverged());
  CHECK(again.diverged()->step == 2);
  CHECK(again.diverged()->expected.find("before step 3") != std::string::npos);
  CHECK(again.diverged()->expected.find("conflicts: 4") != std::string::npos);
}

TEST_CASE("a bundle that is cut off is said to be, wherever it is cut") {
  const auto file = bundle_of(recorded());
  REQUIRE(file.size() % 512 == 0);
  for (std::size_t size = 1; size < file.size() - 512; size += 97) {
    const auto a = replayed(file.substr(0, size));
    CHECK(a.code == simulation::replay_unreadable);
    CHECK(a.err.find("cut off") != std::string::npos);
  }
  CHECK(replayed("").code == simulation::replay_unreadable);
}

TEST_CASE("a bundle that was changed is said to be, wherever it was changed") {
  const auto file = bundle_of(recorded());
  int quiet = 0;
  for (std::size_t i = 0; i < file.size(); i += 13) {
    auto other = file;
    other[i] = static_cast<char>(other[i] ^ 1);
    const auto a = replayed(other);
    if (a.code == simulation::replay_same) ++quiet;  // in what only fills a block up
    else CHECK_FALSE(a.err.empty());
  }
  CHECK(quiet < 200);
  auto other = file;
  other[file.find("web.example.com")] = 'x';
  CHECK(replayed(other).err ==
        "warren-sim: recording/00-00000001.pb is not as it was saved: its SHA-256 is another one than MANIFEST says\n");
}

TEST_CASE("what is no bundle, has nothing in it, or comes from a foreign version is refused in a sentence") {
  CHECK(replayed(std::string(2000, 'x')).err == "warren-sim: this is no bundle: it does not begin like a tar file\n");
  CHECK(replayed(whole({{{"version.txt", [] { return std::string{"x"}; }}}, 0})).err == "warren-sim: the bundle has no recording in it\n");
  auto r = recorded();
  r.set_format(9);
  r.set_version("3.0.0");
  CHECK(replayed(bundle_of(r)).err == "warren-sim: recording/00-00000001.pb: the recording has format 9, made by version "
                                      "3.0.0; this program knows format 1\n");
  std::ostringstream out, err;
  CHECK(simulation::replay_file("/nowhere/at/all", {}, out, err) == simulation::replay_unreadable);
  CHECK(err.str() == "warren-sim: cannot read /nowhere/at/all\n");
}
