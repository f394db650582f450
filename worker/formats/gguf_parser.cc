#include "worker/formats/gguf_parser.h"

#include <cstring>

#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/formats/file_error.h"

namespace longhaul::formats {
namespace {

constexpr size_t kMaxTensorNameBytes = 63;  // ggml keeps names in 64 bytes with the final NUL
constexpr uint32_t kMaxDims = 4;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = 1 << 20;

struct TypeId {
  uint32_t id;
  StorageType type;
};
constexpr TypeId kTypeIds[] = {
    {0, StorageType::kF32},   {1, StorageType::kF16},   {2, StorageType::kQ4_0},  {3, StorageType::kQ4_1},
    {8, StorageType::kQ8_0},  {12, StorageType::kQ4_K}, {14, StorageType::kQ6_K}, {24, StorageType::kI8},
    {25, StorageType::kI16},  {26, StorageType::kI32},  {27, StorageType::kI64},  {28, StorageType::kF64},
    {30, StorageType::kBF16},
};

// Block types that GGUF has and this reader has not, for the message.
struct ForeignType {
  uint32_t id;
  const char* name;
};
constexpr ForeignType kForeignTypes[] = {
    {6, "Q5_0"},     {7, "Q5_1"},    {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {13, "Q5_K"},  {15, "Q8_K"},
    {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},
    {23, "IQ4_XS"},  {29, "IQ1_M"},  {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},
};

int64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    default:
      return 0;
  }
}

}  // namespace

absl::Status GgufParser::Fail(size_t offset, const std::string& what) const {
  return BadFile(file_.path_, "byte " + std::to_string(offset) + ": " + what);
}

absl::Status GgufParser::ReadBytes(size_t count, const char* what, std::string_view* out) {
  if (count > bytes_.size() - at_) {
    return Fail(at_, std::string(what) + " of " + std::to_string(count) + " bytes, but the file ends after " +
                         std::to_string(bytes_.size() - at_));
  }
  *out = bytes_.substr(at_, count);
  at_ += count;
  return absl::OkStatus();
}

template <typename T>
absl::Status GgufParser::ReadNumber(const char* what, T* out) {
  std::string_view raw;
  LH_RETURN_IF_ERROR(ReadBytes(sizeof(T), what, &raw));
  std::memcpy(out, raw.data(), sizeof(T));
  return absl::OkStatus();
}

absl::Status GgufParser::ReadCount(const char* what, int64_t limit, int64_t min_bytes_each, int64_t* out) {
  const size_t start = at_;
  uint64_t count = 0;
  LH_RETURN_IF_ERROR(ReadNumber(what, &count));
  if (count > static_cast<uint64_t>(limit)) {
    return Fail(start, std::string(what) + " is " + std::to_string(count) + "; the limit is " + std::to_string(limit));
  }
  const auto left = static_cast<uint64_t>(bytes_.size() - at_);
  if (min_bytes_each > 0 && count > left / static_cast<uint64_t>(min_bytes_each)) {
    return Fail(start, std::string(what) + " is " + std::to_string(count) + ", more than the " + std::to_string(left) +
                           " bytes left of the file can hold");
  }
  *out = static_cast<int64_t>(count);
  return absl::OkStatus();
}

absl::Status GgufParser::ReadString(const char* what, std::string_view* out) {
  int64_t length = 0;
  LH_RETURN_IF_ERROR(ReadCount(what, limits::kMaxGgufStringBytes, 1, &length));
  return ReadBytes(static_cast<size_t>(length), what, out);
}

absl::Status GgufParser::ReadArray(GgufValue* out) {
  const size_t start = at_;
  uint32_t type = 0;
  LH_RETURN_IF_ERROR(ReadNumber("array element type", &type));
  out->element_type_ = static_cast<GgufType>(type);
  const bool of_strings = out->element_type_ == GgufType::kString;
  const int64_t element_bytes = of_strings ? 8 : ScalarBytes(out->element_type_);
  if (element_bytes == 0) {
    return Fail(start, "array element type " + std::to_string(type) + "; scalars and strings are expected");
  }
  LH_RETURN_IF_ERROR(ReadCount("array length", limits::kMaxGgufArrayElements, element_bytes, &out->count_));
  if (!of_strings) return ReadBytes(static_cast<size_t>(out->count_ * element_bytes), "array", &out->bytes_);
  out->strings_.resize(static_cast<size_t>(out->count_));
  for (std::string_view& element : out->strings_) LH_RETURN_IF_ERROR(ReadString("array string", &element));
  return absl::OkStatus();
}

absl::Status GgufParser::ReadValue(GgufValue* out) {
  const size_t start = at_;
  uint32_t type = 0;
  LH_RETURN_IF_ERROR(ReadNumber("value type", &type));
  out->type_ = static_cast<GgufType>(type);
  if (out->type_ == GgufType::kString) return ReadString("string", &out->bytes_);
  if (out->type_ == GgufType::kArray) return ReadArray(out);
  const int64_t scalar_bytes = ScalarBytes(out->type_);
  if (scalar_bytes == 0) return Fail(start, "value type " + std::to_string(type) + "; 0 to 12 are expected");
  return ReadBytes(static_cast<size_t>(scalar_bytes), "value", &out->bytes_);
}

absl::Status GgufParser::ReadMetadata(int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const size_t start = at_;
    std::string_view key;
    LH_RETURN_IF_ERROR(ReadString("metadata key", &key));
    if (key.empty() || key.size() > static_cast<size_t>(limits::kMaxGgufKeyBytes)) {
      return Fail(start, "metadata key of " + std::to_string(key.size()) + " bytes; 1 to " +
                             std::to_string(limits::kMaxGgufKeyBytes) + " are allowed");
    }
    GgufValue value;
    LH_RETURN_IF_ERROR(ReadValue(&value));
    if (!file_.metadata_.emplace(std::string(key), std::move(value)).second) {
      return Fail(start, "metadata key \"" + Printable(key) + "\" comes twice");
    }
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ReadTensorInfo(GgufTensor* out) {
  const size_t start = at_;
  std::string_view name;
  LH_RETURN_IF_ERROR(ReadString("tensor name", &name));
  if (name.empty() || name.size() > kMaxTensorNameBytes) {
    return Fail(start, "tensor name of " + std::to_string(name.size()) + " bytes; 1 to " +
                           std::to_string(kMaxTensorNameBytes) + " are allowed");
  }
  out->name = std::string(name);
  const std::string shown = "tensor \"" + Printable(name) + "\": ";
  uint32_t n_dims = 0;
  LH_RETURN_IF_ERROR(ReadNumber("dimension count", &n_dims));
  if (n_dims > kMaxDims) return Fail(start, shown + std::to_string(n_dims) + " dimensions; the limit is 4");
  int64_t elements = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    uint64_t dim = 0;
    LH_RETURN_IF_ERROR(ReadNumber("dimension", &dim));
    if (dim == 0 || dim > static_cast<uint64_t>(INT64_MAX)) {
      return Fail(start, shown + "dimension " + std::to_string(i) + " is " + std::to_string(dim));
    }
    out->dims.push_back(static_cast<int64_t>(dim));
    elements = MultiplyOrMinusOne(elements, static_cast<int64_t>(dim));
    if (elements < 0) return Fail(start, shown + "its element count overflows");
  }
  uint32_t type = 0;
  uint64_t offset = 0;
  LH_RETURN_IF_ERROR(ReadNumber("tensor type", &type));
  LH_RETURN_IF_ERROR(ReadNumber("tensor offset", &offset));
  const TypeId* known = nullptr;
  for (const TypeId& candidate : kTypeIds) {
    if (candidate.id == type) known = &candidate;
  }
  if (known == nullptr) {
    for (const ForeignType& foreign : kForeignTypes) {
      if (foreign.id == type) return Unsupported(file_.path_, shown + "type " + foreign.name + " is not supported");
    }
    return Fail(start, shown + "unknown type " + std::to_string(type));
  }
  out->type = known->type;
  // A row holds whole blocks, so that rows can be read one by one.
  out->bytes = out->cols() % BlockElements(out->type) == 0 ? StorageBytes(out->type, elements) : -1;
  if (out->bytes < 0) {
    return Fail(start, shown + "rows of " + std::to_string(out->cols()) + " elements are no whole blocks of " +
                           StorageTypeName(out->type));
  }
  if (offset > static_cast<uint64_t>(bytes_.size())) {
    return Fail(start, shown + "offset " + std::to_string(offset) + " is past the end of the file");
  }
  out->offset = static_cast<int64_t>(offset);
  return absl::OkStatus();
}

absl::Status GgufParser::ReadTensors(int64_t count) {
  LH_ASSIGN_OR_RETURN(const int64_t alignment, file_.Int("general.alignment", kDefaultAlignment));
  if (alignment < 1 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
    return BadFile(file_.path_, "general.alignment is " + std::to_string(alignment) + "; a power of two up to " +
                                    std::to_string(kMaxAlignment) + " is expected");
  }
  int64_t expected = 0;
  for (int64_t i = 0; i < count; ++i) {
    const size_t start = at_;
    GgufTensor tensor;
    LH_RETURN_IF_ERROR(ReadTensorInfo(&tensor));
    const std::string shown = "tensor \"" + Printable(tensor.name) + "\": ";
    if (tensor.offset != expected) {
      return Fail(start, shown + "offset " + std::to_string(tensor.offset) + "; the tensors before it end at " +
                             std::to_string(expected));
    }
    if (tensor.bytes > static_cast<int64_t>(bytes_.size()) - expected) {
      return Fail(start, shown + std::to_string(tensor.bytes) + " bytes at data offset " + std::to_string(expected) +
                             " of a file of " + std::to_string(bytes_.size()));
    }
    expected += (tensor.bytes + alignment - 1) / alignment * alignment;
    if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second) {
      return Fail(start, shown + "comes twice");
    }
    file_.tensors_.push_back(std::move(tensor));
  }
  const int64_t data_begin = (static_cast<int64_t>(at_) + alignment - 1) / alignment * alignment;
  for (GgufTensor& tensor : file_.tensors_) {
    tensor.offset += data_begin;
    if (tensor.offset + tensor.bytes > static_cast<int64_t>(bytes_.size())) {
      return Fail(at_, "tensor \"" + Printable(tensor.name) + "\" ends at byte " +
                           std::to_string(tensor.offset + tensor.bytes) + " of a file of " +
                           std::to_string(bytes_.size()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufFile> GgufParser::Parse() {
  std::string_view magic;
  LH_RETURN_IF_ERROR(ReadBytes(4, "magic", &magic));
  if (magic != "GGUF") return Fail(0, "the file does not start with \"GGUF\"");
  uint32_t version = 0;
  LH_RETURN_IF_ERROR(ReadNumber("version", &version));
  if (version != 3) return Unsupported(file_.path_, "GGUF version " + std::to_string(version) + "; 3 is supported");
  constexpr int64_t kMinTensorInfoBytes = 8 + 1 + 4 + 4 + 8;
  constexpr int64_t kMinKeyValueBytes = 8 + 1 + 4 + 1;
  int64_t tensors = 0;
  int64_t key_values = 0;
  LH_RETURN_IF_ERROR(ReadCount("tensor count", limits::kMaxGgufTensors, kMinTensorInfoBytes, &tensors));
  LH_RETURN_IF_ERROR(ReadCount("metadata count", limits::kMaxGgufKeyValues, kMinKeyValueBytes, &key_values));
  file_.bytes_ = bytes_;
  LH_RETURN_IF_ERROR(ReadMetadata(key_values));
  LH_RETURN_IF_ERROR(ReadTensors(tensors));
  return std::move(file_);
}

}  // namespace longhaul::formats
