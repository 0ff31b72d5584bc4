// actors/replay/replay.cpp -- runs what was recorded through the machines again. Pure: no CAF, no I/O, no clock.
#include "actors/replay/replay.hpp"

#include <exception>
#include <utility>

#include <fmt/format.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include "actors/connector/machine.hpp"
#include "actors/registry/machine.hpp"
#include "actors/replay/digest.hpp"
#include "actors/tunnel/machine.hpp"

namespace warren::replay {

namespace {

using google::protobuf::util::MessageDifferencer;

/// What a kind's shell does between events, without its shell.
struct tunnel_machine {
  using state = v1::TunnelState;
  static state* before(v1::Run& r) { return r.has_tunnel() ? r.mutable_tunnel() : nullptr; }
  static const v1::TunnelEvent* event(const v1::Step& s) { return s.has_tunnel() ? &s.tunnel() : nullptr; }
  static auto step(state s, const v1::TunnelEvent& e, moment now) { return tunnel::step(s, e, now); }
  static void adopt(state& s, const saved& written) { tunnel::adopt(s, written); }
  static bool note(state&, const v1::TunnelEvent&, moment) { return false; }
};
struct connector_machine {
  using state = v1::ConnectorState;
  static state* before(v1::Run& r) { return r.has_connector() ? r.mutable_connector() : nullptr; }
  static const v1::ConnectorEvent* event(const v1::Step& s) { return s.has_connector() ? &s.connector() : nullptr; }
  static auto step(state s, const v1::ConnectorEvent& e, moment now) { return connector::step(std::move(s), e, now); }
  static void adopt(state& s, const saved& written) { connector::adopt(s, written); }
  static bool note(state& s, const v1::ConnectorEvent& e, moment now) {
    if (e.has_attach()) connector::note(s, e.attach(), now);
    else if (e.has_detach()) connector::note(s, e.detach(), now);
    else if (e.has_push()) connector::note(s, e.push(), now);
    else return false;
    return true;
  }
};
struct registry_machine {
  using state = v1::RegistryState;
  static state* before(v1::Run& r) { return r.has_registry() ? r.mutable_registry() : nullptr; }
  static const v1::RegistryEvent* event(const v1::Step& s) { return s.has_registry() ? &s.registry() : nullptr; }
  static auto step(state s, const v1::RegistryEvent& e, moment now) { return registry::step(s, e, now); }
  static void adopt(state& s, const saved& written) { registry::adopt(s, written); }
  static bool note(state&, const v1::RegistryEvent&, moment) { return false; }
};

bool is_known(std::string_view outcome) {
  for (const auto* known : {"", "done", "saved", "conflict", "refused", "replayed", "unavailable", "lost"})
    if (outcome == known) return true;
  return false;
}
/// The shell goes on from the state that was kept.
bool was_kept(std::string_view outcome) {
  return outcome == "conflict" || outcome == "refused" || outcome == "replayed" || outcome == "unavailable";
}

std::string difference(const google::protobuf::Message& recorded, const google::protobuf::Message& replayed) {
  std::string out;
  MessageDifferencer differ;
  differ.ReportDifferencesToString(&out);
  differ.Compare(replayed, recorded);
  return out;
}

const google::protobuf::Message& event_of(const v1::Step& s) {
  if (s.has_tunnel()) return s.tunnel();
  if (s.has_connector()) return s.connector();
  return s.registry();
}

}  // namespace

std::string text_of(const google::protobuf::Message& m) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string out;
  printer.PrintToString(m, &out);  // maps by their keys
  return out;
}

std::string entity_of(const v1::Run& run) {
  return run.project().empty() ? fmt::format("{} {}", run.kind(), run.name())
                               : fmt::format("{} {}/{}", run.kind(), run.project(), run.name());
}

void replayer::diverge(const v1::Run& run, const v1::Step* step, std::uint64_t number, std::string what,
                       std::string before, std::string after) {
  if (diverged_) return;
  diverged_life_ = run.life();
  diverged_ = divergence{entity_of(run), number, step != nullptr ? step->sequence() : 0, std::move(what),
                         std::move(before), step != nullptr ? text_of(event_of(*step)) : "", std::move(after), ""};
}

template <class State> void replayer::compare_with_reached(const v1::Run& run, const State& before) {
  auto it = reached_.find(run.life());
  if (it == reached_.end()) return;
  const auto* last = std::get_if<State>(&it->second.last);
  if (last == nullptr || it->second.next_step != run.first_step()) return;  // steps in between were left out
  if (MessageDifferencer::Equals(*last, before)) {
    ++totals_.continued;
    return;
  }
  const auto how = difference(before, *last);
  if (diverged_ && diverged_life_ == run.life() && diverged_->expected.empty())
    diverged_->expected = fmt::format("before step {}, the recorded state differs from the replayed one in:\n{}",
                                      run.first_step(), how);
  if (!diverged_) {
    diverge(run, nullptr, run.first_step(), "the state that the next stretch of the recording begins with is another one",
            "", text_of(*last));
    diverged_->expected = how;
  }
}

template <class Machine> void replayer::play(v1::Run& run) {
  auto state = *Machine::before(run);
  compare_with_reached(run, state);
  reached_.erase(run.life());
  auto number = run.first_step();
  for (int i = 0; i < run.steps_size(); ++i, ++number) {
    const auto& step = run.steps(i);
    const auto& event = *Machine::event(step);
    const moment now{step.steady_ms(), step.wall_ms()};
    const bool over = !step.outcome().empty();
    auto before = state;
    const auto differs = [&](std::string what) {
      diverge(run, &step, number, std::move(what), text_of(before), text_of(state));
    };
    ++totals_.steps;
    try {
      if (step.noted()) {
        if (!Machine::note(state, event, now)) differs("this event cannot be noted");
      } else {
        auto t = Machine::step(std::move(state), event, now);
        if (t.save && step.outcome() == "saved") {
          ++totals_.saves;
          Machine::adopt(t.next, saved{step.revision(), {step.rows().begin(), step.rows().end()}});
        }
        state = t.save && was_kept(step.outcome()) ? t.fall_back() : std::move(t.next);
        if (over && !t.save && step.outcome() != "done")
          differs(fmt::format("replaying saves nothing; recorded was a save ({})", step.outcome()));
        if (over && t.save && step.outcome() == "done")
          differs(fmt::format("replaying saves {}; recorded was no save", t.save->write));
      }
    } catch (const std::exception& e) {
      state = std::move(before);
      if (over) differs(fmt::format("replaying fails: {}", e.what()));
      ++totals_.unfinished;
      return;
    }
    if (!over || step.outcome() == "lost") {  // the actor ended with it, or the recording does
      ++totals_.unfinished;
      return;
    }
    if (step.has_digest()) {
      ++totals_.digests;
      const auto got = digest_of(state).value;
      if (got != step.digest())
        differs(fmt::format("the state after it has digest {:016x}; recorded was {:016x}", got, step.digest()));
    }
    if (on_step) on_step({run, i, state});
  }
  reached_[run.life()] = {number, std::move(state)};
}

std::string replayer::add(v1::Recording recording) {
  if (recording.format() != format_known)
    return fmt::format("the recording has format {}, made by version {}; this program knows format {}",
                       recording.format(), recording.version().empty() ? "unknown" : recording.version(), format_known);
  // All of it is looked at before any of it is played.
  for (auto& run : *recording.mutable_runs()) {
    const bool begins = run.before_case() != v1::Run::BEFORE_NOT_SET;
    if (!begins) return fmt::format("{}: there is no state to begin with", entity_of(run));
    for (int i = 0; i < run.steps_size(); ++i) {
      const auto& step = run.steps(i);
      const bool fits = (run.has_tunnel() && step.has_tunnel()) || (run.has_connector() && step.has_connector()) ||
                        (run.has_registry() && step.has_registry());
      if (!fits) return fmt::format("{}, step {}: the event is none of its kind", entity_of(run), i);
      if (!is_known(step.outcome())) return fmt::format("{}, step {}: there is no outcome {}", entity_of(run), i, step.outcome());
      if ((step.outcome().empty() || step.outcome() == "lost") && i + 1 < run.steps_size())
        return fmt::format("{}, step {}: it is not over, but others follow", entity_of(run), i);
    }
  }
  ++totals_.recordings;
  for (auto& run : *recording.mutable_runs()) {
    ++totals_.runs;
    if (run.has_tunnel()) play<tunnel_machine>(run);
    else if (run.has_connector()) play<connector_machine>(run);
    else play<registry_machine>(run);
  }
  return "";
}

}  // namespace warren::replay
