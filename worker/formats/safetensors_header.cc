#include "worker/formats/safetensors_header.h"

#include <optional>
#include <unordered_set>

#include "base/limits.h"
#include "nlohmann/json.hpp"
#include "worker/formats/file_error.h"

namespace longhaul::formats {
namespace {

constexpr char kMetadataKey[] = "__metadata__";

std::optional<StorageType> TypeFromName(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(StorageType::kU64); ++i) {
    if (name == StorageTypeName(static_cast<StorageType>(i))) return static_cast<StorageType>(i);
  }
  return std::nullopt;
}

// Where in {"__metadata__": {k: v}, NAME: {"dtype": s, "shape": [..], "data_offsets": [b, e]}} the next event falls.
enum class Place { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(int64_t data_begin) : data_begin_(data_begin) {}

  SafetensorsHeader header;
  std::string error;

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets) return Unexpected("a number");
    const int64_t limit = place_ == Place::kShape ? INT64_MAX : INT64_MAX - data_begin_;
    if (value > static_cast<uint64_t>(limit)) {
      return Fail("has the number " + std::to_string(value) + " for tensor \"" + Printable(tensor_.name) +
                  "\", past int64");
    }
    if (place_ == Place::kShape) {
      if (tensor_.shape.size() == static_cast<size_t>(limits::kMaxTensorRank)) {
        return Fail("gives tensor \"" + Printable(tensor_.name) + "\" more than " +
                    std::to_string(limits::kMaxTensorRank) + " dimensions");
      }
      tensor_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (offsets_seen_ == 2) return Fail("gives tensor \"" + Printable(tensor_.name) + "\" three data_offsets");
    (offsets_seen_++ == 0 ? tensor_.begin : tensor_.end) = static_cast<int64_t>(value) + data_begin_;
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      header.metadata[key_] = value;
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") return Unexpected("a string");
    const std::optional<StorageType> type = TypeFromName(value);
    if (!type) {
      return Fail("gives tensor \"" + Printable(tensor_.name) + "\" the unknown dtype \"" + Printable(value) + "\"");
    }
    tensor_.type = *type;
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
      return true;
    }
    if (place_ != Place::kTop) return Unexpected("an object");
    if (key_ == kMetadataKey) {
      place_ = Place::kMetadata;
      return true;
    }
    place_ = Place::kTensor;
    tensor_ = SafetensorsEntry{};
    tensor_.name = key_;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    offsets_seen_ = 0;
    return true;
  }

  bool key(string_t& value) override {
    if (place_ == Place::kTop) {
      if (!names_.insert(value).second) return Duplicate(value);
    } else if (place_ == Place::kMetadata) {
      if (header.metadata.count(value) != 0) return Duplicate(value);
    } else {
      bool* seen = value == "dtype"          ? &has_dtype_
                   : value == "shape"        ? &has_shape_
                   : value == "data_offsets" ? &has_offsets_
                                             : nullptr;
      if (seen == nullptr) {
        return Fail("has the unknown key \"" + Printable(value) + "\" in tensor \"" + Printable(tensor_.name) + "\"");
      }
      if (*seen) return Duplicate(value);
      *seen = true;
    }
    key_ = value;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (!has_dtype_ || !has_shape_ || !has_offsets_ || offsets_seen_ != 2) {
        return Fail("tensor \"" + Printable(tensor_.name) + "\" needs dtype, shape and two data_offsets");
      }
      if (tensor_.begin > tensor_.end) {
        return Fail("tensor \"" + Printable(tensor_.name) + "\" ends before it begins");
      }
      if (header.tensors.size() == static_cast<size_t>(limits::kMaxSafetensorsTensors)) {
        return Fail("has more than " + std::to_string(limits::kMaxSafetensorsTensors) + " tensors");
      }
      header.tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::kTensor || key_ == "dtype") return Unexpected("an array");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& e) override {
    return Fail("byte " + std::to_string(position + 7) + ": " + Printable(e.what(), /*max_bytes=*/300));
  }

 private:
  bool Fail(const std::string& what) {
    if (error.empty()) error = "header " + what;
    return false;
  }
  bool Unexpected(const std::string& what) { return Fail("has " + what + " under \"" + Printable(key_) + "\""); }
  bool Duplicate(const std::string& key) { return Fail("has the key \"" + Printable(key) + "\" twice"); }

  const int64_t data_begin_;
  Place place_ = Place::kStart;
  std::string key_;
  std::unordered_set<std::string> names_;
  SafetensorsEntry tensor_;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  int offsets_seen_ = 0;
};

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsJson(std::string_view json, int64_t data_begin,
                                                       const std::string& file) {
  // The JSON library skips a byte-order mark and takes a NUL for the end of its input; the format allows neither.
  if (json.empty() || json.front() != '{') return BadFile(file, "byte 8: the header does not start with '{'");
  if (json.find('\0') != std::string_view::npos) return BadFile(file, "header contains a NUL byte");
  HeaderReader reader(data_begin);
  const bool ok = nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  if (!ok || !reader.error.empty()) return BadFile(file, reader.error.empty() ? "header is no JSON" : reader.error);
  return std::move(reader.header);
}

}  // namespace longhaul::formats
