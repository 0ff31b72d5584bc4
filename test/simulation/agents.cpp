// test/simulation/agents.cpp -- a connector's agent on virtual time.
#include "test/simulation/agents.hpp"

#include <algorithm>

#include "actors/core/protocol.hpp"
#include "actors/core/subjects.hpp"

namespace warren::simulation {

namespace {
constexpr std::int64_t wall_epoch_ms = 1'700'000'000'000;
constexpr std::int64_t hello_timeout_ms = 5'000;
}  // namespace

key_pair::key_pair(std::uint64_t number) {
  std::string seed(32, '\0');
  for (std::size_t i = 0; i < 8; ++i) seed[i] = static_cast<char>(number >> (8 * i));
  seed[31] = 1;
  key_ = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, reinterpret_cast<const unsigned char*>(seed.data()),
                                      seed.size());
  std::string raw(32, '\0');
  std::size_t size = raw.size();
  EVP_PKEY_get_raw_public_key(key_, reinterpret_cast<unsigned char*>(raw.data()), &size);
  public_hex_ = protocol::hex(raw);
}

std::string key_pair::sign(std::string_view text) const {
  std::string out(64, '\0');
  std::size_t size = out.size();
  auto* context = EVP_MD_CTX_new();
  EVP_DigestSignInit(context, nullptr, nullptr, nullptr, key_);
  EVP_DigestSign(context, reinterpret_cast<unsigned char*>(out.data()), &size,
                 reinterpret_cast<const unsigned char*>(text.data()), text.size());
  EVP_MD_CTX_free(context);
  return out;
}

agent_host::agent_host(std::string project, std::string name, int number, wiring w)
    : project_{std::move(project)}, name_{std::move(name)}, number_{number}, to_{w},
      key_{static_cast<std::uint64_t>(number) + 1} {}

partition_id agent_host::partition() const { return partition_of(project_, to_.partitions); }
moment agent_host::now() const { return {to_.time.now_ms() + 1'000'000, wall_epoch_ms + to_.time.now_ms()}; }

busv1::Addressing agent_host::addressing() const {
  busv1::Addressing at;
  at.add_addresses(fmt::format("192.0.2.{}:{}", number_ % 250 + 1, 7400 + moves_));
  return at;
}

const warren::agent::attachment_set& agent_host::held() const { return session_ ? session_->held() : nothing_; }

void agent_host::start() {
  if (running()) return;
  ++life_;
  since_ms = to_.time.now_ms();
  targets_ = std::make_unique<warren::agent::target_table>();
  session_ = std::make_unique<warren::agent::session>(
      warren::agent::session_options{project_, name_, uid, key_.public_hex(), "sim", false},
      warren::agent::session_sources{[this](std::size_t n) {
                                       std::string out(n, '\0');
                                       for (auto& c : out) c = static_cast<char>(to_.time.secrets.roll());
                                       return out;
                                     },
                                     [this] { return static_cast<double>(to_.time.agents.roll() % 1000) / 1000.0; },
                                     [this](std::string_view text) { return key_.sign(text); }},
      *targets_, addressing(), disk_);
  to_.time.record("agent starts", key());
  targets_->attach(session_->held(), now().steady_ms);
  connect();
  act(session_->connected(now(), true));
}

void agent_host::connect() {
  link_ = to_.net.connect("agent " + key(), {.message = [this, mine = life_](const std::string&, const heard_message& m) {
                                               if (mine == life_ && running()) heard(*m);
                                             },
                                             .state =
                                                 [this, mine = life_](bool connected) {
                                                   if (mine != life_ || !running()) return;
                                                   if (connected) since_ms = to_.time.now_ms();
                                                   act(session_->connected(now(), connected));
                                                 }});
  to_.net.subscribe(link_, bus::command_subject(project_, "connector", name_));
  if (cut_) to_.net.cut(link_);
}

void agent_host::leave() {
  session_.reset();
  look_at_clock();
  targets_.reset();
  hellos_.clear();
  to_.net.disconnect(link_);
  to_.time.record("agent ends", key());
  if (on_disconnect) on_disconnect();
}

void agent_host::kill(bool disk_lost) {
  if (running()) leave();
  if (!disk_lost) return;
  disk_ = {};
  durable_.push_back(0);
}

void agent_host::stop() {
  if (!running()) return;
  auto last = session_->stop(now());
  for (auto& a : last)
    if (auto* said = std::get_if<warren::agent::send_event>(&a)) perform(*said);
  leave();
}

void agent_host::cut(bool on) {
  cut_ = on;
  if (!on) since_ms = to_.time.now_ms();
  if (!running()) return;
  if (on) to_.net.cut(link_);
  else to_.net.mend(link_);
}

void agent_host::move() {
  ++moves_;
  if (running()) act(session_->addressing_is(now(), addressing()));
}

void agent_host::look_at_clock() {
  const auto due = running() ? session_->deadline() : std::nullopt;
  deadline_ms_ = due ? std::optional{*due - 1'000'000} : std::nullopt;
}

void agent_host::wake() { act(session_->wake(now())); }

void agent_host::heard(const bus_message& m) {
  if (auto hello = hellos_.find(m.subject); hello != hellos_.end()) {
    const auto number = hello->second;
    hellos_.erase(hello);
    if (m.reply_to == "no_responders") act(session_->hello_failed(now(), number, "no responders"));
    else act(session_->hello_answered(now(), number, m.payload));
    return;
  }
  if (m.subject.rfind("_INBOX.", 0) == 0) return;  // an answer that came after its time
  to_.time.record("command", key(), m.payload);
  busv1::AgentCommand c;
  const bool readable = c.ParseFromString(m.payload);
  auto all = session_->commanded(now(), deceived(m.payload), m.reply_to);
  if (readable && c.session() == session_->number() && session_->where() == warren::agent::phase::established) {
    if (std::exchange(owner_session_, c.session()) != c.session()) newest_owner_ = {};
    const std::pair owner{c.incarnation(), c.epoch()};
    if (owner < newest_owner_ && obeyed(all) && on_old_owner_obeyed) on_old_owner_obeyed(c.epoch(), newest_owner_.second);
    newest_owner_ = std::max(newest_owner_, owner);
  }
  act(std::move(all));
}

/// Anything but "that is stale".
bool agent_host::obeyed(const warren::agent::actions& all) {
  return std::any_of(all.begin(), all.end(), [](const warren::agent::action& a) {
    if (std::holds_alternative<warren::agent::say>(a)) return false;
    const auto* reply = std::get_if<warren::agent::send_reply>(&a);
    busv1::CommandReply said;
    return reply == nullptr || !said.ParseFromString(reply->payload) || said.error() != "stale";
  });
}

/// Planted bugs: what this agent would have noticed is made unnoticeable.
std::string agent_host::deceived(std::string payload) {
  const auto has = [this](bug b) { return to_.planted != nullptr && to_.planted->count(b) > 0; };
  if (!has(bug::dead_epoch_obeyed) && !has(bug::attachments_gap_ignored)) return payload;
  busv1::AgentCommand c;
  if (!c.ParseFromString(payload)) return payload;
  if (has(bug::dead_epoch_obeyed)) {
    c.set_epoch(std::int64_t{1} << 60);
    c.set_incarnation(1);
  }
  if (has(bug::attachments_gap_ignored)) {
    if (c.has_attach()) c.mutable_attach()->set_from_generation(session_->held().generation());
    if (c.has_detach()) c.mutable_detach()->set_from_generation(session_->held().generation());
  }
  return c.SerializeAsString();
}

void agent_host::act(warren::agent::actions all) {
  const auto mine = life_;
  for (auto& one : all) {
    if (mine != life_ || !running()) return;
    std::visit([this](auto& a) { perform(a); }, one);
  }
  if (mine != life_ || !running()) return;
  for (const auto& t : targets_->due(now().steady_ms))
    if (targets_->dialled(t, "", true, now().steady_ms)) act(session_->targets_changed(now()));
  look_at_clock();
}

void agent_host::perform(warren::agent::ask_hello& a) {
  const auto inbox = network::inbox(link_, next_inbox_++);
  hellos_[inbox] = a.number;
  to_.time.after(hello_timeout_ms, [this, inbox, number = a.number, mine = life_] {
    if (mine != life_ || !running()) return;
    hellos_.erase(inbox);
    act(session_->hello_failed(now(), number, "timeout"));
  });
  to_.net.request(link_, {bus::hello_subject(partition(), project_, "connector", name_), a.payload, inbox});
}

void agent_host::perform(warren::agent::send_heartbeat& a) {
  to_.net.publish(link_, {bus::heartbeat_subject(partition(), project_, "connector", name_), a.payload, ""});
}
void agent_host::perform(warren::agent::send_event& a) {
  to_.net.publish(link_, {bus::event_subject(partition(), project_, "connector", name_), a.payload, ""});
}
void agent_host::perform(warren::agent::send_reply& a) { to_.net.publish(link_, {a.reply_to, a.payload, ""}); }

void agent_host::perform(warren::agent::save_set& a) {
  const auto written = session_->held();
  // A disk that is put in after another was lost is slow at first: between the set that hello gave and its being
  // stored there is time for what a former life said.
  const auto slow = disk() > 0 && durable_.back() == 0;
  to_.time.after(to_.time.agents.between(1, slow ? 400 : 8), [this, written, generation = a.generation, mine = life_] {
    if (mine != life_ || !running()) return;
    disk_ = written;
    durable_.back() = std::max(durable_.back(), generation);
    act(session_->saved(now(), generation, ""));
  });
}

void agent_host::perform(warren::agent::set_changed& c) { targets_->attach(session_->held(), now().steady_ms, c.touched); }

void agent_host::perform(warren::agent::end_agent& a) {
  if (on_end) on_end(a.why);
  // Not from within its own session.
  to_.time.after(0, [this, mine = life_] {
    if (mine == life_) kill();
  });
}

void agent_host::perform(warren::agent::say& a) { to_.time.tell("agent {}: {}", key(), a.text); }

}  // namespace warren::simulation
