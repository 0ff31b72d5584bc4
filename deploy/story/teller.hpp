// deploy/story/teller.hpp -- says what happened: sentences for people, or JSON lines. Measures nothing but "when".
#pragma once

#include <chrono>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace warren::story {

using clock = std::chrono::steady_clock;

/// Milliseconds with their fraction.
double milliseconds_between(clock::time_point from, clock::time_point to);

/// Thread-safe. With JSON, standard output holds nothing but one object a line.
class teller {
public:
  /// `begin` is time zero of every line.
  teller(bool json, clock::time_point begin);

  /// Something that takes a while begins or is done; for people only.
  void progress(const std::string& sentence);
  /// Something happened at `at`. `since` is what a person measures it from.
  void event(const std::string& name, clock::time_point at, const std::string& sentence,
             std::optional<clock::time_point> since = {}, nlohmann::json more = nlohmann::json::object());
  /// Free text; for people only.
  void lines(const std::vector<std::string>& text);

private:
  void write(const std::string& line);
  bool json_, colour_;
  clock::time_point begin_;
  std::mutex mutex_;
};

}  // namespace warren::story
