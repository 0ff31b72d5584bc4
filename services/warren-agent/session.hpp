// services/warren-agent/session.hpp -- decisions of the agent's control side: hello, heartbeats, commands, reports.
// No sockets, no NATS, no clock, no disk: what happened goes in, what is to be done comes out.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "actors/core/time.hpp"
#include "actors/core/wire.hpp"
#include "services/warren-agent/attachments.hpp"
#include "services/warren-agent/targets.hpp"

namespace warren::agent {

inline constexpr auto hello_timeout = 5s;
inline constexpr auto hello_retry_first = 100ms;
inline constexpr auto hello_retry_max = 5s;
inline constexpr auto save_retry = 1s;              // the disk is full
inline constexpr auto target_change_held = 20ms;    // so that it travels with the acknowledgement that is about to go
inline constexpr std::size_t early_commands_max = 64;
inline constexpr std::size_t owed_replies_max = 1024;
inline constexpr std::size_t journal_bytes_min = 64 * 1024;  // up to here a journal is kept however small its set is
inline constexpr std::size_t unsaved_steps_max = 256;        // beyond: the whole set is shorter
inline constexpr std::size_t report_bytes_max = 48 * 1024;  // below agent_message_bytes_max; a larger report is cut in pieces

// ---- what is to be done ----

/// A request on the hello subject; its end comes back as hello_answered or hello_failed with the same number.
struct ask_hello { std::uint64_t number = 0; std::string payload; };
struct send_heartbeat { std::string payload; };
struct send_event { std::string payload; };
struct send_reply { std::string reply_to, payload; };
/// Put it on disk, then say `saved` with the same generation. One at a time.
struct save_set {
  std::int64_t generation = 0;
  bool whole = true;  ///< a set that replaces what is there; else lines for the journal of the last one
  std::string text;
};
/// held() has changed: proxy and target table follow.
struct set_changed { touched_keys touched; };
/// For good; `clean` false: exit with an error.
struct end_agent { bool clean = true; std::string why; };
struct say { bool important = false; std::string text; };
using action = std::variant<ask_hello, send_heartbeat, send_event, send_reply, save_set, set_changed, end_agent, say>;
using actions = std::vector<action>;

struct session_options {
  std::string project, connector, connector_uid, public_key_hex, agent_version;
  bool mute_heartbeats = false;
};

/// What the machine may not make itself; tests give fixed ones.
struct session_sources {
  std::function<std::string(std::size_t bytes)> random_bytes;
  std::function<double()> random_part;  ///< 0 <= x < 1
  std::function<std::string(std::string_view)> sign;
};

/// After bye, for what is under way: by then gateways send nobody here any more (bench/xds).
inline constexpr millis lingers{1000};

enum class phase : std::uint8_t { disconnected, waiting, challenged, greeting, established, ended };
std::string_view to_string(phase p);

/// One event is carried out to the end before the next is looked at. Times: only steady_ms decides anything.
class session {
public:
  session(session_options options, session_sources sources, target_table& targets, busv1::Addressing addressing,
          attachment_set on_disk);

  actions connected(moment now, bool is);
  actions hello_answered(moment now, std::uint64_t number, std::string_view payload);
  actions hello_failed(moment now, std::uint64_t number, std::string_view why);
  actions commanded(moment now, std::string_view payload, std::string_view reply_to);
  actions saved(moment now, std::int64_t generation, std::string_view error);
  actions targets_changed(moment now);
  actions addressing_is(moment now, busv1::Addressing addressing);
  actions wake(moment now);
  actions stop(moment now);
  std::optional<std::int64_t> deadline() const;

  const attachment_set& held() const { return held_; }
  phase where() const { return phase_; }
  std::int64_t number() const { return session_; }
  std::int64_t durable_generation() const { return durable_generation_; }
  millis heartbeat_interval() const { return millis{interval_ms_}; }
  const std::string& last_trouble() const { return last_trouble_; }
  std::uint64_t bad_messages() const { return bad_messages_; }
  std::uint64_t omitted_tunnels() const { return omitted_tunnels_; }  ///< of the sets that came, each time

private:
  struct owed_reply {
    std::string reply_to;
    std::int64_t command_id = 0, generation = 0;
  };
  void note_omitted(const wire::omission& omitted, actions& out);
  void greet(moment now, actions& out);
  void wait_for_hello(moment now, millis at_least, std::string why, actions& out);
  void welcome(moment now, const busv1::HelloReply& reply, actions& out);
  void obey(moment now, const busv1::AgentCommand& command, std::string_view reply_to, actions& out);
  void take(moment now, applied how, const busv1::AgentCommand& command, std::string_view reply_to, actions& out);
  void remember_step(set_step step);
  void forget_steps();
  void save(actions& out);
  void settle(moment now, actions& out);
  void heartbeat(moment now, actions& out);
  void report(moment now, const busv1::Addressing* addressing, std::vector<busv1::TargetState> states, bool full, actions& out);
  void report_all(moment now, actions& out);
  void answer(std::string_view reply_to, std::int64_t command_id, std::string_view error,
              std::vector<busv1::TargetState> states, actions& out);
  void answer_report(moment now, std::int64_t command_id, std::string_view reply_to, actions& out);
  void end(bool clean, std::string why, actions& out);
  const std::string& digest();

  session_options options_;
  session_sources sources_;
  target_table& targets_;
  busv1::Addressing addressing_;
  attachment_set held_;
  std::string connector_uid_;

  phase phase_ = phase::disconnected;
  bool connected_ = false;
  std::uint64_t request_ = 0;      // of the hello that is under way
  std::string nonce_;
  int attempts_ = 0;
  std::int64_t hello_at_ = 0;
  std::string last_trouble_;

  bool has_session_ = false;
  std::int64_t session_ = 0;
  std::string token_;
  std::int64_t sequence_ = 0, interval_ms_ = 2000, heartbeat_at_ = 0;
  std::int64_t incarnation_ = 0, epoch_ = 0;

  std::deque<std::pair<std::string, std::string>> early_;  // commands of a session whose hello is on its way to us
  std::deque<owed_reply> owed_;
  std::optional<std::int64_t> saving_;     // generation that is being written
  std::int64_t durable_generation_ = 0;
  bool durable_ = true;                    // what is on disk is held_
  std::int64_t save_at_ = 0;               // after a failure; 0: none
  std::string journal_;                    // of the whole set on disk; empty: it has none, or not a sound one
  std::size_t whole_bytes_ = 0, journal_bytes_ = 0;
  std::vector<set_step> unsaved_;          // from what the disk was given last to held_
  bool steps_lead_there_ = false;          // they do; else only the whole set says what is held
  bool report_when_durable_ = false;
  bool report_owed_ = false;               // something changed while nobody could be told
  std::int64_t changes_at_ = 0;            // held target changes go out then; 0: none are held
  std::uint64_t bad_messages_ = 0, omitted_tunnels_ = 0;
  std::string last_omission_;

  std::uint64_t digest_version_ = 0;
  std::string digest_;
};

}  // namespace warren::agent
