// GGUF version 3: metadata and tensor directory over a read-only mapping. Strict: names, counts, types, offsets and
// sizes are checked against the file before anything is allocated from them; an error names the file, the byte offset
// and the limit. Source: FORMATS.md section 8. Tests: tests/worker/formats/gguf_test.cc
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "worker/formats/tensor_info.h"

namespace longhaul::formats {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// A metadata value. Strings and arrays point into the file's bytes.
class GgufValue {
 public:
  GgufType type() const { return type_; }
  // Each is empty where the value is of another kind. AsInt takes any integer type whose value fits int64; AsFloat
  // takes integers too.
  std::optional<int64_t> AsInt() const;
  std::optional<double> AsFloat() const;
  std::optional<bool> AsBool() const;
  std::optional<std::string_view> AsString() const;

  // Arrays. size() is 0 for a scalar.
  GgufType element_type() const { return element_type_; }
  int64_t size() const { return count_; }
  // Elements of a string array; empty for anything else.
  const std::vector<std::string_view>& strings() const { return strings_; }
  // Copies of an integer (or bool) array and of a float array. REQUIRES nothing: another kind gives nullopt.
  std::optional<std::vector<int64_t>> AsIntArray() const;
  std::optional<std::vector<float>> AsFloatArray() const;

 private:
  friend class GgufParser;
  GgufType type_ = GgufType::kUint8;
  GgufType element_type_ = GgufType::kUint8;
  int64_t count_ = 0;
  std::string_view bytes_;  // scalar, string or packed array elements, as in the file
  std::vector<std::string_view> strings_;
};

struct GgufTensor {
  std::string name;
  StorageType type = StorageType::kF32;
  std::vector<int64_t> dims;  // innermost first, as in the file: [cols, rows]
  int64_t offset = 0;         // bytes from the start of the file
  int64_t bytes = 0;
  int64_t rows() const;  // product of all dims but the innermost
  int64_t cols() const { return dims.empty() ? 1 : dims[0]; }
};

// Movable. Thread-safe: immutable. Values and data point into the mapping.
class GgufFile {
 public:
  static absl::StatusOr<GgufFile> Open(const std::string& path);
  // `bytes` outlives the object; `name` stands for the file in messages.
  static absl::StatusOr<GgufFile> FromBytes(std::string_view bytes, const std::string& name);

  const std::string& path() const { return path_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const GgufValue* FindValue(std::string_view key) const;  // null where absent
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* FindTensor(const std::string& name) const;  // null where absent
  const uint8_t* Data(const GgufTensor& tensor) const {
    return reinterpret_cast<const uint8_t*>(bytes_.data()) + tensor.offset;
  }

  // Typed metadata. INVALID_ARGUMENT names the file, the key and the type found; with a default, absence is fine.
  absl::StatusOr<int64_t> Int(std::string_view key, std::optional<int64_t> absent = std::nullopt) const;
  absl::StatusOr<double> Float(std::string_view key, std::optional<double> absent = std::nullopt) const;
  absl::StatusOr<std::string> String(std::string_view key, std::optional<std::string> absent = std::nullopt) const;

 private:
  friend class GgufParser;
  std::string path_;
  std::shared_ptr<const MappedFile> mapping_;  // null where the bytes are the caller's
  std::string_view bytes_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> tensor_index_;
};

}  // namespace longhaul::formats
