#include <unistd.h>

#include <algorithm>

#include "base/env.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/formats/safetensors.h"

namespace longhaul::formats {
namespace {

std::string JsonString(const std::string& text) { return nlohmann::json(text).dump(); }

int64_t BytesOf(const SafetensorsInput& tensor) {
  int64_t elements = 1;
  for (int64_t dim : tensor.shape) elements = MultiplyOrMinusOne(elements, dim);
  return elements < 0 ? -1 : StorageBytes(tensor.type, elements);
}

std::string_view DataOf(const SafetensorsInput& tensor) {
  return {static_cast<const char*>(tensor.data), static_cast<size_t>(BytesOf(tensor))};
}

absl::Status Refuse(const SafetensorsInput& tensor, const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "TENSOR_INVALID", "tensor \"" + tensor.name + "\" " + what);
}

absl::Status WriteAll(const std::string& path, const std::string& header,
                      const std::vector<SafetensorsInput>& tensors) {
  LH_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path, /*truncate_to=*/0));
  LH_RETURN_IF_ERROR(file.Append(header));
  for (const SafetensorsInput& tensor : tensors) LH_RETURN_IF_ERROR(file.Append(DataOf(tensor)));
  return file.Sync();
}

}  // namespace

absl::StatusOr<std::string> SafetensorsWriter::Header() {
  // Wide dtypes first: every tensor then starts at a multiple of its element size.
  std::sort(tensors_.begin(), tensors_.end(), [](const SafetensorsInput& a, const SafetensorsInput& b) {
    return a.type != b.type ? a.type > b.type : a.name < b.name;
  });
  std::string json = "{";
  if (!metadata_.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata_) {
      if (json.back() != '{') json += ',';
      json += JsonString(key) + ":" + JsonString(value);
    }
    json += '}';
  }
  int64_t offset = 0;
  std::vector<std::string> names;
  for (const SafetensorsInput& tensor : tensors_) {
    const int64_t bytes = BytesOf(tensor);
    if (tensor.type > StorageType::kU64) return Refuse(tensor, "has a type that safetensors lacks");
    if (bytes < 0) return Refuse(tensor, "has a shape that does not fit its type");
    if (tensor.name == "__metadata__") return Refuse(tensor, "has the name of the metadata");
    names.push_back(tensor.name);
    if (json.size() > 1) json += ',';
    json += JsonString(tensor.name) + ":{\"dtype\":\"" + StorageTypeName(tensor.type) + "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) json += (i > 0 ? "," : "") + std::to_string(tensor.shape[i]);
    json += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + bytes) + "]}";
    offset += bytes;
  }
  json += '}';
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TENSOR_INVALID", "two tensors are named \"" + *twice + "\"");
  }
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + json;
}

absl::StatusOr<std::string> SafetensorsWriter::Serialize() {
  LH_ASSIGN_OR_RETURN(std::string out, Header());
  for (const SafetensorsInput& tensor : tensors_) out += DataOf(tensor);
  return out;
}

absl::Status SafetensorsWriter::WriteFile(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const std::string header, Header());
  const std::string temporary = path + ".tmp." + std::to_string(getpid());
  absl::Status status = WriteAll(temporary, header, tensors_);
  if (status.ok()) status = RenameFile(temporary, path);
  // The first error says why; that the leftover cannot be removed either adds nothing.
  if (!status.ok()) (void)RemoveFile(temporary);
  return status;
}

}  // namespace longhaul::formats
