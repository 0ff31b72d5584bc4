// deploy/story/teller.cpp -- says what happened: sentences for people, or JSON lines.
#include "deploy/story/teller.hpp"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <fmt/format.h>

namespace warren::story {

double milliseconds_between(clock::time_point from, clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

teller::teller(bool json, clock::time_point begin)
    : json_{json}, colour_{!json && ::isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr}, begin_{begin} {}

void teller::progress(const std::string& sentence) {
  if (!json_)
    write(fmt::format("{}{:>9}  · {}{}", colour_ ? "\033[2m" : "",
                      fmt::format("{:.2f} s", milliseconds_between(begin_, clock::now()) / 1000), sentence,
                      colour_ ? "\033[0m" : ""));
}

void teller::event(const std::string& name, clock::time_point at, const std::string& sentence,
                   std::optional<clock::time_point> since, nlohmann::json more) {
  const double at_ms = milliseconds_between(begin_, at);
  if (json_) {
    nlohmann::ordered_json line{{"event", name}, {"at_ms", std::lround(at_ms)}};
    if (since)
      line["after_ms"] = std::round(milliseconds_between(*since, at) * 10) / 10;
    for (const auto& [key, value] : more.items())
      line[key] = value;
    write(line.dump());
    return;
  }
  const auto when = since ? fmt::format("+{:.1f} ms", milliseconds_between(*since, at)) : fmt::format("{:.2f} s", at_ms / 1000);
  write(fmt::format("{:>9}  {}{}{}", when, colour_ ? "\033[1m" : "", sentence, colour_ ? "\033[0m" : ""));
}

void teller::lines(const std::vector<std::string>& text) {
  if (json_)
    return;
  for (const auto& each : text)
    write(each);
}

void teller::write(const std::string& line) {
  const std::lock_guard lock{mutex_};
  std::fputs((line + "\n").c_str(), stdout);
  std::fflush(stdout);
}

}  // namespace warren::story
