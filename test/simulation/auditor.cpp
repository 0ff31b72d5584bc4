// test/simulation/auditor.cpp -- what must hold at every step.
#include "test/simulation/auditor.hpp"

#include <algorithm>

#include "actors/core/conditions.hpp"
#include "actors/core/subjects.hpp"
#include "services/gateway/compile.hpp"

namespace warren::simulation {

namespace {

constexpr std::int64_t grace_ms = 5'000;  // beyond a connector's lease, for an agent to be heard again after it came

std::uint64_t hash_of(const std::string& bytes) { return fnv1a_64(bytes); }
std::string at_version(const std::string& key, std::int64_t version) { return fmt::format("{}@{}", key, version); }

}  // namespace

void auditor::remember(const std::string& key, std::int64_t version, const std::string& bytes) {
  history_[at_version(key, version)].insert(hash_of(bytes));
}

// ---- the database ----

void auditor::committed(const committed_transaction& log) {
  ++checks_;
  time_.record("commit", fmt::format("{} {} {}", log.partition, log.epoch, log.by), std::to_string(log.revision));
  if (log.before.owner != log.by || log.before.epoch != log.epoch)
    violate(fmt::format("instance {} wrote partition {} at epoch {}, which instance {} owns at epoch {}", log.by,
                        log.partition, log.epoch, log.before.owner, log.before.epoch));
  const auto [writer, first] = writers_.try_emplace({log.partition, log.epoch}, log.by);
  if (writer->second != log.by)
    violate(fmt::format("partition {} has two writers at epoch {}: {} and {}", log.partition, log.epoch, writer->second, log.by));
  auto& last = revisions_[log.partition];
  if (log.revision <= last)
    violate(fmt::format("revision {} of partition {} comes after {}", log.revision, log.partition, last));
  last = std::max(last, log.revision);
  for (const auto& [ticket, request] : log.transitions) {
    if (!carried_out_.insert(ticket).second) violate(fmt::format("{} was carried out twice", request->write));
    if (request->audit && !request->audit->request_id.empty() &&
        ++audits_[request->audit->project + "/" + request->audit->request_id] > 1)
      violate(fmt::format("request {} was carried out twice", request->audit->request_id));
  }
  for (const auto& [before, after] : log.rows) {
    if (!after) {
      remember("gone " + database::key_of(*before), log.revision, "");
      continue;
    }
    if (time_.talkative()) time_.tell("revision {} {}", log.revision, after->ShortDebugString());
    remember(database::key_of(*after), log.revision, after->SerializeAsString());
    if (after->has_tunnel()) {
      const auto& t = after->tunnel();
      auto& known = tunnels_[t.uid()];
      known.set_uid(t.uid());
      known.set_project(t.project());
      known.set_name(t.name());
      for (const auto& h : t.hostnames())
        if (std::find(known.hostnames().begin(), known.hostnames().end(), h) == known.hostnames().end()) known.add_hostnames(h);
    }
    if (after->has_connector()) check_connector(after->connector(), before ? &before->connector() : nullptr);
  }
}

void auditor::check_connector(const v1::ConnectorRow& c, const v1::ConnectorRow* before) {
  const auto key = c.project() + "/" + c.name();
  auto& known = connectors_[key];
  known.session = std::max(known.session, c.session());
  known.attachment_generation = std::max(known.attachment_generation, c.attachment_generation());
  if (c.attached_generation() > c.attachment_generation())
    violate(fmt::format("connector {} has acknowledged {}, and was asked for {}", key, c.attached_generation(), c.attachment_generation()));
  const auto* agent = find_agent(key);
  if (agent == nullptr) return;
  // Whose word it was: the life that has this session, and its disk. Until its hello is answered that is not known.
  const auto disk = session_disk_.find({key, c.session()});
  const auto stored = disk == session_disk_.end() ? agent->durable_ever() : agent->durable_on(disk->second);
  if (c.attached_generation() > stored && (before == nullptr || c.attached_generation() > before->attached_generation()))
    violate(fmt::format("connector {} is said to hold set {} in session {}, and its agent has stored no more than {}", key,
                        c.attached_generation(), c.session(), stored));
  if (before != nullptr && before->online() && !c.online() && !c.has_delete_time() && c.addressing_error().empty() &&
      agent->running() && !agent->cut_off() && time_.now_ms() - agent->since_ms > c.lease_duration_ms() + grace_ms) {
    const auto* ready = find_condition(c.conditions(), "Ready");
    violate(fmt::format("connector {} was declared offline, and its agent lives: {}", key, ready ? ready->message() : ""));
  }
}

void auditor::answered(std::uint64_t ticket, const save_result& r) {
  const bool done = carried_out_.erase(ticket) > 0;
  if (std::holds_alternative<saved>(r) && !done) violate("a writer was told that it is stored, and it is not");
  if (done && (std::holds_alternative<save_conflict>(r) || std::holds_alternative<save_refused>(r) ||
               std::holds_alternative<save_unavailable>(r)))
    violate(fmt::format("a writer was told that it is not stored, and it is: {}",
                        std::holds_alternative<save_conflict>(r) ? std::get<save_conflict>(r).what : "refused or unavailable"));
}

void auditor::taken(partition_id p, const partition_row& before, instance_id by, bool owner_still_runs_it, bool owner_expired) {
  ++checks_;
  time_.record("taken", fmt::format("{} {}", p, by));
  if (owner_still_runs_it && owner_expired)
    violate(fmt::format("partition {} was taken by {} when the lease of {} was over, and that one still runs it", p, by, before.owner));
}

void auditor::failed_over() {
  // Lost with the last second; what was written in it may be written again.
  audits_.clear();
  for (const auto& [id, n] : db_.now.audits) audits_[id] = n;
}

// ---- the bus ----

void auditor::announced(const busv1::Revision& r) {
  ++checks_;
  const auto last = std::max(revisions_[r.partition()], db_.now.partitions.at(r.partition()).revision);
  if (r.revision() > last)
    violate(fmt::format("revision {} of partition {} is announced, and {} is the last", r.revision(), r.partition(), last));
  for (const auto& row : r.rows()) {
    if (row.has_tombstone()) continue;
    const auto key = at_version(database::key_of(row), database::version_of(row));
    auto it = history_.find(key);
    if (it == history_.end() || it->second.count(hash_of(row.SerializeAsString())) == 0)
      violate(fmt::format("{} is announced, and was never stored", key));
  }
}

void auditor::overheard(const bus_message& m) {
  ++checks_;
  const auto subject = bus::parse_subject(m.subject);
  if (!subject) {
    auto asked = greeting_.find(m.subject);
    busv1::HelloReply reply;
    if (asked != greeting_.end() && reply.ParseFromString(m.payload) && reply.session() > 0)
      session_disk_.try_emplace({asked->second.first, reply.session()}, asked->second.second);
    return;
  }
  if (subject->room == bus::subject_room::hello) {
    const auto connector = std::string{subject->project} + "/" + std::string{subject->name};
    if (const auto* agent = find_agent(connector)) greeting_[m.reply_to] = {connector, agent->disk()};
  }
  if (subject->room != bus::subject_room::command) return;
  busv1::AgentCommand c;
  if (!c.ParseFromString(m.payload)) return violate("a command to an agent cannot be read");
  const auto key = std::string{subject->project} + "/" + std::string{subject->name};
  const auto& known = connectors_[key];
  const auto generation = c.has_attach()   ? c.attach().generation()
                          : c.has_detach() ? c.detach().generation()
                          : c.has_set()    ? c.set().generation()
                                           : 0;
  if (generation > known.attachment_generation)
    violate(fmt::format("the agent of {} is told set {}, and {} is stored", key, generation, known.attachment_generation));
  if (c.session() > known.session)
    violate(fmt::format("the agent of {} is commanded in session {}, and {} is stored", key, c.session(), known.session));
}

// ---- replicas ----

void auditor::view_changed(int host, std::uint64_t life, replica::view& v, const replica::change_set& c) {
  ++checks_;
  auto& seen = seen_[{host, life, c.partition}];
  if (c.revision < seen)
    violate(fmt::format("instance {} went back from revision {} of partition {} to {}", host, seen, c.partition, c.revision));
  seen = std::max(seen, c.revision);
  v.read([&](const replica::tables& t) {
    for (const auto& key : c.derived) {
      check_ready(t, key, host);
      check_rejected(t, key, host);
    }
    if (c.acks) check_reports(t, c.partition, host);
    return 0;
  });
}

void auditor::check_ready(const replica::tables& t, const replica::entity_key& key, int host) {
  const auto d = t.derived.find(key);
  const auto row = t.tunnel(key.first, key.second);
  if (d == t.derived.end() || row == nullptr) return;
  const auto conditions = d->second.conditions();
  const auto* ready = conditions.of_type("Ready");
  if (ready == nullptr || ready->status() != status_true) return;
  const auto wrong = [&](const std::string& why) {
    violate(fmt::format("instance {} says that {}/{} is ready: {}", host, key.first, key.second, why));
  };
  if (row->programmed_generation() != row->generation()) wrong("it is not programmed");
  for (const auto& rule : row->rules()) {
    const auto* c = t.connector(key.first, rule.connector());
    if (c == nullptr || !c->online()) {
      wrong("its connector is not online");
      continue;
    }
    const auto a = t.attachment(key.first, rule.connector(), row->uid(), row->generation());
    if (a == nullptr || a->attachment_generation() > c->attached_generation()) wrong("its agent has not acknowledged it");
    if (const auto* agent = find_agent(key.first + "/" + rule.connector());
        a != nullptr && agent != nullptr && a->attachment_generation() > agent->durable_ever())
      wrong("its agent has never held it");
  }
  auto acks = t.acks.find(row->partition());
  int counting = 0;
  if (acks != t.acks.end())
    for (const auto& [name, report] : acks->second) {
      if (report.report.class_() != row->gateway_class() || report.report.state() != "caught_up") continue;
      ++counting;
      if (report.report.acknowledged() < d->second.routed_revision) wrong("gateway " + name + " does not run its routes");
      for (const auto& r : report.report.refused())
        if (r.tunnel_uid() == row->uid()) wrong("gateway " + name + " refuses it");
    }
  if (counting == 0 && d->second.gateways().revision < d->second.routed_revision) wrong("no gateway runs its routes");
}

/// Nothing is believed of a gateway that its present stream has not said.
void auditor::check_reports(const replica::tables& t, partition_id p, int host) {
  auto acks = t.acks.find(p);
  if (acks == t.acks.end()) return;
  for (const auto& [name, report] : acks->second) {
    auto said = said_.find({name, report.report.stream(), p});
    if (said == said_.end() || said->second.count(report.report.acknowledged()) == 0)
      violate(fmt::format("instance {} believes that stream {} of gateway {} runs revision {} of partition {}", host,
                          report.report.stream(), name, report.report.acknowledged(), p));
  }
}

void auditor::gateway_said(const busv1::GatewayAck& said) {
  said_[{said.gateway(), said.stream(), said.partition()}].insert(said.acknowledged());
  for (const auto& r : said.refused()) {
    ++checks_;
    if (r.tunnel_uid().empty()) {
      const auto slash = r.connector().find('/');
      if (slash == std::string::npos ||
          !has_refused(said.gateway(), gateway::cluster_name(r.connector().substr(0, slash), r.connector().substr(slash + 1))))
        violate(fmt::format("gateway {} is said to refuse connector \"{}\", and never did", said.gateway(), r.connector()));
      continue;
    }
    const auto known = tunnels_.find(r.tunnel_uid());
    if (known == tunnels_.end() || !refused_of(said.gateway(), known->second))
      violate(fmt::format("gateway {} is said to refuse tunnel {}, and never did", said.gateway(),
                          known == tunnels_.end() ? r.tunnel_uid() : known->second.project() + "/" + known->second.name()));
  }
}

/// One of its own resources, its connectors' clusters not included.
bool auditor::refused_of(const std::string& gateway, const v1::TunnelRow& t) const {
  return has_refused(gateway, gateway::route_name(t.project(), t.name())) ||
         std::any_of(t.hostnames().begin(), t.hostnames().end(), [&](const std::string& h) { return has_refused(gateway, h); });
}

/// Nobody's tunnel is said to be rejected for what is wrong with another's.
void auditor::check_rejected(const replica::tables& t, const replica::entity_key& key, int host) {
  const auto d = t.derived.find(key);
  const auto row = t.tunnel(key.first, key.second);
  if (d == t.derived.end() || row == nullptr) return;
  const auto conditions = d->second.conditions();
  const bool rejected = std::any_of(conditions.begin(), conditions.end(),
                                    [](const v1::Condition& c) { return c.reason() == "Rejected"; });
  if (!rejected) return;
  const auto theirs = [&](const auto& rules) {
    return std::any_of(rules.begin(), rules.end(), [&](const auto& rule) {
      return has_refused("", gateway::cluster_name(key.first, rule.connector()));
    });
  };
  if (!refused_of("", *row) && !theirs(row->rules()) && !theirs(row->previous_rules()))
    violate(fmt::format("instance {} says that {}/{} is rejected, and no gateway has refused anything of it", host, key.first, key.second));
}

bool auditor::was_stored(const v1::Row& row) const {
  auto it = history_.find(at_version(database::key_of(row), database::version_of(row)));
  return it != history_.end() && it->second.count(hash_of(row.SerializeAsString())) > 0;
}

}  // namespace warren::simulation
