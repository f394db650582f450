// Filters over lists and dicts (filters.h).
#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/data/jinja/filters.h"
#include "worker/data/jinja/methods.h"
#include "worker/data/jinja/numbers.h"
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

bool IsAbsent(const Value& value) { return value.Is(Kind::kUndefined) || value.Is(Kind::kNone); }

// What sort, unique, min and max go by: the item, or its attribute where there is one; strings in lower case unless
// case counts.
absl::StatusOr<Value> KeyOf(const Value& item, const Value& attribute, bool case_sensitive, Budget* budget) {
  Value key = item;
  if (!IsAbsent(attribute)) {
    LH_ASSIGN_OR_RETURN(key, GetPath(std::move(key), attribute, budget));
  }
  if (case_sensitive || !key.Is(Kind::kString)) return key;
  return NewString(Lower(key.str()), budget);
}

// "a.b,c": the attributes that sort goes by, one after the other. One absent attribute where there is none.
std::vector<Value> CommaSeparated(const Value& attributes) {
  if (!attributes.Is(Kind::kString)) return {attributes};
  std::vector<Value> out;
  const std::string& text = attributes.str();
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    out.push_back(Value::String(text.substr(begin, comma - begin)));
    begin = comma + 1;
  }
  return out;
}

struct Keyed {
  Value key;  // what is compared
  Value item;
};

// The items by their keys. Equal ones keep their order, reversed or not. A merge sort of our own: comparisons are
// charged and may fail, and a NaN, which has no order, must not lead it astray.
absl::StatusOr<Value> Sorted(std::vector<Keyed> rows, bool reverse, Budget* budget) {
  const size_t count = rows.size();
  LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(count * sizeof(Keyed))));
  std::vector<Keyed> merged;
  for (size_t width = 1; width < count; width *= 2) {
    merged.clear();
    for (size_t begin = 0; begin < count; begin += 2 * width) {
      const size_t middle = std::min(begin + width, count), end = std::min(begin + 2 * width, count);
      size_t left = begin, right = middle;
      while (left < middle && right < end) {
        LH_ASSIGN_OR_RETURN(const int order, Order(rows[right].key, rows[left].key, budget));
        merged.push_back(std::move(rows[(reverse ? order > 0 : order < 0) ? right++ : left++]));
      }
      while (left < middle) merged.push_back(std::move(rows[left++]));
      while (right < end) merged.push_back(std::move(rows[right++]));
    }
    rows.swap(merged);
  }
  std::vector<Value> out;
  for (Keyed& row : rows) out.push_back(std::move(row.item));
  return NewList(std::move(out), budget);
}

// Appends a text that two values share only if Python's set takes them for one: 1, 1.0 and true are. Lists and dicts
// have no hash. Unlike in Python every NaN is one: here a number has no identity apart from its value.
absl::Status PutIdentity(const Value& value, std::string* out, Budget* budget) {
  const size_t before = out->size();
  if (value.IsInteger()) {
    out->append("i" + std::to_string(value.integer()));
  } else if (value.Is(Kind::kFloat)) {
    const double number = value.number();
    const auto integer = IntegerOf(number);
    const bool whole = integer.ok() && std::trunc(number) == number;
    out->append(whole ? "i" + std::to_string(integer->integer()) : "f" + FloatRepr(number));
  } else if (value.Is(Kind::kString)) {
    out->append("s" + std::to_string(value.str().size()) + ":").append(value.str());
  } else if (value.Is(Kind::kList) && value.list().tuple) {
    // Shared parts can make a tuple's identity far larger than the tuple: each part is charged as it is written.
    out->append("t" + std::to_string(value.list().items.size()) + ":");
    for (const Value& item : value.list().items) LH_RETURN_IF_ERROR(PutIdentity(item, out, budget));
    return budget->Bytes(64);
  } else if (IsAbsent(value)) {
    out->append(value.Is(Kind::kNone) ? "n" : "u");
  } else {
    return TemplateError(std::string("unique: a ") + TypeName(value) + " has no hash");
  }
  return budget->Bytes(64 + static_cast<int64_t>(out->size() - before));
}

// min and max: the first item whose key is better than those of all others.
absl::StatusOr<Value> Extreme(const Value& value, const Arguments& arguments, Operator better, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "min and max", {"case_sensitive", "attribute"}));
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  if (items.empty()) return Value::Undefined("the least or greatest item of an empty sequence");
  size_t best = 0;
  LH_ASSIGN_OR_RETURN(Value best_key, KeyOf(items[0], bound[1], Truthy(bound[0]), budget));
  for (size_t i = 1; i < items.size(); ++i) {
    LH_ASSIGN_OR_RETURN(Value key, KeyOf(items[i], bound[1], Truthy(bound[0]), budget));
    LH_ASSIGN_OR_RETURN(const bool wins, Compare(better, key, best_key, budget));
    if (!wins) continue;
    best = i;
    best_key = std::move(key);
  }
  return items[best];
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
  const std::string by = bound[1].Is(Kind::kString) ? bound[1].str() : "key";
  if (by != "key" && by != "value") return TemplateError("dictsort: by is either 'key' or 'value'");
  std::vector<Keyed> rows;
  for (const auto& [name, item] : value.dict().items()) {
    const Value compared = by == "value" ? item : Value::String(name);
    LH_ASSIGN_OR_RETURN(Value key, KeyOf(compared, {}, Truthy(bound[0]), budget));
    LH_ASSIGN_OR_RETURN(Value pair, NewList({Value::String(name), item}, budget, true));
    rows.push_back({std::move(key), std::move(pair)});
  }
  return Sorted(std::move(rows), Truthy(bound[2]), budget);
}

absl::StatusOr<Value> SortFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "sort", {"reverse", "case_sensitive", "attribute"}));
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  const std::vector<Value> attributes = CommaSeparated(bound[2]);
  std::vector<Keyed> rows;
  for (const Value& item : items) {
    std::vector<Value> parts;
    for (const Value& attribute : attributes) {
      LH_ASSIGN_OR_RETURN(parts.emplace_back(), KeyOf(item, attribute, Truthy(bound[1]), budget));
    }
    // A list even of one part, as in Jinja: items that are equal need not have an order.
    LH_ASSIGN_OR_RETURN(Value key, NewList(std::move(parts), budget));
    rows.push_back({std::move(key), item});
  }
  return Sorted(std::move(rows), Truthy(bound[0]), budget);
}

absl::StatusOr<Value> UniqueFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "unique", {"case_sensitive", "attribute"}));
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  std::set<std::string> seen;
  std::vector<Value> out;
  for (const Value& item : items) {
    LH_ASSIGN_OR_RETURN(const Value key, KeyOf(item, bound[1], Truthy(bound[0]), budget));
    std::string identity;
    LH_RETURN_IF_ERROR(PutIdentity(key, &identity, budget));
    if (seen.insert(std::move(identity)).second) out.push_back(item);
  }
  return NewList(std::move(out), budget);
}

absl::StatusOr<Value> BatchFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "batch", {"linecount", "fill_with"}, 1));
  if (!bound[0].IsInteger()) return TemplateError("batch: linecount must be an integer");
  const int64_t count = bound[0].integer();
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  std::vector<Value> batches, batch;
  for (const Value& item : items) {
    // Jinja's own order of things: a count of 0 gives an empty batch and then all the rest.
    if (static_cast<int64_t>(batch.size()) == count) {
      LH_ASSIGN_OR_RETURN(batches.emplace_back(), NewList(std::exchange(batch, {}), budget));
    }
    batch.push_back(item);
  }
  if (!batch.empty()) {
    const int64_t missing = IsAbsent(bound[1]) ? 0 : std::max<int64_t>(count - static_cast<int64_t>(batch.size()), 0);
    if (missing > limits::kMaxTemplateRange) {
      return MakeError(absl::StatusCode::kResourceExhausted, "TEMPLATE_LIMIT",
                       "batch: fills more than " + std::to_string(limits::kMaxTemplateRange) + " items");
    }
    batch.insert(batch.end(), static_cast<size_t>(missing), bound[1]);
    LH_ASSIGN_OR_RETURN(batches.emplace_back(), NewList(std::move(batch), budget));
  }
  return NewList(std::move(batches), budget);
}

absl::StatusOr<Value> MinFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  return Extreme(value, arguments, Operator::kLess, budget);
}

absl::StatusOr<Value> MaxFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  return Extreme(value, arguments, Operator::kGreater, budget);
}

absl::StatusOr<Value> SumFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "sum", {"attribute", "start"}));
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  Value total = bound[1].Is(Kind::kUndefined) ? Value::Int(0) : bound[1];
  if (total.Is(Kind::kString)) return TemplateError("sum: strings are joined, not summed");
  for (const Value& item : items) {
    LH_RETURN_IF_ERROR(budget->Step());
    LH_ASSIGN_OR_RETURN(const Value part, KeyOf(item, bound[0], /*case_sensitive=*/true, budget));
    LH_ASSIGN_OR_RETURN(total, Binary(Operator::kAdd, std::move(total), part, budget));
  }
  return total;
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
