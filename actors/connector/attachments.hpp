// actors/connector/attachments.hpp -- what the agent shall hold, what it holds, and how it gets there. Pure.
#pragma once

#include "actors/connector/facts.hpp"

namespace warren::connector {

// ---- what is known ----

/// The agent has acknowledged a set with this attachment.
bool attached(const v1::AttachmentRow& a, const v1::ConnectorRow& row);
/// Whether an agent can be told of it. A set is one message: what is not sound must not keep its neighbours from being
/// held.
bool sound(const v1::AttachmentRow& a);
/// The whole set, as the rows have it.
void fill_set(busv1::AttachmentSet& set, const state& s);

// ---- what happens ----

void hear_attach(state& s, const v1::AttachTunnel& a);
void hear_detach(state& s, const v1::DetachTunnel& d);
/// The agent says which set it holds. A lower number than before is believed when it comes twice: replies
/// and heartbeats may overtake each other by one.
void hear_held(state& s, std::int64_t generation);
/// The agent's answer to the last step of its set, if that is what it answers.
void hear_step_answered(state& s, const busv1::CommandReply& r);
void hear_targets(state& s, const google::protobuf::RepeatedPtrField<busv1::TargetState>& targets);
/// All targets are unknown until a word about them.
void forget_targets(state& s);
/// Nothing is known any more of the targets of an attachment that goes, or gets other rules. `p` keeps what was known.
void drop_targets(state& s, const std::string& key, const v1::AttachmentRow& of, plan* p = nullptr);
/// The tunnel is to be told how far this attachment is.
void owe_state(state& s, const std::string& tunnel, const std::string& uid, std::int64_t generation);
/// Without a connector nothing can be attached: whoever asked is told so.
void answer_wishes(state& s);

// ---- what is to be stored ----

/// Takes as many wishes of one kind as fit into one step of the set; those that the rows fulfil already are
/// done. Works on `after`, which has the attachments; what is to be stored goes into `p`.
void plan_wishes(const state& s, state& after, plan& p);
/// The state of each target as its rules' worst, into the attachments that say something else.
void plan_targets(state& after, plan& p);

// ---- what is owed ----

/// The answer to a hello has the whole set in it.
void tell_set_with_hello(state& s, moment now);
/// The online agent gets from what it holds to the row's set: step by step when the steps are known.
void owe_set(transition& t, moment now);
void owe_tunnels(transition& t);

}  // namespace warren::connector
