// test/simulation/xds_side.cpp -- an instance's side of the gateways' streams, as services/gateway/xds.cpp keeps it.
#include "test/simulation/xds_side.hpp"

#include <algorithm>

namespace warren::simulation {

namespace {
constexpr std::int64_t report_every_ms = 1'000;
}

void xds_side::open(std::uint64_t stream, const std::string& gateway, const std::string& gateway_class) {
  auto& c = streams_[stream];
  c.gateway = gateway;
  c.gateway_class = gateway_class;
  if (warm_) admit(stream);
}

void xds_side::admit(std::uint64_t id) {
  auto& c = streams_.at(id);
  const bool registered = to_.view.read([&](const replica::tables& t) {
    const auto it = t.gateways.find(c.gateway);
    return it != t.gateways.end() && it->second->class_() == c.gateway_class;
  });
  const auto* cls = rows_.find_class(c.gateway_class);
  if (!registered || cls == nullptr) return end(id, false);
  // One stream per gateway: the one that came last.
  std::vector<std::uint64_t> older;
  for (const auto& [other, s] : streams_)
    if (other != id && s.talk && s.gateway == c.gateway) older.push_back(other);
  for (auto other : older) end(other, false);
  c.talk = std::make_unique<gateway::session>(rows_, c.gateway_class);
  number(id);
  for (const auto& r : std::exchange(c.held, {})) {
    if (streams_.count(id) == 0) return;
    request(id, r);
  }
}

void xds_side::number(std::uint64_t id) {
  auto& c = streams_.at(id);
  if (c.numbering || c.number != 0) return;
  c.numbering = true;
  to_.next_stream([this, id](std::optional<std::int64_t> n) {
    auto it = streams_.find(id);
    if (it == streams_.end()) return;
    it->second.numbering = false;
    if (!n) return;  // the tick asks again
    it->second.number = *n;
    for (const auto& [p, revision] : rows_.processed()) report(it->second, p, it->second.talk->state());
  });
}

void xds_side::request(std::uint64_t stream, const discovery::DeltaDiscoveryRequest& r) {
  auto it = streams_.find(stream);
  if (it == streams_.end()) return;
  auto& c = it->second;
  if (!c.talk) {
    c.held.push_back(r);
    return;
  }
  const bool deaf = has(bug::refusal_taken_for_acknowledgement) && r.has_error_detail();
  auto heard = r;
  if (deaf) heard.clear_error_detail();
  if (!c.talk->request(heard, to_.now_ms()).empty()) return end(stream, false);
  pump(stream, c);
  report_touched(c);
}

void xds_side::pump(std::uint64_t id, connected& c) {
  while (auto response = c.talk->poll(to_.now_ms())) to_.send(id, *response);
}

void xds_side::end(std::uint64_t id, bool say_gone) {
  auto it = streams_.find(id);
  if (it == streams_.end()) return;
  auto c = std::move(it->second);
  streams_.erase(it);
  if (c.talk && say_gone)
    for (const auto& [p, revision] : rows_.processed()) report(c, p, gateway::stream_state::gone);
  to_.close(id);
}

void xds_side::ended(std::uint64_t stream) { end(stream, true); }

void xds_side::stop() {
  while (!streams_.empty()) end(streams_.begin()->first, true);
}

void xds_side::changed(const replica::change_set& c) {
  if (!warm_) return tick();
  const auto before = rows_.processed(c.partition);
  const auto changes = to_.view.read([&](const replica::tables& t) { return rows_.apply(t, c); });
  const bool moved = rows_.processed(c.partition) != before;
  std::vector<std::uint64_t> unwanted;
  for (auto& [id, s] : streams_) {
    if (!s.talk) continue;
    const auto* cls = rows_.find_class(s.gateway_class);
    const bool registered = to_.view.read([&](const replica::tables& t) { return t.gateways.count(s.gateway) > 0; });
    if (!registered || cls == nullptr) {
      unwanted.push_back(id);
      continue;
    }
    for (const auto& one : changes) s.talk->changed(one);
    pump(id, s);
    auto touched = s.talk->take_touched();
    if (moved) touched.insert(c.partition);
    for (auto p : touched) report(s, p, s.talk->state());
  }
  for (auto id : unwanted) end(id, true);
}

void xds_side::report_touched(connected& c) {
  for (auto p : c.talk->take_touched()) report(c, p, c.talk->state());
}

void xds_side::report(connected& c, partition_id p, gateway::stream_state state) {
  if (c.number == 0) return;
  busv1::GatewayAck out;
  out.set_version(1);
  out.set_incarnation(to_.view.read([p](const replica::tables& t) {
    const auto it = t.partitions.find(p);
    return it == t.partitions.end() ? std::int64_t{0} : it->second.incarnation;
  }));
  out.set_instance(to_.me);
  out.set_gateway(c.gateway);
  out.set_class_(c.gateway_class);
  out.set_stream(c.number);
  out.set_state(std::string{gateway::to_string(state)});
  out.set_partition(p);
  out.set_acknowledged(c.talk->acknowledged(p));
  for (const auto& r : c.talk->refusals(p)) {
    auto* refused = out.add_refused();
    refused->set_tunnel_uid(r.tunnel_uid);
    refused->set_connector(r.connector);
    refused->set_revision(std::max(r.revision, rows_.processed(p)));
    refused->set_message(r.message);
    if (has(bug::refusal_laid_at_another_door))
      to_.view.read([&](const replica::tables& t) {
        for (const auto& [key, packed] : t.tunnels)
          if (const auto row = packed.unpack(); row->partition() == p && row->uid() != r.tunnel_uid) refused->set_tunnel_uid(row->uid());
        return 0;
      });
  }
  if (on_report) on_report(out);
  to_.on_ack(out);
}

void xds_side::tick() {
  if (!warm_) {
    warm_ = to_.view.read([&](const replica::tables& t) {
      if (!t.warm) return false;
      rows_.rebuild(t);
      return true;
    });
    if (!warm_) return;
    std::vector<std::uint64_t> waiting;
    for (const auto& [id, c] : streams_) waiting.push_back(id);
    for (auto id : waiting) admit(id);
  }
  const auto now = to_.now_ms();
  for (auto& [id, c] : streams_) {
    if (!c.talk) continue;
    c.talk->tick(now);
    report_touched(c);
  }
  if (now - reported_at_ms_ < report_every_ms) return;
  reported_at_ms_ = now;
  std::vector<std::uint64_t> overtaken, unnumbered;
  to_.view.read([&](const replica::tables& t) {
    for (auto& [id, c] : streams_) {
      if (!c.talk) continue;
      if (c.number == 0) unnumbered.push_back(id);
      const bool newer = c.number != 0 && std::any_of(t.acks.begin(), t.acks.end(), [&](const auto& of_partition) {
        const auto it = of_partition.second.find(c.gateway);
        return it != of_partition.second.end() && it->second.report.stream() > c.number &&
               it->second.report.instance() != to_.me && it->second.report.state() != "gone";
      });
      if (newer) overtaken.push_back(id);
    }
    return 0;
  });
  for (auto id : overtaken) end(id, false);
  for (auto id : unnumbered) number(id);
  for (auto& [id, c] : streams_)
    if (c.talk)
      for (const auto& [p, revision] : rows_.processed()) report(c, p, c.talk->state());
}

}  // namespace warren::simulation
