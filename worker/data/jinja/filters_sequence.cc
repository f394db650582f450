// Filters over lists and dicts (filters.h).
#include <algorithm>

#include "base/status_macros.h"
#include "worker/data/jinja/filters.h"
#include "worker/data/jinja/methods.h"
#include "worker/data/jinja/text.h"

namespace longhaul::data::jinja {
namespace {

// "a.b.0": attributes one after the other.
absl::StatusOr<Value> GetPath(Value value, const Value& path, Budget* budget) {
  if (path.IsInteger()) return GetItem(value, path, budget);
  if (!path.Is(Kind::kString)) return TemplateError("an attribute must be a string");
  const std::string& text = path.str();
  for (size_t begin = 0; begin <= text.size();) {
    const size_t dot = std::min(text.find('.', begin), text.size());
    const std::string part = text.substr(begin, dot - begin);
    const bool index = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    LH_RETURN_IF_ERROR(budget->Step());
    LH_ASSIGN_OR_RETURN(value, GetItem(value, index ? Value::Int(std::stol(part)) : Value::String(part), budget));
    begin = dot + 1;
  }
  return value;
}

Arguments Tail(const Arguments& arguments, size_t from) {
  Arguments tail;
  for (size_t i = from; i < arguments.positional.size(); ++i) tail.positional.push_back(arguments.positional[i]);
  tail.named = arguments.named;
  return tail;
}

// select, reject and their attribute forms: `keep` is the verdict that stays.
absl::StatusOr<Value> Choose(const Value& value, const Arguments& arguments, bool by_attribute, bool keep,
                             Budget* budget) {
  const size_t test_at = by_attribute ? 1 : 0;
  if (arguments.positional.size() < test_at) return TemplateError("selectattr and rejectattr need an attribute");
  const bool has_test = arguments.positional.size() > test_at;
  if (has_test && !arguments.positional[test_at].Is(Kind::kString)) return TemplateError("a test is named by a string");
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  const Arguments rest = Tail(arguments, test_at + 1);
  std::vector<Value> out;
  for (const Value& item : items) {
    Value subject = item;
    if (by_attribute) {
      LH_ASSIGN_OR_RETURN(subject, GetPath(item, arguments.positional[0], budget));
    }
    bool verdict = Truthy(subject);
    if (has_test) {
      LH_ASSIGN_OR_RETURN(verdict, ApplyTest(arguments.positional[test_at].str(), subject, rest, budget));
    }
    if (verdict == keep) out.push_back(item);
  }
  return NewList(std::move(out), budget);
}

}  // namespace

absl::StatusOr<Value> ListFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "list", {}));
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value, budget));
  return NewList(std::move(items), budget);
}

absl::StatusOr<Value> FirstFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "first", {}));
  if (value.Is(Kind::kString)) return GetItem(value, Value::Int(0), budget);
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value, budget));
  return items.empty() ? Value::Undefined("the first item of an empty sequence") : items.front();
}

absl::StatusOr<Value> LastFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "last", {}));
  if (value.Is(Kind::kString)) return GetItem(value, Value::Int(-1), budget);
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value, budget));
  return items.empty() ? Value::Undefined("the last item of an empty sequence") : items.back();
}

absl::StatusOr<Value> JoinFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "join", {"d", "attribute"}));
  LH_ASSIGN_OR_RETURN(const std::string separator, ToStr(bound[0], budget));
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  Value out = Value::String("");
  const Value between = Value::String(separator);
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (!bound[1].Is(Kind::kUndefined)) {
      LH_ASSIGN_OR_RETURN(item, GetPath(std::move(item), bound[1], budget));
    }
    if (i > 0) {
      LH_ASSIGN_OR_RETURN(out, Binary(Operator::kConcat, std::move(out), between, budget));
    }
    LH_ASSIGN_OR_RETURN(out, Binary(Operator::kConcat, std::move(out), item, budget));
  }
  return out;
}

absl::StatusOr<Value> ItemsFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  if (value.Is(Kind::kUndefined)) return NewList({}, budget);
  if (!value.Is(Kind::kDict)) return TemplateError(std::string("items needs a dict, got ") + TypeName(value));
  return CallMethod(value, "items", arguments, budget);
}

absl::StatusOr<Value> DictSortFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "dictsort", {"case_sensitive", "by", "reverse"}));
  if (!value.Is(Kind::kDict)) return TemplateError(std::string("dictsort needs a dict, got ") + TypeName(value));
  const bool by_value = bound[1].Is(Kind::kString) && bound[1].str() == "value";
  const bool case_sensitive = Truthy(bound[0]);
  struct Row {
    Value key;  // what is compared
    Value pair;
  };
  std::vector<Row> rows;
  for (const auto& [key, item] : value.dict().items()) {
    Value compared = by_value ? item : Value::String(key);
    if (compared.Is(Kind::kString) && !case_sensitive) {
      LH_ASSIGN_OR_RETURN(compared, NewString(Lower(compared.str()), budget));
    }
    if (!rows.empty()) LH_RETURN_IF_ERROR(Order(rows.back().key, compared).status());
    LH_ASSIGN_OR_RETURN(Value pair, NewList({Value::String(key), item}, budget, true));
    rows.push_back({std::move(compared), std::move(pair)});
  }
  // Neighbours could be compared, and comparability is transitive, so every pair can be.
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return Order(a.key, b.key).value_or(0) < 0; });
  if (Truthy(bound[2])) std::reverse(rows.begin(), rows.end());
  std::vector<Value> out;
  for (Row& row : rows) out.push_back(std::move(row.pair));
  return NewList(std::move(out), budget);
}

absl::StatusOr<Value> ReverseFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "reverse", {}));
  if (value.Is(Kind::kString)) return Slice(value, {}, {}, Value::Int(-1), budget);
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value, budget));
  std::reverse(items.begin(), items.end());
  return NewList(std::move(items), budget);
}

absl::StatusOr<Value> MapFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  std::vector<Value> out;
  if (arguments.positional.empty()) {
    LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "map", {"attribute", "default"}, 1));
    for (const Value& item : items) {
      LH_ASSIGN_OR_RETURN(Value got, GetPath(item, bound[0], budget));
      out.push_back(got.Is(Kind::kUndefined) && !bound[1].Is(Kind::kUndefined) ? bound[1] : std::move(got));
    }
    return NewList(std::move(out), budget);
  }
  if (!arguments.positional[0].Is(Kind::kString)) return TemplateError("map: a filter is named by a string");
  const Arguments rest = Tail(arguments, 1);
  for (const Value& item : items) {
    LH_ASSIGN_OR_RETURN(out.emplace_back(), ApplyFilter(arguments.positional[0].str(), item, rest, budget));
  }
  return NewList(std::move(out), budget);
}

absl::StatusOr<Value> SelectFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  return Choose(value, arguments, false, true, budget);
}

absl::StatusOr<Value> RejectFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  return Choose(value, arguments, false, false, budget);
}

absl::StatusOr<Value> SelectAttrFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  return Choose(value, arguments, true, true, budget);
}

absl::StatusOr<Value> RejectAttrFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  return Choose(value, arguments, true, false, budget);
}

}  // namespace longhaul::data::jinja
