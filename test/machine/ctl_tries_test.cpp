// test/machine/ctl_tries_test.cpp -- whom warrenctl asks for how long, and when it stops.
#include <catch2/catch.hpp>

#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "services/warrenctl/tries.hpp"

using namespace std::chrono_literals;
using warren::ctl::milliseconds;
using warren::ctl::system_clock;
using warren::ctl::tries;

namespace {

using code = grpc::StatusCode;

grpc::Status refusal(code c, const std::string& message, milliseconds retry = 0ms) {
  google::rpc::Status details;
  details.set_code(static_cast<int>(c));
  google::rpc::ErrorInfo info;
  info.set_reason("UNAVAILABLE");
  details.add_details()->PackFrom(info);
  if (retry > 0ms) {
    google::rpc::RetryInfo again;
    again.mutable_retry_delay()->set_seconds(retry.count() / 1000);
    again.mutable_retry_delay()->set_nanos(static_cast<std::int32_t>(retry.count() % 1000) * 1'000'000);
    details.add_details()->PackFrom(again);
  }
  return {c, message, details.SerializeAsString()};
}
const grpc::Status no_connection{code::UNAVAILABLE, "failed to connect"};
const grpc::Status cut{code::CANCELLED, "cancelled"};
const grpc::Status final_word = refusal(code::NOT_FOUND, "there is none");

/// Plays one call: each server has an answer, and says it at once or (DEADLINE_EXCEEDED) when the try is over.
struct played {
  const system_clock::time_point begin{1'000'000s};
  system_clock::time_point now = begin;
  std::vector<milliseconds> shares;         // what each try got
  std::vector<std::size_t> asked;           // whom
  std::string told;
  milliseconds took{0};

  played(milliseconds timeout, const std::vector<grpc::Status>& servers) {
    tries all{servers.size(), begin + timeout};
    for (std::size_t at = 0;;) {
      const auto end = all.next(now);
      shares.push_back(std::chrono::duration_cast<milliseconds>(end - now));
      asked.push_back(at);
      REQUIRE(asked.size() < 1000);
      const bool silent = servers[at].error_code() == code::DEADLINE_EXCEEDED;
      if (silent) now = end;
      const auto again = all.after(servers[at], now);
      if (!again) {
        told = all.told().error_message();
        CHECK(all.made() == asked.size());
        break;
      }
      if (again->elsewhere) at = (at + 1) % servers.size();
      now += again->pause;
    }
    CHECK(now <= begin + timeout);
    took = std::chrono::duration_cast<milliseconds>(now - begin);
  }
};
const grpc::Status silence{code::DEADLINE_EXCEEDED, "Deadline Exceeded"};
using spans = std::vector<milliseconds>;
using order = std::vector<std::size_t>;

}  // namespace

TEST_CASE("the only server has the whole time; it is asked again when it is not reached, or says that it may be") {
  CHECK(played{10s, {silence}}.shares == spans{10s});
  CHECK(played{10s, {final_word}}.shares == spans{10s});
  CHECK(played{10s, {no_connection}}.asked == order{0, 0});
  CHECK(played{10s, {cut}}.asked == order{0, 0});
  CHECK(played{10s, {refusal(code::UNAVAILABLE, "the database is away")}}.asked == order{0});
  CHECK(played{10s, {refusal(code::RESOURCE_EXHAUSTED, "too many", 100ms)}}.asked == order{0});
  // NATS is away for everybody: the change waits for it.
  const played waits{10s, {refusal(code::UNAVAILABLE, "NATS", 250ms)}};
  CHECK(waits.asked.size() == 40);
  CHECK(waits.shares.back() == 250ms);
  CHECK(waits.told == "NATS");
}

TEST_CASE("of several servers none can use up the time of the others") {
  // Silent ones, and at last one that answers.
  CHECK(played{10s, {silence, silence, final_word}}.shares == spans{2s, 2s, 2s});
  CHECK(played{10s, {silence, silence, final_word}}.told == "there is none");
  CHECK(played{3s, {silence, silence, final_word}}.shares == spans{1s, 1s, 1s});
  CHECK(played{5s, {silence, final_word}}.shares == spans{2s, 2s});
  CHECK(played{10s, {no_connection, final_word}}.asked == order{0, 1});
  CHECK(played{10s, {cut, final_word}}.asked == order{0, 1});
  CHECK(played{10s, {refusal(code::UNAVAILABLE, "this instance does not reach NATS", 250ms), final_word}}.took == 0ms);
  CHECK(played{10s, {refusal(code::UNAVAILABLE, "still reading"), final_word}}.asked == order{0, 1});
  // A word that another one would not change is the last one.
  for (const auto c : {code::NOT_FOUND, code::INVALID_ARGUMENT, code::ABORTED, code::INTERNAL, code::RESOURCE_EXHAUSTED, code::UNIMPLEMENTED})
    CHECK(played{10s, {refusal(c, "no"), final_word}}.asked == order{0});
}

TEST_CASE("the servers are asked round after round until the time is over, each longer than before") {
  CHECK(played{30s, {silence, silence}}.shares == spans{2s, 2s, 4s, 4s, 8s, 8s, 1s, 400ms});
  const played none{5s, {no_connection, no_connection, no_connection}};
  CHECK(none.took > 4'500ms);
  CHECK(none.asked.size() > 6);
  CHECK(none.told == "failed to connect");
  // Whoever asks for a pause gets it, between rounds.
  const played paused{5s, {refusal(code::UNAVAILABLE, "one", 1s), refusal(code::UNAVAILABLE, "two", 2s)}};
  CHECK(paused.asked == order{0, 1, 0, 1, 0, 1});
  CHECK(paused.took == 4s);
  CHECK(played{100ms, {refusal(code::UNAVAILABLE, "an hour", 3'600s), no_connection}}.asked == order{0, 1});
}

TEST_CASE("when all have answered that they cannot, and none that it may be asked again, it is over") {
  const auto away = refusal(code::UNAVAILABLE, "the database is away");
  const played over{10s, {away, away, away}};
  CHECK(over.asked == order{0, 1, 2});
  CHECK(over.took == 0ms);
  CHECK(played{10s, {away, no_connection}}.asked.size() > 2);
}

TEST_CASE("what is told in the end is what says most") {
  const auto away = refusal(code::UNAVAILABLE, "NATS is away", 250ms);
  CHECK(played{10s, {away, silence}}.told == "NATS is away");
  CHECK(played{10s, {silence, away, no_connection}}.told == "NATS is away");
  CHECK(played{10s, {silence, no_connection}}.told == "failed to connect");
  CHECK(played{1s, {silence, final_word}}.asked == order{0});
  CHECK(played{1s, {silence, final_word}}.told == "Deadline Exceeded");
}
