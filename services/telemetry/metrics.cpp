// services/telemetry/metrics.cpp -- the one table of metrics, and warren::counters over it.
#include "services/telemetry/metrics.hpp"

#include <cassert>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <spdlog/spdlog.h>

namespace warren::telemetry {

namespace {

enum class type { counter, gauge, histogram };

struct metric {
  std::string_view name;
  type what;
  std::string_view label;  // empty: none
  std::string_view help;
};

constexpr metric table[] = {
    // decisions
    {"warren_conflicts_total", type::counter, "write", "Writes that found another version and were retried."},
    {"warren_conflict_retry_seconds", type::histogram, "", "From a write's first conflict to its success."},
    {"warren_reconcile_errors_total", type::counter, "", "Steps that failed for another reason than a conflict or an outage."},
    {"warren_heartbeats_total", type::counter, "", "Heartbeats of agents."},
    {"warren_connectors_online", type::gauge, "", "Connectors that this instance owns and holds to be online."},
    {"warren_mass_silence", type::gauge, "", "1 while silence does not count, because too many fell silent at once."},
    {"warren_agent_commands_total", type::counter, "command", "Commands sent to agents."},
    {"warren_partitions_owned", type::gauge, "", "Partitions that this instance owns."},
    {"warren_partitions_behind", type::gauge, "", "Partitions of this instance that have not looked at their clock for 3 s."},
    {"warren_takeovers_total", type::counter, "", "Partitions taken by this instance."},
    {"warren_recorder_left_out_total", type::counter, "", "Steps too large for the flight recorder."},
    // bus
    {"warren_bus_connected", type::gauge, "", "1 while connected to NATS."},
    {"warren_bus_messages_total", type::counter, "direction", "Messages received and sent."},
    {"warren_bus_dropped_total", type::counter, "reason", "Messages that were not sent or not accepted."},
    // store
    {"warren_store_up", type::gauge, "", "1 while the database answers."},
    {"warren_store_transactions_total", type::counter, "", "Transactions committed."},
    {"warren_store_transitions_total", type::counter, "outcome", "Transitions asked of the store, by their answer."},
    {"warren_store_rows_written_total", type::counter, "table", "Rows inserted, updated and deleted."},
    {"warren_store_commit_seconds", type::histogram, "", "From BEGIN to the answer to COMMIT."},
    {"warren_store_queue", type::gauge, "lane", "Transitions that wait for a transaction."},
    {"warren_store_group_size", type::histogram, "", "Transitions in one transaction (a number, not seconds)."},
    {"warren_store_reconnects_total", type::counter, "", "Connections to the database that were opened again."},
    // dialer
    {"warren_dials_total", type::counter, "outcome", "Dials to agents by this instance."},
    // replica
    {"warren_replica_gaps_total", type::counter, "", "Missed revisions that were fetched."},
    {"warren_replica_revision_lag", type::gauge, "", "Revisions, over all partitions, that the replica knows of and lacks."},
    {"warren_replica_rows", type::gauge, "table", "Rows in the replica."},
    {"warren_watch_streams", type::gauge, "", "Open watches."},
    // gateways
    {"warren_gateway_pushes_total", type::counter, "type", "Responses sent to gateways."},
    {"warren_gateway_push_bytes_total", type::counter, "type", "Bytes of responses sent to gateways."},
    {"warren_gateway_acks_total", type::counter, "type", "Responses that gateways acknowledged."},
    {"warren_gateway_nacks_total", type::counter, "type", "Responses that gateways refused."},
    {"warren_gateway_streams", type::gauge, "", "Gateways connected to this instance."},
    {"warren_gateway_refused_streams_total", type::counter, "", "Streams of gateways that are not registered or not allowed."},
    {"warren_gateway_held_streams_total", type::counter, "", "Streams of gateways that waited for this instance to read everything."},
    {"warren_gateway_stalled", type::gauge, "", "Gateways that do not acknowledge what they were sent."},
    {"warren_gateway_ack_seconds", type::histogram, "", "From a push to its acknowledgement."},
    // the extension hook; the names are those of what it replaces
    {"nso_extension_hook_calls_total", type::counter, "outcome", "Calls of PostTranslateModify by outcome."},
    {"nso_extension_hook_duration_seconds", type::histogram, "outcome", "Time to answer PostTranslateModify by outcome."},
    {"nso_extension_connector_clusters_replaced_total", type::counter, "", "Clusters replaced by ones that lead to connectors."},
    {"nso_extension_connector_routes_applied_total", type::counter, "", "Virtual hosts whose CONNECT was led to a connector or refused."},
    {"nso_extension_connector_offline_routes_total", type::counter, "", "Visitors' routes that were made to answer 503."},
    {"warren_hook_certificate_changes_total", type::counter, "outcome", "Changed certificates that the hook took (success) or could not use (error)."},
    {"warren_retranslate_signals_total", type::counter, "reason", "Times that Envoy Gateway had to be asked to translate again."},
    {"warren_retranslate_webhook_total", type::counter, "outcome", "Attempts to deliver such a signal to the webhook."},
    // admin API
    {"warren_admin_requests_total", type::counter, "code", "Requests to the admin API by gRPC status."},
    {"warren_admin_forward_retries_total", type::counter, "", "Requests sent again because a partition's owner was not found or refused."},
    {"warren_admin_request_seconds", type::histogram, "", "Time to answer a request to the admin API."},
};

const prometheus::Histogram::BucketBoundaries& buckets() {
  static const prometheus::Histogram::BucketBoundaries out{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                           0.25,   0.5,   1,      2.5,   5,    10,    30,   60};
  return out;
}

constexpr std::size_t labels_max = 200;  // values of one metric; beyond: "other". A label is never an entity's name

}  // namespace

struct metrics::impl {
  struct family {
    metric what;
    prometheus::Family<prometheus::Counter>* counters = nullptr;
    prometheus::Family<prometheus::Gauge>* gauges = nullptr;
    prometheus::Family<prometheus::Histogram>* histograms = nullptr;
    // Children by label, so that counting takes a shared lock and two look-ups.
    mutable std::shared_mutex mutex;
    std::map<std::string, void*, std::less<>> children;
  };

  prometheus::Registry registry;
  std::unordered_map<std::string_view, family> families;
  std::mutex unknown_mutex;
  std::set<std::string, std::less<>> unknown;

  explicit impl(std::string_view instance_name) {
    const prometheus::Labels constant =
        instance_name.empty() ? prometheus::Labels{} : prometheus::Labels{{"warren_instance", std::string{instance_name}}};
    for (const auto& each : table) {
      auto& made = families[each.name];
      made.what = each;
      const std::string name{each.name}, help{each.help};
      switch (each.what) {
        case type::counter: made.counters = &prometheus::BuildCounter().Name(name).Help(help).Labels(constant).Register(registry); break;
        case type::gauge: made.gauges = &prometheus::BuildGauge().Name(name).Help(help).Labels(constant).Register(registry); break;
        case type::histogram: made.histograms = &prometheus::BuildHistogram().Name(name).Help(help).Labels(constant).Register(registry); break;
      }
      if (each.label.empty()) child(made, {});  // shown as 0 before anything happens
    }
  }

  void* child(family& of, std::string_view label) {
    {
      const std::shared_lock lock{of.mutex};
      if (const auto at = of.children.find(label); at != of.children.end()) return at->second;
    }
    const std::unique_lock lock{of.mutex};
    if (const auto at = of.children.find(label); at != of.children.end()) return at->second;
    const std::string value{of.children.size() < labels_max ? label : std::string_view{"other"}};
    prometheus::Labels labels;
    if (!of.what.label.empty()) labels.emplace(std::string{of.what.label}, value);
    void* made = nullptr;
    switch (of.what.what) {
      case type::counter: made = &of.counters->Add(labels); break;
      case type::gauge: made = &of.gauges->Add(labels); break;
      case type::histogram: made = &of.histograms->Add(labels, buckets()); break;
    }
    return of.children.emplace(value, made).first->second;
  }

  void* find(std::string_view name, type wanted, std::string_view label) {
    const auto at = families.find(name);
    if (at != families.end() && at->second.what.what == wanted && (label.empty() || !at->second.what.label.empty()))
      return child(at->second, label);
    {
      const std::lock_guard lock{unknown_mutex};
      if (unknown.emplace(name).second) spdlog::error("telemetry: no such metric, type or label: {} {}", name, label);
    }
    assert(false && "a metric that is not in the table");
    return nullptr;
  }
};

metrics::metrics(std::string_view instance_name) : impl_(std::make_unique<impl>(instance_name)) {}
metrics::~metrics() = default;

void metrics::add(std::string_view name, std::string_view label, double n) {
  if (auto* found = impl_->find(name, type::counter, label)) static_cast<prometheus::Counter*>(found)->Increment(n);
}
void metrics::set(std::string_view name, double value, std::string_view label) {
  if (auto* found = impl_->find(name, type::gauge, label)) static_cast<prometheus::Gauge*>(found)->Set(value);
}
void metrics::observe(std::string_view name, double value, std::string_view label) {
  if (auto* found = impl_->find(name, type::histogram, label)) static_cast<prometheus::Histogram*>(found)->Observe(value);
}
std::string metrics::text() const { return prometheus::TextSerializer{}.Serialize(impl_->registry.Collect()); }

}  // namespace warren::telemetry
