// test/mutation/mutant.hpp -- what test/mutation/run puts into the machines' sources: every mutant at once, of which
// WARREN_MUTANT=n switches one on. Never part of the product.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace mutant {

inline constexpr int most = 20'000;

struct switchboard {
  int chosen = 0;
  std::array<bool, most> reached{};
  switchboard() {
    if (const char* text = std::getenv("WARREN_MUTANT")) chosen = std::atoi(text);
  }
  ~switchboard() {
    const char* path = std::getenv("WARREN_MUTANTS_REACHED");
    if (path == nullptr) return;
    if (auto* out = std::fopen(path, "w")) {
      for (int i = 0; i < most; ++i)
        if (reached[static_cast<std::size_t>(i)]) std::fprintf(out, "%d\n", i);
      std::fclose(out);
    }
  }
};
inline switchboard board;

inline bool on(int id) {
  board.reached[static_cast<std::size_t>(id)] = true;
  return board.chosen == id;
}

template <class T> bool negated(int id, const T& condition) { return static_cast<bool>(condition) != on(id); }
inline bool flipped(int id, bool value) { return value != on(id); }
template <class T> T one_more(int id, T value) { return on(id) ? static_cast<T>(value + T{1}) : value; }

// `a < b` becomes `a < mutant::at{n} < b`: an operator of the same precedence, so that nothing around it is taken
// otherwise. The left part is kept by reference until the end of the expression.
struct at { int id; };
template <class T> struct left { const T& value; int id; };

#define WARREN_MUTANT_OPERATOR(op, other)                                                    \
  template <class T> left<T> operator op(const T& value, at mark) { return {value, mark.id}; } \
  template <class T, class U> bool operator op(left<T> a, const U& b) {                      \
    return on(a.id) ? a.value other b : a.value op b;                                        \
  }
WARREN_MUTANT_OPERATOR(<, <=)
WARREN_MUTANT_OPERATOR(<=, <)
WARREN_MUTANT_OPERATOR(>, >=)
WARREN_MUTANT_OPERATOR(>=, >)
WARREN_MUTANT_OPERATOR(==, !=)
WARREN_MUTANT_OPERATOR(!=, ==)
#undef WARREN_MUTANT_OPERATOR

}  // namespace mutant
