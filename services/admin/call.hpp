// services/admin/call.hpp -- what the services of this room share: one call's life, writes, reads. Internal
// to the room.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "actors/core/protocol.hpp"
#include "services/admin/server.hpp"
#include "services/admin/status.hpp"
#include "services/admin/validate.hpp"
#include "services/replica/query.hpp"

namespace warren::admin {

inline std::int64_t steady_ms() {
  return std::chrono::duration_cast<millis>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline std::int64_t wall_ms() {
  return std::chrono::duration_cast<millis>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// A watch that can be told to end.
class endable {
public:
  virtual ~endable() = default;
  virtual void end(grpc::Status why) = 0;
};

/// What all calls of one server see. Thread-safe; outlives every call.
struct context {
  server_config config;
  replica::view& view;
  hand_overs news;

  std::atomic<std::size_t> calls{0};
  std::mutex watches_mutex;
  std::set<std::shared_ptr<endable>> watches;
  std::condition_variable watches_gone;
  bool ending = false;  // under watches_mutex

  partition_id partition_of(std::string_view project) const {
    return warren::partition_of(project, config.partitions);
  }
};

/// One unary call: counted, limited, and finished once.
class call {
public:
  call(context& shared, grpc::CallbackServerContext& of)
      : shared_{shared}, of_{of}, reactor_{of.DefaultReactor()} {
    admitted_ = shared_.calls.fetch_add(1) < shared_.config.calls_max;
    deadline_ = of_.deadline();
    const auto now = std::chrono::system_clock::now();
    if (deadline_ > now + limits::request_timeout_max) {
      const bool none = deadline_ > now + std::chrono::hours{24};
      deadline_ = now + (none ? millis{limits::request_timeout_default} : millis{limits::request_timeout_max});
    } else {
      // What we have to say about the deadline has to arrive before it.
      deadline_ -= std::min<std::chrono::system_clock::duration>(50ms, (deadline_ - now) / 10);
    }
  }

  grpc::ServerUnaryReactor* reactor() const { return reactor_; }
  /// False: too much is under way; already finished.
  bool admitted() {
    if (!admitted_) {
      error_details details;
      details.retry_after = 100ms;
      finish(error_status(errc::overloaded, "this instance has too many requests under way", details));
    }
    return admitted_;
  }
  /// A change: what becomes of it is worth a line, with the ids that find it elsewhere.
  void about(std::string method, std::string project, std::string request_id) {
    method_ = std::move(method);
    project_ = std::move(project);
    request_id_ = std::move(request_id);
  }
  void finish(const grpc::Status& status) {
    if (!request_id_.empty()) log(status);
    if (auto* counts = shared_.config.counts; counts != nullptr) {
      counts->add("warren_admin_requests_total", code_name(status.error_code()));
      counts->observe("warren_admin_request_seconds",
                      std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count());
    }
    shared_.calls.fetch_sub(1);
    reactor_->Finish(status);
  }

  context& shared() const { return shared_; }
  grpc::CallbackServerContext& of() const { return of_; }
  std::chrono::system_clock::time_point deadline() const { return deadline_; }
  std::int64_t deadline_steady_ms() const {
    return steady_ms() +
           std::chrono::duration_cast<millis>(deadline_ - std::chrono::system_clock::now()).count();
  }

  static const char* code_name(grpc::StatusCode code);

private:
  void log(const grpc::Status& status) const;

  context& shared_;
  grpc::CallbackServerContext& of_;
  grpc::ServerUnaryReactor* const reactor_;
  std::string method_, project_, request_id_;
  std::chrono::system_clock::time_point deadline_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  bool admitted_ = false;
};

/// Who calls: "local" on this machine, or as the metadata `warren-principal` there says.
std::string principal_of(const grpc::CallbackServerContext& of);

/// Every read says how old what it shows is (`warren-data-age-ms`), and what is away when that is more than usual
/// (`warren-data-age-reason`).
void tell_age(context& shared, grpc::CallbackServerContext& of, std::int64_t age_ms);

/// Whether this instance knows that it does not reach NATS.
inline bool is_deaf(const context& shared) { return shared.config.bus_away && !shared.config.bus_away().empty(); }

/// Not OK: this instance's copy of that partition (-1: any) is not complete yet.
grpc::Status warm_enough(const replica::tables& tables, partition_id partition);

/// What refuses a change before its owner is asked; nothing: go on.
using judgement = std::optional<grpc::Status>;

/// Whether what the owner answered still is what there is, status apart. If not, its answer is what the change made of
/// it: of a request that is repeated, the first one.
template <class Row> bool of_same_spec(const Row& answered, const Row& known) {
  return answered.uid() == known.uid() && answered.generation() == known.generation() &&
         answered.has_delete_time() == known.has_delete_time();
}

/// The whole way of a change: check, judge, send to the owner, wait for the replica, render. `render(reply)`
/// fills the response, and may say with a status that it cannot.
template <class Request, class Render>
grpc::ServerUnaryReactor* change(context& shared, grpc::CallbackServerContext& of, const Request& request,
                                 Render render, const std::function<judgement()>& judge = {}) {
  auto c = std::make_shared<call>(shared, of);
  if (!c->admitted()) return c->reactor();
  auto checked = check(request);
  if (!checked.violations.empty()) {
    c->finish(invalid_status(std::move(checked.violations)));
    return c->reactor();
  }
  if (const auto no = judge ? judge() : std::nullopt) {
    c->finish(*no);
    return c->reactor();
  }
  auto& caller = *checked.command.mutable_caller();
  caller.set_principal(principal_of(of));
  caller.set_remote(of.peer());
  caller.set_digest(digest_of(checked.command));
  if (caller.request_id().empty()) caller.set_request_id(fresh_request_id());
  const auto partition = shared.partition_of(checked.command.project());
  const auto request_id = caller.request_id();
  c->about(caller.method(), checked.command.project(), request_id);
  forward(
      {shared.config.send, shared.news, shared.config.counts, shared.config.database_reached}, partition, std::move(checked.command), c->deadline(),
      [&of] { return of.IsCancelled(); },
      [c, partition, request_id, names = checked.names, render](forwarded f) {
        if (!f.reply.code().empty()) return c->finish(reply_status(f.reply, names, request_id));
        const auto revision = f.reply.revision();
        c->shared().view.when_seen(
            partition, revision, c->deadline_steady_ms(),
            [c, request_id, render, reply = std::move(f.reply)](bool seen) {
              if (!seen) {
                error_details details;
                details.request_id = request_id;
                return c->finish(error_status(
                    errc::unavailable, "the change is stored, but this instance's lists do not show it yet", details));
              }
              if constexpr (std::is_void_v<decltype(render(reply))>) {
                render(reply);
                c->finish(grpc::Status::OK);
              } else {
                c->finish(render(reply));
              }
            });
      });
  return c->reactor();
}

/// A read from this instance's copy. `check(violations)` judges the request and returns the partition that it
/// is about (-1: all); `read(tables)` fills the response and returns the status.
template <class Check, class Read>
grpc::ServerUnaryReactor* read(context& shared, grpc::CallbackServerContext& of, Check check, Read read_tables) {
  call c{shared, of};
  if (!c.admitted()) return c.reactor();
  std::vector<violation> violations;
  const partition_id partition = check(violations);
  if (!violations.empty()) {
    c.finish(invalid_status(std::move(violations)));
    return c.reactor();
  }
  std::int64_t age_ms = 0;
  const auto status = shared.view.read([&](const replica::tables& tables) {
    auto warm = warm_enough(tables, partition);
    age_ms = partition < 0 ? tables.age_ms(steady_ms()) : tables.age_ms(partition, steady_ms());
    return warm.ok() ? read_tables(tables) : warm;
  });
  if (status.ok()) tell_age(shared, of, age_ms);
  c.finish(status);
  return c.reactor();
}

/// How much of a page an answer still takes.
class page_room {
public:
  /// False: `item` begins the next page. The first one always fits.
  bool takes(const google::protobuf::Message& item) {
    const auto bytes = item.ByteSizeLong() + frame_bytes;
    if (used_ > 0 && used_ + bytes > limits::page_bytes_max) {
      full_ = true;
      return false;
    }
    used_ += bytes;
    return true;
  }
  /// It ends here, whatever else there may be.
  bool full() const { return full_ || used_ > limits::page_bytes_max; }

private:
  static constexpr std::size_t frame_bytes = 6;  // of an item in a message: tag, and a length below 2^35
  std::size_t used_ = 0;
  bool full_ = false;
};

/// A page of the replica's list into the answer, or as much of it as that takes. `to` is the answer's repeated field;
/// `show(item)` is what it shows of one.
template <class Response, class Resource, class Page, class Show>
void put_page(Response& a, google::protobuf::RepeatedPtrField<Resource>& to, const Page& page, Show show) {
  page_room room;
  for (std::size_t i = 0; i < page.items.size(); ++i) {
    Resource shown = show(page.items[i]);
    if (!room.takes(shown)) return a.set_next_page_token(page.token_after(i - 1));
    *to.Add() = std::move(shown);
  }
  a.set_next_page_token(page.next_page_token);
}

/// The part that all List requests share.
template <class Request>
replica::list_request list_request_of(const Request& q, std::string project, std::vector<violation>& out) {
  check_text(q.filter(), filter_bytes_max, "filter", out);
  check_text(q.order_by(), filter_bytes_max, "order_by", out);
  check_text(q.page_token(), token_bytes_max, "page_token", out);
  return {std::move(project), q.filter(), q.order_by(), page_size(q.page_size(), out), q.page_token()};
}

inline grpc::Status not_found(const std::string& name) {
  return error_status(errc::not_found, "there is no " + name);
}

}  // namespace warren::admin
