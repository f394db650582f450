#include "kernels/shapes/gemm_shape.h"

#include <array>
#include <charconv>
#include <limits>
#include <sstream>

#include "base/error.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr std::array<const char*, 3> kElementNames = {"bf16", "f32", "e4m3"};
constexpr std::array<const char*, 3> kScaleNames = {"none", "tensor", "row"};

absl::Status CheckMatrix(const char* name, int64_t stride, int64_t cols, GemmElement element, int64_t alignment_bytes) {
  if (stride < cols) {
    return InvalidField(std::string(name) + "_stride",
                        "is " + std::to_string(stride) + "; must be at least its " + std::to_string(cols) + " columns");
  }
  if (stride * GemmElementBytes(element) % alignment_bytes != 0) {
    return InvalidField(std::string(name) + "_stride", "is " + std::to_string(stride) + " elements; must be whole " +
                                                           std::to_string(alignment_bytes) + "-byte units");
  }
  return absl::OkStatus();
}

absl::Status CheckTypes(const GemmShape& shape) {
  if (shape.output == GemmElement::kE4M3) return InvalidField("output", "is e4m3; must be bf16 or f32");
  if (shape.input == GemmElement::kF32) return InvalidField("input", "is f32; must be bf16 or e4m3");
  const bool fp8 = shape.input == GemmElement::kE4M3;
  if (fp8 != (shape.scale != GemmScale::kNone))
    return InvalidField("scale", "belongs to e4m3 operands, and only to them");
  if (fp8 && (shape.transpose_a || !shape.transpose_b)) {
    return InvalidField("transpose_b",
                        "must be the only transpose of an e4m3 product: both operands contiguous along k");
  }
  if (shape.fast_accumulation && !fp8) return InvalidField("fast_accumulation", "belongs to e4m3 operands");
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGemmShape(const GemmShape& shape) {
  // The library's layouts take 64-bit sizes; its kernels index rows and columns in 32 bits.
  constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
  for (const auto& [name, size] : {std::pair{"m", shape.m}, {"n", shape.n}, {"k", shape.k}}) {
    if (size < 1 || size > kMaxSize) {
      return InvalidField(name, "is " + std::to_string(size) + "; must be 1 to " + std::to_string(kMaxSize));
    }
  }
  const int64_t alignment = shape.alignment_bytes;
  if (alignment < 1 || alignment > 256 || (alignment & (alignment - 1)) != 0) {
    return InvalidField("alignment_bytes",
                        "is " + std::to_string(alignment) + "; must be a power of two from 1 to 256");
  }
  if (absl::Status status = CheckTypes(shape); !status.ok()) return status;
  absl::Status status = CheckMatrix("a", shape.a_stride, shape.transpose_a ? shape.m : shape.k, shape.input, alignment);
  if (status.ok()) {
    status = CheckMatrix("b", shape.b_stride, shape.transpose_b ? shape.k : shape.n, shape.input, alignment);
  }
  if (status.ok()) status = CheckMatrix("c", shape.c_stride, shape.n, shape.output, alignment);
  return status;
}

std::string GemmKey(const GemmShape& shape) {
  std::ostringstream out;
  out << kElementNames[static_cast<size_t>(shape.input)] << '>' << kElementNames[static_cast<size_t>(shape.output)]
      << ' ' << (shape.transpose_a ? 'T' : 'N') << (shape.transpose_b ? 'T' : 'N') << " m" << shape.m << " n" << shape.n
      << " k" << shape.k << " a" << shape.a_stride << " b" << shape.b_stride << " c" << shape.c_stride << " al"
      << shape.alignment_bytes;
  if (shape.accumulate) out << " +c";
  if (shape.fast_accumulation) out << " fast";
  if (shape.scale != GemmScale::kNone) out << ' ' << kScaleNames[static_cast<size_t>(shape.scale)];
  return out.str();
}

namespace {

// "m4096" with prefix "m" -> 4096.
bool ParseNumber(const std::string& word, const std::string& prefix, int64_t* value) {
  if (word.rfind(prefix, 0) != 0 || word.size() == prefix.size()) return false;
  const char* const end = word.data() + word.size();
  const auto [at, error] = std::from_chars(word.data() + prefix.size(), end, *value);
  return error == std::errc() && at == end;
}

bool ParseTypes(const std::string& word, GemmShape* shape) {
  for (size_t in = 0; in < kElementNames.size(); ++in) {
    for (size_t out = 0; out < kElementNames.size(); ++out) {
      if (word != std::string(kElementNames[in]) + ">" + kElementNames[out]) continue;
      shape->input = static_cast<GemmElement>(in);
      shape->output = static_cast<GemmElement>(out);
      return true;
    }
  }
  return false;
}

bool ParseWord(const std::string& word, GemmShape* shape) {
  if (word == "+c") return shape->accumulate = true;
  if (word == "fast") return shape->fast_accumulation = true;
  for (const GemmScale scale : {GemmScale::kTensor, GemmScale::kRow}) {
    if (word == kScaleNames[static_cast<size_t>(scale)]) {
      shape->scale = scale;
      return true;
    }
  }
  if (word.size() == 2 && (word[0] == 'N' || word[0] == 'T') && (word[1] == 'N' || word[1] == 'T')) {
    shape->transpose_a = word[0] == 'T';
    shape->transpose_b = word[1] == 'T';
    return true;
  }
  return ParseNumber(word, "al", &shape->alignment_bytes) || ParseNumber(word, "m", &shape->m) ||
         ParseNumber(word, "n", &shape->n) || ParseNumber(word, "k", &shape->k) ||
         ParseNumber(word, "a", &shape->a_stride) || ParseNumber(word, "b", &shape->b_stride) ||
         ParseNumber(word, "c", &shape->c_stride) || ParseTypes(word, shape);
}

}  // namespace

absl::StatusOr<GemmShape> ParseGemmKey(const std::string& key) {
  GemmShape shape;
  std::istringstream in(key);
  for (std::string word; in >> word;) {
    if (!ParseWord(word, &shape)) return InvalidField("gemm", "has the word '" + word + "', which means nothing");
  }
  if (absl::Status status = CheckGemmShape(shape); !status.ok()) return status;
  // Anything left out or said twice shows here.
  if (GemmKey(shape) != key) return InvalidField("gemm", "is '" + key + "'; must be '" + GemmKey(shape) + "'");
  return shape;
}

}  // namespace longhaul::kernels::cuda
