// services/store/actor.cpp -- requests in, answers out. Decides nothing.
#include "services/store/actor.hpp"

#include <utility>

namespace warren {
namespace {

/// Answers a request from a thread that is not the actor's. A response promise's own deliver() would touch the
/// actor's execution unit, which belongs to a scheduler thread.
template <class Answer> auto answer_to(const caf::response_promise& promise, caf::strong_actor_ptr self) {
  return [source = promise.source(), id = promise.id(), self = std::move(self)](Answer answer) {
    if (source) source->enqueue(self, id.response_id(), caf::make_message(std::move(answer)), nullptr);
  };
}

template <class Answer, class Self> std::pair<caf::typed_response_promise<Answer>, std::function<void(Answer)>>
promise(Self* self) {
  auto typed = self->template make_response_promise<Answer>();
  caf::response_promise& plain = typed;
  return {typed, answer_to<Answer>(plain, caf::strong_actor_ptr{self->ctrl()})};
}

store_actor::behavior_type store_behavior(store_actor::pointer self, std::shared_ptr<store> s) {
  return {
      [self, s](save_request& r) {
        auto [typed, then] = promise<save_result>(self);
        s->save(std::move(r), std::move(then));
        return typed;
      },
      [self, s](load_entity& r) {
        auto [typed, then] = promise<loaded>(self);
        s->load(std::move(r), std::move(then));
        return typed;
      },
      [self, s](load_partition r) {
        auto [typed, then] = promise<loaded>(self);
        s->load(r, std::move(then));
        return typed;
      },
      [self, s](find_answer& r) {
        auto [typed, then] = promise<save_result>(self);
        s->find(std::move(r), std::move(then));
        return typed;
      },
      [self, s](load_naming& r) {
        auto [typed, then] = promise<loaded>(self);
        s->load(std::move(r), std::move(then));
        return typed;
      },
      [self, s](adopt_rivals r) {
        auto [typed, then] = promise<loaded>(self);
        s->adopt(r, std::move(then));
        return typed;
      },
      [self, s](fetch_changes r) {
        auto [typed, then] = promise<changes>(self);
        s->fetch(r, std::move(then));
        return typed;
      },
  };
}

lease_store_actor::behavior_type lease_store_behavior(lease_store_actor::pointer self, std::shared_ptr<lease_store> s) {
  return {
      [self, s](renew_lease r) {
        auto [typed, then] = promise<placement_view>(self);
        s->renew(r, std::move(then));
        return typed;
      },
      [self, s](take_partitions r) {
        auto [typed, then] = promise<placement_view>(self);
        s->take(std::move(r), std::move(then));
        return typed;
      },
      [self, s](release_partition r) {
        auto [typed, then] = promise<placement_view>(self);
        s->release(r, std::move(then));
        return typed;
      },
      [self, s](judge_instance r) {
        auto [typed, then] = promise<placement_view>(self);
        s->judge(r, std::move(then));
        return typed;
      },
  };
}

}  // namespace

store_actor spawn_store(caf::actor_system& system, std::shared_ptr<store> s) {
  return system.spawn(store_behavior, std::move(s));
}

lease_store_actor spawn_lease_store(caf::actor_system& system, std::shared_ptr<lease_store> s) {
  return system.spawn<caf::detached>(lease_store_behavior, std::move(s));  // renewals wait for no other actor
}

}  // namespace warren
