// Filters and tests by name.
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
