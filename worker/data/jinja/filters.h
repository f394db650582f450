// Filters and tests by name, as in Jinja 3.1:
//   text       capitalize, e (escape), format, indent, lower, replace, safe, string, title, tojson, trim, upper,
//              wordcount
//   numbers    abs, float, int
//   sequences  batch, count (length), dictsort, first, items, join, last, list, map, max, min, reject, rejectattr,
//              reverse, select, selectattr, sort, sum, unique
//   any        d (default)
// What differs from Jinja: a filter that returns a generator there returns a list; strings have no Markup type, so
// escape escapes what is escaped already and safe changes nothing; a range is a list; an integer beyond 64 bits and a
// batch by anything but an integer are errors.
// Each charges the budget for what it reads, compares and builds, the latter before it is built.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/data/jinja/ops.h"

namespace longhaul::data::jinja {

// value | name(arguments). UNIMPLEMENTED (reason TEMPLATE_UNSUPPORTED) names a filter that Longhaul lacks.
absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& value, const Arguments& arguments,
                                  Budget* budget);
// value is name(arguments). The same for tests.
absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& value, const Arguments& arguments, Budget* budget);

}  // namespace longhaul::data::jinja
