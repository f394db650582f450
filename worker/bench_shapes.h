// The models that longhaul-bench knows by name: their shapes, without weights.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_shape.h"

namespace longhaul {

std::vector<std::string> BenchShapeNames();
// A name of the list, or the path of a config.json. INVALID_ARGUMENT lists the names.
absl::StatusOr<ModelShape> BenchShape(const std::string& name_or_path);

}  // namespace longhaul
