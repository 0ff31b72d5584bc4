// services/warrenctl/diag.cpp -- takes a diagnostic bundle from an instance into a file.
#include "services/warrenctl/diag.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include "warren/admin/v1/diag.grpc.pb.h"

namespace warren::ctl {

namespace api = warren::admin::v1;

bundle_saved save_bundle(const std::shared_ptr<grpc::Channel>& channel, const std::string& instance,
                         const std::string& file, std::chrono::system_clock::time_point until) {
  bundle_saved out;
  const auto part = file + ".part";
  const int fd = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) {
    out.file_error = part + ": " + std::strerror(errno);
    return out;
  }
  grpc::ClientContext context;
  context.set_deadline(until);
  api::GetBundleRequest q;
  q.set_instance(instance);
  auto reader = api::DiagnosticsService::NewStub(channel)->GetBundle(&context, q);
  api::BundleChunk chunk;
  while (out.file_error.empty() && reader->Read(&chunk)) {
    std::string_view left = chunk.data();
    while (!left.empty()) {
      const auto n = write(fd, left.data(), left.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        out.file_error = part + ": " + std::strerror(errno);
        context.TryCancel();
        break;
      }
      left.remove_prefix(static_cast<std::size_t>(n));
      out.bytes += static_cast<std::size_t>(n);
    }
  }
  out.status = reader->Finish();
  if (close(fd) != 0 && out.file_error.empty()) out.file_error = part + ": " + std::strerror(errno);
  if (out.status.ok() && out.file_error.empty() && rename(part.c_str(), file.c_str()) != 0)
    out.file_error = file + ": " + std::strerror(errno);
  if (!out.status.ok() || !out.file_error.empty()) unlink(part.c_str());
  return out;
}

}  // namespace warren::ctl
