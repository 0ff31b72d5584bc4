// services/admin/explain.cpp -- what `why` says of a connector. Pure: no gRPC, no I/O, no clock.
#include "services/admin/explain.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "actors/connector/liveness.hpp"
#include "actors/connector/spec.hpp"
#include "actors/core/conditions.hpp"
#include "actors/core/time.hpp"

namespace warren::admin {

namespace {

std::string ago(std::int64_t ms) {
  ms = std::max<std::int64_t>(ms, 0);  // two machines' clocks
  if (ms < 10'000) return fmt::format("{}.{} s ago", ms / 1000, ms % 1000 / 100);
  if (ms < 120'000) return fmt::format("{} s ago", ms / 1000);
  if (ms < 7'200'000) return fmt::format("{} min ago", ms / 60'000);
  return fmt::format("{} h ago", ms / 3'600'000);
}

enum class found : std::uint8_t { ok, missing, unknown };

api::Link link(std::string what, found state, std::string message, std::int64_t since_ms, std::string hint = {}) {
  api::Link l;
  l.set_what(std::move(what));
  l.set_ok(state == found::ok);
  l.set_state(state == found::ok ? "ok" : state == found::missing ? "missing" : "unknown");
  l.set_message(std::move(message));
  if (since_ms != 0) *l.mutable_since() = timestamp_from_ms(since_ms);
  if (state != found::ok) l.set_hint(std::move(hint));
  return l;
}

std::int64_t since_of(const corev1::Condition* c) {
  return c != nullptr && c->has_last_transition_time() ? to_ms(c->last_transition_time()) : 0;
}

}  // namespace

std::string_view deaf_hint() { return "ask another instance (--server), or see what /readyz of this one says of its bus"; }

std::string heard_words(const corev1::Observed* observed, std::int64_t wall_ms, bool deaf) {
  if (observed == nullptr && deaf) return "When it was last heard is not known: this instance does not reach NATS.";
  if (observed == nullptr) return "When it was last heard is not known: its owner does not answer.";
  if (observed->heard_ms() != 0) return fmt::format("Last heartbeat received {}.", ago(wall_ms - observed->heard_ms()));
  if (observed->listening_ms() != 0)
    return fmt::format("No heartbeat since takeover {}.", ago(wall_ms - observed->listening_ms()));
  return "No heartbeat yet.";
}

api::Hearing to_api(const corev1::Observed& observed) {
  api::Hearing out;
  if (observed.heard_ms() != 0) *out.mutable_last_heartbeat_time() = timestamp_from_ms(observed.heard_ms());
  if (observed.listening_ms() != 0) *out.mutable_listening_since() = timestamp_from_ms(observed.listening_ms());
  if (const auto ms = observed.agent_interval_ms(); ms != 0) {
    out.mutable_heartbeat_interval()->set_seconds(ms / 1000);
    out.mutable_heartbeat_interval()->set_nanos(static_cast<std::int32_t>(ms % 1000) * 1'000'000);
  }
  return out;
}

std::vector<api::Link> explain_connector(const corev1::ConnectorRow& row, const connector_surroundings& around,
                                         std::int64_t wall_ms) {
  const auto* observed = around.observed;
  const bool unheard = observed == nullptr && around.deaf;
  const auto self = fmt::format("{} -p {}", row.name(), row.project());
  const auto* accepted = find_condition(row.conditions(), "Accepted");
  const auto* ready = find_condition(row.conditions(), "Ready");
  std::vector<api::Link> out;

  out.push_back(row.has_delete_time()
                    ? link("connector exists", found::missing, "The connector is being deleted.", to_ms(row.delete_time()))
                    : link("connector exists", found::ok, "The connector exists.", row.has_created_at() ? to_ms(row.created_at()) : 0));

  const bool is_accepted = accepted != nullptr && accepted->status() == status_true;
  const bool is_refused = accepted != nullptr && accepted->status() == status_false;
  const bool classless = is_refused && accepted->reason() == "ConnectorClassNotFound";
  const auto other_class = classless ? fmt::format("warrenctl connector-class create {}; those that there are: warrenctl connector-class list", row.class_())
                                     : std::string{"see: warrenctl connector-class list"};
  out.push_back(link("class accepted", is_accepted ? found::ok : is_refused ? found::missing : found::unknown,
                     is_accepted ? fmt::format("Of class {}.", row.class_())
                                 : accepted == nullptr ? "The connector has not been looked at yet." : accepted->message(),
                     since_of(accepted), other_class));

  out.push_back(row.public_key().empty()
                    ? link("key enrolled", found::missing, "It has no key.", 0,
                           fmt::format("warrenctl connector enrol {} --key-file FILE", self))
                    : link("key enrolled", found::ok, fmt::format("Its key begins with {}.", row.public_key().substr(0, 8)), 0));

  // Within its lease a silent agent counts as there, also after a takeover.
  const auto heard_ms = observed == nullptr ? 0 : std::max(observed->heard_ms(), observed->listening_ms());
  const bool in_lease = heard_ms != 0 && wall_ms <= heard_ms + connector::lease_of(row);
  const auto heard = observed == nullptr                            ? found::unknown
                     : observed->heard_ms() != 0 && in_lease        ? found::ok
                     : in_lease && row.online()                     ? found::unknown
                                                                    : found::missing;
  out.push_back(link("agent heard", heard, heard_words(observed, wall_ms, around.deaf), observed == nullptr ? 0 : observed->heard_ms(),
                     unheard                  ? std::string{deaf_hint()}
                     : observed == nullptr    ? "see: warrenctl instance list, and ask again when its project has an owner"
                     : heard == found::unknown ? "wait for its next heartbeat; its log says whether it reaches NATS"
                                               : "start its agent (warren-agent run); its log says whether it reaches NATS"));

  out.push_back(!row.addressing_error().empty()
                    ? link("addressing valid", found::missing, row.addressing_error(), since_of(ready),
                           connector::is_of_row(row.addressing_error()) ? "correct its row: it was not written by Warren"
                                                                        : "correct what the agent advertises, or the networks that its class allows")
                : row.addresses().empty() && row.home_relay().empty()
                    ? link("addressing valid", found::missing, "The agent has reported no address yet.", 0,
                           unheard ? std::string{deaf_hint()} : "start its agent with --listen or --advertise")
                : row.addresses().empty() && !around.dialled_for.empty()
                    ? link("addressing valid", found::missing,
                           fmt::format("It has a home relay and no address, and the gateways of class {}, which carry tunnel {}, dial "
                                       "agents themselves: a home relay is no way to it.",
                                       around.dialling_class, around.dialled_for),
                           0, "let its agent advertise an address where gateways reach it (--advertise, or a line of its --advertise-file)")
                    : link("addressing valid", found::ok,
                           row.addresses().empty() ? row.home_relay() : fmt::format("{}", fmt::join(row.addresses(), ", ")), 0));

  const bool doubtful = ready != nullptr && ready->status() == status_unknown;
  out.push_back(link("online", row.online() && !doubtful ? found::ok : doubtful ? found::unknown : found::missing,
                     ready != nullptr && !ready->message().empty() ? ready->message() : row.online() ? "Online." : "Not online.",
                     since_of(ready),
                     classless ? other_class
                     : doubtful ? "see mass_silence in /readyz: the silence of many at once says nothing of one"
                     : unheard  ? std::string{deaf_hint()}
                                : "start its agent (warren-agent run)"));

  out.push_back(row.attached_generation() >= row.attachment_generation()
                    ? link("attachments acknowledged", found::ok, fmt::format("The agent holds generation {}.", row.attached_generation()), 0)
                    : link("attachments acknowledged", found::missing,
                           fmt::format("The agent holds generation {} of {}.", row.attached_generation(), row.attachment_generation()), 0,
                           "an agent that is heard is told again each second; its log says why it does not answer"));
  return out;
}

}  // namespace warren::admin
