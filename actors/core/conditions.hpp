// actors/core/conditions.hpp -- conditions of a row. No CAF, no I/O.
#pragma once

#include <string>
#include <string_view>

#include <google/protobuf/repeated_field.h>

#include "actors/core/time.hpp"
#include "warren/core/v1/rows.pb.h"

namespace warren {

namespace v1 = warren::core::v1;
using conditions = google::protobuf::RepeatedPtrField<v1::Condition>;

inline constexpr std::string_view status_true = "True", status_false = "False",
                                  status_unknown = "Unknown";

/// The condition of that type; nullptr: there is none.
inline const v1::Condition* find_condition(const conditions& all, std::string_view type) {
  for (const auto& c : all)
    if (c.type() == type) return &c;
  return nullptr;
}
inline bool is_true(const conditions& all, std::string_view type) {
  const auto* c = find_condition(all, type);
  return c != nullptr && c->status() == status_true;
}

/// Sets a condition; its transition time moves only when the status does. Returns whether anything changed.
inline bool set_condition(conditions& all, std::string_view type, std::string_view status,
                          std::string_view reason, std::string_view message, std::int64_t generation,
                          std::int64_t wall_ms) {
  v1::Condition* c = nullptr;
  for (auto& each : all)
    if (each.type() == type) c = &each;
  if (c != nullptr && c->status() == status && c->reason() == reason && c->message() == message &&
      c->observed_generation() == generation)
    return false;
  if (c == nullptr) {
    c = all.Add();
    c->set_type(std::string{type});
  }
  if (c->status() != status) *c->mutable_last_transition_time() = timestamp_from_ms(wall_ms);
  c->set_status(std::string{status});
  c->set_reason(std::string{reason});
  c->set_message(std::string{message});
  c->set_observed_generation(generation);
  return true;
}

}  // namespace warren
