// services/store/rows.hpp -- rows as the database takes and gives them: JSON. No SQL, no I/O.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <google/protobuf/message.h>

#include "warren/core/v1/rows.pb.h"

namespace warren::sql {

namespace v1 = warren::core::v1;

/// A replicated table. Its columns are the fields of its message, its name is the field's in v1::Row.
struct table {
  std::string name;
  const google::protobuf::FieldDescriptor* in_row = nullptr;
  const google::protobuf::Descriptor* descriptor = nullptr;
  std::vector<std::string> keys;
  bool route_version = false;
  bool timestamps = false;  ///< created_at and updated_at
  bool uid = false;
};

/// All but tombstone, in the order in which rows are inserted (a referenced row before those that refer to it).
const std::vector<table>& tables();
const table* find_table(std::string_view name);
/// Returns null for a row that is not set, and for a tombstone.
const table* table_of(const v1::Row& row);

const google::protobuf::Message& message_of(const v1::Row& row);
google::protobuf::Message* mutable_message_of(const table& t, v1::Row& row);

/// The key columns joined by '/', as in tombstone.key.
std::string key_of(const table& t, const v1::Row& row);
/// An object of the key columns only.
std::string key_json(const table& t, const v1::Row& row);
std::string text_field(const v1::Row& row, std::string_view field);
std::int64_t number_field(const v1::Row& row, std::string_view field);
void set_number_field(v1::Row& row, std::string_view field, std::int64_t value);

/// Every column, numbers as numbers, an unset Timestamp as null.
void append_json(std::string& out, const google::protobuf::Message& message);
void append_json(std::string& out, std::string_view text);
std::string json_text(std::string_view text);

/// Reads what to_jsonb printed. Columns without a field are ignored. A row of which a rival has filled a jsonb or a
/// time column with something else is read without that column, so that its owner can say what is wrong with it.
std::optional<v1::Row> parse_row(std::string_view table_name, const std::string& json);

/// Timestamps carry microseconds in the database: an image that is kept must not say more.
void truncate_timestamps(google::protobuf::Message& message);

}  // namespace warren::sql
