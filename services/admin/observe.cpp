// services/admin/observe.cpp -- asks connectors' owners what only they know. No gRPC service, no CAF.
#include "services/admin/observe.hpp"

namespace warren::admin {

namespace {

constexpr millis patience{500};  // an owner answers from memory, within a millisecond or two

/// Counts the answers of one round.
struct round {
  std::mutex mutex;
  observations heard;
  std::size_t open = 0;
  std::function<void(observations)> done;

  void answered(const std::string& name, const corev1::Reply& reply) {
    {
      std::lock_guard lock{mutex};
      if (reply.code().empty() && reply.has_observed()) heard[name] = reply.observed();
      if (--open > 0) return;
    }
    done(std::move(heard));
  }
};

}  // namespace

void observe(context& shared, const std::string& project, const std::set<std::string>& connectors,
             std::chrono::system_clock::time_point deadline, std::function<void(observations)> done) {
  if (connectors.empty()) return done({});
  auto all = std::make_shared<round>();
  all->open = connectors.size();
  all->done = std::move(done);
  const auto until = std::min(deadline, std::chrono::system_clock::now() + patience);
  for (const auto& name : connectors) {
    corev1::Command command;
    command.set_project(project);
    command.mutable_caller()->set_method("ObserveConnector");
    command.mutable_observe_connector()->set_name(name);
    forward({shared.config.send, shared.news, shared.config.counts}, shared.partition_of(project), std::move(command), until, {},
            [all, name](const forwarded& f) { all->answered(name, f.reply); });
  }
}

}  // namespace warren::admin
