// actors/connector/facts.cpp -- what all rooms of a connector's machine ask and say alike. Pure.
#include "actors/connector/facts.hpp"

namespace warren::connector {

void want_wake(transition& t, std::int64_t at_ms) {
  if (t.wake_at_ms == 0 || at_ms < t.wake_at_ms) t.wake_at_ms = at_ms;
}

std::string addresses_of(const v1::ConnectorRow& row) {
  std::string out;
  for (const auto& a : row.addresses()) out += a + ' ';
  return out;
}

busv1::AgentCommand command_for(const state& s, std::int64_t session, std::int64_t id) {
  busv1::AgentCommand c;
  c.set_version(1);
  c.set_incarnation(s.incarnation());
  c.set_epoch(s.epoch());
  c.set_session(session);
  c.set_command_id(id);
  return c;
}

busv1::AgentCommand next_command(state& s) {
  s.set_last_command_id(s.last_command_id() + 1);
  return command_for(s, s.row().session(), s.last_command_id());
}

row_write write_of(row_write::op what, const v1::ConnectorRow& row, std::int64_t expected, bool routes) {
  row_write w;
  w.what = what;
  *w.row.mutable_connector() = row;
  w.expected = expected;
  w.routes = routes;
  return w;
}

row_write write_of(row_write::op what, const v1::AttachmentRow& row, std::int64_t expected) {
  row_write w;
  w.what = what;
  *w.row.mutable_attachment() = row;
  w.expected = expected;
  return w;
}

state lend(state& s) {
  state out;
  out.mutable_attachments()->swap(*s.mutable_attachments());
  out.mutable_targets()->swap(*s.mutable_targets());
  out.MergeFrom(s);
  return out;
}

void begin_save(transition& t, save_request save, state after, std::string_view what) {
  t.next.set_saving(std::string{what});
  t.kept = std::move(t.next);
  t.next = std::move(after);
  t.next.set_saving(std::string{what});
  t.save = std::move(save);
}

void begin_save(transition& t, save_request save, state after, std::string_view what, decltype(plan::before) before) {
  begin_save(t, std::move(save), std::move(after), what);
  t.give_back = [before = std::move(before)](state& next, state& kept) {
    kept.mutable_attachments()->swap(*next.mutable_attachments());
    kept.mutable_targets()->swap(*next.mutable_targets());
    for (const auto& [key, target] : before.targets) kept.mutable_targets()->insert({key, target});
    for (const auto& [key, row] : before.attachments)
      if (row) (*kept.mutable_attachments())[key] = *row;
      else kept.mutable_attachments()->erase(key);
  };
}

}  // namespace warren::connector
