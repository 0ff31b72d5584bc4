// test/simulation/deceit.cpp -- planted bugs that look like a message.
#include "test/simulation/deceit.hpp"

#include <algorithm>

#include "actors/core/subjects.hpp"

namespace warren::simulation {

void deceit::overheard(const bus_message& m) {
  if (!tampers(planted_)) return;
  const auto subject = bus::parse_subject(m.subject);
  if (!subject) {
    auto asked = greeting_.find(m.subject);
    busv1::HelloReply reply;
    if (asked == greeting_.end() || !reply.ParseFromString(m.payload) || reply.token().empty()) return;
    auto& known = sessions_[asked->second];
    if (reply.session() >= known.number) known = {reply.session(), 0, reply.token()};
    return;
  }
  if (subject->room == bus::subject_room::hello)
    greeting_[m.reply_to] = std::string{subject->project} + "/" + std::string{subject->name};
  busv1::GatewayAck ack;
  if (subject->room == bus::subject_room::ack && ack.ParseFromString(m.payload))
    streams_[ack.gateway()] = std::max(streams_[ack.gateway()], ack.stream());
}

void deceit::tamper(bus_message& m, const std::string& to) {
  if (to.rfind("instance", 0) != 0) return;
  const auto subject = bus::parse_subject(m.subject);
  if (!subject) return;
  const auto forge = [&](auto message) {
    if (!message.ParseFromString(m.payload)) return;
    auto it = sessions_.find(std::string{subject->project} + "/" + std::string{subject->name});
    if (it == sessions_.end() || message.session() >= it->second.number) return;
    message.set_session(it->second.number);
    message.set_token(it->second.token);
    m.payload = message.SerializeAsString();
  };
  if (planted_.count(bug::older_session_counted) > 0) {
    if (subject->room == bus::subject_room::heartbeat) forge(busv1::Heartbeat{});
    if (subject->room == bus::subject_room::event) forge(busv1::AgentEvent{});
  }
  busv1::GatewayAck ack;
  if (planted_.count(bug::older_stream_counted) > 0 && subject->room == bus::subject_room::ack && ack.ParseFromString(m.payload)) {
    ack.set_stream(std::max(ack.stream(), streams_[ack.gateway()]));
    m.payload = ack.SerializeAsString();
  }
}

}  // namespace warren::simulation
