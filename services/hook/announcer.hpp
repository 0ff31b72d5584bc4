// services/hook/announcer.hpp -- tells operators' automation that Envoy Gateway has to translate again: on the bus and by a
// webhook. What is told, and when, is decided in retranslate.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "actors/core/counters.hpp"
#include "services/hook/transform.hpp"
#include "services/hook/truth.hpp"
#include "services/replica/view.hpp"

namespace warren::hook {

inline constexpr std::string_view retranslate_subject = "warren.v1.retranslate";
inline constexpr std::string_view pulse_subject = "warren.v1.retranslate.pulse";

struct announcer_config {
  std::string instance;  ///< told in each signal
  std::string webhook;   ///< "http://host[:port][/path]", which gets each signal as a POST; empty: none
  namespaces projects;
  std::function<void(std::string_view subject, std::string_view json)> publish;  ///< must not block
};

/// From its construction to its destruction, on threads of its own. Thread-safe; nothing here blocks.
class announcer {
public:
  /// `v` and `count` outlive it. Errors: std::invalid_argument for a webhook that is no http URL.
  announcer(replica::view& v, announcer_config config, counters& count);
  ~announcer();
  announcer(const announcer&) = delete;
  announcer& operator=(const announcer&) = delete;

  void answered(const answered_call& what);
  void failed();
  /// What the bus brought on either subject; our own is known as such.
  void heard(std::string_view subject, std::string_view json);

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::hook
