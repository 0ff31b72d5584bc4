// test/simulation/agents.hpp -- a connector's agent on virtual time: the real session and table of targets, a disk, a
// connection to the bus, and a door at which instances knock.
#pragma once

#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "services/warren-agent/session.hpp"
#include "test/simulation/bugs.hpp"
#include "test/simulation/network.hpp"

namespace warren::simulation {

/// An Ed25519 key whose private half follows from a number.
class key_pair {
public:
  explicit key_pair(std::uint64_t number);
  ~key_pair() { EVP_PKEY_free(key_); }
  key_pair(const key_pair&) = delete;
  key_pair& operator=(const key_pair&) = delete;
  std::string sign(std::string_view text) const;
  const std::string& public_hex() const { return public_hex_; }

private:
  EVP_PKEY* key_ = nullptr;
  std::string public_hex_;
};

class agent_host {
public:
  struct wiring {
    timeline& time;
    network& net;
    int partitions = 0;
    const bugs* planted = nullptr;
  };
  agent_host(std::string project, std::string name, int number, wiring w);

  const std::string& project() const { return project_; }
  const std::string& name() const { return name_; }
  std::string key() const { return project_ + "/" + name_; }
  const key_pair& keys() const { return key_; }
  partition_id partition() const;

  void start();
  /// kill -9; what is on disk stays, unless the disk is lost with it.
  void kill(bool disk_lost = false);
  /// Says bye.
  void stop();
  void cut(bool on);
  /// Another address: reported at once.
  void move();
  bool running() const { return session_ != nullptr; }
  bool cut_off() const { return cut_; }
  /// Somebody who dials `endpoint_id` here is answered.
  bool answers(const std::string& endpoint_id) const { return running() && !cut_ && endpoint_id == key_.public_hex(); }

  /// When the session wants to be called; nothing: never.
  std::optional<std::int64_t> deadline_ms() const { return deadline_ms_; }
  void wake();

  bool enrolled = false;
  std::string uid;             ///< from the answer to its enrolment
  std::int64_t since_ms = 0;   ///< of the present life, or of the end of the last cut
  int lives() const { return life_; }
  const warren::agent::session* session() const { return session_.get(); }
  const warren::agent::attachment_set& held() const;
  /// Counts the disks that this agent has had; the highest generation that was ever on one of them, and on any.
  int disk() const { return static_cast<int>(durable_.size()) - 1; }
  std::int64_t durable_on(int disk) const { return durable_.at(static_cast<std::size_t>(disk)); }
  std::int64_t durable_ever() const { return *std::max_element(durable_.begin(), durable_.end()); }
  std::function<void(const std::string& why)> on_end;
  /// It did what an owner said that was superseded.
  std::function<void(epoch_t obeyed, epoch_t newest)> on_old_owner_obeyed;
  /// The agent has left the bus: its connection ended, noticed by the server or not.
  std::function<void()> on_disconnect;

private:
  void connect();
  void heard(const bus_message& m);
  void act(warren::agent::actions all);
  void look_at_clock();
  void perform(warren::agent::ask_hello& a);
  void perform(warren::agent::send_heartbeat& a);
  void perform(warren::agent::send_event& a);
  void perform(warren::agent::send_reply& a);
  void perform(warren::agent::save_set& a);
  void perform(warren::agent::set_changed&);
  void perform(warren::agent::end_agent& a);
  void perform(warren::agent::say& a);
  moment now() const;
  busv1::Addressing addressing() const;
  void leave();
  std::string deceived(std::string payload);
  static bool obeyed(const warren::agent::actions& all);

  std::string project_, name_;
  int number_;
  wiring to_;
  key_pair key_;
  link_id link_ = 0;
  bool cut_ = false;
  int life_ = 0, moves_ = 0;
  warren::agent::attachment_set disk_;
  std::unique_ptr<warren::agent::target_table> targets_;
  std::unique_ptr<warren::agent::session> session_;
  std::map<std::string, std::uint64_t> hellos_;  ///< inbox → number
  std::uint64_t next_inbox_ = 1;
  std::vector<std::int64_t> durable_{0};
  std::pair<std::int64_t, epoch_t> newest_owner_{};  ///< incarnation and epoch, in this session
  std::int64_t owner_session_ = 0;
  warren::agent::attachment_set nothing_;
  std::optional<std::int64_t> deadline_ms_;  ///< the session's, as it was when something last happened to it
};

}  // namespace warren::simulation
