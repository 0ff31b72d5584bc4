// services/gateway/programmed.hpp -- /debug/programmed: what each gateway shall run beside what it has acknowledged, as
// JSON. Names and versions only: no content, so no secrets.
//
//   /debug/programmed                          the gateways that are connected to this instance
//   /debug/programmed?gateway=NAME             one, with a page of each kind of resource
//     &kind=cds|lds|rds|srds                   only these
//     &after=NAME                              those that follow it; `next` of the page before
//     &limit=N                                 1 ... 5000 of each kind; 1000
//     &different=1                             only where the two versions differ
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "services/gateway/xds.hpp"

namespace warren::gateway {

struct debug_page {
  int status = 200;  ///< of HTTP
  std::string json;
};

/// `query`: what follows the '?', as it came.
debug_page programmed_json(const gateway_server& server, std::string_view query);

}  // namespace warren::gateway
