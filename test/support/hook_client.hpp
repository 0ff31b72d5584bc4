// test/support/hook_client.hpp -- what Envoy Gateway is to the extension hook: sends bytes, waits for a server that is not
// there. Knows no room of services/.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <string>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

namespace warren::test {

class hook_client {
public:
  struct answer {
    grpc::Status status;
    std::string bytes;
  };

  explicit hook_client(const std::string& address,
                       std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials(),
                       const std::string& server_name = "") {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
    if (!server_name.empty()) arguments.SetSslTargetNameOverride(server_name);
    channel_ = grpc::CreateCustomChannel(address, credentials, arguments);
  }

  answer call(const std::string& method, const std::string& request, bool wait_for_ready = true,
              std::chrono::milliseconds patience = std::chrono::seconds{20}) const {
    grpc::ClientContext context;
    context.set_wait_for_ready(wait_for_ready);
    context.set_deadline(std::chrono::system_clock::now() + patience);
    grpc::Slice slice{request};
    grpc::ByteBuffer in{&slice, 1}, out;
    std::promise<grpc::Status> done;
    grpc::GenericStub stub{channel_};
    stub.UnaryCall(&context, method, {}, &in, &out, [&](grpc::Status s) { done.set_value(std::move(s)); });
    answer result{done.get_future().get(), ""};
    grpc::Slice all;
    if (result.status.ok() && out.DumpToSingleSlice(&all).ok())
      result.bytes.assign(reinterpret_cast<const char*>(all.begin()), all.size());
    return result;
  }
  answer translate(const std::string& request, bool wait_for_ready = true) const {
    return call("/envoygateway.extension.EnvoyGatewayExtension/PostTranslateModify", request, wait_for_ready);
  }
  bool healthy(const std::string& service = "") const {
    std::string request;
    if (!service.empty()) request = std::string{'\x0a', static_cast<char>(service.size())} + service;
    const auto a = call("/grpc.health.v1.Health/Check", request, false);
    return a.status.ok() && a.bytes == std::string{"\x08\x01"};  // SERVING
  }

private:
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace warren::test
