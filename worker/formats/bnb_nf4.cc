#include "worker/formats/bnb_nf4.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "worker/formats/file_error.h"
#include "worker/formats/json_strict.h"

namespace longhaul::formats {
namespace {

constexpr int64_t kMinBlock = 32;
constexpr int64_t kMaxBlock = 4096;

// codes[i] = thresholds strictly below w[i] * inverse, for i < n.
void CodesOfBlock(const float* w, int64_t n, float inverse, uint8_t* codes) {
  // Sixteen elements at a time against all thresholds: the compiler keeps them in vector registers.
  constexpr int64_t kLanes = 16;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    int32_t counts[kLanes] = {};
    float scaled[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) scaled[lane] = w[i + lane] * inverse;
    for (float threshold : kNf4Thresholds) {
      for (int64_t lane = 0; lane < kLanes; ++lane) counts[lane] += scaled[lane] > threshold ? 1 : 0;
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) codes[i + lane] = static_cast<uint8_t>(counts[lane]);
  }
  for (; i < n; ++i) {
    const float scaled = w[i] * inverse;
    int count = 0;
    for (float threshold : kNf4Thresholds) count += scaled > threshold ? 1 : 0;
    codes[i] = static_cast<uint8_t>(count);
  }
}

// bitsandbytes' 8-bit search, step for step: the last pivot may be off the neighbours, and the midpoint rule settles it.
// NaN (a block of zeros times an infinite reciprocal) ends at 0.
uint8_t NestedCode(float x) {
  int pivot = 127;
  int upper_pivot = 255;
  int lower_pivot = 0;
  float lower = -1.0f;
  float upper = 1.0f;
  float value = kNf4NestedCodes[127];
  for (int step = 64; step > 0; step >>= 1) {
    if (x > value) {
      lower_pivot = pivot;
      lower = value;
      pivot += step;
    } else {
      upper_pivot = pivot;
      upper = value;
      pivot -= step;
    }
    value = kNf4NestedCodes[static_cast<size_t>(pivot)];
  }
  if (upper_pivot == 255) upper = kNf4NestedCodes[255];
  if (lower_pivot == 0) lower = kNf4NestedCodes[0];
  if (x > value) return static_cast<uint8_t>(x > (upper + value) * 0.5f ? upper_pivot : pivot);
  return static_cast<uint8_t>(x < (lower + value) * 0.5f ? lower_pivot : pivot);
}

}  // namespace

bool IsNf4BlockSize(int64_t block_size) {
  return block_size >= kMinBlock && block_size <= kMaxBlock && (block_size & (block_size - 1)) == 0;
}

absl::Status QuantizeNf4(const float* w, int64_t n, int64_t block_size, uint8_t* packed, float* absmax) {
  LH_CHECK(IsNf4BlockSize(block_size), std::to_string(block_size));
  uint8_t codes[kMaxBlock + 1];
  for (int64_t begin = 0; begin < n; begin += block_size) {
    const int64_t count = std::min(block_size, n - begin);
    float largest = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < count; ++i) {
      const float magnitude = std::fabs(w[begin + i]);
      finite = finite && magnitude <= FLT_MAX;
      largest = std::max(largest, magnitude);
    }
    if (!finite) {
      const float* bad = std::find_if(w + begin, w + begin + count, [](float x) { return !std::isfinite(x); });
      return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_FINITE",
                       "weight " + std::to_string(bad - w) + " is " + (std::isnan(*bad) ? "NaN" : "infinite"));
    }
    // The CUDA kernels run with subnormals flushed, where such a block is one of zeros: 0 * (1 / 0) is NaN, code 0.
    const bool zeros = largest < FLT_MIN;
    absmax[begin / block_size] = zeros ? 0.0f : largest;
    if (zeros) {
      std::memset(codes, 0, static_cast<size_t>(count));
    } else {
      CodesOfBlock(w + begin, count, 1.0f / largest, codes);
    }
    // An odd count can only end the whole tensor: its last low nibble is 0 * (1 / absmax), code 7 as on CUDA.
    codes[count] = zeros ? 0 : 7;
    uint8_t* out = packed + begin / 2;
    for (int64_t i = 0; i < (count + 1) / 2; ++i) {
      out[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
    }
  }
  return absl::OkStatus();
}

void DequantizeNf4(const uint8_t* packed, const float* absmax, int64_t begin, int64_t end, int64_t block_size,
                   float* out) {
  LH_CHECK(IsNf4BlockSize(block_size), std::to_string(block_size));
  for (int64_t i = begin; i < end;) {
    const float scale = absmax[i / block_size];
    const int64_t stop = std::min(end, (i / block_size + 1) * block_size);
    // One scaled table a block: the products are the same ones, sixteen instead of block_size.
    float table[16];
    for (size_t c = 0; c < 16; ++c) table[c] = kNf4Codes[c] * scale;
    if (i % 2 != 0) {
      out[i - begin] = table[packed[i / 2] & 15];
      ++i;
    }
    for (; i + 2 <= stop; i += 2) {
      const uint8_t pair = packed[i / 2];
      out[i - begin] = table[pair >> 4];
      out[i - begin + 1] = table[pair & 15];
    }
    if (i < stop) {
      out[i - begin] = table[packed[i / 2] >> 4];
      ++i;
    }
  }
}

float MeanAbsmax(const float* absmax, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(absmax[i]);
  return n == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(n));
}

void QuantizeAbsmax(const float* absmax, int64_t n, float offset, uint8_t* codes, float* nested_absmax) {
  for (int64_t begin = 0; begin < n; begin += kNf4NestedBlock) {
    const int64_t end = std::min(n, begin + kNf4NestedBlock);
    float largest = 0.0f;
    for (int64_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(absmax[i] - offset));
    nested_absmax[begin / kNf4NestedBlock] = largest;
    const float inverse = 1.0f / largest;
    for (int64_t i = begin; i < end; ++i) codes[i] = NestedCode((absmax[i] - offset) * inverse);
  }
}

void DequantizeAbsmax(const uint8_t* codes, const float* nested_absmax, float offset, int64_t begin, int64_t end,
                      int64_t nested_block, float* out) {
  for (int64_t i = begin; i < end; ++i) {
    const float product = kNf4NestedCodes[codes[i]] * nested_absmax[i / nested_block];
    out[i - begin] = product + offset;
  }
}

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
    json += ", \"nested_blocksize\": " + std::to_string(state.nested_block_size) +
            ", \"nested_dtype\": \"float32\", \"nested_offset\": " +
            PythonFloat(static_cast<double>(state.nested_offset));
  }
  return json + "}";
}

absl::StatusOr<Nf4QuantState> Nf4QuantStateFromJson(std::string_view json, const std::string& file) {
  LH_ASSIGN_OR_RETURN(nlohmann::json parsed, ParseJsonStrict(json, file));
  if (!parsed.is_object()) return BadFile(file, "is no JSON object");
  const std::string quant_type = parsed.contains("quant_type") && parsed["quant_type"].is_string()
                                     ? parsed["quant_type"].get<std::string>()
                                     : "";
  if (quant_type != "nf4") {
    return Unsupported(file, "quant_type is \"" + Printable(quant_type) + "\"; nf4 is supported");
  }
  Nf4QuantState state;
  const auto integer = [&parsed](const char* key) {
    return parsed.contains(key) && parsed[key].is_number_unsigned() && parsed[key].get<uint64_t>() <= INT64_MAX
               ? parsed[key].get<int64_t>()
               : int64_t{-1};
  };
  state.block_size = integer("blocksize");
  if (!IsNf4BlockSize(state.block_size)) return BadFile(file, "blocksize must be a power of two from 32 to 4096");
  const std::string dtype =
      parsed.contains("dtype") && parsed["dtype"].is_string() ? parsed["dtype"].get<std::string>() : "";
  if (dtype == "bfloat16") {
    state.dtype = StorageType::kBF16;
  } else if (dtype == "float16") {
    state.dtype = StorageType::kF16;
  } else if (dtype == "float32") {
    state.dtype = StorageType::kF32;
  } else {
    return BadFile(file, "dtype is \"" + Printable(dtype) + "\"; bfloat16, float16 or float32 is expected");
  }
  if (!parsed.contains("shape") || !parsed["shape"].is_array() || parsed["shape"].size() != 2) {
    return BadFile(file, "shape must be [out, in]");
  }
  for (const nlohmann::json& dim : parsed["shape"]) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() == 0 || dim.get<uint64_t>() > INT64_MAX) {
      return BadFile(file, "shape must be two positive integers");
    }
    state.shape.push_back(dim.get<int64_t>());
  }
  if (state.elements() < 0) return BadFile(file, "shape overflows");
  const bool any_nested = parsed.contains("nested_blocksize") || parsed.contains("nested_dtype") ||
                          parsed.contains("nested_offset");
  if (!any_nested) return state;
  state.nested = true;
  state.nested_block_size = integer("nested_blocksize");
  if (!IsNf4BlockSize(state.nested_block_size)) return BadFile(file, "nested_blocksize must be 32 to 4096");
  if (!parsed.contains("nested_dtype") || parsed["nested_dtype"] != "float32") {
    return BadFile(file, "nested_dtype must be float32");
  }
  if (!parsed.contains("nested_offset") || !parsed["nested_offset"].is_number()) {
    return BadFile(file, "nested_offset is missing or no number");
  }
  state.nested_offset = parsed["nested_offset"].get<float>();
  if (!std::isfinite(state.nested_offset)) return BadFile(file, "nested_offset is not finite");
  return state;
}

}  // namespace longhaul::formats
