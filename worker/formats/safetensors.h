// The safetensors format: u64 header length, JSON header, packed little-endian row-major tensors.
// Reading is strict: whatever the reference library refuses is refused here, and duplicate keys too. Writing gives the
// reference library's bytes. Source: FORMATS.md section 1. Tests: tests/worker/formats/safetensors_test.cc
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/env.h"
#include "worker/formats/tensor_info.h"

namespace longhaul::formats {

struct SafetensorsEntry {
  std::string name;
  StorageType type = StorageType::kF32;
  std::vector<int64_t> shape;  // row-major; empty = a scalar
  int64_t begin = 0;           // bytes from the start of the file
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // by offset
  std::map<std::string, std::string> metadata;
};

// Checks the whole header against the file's size. `bytes` is the whole file, `file` its name in messages.
// Allocates at most a small multiple of the header.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::string_view bytes, const std::string& file);

// A tensor inside a mapping; valid for as long as the object it came from.
struct TensorView {
  const SafetensorsEntry* entry = nullptr;
  const uint8_t* data = nullptr;
  const std::string* file = nullptr;
  int64_t bytes() const { return entry->end - entry->begin; }
};

// One file or a set of shards with an index, mapped read-only. Movable. Thread-safe: immutable.
class SafetensorsSet {
 public:
  static absl::StatusOr<SafetensorsSet> OpenFile(const std::string& path);
  // `folder` holds model.safetensors, or model.safetensors.index.json and the shards it names.
  static absl::StatusOr<SafetensorsSet> OpenFolder(const std::string& folder);

  // Null where there is no such tensor.
  const TensorView* Find(const std::string& name) const;
  const std::unordered_map<std::string, TensorView>& tensors() const { return tensors_; }
  // Paths of the files read, sorted; the index is among them where there is one.
  const std::vector<std::string>& files() const { return files_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }  // of the first file

 private:
  struct Shard;
  absl::Status AddShard(const std::string& path);
  absl::Status OpenShards(const std::string& folder, const std::string& index_path);

  std::vector<std::shared_ptr<const Shard>> shards_;
  std::unordered_map<std::string, TensorView> tensors_;
  std::vector<std::string> files_;
  std::map<std::string, std::string> metadata_;
};

// A tensor to write: `data` holds StorageBytes(type, product of shape) bytes and outlives the call.
struct SafetensorsInput {
  std::string name;
  StorageType type = StorageType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

class SafetensorsWriter {
 public:
  // {"format": "pt"}, without which Hugging Face's loaders refuse the file.
  SafetensorsWriter() : metadata_{{"format", "pt"}} {}
  void SetMetadata(std::map<std::string, std::string> metadata) { metadata_ = std::move(metadata); }
  void Add(SafetensorsInput tensor) { tensors_.push_back(std::move(tensor)); }

  // The length field and the padded JSON: sorts the tensors by dtype rank descending, then by name.
  // INVALID_ARGUMENT: two tensors of one name, the name __metadata__, a shape that does not fit its type.
  absl::StatusOr<std::string> Header();
  // Header and data as one string, for tests and small files.
  absl::StatusOr<std::string> Serialize();
  // Durable: a sibling temporary file, fsync, rename. Streams the tensors from where they lie.
  absl::Status WriteFile(const std::string& path);

 private:
  std::map<std::string, std::string> metadata_;
  std::vector<SafetensorsInput> tensors_;
};

}  // namespace longhaul::formats
