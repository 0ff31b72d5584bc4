// services/admin/convert.hpp -- rows as the API shows them. Pure: no gRPC, no I/O, no clock.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "services/bus/user_jwt.hpp"
#include "services/replica/view.hpp"
#include "warren/admin/v1/admin.pb.h"

namespace warren::admin {

namespace api = warren::admin::v1;
namespace corev1 = warren::core::v1;

/// uid and generation: a change of status does not move it.
std::string etag_of(std::string_view uid, std::int64_t generation);

/// `derived` null or empty: only the stored conditions are shown.
api::Tunnel to_api(const corev1::TunnelRow& row, const std::vector<corev1::Condition>* derived);
api::Connector to_api(const corev1::ConnectorRow& row);
api::ConnectorClass to_api(const corev1::ConnectorClassRow& row);
api::GatewayClass to_api(const corev1::GatewayClassRow& row);
/// With what its acknowledgements say; `each_partition`: of each by itself, too.
api::Gateway to_api(const corev1::GatewayRow& row, const replica::tables& tables, bool each_partition);

struct agent_bus {
  std::vector<std::string> urls;  ///< as agents reach it
  std::string user, password, credentials;  ///< of all of them, where none are issued
  /// Issues what this connector's agent alone may use; not set: agents share a user, and may impersonate each other.
  std::function<warren::bus::agent_credentials(const corev1::ConnectorRow&)> issue;
};
/// What an agent has to know of itself.
api::Enrolment enrolment_of(const corev1::ConnectorRow& row, const agent_bus& bus);
/// The agent's enrolment file; nothing: there is something in it that JSON cannot say.
std::optional<std::string> enrolment_json(const api::Enrolment& e);

}  // namespace warren::admin
