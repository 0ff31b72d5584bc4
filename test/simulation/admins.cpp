// test/simulation/admins.cpp -- administrators, and what they must be told.
#include "test/simulation/admins.hpp"

#include <algorithm>

#include "actors/core/subjects.hpp"

namespace warren::simulation {

namespace {

constexpr std::int64_t attempt_ms = 3'000;  // as forward: an owner that stops answering has lost its partition by then
constexpr std::int64_t again_ms_min = 20, again_ms_max = 200;

void put_rules(v1::TunnelSpec& spec, const std::vector<std::string>& connectors, const std::string& target) {
  for (std::size_t i = 0; i < connectors.size(); ++i) {
    auto* r = spec.add_rules();
    r->set_path_prefix(i == 0 ? "/" : fmt::format("/{}", i));
    r->set_connector(connectors[i]);
    r->set_target(target);
  }
}

}  // namespace

admins::admins(timeline& t, network& n, int partitions) : time_{t}, net_{n}, partitions_{partitions} {
  link_ = net_.connect("admins", {.message = [this](const std::string&, const heard_message& m) { heard(*m); }, .state = {}});
}

std::size_t admins::unanswered() const {
  return static_cast<std::size_t>(std::count_if(all_.begin(), all_.end(), [](const auto& r) { return !r->answered; }));
}

void admins::ask(const std::string& project, v1::Command c, std::function<void(const v1::Reply&)> then) {
  auto r = std::make_shared<asked>();
  c.set_project(project);
  c.mutable_caller()->set_request_id(fmt::format("r{}", all_.size()));
  c.mutable_caller()->set_digest(fmt::format("d{}", all_.size()));
  r->command = std::move(c);
  r->then = std::move(then);
  r->asked_at_ms = time_.now_ms();
  all_.push_back(r);
  attempt(r);
}

void admins::attempt(const std::shared_ptr<asked>& r) {
  if (r->answered) return;
  const auto number = next_inbox_++;
  const auto inbox = network::inbox(link_, number);
  const int tries = ++r->tries;
  inboxes_[inbox] = {r, number};
  net_.request(link_, {bus::api_subject(partition_of(r->command.project(), partitions_)), r->command.SerializeAsString(), inbox});
  time_.after(attempt_ms, [this, r, tries] {
    if (r->tries == tries) attempt(r);
  });
}

void admins::heard(const bus_message& m) {
  auto it = inboxes_.find(m.subject);
  if (it == inboxes_.end()) return;
  auto [r, number] = it->second;
  v1::Reply reply;
  const bool nobody = m.reply_to == "no_responders";
  if (!nobody) reply.ParseFromString(m.payload);
  if (nobody || reply.code() == "not_owner" || reply.code() == "unavailable") {
    if (r->answered) return;
    ++r->tries;  // the timeout of this attempt has nothing to do any more
    time_.after(time_.load.between(again_ms_min, again_ms_max), [this, again = r, tries = r->tries] {
      if (again->tries == tries) attempt(again);
    });
    return;
  }
  judge(*r, number, reply);
}

void admins::judge(asked& r, std::uint64_t, const v1::Reply& reply) {
  const auto& who = r.command.caller();
  time_.record("answer", who.request_id(), reply.code());
  if (!r.answered) {
    r.answered = true;
    r.answered_at_ms = time_.now_ms();
    r.reply = reply;
    time_.tell("{} {} answered {} {} after {} ms", who.request_id(), who.method(), reply.code(), reply.message(),
               r.answered_at_ms - r.asked_at_ms);
    if (r.then) r.then(reply);
    return;
  }
  // A refusal leaves no trace: when the bus says the same once more, it is judged by what there is by then.
  if (!r.reply.code().empty()) return;
  // A repetition of what was done is answered alike; that it is carried out once is seen in the audit trail.
  const auto uid = [](const v1::Reply& one) {
    return one.row().has_tunnel() ? one.row().tunnel().uid() : one.row().connector().uid();
  };
  if (reply.code() != r.reply.code() || uid(reply) != uid(r.reply))
    time_.violate(fmt::format("request {} ({}) was answered {} {} and then {} {}", who.request_id(), who.method(),
                              r.reply.code(), uid(r.reply), reply.code(), uid(reply)));
}

// ---- what they ask for ----

void admins::create_tunnel(const std::string& project, const std::string& name, const std::vector<std::string>& connectors,
                           const std::string& hostname, const std::string& target) {
  v1::Command c;
  c.mutable_caller()->set_method("CreateTunnel");
  c.mutable_create_tunnel()->set_name(name);
  auto& spec = *c.mutable_create_tunnel()->mutable_spec();
  spec.add_hostnames(hostname);
  spec.set_enabled(true);
  spec.set_gateway_class("default");
  put_rules(spec, connectors, target);
  ask(project, std::move(c));
}

void admins::update_tunnel(const std::string& project, const std::string& name, const std::vector<std::string>& connectors,
                           const std::string& target) {
  v1::Command c;
  c.mutable_caller()->set_method("UpdateTunnel");
  c.mutable_update_tunnel()->set_name(name);
  c.mutable_update_tunnel()->add_update_mask("rules");
  put_rules(*c.mutable_update_tunnel()->mutable_spec(), connectors, target);
  ask(project, std::move(c));
}

void admins::enable_tunnel(const std::string& project, const std::string& name, bool on) {
  v1::Command c;
  c.mutable_caller()->set_method("UpdateTunnel");
  c.mutable_update_tunnel()->set_name(name);
  c.mutable_update_tunnel()->add_update_mask("enabled");
  c.mutable_update_tunnel()->mutable_spec()->set_enabled(on);
  ask(project, std::move(c));
}

void admins::delete_tunnel(const std::string& project, const std::string& name) {
  v1::Command c;
  c.mutable_caller()->set_method("DeleteTunnel");
  c.mutable_delete_tunnel()->set_name(name);
  ask(project, std::move(c));
}

void admins::enrol(const std::string& project, const std::string& name, const std::string& public_key,
                   std::int64_t lease_ms, std::function<void(const v1::Reply&)> then) {
  v1::Command c;
  c.mutable_caller()->set_method("EnrolConnector");
  c.mutable_enrol_connector()->set_name(name);
  c.mutable_enrol_connector()->set_public_key(public_key);
  c.mutable_enrol_connector()->mutable_spec()->set_class_("default");
  c.mutable_enrol_connector()->mutable_spec()->set_lease_duration_ms(lease_ms);
  ask(project, std::move(c), std::move(then));
}

void admins::delete_connector(const std::string& project, const std::string& name) {
  v1::Command c;
  c.mutable_caller()->set_method("DeleteConnector");
  c.mutable_delete_connector()->set_name(name);
  ask(project, std::move(c));
}

}  // namespace warren::simulation
