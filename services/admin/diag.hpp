// services/admin/diag.hpp -- hands out the diagnostic bundle. Internal to the room.
#pragma once

#include "services/admin/call.hpp"
#include "warren/admin/v1/diag.grpc.pb.h"

namespace warren::admin {

class diagnostics_service final : public api::DiagnosticsService::CallbackService {
public:
  explicit diagnostics_service(context& shared) : shared_{shared} {}
  grpc::ServerWriteReactor<api::BundleChunk>* GetBundle(grpc::CallbackServerContext* of,
                                                        const api::GetBundleRequest* q) override;

private:
  context& shared_;
  std::shared_ptr<std::atomic<std::size_t>> under_way_ = std::make_shared<std::atomic<std::size_t>>(0);
};

/// As people read it: a line each.
std::string instances_text(const placement_info& placement, instance_id self);
std::string partitions_text(const placement_info& placement, const replica::tables& tables);

}  // namespace warren::admin
