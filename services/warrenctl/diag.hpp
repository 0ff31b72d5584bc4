// services/warrenctl/diag.hpp -- takes a diagnostic bundle from an instance into a file.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

namespace warren::ctl {

struct bundle_saved {
  grpc::Status status;
  std::string file_error;  ///< not empty: the file cannot be written, and why
  std::size_t bytes = 0;
};

/// The file appears when it is whole, readable by its owner only; nothing is left of one that was cut off.
bundle_saved save_bundle(const std::shared_ptr<grpc::Channel>& channel, const std::string& instance,
                         const std::string& file, std::chrono::system_clock::time_point until);

}  // namespace warren::ctl
