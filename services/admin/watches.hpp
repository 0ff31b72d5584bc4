// services/admin/watches.hpp -- server streams over the replica's watches. Internal to the room.
#pragma once

#include "services/admin/call.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

namespace warren::admin {

grpc::ServerWriteReactor<api::WatchTunnelsResponse>* watch_tunnels(context& shared, grpc::CallbackServerContext& of,
                                                                   const api::WatchTunnelsRequest& q);
grpc::ServerWriteReactor<api::WatchConnectorsResponse>* watch_connectors(context& shared,
                                                                         grpc::CallbackServerContext& of,
                                                                         const api::WatchConnectorsRequest& q);
grpc::ServerWriteReactor<api::WatchGatewaysResponse>* watch_gateways(context& shared, grpc::CallbackServerContext& of,
                                                                     const api::WatchGatewaysRequest& q);

}  // namespace warren::admin
