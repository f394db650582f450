#include "worker/formats/gguf.h"

#include <cstring>

#include "base/status_macros.h"
#include "worker/formats/file_error.h"
#include "worker/formats/gguf_parser.h"

namespace longhaul::formats {
namespace {

template <typename T>
T Load(std::string_view bytes, int64_t index = 0) {
  T value;
  std::memcpy(&value, bytes.data() + static_cast<size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

std::optional<int64_t> LoadInt(GgufType type, std::string_view bytes, int64_t i) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kBool:
      return Load<uint8_t>(bytes, i);
    case GgufType::kInt8:
      return Load<int8_t>(bytes, i);
    case GgufType::kUint16:
      return Load<uint16_t>(bytes, i);
    case GgufType::kInt16:
      return Load<int16_t>(bytes, i);
    case GgufType::kUint32:
      return Load<uint32_t>(bytes, i);
    case GgufType::kInt32:
      return Load<int32_t>(bytes, i);
    case GgufType::kInt64:
      return Load<int64_t>(bytes, i);
    case GgufType::kUint64: {
      const auto value = Load<uint64_t>(bytes, i);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

}  // namespace

std::optional<int64_t> GgufValue::AsInt() const {
  if (type_ == GgufType::kBool) return std::nullopt;
  return LoadInt(type_, bytes_, 0);
}

std::optional<double> GgufValue::AsFloat() const {
  if (type_ == GgufType::kFloat32) return static_cast<double>(Load<float>(bytes_));
  if (type_ == GgufType::kFloat64) return Load<double>(bytes_);
  const std::optional<int64_t> integer = AsInt();
  if (!integer) return std::nullopt;
  return static_cast<double>(*integer);
}

std::optional<bool> GgufValue::AsBool() const {
  if (type_ != GgufType::kBool) return std::nullopt;
  return Load<uint8_t>(bytes_) != 0;
}

std::optional<std::string_view> GgufValue::AsString() const {
  if (type_ != GgufType::kString) return std::nullopt;
  return bytes_;
}

std::optional<std::vector<int64_t>> GgufValue::AsIntArray() const {
  if (type_ != GgufType::kArray) return std::nullopt;
  std::vector<int64_t> out;
  out.reserve(static_cast<size_t>(count_));
  for (int64_t i = 0; i < count_; ++i) {
    const std::optional<int64_t> value = LoadInt(element_type_, bytes_, i);
    if (!value) return std::nullopt;
    out.push_back(*value);
  }
  return out;
}

std::optional<std::vector<float>> GgufValue::AsFloatArray() const {
  if (type_ != GgufType::kArray) return std::nullopt;
  if (element_type_ != GgufType::kFloat32 && element_type_ != GgufType::kFloat64) return std::nullopt;
  std::vector<float> out;
  out.reserve(static_cast<size_t>(count_));
  for (int64_t i = 0; i < count_; ++i) {
    out.push_back(element_type_ == GgufType::kFloat32 ? Load<float>(bytes_, i)
                                                      : static_cast<float>(Load<double>(bytes_, i)));
  }
  return out;
}

int64_t GgufTensor::rows() const {
  int64_t rows = 1;
  for (size_t i = 1; i < dims.size(); ++i) rows *= dims[i];
  return rows;
}

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path) {
  LH_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  auto mapping = std::make_shared<const MappedFile>(std::move(mapped));
  LH_ASSIGN_OR_RETURN(GgufFile file, FromBytes(mapping->view(), path));
  file.mapping_ = std::move(mapping);
  return file;
}

absl::StatusOr<GgufFile> GgufFile::FromBytes(std::string_view bytes, const std::string& name) {
  return GgufParser(bytes, name).Parse();
}

const GgufValue* GgufFile::FindValue(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

const GgufTensor* GgufFile::FindTensor(const std::string& name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

absl::StatusOr<int64_t> GgufFile::Int(std::string_view key, std::optional<int64_t> absent) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr && absent) return *absent;
  if (value == nullptr) return BadFile(path_, "metadata lacks " + std::string(key));
  const std::optional<int64_t> number = value->AsInt();
  if (!number) return BadFile(path_, "metadata " + std::string(key) + " is no integer");
  return *number;
}

absl::StatusOr<double> GgufFile::Float(std::string_view key, std::optional<double> absent) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr && absent) return *absent;
  if (value == nullptr) return BadFile(path_, "metadata lacks " + std::string(key));
  const std::optional<double> number = value->AsFloat();
  if (!number) return BadFile(path_, "metadata " + std::string(key) + " is no number");
  return *number;
}

absl::StatusOr<std::string> GgufFile::String(std::string_view key, std::optional<std::string> absent) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr && absent) return *absent;
  if (value == nullptr) return BadFile(path_, "metadata lacks " + std::string(key));
  const std::optional<std::string_view> text = value->AsString();
  if (!text) return BadFile(path_, "metadata " + std::string(key) + " is no string");
  return std::string(*text);
}

}  // namespace longhaul::formats
