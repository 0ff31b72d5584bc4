// services/replica/query.cpp -- filters, orders and pages of rows. Pure: no CAF, no I/O.
#include "services/replica/query.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <functional>

#include <fmt/format.h>

#include "actors/core/limits.hpp"
#include "actors/core/time.hpp"

namespace warren::replica {

namespace {

constexpr std::size_t expression_bytes_max = 4096;   // filter and order_by: longer than any that a person writes
constexpr std::size_t terms_max = 32;
constexpr std::size_t token_bytes_max = 16 * 1024;

using text_list = std::vector<std::string>;
using value = std::variant<std::string, std::int64_t, bool, text_list>;
enum class type : std::uint8_t { text, number, flag, time, status, texts };

template <class Item> struct field {
  std::string_view name;
  type kind;
  value (*get)(const Item&);
};

std::string lower(std::string_view s) {
  std::string out{s};
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

// ---- expressions ----

struct token {
  std::string text;
  bool quoted = false, op = false;
  std::size_t at = 0;
};

struct scan {
  std::string error;
  std::vector<token> tokens;
};

scan scan_filter(std::string_view in) {
  scan out;
  std::size_t i = 0;
  while (i < in.size()) {
    const char c = in[i];
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      ++i;
      continue;
    }
    token t{.at = i};
    if (c == '"') {
      t.quoted = true;
      for (++i; i < in.size() && in[i] != '"'; ++i) {
        if (in[i] == '\\' && ++i >= in.size()) break;
        t.text += in[i];
      }
      if (i >= in.size()) {
        out.error = fmt::format("the quoted text at character {} does not end", t.at + 1);
        return out;
      }
      ++i;
    } else if (std::string_view{"=!<>:"}.find(c) != std::string_view::npos) {
      t.op = true;
      t.text = c;
      ++i;
      if (i < in.size() && in[i] == '=' && c != '=' && c != ':') t.text += in[i++];
      if (t.text == "!") {
        out.error = fmt::format("'!' at character {}: did you mean '!='?", t.at + 1);
        return out;
      }
    } else {
      // A colon inside a bare word belongs to it once it is a value: times and addresses have them.
      const bool is_value = !out.tokens.empty() && out.tokens.back().op;
      while (i < in.size() && std::string_view{" \t\n\r\"=!<>"}.find(in[i]) == std::string_view::npos &&
             (is_value || in[i] != ':'))
        t.text += in[i++];
    }
    out.tokens.push_back(std::move(t));
  }
  return out;
}

enum class op : std::uint8_t { eq, ne, lt, le, gt, ge, has };
std::optional<op> op_of(std::string_view s) {
  constexpr std::array<std::pair<std::string_view, op>, 7> all{
      {{"=", op::eq}, {"!=", op::ne}, {"<", op::lt}, {"<=", op::le}, {">", op::gt}, {">=", op::ge}, {":", op::has}}};
  for (const auto& [name, o] : all)
    if (name == s) return o;
  return std::nullopt;
}

template <class T> bool compare(const T& a, op o, const T& b) {
  switch (o) {
    case op::eq: return a == b;
    case op::ne: return a != b;
    case op::lt: return a < b;
    case op::le: return a <= b;
    case op::gt: return a > b;
    case op::ge: return a >= b;
    case op::has: return a == b;
  }
  return false;
}

bool matches(const value& have, op o, const value& wanted) {
  if (const auto* list = std::get_if<text_list>(&have)) {
    const bool found = std::find(list->begin(), list->end(), std::get<std::string>(wanted)) != list->end();
    return o == op::ne ? !found : found;
  }
  if (const auto* text = std::get_if<std::string>(&have)) {
    const auto& other = std::get<std::string>(wanted);
    return o == op::has ? text->find(other) != std::string::npos : compare(*text, o, other);
  }
  if (const auto* n = std::get_if<std::int64_t>(&have)) return compare(*n, o, std::get<std::int64_t>(wanted));
  return compare(std::get<bool>(have), o, std::get<bool>(wanted));
}

struct refused {
  std::string field, message;
};

std::variant<value, refused> literal(std::string_view name, type kind, op o, const std::string& text) {
  const auto no = [](std::string message) { return refused{"filter", std::move(message)}; };
  const bool ordered = o == op::lt || o == op::le || o == op::gt || o == op::ge;
  switch (kind) {
    case type::text: return value{text};
    case type::texts:
      if (ordered) return no(fmt::format("{} is a list: only =, != and : can be asked of it", name));
      return value{text};
    case type::number: {
      std::int64_t n = 0;
      const auto [end, err] = std::from_chars(text.data(), text.data() + text.size(), n);
      if (err != std::errc{} || end != text.data() + text.size()) return no(fmt::format("{}: \"{}\" is no number", name, text));
      return value{n};
    }
    case type::time: {
      const auto at = parse_time(text);
      if (!at) return no(fmt::format("{}: \"{}\" is no time such as 2026-01-31T12:00:00Z", name, text));
      return value{*at};
    }
    case type::flag: {
      const auto word = lower(text);
      if (ordered || (word != "true" && word != "false")) return no(fmt::format("{} is either true or false", name));
      return value{word == "true"};
    }
    case type::status: {
      const auto word = lower(text);
      for (const auto* known : {"True", "False", "Unknown"})
        if (!ordered && word == lower(known)) return value{std::string{known}};
      return no(fmt::format("{} is True, False or Unknown", name));
    }
  }
  return no("");
}

template <class Item> struct term {
  const field<Item>* what;
  op how;
  value wanted;
};
template <class Item> struct order_term {
  const field<Item>* what;
  bool descending = false;
};
template <class Item> struct parsed {
  std::optional<violation> error;
  std::vector<term<Item>> filter;
  std::vector<order_term<Item>> order;
};

template <class Item> std::string names_of(const std::vector<field<Item>>& fields) {
  std::string out;
  for (const auto& f : fields) out += fmt::format("{}{}", out.empty() ? "" : ", ", f.name);
  return out;
}

template <class Item> const field<Item>* find_field(const std::vector<field<Item>>& fields, std::string_view name) {
  for (const auto& f : fields)
    if (f.name == name) return &f;
  return nullptr;
}

template <class Item>
std::optional<violation> parse_filter(const std::vector<field<Item>>& fields, std::string_view text,
                                      std::vector<term<Item>>& out) {
  const auto no = [](std::string m) { return violation{"filter", std::move(m)}; };
  if (text.size() > expression_bytes_max) return no(fmt::format("is longer than {} bytes", expression_bytes_max));
  auto scanned = scan_filter(text);
  if (!scanned.error.empty()) return no(scanned.error);
  const auto& t = scanned.tokens;
  for (std::size_t i = 0; i < t.size();) {
    if (!out.empty()) {
      if (t[i].quoted || t[i].op || t[i].text != "AND")
        return no(fmt::format("at character {}: AND is expected, not \"{}\"", t[i].at + 1, t[i].text));
      ++i;
    }
    if (i >= t.size()) return no("a term is expected after AND");
    const auto* f = t[i].quoted || t[i].op ? nullptr : find_field(fields, t[i].text);
    if (f == nullptr)
      return no(fmt::format("at character {}: \"{}\" is no field; there are: {}", t[i].at + 1, t[i].text, names_of(fields)));
    const auto how = i + 1 < t.size() && t[i + 1].op ? op_of(t[i + 1].text) : std::nullopt;
    if (!how) return no(fmt::format("an operator (= != < <= > >= :) is expected after {}", f->name));
    if (i + 2 >= t.size() || t[i + 2].op) return no(fmt::format("a value is expected after {} {}", f->name, t[i + 1].text));
    auto wanted = literal(f->name, f->kind, *how, t[i + 2].text);
    if (auto* bad = std::get_if<refused>(&wanted)) return no(bad->message);
    if (out.size() >= terms_max) return no(fmt::format("has more than {} terms", terms_max));
    out.push_back({f, *how, std::get<value>(std::move(wanted))});
    i += 3;
  }
  return std::nullopt;
}

template <class Item>
std::optional<violation> parse_order(const std::vector<field<Item>>& fields, std::string_view text,
                                     std::vector<order_term<Item>>& out) {
  const auto no = [](std::string m) { return violation{"order_by", std::move(m)}; };
  if (text.size() > expression_bytes_max) return no(fmt::format("is longer than {} bytes", expression_bytes_max));
  if (text.find_first_not_of(" \t") == std::string_view::npos) return std::nullopt;
  std::size_t from = 0;
  while (from <= text.size()) {
    const auto end = std::min(text.find(',', from), text.size());
    std::vector<std::string> words;
    for (auto rest = text.substr(from, end - from); !rest.empty();) {
      const auto start = rest.find_first_not_of(" \t");
      if (start == std::string_view::npos) break;
      const auto stop = std::min(rest.find_first_of(" \t", start), rest.size());
      words.emplace_back(rest.substr(start, stop - start));
      rest.remove_prefix(stop);
    }
    if (words.empty()) return no("a field is expected between commas");
    const auto* f = find_field(fields, words[0]);
    if (f == nullptr) return no(fmt::format("\"{}\" is no field; there are: {}", words[0], names_of(fields)));
    if (f->kind == type::texts) return no(fmt::format("{} is a list, which has no order", f->name));
    if (words.size() > 2 || (words.size() == 2 && words[1] != "asc" && words[1] != "desc"))
      return no(fmt::format("{} may be followed by asc or desc only", f->name));
    if (std::any_of(out.begin(), out.end(), [&](auto& o) { return o.what == f; }))
      return no(fmt::format("{} is named twice", f->name));
    if (out.size() >= terms_max) return no(fmt::format("has more than {} terms", terms_max));
    out.push_back({f, words.size() == 2 && words[1] == "desc"});
    from = end + 1;
  }
  return std::nullopt;
}

// ---- page tokens: a digest of what was asked, and the sort key of the last item ----

void put_text(std::string& out, std::string_view s) { out += fmt::format("{}:{}", s.size(), s); }

std::string encode(const value& v) {
  if (const auto* s = std::get_if<std::string>(&v)) return *s;
  if (const auto* n = std::get_if<std::int64_t>(&v)) return fmt::format("{}", *n);
  return std::get<bool>(v) ? "1" : "0";
}

std::optional<value> decode(type kind, const std::string& text) {
  if (kind == type::text || kind == type::status) return value{text};
  if (kind == type::flag) return value{text == "1"};
  std::int64_t n = 0;
  const auto [end, err] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (err != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value{n};
}

std::optional<text_list> take_texts(std::string_view in) {
  text_list out;
  while (!in.empty()) {
    std::size_t n = 0;
    const auto [end, err] = std::from_chars(in.data(), in.data() + in.size(), n);
    if (err != std::errc{} || end == in.data() + in.size() || *end != ':') return std::nullopt;
    in.remove_prefix(static_cast<std::size_t>(end - in.data()) + 1);
    if (n > in.size()) return std::nullopt;
    out.emplace_back(in.substr(0, n));
    in.remove_prefix(n);
  }
  return out;
}

std::string digest_of(std::string_view kind, const list_request& r) {
  std::string all;
  put_text(all, kind);
  put_text(all, r.project);
  put_text(all, r.filter);
  put_text(all, r.order_by);
  return fmt::format("{:016x}", fnv1a_64(all));
}

struct sort_key {
  std::vector<value> values;
  entity_key key;
};

template <class Item> int compare_keys(const std::vector<order_term<Item>>& order, const sort_key& a, const sort_key& b) {
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (a.values[i] == b.values[i]) continue;
    const bool less = a.values[i] < b.values[i];
    return less != order[i].descending ? -1 : 1;
  }
  return a.key < b.key ? -1 : b.key < a.key ? 1 : 0;
}

// ---- one list ----

/// `each` calls its argument with (key, item) in the order of keys, from a key on, until that says false.
template <class Item, class Each>
list_page<Item> list(std::string_view kind, const std::vector<field<Item>>& fields, const list_request& r, Each&& each) {
  list_page<Item> out;
  std::vector<term<Item>> filter;
  std::vector<order_term<Item>> order;
  if ((out.error = parse_filter(fields, r.filter, filter))) return out;
  if ((out.error = parse_order(fields, r.order_by, order))) return out;
  if (r.page_size < 0) {
    out.error = violation{"page_size", "must not be negative"};
    return out;
  }
  const auto size = static_cast<std::size_t>(
      r.page_size == 0 ? limits::page_size_default : std::min(r.page_size, limits::page_size_max));

  std::optional<sort_key> after;
  const auto digest = digest_of(kind, r);
  if (!r.page_token.empty()) {
    const auto bad = violation{"page_token", "is not one that this list has given"};
    const auto bytes = r.page_token.size() > token_bytes_max ? std::nullopt : unbase64url(r.page_token);
    const auto parts = bytes ? take_texts(*bytes) : std::nullopt;
    if (!parts || parts->size() != 3 + order.size()) {
      out.error = bad;
      return out;
    }
    if (parts->at(0) != digest) {
      out.error = violation{"page_token", "belongs to another project, filter or order_by"};
      return out;
    }
    after.emplace();
    after->key = {parts->at(1), parts->at(2)};
    for (std::size_t i = 0; i < order.size(); ++i) {
      auto v = decode(order[i].what->kind, parts->at(3 + i));
      if (!v) {
        out.error = bad;
        return out;
      }
      after->values.push_back(std::move(*v));
    }
  }

  struct entry {
    sort_key key;
    Item item;
  };
  std::vector<entry> found;
  const auto looked_at_max = 4 * (size + 1);  // by order: what cannot be of the page is let go on the way
  const auto keep_first = [&] {
    const auto keep = static_cast<std::ptrdiff_t>(std::min(found.size(), size + 1));
    std::partial_sort(found.begin(), found.begin() + keep, found.end(),
                      [&](const entry& a, const entry& b) { return compare_keys(order, a.key, b.key) < 0; });
    found.erase(found.begin() + keep, found.end());
  };
  // The order of keys is the tables' own: the page is cut out without looking at the rest.
  const bool by_key = order.empty();
  each(by_key && after ? &after->key : nullptr, [&](const entity_key& key, Item item) {
    for (const auto& t : filter)
      if (!matches(t.what->get(item), t.how, t.wanted)) return true;
    entry e{{.key = key}, std::move(item)};
    for (const auto& o : order) e.key.values.push_back(o.what->get(e.item));
    if (after && compare_keys(order, *after, e.key) >= 0) return true;
    if constexpr (requires { e.item.pack(); }) e.item.pack();  // many wait here
    found.push_back(std::move(e));
    if (!by_key && found.size() >= looked_at_max) keep_first();
    return !by_key || found.size() <= size;
  });
  if (!by_key) keep_first();
  const bool more = found.size() > size;
  if (more) found.erase(found.begin() + static_cast<std::ptrdiff_t>(size), found.end());
  std::vector<sort_key> keys;
  for (auto& e : found) {
    keys.push_back(std::move(e.key));
    out.items.push_back(std::move(e.item));
  }
  out.token_after = [digest, keys = std::move(keys)](std::size_t n) {
    std::string bytes;
    put_text(bytes, digest);
    put_text(bytes, keys.at(n).key.first);
    put_text(bytes, keys.at(n).key.second);
    for (const auto& v : keys.at(n).values) put_text(bytes, encode(v));
    return base64url(bytes);
  };
  if (more) out.next_page_token = out.token_after(size - 1);
  return out;
}

// ---- fields ----

template <class Conditions> value status_in(const Conditions& all, std::string_view type) {
  for (const auto& c : all)
    if (c.type() == type) return c.status();
  return std::string{"Unknown"};
}
template <class Conditions> value reason_in(const Conditions& all, std::string_view type) {
  for (const auto& c : all)
    if (c.type() == type) return c.reason();
  return std::string{};
}
template <class Repeated> value texts_of(const Repeated& all) { return text_list{all.begin(), all.end()}; }

const std::vector<field<tunnel_item>>& tunnel_fields() {
  using item = tunnel_item;
  static const std::vector<field<item>> all{
      {"project", type::text, [](const item& i) -> value { return i.row()->project(); }},
      {"name", type::text, [](const item& i) -> value { return i.row()->name(); }},
      {"uid", type::text, [](const item& i) -> value { return i.row()->uid(); }},
      {"hostname", type::texts, [](const item& i) -> value { return texts_of(i.row()->hostnames()); }},
      {"connector", type::texts,
       [](const item& i) -> value {
         text_list out;
         for (const auto& r : i.row()->rules()) out.push_back(r.connector());
         return out;
       }},
      {"target", type::texts,
       [](const item& i) -> value {
         text_list out;
         for (const auto& r : i.row()->rules()) out.push_back(r.target());
         return out;
       }},
      {"class", type::text, [](const item& i) -> value { return i.row()->gateway_class(); }},
      {"enabled", type::flag, [](const item& i) -> value { return i.row()->enabled(); }},
      {"deleting", type::flag, [](const item& i) -> value { return i.row()->has_delete_time(); }},
      {"generation", type::number, [](const item& i) -> value { return i.row()->generation(); }},
      {"accepted", type::status, [](const item& i) -> value { return status_in(i.conditions(), "Accepted"); }},
      {"programmed", type::status, [](const item& i) -> value { return status_in(i.conditions(), "Programmed"); }},
      {"connector_metadata_programmed", type::status,
       [](const item& i) -> value { return status_in(i.conditions(), "ConnectorMetadataProgrammed"); }},
      {"target_reachable", type::status, [](const item& i) -> value { return status_in(i.conditions(), "TargetReachable"); }},
      {"ready", type::status, [](const item& i) -> value { return status_in(i.conditions(), "Ready"); }},
      {"reason", type::text, [](const item& i) -> value { return reason_in(i.conditions(), "Ready"); }},
      {"create_time", type::time, [](const item& i) -> value { return to_ms(i.row()->created_at()); }},
      {"update_time", type::time, [](const item& i) -> value { return to_ms(i.row()->updated_at()); }},
  };
  return all;
}

const std::vector<field<connector_item>>& connector_fields() {
  using item = connector_item;
  static const std::vector<field<item>> all{
      {"project", type::text, [](const item& i) -> value { return i->project(); }},
      {"name", type::text, [](const item& i) -> value { return i->name(); }},
      {"uid", type::text, [](const item& i) -> value { return i->uid(); }},
      {"class", type::text, [](const item& i) -> value { return i->class_(); }},
      {"online", type::flag, [](const item& i) -> value { return i->online(); }},
      {"accepted", type::status, [](const item& i) -> value { return status_in(i->conditions(), "Accepted"); }},
      {"ready", type::status, [](const item& i) -> value { return status_in(i->conditions(), "Ready"); }},
      {"reason", type::text, [](const item& i) -> value { return reason_in(i->conditions(), "Ready"); }},
      {"enrolled", type::flag, [](const item& i) -> value { return !i->public_key().empty(); }},
      {"public_key", type::text, [](const item& i) -> value { return i->public_key(); }},
      {"address", type::texts, [](const item& i) -> value { return texts_of(i->addresses()); }},
      {"home_relay", type::text, [](const item& i) -> value { return i->home_relay(); }},
      {"agent_version", type::text, [](const item& i) -> value { return i->agent_version(); }},
      {"session", type::number, [](const item& i) -> value { return i->session(); }},
      {"lease_duration_ms", type::number, [](const item& i) -> value { return i->lease_duration_ms(); }},
      {"clock_skew_ms", type::number, [](const item& i) -> value { return i->clock_skew_ms(); }},
      {"generation", type::number, [](const item& i) -> value { return i->generation(); }},
      {"deleting", type::flag, [](const item& i) -> value { return i->has_delete_time(); }},
      {"create_time", type::time, [](const item& i) -> value { return to_ms(i->created_at()); }},
      {"update_time", type::time, [](const item& i) -> value { return to_ms(i->updated_at()); }},
  };
  return all;
}

const std::vector<field<gateway_item>>& gateway_fields() {
  using item = gateway_item;
  static const std::vector<field<item>> all{
      {"name", type::text, [](const item& i) -> value { return i.row->name(); }},
      {"uid", type::text, [](const item& i) -> value { return i.row->uid(); }},
      {"class", type::text, [](const item& i) -> value { return i.row->class_(); }},
      {"state", type::text, [](const item& i) -> value { return i.seen.state; }},
      {"counts", type::flag, [](const item& i) -> value { return i.seen.counts; }},
      {"lag", type::number, [](const item& i) -> value { return i.seen.revision - i.seen.acknowledged; }},
      {"refusals", type::number, [](const item& i) -> value { return std::int64_t{i.seen.refusals}; }},
      {"node_id", type::text, [](const item& i) -> value { return i.seen.report ? i.seen.report->node_id() : std::string{}; }},
      {"node_cluster", type::text, [](const item& i) -> value { return i.seen.report ? i.seen.report->node_cluster() : std::string{}; }},
      {"node_locality", type::text, [](const item& i) -> value { return i.seen.report ? i.seen.report->node_locality() : std::string{}; }},
      {"instance", type::number, [](const item& i) -> value { return i.seen.report ? i.seen.report->instance() : std::int64_t{0}; }},
      {"create_time", type::time, [](const item& i) -> value { return to_ms(i.row->created_at()); }},
      {"update_time", type::time, [](const item& i) -> value { return to_ms(i.row->updated_at()); }},
  };
  return all;
}

const std::vector<field<gateway_class_item>>& gateway_class_fields() {
  using item = gateway_class_item;
  static const std::vector<field<item>> all{
      {"name", type::text, [](const item& i) -> value { return i->name(); }},
      {"dial_mode", type::text, [](const item& i) -> value { return i->dial_mode(); }},
      {"create_time", type::time, [](const item& i) -> value { return to_ms(i->created_at()); }},
      {"update_time", type::time, [](const item& i) -> value { return to_ms(i->updated_at()); }},
  };
  return all;
}

const std::vector<field<connector_class_item>>& connector_class_fields() {
  using item = connector_class_item;
  static const std::vector<field<item>> all{
      {"name", type::text, [](const item& i) -> value { return i->name(); }},
      {"create_time", type::time, [](const item& i) -> value { return to_ms(i->created_at()); }},
      {"update_time", type::time, [](const item& i) -> value { return to_ms(i->updated_at()); }},
  };
  return all;
}

// Rows of one project, or of all, from after a key on.
template <class Map, class Visit>
void each_entity(const Map& map, const std::string& project, const entity_key* after, Visit&& visit) {
  auto it = map.begin();
  if (after != nullptr && (project.empty() || after->first == project)) it = map.upper_bound(*after);
  else if (!project.empty()) it = map.lower_bound({project, ""});
  for (; it != map.end() && (project.empty() || it->first.first == project); ++it)
    if (!visit(*it)) return;
}

template <class Item, class Map>
list_page<Item> list_named(std::string_view kind, const std::vector<field<Item>>& fields, const Map& map, const list_request& r) {
  return list<Item>(kind, fields, r, [&](const entity_key* after, auto&& take) {
    for (auto it = after == nullptr ? map.begin() : map.upper_bound(after->second); it != map.end(); ++it)
      if (!take(entity_key{"", it->first}, it->second)) return;
  });
}

template <class Item> std::vector<std::string> names(const std::vector<field<Item>>& fields) {
  std::vector<std::string> out;
  for (const auto& f : fields) out.emplace_back(f.name);
  return out;
}

}  // namespace

const row_ptr<v1::TunnelRow>& tunnel_item::row() const {
  if (!row_) row_ = packed_.unpack();
  return row_;
}
const condition_list& tunnel_item::conditions() const {
  if (!conditions_) conditions_ = condition_list{packed_status_.unpack().conditions};
  return *conditions_;
}
void tunnel_item::pack() {
  row_.reset();
  conditions_.reset();
}

list_page<tunnel_item> list_tunnels(const tables& t, const list_request& r) {
  return list<tunnel_item>("tunnel", tunnel_fields(), r, [&](const entity_key* after, auto&& take) {
    each_entity(t.tunnels, r.project, after, [&](const auto& each) {
      const auto d = t.derived.find(each.first);
      return take(each.first, tunnel_item{each.second, d == t.derived.end() ? packed_status{} : d->second.status});
    });
  });
}

list_page<connector_item> list_connectors(const tables& t, const list_request& r) {
  return list<connector_item>("connector", connector_fields(), r, [&](const entity_key* after, auto&& take) {
    each_entity(t.connectors, r.project, after, [&](const auto& each) { return take(each.first, each.second); });
  });
}

namespace {

// The state that most wants looking at, when partitions differ.
int badness(std::string_view state) {
  if (state == "stalled") return 3;
  if (state == "gone") return 2;
  if (state == "connecting") return 1;
  return 0;
}

// The lower half of a revision counts; the upper one is the database's incarnation, and of another one nothing is
// acknowledged.
revision_t counted(revision_t r) { return r & 0xffffffff; }

}  // namespace

gateway_summary summary_of(const tables& t, const std::string& gateway) {
  gateway_summary out;
  for (const auto& [partition, reports] : t.acks) {
    const auto at = reports.find(gateway);
    if (at == reports.end()) continue;
    const auto& report = at->second.report;
    const auto copy = t.partitions.find(partition);
    const auto known = copy == t.partitions.end() ? revision_t{0} : copy->second.revision;
    out.revision += counted(known);
    if (report.acknowledged() >> 32 == known >> 32) out.acknowledged += std::min(counted(known), counted(report.acknowledged()));
    if (out.report == nullptr || badness(report.state()) > badness(out.state)) {
      out.state = report.state();
      out.since_ms = at->second.since_ms;
    } else if (report.state() == out.state) {
      out.since_ms = std::max(out.since_ms, at->second.since_ms);
    }
    if (out.report == nullptr || report.stream() > out.report->stream()) out.report = &report;
    for (const auto& refusal : report.refused()) {
      if (refusal.every()) continue;  // of all partitions the same: the listener that it is about is among the others
      ++out.refusals;
      const auto when = [](const v1::Refusal& r) { return std::pair{r.at_ms(), r.revision()}; };
      if (out.last == nullptr || when(refusal) >= when(*out.last)) out.last = &refusal;
    }
  }
  out.counts = out.report != nullptr && out.state == "caught_up";
  return out;
}

list_page<gateway_item> list_gateways(const tables& t, const list_request& r) {
  return list<gateway_item>("gateway", gateway_fields(), r, [&](const entity_key* after, auto&& take) {
    for (auto it = after == nullptr ? t.gateways.begin() : t.gateways.upper_bound(after->second); it != t.gateways.end(); ++it)
      if (!take(entity_key{"", it->first}, gateway_item{it->second, summary_of(t, it->first)})) return;
  });
}
list_page<gateway_class_item> list_gateway_classes(const tables& t, const list_request& r) {
  return list_named<gateway_class_item>("gateway_class", gateway_class_fields(), t.gateway_classes, r);
}
list_page<connector_class_item> list_connector_classes(const tables& t, const list_request& r) {
  return list_named<connector_class_item>("connector_class", connector_class_fields(), t.connector_classes, r);
}

std::vector<std::string> fields_of(std::string_view kind) {
  if (kind == "tunnel") return names(tunnel_fields());
  if (kind == "connector") return names(connector_fields());
  if (kind == "gateway") return names(gateway_fields());
  if (kind == "gateway_class") return names(gateway_class_fields());
  if (kind == "connector_class") return names(connector_class_fields());
  return {};
}

std::optional<std::int64_t> parse_time(std::string_view text) {
  // 2026-01-31T12:00:00[.123][Z|+hh:mm]
  const auto digits = [&](std::size_t at, std::size_t n) -> std::optional<int> {
    if (at + n > text.size()) return std::nullopt;
    int out = 0;
    for (std::size_t i = at; i < at + n; ++i) {
      if (text[i] < '0' || text[i] > '9') return std::nullopt;
      out = out * 10 + (text[i] - '0');
    }
    return out;
  };
  if (text.size() < 20 || text.size() > 40 || text[4] != '-' || text[7] != '-' || (text[10] != 'T' && text[10] != 't') ||
      text[13] != ':' || text[16] != ':')
    return std::nullopt;
  const auto y = digits(0, 4), mo = digits(5, 2), d = digits(8, 2), h = digits(11, 2), mi = digits(14, 2), s = digits(17, 2);
  if (!y || !mo || !d || !h || !mi || !s || *h > 23 || *mi > 59 || *s > 60) return std::nullopt;
  const std::chrono::year_month_day day{std::chrono::year{*y}, std::chrono::month{static_cast<unsigned>(*mo)},
                                        std::chrono::day{static_cast<unsigned>(*d)}};
  if (!day.ok()) return std::nullopt;
  std::size_t at = 19;
  std::int64_t ms = 0;
  if (text[at] == '.') {
    std::int64_t scale = 100;
    const auto first = ++at;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at, scale /= 10) ms += (text[at] - '0') * scale;
    if (at == first) return std::nullopt;
  }
  std::int64_t offset_min = 0;
  if (at >= text.size()) return std::nullopt;
  if (text[at] == 'Z' || text[at] == 'z') {
    if (at + 1 != text.size()) return std::nullopt;
  } else {
    if ((text[at] != '+' && text[at] != '-') || at + 6 != text.size() || text[at + 3] != ':') return std::nullopt;
    const auto oh = digits(at + 1, 2), om = digits(at + 4, 2);
    if (!oh || !om || *oh > 23 || *om > 59) return std::nullopt;
    offset_min = (text[at] == '-' ? -1 : 1) * (*oh * 60 + *om);
  }
  const std::int64_t days = std::chrono::sys_days{day}.time_since_epoch().count();
  return ((days * 24 + *h) * 60 + *mi - offset_min) * 60'000 + *s * 1000 + ms;
}

namespace {
constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
}

std::string base64url(std::string_view bytes) {
  std::string out;
  std::uint32_t bits = 0;
  int have = 0;
  for (char c : bytes) {
    bits = (bits << 8) | static_cast<unsigned char>(c);
    for (have += 8; have >= 6; have -= 6) out += alphabet[(bits >> (have - 6)) & 63];
  }
  if (have > 0) out += alphabet[(bits << (6 - have)) & 63];
  return out;
}

std::optional<std::string> unbase64url(std::string_view text) {
  std::string out;
  std::uint32_t bits = 0;
  int have = 0;
  for (char c : text) {
    const auto at = alphabet.find(c);
    if (at == std::string_view::npos) return std::nullopt;
    bits = (bits << 6) | static_cast<std::uint32_t>(at);
    have += 6;
    if (have >= 8) {
      have -= 8;
      out += static_cast<char>((bits >> have) & 255);
    }
  }
  // What is left over is padding: nothing but zeros, and less than a whole digit.
  if (have >= 6 || (bits & ((1u << have) - 1)) != 0) return std::nullopt;
  return out;
}

}  // namespace warren::replica
