// Methods of strings, lists, tuples and dicts, the only ones that templates get.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/data/jinja/ops.h"

namespace longhaul::data::jinja {

bool IsMethod(const Value& self, const std::string& name);
// REQUIRES: IsMethod(self, name), or a loop and "cycle".
absl::StatusOr<Value> CallMethod(const Value& self, const std::string& name, const Arguments& arguments,
                                 Budget* budget);

// Offset of `needle` at or after `from`, npos where it is not. Linear whatever the texts.
size_t Find(std::string_view text, std::string_view needle, size_t from);
absl::StatusOr<Value> Replace(const std::string& text, const std::string& from, const std::string& to, int64_t count,
                              Budget* budget);

}  // namespace longhaul::data::jinja
