// test/simulation/shrink.cpp -- delta debugging over statements (Zeller, Hildebrandt: Simplifying and isolating
// failure-inducing input, 2002).
#include "test/simulation/shrink.hpp"

#include <algorithm>

namespace warren::simulation {

outcome run(const scenario& s, bool talkative) {
  world w{s, talkative};
  return w.run();
}

std::string kind_of(const std::string& violation) {
  // "1234 ms: what"; names and numbers are left out, the other words say what it is.
  const auto colon = violation.find(": ");
  const auto text = colon == std::string::npos ? violation : violation.substr(colon + 2);
  std::string out, word;
  const auto keep = [&] {
    if (word.find_first_of("0123456789/@_") == std::string::npos) out += word + " ";
    word.clear();
  };
  for (char c : text) {
    if (c == ' ') keep();
    else word += c;
  }
  keep();
  return out;
}

namespace {

class shrinker {
public:
  shrinker(const scenario& failing, int runs_max) : best_{failing}, left_{runs_max} {
    came_to_ = run(failing);
    --left_;
    if (!came_to_.violations.empty()) kind_ = kind_of(came_to_.violations.front());
  }

  shrunk result() && { return {std::move(best_), std::move(came_to_), runs_}; }
  bool failed() const { return !kind_.empty(); }

  void cut_statements() {
    drop_what_never_happened();
    for (std::size_t size = std::max<std::size_t>(1, best_.what.size() / 2); left_ > 0; size = std::max<std::size_t>(1, size / 2)) {
      bool shorter = false;
      for (std::size_t at = 0; at < best_.what.size() && left_ > 0;) {
        auto tried = best_;
        const auto from = tried.what.begin() + static_cast<std::ptrdiff_t>(at);
        tried.what.erase(from, from + static_cast<std::ptrdiff_t>(std::min(size, best_.what.size() - at)));
        if (fails(tried)) shorter = true;
        else at += size;
      }
      if (size == 1 && !shorter) return;
    }
  }

  void cut_numbers() {
    for (auto field : {&scenario::instances, &scenario::gateways})
      while (left_ > 0 && best_.*field > 1) {
        auto tried = best_;
        --(tried.*field);
        if (!fails(tried)) break;
      }
  }

private:
  void drop_what_never_happened() {
    const auto end = came_to_.virtual_ms;
    std::erase_if(best_.what, [end](const statement& s) { return s.at_ms > end; });
  }
  /// Keeps `tried` when it fails in the same way.
  bool fails(const scenario& tried) {
    --left_;
    ++runs_;
    auto o = run(tried);
    if (o.violations.empty() || kind_of(o.violations.front()) != kind_) return false;
    best_ = tried;
    came_to_ = std::move(o);
    drop_what_never_happened();
    return true;
  }

  scenario best_;
  outcome came_to_;
  std::string kind_;
  int left_, runs_ = 1;
};

}  // namespace

shrunk shrink(const scenario& failing, int runs_max) {
  shrinker s{failing, runs_max};
  if (s.failed()) {
    s.cut_statements();
    s.cut_numbers();
  }
  return std::move(s).result();
}

}  // namespace warren::simulation
