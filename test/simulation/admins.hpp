// test/simulation/admins.hpp -- administrators: they ask whichever instance owns a partition, again and again with the
// same request id until they are answered, as services/admin/forward does.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "test/simulation/network.hpp"
#include "warren/core/v1/commands.pb.h"

namespace warren::simulation {

class admins {
public:
  struct asked {
    v1::Command command;
    int tries = 0;
    std::int64_t asked_at_ms = 0, answered_at_ms = 0;
    bool answered = false;
    v1::Reply reply;                     ///< the first
    std::set<std::uint64_t> attempts_answered;
    std::function<void(const v1::Reply&)> then;
  };

  admins(timeline& t, network& n, int partitions);

  /// `project` empty: of the whole installation.
  void ask(const std::string& project, v1::Command c, std::function<void(const v1::Reply&)> then = {});

  void create_tunnel(const std::string& project, const std::string& name, const std::vector<std::string>& connectors,
                     const std::string& hostname, const std::string& target);
  void update_tunnel(const std::string& project, const std::string& name, const std::vector<std::string>& connectors,
                     const std::string& target);
  void enable_tunnel(const std::string& project, const std::string& name, bool on);
  void delete_tunnel(const std::string& project, const std::string& name);
  void enrol(const std::string& project, const std::string& name, const std::string& public_key, std::int64_t lease_ms,
             std::function<void(const v1::Reply&)> then);
  void delete_connector(const std::string& project, const std::string& name);

  const std::vector<std::shared_ptr<asked>>& all() const { return all_; }
  std::size_t unanswered() const;

private:
  void attempt(const std::shared_ptr<asked>& r);
  void heard(const bus_message& m);
  void judge(asked& r, std::uint64_t attempt, const v1::Reply& reply);

  timeline& time_;
  network& net_;
  int partitions_;
  link_id link_;
  std::vector<std::shared_ptr<asked>> all_;
  std::map<std::string, std::pair<std::shared_ptr<asked>, std::uint64_t>> inboxes_;
  std::uint64_t next_inbox_ = 1;
};

}  // namespace warren::simulation
