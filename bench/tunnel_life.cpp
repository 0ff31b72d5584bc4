// bench/tunnel_life.cpp -- from a creation to a visitor's 200, leg by leg, with tunnels loaded and a real Envoy.
#include <algorithm>

#include <fmt/format.h>

#include "bench/postgres.hpp"
#include "bench/visitor.hpp"
#include "bench/world.hpp"
#include "services/bus/connection.hpp"

using namespace warren;
using namespace warren::bench;

namespace {

constexpr auto project = "demo";

/// Request and reply through the same nats-server, with nobody else in between.
sample nats_alone(const stack::stack& world, int count) {
  bus::connection_options to;
  to.urls = {world.nats_url()};
  to.user = "warren";
  to.password = world.nats_password();
  to.bulk_connection = false;
  to.name = "bench/echo";
  const auto echo = bus::connection::open(to);
  to.name = "bench/asker";
  const auto asker = bus::connection::open(to);
  const auto serving = echo->subscribe("bench.echo", [&](std::string_view, std::string_view payload, std::string_view reply_to) {
    echo->publish(reply_to, payload);
  });
  echo->flush(millis{2'000});
  sample out;
  for (int i = 0; i < count; ++i) {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false, failed = false;
    const auto begun = clock::now();
    asker->request("bench.echo", std::string(100, 'x'), millis{2'000}, [&](bus::request_error e, std::string_view) {
      const std::lock_guard lock{mutex};
      done = true;
      failed = e != bus::request_error::none;
      changed.notify_all();
    });
    std::unique_lock lock{mutex};
    changed.wait(lock, [&] { return done; });
    if (!failed) out.add(ms_between(begun, clock::now()));
  }
  return out;
}

struct legs {
  sample commit, replica, programmed, attached, ready, visitor;
};

}  // namespace

int main(int argc, char** argv) {
  command_line line{"tunnel_life", "From a creation to a visitor's 200, leg by leg."};
  int loaded_tunnels = 1'000, measured = 300, agents = 4, pause_us = 500, gap_ms = 20;
  line.app.add_option("--loaded", loaded_tunnels, "Tunnels that are there before")->check(CLI::Range(0, 100'000));
  line.app.add_option("--measured", measured, "Tunnels created one after another")->check(CLI::Range(1, 100'000));
  line.app.add_option("--agents", agents, "Connectors, each a real agent")->check(CLI::Range(1, 64));
  line.app.add_option("--visitor-pause-us", pause_us, "Between a visitor's answer and the next visit")->check(CLI::Range(0, 1'000'000));
  line.app.add_option("--gap-ms", gap_ms, "Between the end of one and the next creation")->check(CLI::Range(0, 10'000));
  return line.run(argc, argv, [&] {
    if (!stack::has_envoy()) throw stack::stack_error("WARREN_ENVOY names no Envoy");
    line.say("starting PostgreSQL, NATS, warrend, Envoy and the agents");
    stack::stack world{as_by_default(project)};
    std::vector<std::string> connectors;
    for (int i = 0; i < agents; ++i) connectors.push_back(world.add_agent(fmt::format("agent-{}", i)).name());
    for (const auto& name : connectors) world.find_agent(name).await_session();
    const api server{world.admin_port()};
    tunnel_watch watch{server, project};
    const auto target = world.demo_origin().url();

    line.say(fmt::format("loading {} tunnels", loaded_tunnels));
    const auto load = load_tunnels(server, watch, project, connectors, target, loaded_tunnels);

    std::this_thread::sleep_for(milliseconds{1'500});  // what loading leaves behind, counters that are read once a second included
    line.say(fmt::format("creating {} tunnels one after another", measured));
    legs with, without;  // a visitor who asks all the time
    std::size_t not_expected = 0;
    const auto transactions = world.metric("warren_store_transactions_total");
    const auto bytes = world.metric("warren_gateway_push_bytes_total");
    const auto responses = world.metric("warren_gateway_pushes_total");
    const auto messages = world.metric("warren_bus_messages_total", "out");
    const auto create = [&](const std::string& name, std::size_t n, legs& into, bool visited) {
      const auto host = name + ".bench.example";
      std::optional<gaze> visitor;
      if (visited) {
        visitor.emplace(world.visitor_port(), host, std::chrono::microseconds{pause_us});
        if (!visitor->await_status(404, clock::time_point{}, milliseconds{5'000}))
          throw stack::stack_error(host + ": a host name that is not there is not answered with 404");
      }
      const auto begun = clock::now();
      must(server.create_tunnel(project, name, host, connectors[n % connectors.size()], target), name);
      const auto answered = clock::now();
      const auto life = watch.await_ready(name, milliseconds{20'000});
      if (!life) throw stack::stack_error(name + " is not Ready after 20 s");
      into.commit.add(ms_between(begun, answered));
      into.replica.add(ms_between(begun, *life->seen));
      if (life->programmed) into.programmed.add(ms_between(begun, *life->programmed));
      if (life->attached) into.attached.add(ms_between(begun, *life->attached));
      into.ready.add(ms_between(begun, *life->ready));
      if (visitor) {
        const auto first = visitor->await_status(200, begun, milliseconds{20'000});
        if (!first) throw stack::stack_error(name + ": no visitor got through in 20 s");
        into.visitor.add(ms_between(begun, first->answered));
        not_expected += visitor->total() - visitor->count(200) - visitor->count(404) - visitor->count(503);
      }
      visitor.reset();
      std::this_thread::sleep_for(milliseconds{gap_ms});
    };
    for (int n = 0; n < measured; ++n) create(fmt::format("quiet-{}", n), static_cast<std::size_t>(n), without, false);
    const auto each = [&](double before, double now) { return (now - before) / measured; };
    const auto transactions_each = each(transactions, world.metric("warren_store_transactions_total"));
    const auto bytes_each = each(bytes, world.metric("warren_gateway_push_bytes_total"));
    const auto responses_each = each(responses, world.metric("warren_gateway_pushes_total"));
    const auto messages_each = each(messages, world.metric("warren_bus_messages_total", "out"));
    for (int n = 0; n < measured; ++n) create(fmt::format("visited-{}", n), static_cast<std::size_t>(n), with, true);

    // After the deed it must be true: no visitor sent after Ready meets anything but 200.
    std::size_t late = 0;
    for (int n = 0; n < measured; n += std::max(1, measured / 50))
      if (look(world.visitor_port(), fmt::format("quiet-{}.bench.example", n)).status != 200) ++late;

    line.say("PostgreSQL and NATS alone");
    report out{"tunnel_life"};
    const goal wanted{15, 50, {}};
    out.leg("created → call answered (committed, replica caught up)", without.commit);
    out.leg("created → first watch event (replica)", without.replica);
    out.leg("created → Programmed (gateway's ACK, stored)", without.programmed);
    out.leg("created → ConnectorMetadataProgrammed (agent's ACK, routed)", without.attached);
    out.leg("created → Ready", without.ready, wanted);
    out.leg("with a visitor: created → call answered", with.commit);
    out.leg("with a visitor: created → Programmed", with.programmed);
    out.leg("with a visitor: created → Ready", with.ready, wanted);
    out.leg("with a visitor: created → first 200", with.visitor, wanted);
    out.leg("limit: PostgreSQL alone, one-row commit", commit_alone(world.database_url(), 500));
    out.leg("limit: NATS alone, request and reply", nats_alone(world, 500));
    out.figure("transactions for each creation", transactions_each, "");
    out.figure("responses to the gateway for each creation", responses_each, "");
    out.figure("bytes to the gateway for each creation", bytes_each, "B");
    out.figure("NATS messages sent for each creation (timers of that time included)", messages_each, "");
    out.figure("loading: creations answered", load.created_s > 0 ? loaded_tunnels / load.created_s : 0, "/s");
    out.figure("loading: creations Ready", load.ready_s > 0 ? loaded_tunnels / load.ready_s : 0, "/s");
    out.figure("answers that were neither 200, 404 nor 503", static_cast<double>(not_expected), "", 0);
    out.figure("visits after Ready that were not 200", static_cast<double>(late), "", 0);
    out.note(fmt::format("{} tunnels loaded over {} agents; {} measured without and {} with a visitor", loaded_tunnels,
                         agents, measured, measured));
    return out;
  });
}
