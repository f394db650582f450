// What operators, subscripts and loops do to values, as Python and Jinja do it. Errors are TEMPLATE_ERROR or
// TEMPLATE_LIMIT, without a line.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/data/jinja/ast.h"
#include "worker/data/jinja/value.h"

namespace longhaul::data::jinja {

bool Truthy(const Value& value);
absl::StatusOr<bool> Equals(const Value& a, const Value& b, Budget* budget);
// -1, 0 or 1. Numbers, strings, and lists or tuples of them: the first items that differ decide, then the lengths. A
// NaN is neither below nor above.
absl::StatusOr<int> Order(const Value& a, const Value& b, Budget* budget);
absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget);
absl::StatusOr<bool> Compare(Operator op, const Value& a, const Value& b, Budget* budget);
// kAdd to kConcat; kModulo of a string formats (format.h). `a` may be used up.
absl::StatusOr<Value> Binary(Operator op, Value a, const Value& b, Budget* budget);
absl::StatusOr<Value> Negate(const Value& value);

// a.name: a method or an entry; undefined where there is neither. An undefined `a` is an error.
absl::StatusOr<Value> GetAttribute(const Value& value, const std::string& name);
// a[key].
absl::StatusOr<Value> GetItem(const Value& value, const Value& key, Budget* budget);
// a[start:stop:step]; undefined or none bounds are absent.
absl::StatusOr<Value> Slice(const Value& value, const Value& start, const Value& stop, const Value& step,
                            Budget* budget);

// What a loop or a list filter sees: items, keys of a dict, characters of a string, nothing of an undefined.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget);
absl::StatusOr<int64_t> Length(const Value& value);

// Arguments of a filter, test, method or function, in the order of its parameters.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};
// One value for each parameter, undefined where absent. An error names `callee` and the argument that does not fit.
absl::StatusOr<std::vector<Value>> Bind(const Arguments& arguments, const std::string& callee,
                                        const std::vector<std::string_view>& parameters, size_t required = 0);

}  // namespace longhaul::data::jinja
