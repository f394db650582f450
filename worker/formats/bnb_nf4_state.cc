#include <cmath>

#include "base/status_macros.h"
#include "worker/formats/bnb_nf4.h"
#include "worker/formats/file_error.h"
#include "worker/formats/json_strict.h"

namespace longhaul::formats {
namespace {

// The string or non-negative integer under `key`; "" and -1 where there is none.
std::string StringAt(const nlohmann::json& json, const char* key) {
  return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : "";
}

int64_t IntAt(const nlohmann::json& json, const char* key) {
  const bool ok = json.contains(key) && json[key].is_number_unsigned() &&
                  json[key].get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
  return ok ? json[key].get<int64_t>() : -1;
}

absl::Status ReadDtype(const nlohmann::json& json, const std::string& file, Nf4QuantState* state) {
  const std::string dtype = StringAt(json, "dtype");
  if (dtype == "bfloat16") {
    state->dtype = StorageType::kBF16;
  } else if (dtype == "float16") {
    state->dtype = StorageType::kF16;
  } else if (dtype == "float32") {
    state->dtype = StorageType::kF32;
  } else {
    return BadFile(file, "dtype is \"" + Printable(dtype) + "\"; bfloat16, float16 or float32 is expected");
  }
  return absl::OkStatus();
}

absl::Status ReadShape(const nlohmann::json& json, const std::string& file, Nf4QuantState* state) {
  if (!json.contains("shape") || !json["shape"].is_array() || json["shape"].size() != 2) {
    return BadFile(file, "shape must be [out, in]");
  }
  for (const nlohmann::json& dim : json["shape"]) {
    if (!dim.is_number_unsigned() || dim == 0 || dim.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      return BadFile(file, "shape must be two positive integers");
    }
    state->shape.push_back(dim.get<int64_t>());
  }
  if (state->elements() < 0) return BadFile(file, "shape overflows");
  return absl::OkStatus();
}

absl::Status ReadNested(const nlohmann::json& json, const std::string& file, Nf4QuantState* state) {
  state->nested = json.contains("nested_blocksize") || json.contains("nested_dtype") || json.contains("nested_offset");
  if (!state->nested) return absl::OkStatus();
  state->nested_block_size = IntAt(json, "nested_blocksize");
  if (!IsNf4BlockSize(state->nested_block_size)) {
    return BadFile(file, "nested_blocksize must be a power of two from 32 to 4096");
  }
  if (StringAt(json, "nested_dtype") != "float32") return BadFile(file, "nested_dtype must be float32");
  // Taking a missing offset for 0 would load, and give a subtly wrong model.
  if (!json.contains("nested_offset") || !json["nested_offset"].is_number()) {
    return BadFile(file, "nested_offset is missing or no number");
  }
  state->nested_offset = static_cast<float>(json["nested_offset"].get<double>());
  if (!std::isfinite(state->nested_offset)) return BadFile(file, "nested_offset is not finite");
  return absl::OkStatus();
}

}  // namespace

int64_t Nf4QuantState::elements() const {
  int64_t n = 1;
  for (int64_t dim : shape) n = MultiplyOrMinusOne(n, dim);
  return n;
}

std::string Nf4QuantStateToJson(const Nf4QuantState& state) {
  const char* dtype = state.dtype == StorageType::kBF16  ? "bfloat16"
                      : state.dtype == StorageType::kF16 ? "float16"
                                                         : "float32";
  std::string json = "{\"quant_type\": \"nf4\", \"blocksize\": " + std::to_string(state.block_size) +
                     ", \"dtype\": \"" + dtype + "\", \"shape\": [";
  for (size_t i = 0; i < state.shape.size(); ++i) json += (i > 0 ? ", " : "") + std::to_string(state.shape[i]);
  json += "]";
  if (state.nested) {
    json +=
        ", \"nested_blocksize\": " + std::to_string(state.nested_block_size) +
        ", \"nested_dtype\": \"float32\", \"nested_offset\": " + PythonFloat(static_cast<double>(state.nested_offset));
  }
  return json + "}";
}

absl::StatusOr<Nf4QuantState> Nf4QuantStateFromJson(std::string_view json, const std::string& file) {
  LH_ASSIGN_OR_RETURN(const nlohmann::json parsed, ParseJsonStrict(json, file));
  if (!parsed.is_object()) return BadFile(file, "is no JSON object");
  const std::string quant_type = StringAt(parsed, "quant_type");
  if (quant_type != "nf4") {
    return Unsupported(file, "quant_type is \"" + Printable(quant_type) + "\"; nf4 is supported");
  }
  Nf4QuantState state;
  state.block_size = IntAt(parsed, "blocksize");
  if (!IsNf4BlockSize(state.block_size)) return BadFile(file, "blocksize must be a power of two from 32 to 4096");
  LH_RETURN_IF_ERROR(ReadDtype(parsed, file, &state));
  LH_RETURN_IF_ERROR(ReadShape(parsed, file, &state));
  LH_RETURN_IF_ERROR(ReadNested(parsed, file, &state));
  return state;
}

}  // namespace longhaul::formats
