// Python's `format % arguments` on strings. Source: CPython 3.11's PyUnicode_Format.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/data/jinja/value.h"

namespace longhaul::data::jinja {

// %[(name)][flags][width][.precision]conversion with flags - + space 0 #, * for a width or a precision, conversions
// d i u x X o e E f F g G c r s a and %%. `arguments`: a tuple of them, a dict for %(name), or the only one.
// Every padded or copied byte is charged before it is built. TEMPLATE_ERROR where an argument is missing, left over or
// of a type that the conversion does not take.
absl::StatusOr<Value> PercentFormat(const std::string& format, const Value& arguments, Budget* budget);

}  // namespace longhaul::data::jinja
