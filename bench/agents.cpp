// bench/agents.cpp -- one loop drives every agent's session; callbacks of NATS are posted to it, so nothing is locked.
#include "bench/agents.hpp"

#include <atomic>
#include <future>
#include <optional>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>
#include <openssl/evp.h>

#include "actors/core/protocol.hpp"
#include "services/bus/connection.hpp"
#include "services/bus/subjects.hpp"
#include "services/warren-agent/session.hpp"
#include "services/warren-agent/targets.hpp"
#include "test/support/process.hpp"

namespace warren::bench {

namespace {

namespace asio = boost::asio;
namespace busv1 = warren::bus::v1;
using asio::ip::tcp;

moment now_is() {
  using namespace std::chrono;
  return {duration_cast<millis>(steady_clock::now().time_since_epoch()).count(),
          duration_cast<millis>(system_clock::now().time_since_epoch()).count()};
}

/// An Ed25519 key that lives in memory only.
class key_pair {
public:
  key_pair() {
    EVP_PKEY_CTX* context = EVP_PKEY_CTX_new_id(EVP_PKEY_ED25519, nullptr);
    EVP_PKEY* made = nullptr;
    if (context == nullptr || EVP_PKEY_keygen_init(context) != 1 || EVP_PKEY_keygen(context, &made) != 1)
      throw std::runtime_error("no Ed25519 key can be made");
    EVP_PKEY_CTX_free(context);
    key_ = {made, EVP_PKEY_free};
    std::string raw(32, '\0');
    std::size_t size = raw.size();
    EVP_PKEY_get_raw_public_key(key_.get(), reinterpret_cast<unsigned char*>(raw.data()), &size);
    public_hex = protocol::hex(raw);
  }
  std::string sign(std::string_view bytes) const {
    std::string out(64, '\0');
    std::size_t size = out.size();
    EVP_MD_CTX* context = EVP_MD_CTX_new();
    const bool done = EVP_DigestSignInit(context, nullptr, nullptr, nullptr, key_.get()) == 1 &&
                      EVP_DigestSign(context, reinterpret_cast<unsigned char*>(out.data()), &size,
                                     reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()) == 1;
    EVP_MD_CTX_free(context);
    if (!done) throw std::runtime_error("a hello cannot be signed");
    return out;
  }
  std::string public_hex;

private:
  std::shared_ptr<EVP_PKEY> key_;
};

}  // namespace

struct simulated_agents::impl {
  struct caller;
  struct one {
    one(impl& owner, std::string of, std::string called, std::string uid, int partition, key_pair k, busv1::Addressing at)
        : project{std::move(of)}, name{std::move(called)}, key{std::move(k)}, timer{owner.io}, lingering{owner.io},
          options{project, name, std::move(uid), key.public_hex, "simulated/0.1.0"},
          sources{[&owner](std::size_t n) { return owner.random_bytes(n); },
                  [&owner] { return std::uniform_real_distribution<double>{0.0, 1.0}(owner.random); },
                  [this](std::string_view bytes) { return key.sign(bytes); }},
          addressing{std::move(at)}, session{std::in_place, options, sources, targets, addressing, agent::attachment_set{}},
          hello{bus::hello_subject(partition, project, bus::kind_connector, name)},
          heartbeat{bus::heartbeat_subject(partition, project, bus::kind_connector, name)},
          event{bus::event_subject(partition, project, bus::kind_connector, name)} {}
    std::string project, name;
    key_pair key;
    agent::target_table targets;
    asio::steady_timer timer, lingering;  ///< the second: after bye
    agent::session_options options;
    agent::session_sources sources;
    busv1::Addressing addressing;
    std::optional<agent::session> session;
    bool mute = false;
    std::vector<std::weak_ptr<caller>> guests;  ///< who came in to it; they go when it stops
    clock::time_point heartbeat_at, heartbeat_before;  ///< the last two that were sent
    clock::time_point spoke_at;                        ///< the last message of any sort
    int life = 0;  ///< counts starts: answers to an earlier one's requests are nobody's
    std::string hello, heartbeat, event;
    bool established = false;
    std::int64_t number = 0;
  };

  explicit impl(agents_options o) {
    bus::connection_options to;
    to.urls = {o.nats_url};
    to.name = "bench/agents";
    to.user = o.user;
    to.password = o.password;
    to.bulk_connection = false;
    nats = bus::connection::open(to);
    commands = nats->subscribe("warren.v1.cmd.>", [this](std::string_view subject, std::string_view payload, std::string_view reply_to) {
      asio::post(io, [this, subject = std::string{subject}, payload = std::string{payload}, reply_to = std::string{reply_to}] {
        const auto where = bus::parse_subject(subject);
        if (!where || !are_reachable) return;
        const auto it = agents.find(std::string{where->project} + "/" + std::string{where->name});
        if (it != agents.end()) carry_out(*it->second, it->second->session->commanded(now_is(), payload, reply_to));
      });
    });
    nats->on_state([this](bool is) {
      asio::post(io, [this, is] {
        connected = is;
        tell_connected();
      });
    });
    for (auto* d : {&front, &back}) answer_dials(*d);
    thread = std::thread{[this] { io.run(); }};
  }

  ~impl() {
    io.stop();
    thread.join();
    commands.reset();
    nats->close();
  }

  std::string random_bytes(std::size_t n) {
    std::string out(n, '\0');
    for (auto& c : out) c = static_cast<char>(random());
    return out;
  }

  void add(std::unique_ptr<one> fresh) {
    auto& a = *fresh;
    by_key[a.key.public_hex] = &a;
    agents[a.project + "/" + a.name] = std::move(fresh);
    carry_out(a, a.session->connected(now_is(), connected && are_reachable));
  }

  void tell_connected() {
    for (auto& [name, a] : agents) carry_out(*a, a->session->connected(now_is(), connected && are_reachable));
  }
  void start_again(one& a) {
    const auto disk = a.session->held();
    ++a.life;
    a.targets = {};
    a.session.emplace(a.options, a.sources, a.targets, a.addressing, disk);
    carry_out(a, {agent::set_changed{}});
    carry_out(a, a.session->connected(now_is(), connected && are_reachable));
  }

  void carry_out(one& a, const agent::actions& todo) {
    for (const auto& each : todo) std::visit([&](const auto& action) { perform(a, action); }, each);
    const bool is = a.session->where() == agent::phase::established;
    if (is != a.established) established += is ? 1 : -1;
    a.established = is;
    sessions += a.session->number() - a.number;
    a.number = a.session->number();
    arm(a);
  }
  void perform(one& a, const agent::ask_hello& ask) {
    ++hellos;
    nats->request(a.hello, ask.payload, millis{agent::hello_timeout},
                  [this, &a, life = a.life, number = ask.number](bus::request_error error, std::string_view payload) {
                    asio::post(io, [this, &a, life, number, error, payload = std::string{payload}] {
                      if (life != a.life) return;
                      carry_out(a, error == bus::request_error::none
                                       ? a.session->hello_answered(now_is(), number, payload)
                                       : a.session->hello_failed(now_is(), number, bus::to_string(error)));
                    });
                  });
  }
  void perform(one& a, const agent::send_heartbeat& what) {
    if (a.mute) return;
    a.heartbeat_before = std::exchange(a.heartbeat_at, clock::now());
    a.spoke_at = a.heartbeat_at;
    ++heartbeats;
    nats->publish(a.heartbeat, what.payload);
  }
  void perform(one& a, const agent::send_event& what) {
    a.spoke_at = clock::now();
    nats->publish(a.event, what.payload);
  }
  void perform(one& a, const agent::send_reply& what) {
    a.spoke_at = clock::now();
    nats->publish(what.reply_to, what.payload);
  }
  void perform(one& a, const agent::save_set& what) {
    asio::post(io, [this, &a, life = a.life, generation = what.generation] {
      if (life == a.life) carry_out(a, a.session->saved(now_is(), generation, ""));
    });
  }
  void perform(one& a, const agent::set_changed&) {
    a.targets.attach(a.session->held(), now_is().steady_ms);
    bool changed = false;
    for (const auto& to : a.targets.due(now_is().steady_ms))
      changed = a.targets.dialled(to, "", true, now_is().steady_ms) || changed;
    if (changed) asio::post(io, [this, &a] { carry_out(a, a.session->targets_changed(now_is())); });
  }
  void perform(one& a, const agent::end_agent& end) {
    if (end.clean) return;
    std::fprintf(stderr, "the agent %s ended: %s\n", a.name.c_str(), end.why.c_str());
  }
  void perform(one&, const agent::say&) {}

  void arm(one& a) {
    const auto next = a.session->deadline();
    if (!next) {
      a.timer.cancel();
      return;
    }
    a.timer.expires_at(std::chrono::steady_clock::time_point{millis{*next}});
    a.timer.async_wait([this, &a](boost::system::error_code ec) {
      if (!ec) carry_out(a, a.session->wake(now_is()));
    });
  }

  /// Where dials are answered and gateways come in.
  struct door {
    door(asio::io_context& io, const char* called) : name{called}, acceptor{io, tcp::endpoint{asio::ip::address_v4::loopback(), 0}} {}
    const char* name;
    tcp::acceptor acceptor;
    std::string address() const { return fmt::format("127.0.0.1:{}", acceptor.local_endpoint().port()); }
  };
  struct caller : std::enable_shared_from_this<caller> {
    caller(impl& i, const door& at, tcp::socket s) : owner{i}, through{at}, socket{std::move(s)} {}
    impl& owner;
    const door& through;
    tcp::socket socket;
    std::string buffer, head, out;

    /// One head after the other, with whatever bodies they announce left out: visitors here only GET.
    void next() {
      asio::async_read_until(socket, asio::dynamic_buffer(buffer, 64 * 1024), "\r\n\r\n",
                             [self = shared_from_this()](boost::system::error_code e, std::size_t size) {
                               if (e) return;
                               self->head = self->buffer.substr(0, size);
                               self->buffer.erase(0, size);
                               self->answer();
                             });
    }
    void answer() {
      if (head.starts_with("OPTIONS ")) {
        if (!owner.are_reachable) return owner.held_callers.push_back(shared_from_this());
        ++owner.dials;
        return write("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n", false);
      }
      if (head.starts_with("CONNECT ")) {
        auto* host = owner.find_by_key(header("x-warren-endpoint-id"));
        if (host == nullptr || host->session->where() == agent::phase::ended) return;  // nobody is at home: closed
        std::erase_if(host->guests, [](const auto& g) { return g.expired(); });
        host->guests.push_back(weak_from_this());
        return write("HTTP/1.1 200 OK\r\n\r\n", true);
      }
      ++owner.visits;
      write(fmt::format("HTTP/1.1 200 OK\r\nx-door: {}\r\ncontent-length: 3\r\n\r\nok\n", through.name), true);
    }
    std::string_view header(std::string_view name) const {
      const auto at = head.find(name);
      if (at == std::string::npos) return {};
      const auto begin = at + name.size() + 2;
      return std::string_view{head}.substr(begin, head.find('\r', begin) - begin);
    }
    void write(std::string text, bool more) {
      out = std::move(text);
      asio::async_write(socket, asio::buffer(out), [self = shared_from_this(), more](boost::system::error_code e, std::size_t) {
        if (!e && more) self->next();
      });
    }
  };
  void answer_dials(door& d) {
    d.acceptor.async_accept([this, &d](boost::system::error_code ec, tcp::socket socket) {
      if (ec) return;
      socket.set_option(tcp::no_delay{true});
      std::make_shared<caller>(*this, d, std::move(socket))->next();
      answer_dials(d);
    });
  }

  one* find_by_key(std::string_view key) {
    const auto it = by_key.find(std::string{key});
    return it == by_key.end() ? nullptr : it->second;
  }
  void end(one& a) {
    carry_out(a, a.session->stop(now_is()));
    // As the agent does: whoever came in is served for another second.
    a.lingering.expires_after(agent::lingers);
    a.lingering.async_wait([guests = std::exchange(a.guests, {})](boost::system::error_code ec) {
      if (ec == asio::error::operation_aborted) return;
      for (const auto& g : guests)
        if (const auto open = g.lock()) {
          boost::system::error_code ignored;
          open->socket.close(ignored);
        }
    });
  }

  /// Does it on the loop for each of them, in one go.
  clock::time_point each(const std::vector<std::string>& which, const std::function<void(one&)>& what) {
    std::promise<clock::time_point> done;
    asio::post(io, [&] {
      const auto begun = clock::now();
      for (const auto& name : which)
        if (const auto it = agents.find(name); it != agents.end()) what(*it->second);
      done.set_value(begun);
    });
    return done.get_future().get();
  }
  std::optional<clock::time_point> moment_of(const std::string& which, const std::function<clock::time_point(const one&)>& pick) {
    std::optional<clock::time_point> out;
    each({which}, [&](one& a) {
      if (const auto at = pick(a); at != clock::time_point{}) out = at;
    });
    return out;
  }

  asio::io_context io{1};
  door front{io, "front"}, back{io, "back"};
  std::mt19937_64 random{std::random_device{}()};
  std::shared_ptr<bus::connection> nats;
  bus::subscription commands;
  bool connected = false;
  bool are_reachable = true;
  std::vector<std::shared_ptr<caller>> held_callers;  ///< who dialled while nobody was reachable
  std::unordered_map<std::string, std::unique_ptr<one>> agents;  // of the loop
  std::unordered_map<std::string, one*> by_key;
  std::atomic<std::size_t> count{0};
  std::atomic<std::int64_t> established{0}, sessions{0};
  std::atomic<std::uint64_t> heartbeats{0}, hellos{0}, dials{0}, visits{0};
  std::thread thread;
};

simulated_agents::simulated_agents(agents_options options) : impl_{std::make_unique<impl>(std::move(options))} {}
simulated_agents::~simulated_agents() = default;

void simulated_agents::add(const api& server, const std::string& project, const std::string& name, std::chrono::seconds lease) {
  key_pair key;
  adminv1::EnrolConnectorRequest q;
  q.set_parent("projects/" + project);
  q.set_connector_id(name);
  q.set_public_key(key.public_hex);
  q.mutable_connector()->set_connector_class("local");
  if (lease.count() > 0) q.mutable_connector()->mutable_lease_duration()->set_seconds(lease.count());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{30});
  adminv1::EnrolConnectorResponse answer;
  must(server.connectors->EnrolConnector(&context, q, &answer), "enrolling " + project + "/" + name);
  busv1::Addressing at;
  at.add_addresses(impl_->front.address());
  ++impl_->count;
  asio::post(impl_->io, [i = impl_.get(), project, name, uid = answer.enrolment().uid(),
                         partition = answer.enrolment().partition(), key, at] {
    i->add(std::make_unique<impl::one>(*i, project, name, uid, partition, key, at));
  });
}

void simulated_agents::reachable(bool are) {
  asio::post(impl_->io, [i = impl_.get(), are] {
    i->are_reachable = are;
    if (are) i->held_callers.clear();
    i->tell_connected();
  });
}

void simulated_agents::start_again() {
  asio::post(impl_->io, [i = impl_.get()] {
    for (auto& [name, a] : i->agents) i->start_again(*a);
  });
}

clock::time_point simulated_agents::stop(const std::vector<std::string>& which) {
  return impl_->each(which, [this](impl::one& a) { impl_->end(a); });
}
clock::time_point simulated_agents::start(const std::vector<std::string>& which) {
  return impl_->each(which, [this](impl::one& a) { impl_->start_again(a); });
}
clock::time_point simulated_agents::mute(const std::vector<std::string>& which, bool are) {
  return impl_->each(which, [are](impl::one& a) { a.mute = are; });
}
clock::time_point simulated_agents::move(const std::vector<std::string>& which) {
  return impl_->each(which, [this](impl::one& a) {
    const auto now = a.addressing.addresses(0);
    const auto front = impl_->front.address(), back = impl_->back.address();
    a.addressing.set_addresses(0, now == front ? back : front);
    impl_->carry_out(a, a.session->addressing_is(now_is(), a.addressing));
  });
}
std::optional<clock::time_point> simulated_agents::first_heartbeat(const std::string& which, clock::time_point since) const {
  return impl_->moment_of(which, [since](const impl::one& a) {
    return a.heartbeat_before >= since ? a.heartbeat_before : a.heartbeat_at >= since ? a.heartbeat_at : clock::time_point{};
  });
}
std::optional<clock::time_point> simulated_agents::last_word(const std::string& which) const {
  return impl_->moment_of(which, [](const impl::one& a) { return a.spoke_at; });
}
std::uint64_t simulated_agents::visits() const { return impl_->visits; }

bool simulated_agents::await_sessions(milliseconds timeout) const {
  return stack::poll_until([this] { return established() == impl_->count; }, timeout);
}
std::size_t simulated_agents::established() const { return static_cast<std::size_t>(impl_->established.load()); }
std::uint64_t simulated_agents::heartbeats() const { return impl_->heartbeats; }
std::uint64_t simulated_agents::hellos() const { return impl_->hellos; }
std::uint64_t simulated_agents::dials() const { return impl_->dials; }
std::int64_t simulated_agents::sessions() const { return impl_->sessions; }

}  // namespace warren::bench
