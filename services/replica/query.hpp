// services/replica/query.hpp -- lists over the read copy: filter, order, pages. Pure: no CAF, no I/O.
//
//   filter    field op value [AND field op value …]      op: = != < <= > >= :
//   value     a word, or text in double quotes (\" and \\ inside); times in RFC 3339, e.g. "2026-01-31T12:00:00Z"
//   order_by  field [asc|desc], field [asc|desc], …
//
// `:` asks whether text contains the value, or a list an element that is equal to it. Of a list `=` means
// that an element is equal, `!=` that none is. Conditions are "True", "False" or "Unknown", in any case.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "actors/core/error.hpp"
#include "services/replica/view.hpp"

namespace warren::replica {

struct list_request {
  std::string project;        ///< empty: of all projects (tunnels, connectors)
  std::string filter, order_by;
  int page_size = 0;          ///< 0: the default; more than the greatest is cut down to it; negative: refused
  std::string page_token;     ///< only with the same project, filter and order_by
};

/// `error` set: nothing else is. Its field is "filter", "order_by", "page_token" or "page_size".
template <class Item> struct list_page {
  std::optional<violation> error;
  std::vector<Item> items;
  std::string next_page_token;  ///< empty: that was all
  /// The token of a page that ends with items[n], for whoever can show no more of them than that; empty on an error.
  std::function<std::string(std::size_t n)> token_after;
};

/// A tunnel of a list: its bytes, unpacked as far as somebody asks, so that a page of large ones costs what is shown.
class tunnel_item {
public:
  tunnel_item(packed_row<v1::TunnelRow> row, packed_status status) : packed_{std::move(row)}, packed_status_{std::move(status)} {}
  const row_ptr<v1::TunnelRow>& row() const;
  const condition_list& conditions() const;
  /// Lets go of what was unpacked.
  void pack();

private:
  packed_row<v1::TunnelRow> packed_;
  packed_status packed_status_;
  mutable row_ptr<v1::TunnelRow> row_;
  mutable std::optional<condition_list> conditions_;
};
using connector_item = row_ptr<v1::ConnectorRow>;
/// What all instances say of one gateway, over all partitions.
struct gateway_summary {
  std::string state = "never_seen";     ///< "connecting", "caught_up", "stalled", "gone": the worst of all partitions
  std::int64_t since_ms = 0;            ///< wall clock: in that state since; 0: never seen
  bool counts = false;                  ///< new generations wait for it
  revision_t acknowledged = 0;          ///< route revisions of all partitions, counted
  revision_t revision = 0;              ///< those that there are
  int refusals = 0;                     ///< that stand
  const v1::Refusal* last = nullptr;    ///< the one of the highest revision; lives as long as the tables stand
  const busv1::GatewayAck* report = nullptr;  ///< any of the newest stream: who and where it is
};
gateway_summary summary_of(const tables& t, const std::string& gateway);

struct gateway_item {
  row_ptr<v1::GatewayRow> row;
  gateway_summary seen;
};
using gateway_class_item = row_ptr<v1::GatewayClassRow>;
using connector_class_item = row_ptr<v1::ConnectorClassRow>;

/// A page goes on after the last item of the one before, by order and key: what is created or deleted in
/// between neither repeats nor hides anything else.
list_page<tunnel_item> list_tunnels(const tables& t, const list_request& r);
list_page<connector_item> list_connectors(const tables& t, const list_request& r);
list_page<gateway_item> list_gateways(const tables& t, const list_request& r);
list_page<gateway_class_item> list_gateway_classes(const tables& t, const list_request& r);
list_page<connector_class_item> list_connector_classes(const tables& t, const list_request& r);

/// The fields of `filter` and `order_by`, for the documentation: kind is "tunnel", "connector", "gateway",
/// "gateway_class" or "connector_class".
std::vector<std::string> fields_of(std::string_view kind);

/// RFC 3339; milliseconds since 1970.
std::optional<std::int64_t> parse_time(std::string_view text);

/// URL-safe base 64 without padding, as in tokens.
std::string base64url(std::string_view bytes);
std::optional<std::string> unbase64url(std::string_view text);

}  // namespace warren::replica
