// services/warrenctl/session.hpp -- one run of the command line: what was given, whom it asks, how it prints.
#pragma once

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include "services/warrenctl/command.hpp"
#include "services/warrenctl/output.hpp"
#include "services/warrenctl/tries.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

namespace warren::ctl {

using tunnels = api::TunnelService;
using connectors = api::ConnectorService;
using gateways = api::GatewayService;
using classes = api::ClassService;
using operations = api::OperationsService;

// ---- how a command ends early ----

/// The server, or nobody, said no.
struct refused {
  grpc::Status status;
  attempt made = {};
};
struct usage { std::string message; };        // the command line makes no sense
struct too_late { std::string message, hint; };  // what was waited for has not come
struct said_no {};                            // it has been told; the exit code says it too

// ---- what was given ----

/// "30s", "500ms", "5m", "2h"; a number alone is seconds.
std::optional<milliseconds> parse_span(const std::string& text);
/// Errors: usage, naming the option.
void put(google::protobuf::Duration& to, const std::string& text, const std::string& option);
/// "-" is standard input. Errors: usage.
std::string read_file(const std::string& path);

template <class Message>
Message message_of(const std::string& path) {
  Message m;
  const auto status = google::protobuf::util::JsonStringToMessage(read_file(path), &m);
  if (!status.ok()) throw usage{fmt::format("{}: {}", path, std::string{status.message()})};
  return m;
}

/// What every command may be given, and what it says of its resource.
struct options {
  std::string server = "127.0.0.1:7443", project = "default", output = "table", filter, sort_by, timeout, request_id,
              etag;
  bool watch = false;
  // of the verbs
  std::string name, file, connector, target, path_prefix = "/", gateway_class, connector_class, lease, public_key,
      key_file, instance, bundle, wait_for = "ready", dial_mode, idle_timeout, shell;
  std::vector<std::string> hostnames, rules, networks, listen, gateway_addresses;
  bool disabled = false, enabled = false, insecure = false, all_projects = false, wait = false;
  int limit = 100;
};

/// " -p PROJECT" for a command that is about the same project, in whatever shell; empty: it is the default one.
std::string project_words(const options& o);

std::string fresh_request_id();

class session {
public:
  session(const options& given, surroundings& where);  ///< Errors: usage.

  /// Another one is asked from now on, if there is another one.
  void ask_next() { channel = servers[++asked % servers.size()]; }
  /// Of --server, when so many tries were made.
  std::vector<std::string> not_asked(std::size_t tries) const;

  template <class Service, class Request, class Response>
  Response call(grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
    auto asks = request;
    if constexpr (requires { asks.set_request_id(""); })
      if (asks.request_id().empty()) asks.set_request_id(fresh_request_id());
    tries all{servers.size(), system_clock::now() + timeout};
    // Whoever is asked may die, or be silent, under the call: the next one is asked the same, and the request id, which
    // is the same, makes it one change.
    for (;;) {
      grpc::ClientContext context;
      context.set_deadline(all.next(system_clock::now()));
      Response response;
      auto stub = Service::NewStub(channel);
      const auto status = (stub.get()->*method)(&context, asks, &response);
      if (status.ok()) {
        say_age(context);
        return response;
      }
      const auto again = all.after(status, system_clock::now());
      if (!again) {
        attempt made{.not_asked = not_asked(all.made())};
        if constexpr (requires { asks.set_request_id(""); }) made.request_id = asks.request_id();
        throw refused{all.told(), std::move(made)};
      }
      if (again->elsewhere) ask_next();
      std::this_thread::sleep_for(again->pause);
    }
  }

  /// What is shown may be old: said once, beside it.
  void say_age(const grpc::ClientContext& context);

  template <class Resource>
  void show(const Resource& r) {
    switch (out_format) {
      case format::json: around.out << to_json(r, false); break;
      case format::yaml: around.out << to_yaml(r); break;
      case format::name: around.out << r.name() << '\n'; break;
      case format::table:
        print_table(around.out, titles<Resource>(), {line_of(r)}, around.terminal);
    }
  }

  /// Ages are for people who look now; what is kept says when. A name is one of a project.
  template <class Resource> cells titles() const {
    auto all = headers(static_cast<const Resource*>(nullptr));
    if (!around.terminal) std::replace(all.begin(), all.end(), std::string{"AGE"}, std::string{"CREATED"});
    if (shows_project<Resource>()) all.insert(all.begin(), "PROJECT");
    return all;
  }
  template <class Resource> cells line_of(const Resource& r) const {
    auto all = row(r, around.terminal);
    if constexpr (in_project<Resource>)
      if (shows_project<Resource>()) all.insert(all.begin(), project_of(r.name()));
    return all;
  }

  /// All pages as one list, of `most` at the most (0: however many). `items(response)` is the mutable repeated field.
  template <class Service, class Request, class Response, class Items>
  void list(grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*), Request request,
            Items items, int most = 0) {
    Response all;
    for (;;) {
      auto page = call<Service>(method, request);
      items(all)->MergeFrom(*items(page));
      if (page.next_page_token().empty() || (most > 0 && items(all)->size() >= most)) break;
      request.set_page_token(page.next_page_token());
    }
    if (most > 0 && items(all)->size() > most) items(all)->DeleteSubrange(most, items(all)->size() - most);
    using Resource = std::remove_cvref_t<decltype(*items(all)->begin())>;
    switch (out_format) {
      case format::json: return show_all(all, *items(all), [](const Response& r) { return to_json(r, false); });
      case format::yaml: return show_all(all, *items(all), [](const Response& r) { return to_yaml(r); });
      case format::name:
        for (const auto& r : *items(all)) {
          if constexpr (requires { r.name(); }) around.out << r.name() << '\n';
          else around.out << r.id() << '\n';
        }
        return;
      case format::table: break;
    }
    std::vector<cells> rows;
    for (const auto& r : *items(all)) rows.push_back(line_of(r));
    print_table(around.out, titles<Resource>(), rows, around.terminal);
  }

  /// One that cannot be shown is named, and does not hide the others.
  template <class Response, class Items, class Text> void show_all(Response& all, Items& items, Text text) {
    try {
      around.out << text(all);
      return;
    } catch (const unprintable&) {
    }
    int shown = 0;
    for (int i = 0; i < items.size(); ++i) {
      try {
        (void)to_json(items.Get(i), true);
        items.SwapElements(shown++, i);
      } catch (const unprintable& u) {
        around.err << "warrenctl: INTERNAL: " << u.what() << '\n';
      }
    }
    items.DeleteSubrange(shown, items.size() - shown);
    around.out << text(all);
    throw said_no{};
  }

  /// Follows until `seen` returns true; goes on with its token when the server goes away.
  /// `until`: when to give up; nothing: never.
  template <class Service, class Request, class Response, class Seen>
  void follow(std::unique_ptr<grpc::ClientReader<Response>> (Service::Stub::*method)(grpc::ClientContext*, const Request&),
              Request request, std::optional<system_clock::time_point> until, Seen seen) {
    for (std::size_t attempts = 1;; ++attempts) {
      auto stub = Service::NewStub(channel);
      grpc::ClientContext context;
      context.set_wait_for_ready(!request.resume_token().empty() && servers.size() == 1);
      if (until) context.set_deadline(*until);
      auto reader = (stub.get()->*method)(&context, request);
      Response response;
      const auto from = request.resume_token();
      while (reader->Read(&response)) {
        if (!response.resume_token().empty()) request.set_resume_token(response.resume_token());
        if (seen(response)) {
          context.TryCancel();
          return;
        }
      }
      const auto status = reader->Finish();
      if (status.error_code() == grpc::StatusCode::OUT_OF_RANGE && !request.resume_token().empty()) {
        request.clear_resume_token();
        continue;
      }
      const bool moved = request.resume_token() != from;
      const bool too_slow = status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && moved;
      // CANCELLED, and not by us: the server went down with the call.
      const bool gone = status.error_code() == grpc::StatusCode::UNAVAILABLE || status.error_code() == grpc::StatusCode::CANCELLED;
      const bool several = servers.size() > 1;
      const bool begun = !request.resume_token().empty();
      // Before it has begun, the others are asked: as long as there is time, or all of them twice.
      const bool worth_it = several ? until.has_value() || attempts < 2 * servers.size() : unanswered(status) && attempts < 2;
      if ((!gone && !too_slow) || (!begun && !worth_it)) throw refused{status};
      if (gone) ask_next();
      if (!moved) std::this_thread::sleep_for(milliseconds{100});  // a server on its way out refuses at once
    }
  }

  /// Prints each change as it comes, for ever (or for --timeout).
  template <class Service, class Request, class Response, class Get>
  void watch(std::unique_ptr<grpc::ClientReader<Response>> (Service::Stub::*method)(grpc::ClientContext*, const Request&),
             const Request& request, const std::string& only, Get get) {
    using Resource = std::remove_cvref_t<decltype(get(std::declval<const Response&>()))>;
    std::optional<system_clock::time_point> until;
    if (!o.timeout.empty()) until = system_clock::now() + timeout;
    bool head = false, seen = false;
    follow<Service>(method, request, until, [&](const Response& r) {
      const bool about = only.empty() || get(r).name() == only || r.deleted() == only || r.has_caught_up();
      if (!about) return false;
      if (!r.has_caught_up()) seen = true;
      else if (!only.empty() && !std::exchange(seen, true)) around.err << fmt::format("(there is no {}: waiting for it)\n", only) << std::flush;
      if (out_format == format::json) {
        around.out << to_json(r, true);
      } else if (out_format == format::yaml) {
        around.out << "---\n" << to_yaml(r);
      } else if (!r.deleted().empty()) {
        around.out << (out_format == format::name ? r.deleted() : r.deleted() + " deleted") << '\n';
      } else if (!r.has_caught_up()) {
        if (out_format == format::name) {
          around.out << get(r).name() << '\n';
        } else {
          const auto cols = line_of(get(r));
          if (!std::exchange(head, true))
            around.out << fmt::format("{}\n", fmt::join(titles<Resource>(), "\t"));
          around.out << fmt::format("{}\n", fmt::join(cols, "\t"));
        }
      }
      around.out.flush();
      return false;
    });
  }

  /// For what answers with no resource.
  void refuse_names(const char* verb) const {
    if (out_format == format::name) throw usage{fmt::format("{} has no name to print: -o table, json or yaml", verb)};
  }

  template <class Resource>
  static constexpr bool in_project = std::is_same_v<Resource, api::Tunnel> || std::is_same_v<Resource, api::Connector>;
  template <class Resource> bool shows_project() const { return in_project<Resource> && o.all_projects; }

  std::string parent() const { return o.all_projects ? "projects/-" : "projects/" + o.project; }
  /// A short name in the project, or a full one as it is.
  std::string full(const std::string& collection) const {
    if (o.name.find('/') != std::string::npos) return o.name;
    return collection == "tunnels" || collection == "connectors" ? fmt::format("{}/{}/{}", parent(), collection, o.name)
                                                                  : fmt::format("{}/{}", collection, o.name);
  }
  template <class Request>
  Request listing() const {
    Request q;
    if constexpr (requires { q.set_parent(""); }) q.set_parent(parent());
    if constexpr (requires { q.set_filter(""); }) {
      q.set_filter(o.filter);
      q.set_order_by(o.sort_by);
    }
    q.set_page_size(1000);
    return q;
  }
  template <class Request>
  Request named(const std::string& collection) const {
    Request q;
    q.set_name(full(collection));
    if constexpr (requires { q.set_etag(""); }) q.set_etag(o.etag);
    if constexpr (requires { q.set_request_id(""); }) q.set_request_id(o.request_id);
    return q;
  }

  const options& o;
  surroundings& around;
  format out_format = format::table;
  milliseconds timeout{10'000};
  std::vector<std::string> addresses;                   // of --server
  std::vector<std::shared_ptr<grpc::Channel>> servers;  // to each of them
  std::shared_ptr<grpc::Channel> channel;               // to the one that is asked
  std::size_t asked = 0;
  bool age_said = false;
};

/// All of a list, page by page.
template <class Service, class Request, class Response, class Items>
auto all_of(session& s, grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*), Request q, Items items) {
  std::vector<std::remove_cvref_t<decltype(*items(std::declval<const Response&>()).begin())>> all;
  q.set_page_size(1000);
  for (;;) {
    const auto page = s.call<Service>(method, q);
    for (const auto& each : items(page)) all.push_back(each);
    if (page.next_page_token().empty()) return all;
    q.set_page_token(page.next_page_token());
  }
}

/// The answer of `why`: a sentence, and each link with what it needs.
template <class Explanation> void show_chain(session& s, const Explanation& a) {
  if (s.out_format == format::json) return void(s.around.out << to_json(a, false));
  if (s.out_format == format::yaml) return void(s.around.out << to_yaml(a));
  s.around.out << a.name() << ": " << a.summary() << '\n';
  for (const auto& link : a.links()) {
    const auto* tint = !s.around.terminal ? "" : link.ok() ? "\033[32m" : "\033[31m";
    s.around.out << "  " << tint << fmt::format("{:8}", link.state()) << (s.around.terminal ? "\033[0m" : "")
                 << link.what();
    if (!link.message().empty()) s.around.out << ": " << link.message();
    if (link.has_since()) s.around.out << (s.around.terminal ? " (for " : " (since ") << age(link.since(), s.around.terminal) << ")";
    s.around.out << '\n';
    if (!link.hint().empty()) s.around.out << "          " << link.hint() << '\n';
  }
}

}  // namespace warren::ctl
