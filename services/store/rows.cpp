// services/store/rows.cpp -- rows as JSON, by protobuf reflection. No SQL, no I/O.
#include "services/store/rows.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include <google/protobuf/timestamp.pb.h>
#include <google/protobuf/util/time_util.h>
#include <nlohmann/json.hpp>

namespace warren::sql {

namespace pb = google::protobuf;
using json = nlohmann::json;

namespace {

table make_table(const char* name, std::vector<std::string> keys) {
  table t;
  t.name = name;
  t.in_row = v1::Row::descriptor()->FindFieldByName(name);
  t.descriptor = t.in_row->message_type();
  t.keys = std::move(keys);
  t.route_version = t.descriptor->FindFieldByName("route_version") != nullptr;
  t.timestamps = t.descriptor->FindFieldByName("created_at") != nullptr;
  t.uid = t.descriptor->FindFieldByName("uid") != nullptr;
  return t;
}

const pb::FieldDescriptor* field_of(const pb::Message& m, std::string_view name) {
  return m.GetDescriptor()->FindFieldByName(std::string{name});
}

void append_value(std::string& out, const pb::Message& m, const pb::FieldDescriptor* f, int index) {
  const auto* r = m.GetReflection();
  const bool many = index >= 0;
  switch (f->cpp_type()) {
    case pb::FieldDescriptor::CPPTYPE_INT32:
      out += std::to_string(many ? r->GetRepeatedInt32(m, f, index) : r->GetInt32(m, f));
      break;
    case pb::FieldDescriptor::CPPTYPE_INT64:
      out += std::to_string(many ? r->GetRepeatedInt64(m, f, index) : r->GetInt64(m, f));
      break;
    case pb::FieldDescriptor::CPPTYPE_BOOL:
      out += (many ? r->GetRepeatedBool(m, f, index) : r->GetBool(m, f)) ? "true" : "false";
      break;
    case pb::FieldDescriptor::CPPTYPE_STRING: {
      std::string scratch;
      append_json(out, std::string_view{many ? r->GetRepeatedStringReference(m, f, index, &scratch)
                                             : r->GetStringReference(m, f, &scratch)});
      break;
    }
    case pb::FieldDescriptor::CPPTYPE_MESSAGE:
      append_json(out, many ? r->GetRepeatedMessage(m, f, index) : r->GetMessage(m, f));
      break;
    default:
      throw std::logic_error{"rows.proto: no column type for field " + f->full_name()};
  }
}

// Protobuf's own JSON reader builds what it knows of the types anew for each message: ten times the price, for
// thousands of rows whenever an instance starts or takes over.
bool read_members(pb::Message& m, const json& object);

bool read_integer(const json& value, std::int64_t lowest, std::int64_t highest, std::int64_t& out) {
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(highest)) return false;
  if (!value.is_number_integer()) return false;
  out = value.get<std::int64_t>();
  return out >= lowest && out <= highest;
}

/// Sets the field, or adds to it if it is repeated. False: it cannot hold this.
bool read_value(pb::Message& m, const pb::FieldDescriptor* f, const json& value) {
  const auto* r = m.GetReflection();
  const bool many = f->is_repeated();
  switch (f->cpp_type()) {
    case pb::FieldDescriptor::CPPTYPE_INT32: {
      using limits = std::numeric_limits<std::int32_t>;
      std::int64_t n = 0;
      if (!read_integer(value, limits::min(), limits::max(), n)) return false;
      many ? r->AddInt32(&m, f, static_cast<std::int32_t>(n)) : r->SetInt32(&m, f, static_cast<std::int32_t>(n));
      return true;
    }
    case pb::FieldDescriptor::CPPTYPE_INT64: {
      using limits = std::numeric_limits<std::int64_t>;
      std::int64_t n = 0;
      if (!read_integer(value, limits::min(), limits::max(), n)) return false;
      many ? r->AddInt64(&m, f, n) : r->SetInt64(&m, f, n);
      return true;
    }
    case pb::FieldDescriptor::CPPTYPE_BOOL:
      if (!value.is_boolean()) return false;
      many ? r->AddBool(&m, f, value.get<bool>()) : r->SetBool(&m, f, value.get<bool>());
      return true;
    case pb::FieldDescriptor::CPPTYPE_STRING: {
      if (!value.is_string()) return false;
      const auto& text = value.get_ref<const std::string&>();
      many ? r->AddString(&m, f, text) : r->SetString(&m, f, text);
      return true;
    }
    case pb::FieldDescriptor::CPPTYPE_MESSAGE: {
      auto* part = many ? r->AddMessage(&m, f) : r->MutableMessage(&m, f);
      if (f->message_type() == pb::Timestamp::descriptor())
        return value.is_string() && pb::util::TimeUtil::FromString(value.get<std::string>(), static_cast<pb::Timestamp*>(part));
      return value.is_object() && read_members(*part, value);
    }
    default:
      throw std::logic_error{"rows.proto: no column type for field " + f->full_name()};
  }
}

/// A member without a field is ignored; null is absence.
bool read_member(pb::Message& m, const std::string& name, const json& value) {
  const auto* f = m.GetDescriptor()->FindFieldByName(name);
  if (!f || value.is_null()) return true;
  if (!f->is_repeated()) return read_value(m, f, value);
  return value.is_array() && std::all_of(value.begin(), value.end(), [&](const json& each) { return read_value(m, f, each); });
}

bool read_members(pb::Message& m, const json& object) {
  const auto members = object.items();
  return std::all_of(members.begin(), members.end(), [&](const auto& each) { return read_member(m, each.key(), each.value()); });
}

}  // namespace

const std::vector<table>& tables() {
  static const std::vector<table> all{
      make_table("connector_class", {"name"}),
      make_table("gateway_class", {"name"}),
      make_table("gateway", {"name"}),
      make_table("connector", {"project", "name"}),
      make_table("tunnel", {"project", "name"}),
      make_table("hostname_claim", {"hostname"}),
      make_table("attachment", {"project", "connector", "tunnel_uid", "tunnel_generation"}),
  };
  return all;
}

const table* find_table(std::string_view name) {
  for (const auto& t : tables())
    if (t.name == name) return &t;
  return nullptr;
}

const table* table_of(const v1::Row& row) {
  for (const auto& t : tables())
    if (t.in_row->number() == static_cast<int>(row.row_case())) return &t;
  return nullptr;
}

const pb::Message& message_of(const v1::Row& row) {
  const auto* f = v1::Row::descriptor()->FindFieldByNumber(static_cast<int>(row.row_case()));
  if (!f) throw std::logic_error{"a row without content"};
  return row.GetReflection()->GetMessage(row, f);
}

pb::Message* mutable_message_of(const table& t, v1::Row& row) {
  return row.GetReflection()->MutableMessage(&row, t.in_row);
}

std::string key_of(const table& t, const v1::Row& row) {
  std::string out;
  for (const auto& k : t.keys) {
    if (&k != &t.keys.front()) out += '/';
    out += k == "tunnel_generation" ? std::to_string(number_field(row, k)) : text_field(row, k);
  }
  return out;
}

std::string key_json(const table& t, const v1::Row& row) {
  const auto& m = message_of(row);
  std::string out = "{";
  for (const auto& k : t.keys) {
    if (out.size() > 1) out += ',';
    append_json(out, std::string_view{k});
    out += ':';
    append_value(out, m, field_of(m, k), -1);
  }
  return out += '}';
}

std::string text_field(const v1::Row& row, std::string_view field) {
  const auto& m = message_of(row);
  const auto* f = field_of(m, field);
  return f ? m.GetReflection()->GetString(m, f) : std::string{};
}

std::int64_t number_field(const v1::Row& row, std::string_view field) {
  const auto& m = message_of(row);
  const auto* f = field_of(m, field);
  if (!f) return 0;
  return f->cpp_type() == pb::FieldDescriptor::CPPTYPE_INT32 ? m.GetReflection()->GetInt32(m, f)
                                                             : m.GetReflection()->GetInt64(m, f);
}

void set_number_field(v1::Row& row, std::string_view field, std::int64_t value) {
  const auto* in_row = v1::Row::descriptor()->FindFieldByNumber(static_cast<int>(row.row_case()));
  auto* m = row.GetReflection()->MutableMessage(&row, in_row);
  const auto* f = field_of(*m, field);
  if (!f) return;
  if (f->cpp_type() == pb::FieldDescriptor::CPPTYPE_INT32)
    m->GetReflection()->SetInt32(m, f, static_cast<std::int32_t>(value));
  else
    m->GetReflection()->SetInt64(m, f, value);
}

void append_json(std::string& out, std::string_view text) {
  static constexpr char hex[] = "0123456789abcdef";
  out += '"';
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += hex[byte >> 4];
      out += hex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

std::string json_text(std::string_view text) {
  std::string out;
  append_json(out, text);
  return out;
}

void append_json(std::string& out, const pb::Message& m) {
  if (m.GetDescriptor() == pb::Timestamp::descriptor()) {
    append_json(out, std::string_view{pb::util::TimeUtil::ToString(static_cast<const pb::Timestamp&>(m))});
    return;
  }
  const auto* d = m.GetDescriptor();
  const auto* r = m.GetReflection();
  bool first = true;
  out += '{';
  for (int i = 0; i < d->field_count(); ++i) {
    const auto* f = d->field(i);
    const bool top_level_timestamp = f->message_type() == pb::Timestamp::descriptor() && !f->is_repeated();
    // Absent: a column becomes NULL; an optional member of a jsonb value is left out.
    if (!f->is_repeated() && f->has_presence() && !r->HasField(m, f) && !top_level_timestamp) continue;
    if (!first) out += ',';
    first = false;
    append_json(out, std::string_view{f->name()});
    out += ':';
    if (f->is_repeated()) {
      out += '[';
      for (int n = 0; n < r->FieldSize(m, f); ++n) {
        if (n > 0) out += ',';
        append_value(out, m, f, n);
      }
      out += ']';
    } else if (top_level_timestamp && !r->HasField(m, f)) {
      out += "null";
    } else {
      append_value(out, m, f, -1);
    }
  }
  out += '}';
}

std::optional<v1::Row> parse_row(std::string_view table_name, const std::string& text) {
  const auto* in_row = v1::Row::descriptor()->FindFieldByName(std::string{table_name});
  if (!in_row) return std::nullopt;
  const auto columns = json::parse(text, nullptr, /* allow_exceptions = */ false);
  if (!columns.is_object()) return std::nullopt;
  v1::Row row;
  auto* m = row.GetReflection()->MutableMessage(&row, in_row);
  for (const auto& [name, value] : columns.items()) {
    if (read_member(*m, name, value)) continue;
    constexpr std::array<std::string_view, 6> spoilable{"rules", "previous_rules", "conditions", "created_at", "updated_at", "delete_time"};
    if (std::find(spoilable.begin(), spoilable.end(), name) == spoilable.end()) return std::nullopt;
    m->GetReflection()->ClearField(m, m->GetDescriptor()->FindFieldByName(name));
  }
  return row;
}

void truncate_timestamps(pb::Message& message) {
  const auto* r = message.GetReflection();
  std::vector<const pb::FieldDescriptor*> set;
  r->ListFields(message, &set);
  for (const auto* f : set)
    if (!f->is_repeated() && f->message_type() == pb::Timestamp::descriptor()) {
      auto* t = static_cast<pb::Timestamp*>(r->MutableMessage(&message, f));
      t->set_nanos(t->nanos() / 1000 * 1000);
    }
}

}  // namespace warren::sql
