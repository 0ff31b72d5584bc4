// services/store/statements.hpp -- every SQL statement has a name, and it stands here. Text only.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "services/store/rows.hpp"

namespace warren::sql {

/// Statements that exist once for each replicated table, by name: lock_<table> and so on.
inline std::string lock_rows(const table& t) { return "lock_" + t.name; }
inline std::string lock_rows_to_erase(const table& t) { return "lock_to_erase_" + t.name; }
inline std::string find_rows(const table& t) { return "find_" + t.name; }
inline std::string insert_rows(const table& t) { return "insert_" + t.name; }
inline std::string update_rows(const table& t) { return "update_" + t.name; }
inline std::string erase_rows(const table& t) { return "erase_" + t.name; }
inline std::string marked_rows(const table& t) { return "marked_" + t.name; }
inline std::string marked_rows_named(const table& t) { return "marked_named_" + t.name; }
inline std::string count_marked(const table& t) { return "count_marked_" + t.name; }
inline std::string adopt_rows(const table& t) { return "adopt_" + t.name; }
inline std::string load_entity_of(const table& t) { return "load_" + t.name; }

/// Name and text of all of them; a connection prepares one when it first uses it.
const std::vector<std::pair<std::string, std::string>>& statements();

/// The SQLSTATE (division by zero) by which a writing statement says that a part wrote another number of rows than it
/// was given: it travels with its COMMIT, so it has to stop that by itself.
constexpr const char* wrote_otherwise = "22012";

/// One statement of several, to spare round trips: name and text. Each part takes its own parameter, a JSON list,
/// at its place; rows are (place, …).
/// Of a judgement: (place, text, text, text). All parts see one snapshot.
const std::pair<std::string, std::string>& judgement_of(const std::vector<std::string>& parts);
/// Of writing: fails with `wrote_otherwise` unless each part writes as many rows as its list has. No part sees what
/// another wrote; foreign keys are checked when all are done.
const std::pair<std::string, std::string>& writing_of(const std::vector<std::string>& parts);

}  // namespace warren::sql
