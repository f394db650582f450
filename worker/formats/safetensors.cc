#include "worker/formats/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/formats/file_error.h"
#include "worker/formats/json_strict.h"
#include "worker/formats/safetensors_header.h"

namespace longhaul::formats {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are used as they lie in the file");

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";

absl::Status CheckOffsets(const std::vector<SafetensorsEntry>& tensors, int64_t data_begin, int64_t file_size,
                          const std::string& file) {
  int64_t expected = data_begin;
  for (const SafetensorsEntry& t : tensors) {
    if (t.begin != expected) {
      return BadFile(file, "tensor \"" + Printable(t.name) + "\" starts at data offset " +
                               std::to_string(t.begin - data_begin) + ", but the one before it ends at " +
                               std::to_string(expected - data_begin) + "; tensors must be packed");
    }
    int64_t elements = 1;
    for (int64_t dim : t.shape) elements = MultiplyOrMinusOne(elements, dim);
    const int64_t bytes = elements < 0 ? -1 : StorageBytes(t.type, elements);
    if (bytes < 0 || bytes != t.end - t.begin) {
      return BadFile(file, "tensor \"" + Printable(t.name) + "\" has " + std::to_string(t.end - t.begin) +
                               " bytes, but its shape and dtype " + StorageTypeName(t.type) + " need " +
                               (bytes < 0 ? "an impossible number" : std::to_string(bytes)));
    }
    expected = t.end;
  }
  if (expected != file_size) {
    return BadFile(file, "tensors end at byte " + std::to_string(expected) + ", the file at " +
                             std::to_string(file_size) + "; they must end together");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::string_view bytes, const std::string& file) {
  constexpr size_t kLengthBytes = 8;
  if (bytes.size() < kLengthBytes) {
    return BadFile(file, "has " + std::to_string(bytes.size()) + " bytes; a header length needs 8");
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > static_cast<uint64_t>(limits::kMaxSafetensorsHeaderBytes)) {
    return BadFile(file, "byte 0: header of " + std::to_string(header_bytes) + " bytes; the limit is " +
                             std::to_string(limits::kMaxSafetensorsHeaderBytes));
  }
  if (header_bytes > bytes.size() - kLengthBytes) {
    return BadFile(file, "byte 0: header of " + std::to_string(header_bytes) + " bytes in a file of " +
                             std::to_string(bytes.size()));
  }
  const auto data_begin = static_cast<int64_t>(kLengthBytes + header_bytes);
  LH_ASSIGN_OR_RETURN(SafetensorsHeader header,
                      ParseSafetensorsJson(bytes.substr(kLengthBytes, header_bytes), data_begin, file));
  std::sort(header.tensors.begin(), header.tensors.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  LH_RETURN_IF_ERROR(CheckOffsets(header.tensors, data_begin, static_cast<int64_t>(bytes.size()), file));
  return header;
}

struct SafetensorsSet::Shard {
  std::string path;
  MappedFile file;
  SafetensorsHeader header;
};

absl::Status SafetensorsSet::AddShard(const std::string& path) {
  LH_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  LH_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensors(mapped.view(), path));
  auto shard = std::make_shared<Shard>(Shard{path, std::move(mapped), std::move(header)});
  for (const SafetensorsEntry& entry : shard->header.tensors) {
    const TensorView view{&entry, shard->file.data() + entry.begin, &shard->path};
    if (!tensors_.emplace(entry.name, view).second) {
      return BadFile(path, "tensor \"" + Printable(entry.name) + "\" is in another shard too");
    }
  }
  if (shards_.empty()) metadata_ = shard->header.metadata;
  files_.push_back(path);
  shards_.push_back(std::move(shard));
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsSet> SafetensorsSet::OpenFile(const std::string& path) {
  SafetensorsSet set;
  LH_RETURN_IF_ERROR(set.AddShard(path));
  return set;
}

absl::StatusOr<SafetensorsSet> SafetensorsSet::OpenFolder(const std::string& folder) {
  const std::string index_path = JoinPath(folder, kIndexName);
  if (!FileExists(index_path)) {
    const std::string single = JoinPath(folder, kSingleName);
    if (FileExists(single)) return OpenFile(single);
    return BadFile(folder, std::string("has neither ") + kSingleName + " nor " + kIndexName);
  }
  SafetensorsSet set;
  LH_RETURN_IF_ERROR(set.OpenShards(folder, index_path));
  return set;
}

absl::Status SafetensorsSet::OpenShards(const std::string& folder, const std::string& index_path) {
  LH_ASSIGN_OR_RETURN(nlohmann::json index, ReadJsonFile(index_path));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return BadFile(index_path, "has no object \"weight_map\"");
  }
  std::set<std::string> shard_names;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) return BadFile(index_path, "weight_map[\"" + Printable(tensor) + "\"] is no string");
    const auto& name = shard.get_ref<const std::string&>();
    // A shard lies beside its index: a name with a slash could reach any file of the host.
    if (name.empty() || name.find('/') != std::string::npos || name == "." || name == "..") {
      return BadFile(index_path, "names the shard \"" + Printable(name) + "\"; a plain file name is expected");
    }
    shard_names.insert(name);
  }
  for (const std::string& name : shard_names) LH_RETURN_IF_ERROR(AddShard(JoinPath(folder, name)));
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    const TensorView* view = Find(tensor);
    const std::string path = JoinPath(folder, shard.get_ref<const std::string&>());
    if (view == nullptr || *view->file != path) {
      return BadFile(index_path, "says that \"" + Printable(tensor) + "\" is in " + path + ", which lacks it");
    }
  }
  files_.push_back(index_path);
  std::sort(files_.begin(), files_.end());
  return absl::OkStatus();
}

const TensorView* SafetensorsSet::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace longhaul::formats
