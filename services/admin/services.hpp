// services/admin/services.hpp -- the five gRPC services over one context. Internal to the room.
#pragma once

#include "services/admin/call.hpp"
#include "warren/admin/v1/admin.grpc.pb.h"

namespace warren::admin {

using google::protobuf::Empty;
using unary = grpc::ServerUnaryReactor;
using rpc = grpc::CallbackServerContext;

/// What each of them is: a service whose calls see the context.
template <class Service>
class over : public Service::CallbackService {
public:
  explicit over(context& shared) : shared_{shared} {}

protected:
  context& shared_;
};

class tunnel_service final : public over<api::TunnelService> {
public:
  using over::over;
  unary* CreateTunnel(rpc* of, const api::CreateTunnelRequest* q, api::Tunnel* a) override;
  unary* GetTunnel(rpc* of, const api::GetTunnelRequest* q, api::Tunnel* a) override;
  unary* ListTunnels(rpc* of, const api::ListTunnelsRequest* q, api::ListTunnelsResponse* a) override;
  unary* UpdateTunnel(rpc* of, const api::UpdateTunnelRequest* q, api::Tunnel* a) override;
  unary* DeleteTunnel(rpc* of, const api::DeleteTunnelRequest* q, api::Tunnel* a) override;
  unary* ExplainTunnel(rpc* of, const api::ExplainTunnelRequest* q, api::ExplainTunnelResponse* a) override;
  grpc::ServerWriteReactor<api::WatchTunnelsResponse>* WatchTunnels(rpc* of, const api::WatchTunnelsRequest* q) override;
};

class connector_service final : public over<api::ConnectorService> {
public:
  using over::over;
  unary* CreateConnector(rpc* of, const api::CreateConnectorRequest* q, api::Connector* a) override;
  unary* GetConnector(rpc* of, const api::GetConnectorRequest* q, api::Connector* a) override;
  unary* ListConnectors(rpc* of, const api::ListConnectorsRequest* q, api::ListConnectorsResponse* a) override;
  unary* UpdateConnector(rpc* of, const api::UpdateConnectorRequest* q, api::Connector* a) override;
  unary* DeleteConnector(rpc* of, const api::DeleteConnectorRequest* q, api::Connector* a) override;
  unary* EnrolConnector(rpc* of, const api::EnrolConnectorRequest* q, api::EnrolConnectorResponse* a) override;
  unary* ExplainConnector(rpc* of, const api::ExplainConnectorRequest* q, api::ExplainConnectorResponse* a) override;
  unary* RotateConnectorKey(rpc* of, const api::RotateConnectorKeyRequest* q, api::Connector* a) override;
  grpc::ServerWriteReactor<api::WatchConnectorsResponse>* WatchConnectors(rpc* of, const api::WatchConnectorsRequest* q) override;
};

class gateway_service final : public over<api::GatewayService> {
public:
  using over::over;
  unary* CreateGateway(rpc* of, const api::CreateGatewayRequest* q, api::Gateway* a) override;
  unary* GetGateway(rpc* of, const api::GetGatewayRequest* q, api::Gateway* a) override;
  unary* ListGateways(rpc* of, const api::ListGatewaysRequest* q, api::ListGatewaysResponse* a) override;
  unary* UpdateGateway(rpc* of, const api::UpdateGatewayRequest* q, api::Gateway* a) override;
  unary* DeleteGateway(rpc* of, const api::DeleteGatewayRequest* q, Empty* a) override;
  grpc::ServerWriteReactor<api::WatchGatewaysResponse>* WatchGateways(rpc* of, const api::WatchGatewaysRequest* q) override;
  unary* GetGatewayBootstrap(rpc* of, const api::GetGatewayBootstrapRequest* q, api::GatewayBootstrap* a) override;
};

class class_service final : public over<api::ClassService> {
public:
  using over::over;
  unary* CreateConnectorClass(rpc* of, const api::CreateConnectorClassRequest* q, api::ConnectorClass* a) override;
  unary* GetConnectorClass(rpc* of, const api::GetConnectorClassRequest* q, api::ConnectorClass* a) override;
  unary* ListConnectorClasses(rpc* of, const api::ListConnectorClassesRequest* q, api::ListConnectorClassesResponse* a) override;
  unary* UpdateConnectorClass(rpc* of, const api::UpdateConnectorClassRequest* q, api::ConnectorClass* a) override;
  unary* DeleteConnectorClass(rpc* of, const api::DeleteConnectorClassRequest* q, Empty* a) override;
  unary* CreateGatewayClass(rpc* of, const api::CreateGatewayClassRequest* q, api::GatewayClass* a) override;
  unary* GetGatewayClass(rpc* of, const api::GetGatewayClassRequest* q, api::GatewayClass* a) override;
  unary* ListGatewayClasses(rpc* of, const api::ListGatewayClassesRequest* q, api::ListGatewayClassesResponse* a) override;
  unary* UpdateGatewayClass(rpc* of, const api::UpdateGatewayClassRequest* q, api::GatewayClass* a) override;
  unary* DeleteGatewayClass(rpc* of, const api::DeleteGatewayClassRequest* q, Empty* a) override;
};

class operations_service final : public over<api::OperationsService> {
public:
  using over::over;
  unary* GetInstance(rpc* of, const api::GetInstanceRequest* q, api::Instance* a) override;
  unary* ListInstances(rpc* of, const api::ListInstancesRequest* q, api::ListInstancesResponse* a) override;
  unary* DrainInstance(rpc* of, const api::DrainInstanceRequest* q, api::Instance* a) override;
  unary* GetPartition(rpc* of, const api::GetPartitionRequest* q, api::Partition* a) override;
  unary* ListPartitions(rpc* of, const api::ListPartitionsRequest* q, api::ListPartitionsResponse* a) override;
  unary* ListAuditEvents(rpc* of, const api::ListAuditEventsRequest* q, api::ListAuditEventsResponse* a) override;
  unary* GetServerInfo(rpc* of, const api::GetServerInfoRequest* q, api::ServerInfo* a) override;
};

}  // namespace warren::admin
