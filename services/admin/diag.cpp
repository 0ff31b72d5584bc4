// services/admin/diag.cpp -- hands out the diagnostic bundle, piece by piece, no faster than it is taken.
#include "services/admin/diag.hpp"

#include <thread>

#include <fmt/format.h>

namespace warren::admin {

namespace {

/// Makes a piece, writes it, waits until it is written. In a thread of its own: unpacking and redacting take
/// longer than a call of gRPC's may be held up.
class bundle_stream final : public grpc::ServerWriteReactor<api::BundleChunk>,
                            public std::enable_shared_from_this<bundle_stream> {
public:
  bundle_stream(std::vector<telemetry::bundle_part> parts, std::shared_ptr<std::atomic<std::size_t>> under_way)
      : writer_{std::move(parts), wall_ms()}, under_way_{std::move(under_way)} {}

  void start() {
    self_ = shared_from_this();
    std::thread{[self = self_] { self->make(); }}.detach();
  }
  void refuse(grpc::Status why) {
    self_ = shared_from_this();
    Finish(std::move(why));
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock{mutex_};
    writing_ = false;
    broken_ = broken_ || !ok;
    moved_.notify_one();
  }
  void OnDone() override {
    const auto last = std::move(self_);
    under_way_->fetch_sub(1);
  }

private:
  void make() {
    for (;;) {
      try {
        chunk_.set_data(writer_.next(limits::bundle_chunk_bytes));
      } catch (const std::exception& e) {
        return Finish(error_status(errc::internal, std::string{"the bundle cannot be made: "} + e.what()));
      }
      if (chunk_.data().empty()) return Finish(grpc::Status::OK);
      {
        const std::lock_guard lock{mutex_};
        writing_ = true;
      }
      StartWrite(&chunk_);
      std::unique_lock lock{mutex_};
      moved_.wait(lock, [this] { return !writing_; });
      if (broken_) {
        lock.unlock();
        return Finish(grpc::Status::CANCELLED);
      }
    }
  }

  telemetry::bundle_writer writer_;
  std::shared_ptr<std::atomic<std::size_t>> under_way_;
  std::shared_ptr<bundle_stream> self_;  ///< until gRPC is done with it
  api::BundleChunk chunk_;
  std::mutex mutex_;
  std::condition_variable moved_;
  bool writing_ = false, broken_ = false;
};

std::string name_of(const placement_info& placement, instance_id id) {
  for (const auto& each : placement.instances)
    if (each.id == id) return each.name;
  return "";
}

}  // namespace

std::string instances_text(const placement_info& placement, instance_id self) {
  if (!placement.error.empty()) return "not known: " + placement.error + "\n";
  std::string out = "id name started expires alive bus_ok draining\n";
  for (const auto& i : placement.instances)
    out += fmt::format("{}{} {} {} {} {} {} {}\n", i.id, i.id == self ? "*" : "", i.name, i.started_at_ms, i.expires_at_ms,
                       i.alive, i.bus_ok, i.draining);
  return out;
}

std::string partitions_text(const placement_info& placement, const replica::tables& tables) {
  std::string out = "id owner epoch revision replica_epoch replica_revision warm incarnation\n";
  std::map<partition_id, partition_info> owned;
  for (const auto& p : placement.partitions) owned[p.id] = p;
  for (const auto& [id, known] : tables.partitions) {
    const auto& p = owned[id];
    out += fmt::format("{} {} {} {} {} {} {} {}\n", id, p.owner, p.epoch, p.revision, known.epoch, known.revision,
                       known.warm, known.incarnation);
  }
  return out;
}

grpc::ServerWriteReactor<api::BundleChunk>* diagnostics_service::GetBundle(grpc::CallbackServerContext*,
                                                                           const api::GetBundleRequest* q) {
  std::vector<telemetry::bundle_part> parts;
  grpc::Status refusal;
  placement_info placement;
  if (shared_.config.placement) placement = shared_.config.placement();
  const auto self = shared_.config.self;
  const auto name = name_of(placement, self);
  const auto& wanted = q->instance();
  if (!wanted.empty() && wanted != name && wanted != fmt::format("instances/{}", self)) {
    refusal = error_status(errc::failed_precondition,
                           fmt::format("this is instance {} (instances/{}): ask the one that is wanted itself",
                                       name.empty() ? "?" : name, self));
  } else if (!shared_.config.diagnose) {
    refusal = error_status(errc::unavailable, "this instance keeps nothing to diagnose");
  }
  if (under_way_->fetch_add(1) >= limits::bundles_max && refusal.ok())
    refusal = error_status(errc::overloaded, "other bundles are being taken");
  if (refusal.ok()) {
    parts = shared_.config.diagnose();
    parts.push_back({"instances.txt", [placement, self] { return instances_text(placement, self); }});
    parts.push_back({"partitions.txt", [placement, &view = shared_.view] {
                       return view.read([&](const replica::tables& tables) { return partitions_text(placement, tables); });
                     }});
  }
  const auto made = std::make_shared<bundle_stream>(std::move(parts), under_way_);
  if (refusal.ok()) made->start();
  else made->refuse(std::move(refusal));
  return made.get();
}

}  // namespace warren::admin
