// test/simulation/replay.cpp -- warren-sim --replay: runs what an instance remembered through the real machines again.
#include "test/simulation/replay.hpp"

#include <fstream>
#include <map>
#include <sstream>

#include <fmt/format.h>

#include "actors/replay/replay.hpp"
#include "services/telemetry/bundle.hpp"

namespace warren::simulation {

namespace {

const google::protobuf::Message& event_of(const core::v1::Step& s) {
  if (s.has_tunnel()) return s.tunnel();
  if (s.has_connector()) return s.connector();
  return s.registry();
}

/// 14:03:07.250, UTC.
std::string clock_of(std::int64_t wall_ms) {
  const auto ms = wall_ms % 86'400'000;
  return fmt::format("{:02}:{:02}:{:02}.{:03}", ms / 3'600'000, ms / 60'000 % 60, ms / 1000 % 60, ms % 1000);
}

std::string indented(const std::string& text) {
  std::string out;
  std::istringstream lines{text};
  for (std::string line; std::getline(lines, line);) out += "    " + line + '\n';
  return out;
}

bool about(const core::v1::Run& run, const std::string& entity) {
  const auto full = replay::entity_of(run);
  return entity.empty() || full == entity || full.ends_with(' ' + entity);
}

void print_divergence(const replay::divergence& d, std::ostream& out) {
  out << fmt::format("{}, step {} of its life (event {} of the instance):\n  {}\n", d.entity, d.step, d.sequence, d.what);
  if (!d.before.empty()) out << "  before it:\n" << indented(d.before);
  if (!d.event.empty()) out << "  the event:\n" << indented(d.event);
  out << "  replayed, it comes to:\n" << indented(d.after);
  if (d.expected.empty()) out << "  recorded was only the digest of what was expected\n";
  else out << "  expected:\n" << indented(d.expected);
}

}  // namespace

int replay_bundle(std::string_view file, const replay_options& options, std::ostream& out, std::ostream& err) {
  std::map<std::string, std::string> recordings;
  std::string about_it;
  if (file.starts_with("\x08")) {  // a recording begins with its format; a tar file with a name
    recordings["the recording"] = file;
  } else {
    auto bundle = telemetry::read_bundle(file);
    if (!bundle.error.empty()) {
      err << "warren-sim: " << bundle.error << '\n';
      return replay_unreadable;
    }
    about_it = bundle.parts["version.txt"];
    for (auto& [name, content] : bundle.parts)
      if (name.starts_with("recording/")) recordings[name] = std::move(content);
  }
  if (recordings.empty()) {
    err << "warren-sim: the bundle has no recording in it\n";
    return replay_unreadable;
  }

  replay::replayer again;
  std::multimap<std::uint64_t, std::string> printed;  // shards were written side by side
  if (options.print)
    again.on_step = [&](const replay::shown_step& s) {
      if (!about(s.run, options.entity)) return;
      const auto& step = s.run.steps(s.index);
      auto text = fmt::format("{} {} {} {}{}{}\n", step.sequence(), clock_of(step.wall_ms()), replay::entity_of(s.run),
                              step.noted() ? "notes " : "", event_of(step).ShortDebugString(),
                              step.outcome() == "done" ? std::string{} : fmt::format("-> {} {}", step.outcome(),
                                                                                     step.outcome() == "saved" ? std::to_string(step.revision()) : ""));
      if (options.states) text += indented(replay::text_of(s.after));
      printed.emplace(step.sequence(), std::move(text));
    };
  for (const auto& [name, content] : recordings) {
    core::v1::Recording r;
    if (!r.ParseFromString(content)) {
      err << fmt::format("warren-sim: {} is no recording, or is cut off\n", name);
      return replay_unreadable;
    }
    if (const auto wrong = again.add(std::move(r)); !wrong.empty()) {
      err << fmt::format("warren-sim: {}: {}\n", name, wrong);
      return replay_unreadable;
    }
  }
  for (const auto& [sequence, text] : printed) out << text;
  if (const auto gap = about_it.find('\n'); gap != std::string::npos) out << "recorded by " << about_it.substr(0, gap) << '\n';
  const auto& n = again.counted();
  out << fmt::format("{} recordings, {} runs, {} steps, {} saves, {} digests compared, {} runs continued, {} steps not over\n",
                     n.recordings, n.runs, n.steps, n.saves, n.digests, n.continued, n.unfinished);
  if (!again.diverged()) {
    out << "the same states\n";
    return replay_same;
  }
  print_divergence(*again.diverged(), out);
  out << "another state: the first divergence is above\n";
  return replay_diverged;
}

int replay_file(const std::string& path, const replay_options& options, std::ostream& out, std::ostream& err) {
  std::ifstream in{path, std::ios::binary};
  std::ostringstream bytes;
  bytes << in.rdbuf();
  if (!in || bytes.str().empty()) {
    err << "warren-sim: cannot read " << path << '\n';
    return replay_unreadable;
  }
  return replay_bundle(bytes.str(), options, out, err);
}

}  // namespace warren::simulation
