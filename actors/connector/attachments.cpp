// actors/connector/attachments.cpp -- what the agent shall hold and what it holds. Pure.
#include "actors/connector/attachments.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <fmt/format.h>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "actors/core/wire.hpp"
#include "actors/tunnel/spec.hpp"

namespace warren::connector {

namespace {

/// Of a row, or of what a tunnel asks for.
template <class Source> busv1::Attachment attachment_of(const Source& a) {
  busv1::Attachment out;
  out.set_tunnel(a.tunnel());
  out.set_tunnel_uid(a.tunnel_uid());
  out.set_tunnel_generation(a.tunnel_generation());
  *out.mutable_rules() = a.rules();
  return out;
}

bool is_sound(const busv1::Attachment& a) {
  return !wire::check_attachment(a) && std::all_of(a.rules().begin(), a.rules().end(), [](const auto& r) {
           return static_cast<bool>(tunnel::canonical_target(r.target()));
         });
}

std::string target_key(const std::string& attachment, std::int64_t rule) { return fmt::format("{}/{}", attachment, rule); }

void say_step(transition& t, const v1::SetChange& change) {
  state& s = t.next;
  auto command = next_command(s);
  if (change.attached_size() > 0) {
    auto& attach = *command.mutable_attach();
    attach.set_from_generation(change.from_generation());
    attach.set_generation(change.generation());
    *attach.mutable_attachments() = change.attached();
  } else {
    auto& detach = *command.mutable_detach();
    detach.set_from_generation(change.from_generation());
    detach.set_generation(change.generation());
    *detach.mutable_tunnels() = change.detached();
  }
  s.set_set_command_id(command.command_id());
  t.announce.push_back(agent_command{std::move(command), true});
}

/// The set moves on by one. A number of another incarnation never meets one of ours.
std::int64_t next_generation(const state& s) {
  return std::max(s.row().attachment_generation(), s.incarnation() << 32) + 1;
}

}  // namespace

bool attached(const v1::AttachmentRow& a, const v1::ConnectorRow& row) {
  return a.attachment_generation() <= row.attached_generation();
}

bool sound(const v1::AttachmentRow& a) { return is_sound(attachment_of(a)); }

/// Kept in one order: the attachments that it comes from are a map, whose order is another one in each process.
void owe_state(state& s, const std::string& tunnel, const std::string& uid, std::int64_t generation) {
  auto& owed = *s.mutable_owed();
  const auto key = std::tie(uid, generation);
  const auto key_of = [](const auto& o) { return std::make_tuple(std::cref(o.tunnel_uid()), o.tunnel_generation()); };
  const auto at = std::lower_bound(owed.begin(), owed.end(), key,
                                   [&](const auto& o, const auto& wanted) { return key_of(o) < wanted; });
  if (at != owed.end() && key_of(*at) == key) return;
  const auto begin = static_cast<int>(at - owed.begin());
  auto* o = owed.Add();
  o->set_connector(s.name());
  o->set_tunnel(tunnel);
  o->set_tunnel_uid(uid);
  o->set_tunnel_generation(generation);
  for (int i = begin; i + 1 < owed.size(); ++i) owed.SwapElements(i, owed.size() - 1);
}

void fill_set(busv1::AttachmentSet& set, const state& s) {
  set.set_generation(s.row().attachment_generation());
  std::map<std::string, const v1::AttachmentRow*> sorted;  // the state's map has no order
  for (const auto& [key, a] : s.attachments())
    if (a.attachment_generation() != never_attached) sorted[key] = &a;
  for (const auto& [key, a] : sorted) *set.add_attachments() = attachment_of(*a);
}

void hear_held(state& s, std::int64_t generation) {
  // A number of a former life of the database. One that is not stored was lost with it: the agent holds another set
  // than we know, and takes none with a lower number for a newer one.
  if (const auto ours = s.incarnation() << 32; exists(s) && generation < ours && generation > s.row().attached_generation()) {
    const bool lost = generation > s.row().attachment_generation();
    if (lost) s.set_set_changed_by_rival(true);
    if (lost || s.row().attachment_generation() > ours) return;
  }
  if (generation >= s.held_generation()) {
    s.set_held_generation(generation);
    s.set_lower_seen(false);
  } else if (s.lower_seen() && s.lower_generation() == generation) {
    s.set_held_generation(generation);
    s.set_lower_seen(false);
    s.set_whole_set_wanted(true);
  } else {
    s.set_lower_seen(true);
    s.set_lower_generation(generation);
  }
}

void hear_targets(state& s, const google::protobuf::RepeatedPtrField<busv1::TargetState>& targets) {
  for (const auto& target : targets) {
    auto it = s.attachments().find(attachment_key(target.tunnel_uid(), target.tunnel_generation()));
    if (it == s.attachments().end()) continue;
    const auto& rules = it->second.rules();
    if (std::none_of(rules.begin(), rules.end(), [&](const auto& r) { return r.index() == target.rule(); })) continue;
    (*s.mutable_targets())[target_key(it->first, target.rule())] = target;
    s.set_targets_changed(true);
  }
}

void forget_targets(state& s) {
  for (auto& [key, target] : *s.mutable_targets()) {
    target.set_state("Unknown");
    target.clear_message();
  }
  // Also where only the row knows a state.
  for (const auto& [key, a] : s.attachments()) {
    if (a.target_state().empty() || a.target_state() == "Unknown") continue;
    for (const auto& rule : a.rules()) {
      auto& target = (*s.mutable_targets())[target_key(key, rule.index())];
      target.set_tunnel_uid(a.tunnel_uid());
      target.set_tunnel_generation(a.tunnel_generation());
      target.set_rule(rule.index());
      target.set_state("Unknown");
    }
  }
  s.set_targets_changed(true);
}

void drop_targets(state& s, const std::string& key, const v1::AttachmentRow& of, plan* p) {
  for (const auto& rule : of.rules()) {
    const auto at = s.mutable_targets()->find(target_key(key, rule.index()));
    if (at == s.mutable_targets()->end()) continue;
    if (p != nullptr) p->before.targets.insert({at->first, at->second});
    s.mutable_targets()->erase(at);
  }
}

void hear_step_answered(state& s, const busv1::CommandReply& r) {
  if (s.set_command_id() == 0 || r.command_id() != s.set_command_id()) return;
  // It answers the last step, so nothing it said before counts; holding another set, it could not follow.
  s.set_held_generation(r.attached_generation());
  s.set_lower_seen(false);
  if (r.attached_generation() != s.set_told_generation()) s.set_whole_set_wanted(true);
}

void hear_attach(state& s, const v1::AttachTunnel& a) {
  if (!is_sound(attachment_of(a))) return;  // no tunnel of ours asks for it
  for (auto& w : *s.mutable_wishes())
    if (w.has_attach() && w.attach().tunnel_uid() == a.tunnel_uid() &&
        w.attach().tunnel_generation() == a.tunnel_generation()) {
      *w.mutable_attach() = a;
      return;
    }
  if (s.wishes_size() >= limits::attachment_wishes_max) return;  // it asks again
  *s.add_wishes()->mutable_attach() = a;
}

void hear_detach(state& s, const v1::DetachTunnel& d) {
  // What is to go need not be stored first.
  drop_if(*s.mutable_wishes(), [&](const auto& w) {
    if (w.has_detach())
      return w.detach().tunnel_uid() == d.tunnel_uid() && w.detach().below_generation() == d.below_generation();
    return w.attach().tunnel_uid() == d.tunnel_uid() &&
           (d.below_generation() == 0 || w.attach().tunnel_generation() < d.below_generation());
  });
  if (s.wishes_size() >= limits::attachment_wishes_max) return;
  *s.add_wishes()->mutable_detach() = d;
}

void plan_wishes(const state& s, state& after, plan& p) {
  v1::SetChange change;
  change.set_from_generation(s.row().attachment_generation());
  change.set_generation(next_generation(s));
  int done = 0;
  for (const auto& w : s.wishes()) {
    if (done >= limits::attachment_batch) break;
    if (w.has_attach()) {
      if (change.detached_size() > 0) break;
      const auto& a = w.attach();
      const auto key = attachment_key(a.tunnel_uid(), a.tunnel_generation());
      owe_state(after, a.tunnel(), a.tunnel_uid(), a.tunnel_generation());
      ++done;
      const auto it = after.attachments().find(key);
      const bool fresh = it == after.attachments().end();
      v1::AttachmentRow row;
      if (!fresh) row = it->second;
      row.set_partition(s.partition());
      row.set_project(s.project());
      row.set_connector(s.name());
      row.set_tunnel_uid(a.tunnel_uid());
      row.set_tunnel_generation(a.tunnel_generation());
      row.set_tunnel(a.tunnel());
      *row.mutable_rules() = a.rules();
      if (!fresh && same(row, it->second) && row.attachment_generation() != never_attached) continue;
      row.set_attachment_generation(change.generation());
      row.set_target_state("Unknown");
      row.clear_target_message();
      *change.add_attached() = attachment_of(row);
      p.before.attachments.emplace(key, fresh ? std::nullopt : std::optional{it->second});
      p.children[key] = fresh ? write_of(row_write::op::insert, row, 0)
                              : write_of(row_write::op::update, row, it->second.version());
      if (!fresh) drop_targets(after, key, it->second, &p);
      (*after.mutable_attachments())[key] = std::move(row);
    } else {
      const auto& d = w.detach();
      std::vector<const v1::AttachmentRow*> going;
      for (const auto& [key, a] : after.attachments())
        if (a.tunnel_uid() == d.tunnel_uid() &&
            (d.below_generation() == 0 || a.tunnel_generation() < d.below_generation()))
          going.push_back(&a);
      std::sort(going.begin(), going.end(),
                [](const auto* a, const auto* b) { return a->tunnel_generation() < b->tunnel_generation(); });
      if (!going.empty() && change.attached_size() > 0) break;
      ++done;
      drop_if(*after.mutable_detaching(), [&](const auto& each) {
        return each.tunnel_uid() == d.tunnel_uid() && each.below_generation() == d.below_generation();
      });
      auto* waiting = after.add_detaching();
      waiting->set_tunnel(d.tunnel());
      waiting->set_tunnel_uid(d.tunnel_uid());
      waiting->set_below_generation(d.below_generation());
      const bool goes_already = std::any_of(change.detached().begin(), change.detached().end(), [&](const auto& each) {
        return each.tunnel_uid() == d.tunnel_uid() &&
               (d.below_generation() == 0 || each.tunnel_generation() < d.below_generation());
      });
      waiting->set_generation(going.empty() && !goes_already ? s.row().attachment_generation() : change.generation());
      for (const auto* a : going) {
        const auto key = attachment_key(a->tunnel_uid(), a->tunnel_generation());
        auto* gone = change.add_detached();
        gone->set_tunnel_uid(a->tunnel_uid());
        gone->set_tunnel_generation(a->tunnel_generation());
        p.children[key] = write_of(row_write::op::erase, *a, a->version());
        p.before.attachments.emplace(key, *a);
        drop_targets(after, key, *a, &p);
        after.mutable_attachments()->erase(key);
      }
    }
  }
  after.mutable_wishes()->DeleteSubrange(0, done);
  // What a rival wrote is held by no agent and was asked for by no tunnel: it goes, and who wants it asks again.
  std::vector<std::string> of_rivals;
  for (const auto& [key, a] : after.attachments())
    if (a.attachment_generation() == never_attached) of_rivals.push_back(key);
  std::sort(of_rivals.begin(), of_rivals.end());  // the state's map has no order, a replay needs one
  bool more_of_rivals = false;
  for (const auto& key : of_rivals) {
    if (p.children.size() >= std::size_t{2 * limits::attachment_batch}) {
      more_of_rivals = true;
      break;
    }
    const auto a = after.attachments().at(key);
    p.children[key] = write_of(row_write::op::erase, a, a.version());
    p.before.attachments.emplace(key, a);
    drop_targets(after, key, a, &p);
    after.mutable_attachments()->erase(key);
    owe_state(after, a.tunnel(), a.tunnel_uid(), a.tunnel_generation());
  }
  const bool changes = change.attached_size() > 0 || change.detached_size() > 0;
  if (changes || s.set_changed_by_rival()) p.row.set_attachment_generation(change.generation());
  if (s.set_changed_by_rival()) {  // no step leads there: the agent gets the whole set
    after.clear_changes();
    after.set_set_changed_by_rival(more_of_rivals);
  } else if (changes) {
    if (after.changes_size() >= limits::set_changes_max) after.mutable_changes()->erase(after.changes().begin());
    *after.add_changes() = std::move(change);
  }
}

void plan_targets(state& after, plan& p) {
  after.set_targets_changed(false);
  std::unordered_map<std::string_view, const busv1::TargetState*> worst;
  for (const auto& [key, target] : after.targets()) {
    const auto attachment = std::string_view{key}.substr(0, key.rfind('/'));  // the last part is the rule
    auto [it, fresh] = worst.try_emplace(attachment, &target);
    if (fresh) continue;
    const bool other = it->second->state() == target.state()
                           ? target.rule() < it->second->rule()
                           : protocol::worse_target_state(it->second->state(), target.state()) == target.state();
    if (other) it->second = &target;
  }
  for (const auto& [of, target] : worst) {
    const std::string key{of};
    auto it = after.mutable_attachments()->find(key);
    if (it == after.mutable_attachments()->end()) continue;
    auto& row = it->second;
    if (row.target_state() == target->state() && row.target_message() == target->message()) continue;
    auto planned = p.children.find(key);
    if (planned != p.children.end()) continue;  // its rules are new: this was said of the former ones
    p.before.attachments.emplace(key, row);
    row.set_target_state(target->state());
    row.set_target_message(target->message());
    p.children[key] = write_of(row_write::op::update, row, row.version());
  }
}

void tell_set_with_hello(state& s, moment now) {
  s.set_set_told_generation(s.row().attachment_generation());
  s.set_set_told_ms(std::max<std::int64_t>(now.steady_ms, 1));
  s.set_set_command_id(0);
  s.set_whole_set_wanted(false);
}

void owe_set(transition& t, moment now) {
  state& s = t.next;
  const auto wanted = s.row().attachment_generation();
  if (!s.row().online() || s.held_generation() == wanted) {
    if (s.held_generation() == wanted) {
      s.set_whole_set_wanted(false);
      // No step leads from a set that it no longer has; and their memory goes with them.
      google::protobuf::RepeatedPtrField<v1::SetChange>{}.Swap(s.mutable_changes());
    }
    return;
  }
  const auto repeat = s.set_told_ms() + ms(limits::repeat_after);
  const bool told = s.set_told_ms() != 0 && now.steady_ms < repeat;
  const bool all_said = told && s.set_told_generation() == wanted;
  // An agent that cannot follow gets the whole set at once, but no faster than it could answer.
  const auto whole_due = s.set_told_ms() == 0 ? now.steady_ms : s.set_told_ms() + ms(limits::dial_again_after);
  const bool whole = s.whole_set_wanted() && now.steady_ms >= whole_due;
  if (!whole && s.whole_set_wanted()) want_wake(t, whole_due);
  if (all_said && !whole) return want_wake(t, repeat);

  const auto from = told ? s.set_told_generation() : s.held_generation();
  const auto& changes = s.changes();
  const auto step = std::find_if(changes.begin(), changes.end(), [&](const auto& c) { return c.from_generation() == from; });
  if (!whole && !s.whole_set_wanted() && step != changes.end()) {
    const std::vector<v1::SetChange> steps{step, changes.end()};
    for (const auto& each : steps) say_step(t, each);
  } else {
    auto command = next_command(s);
    fill_set(*command.mutable_set(), s);
    s.set_set_command_id(command.command_id());
    t.announce.push_back(agent_command{std::move(command), true});
    s.set_whole_set_wanted(false);
  }
  s.set_set_told_generation(wanted);
  s.set_set_told_ms(std::max<std::int64_t>(now.steady_ms, 1));
  want_wake(t, now.steady_ms + ms(limits::repeat_after));
}

void owe_tunnels(transition& t) {
  state& s = t.next;
  for (auto& o : *s.mutable_owed()) {
    v1::AttachmentState a = o;
    if (!exists(s)) {
      a.set_unknown(true);
    } else {
      auto it = s.attachments().find(attachment_key(o.tunnel_uid(), o.tunnel_generation()));
      a.set_stored(it != s.attachments().end());
      a.set_attached(a.stored() && attached(it->second, s.row()));
      a.set_online(s.row().online());
      a.set_revision(s.row().route_version());
    }
    t.announce.push_back(std::move(a));
  }
  s.clear_owed();
  for (int i = 0; i < s.detaching_size();) {
    const auto& d = s.detaching(i);
    if (exists(s) && s.row().online() && s.row().attached_generation() < d.generation()) {
      ++i;
      continue;
    }
    v1::AttachmentState a;
    a.set_connector(s.name());
    a.set_tunnel(d.tunnel());
    a.set_tunnel_uid(d.tunnel_uid());
    a.set_tunnel_generation(d.below_generation() == 0 ? 0 : d.below_generation() - 1);
    a.set_gone(true);
    a.set_unknown(!exists(s));
    a.set_online(exists(s) && s.row().online());
    a.set_revision(exists(s) ? s.row().route_version() : 0);
    t.announce.push_back(std::move(a));
    s.mutable_detaching()->erase(s.detaching().begin() + i);
  }
}

void answer_wishes(state& s) {
  for (const auto& w : s.wishes())
    if (w.has_attach()) {
      owe_state(s, w.attach().tunnel(), w.attach().tunnel_uid(), w.attach().tunnel_generation());
    } else {
      auto* d = s.add_detaching();
      d->set_tunnel(w.detach().tunnel());
      d->set_tunnel_uid(w.detach().tunnel_uid());
      d->set_below_generation(w.detach().below_generation());
    }
  s.clear_wishes();
}

}  // namespace warren::connector
