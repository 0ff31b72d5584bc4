// services/warren-agent/agent.cpp -- the agent as a whole. Every callback of NATS and of the disk is posted to the
// one loop, so nothing here is locked.
#include "services/warren-agent/agent.hpp"

#include <cerrno>
#include <charconv>
#include <chrono>
#include <random>
#include <system_error>
#include <thread>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include "actors/core/limits.hpp"
#include "actors/core/protocol.hpp"
#include "services/bus/connection.hpp"
#include "services/bus/subjects.hpp"

namespace warren::agent {

namespace {

using unix_socket = asio::local::stream_protocol;
constexpr std::string_view agent_version = "warren-agent/0.1.0";
constexpr std::size_t advertise_file_bytes_max = 64 * 1024;
constexpr std::size_t status_bytes_max = 64 * 1024 * 1024;
constexpr std::size_t status_asked_max = 16;
constexpr millis bye_flush{1500};
constexpr auto status_file = "agent.sock";

moment now_is() {
  using namespace std::chrono;
  return {duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count(),
          duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count()};
}

tcp::endpoint parse_endpoint(const std::string& text) {
  const auto colon = text.rfind(':');
  auto host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  boost::system::error_code ec;
  const auto address = asio::ip::make_address(host, ec);
  unsigned port = 65'536;
  if (colon != std::string::npos) {
    const auto* begin = text.data() + colon + 1;
    const auto [end, error] = std::from_chars(begin, text.data() + text.size(), port);
    if (error != std::errc{} || end != text.data() + text.size()) port = 65'536;
  }
  if (ec || port > 65'535) throw file_error{fmt::format("{}: is no IP:PORT", text)};
  return {address, static_cast<std::uint16_t>(port)};
}

std::string spelled(const tcp::endpoint& at) {
  return at.address().is_v6() ? fmt::format("[{}]:{}", at.address().to_string(), at.port())
                              : fmt::format("{}:{}", at.address().to_string(), at.port());
}

std::string add_address(busv1::Addressing& addressing, const std::string& text) {
  auto address = protocol::canonical_address(text);
  if (!address) return text + ": is no IP:PORT";
  if (addressing.addresses_size() >= static_cast<int>(limits::addresses_max))
    return fmt::format("more than {} addresses", limits::addresses_max);
  addressing.add_addresses(std::move(*address));
  return {};
}

/// Two descriptors for each tunnel: take what the system lets us have.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// Exclusive for this process, for as long as it lives; two agents on one folder would undo each other's sets.
class folder_lock {
public:
  explicit folder_lock(const std::filesystem::path& folder) {
    const auto file = folder / "lock";
    fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd_ < 0) throw file_error{fmt::format("{}: {}", file.string(), std::generic_category().message(errno))};
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      ::close(fd_);
      throw file_error{fmt::format("{}: another agent runs on this folder", folder.string())};
    }
  }
  ~folder_lock() { ::close(fd_); }
  folder_lock(const folder_lock&) = delete;
  folder_lock& operator=(const folder_lock&) = delete;

private:
  int fd_ = -1;
};

std::filesystem::path made_private(std::filesystem::path folder) {
  std::error_code ec;
  std::filesystem::create_directories(folder, ec);
  if (ec) throw file_error{fmt::format("{}: {}", folder.string(), ec.message())};
  ::chmod(folder.c_str(), 0700);
  return std::filesystem::absolute(folder);
}

}  // namespace

busv1::Addressing read_advertise_file(const std::filesystem::path& file) {
  busv1::Addressing out;
  const auto text = read_whole(file, advertise_file_bytes_max);
  int number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find('\n', at), text.size());
    auto line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    line = line.substr(0, line.find('#'));
    const auto first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) continue;
    line = line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
    if (line.find("://") != std::string::npos) {
      out.set_home_relay(line);
    } else if (const auto wrong = add_address(out, line); !wrong.empty()) {
      throw file_error{fmt::format("{}:{}: {}", file.string(), number, wrong)};
    }
  }
  return out;
}

struct agent::impl {
  impl(agent_options o, identity k)
      : options(std::move(o)), key(std::move(k)), folder(made_private(options.state_folder)), lock(folder), file(folder),
        dials(io, options.target_ca_file), timer(io), lingering(io), signals(io), status_acceptor(io) {
    raise_descriptor_limit();
    auto [outcome, set] = file.load(options.enrolled.uid, key.public_key_hex());
    switch (outcome) {
      case attachment_file::outcome::loaded: spdlog::info("{} attachments of generation {} on disk", set.all().size(), set.generation()); break;
      case attachment_file::outcome::absent: break;
      case attachment_file::outcome::corrupt: spdlog::error("{} is corrupt: kept as .corrupt; nothing is served until the owner says what", file.path().string()); break;
      case attachment_file::outcome::foreign: spdlog::warn("{} is of another connector or key: not used", file.path().string()); break;
    }
    proxy_options served;
    served.project = options.enrolled.project;
    served.public_key_hex = key.public_key_hex();
    served.connections_max = options.connections_max;
    for (const auto& one : options.listen) served.listen.push_back(parse_endpoint(one));
    gateways.emplace(io, dials, std::move(served), [this](const target& to, std::string_view words) { dialled(to, words, false); });

    control.emplace(session_options{options.enrolled.project, options.enrolled.connector, options.enrolled.uid,
                                    key.public_key_hex(), std::string{agent_version}, options.mute_heartbeats},
                    session_sources{random_bytes, [this] { return std::uniform_real_distribution<double>{0.0, 1.0}(random); },
                                    [this](std::string_view bytes) { return key.sign(bytes); }},
                    targets, addressing_now(), std::move(set));
    follow_set();
    open_status();
  }

  ~impl() { close_bus(); }

  busv1::Addressing addressing_now() const {
    if (!options.advertise_file.empty()) return read_advertise_file(options.advertise_file);
    busv1::Addressing out;
    out.set_home_relay(options.home_relay);
    auto from = options.advertise;
    if (from.empty())
      for (const auto& at : gateways->listening())
        if (!at.address().is_unspecified()) from.push_back(spelled(at));
    for (const auto& one : from)
      if (const auto wrong = add_address(out, one); !wrong.empty()) throw file_error{wrong};
    return out;
  }

  // ---- the loop ----

  void open_bus() {
    bus::connection_options to;
    const auto& e = options.enrolled;
    to.urls = e.nats_urls;
    to.name = bus::agent_connection_name(e.project, bus::kind_connector, e.connector);
    to.user = e.nats_user;
    to.password = e.nats_password;
    to.credentials_file = e.nats_credentials_file;
    to.user_jwt = e.nats_jwt;
    to.user_seed = e.nats_seed;
    to.tls_ca_file = e.nats_ca_file;
    to.tls_certificate_file = e.nats_certificate_file;
    to.tls_key_file = e.nats_key_file;
    if (!e.nats_inbox_prefix.empty()) to.inbox_prefix = e.nats_inbox_prefix;
    to.bulk_connection = false;
    to.reconnect_buffer_bytes = 256 * 1024;  // what we say is soon out of date
    nats = bus::connection::open(std::move(to));
    commands = nats->subscribe(e.command_subject, [this](std::string_view, std::string_view payload, std::string_view reply_to) {
      asio::post(io, [this, payload = std::string{payload}, reply_to = std::string{reply_to}] {
        carry_out(control->commanded(now_is(), payload, reply_to));
      });
    });
    nats->on_state([this](bool is) {
      asio::post(io, [this, is] {
        spdlog::info("NATS: {}", is ? "connected" : "disconnected");
        nats_connected = is;
        carry_out(control->connected(now_is(), is));
      });
    });
  }

  void close_bus() {
    if (!nats) return;
    commands.reset();
    nats->close();
    nats.reset();
  }

  void carry_out(const actions& todo) {
    for (const auto& one : todo) std::visit([this](const auto& a) { perform(a); }, one);
    arm();
  }

  void perform(const ask_hello& a) {
    nats->request(options.enrolled.hello_subject, a.payload, millis{hello_timeout},
                  [this, number = a.number](bus::request_error error, std::string_view payload) {
                    asio::post(io, [this, number, error, payload = std::string{payload}] {
                      carry_out(error == bus::request_error::none ? control->hello_answered(now_is(), number, payload)
                                                                  : control->hello_failed(now_is(), number, bus::to_string(error)));
                    });
                  });
  }
  void perform(const send_heartbeat& a) { nats->publish(options.enrolled.heartbeat_subject, a.payload); }
  void perform(const send_event& a) {
    if (nats) nats->publish(options.enrolled.event_subject, a.payload);
  }
  void perform(const send_reply& a) { nats->publish(a.reply_to, a.payload); }
  void perform(const save_set& a) {
    asio::post(disk, [this, generation = a.generation, whole = a.whole, text = a.text] {
      std::string error;
      try {
        if (whole) file.save(text);
        else file.append(text);
      } catch (const std::exception& e) {
        error = e.what();
      }
      asio::post(io, [this, generation, error] { carry_out(control->saved(now_is(), generation, error)); });
    });
  }
  void perform(const set_changed& a) { follow_set(a.touched); }
  void perform(const end_agent& a) {
    if (!a.clean) {
      spdlog::error("superseded: {}", a.why);
      result = exit_code::superseded;
      return leave();
    }
    const auto open = gateways->counts().tunnels;
    if (open == 0) {
      spdlog::info("stopping");
      return leave();
    }
    // Visitors go on coming until gateways have heard of the bye: they are served, and what is short ends well.
    spdlog::info("stopping; {} connections of visitors end within {} ms", open, lingers.count());
    lingering.expires_after(lingers);
    lingering.async_wait([this](boost::system::error_code ec) {
      if (!ec) leave();
    });
  }
  void leave() {
    gateways->stop_accepting();
    io.stop();  // run() says the rest of it
  }
  void perform(const say& a) {
    if (a.important) spdlog::warn("{}", a.text);
    else spdlog::info("{}", a.text);
  }

  void follow_set(const touched_keys& touched = {}) {
    gateways->attach(control->held(), touched);
    targets.attach(control->held(), now_is().steady_ms, touched);
    dial_due();
  }

  void dial_due() {
    for (const auto& to : targets.due(now_is().steady_ms))
      dials.dial(to, [this, to](const std::shared_ptr<target_stream>&, const std::string& words) { dialled(to, words, true); });
  }

  void dialled(const target& to, std::string_view words, bool probe) {
    const bool changed = targets.dialled(to, words, probe, now_is().steady_ms);
    if (changed && words.empty()) spdlog::info("target {} answers", to.authority());
    if (changed && !words.empty()) spdlog::warn("target {}: {}", to.authority(), words);
    dial_due();
    if (changed) carry_out(control->targets_changed(now_is()));
    else arm();
  }

  /// One timer for the session's and the targets' next deadline.
  void arm() {
    auto next = control->deadline();
    if (const auto t = targets.deadline()) next = next ? std::min(*next, *t) : *t;
    if (!next) {
      timer.cancel();
      return;
    }
    timer.expires_at(std::chrono::steady_clock::time_point{millis{*next}});
    timer.async_wait([this](boost::system::error_code ec) {
      if (ec) return;
      dial_due();
      carry_out(control->wake(now_is()));
    });
  }

  void reload() {
    if (options.advertise_file.empty()) return;
    try {
      carry_out(control->addressing_is(now_is(), addressing_now()));
      spdlog::info("{} read", options.advertise_file.string());
    } catch (const file_error& e) {
      spdlog::error("{}; the addressing stays as it was", e.what());
    }
  }

  void wait_for_signals() {
    signals.async_wait([this](boost::system::error_code ec, int number) {
      if (ec) return;
      if (number == SIGHUP) {
        reload();
        return wait_for_signals();
      }
      if (control->where() == phase::ended) return leave();  // asked twice
      carry_out(control->stop(now_is()));
      wait_for_signals();
    });
  }

  // ---- status ----

  void open_status() {
    const auto path = (folder / status_file).string();
    ::unlink(path.c_str());  // left by one that was killed: the lock is ours
    try {
      status_acceptor.open();
      status_acceptor.bind(unix_socket::endpoint{path});
      ::chmod(path.c_str(), 0600);
      status_acceptor.listen();
    } catch (const std::exception& e) {
      boost::system::error_code ignored;
      status_acceptor.close(ignored);
      spdlog::warn("no status: {}: {}", path, e.what());  // too long a path, for one; tunnels do not need it
      return;
    }
    answer_status();
  }

  void answer_status() {
    status_acceptor.async_accept([this](boost::system::error_code ec, unix_socket::socket socket) {
      if (ec == asio::error::operation_aborted) return;
      if (!ec && status_asked < status_asked_max) {
        ++status_asked;
        auto asker = std::make_shared<unix_socket::socket>(std::move(socket));
        auto text = std::make_shared<std::string>(status());
        asio::async_write(*asker, asio::buffer(*text), [this, asker, text](boost::system::error_code, std::size_t) { --status_asked; });
      }
      if (ec) {
        status_pause.expires_after(100ms);
        return status_pause.async_wait([this](boost::system::error_code cancelled) {
          if (!cancelled) answer_status();
        });
      }
      answer_status();
    });
  }

  std::string status() const {
    using json = nlohmann::json;
    json listening = json::array(), attached = json::array();
    for (const auto& at : gateways->listening()) listening.push_back(spelled(at));
    std::map<std::pair<attachment_key, int>, busv1::TargetState> states;
    for (auto& state : targets.states())
      states.insert({{{state.tunnel_uid(), state.tunnel_generation()}, state.rule()}, state});
    for (const auto& [held_key, one] : control->held().all()) {
      json rules = json::array();
      for (const auto& rule : one.rules()) {
        const auto& state = states[{held_key, rule.index()}];
        rules.push_back({{"rule", rule.index()}, {"target", rule.target()}, {"tls_verify", rule.tls_verify()},
                         {"state", state.state()}, {"message", state.message()}});
      }
      attached.push_back({{"tunnel", one.tunnel()}, {"tunnel_uid", held_key.tunnel_uid},
                          {"tunnel_generation", held_key.tunnel_generation}, {"rules", std::move(rules)}});
    }
    const auto counts = gateways->counts();
    const json out{
        {"project", options.enrolled.project}, {"connector", options.enrolled.connector}, {"uid", options.enrolled.uid},
        {"public_key", key.public_key_hex()}, {"connected", nats_connected}, {"phase", std::string{to_string(control->where())}},
        {"session", control->number()}, {"trouble", control->last_trouble()},
        {"heartbeat_interval_ms", control->heartbeat_interval().count()}, {"listening", std::move(listening)},
        {"generation", control->held().generation()}, {"durable_generation", control->durable_generation()},
        {"attachments", std::move(attached)},
        {"connections", {{"open", counts.open}, {"tunnels", counts.tunnels}, {"accepted", counts.accepted},
                         {"established", counts.established}, {"refused", counts.refused}, {"failed", counts.failed},
                         {"ended_by_detach", counts.ended_by_detach}}},
        {"bad_messages", control->bad_messages()}, {"omitted_tunnels", control->omitted_tunnels()}};
    return out.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  }

  exit_code run() {
    open_bus();
    arm();
    io.run();
    // The set is on disk before we are gone, and bye is with the server.
    gateways->close_all();
    disk.join();
    if ((!nats->connected() || !nats->flush(bye_flush)) && result == exit_code::stopped) spdlog::info("nobody heard our bye: NATS is away");
    close_bus();
    ::unlink((folder / status_file).c_str());
    return result;
  }

  agent_options options;
  identity key;
  std::filesystem::path folder;
  folder_lock lock;
  attachment_file file;
  asio::io_context io{1};
  asio::thread_pool disk{1};
  std::mt19937_64 random{std::random_device{}()};
  dialler dials;
  target_table targets;
  std::optional<proxy> gateways;
  std::optional<session> control;
  asio::steady_timer timer;
  asio::steady_timer lingering;  ///< after bye
  asio::steady_timer status_pause{io};
  asio::signal_set signals;
  unix_socket::acceptor status_acceptor;
  std::size_t status_asked = 0;
  std::shared_ptr<bus::connection> nats;
  bus::subscription commands;
  bool nats_connected = false;
  exit_code result = exit_code::stopped;
};

agent::agent(agent_options options, identity key) : impl_(std::make_unique<impl>(std::move(options), std::move(key))) {}
agent::~agent() = default;
exit_code agent::run() { return impl_->run(); }
void agent::stop() {
  asio::post(impl_->io, [i = impl_.get()] { i->carry_out(i->control->stop(now_is())); });
}
void agent::reload() {
  asio::post(impl_->io, [i = impl_.get()] { i->reload(); });
}
void agent::handle_signals() {
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) impl_->signals.add(number);
  impl_->wait_for_signals();
}
std::vector<tcp::endpoint> agent::listening() const { return impl_->gateways->listening(); }

std::string ask_status(const std::filesystem::path& state_folder) {
  asio::io_context io;
  unix_socket::socket socket{io};
  boost::system::error_code ec;
  try {
    socket.connect(unix_socket::endpoint{(state_folder / status_file).string()}, ec);
  } catch (const std::exception&) {  // a path that is too long
    ec = asio::error::invalid_argument;
  }
  if (ec) throw file_error{fmt::format("{}: no agent answers: {}", state_folder.string(), ec.message())};
  std::string out;
  asio::read(socket, asio::dynamic_buffer(out, status_bytes_max), ec);
  if (out.empty()) throw file_error{fmt::format("{}: the agent is too busy to answer", state_folder.string())};
  return out;
}

}  // namespace warren::agent
