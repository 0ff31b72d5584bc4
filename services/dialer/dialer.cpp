// services/dialer/dialer.cpp -- knocks at agents' doors.
#include "services/dialer/dialer.hpp"

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"

namespace warren::dialer {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using outcome = dial_result::outcome;

constexpr std::size_t queue_max = 10'000;            // dials that wait for a place: beyond, unanswered
constexpr std::uint32_t response_header_bytes_max = 8 * 1024;
constexpr auto timeout_max = 10s;

std::string_view label_of(outcome what) {
  switch (what) {
    case outcome::answered: return "answered";
    case outcome::refused: return "refused";
    case outcome::unanswered: return "unanswered";
  }
  return "unanswered";
}

std::optional<tcp::endpoint> parse_endpoint(const std::string& address) {
  const auto canonical = protocol::canonical_address(address);
  if (!canonical) return std::nullopt;
  const auto colon = canonical->rfind(':');
  auto host = canonical->substr(0, colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  boost::system::error_code error;
  const auto ip = asio::ip::make_address(host, error);
  if (error) return std::nullopt;
  return tcp::endpoint{ip, static_cast<std::uint16_t>(std::stoul(canonical->substr(colon + 1)))};
}

/// One address of one dial. All on the io thread.
class knock : public std::enable_shared_from_this<knock> {
public:
  using done = std::function<void(outcome)>;
  knock(asio::io_context& io, done on_done) : stream_(io), on_done_(std::move(on_done)) {}

  void start(const tcp::endpoint& to, const std::string& endpoint_id) {
    request_.method(http::verb::options);
    request_.target("*");
    request_.version(11);
    request_.set(http::field::host, to.address().to_string());
    request_.set(http::field::connection, "close");
    request_.set("x-warren-endpoint-id", endpoint_id);
    parser_.header_limit(response_header_bytes_max);
    stream_.async_connect(to, [self = shared_from_this()](beast::error_code error) { self->connected(error); });
  }
  void cancel() {
    on_done_ = nullptr;
    beast::error_code ignored;
    stream_.socket().close(ignored);
  }

private:
  void connected(beast::error_code error) {
    if (error) return finish(error == asio::error::connection_refused ? outcome::refused : outcome::unanswered);
    http::async_write(stream_, request_, [self = shared_from_this()](beast::error_code failed, std::size_t) {
      if (failed) return self->finish(outcome::unanswered);
      http::async_read_header(self->stream_, self->buffer_, self->parser_,
                              [self](beast::error_code broken, std::size_t) { self->answered(broken); });
    });
  }
  void answered(beast::error_code error) {
    if (error) return finish(outcome::unanswered);
    finish(parser_.get().result() == http::status::no_content ? outcome::answered : outcome::refused);
  }
  void finish(outcome what) {
    beast::error_code ignored;
    stream_.socket().close(ignored);
    if (const auto call = std::exchange(on_done_, nullptr)) call(what);
  }

  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{response_header_bytes_max};
  http::request<http::empty_body> request_;
  http::response_parser<http::empty_body> parser_;
  done on_done_;
};

using answer = std::function<void(std::uint64_t token, outcome)>;

/// All addresses of one request, from its arrival to its answer.
struct dial {
  dial(asio::io_context& io, std::vector<tcp::endpoint> to_, bool malformed_, std::string endpoint_id_, std::uint64_t token_)
      : to(std::move(to_)), malformed(malformed_), endpoint_id(std::move(endpoint_id_)), token(token_), timer(io) {}
  std::vector<tcp::endpoint> to;
  bool malformed = false;  // an address that cannot be dialled has not refused anything
  std::string endpoint_id;
  std::uint64_t token = 0;
  asio::steady_timer timer;
  std::vector<std::shared_ptr<knock>> knocks;
  std::size_t open = 0;
  bool started = false, all_refused = true, finished = false;
};

class dials {
public:
  dials(counters& counts, answer on_answer)
      : counts_(counts), on_answer_(std::move(on_answer)), work_(asio::make_work_guard(io_)), thread_{[this] { io_.run(); }} {}
  ~dials() {
    io_.stop();
    thread_.join();
  }

  void add(dial_request request, std::uint64_t token) {
    asio::post(io_, [this, request = std::move(request), token] { accept(request, token); });
  }

private:
  using dial_ptr = std::shared_ptr<dial>;

  void accept(const dial_request& request, std::uint64_t token) {
    std::vector<tcp::endpoint> to;
    bool malformed = request.addresses.size() > limits::addresses_max;
    for (const auto& address : request.addresses) {
      if (to.size() == limits::addresses_max) break;
      if (const auto endpoint = parse_endpoint(address)) to.push_back(*endpoint);
      else malformed = true;
    }
    const auto made = std::make_shared<dial>(io_, std::move(to), malformed, request.endpoint_id, token);
    if (made->to.empty() || !protocol::is_public_key_hex(request.endpoint_id) || waiting_.size() >= queue_max)
      return finish(made, outcome::unanswered);
    made->timer.expires_after(std::clamp<millis>(request.timeout, 1ms, timeout_max));
    made->timer.async_wait([this, made](boost::system::error_code cancelled) {
      if (!cancelled) finish(made, outcome::unanswered);
    });
    waiting_.push_back(made);
    start_waiting();
  }

  void start_waiting() {
    while (!waiting_.empty()) {
      const auto next = waiting_.front();
      // A place is a dial: its sockets are addresses_max at most.
      if (!next->finished && running_ == limits::dials_max) return;
      waiting_.pop_front();
      if (next->finished) continue;
      ++running_;
      next->started = true;
      next->open = next->to.size();
      for (const auto& endpoint : next->to) {
        auto made = std::make_shared<knock>(io_, [this, next](outcome what) { knocked(next, what); });
        next->knocks.push_back(made);
        made->start(endpoint, next->endpoint_id);
      }
    }
  }

  void knocked(const dial_ptr& of, outcome what) {
    --of->open;
    if (what == outcome::answered) return finish(of, what);
    if (what != outcome::refused) of->all_refused = false;
    if (of->open == 0) finish(of, of->all_refused && !of->malformed ? outcome::refused : outcome::unanswered);
  }

  void finish(const dial_ptr& of, outcome what) {
    if (std::exchange(of->finished, true)) return;
    of->timer.cancel();
    for (const auto& each : std::exchange(of->knocks, {})) each->cancel();
    counts_.add("warren_dials_total", label_of(what));
    on_answer_(of->token, what);
    if (!of->started) return;
    --running_;
    asio::post(io_, [this] { start_waiting(); });
  }

  counters& counts_;
  const answer on_answer_;
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::deque<dial_ptr> waiting_;
  std::size_t running_ = 0;
  std::thread thread_;
};

struct dialled {
  std::uint64_t token = 0;
  dial_result result;
};

}  // namespace

}  // namespace warren::dialer

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(warren::dialer::dialled)

namespace warren::dialer {

namespace {

using shell_actor = dialer_actor::extend<caf::reacts_to<dialled>>;

struct state {
  state() = default;
  static inline const char* name = "dialer";
  std::unordered_map<std::uint64_t, caf::typed_response_promise<dial_result>> owed;
  std::uint64_t last_token = 0;
  std::unique_ptr<dials> io;
};

using self_ptr = shell_actor::stateful_pointer<state>;

shell_actor::behavior_type shell(self_ptr self, counters* counts) {
  // Strong: the io thread never lets go of the last handle, so that the actor ends on a thread of its system.
  self->state.io = std::make_unique<dials>(*counts, [to = shell_actor{self}](std::uint64_t token, outcome what) {
    caf::anon_send(to, dialled{token, {what}});
  });
  return {
      [self](const dial_request& request) -> caf::result<dial_result> {
        auto promise = self->make_response_promise<dial_result>();
        const auto token = ++self->state.last_token;
        self->state.owed.emplace(token, promise);
        self->state.io->add(request, token);
        return promise;
      },
      [self](const dialled& done) {
        const auto at = self->state.owed.find(done.token);
        if (at == self->state.owed.end()) return;
        at->second.deliver(done.result);
        self->state.owed.erase(at);
      },
  };
}

}  // namespace

dialer_actor spawn_dialer(caf::actor_system& system, counters& counts) { return system.spawn(shell, &counts); }

}  // namespace warren::dialer
